"""Base reverse kernels. The diffrax probability flow is in `ntrk_jax.kernels.ode`, imported on demand."""

from ntrk_jax.kernels.edm import EDM
from ntrk_jax.kernels.flow import FlowODE, FlowSDE
from ntrk_jax.kernels.gaussian import DDIM, DDPM, Correlated

__all__ = ["DDIM", "DDPM", "EDM", "Correlated", "FlowODE", "FlowSDE"]
