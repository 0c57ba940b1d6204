r"""What samplers of many particles share: their state, and how a single sampler's step is taken for all of them.

`log_weights` [num_particles] carry the evidence: log mean exp of them estimates log Z = log E[exp(r / temperature)].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntrk_jax.core import Evals, Info, Lookahead, Sampler, State, Status, Step, algebra_dtype
from ntrk_jax.resampling import alive, ess, log_mean_exp
from ntrk_jax.samplers.single import Single
from ntrk_jax.typing import Array, Key, Scalar

__all__ = [
    "Population", "advance", "any_bits", "ess_of", "hopeful", "log_z", "require_particles", "roll", "sanitise",
    "siblings", "start", "streams", "tilted", "total", "weights_report",
]  # fmt: skip


class Population(NamedTuple):
    """A weighted population and where it came from.

    look, memory: leaves [num_particles, ...]. log_weights: [num_particles]. ancestors: [num_particles], the parents
    chosen in the last row (its own index where nothing was resampled). untilted: [num_particles], the log-weights
    without the potential at the current x, carried apart so that a large potential does not take their digits.
    """

    look: Lookahead
    log_weights: Array
    evals: Evals
    status: Array
    memory: Any
    ancestors: Array
    untilted: Array


def require_particles(x: Array, num: int) -> None:
    """Raise ValueError unless x is [num, *shape]."""
    if x.shape[0] != num:
        raise ValueError(f"x must have shape [num_particles={num}, *shape], got {x.shape}; pass {num} initial noises.")


def start(sampler: Sampler, key: Key, x: Array, first: Step, num: int, chunk: int | None = None) -> State:
    """`num` independent starts of a single sampler; evaluations summed, flags joined, the other leaves [num, ...]."""
    require_particles(x, num)
    states = _each(lambda item: sampler.init(item[0], item[1], first), (jax.random.split(key, num), x), num, chunk)
    return State(states.look, states.log_weights, total(states.evals), any_bits(states.status))


def advance(
    sampler: Sampler, key: Key, look: Lookahead, step: Step, num: int, chunk: int | None = None
) -> tuple[Lookahead, Array, Evals, Array]:
    """One step of a sampler for each particle, all at once or `chunk` of them at a time.

    Returns:
        look [num, ...], log_ratio [num], the evaluations of all, their joint flags.
    """

    def one(item: tuple[Key, Lookahead, Any]) -> tuple[State, Info]:
        return roll(sampler, *item, step)

    keys, z = streams(sampler, key, look, num)
    moved, info = _each(one, (keys, look, z), num, chunk)
    return moved.look, info.log_ratio, total(info.evals), any_bits(info.status)


def _each(one: Callable[[Any], Any], items: Any, num: int, chunk: int | None) -> Any:
    """`one` of each of `num` items, all at once or `chunk` of them at a time."""
    return jax.vmap(one)(items) if chunk is None or chunk >= num else jax.lax.map(one, items, batch_size=chunk)


def streams(sampler: Sampler, key: Key, look: Lookahead, num: int) -> tuple[Key, Array | None]:
    """The keys [num] of the particles, and their noises [num, *shape] where the sampler is a `Single`.

    Noises drawn in one call cost a third of noises drawn key by key if samples are small.
    """
    if not isinstance(sampler, Single):
        return jax.random.split(key, num), None
    return siblings(key, num), jax.random.normal(key, look.x.shape, algebra_dtype(look.x))


def roll(sampler: Sampler, key: Key, look: Lookahead, z: Array | None, step: Step) -> tuple[State, Info]:
    """One step of one particle from its look, its key and (for a `Single`) its noise."""
    state = State(look, jnp.zeros((), look.x0.dtype), Evals().as_arrays(), jnp.int32(0))
    return sampler.step_with(key, state, step, z) if isinstance(sampler, Single) else sampler.step(key, state, step)


def siblings(key: Key, num: int) -> Key:
    """`num` keys that cost no hash, the first of them the key itself: its data with 0 ... num - 1 xored in.

    They differ as the keys of consecutive seeds do. To be used where nothing beneath makes siblings of its own.
    """
    data = jax.random.key_data(key)
    last = data[..., -1:] ^ jnp.arange(num, dtype=data.dtype)
    many = jnp.broadcast_to(data, (num, *data.shape)).at[:, -1].set(last)
    return jax.random.wrap_key_data(many, impl=jax.random.key_impl(key))


def total(evals: Evals) -> Evals:
    """The evaluations [] of all particles together, of counts [num]."""
    return Evals(*(jnp.sum(n, 0, dtype=jnp.int32) for n in evals))


def any_bits(status: Array) -> Array:
    """The flags [] that any of the particles [num] carries."""
    return jax.lax.reduce(status, jnp.int32(0), jax.lax.bitwise_or, (0,))


def sanitise(log_weights: Array) -> tuple[Array, Array]:
    """Log-weights [num_particles] with those that are not finite dead, and the flag [] where all of them are."""
    dead = jnp.where(jnp.any(jnp.isfinite(log_weights)), jnp.int32(0), jnp.int32(Status.DEAD_WEIGHTS))
    return alive(log_weights), dead


def hopeful(look: Lookahead, noise: Scalar) -> Array:
    """The values [num_particles], where -inf, which forbids a sample, is the lowest other one while noise is left.

    What is forbidden may yet move to where it is not, and any finite potential on the way keeps the weights exact. NaN
    where x0 is not finite, whatever the reward says of it.
    """
    value = look.value
    whole = jnp.all(jnp.isfinite(look.x0.reshape(value.shape[0], -1)), axis=1)
    lowest = jnp.min(jnp.where(jnp.isfinite(value) & whole, value, jnp.inf))
    lowest = jnp.where(jnp.isfinite(lowest), lowest, jnp.zeros_like(lowest))
    value = jnp.where(jnp.isneginf(value) & (jnp.asarray(noise) > 0), lowest, value)
    return jnp.where(whole, value, jnp.nan)


def tilted(untilted: Array, log_psi: Array) -> tuple[Array, Array, Array, Array]:
    """Log-weights [num_particles] = untilted + log_psi less the largest potential, whose size costs no digits.

    Returns:
        The weights; that potential []; untilted, at -inf where a particle is dead and stays so; a flag [] if all are.
    """
    some = jnp.isfinite(log_psi)
    top = jnp.where(jnp.any(some), jnp.max(jnp.where(some, log_psi, -jnp.inf)), 0.0).astype(log_psi.dtype)
    weights, dead = sanitise(untilted + (log_psi - top))
    return weights, top, jnp.where(jnp.isfinite(weights), untilted, -jnp.inf), dead


def log_z(state: Any) -> Array:
    """The estimate of log Z = log E[exp(r / temperature)] that a population's weights carry, []; vmap for batches.

    Example:
        >>> import jax, jax.numpy as jnp, ntrk_jax as nk
        >>> smc = nk.SMC(nk.Look(lambda x, t: x, lambda x0: jnp.float32(1.0)), nk.kernels.DDIM(), num_particles=2)
        >>> steps = nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(3))
        >>> state, _ = nk.run(smc, jax.random.key(0), jnp.ones((2, 1)), steps)
        >>> float(nk.samplers.log_z(state))
        1.0

    Raises:
        ValueError: for a state that carries no evidence: of one sample, a batch of them, a search.
    """
    if not hasattr(state, "untilted") or state.log_weights.ndim != 1:
        raise ValueError(
            f"log_z needs the state of an SMC population, with log_weights [num_particles], got a "
            f"{type(state).__name__} with {state.log_weights.shape}; vmap it over a batch."
        )
    return log_mean_exp(state.log_weights)


def ess_of(state: Any) -> Array:
    """The effective sample size of a population's final weights, []; vmap for batches."""
    return ess(state.log_weights)


