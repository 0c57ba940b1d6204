"""Mixtures that can be tilted by more than polynomials: cliffs in closed form, anything in the plane by quadrature."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from ntrk_jax.rewards import HalfSpace
from ntrk_jax.targets import tilted
from ntrk_jax.targets.half_space import HalfSpaceTilt, HalfSpaceValue
from ntrk_jax.targets.mixture import GaussianMixture
from ntrk_jax.targets.planar import PlanarTilt, PlanarValue, component_integrals
from ntrk_jax.tree import pytree
from ntrk_jax.typing import Array, Scalar

__all__ = ["Tiltable"]


def _quadratic(reward: Any) -> bool:
    """Whether a reward is linear or quadratic: it says so, and if it is a sum all of its members are."""
    try:
        return hasattr(reward, "quadratic") and bool(reward.quadratic())
    except TypeError:
        return False


@pytree
class Tiltable:
    """A Gaussian mixture whose tilts are known for more rewards than linear and quadratic ones.

    | reward | law | how |
    |---|---|---|
    | linear or quadratic | any | the mixture's own closed form |
    | `rewards.HalfSpace` | any | closed form |
    | any other | in the plane | quadrature, exact to about single precision |

    It is the mixture in everything else: `sample`, `log_prob`, `denoise`, `score`, `condition`, ...

    Attributes:
        mixture: a `GaussianMixture`.

    Shapes: as those of the mixture.
    Cost: as those of the mixture; a tilt by quadrature is tabulated on the host, in about a second.

    Raises:
        TypeError: by the methods below, for a reward that none of the rows covers.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntrk_jax import rewards, targets
        >>> law, cliff = Tiltable(targets.skewed(2).mixture), rewards.HalfSpace(jnp.array([1.0, 0.0]), 0.0, 2.0)
        >>> tilted = targets.tilt(law, cliff)
        >>> bool(targets.expected_reward(law, cliff) < targets.expected_reward(tilted.mixture, cliff) < 0)
        True
    """

    mixture: GaussianMixture

    def __getattr__(self, name: str) -> Any:
        """What is not below is the mixture's."""
        if name == "mixture" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.mixture, name)

    def tilt(self, reward: Any, temperature: Scalar = 1.0) -> tilted.Tilted:
        """This law tilted by a reward; see `targets.tilt`."""
        tilted.check_temperature(temperature)
        if _quadratic(reward):
            return self.mixture.tilt(reward, temperature)
        made = PlanarTilt if self._planar(reward) else HalfSpaceTilt
        law = made(self.mixture, reward, temperature)
        return tilted.Tilted(law, law.log_z)

    def value_function(self, reward: Any, temperature: Scalar = 1.0) -> Any:
        """The function (x, alpha, sigma) -> [] that `targets.value` evaluates."""
        tilted.check_temperature(temperature, finite=True)
        if _quadratic(reward):
            return self.mixture.value_function(reward, temperature)
        return (PlanarValue if self._planar(reward) else HalfSpaceValue)(self.mixture, reward, temperature)

    def expected_reward(self, reward: Any) -> Array:
        """E[r(x)] under this law, []; see `targets.expected_reward`."""
        if _quadratic(reward):
            return self.mixture.expected_reward(reward)
        if not self._planar(reward):
            return HalfSpaceTilt(self.mixture, reward, jnp.inf).expected_reward(reward)
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
