r"""What is measured of an array to tell whether it is typical: moments, correlations, spectrum, tiles, channels.

Every statistic is a normal score (`scores`), N(0, 1) for an array of independent N(0, 1) entries. The smooth ones come
in two kinds, each scored in one go:

- correlations: of x, and of |x| - E|x|, with its copy shifted along each axis, and between channels;
- sums of squares: of all entries; of the Fourier coefficients in rings of frequencies, and in unions of neighbouring
  rings, for all channels together and one by one; of the scores of tile energies, which measures how they spread; and
  of the correlations between channels.

Arrays are [*space, C], channels last. A statistic for which the array has too few entries is left out, or 0 where a
single number is promised.
"""

from __future__ import annotations

from functools import lru_cache, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.core import algebra_dtype
from ntrk_jax.typing import Array
from ntrk_jax.whitening import scores
from ntrk_jax.whitening.domains import radius

__all__ = ["Smooth", "battery", "largest", "num_frequencies", "smooth", "with_channels"]

NUM_LAGS = 8
TILES = (2, 4, 8, 16, 32)
NUM_RINGS = 32
FREQUENCIES = (0.7, 1.4, 2.1, 2.8)
MEAN_ABS = float(np.sqrt(2.0 / np.pi))
_BLOCK = 64


class Smooth(NamedTuple):
    """Smooth scores, [k] each, and the amplitudes of the Fourier coefficients, each Rayleigh, [*space, C]."""

    moments: Array
    characteristic: Array
    lagged: Array
    lagged_abs: Array
    pairs: Array
    pairs_abs: Array
    variance: Array
    spectrum: Array
    tiles: Array
    channels: Array
    amplitude: Array


def with_channels(x: Array) -> Array:
    """Lift x to at least float32 and to [*space, C]; a vector gets one channel."""
    x = jnp.asarray(x)
    x = x.astype(algebra_dtype(x))
    return x if x.ndim > 1 else x.reshape(-1, 1)


def battery(x: Array) -> dict[str, Array]:
    """Every statistic of the battery, by name; x [*space, C]."""
    z = smooth(x)
    return {
        "mean": z.moments[0], "variance": z.variance[0], "skewness": z.moments[1], "kurtosis": z.moments[2],
        "ks": scores.ks_score(x.reshape(-1)), "autocorrelation": z.lagged, "autocorrelation_abs": z.lagged_abs,
        "spectrum": z.spectrum, "peak": _peak_score(z.amplitude), "tiles": z.tiles, "channels": _channel_scores(z),
    }  # fmt: skip


def largest(x: Array) -> Array:
    """The largest |z| of the battery, x [*space, C]; not-a-number counts as infinite."""
    top = jnp.max(jnp.abs(jnp.concatenate([z.reshape(-1) for z in battery(x).values()])))
    return jnp.where(jnp.isnan(top), jnp.inf, top)


def smooth(x: Array) -> Smooth:
    """The smooth statistics of x [*space, C]."""
    flat = x.reshape(-1)
    both = jnp.stack([x, jnp.abs(x) - MEAN_ABS])
    products = [_lagged(both, axis) for axis in range(x.ndim)] + [_crossed(both)]
    count = np.concatenate([p.count for p in products])
    dot, left, right = (jnp.concatenate(c, axis=1) for c in zip(*[p[:3] for p in products], strict=True))
    z = scores.correlation_score(dot, left, right, count)
    num_lagged = count.size - products[-1].count.size
    lagged, pairs = z[:, :num_lagged], z[:, num_lagged:]
    num_shared = 2 if pairs.shape[1] else 0
    power, amplitude = _fourier(x)
    groups = [
        (jnp.sum(flat * flat)[None], np.array([flat.size])),
        _ring_sums(power),
        _tile_sums(x),
        (jnp.sum(pairs**2, axis=1)[:num_shared], np.full(num_shared, pairs.shape[1])),
    ]
    squares = scores.chi2_score(jnp.concatenate([g[0] for g in groups]), np.concatenate([g[1] for g in groups]))
    variance, spectrum, tiles, shared = jnp.split(squares, np.cumsum([g[1].size for g in groups])[:-1])
    mean = jnp.mean(flat) * float(np.sqrt(flat.size))
    moments = jnp.concatenate([mean[None], scores.shape_scores(flat)])
    return Smooth(
        moments, _characteristic(flat), lagged[0], lagged[1], pairs[0], pairs[1], variance, spectrum, tiles, shared,
        amplitude,
    )  # fmt: skip


