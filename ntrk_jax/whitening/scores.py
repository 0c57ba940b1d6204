r"""Statistics of white noise as normal scores: each is N(0, 1), exactly or nearly, for an array of N(0, I) entries.

- sums of squares of n orthonormal coefficients are chi2_n: z = ((s/n)^(1/3) - 1 + 2/(9n)) / sqrt(2/(9n))
  (Wilson and Hilferty);
- correlations r of two strips of n numbers of known mean: z = atanh(r) sqrt(n - 2) (Fisher);
- skewness and kurtosis: the transformations of D'Agostino (1970) and of Anscombe and Glynn (1983);
- Kolmogorov-Smirnov and the largest of K: the p-value p of the null law, z = -Phi^-1(p).

Arrays are [*space, C], channels last. A statistic for which the array has too few entries is 0.
"""

from __future__ import annotations

import itertools
from functools import lru_cache, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc, ndtr, ndtri

from ntrk_jax.core import algebra_dtype
from ntrk_jax.typing import Array
from ntrk_jax.whitening.domains import radius

__all__ = [
    "autocorrelation_scores", "battery", "chi2_score", "ks_score", "pair_scores", "shape_scores", "spectrum_scores",
    "tile_scores", "with_channels",
]  # fmt: skip

LAGS = (1, 2, 3, 4)
TILES = (2, 4, 8, 16)
NUM_BANDS = 8
_LONG = 256
MEAN_ABS = float(np.sqrt(2.0 / np.pi))


def with_channels(x: Array) -> Array:
    """Lift x to at least float32 and to [*space, C]; a vector gets one channel."""
    x = jnp.asarray(x)
    x = x.astype(algebra_dtype(x))
    return x if x.ndim > 1 else x.reshape(-1, 1)


def battery(x: Array) -> dict[str, Array]:
    """Every statistic of the battery, by name; x [*space, C]."""
    flat = x.reshape(-1)
    n = flat.shape[0]
    skewness, kurtosis = shape_scores(flat)
    spectrum, peak = spectrum_scores(x)
    return {
        "mean": jnp.mean(flat) * float(np.sqrt(n)),
        "variance": chi2_score(jnp.sum(flat * flat), n),
        "skewness": skewness,
        "kurtosis": kurtosis,
        "ks": ks_score(flat),
        "autocorrelation": autocorrelation_scores(x, LAGS),
        "autocorrelation_abs": autocorrelation_scores(jnp.abs(x) - MEAN_ABS, LAGS),
        "spectrum": spectrum,
        "peak": peak,
        "tiles": tile_scores(x, TILES),
        "channels": _channel_scores(x),
    }


def chi2_score(total: Array, dof: float | np.ndarray) -> Array:
    """The normal score of a chi2 with dof degrees of freedom (Wilson and Hilferty)."""
    dof = np.asarray(dof, np.float64)
    spread = 2.0 / (9.0 * dof)
    scale, middle, width = (jnp.asarray(a, total.dtype) for a in (1.0 / dof, 1.0 - spread, np.sqrt(spread)))
    return (jnp.cbrt(total * scale) - middle) / width


def _score_of_log_tail(log_p: Array, log_q: Array) -> Array:
    """-Phi^-1(p) from log p and log(1 - p), also where p underflows."""
    far = jnp.minimum(log_p, -40.0)
    z = jnp.sqrt(-2.0 * far)
    for _ in range(4):
        z = jnp.sqrt(-2.0 * (far + jnp.log(z) + 0.5 * float(np.log(2 * np.pi))))
    tiny = jnp.asarray(1e-30, log_p.dtype)
    near = jnp.where(log_p < log_q, -ndtri(jnp.maximum(jnp.exp(log_p), tiny)), ndtri(jnp.maximum(jnp.exp(log_q), tiny)))
    return jnp.where(log_p < -40.0, z, near)


def _log_two_sided(z: Array) -> Array:
    """Logarithm of P(|normal| > z) for z >= 0, also where it underflows."""
    half = z * float(np.sqrt(0.5))
    far = -(half**2) - jnp.log(jnp.maximum(half, 1.0) * float(np.sqrt(np.pi)))
    return jnp.where(half < 5, jnp.log(jnp.maximum(erfc(jnp.minimum(half, 5.0)), 1e-30)), far)


