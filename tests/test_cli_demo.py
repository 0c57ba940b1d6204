"""`ntrk demo`: the report's schema and arithmetic, its honesty, and that it overwrites nothing."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cli_main import invoke, quick_compilation, refused

import ntrk_jax as nk
from ntrk_jax.cli import digits_study, mixture_study
from ntrk_jax.cli.digits_study import METRICS
from ntrk_jax.cli.report import markdown, rival_line, verdict_line
from ntrk_jax.training import digits

FILES = ["digits.png", "mixture.png", "report.json", "report.md"]


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly():
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    result = invoke("demo", "--quick", "--digit", 3, "--out", out)
    assert result.exit_code == 0, result.output
    return out, result, json.loads((out / "report.json").read_text())


def test_files_and_tables(quick):
    out, result, _ = quick
    assert sorted(p.name for p in out.iterdir()) == FILES
    for name in FILES[:2]:
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    for word in ("held-out", "NTRK at 6 NFE beats best-of-N at 24 NFE", "sliced W2", "two exact samples"):
        assert word in result.stdout
    assert "digits: NTRK rho 0.05, seed 0" in result.stderr


def test_the_schema_of_the_report(quick):
    _, _, report = quick
    assert report["format"] == "ntrk demo 1"
    assert set(report) == {"format", "settings", "digits", "mixture", "seconds", "machine", "versions"}
    assert report["settings"]["seeds"] == [0]
    assert report["settings"]["digits"] == [3]
    assert {"system", "processor", "cpu_count", "devices", "command"} == set(report["machine"])
    rows = report["digits"]["methods"]
    assert [row["method"] for row in rows] == ["base", "best_of_n", "dps", "ntrk", "calibrated"]
    for row in rows:
        assert set(row["per_seed"]) == set(row["mean"]) == set(row["standard_error"]) == set(METRICS)
        assert row["samples"] == 20
        assert row["samples_with_a_status_flag"] == 0
        assert row["seconds_to_compile"] > 0
        assert row["seconds_a_seed"] > 0
        for name in METRICS:
            assert row["mean"][name] == row["per_seed"][name][0]
            assert row["standard_error"][name] is None  # one seed has none
    assert report["digits"]["model"]["seed"] == 0


def test_what_was_spent(quick):
    spent = {row["method"]: row["evals_per_sample"] for row in quick[2]["digits"]["methods"]}
    assert spent["base"]["model"] == spent["dps"]["model"] == spent["ntrk"]["model"] == 6
    assert spent["best_of_n"]["model"] == 4 * 6
    assert spent["ntrk"]["model_vjp"] == spent["ntrk"]["reward_vjp"] == 6
    assert spent["best_of_n"]["model_vjp"] == 0


def test_guidance_is_seen(quick):
    mean = {row["method"]: row["mean"] for row in quick[2]["digits"]["methods"]}
    assert mean["ntrk"]["reward"] > mean["base"]["reward"] + 5.0
    assert mean["ntrk"]["judge"] > mean["base"]["judge"] + 5.0
    assert 1.0 < mean["base"]["noise"] < 4.0  # white noise


def test_the_mixture_in_the_report(quick):
    mixture = quick[2]["mixture"]
    found = [(row["method"], row["num_steps"]) for row in mixture["rows"]]
    assert found == [("exact", None), ("base", 8), ("constant", 8), ("calibrated", 8)]
    by_name = {row["method"]: row for row in mixture["rows"]}
    assert 0 < mixture["sliced_w2_floor"] < by_name["calibrated"]["sliced_w2"] < by_name["base"]["sliced_w2"]
    law, reward = nk.targets.skewed(2)
    exact = nk.targets.expected_reward(nk.targets.tilt(law, reward).mixture, reward)
    np.testing.assert_allclose(mixture["exact_mean_reward"], exact, rtol=1e-5)


def test_an_existing_report_is_kept(quick):
    out, _, report = quick
    refused(invoke("demo", "--out", out), "exists already", "--overwrite")
    assert json.loads((out / "report.json").read_text()) == report
    assert sorted(p.name for p in out.iterdir()) == FILES


def test_the_page_says_what_the_report_says(quick):
    out, _, report = quick
    page = (out / "report.md").read_text()
    assert page == markdown(report)
    assert verdict_line(report["digits"]["verdict"]) in page
    for name, version in report["versions"].items():
        assert f"{name} {version}" in page


@pytest.mark.parametrize(("option", "value"), [("--digit", 10), ("--seeds", 0), ("--num", 0), ("--checkpoint", "/no")])
def test_what_cannot_be(option, value):
    refused(invoke("demo", option, value), option)


def test_a_path_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("keep")
    refused(invoke("demo", "--out", tmp_path / "file"), "is a file")
    assert (tmp_path / "file").read_text() == "keep"


def test_a_seed_names_the_numbers():
    model = digits.load_digits_model()
    steps = nk.grid(model.schedule, nk.grids.uniform(6))  # the shapes of `--quick`: programs are shared
    method = digits_study.digit_methods((8, 8, 1))[0]
    out = digits_study.run_method(method, model, jnp.arange(20) % 10, steps, (5, 5, 6))
    for name in ("reward", "judge", "distance", "noise"):
        first, again, other = out.per_seed[name]
        assert first == again != other


def test_injected_noise_is_what_was_added():
    steps, kernel = nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(6)), nk.kernels.DDIM()
    key_x, key_z = jax.random.split(jax.random.key(0))
    x0, z = 0.3 * jax.random.normal(key_x, (6, 4)), jax.random.normal(key_z, (6, 4))

    def step(x, inputs):
        row, x0, z = inputs
        base = kernel(nk.Lookahead(x, x0), row)
        x = base.mean + base.std * z
        return x, x

    @jax.jit
    def found(x0, z, steps):
        path = jax.lax.scan(step, jnp.ones(4), (steps, x0, z))[1]
        after = jnp.concatenate([x0[1:], x0[:1]])  # the look after row i is the look before row i + 1
        return digits_study.injected_noise(kernel, path, after, steps)

    noise = found(x0, z, steps)
    np.testing.assert_allclose(noise, z[1:5], rtol=1e-3, atol=1e-3)


def rows_where(ntrk, search, ratio):
    def row(name, value, distance):
        mean = dict.fromkeys(METRICS, value) | {"distance": distance}
        return {"method": name, "mean": mean, "per_seed": {k: [v, v + 1] for k, v in mean.items()}, "nfe": 25,
                "distance_ratio_to_base": distance}  # fmt: skip

    return [row("base", 0.0, 1.0), row("best_of_n", search, 1.0), row("dps", 2.0, 1.0), row("ntrk", ntrk, ratio)]


@pytest.mark.parametrize(
    ("ntrk", "search", "ratio", "said"),
    [
        (3.0, 2.0, 1.1, ["target reward yes (2 of 2", "held-out reward yes", "base's yes (1.10)"]),
        (2.0, 3.0, 1.1, ["target reward no (0 of 2", "held-out reward no", "base's yes"]),
        (3.0, 2.0, 1.3, ["target reward yes", "base's no (1.30)"]),
    ],
)
def test_the_verdict_is_honest(ntrk, search, ratio, said):
    verdict = digits_study.verdict_of(rows_where(ntrk, search, ratio))
    assert verdict["all"] == all("no" not in word.split() for word in said)
    for word in said:
        assert word in verdict_line(verdict)
    assert f"target reward {ntrk - 2.0:+.2f}" in rival_line(verdict)


def test_errors_over_seeds():
    method = digits_study.digit_methods((8, 8, 1))[0]
    values = {name: [1.0, 2.0, 6.0] for name in METRICS}
    out = digits_study.Outcome(method, values, {"model": 1}, 0.0, [0.0], None, None, None, 0)
    (row,) = digits_study.summary_of([out], (0, 1, 2), 10)
    assert row["mean"]["reward"] == 3.0
    np.testing.assert_allclose(row["standard_error"]["reward"], np.sqrt(7.0 / 3.0))  # variance 7, three seeds
    assert row["distance_ratio_to_base"] == 1.0


def test_real_digits_in_the_picture():
    images, labels = digits.real_digits()
    for asked in ((0, 1, 2, 3, 4, 5, 6, 7, 8, 9), (4,)):
        shown = digits_study.one_real_digit_each(asked)
        found = [int(np.flatnonzero((images == x[None]).all((1, 2, 3)))[0]) for x in shown]
        assert len(set(found)) == 10
        assert [labels[i] for i in found] == [asked[i % len(asked)] for i in range(10)]


def test_real_digits_are_as_far_apart_as_their_nearest_neighbours():
    data = np.asarray(digits.real_digits().images[:30]).reshape(30, -1)
    gaps = np.linalg.norm(data[:, None] - data[None], axis=-1) + 1e9 * np.eye(30)

    class Model:
        data = jnp.asarray(digits.real_digits().images[:30])

    np.testing.assert_allclose(digits_study.real_distance(Model()), gaps.min(1).mean(), rtol=1e-4)


def test_the_spread_is_between_samples_of_one_digit():
    x = np.array([0.0, 10.0, 3.0, 14.0, 3.0]).reshape(5, 1, 1, 1)
    np.testing.assert_allclose(digits_study.spread(x, np.array([0, 1, 0, 1, 0])), [2.0, 4.0])  # (3 + 3 + 0) / 3, and 4
    assert np.isnan(digits_study.spread(x, np.arange(5))).all()
    images, labels = digits.real_digits()
    order = np.random.default_rng(0).permutation(len(labels))  # neighbours in the file are by one hand
    flat, label = images[order].reshape(len(order), -1), labels[order]
    apart = [np.linalg.norm(np.diff(flat[label == digit], axis=0), axis=1).mean() for digit in range(10)]
    assert digits_study.real_spread() == pytest.approx(np.mean(apart), rel=0.02)


def test_one_sample_a_digit_has_no_spread_and_still_a_report(quick):
    report = json.loads(json.dumps(quick[2]))
    report["digits"]["methods"][0]["mean"]["spread"] = None
    assert "| spread | none |" in markdown(report)
    for none in (None, float("nan")):
        gap = {"reward": 1.0, "judge": 1.0, "distance": 0.0, "spread": none, "noise": 0.0}
        line = rival_line({"ntrk_minus_dps": gap, "nfe": 25})
        assert "spread" not in line
        assert "nan" not in line


def test_the_mixture_uses_the_law_it_names():
    out = mixture_study.study(200, (), seed=1)  # as many as `--quick` draws
    assert [cloud.method for cloud in out.clouds] == ["exact"]
    np.testing.assert_allclose(out.clouds[0].reward, out.exact_reward, atol=4 * 2.2 / 200**0.5)  # std 2.2
