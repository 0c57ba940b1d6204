"""Sorting with places: numpy's order on every way through, extreme and equal numbers included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntrk_jax.whitening import sorting

HARD = np.array([0.0, -0.0, 1e-37, -1e-37, 3e38, -3e38, 1.0, 1.0, 1.0, -1.0, np.nextafter(1, 2), 2.0], np.float32)
GRID = np.stack([HARD, HARD[::-1], np.random.default_rng(0).standard_normal(12).astype(np.float32)])
PLACES = np.arange(GRID.size, dtype=np.int32).reshape(GRID.shape)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("way", ["_packed", "_in_pairs", "sort_with_places"])
def test_sorted_numbers_come_with_the_places_they_had(way, axis):
    values, places = jax.jit(getattr(sorting, way), static_argnums=2)(jnp.asarray(GRID), jnp.asarray(PLACES), axis)
    np.testing.assert_array_equal(values, np.sort(GRID, axis=axis))
    np.testing.assert_array_equal(GRID.ravel()[np.asarray(places)], values)
    assert sorted(np.asarray(places).ravel()) == list(range(GRID.size))
    assert values.dtype == jnp.float32
    assert places.dtype == jnp.int32


def test_a_batch_is_sorted_sample_by_sample_inside_a_loop():
    def body(carry, _):
        return sorting.sort_with_places(*carry, 0), None

    run = jax.jit(jax.vmap(lambda x, p: jax.lax.scan(body, (x, p), length=2)[0]))
    values, places = run(jnp.asarray(GRID), jnp.asarray(PLACES))
    np.testing.assert_array_equal(values, np.sort(GRID, axis=1))
    np.testing.assert_array_equal(GRID.ravel()[np.asarray(places)], values)


def test_values_alone_and_double_precision():
    np.testing.assert_array_equal(sorting.sort_values(jnp.asarray(HARD)), np.sort(HARD))
    with jax.enable_x64(True):
        wide = jnp.asarray(HARD.astype(np.float64) * (1 + 1e-12))
        values, _ = sorting.sort_with_places(wide, jnp.arange(HARD.size, dtype=jnp.int32), 0)
        np.testing.assert_array_equal(values, np.sort(wide))
        assert sorting.sort_values(wide).dtype == jnp.float64
