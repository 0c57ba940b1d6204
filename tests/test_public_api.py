"""Every public name exists, is documented, and its examples run."""

import doctest
import importlib
import inspect
import pathlib
import pkgutil
import re

import pytest

import ntrk_jax as nk

MODULES = sorted(m.name for m in pkgutil.walk_packages(nk.__path__, "ntrk_jax.") if ".cli" not in m.name)
CONTRACT = """
schedules.VPCosine schedules.VPLinear schedules.VE schedules.RectifiedFlow grid targets.GaussianMixture rewards.Linear
rewards.Quadratic targets.tilt targets.value models.Exact models.FlaxDenoiser models.NnxDenoiser Look values.PlugIn
values.Exact values.MonteCarlo values.Learned kernels.DDIM kernels.FlowSDE kernels.FlowODE whitening.TypicalSet
whitening.Certified guidance.NTRK guidance.Calibrated Single run methods.CATALOGUE metrics.sliced_wasserstein
metrics.typicality
""".split()


@pytest.mark.parametrize("name", CONTRACT)
def test_names_relied_on_from_outside_exist(name):
    found = nk
    for part in name.split("."):
        found = getattr(found, part)


@pytest.mark.parametrize("name", MODULES)
def test_public_names_exist_and_are_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    for public in getattr(module, "__all__", ()):
        thing = getattr(module, public)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert thing.__doc__, f"{name}.{public} has no docstring"


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    """Under the suite's strict modes too, so that nobody who copies an example meets an error in theirs."""
    failures, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failures == 0


@pytest.mark.parametrize("room", ["kernels", "guidance", "whitening"])
def test_ingredients_state_their_terms(room):
    package = getattr(nk, room)
    for public in package.__all__:
        thing = getattr(package, public)
        if thing in nk.tree.REGISTRY.values() and public not in ("Unguided", "Calibrated", "Sum", "Window"):
            for term in ("Shapes", "Cost"):
                assert re.search(term, thing.__doc__ or ""), f"{room}.{public} does not state its {term}"


def test_every_method_has_an_alias_a_row_and_a_line_in_the_readme():
    readme = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
    for name, entry in nk.methods.CATALOGUE.items():
        assert getattr(nk.methods, name) is entry.build
        assert f"`{name}`" in readme, f"{name} is missing from the README's method table"
