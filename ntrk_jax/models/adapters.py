r"""Other people's transformers and inference functions as denoisers of one sample.

A latent diffusion transformer of the FLUX or Wan family predicts the velocity z - x0 of the rectified flow
x_t = (1 - t) x0 + t z, on a batch, in a layout of its own. The adapters below turn one sample's latents into that
layout and back, hand over what the network wants to know, and leave the rest (velocity to Tweedie mean, dtypes, the
batch axis) to `FlaxDenoiser`. Weights and conditions are leaves: they may be swapped, sharded or vmapped and compile
nothing new.

| network called as | adapter | latents |
|---|---|---|
| `f(params, x, t[, cond])`, a linen `apply` | `FlaxDenoiser` | as they are |
| an NNX module `net(x, t[, cond])` | `NnxDenoiser` | as they are |
| FLUX: packed tokens, pooled text, position ids, embedded guidance | `FluxDenoiser` | [H, W, C] |
| Wan: video [C, T, H, W], times up to 1000, text tokens | `WanDenoiser` | [T, H, W, C] |
| an inference function f(time, xt, conditioning) -> {"x0": ...} | `InferenceDenoiser` | as they are |

Packing permutes numbers, so white noise stays white noise: W may act on [H, W, C], where it sees neighbours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ntrk_jax.arguments import require_schedule
from ntrk_jax.models.flax import FlaxDenoiser
from ntrk_jax.schedules import RectifiedFlow, Schedule
from ntrk_jax.tree import as_float, pytree, static
from ntrk_jax.typing import Array, PyTree, Scalar

__all__ = ["FluxDenoiser", "InferenceDenoiser", "WanDenoiser", "pack", "unpack"]

_PREDICTIONS = {"x0": "x0", "epsilon": "eps", "score": "score", "velocity": "velocity", "v": "v"}


def pack(x: Array, patch: int = 2) -> Array:
    """Latents as tokens, [..., H, W, C] -> [..., (H / patch) (W / patch), C patch^2], channels slowest in a token.

    Raises:
        ValueError: if the patch does not divide H and W.

    Example:
        >>> import jax.numpy as jnp
        >>> pack(jnp.zeros((128, 128, 16))).shape
        (4096, 64)
    """
    *batch, height, width, channels = x.shape
    if height % patch or width % patch:
        raise ValueError(f"patch must divide the sides {height} and {width} of the latents, got {patch}.")
    x = x.reshape(*batch, height // patch, patch, width // patch, patch, channels)
    at = len(batch)
    order = (*range(at), at, at + 2, at + 4, at + 1, at + 3)
    return x.transpose(order).reshape(*batch, (height // patch) * (width // patch), channels * patch * patch)


def unpack(tokens: Array, height: int, width: int, patch: int = 2) -> Array:
    """The inverse of `pack`: [..., tokens, C patch^2] -> [..., H, W, C].

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.arange(32.0).reshape(4, 4, 2)
        >>> bool((unpack(pack(x), 4, 4) == x).all())
        True
    """
    *batch, _, size = tokens.shape
    x = tokens.reshape(*batch, height // patch, width // patch, size // patch**2, patch, patch)
    at = len(batch)
    order = (*range(at), at, at + 3, at + 1, at + 4, at + 2)
    return x.transpose(order).reshape(*batch, height, width, size // patch**2)


@dataclasses.dataclass(frozen=True)
class _Flux:
    """One call of a FLUX transformer on packed latents."""

    apply: Callable[..., Any]
    patch: int

    def __call__(self, variables: PyTree, x: Array, t: Array, cond: dict[str, Array]) -> Array:
        height, width = x.shape[1:3]
        rows, columns = height // self.patch, width // self.patch
        where = jnp.stack(jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij"), axis=-1)
        places = jnp.concatenate([jnp.zeros((rows * columns, 1)), where.reshape(-1, 2).astype(jnp.float32)], axis=1)
        out = self.apply(
            variables, hidden_states=pack(x, self.patch), encoder_hidden_states=cond["text"],
            pooled_projections=cond["pooled"], timestep=t, img_ids=places,
            txt_ids=jnp.zeros((cond["text"].shape[1], 3)), guidance=cond["guidance"],
        )  # fmt: skip
        return unpack(_sample(out), height, width, self.patch)


def FluxDenoiser(
    apply: Callable[..., Any], variables: PyTree, *, text: Array, pooled: Array, guidance: Scalar = 3.5, patch: int = 2
) -> FlaxDenoiser:
    """A FLUX-style transformer as a denoiser of latents [H, W, C].

        velocity = apply(variables, hidden_states=[1, tokens, C patch^2], encoder_hidden_states=[1, L, text width],
                         pooled_projections=[1, pooled width], timestep=[1], img_ids=[tokens, 3], txt_ids=[L, 3],
                         guidance=[1])

    which is how maxdiffusion's and diffusers' Flax FLUX transformers are called. Example of use:

        transformer = FluxTransformer2DModel(...)                                 # linen
        model = FluxDenoiser(transformer.apply, {"params": params}, text=text, pooled=pooled)
        steps = nk.grid(model.schedule, nk.grids.shifted(28, 3.0))

    Args:
        apply: the transformer's; returns an array, a tuple that starts with it, or an object with `.sample`.
        variables: the weights.
        text, pooled: the encoded prompt of one sample, [L, text width] and [pooled width].
        guidance: the distilled guidance scale that is embedded, []; ignored by networks without such an embedding.
        patch: the side of a patch.

    Shapes: x [H, W, C], t [] (1 is noise) -> [H, W, C]. Schedule: `RectifiedFlow()`.
    Cost: one network evaluation.
    """
    cond = {"text": text, "pooled": pooled, "guidance": as_float(guidance)}
    return FlaxDenoiser(_Flux(apply, patch), "velocity", variables, RectifiedFlow(), cond, batched=True)


@dataclasses.dataclass(frozen=True)
class _Wan:
    """One call of a Wan transformer on a video whose channels come first."""

    apply: Callable[..., Any]
    num_times: float

    def __call__(self, variables: PyTree, x: Array, t: Array, cond: Array) -> Array:
        video = jnp.moveaxis(x, -1, 1)
        out = self.apply(variables, hidden_states=video, timestep=self.num_times * t, encoder_hidden_states=cond)
        return jnp.moveaxis(_sample(out), 1, -1)


def WanDenoiser(
    apply: Callable[..., Any], variables: PyTree, *, text: Array, num_times: float = 1000.0
) -> FlaxDenoiser:
    """A Wan-style video transformer as a denoiser of latents [T, H, W, C].

        velocity = apply(variables, hidden_states=[1, C, T, H, W], timestep=[1], encoder_hidden_states=[1, L, width])

    which is how maxdiffusion's NNX Wan transformer is called, once split:

        graphdef, weights, rest = nnx.split(transformer, nnx.Param, ...)
        model = WanDenoiser(lambda w, **kw: nnx.merge(graphdef, w, rest)(**kw), weights, text=text)
        guided = nk.models.ClassifierFree(model, 5.0, null=empty_text, cond=text)

    Define the function once, not in a loop: another function is another program.

    Args:
        apply: as above; returns an array, a tuple that starts with it, or an object with `.sample`.
        variables: the weights.
        text: the encoded prompt of one sample, [L, width].
        num_times: the time that stands for pure noise in the network's own units.

    Shapes: x [T, H, W, C], t [] -> [T, H, W, C]. Schedule: `RectifiedFlow()`.
    Cost: one network evaluation; two inside `ClassifierFree`.
    """
    return FlaxDenoiser(_Wan(apply, num_times), "velocity", variables, RectifiedFlow(), text, batched=True)


def _sample(out: Any) -> Array:
    if hasattr(out, "sample"):
        return out.sample
    return out[0] if isinstance(out, (tuple, list)) else out


@pytree
class InferenceDenoiser:
    """An inference function f(time, xt, conditioning) -> {"x0": ...} on batches, as a denoiser of one sample.

    The protocol is that of hackable_diffusion's `InferenceFn`: time is [batch, 1, ..., 1] of the rank of xt, and the
    answer is a dictionary of predictions, of which `kind` is read. Weights that a frozen dataclass holds in a field
    `params`, at any depth, become leaves (and win over the field `params` here); those of other functions stay
    constants of the compiled program.

    Attributes:
        function: the inference function.
        kind: which prediction to read: "x0", "epsilon", "score", "velocity" or "v".
        schedule: the schedule the network was trained on.
        cond: the conditioning of one sample, a pytree of arrays without a batch axis, or None.

    Shapes: x [*shape], t [] -> [*shape], in at least float32.
    Cost: one call of the function, which may be several of its network (set `num_calls` for the accounts).

    Raises:
        ValueError: if the kind is unknown, or not among the predictions.

    Example:
        >>> import jax.numpy as jnp, ntrk_jax as nk
        >>> halved = lambda time, xt, conditioning: {"x0": 0.5 * xt}
        >>> InferenceDenoiser(halved, nk.schedules.VPCosine())(jnp.ones(2), 0.5).tolist()
        [0.5, 0.5]
    """

    function: Any = static()
    schedule: Schedule
    kind: str = static(default="x0")
    cond: Any = None
    num_calls: int = static(default=1)
    params: Any = None

    def __post_init__(self) -> None:
        """Refuse an unknown prediction, and take the weights out of the function."""
        require_schedule(self.schedule)
        if self.kind not in _PREDICTIONS:
            raise ValueError(f"kind must be one of {', '.join(_PREDICTIONS)}, got {self.kind!r}.")
        bare, params = _take(self.function)
        if self.params is None or jax.tree.leaves(params):  # the weights of another function win
            object.__setattr__(self, "function", bare)
            object.__setattr__(self, "params", params)

    def __call__(self, x: Array, t: Scalar, cond: Any = None) -> Array:
        """The Tweedie mean at (x, t)."""
        kind = _PREDICTIONS[self.kind]
        network = FlaxDenoiser(self._predict, kind, self.params, self.schedule, self.cond, batched=True)
        return network(x, t, cond)

    def _predict(self, params: PyTree, x: Array, t: Array, cond: Any = None) -> Array:
        time = t.reshape(t.shape[0], *(1,) * (x.ndim - 1))
        out = _give(self.function, params)(time=time, xt=x, conditioning=cond)
        if self.kind not in out:
            raise ValueError(f"the function predicts {', '.join(out)}, not {self.kind!r}; pass kind=.")
        return out[self.kind]


def _take(function: Any) -> tuple[Any, dict[str, Any]]:
    """A frozen dataclass without the weights in its fields `params`, and the weights."""
    if not dataclasses.is_dataclass(function) or isinstance(function, type):
        return function, {}
    bare, found = {}, {}
    for field in dataclasses.fields(function):
        value = getattr(function, field.name)
        if field.name == "params":
            bare[field.name], found["params"] = None, value
        elif field.init and dataclasses.is_dataclass(value):
            inner, weights = _take(value)
            if weights:
                bare[field.name], found[field.name] = inner, weights
    return (dataclasses.replace(function, **bare), found) if found else (function, {})


def _give(function: Any, params: dict[str, Any]) -> Any:
    """The inverse of `_take`."""
    fields = {k: v if k == "params" else _give(getattr(function, k), v) for k, v in params.items()}
    return dataclasses.replace(function, **fields) if fields else function
