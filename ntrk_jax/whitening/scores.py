r"""Normal scores: a statistic of white noise, turned into a number that is N(0, 1), exactly or nearly, by its null law.

- sums of squares of n orthonormal coefficients are chi2_n: z = ((s/n)^(1/3) - 1 + 2/(9n)) / sqrt(2/(9n))
  (Wilson and Hilferty);
- correlations r of two strips of n numbers of known mean: r sqrt(v / (1 - r^2)) is Student's t with v = n - 1 degrees
  of freedom, whose normal score is sign(r) (8v + 1) / (8v + 3) sqrt(-v log(1 - r^2)) (Wallace), good from v = 2 on;
- skewness and kurtosis: the transformations of D'Agostino (1970) and of Anscombe and Glynn (1983);
- Kolmogorov-Smirnov and the largest of K: the p-value p of the null law, z = -Phi^-1(p).

The last two are not smooth; `ks_interval` and `peak_amplitudes` say what a bound on the score allows instead.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc, ndtr, ndtri

from ntrk_jax.typing import Array
from ntrk_jax.whitening.sorting import sort_values

__all__ = [
    "chi2_score", "correlation_score", "ks_interval", "ks_score", "largest_score", "log_two_sided", "peak_amplitudes",
    "shape_scores",
]  # fmt: skip


def chi2_score(total: Array, dof: float | np.ndarray) -> Array:
    """The normal score of a chi2 with dof degrees of freedom (Wilson and Hilferty)."""
    dof = np.asarray(dof, np.float64)
    spread = 2.0 / (9.0 * dof)
    scale, middle, width = (jnp.asarray(a, total.dtype) for a in (1.0 / dof, 1.0 - spread, np.sqrt(spread)))
    return (jnp.cbrt(total * scale) - middle) / width


def correlation_score(dot: Array, squares_a: Array, squares_b: Array, count: np.ndarray) -> Array:
    """The normal score of an uncentred correlation of `count` pairs, [..., k]."""
    tiny = jnp.asarray(1e-30, dot.dtype)
    r = dot * jax.lax.rsqrt(jnp.maximum(squares_a, tiny)) * jax.lax.rsqrt(jnp.maximum(squares_b, tiny))
    dof = count - 1.0
    width = jnp.asarray(np.broadcast_to(np.sqrt(dof) * (8.0 * dof + 1.0) / (8.0 * dof + 3.0), r.shape), dot.dtype)
    square = jnp.clip(r * r, 1e-12, 0.999999)
    return r * jnp.sqrt(-jnp.log1p(-square) / square) * width


def shape_scores(flat: Array) -> Array:
    """The normal scores of sample skewness and kurtosis of [n], [2]."""
    n = float(flat.shape[0])
    if n < 20:
        return jnp.zeros((2,), flat.dtype)
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
    a = float(6 + 8 / third * (2 / third + np.sqrt(1 + 4 / third**2)))
    ratio = (1 - 2 / a) / (1 + (kurt - float(mean)) * float(np.sqrt(2 / ((a - 4) * var))))
    kurt_z = (1 - 2 / (9 * a) - jnp.cbrt(ratio)) / float(np.sqrt(2 / (9 * a)))
    return jnp.stack([skew_z, jnp.where(ratio > 0, kurt_z, -30.0)])


def log_two_sided(z: Array) -> Array:
    """Logarithm of P(|normal| > z) for z >= 0, also where it underflows."""
    half = z * float(np.sqrt(0.5))
    far = -(half**2) - jnp.log(jnp.maximum(half, 1.0) * float(np.sqrt(np.pi)))
    return jnp.where(half < 5, jnp.log(jnp.maximum(erfc(jnp.minimum(half, 5.0)), 1e-30)), far)


def largest_score(log_tail: Array, num: float) -> Array:
    """The normal score of the largest of `num` independent statistics, from the log of its own tail probability."""
    log_q = num * jnp.log1p(-jnp.exp(jnp.minimum(log_tail, -1e-6)))
    common = jnp.log(jnp.maximum(-jnp.expm1(log_q), 1e-30))
    return _score_of_log_tail(jnp.where(log_tail < -16, log_tail + float(np.log(num)), common), log_q)


def _score_of_log_tail(log_p: Array, log_q: Array) -> Array:
    """-Phi^-1(p) from log p and log(1 - p), also where p underflows."""
    far = jnp.minimum(log_p, -40.0)
    z = jnp.sqrt(-2.0 * far)
    for _ in range(4):
        z = jnp.sqrt(-2.0 * (far + jnp.log(z) + 0.5 * float(np.log(2 * np.pi))))
    lower = log_p < log_q
    near = ndtri(jnp.maximum(jnp.exp(jnp.where(lower, log_p, log_q)), jnp.asarray(1e-30, log_p.dtype)))
    return jnp.where(log_p < -40.0, z, jnp.where(lower, -near, near))


def ks_score(flat: Array) -> Array:
    """The normal score of the Kolmogorov-Smirnov distance of [n] to N(0, 1)."""
    n = flat.shape[0]
    if n < 8:
        return jnp.zeros((), flat.dtype)
    cdf = ndtr(sort_values(flat))
    i = jnp.arange(n, dtype=flat.dtype)
    distance = jnp.maximum(jnp.max((i + 1) / n - cdf), jnp.max(cdf - i / n))
    lam = distance * _stephens(n)
    k = jnp.arange(1, 12, dtype=flat.dtype)
    small = jnp.sum(jnp.exp(-((2 * k - 1) ** 2) * float(np.pi**2 / 8) / lam**2)) * float(np.sqrt(2 * np.pi)) / lam
    sign = jnp.where(k % 2 == 1, 1.0, -1.0).astype(flat.dtype)
    tail = 2 * jnp.sum(sign * jnp.exp(-2 * (k * k - 1) * lam**2))
    log_p = jnp.where(lam > 1, jnp.log(jnp.maximum(tail, 1e-30)) - 2 * lam**2, jnp.log1p(-jnp.minimum(small, 0.999)))
    log_q = jnp.where(lam > 1, jnp.log1p(-jnp.exp(jnp.minimum(log_p, -1e-6))), jnp.log(jnp.maximum(small, 1e-30)))
    return _score_of_log_tail(log_p, log_q)


def _stephens(n: int) -> float:
    return float(np.sqrt(n) + 0.12 + 0.11 / np.sqrt(n))


def ks_interval(limit: Array, n: int) -> tuple[Array, Array]:
    """Where the sorted numbers may lie for a Kolmogorov-Smirnov score of at most limit >= 1: (lower, upper), [n]."""
    p = 0.5 * erfc(limit * float(np.sqrt(0.5)))
    distance = jnp.sqrt(0.5 * jnp.log(2.0 / p)) / _stephens(n)
    level = jnp.arange(1, n + 1, dtype=limit.dtype) / n - distance
    lower = jnp.where(level > 0, ndtri(jnp.clip(level, 1e-7, 1 - 1e-7)), -jnp.inf)
    return lower, -lower[::-1]


def peak_amplitudes(limit: Array, num: float) -> tuple[Array, Array]:
    """Between which amplitudes the largest of `num` Rayleigh numbers lies for a score between -limit and limit."""
    log_p = jnp.log(0.5 * erfc(limit * float(np.sqrt(0.5))))
    low = jnp.sqrt(2.0 * jnp.maximum(float(np.log(num)) - jnp.log(-log_p), 0.0))
    return low, jnp.sqrt(2.0 * (float(np.log(num)) - log_p))
