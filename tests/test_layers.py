"""Imports run downwards only: the layers as data, the import statements as evidence."""

import ast
import pathlib
import subprocess
import sys

import pytest

import ntrk_jax

ROOT = pathlib.Path(ntrk_jax.__file__).parent
LAYERS = {
    "naming": -1,
    "tree": 0, "typing": 0, "varying": 0, "arguments": 0.5,
    "core": 1,
    "schedules": 2, "grids": 2, "tweedie": 2, "models": 2, "kernels": 2, "whitening": 2, "guidance": 2, "values": 2,
    "rewards": 2, "targets": 2, "metrics": 2, "potentials": 2, "resampling": 2,
    "look": 3, "move": 3,
    "samplers": 4,
    "run": 5,
    "methods": 6, "training": 6, "config": 6, "batch": 6,
    "__init__": 7,
    "cli": 8,
}  # fmt: skip
MAY_USE = {
    "grids": {"schedules"}, "models": {"schedules", "tweedie", "targets"},
    "targets": {"schedules", "rewards", "tweedie"},
    "kernels": {"tweedie", "schedules", "grids"}, "values": {"schedules", "tweedie", "targets"},
    "guidance": {"tweedie"},
    "metrics": {"whitening", "targets"}, "whitening": set(), "rewards": {"tweedie"},
}  # fmt: skip
HEAVY = {"matplotlib", "sklearn", "rich", "click", "orbax", "flax", "diffrax", "optax", "scipy.stats", "zarr"}


def room(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


def imported(path):
    """The rooms of the package that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ntrk_jax":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names if a.name in LAYERS} or {"__init__"}
        if isinstance(node, ast.Import):
            found |= {(a.name.split(".") + ["__init__"])[1] for a in node.names if a.name.split(".")[0] == "ntrk_jax"}
    return found


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path):
    here = room(path)
    assert here in LAYERS, f"{here} is in no layer"
    for other in imported(path) - {here}:
        below = LAYERS[other] < LAYERS[here]
        beside = LAYERS[other] == LAYERS[here] == 2 and other in MAY_USE.get(here, set())
        level = LAYERS[other] == LAYERS[here] and here in (
            "methods",
            "training",
            "config",
            "look",
            "move",
            "typing",
            "tree",
        )
        assert below or beside or level, f"{path.relative_to(ROOT)} imports {other}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body:
                assert body[-1].end_lineno - body[0].lineno + 1 <= 40, f"{node.name} is long"


def test_importing_the_package_imports_nothing_heavy():
    code = f"import ntrk_jax, sys; print([m for m in {sorted(HEAVY)} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
