"""What the tests of batch runs share: a small sampler, a plan of it, and the contents of a store."""

import contextlib
import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

import ntrk_jax as nk
from ntrk_jax import batch

STEPS = nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(4))
WEIGHTS = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32) / 3.0


@nk.pytree
class Net:
    """A network of one layer whose weights are a leaf."""

    weights: object

    def __call__(self, x, t, cond=None):
        return jnp.tanh(self.weights @ x)


def sampler(reward=None, eta=1.0, weights=WEIGHTS):
    reward = nk.rewards.Linear(np.ones(8, np.float32)) if reward is None else reward
    return nk.Single(nk.Look(Net(weights), reward), nk.kernels.DDIM(eta=eta))


def plan(num=44, chunk=8, reward=None, **options):
    return batch.make_plan(sampler(reward), STEPS, (8,), num, chunk=chunk, **options)


def files(folder):
    """Path -> bytes of everything in a store but its locks and the commit, which may change while tests run."""
    folder = pathlib.Path(folder)
    kept = (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".lock"))
    found = {str(p.relative_to(folder)): p.read_bytes() for p in kept}
    if "zarr.json" in found:
        found["zarr.json"] = re.sub(rb'"git_commit": {[^}]*}', b"", found["zarr.json"])
    return found


@contextlib.contextmanager
def compiled_once(folder):
    """Programs that are compiled again are taken from JAX's persistent cache, as with `--cache`."""
    from jax.experimental.compilation_cache import compilation_cache

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(folder), 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()


class Stopped(Exception):
    """What stands for a kill in a test within one process."""


def stop_after(rows):
    """A progress that stops the run from the writing thread."""

    def progress(done, total):
        if done >= rows:
            raise Stopped

    return progress


def arrays(folder):
    """The arrays of a store, read by zarr alone."""
    import zarr

    return {name: array[...] for name, array in zarr.open_group(folder, mode="r").members()}


one_device = functools.partial(batch.run, devices=1)
