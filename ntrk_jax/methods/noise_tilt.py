"""NTRK: the reward enters through the noise."""

from __future__ import annotations

from typing import Any

from ntrk_jax.arguments import require_temperature_of
from ntrk_jax.core import Denoiser, Kernel, Reward, Value, Whitening
from ntrk_jax.guidance import MPGD, NTRK, Calibrated, Ending, Steady, Sum
from ntrk_jax.guidance.base import Strength
from ntrk_jax.kernels import DDIM
from ntrk_jax.methods.entry import GRAD, VJP, Entry, guided, look_at
from ntrk_jax.samplers import Single
from ntrk_jax.typing import Scalar
from ntrk_jax.whitening import TypicalSet

__all__ = ["calibrated", "ntrk", "ntrk_climb", "ntrk_mixed", "ntrk_x0"]


def ntrk(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...],
    *,
    strength: Strength | Calibrated | Steady = 0.05,
    where: str = "gradient",
    whiten: Whitening | None = None,
    kernel: Kernel | None = None,
    value: Value | None = None,
) -> Single:
    """NTRK as published: whiten the gradient with the paper's W, mix it into the noise with a weight rho.

    whiten: another operator, such as `whitening.Certified(shape)`; value: another value than the plug-in.
    """
    return guided(model, reward, shape, NTRK(whiten or TypicalSet(shape), strength, where), kernel, value)


def ntrk_mixed(model: Denoiser, reward: Reward, shape: tuple[int, ...], *, strength: Strength = 0.05, **parts: Any):
    """NTRK with the mixture of gradient and noise whitened instead of the gradient."""
    return ntrk(model, reward, shape, strength=strength, where="mixed", **parts)


def calibrated(model: Denoiser, reward: Reward, shape: tuple[int, ...], *, temperature: Scalar = 1.0, **parts: Any):
    """NTRK whose strength is a temperature: the same law at every number of steps.

    A value that knows its own temperature must have this one: it is what the law aimed at depends on.
    """
    require_temperature_of(parts.get("value"), temperature)
    return ntrk(model, reward, shape, strength=Calibrated(temperature), where="mixed", **parts)


def ntrk_x0(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...],
    *,
    strength: Scalar = 0.5,
    where: str = "gradient",
    whiten: Whitening | None = None,
    kernel: Kernel | None = None,
    value: Value | None = None,
) -> Single:
    """NTRK without a backward pass: the reward's own gradient at x0 is whitened, at a strength steady over grids.

    value: a smoothed reward, or None; a value that is not a function of x0 has no gradient there, and is refused.
    """
    if value is not None and (not getattr(value, "needs_x0", True) or hasattr(value, "through")):
        raise ValueError(
            f"ntrk_x0 climbs a function of x0, got the value {type(value).__name__}; use ntrk, whose gradient is that "
            "of the value in x."
        )
    rule = NTRK(whiten or TypicalSet(shape), Steady(strength), where, through=False)
    return Single(look_at(model, reward, shape, value=value), kernel or DDIM(eta=1.0), rule)


def ntrk_climb(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...],
    *,
    strength: Strength | Calibrated | Steady = 0.02,
    climb: Scalar = 0.2,
    whiten: Whitening | None = None,
    kernel: Kernel | None = None,
    value: Value | None = None,
) -> Single:
    """NTRK, and in the last row, which has no noise to tilt, one step of x0 along the reward's own gradient.

    climb: that step, in units of a posterior variance over a temperature, as `guidance.MPGD`'s strength.
    """
    rule = NTRK(whiten or TypicalSet(shape), strength)
    return guided(model, reward, shape, Sum((rule, Ending(MPGD(climb)))), kernel, value)


_RHOS = (0.003, 0.01, 0.03, 0.1, 0.3)
_TYPICAL = "no; typical noise"

ENTRIES: dict[str, Entry] = {
    "ntrk": Entry(
        ntrk, "NTRK, gradient whitened (paper)", GRAD, VJP, _TYPICAL, "strength", 0.0, high=1.0, tries=_RHOS
    ),
    "ntrk_mixed": Entry(
        ntrk_mixed, "NTRK, mixture whitened", GRAD, VJP, _TYPICAL, "strength", 0.0, high=1.0, tries=_RHOS
    ),
    "ntrk_climb": Entry(
        ntrk_climb, "NTRK, and x0 climbed in the last row", GRAD, f"{VJP}; 1 more at the end", "no", "strength",
        high=1.0, tries=_RHOS,
    ),
    "ntrk_x0": Entry(
        ntrk_x0, "NTRK, no backward pass", GRAD, "1 NFE, 1 reward gradient", _TYPICAL, "strength", 0.0,
        tries=(0.125, 0.25, 0.5, 1.0, 2.0),
    ),
    "calibrated": Entry(
        calibrated, "NTRK at a temperature", GRAD, VJP, "the tilted law as steps grow, for an exact value",
        "temperature", float("inf"), low=1e-30,
    ),
}  # fmt: skip
