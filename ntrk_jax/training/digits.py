"""Real handwritten digits: a diffusion model, a reward and an independent judge, trained in minutes on a CPU.

The data are the 1797 images of 8 x 8 pixels bundled with scikit-learn (test half of Alpaydin and Kaynak's "Optical
Recognition of Handwritten Digits", UCI 1998), scaled from 0 ... 16 to [-1, 1]; distances between images are
Euclidean in these units (a real digit is on average 2.05 from its nearest neighbour).

- The shipped denoiser predicts x0, not the noise or the velocity: off the data it then falls back to something like a
  digit, where a network that predicts noise follows x wherever guidance takes it. `train_digits(kind="v")` makes one of
  the other sort, which most large pretrained models are.
- The reward is one logit of a perceptron trained on one half of the images; the judge a convolution trained on the
  other half. The two share no image, no seed and no architecture.

`load_digits_model()` reads the trained weights that ship with the package; `train_digits` rebuilds them from scratch.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.models.flax import FlaxDenoiser, NnxDenoiser
from ntrk_jax.rewards.neural import Neural
from ntrk_jax.schedules import Schedule, VPCosine
from ntrk_jax.training.classifiers import ClassifierLoss, init_patches, init_perceptron, patches, perceptron
from ntrk_jax.training.fit import fit
from ntrk_jax.training.losses import DenoisingLoss
from ntrk_jax.tree import pytree, static
from ntrk_jax.typing import Array, Key, PyTree

__all__ = ["SHAPE", "Digits", "DigitsModel", "load_digits_model", "real_digits", "train_digits"]

SHAPE = (8, 8, 1)
_FORMAT = "ntrk_jax digits 1"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error)
_SHIPPED = Path(__file__).parent.parent / "data" / "digits.npz"

_CLASSIFIERS: dict[str, tuple[Callable, Callable]] = {
    "reward": (perceptron, lambda key: init_perceptron(key, 64)),
    "judge": (patches, lambda key: init_patches(key, SHAPE)),
}

Progress = Callable[[str, int, int, float], None]
"""progress(part, step, num_steps, loss)."""


class Digits(NamedTuple):
    """images [1797, 8, 8, 1] float32 in [-1, 1], labels [1797] int32."""

    images: np.ndarray
    labels: np.ndarray


@pytree
class DigitsModel:
    """The digits model: everything that guided sampling needs, with weights as leaves.

    Attributes:
        denoiser: a `Denoiser` for x [8, 8, 1].
        reward_params, judge_params: the weights of the two classifiers.
        record_json: how it was made, as text; `record` reads it.

    Example:
        >>> model = load_digits_model()
        >>> model.denoiser(model.data[0], 0.1).shape
        (8, 8, 1)
    """

    denoiser: FlaxDenoiser
    reward_params: PyTree
    judge_params: PyTree
    record_json: str = static(default="{}")

    @property
    def schedule(self) -> Schedule:
        """The schedule the denoiser was trained on."""
        return self.denoiser.schedule

    @property
    def record(self) -> dict[str, Any]:
        """How the model was made: its seed, the numbers measured, the versions used."""
        return json.loads(self.record_json)

    def reward(self, digit: Any, kind: str = "logit") -> Neural:
        """The reward: the first classifier's logit of a digit, or its "log_prob"; digit may be a [] array."""
        return Neural(perceptron, self.reward_params, _digit(digit), kind)

    def judge(self, digit: Any, kind: str = "logit") -> Neural:
        """The held-out reward: that of the second classifier, which nothing is optimised for."""
        return Neural(patches, self.judge_params, _digit(digit), kind)

    @property
    def data(self) -> Array:
        """The real images, [1797, 8, 8, 1] in [-1, 1]."""
        return jnp.asarray(real_digits().images)


def _digit(digit: Any) -> Any:
    if isinstance(digit, (int, np.integer)) and not 0 <= digit <= 9:
        raise ValueError(f"digit must be one of 0 ... 9, got {digit}.")
    return digit


