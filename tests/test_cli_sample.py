"""`ntrk sample`: what it writes, that samples go by seed and number, and every way to ask for what cannot be."""

import json

import jax
import numpy as np
import pytest
from test_cli_main import invoke, quick_compilation, refused

import ntrk_jax as nk
from ntrk_jax.batch.draw import draw_one
from ntrk_jax.cli import figures
from ntrk_jax.cli.build import Choices, aimed_temperature, build, prepare
from ntrk_jax.cli.problems import parse, problem
from ntrk_jax.cli.sample import _parts

PARTICLES = [name for name, entry in nk.methods.CATALOGUE.items() if entry.population or entry.tree] + ["svdd"]
FAST = ["--target", "skew2", "--method", "base", "--steps", 3, "--num", 6]

MIXTURE = """
target = "mixture"
method = "base"
steps = 3
num = 4
[mixture]
weights = [0.25, 0.75]
means = [[-1.0], [2.0]]
covs = [[[0.5]], [[0.1]]]
[reward]
linear = [1.5]
"""


def drawn(path, *args):
    result = invoke("sample", *args, "--out", path)
    assert result.exit_code == 0, result.output
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly():
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    folder = tmp_path_factory.mktemp("six")
    return folder, drawn(folder / "six.npz", *FAST, "--seed", 3)


