r"""Learning the value V_t(x) = beta log E[exp(r(x_0) / beta) | x_t = x] from draws of a law and their rewards.

A network u(x, t) stands for the value in units of the temperature, relative to a level:

    V = level + beta u,      level = beta log E[exp(r(x_0) / beta)] = beta log Z,

so that u -> 0 at pure noise, exp(u) has mean one under the noised law, and rewards of any size are safe. With
w = exp((r(x_0) - level) / beta) and x_t = alpha x_0 + sigma z, a loss value is that of one random (x_0, t, z):

| kind | loss | its minimiser |
|---|---|---|
| `bregman` | exp(u) - w u | V |
| `regression` | (exp(u) - w)^2 | V up to level + 40 beta; ruled by the largest w |
| `log` | (u - (r - level) / beta)^2 | E[r given x_t] <= V: a lower bound (Jensen), its gradient another one |
| `consistency` | none, the term below alone | V up to a function of t: a gradient without a level |

and on top, `consistency` times what the gradient should be: denoising score matching of the tilted law through u,

    sigma^2 w |s + grad u - grad log q(x_t | x_0)|^2,     s = grad log p_t(x_t) from the base model,

of which the expectation under the base law is Z^-1 times that under the tilted one. No term differentiates the reward.

Three devices take variance away, none of which moves a minimiser:

- **Groups.** x_0 is one of a group of draws, and given the group and x_t it could have been any of them, in proportion
  to q(x_t | x_0). Losses are linear in w (up to terms without u) and in w grad log q, so both are replaced by their
  mean over the group (Rao-Blackwell): unbiased for a group of any size, as x_t came from one of its members. A group of
  one is the plain loss.
- **Weighted draws** (`balanced`): half from the base law, half from the tilted one, each with the log-density ratio of
  the base law to the half-and-half one. All weights are then at most 2, where draws of the base law alone have weights
  up to exp(max r / beta) / Z and see little of where the tilted law lives.
- **Centring.** E[grad log q - s | x_t] = 0, so w may be replaced by w - exp(u), u held fixed, in the cross term of the
  square: what is left vanishes with the noise, where w and exp(u) agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import require_count, require_schedule, require_temperature, require_times
from ntrk_jax.core import Denoiser, algebra_dtype
from ntrk_jax.resampling import systematic
from ntrk_jax.schedules import Schedule
from ntrk_jax.tree import is_concrete, pytree, static
from ntrk_jax.typing import Array, Key, PyTree, Sample, Scalar

__all__ = ["KINDS", "Group", "ValueLoss", "balanced", "grouped", "resampled"]

KINDS = ("bregman", "regression", "log", "consistency")
_CAP = 20.0  # above, exponentials go on linearly: a network that is far off stays finite


class Group(NamedTuple):
    """Draws that belong together: x0 [G, *shape], reward [G], log_weight [G].

    log_weight: log of the density of the base law relative to that of the law x0 was drawn from; zeros for draws of
    the base law.
    """

    x0: Array
    reward: Array
    log_weight: Array


@pytree
class ValueLoss:
    """How wrong a network is about the value, at random times: loss(key, params, group) -> [].

        t ~ U[low, high],  x_t = alpha x_0 + sigma z,  loss = term of `kind` + consistency * term of the gradient

    Attributes:
        apply: (params, x [*shape], t []) -> u [], the value relative to the level, in units of the temperature. Static.
        schedule: t -> (alpha, sigma).
        temperature: beta, [], positive. level: [], in the reward's units; `balanced` gives beta log Z.
        kind: "bregman", "regression", "log" or "consistency"; see the module's table. Static.
        consistency: the weight eta of the gradient's term, at least 0.
        model: the base denoiser, which that term needs; None leaves the term out. It is called, never differentiated.
        low, high: the range of times.
        num_noised: how many members of a group, a random few, are noised; None is all, each at its own time. Static.

    Shapes: a `Group` of [G, *shape], [G], [G] -> [].
    Cost: num_noised network evaluations, with a model as many gradients in x and model calls, O(num_noised G d) for
        the group's posterior; no reward call.
    Optimum: the exact value (the exact tilt's guidance) for "bregman" and "regression" with any `consistency`.
    Departs from the paper: the published network is a plain regression of exp(r / beta); the Bregman form has the same
        minimiser and needs no positive output. Level, groups, weighted draws and centring are additions. The kind "log"
        is what the released code of the authors' earlier method regresses.
    References: Ouyang, Xie, Zha, Cheng 2026, arXiv:2602.00413; Ouyang, Xie, Zha, Cheng 2024 (TGDP), arXiv:2405.16876.

    Raises:
        ValueError: for an unknown kind, a number that means nothing, or a gradient's term without the model it needs.

    Example:
        >>> import jax, jax.numpy as jnp, ntrk_jax as nk
        >>> loss = ValueLoss(lambda w, x, t: w @ x, nk.schedules.VPCosine())
        >>> draws = Group(jnp.ones((4, 2)), jnp.zeros(4), jnp.zeros(4))
        >>> float(loss(jax.random.key(0), jnp.zeros(2), draws))  # exp(0) - 1 * 0
        1.0
    """

    apply: Callable[..., Any] = static()
    schedule: Schedule
    temperature: Scalar = 1.0
    level: Scalar = 0.0
    kind: str = static(default="bregman")
    consistency: Scalar = 1.0
    model: Denoiser | None = None
    low: Scalar = 1e-3
    high: Scalar = 1.0
    num_noised: int | None = static(default=None)

    def __post_init__(self) -> None:
        """Refuse what cannot be minimised."""
        require_schedule(self.schedule)
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}.")
        require_temperature(self.temperature)
        if is_concrete(self.consistency) and not np.all(np.asarray(self.consistency) >= 0):
            raise ValueError(f"consistency must be at least 0, got {self.consistency}.")
        if self.num_noised is not None:
            require_count(num_noised=self.num_noised)
        require_times(self.low, self.high)
        if self.kind == "consistency" and self.model is None:
            raise ValueError("kind 'consistency' learns the gradient alone and needs the base model; pass model=.")

    def __call__(self, key: Key, params: PyTree, sample: Group) -> Array:
        """The mean loss of a group's members, each at a random time and noise."""
        time_key, noise_key, pick_key = jax.random.split(key, 3)
        size, dtype = sample.x0.shape[0], algebra_dtype(sample.x0)
        num = size if self.num_noised is None else min(self.num_noised, size)
        rows = (jax.random.randint(pick_key, (), 0, size) + jnp.arange(num)) % size
        low, high = jnp.asarray(self.low, dtype), jnp.asarray(self.high, dtype)
        t = low + (high - low) * jax.random.uniform(time_key, (num,), dtype)
        z = jax.random.normal(noise_key, (num, *sample.x0.shape[1:]), dtype)

        def one(row: Array, t: Array, z: Sample) -> Array:
            alpha, sigma = (jnp.asarray(c, dtype) for c in self.schedule(t))
            return self.at(params, alpha * sample.x0[row].astype(dtype) + sigma * z, t, sample)

        return jnp.mean(jax.vmap(one)(rows, t, z))

    def at(self, params: PyTree, x: Sample, t: Scalar, group: Group) -> Array:
        """The loss at a noised point x [*shape] that came from one of the group, []."""
        dtype = algebra_dtype(x)
        alpha, sigma = (jnp.asarray(c, dtype) for c in self.schedule(jnp.asarray(t, dtype)))
        x0 = group.x0.reshape(group.x0.shape[0], -1).astype(dtype)
        eps = (x.reshape(1, -1).astype(dtype) - alpha * x0) / sigma  # the noise that leads from each member to x
        share = jax.nn.log_softmax(-0.5 * jnp.sum(jnp.square(eps), -1)) + group.log_weight.astype(dtype)
        gain = (group.reward.astype(dtype) - self.level) / jnp.asarray(self.temperature, dtype)
        if self.model is None:
            return self._value_term(self.apply(params, x, t).astype(dtype), share, gain)
        u, grad = jax.value_and_grad(lambda x: self.apply(params, x, t).astype(dtype))(x.astype(dtype))
        known = jax.lax.stop_gradient(self.model(x, t)).reshape(1, -1).astype(dtype)
        base_eps = (x.reshape(1, -1).astype(dtype) - alpha * known) / sigma
        slope = sigma * grad.reshape(-1)
        weight = jnp.exp(share + gain)
        centred = weight - jnp.exp(share + jnp.minimum(jax.lax.stop_gradient(u), _CAP - jax.nn.logsumexp(share)))
        pull = jnp.sum(centred[:, None] * (base_eps - eps), 0)
        square = jnp.sum(weight) * jnp.sum(jnp.square(slope)) - 2.0 * jnp.sum(slope * pull)
        return self._value_term(u, share, gain) + jnp.asarray(self.consistency, dtype) * square

    def _value_term(self, u: Array, share: Array, gain: Array) -> Array:
        """The term of `kind`, up to what does not depend on u; share: log of posterior times weight, [G].

        Its minimiser is log(tilted / base), and exp(u) is only met as base exp(u), which is `tilted` there, at most 2.
        """
        if self.kind == "consistency":
            return jnp.zeros_like(u)
        log_base, tilted = jax.nn.logsumexp(share), jnp.sum(jnp.exp(share + gain))
        if self.kind == "bregman":
            kept = jnp.minimum(u, _CAP - log_base)
            return jnp.exp(kept + log_base) * (1.0 + u - kept) - tilted * u
        if self.kind == "regression":
            kept = jnp.minimum(u, jnp.minimum(_CAP - log_base, 2.0 * _CAP))  # a square beyond that is no float32
            beyond = 1.0 + u - kept
            return jnp.exp(2.0 * kept + log_base) * jnp.square(beyond) - 2.0 * tilted * jnp.exp(kept) * beyond
        return jnp.exp(log_base) * jnp.square(u) - 2.0 * jnp.sum(jnp.exp(share) * gain) * u


def balanced(base_reward: Array, tilted_reward: Array, temperature: Scalar = 1.0) -> tuple[Array, Array, Array]:
    """The level beta log Z, and the log-weights of draws of the base law and of its tilt, pooled.

    A pooled draw comes from the law (n p + m p*) / (n + m), p* = p exp(r / beta) / Z, so that p weighs
    (n + m) / (n + m exp(r / beta) / Z) of it, at most (n + m) / n. Z is Bennett's estimate: the one under which pooled
    draws are, on average, as likely to be tilted ones as they are. Where the tilted draws were taken from the base ones
    by weight it is the mean of exp(r / beta).

    Args:
        base_reward: [n]. tilted_reward: [m]; m may be 0, and the weights are then 1.

    Returns:
        level [], log-weights [n] and [m].

    References: Bennett 1976, "Efficient estimation of free energy differences from Monte Carlo data".

    Raises:
        ValueError: if there are no draws of the base law.
    """
    n, m = base_reward.shape[0], tilted_reward.shape[0]
    if n < 1:
        raise ValueError("balanced needs rewards of at least one draw of the base law.")
    dtype = algebra_dtype(base_reward)
    beta = jnp.asarray(temperature, dtype)
    base, tilted = base_reward.astype(dtype) / beta, tilted_reward.astype(dtype) / beta
    if m == 0:
        return beta * (jax.nn.logsumexp(base) - jnp.log(jnp.asarray(n, dtype))), jnp.zeros_like(base), tilted
    pooled, odds = jnp.concatenate([base, tilted]), jnp.log(jnp.asarray(m / n, dtype))

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = 0.5 * (ends[0] + ends[1])
        high = jnp.mean(jax.nn.sigmoid(pooled - middle + odds)) < m / (n + m)
        return jnp.where(high, ends[0], middle), jnp.where(high, middle, ends[1])

    low, top = jax.lax.fori_loop(0, 60, halve, (jnp.min(pooled) - 1.0, jnp.max(pooled) + 1.0))
    log_z = 0.5 * (low + top)
    weights = jnp.log(jnp.asarray((n + m) / n, dtype)) - jax.nn.softplus(pooled - log_z + odds)
    return beta * log_z, weights[:n], weights[n:]


def resampled(key: Key, log_weights: Array, num: int) -> Array:
    """The rows [num] of draws taken in proportion to their weights, evenly (systematic resampling).

    With log_weights = reward / temperature, draws of a law become draws of its tilt (self-normalised: a bias of order
    1 / number of effective draws).
    """
    return systematic(key, log_weights, num)


def grouped(key: Key, draws: Group, size: int) -> Group:
    """Draws in random order, cut into groups: leaves [n, ...] -> [n // size, size, ...]; the rest is left out.

    Raises:
        ValueError: if there are fewer draws than one group.
    """
    num = draws.reward.shape[0] // size if size > 0 else 0
    if num < 1:
        raise ValueError(f"a group of {size} needs at least as many draws and one member, got {draws.reward.shape[0]}.")
    order = jax.random.permutation(key, draws.reward.shape[0])[: num * size]
    return jax.tree.map(lambda a: a[order].reshape(num, size, *a.shape[1:]), draws)
