"""How a tuned model compares with the exact tilted law, or on digits with an independent judge."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntrk_jax as nk
from ntrk_jax.cli.problems import Named
from ntrk_jax.training import draw

__all__ = ["judge"]

_STEPS = 64


def judge(task: Named, temperature: float, base: Any, tuned: Any, seed: int, num: int) -> dict[str, Any]:
    """The numbers of the tuned model, those of the base model under "base", and the exact ones as NAME_exact.

    Samples are `num` independent ones of the probability flow with 64 steps. All numbers of both models are against
    the *tilted* law: nll is the mean of -log p*(x) over a model's samples x, low where they crowd together.
    """
    starts, apart, directions, again, floors = jax.random.split(jax.random.key(seed), 5)
    models = {"base": base, "tuned": tuned}
    x = {k: draw(jax.random.clone(starts), m, num, task.shape, _STEPS, even=False) for k, m in models.items()}
    if task.name == "digits":
        return _of_digits(task, x)
    exact = task.tilted(temperature)
    reference = exact.sample(apart, num).reshape(num, *task.shape)
    numbers = {k: _against(task, exact, samples, reference, jax.random.clone(directions)) for k, samples in x.items()}
    ideal = _against(task, exact, exact.sample(again, num).reshape(num, *task.shape), reference, directions)
    known = {f"{k}_exact": ideal[k] for k in ("mean", "cov", "nll", "mean_reward")}
    if hasattr(exact, "weights"):
        known["weights_exact"] = np.asarray(exact.weights, np.float64).tolist()
    floor = nk.metrics.two_sample_floor(floors, exact, num)
    return {**numbers["tuned"], "sw2_floor": float(floor), **known, "base": numbers["base"]}


def _against(task: Named, exact: Any, x: Any, reference: Any, key: Any) -> dict[str, Any]:
    """The numbers of samples x [num, *shape] under the exact law; the covariance only in low dimensions."""
    flat = np.asarray(x, np.float64).reshape(x.shape[0], -1)
    small = flat.shape[1] <= 16
    return {
        "sw2": float(nk.metrics.sliced_wasserstein(key, x, reference)),
        "mean": flat.mean(0).tolist() if small else None,
        "cov": np.cov(flat.T).reshape(flat.shape[1], -1).tolist() if small else None,
        "weights": np.asarray(nk.metrics.mode_mass(x, exact)).tolist() if hasattr(exact, "weights") else None,
        "nll": float(-jnp.mean(jax.lax.map(exact.log_prob, x, batch_size=1024))),
        "mean_reward": float(jnp.mean(jax.vmap(task.reward)(x))),
    }


def _of_digits(task: Named, x: dict[str, Any]) -> dict[str, Any]:
    """The reward, the held-out judge's, and the mean distance between pairs of samples."""
    from ntrk_jax.training import load_digits_model

    judge = load_digits_model().judge(task.reward.label)

    def numbers(samples: Any) -> dict[str, Any]:
        pairs = (samples - jnp.roll(samples, 1, axis=0)).reshape(samples.shape[0], -1)
        return {
            "mean_reward": float(jnp.mean(jax.vmap(task.reward)(samples))),
            "judge_reward": float(jnp.mean(jax.vmap(judge)(samples))),
            "diversity": float(jnp.mean(jnp.linalg.norm(pairs, axis=1))),
        }

    none = dict.fromkeys(("sw2", "sw2_floor", "mean", "cov", "weights", "nll", "nll_exact"))
    return {**none, **numbers(x["tuned"]), "base": numbers(x["base"])}
