r"""From draws of a law and their rewards to a `values.Learned`: the trainer of learned guidance.

    draws, rewards --balanced, grouped--> fit of a `ValueLoss` --> values.Learned --SMC--> draws of the tilted law --+
          ^                                                                                                         |
          +---------------------------------------------------------------------------------------------------------+

The first round knows the tilted law through weighted draws of the base law. Where few of those carry the weight, a
network learns them by heart; a further round draws the tilted law by sequential Monte Carlo with the value just learned
as its twist, whose weights are exact whatever the error of that value, and trains on these.

What is learned is used like any other value, `nk.Look(model, reward, value=value, grad=True)`, in every method that
takes one, and asks the base model for no gradient. As guidance of the score, x0* = x0 + (sigma^2 / alpha) dV/dx / beta,
or what is the same on a straight path, of the velocity, v* = v - t / (1 - t) dV/dx / beta, it is the rule
`guidance.Twisted(1 / beta, noiseless=True)`, for any kernel and any parametrisation of the model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from ntrk_jax import config
from ntrk_jax.core import Denoiser, Reward, Step
from ntrk_jax.grids import check_schedule, usual
from ntrk_jax.methods import tds
from ntrk_jax.models.value_nets import ValueMLP
from ntrk_jax.run import run
from ntrk_jax.schedules import Schedule
from ntrk_jax.training.experts import Experts
from ntrk_jax.training.fit import fit, learning_rate, restore, save
from ntrk_jax.training.guidance_net import Group, ValueLoss, balanced, grouped, resampled
from ntrk_jax.tree import pytree, static
from ntrk_jax.typing import Array, Key, PyTree, Sample, Scalar
from ntrk_jax.values import Learned

if TYPE_CHECKING:
    import optax

__all__ = ["Scaled", "fit_value", "learned", "load_value", "save_value", "smc_draws", "value_network"]

_FORMAT = "ntrk_jax value 1"


@pytree
class Scaled:
    """The value level + beta u(x, t) of a network u, in the reward's units, as `values.Learned` wants it.

    Attributes:
        apply: (params, x [*shape], t []) -> u []. Static.

    Shapes: params {"network": ..., "level": [], "temperature": []}, x [*shape], t [] -> [].
    Cost: one call of the network.
    """

    apply: Callable[..., Any] = static()

    def __call__(self, params: PyTree, x: Sample, t: Scalar) -> Array:
        """V_t(x), []."""
        u = self.apply(params["network"], x, t)
        return params["level"].astype(u.dtype) + params["temperature"].astype(u.dtype) * u


def learned(apply: Callable[..., Any], params: PyTree, level: Scalar, temperature: Scalar) -> Learned:
    """A network u with its parameters as a value in the reward's units: level + temperature u."""
    numbers = {"level": jnp.asarray(level, jnp.float32), "temperature": jnp.asarray(temperature, jnp.float32)}
    return Learned(Scaled(apply), {"network": params, **numbers})


def value_network(draws: Array, schedule: Schedule, *, width: int = 128, depth: int = 2) -> ValueMLP:
    """A `models.ValueMLP` for samples like draws [num, *shape], scaled by their root mean square entry."""
    scale = float(jnp.sqrt(jnp.mean(jnp.square(draws.astype(jnp.float32)))))
    return ValueMLP(tuple(draws.shape[1:]), schedule, scale, width, depth)


def fit_value(
    key: Key, network: Any, schedule: Schedule, draws: Array, rewards: Array, temperature: Scalar = 1.0, *,
    model: Denoiser | None = None, tilted: tuple[Array, Array] | None = None, kind: str = "bregman",
    consistency: Scalar = 1.0, num_steps: int = 3000, group: int = 256, params: PyTree | None = None,
    optimizer: optax.GradientTransformation | None = None, checkpoint: str | os.PathLike | None = None,
    progress: Callable[[int, float], None] | None = None, chunk: int = 500,
) -> Learned:  # fmt: skip
    """Train a network to be the soft value of a reward, from draws of the base law alone or of both laws.

    Args:
        key: names the order of the draws, the initial weights and every step.
        network: has `init(key) -> params` and is called as (params, x, t) -> u [], such as `models.ValueMLP`; of
            `Experts` all are trained at once.
        schedule: t -> (alpha, sigma).
        draws, rewards: [num, *shape], [num], of the base law, for instance of the model itself.
        temperature: beta, [].
        model: the base denoiser, for the gradient's term; None leaves it out.
        tilted: draws of the tilted law and their rewards; None takes as many of `draws`, by weight.
        kind, consistency: of the `ValueLoss`.
        num_steps: each with one group of `group` members.
        params: where to start instead of init(key).
        optimizer: by default Adam with warm-up and cosine decay, gradients clipped to norm 1.
        checkpoint, progress, chunk: as in `fit`; from a checkpoint the run goes on, to the bit.

    Returns:
        The value, in the reward's units, with the averaged weights.

    Cost: num_steps * group network gradients and, with a model, as many model calls; no reward call.

    Raises:
        ValueError: if there is not one finite reward for every draw.
    """
    for name, x, r in (("rewards", draws, rewards), ("tilted", *(tilted or (draws, rewards)))):
        if jnp.shape(r) != jnp.shape(x)[:1]:
            raise ValueError(f"{name} must be one number for each draw, got {jnp.shape(r)} for {jnp.shape(x)}.")
        if not bool(jnp.all(jnp.isfinite(r)) & jnp.all(jnp.isfinite(x))):
            raise ValueError(f"{name} and their draws must be finite; clip the reward (rewards.Clipped).")
    order_key, init_key, pick_key, run_key = jax.random.split(key, 4)
    if tilted is None:
        rows = resampled(pick_key, rewards.astype(jnp.float32) / temperature, rewards.shape[0])
        tilted = draws[rows], rewards[rows]
    level, base_weight, tilted_weight = jax.jit(balanced)(rewards, tilted[1], temperature)
    pairs = zip((draws, rewards, base_weight), (*tilted, tilted_weight), strict=True)
    data = grouped(order_key, Group(*(jnp.concatenate(pair) for pair in pairs)), group)
    loss = ValueLoss(network, schedule, temperature, level, kind, consistency, model)
    loss = network.spread(loss) if isinstance(network, Experts) else loss
    start = network.init(init_key) if params is None else params
    state = fit(
        run_key, loss, start, data, optimizer or _optimizer(num_steps), num_steps, batch_size=1, decay=0.995,
        chunk=chunk, checkpoint=checkpoint, progress=progress,
    )  # fmt: skip
    return learned(network, state.average, level, temperature)


