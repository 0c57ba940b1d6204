r"""Mixtures in the plane pulled towards a point, on which velocity guidance by a plug-in gradient goes wrong.

    r(x) = -scale |x - (0, 2.5)|^2,     scale = 3

| setting | law |
|---|---|
| `quadratic` | 0.5 N((-2.5, 0), I / 2) + 0.5 N((2.5, 0), I / 2) |
| `non_isotropic` | the same with covariances [[0.5, c], [c, 0.5]], c = 0.25 on the left and -0.25 on the right |
| `unequal` | the same as `quadratic` with weights 0.2 and 0.8 |
| `uncentred` | 0.5 N((-4, 0), I / 2) + 0.5 N((1, 0), I / 2) |
| `gaussian` | N(0, I / 2) |

The tilted laws are in closed form. With the well of `double_well` they are the planar targets of the experiment.
"""

from __future__ import annotations

import numpy as np

from ntrk_jax.rewards import Quadratic
from ntrk_jax.targets.examples import Problem
from ntrk_jax.targets.mixture import GaussianMixture
from ntrk_jax.typing import Scalar

__all__ = ["PULLED", "pulled"]

_APART = np.array([[-2.5, 0.0], [2.5, 0.0]])
_HALVES = np.array([0.5, 0.5])
_BENT = np.array([[[0.5, 0.25], [0.25, 0.5]], [[0.5, -0.25], [-0.25, 0.5]]])
_ROUND = np.tile(0.5 * np.eye(2), (2, 1, 1))
_CENTRE = np.array([0.0, 2.5])

_LAWS = {
    "quadratic": (_HALVES, _APART, _ROUND),
    "non_isotropic": (_HALVES, _APART, _BENT),
    "unequal": (np.array([0.2, 0.8]), _APART, _ROUND),
    "uncentred": (_HALVES, np.array([[-4.0, 0.0], [1.0, 0.0]]), _ROUND),
    "gaussian": (np.ones(1), np.zeros((1, 2)), 0.5 * np.eye(2)[None]),
}
PULLED = tuple(_LAWS)
"""The settings of `pulled`."""


def pulled(setting: str = "quadratic", scale: Scalar = 3.0) -> Problem:
    """A mixture in the plane and a quadratic reward that pulls it towards (0, 2.5).

    Args:
        setting: one of `PULLED`. scale: the published inverse temperature is 3; the reward is in units of temperature.

    Departs from the paper: which of the two bent components is bent which way.

    Raises:
        ValueError: if the setting is not one of `PULLED`.

    References:
        Dandapanthula and Boffi 2026, arXiv:2606.02884.

    Example:
        >>> from ntrk_jax import targets
        >>> [[round(float(m), 3) for m in mean] for mean in targets.tilt(*targets.pulled("uncentred")).mixture.means]
        [[-1.0, 1.875], [0.25, 1.875]]
    """
    if setting not in _LAWS:
        raise ValueError(f"setting must be one of {', '.join(PULLED)}, got {setting!r}.")
    linear, constant = 2.0 * scale * _CENTRE, -scale * float(_CENTRE @ _CENTRE)
    return Problem(GaussianMixture(*_LAWS[setting]), Quadratic(2.0 * scale, linear, constant))
