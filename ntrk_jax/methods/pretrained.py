"""The pretrained sampler itself, with each of the kernels."""

from __future__ import annotations

from typing import Any

from ntrk_jax.core import Denoiser, Kernel, Reward
from ntrk_jax.kernels import DDIM, DDPM, EDM, Correlated, FlowODE, FlowSDE
from ntrk_jax.methods.entry import LAW, ONE, Entry, look_at
from ntrk_jax.samplers import Single
from ntrk_jax.typing import Scalar

__all__ = ["base", "correlated", "ddim", "ddpm", "edm", "flow_ode", "flow_sde"]


def base(model: Denoiser, reward: Reward | None = None, shape: tuple[int, ...] = (), *, kernel: Kernel | None = None):
    """The pretrained sampler itself; the reward, if given, is only recorded."""
    return Single(look_at(model, reward, shape), kernel or DDIM(eta=1.0))


def ddim(model: Denoiser, reward: Reward | None = None, shape: tuple[int, ...] = (), *, eta: Scalar = 0.0):
    """The DDIM family; eta = 0 is deterministic."""
    return base(model, reward, shape, kernel=DDIM(eta=eta))


def ddpm(model: Denoiser, reward: Reward | None = None, shape: tuple[int, ...] = ()):
    """DDPM's ancestral kernel, written from the forward posterior."""
    return base(model, reward, shape, kernel=DDPM())


def correlated(model: Denoiser, reward: Reward | None = None, shape: tuple[int, ...] = (), *, correlation: Any = 0.9):
    """The one-step GLASS kernel with a chosen correlation."""
    return base(model, reward, shape, kernel=Correlated(correlation))


def flow_sde(model: Denoiser, reward: Reward | None = None, shape: tuple[int, ...] = (), *, churn: Scalar = 1.0):
    """The flow with noise."""
    return base(model, reward, shape, kernel=FlowSDE(churn))


def flow_ode(model: Denoiser, reward: Reward | None = None, shape: tuple[int, ...] = ()):
    """The deterministic flow."""
    return base(model, reward, shape, kernel=FlowODE())


def edm(model: Denoiser, reward: Reward | None = None, shape: tuple[int, ...] = (), *, gamma: Scalar = 0.2):
    """The churned sampler of Karras et al., noise last."""
    return base(model, reward, shape, kernel=EDM(gamma))


ENTRIES: dict[str, Entry] = {
    "base": Entry(base, "the pretrained sampler, DDIM(1)", "model", ONE, LAW),
    "ddim": Entry(ddim, "deterministic DDIM", "model", ONE, LAW),
    "ddpm": Entry(ddpm, "ancestral sampling", "model", ONE, LAW),
    "correlated": Entry(correlated, "one-step GLASS", "model", ONE, "marginals, up to the mean's error"),
    "flow_sde": Entry(flow_sde, "flow with noise", "model", ONE, LAW),
    "flow_ode": Entry(flow_ode, "deterministic flow", "model", ONE, LAW),
    "edm": Entry(edm, "churned EDM, noise last", "model", ONE, LAW),
}
