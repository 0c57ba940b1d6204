r"""move: the Gaussian algebra of one step. No model calls.

    e = project(noise + scale z, key),   x_s = base.mean + mean + base.std e,   z ~ N(0, I)

and, in the same breath, the log-density ratio of base to proposal at the drawn point. With
d = mean / base.std + noise + scale z (no projection), N entries and base.std > 0,

    log p_base(x_s) - log q(x_s) = (|z|^2 - |d|^2) / 2 + N log scale.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntrk_jax.core import Evals, Gaussian, Guidance, Kernel, Lookahead, Move, Status, Step, Stream, Tilt, algebra_dtype
from ntrk_jax.typing import Array, Key

__all__ = ["Aim", "aim", "draw_from", "in_algebra", "move"]


class Aim(NamedTuple):
    """What all draws of one row from one look share: the base kernel there and its tilt.

    exact: whether the tilt's density is known; tilted: whether there is one.
    """

    base: Gaussian
    tilt: Tilt
    exact: bool
    tilted: bool


def in_algebra(look: Lookahead, step: Step) -> tuple[Lookahead, Step]:
    """A look and a row of the grid in the dtype of the Gaussian algebra, at least float32."""
    dtype = algebra_dtype(look.x)
    return look._replace(x=look.x.astype(dtype)), jax.tree.map(lambda a: jnp.asarray(a, dtype), step)


def move(
    key: Key, look: Lookahead, step: Step, kernel: Kernel, guidance: Guidance | None = None, probe: Any = None,
    *, z: Array | None = None,
) -> tuple[Move, Evals]:  # fmt: skip
    """Draw x_s from the (tilted) base kernel at a look.

    Args:
        key: one typed key: the draw's own; the rule's are folded into it (`core.Stream`).
        look: x, x0, grad [*shape], value [].
        step: one row of the grid.
        kernel: (look, step) -> Gaussian.
        guidance: a rule giving a `Tilt`, or None for the base kernel.
        probe: the sampler's `Look`, handed to rules that evaluate more.
        z: [*shape], the standard noise where it was drawn already, for a population in one call; else it is drawn here.

    Returns:
        Move(x [*shape] in the dtype of look.x, log_ratio [], status []) and the rule's own evaluations. log_ratio is 0
        for rules whose density is not exact, and where the base kernel is deterministic; status flags a tilt that is
        not finite.
    """
    aimed = aim(key, look, step, kernel, guidance, probe)
    return draw_from(key, aimed, look.x, z), aimed.tilt.evals


def aim(
    key: Key, look: Lookahead, step: Step, kernel: Kernel, guidance: Guidance | None = None, probe: Any = None
) -> Aim:
    """The first half of `move`: the kernel and the rule, asked once however many draws follow."""
    look, step = in_algebra(look, step)
    base = kernel(look, step)
    _require("kernel", base, Gaussian)
    if jnp.shape(base.mean) != look.x.shape or jnp.shape(base.std) != ():
        raise ValueError(
            f"a kernel must return a mean of the shape of x, {look.x.shape}, and one number as std, got shapes "
            f"{jnp.shape(base.mean)} and {jnp.shape(base.std)}."
        )
    rule_key = jax.random.fold_in(key, Stream.RULE)
    tilt = Tilt() if guidance is None else guidance(look, base, step, key=rule_key, probe=probe)
    _require("rule", tilt, Tilt)
    return Aim(base, tilt, guidance is None or guidance.exact, guidance is not None)


def draw_from(key: Key, aimed: Aim, like: Array, z: Array | None = None) -> Move:
    """The second half of `move`: one draw, in the shape and dtype of `like`; the flags are the tilt's own too."""
    base, tilt = aimed.base, aimed.tilt
    dtype = algebra_dtype(like)
    drawn: Array = jax.random.normal(key, like.shape, dtype) if z is None else z
    noise = tilt.noise + tilt.scale * drawn
    if tilt.project is not None:
        noise = jnp.where(jnp.any(tilt.noise != 0), tilt.project(noise, jax.random.fold_in(key, Stream.PROJECT)), noise)
    trivial = not (aimed.tilted and aimed.exact)
    kept = noise if trivial else (drawn, noise)
    kept = jax.lax.optimization_barrier(kept)  # so that a zero tilt is fused, and rounded, like no tilt
    drawn, noise = (drawn, kept) if trivial else kept
    x = base.mean + tilt.mean + base.std * noise
    log_ratio = jnp.zeros((), dtype) if trivial else _log_ratio(drawn, noise, base.std, tilt)
    seen = log_ratio if aimed.exact else jnp.asarray(tilt.noise + tilt.mean)  # the ratio of an exact rule sums them all
    status = jnp.where(jnp.all(jnp.isfinite(seen)), jnp.int32(0), jnp.int32(Status.NONFINITE_GRAD)) | tilt.status
    return Move(x.astype(like.dtype), log_ratio, status)


def _require(what: str, given: Any, kind: type) -> None:
    if not isinstance(given, kind):
        raise TypeError(f"a {what} must return nk.{kind.__name__}(...), got {type(given).__name__}.")


def _log_ratio(z: Array, noise: Array, std: Array, tilt: Tilt) -> Array:
    """(|z|^2 - |d|^2) / 2 + N log scale with d = noise + mean / std, for a noise that was not projected."""
    safe = jnp.where(std > 0, std, jnp.ones_like(std))
    distance = tilt.mean / safe + noise
    ratio = 0.5 * jnp.sum((z - distance) * (z + distance)) + z.size * jnp.log(jnp.asarray(tilt.scale, z.dtype))
    return jnp.where(std > 0, ratio, jnp.zeros_like(ratio))
