r"""Denoising losses: the weighted mean square of a prediction against its target at a random time.

With x_t = alpha x_0 + sigma z and z standard normal, every parametrisation's target is an affine function of
(x_0, z), and the best prediction is its mean given x_t:

| kind | target | error in x0 per unit error of the prediction |
|---|---|---|
| `x0` | x_0 | 1 |
| `eps` | z | sigma / alpha |
| `score` | -z / sigma | sigma^2 / alpha |
| `v` | alpha z - sigma x_0 | sigma / (alpha^2 + sigma^2) |
| `velocity` | alpha' x_0 + sigma' z | sigma / (alpha' sigma - alpha sigma') |

The minimiser does not depend on the weight of a time, only how hard each time is pressed does.
Loss functions act on one sample and one key; the trainer vmaps them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax import tweedie
from ntrk_jax.arguments import require_schedule, require_times
from ntrk_jax.core import algebra_dtype
from ntrk_jax.models.flax import network_input
from ntrk_jax.schedules import Schedule, rates
from ntrk_jax.tree import is_concrete, pytree, static
from ntrk_jax.typing import Array, Key, PyTree, Sample, Scalar

__all__ = ["TIMES", "WEIGHTS", "DenoisingLoss"]

TIMES = ("uniform", "logit-normal")
WEIGHTS = ("prediction", "x0", "snr")


@pytree
class DenoisingLoss:
    """How wrong a network's prediction is at one random time: loss(key, params, sample) -> [].

        t ~ times,  x_t = alpha x_0 + sigma z,  loss = w(t) mean |apply(params, x_t, t) - target|^2

    Attributes:
        apply: (params, x, t[, cond]) -> prediction of `kind`, on one sample, or on batches with `batched`.
        kind: one of `tweedie.KINDS`.
        schedule: t -> (alpha, sigma).
        times: "uniform" on [low, high], or "logit-normal": sigmoid of N(mean, spread^2), mapped to [low, high]
            (Esser et al. 2024, arXiv:2403.03206, section 3.1).
        weight: "prediction" (1), "x0" (the error in x0, a finite number at every time) or "snr" (the error in
            x0 times min(alpha^2 / sigma^2, max_snr); Hang et al. 2023, arXiv:2303.09556).
        low, high: the range of times in [0, 1]; at 0, where the noise vanishes, only some kinds are finite.
        mean, spread: the parameters of "logit-normal".
        max_snr: the largest weight of "snr", positive.
        batched: whether `apply` takes a leading batch axis, as in `models.FlaxDenoiser`. Static.

    Shapes: sample [*shape], or a pair (sample [*shape], cond). Result [].
    Cost: one network evaluation.

    Raises:
        ValueError: if kind, times or weight is not one of the names above, or a number is out of its range.

    Example:
        >>> import jax, jax.numpy as jnp, ntrk_jax as nk
        >>> loss = DenoisingLoss(lambda w, x, t: w * x, "x0", nk.schedules.VPCosine())
        >>> loss(jax.random.key(0), 0.5, jnp.ones(3)).shape
        ()
    """

    apply: Callable[..., Any] = static()
    kind: str = static()
    schedule: Schedule
    times: str = static(default="uniform")
    weight: str = static(default="prediction")
    low: Scalar = 1e-3
    high: Scalar = 1.0
    mean: Scalar = 0.0
    spread: Scalar = 1.0
    max_snr: Scalar = 5.0
    batched: bool = static(default=False)

    def __post_init__(self) -> None:
        """Refuse unknown names and numbers that mean nothing."""
        require_schedule(self.schedule)
        for name, value, allowed in (
            ("kind", self.kind, tweedie.KINDS), ("times", self.times, TIMES), ("weight", self.weight, WEIGHTS),
        ):  # fmt: skip
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")
        require_times(self.low, self.high)
        if is_concrete(self.max_snr) and not np.all(np.asarray(self.max_snr) > 0):
            raise ValueError(f"max_snr must be positive, got {self.max_snr}.")

    def time(self, key: Key, dtype: Any = jnp.float32) -> Array:
        """A random time, []."""
        if self.times == "uniform":
            u = jax.random.uniform(key, (), dtype)
        else:
            u = jax.nn.sigmoid(self.mean + self.spread * jax.random.normal(key, (), dtype))
        return self.low + (self.high - self.low) * u

    def __call__(self, key: Key, params: PyTree, sample: Any) -> Array:
        """The loss of one sample at one random time and noise."""
        x0, cond = sample if isinstance(sample, tuple | list) else (sample, None)
        time_key, noise_key = jax.random.split(key)
        dtype = algebra_dtype(x0)
        t, x0 = self.time(time_key, dtype), x0.astype(dtype)
        z = jax.random.normal(noise_key, x0.shape, dtype)
        alpha, sigma = self.schedule(t)
        slope = rates(self.schedule, t)
        args: tuple = network_input(params, alpha * x0 + sigma * z, t)  # as `models.FlaxDenoiser` will ask it
        args = args if cond is None else (*args, cond)
        if self.batched:
            prediction = self.apply(params, *jax.tree.map(lambda a: jnp.asarray(a)[None], args))[0]
        else:
            prediction = self.apply(params, *args)
        if jnp.shape(prediction) != x0.shape:
            raise ValueError(
                f"the network must predict the shape of one sample, {x0.shape}, got {jnp.shape(prediction)}; "
                "one of batches needs batched=True."
            )
        error = prediction.astype(dtype) - self._target(x0, z, alpha, sigma, slope)
        return self._weight(alpha, sigma, slope) * jnp.mean(jnp.square(error))

    def _target(self, x0: Sample, z: Sample, alpha: Scalar, sigma: Scalar, slope: tuple[Array, Array]) -> Sample:
        if self.kind == "x0":
            return x0
        if self.kind == "eps":
            return z
        if self.kind == "score":
            return -z / sigma
        if self.kind == "v":
            return alpha * z - sigma * x0
        return slope[0] * x0 + slope[1] * z

    def _weight(self, alpha: Array, sigma: Array, slope: tuple[Array, Array]) -> Array:
        if self.weight == "prediction":
            return jnp.ones_like(sigma)
        one, zero = jnp.ones((), sigma.dtype), jnp.zeros((), sigma.dtype)
        into_x0 = tweedie.to_x0(self.kind, one, zero, jnp.maximum(alpha, 1e-3), sigma, slope)
        if self.weight == "x0":
            return jnp.square(into_x0)
        return jnp.square(into_x0) * jnp.minimum(jnp.square(alpha / sigma), self.max_snr)
