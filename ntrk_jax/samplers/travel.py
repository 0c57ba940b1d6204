r"""Time travel: within a window of times each row of the grid is walked several times.

    x_s ~ kernel(x_t),   x_t ~ N((alpha_t / alpha_s) x_s, (sigma_t^2 - (alpha_t sigma_s / alpha_s)^2) I),   x_s ~ ...

The second draw is the forward process from s back to t: for an exact unguided sampler the law of x_t stays what it was;
a guided one gets more steps against the same noise level, and the noise put back heals what guidance broke.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import require_times
from ntrk_jax.core import Evals, Info, Lookahead, State, Step, Stream
from ntrk_jax.move import in_algebra, move
from ntrk_jax.samplers.single import Single
from ntrk_jax.tree import is_concrete, pytree
from ntrk_jax.typing import Array, Key, Sample, Scalar
from ntrk_jax.varying import vary

__all__ = ["Travel"]

_TRAVEL, _NOISE = 0x80000010, 0x80000011  # tags of this sampler's own random streams


@pytree
class Travel:
    """A `Single` whose rows with low < t <= high are walked `repeats` times, re-noised in between.

    FreeDoM's time travel, universal guidance's and TFG's recurrence. One pass is the sampler itself.

    Attributes:
        sampler: the `Single` that is repeated.
        repeats: how often a row is walked, at least 1; a leaf, so that another number compiles nothing.
        low, high: the window of times in [0, 1].

    Shapes: x [*shape]. `state.log_weights` is 0: the path that is kept is no draw of a kernel with a density.
    Cost per step: `repeats` times the sampler's inside the window, the sampler's outside; counted in `state.evals`.
    Density: none (`exact` is False).
    Derivatives: forward mode only (`jax.jvp`), as the number of passes is a leaf and the loop over them of unknown
        length; the `Single` itself is differentiated both ways.
    Errors: TypeError for another sampler than `Single`; ValueError for repeats below 1 and an empty window.
    Departs from the papers: nothing; the forward kernel is written for any (alpha, sigma).
    References: Yu et al. 2023 (FreeDoM), arXiv:2303.09833, Algorithm 2; Bansal et al. 2023, arXiv:2302.07121.

    Example:
        >>> import jax, jax.numpy as jnp, ntrk_jax as nk
        >>> sampler = nk.samplers.Travel(nk.Single(nk.Look(lambda x, t: 0.5 * x), nk.kernels.DDIM()), repeats=3)
        >>> steps = nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(4))
        >>> int(nk.run(sampler, jax.random.key(0), jnp.ones(2), steps)[0].evals.model)
        12
    """

    sampler: Single
    repeats: Scalar = 2
    low: Scalar = 0.0
    high: Scalar = 1.0

    exact = False

    def __post_init__(self) -> None:
        """Refuse what cannot be repeated."""
        if not isinstance(self.sampler, Single):
            raise TypeError(f"Travel repeats the steps of a Single, got {type(self.sampler).__name__}.")
        if is_concrete(self.repeats) and not np.all(np.asarray(self.repeats) >= 1):
            raise ValueError(f"repeats must be at least 1, got {self.repeats}.")
        require_times(self.low, self.high)

    @property
    def look(self) -> Any:
        """The sampler's look."""
        return self.sampler.look

    def init(self, key: Key, x: Sample, first: Step) -> State:
        """The look at the initial noise."""
        return self.sampler.init(key, x, first)

    def step(self, key: Key, state: State, step: Step) -> tuple[State, Info]:
        """There and back, repeats - 1 times, then the sampler's own step."""
        inside = (step.t > self.low) & (step.t <= self.high)
        again = jnp.where(inside, jnp.asarray(self.repeats, jnp.int32) - 1, 0)
        keys = jax.random.fold_in(key, _TRAVEL)

        def there_and_back(i: Array, carry: tuple) -> tuple:
            look, evals, status = carry
            look, spent, bits = self._again(jax.random.fold_in(keys, i), look, step)
            return look, evals + spent, status | bits

        start = vary((state.look, Evals().as_arrays(), jnp.int32(0)), (key, state, step))
        look, spent, bits = jax.lax.fori_loop(0, again, there_and_back, start)
        after, info = self.sampler.step(key, state._replace(look=look), step)
        zero = jnp.zeros_like(after.log_weights)
        after = after._replace(log_weights=zero, evals=after.evals + spent, status=after.status | bits)
        return after, info._replace(log_ratio=zero, evals=info.evals + spent, status=info.status | bits)

    def _again(self, key: Key, look: Lookahead, step: Step) -> tuple[Lookahead, Evals, Array]:
        """To x_s and back to x_t, and the look there; the look at x_s is left out."""
        sampler = self.sampler
        moved, rule_evals = move(key, look, step, sampler.kernel, sampler.guidance, sampler.look)
        there, row = in_algebra(look._replace(x=moved.x), step)
        keep = row.alpha_t / row.alpha_s
        noise = jnp.sqrt(jnp.maximum(jnp.square(row.sigma_t) - jnp.square(keep * row.sigma_s), 0.0))
        z = jax.random.normal(jax.random.fold_in(key, _NOISE), there.x.shape, there.x.dtype)
        x = (keep * there.x + noise * z).astype(look.x.dtype)
        seen, evals, status = sampler.look(jax.random.fold_in(key, Stream.LOOK), x, step.t)
        return seen, evals + rule_evals, status | moved.status