def shape_scores(flat: Array) -> tuple[Array, Array]:
    """The normal scores of sample skewness and kurtosis."""
    n = float(flat.shape[0])
    if n < 20:
        return jnp.zeros((), flat.dtype), jnp.zeros((), flat.dtype)
    centred = flat - jnp.mean(flat)
    top = jnp.maximum(jnp.max(jnp.abs(centred)), 1e-30)
    centred = centred / top
    m2 = jnp.maximum(jnp.mean(centred**2), 1e-12)
    skew = jnp.mean(centred**3) / m2**1.5
    kurt = jnp.mean(centred**4) / m2**2
    # D'Agostino's transformation of the skewness to Johnson's S_U.
    y = skew * float(np.sqrt((n + 1) * (n + 3) / (6 * (n - 2))))
    beta = 3 * (n * n + 27 * n - 70) * (n + 1) * (n + 3) / ((n - 2) * (n + 5) * (n + 7) * (n + 9))
    w2 = np.sqrt(2 * (beta - 1)) - 1
    skew_z = jnp.arcsinh(y * float(np.sqrt((w2 - 1) / 2))) / float(np.sqrt(0.5 * np.log(w2)))
    # Anscombe and Glynn: a shifted inverse chi2 with the first three moments of the kurtosis, then Wilson-Hilferty.
    mean = 3 * (n - 1) / (n + 1)
    var = 24 * n * (n - 2) * (n - 3) / ((n + 1) ** 2 * (n + 3) * (n + 5))
    third = 6 * (n * n - 5 * n + 2) / ((n + 7) * (n + 9)) * np.sqrt(6 * (n + 3) * (n + 5) / (n * (n - 2) * (n - 3)))
    a = 6 + 8 / third * (2 / third + np.sqrt(1 + 4 / third**2))
    ratio = (1 - 2 / a) / (1 + (kurt - float(mean)) * float(np.sqrt(2 / ((a - 4) * var))))
    kurt_z = (1 - 2 / (9 * a) - jnp.cbrt(ratio)) / float(np.sqrt(2 / (9 * a)))
    return skew_z, jnp.where(ratio > 0, kurt_z, -30.0)


def ks_score(flat: Array) -> Array:
    """The normal score of the Kolmogorov-Smirnov distance to N(0, 1)."""
    n = flat.shape[0]
    if n < 8:
        return jnp.zeros((), flat.dtype)
    cdf = ndtr(jnp.sort(flat))
    i = jnp.arange(n, dtype=flat.dtype)
    distance = jnp.maximum(jnp.max((i + 1) / n - cdf), jnp.max(cdf - i / n))
    lam = distance * float(np.sqrt(n) + 0.12 + 0.11 / np.sqrt(n))
    k = jnp.arange(1, 12, dtype=flat.dtype)
    small = jnp.sum(jnp.exp(-((2 * k - 1) ** 2) * float(np.pi**2 / 8) / lam**2)) * float(np.sqrt(2 * np.pi)) / lam
    sign = jnp.where(k % 2 == 1, 1.0, -1.0).astype(flat.dtype)
    tail = 2 * jnp.sum(sign * jnp.exp(-2 * (k * k - 1) * lam**2))
    log_p = jnp.where(lam > 1, jnp.log(jnp.maximum(tail, 1e-30)) - 2 * lam**2, jnp.log1p(-jnp.minimum(small, 0.999)))
    log_q = jnp.where(lam > 1, jnp.log1p(-jnp.exp(jnp.minimum(log_p, -1e-6))), jnp.log(jnp.maximum(small, 1e-30)))
    return _score_of_log_tail(log_p, log_q)


def _fisher(dot: Array, squares_a: Array, squares_b: Array, n: int) -> Array:
    """The normal score of an uncentred correlation of n pairs."""
    tiny = jnp.asarray(1e-30, dot.dtype)
    r = dot * jax.lax.rsqrt(jnp.maximum(squares_a, tiny)) * jax.lax.rsqrt(jnp.maximum(squares_b, tiny))
    return jnp.arctanh(jnp.clip(r, -0.999999, 0.999999)) * float(np.sqrt(n - 2))


