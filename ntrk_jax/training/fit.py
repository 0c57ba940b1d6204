"""A small functional trainer: `fit(key, loss, params, data, optimizer, num_steps) -> FitState`.

Step i draws its batch and its noise from fold_in(key, i), so the state after n steps does not depend on how
the steps were cut into chunks or runs: a run resumed from a checkpoint equals an uninterrupted one.
The steps of a chunk are one `lax.scan`; between chunks the host reports progress and saves.
Parameters may be any pytree of floating arrays; of a Flax NNX module with counters or keys of its own they are the half
that `flax.nnx.split(module, nnx.Param, ...)` gives.
"""

from __future__ import annotations

import functools
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax import naming
from ntrk_jax.arguments import require_count, require_key
from ntrk_jax.core import algebra_dtype
from ntrk_jax.tree import Function, describe
from ntrk_jax.typing import Array, Key, PyTree

if TYPE_CHECKING:
    import optax

__all__ = [
    "FitState",
    "begin",
    "finished",
    "fit",
    "identity",
    "learning_rate",
    "recovered",
    "restore",
    "save",
    "stepper",
]


class FitState(NamedTuple):
    """A training run after `step` steps.

    step: [] int32. params: the trained parameters. average: their exponential moving average, kept in float32 where
    they are of less precision, in which it would stand still, and given back in theirs at the end.
    opt_state: the optimiser's. loss: [] the mean loss over the last chunk.
    """

    step: Array
    params: PyTree
    average: PyTree
    opt_state: PyTree
    loss: Array


def fit(
    key: Key, loss: Callable[[Key, PyTree, PyTree], Array], params: PyTree, data: PyTree,
    optimizer: optax.GradientTransformation, num_steps: int, *, batch_size: int = 128, decay: float = 0.999,
    chunk: int = 500, checkpoint: str | os.PathLike | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> FitState:  # fmt: skip
    """Minimise the mean of `loss` over `data` by stochastic gradient steps.

    Args:
        key: names the whole run, with step i using fold_in(key, i).
        loss: (key, params, sample) -> [], on one sample.
        params: where to start. data: arrays [num_samples, ...], a pytree of them; kept on the device.
        optimizer: an optax transformation. num_steps: the total number of steps.
        batch_size: samples a step, drawn with replacement.
        decay: of the moving average; step i keeps min(decay, (i + 1) / (i + 11)), so that early steps do not linger.
        chunk: steps between two reports and checkpoints.
        checkpoint: a folder. If it exists the run goes on from there, whatever started it (a run that is
            done is returned as it is); it is rewritten after every chunk.
        progress: called as progress(step, loss) after every chunk.

    Returns:
        The state after num_steps steps, or those of a longer run in `checkpoint`; `average` is what one usually samples
        with.

    Cost: num_steps * batch_size loss values and gradients; compiles once, and once more for a last, shorter chunk.

    Raises:
        TypeError: if the key is not typed, the data are no arrays, or the optimiser is none.
        ValueError: if there is no data, a count is not positive and whole, the checkpoint cannot be read, or the
            parameters are no longer finite; what an earlier chunk has written to `checkpoint` stays.
    """
    _check(key, data, optimizer)
    require_count(num_steps=num_steps, batch_size=batch_size, chunk=chunk)
    state = begin(params, optimizer.init(params))
    if checkpoint is not None and recovered(checkpoint).exists():
        state = restore(checkpoint, state)
    advance = stepper(loss, optimizer, batch_size)
    while int(state.step) < num_steps:
        state = advance(key, data, decay, state, min(chunk, num_steps - int(state.step)))
        if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(state.average)):
            raise ValueError(
                f"the parameters are no longer finite by step {int(state.step)}, the loss is {float(state.loss)}; "
                "lower the learning rate, or look for numbers in data that are not finite."
            )
        if checkpoint is not None:
            save(checkpoint, state)
        if progress is not None:
            progress(int(state.step), float(state.loss))
    return finished(state)


def _check(key: Any, data: PyTree, optimizer: Any) -> None:
    """Refuse a key, data or an optimiser that training cannot use."""
    require_key(key)
    leaves = jax.tree.leaves(data)
    if not all(np.ndim(leaf) and hasattr(leaf, "dtype") for leaf in leaves):
        raise TypeError("data must be arrays [num_samples, ...], or a pytree of them; wrap a list in jnp.asarray.")
    sizes = {leaf.shape[0] for leaf in leaves}
    if len(sizes) != 1 or min(sizes) < 1:
        raise ValueError(f"data must be arrays with one common, positive first axis, got sizes {sorted(sizes)}.")
    if not hasattr(optimizer, "init"):
        raise TypeError(f"optimizer must be one of optax, such as optax.adam(1e-3), got {optimizer!r}.")


