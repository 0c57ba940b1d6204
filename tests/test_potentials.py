"""Potentials: what they are in between is free, where they end is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntrk_jax as nk
from ntrk_jax import potentials

STEPS = nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(100))
VALUES = np.random.default_rng(0).normal(size=(101, 5))


def psi_path(potential, values=VALUES, steps=STEPS):
    """The potentials, log psi [num_steps + 1, K], along given values."""
    rows = [jax.tree.map(lambda a, i=i: a[i], steps) for i in range(steps.num_steps)]
    memory = potential.init(jnp.asarray(values[0], jnp.float32), rows[0])
    out = [memory.log_psi]
    for i, row in enumerate(rows):
        memory = potential(memory, jnp.asarray(values[i + 1], jnp.float32), row, jnp.zeros(5))
        out.append(memory.log_psi)
    return np.asarray(out)


EVERY = [potentials.Tempered(0.5), potentials.Tempered(0.5, potentials.Geometric()), potentials.Adaptive(0.5)]
EVERY += [potentials.Accumulated(0.5, kind) for kind in ("reward", "max", "sum")]
EVERY += [potentials.Accumulated(0.5, "sum", nk.resampling.Spaced()), potentials.Tempered(0.5, potentials.Signal())]


@pytest.mark.parametrize("potential", EVERY, ids=repr)
def test_the_last_potential_is_the_tilt_itself(potential):
    steps = STEPS.rows(97)
    path = psi_path(potential, VALUES[:4], steps)
    np.testing.assert_allclose(path[-1], VALUES[3] / 0.5, rtol=1e-5)


def test_geometric_tempering_has_the_published_growth():
    gammas = np.asarray(jax.vmap(potentials.Geometric())(1.0 - jnp.arange(101) / 100))
    np.testing.assert_allclose(gammas, np.minimum(1.0, 1.008 ** np.arange(101) - 1.0), atol=2e-6)
    assert gammas[86] < 1.0 == gammas[87]


def test_accumulated_potentials_add_up_the_path():
    steps, lam, part = STEPS.rows(90, 95), 2.0, VALUES[:6]
    path = psi_path(potentials.Accumulated(1 / lam, "reward"), part, steps)
    np.testing.assert_allclose(path, lam * np.cumsum(part, 0), atol=1e-5)
    path = psi_path(potentials.Accumulated(1 / lam, "max"), part, steps)
    np.testing.assert_allclose(path, lam * np.cumsum(np.maximum.accumulate(part, 0), 0), atol=1e-5)
    path = psi_path(potentials.Accumulated(1 / lam, "sum"), part, steps)
    np.testing.assert_allclose(path, lam * np.cumsum(np.cumsum(part, 0), 0), atol=1e-5)


def test_accumulated_potentials_add_up_only_the_rows_that_count():
    steps, when = STEPS.rows(55, 65), nk.resampling.Spaced(0.05)
    counted = VALUES[1:11][np.asarray(jax.vmap(when)(steps))]
    assert len(counted) == 2
    for kind, last in (
        ("reward", counted[0] + counted[1]),
        ("max", counted[0] + np.maximum(*counted)),
        ("sum", 2 * counted[0] + counted[1]),
    ):
        path = psi_path(potentials.Accumulated(0.5, kind, when), VALUES[:11], steps)
        np.testing.assert_array_equal(path[0], 0.0)
        np.testing.assert_allclose(path[-1], 2 * last, atol=1e-5)


def test_the_value_is_trusted_as_far_as_there_is_signal():
    for schedule, variance in ((nk.schedules.VPCosine(), 1.0), (nk.schedules.VE(), 2.0)):
        steps = nk.grid(schedule, nk.grids.uniform(6))
        path = psi_path(potentials.Tempered(0.5, potentials.Signal(variance)), np.ones((7, 5)), steps)[:, 0] / 2
        assert path[0] < 1e-3
        assert path[-1] == 1.0
        ratio = variance * np.square(steps.alpha_s[:-1] / steps.sigma_s[:-1])
        np.testing.assert_allclose(path[1:-1] / (1 - path[1:-1]), ratio, rtol=1e-3)


def test_adaptive_tempering_holds_the_effective_sample_size():
    rule = potentials.Adaptive(0.05, target=0.7)
    value = jnp.asarray(np.random.default_rng(1).normal(size=200), jnp.float32)
    row = jax.tree.map(lambda a: a[10], STEPS)
    memory = rule(rule.init(value, row), value, row, jnp.zeros(200))
    assert float(nk.resampling.ess(memory.log_psi)) == pytest.approx(140.0, rel=1e-3)
    assert 0 < float(memory.gamma[0]) < 1
    again = rule(memory, value, row, memory.log_psi)
    assert float(again.gamma[0]) == pytest.approx(float(memory.gamma[0]), abs=1e-5)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        potentials.Tempered(0.0)
    with pytest.raises(ValueError, match=r"in \(0, 1\), got 1"):
        potentials.Adaptive(1.0, target=1.0)
    with pytest.raises(ValueError, match="'reward', 'max' or 'sum', got 'mean'"):
        potentials.Accumulated(1.0, "mean")
    with pytest.raises(TypeError, match="schedule must be one such as potentials.Geometric.*got 0.5"):
        potentials.Tempered(schedule=0.5)
