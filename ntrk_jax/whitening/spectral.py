r"""White Gaussian noise constraints in the spectrum (WGNC): block-wise l1 and l2 norms of the compact spectrum.

The orthonormal DFT of a flattened real array of even size N, with its two real coefficients joined,

    y_0 = (F_0 + i F_{N/2}) / sqrt(2),   y_k = F_k for 1 <= k < N/2,      |x|^2 = 2 |y|^2,

is complex white noise exactly when x is white noise. Consecutive y in blocks of B must have |y|_1 = sqrt(pi)/2 B and
|y|_2^2 = B, their expected values. The nearest such block keeps the phases and soft-thresholds the magnitudes: with
S1, S2 the sums of the k largest magnitudes and of their squares,

    lam_k = S1/k - sqrt(pi/4) (sqrt(B)/k) sqrt((k S2 - S1^2) / (k - pi B / 4)),

at the k for which exactly k magnitudes exceed lam_k, then |y| -> sqrt(pi)/2 B relu(|y| - lam) / (S1 - k lam). A shift
of all magnitudes shifts lam alike, so their mean is taken off first: of nearly equal ones k S2 - S1^2 keeps its digits.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import require_count
from ntrk_jax.core import fused, root
from ntrk_jax.tree import pytree, static
from ntrk_jax.typing import Array, Key
from ntrk_jax.whitening.inputs import Prepared, direction, noise_input
from ntrk_jax.whitening.pointwise import UnitNorm

__all__ = ["Spectral"]

_MEAN = 3.8906
"""|z| of a standard normal number with probability 0.9999."""


def _compact(x: Array) -> tuple[Array, Array]:
    """[N] real -> ([N // 2] complex, the leftover real coefficient of an odd N [] or 0)."""
    n = x.shape[0]
    f = jnp.fft.rfft(x, norm="ortho")
    if n % 2:
        return f[1:], jnp.real(f[0])
    first = jax.lax.complex(jnp.real(f[0]), jnp.real(f[-1])) * jnp.asarray(np.sqrt(0.5), f.dtype)
    return f.at[0].set(first)[:-1], jnp.zeros((), x.dtype)


def _expand(y: Array, left: Array, n: int) -> Array:
    """The inverse of `_compact`."""
    if n % 2:
        return jnp.fft.irfft(jnp.concatenate([jax.lax.complex(left, jnp.zeros_like(left))[None], y]), n, norm="ortho")
    root = float(np.sqrt(2.0))
    ends = jnp.stack([jnp.real(y[0]), jnp.imag(y[0])]) * root
    ends = jax.lax.complex(ends, jnp.zeros_like(ends))
    return jnp.fft.irfft(jnp.concatenate([ends[:1], y[1:], ends[1:]]), n, norm="ortho")


@jax.jit
def _project_block(w: Array, inside: Array) -> Array:
    """Magnitudes w [B'] >= 0, of which `inside` [B'] count, to the nearest with the expected l1 and l2 norms."""
    size = jnp.sum(inside).astype(w.dtype)
    mean = jnp.sum(jnp.where(inside, w, 0.0)) / size
    w = jnp.where(inside, w - mean, 0.0)
    s = jnp.sort(jnp.where(inside, w, -jnp.inf))[::-1]
    s = jnp.where(jnp.isfinite(s), s, 0.0)
    k = jnp.arange(1, w.shape[0] + 1, dtype=w.dtype)
    s1, s2 = jnp.cumsum(s), jnp.cumsum(s * s)
    room = k - float(np.pi / 4) * size
    inner = jnp.maximum(k * s2 - s1 * s1, 0.0) / jnp.where(room > 0, room, 1.0)
    lam = s1 / k - float(np.sqrt(np.pi / 4)) * root(size * inner) / k
    below = jnp.concatenate([s[1:], jnp.full((1,), -jnp.inf, w.dtype)])
    below = jnp.where(k >= size, -jnp.inf, below)
    fits = (room > 0) & (k <= size) & (lam < s) & (lam >= below)
    lam = jnp.where(jnp.any(fits), lam[jnp.argmax(fits)], -mean)
    raised = jnp.where(inside, jnp.maximum(w - lam, 0.0), 0.0)
    target = float(np.sqrt(np.pi) / 2) * size
    return raised * target / jnp.maximum(jnp.sum(raised), 1e-30)


@pytree
class Spectral:
    r"""Project onto white-noise constraints on the power spectrum (WGNC).

    Every block of `block` consecutive Fourier coefficients gets the l1 and l2 norms that white noise has on average,
    phases untouched. Blind to concentration in space, and an equality constraint: white noise itself moves by 1 %.

    Attributes:
        block: coefficients in a block; the last blocks are balanced when it does not divide N / 2.

    Shapes: any [*shape] -> [*shape], N >= 1 (N of 4 or more for the constraints to bind; below it only the norm).
    Cost per step: model 0, one FFT there and back, one short sort per block.
    Density: deterministic given the key.
    Departs from the paper: sizes that 2 * block does not divide are served by balanced blocks, the mean of an odd N,
        which belongs to no block, is clipped to where 9999 of 10000 white noises have theirs, and magnitudes that tie
        are separated by a keyed jitter.

    References:
        KAIST Visual AI Group, "GPER", ICML 2026, arXiv:2602.08646, the white Gaussian noise constraint.

    Example:
        >>> import jax
        >>> g = jax.random.normal(jax.random.key(0), (16, 16))
        >>> w = Spectral().project(g)
        >>> bool(abs((w**2).mean() - 1) < 1e-5)
        True
    """

    block: int = static(default=16)

    def __post_init__(self) -> None:
        """Refuse an empty block."""
        require_count(2, **{"block of Spectral, which serves any shape,": self.block})

    def __call__(self, g: Array, key: Key | None = None) -> Array:
        """A direction of any scale, [*shape]: normalised, then projected."""
        return self._project(direction(g, key)).astype(jnp.asarray(g).dtype)

    def project(self, z: Array, key: Key | None = None) -> Array:
        """A noise [*shape]: the nearest array whose spectrum meets the constraints."""
        return self._project(noise_input(z, key)).astype(jnp.asarray(z).dtype)

    @fused
    def _project(self, given: Prepared) -> Array:
        x = given.values.reshape(-1)
        n = x.shape[0]
        if n < 4:
            return UnitNorm().project(given.values, given.key)
        rms = jnp.sqrt(jnp.mean(x * x))
        x = x + 1e-5 * jnp.where(rms > 0, jnp.minimum(rms, 1.0), 1.0) * given.noise.reshape(-1)
        y, left = _compact(x)
        left = jnp.clip(left, -_MEAN, _MEAN)
        pieces = np.array_split(np.arange(y.shape[0]), max(1, y.shape[0] // self.block))
        width = max(len(p) for p in pieces)
        place = np.array([np.pad(p, (0, width - len(p)), constant_values=p[-1]) for p in pieces])
        inside = np.array([np.arange(width) < len(p) for p in pieces])
        w = jnp.abs(y)
        new = jax.vmap(_project_block)(w[place], jnp.asarray(inside))
        flat = new.reshape(-1)[np.flatnonzero(inside.ravel())]
        phase = y / jnp.maximum(w, 1e-30).astype(y.dtype)
        return _expand(phase * flat.astype(y.dtype), left, n).astype(x.dtype).reshape(given.values.shape)
