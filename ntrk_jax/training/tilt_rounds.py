r"""Iterative tilting: from a model of p to a model of p exp(r / temperature) / Z, by rounds of draw, weigh and regress.

The path is p_a = p exp(a r / temperature) / Z_a, a from 0 to 1. A round at a draws samples with the current model, asks
the reward once a sample, chooses a step h, freezes the model as anchor and trains its student on the targets of
`training.tilting` with l = h r / temperature, centred. The reward is never differentiated and may live on the host.

- Steps are chosen by the effective sample size: the largest h for which exp(l) keeps the share `ess` of it, the rest of
  the path then cut evenly. So colder temperatures get more rounds, and a fixed number of rounds is the same thing with
  h = 1 / num_rounds.
- Rounds are for tilts that no sample of the model shows yet. Each hands its errors to the next, smoothing whatever edge
  the reward has cut. So where the whole tilt leaves a fifth or more of the first samples effective, "auto" makes it in
  one weighted round, exact for any reward; otherwise it takes explicit rounds, whose anchor keeps the noise of few
  effective samples out of the student, unless the rewards are skewed (`TiltPlan`).
- Starts are even (`training.draws`), so that the shares of modes do not walk from round to round.
- A model with moments (`models.MomentDenoiser`) is given those of the tilted samples before its student is trained.
- The sets of the last `keep` rounds are used together: those of a_j are samples of p_a after weighing by
  exp((a - a_j) r / temperature), and count as much as their effective size. That is right if the models of those
  rounds were.
- A refresh is plain denoising of fresh samples of the current model, which brings a student that drifted from being a
  conditional mean back to one; it cannot bring back a law that drifted.

Every round compiles to the same program: the step enters through the data.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import require_count, require_probability
from ntrk_jax.resampling import systematic
from ntrk_jax.training.draws import asked, draw
from ntrk_jax.training.fit import FitState, begin, finished, identity, recovered, restore, save, stepper
from ntrk_jax.training.tilt_weights import centred, effective_share, ess_step, pooled_weights, skewness
from ntrk_jax.training.tilting import TiltLoss
from ntrk_jax.tree import pytree, replace, static
from ntrk_jax.typing import Array, Key, PyTree, Scalar

__all__ = ["TiltPlan", "TiltState", "denoise", "tilt"]

MAX_ROUNDS = 256
LEAP = 0.2
SKEWED, LOPSIDED, ENOUGH = 0.25, 1.0, 100
_ESS = {"explicit": 0.7, "implicit": 0.6, "weighted": 0.6}


@pytree
class TiltPlan:
    """How `tilt` spends its effort; every field has a usable default.

    Attributes:
        method: "explicit", "implicit" or "weighted", or "auto": one weighted round where the whole tilt leaves a fifth
            of the samples effective and neither `num_rounds` nor `ess` is given, else explicit ones. Skewed rewards,
            as of a cliff or a quadratic, lead explicit steps astray: from a skewness of 0.25 on rounds are implicit,
            and from 1 on a hundred effective samples are enough for the weighted round. It has five times `num_steps`
            at twice the `rate`, and half of its times below 0.3 of `noise`.
        kind: as in `TiltLoss`.
        num_rounds: None to choose steps by `ess`. ess: the share of the effective sample size that a step keeps; None
            is 0.7 for "explicit", whose error grows with the step, and 0.6 for the others.
        num_samples: a round (best a power of two). keep: rounds whose samples are used together.
        num_steps: of training, a round; batch_size, rate, decay: of each step; the rate falls to a twentieth.
        noise: the ratio sigma / alpha, in standard deviations of the samples, that half of the training times exceed.
        num_others: other samples that each target is averaged over (`TiltLoss`).
        num_refresh: training steps of the refresh at the end, 0 for none.
        num_draw_steps: model calls a drawn sample. draw_batch: samples drawn at a time.

    Raises:
        ValueError: for an unknown method or kind, or a number that means nothing.
    """

    method: str = static(default="auto")
    kind: str = static(default="auto")
    num_rounds: int | None = static(default=None)
    ess: float | None = static(default=None)
    num_samples: int = static(default=8192)
    keep: int = static(default=1)
    num_steps: int = static(default=600)
    batch_size: int = static(default=512)
    rate: float = static(default=1e-3)
    decay: float = static(default=0.99)
    noise: float = static(default=1.0)
    num_others: int = static(default=63)
    num_refresh: int = static(default=0)
    num_draw_steps: int = static(default=48)
    draw_batch: int = static(default=8192)

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if self.method not in ("auto", *_ESS):
            raise ValueError(f"method must be one of auto, {', '.join(_ESS)}, got {self.method!r}.")
        if self.ess is not None:
            require_probability("ess", self.ess)
        if self.num_rounds is not None and not 1 <= self.num_rounds <= MAX_ROUNDS:
            raise ValueError(f"num_rounds must be in 1 ... {MAX_ROUNDS}, got {self.num_rounds}.")
        TiltLoss(None, kind=self.kind)
        if not (0 < self.rate < math.inf and 0 < self.noise < math.inf and 0 <= self.decay <= 1):
            given = f"{self.rate}, {self.noise} and {self.decay}"
            raise ValueError(f"rate and noise must be positive and decay lie in [0, 1], got {given}.")
        counts = ("num_samples", "keep", "num_steps", "batch_size", "num_draw_steps", "draw_batch")
        require_count(**{name: getattr(self, name) for name in counts})
        require_count(0, num_others=self.num_others, num_refresh=self.num_refresh)


class TiltState(NamedTuple):
    """A run of `tilt` after some rounds; what its checkpoint holds.

    model: the current denoiser. reached: a, [] float. round: [] int32.
    samples, rewards: of the last rounds, [keep, num_samples, *shape] and [keep, num_samples] in units of the
        temperature; at: the a they were drawn at, [keep], NaN where there are none yet.
    history: [256, 5], one row a round: a before, a after, share of effective samples, mean reward, last loss.
    skewed: whether the rewards of any round so far were, [] bool. run: names the run, [] uint32.
    """

    model: Any
    reached: Array
    round: Array
    samples: Array
    rewards: Array
    at: Array
    history: Array
    skewed: Array
    run: Array


def tilt(
    key: Key, model: Any, reward: Any, shape: tuple[int, ...], *, temperature: Scalar = 1.0,
    plan: TiltPlan | None = None, checkpoint: str | os.PathLike | None = None,
    progress: Callable[[str], None] | None = None,
) -> TiltState:  # fmt: skip
    """Tilt a model by a reward: afterwards `state.model` stands for p exp(r / temperature) / Z.

    Args:
        key: names the whole run; round i uses fold_in(key, i).
        model: a denoiser with `variables` and `schedule`: `models.MomentDenoiser` or `models.FlaxDenoiser`, trained.
        reward: [*shape] -> [], of any kind, `rewards.External` included. shape: of one sample.
        temperature: [], positive. plan: what to spend.
        checkpoint: a folder, rewritten after every round; if it exists the run goes on from there.
        progress: called with one line after every round.

    Cost: num_samples reward calls and num_samples num_draw_steps model calls a round, and num_steps batch_size values
        and gradients of the loss; three programs are compiled, whatever the number of rounds, and one more where "auto"
        changes its method.
    Optimum: the exact tilt, up to the regression's error and, for "explicit", O(1 / rounds) where |l| is small for
        every sample: rare ones of very low reward move an explicit step by l, not by exp(l) - 1.

    Raises:
        ValueError: if the temperature is not positive, a reward or a loss is not finite, the path needs more than 256
            rounds, or the checkpoint is of another run.

    References: Pachebat et al. 2025, arXiv:2512.03234, Algorithm 1; Potaptchik et al. 2025, arXiv:2512.21829.
    """
    plan = TiltPlan() if plan is None else plan
    if not float(temperature) > 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")
    sets, num = (plan.keep, plan.num_samples), plan.num_samples
    state = TiltState(
        model, jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((*sets, *shape)), jnp.zeros(sets),
        jnp.full((plan.keep,), jnp.nan), jnp.full((MAX_ROUNDS, 5), jnp.nan),
        jnp.zeros((), bool), identity(key, jax.tree.map(jnp.asarray, model), reward, float(temperature), plan),
    )  # fmt: skip
    if checkpoint is not None and recovered(checkpoint).exists():
        run, state = state.run, restore(checkpoint, state)
        if int(state.run) != int(run):
            raise ValueError(
                f"{checkpoint} is of another key, model, reward, temperature or plan; give another folder."
            )
    while float(state.reached) < 1.0:
        if int(state.round) >= MAX_ROUNDS:
            raise ValueError(f"the path needs more than {MAX_ROUNDS} rounds; raise the temperature or lower ess.")
        began, run_key = time.perf_counter(), jax.random.fold_in(key, int(state.round))
        state = _round(run_key, state, reward, float(temperature), plan)
        if checkpoint is not None:
            save(checkpoint, state)
        if progress is not None:
            row = np.asarray(state.history[int(state.round) - 1])
            seconds = time.perf_counter() - began
            progress(
                f"round {int(state.round)}: {row[0]:.3f} -> {row[1]:.3f} of the tilt, {row[2]:.0%} effective samples, "
                f"mean reward {row[3]:.4g}, loss {row[4]:.4g}, {seconds:.1f} s"
            )
    if plan.num_refresh:
        draw_key, fit_key = jax.random.split(jax.random.fold_in(key, MAX_ROUNDS))
        x = draw(draw_key, state.model, num, shape, plan.num_draw_steps, plan.draw_batch)
        state = state._replace(model=denoise(fit_key, state.model, x, plan.num_refresh, plan.batch_size, plan.rate))
    return state


def _round(key: Key, state: TiltState, reward: Any, temperature: float, plan: TiltPlan) -> TiltState:
    draw_key, pick_key, fit_key = jax.random.split(key, 3)
    a, slot, shape = float(state.reached), int(state.round) % plan.keep, state.samples.shape[2:]
    x = draw(draw_key, state.model, plan.num_samples, shape, plan.num_draw_steps, plan.draw_batch)
    r = asked(reward, x, plan.draw_batch) / temperature
    if not bool(jnp.all(jnp.isfinite(r)) & jnp.all(jnp.isfinite(x))):
        raise ValueError("samples and rewards must be finite; lower the rate or clip the reward (rewards.Clipped).")
    state = state._replace(
        samples=state.samples.at[slot].set(x), rewards=state.rewards.at[slot].set(r), at=state.at.at[slot].set(a)
    )
    weights = pooled_weights(np.asarray(state.rewards, np.float64), np.asarray(state.at, np.float64), a)
    rows = np.asarray(systematic(pick_key, jnp.log(jnp.asarray(weights.ravel(), jnp.float32)), weights.size))
    x_all, r_all = state.samples.reshape(-1, *shape)[rows], np.asarray(state.rewards, np.float64).ravel()[rows]
    skewed = bool(state.skewed) or abs(skewness(r_all)) > SKEWED
    plan = _settled(plan, a, r_all, skewed)
    h = _step(r_all, 1.0 - a, plan, int(state.round))
    data = (x_all, jnp.asarray(centred(h * r_all, plan.method), jnp.float32))
    tilted = np.exp(h * r_all - np.max(h * r_all))
    model, loss = _train(fit_key, state.model, data, jnp.asarray(tilted / tilted.sum(), jnp.float32), plan)
    if not bool(jnp.isfinite(loss)):
        raise ValueError(f"the loss of round {int(state.round) + 1} is not finite; lower the rate or clip the reward.")
    reached = 1.0 if a + h > 1.0 - 1e-6 else a + h
    share, mean = effective_share(h * r_all), float(jnp.mean(r)) * temperature
    row = jnp.asarray([a, reached, share, mean, float(loss)], jnp.float32)
    return state._replace(
        model=model, reached=jnp.asarray(reached, jnp.float32), round=state.round + 1,
        history=state.history.at[int(state.round)].set(row), skewed=jnp.asarray(skewed),
    )  # fmt: skip


def _settled(plan: TiltPlan, a: float, rewards: np.ndarray, skewed: bool) -> TiltPlan:
    """The plan of this round, its method settled."""
    if plan.method != "auto":
        return plan
    share = effective_share(rewards)
    shown = share >= LEAP or (abs(skewness(rewards)) > LOPSIDED and share * plan.num_samples >= ENOUGH)
    if a > 0.0 or (plan.num_rounds, plan.ess) != (None, None) or not shown:
        return replace(plan, method="implicit" if skewed else "explicit")
    more = {"num_steps": 5 * plan.num_steps, "rate": 2.0 * plan.rate, "decay": max(plan.decay, 0.998)}
    return replace(plan, method="weighted", num_rounds=1, noise=0.3 * plan.noise, **more)


def _step(rewards: np.ndarray, left: float, plan: TiltPlan, done: int) -> float:
    """The step h of the round after `done` rounds."""
    if plan.num_rounds is not None:
        return left / max(1, plan.num_rounds - done)
    share = _ESS[plan.method] if plan.ess is None else plan.ess
    longest = ess_step(rewards, share, left)
    return left / math.ceil(left / longest - 1e-9)


@jax.jit
def _fitted(model: Any, x: Array, weights: Array) -> Any:
    return model.fitted(x, weights)


@cache
def _optimizer(rate: float, num_steps: int) -> Any:
    import optax

    schedule = optax.warmup_cosine_decay_schedule(0.05 * rate, rate, min(50, num_steps // 10), num_steps, 0.05 * rate)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def denoise(
    key: Key, model: Any, x: Array, num_steps: int, batch_size: int = 512, rate: float = 2e-3, decay: float = 0.995
) -> Any:
    """The model after plain denoising on samples x [num, *shape]: how a base is trained, and a refresh.

    Args:
        model: `models.MomentDenoiser` or `models.FlaxDenoiser`. num_steps, batch_size, rate, decay: of the training.
    """
    plan = TiltPlan(method="weighted", num_steps=num_steps, batch_size=batch_size, rate=rate, decay=decay)
    even = jnp.full((x.shape[0],), 1.0 / x.shape[0])
    model, loss = _train(key, model, (x, jnp.zeros(x.shape[0])), even, plan)
    if not bool(jnp.isfinite(loss)):
        raise ValueError("the loss is not finite; lower the rate, or look for numbers in the samples that are not.")
    return model


def _train(key: Key, model: Any, data: PyTree, weights: Array, plan: TiltPlan) -> tuple[Any, Array]:
    """A student of the model, with the moments of the weighted samples if it has moments; and its last loss."""
    fitted = _fitted(model, data[0], weights) if hasattr(model, "fitted") else model
    spread = jnp.sqrt(jnp.mean(jnp.var(data[0], axis=0)))
    anchor = None if plan.method == "weighted" else model
    loss = TiltLoss(
        fitted, anchor, scale=plan.noise * spread, pool=data, num_others=plan.num_others, method=plan.method,
        kind=plan.kind,
    )  # fmt: skip
    optimizer = _optimizer(plan.rate, plan.num_steps)
    state = begin(model.variables, jax.jit(optimizer.init)(model.variables))
    state = finished(_steps(key, loss, data, plan.decay, state, optimizer, plan.batch_size, plan.num_steps))
    return replace(fitted, variables=state.average), state.loss


@partial(jax.jit, static_argnums=(5, 6, 7))
def _steps(
    key: Key, loss: TiltLoss, data: PyTree, decay: Any, state: FitState, optimizer: Any, batch_size: int, length: int
) -> FitState:
    """The steps of a round, with the loss as an argument: other moments, anchors and steps compile nothing new."""
    return stepper(loss, optimizer, batch_size)(key, data, decay, state, length)
