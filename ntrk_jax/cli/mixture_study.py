"""The 2-D mixture: where a constant rho and a temperature lead as the number of steps grows.

The target is p exp(r / temperature) / Z of a skewed mixture under a linear reward, known in closed form. Both samplers
use the exact value and the same whitening; they differ in how strongly, and where, the noise is tilted. The constant is
the one of those tried that comes nearest to the target at the fewest steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ntrk_jax as nk
from ntrk_jax.cli.runs import draw_samples

__all__ = ["Cloud", "MixtureStudy", "study", "summary_of"]

STRENGTH, TEMPERATURE = 0.1, 1.0

_REFERENCE = 0xFFFFFFFF


class Cloud(NamedTuple):
    """Samples [num, 2] of one method at one number of steps, their distance to the target and their mean reward."""

    method: str
    label: str
    num_steps: int | None
    x: np.ndarray
    distance: float
    reward: float
    seconds: float


class MixtureStudy(NamedTuple):
    """All clouds, the laws they are compared with, and the distance between two exact samples (the floor)."""

    clouds: list[Cloud]
    law: Any
    tilted: Any
    floor: float
    exact_reward: float


def study(
    num: int, num_steps: Sequence[int], seed: int = 0, on_cloud: Callable[[str], None] = lambda text: None
) -> MixtureStudy:
    """Draw `num` samples of the base law, of the target, and of both samplers at each number of steps."""
    law, reward = nk.targets.skewed(2)
    schedule, whiten = nk.schedules.VPCosine(), nk.whitening.TypicalSet((2,))
    tilted = nk.targets.tilt(law, reward, TEMPERATURE).mixture
    value = nk.values.Exact(law, schedule, reward, TEMPERATURE)
    model, parts = nk.models.Exact(law, schedule), {"value": value, "whiten": whiten}
    samplers = {
        "base": ("base", nk.methods.base(model, reward, (2,))),
        "constant": (f"NTRK rho {STRENGTH:g}", nk.methods.ntrk(model, reward, (2,), strength=STRENGTH, **parts)),
        "calibrated": (f"NTRK temp. {TEMPERATURE:g}",
                       nk.methods.calibrated(model, reward, (2,), temperature=TEMPERATURE, **parts)),
    }  # fmt: skip
    key_exact, key_floor, key_slices = jax.random.split(jax.random.fold_in(jax.random.key(seed), _REFERENCE), 3)
    exact, floor, mean_reward = _exact_samples(key_exact, key_floor, tilted, reward, num)
    clouds = [Cloud("exact", "exact tilted law", None, np.asarray(exact), 0.0, float(mean_reward), 0.0)]
    for name, (label, sampler) in samplers.items():
        for steps in num_steps[:1] if name == "base" else num_steps:
            began = time.perf_counter()
            x = draw_samples(sampler, seed, nk.grid(schedule, nk.grids.uniform(steps)), (2,), num, batch=num).x
            seconds = time.perf_counter() - began
            distance, mean_reward = map(float, _measure(jax.random.clone(key_slices), x, exact, reward))
            clouds.append(Cloud(name, label, steps, np.asarray(x), distance, mean_reward, seconds))
            on_cloud(f"2-D mixture: {label}, {steps} steps")
    return MixtureStudy(clouds, law, tilted, float(floor), float(nk.targets.expected_reward(tilted, reward)))


@partial(jax.jit, static_argnames="num")
def _exact_samples(key: Any, key_floor: Any, tilted: Any, reward: Any, num: int) -> tuple[Any, Any, Any]:
    """Samples [num, 2] of the target, the distance between two such sets, and their mean reward."""
    exact = tilted.sample(key, num)
    return exact, nk.metrics.two_sample_floor(key_floor, tilted, num), jnp.mean(jax.vmap(reward)(exact))


@jax.jit
def _measure(key: Any, x: Any, exact: Any, reward: Any) -> tuple[Any, Any]:
    """The distance of the samples x to the exact ones, and their mean reward."""
    return nk.metrics.sliced_wasserstein(key, x, exact), jnp.mean(jax.vmap(reward)(x))


def summary_of(out: MixtureStudy) -> dict[str, Any]:
    """The numbers of the figure."""
    return {
        "target": "skewed(2), linear reward", "temperature": TEMPERATURE, "strength": STRENGTH,
        "value": "exact", "whitening": "TypicalSet(shape=(2,))", "samples": len(out.clouds[0].x),
        "sliced_w2_floor": out.floor, "exact_mean_reward": out.exact_reward,
        "rows": [
            {"method": c.method, "label": c.label, "num_steps": c.num_steps, "sliced_w2": c.distance,
             "mean_reward": c.reward, "seconds": c.seconds}
            for c in out.clouds
        ],
    }  # fmt: skip
