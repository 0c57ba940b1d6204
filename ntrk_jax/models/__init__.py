"""Models: networks and closed forms as denoisers, E[x_0 | x_t], and wrappers around them.

`models.nets` (a small MLP and a small DiT in Flax NNX) is imported when first used, because it imports flax.
"""

from typing import TYPE_CHECKING, Any

from ntrk_jax.models.adapters import FluxDenoiser, InferenceDenoiser, WanDenoiser
from ntrk_jax.models.exact import Exact
from ntrk_jax.models.flax import FlaxDenoiser, NnxDenoiser
from ntrk_jax.models.mmdit import MMDiT
from ntrk_jax.models.precondition import MomentDenoiser, blank_network, moment_network
from ntrk_jax.models.value_nets import ValueMLP
from ntrk_jax.models.wrap import Cast, ClassifierFree, Counted, Counter, Reschedule

if TYPE_CHECKING:
    from ntrk_jax.models import nets as nets

__all__ = [
    "Cast", "ClassifierFree", "Counted", "Counter", "Exact", "FlaxDenoiser", "FluxDenoiser", "InferenceDenoiser",
    "MMDiT", "MomentDenoiser", "NnxDenoiser", "Reschedule", "ValueMLP", "WanDenoiser", "blank_network",
    "moment_network", "nets",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "nets":
        import importlib

        return importlib.import_module("ntrk_jax.models.nets")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
