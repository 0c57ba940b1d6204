r"""The typical set of white noise, as an intersection of confidence sets in several orthogonal domains.

W(g) normalises a direction to norm sqrt(N) and projects it; `project(z)` takes a noise as it is. The projection visits
the domains of `domains.py` in turn and moves the point into the sets of `tiles.py`, again and again, until every
set's largest violation is at most `tolerance` standard deviations, or `max_sweeps` is reached. A domain whose largest
violation is within the tolerance is left alone, so the last sweep moves nothing and verifies one and the same point.

Sorting makes the sets other than convex, and for some inputs sweeps to the bounds themselves go in a circle, a few
hundredths out for ever. From the ninth sweep on what is out goes beyond its bound by another fifth of the tolerance a
sweep, and by more and more from the twentieth on, to the middle of the set at most: all circles that were found end
within some 70 sweeps, nearly all within 35, at about the same cosine.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import as_shape, require_count, require_probability
from ntrk_jax.core import algebra_dtype
from ntrk_jax.tree import derived, is_concrete, pytree, static
from ntrk_jax.typing import Array, Key, Scalar
from ntrk_jax.varying import vary
from ntrk_jax.whitening import domains
from ntrk_jax.whitening.inputs import Prepared, direction, noise_input, require_floating
from ntrk_jax.whitening.tiles import NUM_SETS, Tables, project_domain, tables_for

__all__ = ["TypicalSet", "Whitened"]

_JITTER = 1e-4
_PATIENCE, _FURTHER, _SLOW = 8, 0.2, 12.0
"""After how many sweeps to the bounds to go beyond them, by how many tolerances more each sweep, and how many sweeps
later by more and more."""
_FAINT = 1e-12
"""An array of smaller numbers is swept scaled up to this, since squares of 1e-20 underflow; zeros get jitter alone."""


class Whitened(NamedTuple):
    """A whitened array and how it was reached.

    noise: [*shape]. violation: the largest violation over all sets, in standard deviations, []. sweeps: how many
    sweeps moved something, []. status: bit flags, 0 for a clean run; `NONFINITE_INPUT` if the input was not finite, [].
    """

    noise: Array
    violation: Array
    sweeps: Array
    status: Array


@pytree
class TypicalSet:
    r"""Move an array to where typical Gaussian noise of its shape lies, keeping what it can of its direction.

    In each of several orthogonal domains (value, spectrum, Walsh-Hadamard, channels) the entries are tiled and must
    satisfy

    .. math:: L_{rj} \le Z_{rj} \le U_{rj}, \qquad Z = \mathrm{sort}_0(\mathrm{sort}_1(Y)),

    with the exact quantiles of nested order statistics (`order_statistics`), and likewise for the means and the
    energies of the tiles. White noise passes unchanged (cosine above 0.99999 from about a
    thousand entries on; fewer entries lose a little more).

    Attributes:
        shape: shape of one sample: [d], [H, W, C], [T, H, W, C] or [L, C]; any number of entries N >= 1.
        confidence: probability, in (0, 1), that white noise meets the intervals of one rank in all sets at once; each
            single interval has 1 - confidence divided by the number of sets (five a domain).
        tolerance: largest violation at which the sweeps stop, in standard deviations.
        max_sweeps: cap on the number of sweeps.
        relax: over-relaxation of each move, in [1, 2); 1 goes to the bound itself.

    Shapes: [*shape] -> [*shape], the dtype kept, computed in float32 or wider.
    Cost per step: model 0; per sweep and domain two sorts of N numbers and one transform. The tables, some 65 bytes an
        entry, lie on the host: on an accelerator `jax.device_put(W)` once spares their transfer at every call.
    Density: a deterministic map given the key.
    Ties: entries of a transform that are equal up to rounding are put in order by a keyed jitter of 1e-4. Where many
        are, as of an exact ramp, rounding may still decide, and another scale or size of the batch then moves the
        output by up to some per cent.
        Of a gradient with few large coefficients (smooth, constant, one-hot) most of the output is keyed noise, which
        the sets ask for: with two keys it has hardly more in common than its direction.
    Derivatives: forward mode only (`jax.jvp`); the sweeps are a loop of unknown length, which reverse mode refuses. To
        differentiate a run backwards take `UnitNorm`, or stop the gradient at the look.
    Departs from the paper: the paper names the domains (Fourier) but not their list, tiles, order or number of sweeps;
        these are ours, as are the total mean and energy, the jitter that breaks ties, the stopping rule, the steps
        beyond a bound after eight sweeps and that the sets share 1 - confidence.

    References:
        Hwang et al., "NoiseTilt: Noise-Tilted Reverse Kernels for Diffusion Reward Alignment", 2026,
        arXiv:2606.18066, the whitening operator.

    Example:
        >>> import jax
        >>> W = TypicalSet((16, 16, 3))
        >>> out = W.detailed(jax.numpy.ones((16, 16, 3)))
        >>> bool(out.violation <= 0.01), out.noise.shape
        (True, (16, 16, 3))
    """

    shape: tuple[int, ...] = static()
    confidence: float = static(default=0.9999)
    tolerance: Scalar = 0.01
    max_sweeps: int = static(default=100)
    relax: float = static(default=1.0)
    tables: Any = derived()

    def __post_init__(self) -> None:
        """Check the fields and make the tables."""
        shape = as_shape(self.shape)
        object.__setattr__(self, "shape", shape)
        if not shape or min(shape) < 1:
            raise ValueError(f"TypicalSet needs a shape with sides of at least 1, got {shape}; pass e.g. (64, 64, 4).")
        require_probability("confidence of TypicalSet", self.confidence)
        require_count(max_sweeps=self.max_sweeps)
        if is_concrete(self.tolerance) and not bool(np.all(np.asarray(self.tolerance) > 0)):
            raise ValueError(f"TypicalSet needs tolerance > 0, got {self.tolerance}; 0.01 is usual.")
        if not 1.0 <= self.relax < 2.0:
            raise ValueError(f"TypicalSet needs 1 <= relax < 2, got {self.relax}; 1 goes to the bound itself.")
        size = domains.tile_size(int(np.prod(shape, dtype=np.int64)))
        names = domains.domain_names(shape)
        each = 1.0 - (1.0 - float(self.confidence)) / (NUM_SETS * len(names))
        object.__setattr__(self, "tables", tuple(tables_for(n, shape, each, size) for n in names))

    def __call__(self, g: Array, key: Key | None = None) -> Array:
        """A direction of any scale, [*shape]: normalised to norm sqrt(N), then projected."""
        return self.detailed(g, key).noise

    def project(self, z: Array, key: Key | None = None) -> Array:
        """A noise, perhaps biased, [*shape]: moved to the typical set; returned as it is where it is typical."""
        return self.detailed_project(z, key).noise

    def detailed(self, g: Array, key: Key | None = None) -> Whitened:
        """`W(g)` together with the largest violation, the number of sweeps and the status bits."""
        self.check(g)
        out = self.finish(direction(g, key))
        return out._replace(noise=out.noise.astype(jnp.asarray(g).dtype))

    def detailed_project(self, z: Array, key: Key | None = None) -> Whitened:
        """`W.project(z)` together with the largest violation, the number of sweeps and the status bits."""
        self.check(z)
        out = self.finish(noise_input(z, key))
        return out._replace(noise=out.noise.astype(jnp.asarray(z).dtype))

    def violation(self, z: Array) -> Array:
        """The largest violation over all sets of z [*shape], in standard deviations, []."""
        self.check(z)
        z = jnp.asarray(z)
        return _violation(self, z.astype(algebra_dtype(z)))

    def check(self, x: Array) -> None:
        """Refuse an array of another shape, or of whole numbers."""
        require_floating(x)
        if jnp.shape(x) != self.shape:
            raise ValueError(f"TypicalSet was built for shape {self.shape}, got {jnp.shape(x)}; vmap over a batch.")

    def domains(self) -> list[tuple[str, Tables]]:
        """Each domain's name and tables."""
        return list(zip(domains.domain_names(self.shape), self.tables, strict=True))

    def _sweep(self, x: Array, done: Array) -> tuple[Array, Array]:
        """One visit to each domain after `done` sweeps: (the moved point, the largest violation met)."""
        late = jnp.maximum(done - _PATIENCE + 1, 0).astype(x.dtype)
        beyond = _FURTHER * jnp.asarray(self.tolerance, x.dtype) * late * jnp.maximum(late / _SLOW, 1.0)
        worst = jnp.zeros((), x.dtype)
        for name, table in self.domains():
            y = domains.forward(name, x)
            moved, bad = project_domain(y, table, self.relax, beyond)
            x = jnp.where(bad > jnp.asarray(self.tolerance, x.dtype), domains.inverse(name, moved), x)
            worst = jnp.maximum(worst, bad)
        return x, worst

    def sweep(self, x: Array) -> tuple[Array, Array, Array]:
        """Sweep x [*shape] until nothing is violated: (point, largest violation, number of moving sweeps)."""
        tolerance = jnp.asarray(self.tolerance, x.dtype)

        def go_on(carry: tuple[Array, Array, Array]) -> Array:
            return (carry[1] > tolerance) & (carry[2] < self.max_sweeps)

        def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            moved, worst = self._sweep(carry[0], carry[2])
            return moved, worst, carry[2] + 1

        start = (x, jnp.asarray(jnp.inf, x.dtype), jnp.zeros((), jnp.int32))
        return jax.lax.while_loop(go_on, body, vary(start, (self, x)))

    def finish(self, given: Prepared) -> Whitened:
        """Break ties and sweep a prepared input; one that nothing moves is returned as it is."""
        return _finish(self, given)


@jax.jit
def _finish(sets: TypicalSet, given: Prepared) -> Whitened:
    top = jnp.max(jnp.abs(given.values))
    tiny = (top > 0) & (top < _FAINT)
    values = given.values * jnp.where(tiny, _FAINT / jnp.where(tiny, top, 1.0), 1.0).astype(top.dtype)
    rms = jnp.sqrt(jnp.mean(values**2))
    jitter = _JITTER * jnp.where(top > 0, jnp.minimum(rms, 1.0), 1.0) * given.noise
    x, worst, sweeps = sets.sweep(values + jitter)
    x = jnp.where(sweeps > 1, x, given.values)
    return Whitened(x, worst, sweeps - 1, given.status)


@jax.jit
def _violation(sets: TypicalSet, z: Array) -> Array:
    return jnp.max(jnp.stack([project_domain(domains.forward(n, z), t, 1.0)[1] for n, t in sets.domains()]))
