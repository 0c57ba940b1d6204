"""Sequential Monte Carlo: one sampler, `SMC`, of which each method is a setting."""

from __future__ import annotations

import math
from typing import Any

from ntrk_jax.core import Denoiser, Guidance, Kernel, Resampler, Reward, Value, Whitening
from ntrk_jax.guidance import DPS, NTRK, Calibrated, Limit
from ntrk_jax.guidance.base import require
from ntrk_jax.kernels import DDIM
from ntrk_jax.methods.entry import Entry, look_at
from ntrk_jax.potentials import RATE, Accumulated, Adaptive, Geometric, Signal, Tempered
from ntrk_jax.resampling import SSP, Multinomial, Spaced, Systematic, WhenESS
from ntrk_jax.samplers import PCNL, SMC, BestOfN, Single, WarmStart
from ntrk_jax.tree import replace
from ntrk_jax.typing import Scalar
from ntrk_jax.whitening import TypicalSet

__all__ = ["das", "das_adaptive", "fk", "fk_max", "fk_sum", "ntrk_smc", "psi", "tds"]


def _trust(schedule: Any, value: Value | None) -> Any:
    """The tempering asked for; of "auto" by signal for the plug-in value, and none for a value made for noise."""
    if isinstance(schedule, str) and schedule == "auto":
        return Signal() if value is None else None
    return schedule


def fk(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    temperature: Scalar = 1.0,
    potential: str = "difference",
    schedule: Any = None,
    num_particles: int = 4,
    guidance: Guidance | None = None,
    kernel: Kernel | None = None,
    value: Value | None = None,
    resample: Resampler | None = None,
    when: Any = None,
    chunk: int | None = None,
) -> SMC:
    """FK steering: the base kernel (or any exact rule) as proposal, no gradient, four potentials.

    potential: "difference", "max", "sum" or "reward". schedule of "difference": None, as published, steers few
    particles hardest and gives log Z heavy tails; `potentials.Signal()`, which "auto" is for the plug-in value, takes
    them away. when: the rows that resample, all for "difference" unless said otherwise; for the potentials that build
    up they are also those that count, by default the paper's evenly spaced ones in a window, `resampling.Spaced()`.
    """
    look = look_at(model, reward, shape, guidance, value)
    if potential not in ("difference", "reward", "max", "sum"):
        raise ValueError(f"potential must be 'difference', 'reward', 'max' or 'sum', got {potential!r}.")
    if potential == "difference":
        targets = Tempered(temperature, _trust(schedule, value))
    elif schedule is not None:
        raise ValueError(f"schedule is for the potential 'difference'; {potential!r} builds up by itself.")
    else:
        when = when or Spaced()
        targets = Accumulated(temperature, potential, when)
    resample = resample or WhenESS(Multinomial(), 0.5)
    return SMC(look, kernel or DDIM(eta=1.0), guidance, targets, resample, when, num_particles, chunk)


def fk_max(model: Denoiser, reward: Reward, shape: tuple[int, ...] = (), *, temperature: Scalar = 1.0, **parts: Any):
    """FK steering by the largest value of the path so far."""
    return fk(model, reward, shape, temperature=temperature, potential="max", **parts)


def fk_sum(model: Denoiser, reward: Reward, shape: tuple[int, ...] = (), *, temperature: Scalar = 1.0, **parts: Any):
    """FK steering by the sum of the path's values."""
    return fk(model, reward, shape, temperature=temperature, potential="sum", **parts)


def tds(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    temperature: Scalar = 1.0,
    limit: Scalar = 1.0,
    schedule: Any = "auto",
    num_particles: int = 4,
    kernel: Kernel | None = None,
    value: Value | None = None,
    resample: Resampler | None = None,
    chunk: int | None = None,
) -> SMC:
    """TDS: the mean shifted by the value's gradient, by `limit` standard deviations at most, corrected by weights.

    The shift is std^2 grad; the published one puts the tilted Tweedie mean into the kernel (`guidance.Twisted`), the
    same to first order in the row. schedule: how far the value is trusted at noise; "auto" is `potentials.Signal()`
    for the plug-in value and None, 1 throughout as published, for another; None gives the plug-in value heavy tails.
    """
    look = look_at(model, reward, shape, value=value, grad=True)
    targets = Tempered(temperature, _trust(schedule, value))
    return SMC(
        look, kernel or DDIM(eta=1.0), Limit(DPS(1.0 / temperature), limit), targets,
        resample or WhenESS(Systematic(), 0.5), None, num_particles, chunk,
    )  # fmt: skip


def das(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    temperature: Scalar = 1.0,
    rate: Scalar = RATE,
    resample: Resampler | None = None,
    **parts: Any,
) -> SMC:
    """DAS: TDS with a tilt that grows along the run, at `rate`, and SSP resampling."""
    population = _tempered(model, reward, shape, temperature, resample, parts)
    return replace(population, potential=Tempered(temperature, Geometric(rate)))