@functools.cache
def real_digits() -> Digits:
    """scikit-learn's handwritten digits, scaled to [-1, 1]."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return Digits((images.reshape(-1, *SHAPE) / 8.0 - 1.0).astype(np.float32), labels.astype(np.int32))


def halves(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the images that the reward and the judge are trained on: disjoint, together all of them."""
    order = np.random.default_rng(seed).permutation(len(real_digits().labels))
    return np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])


def _network(rngs: Any) -> Any:
    from ntrk_jax.models.nets import MLP

    return MLP(SHAPE, width=192, hidden=384, depth=3, rngs=rngs)


def _denoiser(kind: str, state: PyTree | None = None) -> FlaxDenoiser:
    """The denoiser that predicts `kind`, with these weights; without any, one whose leaves are shapes."""
    from flax import nnx

    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: _network(nnx.Rngs(0))))
    return NnxDenoiser((graphdef, shapes if state is None else state), kind, VPCosine())


def train_digits(
    seed: int = 0, out: str | os.PathLike | None = None, progress: Progress | None = None, *,
    num_steps: int = 10_000, classifier_steps: int = 4_000, kind: str = "x0",
) -> DigitsModel:  # fmt: skip
    """Train the denoiser and both classifiers from scratch, and write them to a file.

    The same seed gives the same weights up to the rounding of the machine's arithmetic.

    Args:
        seed: names the initial weights, the split of the images and every random draw.
        out: the .npz file to write (replaced only when complete), or None.
        progress: called as progress(part, step, num_steps, loss), part being "denoiser", "reward" or "judge".
        num_steps, classifier_steps: steps of 128 images, of the denoiser and of each classifier.
        kind: what the denoiser's network predicts, one of `tweedie.KINDS`; the classifiers do not depend on it.

    Returns:
        The model as `load_digits_model` would read it back.

    Cost: about a minute on two CPU cores.
    """
    keys = jax.random.split(jax.random.key(seed), 3)
    state, numbers = _train_denoiser(keys[0], kind, num_steps, progress)
    weights: dict[str, PyTree] = {"denoiser": state}
    for name, key, rows in zip(_CLASSIFIERS, keys[1:], halves(seed), strict=True):
        weights[name], measured = _train_classifier(name, key, rows, classifier_steps, progress)
        numbers.update(measured)
    record = {
        "format": _FORMAT, "seed": seed, "kind": kind, "num_steps": num_steps, "classifier_steps": classifier_steps,
        "numbers": numbers, "versions": _versions(),
    }  # fmt: skip
    weights = jax.tree.map(lambda a: np.asarray(a, np.float16), weights)
    if out is not None:
        _write(Path(out), weights, json.dumps(record))
    return _assemble(weights, json.dumps(record))


def _train_denoiser(key: Key, kind: str, num_steps: int, progress: Progress | None) -> tuple[PyTree, dict[str, float]]:
    from flax import nnx

    init_key, run_key, test_key = jax.random.split(key, 3)
    like = _denoiser(kind)
    loss = DenoisingLoss(like.apply, kind, like.schedule)
    images = jnp.asarray(real_digits().images)
    initial = jax.jit(lambda key: nnx.to_pure_dict(nnx.state(_network(nnx.Rngs(key)))))(init_key)
    report = _part("denoiser", num_steps, progress)
    state = fit(run_key, loss, initial, images, _optimizer(num_steps), num_steps, progress=report).average
    losses = jax.jit(jax.vmap(loss, in_axes=(0, None, 0)))(jax.random.split(test_key, len(images)), state, images)
    return state, {"denoiser_loss": round(float(jnp.mean(losses)), 4)}


