r"""Wrappers: a denoiser from a denoiser.

| wrapper | what it returns |
|---|---|
| `ClassifierFree` | x0(null) + strength (x0(cond) - x0(null)) |
| `Cast` | the model run in another precision |
| `Reschedule` | a model trained on one schedule, on the time axis of another |
| `Counted` | the same, counted on the host whenever it is really executed |

`num_calls` says how many network evaluations one call costs, and every wrapper passes it on.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.core import Denoiser, algebra_dtype
from ntrk_jax.schedules import Schedule
from ntrk_jax.tree import is_key, pytree, same, static, through
from ntrk_jax.typing import Array, Sample, Scalar

__all__ = ["Cast", "ClassifierFree", "Counted", "Counter", "Reschedule"]


def _num_calls(model: Any) -> int:
    return int(getattr(model, "num_calls", 1))


@pytree
class ClassifierFree:
    """Classifier-free guidance: away from the unconditional Tweedie mean, towards the conditional one.

        x0 = x0(null) + strength (x0(cond) - x0(null))

    In terms of x0 it is the same rule as for eps, score or velocity, since each is affine in x0 with one slope.

    Attributes:
        model: a denoiser that takes a condition.
        strength: 0 is unconditional, 1 conditional, more than 1 guided.
        null: the condition that stands for none.
        cond: the condition, unless one is given at the call.

    Shapes: x [*shape], t [] -> [*shape].
    Cost: two calls of the model (`num_calls` says so), also at strength 0 or 1.
    Errors: TypeError for a strength that is no number, ValueError for one of several without `vmap`, for no condition,
        and for null=None where the model, or the one that it wraps, falls back to a condition of its own that is cond.
    References: Ho and Salimans 2022, arXiv:2207.12598, Eq. 6 (strength = 1 + w).
    """

    model: Denoiser
    strength: Scalar
    null: Any
    cond: Any = None

    def __post_init__(self) -> None:
        """Refuse a strength that is none, and to guide away from the condition itself."""
        if isinstance(self.strength, str) or callable(self.strength):
            raise TypeError(f"ClassifierFree's strength must be a number, got {self.strength!r}.")
        self._refuse_own(self.cond)

    def _refuse_own(self, cond: Any) -> None:
        conds = (getattr(part, "cond", None) for part in through(self.model, "model", "fn"))
        own = next((cond for cond in conds if cond is not None), None)
        if self.null is None and own is not None and same(own, cond):
            raise ValueError(
                "ClassifierFree got null=None, for which the model falls back to its own condition, which is cond too; "
                "give the condition that stands for none."
            )

    @property
    def num_calls(self) -> int:
        """Twice the model's."""
        return 2 * _num_calls(self.model)

    def __call__(self, x: Sample, t: Scalar, cond: Any = None) -> Sample:
        """The guided Tweedie mean at (x, t)."""
        cond = self.cond if cond is None else cond
        if cond is None:
            raise ValueError("ClassifierFree needs a condition: ClassifierFree(model, strength, null, cond).")
        if jnp.ndim(self.strength):
            got = jnp.shape(self.strength)
            raise ValueError(f"ClassifierFree(model, strength, null, cond) needs one strength, got shape {got}.")
        self._refuse_own(cond)
        without, with_cond = self.model(x, t, self.null), self.model(x, t, cond)
        return without + jnp.asarray(self.strength, without.dtype) * (with_cond - without)


@pytree
class Cast:
    """A model run in another precision, for instance bfloat16: its floating leaves and x are cast, x0 is cast back.

    Times and schedules stay as they are: a time in bfloat16 has three digits.

    Attributes:
        model: a denoiser whose weights are leaves.
        dtype: the floating dtype to run in, kept by its name.

    Shapes: x [*shape], t [] -> [*shape] in the dtype of x.
    Cost: that of the model in the other precision.
    """

    model: Denoiser
    dtype: Any = static(default="bfloat16")

    def __post_init__(self) -> None:
        """Keep the dtype by its name, which prints and reads back."""
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype).name)

    @property
    def num_calls(self) -> int:
        """The model's."""
        return _num_calls(self.model)

    def __call__(self, x: Sample, t: Scalar, cond: Any = None) -> Sample:
        """The Tweedie mean at (x, t), in the dtype of x."""

        def cast(leaf: Any) -> Any:
            floating = jnp.issubdtype(getattr(leaf, "dtype", int), jnp.floating)
            return leaf.astype(self.dtype) if floating else leaf

        model = jax.tree.map(cast, self.model, is_leaf=lambda node: hasattr(node, "time_of"))
        return model(cast(x), t, cond).astype(x.dtype)


