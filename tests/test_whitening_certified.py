"""The certified whitening: its output passes the battery, keeps the direction, and leaves typical noise alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntrk_jax.metrics.typicality import typicality
from ntrk_jax.whitening import NONFINITE_INPUT, Certified, TypicalSet
from tests.test_whitening_sets import cosine, structured

SHAPE = (16, 16, 3)
BATCH = 20
FIELDS = structured(SHAPE)
W = Certified(SHAPE)
AGREEING = jax.random.normal(jax.random.key(5), (16, 16, 1)) * jnp.array([[[1.0, -1.0, 1.0]]])


def in_batches(f, x):
    """F over x [n, *shape], BATCH at a time, so that all tests share one program."""
    parts = [f(x[i : i + BATCH], jax.random.split(jax.random.key(1), BATCH)) for i in range(0, len(x), BATCH)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


@pytest.fixture(scope="module")
def certified():
    """Certificates of the structured fields, two zeros more, and nonsense, by name."""
    fields = {
        **FIELDS,
        "second zero": FIELDS["zero"],
        "infinite": jnp.full(SHAPE, jnp.inf, jnp.float32),
        "agreeing": AGREEING,
    }
    fields |= {f"noise {i}": jax.random.normal(jax.random.key(i), SHAPE) for i in range(BATCH - len(fields))}
    out = in_batches(jax.vmap(W.detailed), jnp.stack(list(fields.values())))
    return {name: jax.tree.map(lambda leaf, i=i: leaf[i], out) for i, name in enumerate(fields)}


@pytest.fixture(scope="module")
def settled():
    keys = jax.random.split(jax.random.key(1), len(FIELDS))
    return dict(zip(FIELDS, jax.vmap(W.sets)(jnp.stack(list(FIELDS.values())), keys), strict=True))


@pytest.fixture(scope="module")
def measure():
    return jax.jit(lambda x: typicality(x).largest)


@pytest.mark.parametrize("name", list(FIELDS))
def test_structure_passes_the_battery_and_keeps_its_direction(certified, settled, measure, name):
    g, out = FIELDS[name], certified[name]
    assert float(measure(out.noise)) <= 5
    assert float(out.share) == 0, "polishing should do without fresh noise"
    assert float(out.largest) == pytest.approx(float(measure(out.noise)), abs=1e-3)
    if name != "zero":
        kept = cosine(settled[name], g)
        assert kept <= 0.2 or cosine(out.noise, g) >= 0.7 * kept


def test_of_a_direction_that_hardly_any_noise_can_have_as_much_is_kept():
    g = jnp.ones(2048)
    out = jax.jit(Certified(g.shape).detailed)(g, jax.random.key(0))
    kept = cosine(jax.jit(TypicalSet(g.shape))(g, jax.random.key(0)), g)
    assert 2 / np.sqrt(g.size) < kept < 0.15
    assert cosine(out.noise, g) >= 0.7 * kept
    assert float(out.largest) <= 5


def test_channels_that_agree_keep_what_the_battery_allows(certified, measure):
    """The bound of the module's docstring, with the 5 sigma quantile of a chi2 of three degrees of freedom."""
    quantile = (1 - 2 / 27 + 5 * np.sqrt(2 / 27)) ** 3
    bound = np.sqrt((1 + 2 * np.sqrt(quantile / 254)) / 3)
    out = certified["agreeing"]
    assert float(measure(out.noise)) <= 5
    assert 0.97 * bound < cosine(out.noise, AGREEING) <= bound


def test_the_typical_set_alone_would_not_pass(settled, measure):
    assert max(float(measure(w)) for w in settled.values()) > 5


def test_white_noise_passes_unchanged():
    noise = jax.random.normal(jax.random.key(2), (100, *SHAPE))
    out = in_batches(jax.vmap(W.project), noise)
    assert min(cosine(a, b) for a, b in zip(out, noise, strict=True)) >= 0.99999
    assert sum(bool((a == b).all()) for a, b in zip(out, noise, strict=True)) >= 95


def test_the_map_is_continuous_from_typical_to_biased():
    """Along noise + a blob, growing from nothing, the output moves about as far as the input and never jumps."""
    noise = jax.random.normal(jax.random.key(3), SHAPE)
    blob = FIELDS["blob"]
    unit = blob / jnp.linalg.norm(blob)
    out = in_batches(jax.vmap(W.project), jnp.stack([noise + a * unit for a in np.linspace(0.0, 12.0, 100).tolist()]))
    steps = np.sqrt(np.sum(np.diff(out, axis=0) ** 2, axis=(1, 2, 3)))
    assert steps.max() < 3.0
    assert float(jnp.vdot(out[-1] - out[0], blob)) > 0


def test_fresh_noise_replaces_nothing_and_nonsense(certified):
    assert certified["infinite"].status == NONFINITE_INPUT
    assert float(certified["infinite"].largest) <= 5
    assert certified["zero"].status == 0
    assert abs(cosine(certified["zero"].noise, certified["second zero"].noise)) < 0.2


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float64", marks=pytest.mark.slow)])
def test_small_arrays_pass_in_every_precision(dtype):
    with jax.enable_x64(dtype == "float64"):
        for name, g in structured((64,)).items():
            out = Certified((64,)).detailed(g.astype(dtype), jax.random.key(8))
            assert out.noise.dtype == dtype
            assert float(out.largest) <= 5
            assert name not in ("smooth", "mask") or cosine(out.noise, g) > 0.5


@pytest.mark.parametrize("shape", [(1,), pytest.param((8, 8, 3), marks=pytest.mark.slow)])
def test_each_dtype_stays_itself_with_double_precision_on(shape):
    """Traced only: strict promotion refuses any place where two precisions would meet."""
    with jax.enable_x64(True):
        for dtype in ("bfloat16", "float32", "float64"):
            batch = jax.ShapeDtypeStruct((2, *shape), dtype)
            assert jax.eval_shape(jax.vmap(Certified(shape)), batch).dtype == dtype


def test_it_prints_compares_and_refuses():
    assert repr(Certified((4,))).startswith("whitening.Certified(shape=(4,), confidence=0.9999")
    assert Certified((4,)) == Certified((4,))
    assert Certified((4,)) != Certified((4,), limit=4.0)
    with pytest.raises(ValueError, match="limit >= 3"):
        Certified((4,), limit=1.0)
    with pytest.raises(ValueError, match="built for shape"):
        Certified((4,)).project(jnp.ones((5,)))
