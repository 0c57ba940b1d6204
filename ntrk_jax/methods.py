"""The anatomy page: each method *is* its definition in parts.

    sampler = ntrk(model, reward, shape, strength=0.05)
    state, trace = nk.run(sampler, key, noise, steps)

`CATALOGUE` lists what ships: for each method what it needs, what it costs and what is exact about it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ntrk_jax.core import Denoiser, Guidance, Kernel, Reward, Sampler, Value, Whitening
from ntrk_jax.guidance import DPS, NTRK, Calibrated
from ntrk_jax.guidance.base import Strength
from ntrk_jax.kernels import DDIM, DDPM, EDM, Correlated, FlowODE, FlowSDE
from ntrk_jax.look import Look
from ntrk_jax.samplers import BestOfN, Single
from ntrk_jax.typing import Scalar
from ntrk_jax.whitening import TypicalSet

__all__ = ["CATALOGUE", "Entry", "base", "best_of_n", "calibrated", "correlated", "ddim", "ddpm", "dps", "dps_norm"]
__all__ += ["dps_squared", "edm", "flow_ode", "flow_sde", "names", "ntrk", "ntrk_mixed"]


def base(model: Denoiser, reward: Reward | None = None, shape: tuple[int, ...] = (), *, kernel: Kernel | None = None):
    """The pretrained sampler itself; the reward, if given, is only recorded."""
    return Single(Look(model, reward), kernel or DDIM(eta=1.0))


def ddim(model: Denoiser, reward: Reward | None = None, shape: tuple[int, ...] = (), *, eta: Scalar = 0.0):
    """The DDIM family; eta = 0 is deterministic."""
    return base(model, reward, kernel=DDIM(eta=eta))


def ddpm(model: Denoiser, reward: Reward | None = None, shape: tuple[int, ...] = ()):
    """DDPM's ancestral kernel, written from the forward posterior."""
    return base(model, reward, kernel=DDPM())


def correlated(model: Denoiser, reward: Reward | None = None, shape: tuple[int, ...] = (), *, correlation: Any = 0.9):
    """The one-step GLASS kernel with a chosen correlation."""
    return base(model, reward, kernel=Correlated(correlation))


def flow_sde(model: Denoiser, reward: Reward | None = None, shape: tuple[int, ...] = (), *, churn: Scalar = 1.0):
    """The flow with noise."""
    return base(model, reward, kernel=FlowSDE(churn))


def flow_ode(model: Denoiser, reward: Reward | None = None, shape: tuple[int, ...] = ()):
    """The deterministic flow."""
    return base(model, reward, kernel=FlowODE())


def edm(model: Denoiser, reward: Reward | None = None, shape: tuple[int, ...] = (), *, gamma: Scalar = 0.2):
    """The churned sampler of Karras et al., noise last."""
    return base(model, reward, kernel=EDM(gamma))


def best_of_n(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    num_particles: int = 4,
    kernel: Kernel | None = None,
    guidance: Guidance | None = None,
    grad: bool = False,
):
    """Best of N independent runs, of the base sampler or of a guided one."""
    sampler = Single(Look(model, reward, grad=grad or guidance is not None), kernel or DDIM(eta=1.0), guidance)
    return BestOfN(sampler, num_particles)


def guided(
    model: Denoiser, reward: Reward, guidance: Guidance, kernel: Kernel | None = None, value: Value | None = None
) -> Single:
    """Any rule that reads a gradient, on any kernel."""
    return Single(Look(model, reward, grad=True, value=value), kernel or DDIM(eta=1.0), guidance)


def ntrk(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...],
    *,
    strength: Strength | Calibrated = 0.05,
    where: str = "gradient",
    whiten: Whitening | None = None,
    kernel: Kernel | None = None,
    value: Value | None = None,
) -> Single:
    """NTRK as published: whiten the gradient with the paper's W, mix it into the noise with a weight rho.

    whiten: another operator, such as `whitening.Certified(shape)`; value: another value than the plug-in.
    """
    return guided(model, reward, NTRK(whiten or TypicalSet(shape), strength, where), kernel, value)


