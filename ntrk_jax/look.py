"""look: ask the model and the reward once at the current x. The only stage that spends evaluations."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ntrk_jax.arguments import as_shape, refuse_class, refuse_network, require_called, require_scalar, valueless
from ntrk_jax.core import Denoiser, Evals, Lookahead, Reward, Status, Value, algebra_dtype
from ntrk_jax.tree import pytree, static
from ntrk_jax.typing import Array, Key, Sample, Scalar
from ntrk_jax.varying import vary

__all__ = ["Look"]


@pytree
class Look:
    """What is asked of the model and the reward at each x: x0, and the value and its gradient if wanted.

        x0 = model(x, t),   value = r(x0) (or another `values` object),   grad = d value / d x

    At t = 0 the Tweedie mean of x is x itself: the model is not called and the value is the true reward r(x).

    Attributes:
        model: a `Denoiser`, (x [*shape], t []) -> x0 [*shape]. It sees x in the dtype of the Gaussian algebra
            (float32 for bfloat16 latents); `models.Cast` runs a network in bfloat16.
        reward: x0 [*shape] -> [], or None.
        grad: whether to differentiate the value with respect to x.
        value: what stands for the soft value at x_t; None is the plug-in r(x0), one reward call. A value with a method
            `through(key, x, t, x0, pull, reward) -> (value, gradient)` is handed the model's pullback u -> (dx0/dx)'u,
            of which it makes `num_vjps` uses.
        shape: of one sample, static; another x is refused, such as a batch that was not vmapped. None takes any.

    Shapes: x [*shape] -> Lookahead(x, x0 [*shape], value [], grad [*shape]); value and grad are None unless asked for.
    Cost per look: `model.num_calls` (default 1) model calls and the value's rewards; with grad, as many VJPs.
    Errors: ValueError for an x of another shape, or if a gradient is asked of no reward, or of one that has none (a
        host callback).
        A non-finite value or gradient raises nothing: it sets a status bit, and a non-finite gradient is
        replaced by zero, so that the sample goes on unguided and its neighbours are untouched.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> look = Look(lambda x, t: 0.5 * x, lambda x0: x0.sum(), grad=True)
        >>> seen, evals, status = look(jax.random.key(0), jnp.ones(2), 0.5)
        >>> seen.grad.tolist(), evals.model_vjp
        ([0.5, 0.5], 1)
    """

    model: Denoiser
    reward: Reward | None = None
    grad: bool = static(default=False)
    value: Value | None = None
    shape: tuple[int, ...] | None = static(default=None)

    def __post_init__(self) -> None:
        """Refuse combinations that cannot be evaluated."""
        object.__setattr__(self, "shape", None if self.shape is None else as_shape(self.shape))
        for name, part in (("model", self.model), ("reward", self.reward), ("value", self.value)):
            refuse_class(name, part)
        refuse_network("model", self.model)
        if self.reward is not None:
            require_called("reward", self.reward, "nk.rewards.Linear(a)")
        if not callable(self.model):
            raise TypeError(f"Look needs a denoiser called as model(x, t), got {type(self.model).__name__}.")
        if self.value is not None and not hasattr(self.value, "num_rewards"):
            raise TypeError(
                "Look's value must be one of nk.values (or have needs_x0 and num_rewards); a reward goes first."
            )
        if self.grad and self.reward is None and self.value is None:
            raise ValueError("Look(grad=True) needs a reward to differentiate; pass Look(model, reward, grad=True).")
        if self.reward is None and self.value is not None and not hasattr(self.value, "reward"):
            raise ValueError("Look needs the reward itself for the last step; pass Look(model, reward, value=...).")
        uses_reward = self.value is None or self.value.num_rewards > 0
        if self.grad and uses_reward and not getattr(self.reward, "differentiable", True):
            raise ValueError(
                f"Look(grad=True) needs a differentiable reward, but {valueless(self.reward)} gives values only; "
                "use a method that needs no gradient, such as best_of_n."
            )

    def __call__(self, key: Key, x: Sample, t: Scalar) -> tuple[Lookahead, Evals, Array]:
        """The look at (x, t) for t > 0, what it cost, and its status bits."""
        self._require_shape(x)
        dtype = algebra_dtype(x)
        t = jnp.asarray(t, dtype)

        def through_model(point: Sample) -> tuple[Any, Sample]:
            x0 = self._tweedie(point, t)
            return self._value(key, point, t, x0), x0

        point = x.astype(dtype)
        if hasattr(self.value, "through"):
            x0, pull = jax.vjp(lambda p: self._tweedie(p, t), point)
            value, grad = self.value.through(key, point, t, x0, lambda u: pull(u)[0], self.reward)  # type: ignore[union-attr]
            seen, status = _sane(x, x0, value, grad)
            return seen if self.grad else seen._replace(grad=None), self.evals, status
        if not self.grad:
            value, x0 = through_model(point)
            return Lookahead(x, x0, value), self.evals, _status(value, None, x0)
        if self._through_model:
            (value, x0), grad = jax.value_and_grad(through_model, has_aux=True)(point)
        else:
            x0 = self._tweedie(point, t)
            value, grad = jax.value_and_grad(lambda p: self._value(key, p, t, x0))(point)
        seen, status = _sane(x, x0, value, grad)
        return seen, self.evals, status

    def final(self, x: Sample) -> tuple[Lookahead, Evals, Array]:
        """The look at t = 0: no model call, the true reward, and a gradient of zero where there is one."""
        self._require_shape(x)
        x0 = x.astype(algebra_dtype(x))
        value = None if not self._has_value else self._true_reward(x0)
        grad = jnp.zeros_like(x0) if self.grad else None
        evals = Evals(reward=int(self._has_value))
        return Lookahead(x, x0, value, grad), evals, _status(value, None, x0)

    def at(self, key: Key, x: Sample, t: Scalar, sigma: Scalar) -> tuple[Lookahead, Evals, Array]:
        """The look at (x, t), which is the final one where sigma = 0; only one of the two is executed."""
        last = jnp.asarray(sigma) == 0
        like = (key, x, t)
        return jax.lax.cond(
            last, lambda k: vary(_arrays(self.final(x)), like), lambda k: vary(_arrays(self(k, x, t)), like), key
        )

    def apart(self, key: Key, x: Sample, t: Scalar, sigma: Scalar) -> tuple[Lookahead, Evals, Array]:
        """The look at (x, t) for sigma > 0, compiled apart from what is around it, so that it rounds alike everywhere.

        A barrier does not keep a CPU from fusing, and a branch costs a GPU 10 us and a CPU its second thread: the bits
        pass through an operation that the compiler cannot see to do nothing, which costs nothing.
        """
        seen, evals, status = vary(_arrays(self(key, x, t)), (key, x, t))
        unseen = jnp.asarray(sigma) < 0
        x0, grad = jax.tree.map(lambda a: _fence(a, unseen), (seen.x0, seen.grad))
        return seen._replace(x0=x0, grad=grad), evals, status

    @property
    def evals(self) -> Evals:
        """The evaluations of one look at t > 0."""
        model = int(getattr(self.model, "num_calls", 1))
        num_rewards = int(self.reward is not None) if self.value is None else self.value.num_rewards
        vjps = getattr(self.value, "num_vjps", self.grad and self._through_model)
        return Evals(model, model * vjps, num_rewards, num_rewards * self.grad)

    @property
    def _has_value(self) -> bool:
        return self.reward is not None or self.value is not None

    @property
    def _through_model(self) -> bool:
        return self.value is None or self.value.needs_x0

    def _require_shape(self, x: Sample) -> None:
        if self.shape is not None and x.shape != self.shape:
            raise ValueError(
                f"the sampler was built for samples of shape {self.shape}, got x of shape {x.shape}; jax.vmap over a "
                "batch, and give a population [num_particles, *shape]."
            )

    def _tweedie(self, x: Sample, t: Scalar) -> Sample:
        x0 = self.model(x, t)
        if jnp.shape(x0) != x.shape:
            raise ValueError(f"the model must return x0 of the shape of x, {x.shape}, got {jnp.shape(x0)}.")
        return x0.astype(x.dtype)

    def _value(self, key: Key, x: Sample, t: Scalar, x0: Sample) -> Any:
        if not self._has_value:
            return None
        try:
            value = self.reward(x0) if self.value is None else self.value(key, x, t, x0, self.reward)  # type: ignore[misc]
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
            error.add_note("A reward is traced by JAX; one that runs in Python enters as nk.rewards.External(reward).")
            raise
        return _scalar(value, x.dtype)

    def _true_reward(self, x0: Sample) -> Array:
        if self.reward is not None:
            return _scalar(self.reward(x0), x0.dtype)
        assert self.value is not None
        return _scalar(self.value.reward(x0), x0.dtype)  # type: ignore[attr-defined]


@jax.custom_jvp
def _fence(x: Array, flip: Array) -> Array:
    """X itself where not `flip`, which a compiler must not know: no arithmetic is contracted across it."""
    bits = jnp.dtype(f"int{8 * x.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(x, bits) ^ flip.astype(bits), x.dtype)


@_fence.defjvp
def _fence_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    return _fence(*primals), tangents[0]


def _scalar(value: Any, dtype: Any) -> Array:
    return jnp.asarray(require_scalar(value)).astype(dtype)


def _sane(x: Sample, x0: Sample, value: Any, grad: Array) -> tuple[Lookahead, Array]:
    """The look with a gradient that is not finite replaced by zero, and its status bits."""
    safe = jnp.where(jnp.all(jnp.isfinite(grad)), grad, jnp.zeros_like(grad))
    return Lookahead(x, x0, value, safe), _status(value, grad, x0)


def _status(value: Any, grad: Any, x0: Sample) -> Array:
    def bit(array: Any, flag: int) -> Array:
        bad = jnp.zeros((), bool) if array is None else ~jnp.all(jnp.isfinite(array))
        return jnp.where(bad, jnp.int32(flag), jnp.int32(0))

    value_bit = bit(value, Status.NONFINITE_REWARD)
    return value_bit | bit(grad, Status.NONFINITE_GRAD) | bit(x0, Status.NONFINITE_SAMPLE)


def _arrays(out: tuple[Lookahead, Evals, Array]) -> tuple[Lookahead, Evals, Array]:
    seen, evals, status = out
    return seen, Evals(*evals).as_arrays(), status
