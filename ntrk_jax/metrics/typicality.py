r"""How typical is an array as a draw of N(0, I)? A battery of z-scores, each standard normal for white noise.

Every statistic is turned into a normal score through its null law, so that |z| <= 5 means the same for all of them:

- sums of squares of orthonormal coefficients are chi2: z by Wilson and Hilferty, ((s/n)^(1/3) - 1 + 2/(9n)) / sqrt(2/(9n));
- correlations r of two strips of n numbers: Fisher's atanh(r) sqrt(n - 2) for a known mean;
- skewness and kurtosis: D'Agostino (1970) and Anscombe and Glynn (1983);
- Kolmogorov-Smirnov and the largest of K: the p-value p of the null law, z = -Phi^-1(p).

A statistic for which the array has too few entries is 0.
"""

from __future__ import annotations

from functools import lru_cache, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc, ndtri

from ntrk_jax.core import algebra_dtype
from ntrk_jax.typing import Array

__all__ = ["Typicality", "typicality"]

LAGS = (1, 2, 3, 4)
TILES = (2, 4, 8, 16)
NUM_BANDS = 8


class Typicality(NamedTuple):
    """z-scores, each about N(0, 1) for white noise.

    mean, variance, skewness, kurtosis, ks: [] each (ks: large means far from the normal law).
    autocorrelation, autocorrelation_abs: [num_axes * num_lags], of x and of |x|, lags 1 to 4 along every axis.
    spectrum: power in radial frequency bands, all channels together first, then channel by channel, [(1 + C) * bands].
    peak: the largest Fourier coefficient, []. tiles: spread of tile energies at sides 2, 4, 8, 16, over the tiles of
    all channels together and of single channels, [2 * num_scales].
    channels: [2], the summed squares and the largest of the correlations between channels.
    """

    mean: Array
    variance: Array
    skewness: Array
    kurtosis: Array
    ks: Array
    autocorrelation: Array
    autocorrelation_abs: Array
    spectrum: Array
    peak: Array
    tiles: Array
    channels: Array

    @property
    def largest(self) -> Array:
        """max |z| over the whole battery, []."""
        return jnp.max(jnp.stack([jnp.max(jnp.abs(z), initial=0.0) for z in self]))


def typicality(x: Array) -> Typicality:
    """z-scores of an array [*shape] as a draw of standard normal noise; jit- and vmappable.

    The last axis of an array of two or more axes holds channels, the others are space (or time, or token number).

    Cost: one sort, one FFT and a few passes over the array.

    References: Wilson and Hilferty 1931; Fisher 1915; D'Agostino 1970; Anscombe and Glynn 1983; Stephens 1970.

    Example:
        >>> import jax
        >>> noise = jax.random.normal(jax.random.key(0), (32, 32, 3))
        >>> bool(typicality(noise).largest < 5), bool(typicality(noise.at[:8, :8].mul(2.0)).largest > 5)
        (True, True)
    """
    x = jnp.asarray(x)
    x = x.astype(algebra_dtype(x))
    full = x if x.ndim > 1 else x[:, None]
    flat = x.reshape(-1)
    n = flat.shape[0]
    skewness, kurtosis = _shape_scores(flat)
    return Typicality(
        mean=jnp.mean(flat) * float(np.sqrt(n)),
        variance=_chi2_score(jnp.sum(flat * flat), n),
        skewness=skewness,
        kurtosis=kurtosis,
        ks=_ks_score(flat),
        autocorrelation=_autocorrelation(full),
        autocorrelation_abs=_autocorrelation(jnp.abs(full) - float(np.sqrt(2.0 / np.pi))),
        spectrum=_spectrum(full),
        peak=_peak(full),
        tiles=_tiles(full),
        channels=_channels(full),
    )


def _chi2_score(total: Array, dof: float | np.ndarray) -> Array:
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


def _shape_scores(flat: Array) -> tuple[Array, Array]:
    """The normal scores of sample skewness and kurtosis."""
    n = float(flat.shape[0])
    if n < 20:
        return jnp.zeros((), flat.dtype), jnp.zeros((), flat.dtype)
    centred = flat - jnp.mean(flat)
    top = jnp.maximum(jnp.max(jnp.abs(centred)), 1e-30)
    centred = centred / top
    m2 = jnp.maximum(jnp.mean(centred**2), 1e-30)
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


def _ks_score(flat: Array) -> Array:
    """The normal score of the Kolmogorov-Smirnov distance to N(0, 1)."""
    n = flat.shape[0]
    if n < 8:
        return jnp.zeros((), flat.dtype)
    cdf = jax.scipy.special.ndtr(jnp.sort(flat))
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
    r = dot * jax.lax.rsqrt(jnp.maximum(squares_a * squares_b, 1e-30))
    r = jnp.clip(r, -0.999999, 0.999999)
    return jnp.arctanh(r) * float(np.sqrt(n - 2))


def _autocorrelation(x: Array) -> Array:
    """z of the correlation of x with its copy shifted by 1 to 4 along each axis."""
    scores = []
    for axis, side in enumerate(x.shape):
        for lag in LAGS:
            count = x.size // side * max(side - lag, 0)
            if count < 8:
                scores.append(jnp.zeros((), x.dtype))
            else:
                a = jax.lax.slice_in_dim(x, 0, side - lag, axis=axis)
                b = jax.lax.slice_in_dim(x, lag, side, axis=axis)
                scores.append(_fisher(jnp.sum(a * b), jnp.sum(a * a), jnp.sum(b * b), count))
    return jnp.stack(scores)


