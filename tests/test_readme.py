"""The README's code runs as printed, and its method table is the catalogue's."""

import doctest
import pathlib
import re

import jax

import ntrk_jax as nk

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_code_runs_as_printed():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        result = doctest.testfile(str(README), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 15
    assert result.failed == 0


def test_method_table_is_the_catalogue():
    text = README.read_text()
    for name, entry in nk.methods.CATALOGUE.items():
        assert f"| `{name}` | {entry.summary} | {entry.needs} | {entry.cost} | {entry.exact} |" in text


def test_two_commands_are_single_lines():
    lines = [line for line in README.read_text().splitlines() if line.startswith("python3 -m venv")]
    assert len(lines) == 2
    assert "ntrk demo" in lines[0]
    assert "'.[test]'" in lines[1]
    assert "pytest" in lines[1]


def test_nothing_is_left_to_fill_in_and_what_is_pointed_at_exists():
    text = README.read_text()
    assert "@@" not in text
    for path in re.findall(r"(?:benchmarks|notebooks)/[\w/]+\.(?:png|ipynb|md|py)", text):
        assert (README.parent / path).exists(), path
