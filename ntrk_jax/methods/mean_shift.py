"""Guidance by a shift of the mean: DPS and its relatives."""

from __future__ import annotations

from math import prod
from typing import Any

from ntrk_jax.core import Denoiser, Guidance, Kernel, Reward, Sampler, Value
from ntrk_jax.guidance import DPS, MPGD, TFG, UGD, FreeDoM, MomentMatched, Structure, Twisted
from ntrk_jax.guidance.base import Strength
from ntrk_jax.kernels import DDIM
from ntrk_jax.methods.entry import GRAD, VJP, Entry, guided, look_at, single
from ntrk_jax.samplers import Single, Travel
from ntrk_jax.schedules import Schedule
from ntrk_jax.tree import replace, through
from ntrk_jax.typing import Scalar
from ntrk_jax.values import Smoothed

__all__ = [
    "dps", "dps_norm", "dps_squared", "freedom", "lgd_mc", "mpgd", "pigdm", "tds_shift", "tfg", "tmpd", "ugd",
]  # fmt: skip


def dps(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    strength: Strength = 1.0,
    convention: str = "likelihood",
    kernel: Kernel | None = None,
    value: Value | None = None,
) -> Single:
    """DPS: shift the mean along the gradient."""
    return guided(model, reward, shape, DPS(strength, convention), kernel, value)


def dps_norm(model: Denoiser, reward: Reward, shape: tuple[int, ...] = (), *, strength: Strength = 1.0, **parts: Any):
    """DPS as in its published code: the gradient of the residual's norm."""
    return dps(model, reward, shape, strength=strength, convention="norm", **parts)


def dps_squared(
    model: Denoiser, reward: Reward, shape: tuple[int, ...] = (), *, strength: Strength = 0.1, **parts: Any
):
    """DPS as in its published equations: a constant factor on the gradient."""
    return dps(model, reward, shape, strength=strength, convention="squared", **parts)


def tds_shift(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    strength: Strength = 1.0,
    clamp: tuple[Scalar, Scalar] | None = None,
    noiseless: bool = False,
    kernel: Kernel | None = None,
    value: Value | None = None,
) -> Single:
    """The proposal of TDS on its own: x0 moved to the Tweedie mean of the tilted law.

    strength: 1 / temperature. noiseless: guide deterministic kernels and the last row too, without weights.
    """
    return guided(model, reward, shape, Twisted(strength, clamp, noiseless), kernel, value)


def freedom(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    strength: Strength = 0.1,
    rate: str = "noise",
    space: str = "velocity",
    repeats: Scalar = 2,
    low: Scalar = 0.0,
    high: Scalar = 1.0,
    kernel: Kernel | None = None,
    value: Value | None = None,
) -> Travel:
    """FreeDoM: a strength that follows the noise level, and time travel.

    Rows with low < t <= high are walked `repeats` times, which multiplies their cost.
    """
    return Travel(guided(model, reward, shape, FreeDoM(strength, rate, space), kernel, value), repeats, low, high)


def ugd(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    strength: Strength = 1.0,
    backward: Strength = 0.1,
    num_backward: int = 1,
    repeats: Scalar = 2,
    kernel: Kernel | None = None,
    value: Value | None = None,
) -> Travel:
    """Universal guidance: forward through the network, backward from x0, each row walked `repeats` times."""
    return Travel(guided(model, reward, shape, UGD(strength, backward, num_backward), kernel, value), repeats)


def lgd_mc(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    strength: Strength | None = None,
    temperature: Scalar = 1.0,
    gamma: Scalar = 1.0,
    num_samples: int = 4,
    schedule: Schedule | None = None,
    guidance: Guidance | None = None,
    kernel: Kernel | None = None,
) -> Single:
    """LGD-MC: DPS with the reward smoothed over the width of the posterior; any other rule if given.

    temperature: of the smoothing. strength: of DPS, 1 / temperature unless given; another rule has its own. gamma: the
    posterior's width over that of data N(0, I). schedule: the model's own unless given.
    """
    if strength is not None and guidance is not None:
        raise ValueError("lgd_mc takes a strength or a rule; give the rule its own strength.")
    value = Smoothed(_schedule(model, schedule), temperature, gamma, num_samples)
    rule = guidance or DPS(1.0 / temperature if strength is None else strength)
    return guided(model, reward, shape, rule, kernel, value)


def mpgd(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    strength: Strength = 0.1,
    num_steps: int = 1,
    space: str = "x",
    kernel: Kernel | None = None,
) -> Single:
    """MPGD: climb the reward from x0, without a backward pass through the network."""
    return Single(look_at(model, reward, shape), kernel or DDIM(eta=1.0), MPGD(strength, num_steps, space))


def tfg(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    strength: Scalar = 0.1,
    rho: Scalar = 1.0,
    mu: Scalar = 0.25,
    gamma: Scalar = 0.01,
    structure: str = "increase",
    num_inner: int = 4,
    num_samples: int = 1,
    space: str = "x",
    repeats: Scalar = 1,
    schedule: Schedule | None = None,
    kernel: Kernel | None = None,
) -> Travel:
    """TFG: variance guidance rho, mean guidance mu, smoothing gamma and recurrence; strength scales the first two.

    structure: "increase", "decrease" or "constant", along the rows, not normalised; `guidance.Structure.over(steps)`
    is. schedule: the model's own unless given.
    """
    value = Smoothed(_schedule(model, schedule), 1.0, gamma, num_samples)
    rule = TFG(Structure(strength * rho, structure), Structure(strength * mu, structure), num_inner, space)
    return Travel(guided(model, reward, shape, rule, kernel, value), repeats)


