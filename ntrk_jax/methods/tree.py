"""Trees: paths that branch, with rewards carried back to where they branched."""

from __future__ import annotations

from typing import Any

from ntrk_jax.core import Denoiser, Guidance, Kernel, Reward, Step
from ntrk_jax.kernels import DDIM
from ntrk_jax.methods.entry import Entry, look_at
from ntrk_jax.samplers import DTS
from ntrk_jax.typing import Scalar

__all__ = ["dts", "dts_star"]


def dts(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    grid: Step,
    temperature: Scalar = 1.0,
    tempering: Scalar = 8.0,
    widening: Scalar = 2.0,
    power: Scalar = 0.8,
    exploration: Scalar | None = None,
    num_levels: int | None = None,
    num_rollouts: int = 100,
    kernel: Kernel | None = None,
    guidance: Guidance | None = None,
) -> DTS:
    """Diffusion Tree Sampling: branch where rewards were high, in the proportions of the tilted law.

    num_levels: by default the largest number up to 5 that divides the rows of the grid into segments of two or more.
    """
    if num_levels is None:
        rows = grid.num_steps
        num_levels = max((n for n in range(1, 6) if rows % n == 0 and rows >= 2 * n), default=1)
    look = look_at(model, reward, shape, guidance)
    numbers = temperature, tempering, widening, power, exploration
    return DTS(look, kernel or DDIM(eta=1.0), grid, guidance, *numbers, num_levels, num_rollouts)


def dts_star(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    grid: Step,
    exploration: Scalar = 0.3,
    temperature: Scalar = 0.03,
    widening: Scalar = 1.0,
    power: Scalar = 0.5,
    **parts: Any,
) -> DTS:
    """Diffusion Tree Search: the same tree, deeper, and grown towards the highest reward; the best leaf is kept.

    exploration, temperature: in the units of the reward. A low temperature makes a node worth its best leaf.
    """
    numbers = {"exploration": exploration, "temperature": temperature, "widening": widening, "power": power}
    return dts(model, reward, shape, grid=grid, **numbers, **parts)


_NEEDS = "model, any reward, stochastic kernel"
_COST = "a path's NFE a rollout, 1 reward a leaf"

ENTRIES: dict[str, Entry] = {
    "dts": Entry(dts, "Diffusion Tree Sampling", _NEEDS, _COST, "the tilted law as rollouts grow", tree=True),
    "dts_star": Entry(dts_star, "Diffusion Tree Search (DTS*)", _NEEDS, _COST, "no; the best leaf", tree=True),
}
