"""The notebooks run from top to bottom, with few samples."""

import json
import pathlib

import jax
import matplotlib.pyplot
import pytest

pytestmark = pytest.mark.slow
FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"


@pytest.fixture
def as_a_user(monkeypatch):
    """What a fresh kernel has: no strict modes; settings that a notebook makes are taken back."""
    monkeypatch.setenv("NTRK_SMOKE", "1")
    before = jax.config.values["jax_disable_most_optimizations"]
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebook_runs(path, monkeypatch):
    matplotlib.use("Agg")
    pictures = []
    monkeypatch.setattr(matplotlib.pyplot, "show", lambda: pictures.append(matplotlib.pyplot.gcf().axes))
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    names = {"__name__": path.stem}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"{path.name}, code cell {number}", "exec"), names)
    assert all(pictures), "an empty picture"
