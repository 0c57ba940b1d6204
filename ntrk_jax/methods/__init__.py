"""The anatomy page: each method *is* its definition in parts.

    sampler = ntrk(model, reward, shape, strength=0.05)
    state, trace = nk.run(sampler, key, noise, steps)

`CATALOGUE` lists what ships: for each method what it needs, what it costs and what is exact about it.
"""

from ntrk_jax.methods import mean_shift, noise_tilt, particles, pretrained, search, tree, velocity
from ntrk_jax.methods.entry import Entry
from ntrk_jax.methods.mean_shift import *  # noqa: F403
from ntrk_jax.methods.noise_tilt import *  # noqa: F403
from ntrk_jax.methods.particles import *  # noqa: F403
from ntrk_jax.methods.pretrained import *  # noqa: F403
from ntrk_jax.methods.search import *  # noqa: F403
from ntrk_jax.methods.tree import *  # noqa: F403
from ntrk_jax.methods.velocity import *  # noqa: F403

ROOMS = (pretrained, search, noise_tilt, mean_shift, velocity, particles, tree)
CATALOGUE: dict[str, Entry] = {name: entry for room in ROOMS for name, entry in room.ENTRIES.items()}
"""Every shipped method by name; the contract tests, `ntrk list` and `ntrk sample` read it."""

__all__ = ["CATALOGUE", "Entry", "names", *CATALOGUE]  # pyright: ignore[reportUnsupportedDunderAll]


def names() -> list[str]:
    """The names in the catalogue."""
    return list(CATALOGUE)
