"""The certified whitening: its output passes the battery, keeps the direction, and leaves typical noise alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntrk_jax.metrics.typicality import typicality
from ntrk_jax.whitening import NONFINITE_INPUT, Certified, TypicalSet
from tests.test_whitening_sets import cosine, structured

SHAPE = (16, 16, 3)


@pytest.fixture(scope="module")
def certify():
    W = Certified(SHAPE)
    return jax.jit(lambda g, key: W.detailed(g, key))


@pytest.fixture(scope="module")
def measure():
    return jax.jit(lambda x: typicality(x).largest)


@pytest.fixture(scope="module")
def project_many():
    return jax.jit(jax.vmap(lambda z: Certified(SHAPE).project(z, jax.random.key(4))))


@pytest.fixture(scope="module")
def settle():
    return jax.jit(TypicalSet(SHAPE))


@pytest.mark.parametrize("name", list(structured(SHAPE)))
def test_structure_passes_the_battery_and_keeps_its_direction(certify, settle, measure, name):
    g = structured(SHAPE)[name]
    out = certify(g, jax.random.key(1))
    assert float(measure(out.noise)) <= 5
    assert float(out.share) <= 0.1, "polishing should do without much fresh noise"
    assert float(out.largest) == pytest.approx(float(measure(out.noise)), abs=1e-3)
    if name != "zero":
        kept = cosine(settle(g, jax.random.key(1)), g)
        assert kept <= 0.2 or cosine(out.noise, g) >= 0.7 * kept


def test_the_typical_set_alone_would_not_pass(settle, measure):
    worst = [float(measure(settle(g, jax.random.key(1)))) for g in structured(SHAPE).values()]
    assert max(worst) > 5


def test_white_noise_passes_unchanged(project_many):
    noise = jax.random.normal(jax.random.key(2), (100, *SHAPE))
    out = project_many(noise)
    assert min(cosine(a, b) for a, b in zip(out, noise, strict=True)) >= 0.99999
    assert sum(bool((a == b).all()) for a, b in zip(out, noise, strict=True)) >= 95


def test_the_map_is_continuous_from_typical_to_biased(project_many):
    """Along noise + a blob, growing from nothing, the output moves about as far as the input and never jumps."""
    noise = jax.random.normal(jax.random.key(3), SHAPE)
    blob = structured(SHAPE)["blob"]
    unit = blob / jnp.linalg.norm(blob)
    out = project_many(jnp.stack([noise + a * unit for a in np.linspace(0.0, 12.0, 100).tolist()]))
    steps = np.sqrt(np.sum(np.diff(np.asarray(out), axis=0) ** 2, axis=(1, 2, 3)))
    assert steps.max() < 3.0
    assert float(jnp.vdot(out[-1] - out[0], blob)) > 0


def test_fresh_noise_replaces_nothing_and_nonsense(certify):
    bad = certify(jnp.full(SHAPE, jnp.inf, jnp.float32), jax.random.key(5))
    assert bad.status == NONFINITE_INPUT
    assert float(bad.largest) <= 5
    a, b = (certify(jnp.zeros(SHAPE, jnp.float32), jax.random.key(i)).noise for i in (6, 7))
    assert abs(cosine(a, b)) < 0.2


@pytest.mark.parametrize("shape", [(1,), (64,)])
def test_small_arrays_pass_too(shape):
    W = Certified(shape)
    run = jax.jit(W.detailed)
    for g in structured(shape).values() if shape[0] > 2 else [jnp.ones(shape), jnp.zeros(shape)]:
        assert float(run(g, jax.random.key(8)).largest) <= 5


def test_it_prints_compares_and_refuses():
    assert repr(Certified((4,))).startswith("whitening.Certified(shape=(4,), confidence=0.9999")
    assert Certified((4,)) == Certified((4,))
    assert Certified((4,)) != Certified((4,), limit=4.0)
    with pytest.raises(ValueError, match="limit >= 3"):
        Certified((4,), limit=1.0)
    with pytest.raises(ValueError, match="built for shape"):
        Certified((4,)).project(jnp.ones((5,)))
