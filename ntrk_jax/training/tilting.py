r"""Tilting a model by regression: one target, one loss, and the published methods as its settings.

With x_0 drawn from a model of law p, x_t = alpha x_0 + sigma z, and u any conditional-mean parametrisation (x0, eps,
v, velocity, score: each is affine in x0 given (x_t, t)), the mean of u under the tilted law p exp(l) / Z is

    u*(x_t) = E[exp(l(x_0)) u | x_t] / E[exp(l(x_0)) | x_t],        l = h r / temperature, a step of the tilt.

All methods regress on one-sample targets of the same form,

    T = anchor + coef (sample - stop_gradient(baseline)),

with `sample` the value of u that belongs to the drawn (x_0, z), `anchor` the frozen model that x_0 was drawn from:

| method | coef | baseline | weight | optimum of one step | calls a loss value |
|---|---|---|---|---|---|
| explicit | l | anchor | 1 | u + Cov(u, l given x_t): error O(h^2) | anchor, student |
| implicit | exp(l) - 1 | student | 1 | u*, for any step | anchor, student |
| weighted | 0, anchor = sample | | exp(l) | u*, for any step | student |
| nft | 2 R - 1 over strength, R in [0, 1] | anchor | 1 | u + (2 / strength) Cov(u, R given x_t) | anchor, student |

Targets may be averaged over which sample was noised: x_t made of one of several samples drawn alike was made of sample
i with probability q_i proportional to N(x_t; alpha x_i, sigma^2 I), so that sum q_i T_i has the mean of T and never
more variance (Rao-Blackwell), far less at high noise, where the shares of modes are decided.

No method differentiates the reward, or calls it: a sample comes with its l. What is true of the anchor matters: the
targets of `explicit`, `implicit` and `nft` have the stated mean only if E[sample | x_t] = anchor, that is if x_0 was
drawn from the anchor itself. Samples of the current model against the anchor of a frozen *reference* model (RAM) are
not such a pair, and the tilted law is then not a fixed point; pair a reference anchor with reference samples.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ntrk_jax import tweedie
from ntrk_jax.core import algebra_dtype
from ntrk_jax.schedules import rates
from ntrk_jax.tree import pytree, replace, static
from ntrk_jax.typing import Array, Key, PyTree, Sample, Scalar

__all__ = ["METHODS", "TiltLoss", "nft_loss", "tilt_coefficient", "tilt_target"]

METHODS = ("explicit", "implicit", "weighted", "nft")


def tilt_target(sample: Sample, anchor: Sample, baseline: Sample, coef: Scalar) -> Sample:
    """The one-sample target anchor + coef (sample - stop_gradient(baseline)), [*shape], of every method.

    Args:
        sample: u of the drawn (x_0, z). anchor: the prediction of the model that x_0 was drawn from; not
            differentiated. baseline: what the sample is compared with, the anchor or the student. coef: [].

    References: Pachebat et al. 2025 (iterative tilting), arXiv:2512.03234; Potaptchik et al. 2025 (tilt matching),
        arXiv:2512.21829.

    Example:
        >>> import jax.numpy as jnp
        >>> tilt_target(jnp.array([3.0]), jnp.array([1.0]), jnp.array([1.0]), 0.25).tolist()
        [1.5]
    """
    return jax.lax.stop_gradient(anchor) + coef * (sample - jax.lax.stop_gradient(baseline))


def tilt_coefficient(method: str, log_weight: Scalar, strength: Scalar = 1.0) -> Array:
    """The coefficient of `tilt_target`, [].

    Args:
        method: one of `METHODS`.
        log_weight: l [], the step times the reward over the temperature, less any constant: a constant changes no
            optimum, only variance. For "explicit" it is the mean of l, for "implicit" log mean exp(l), with which
            the weights exp(l) have mean one (the normalised form) and a constant reward changes nothing. For "nft" it
            is the optimality R in [0, 1].
        strength: of "nft".

    Raises:
        ValueError: if the method is unknown.
    """
    log_weight = jnp.asarray(log_weight)
    if method == "explicit":
        return log_weight
    if method == "implicit":
        return jnp.expm1(log_weight)
    if method == "nft":
        return (2.0 * log_weight - 1.0) / strength
    if method == "weighted":
        return jnp.zeros_like(log_weight)
    raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")


@pytree
class TiltLoss:
    """How far a student is from one step of the tilt, at one random noise: loss(key, params, (x_0, l)) -> [].

        u ~ U[0, 1],  sigma / alpha = scale tan(pi u / 2),  x_t = alpha x_0 + sigma z
        loss = weight mean |student(x_t, t) - T|^2,  T = tilt_target(...) of the method, in units of `kind`

    Because every kind is affine in x0 with a slope that depends on t alone, the target of any kind is the target in x0;
    the kind says only how hard each time is pressed. The student's parameters are `params`: a loss without an anchor
    ("weighted", l = 0) is plain denoising.

    Attributes:
        student: a denoiser with a field `variables` (`models.FlaxDenoiser`, `models.MomentDenoiser`), whose contents
            are replaced by `params`.
        anchor: the denoiser that the samples were drawn from, frozen; None for "weighted".
        scale: [], the noise-to-signal ratio that half of the draws exceed; the data's standard deviation serves.
        strength: of "nft".
        low: the least u, above 0.
        pool: (samples [num, *shape], l [num]) that the others are drawn from: the data themselves; or None.
        num_others: how many other samples each target is averaged over. Static.
        method: one of `METHODS`. kind: one of `tweedie.KINDS`, or "normalized" for a student that can say what error of
            its network makes an error in x0 (`MomentDenoiser.normalized`), or "auto": that where it can, else what the
            student's network predicts ("eps" for a score): its own `kind`, or "x0" without one.

    Shapes: sample (x_0 [*shape], l []). Result [].
    Cost: one student evaluation and its gradient, and one anchor evaluation but for "weighted"; no reward call;
        O(num_others d) for the average.
    Optimum: the exact tilt for "implicit" and "weighted"; its first order in l for "explicit"; for "nft" one explicit
        step of size 2 / strength, so that repeated with its own samples it tilts on and on. Exact for samples of the
        anchor's own law only.
    Departs from the paper: rewards are centred; "nft" leaves out the adaptive weights of the two branches, and the
        pull to a reference.
    References: Pachebat et al. 2025, arXiv:2512.03234 (explicit); Potaptchik et al. 2025, arXiv:2512.21829 (explicit,
        implicit, weighted); Zheng et al. 2025, arXiv:2509.16117 (DiffusionNFT); Xu et al. 2023, arXiv:2302.00670 (the
        average, for plain denoising).

    Raises:
        ValueError: for an unknown method or kind, a method without its anchor, or others without a pool.

    Example:
        >>> import jax, jax.numpy as jnp, ntrk_jax as nk
        >>> student = nk.models.FlaxDenoiser(lambda w, x, t: w * x, "x0", jnp.array(0.5), nk.schedules.VPCosine())
        >>> loss = TiltLoss(student, student, method="explicit")
        >>> loss(jax.random.key(0), jnp.array(0.6), (jnp.ones(2), 0.1)).shape
        ()
    """

    student: Any
    anchor: Any = None
    scale: Scalar = 1.0
    strength: Scalar = 1.0
    low: Scalar = 1e-3
    pool: Any = None
    num_others: int = static(default=0)
    method: str = static(default="weighted")
    kind: str = static(default="auto")

    def __post_init__(self) -> None:
        """Refuse unknown names."""
        tilt_coefficient(self.method, 0.0)
        if self.kind not in (*tweedie.KINDS, "normalized", "auto"):
            raise ValueError(f"kind must be one of {', '.join(tweedie.KINDS)}, normalized or auto, got {self.kind!r}.")
        if self.anchor is None and self.method != "weighted":
            raise ValueError(f"{self.method} needs an anchor: the denoiser that the samples were drawn from.")
        if self.num_others and self.pool is None:
            raise ValueError("num_others needs a pool: the samples and log-weights that the others are drawn from.")

    def __call__(self, key: Key, params: PyTree, sample: tuple[Sample, Array]) -> Array:
        """The loss of one sample at one random time and noise."""
        x0, log_weight = sample
        dtype = algebra_dtype(x0)
        time_key, noise_key = jax.random.split(key)
        x0, log_weight = x0.astype(dtype), jnp.asarray(log_weight, dtype)
        t = self.time(time_key, dtype)
        alpha, sigma = (jnp.asarray(c, dtype) for c in self.student.schedule(t))
        x = alpha * x0 + sigma * jax.random.normal(noise_key, x0.shape, dtype)
        student = replace(self.student, variables=params)(x, t)
        anchor = None if self.method == "weighted" else self.anchor(x, t)
        if self.num_others:
            which_key = jax.random.fold_in(key, 2)
            several, logs = self._several(which_key, x0, log_weight)
            off = jnp.square((x[None] - alpha * several) / sigma).reshape(logs.shape[0], -1)
            share = jax.nn.softmax(-0.5 * jnp.sum(off, axis=1))
        else:
            several, logs, share = x0[None], log_weight[None], jnp.ones((1,), dtype)
        targets, weights = jax.vmap(lambda one, log: self._target(one, log, student, anchor))(several, logs)
        share = share * weights
        weight = jnp.sum(share)
        some = weight > 0  # where every weight is too small for the dtype the sample has no say
        target = jnp.tensordot(share / jnp.where(some, weight, 1.0), targets, axes=1, precision="highest")
        return weight * jnp.mean(jnp.square(self._error(student - target, t, alpha, sigma)))

    def _several(self, key: Key, x0: Sample, log_weight: Array) -> tuple[Array, Array]:
        """This sample and others drawn like it, [1 + num_others, *shape], and their l."""
        samples, logs = self.pool
        rows = jax.random.randint(key, (self.num_others,), 0, logs.shape[0])
        others = samples[rows].astype(x0.dtype), jnp.asarray(logs)[rows].astype(x0.dtype)
        return jnp.concatenate([x0[None], others[0]]), jnp.concatenate([log_weight[None], others[1]])

    def _target(self, x0: Sample, log_weight: Array, student: Sample, anchor: Any) -> tuple[Sample, Array]:
        """The target in x0 of one clean sample, and its weight."""
        if anchor is None:
            return x0, jnp.exp(log_weight)
        baseline = student if self.method == "implicit" else anchor
        coef = tilt_coefficient(self.method, log_weight, jnp.asarray(self.strength, x0.dtype))
        return tilt_target(x0, anchor, baseline, coef), jnp.ones_like(log_weight)

    def time(self, key: Key, dtype: Any = jnp.float32) -> Array:
        """A random time, []."""
        u = jax.random.uniform(key, (), dtype, jnp.asarray(self.low, dtype), 1.0 - 1e-3)
        t = self.student.schedule.time_of(jnp.asarray(self.scale, dtype) * jnp.tan(0.5 * jnp.pi * u))
        return jnp.clip(t.astype(dtype), 1e-5, 1.0)

    def _error(self, error: Sample, t: Array, alpha: Array, sigma: Array) -> Sample:
        """An error in x0 in the units of `kind`."""
        kind = self.kind
        if kind == "auto":
            own = getattr(self.student, "kind", "x0").replace("score", "eps")
            kind = "normalized" if hasattr(self.student, "normalized") else own
        if kind == "normalized":
            return self.student.normalized(error, t)
        alpha = jnp.maximum(alpha, 1e-3)
        slope = rates(self.student.schedule, t) if kind == "velocity" else None
        one, zero = jnp.ones((), error.dtype), jnp.zeros((), error.dtype)
        return error / tweedie.to_x0(kind, one, zero, alpha, sigma, slope)


def nft_loss(student: Sample, anchor: Sample, sample: Sample, optimality: Scalar, strength: Scalar = 1.0) -> Array:
    """DiffusionNFT's own loss at one (x_t, t): a positive and a negative model made of the student, [].

        plus = (1 - strength) anchor + strength student,    minus = (1 + strength) anchor - strength student
        loss = R mean |plus - sample|^2 + (1 - R) mean |minus - sample|^2

    It is strength^2 mean |student - tilt_target(sample, anchor, anchor, (2 R - 1) / strength)|^2 plus what does not
    depend on the student: the "nft" of `TiltLoss`, with the same gradient up to that factor.

    Args:
        student, anchor, sample: [*shape], in one parametrisation. optimality: R in [0, 1], []. strength: [], positive.

    Optimum: anchor + (2 / strength) Cov(u, R given x_t), one explicit step; repeated, a growing tilt.
    Departs from the paper: without the weights that divide each branch by its mean absolute error.
    References: Zheng et al. 2025, arXiv:2509.16117, Eq. 5.
    """
    anchor = jax.lax.stop_gradient(anchor)
    plus, minus = anchor + strength * (student - anchor), anchor - strength * (student - anchor)
    return optimality * jnp.mean(jnp.square(plus - sample)) + (1.0 - optimality) * jnp.mean(jnp.square(minus - sample))