def _strips(x: Array, axis: int, lags: list[int]) -> list[tuple[Array, Array, Array]]:
    """(dot, squares, squares) of x without its last and without its first places along an axis, for each lag."""
    side = x.shape[axis]
    out = []
    if side > _LONG:
        for lag in lags:
            a, b = (jax.lax.slice_in_dim(x, lo, side - lag + lo, axis=axis) for lo in (0, lag))
            out.append((jnp.sum(a * b), jnp.sum(a * a), jnp.sum(b * b)))
        return out
    rows = jnp.moveaxis(x, axis, 0).reshape(side, -1)
    gram = jnp.einsum("ia,ja->ij", rows, rows, precision="highest")
    squares = jnp.diagonal(gram)
    for lag in lags:
        out.append((jnp.sum(jnp.diagonal(gram, lag)), jnp.sum(squares[: side - lag]), jnp.sum(squares[lag:])))
    return out


def autocorrelation_scores(x: Array, lags: tuple[int, ...]) -> Array:
    """The correlation of x with its copy shifted along each axis, [num_axes * num_lags]; 0 where too few overlap."""
    rows = []
    for axis, side in enumerate(x.shape):
        counts = [x.size // side * max(side - lag, 0) for lag in lags]
        fit = [i for i, count in enumerate(counts) if count >= 8]
        scored = [jnp.zeros((), x.dtype)] * len(lags)
        for i, (dot, a, b) in zip(fit, _strips(x, axis, [lags[i] for i in fit]), strict=True):
            scored[i] = _fisher(dot, a, b, counts[i])
        rows += scored
    return jnp.stack(rows)


@lru_cache(maxsize=32)
def _bands(space: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Frequencies from low to high, [n] flat places, and where one band ends and the next begins."""
    order = np.argsort(np.round(radius(space), 9).ravel(), kind="stable").astype(np.int32)
    n = order.size
    num = min(NUM_BANDS, max(1, n // 8))
    ends = np.unique(np.round(np.geomspace(min(8, n), n, num)).astype(int)) if num > 1 else np.array([n])
    return order, (0, *(int(e) for e in ends))


@lru_cache(maxsize=32)
def _self_conjugate(space: tuple[int, ...]) -> np.ndarray:
    """Where a Fourier coefficient of a real array is real, [*space]."""
    flags = [np.isin(np.arange(n), [0] + ([n // 2] if n % 2 == 0 else [])) for n in space]
    return reduce(np.logical_and.outer, flags)


def spectrum_scores(x: Array) -> tuple[Array, Array]:
    """Scores of the power in radial bands, all channels first, [(1 + C) * bands], and of the highest peak []."""
    channels = x.shape[-1]
    f = jnp.fft.fftn(x, axes=tuple(range(x.ndim - 1)), norm="ortho")
    order, ends = _bands(x.shape[:-1])
    hartley = ((jnp.real(f) - jnp.imag(f)) ** 2).reshape(-1, channels)[order]
    sums = jnp.stack([jnp.sum(hartley[a:b], axis=0) for a, b in itertools.pairwise(ends)])
    counts = np.diff(np.asarray(ends, np.float64))
    together = chi2_score(jnp.sum(sums, axis=1), counts * channels)
    apart = chi2_score(sums, np.broadcast_to(counts[:, None], sums.shape))
    return jnp.concatenate([together, apart.reshape(-1)]), _peak_score(jnp.real(f) ** 2 + jnp.imag(f) ** 2)


def _peak_score(power: Array) -> Array:
    """The normal score of the largest of the independent Fourier coefficients, each as -log of its tail."""
    real = np.broadcast_to(_self_conjugate(power.shape[:-1])[..., None], power.shape)
    top = jnp.max(jnp.where(jnp.asarray(real), -_log_two_sided(jnp.sqrt(power)), power))
    num = np.sum(real) + (real.size - np.sum(real)) / 2
    log_q = float(num) * jnp.log1p(-jnp.exp(-jnp.maximum(top, 1e-6)))
    log_p = jnp.where(top > 30, float(np.log(num)) - top, jnp.log(jnp.maximum(-jnp.expm1(log_q), 1e-30)))
    return _score_of_log_tail(log_p, log_q)


@lru_cache(maxsize=256)
def _square_moments(dof: int) -> tuple[float, float]:
    """Mean and variance of w^2, w the Wilson-Hilferty score of a chi2 with dof degrees of freedom."""
    from scipy.special import gammaincinv

    u = (np.arange(200_000) + 0.5) / 200_000
    s = 2.0 * gammaincinv(dof / 2.0, u)
    spread = 2.0 / (9.0 * dof)
    w2 = (np.cbrt(s / dof) - 1.0 + spread) ** 2 / spread
    return float(w2.mean()), float(w2.var())


def _spread_score(energies: Array, dof: int) -> Array:
    """Whether M tile energies [M], each chi2 with dof degrees of freedom, spread as they should."""
    mean, var = _square_moments(dof)
    total = jnp.sum(chi2_score(energies, dof) ** 2)
    m = energies.shape[0]
    matched = 2.0 * mean**2 * m / var
    return chi2_score(total * (matched / (mean * m)), matched)


def _pool(x: Array, sides: tuple[int, ...]) -> Array:
    """Sums over blocks of the given sides, [*space, C] -> [*space // sides, C]; what fills no block is cut off."""
    for axis, side in enumerate(sides):
        count = x.shape[axis] // side
        x = jax.lax.slice_in_dim(x, 0, count * side, axis=axis)
        x = jnp.sum(x.reshape(*x.shape[:axis], count, side, *x.shape[axis + 1 :]), axis=axis + 1)
    return x


def tile_scores(x: Array, tiles: tuple[int, ...]) -> Array:
    """Spread of tile energies, over all channels together and over single channels, [2 * num_scales]."""
    space, channels = x.shape[:-1], x.shape[-1]
    scores = []
    energy, done = x * x, (1,) * len(space)
    for tile in tiles:
        sides = tuple(min(tile, n) for n in space)
        nested = all(side % d == 0 for side, d in zip(sides, done, strict=True))
        steps = tuple(side // d for side, d in zip(sides, done, strict=True)) if nested else sides
        energy, done = _pool(energy if nested else x * x, steps), sides
        dof = int(np.prod(sides))
        for values, size in ((jnp.sum(energy, axis=-1).reshape(-1), dof * channels), (energy.reshape(-1), dof)):
            enough = values.shape[0] >= 8
            scores.append(_spread_score(values, size) if enough else jnp.zeros((), x.dtype))
    return jnp.stack(scores)


def pair_scores(x: Array) -> Array:
    """Scores of the correlation of each pair of channels, [C (C - 1) / 2]."""
    channels = x.shape[-1]
    n = x.size // channels
    if channels < 2 or n < 8:
        return jnp.zeros((0,), x.dtype)
    rows = x.reshape(n, channels)
    gram = jnp.einsum("nc,nd->cd", rows, rows, precision="highest")
    squares = jnp.diagonal(gram)
    first, second = np.triu_indices(channels, 1)
    return _fisher(gram[first, second], squares[first], squares[second], n)


def _channel_scores(x: Array) -> Array:
    """Scores of the summed squares and of the largest of the correlations between channels, [2]."""
    z = pair_scores(x)
    pairs = z.shape[0]
    if pairs == 0:
        return jnp.zeros((2,), x.dtype)
    log_one = _log_two_sided(jnp.max(jnp.abs(z)))
    log_q = pairs * jnp.log1p(-jnp.exp(jnp.minimum(log_one, -1e-6)))
    log_p = jnp.where(log_one < -16, log_one + float(np.log(pairs)), jnp.log(jnp.maximum(-jnp.expm1(log_q), 1e-30)))
    return jnp.stack([chi2_score(jnp.sum(z * z), pairs), _score_of_log_tail(log_p, log_q)])
