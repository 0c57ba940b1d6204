r"""From a Flax network to a `Denoiser`: x0 = to_x0(kind, apply(variables, x, t[, cond]), x, alpha, sigma).

`FlaxDenoiser` takes any pure function of (variables, x, t[, cond]), such as the `apply` of a linen module;
`NnxDenoiser` splits an NNX module into that form. The weights are leaves, so they are arguments of the compiled
program and never constants of it; the function is static.

Dtypes: the network sees x in the dtype of its own weights and t in at least float32; the conversion to x0 is done
in at least float32, and that is the dtype returned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax import tweedie
from ntrk_jax.arguments import refuse_class, require_schedule
from ntrk_jax.core import algebra_dtype
from ntrk_jax.schedules import Schedule, rates
from ntrk_jax.tree import pytree, static
from ntrk_jax.typing import Array, PyTree, Sample, Scalar

if TYPE_CHECKING:
    from flax import nnx

__all__ = ["FlaxDenoiser", "NnxDenoiser", "network_input"]


@pytree
class FlaxDenoiser:
    """A network of any parametrisation as a denoiser: E[x_0 | x_t] from its prediction.

        alpha, sigma = schedule(t),    x0 = to_x0(kind, apply(variables, x, t[, cond]), x, alpha, sigma)

    Attributes:
        apply: (variables, x, t[, cond]) -> prediction, a pure function; `module.apply` of a linen module.
        kind: what the network predicts, one of `tweedie.KINDS`.
        variables: the weights, a pytree of arrays.
        schedule: the schedule the network was trained on. To sample on another, wrap in `Reschedule`.
        cond: the condition handed to the network, or None for a network without one; a `cond` given at the call wins.
        batched: whether `apply` expects a leading batch axis on x, t and cond; an axis of one is then added and taken
            away, and under `jax.vmap` XLA sees the whole batch.

    Shapes: x [*shape], t [] -> [*shape], in at least float32.
    Cost: one network evaluation.

    Raises:
        ValueError: if the kind is unknown, or the prediction has another shape than x.

    Example:
        >>> import jax.numpy as jnp, ntrk_jax as nk
        >>> model = FlaxDenoiser(lambda w, x, t: w * x, "eps", jnp.array(0.6), nk.schedules.RectifiedFlow())
        >>> model(jnp.ones(2), 0.5).tolist()
        [1.399999976158142, 1.399999976158142]
    """

    apply: Callable[..., Any] = static()
    kind: str = static()
    variables: PyTree
    schedule: Schedule
    cond: Any = None
    batched: bool = static(default=False)

    num_calls = 1

    def __post_init__(self) -> None:
        """Refuse an unknown parametrisation, a module where its function is meant, and what is no schedule."""
        given = type(getattr(self.apply, "fn", self.apply))
        if any(cls.__module__.startswith("flax.linen") for cls in given.__mro__):
            raise TypeError("apply must be a function of (variables, x, t), got a module; pass module.apply.")
        require_schedule(self.schedule)
        if self.kind not in tweedie.KINDS:
            given = repr(self.kind) if isinstance(self.kind, str) else f"a {type(self.kind).__name__}"
            raise ValueError(f"kind must be one of {', '.join(tweedie.KINDS)}, got {given}.")

    def __call__(self, x: Sample, t: Scalar, cond: Any = None) -> Sample:
        """The Tweedie mean at (x, t)."""
        dtype = algebra_dtype(x)
        t = jnp.asarray(t, dtype)
        prediction = self._predict(x, t, self.cond if cond is None else cond)
        if prediction.shape != x.shape:
            raise ValueError(
                f"the network must predict the shape of one sample, {x.shape}, got {prediction.shape}; "
                "use batched=True for a network with a leading batch axis."
            )
        slope = rates(self.schedule, t) if self.kind == "velocity" else None
        alpha, sigma = (jnp.asarray(c, dtype) for c in self.schedule(t))
        return tweedie.to_x0(self.kind, prediction.astype(dtype), x.astype(dtype), alpha, sigma, slope)

    def _predict(self, x: Sample, t: Scalar, cond: Any) -> Sample:
        args: tuple = network_input(self.variables, x, t)
        if cond is not None:
            args = (*args, jax.tree.map(_label, cond))
        if self.batched:
            return self.apply(self.variables, *jax.tree.map(lambda a: jnp.asarray(a)[None], args))[0]
        try:
            return self.apply(self.variables, *args)
        except (IndexError, TypeError, ValueError) as error:
            shape = jnp.shape(x)
            error.add_note(f"The network was given one sample, x {shape} and t (); one of batches needs batched=True.")
            raise


def _label(leaf: Any) -> Any:
    """A whole number as an array on the host, which has a dtype and may still be an index."""
    return np.asarray(leaf) if isinstance(leaf, int | np.integer) else leaf


def network_input(variables: PyTree, x: Sample, t: Array) -> tuple[Sample, Array]:
    """A sample in the widest floating dtype among the weights, and its time in that or float32, the wider."""
    dtypes = [a.dtype for a in jax.tree.leaves(variables) if jnp.issubdtype(getattr(a, "dtype", int), jnp.floating)]
    dtype = max(dtypes, key=lambda d: jnp.finfo(d).bits, default=x.dtype)
    return x.astype(dtype), t.astype(dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32)


class _NnxApply:
    """The static half of an NNX module as a function of the other half; compares by value, prints by name."""

    def __init__(self, graphdef: Any) -> None:
        self.graphdef = graphdef
        kind = getattr(graphdef, "type", None) or graphdef.nodes[0].type
        self.__module__, self.__qualname__ = kind.__module__, kind.__qualname__

    def __call__(self, state: PyTree, *args: Any) -> Any:
        from flax import nnx

        return nnx.merge(self.graphdef, state)(*args)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _NnxApply) and self.graphdef == other.graphdef

    def __hash__(self) -> int:
        return hash(self.graphdef)


def NnxDenoiser(
    module: nnx.Module | tuple[Any, PyTree], kind: str, schedule: Schedule, cond: Any = None, *, batched: bool = False
) -> FlaxDenoiser:
    """An NNX module as a denoiser: a `FlaxDenoiser` whose variables are the module's state.

    The module is split once, here; its state (a plain dict) is the leaves, its graph is static and compares by value.
    What the module would change of itself in a call (batch statistics, dropout keys) is not kept: set it to
    evaluation mode first.

    Args:
        module: called as module(x, t[, cond]), or its two halves (graphdef, state) as `nnx.split` gives them.
        kind, schedule, cond, batched: as in `FlaxDenoiser`.

    Raises:
        ValueError: if the kind is unknown.

    Example:
        >>> import jax.numpy as jnp, ntrk_jax as nk
        >>> from flax import nnx
        >>> net = nk.models.nets.MLP((2,), width=8, hidden=8, depth=1, rngs=nnx.Rngs(0))
        >>> NnxDenoiser(net, "x0", nk.schedules.VPCosine())(jnp.ones(2), 0.5).tolist()
        [0.0, 0.0]
    """
    from flax import nnx

    refuse_class("module", module)
    if not isinstance(module, (tuple, nnx.Module)):
        raise TypeError(
            f"NnxDenoiser needs an NNX module, got {type(module).__name__}; for a linen module use "
            "FlaxDenoiser(module.apply, kind, variables, schedule)."
        )
    graphdef, state = module if isinstance(module, tuple) else nnx.split(module)
    if isinstance(state, nnx.State):
        state = nnx.to_pure_dict(state)
    return FlaxDenoiser(_NnxApply(graphdef), kind, state, schedule, cond, batched)