def begin(params: PyTree, opt_state: PyTree) -> FitState:
    """The state before the first step."""
    params = jax.tree.map(jnp.asarray, params)
    average = jax.tree.map(lambda p: p.astype(algebra_dtype(p)), params)
    return FitState(jnp.zeros((), jnp.int32), params, average, opt_state, jnp.zeros((), jnp.float32))


def finished(state: FitState) -> FitState:
    """The state with the average in the precision of the parameters."""
    return state._replace(average=jax.tree.map(lambda a, p: a.astype(p.dtype), state.average, state.params))


def stepper(loss: Callable, optimizer: optax.GradientTransformation, batch_size: int) -> Callable:
    """The jitted function (key, data, decay, state, length) -> the state `length` steps further."""
    import optax

    def step(loss: Callable, key: Key, data: PyTree, decay: Any, state: FitState) -> tuple[FitState, Array]:
        pick_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
        rows = jax.random.randint(pick_key, (batch_size,), 0, jax.tree.leaves(data)[0].shape[0])
        batch = jax.tree.map(lambda a: a[rows], data)
        keys = jax.random.split(loss_key, batch_size)

        def mean_loss(params: PyTree) -> Array:
            return jnp.mean(jax.vmap(loss, in_axes=(0, None, 0))(keys, params, batch))

        value, grad = jax.value_and_grad(mean_loss)(state.params)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its integer step count with floats
            updates, opt_state = optimizer.update(grad, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        count = state.step.astype(jnp.float32) + 1.0
        keep = jnp.minimum(jnp.asarray(decay, jnp.float32), count / (count + 10.0))
        average = jax.tree.map(
            lambda a, p: a + (1.0 - keep).astype(a.dtype) * (p.astype(a.dtype) - a), state.average, params
        )
        return FitState(state.step + 1, params, average, opt_state, state.loss), value

    def advance(loss: Callable, key: Key, data: PyTree, decay: Any, state: FitState, length: int) -> FitState:
        state, values = jax.lax.scan(lambda s, _: step(loss, key, data, decay, s), state, length=length)
        return state._replace(loss=jnp.mean(values).astype(jnp.float32))

    held = Function(loss) if jax.tree_util.all_leaves([loss]) else loss  # arrays it holds are arguments, not constants
    return functools.partial(jax.jit(advance, static_argnums=5), held)


def learning_rate(num_steps: int) -> optax.Schedule:
    """Up to 2e-3 in a tenth of the steps, 100 at most, and down to 1e-5 along a cosine; any num_steps from 1 up."""
    import optax

    warm = max(1, min(100, num_steps // 10))
    return optax.warmup_cosine_decay_schedule(0.0, 2e-3, warm, max(num_steps, warm + 1), 1e-5)


def save(path: str | os.PathLike, state: PyTree) -> None:
    """Write a pytree of arrays to a folder with orbax, replacing what was there only when all is written.

    The new folder is written beside the old one and swapped in by two renames; a save that stops in between leaves
    a complete one under `path` with ".ntrk-new" or ".ntrk-old" appended, and `restore` and `fit` find it.
    """
    import orbax.checkpoint as ocp

    path = recovered(path)
    new, old = _beside(path)
    with ocp.StandardCheckpointer() as writer:
        writer.save(new, state, force=True)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path) -> tuple[Path, Path]:
    """Where the next checkpoint is written, and where the last one waits until that one is in its place."""
    return path.with_name(path.name + ".ntrk-new"), path.with_name(path.name + ".ntrk-old")


def recovered(path: str | os.PathLike) -> Path:
    """The absolute path, after finishing a swap that was interrupted.

    orbax gives a folder its name only when it is complete, so a new one without a folder at `path` may take the place.
    """
    path = Path(path).absolute()
    new, old = _beside(path)
    for complete in (new, old):
        if complete.exists() and not path.exists():
            complete.rename(path)
    shutil.rmtree(old, ignore_errors=True)
    return path


def restore(path: str | os.PathLike, like: PyTree) -> PyTree:
    """Read what `save` wrote; `like` gives the structure, shapes and dtypes. Nothing in the file is executed.

    Raises:
        ValueError: if there is no checkpoint at `path`, or it does not hold a tree like `like`.
    """
    import orbax.checkpoint as ocp

    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
        with ocp.StandardCheckpointer() as reader:
            out = reader.restore(recovered(path), shapes)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path} is not a checkpoint that fits this run ({reason[:200]}); "
            "give another folder; one that a training run left half-written may be deleted."
        ) from None
    return out


def identity(*parts: Any) -> Array:
    """A number that names a run by the printed forms of its parts, code in work included, [] uint32."""
    with naming.in_full():
        text = repr([describe(part) for part in parts])
    return jnp.uint32(zlib.crc32(text.encode()))
