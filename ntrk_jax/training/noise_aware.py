r"""A reward that knows how noisy its input is: what the sample will score, said of the Tweedie mean on the way.

    r_t(x0) = r(x0) + correction(x0, t),    correction = argmin E |r(x_0) - r_t(x0_t)|^2 over paths of the sampler,

so that r_t(x0) = E[r(x_0) | x0_t = x0]: the clean reward taught by itself (self-distillation), starting from itself and
ending in it. The Tweedie mean of an undecided path lies between the modes, where the clean reward may be high although
neither mode is good; pruning by it keeps the undecided, pruning by r_t what is going to be good.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from ntrk_jax.core import Reward, Step, algebra_dtype
from ntrk_jax.grids import check_schedule
from ntrk_jax.run import run
from ntrk_jax.training.fit import fit, learning_rate
from ntrk_jax.tree import pytree, static
from ntrk_jax.typing import Array, Key, PyTree, Sample, Scalar

if TYPE_CHECKING:
    import optax

__all__ = ["DistilLoss", "NoiseAware", "Paths", "distil", "reward_paths"]


class Paths(NamedTuple):
    """What a sampler saw on its way, and what came of it: x0 [num, T, *shape], t [num, T], reward [num]."""

    x0: Array
    t: Array
    reward: Array


@pytree
class NoiseAware:
    """The noise-aware reward as a value, for `nk.Look(model, reward, value=...)` and `nk.methods.ttsnap(value=...)`.

        value = r(x0) + scale * correction(x0, t)

    Attributes:
        apply: (params, x0 [*shape], t []) -> []. Static.
        params: of the network. scale: [], the reward's spread.

    Shapes: x0 [*shape] -> [].
    Cost: one call of the network and one of the reward.
    References: Yu et al. 2025 (TTSnap), arXiv:2511.22242.
    """

    apply: Callable[..., Any] = static()
    params: Any = None
    scale: Scalar = 1.0
    needs_x0 = True
    num_rewards = 1

    def __call__(self, key: Key, x: Sample, t: Scalar, x0: Sample, reward: Any) -> Array:
        """r_t(x0), []; the key and x are not used."""
        clean = jnp.asarray(reward(x0))
        return clean + (jnp.asarray(self.scale) * self.apply(self.params, x0, t)).astype(clean.dtype)


@pytree
class DistilLoss:
    """The square of what the noise-aware reward misses at one random row of a path: loss(key, params, path) -> [].

        ((reward of the end - r(x0_t)) / scale - correction(x0_t, t))^2,    t uniform over the rows in [low, high]

    Attributes:
        apply: the correction. Static. reward: x0 -> []. scale: [].
        low, high: which rows are pressed, the cleanest where none lies between; a curriculum raises `high`.

    Cost: one network and one reward evaluation.
    Optimum: E[reward of the end | x0_t], row by row.
    """

    apply: Callable[..., Any] = static()
    reward: Reward
    scale: Scalar = 1.0
    low: Scalar = 0.0
    high: Scalar = 1.0

    def __call__(self, key: Key, params: PyTree, sample: Paths) -> Array:
        """The loss of one path."""
        inside = (sample.t >= self.low) & (sample.t <= self.high)
        cleanest = jnp.arange(sample.t.shape[0]) == jnp.argmin(sample.t)
        inside = jnp.where(jnp.any(inside), inside, cleanest)
        row = jax.random.categorical(key, jnp.where(inside, 0.0, -jnp.inf))
        x0, t = sample.x0[row], sample.t[row]
        dtype = algebra_dtype(x0)
        missed = (sample.reward.astype(dtype) - self.reward(x0).astype(dtype)) / jnp.asarray(self.scale, dtype)
        return jnp.square(missed - self.apply(params, x0, t).astype(dtype))


def reward_paths(key: Key, sampler: Any, steps: Step, shape: tuple[int, ...], num: int, *, batch: int = 256) -> Paths:
    """Run a single-sample sampler and keep the Tweedie means of its paths; the look needs the reward.

    Returns:
        The means after every row but the last, with their times, and the rewards of the ends.

    Cost: num runs; compiles once for samplers that differ in numbers.

    Raises:
        ValueError: for a look without a reward, a grid of one row, or one of another schedule than the model's.
    """
    if steps.num_steps < 2:
        raise ValueError("reward_paths needs a grid of two rows or more: what is kept lies between them.")
    look = getattr(sampler, "look", None)
    if look is not None and look.reward is None and look.value is None:
        raise ValueError("reward_paths keeps the reward of every path's end; give the sampler's Look a reward.")
    check_schedule(sampler, steps)
    x0, reward = _ends(sampler, jax.random.split(key, num), steps, tuple(shape), batch)
    return Paths(x0, jnp.broadcast_to(steps.s[None, :-1], (num, steps.num_steps - 1)), reward)


@partial(jax.jit, static_argnums=(3, 4))
def _ends(sampler: Any, keys: Key, steps: Step, shape: tuple[int, ...], batch: int) -> tuple[Array, Array]:
    def one(key: Key) -> tuple[Array, Array]:
        noise_key, run_key = jax.random.split(key)
        x = steps.sigma_t[0] * jax.random.normal(noise_key, shape)
        state, x0 = run(sampler, run_key, x, steps, lambda state, info: state.look.x0)
        return x0[:-1], state.look.value

    return jax.lax.map(one, keys, batch_size=batch)


def distil(
    key: Key, network: Any, reward: Reward, paths: Paths, *, num_steps: int = 2000, highs: Sequence[float] = (1.0,),
    batch_size: int = 256, optimizer: optax.GradientTransformation | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> NoiseAware:  # fmt: skip
    """Teach a network what a path's Tweedie mean says of the reward at its end.

    Args:
        network: has `init(key) -> params`, called as (params, x0, t) -> [], such as `models.ValueMLP`.
        highs: the largest time of each stage, from clean to noisy (a curriculum); each stage has num_steps steps.
        optimizer: of each stage; by default Adam with warm-up and cosine decay.

    Returns:
        The value, with averaged weights.

    References: Yu et al. 2025 (TTSnap), arXiv:2511.22242, whose reward is a large network tuned as a whole.
    """
    import optax

    optimizer = optimizer or optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate(num_steps)))
    init_key, run_key = jax.random.split(key)
    params, scale = network.init(init_key), jnp.maximum(jnp.std(paths.reward), 1e-6)
    for stage, high in enumerate(highs):
        loss = DistilLoss(network, reward, scale, 0.0, high)
        params = fit(
            jax.random.fold_in(run_key, stage), loss, params, paths, optimizer, num_steps, batch_size=batch_size,
            decay=0.995, progress=progress,
        ).average  # fmt: skip
    return NoiseAware(network, params, scale)