def ntrk_mixed(model: Denoiser, reward: Reward, shape: tuple[int, ...], *, strength: Strength = 0.05, **parts: Any):
    """NTRK with the mixture of gradient and noise whitened instead of the gradient."""
    return ntrk(model, reward, shape, strength=strength, where="mixed", **parts)


def calibrated(model: Denoiser, reward: Reward, shape: tuple[int, ...], *, temperature: Scalar = 1.0, **parts: Any):
    """NTRK whose strength is a temperature: the same law at every number of steps."""
    return ntrk(model, reward, shape, strength=Calibrated(temperature), where="mixed", **parts)


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
    return guided(model, reward, DPS(strength, convention), kernel, value)


def dps_norm(model: Denoiser, reward: Reward, shape: tuple[int, ...] = (), *, strength: Strength = 1.0, **parts: Any):
    """DPS as in its published code: the gradient of the residual's norm."""
    return dps(model, reward, shape, strength=strength, convention="norm", **parts)


def dps_squared(
    model: Denoiser, reward: Reward, shape: tuple[int, ...] = (), *, strength: Strength = 0.1, **parts: Any
):
    """DPS as in its published equations: a constant factor on the gradient."""
    return dps(model, reward, shape, strength=strength, convention="squared", **parts)


class Entry(NamedTuple):
    """One row of the catalogue.

    build: (model, reward, shape, **options) -> sampler.
    strength: the name of the option that scales the guidance, or None.
    off: the strength at which the method is exactly its base sampler.
    low, high: the range of the strength.
    needs: what it asks of its user. cost: evaluations per step. exact: what its law is.
    """

    build: Callable[..., Sampler]
    summary: str
    needs: str
    cost: str
    exact: str
    strength: str | None = None
    off: float | None = None
    low: float = 0.0
    high: float = float("inf")
    population: bool = False


_GRAD = "model, differentiable reward, stochastic kernel"
_ONE = "1 NFE"
_VJP = "1 NFE + 1 VJP, 1 reward gradient"
_LAW = "the model's law as steps grow"

CATALOGUE: dict[str, Entry] = {
    "base": Entry(base, "the pretrained sampler, DDIM(1)", "model", _ONE, _LAW),
    "ddim": Entry(ddim, "deterministic DDIM", "model", _ONE, _LAW),
    "ddpm": Entry(ddpm, "ancestral sampling", "model", _ONE, _LAW),
    "correlated": Entry(correlated, "one-step GLASS", "model", _ONE, "marginals, up to the mean's error"),
    "flow_sde": Entry(flow_sde, "flow with noise", "model", _ONE, _LAW),
    "flow_ode": Entry(flow_ode, "deterministic flow", "model", _ONE, _LAW),
    "edm": Entry(edm, "churned EDM, noise last", "model", _ONE, _LAW),
    "best_of_n": Entry(best_of_n, "best of N runs", "model, any reward", "N NFE", "no", population=True),
    "ntrk": Entry(ntrk, "NTRK, gradient whitened (paper)", _GRAD, _VJP, "no; typical noise", "strength", 0.0, 0.0, 1.0),
    "ntrk_mixed": Entry(
        ntrk_mixed, "NTRK, mixture whitened", _GRAD, _VJP, "no; typical noise", "strength", 0.0, 0.0, 1.0
    ),
    "calibrated": Entry(
        calibrated,
        "NTRK at a temperature",
        _GRAD,
        _VJP,
        "the tilted law as steps grow, for an exact value",
        "temperature",
        float("inf"),
        1e-30,
    ),
    "dps": Entry(dps, "DPS, likelihood convention", _GRAD, _VJP, "for an exact value, as steps grow", "strength", 0.0),
    "dps_norm": Entry(dps_norm, "DPS, norm convention", _GRAD + ", reward < 0", _VJP, "no", "strength", 0.0),
    "dps_squared": Entry(dps_squared, "DPS, squared convention", _GRAD, _VJP, "no", "strength", 0.0),
}
"""Every shipped method by name; the contract tests, `ntrk list` and `ntrk sample` read it."""


def names() -> list[str]:
    """The names in the catalogue."""
    return list(CATALOGUE)
