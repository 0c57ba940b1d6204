"""Mixtures that can be tilted by more than polynomials: cliffs in closed form, anything in the plane by quadrature."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import require_count, require_temperature
from ntrk_jax.rewards import HalfSpace
from ntrk_jax.targets import tilted
from ntrk_jax.targets.half_space import HalfSpaceTilt, HalfSpaceValue
from ntrk_jax.targets.mixture import GaussianMixture
from ntrk_jax.targets.planar import PlanarTilt, PlanarValue, component_integrals, refuse_coarse
from ntrk_jax.tree import pytree, replace, static
from ntrk_jax.typing import Array, Scalar

__all__ = ["Tiltable"]


def _quadratic(reward: Any) -> bool:
    """Whether a reward is linear or quadratic: it says so, and if it is a sum all of its members are."""
    try:
        return hasattr(reward, "quadratic") and bool(reward.quadratic())
    except TypeError:
        return False


def _of_one(reward: Any) -> bool:
    """Whether a reward gives one number: a stack of rewards, to be mapped over, does not."""
    try:
        return jax.eval_shape(reward, jax.ShapeDtypeStruct((2,), jnp.float32)).shape == ()
    except (TypeError, ValueError):
        return False


@pytree
class Tiltable:
    """A Gaussian mixture whose tilts are known for more rewards than linear and quadratic ones.

    | reward | law | how |
    |---|---|---|
    | linear or quadratic | any | the mixture's own closed form |
    | `rewards.HalfSpace` | any | closed form |
    | any other | in the plane | quadrature, to about single precision where it is smooth; per cent at a jump |

    It is the mixture in everything else: `sample`, `log_prob`, `denoise`, `score`, `condition`, ...

    Attributes:
        mixture: a `GaussianMixture`.
        num_nodes: of the quadrature, along either axis of a component; as in `planar.PlanarValue`.

    Shapes: as those of the mixture.
    Cost: as those of the mixture; a tilt by quadrature is tabulated on the host, in about a second.

    Raises:
        TypeError: if the law is no `GaussianMixture`; by the methods below, for a reward that none of the rows covers.
        ValueError: by `values.Exact` and `require_fine`, if the reward varies too fast for `num_nodes`.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntrk_jax import rewards, targets
        >>> law, cliff = Tiltable(targets.skewed(2).mixture), rewards.HalfSpace(jnp.array([1.0, 0.0]), 0.0, 2.0)
        >>> tilted = targets.tilt(law, cliff)
        >>> bool(targets.expected_reward(law, cliff) < targets.expected_reward(tilted.mixture, cliff) < 0)
        True
    """

    mixture: GaussianMixture
    num_nodes: int = static(default=41)

    def __post_init__(self) -> None:
        """Refuse other laws and no nodes."""
        if not isinstance(self.mixture, GaussianMixture):
            raise TypeError(f"Tiltable needs a GaussianMixture, got {type(self.mixture).__name__}.")
        require_count(2, num_nodes=self.num_nodes)

    def __getattr__(self, name: str) -> Any:
        """What is not below is the mixture's."""
        if name in ("mixture", "num_nodes") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.mixture, name)

    def tilt(self, reward: Any, temperature: Scalar = 1.0) -> tilted.Tilted:
        """This law tilted by a reward; see `targets.tilt`."""
        require_temperature(temperature)
        if _quadratic(reward):
            return self.mixture.tilt(reward, temperature)
        if self._planar(reward):
            law = PlanarTilt(self.mixture, reward, temperature, self.num_nodes)
        else:
            law = HalfSpaceTilt(self.mixture, reward, temperature)
        return tilted.Tilted(law, law.log_z)

    def value_function(self, reward: Any, temperature: Scalar = 1.0) -> Any:
        """The function (x, alpha, sigma) -> [] that `targets.value` evaluates."""
        require_temperature(temperature, finite=True)
        if _quadratic(reward):
            return self.mixture.value_function(reward, temperature)
        if not self._planar(reward):
            return HalfSpaceValue(self.mixture, reward, temperature)
        return PlanarValue(self.mixture, reward, temperature, self.num_nodes)

    def require_fine(self, reward: Any, temperature: Scalar = 1.0) -> None:
        """Raise ValueError if the reward varies too fast for `num_nodes`, where all is known and of one object."""
        if _quadratic(reward) or not self._planar(reward) or np.ndim(temperature):
            return
        value = PlanarValue(self.mixture, reward, temperature, self.num_nodes)
        if tilted.all_concrete(value) and _of_one(reward):
            refuse_coarse(value)

    def expected_reward(self, reward: Any) -> Array:
        """E[r(x)] under this law, []; see `targets.expected_reward`."""
        if _quadratic(reward):
            return self.mixture.expected_reward(reward)
        if not self._planar(reward):
            return HalfSpaceTilt(self.mixture, replace(reward, penalty=0.0)).expected_reward(reward)
        means = component_integrals(self.mixture, reward, lambda x: jnp.zeros((), x.dtype), 1.0)
        return jnp.asarray(np.asarray(self.mixture.weights, np.float64) @ means, self.mixture.means.dtype)

    def _planar(self, reward: Any) -> bool:
        """Whether quadrature is what there is."""
        if isinstance(reward, HalfSpace):
            return False
        if self.mixture.dim != 2:
            raise TypeError(
                f"in {self.mixture.dim} dimensions closed forms need a linear, quadratic or half-space reward, got "
                f"{type(reward).__name__}; use values.MonteCarlo or values.PlugIn for it."
            )
        return True