def pigdm(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    temperature: Scalar = 1.0,
    spread: Scalar = 1.0,
    schedule: Schedule | None = None,
    guidance: Guidance | None = None,
    kernel: Kernel | None = None,
) -> Single:
    """Pi-GDM: a quadratic reward's value under the posterior of data N(0, spread^2 I).

    guidance: another rule, whose own strength has to be 1 / temperature for the law at that temperature.
    """
    value = MomentMatched(_schedule(model, schedule), temperature, "none", spread)
    return _matched(model, reward, shape, value, guidance, kernel)


def tmpd(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    temperature: Scalar = 1.0,
    jacobian: str | None = None,
    schedule: Schedule | None = None,
    guidance: Guidance | None = None,
    kernel: Kernel | None = None,
) -> Single:
    """TMPD: the same with the posterior covariance read off the denoiser's Jacobian.

    jacobian: "diagonal", two model VJPs a row, or "full", one an entry of x; None is "full" for up to 16 entries.
    guidance: as of `pigdm`.
    """
    jacobian = jacobian or ("full" if shape and prod(shape) <= 16 else "diagonal")
    size = prod(shape) if jacobian == "full" else None
    value = MomentMatched(_schedule(model, schedule), temperature, jacobian, size=size)
    return _matched(model, reward, shape, value, guidance, kernel)


def _matched(
    model: Denoiser, reward: Reward, shape: tuple[int, ...], value: MomentMatched, rule: Guidance | None,
    kernel: Kernel | None,
) -> Single:  # fmt: skip
    if not hasattr(reward, "quadratic"):
        raise TypeError(
            f"the reward must be linear or quadratic (a method `quadratic()`), got {type(reward).__name__}; "
            "lgd_mc serves any differentiable reward."
        )
    return guided(model, reward, shape, rule or Twisted(1.0 / value.temperature, noiseless=True), kernel, value)


def _schedule(model: Any, schedule: Schedule | None) -> Schedule:
    """The schedule given, or else the one the model carries, through its wrappers."""
    for part in through(model, "model", "fn"):
        schedule = schedule or getattr(part, "schedule", None) or getattr(part, "sampled_on", None)
    if schedule is None:
        raise ValueError(
            f"the width of the posterior follows the schedule, and {type(model).__name__} carries none; "
            "pass schedule=nk.schedules.VPCosine(), the one of the grid."
        )
    return schedule


def _untravelled(sampler: Any) -> Sampler:
    """The unguided sampler with the same time travel."""
    return replace(sampler, sampler=single(sampler.sampler))


def _twice(num_steps: int, num_particles: int) -> int:
    return 2 * num_steps


_AGAIN = "2 NFE + 2 VJP"
_SMOOTH = GRAD + ", schedule"
_QUADRATIC = "model, linear or quadratic reward, schedule"

ENTRIES: dict[str, Entry] = {
    "dps": Entry(
        dps, "DPS, likelihood convention", GRAD, VJP, "for an exact value, as steps grow", "strength", 0.0,
        tries=(0.1, 0.3, 1.0, 3.0),
    ),
    "dps_norm": Entry(
        dps_norm, "DPS, norm convention", GRAD + ", reward < 0", VJP, "no", "strength", 0.0,
        tries=(0.03, 0.1, 0.3, 1.0),
    ),
    "dps_squared": Entry(
        dps_squared, "DPS, squared convention", GRAD, VJP, "no", "strength", 0.0, tries=(0.01, 0.03, 0.1, 0.3),
    ),
    "tds_shift": Entry(
        tds_shift, "TDS, its proposal alone", GRAD, VJP, "for an exact value, as steps grow", "strength", 0.0,
        tries=(0.1, 0.3, 1.0, 3.0, 10.0),
    ),
    "freedom": Entry(
        freedom, "FreeDoM, with time travel", "model, differentiable reward", _AGAIN + ", 2 reward gradients", "no",
        "strength", 0.0, tries=(0.03, 0.1, 0.3, 1.0, 2.0), unguided=_untravelled, nfe=_twice,
    ),
    "ugd": Entry(
        ugd, "UGD, forward, backward, recurrence", "model, differentiable reward", _AGAIN + ", 4 reward gradients",
        "no", "strength", 0.0, tries=(0.1, 0.3, 1.0, 3.0), unguided=_untravelled, nfe=_twice,
    ),
    "lgd_mc": Entry(
        lgd_mc, "LGD-MC, the reward smoothed", _SMOOTH, "1 NFE + 1 VJP, 4 reward gradients", "no", "strength", 0.0,
        tries=(0.1, 0.3, 1.0, 3.0, 10.0),
    ),
    "mpgd": Entry(
        mpgd, "MPGD, no backward pass", "model, differentiable reward", "1 NFE, 1 reward gradient", "no", "strength",
        0.0, tries=(0.01, 0.03, 0.1, 0.3),
    ),
    "tfg": Entry(
        tfg, "TFG", "model, differentiable reward, schedule", "1 NFE + 1 VJP, 5 reward gradients", "no", "strength",
        0.0, tries=(0.003, 0.01, 0.03, 0.1, 0.3), unguided=_untravelled,
    ),
    "pigdm": Entry(
        pigdm, "Pi-GDM", _QUADRATIC, "1 NFE + 1 VJP", "for data N(0, spread^2 I), as steps grow", "temperature",
        float("inf"), low=1e-30,
    ),
    "tmpd": Entry(
        tmpd, "TMPD", _QUADRATIC, "1 NFE + 2 VJP, or 1 VJP an entry", "no; full, for Gaussian data", "temperature",
        float("inf"), low=1e-30,
    ),
}  # fmt: skip