@pytree
class Reschedule:
    """A model trained on one schedule, sampled on the time axis of another; exact, not an approximation.

        x_t = alpha x_0 + sigma z with sigma / alpha = sigma' / alpha' holds the same information as
        x' = c x_t = alpha' x_0 + sigma' z, so E[x_0 | x_t] = model(c x_t, t'),  t' = trained_on.time_of(sigma / alpha)

    Attributes:
        model: a denoiser trained on `trained_on`.
        trained_on, sampled_on: schedules t -> (alpha, sigma). Noisier times than `trained_on` has are given its last.

    Shapes: x [*shape], t [] -> [*shape], in at least float32.
    Cost: that of the model.
    """

    model: Denoiser
    trained_on: Schedule
    sampled_on: Schedule

    @property
    def num_calls(self) -> int:
        """The model's."""
        return _num_calls(self.model)

    def __call__(self, x: Sample, t: Scalar, cond: Any = None) -> Sample:
        """The Tweedie mean of x at time t of `sampled_on`."""
        dtype = algebra_dtype(x)
        alpha, sigma = (jnp.asarray(c, dtype) for c in self.sampled_on(jnp.asarray(t, dtype)))
        ratio = sigma / jnp.maximum(alpha, sigma * _LOWEST_ALPHA + jnp.finfo(dtype).tiny)
        time = jnp.clip(self.trained_on.time_of(ratio), 0.0, 1.0)
        alpha_to, sigma_to = (jnp.asarray(c, dtype) for c in self.trained_on(time))
        scale = jnp.hypot(alpha_to, sigma_to) / jnp.hypot(alpha, sigma)
        return self.model(scale * x.astype(dtype), time, cond)


_LOWEST_ALPHA = 1e-7  # pure noise, alpha = 0, is treated as a noise-to-signal ratio of 1e7


class Counter:
    """How often a `Counted` function was really executed, forwards and backwards; compares by identity.

    Reading a count first waits for what is still running.
    """

    def __init__(self) -> None:
        """Start at zero."""
        self._lock = threading.Lock()
        self._counts = {"forward": 0, "vjp": 0}

    def add(self, what: str, *_: Any) -> None:
        """One more; called from the device's callbacks."""
        with self._lock:
            self._counts[what] += 1

    def reset(self) -> None:
        """Back to zero."""
        jax.effects_barrier()
        with self._lock:
            self._counts = {"forward": 0, "vjp": 0}

    @property
    def forward(self) -> int:
        """Executed calls, one a sample."""
        jax.effects_barrier()
        return self._counts["forward"]

    @property
    def vjp(self) -> int:
        """Executed vector-Jacobian products, one a sample."""
        jax.effects_barrier()
        return self._counts["vjp"]


@pytree
class Counted:
    """Any model or reward, counted on the host whenever a sample really goes through it, under jit, scan and vmap.

    A call adds one to `counter.forward`, its vector-Jacobian product one to `counter.vjp`; value_and_grad adds one to
    each. Under `vmap` each sample counts; a branch of `lax.cond` that is not taken does not count (but under `vmap`
    a batched `cond` executes both branches, and both count). For auditing declared costs, not for production: every
    call stops at the host. Reverse-mode differentiation only.

    Attributes:
        fn: a denoiser, a reward or another callable of arrays; a closure over traced values is not supported.
        counter: where the counts go.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> counter = Counter()
        >>> _ = jax.vmap(jax.grad(Counted(jnp.sum, counter)))(jnp.ones((3, 2)))
        >>> counter.forward, counter.vjp
        (3, 3)
    """

    fn: Any
    counter: Counter = static()

    @property
    def num_calls(self) -> int:
        """What the wrapped model declares."""
        return _num_calls(self.fn)

    @property
    def differentiable(self) -> bool:
        """What the wrapped reward declares."""
        return getattr(self.fn, "differentiable", True)

    def __getattr__(self, name: str) -> Any:
        """`quadratic`, if the wrapped reward has a closed form; nothing else."""
        if name != "quadratic":
            raise AttributeError(f"Counted has no attribute {name!r}.")
        return self.fn.quadratic

    def __call__(self, *args: Any) -> Any:
        """The wrapped function's result."""
        return _counted(self.counter, self.fn, args)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _counted(counter: Counter, fn: Any, args: tuple) -> Any:
    _count(counter, "forward", args)
    return fn(*args)


def _forward(counter: Counter, fn: Any, args: tuple) -> tuple[Any, Any]:
    _count(counter, "forward", args)
    out, pull = jax.vjp(lambda f, a: f(*a), fn, args)
    return out, (pull, [_corner(leaf) for leaf in jax.tree.leaves(args)])


def _backward(counter: Counter, saved: tuple, cotangent: Any) -> tuple:
    pull, corners = saved
    _count(counter, "vjp", (corners, cotangent))
    return pull(cotangent)


_counted.defvjp(_forward, _backward)


def _count(counter: Counter, what: str, tree: Any) -> None:
    """A host callback that depends on every array of a tree, so that batching one of them batches the callback."""
    jax.debug.callback(functools.partial(counter.add, what), *map(_corner, jax.tree.leaves(tree)))


def _corner(leaf: Any) -> Array:
    """One entry of an array, as something a callback can take."""
    array = jnp.asarray(leaf) if not isinstance(leaf, jax.Array) else leaf
    if is_key(array):
        array = jax.random.key_data(array)
    return array.reshape(-1)[: min(1, int(np.prod(array.shape)))]
