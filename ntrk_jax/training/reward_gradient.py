r"""DRaFT and AlignProp: the reward's gradient through the sampler itself.

    loss(theta) = -r(x_0^theta),     x_0^theta the end of a path of the sampler with weights theta

The gradient goes back through the path, through all rows or through the last few; rows before those are walked with the
weights as they are, at no memory. A row's activations are computed again in the backward pass (`jax.checkpoint`): what
is kept for it is the states of the path, and the network's layers on one row.

| loss | rows with a gradient | model calls | model gradients |
|---|---|---|---|
| `DRaFT(num_live=None)` | all T | T (and T again where rematerialised) | T |
| `DRaFT(num_live=K)` | the last K | T + 1 (and K again) | K |
| `DRaFT(num_live=1, num_copies=n)` | the last, from n renoised copies of the end | T + n (and n again) | n |
| `AlignProp` | a random number of the last rows | T (and T again) | T |

None has the tilted law as its optimum: expected reward alone is maximised, by a law that sits on the reward's maxima.
What keeps the base's variety is stopping early, or a penalty of one's own.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import require_count
from ntrk_jax.core import Info, Kernel, Sampler, State, Step, Stream
from ntrk_jax.kernels import DDIM
from ntrk_jax.look import Look
from ntrk_jax.models import FlaxDenoiser
from ntrk_jax.run import resume, run
from ntrk_jax.samplers import Single
from ntrk_jax.training.paths import Rematerialised, walk, with_params
from ntrk_jax.tree import is_concrete, pytree, static
from ntrk_jax.typing import Array, Key, PyTree, Sample, Scalar

__all__ = ["AlignProp", "DRaFT"]


@pytree
class DRaFT:
    """Minus the reward at the end of the model's own path, differentiated through its last rows.

    Attributes:
        model: a `FlaxDenoiser` or another denoiser with `variables`. reward: differentiable. steps: the path's grid.
        kernel: of the sampler; `DDIM(0.0)` is deterministic.
        num_live: K, the last rows that carry a gradient (DRaFT-K), or None for all of them (DRaFT).
        num_copies: n > 0 is DRaFT-LV, for num_live=1: the end is noised to the last row's level n times, and the loss
            is the mean over the n last rows from there, whose gradient varies less.
        remat: whether to compute a row's activations again in the backward pass instead of keeping them.

    Optimum: the maximiser of the expected reward (mode seeking), not the tilted law.
    Shapes: loss(key, params, noise [*shape]) -> []; noise is a draw of the start, sigma times N(0, I).
    Cost: see the module. One reward gradient (n with copies).
    Errors: ValueError for num_live or num_copies out of range, or a reward without gradient.
    Departs from the paper: any schedule and kernel; the weights are all of the model's, not low-rank additions.
    References: Clark et al. 2023, arXiv:2309.17400, Algorithms 1 and 2.

    Example:
        >>> import jax, jax.numpy as jnp, ntrk_jax as nk
        >>> path = nk.schedules.RectifiedFlow()
        >>> model = nk.models.FlaxDenoiser(lambda w, x, t: w + 0.5 * x, "x0", jnp.array(0.0), path)
        >>> loss = DRaFT(model, nk.rewards.Linear(jnp.ones(2)), nk.grid(path, nk.grids.uniform(4)), num_live=1)
        >>> float(jax.grad(loss, argnums=1)(jax.random.key(0), jnp.array(0.0), jnp.ones(2)))
        -2.0
    """

    model: FlaxDenoiser
    reward: Any
    steps: Step
    kernel: Kernel = DDIM(1.0)
    num_live: int | None = static(default=None)
    num_copies: int = static(default=0)
    remat: bool = static(default=True)

    def __post_init__(self) -> None:
        """Refuse counts that mean nothing and rewards without a gradient."""
        rows = self.steps.num_steps
        require_count(0, num_copies=self.num_copies)
        require_count(num_live=rows if self.num_live is None else self.num_live)
        if self.num_live is not None and not 1 <= self.num_live <= rows:
            raise ValueError(f"num_live must be between 1 and {rows}, the rows of the grid, got {self.num_live}.")
        if self.num_copies and self.num_live != 1:
            raise ValueError(f"num_copies needs num_live=1, got num_live={self.num_live}.")
        _require_gradient("DRaFT", self.reward)

    def __call__(self, key: Key, params: PyTree, noise: Sample) -> Array:
        """Minus the reward of one path."""
        live = _sampler(self, params)
        frozen = with_params(self.model, params, frozen=True)
        if self.num_live in (None, self.steps.num_steps) and not self.num_copies:
            return -run(live, key, noise, self.steps)[0].look.value
        start = self.steps.num_steps - (self.num_live or 0)
        if not self.num_copies:
            x = walk(frozen, self.kernel, key, noise, self.steps.rows(0, start))[-1]
            return -self._last(live, key, x, start)
        end = walk(frozen, self.kernel, key, noise, self.steps)[-1]
        alpha, sigma = (jnp.asarray(a, end.dtype) for a in (self.steps.alpha_t[-1], self.steps.sigma_t[-1]))

        def copy(key: Key) -> Array:
            noise_key, end_key = jax.random.split(key)
            x = alpha * end + sigma * jax.random.normal(noise_key, end.shape, end.dtype)
            return self._last(live, end_key, x, start)

        return -jnp.mean(jax.vmap(copy)(jax.random.split(jax.random.fold_in(key, Stream.SELECT), self.num_copies)))

    def _last(self, live: Sampler, key: Key, x: Sample, start: int) -> Array:
        """The reward at the end of the rows from `start` on, from x."""
        rows = self.steps.rows(start)
        state = live.init(jax.random.fold_in(key, Stream.INIT), x, jax.tree.map(lambda a: a[0], rows))
        return resume(live, key, state, rows, start=start)[0].look.value


@pytree
class AlignProp:
    """Minus the reward at the end of the model's own path, differentiated through a random number of its last rows.

        K = clip(round(N(share, spread) T), 1, T)

    Attributes:
        model, reward, steps, kernel, remat: as in `DRaFT`.
        share, spread: mean and standard deviation of the share of the rows that carry a gradient; published, 42 and 5
            of 50 rows.

    Optimum: the maximiser of the expected reward (mode seeking), not the tilted law; the random truncation biases the
        gradient towards the last rows.
    Shapes: loss(key, params, noise [*shape]) -> [].
    Cost: num_steps NFE (and again where rematerialised) and as many model gradients, of which the truncated ones are
        zero: the number of rows is an array. `DRaFT(num_live=K)` saves them where K is fixed. One reward gradient.
    Errors: ValueError for a share outside (0, 1], a negative spread, or a reward without gradient.
    Departs from the paper: as `DRaFT`; no coefficient on the loss, which the learning rate takes up.
    References: Prabhudesai et al. 2023, arXiv:2310.03739.
    """

    model: FlaxDenoiser
    reward: Any
    steps: Step
    kernel: Kernel = DDIM(1.0)
    share: Scalar = 0.84
    spread: Scalar = 0.1
    remat: bool = static(default=True)

    def __post_init__(self) -> None:
        """Refuse shares that mean nothing and rewards without a gradient."""
        known = is_concrete(self.share) and is_concrete(self.spread)
        share, spread = (np.asarray(self.share), np.asarray(self.spread)) if known else (1.0, 0.0)
        if not np.all((share > 0) & (share <= 1) & (spread >= 0)):
            raise ValueError(f"share must lie in (0, 1] and spread be at least 0, got {self.share} and {self.spread}.")
        _require_gradient("AlignProp", self.reward)

    def __call__(self, key: Key, params: PyTree, noise: Sample) -> Array:
        """Minus the reward of one path, of which a random part is differentiated."""
        num, cut_key = self.steps.num_steps, jax.random.fold_in(key, Stream.SELECT)
        drawn = jnp.asarray(self.share + self.spread * jax.random.normal(cut_key), jnp.float32)
        live = jnp.clip(jnp.round(num * drawn), 1, num).astype(jnp.int32)
        sampler = Truncated(_sampler(self, params), self.steps.t[num - live])
        return -run(sampler, key, noise, self.steps)[0].look.value


@pytree
class Truncated:
    """A sampler through which no gradient goes at times above `cut`.

    Attributes:
        sampler: any sampler whose state has a look. cut: [].
    """

    sampler: Sampler
    cut: Scalar

    def init(self, key: Key, x: Sample, first: Step) -> State:
        """As the sampler's."""
        return self.sampler.init(key, x, first)

    def step(self, key: Key, state: State, step: Step) -> tuple[State, Info]:
        """The sampler's step, from a look held fixed while t > cut."""
        early = step.t > self.cut
        look = jax.tree.map(lambda a: jnp.where(early, jax.lax.stop_gradient(a), a), state.look)
        return self.sampler.step(key, state._replace(look=look), step)


def _sampler(loss: Any, params: PyTree) -> Sampler:
    """The sampler with the weights in training; the value of its last look is the reward."""
    sampler = Single(Look(with_params(loss.model, params), loss.reward), loss.kernel)
    return Rematerialised(sampler) if loss.remat else sampler


def _require_gradient(name: str, reward: Any) -> None:
    if not getattr(reward, "differentiable", True):
        raise ValueError(f"{name} needs a differentiable reward, got {type(reward).__name__}; use PolicyGradient.")
