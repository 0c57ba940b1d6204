"""A target whose denoiser is known in closed form, as a model."""

from __future__ import annotations

from typing import Any

from ntrk_jax.arguments import require_schedule
from ntrk_jax.schedules import Schedule
from ntrk_jax.tree import pytree
from ntrk_jax.typing import Sample, Scalar

__all__ = ["Exact"]


@pytree
class Exact:
    """The model without error: x0 = target.denoise(x, alpha, sigma), (alpha, sigma) = schedule(t).

    Attributes:
        target: anything with `denoise(x, alpha, sigma)`, such as the mixtures and fields of `ntrk_jax.targets`.
        schedule: t -> (alpha, sigma).

    Shapes: x [*shape], t [] -> [*shape].
    Cost: one denoising of the target; counted as one model evaluation.

    Example:
        >>> import jax.numpy as jnp, ntrk_jax as nk
        >>> normal = nk.targets.GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.eye(2)[None])
        >>> x0 = Exact(normal, nk.schedules.RectifiedFlow())(jnp.ones(2), 0.5)
        >>> [round(v, 5) for v in x0.tolist()]
        [1.0, 1.0]
    """

    target: Any
    schedule: Schedule

    num_calls = 1

    def __post_init__(self) -> None:
        """Refuse what is no target and no schedule."""
        if not hasattr(self.target, "denoise"):
            raise TypeError(f"Exact needs a target with denoise(x, alpha, sigma), got {type(self.target).__name__}.")
        require_schedule(self.schedule)

    def __call__(self, x: Sample, t: Scalar, cond: Any = None) -> Sample:
        """The Tweedie mean at (x, t); the condition is ignored."""
        alpha, sigma = self.schedule(t)
        return self.target.denoise(x, alpha, sigma)