@lru_cache(maxsize=32)
def _bands(space: tuple[int, ...]) -> np.ndarray:
    """Which radial band a frequency belongs to, [*space]; bands of equal width in log frequency, none too small."""
    freqs = np.meshgrid(*[np.fft.fftfreq(n) for n in space], indexing="ij")
    radius = np.sqrt(sum(f * f for f in freqs))
    n = radius.size
    num = min(NUM_BANDS, max(1, n // 8))
    ranks = np.argsort(np.argsort(np.round(radius, 9).ravel(), kind="stable"), kind="stable")
    edges = np.unique(np.round(np.geomspace(min(8, n), n, num)).astype(int)) if num > 1 else np.array([n])
    return np.searchsorted(edges, ranks, side="right").reshape(space)


def _spectrum(x: Array) -> Array:
    """z of the power in each radial band, all channels together and each on its own."""
    axes = tuple(range(x.ndim - 1))
    f = jnp.fft.fftn(x, axes=axes, norm="ortho")
    power = ((jnp.real(f) - jnp.imag(f)) ** 2).reshape(-1, x.shape[-1])
    band = _bands(x.shape[:-1]).ravel()
    counts = np.bincount(band).astype(np.float64)
    sums = jax.ops.segment_sum(power, jnp.asarray(band), num_segments=len(counts))
    together = _chi2_score(jnp.sum(sums, axis=1), counts * x.shape[-1])
    apart = _chi2_score(sums, np.broadcast_to(counts[:, None], sums.shape))
    return jnp.concatenate([together, apart.reshape(-1)])


@lru_cache(maxsize=32)
def _self_conjugate(space: tuple[int, ...]) -> np.ndarray:
    """Where a Fourier coefficient of a real array is real, [*space]."""
    flags = [np.isin(np.arange(n), [0] + ([n // 2] if n % 2 == 0 else [])) for n in space]
    return reduce(np.logical_and.outer, flags)


def _peak(x: Array) -> Array:
    """The normal score of the largest Fourier coefficient among the independent ones."""
    f = jnp.fft.fftn(x, axes=tuple(range(x.ndim - 1)), norm="ortho")
    power = jnp.real(f) ** 2 + jnp.imag(f) ** 2
    real = np.broadcast_to(_self_conjugate(x.shape[:-1])[..., None], x.shape)
    half = jnp.sqrt(power / 2)
    far = -(half**2) - jnp.log(jnp.maximum(half, 1.0) * float(np.sqrt(np.pi)))
    log_erfc = jnp.where(half < 5, jnp.log(jnp.maximum(erfc(half), 1e-30)), far)
    top = jnp.max(jnp.where(jnp.asarray(real), -log_erfc, power))
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
    total = jnp.sum(_chi2_score(energies, dof) ** 2)
    m = energies.shape[0]
    matched = 2.0 * mean**2 * m / var
    return _chi2_score(total * (matched / (mean * m)), matched)


def _tiles(x: Array) -> Array:
    """z of the spread of tile energies at several scales, over all channels together and over single channels."""
    scores = []
    for side in TILES:
        sides = tuple(min(side, n) for n in x.shape[:-1])
        whole = tuple(n // s * s for n, s in zip(x.shape[:-1], sides, strict=True))
        cut = x[tuple(slice(0, w) for w in whole)]
        folded = cut.reshape(*[k for w, s in zip(whole, sides, strict=True) for k in (w // s, s)], x.shape[-1])
        energy = jnp.sum(folded**2, axis=tuple(range(1, 2 * len(sides), 2)))
        dof = int(np.prod(sides))
        for values, size in ((jnp.sum(energy, axis=-1).reshape(-1), dof * x.shape[-1]), (energy.reshape(-1), dof)):
            enough = values.shape[0] >= 8
            scores.append(_spread_score(values, size) if enough else jnp.zeros((), x.dtype))
    return jnp.stack(scores)


def _channels(x: Array) -> Array:
    """z of the summed squares and of the largest of the correlations between channels."""
    channels = x.shape[-1]
    n = x.size // channels
    if channels < 2 or n < 8:
        return jnp.zeros((2,), x.dtype)
    rows = x.reshape(n, channels)
    gram = jnp.einsum("nc,nd->cd", rows, rows, precision="highest")
    squares = jnp.diagonal(gram)
    upper = np.triu_indices(channels, 1)
    z = _fisher(gram[upper], squares[upper[0]], squares[upper[1]], n)
    pairs = len(upper[0])
    log_one = jnp.log(jnp.maximum(2 * jax.scipy.special.ndtr(-jnp.max(jnp.abs(z))), 1e-37))
    log_q = pairs * jnp.log1p(-jnp.exp(jnp.minimum(log_one, -1e-6)))
    log_p = jnp.where(log_one < -16, log_one + float(np.log(pairs)), jnp.log(jnp.maximum(-jnp.expm1(log_q), 1e-30)))
    return jnp.stack([_chi2_score(jnp.sum(z * z), pairs), _score_of_log_tail(log_p, log_q)])