def _optimizer(num_steps: int) -> optax.GradientTransformation:
    import optax

    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(learning_rate(num_steps), weight_decay=1e-4))


def smc_draws(
    key: Key, value: Any, model: Denoiser, reward: Reward, schedule: Schedule, shape: tuple[int, ...], num: int,
    temperature: Scalar = 1.0, *, num_steps: int = 100, num_particles: int = 64, batch: int = 64,
) -> tuple[Array, Array]:  # fmt: skip
    """Draws of the tilted law and their rewards, by twisted SMC with a value that need not be exact.

    Populations of `num_particles` run side by side; all their particles, weighted by exp(r / beta) and their paths'
    density ratios, are one population, from which `num` are taken evenly by weight.

    Returns:
        x0 [num, *shape], rewards [num].

    Cost: about num * num_steps model calls and value gradients, and one reward call a draw.
    Density: the law of the discretised base sampler tilted by the reward, in the limit of many particles.
    """
    sampler = tds(model, reward, shape, temperature=temperature, num_particles=num_particles, value=value)
    steps = usual(model, schedule, num_steps)
    pick_key, run_key = jax.random.split(key)
    keys = jax.random.split(run_key, -(-num // num_particles))

    check_schedule(sampler, steps)
    x, rewards, weights = _populations(sampler, keys, steps, tuple(shape), batch)
    rows = resampled(pick_key, weights, num)
    return x[rows], rewards[rows]


@partial(jax.jit, static_argnums=(3, 4))
def _populations(
    sampler: Any, keys: Key, steps: Step, shape: tuple[int, ...], batch: int
) -> tuple[Array, Array, Array]:  # fmt: skip
    """All particles of the populations named by `keys`, their rewards and their log-weights."""

    def population(key: Key) -> tuple[Array, Array, Array]:
        noise_key, run_key = jax.random.split(key)
        x = steps.sigma_t[0] * jax.random.normal(noise_key, (sampler.num_particles, *shape))
        state, _ = run(sampler, run_key, x, steps, lambda state, info: None)
        return state.look.x, state.look.value, state.log_weights

    out = jax.lax.map(population, keys, batch_size=batch)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), out)


def save_value(folder: str | os.PathLike, value: Learned) -> None:
    """Write a learned value of a `models.ValueMLP`, or of `Experts` of it, into a folder: weights and network as text.

    Raises:
        ValueError: if the value is none that `learned` made of such a network.
    """
    network = getattr(value.apply, "apply", None)
    if not _known(network):
        raise ValueError(f"save_value writes values of a models.ValueMLP, got {type(network or value).__name__}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "weights", value.params)
    text = json.dumps({"format": _FORMAT, "network": repr(network)}, indent=2)
    (folder / "network.json").write_text(text + "\n", encoding="utf-8")


def load_value(folder: str | os.PathLike) -> Learned:
    """The value that `save_value` or `ntrk train guidance --out` wrote; nothing in the files is executed.

    Raises:
        ValueError: if the folder holds no such value.
    """
    folder = Path(folder)
    folder = folder / "value" if (folder / "value").is_dir() else folder
    try:
        record = json.loads((folder / "network.json").read_text(encoding="utf-8"))
        network: Any = config.loads(record["network"]) if record["format"] == _FORMAT else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds no value written by save_value ({type(error).__name__}: {error}).") from None
    if not _known(network):
        raise ValueError(f"{folder} holds a value of another format, not of {_FORMAT!r}.")
    like = learned(network, network.init(jax.random.key(0)), 0.0, 1.0)
    return Learned(like.apply, restore(folder / "weights", like.params))


def _known(network: Any) -> bool:
    return isinstance(network.apply if isinstance(network, Experts) else network, ValueMLP)