def _train_classifier(
    name: str, key: Key, rows: np.ndarray, num_steps: int, progress: Progress | None
) -> tuple[PyTree, dict[str, float]]:
    init_key, run_key = jax.random.split(key)
    apply, init = _CLASSIFIERS[name]
    digits = real_digits()
    data = tuple(jnp.asarray(a[rows]) for a in digits)
    rest = Digits(*(np.delete(a, rows, axis=0) for a in digits))
    report = _part(name, num_steps, progress)
    params = fit(
        run_key, ClassifierLoss(apply), jax.jit(init)(init_key), data, _optimizer(num_steps), num_steps,
        decay=0.995, progress=report,
    ).average  # fmt: skip
    logits = np.asarray(jax.jit(jax.vmap(apply, in_axes=(None, 0)))(params, jnp.asarray(rest.images)))
    right = float(np.mean(np.argmax(logits, axis=-1) == rest.labels))
    true = float(np.mean(np.take_along_axis(logits, rest.labels[:, None], axis=1)))
    return params, {f"{name}_accuracy_on_other_half": round(right, 4), f"{name}_logit_on_other_half": round(true, 3)}


def _optimizer(num_steps: int) -> Any:
    import optax

    warmup = min(200, num_steps // 10)
    rate = optax.warmup_cosine_decay_schedule(0.0, 1e-3, warmup, num_steps, 1e-5)
    return optax.adamw(rate, weight_decay=1e-2)


def _part(name: str, num_steps: int, progress: Progress | None) -> Callable[[int, float], None] | None:
    return None if progress is None else lambda step, loss: progress(name, step, num_steps, loss)


def _versions() -> dict[str, str]:
    import importlib.metadata

    names = ("jax", "flax", "optax", "numpy", "scikit-learn")
    return {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in names}


def _assemble(weights: PyTree, record_json: str) -> DigitsModel:
    w = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), weights)
    kind = json.loads(record_json).get("kind", "x0")  # files of earlier versions do not say
    return DigitsModel(_denoiser(kind, w["denoiser"]), w["reward"], w["judge"], record_json)


def _shapes() -> dict[str, PyTree]:
    """The tree that a file must hold."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    classifiers = {name: jax.eval_shape(init, key) for name, (_, init) in _CLASSIFIERS.items()}
    return {"denoiser": _denoiser("x0").variables, **classifiers}


def _write(path: Path, weights: PyTree, record_json: str) -> None:
    flat, _ = jax.tree_util.tree_flatten_with_path(weights)
    arrays = {jax.tree_util.keystr(k, simple=True, separator="/"): v for k, v in flat}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        np.savez_compressed(file, record=np.asarray(record_json), **arrays)
    os.replace(partial, path)


def load_digits_model(path: str | os.PathLike | None = None) -> DigitsModel:
    """The digits model from a file that `train_digits` wrote; by default the one that ships with the package.

    The file holds plain arrays; nothing in it is executed.

    Raises:
        ValueError: if the file is missing, damaged or holds something else.

    Example:
        >>> model = load_digits_model()
        >>> model.record["seed"], model.reward(3)(model.data[3]).shape
        (0, ())
    """
    path = _SHIPPED if path is None else Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        record_json = str(found["record"][()])
        if json.loads(record_json).get("format") != _FORMAT:
            raise ValueError("another format")
        return _assemble(_fill(_shapes(), found), record_json)
    except _UNREADABLE as error:
        known = isinstance(error, OSError) or str(error).startswith(("no array", "another format"))
        reason = str(error) if known else "unreadable"
        raise ValueError(
            f"{path} is not a digits model ({reason}); make one with `ntrk train digits --out FILE.npz`."
        ) from None


def _fill(shapes: PyTree, found: dict[str, np.ndarray]) -> PyTree:
    """The tree of arrays with these shapes, taken from a file's entries by name."""

    def take(place: Any, shape: Any) -> np.ndarray:
        name = jax.tree_util.keystr(place, simple=True, separator="/")
        if name not in found:
            raise ValueError(f"no array {name}")
        if found[name].shape != shape.shape or found[name].dtype.kind != "f":
            raise ValueError(f"{name} is {found[name].dtype}{list(found[name].shape)}, not {list(shape.shape)}")
        if not np.all(np.isfinite(found[name])):
            raise ValueError(f"{name} is not finite")
        return found[name]

    return jax.tree_util.tree_map_with_path(take, shapes)
