"""What draws are judged by, and by what a strength is chosen.

One rule for every method, NTRK included: among the strengths tried (see `compare_study`), the best on draws of a seed
that is not reported. Best means

- on a law known in closed form: the smallest sliced W2 to exact draws;
- on the digits: the highest mean of target and held-out reward among strengths at which the mean distance to the
  nearest real digit is at most 1.2 times the base sampler's at 25 rows; if there is none, the smallest such distance.

A method whose row lists none runs at its defaults; of one that takes the data for Gaussian their standard deviation is
chosen. A temperature names the law that is aimed at: where that is known it is 1 for every method whose row lists no
others (that of `svdd` does, which samples that law at none); on the digits, where rewards are all that counts, it is
tuned like a strength.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntrk_jax as nk
from ntrk_jax.cli.build import Choices
from ntrk_jax.cli.compare_runs import TEMPERATURE, Budget, Draws, Program, make
from ntrk_jax.cli.problems import Named

__all__ = ["DigitsJudge", "ExactJudge", "key_of"]

_TUNING, _REPORTED, _FLOOR = 0xFFFFFFE0, 0xFFFFFFE4, 0xFFFFFFE8
"""First of a few tags each; draws have smaller numbers."""

_REPEATS = 8


def key_of(seed: int, tuning: bool = False) -> jax.Array:
    """The key of a reported seed, or of the draws on which strengths are chosen."""
    return _key(seed, _TUNING) if tuning else jax.random.key(seed)


def _key(seed: int, tag: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(seed), tag)


class ExactJudge:
    """Judges draws against the exact tilted law.

    exact: its mean reward and log Z. floor: what two exact sets of the same size show, on average over eight pairs.
    """

    asked = None
    criterion = "smallest sliced W2 to exact draws"
    temperatures = ()

    def __init__(self, task: Named, num: int) -> None:
        """Tilt the law and measure the floor."""
        self.task, self.num = task, num
        self.tilted, log_z = nk.targets.tilt(task.law, task.reward, TEMPERATURE)
        self.exact = {"mean_reward": float(nk.targets.expected_reward(self.tilted, task.reward)), "log_z": float(log_z)}
        self.modal = np.size(getattr(self.tilted, "weights", 1.0)) > 1
        pairs = [self._measure(_sample(_key(i, _FLOOR), self.tilted, num), i, _FLOOR + 1) for i in range(_REPEATS)]
        self.floor = {
            name: None if pairs[0][name] is None else float(np.mean([pair[name] for pair in pairs]))
            for name in ("sw1", "sw2", "mode_tv")
        }

    def reference(self, seed: int) -> jax.Array:
        """The exact draws that a reported seed is compared with."""
        return _sample(_key(seed, _REPORTED), self.tilted, self.num)

    def _measure(self, x: Any, seed: int, tag: int) -> dict[str, Any]:
        """The distances to the exact draws of a seed and a tag, which are the same for every method."""
        keys = _key(seed, tag), _key(seed, tag + 1)
        reward, sw1, sw2, mode_tv = _compare(*keys, x, self.tilted, self.task.reward, self.modal)
        measured = {"mean_reward": float(reward), "sw1": float(sw1), "sw2": float(sw2)}
        return measured | {"mode_tv": float(mode_tv) if self.modal else None}

    def __call__(self, draws: Draws, seed: int, tuning: bool = False) -> dict[str, Any]:
        """The numbers of one seed."""
        measured = self._measure(draws.x, seed, _TUNING + 1 if tuning else _REPORTED)
        log_z = np.asarray(draws.log_z, np.float64)
        known = not np.any(np.isnan(log_z))
        top = np.max(log_z) if known and np.any(np.isfinite(log_z)) else 0.0
        with np.errstate(divide="ignore"):
            measured["log_z"] = float(top + np.log(np.mean(np.exp(log_z - top)))) if known else None
        return measured

    def score(self, measured: dict[str, Any]) -> tuple[int, float]:
        """What is minimised over strengths."""
        value = measured["sw2"]
        return (0, value) if math.isfinite(value) else (1, 0.0)


class DigitsJudge:
    """Judges images by the target reward, a held-out classifier and the nearest real digit; digits 0 ... 9 in turn."""

    criterion = "highest mean of target and held-out reward at a distance of at most 1.2 times the base's"
    temperatures = (0.03, 0.1, 0.3, 1.0)
    ratio = 1.2
    tilted = None

    def __init__(self, task: Named, num: int) -> None:
        """Load the judges and measure the base sampler."""
        self.task, self.num = task, num
        self.model = task.digits
        self.asked = np.arange(num) % 10
        self.exact: dict[str, Any] = {"mean_reward": None, "log_z": None}
        self.floor: dict[str, Any] = {"sw1": None, "sw2": None}
        base = make("base", task, None, Budget(steps=25), Choices())
        drawn, _ = Program(base, task, num, self.asked)(base, key_of(0, tuning=True))
        self.base_distance = float(_images(self.model, self.asked, drawn.x)[2])

    def __call__(self, draws: Draws, seed: int, tuning: bool = False) -> dict[str, Any]:
        """The numbers of one seed."""
        reward, held_out, distance = map(float, _images(self.model, self.asked, draws.x))
        nothing = dict.fromkeys(("sw1", "sw2", "mode_tv", "log_z"))
        own = {"held_out": held_out, "distance": distance, "distance_ratio": distance / self.base_distance}
        return {"mean_reward": reward, **nothing, **own}

    def score(self, measured: dict[str, Any]) -> tuple[int, float]:
        """What is minimised over strengths."""
        if not all(math.isfinite(measured[name]) for name in ("mean_reward", "held_out", "distance")):
            return 2, 0.0
        if measured["distance_ratio"] > self.ratio:
            return 1, measured["distance"]
        return 0, -0.5 * (measured["mean_reward"] + measured["held_out"])


@partial(jax.jit, static_argnames="modal")
def _compare(
    key: jax.Array, directions: jax.Array, x: jax.Array, law: Any, reward: Any, modal: bool
) -> tuple[jax.Array, ...]:
    """The mean reward, sliced W1 and W2 to as many exact draws along the same directions, the error of the modes."""
    exact = law.sample(key, x.shape[0])
    keys = directions, jax.random.clone(directions)
    distances = [nk.metrics.sliced_wasserstein(k, x, exact, order=p) for k, p in zip(keys, (1.0, 2.0), strict=True)]
    mode_tv = nk.metrics.mode_total_variation(x, law) if modal else jnp.zeros(())
    return jnp.mean(jax.vmap(reward)(x)), *distances, mode_tv


_sample = jax.jit(lambda key, law, num: law.sample(key, num), static_argnums=2)


@jax.jit
def _images(model: Any, asked: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The means of the target reward, the held-out reward and the distance to the nearest real digit."""
    target = jax.vmap(lambda x, digit: model.reward(digit)(x))(x, asked)
    held_out = jax.vmap(lambda x, digit: model.judge(digit)(x))(x, asked)
    return jnp.mean(target), jnp.mean(held_out), jnp.mean(nk.metrics.nearest_distance(x, model.data))
