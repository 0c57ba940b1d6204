r"""The probability-flow ODE with an adaptive solver: samples without noise, and their exact log-density.

Every schedule is first turned into the one that rotates data into noise. With phi = arctan(sigma / alpha) and
y = x_t / sqrt(alpha^2 + sigma^2) we have y = cos(phi) x_0 + sin(phi) z, and the flow that shares the marginals of y is

    dy / dphi = (cos(phi) y - x0) / sin(phi),     x0 = E[x_0 | x_t],

which is bounded at both ends (-x0 at pure noise, of order phi at the data) where the same flow in t may not be.
Integration stops at sigma / alpha = min_ratio, and the sample is y / cos(phi) there: its law is the data's with noise
of that standard deviation, which changes densities by O(min_ratio^2). A schedule that ends at more noise, such as VE,
stops there.

The density of what the flow makes of N(0, sigma(1)^2 I) follows from the change of variables,

    log p(x) = log p_noise(y_1) + integral over phi of div (dy / dphi),

with the divergence exact (d Jacobian-vector products) or by Hutchinson's estimate, E[e'Je] over random signs e.
"""

from __future__ import annotations

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import require_count, require_schedule
from ntrk_jax.core import Denoiser, algebra_dtype
from ntrk_jax.grids import check_schedule, grid, noisiest, uniform
from ntrk_jax.schedules import FIRST_TIME, Schedule
from ntrk_jax.tree import is_concrete, pytree, static
from ntrk_jax.typing import Array, Key, Sample, Scalar

__all__ = ["ProbabilityFlow"]


