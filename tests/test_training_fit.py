"""The trainer: it finds a known minimum, resumes as if never stopped, and refuses what it cannot read."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntrk_jax.training import fit, restore, save
from ntrk_jax.training.fit import learning_rate

KEY = jax.random.key(0)
TRUE = jnp.array([1.5, -0.7, 0.2])
INPUTS = jax.random.normal(jax.random.key(1), (200, 3))
DATA = (INPUTS, INPUTS @ TRUE + 0.3)
START = {"w": jnp.zeros(3), "b": jnp.zeros(())}
OPTIMIZER = optax.adam(0.05)


def squared(key, params, sample):
    x, y = sample
    jitter = 0.01 * jax.random.normal(key, x.shape)
    return jnp.square(jnp.dot(params["w"], x + jitter) + params["b"] - y)


def run(num_steps, **kwargs):
    return fit(KEY, squared, START, DATA, OPTIMIZER, num_steps, batch_size=16, decay=0.9, **kwargs)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_fit_finds_the_line_and_reports():
    reports = []
    state = run(600, chunk=250, progress=lambda step, loss: reports.append((step, loss)))
    np.testing.assert_allclose(state.average["w"], TRUE, atol=0.02)
    np.testing.assert_allclose(state.average["b"], 0.3, atol=0.02)
    assert [step for step, _ in reports] == [250, 500, 600]
    assert reports[-1][1] < 0.01 * reports[0][1]
    np.testing.assert_allclose(float(state.loss), reports[-1][1])


def test_resumed_equals_uninterrupted(tmp_path):
    whole = run(40, chunk=20)
    folder = tmp_path / "run"
    half = run(20, chunk=20, checkpoint=folder)
    assert not same(half.params, whole.params), "the second half must do something"
    folder.rename(tmp_path / "run.ntrk-new")  # as an interrupted save leaves it
    steps = []
    assert same(run(40, chunk=20, checkpoint=folder, progress=lambda step, loss: steps.append(step)), whole)
    assert steps == [40], "the second run goes on from the first"
    assert same(run(40, chunk=20, checkpoint=folder), whole), "a finished run is read back as it is"


def folders(path):
    return sorted(p.name for p in path.iterdir())


def test_a_save_that_fails_keeps_the_checkpoint(tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    folder, first, second = tmp_path / "run", {"a": jnp.ones(3)}, {"a": jnp.full(3, 2.0)}
    save(folder, first)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # where orbax would give the written folder its name
        patch.setattr(ocp.StandardCheckpointer, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            save(folder, second)
    assert same(restore(folder, first), first)
    renamed = []
    for stops_at in (1, 2):  # before the old folder makes way, and before the new one takes its place
        with monkeypatch.context() as patch:
            rename = type(folder).rename

            def rename_or_stop(self, target, stops_at=stops_at, rename=rename):
                mine = self.name.startswith("run") and "orbax" not in f"{self}{target}"
                renamed.extend([self.name] if mine else [])
                if mine and len(renamed) == stops_at:
                    raise KeyboardInterrupt
                return rename(self, target)

            renamed.clear()
            patch.setattr(type(folder), "rename", rename_or_stop)
            with pytest.raises(KeyboardInterrupt):
                save(folder, second)
        assert len(renamed) == stops_at
        assert same(restore(folder, first), first if stops_at == 1 else second)
    save(folder, first)
    assert same(restore(folder, first), first)
    assert folders(tmp_path) == ["run"], "nothing else is left behind"


@pytest.mark.parametrize("left", [["run.ntrk-new", "run.ntrk-old"], ["run.ntrk-new"], ["run.ntrk-old"]])
def test_an_interrupted_swap_is_finished(tmp_path, left):
    newest, older = {"a": jnp.ones(3)}, {"a": jnp.zeros(3)}
    for name, state in zip(left, (newest, older), strict=False):
        save(tmp_path / name, state)
    assert same(restore(tmp_path / "run", newest), newest)
    assert folders(tmp_path) == ["run"]


def test_average_is_the_stated_recursion():
    state = fit(KEY, lambda key, w, x: w, jnp.zeros(()), jnp.ones(2), optax.sgd(1.0), 30, batch_size=2, decay=0.7)
    average = 0.0
    for n in range(1, 31):
        keep = min(0.7, n / (n + 10.0))
        average = keep * average - (1 - keep) * n
    assert float(state.params) == -30.0
    np.testing.assert_allclose(state.average, average, rtol=1e-5)


def test_an_average_in_half_precision_does_not_stand_still():
    def loss(key, w, x):
        return jnp.square(w.astype(jnp.float32) - x)

    start, data = jnp.full((), -1.0, jnp.bfloat16), jnp.ones(2)
    state = fit(KEY, loss, start, data, optax.adam(1e-2), 3000, batch_size=2, chunk=3000)
    assert state.average.dtype == jnp.bfloat16
    assert float(state.average) == pytest.approx(float(state.params), abs=0.01)


def test_a_finished_run_of_plain_numbers_is_given_back(tmp_path):
    def loss(key, w, x):
        return jnp.square(w["scale"] * x - 1.0)

    def go():
        return fit(KEY, loss, {"scale": 0.5}, jnp.ones(2), optax.sgd(0.1), 2, batch_size=2, checkpoint=tmp_path / "run")

    assert float(go().average["scale"]) == float(go().average["scale"])


def test_unreadable_checkpoints(tmp_path):
    state = run(1, chunk=1)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("hello")
    (tmp_path / "file").write_text("hello")
    save(tmp_path / "other", {"weights": jnp.ones(4)})
    for name in ("foreign", "file", "other"):
        with pytest.raises(ValueError, match=f"{name} is not a checkpoint that fits"):
            run(2, chunk=1, checkpoint=tmp_path / name)
    with pytest.raises(ValueError, match="is not a checkpoint"):
        restore(tmp_path / "absent", state)
    assert (tmp_path / "foreign" / "notes.txt").read_text() == "hello"


def test_refused_arguments():
    for wrong in (0, 2.5):
        with pytest.raises(ValueError, match="num_steps must be at least 1 and a whole number"):
            run(wrong)
    for parts, words in (
        ((jax.random.PRNGKey(0), squared, START, jnp.ones((3, 3)), OPTIMIZER), "key must be a typed key"),
        ((KEY, squared, START, [[1.0, 2.0]], OPTIMIZER), "data must be arrays"),
        ((KEY, squared, START, jnp.ones((3, 3)), 1e-3), "optimizer must be one of optax.*got 0.001"),
    ):
        with pytest.raises(TypeError, match=words):
            fit(*parts, 1)
    with pytest.raises(ValueError, match="no longer finite by step 1, the loss is nan; lower the learning rate"):
        fit(
            KEY,
            lambda key, w, x: jnp.nan * sum(map(jnp.sum, jax.tree.leaves(w))),
            START,
            jnp.ones((3, 3)),
            OPTIMIZER,
            1,
        )
    with pytest.raises(ValueError, match="common, positive first axis"):
        fit(KEY, squared, START, (jnp.ones((3, 3)), jnp.ones(2)), OPTIMIZER, 1)


def test_a_step_that_is_not_finite_may_be_left_out_by_the_optimiser():
    def loss(key, w, x):
        return jnp.where(jax.random.uniform(key) < 0.2, jnp.nan, jnp.sum(jnp.square(w)))

    state = fit(KEY, loss, jnp.ones(2), jnp.ones((4, 2)), optax.apply_if_finite(optax.sgd(0.1), 1000), 20, batch_size=1)
    assert np.all(np.isfinite(state.average))
    assert np.all(np.asarray(state.params) < 1.0)


def test_every_step_draws_anew():
    def drift(key, w, x):
        return w * (x + jax.random.normal(key))

    def after(num_steps, data, batch_size=1):
        return float(fit(KEY, drift, jnp.zeros(()), data, optax.sgd(1.0), num_steps, batch_size=batch_size).params)

    data = jnp.zeros(1)
    first, both = after(1, data), after(2, data)
    assert abs(both - 2 * first) > 1e-3, "two steps must not see the same noise"
    rows = 100.0 * jnp.arange(64.0)
    assert abs(after(2, rows) - 2 * after(1, rows)) > 50.0, "nor the same samples"


@pytest.mark.parametrize("num_steps", [1, 2, 50, 5000])
def test_learning_rates_rise_and_fall_within_any_number_of_steps(num_steps):
    steps = np.linspace(0, num_steps, 6, dtype=int).tolist()
    rates = np.asarray([learning_rate(num_steps)(i) for i in steps])
    assert rates.max() <= 2.001e-3
    assert rates[-1] <= rates.max() if num_steps < 50 else rates[-1] < 2e-5