def test_what_is_written(six):
    folder, got = six
    assert got["x"].shape == (6, 2)
    assert got["reward"].shape == got["log_weights"].shape == got["status"].shape == (6,)
    np.testing.assert_array_equal(got["evals_model"], 3)
    np.testing.assert_allclose(got["reward"], got["x"] @ np.asarray(nk.targets.skewed(2).reward.a), rtol=1e-4)
    assert (folder / "six.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((folder / "six.json").read_text())
    assert record["sampler"] == str(got["sampler"])
    assert nk.config.loads(record["sampler"]).kernel == nk.kernels.DDIM()
    np.testing.assert_allclose(record["mean_reward"], got["reward"].mean(), rtol=1e-5)
    assert record["evals_per_sample"]["model"] == 3
    assert record["options"]["seed"] == 3


def test_a_sample_goes_by_its_seed_and_number_alone(six, tmp_path):
    _, got = six
    again = drawn(tmp_path / "again.npz", *FAST, "--seed", 3, "--batch", 4)  # other chunks, a padded last one
    np.testing.assert_allclose(again["x"], got["x"], rtol=1e-5, atol=1e-5)
    rest = drawn(tmp_path / "rest.npz", *FAST, "--seed", 3, "--start", 2, "--num", 4)
    np.testing.assert_allclose(rest["x"], got["x"][2:], rtol=1e-5, atol=1e-5)
    other = drawn(tmp_path / "other.npz", *FAST, "--seed", 4)
    assert np.abs(other["x"] - got["x"]).min() > 1e-4


def test_a_population_gives_its_best(tmp_path):
    few = ["--target", "skew1", "--steps", 2, "--num", 2]
    got = drawn(tmp_path / "p.npz", *few, "--method", "best_of_n", "--particles", 3)
    assert got["x"].shape == (2, 1)
    np.testing.assert_array_equal(got["evals_model"], 6)
    np.testing.assert_array_equal(got["log_weights"], 0.0)


def drawn_folder_names(path):
    return sorted(p.name for p in path.iterdir())


def test_a_folder_gets_three_files_and_nothing_is_overwritten(tmp_path):
    out = tmp_path / "out"
    assert invoke("sample", *FAST, "--out", out).exit_code == 0
    assert drawn_folder_names(out) == ["samples.json", "samples.npz", "samples.png"]
    before = (out / "samples.npz").read_bytes()
    refused(invoke("sample", *FAST, "--seed", 1, "--out", out), "exists already", "--overwrite")
    assert (out / "samples.npz").read_bytes() == before
    assert invoke("sample", *FAST, "--seed", 1, "--out", out, "--overwrite").exit_code == 0
    assert (out / "samples.npz").read_bytes() != before
    assert drawn_folder_names(out) == ["samples.json", "samples.npz", "samples.png"]


def test_a_configuration_file_and_options_that_win(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(MIXTURE)
    got = drawn(tmp_path / "a.npz", "--config", config, "--num", 3)
    assert got["x"].shape == (3, 1)
    np.testing.assert_allclose(got["reward"], 1.5 * got["x"][:, 0], rtol=1e-5)


def test_the_exact_value_and_a_temperature(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('target = "skew2"\nmethod = "calibrated"\nvalue = "exact"\nnum = 2\nsteps = 2\n')
    got = drawn(tmp_path / "a.npz", "--config", config, "--temperature", 0.5)
    assert "temperature=0.5" in str(got["sampler"]).rpartition("Calibrated")[2]
    assert "values.Exact" in str(got["sampler"])


@pytest.mark.parametrize(
    ("method", "choices", "temperature"),
    [
        ("dps", Choices(strength=2.0), 0.5),
        ("dps", Choices(strength=2.0, temperature=3.0), 3.0),
        ("dps", Choices(), 1.0),
        ("dps", Choices(strength=0.0), np.inf),
        ("dps", Choices(strength=2.0, extra=("convention=squared",)), 1.0),
        ("dps_squared", Choices(strength=2.0), 1.0),
        ("calibrated", Choices(temperature=0.25), 0.25),
    ],
)
def test_the_temperature_that_is_aimed_at(method, choices, temperature):
    task = problem("skew1")
    assert aimed_temperature(method, choices) == temperature
    sampler = build(method, task, choices._replace(value="exact"))
    assert sampler.look.value.temperature == (1.0 if np.isinf(temperature) else temperature)


def test_the_picture_shows_the_law_that_is_aimed_at(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "figure", lambda *size, make=figures.figure: shown.append(make(*size)) or shown[-1])
    args = ["--target", "skew1", "--method", "dps", "--strength", 2, "--value", "exact", "--steps", 2, "--num", 2]
    assert invoke("sample", *args, "--out", tmp_path / "a.npz").exit_code == 0
    lines = {line.get_label(): line for line in shown[0].axes[0].get_lines()}
    assert set(lines) == {"base law", "exact tilted law, temperature 0.5"}
    law, reward = nk.targets.skewed(1)
    x = lines["base law"].get_xdata()
    tilted = lines["base law"].get_ydata() * np.exp(2.0 * float(reward.a[0]) * x)  # up to its normalisation
    log_ratio = np.log(lines["exact tilted law, temperature 0.5"].get_ydata() / tilted)
    assert law.dim == 1
    assert np.ptp(log_ratio[np.isfinite(log_ratio)]) < 0.01


@pytest.mark.parametrize(
    "name", ["double_well", pytest.param("ring", marks=pytest.mark.slow), pytest.param("step", marks=pytest.mark.slow)]
)
def test_a_law_tilted_by_quadrature_is_drawn_too(tmp_path, name):
    out = invoke("sample", "--target", name, "--method", "best_of_n", "--steps", 2, "--num", 2, "--out", tmp_path / "s")
    assert out.exit_code == 0, out.output
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["samples.json", "samples.npz", "samples.png"]


def test_a_residual_may_be_guided_by_its_norm():
    for name in ("das8", "das9"):
        assert build("dps_norm", problem(name), Choices()).guidance.convention == "norm"


def test_digits(tmp_path):
    got = drawn(tmp_path / "d.npz", "--target", "digits", "--digit", 7, "--method", "base", "--steps", 2, "--num", 3)
    assert got["x"].shape == (3, 8, 8, 1)
    record, digits = json.loads((tmp_path / "d.json").read_text()), problem("digits").digits
    held_out = np.mean([digits.judge(7)(x) for x in got["x"]])
    nearest = [np.min(np.sqrt(np.sum((np.asarray(digits.data) - x) ** 2, axis=(1, 2, 3)))) for x in got["x"]]
    assert record["held_out_reward"] == pytest.approx(held_out, rel=1e-4)
    assert record["distance_to_nearest_digit"] == pytest.approx(np.mean(nearest), rel=1e-4)


def test_what_is_printed_of_a_method_defines_it():
    told = {name: _parts(build(name, problem("das9"), Choices())) for name in ("freedom", "lgd_mc", "svdd")}
    assert "repeats = 2" in told["freedom"]
    assert "FreeDoM(strength=0.1" in told["freedom"]
    assert "gamma=1.0, num_samples=4" in told["lgd_mc"]
    assert all(_parts(build(name, problem("das9"), Choices())).count("value = ") == 1 for name in ("tfg", "lgd_mc"))
    assert "choice = 'categorical', num_particles = 4" in told["svdd"]


@pytest.mark.parametrize("name", sorted(set(nk.methods.names()) - {"dps_norm"}))
def test_any_method_of_the_catalogue_draws_one_sample(name):
    """Of the shape of one sample, whatever it holds on the way: particles, candidates, a tree."""
    task = problem("skew2")
    sampler, rows = prepare(name, task, Choices(particles=2 if name in PARTICLES else None), 5)
    drawn = jax.eval_shape(lambda key: draw_one(sampler, key, 0, rows, task.shape)[0], jax.random.key(0))
    assert drawn.x.shape == (2,)
    assert drawn.reward.shape == drawn.log_weights.shape == drawn.status.shape == ()


@pytest.mark.parametrize("method", ["svdd_argmax", pytest.param("dts", marks=pytest.mark.slow), "rbf"])
def test_methods_that_search_and_trees(method, tmp_path):
    got = drawn(tmp_path / "x.npz", "--target", "skew2", "--method", method, "--steps", 5, "--num", 3, "--particles", 4)
    assert got["x"].shape == (3, 2)
    np.testing.assert_allclose(got["reward"], got["x"] @ np.asarray(nk.targets.skewed(2).reward.a), rtol=1e-4)
    assert got["evals_model"][0] in (4 * 5, 4 * 4 + 1)
    assert np.max(np.abs(got["x"])) < 20.0, "the first noise is that of the grid"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--method", "nope"], ["unknown method 'nope'", "ntrk"]),
        (["--target", "nope"], ["unknown target 'nope'", "das9"]),
        (["--target", "skew0"], ["unknown target"]),
        (["--target", "skew99999"], ["at most"]),
        (["--target", "mixture"], ["[mixture]", "--config"]),
        (["--method", "ntrk", "--strength", 1.0], ["--strength", "below 1", "got 1"]),
        (["--method", "ntrk", "--strength", -0.1], ["--strength", "at least 0"]),
        (["--method", "ntrk", "--strength", "nan"], ["finite"]),
        (["--method", "dps", "--strength", "inf"], ["finite"]),
        (["--method", "calibrated", "--temperature", 0], ["--temperature", "above 0"]),
        (["--method", "calibrated", "--strength", 0.1], ["has no --strength", "--temperature"]),
        (["--method", "ntrk", "--temperature", 1], ["has no --temperature", "--strength"]),
        (["--method", "base", "--strength", 0.1], ["base has no --strength."]),
        (["--method", "base", "--particles", 2], ["--particles"]),
        (["--method", "dts", "--set", "grid=4"], ["dts has no option 'grid'"]),
        (["--method", "base", "--value", "exact"], ["has no --value exact"]),
        (["--method", "ddpm", "--kernel", "DDIM"], ["has no --kernel"]),
        (["--kernel", "DDIM(eta=2)"], ["--kernel", "[0, 1]", "got 2"]),
        (["--kernel", "nope(1)"], ["unknown name 'nope'", "DDIM"]),
        (["--kernel", "DDIM(eta=__import__('os'))"], ["--kernel"]),
        (["--kernel", "DDIM("], ["--kernel"]),
        (["--kernel", "DDIM(eta='a')"], ["--kernel", "eta must be a number", "'a'"]),
        (["--kernel", "DDIM(eta=[0.1, 0.2])"], ["--kernel", "eta must be a number"]),
        (["--kernel", "FlowODE"], ["NTRK", "noise", "FlowODE"]),
        (["--schedule", "VPLinear(beta_min='a')"], ["--schedule", "0 < beta_min < beta_max, got 'a'"]),
        (["--method", "edm", "--set", "gamma=abc"], ["--set gamma must be a number", "'abc'"]),
        (["--method", "edm", "--set", "gamma=[1, 2]"], ["--set gamma must be a number"]),
        (["--method", "ddim", "--set", "eta=nan"], ["--set eta must be a number"]),
        (["--method", "ddim", "--set", f"eta=1{400 * '0'}"], ["--set eta must be a number"]),
        (["--method", "dps_norm", "--target", "digits"], ["dps_norm", "digits is positive somewhere", "dps_squared"]),
        (["--method", "dps_norm", "--target", "skew2"], ["skew2 is positive somewhere"]),
        (["--method", "dps", "--set", "convention=norm", "--target", "digits"], ["positive somewhere"]),
        (["--schedule", "nope"], ["--schedule", "VPCosine"]),
        (["--schedule", "VPLinear(beta_min=30.0)"], ["--schedule", "beta_min"]),
        (["--steps", 0], ["--steps"]),
        (["--num", "many"], ["--num", "many"]),
        (["--value", "nope"], ["--value"]),
        (["--digit", 3], ["--digit", "digits"]),
        (["--checkpoint", "x.npz"], ["--checkpoint", "digits"]),
        (["--set", "eta"], ["--set", "NAME=VALUE"]),
        (["--set", "eta=0.5"], ["ntrk has no option 'eta'", "where"]),
        (["--set", "where=nowhere"], ["where must be", "nowhere"]),
        (["--target", "digits", "--digit", 10], ["--digit"]),
        (["--target", "digits", "--schedule", "VPCosine"], ["--schedule", "digits"]),
        (["--target", "digits", "--value", "exact"], ["--value exact", "digits"]),
        (["--target", "digits", "--checkpoint", "/nowhere/x.npz"], ["--checkpoint", "/nowhere/x.npz"]),
        (["--config", "/nowhere.toml"], ["--config", "/nowhere.toml"]),
    ],
)
def test_what_cannot_be(args, words):
    refused(invoke("sample", *args), *words)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("steps = 3", "stepps = 3", ["unknown entry 'stepps'"]),
        ("steps = 3", "steps = 3.5", ["--steps", "3.5"]),
        ("steps = 3", "steps = true", ["--steps", "true"]),
        ("steps = 3", "steps = [3]", ["steps must be one value"]),
        ("steps = 3", "steps =", ["--config"]),
        ("weights = [0.25, 0.75]", "weights = [0.25, 0.5]", ["normalised"]),
        ("means = [[-1.0], [2.0]]", "means = [[-1.0, 0.0], [2.0, 0.0]]", ["[mixture]", "shapes"]),
        ("means = [[-1.0], [2.0]]", "means = [[-1.0], [2.0, 3.0]]", ["[mixture]"]),
        ("covs = [[[0.5]], [[0.1]]]", "", ["[mixture]", "covs"]),
        ("linear = [1.5]", "linear = [1.5, 2.5]", ["[reward]", "entries"]),
        ("linear = [1.5]", "lineer = [1.5]", ["[reward]", "lineer"]),
        ("linear = [1.5]", 'linear = ["x"]', ["[reward]"]),
        ("[reward]\nlinear = [1.5]", "reward = 1", ["[mixture]"]),
    ],
)
def test_configurations_that_cannot_be(tmp_path, old, new, words):
    config = tmp_path / "run.toml"
    assert old in MIXTURE
    config.write_text(MIXTURE.replace(old, new))
    refused(invoke("sample", "--config", config), *words)


def test_an_unreadable_checkpoint(tmp_path):
    path = tmp_path / "model.npz"
    path.write_bytes(b"not a model")
    refused(invoke("sample", "--target", "digits", "--checkpoint", path), "--checkpoint", str(path))
    refused(invoke("demo", "--checkpoint", path), "--checkpoint", str(path))
    np.savez(path, x=np.zeros(3))
    refused(invoke("sample", "--target", "digits", "--checkpoint", path), "--checkpoint", str(path))


def test_names_of_parts_may_be_short():
    assert parse("flow_sde", "kernels") == nk.kernels.FlowSDE()
    assert parse("kernels.DDIM(eta=0.5)", "kernels") == nk.kernels.DDIM(eta=0.5)
    assert parse("RectifiedFlow(shift=3.0)", "schedules") == nk.schedules.RectifiedFlow(shift=3.0)
