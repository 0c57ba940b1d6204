"""The digits model that ships with the package: size, quality, honesty of its record, and refusal of other files."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntrk_jax as nk
from ntrk_jax.metrics.image import nearest_distance
from ntrk_jax.models.nets import MLP
from ntrk_jax.training import digits, load_digits_model, real_digits, train_digits
from ntrk_jax.training.classifiers import patches, perceptron

MODEL = load_digits_model()


def test_shipped_file_is_small_and_says_how_it_was_made():
    assert digits._SHIPPED.stat().st_size <= 3_000_000
    record = MODEL.record
    assert record["seed"] == 0
    assert {"jax", "flax", "optax", "numpy", "scikit-learn", "python"} <= record["versions"].keys()
    assert record["numbers"].keys() >= {"denoiser_loss", "reward_accuracy_on_other_half"}


def test_another_load_compiles_nothing_new():
    again = load_digits_model()
    assert again == MODEL
    assert jax.tree.structure(again) == jax.tree.structure(MODEL)


def test_halves_are_disjoint_and_cover_the_images():
    first, second = digits.halves(0)
    assert np.array_equal(np.sort(np.concatenate([first, second])), np.arange(1797))
    assert not np.array_equal(first, digits.halves(1)[0])


@pytest.mark.parametrize("name", ["reward", "judge"])
def test_each_classifier_knows_the_half_it_never_saw(name):
    apply, params = {"reward": (perceptron, MODEL.reward_params), "judge": (patches, MODEL.judge_params)}[name]
    rest = digits.halves(MODEL.record["seed"])[1 if name == "reward" else 0]
    data = real_digits()
    logits = jax.jit(jax.vmap(apply, (None, 0)))(params, jnp.asarray(data.images[rest]))
    seen = float(np.mean(np.argmax(logits, -1) == data.labels[rest]))
    assert seen > 0.98
    assert abs(seen - MODEL.record["numbers"][f"{name}_accuracy_on_other_half"]) < 0.003


def test_rewards_are_logits_and_log_probabilities():
    image, label = MODEL.data[7], int(real_digits().labels[7])
    for make in (MODEL.reward, MODEL.judge):
        both = jax.jit(
            lambda image, make=make: (
                jax.vmap(lambda d: make(d)(image))(jnp.arange(10)),
                make(label, "log_prob")(image),
            )
        )
        every, surprise = map(np.asarray, both(image))
        assert int(np.argmax(every)) == label
        assert abs(np.mean(every)) < 1e-4
        np.testing.assert_allclose(surprise, every[label] - np.log(np.sum(np.exp(every))), atol=1e-5)
    with pytest.raises(ValueError, match=r"one of 0 \.\.\. 9"):
        MODEL.reward(10)


def test_samples_lie_as_close_to_real_digits_as_real_digits_do_and_guidance_raises_both_rewards():
    steps, num = nk.grid(MODEL.schedule, nk.grids.uniform(25)), 48
    labels = jnp.arange(num) % 10

    @jax.jit
    def sample(strength):  # at strength 0 this is the base sampler
        def one(model, key, digit):
            noise_key, run_key = jax.random.split(key)
            look = nk.Look(model.denoiser, model.reward(digit), grad=True)
            rule = nk.guidance.NTRK(nk.whitening.UnitNorm(), strength)
            start = jax.random.normal(noise_key, digits.SHAPE)
            return nk.run(nk.Single(look, nk.kernels.DDIM(eta=1.0), rule), run_key, start, steps)[0].look.x

        x = jax.vmap(one, (None, 0, 0))(MODEL, jax.random.split(jax.random.key(0), num), labels)
        judged = jnp.mean(jax.vmap(lambda x, d: MODEL.judge(d)(x))(x, labels))
        return jnp.mean(nearest_distance(x, MODEL.data)), judged

    (near, judged), (near_guided, judged_guided) = ([float(v) for v in sample(rho)] for rho in (0.0, 0.03))
    real = np.asarray(MODEL.data).reshape(-1, 64)[::8]
    apart = np.linalg.norm(real[:, None] - real[None], axis=-1) + 1e9 * np.eye(len(real))
    assert 0.5 < near < apart.min(axis=1).mean(), "neither memorised nor off the data"
    assert near_guided < 1.2 * near
    assert judged_guided > 15 > judged + 5


@pytest.fixture
def quick_compiler():
    """Programs that run for a moment need no optimising."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compiler")
def test_a_short_training_writes_a_file_that_reads_back(tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "_network", lambda rngs: MLP(digits.SHAPE, width=8, hidden=8, depth=1, rngs=rngs))
    seen = []
    made = train_digits(
        3,
        tmp_path / "new" / "a.npz",
        lambda *args: seen.append(args),
        num_steps=20,
        classifier_steps=20,
        kind="v",
    )
    read = load_digits_model(tmp_path / "new" / "a.npz")
    assert read == made
    assert read.record["seed"] == 3
    assert read.record["kind"] == read.denoiser.kind == "v"
    assert MODEL.denoiser.kind == "x0"
    assert [row[:3] for row in seen] == [("denoiser", 20, 20), ("reward", 20, 20), ("judge", 20, 20)]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.npz"], "nothing else is left behind"


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("executed",))


def test_other_files_are_refused_in_one_line(tmp_path):
    with np.load(digits._SHIPPED) as file:
        good = {name: file[name] for name in file.files}
    np.savez(tmp_path / "format.npz", **{**good, "record": np.asarray('{"format": "digits 0"}')})
    np.savez(tmp_path / "foreign.npz", weights=np.ones(3))
    np.savez(tmp_path / "missing.npz", **{k: v for k, v in good.items() if "judge/out/bias" not in k})
    np.savez(tmp_path / "shape.npz", **{**good, "judge/out/bias": np.ones(3, np.float32)})
    np.savez(tmp_path / "nan.npz", **{**good, "judge/out/bias": np.full(10, np.nan, np.float32)})
    (tmp_path / "cut.npz").write_bytes(digits._SHIPPED.read_bytes()[:50_000])
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Bomb()))
    np.savez(tmp_path / "object.npz", record=np.array([Bomb()], dtype=object))
    (tmp_path / "folder.npz").mkdir()
    files = [*sorted(tmp_path.iterdir()), tmp_path / "absent.npz"]
    assert len(files) == 11
    for file in files:
        with pytest.raises(ValueError, match=f"{file.name} is not a digits model") as caught:
            load_digits_model(file)
        assert "\n" not in str(caught.value)
