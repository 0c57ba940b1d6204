"""The anatomy page: each method *is* its definition in parts.

    sampler = ntrk(model, reward, shape, strength=0.05)
    state, trace = nk.run(sampler, key, noise, steps)

Every constructor takes (model, reward, shape) first (samplers of the model alone need no more than it): a `Denoiser`, a
reward of one clean sample, and the shape of one sample without particles, of which whitenings are made. The options
that many share, by keyword:

- strength: the scale of the guidance; temperature: beta, in the reward's units. `CATALOGUE[name].strength` says which
  of the two a method has, `low` and `high` its range, and `off` where it is the unguided sampler bit for bit.
- kernel: the base reverse kernel, `kernels.DDIM(eta=1.0)` unless given.
- value: one of `values`, the plug-in r(x0) unless given; its temperature, where it has one, must be the method's.
- num_particles: K of a population; the run starts from noises [K, *shape]. chunk: how many are computed at a time.
- resample, when, schedule: as in `SMC` and `potentials`. grid: of a tree, which is run over `samplers.rollouts(num)`.

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
