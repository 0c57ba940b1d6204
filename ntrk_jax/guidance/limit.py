r"""A bound on how far a rule may push in one row, in units of the kernel's own noise.

With d = mean / std + noise the push of an affine rule, log p(x_s) - log q(x_s) has variance |d|^2 under q. A plug-in
gradient can be many standard deviations long where the posterior is wide (between the modes of a mixture it is the
Jacobian of the denoiser that is large): the proposal then never visits where the base kernel goes, and importance
weights lose what lies there. Bounding |d| bounds the variance of each row's log-weight and leaves the density exact.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ntrk_jax.arguments import require_rule
from ntrk_jax.core import Gaussian, Guidance, Lookahead, Step, Tilt, root
from ntrk_jax.guidance.base import passed_on, require
from ntrk_jax.tree import pytree
from ntrk_jax.typing import Key, Scalar

__all__ = ["Limit"]


@pytree
class Limit:
    """A rule whose push is scaled down to at most `norm` standard deviations of the kernel's noise.

        d = mean / std + noise,     d <- d min(1, norm / |d|)

    The same shortened push moves the sample and enters log_ratio. Rows without noise are left as the rule has them.

    Attributes:
        rule: the rule, affine.
        norm: the largest |d|, positive; infinity is the rule itself. About 1 keeps weights usable in any dimension.

    Shapes: as the rule's.
    Cost per step: one norm, no evaluation.
    Density: as the rule's.
    Departs from the paper: published twisted samplers clip the gradient or the sample instead.
    References: Wu et al. 2023, arXiv:2306.17775, appendix on truncation.

    Example:
        >>> import ntrk_jax as nk
        >>> nk.guidance.Limit(nk.guidance.DPS(1.0), 2.0).exact
        True
    """

    rule: Guidance
    norm: Scalar = 1.0

    def __post_init__(self) -> None:
        """Refuse a bound that is not positive."""
        require_rule("the rule of Limit", self.rule)
        require("Limit norm", self.norm, 1e-30, float("inf"), number=True)

    needs_grad = passed_on("needs_grad")
    needs_reward_grad = passed_on("needs_reward_grad", False)
    needs_noise = passed_on("needs_noise", False)
    exact = passed_on("exact")

    def __call__(self, look: Lookahead, base: Gaussian, step: Step, *, key: Key, probe: Any) -> Tilt:
        """The rule's tilt, shortened."""
        tilt = self.rule(look, base, step, key=key, probe=probe)
        noisy = base.std > 0
        push = tilt.mean / jnp.where(noisy, base.std, jnp.ones_like(base.std)) + tilt.noise
        push = jnp.broadcast_to(push, base.mean.shape)
        largest = jax.lax.stop_gradient(jnp.max(jnp.abs(push)))
        largest = jnp.where(largest > 0, largest, jnp.ones_like(largest))
        norm = jnp.asarray(self.norm, push.dtype) / largest
        length = root(jnp.sum(jnp.square(push / largest)))  # in units of the largest entry: no square overflows
        share = jnp.where(noisy & (length > norm), norm / jnp.maximum(length, norm), jnp.ones_like(length))
        return tilt._replace(mean=share * tilt.mean, noise=share * tilt.noise)
