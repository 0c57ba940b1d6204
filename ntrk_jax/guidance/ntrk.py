r"""The Noise-Tilted Reverse Kernel: the pretrained mean and scale stay, the reward enters through the noise.

    x_s = mu + sigma (sqrt(rho) W(g) + sqrt(1 - rho) z),     z ~ N(0, I),  g = d value / d x_t

W makes a gradient look like typical Gaussian noise of norm sqrt(N) without losing its direction. With a constant rho
the kernel is an optimiser: what it aims at moves with the number of steps (like sqrt(num_steps)) and with N. Matching
the tilt of the noise to the exactly tilted kernel of a locally linear value, N(mu + sigma^2 g / beta, sigma^2 I), gives

    sqrt(rho N) = sigma |g| / beta,

which turns rho into a temperature (`Calibrated`): rho is then of the order of the row, the variance discount 1 - rho
vanishes as rows shrink, and if the value is exact the sampler converges to p exp(r / beta).

`Steady` keeps the optimiser but not its growth with the number of rows: rho is of the order of the row here too.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ntrk_jax.arguments import refuse_class, require_called
from ntrk_jax.core import Gaussian, Lookahead, Step, Tilt, Whitening, over_largest, root
from ntrk_jax.guidance.base import Strength, require, strength_at
from ntrk_jax.guidance.shift import ascend, unit
from ntrk_jax.tree import pytree, static
from ntrk_jax.typing import Array, Key, Scalar

__all__ = ["NTRK", "Calibrated", "Steady"]


@pytree
class Calibrated:
    """A strength that is a temperature: the law aimed at does not depend on the number of steps.

        rho = min(max_strength, (sigma |g| / temperature)^2 / N)

    The tilted law is reached with a memoryless base kernel, one that draws as much noise as the forward process took
    away (DDIM(1), DDPM, FlowSDE(1)), started from pure noise: only then is the law of x_0 given x_t the posterior that
    the value averages over. With a kernel of less noise part of the tilt would have to sit in the initial noise.

    Attributes:
        temperature: beta in p exp(r / beta); positive, infinity is no guidance.
        max_strength: the largest rho, below 1; used by where="gradient" alone.

    Departs from the paper: the paper gives no rule for rho.
    """

    temperature: Scalar = 1.0
    max_strength: Scalar = 0.99

    def __post_init__(self) -> None:
        """Refuse a temperature that is not positive and a largest rho outside [0, 1)."""
        require("temperature", self.temperature, 1e-30, float("inf"), number=True)
        require("max_strength", self.max_strength, 0.0, 1.0, open_above=True)


@pytree
class Steady:
    """A strength that follows the noise which a row renews, so that the push converges as rows grow.

        rho = min(max_strength, strength^2 (sigma / sigma_t)^2 / sigma_t)

    with sigma the kernel's and sigma_t the sample's standard deviation. (sigma / sigma_t)^2 is the share of the noise's
    variance that the row renews; a row pushes x_s by strength sqrt(N sigma_t) times that share, and the sum over rows
    converges as they shrink.

    Attributes:
        strength: at least 0; 0 is the base kernel, bit for bit.
        max_strength: the largest rho, below 1.

    Shapes: one rho [] a row. Cost per step: none.
    Departs from the paper: the paper gives no rule for rho. The last power of sigma_t is not derived: 1, 1/2 and 0 all
        converge or nearly so, and on digits 1/2 was the best at 25 and at more rows, by little.
    """

    strength: Scalar = 0.5
    max_strength: Scalar = 0.99

    def __post_init__(self) -> None:
        """Refuse a negative strength and a largest rho outside [0, 1)."""
        require("Steady strength", self.strength, 0.0, float("inf"), number=True)
        require("max_strength", self.max_strength, 0.0, 1.0, open_above=True)


@pytree
class NTRK:
    r"""The noise-tilted reverse kernel: bias the noise, leave the mean alone.

    `where="gradient"` is the paper: the gradient is whitened, then mixed with fresh noise,

        x_s = mu + sigma (sqrt(rho) W(g) + sqrt(1 - rho) z).

    `where="mixed"` mixes first and whitens the mixture, which leaves a small tilt alone and takes out of a strong one
    only what is atypical. With a number rho, and with `Calibrated(beta)`,

        x_s = mu + sigma P(sqrt(rho N) g / |g| + sqrt(1 - rho) z),     x_s = mu + sigma P(z + sigma g / beta),

    where P is `whiten.project`. The second needs no variance discount and is exact in the limit of small rows.

    Attributes:
        whiten: a `Whitening` for arrays of the sample's shape.
        strength: rho in [0, 1), a function of the grid's row, `Steady(strength)` or `Calibrated(temperature)`. 0 is
            the base kernel, bit for bit.
        where: "gradient" or "mixed".
        through: whether g is the value's gradient through the network. False takes the reward's own at x0, which W
            brings to the same length: no backward pass of the network, and no look with a gradient.

    Shapes: look.x0, look.grad, base.mean [*shape]; base.std [].
    Cost per step: one whitening; no evaluation beyond the look's (needs Look(grad=True)), or without `through` one
        reward gradient (Look(grad=False)).
    Density: where="gradient" is an affine Gaussian given the look, so log_ratio is exact; its variance is about rho N a
        row, so weights are of use only while rho N is about 1. where="mixed" has no density through P.
    Errors: ValueError for `Calibrated` without `through`: a temperature needs the gradient's length. Without `through`
        a gradient that is not finite leaves the base kernel alone and sets a flag, as the look does with its own.
    Departs from the paper: where="mixed", through=False, `Steady` and `Calibrated` are additions; no gradient leaves
        the base kernel alone.
    References: Hwang, Min, Kim, Shen, Sung 2026, "NoiseTilt: Noise-Tilted Reverse Kernels for Diffusion Reward
        Alignment", arXiv:2606.18066.

    Example:
        >>> import ntrk_jax as nk
        >>> rule = nk.guidance.NTRK(nk.whitening.UnitNorm(), strength=0.1)
        >>> rule.exact, rule.needs_grad
        (True, True)
    """

    whiten: Whitening
    strength: Strength | Calibrated | Steady = 0.05
    where: str = static(default="gradient")
    through: bool = static(default=True)

    needs_noise = True

    def __post_init__(self) -> None:
        """Refuse an unknown place and a rho outside [0, 1)."""
        require_called("whiten", self.whiten, "nk.whitening.TypicalSet(shape)")
        if not hasattr(self.whiten, "project"):
            raise TypeError("whiten must have a method project(z, key) too, as those of nk.whitening have.")
        refuse_class("strength", self.strength)
        if self.where not in ("gradient", "mixed"):
            raise ValueError(f"where must be 'gradient' or 'mixed', got {self.where!r}.")
        if isinstance(self.strength, Calibrated) and not self.through:
            raise ValueError("Calibrated needs the value's gradient through the network; use through=True or Steady.")
        if not isinstance(self.strength, Calibrated | Steady):
            require("NTRK strength", self.strength, 0.0, 1.0, open_above=True)

    @property
    def needs_grad(self) -> bool:
        """Whether the look's gradient is read."""
        return self.through

    @property
    def needs_reward_grad(self) -> bool:
        """Whether the reward itself is differentiated."""
        return not self.through

    @property
    def exact(self) -> bool:
        """Whether log_ratio is the proposal's exact density ratio."""
        return self.where == "gradient"

    def __call__(self, look: Lookahead, base: Gaussian, step: Step, *, key: Key, probe: Any) -> Tilt:
        """The tilt of the noise."""
        grad, tilt = (look.grad, Tilt()) if self.through else ascend(look, step, probe, key, 1.0, 1)
        if self.where == "mixed" and isinstance(self.strength, Calibrated):
            noise = base.std / self.strength.temperature * grad
            return tilt._replace(noise=noise, scale=1.0, project=self.whiten.project)
        rho, some = self._rho(grad, base, step), jnp.any(grad != 0)
        scale = jnp.sqrt(1.0 - rho)
        scale = jnp.where(some, scale, jnp.ones_like(scale))
        if self.where == "mixed":
            return tilt._replace(noise=root(rho) * unit(grad), scale=scale, project=self.whiten.project)
        noise = root(rho) * self.whiten(grad, key if getattr(self.whiten, "needs_key", True) else None)
        return tilt._replace(noise=jnp.where(some, noise, jnp.zeros_like(noise)), scale=scale)

    def _rho(self, grad: Array, base: Gaussian, step: Step) -> Array:
        if isinstance(self.strength, Steady):
            push = jnp.asarray(self.strength.strength, grad.dtype) * base.std / step.sigma_t**1.5
            return jnp.minimum(jnp.square(jnp.minimum(push, 1.0)), self.strength.max_strength)  # no overflow
        if isinstance(self.strength, Calibrated):
            whole = jnp.max(jnp.abs(grad))
            mean_square = jnp.mean(jnp.square(over_largest(grad)))
            tilt = base.std / self.strength.temperature * whole * root(mean_square)
            return jnp.minimum(jnp.square(jnp.minimum(tilt, 1.0)), self.strength.max_strength)  # no overflow
        return jnp.asarray(strength_at(self.strength, step), grad.dtype)