@pytree
class ProbabilityFlow:
    """Deterministic sampling and log-likelihoods with an adaptive ODE solver (Tsit5 of diffrax).

    Attributes:
        model: (x [*shape], t []) -> x0 [*shape].
        schedule: t -> (alpha, sigma), the one the model knows.
        rtol, atol: [], the tolerances of the solver, in units of a sample of unit variance.
        min_ratio: [], positive: the noise-to-signal ratio sigma / alpha at which integration stops, or that of the
            schedule at t = 1e-5 if it is larger.
        max_steps: static; a flow that needs more is given up and answers NaN.

    Shapes: x [*shape] -> [*shape] for `sample`, [] for `log_prob`; vmap for batches.
    Cost: six model calls a step; the solver chooses the steps (some twenty to a hundred). `log_prob` adds d forward
        derivatives a call, or num_probes with a key.
    Density: that of the flow itself, exact up to the tolerances and O(min_ratio^2); unbiased with probes.

    Raises:
        ValueError: for a ratio, tolerance or count that is not positive, or a model made for another schedule.

    References:
        Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021,
        arXiv:2011.13456, Eq. 13 and 39; Hutchinson's estimate after Grathwohl et al., 2019, arXiv:1810.01367.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntrk_jax import schedules
        >>> from ntrk_jax.kernels.ode import ProbabilityFlow
        >>> schedule = schedules.VPCosine()
        >>> flow = ProbabilityFlow(lambda x, t: schedule(t)[0] * x, schedule)  # the denoiser of N(0, I)
        >>> round(float(flow.log_prob(jnp.zeros(2))), 3)  # -log(2 pi)
        -1.838
    """

    model: Denoiser
    schedule: Schedule
    rtol: Scalar = 1e-5
    atol: Scalar = 1e-5
    min_ratio: Scalar = 1e-3
    max_steps: int = static(default=1000)

    def __post_init__(self) -> None:
        """Refuse what cannot be integrated."""
        require_schedule(self.schedule)
        require_count(max_steps=self.max_steps)
        for name in ("rtol", "atol", "min_ratio"):
            value = getattr(self, name)
            if is_concrete(value) and not np.all(np.asarray(value) > 0):
                raise ValueError(f"{name} must be positive, got {value}.")
        check_schedule(self.model, grid(self.schedule, uniform(4)))

    def sample(self, x: Sample) -> Sample:
        """The sample that the flow makes of a noise x ~ N(0, sigma(1)^2 I), [*shape] in the dtype of x.

        It starts at t = 1, or with the noise scaled at 0.98 for a network that predicts eps or the score on a schedule
        that ends at alpha = 0, where these say nothing of x0.

        Each call is one deterministic map; `log_prob` follows it the other way.
        """
        dtype = algebra_dtype(x)
        low, high, size = self._range(dtype)
        first, last = (jnp.asarray(self.schedule(t)[1], dtype) for t in (self._first(dtype), jnp.ones((), dtype)))
        start = x.astype(dtype) * (first / last / size)
        out = self._solve(lambda phi, y, _: self._velocity(phi, y), high, low, start)
        return (out / jnp.cos(low)).astype(x.dtype)

    def log_prob(self, x0: Sample, key: Key | None = None, *, num_probes: int = 1) -> Array:
        """The log-density of the flow at a clean sample x0 [*shape], [].

        Args:
            x0: the sample.
            key: None for the exact divergence (d derivatives a call: for small d), or the key of Hutchinson's probes,
                the same along the whole path.
            num_probes: how many probes, with a key.

        Raises:
            ValueError: if num_probes is below 1.
        """
        require_count(num_probes=num_probes)
        dtype = algebra_dtype(x0)
        low, high, size = self._range(dtype)
        if key is None:
            probes = jnp.eye(x0.size, dtype=dtype)
        else:
            probes = jax.random.rademacher(key, (num_probes, x0.size), dtype)
        weight = 1.0 if key is None else 1.0 / num_probes

        def rates(phi: Array, state: tuple[Array, Array], _: Any) -> tuple[Array, Array]:
            def along(probe: Array) -> tuple[Array, Array]:
                move = probe.reshape(x0.shape)
                drift, bent = jax.jvp(lambda y: self._velocity(phi, y), (state[0],), (move,))
                return drift, jnp.sum(bent * move)

            drifts, traces = jax.vmap(along, out_axes=(None, 0))(probes)
            return drifts, weight * jnp.sum(traces)

        start = (jnp.cos(low) * x0.astype(dtype), x0.size * jnp.log(jnp.cos(low)))
        y, gained = self._solve(rates, low, high, start)
        std = jnp.asarray(self.schedule(self._first(dtype))[1], dtype)
        noise = -0.5 * jnp.sum((y * size / std) ** 2) - 0.5 * x0.size * jnp.log(2.0 * jnp.pi * (std / size) ** 2)
        return noise + gained

    def _range(self, dtype: Any) -> tuple[Array, Array, Array]:
        """The angles at which integration stops and starts, and sqrt(alpha^2 + sigma^2) at the start."""
        alpha, sigma = (jnp.asarray(c, dtype) for c in self.schedule(self._first(dtype)))
        first = [jnp.asarray(c, dtype) for c in self.schedule(jnp.asarray(FIRST_TIME, dtype))]
        low = jnp.maximum(jnp.arctan(jnp.asarray(self.min_ratio, dtype)), jnp.arctan2(first[1], first[0]))
        return low, jnp.arctan2(sigma, alpha), jnp.hypot(alpha, sigma)

    def _first(self, dtype: Any) -> Array:
        return jnp.asarray(noisiest(self.model, self.schedule), dtype)

    def _velocity(self, phi: Array, y: Array) -> Array:
        """The rate dy / dphi; the model is asked at the time whose noise-to-signal ratio is tan(phi)."""
        sine, cosine = jnp.sin(phi), jnp.maximum(jnp.cos(phi), 0.0)
        ratio = jnp.where(cosine > 0, sine / jnp.where(cosine > 0, cosine, 1.0), jnp.inf)
        t = jnp.minimum(self.schedule.time_of(ratio), 1.0).astype(y.dtype)
        alpha, sigma = (jnp.asarray(c, y.dtype) for c in self.schedule(t))
        x0 = self.model(y * jnp.hypot(alpha, sigma), t).astype(y.dtype)
        return (cosine * y - x0) / sine

    def _solve(self, rates: Any, start: Array, stop: Array, state: Any) -> Any:
        """The state at `stop`; NaN where the solver gave up."""
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(rates), diffrax.Tsit5(), start, stop, None, state,
            stepsize_controller=diffrax.PIDController(rtol=self.rtol, atol=self.atol),
            max_steps=self.max_steps, throw=False,
        )  # fmt: skip
        done = solution.result == diffrax.RESULTS.successful
        return jax.tree.map(lambda a: jnp.where(done, a[0], jnp.nan), solution.ys)
