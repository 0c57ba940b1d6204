r"""How typical is an array as a draw of N(0, I)? A battery of z-scores, each standard normal for white noise.

Every statistic is turned into a normal score through its null law, so that |z| <= 5 means the same for all of them:

- sums of squares of orthonormal coefficients are chi2: z = ((s/n)^(1/3) - 1 + 2/(9n)) / sqrt(2/(9n)), by Wilson
  and Hilferty;
- correlations r of two strips of n numbers of known mean: Student's t, turned into a normal score by Wallace's formula;
- skewness and kurtosis: D'Agostino (1970) and Anscombe and Glynn (1983);
- Kolmogorov-Smirnov and the largest of K: the p-value p of the null law, z = -Phi^-1(p).

A statistic for which the array has too few entries is left out, or 0 where it is a single number.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from ntrk_jax.typing import Array
from ntrk_jax.whitening.battery import battery, with_channels

__all__ = ["Typicality", "typicality"]


class Typicality(NamedTuple):
    """z-scores, each about N(0, 1) for white noise.

    mean, variance, skewness, kurtosis, ks: [] each (ks: large means far from the normal law).
    autocorrelation, autocorrelation_abs: of x and of |x|, lags 1 to 8 along every axis, [k].
    spectrum: power in rings of frequencies and in unions of neighbouring rings, all channels together first, then
    channel by channel, [k]. peak: the largest Fourier coefficient, []. tiles: spread of tile energies at sides 2, 4, 8,
    16, 32, over the tiles of single channels and of all together, [k].
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
        """The largest |z| over the whole battery, []; infinite where a score is not finite. One a batch element."""
        lead = jnp.shape(self.mean)
        scores = jnp.abs(jnp.concatenate([jnp.reshape(z, (*lead, -1)) for z in self], axis=-1))
        return jnp.max(jnp.where(jnp.isfinite(scores), scores, jnp.inf), axis=-1)


def typicality(x: Array) -> Typicality:
    """z-scores of an array [*shape] as a draw of standard normal noise; jit- and vmappable.

    The last axis of an array of two or more axes holds channels, the others are space (or time, or token number).

    Cost: one sort, one FFT and a few passes over the array.

    Raises:
        ValueError: if the array is empty.

    References: Wilson and Hilferty 1931; Wallace 1959; D'Agostino 1970; Anscombe and Glynn 1983; Stephens 1970.

    Example:
        >>> import jax
        >>> noise = jax.random.normal(jax.random.key(0), (8,))
        >>> battery = jax.jit(typicality)
        >>> bool(battery(noise).largest < 5), bool(battery(9 * noise).largest > 5)
        (True, True)
    """
    if not jnp.size(x):
        raise ValueError(f"typicality needs at least one number, got an array of shape {jnp.shape(x)}.")
    return Typicality(**battery(with_channels(x)))
