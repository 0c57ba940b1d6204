"""`ntrk compare`: the report's schema, how a budget is spent, how strengths are chosen, and what is refused."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cli_main import invoke, quick_compilation, refused

import ntrk_jax as nk
from ntrk_jax.cli import compare_report, compare_study, figures
from ntrk_jax.cli.build import Choices, build
from ntrk_jax.cli.compare_judges import DigitsJudge, ExactJudge, key_of
from ntrk_jax.cli.compare_report import compare_table, markdown
from ntrk_jax.cli.compare_runs import Budget, Draws, Program, make, rows_for
from ntrk_jax.cli.compare_study import Plan
from ntrk_jax.cli.console import BadInput
from ntrk_jax.cli.problems import problem

SHIPPED = Path(nk.__file__).parent / "data" / "digits.npz"
FILES = ["compare.png", "report.json", "report.md"]
ROW = ["method", "seed", "nfe", "model_vjp", "reward", "reward_vjp", "mean_reward", "sw1", "sw2", "mode_tv", "log_z",
       "ess", "seconds"]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly():
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def das9(tmp_path_factory):
    out = tmp_path_factory.mktemp("compare") / "out"
    args = ["--target", "das9", "--nfe", 50, "--num", 100, "--seeds", 2, "--out", out]
    result = invoke("compare", *args, "--methods", "exact,fk,dps,pigdm")
    assert result.exit_code == 0, result.output
    return out, result, json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    out = tmp_path_factory.mktemp("compare") / "out"
    with np.load(SHIPPED) as file:  # another model: its judge says three times as much
        changed = {name: 3 * file[name] if name.startswith("judge/out") else file[name] for name in file.files}
    np.savez(out.parent / "mine.npz", **changed)
    mine = out.parent / "mine.npz"
    args = ["--target", "digits", "--steps", 4, "--num", 20, "--seeds", 1, "--out", out, "--checkpoint", mine]
    result = invoke("compare", *args, "--methods", "ntrk,exact")
    assert result.exit_code == 0, result.output
    return out, result, json.loads((out / "report.json").read_text())


def test_what_takes_the_data_for_gaussian_is_told_their_spread_and_tuned(das9):
    task, digits = problem("das9"), problem("digits")
    entries = {entry["method"]: entry for entry in das9[2]["summary"]}
    tries = entries["pigdm"]["tries"]
    assert {round(one["strength"] / task.spread(), 6) for one in tries} > {0.1, 0.3, 1.0}
    best = min(tries, key=lambda one: one["sw2"])["strength"]
    assert entries["pigdm"]["settings"] == {
        "num_steps": 50,
        "num_particles": None,
        "temperature": "default",
        "spread": best,
    }
    assert f"| pigdm | spread {best:.3g} |" in markdown(das9[2])
    assert not any("spread" in entries[name]["settings"] for name in ("exact", "fk", "dps"))
    means, weights = (np.asarray(a, np.float64) for a in (task.law.means, task.law.weights))
    between = weights @ (means - weights @ means) ** 2
    within = weights @ np.asarray([np.diag(cov) for cov in task.law.covs])
    assert task.spread() == pytest.approx(np.mean(between + within) ** 0.5, rel=0.05)
    assert build("pigdm", task, Choices()).look.value.spread == task.spread()
    assert build("pigdm", task, Choices(extra=("spread=2",))).look.value.spread == 2
    assert build("flow_first_order", digits, Choices()).guidance.spread == pytest.approx(0.54, abs=0.01)


def test_the_schema_of_the_report(das9):
    out, result, report = das9
    assert sorted(p.name for p in out.iterdir()) == FILES
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert report["target"] == "das9"
    tilted, log_z = nk.targets.tilt(*nk.targets.das9())
    exact = nk.targets.expected_reward(tilted, nk.targets.das9().reward)
    np.testing.assert_allclose(report["exact"]["mean_reward"], exact, rtol=1e-5)
    np.testing.assert_allclose(report["exact"]["log_z"], log_z, rtol=1e-5)
    assert 0 < report["floor"]["sw1"] < report["floor"]["sw2"] < 1.5
    found = [(row["method"], row["seed"]) for row in report["rows"]]
    assert found == [(name, seed) for name in ("exact", "fk", "dps", "pigdm") for seed in (0, 1)]
    for row in report["rows"]:
        assert list(row)[: len(ROW)] == ROW
        assert row["forward_equivalents"] == row["nfe"] + 2 * row["model_vjp"]
    assert [entry["method"] for entry in report["summary"]] == ["exact", "fk", "dps", "pigdm"]
    assert report["skipped"] == []


def test_what_has_no_meaning_is_null(das9):
    for row in das9[2]["rows"]:
        assert (row["log_z"] is None) == (row["ess"] is None) == (row["method"] != "fk")
        assert all(row[name] is not None for name in ("mean_reward", "sw1", "sw2", "mode_tv"))


def test_exact_guidance_and_evidence(das9):
    report = das9[2]
    mean = {entry["method"]: entry["mean"] for entry in report["summary"]}
    assert abs(mean["exact"]["mean_reward"] - report["exact"]["mean_reward"]) < 0.12
    assert mean["exact"]["sw2"] < 2.5 * report["floor"]["sw2"]
    assert mean["exact"]["mode_tv"] < 0.15
    assert abs(mean["fk"]["log_z"] - report["exact"]["log_z"]) < 0.6


def test_the_budget_is_what_was_counted(das9):
    spent = {row["method"]: (row["nfe"], row["model_vjp"]) for row in das9[2]["rows"]}
    assert spent == {"exact": (50, 0), "fk": (50, 0), "dps": (50, 50), "pigdm": (50, 50)}
    settings = {entry["method"]: entry["settings"] for entry in das9[2]["summary"]}
    assert (settings["fk"]["num_steps"], settings["fk"]["num_particles"]) == (25, 2)


def test_the_strength_is_the_best_of_those_tried(das9):
    (entry,) = (entry for entry in das9[2]["summary"] if entry["method"] == "dps")
    tried, listed = [one["strength"] for one in entry["tries"]], list(nk.methods.CATALOGUE["dps"].tries)
    assert tried[: len(listed)] == listed
    near = [abs(np.log(s / entry["settings"]["strength"])) for s in tried if s != entry["settings"]["strength"]]
    assert min(near) < 0.5 * np.log(10**0.5) + 0.1  # half a step beside the best was tried
    assert min(tried) < entry["settings"]["strength"] < max(tried)
    best = min(entry["tries"], key=lambda one: one["sw2"])
    assert entry["settings"]["strength"] == best["strength"]
    assert best["sw2"] not in [row["sw2"] for row in das9[2]["rows"]]  # chosen on draws that are not reported


def test_halvings_come_nearer_to_the_best_strength(monkeypatch):
    monkeypatch.setattr(compare_study, "_made", lambda name, task, judge, plan, option, strength: strength)

    class Judge:
        score = staticmethod(lambda measured: (0, measured["off"]))

        def __call__(self, draws, seed, tuning):
            return {"off": abs(np.log(draws / 0.0437))}

    off, dial = [], compare_study.Dial("strength", (0.1, 0.3, 1.0, 3.0), 0.0, np.inf)
    for halvings in (1, 4):
        plan = Plan(Budget(nfe=1), 1, (0,), halvings=halvings)
        _, tries = compare_study._tuned("dps", None, Judge(), plan, None, lambda made, key: (made, 0.0), dial)
        off.append(min(one["off"] for one in tries))
    assert off[1] < 0.5 * off[0]


def test_the_page_and_the_table(das9):
    out, result, report = das9
    page = (out / "report.md").read_text()
    assert page == markdown(report)
    for word in ("two exact sets", "sliced W2", "pigdm", "not reported"):
        assert word in page
    assert "sliced W2" in result.stdout
    assert "dps, tuned" in result.stderr
    refused(invoke("compare", "--out", out), "exists already", "--overwrite")


@pytest.mark.slow
def test_digits_are_judged_by_other_numbers(digits):
    out, result, report = digits
    assert report["exact"] == {"mean_reward": None, "log_z": None}
    assert report["floor"] == {"sw1": None, "sw2": None}
    (row,) = report["rows"]
    assert set(ROW) <= set(row)
    assert row["sw1"] is row["sw2"] is row["mode_tv"] is row["log_z"] is None
    assert (row["nfe"], row["model_vjp"]) == (4, 4)
    assert row["mean_reward"] > 3.0  # the reward of the digit asked for; unguided it is about 0
    assert row["held_out"] > 1.5 * row["mean_reward"]  # by the judge of the checkpoint
    assert 0.5 < row["distance_ratio"] < 1.5
    assert [one["method"] for one in report["skipped"]] == ["exact"]
    assert "left out exact: exact needs a target whose tilted law is known" in result.stdout
    assert "held-out" in [column.header for column in compare_table(report).columns]
    assert sorted(p.name for p in out.iterdir()) == FILES


def test_the_digits_rule_prefers_both_rewards_near_real_digits():
    score = lambda reward, held_out, ratio: DigitsJudge.score(  # noqa: E731
        DigitsJudge, {"mean_reward": reward, "held_out": held_out, "distance": 3 * ratio, "distance_ratio": ratio}
    )
    assert score(20.0, 20.0, 1.1) < score(30.0, 5.0, 1.1)
    assert score(10.0, 10.0, 1.2) < score(30.0, 30.0, 1.3)
    assert score(0.0, 0.0, 1.3) < score(30.0, 30.0, 1.4) < score(np.nan, 0.0, 1.0)


@pytest.mark.parametrize(
    ("name", "budget", "steps", "particles"),
    [
        ("base", Budget(nfe=100), 100, None),
        ("base", Budget(nfe=5000), 1000, None),
        ("freedom", Budget(nfe=101), 50, None),
        ("fk", Budget(nfe=100), 25, 4),
        ("fk", Budget(nfe=10_000), 100, 100),
        ("fk", Budget(nfe=10), 5, 2),
        ("svdd_argmax", Budget(nfe=100), 25, 4),
        ("dts_star", Budget(nfe=100), 25, 4),
        ("rbf", Budget(nfe=500, particles=10), 50, 10),
        ("base", Budget(steps=7), 7, None),
        ("best_of_n", Budget(steps=7, particles=3), 7, 3),
        ("dts", Budget(steps=10, particles=3), 10, 3),
    ],
)
def test_how_a_budget_is_spent(name, budget, steps, particles):
    task = problem("das9")
    made = make(name, task, None, budget, Choices())
    assert (made.num_steps, made.num_particles) == (steps, particles)
    entry = nk.methods.CATALOGUE[name]
    assert entry.nfe(made.num_steps, made.num_particles or 1) <= (budget.nfe or 10**9)
    assert made.lead == ((particles,) if entry.population else ())


@pytest.mark.slow
def test_a_tree_at_another_temperature_than_the_laws_gives_no_log_z():
    task = problem("das9")
    for name, known in (("dts", True), ("dts_star", False)):
        made = make(name, task, None, Budget(steps=4, particles=2), Choices())
        draws, _ = Program(made, task, 2)(made, key_of(0))
        assert np.all(np.isfinite(draws.log_z) == known)


def test_a_budget_that_pays_for_nothing():
    with pytest.raises(BadInput, match="does not pay for one row of 8"):
        rows_for(lambda steps, num: steps * num, 8, Budget(nfe=7))


def test_evidence_is_pooled_over_populations():
    task = problem("das8")
    judge, x = ExactJudge(task, 8), jnp.zeros((8, 2))
    weights = np.array([0.0, 1.0, 2.0, 3.0] * 2, np.float32)
    found = judge(Draws(x, None, np.log(weights + 1e-30), np.ones(8), None), 0)
    np.testing.assert_allclose(found["log_z"], np.log(1.5), rtol=1e-5)
    dead = judge(Draws(x, None, np.full(8, -np.inf), np.ones(8), None), 0)
    assert dead["log_z"] == -np.inf
    assert judge(Draws(x, None, np.full(8, np.nan), np.ones(8), None), 0)["log_z"] is None
    assert judge.score({"sw2": float("nan")}) > judge.score({"sw2": 1e9})


@pytest.mark.parametrize(
    ("target", "shape"),
    [
        ("skew8", (8,)),
        ("cardoso80", (80,)),
        ("double_well", (2,)),
        ("ring", (2,)),
        ("step", (2,)),
        ("field32", (32, 32)),
    ],
)
def test_named_targets(target, shape):
    task = problem(target)
    assert task.shape == shape
    tilted = task.tilted(1.0)
    gain = nk.targets.expected_reward(tilted, task.reward) - nk.targets.expected_reward(task.law, task.reward)
    assert gain > 0.1


def test_options_of_the_inverse_problem():
    given = [problem("cardoso8", observed=m, instance=i) for m, i in ((1, 0), (4, 0), (4, 1))]
    assert [task.reward.operator.shape for task in given] == [(1, 8), (4, 8), (4, 8)]
    assert not np.allclose(given[1].reward.operator, given[2].reward.operator)


def test_a_gradient_of_a_cliff_is_left_out(tmp_path):
    result = invoke("compare", "--target", "step", "--methods", "dps,base", "--nfe", 4, "--num", 16, "--seeds", 1)
    assert result.exit_code == 0, result.output
    assert "left out dps: Look(grad=True) needs a differentiable reward" in result.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--target", "nope"], ["unknown target 'nope'", "cardosoD"]),
        (["--target", "mixture"], ["mixture", "double_well"]),
        (["--target", "cardoso7"], ["dim must be even"]),
        (["--target", "cardoso8", "--observed", 9], ["observed between 1 and dim"]),
        (["--target", "das9", "--observed", 2], ["--observed", "cardosoD", "das9"]),
        (["--target", "das9", "--checkpoint", "digits.npz"], ["--checkpoint", "digits", "das9"]),
        (["--target", "digits", "--checkpoint", "absent.npz"], ["absent.npz is not a digits model"]),
        (["--methods", "nope"], ["unknown method 'nope'", "exact", "ntrk"]),
        (["--methods", ","], ["--methods needs at least one"]),
        (["--nfe", 10, "--steps", 10], ["--nfe", "--steps", "not both"]),
        (["--nfe", 0], ["--nfe"]),
        (["--methods", "fk", "--steps", 10], ["--particles beside --steps"]),
        (["--methods", "fk", "--nfe", 3, "--particles", 9], ["does not pay"]),
        (["--methods", "dps", "--target", "step"], ["differentiable reward"]),
        (["--methods", "exact", "--target", "digits"], ["exact needs a target whose tilted law is known"]),
        (["--methods", "dps_norm", "--target", "double_well"], ["minus a squared residual", "double_well"]),
        (["--methods", "base", "--kernel", "nope"], ["--kernel", "unknown name"]),
        (["--schedule", "nope"], ["--schedule"]),
        (["--seeds", 0], ["--seeds"]),
        (["--value", "nope"], ["--value"]),
    ],
)
def test_what_cannot_be(args, words):
    refused(invoke("compare", "--num", 8, "--seeds", 1, *args), *words)


def test_figures_say_what_they_cut():
    axes = figures.figure(4.0, 2.0).subplots()
    compare_report._zoom(axes, np.array([-100.0, -1.0, -1.2, -0.9]), None)
    assert [text.get_text().strip() for text in axes.texts] == ["-100"]
    assert axes.get_xlim()[0] > -10
    law, rng = nk.targets.skewed(2)[0], np.random.default_rng(0)
    exact = np.asarray(law.sample(jax.random.key(0), 200))
    clouds = {"near": exact, "far": exact + np.where(rng.random((200, 1)) < 0.2, 1e3, 0.0)}
    report = {"floor": {"sw2": 0.1}, "summary": [{"method": name, "mean": {"sw2": 1.0}} for name in clouds]}
    titles = [panel.get_title() for panel in compare_report._clouds(report, law, exact, clouds).axes]
    assert [" outside" in title for title in titles[1:3]] == [False, True]
