r"""Gaussian random fields with a power-law spectrum: images for which everything is known in closed form.

A stationary field on a torus is diagonal in the Fourier basis. With F the orthonormal real Fourier transform over the
two image axes and X = F(x - mean),

    p(x) = prod_f N(X_f; 0, S_f),   S_f = 1 / (1 / P_f + precision),   P_f ~ scale^2 (|f|^2 + f_0^2)^(-exponent / 2),

with f in cycles per longer side of the image, f_0 = 1, and P normalised so that every pixel has variance scale^2 before
the precision is added. Noising keeps the basis: the variance of x_t at f is alpha^2 S_f + sigma^2 and

    E[x_0 | x_t] = mean + F' alpha S / (alpha^2 S + sigma^2) F (x_t - alpha mean).

A tilt by r(x) = -p |x|^2 / 2 + b.x + c is again such a field: p / temperature is added to `precision`, the mean moves.
Sums over all frequencies are taken over the half that a real transform keeps, each counted once or twice.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import require_temperature
from ntrk_jax.core import fused
from ntrk_jax.targets import tilted
from ntrk_jax.tree import derived, pytree, static
from ntrk_jax.typing import Array, Key, Sample, Scalar

__all__ = ["PowerLawField"]


@pytree
class PowerLawField:
    """A stationary Gaussian random field on a torus with a power-law spectrum, independent across channels.

    Attributes:
        shape: (H, W) or (H, W, C), static.
        exponent: [], of the power spectrum: 0 is white, 2 is smooth at large scales (natural images), 4 smoother.
        scale: [], the standard deviation of a pixel while precision is 0.
        centre: [] or [*shape], the mean.
        precision: [], added to the inverse of every Fourier variance; what a tilt or an observation adds.

    Shapes: x is [*shape] (or any shape with as many entries); scalars are [].
    Cost: one or two Fourier transforms a call, O(N log N).
    Dtype: samples have the dtype of x; the algebra is in at least float32.

    Raises:
        ValueError: if the shape is not an image's, the scale is not positive or a Fourier variance is not.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> field = PowerLawField((16, 16), exponent=2.0)
        >>> x = field.sample(jax.random.key(0), 2)
        >>> x.shape, field.denoise(x[0], 0.8, 0.6).shape
        ((2, 16, 16), (16, 16))
    """

    shape: tuple = static()
    exponent: Scalar = 2.0
    scale: Scalar = 1.0
    centre: Any = 0.0
    precision: Scalar = 0.0
    spectrum: Any = derived()

    def __post_init__(self) -> None:
        """Check the fields and tabulate S, [H, W // 2 + 1, 1]."""
        shape = tuple(self.shape)
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise ValueError(f"shape must be (H, W) or (H, W, C), got {shape}.")
        if np.shape(self.centre) not in ((), shape):
            raise ValueError(f"centre must be a number or of shape {shape}, got shape {np.shape(self.centre)}.")
        concrete = tilted.all_concrete(self.exponent, self.scale, self.precision)
        xp, kind = (np, np.float64) if concrete else (jnp, jnp.result_type(float))
        exponent, scale, precision = (xp.asarray(v, kind) for v in (self.exponent, self.scale, self.precision))
        if concrete and not (scale > 0 and np.isfinite(scale) and np.isfinite(exponent)):
            raise ValueError(f"scale must be positive and exponent finite, got {scale} and {exponent}.")
        power = xp.asarray(_square_frequencies(shape) + 1.0, kind) ** (-0.5 * exponent)
        total = xp.sum(power * xp.asarray(_counts(shape), kind)) / (shape[0] * shape[1])
        inverse = total / (scale**2 * power) + precision
        if concrete and not np.all(inverse > 0):
            raise ValueError(
                "every Fourier variance must be positive: precision must exceed minus the smallest inverse of the "
                f"power law, {-float((inverse - precision).min()):.6g}, got {float(precision):.6g}."
            )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "spectrum", jnp.asarray(1.0 / inverse, jnp.result_type(float))[:, :, None])

    @property
    def dim(self) -> int:
        """N, the number of entries of one field."""
        return int(np.prod(self.shape))

    def mean(self) -> Array:
        """The mean, [*shape]."""
        return jnp.broadcast_to(jnp.asarray(self.centre, self.spectrum.dtype), self.shape)

    @partial(fused, static_argnames="num")
    def sample(self, key: Key, num: int) -> Array:
        """Draws, [num, *shape]."""
        z = jax.random.normal(key, (num, *self.shape), self.spectrum.dtype)
        return self.mean()[None] + jax.vmap(lambda one: self._filter(jnp.sqrt(self.spectrum), one))(z)

    def log_prob(self, x: Sample) -> Array:
        """The log-density of one clean sample, []."""
        return self.log_prob_at(x, 1.0, 0.0)

    @fused
    def log_prob_at(self, x: Sample, alpha: Scalar, sigma: Scalar) -> Array:
        """The log-density of the law of x_t = alpha x_0 + sigma z at x, []."""
        off, spectrum, alpha, sigma = self._inputs(x, alpha, sigma)
        spread = alpha**2 * spectrum + sigma**2
        return -0.5 * (self._sum(self._power(off) / spread) + self._sum(jnp.log(2.0 * jnp.pi * spread)))

    def denoise(self, x: Sample, alpha: Scalar, sigma: Scalar) -> Sample:
        """The Tweedie mean E[x_0 | x_t = x], of the shape and dtype of x."""
        return tilted.like(self._posterior_mean(*self._inputs(x, alpha, sigma)), x)

    def score(self, x: Sample, alpha: Scalar, sigma: Scalar) -> Sample:
        """The gradient of `log_prob_at` in x, of the shape and dtype of x."""
        off, spectrum, alpha, sigma = self._inputs(x, alpha, sigma)
        return tilted.like(-self._filter(1.0 / (alpha**2 * spectrum + sigma**2), off), x)

    def posterior(self, x: Sample, alpha: Scalar, sigma: Scalar) -> PowerLawField:
        """The law of x_0 given x_t = x: again such a field, with precision (alpha / sigma)^2 more."""
        inputs = self._inputs(x, alpha, sigma)
        precision = jnp.asarray(self.precision, inputs[0].dtype) + (inputs[2] / inputs[3]) ** 2
        centre = self._posterior_mean(*inputs)
        return PowerLawField(self.shape, self.exponent, self.scale, centre, precision)

    @partial(fused, static_argnames="num")
    def posterior_draws(self, key: Key, x: Sample, alpha: Scalar, sigma: Scalar, num: int) -> tuple[Array, Array]:
        """Draws of x_0 given x_t = x, [num, *shape], differentiable in x, and log-weights 0, [num]."""
        off, spectrum, alpha, sigma = self._inputs(x, alpha, sigma)
        root = sigma * jnp.sqrt(spectrum / (alpha**2 * spectrum + sigma**2))
        z = jax.random.normal(key, (num, *self.shape), off.dtype)
        mean = self._posterior_mean(off, spectrum, alpha, sigma)
        return mean[None] + jax.vmap(lambda one: self._filter(root, one))(z), jnp.zeros((num,), off.dtype)

    def tilt(self, reward: Any, temperature: Scalar = 1.0) -> tilted.Tilted:
        """This law tilted by a linear reward, or a quadratic one whose P is a number; see `targets.tilt`."""
        require_temperature(temperature)
        law = self.value_function(reward, temperature)
        p, slope = law.slope(self.mean())
        spread = self.spectrum / (1.0 + p * self.spectrum)
        centre = self.mean() + self._filter(spread, slope)
        mixture = PowerLawField(self.shape, self.exponent, self.scale, centre, self.precision + p)
        log_z = law(jnp.zeros(self.shape, self.spectrum.dtype), 0.0, 1.0) / temperature
        return tilted.Tilted(mixture, log_z)

    def value_function(self, reward: Any, temperature: Scalar = 1.0) -> FieldValue:
        """The function (x, alpha, sigma) -> [] that `targets.value` evaluates."""
        require_temperature(temperature, finite=True)
        value = self._value(reward, temperature)
        if tilted.all_concrete(self, value.p, temperature):
            tilted.require_normalizable(1.0 + np.asarray(value.p) / np.asarray(temperature) * np.asarray(self.spectrum))
        return value

    def _value(self, reward: Any, temperature: Scalar) -> FieldValue:
        p, b, c = tilted.quadratic_of(reward, self.dim, self.spectrum.dtype, jnp)
        if p is not None and p.ndim:
            raise ValueError(
                "a field is tilted in closed form by a quadratic reward whose precision is a number (it must keep the "
                f"Fourier basis), got a matrix {p.shape}; use rewards.Quadratic(number, linear) or a GaussianMixture."
            )
        return FieldValue(self, jnp.zeros((), b.dtype) if p is None else p, b.reshape(self.shape), c, temperature)

    def expected_reward(self, reward: Any) -> Array:
        """E[r(x)] in closed form, []; see `targets.expected_reward`."""
        law, mean = self._value(reward, 1.0), self.mean()
        return law.reward(mean) - 0.5 * law.p * self._sum(jnp.broadcast_to(self.spectrum, self._half()))

    def _half(self) -> tuple:
        return (self.shape[0], self.shape[1] // 2 + 1, *(self.shape[2:] or (1,)))

    def _sum(self, values: Array) -> Array:
        """The sum over all frequencies and channels of what is known on half of them, []."""
        counts = jnp.asarray(_counts(self.shape), values.dtype)[:, :, None]
        return jnp.sum(jnp.broadcast_to(counts * values, self._half()))

    def _power(self, x: Array) -> Array:
        """|F x|^2 on half of the frequencies, [H, W // 2 + 1, C]."""
        image = jnp.fft.rfft2(x, axes=(0, 1), norm="ortho").reshape(self._half())
        return image.real**2 + image.imag**2

    @jax.jit
    def _filter(self, gain: Array, x: Array) -> Array:
        """F' gain F x for gain [H, W // 2 + 1, 1], [*shape]."""
        image = jnp.fft.rfft2(x, axes=(0, 1), norm="ortho").reshape(self._half())
        image = image * gain.astype(image.dtype)
        return jnp.fft.irfft2(image, s=self.shape[:2], axes=(0, 1), norm="ortho").reshape(self.shape)

    @fused
    def _posterior_mean(self, off: Array, spectrum: Array, alpha: Array, sigma: Array) -> Array:
        """E[x_0 | x_t] from off = x - alpha mean; through (x + sigma^2 score) / alpha where alpha > sigma."""
        clean, spread = alpha > sigma, alpha**2 * spectrum + sigma**2
        safe = jnp.where(clean, alpha, jnp.ones_like(alpha))
        gain = jnp.where(clean, -(sigma**2) / (safe * spread), alpha * spectrum / spread)
        start = jnp.where(clean, off / safe, jnp.zeros_like(off))
        return self.mean().astype(off.dtype) + start + self._filter(gain, off)

    def _inputs(self, x: Sample, alpha: Scalar, sigma: Scalar) -> tuple[Array, Array, Array, Array]:
        """The offset x - alpha mean [*shape], the spectrum and the coefficients, in one dtype."""
        x, dtype = jnp.asarray(x), self.spectrum.dtype
        if x.size != self.dim:
            raise ValueError(
                f"x must be one sample of shape {self.shape}, got shape {x.shape}; use jax.vmap for a batch."
            )
        if jnp.issubdtype(x.dtype, jnp.floating):
            dtype = np.promote_types(dtype, x.dtype)
        alpha, sigma = jnp.asarray(alpha, dtype), jnp.asarray(sigma, dtype)
        off = x.reshape(self.shape).astype(dtype) - alpha * self.mean().astype(dtype)
        return off, self.spectrum.astype(dtype), alpha, sigma


@pytree
class FieldValue:
    """The value of a field under r(x) = -p |x|^2 / 2 + b.x + c; made by `PowerLawField.value_function`."""

    field: PowerLawField
    p: Any
    b: Any
    c: Any
    temperature: Scalar

    def reward(self, x: Array) -> Array:
        """r(x), []."""
        p, b, c = (v.astype(x.dtype) for v in (self.p, self.b, self.c))
        return jnp.sum((b - 0.5 * p * x) * x) + c

    def slope(self, x: Array) -> tuple[Array, Array]:
        """The number p / temperature [] and the gradient of r / temperature at x [*shape]."""
        beta = jnp.asarray(self.temperature, x.dtype)
        p = self.p.astype(x.dtype) / beta
        return p, self.b.astype(x.dtype) / beta - p * x

    def __call__(self, x: Sample, alpha: Scalar, sigma: Scalar) -> Array:
        """The value at a noised sample x [*shape], []."""
        off, spectrum, alpha, sigma = self.field._inputs(x, alpha, sigma)
        mean = self.field._posterior_mean(off, spectrum, alpha, sigma)
        left = sigma**2 * spectrum / (alpha**2 * spectrum + sigma**2)
        p, slope = self.slope(mean)
        spread = 1.0 + p * left
        gain = self.field._sum(self.field._power(slope) * left / spread - jnp.log1p(p * left))
        return self.reward(mean) + 0.5 * jnp.asarray(self.temperature, mean.dtype) * gain


def _square_frequencies(shape: tuple) -> np.ndarray:
    """|f|^2 in cycles per longer side, [H, W // 2 + 1]."""
    side = max(shape[:2])
    rows, columns = np.fft.fftfreq(shape[0]) * side, np.fft.rfftfreq(shape[1]) * side
    return rows[:, None] ** 2 + columns[None, :] ** 2


def _counts(shape: tuple) -> np.ndarray:
    """How many of all frequencies each column of the half stands for, [1, W // 2 + 1]."""
    counts = np.full((1, shape[1] // 2 + 1), 2.0)
    counts[0, 0] = 1.0
    if shape[1] % 2 == 0:
        counts[0, -1] = 1.0
    return counts