def _characteristic(flat: Array) -> Array:
    """Scores of mean cos(w x) and mean sin(w x), whose means and variances for a normal x are known."""
    w = np.array(FREQUENCIES)
    angle = jnp.asarray(w, flat.dtype)[:, None] * flat[None, :]
    means = jnp.mean(jnp.concatenate([jnp.cos(angle), jnp.sin(angle)]), axis=1)
    centre = np.concatenate([np.exp(-w * w / 2), np.zeros(w.size)])
    spread = np.sqrt(0.5 * np.concatenate([1 + np.exp(-2 * w * w) - 2 * np.exp(-w * w), 1 - np.exp(-2 * w * w)]))
    return (means - jnp.asarray(centre, flat.dtype)) * jnp.asarray(np.sqrt(flat.size) / spread, flat.dtype)


class _Products(NamedTuple):
    """Sums of products and of squares of two strips of `count` numbers, [2, k] each (x and its magnitude)."""

    dot: Array
    left: Array
    right: Array
    count: np.ndarray


def _lagged(both: Array, axis: int) -> _Products:
    """Each of both [2, *space, C] against its copy shifted by 1, 2, ... along an axis, in blocks of the axis."""
    side = both.shape[axis + 1]
    rest = both.size // (2 * side)
    count = rest * (side - np.arange(1, NUM_LAGS + 1))
    num = int(np.sum(count >= 8))
    if num == 0:
        none = both.reshape(2, -1)[:, :0]
        return _Products(none, none, none, np.zeros(0))
    rows = jnp.moveaxis(both, axis + 1, 1).reshape(2, side, rest)
    block = min(side, _BLOCK)
    blocks = -(-side // block)
    padded = jnp.pad(rows, ((0, 0), (0, (blocks + 1) * block - side), (0, 0))).reshape(2, blocks + 1, block, rest)
    here, after = padded[:, :-1], padded[:, 1:, :num]
    gram = jnp.einsum("kbir,kbjr->kij", here, jnp.concatenate([here, after], axis=2), precision="highest")
    # Row i of width w, laid out again with width w + 1: what was at (i, j) now stands in column j - i.
    width = block + num
    sheared = jnp.pad(gram.reshape(2, -1), ((0, 0), (0, block))).reshape(2, block, width + 1)
    by_lag = jnp.sum(sheared[:, :, : num + 1], axis=1)
    first, last = (jnp.cumsum(jnp.sum(e * e, axis=2), axis=1) for e in (rows[:, :num], rows[:, ::-1][:, :num]))
    return _Products(by_lag[:, 1:], by_lag[:, :1] - last, by_lag[:, :1] - first, count[:num])


def _crossed(both: Array) -> _Products:
    """Each pair of channels of both [2, *space, C]."""
    channels = both.shape[-1]
    n = both.size // (2 * channels)
    first, second = np.triu_indices(channels if n >= 8 else 1, 1)
    rows = both.reshape(2, n, channels)
    gram = jnp.einsum("knc,knd->kcd", rows, rows, precision="highest").reshape(2, -1)
    dot, left, right = (gram[:, i * channels + j] for i, j in ((first, second), (first, first), (second, second)))
    return _Products(dot, left, right, np.full(first.size, n))


@lru_cache(maxsize=32)
def _real(space: tuple[int, ...]) -> np.ndarray:
    """Where a Fourier coefficient of a real array is real, [*space]."""
    flags = [np.isin(np.arange(n), [0] + ([n // 2] if n % 2 == 0 else [])) for n in space]
    return reduce(np.logical_and.outer, flags)


def num_frequencies(shape: tuple[int, ...]) -> float:
    """How many independent Fourier coefficients an array [*space, C] has."""
    real = _real(shape[:-1])
    return float(shape[-1] * (real.sum() + (real.size - real.sum()) / 2))


def _fourier(x: Array) -> tuple[Array, Array]:
    """The power spectrum of x [*space, C], and its amplitudes in units in which each is Rayleigh."""
    f = jnp.fft.fftn(x, axes=tuple(range(x.ndim - 1)), norm="ortho")
    power = jnp.real(f) ** 2 + jnp.imag(f) ** 2
    twice = jnp.asarray(np.where(_real(x.shape[:-1]), 1.0, 2.0)[..., None], x.dtype)
    return power, jnp.sqrt(jnp.maximum(power * twice, 1e-20))


def _peak_score(amplitude: Array) -> Array:
    """The normal score of the largest of the independent Fourier coefficients, each through its own tail."""
    real = _real(amplitude.shape[:-1])
    paired = jnp.where(jnp.asarray(real[..., None]), 0.0, amplitude)
    single = amplitude.reshape(-1, amplitude.shape[-1])[np.flatnonzero(real)]
    tail = jnp.minimum(-0.5 * jnp.max(paired) ** 2, scores.log_two_sided(jnp.max(single)))
    return scores.largest_score(tail, num_frequencies(amplitude.shape))


def _merged(counts: np.ndarray, least: int) -> np.ndarray:
    """Join neighbours until each holds at least `least` coefficients: the new number of each, [rings]."""
    number, held, new = 0, 0, []
    for i, count in enumerate(counts):
        new.append(number)
        held += count
        if held >= least and counts[i + 1 :].sum() >= least:
            number, held = number + 1, 0
    return np.array(new)


@lru_cache(maxsize=32)
def _rings(space: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rings of frequencies from low to high: places [rings, widest] (n where there is none), unions [k, rings], sizes.

    The edges are evenly spaced, and logarithmically for low frequencies; each ring holds at least 8 coefficients. The
    unions are those of 2, 4, 8, ... neighbours.
    """
    r = np.round(radius(space).ravel(), 9)
    n, top = r.size, r.max()
    edges = np.geomspace(0.5 / max(space), max(top, 0.5), NUM_RINGS)
    edges = np.round(np.union1d(np.linspace(0, top, NUM_RINGS + 1)[:-1], edges), 9)
    ring = np.searchsorted(edges, r, side="right") - 1
    ring = _merged(np.bincount(ring), 8)[ring]
    num = ring.max() + 1
    sizes = np.bincount(ring)
    places = np.full((num, sizes.max()), n)
    for i in range(num):
        places[i, : sizes[i]] = np.flatnonzero(ring == i)
    unions = [np.arange(num) == i for i in range(num)]
    length = 2
    while length < 2 * num:
        for start in range(0, num, length // 2):
            unions.append((np.arange(num) >= start) & (np.arange(num) < start + length))
        length *= 2
    unions = np.unique(np.array(unions), axis=0)
    return places.astype(np.int32), unions.astype(np.float64), unions @ sizes


def _ring_sums(power: Array) -> tuple[Array, np.ndarray]:
    """Power in unions of rings, all channels together first, and the degrees of freedom of each."""
    channels = power.shape[-1]
    places, unions, sizes = _rings(power.shape[:-1])
    flat = power.reshape(-1, channels)
    rings = jnp.sum(flat.at[places].get(mode="fill", fill_value=0.0), axis=1)
    sums = jnp.einsum("kr,rc->kc", jnp.asarray(unions, power.dtype), rings, precision="highest")
    if channels == 1:
        return sums[:, 0], sizes
    together = jnp.concatenate([jnp.sum(sums, axis=1), sums.reshape(-1)])
    return together, np.concatenate([channels * sizes, np.repeat(sizes, channels)])


@lru_cache(maxsize=256)
def _square_moments(dof: int) -> tuple[float, float]:
    """Mean and variance of w^2, w the Wilson-Hilferty score of a chi2 with dof degrees of freedom."""
    from scipy.special import gammaincinv

    u = (np.arange(200_000) + 0.5) / 200_000
    s = 2.0 * gammaincinv(dof / 2.0, u)
    spread = 2.0 / (9.0 * dof)
    w2 = (np.cbrt(s / dof) - 1.0 + spread) ** 2 / spread
    return float(w2.mean()), float(w2.var())


def _pool(x: Array, sides: tuple[int, ...]) -> Array:
    """Sums over blocks of the given sides, [*space, C] -> [*space // sides, C]; what fills no block is cut off."""
    for axis, side in enumerate(sides):
        count = x.shape[axis] // side
        x = jax.lax.slice_in_dim(x, 0, count * side, axis=axis)
        x = jnp.sum(x.reshape(*x.shape[:axis], count, side, *x.shape[axis + 1 :]), axis=axis + 1)
    return x


def _tile_sums(x: Array) -> tuple[Array, np.ndarray]:
    """Summed squared scores of the tile energies, at each scale, of single channels and of all channels together."""
    space, channels = x.shape[:-1], x.shape[-1]
    totals, dofs = [], []
    energy, done = x * x, (1,) * len(space)
    for tile in TILES:
        sides = tuple(min(tile, n) for n in space)
        if sides == done:
            continue
        nested = all(side % d == 0 for side, d in zip(sides, done, strict=True))
        steps = tuple(side // d for side, d in zip(sides, done, strict=True)) if nested else sides
        energy, done = _pool(energy if nested else x * x, steps), sides
        dof = int(np.prod(sides))
        grouped = [(energy, dof)] + [(jnp.sum(energy, axis=-1), dof * channels)] * (channels > 1)
        for values, size in grouped:
            if values.size < 8:
                continue
            mean, var = _square_moments(size)
            matched = 2.0 * mean**2 * values.size / var
            totals.append(jnp.sum(scores.chi2_score(values, size) ** 2) * (matched / (mean * values.size)))
            dofs.append(matched)
    return jnp.stack(totals) if totals else jnp.zeros((0,), x.dtype), np.array(dofs)


def _channel_scores(z: Smooth) -> Array:
    """Scores of the summed squares and of the largest of the correlations between channels, [2]."""
    pairs = z.pairs.shape[0]
    if pairs == 0:
        return jnp.zeros((2,), z.pairs.dtype)
    tail = scores.log_two_sided(jnp.max(jnp.abs(z.pairs)))
    return jnp.stack([z.channels[0], scores.largest_score(tail, pairs)])