def das_adaptive(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    temperature: Scalar = 1.0,
    target: Scalar = 0.9,
    resample: Resampler | None = None,
    **parts: Any,
) -> SMC:
    """DAS with the tilt chosen from the effective sample size."""
    population = _tempered(model, reward, shape, temperature, resample, parts)
    return replace(population, potential=Adaptive(temperature, target))


def _tempered(
    model: Denoiser, reward: Reward, shape: tuple[int, ...], temperature: Scalar, resample: Any, parts: dict[str, Any]
) -> SMC:
    if "schedule" in parts:
        raise ValueError("das and das_adaptive temper by `rate` and by `target`; schedule is for tds and fk.")
    resample = resample or WhenESS(SSP(), 0.5)
    return tds(model, reward, shape, temperature=temperature, resample=resample, **parts)


def psi(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    temperature: Scalar = 1.0,
    limit: Scalar = 1.0,
    step_size: Scalar = 0.5,
    num_chains: int = 2,
    num_burn: int = 8,
    num_particles: int = 4,
    kernel: Kernel | None = None,
    value: Value | None = None,
    chunk: int | None = None,
) -> WarmStart:
    """The Psi-Sampler: TDS whose particles start from Markov chains on the initial noise."""
    population = tds(
        model, reward, shape, temperature=temperature, limit=limit, num_particles=num_particles, kernel=kernel,
        value=value, resample=WhenESS(SSP(), 0.5), chunk=chunk, schedule=None,
    )  # fmt: skip
    return WarmStart(population, PCNL(temperature, step_size, num_chains, num_burn))


def ntrk_smc(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...],
    *,
    temperature: Scalar = 1.0,
    limit: Scalar = 1.0,
    num_particles: int = 4,
    whiten: Whitening | None = None,
    kernel: Kernel | None = None,
    value: Value | None = None,
    rate: Scalar = RATE,
    chunk: int | None = None,
) -> SMC:
    """NTRK corrected: calibrated noise tilts as proposals, exact weights, a tilt that grows along the run.

    limit: the largest push in one row, in standard deviations of the noise, where rho = limit^2 / (N + limit^2): with 1
    the proposal keeps more than half of the noise's variance, without which weights have none.
    """
    look = look_at(model, reward, shape, value=value, grad=True)
    require("limit", limit, 1e-30, float("inf"), number=True)
    most = 1.0 / (1.0 + math.prod(shape) / limit**2)
    rule = NTRK(whiten or TypicalSet(shape), Calibrated(temperature, most), "gradient")
    return SMC(
        look, kernel or DDIM(eta=1.0), rule, Tempered(temperature, Geometric(rate)), WhenESS(Systematic(), 0.5), None,
        num_particles, chunk,
    )  # fmt: skip


def _unguided(sampler: Any) -> BestOfN:
    return BestOfN(Single(sampler.look, sampler.kernel), sampler.num_particles)


def _psi_nfe(num_steps: int, num_particles: int) -> int:
    chains = min(2, num_particles)
    return (num_steps - 1) * num_particles + chains * (1 + 8 + -(-num_particles // chains))


_ANY = "model, any reward, stochastic kernel"
_GRAD = "model, differentiable reward, stochastic kernel"
_VJPS = "K (1 NFE + 1 VJP, 1 reward gradient)"
_LIMIT = "the tilted law, for many particles"
_COMMON: dict[str, Any] = {"strength": "temperature", "off": float("inf"), "low": 1e-30, "population": True}

ENTRIES: dict[str, Entry] = {
    "fk": Entry(fk, "FK steering, difference", _ANY, "K NFE", _LIMIT, unguided=_unguided, **_COMMON),
    "fk_max": Entry(fk_max, "FK steering, maximum", _ANY, "K NFE", _LIMIT, unguided=_unguided, **_COMMON),
    "fk_sum": Entry(fk_sum, "FK steering, sum", _ANY, "K NFE", _LIMIT, unguided=_unguided, **_COMMON),
    "tds": Entry(tds, "twisted SMC", _GRAD, _VJPS, _LIMIT, unguided=_unguided, **_COMMON),
    "das": Entry(das, "tempered SMC", _GRAD, _VJPS, _LIMIT, unguided=_unguided, **_COMMON),
    "das_adaptive": Entry(
        das_adaptive, "tempered SMC, adaptive", _GRAD, _VJPS, _LIMIT, unguided=_unguided, **_COMMON
    ),
    "psi": Entry(
        psi, "SMC from Markov chains (Psi-Sampler)", _GRAD, _VJPS + " + chains", _LIMIT,
        **{**_COMMON, "off": None}, nfe=_psi_nfe,
    ),
    "ntrk_smc": Entry(ntrk_smc, "NTRK corrected by weights", _GRAD, _VJPS, _LIMIT, unguided=_unguided, **_COMMON),
}  # fmt: skip