def weights_report(ess_trace: Any, num_particles: int) -> str:
    """One line, on the host, on how evenly a run's importance weights are spread.

    A high effective sample size is needed and not enough: of a part of the law that no particle reached, such as what
    lies behind a cliff in the reward, the weights say nothing.

    Args:
        ess_trace: [..., num_steps] of `Info.ess`, before resampling. num_particles: K.

    Example:
        >>> weights_report([30.0, 25.0], 32)
        'weights are fine: in a median run the effective sample size stays above 25.0 of 32.'
    """
    import numpy as np

    trace = np.asarray(ess_trace, np.float64)
    worst = float(np.median(np.min(trace, axis=-1)))
    rows = float(np.mean(trace < max(2.0, 0.05 * num_particles)))
    if worst >= 0.1 * num_particles:
        return (
            f"weights are fine: in a median run the effective sample size stays above {worst:.1f} of {num_particles}."
        )
    if rows < 0.1:
        return (
            f"weights are thin: the effective sample size falls to {worst:.1f} of {num_particles}; use more particles, "
            "more steps or a tempered potential."
        )
    return (
        f"weights are hopeless: in {rows:.0%} of the rows fewer than {max(2.0, 0.05 * num_particles):.1f} of "
        f"{num_particles} particles count, so that the population is one sample in disguise; lower the strength "
        "(NTRK's weights need rho N of about 1 a row), calibrate it, take more steps, or do without weights."
    )
