"""Many draws of one method at a budget: how the budget is spent, and what one draw is.

The budget of `ntrk compare` is what *one returned draw* may cost, in model evaluations (NFE). For every method:

- `--steps T --particles K`: a single path takes T rows; a population K particles over T rows; a tree, or another method
  that spends its budget over rollouts, K rollouts of T rows.
- `--nfe N`: a method that has particles (or rollouts) takes K = min(N / 25, sqrt(N)) of them, at least 2, unless
  `--particles` says otherwise; then every method takes as many rows as its N allow, at most `--max-steps`.

One population is one draw, by weight; one tree is one draw, by its policy. What was spent is what the state counted.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ntrk_jax as nk
from ntrk_jax.cli.build import Choices, build
from ntrk_jax.cli.console import BadInput, user_input
from ntrk_jax.cli.problems import Named, parse

__all__ = ["EXACT", "TEMPERATURE", "Budget", "Draws", "Made", "Program", "make", "rows_for"]

EXACT = "exact"
"""The pseudo-method whose model is that of the tilted law itself."""

TEMPERATURE = 1.0
"""Of the law that all methods are compared with."""

_MEMORY = 2**24
_MOST_DRAWS = 1024


class Budget(NamedTuple):
    """What one draw may cost: `nfe`, or `steps` and `particles`; see the module."""

    nfe: int | None = None
    steps: int | None = None
    particles: int | None = None
    max_steps: int = 1000


class Made(NamedTuple):
    """A sampler and how it is run.

    rows: what it is run over. start: [], the standard deviation of the initial noise. lead: the shape in front of one
    sample's. num_steps, num_particles: rows of the grid; particles or rollouts, or None.
    """

    sampler: Any
    rows: Any
    start: Any
    lead: tuple[int, ...]
    num_steps: int
    num_particles: int | None


class Draws(NamedTuple):
    """Draws and what they cost; [num] but for x [num, *shape]. log_z and ess are NaN where they mean nothing."""

    x: Any
    evals: Any
    log_z: Any
    ess: Any
    status: Any


def make(name: str, task: Named, tilted: Any, budget: Budget, choices: Choices) -> Made:
    """The sampler of a method at a budget.

    Args:
        name: of the catalogue, or "exact". tilted: the exact tilted law, or None.
        choices: strength, kernel and value; the particles are the budget's.

    Raises:
        BadInput: in one line, if the method does not exist or cannot serve this target.
    """
    if name == EXACT:
        return _exact(task, tilted, budget, choices)
    entry = nk.methods.CATALOGUE.get(name)
    if entry is None:
        raise BadInput(f"unknown method {name!r}; known are {EXACT}, {', '.join(nk.methods.names())}.")
    choices = _applicable(entry, choices)
    if entry.tree:
        return _tree(name, entry, task, budget, choices)
    sampler = build(name, task, choices)
    _refuse_positive(name, sampler, task)
    if not hasattr(sampler, "num_particles"):
        num_steps = rows_for(entry.nfe, 1, budget)
        return Made(sampler, *_grid(task, num_steps), (), num_steps, None)
    num = _particles(budget)
    num_steps = rows_for(entry.nfe, num, budget)
    if entry.population:
        sampler = build(name, task, choices._replace(particles=num))
    else:
        sampler = nk.replace(sampler, num_particles=num)
    return Made(sampler, *_grid(task, num_steps), (num,) if entry.population else (), num_steps, num)


def rows_for(nfe: Callable[[int, int], int], num_particles: int, budget: Budget) -> int:
    """The rows that a budget allows, given nfe(num_steps, num_particles).

    Raises:
        BadInput: if it allows none.
    """
    if budget.steps is not None:
        return budget.steps
    assert budget.nfe is not None
    low, high = 0, budget.max_steps
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if nfe(middle, num_particles) <= budget.nfe else (low, middle - 1)
    if low < 1:
        raise BadInput(f"--nfe {budget.nfe} does not pay for one row of {num_particles} particles.")
    return low


def _particles(budget: Budget) -> int:
    if budget.particles is not None:
        return budget.particles
    if budget.nfe is None:
        raise BadInput("methods with particles or rollouts need --particles beside --steps.")
    return max(2, min(budget.nfe // 25, math.isqrt(budget.nfe)))


def _grid(task: Named, num_steps: int) -> tuple[Any, Any]:
    rows = nk.grids.usual(task.model, task.schedule, num_steps)
    return rows, rows.sigma_t[0]


def _applicable(entry: Any, choices: Choices) -> Choices:
    """The choices without those options that the method does not have."""
    parameters = inspect.signature(entry.build).parameters.values()
    names = {p.name for p in parameters}
    others = any(p.kind is p.VAR_KEYWORD for p in parameters)
    kernel = choices.kernel if others or "kernel" in names else None
    return choices._replace(kernel=kernel, value=choices.value if others or "value" in names else "plug-in")


def _tree(name: str, entry: Any, task: Named, budget: Budget, choices: Choices) -> Made:
    """A method that holds its grid and is run over rollouts."""
    num = _particles(budget)
    num_steps = rows_for(entry.nfe, num, budget)
    if budget.steps is None and num_steps >= 10:
        num_steps -= num_steps % 5  # trees cut their grid into five segments
    rows, start = _grid(task, num_steps)
    names = inspect.signature(entry.build).parameters
    others = any(p.kind is p.VAR_KEYWORD for p in names.values())
    options: dict[str, Any] = {"grid": rows}
    if "num_rollouts" in names or others:
        options["num_rollouts"] = num
    chosen = choices.temperature if choices.strength is None else choices.strength
    if chosen is not None and entry.strength is not None:
        options[entry.strength] = chosen
    if choices.kernel is not None:
        options["kernel"] = parse(choices.kernel, "kernels")
    with user_input(name):
        sampler = entry.build(task.model, task.reward, task.shape, **options)
    return Made(sampler, nk.samplers.rollouts(num), start, (), num_steps, num)


def _exact(task: Named, tilted: Any, budget: Budget, choices: Choices) -> Made:
    if tilted is None:
        raise BadInput(f"{EXACT} needs a target whose tilted law is known, not {task.name}.")
    kernel = nk.kernels.DDIM(eta=1.0)
    if choices.kernel is not None:
        with user_input("--kernel"):
            kernel = parse(choices.kernel, "kernels")
    num_steps = rows_for(lambda steps, num: steps, 1, budget)
    sampler = nk.Single(nk.Look(nk.models.Exact(tilted, task.schedule), task.reward), kernel)
    return Made(sampler, *_grid(task, num_steps), (), num_steps, None)


def _refuse_positive(name: str, sampler: Any, task: Named) -> None:
    """Refuse the norm of a residual for a reward that is no residual's square on draws of the base law."""
    convention = getattr(getattr(sampler, "guidance", None), "convention", None)
    if convention == "norm" and task.law is not None:
        rewards = jax.vmap(task.reward)(task.law.sample(jax.random.key(0), 256))
        if float(jnp.max(rewards)) > 0:
            raise BadInput(f"{name} reads the reward as minus a squared residual, and that of {task.name} is positive.")


class Program:
    """A method compiled for a number of draws; another strength, seed or law of the same shapes compiles nothing."""

    def __init__(self, made: Made, task: Named, num: int, asked: Any = None) -> None:
        """Compile.

        Args:
            num: draws for each seed. asked: [num], the digit asked of each draw, or None.
        """
        self.num, self.shape = num, task.shape
        self.asked = None if asked is None else jnp.asarray(asked)
        self.size = _batch(made, task, num)
        began = time.perf_counter()
        arguments = self._arguments(made, jax.random.key(0), 0)
        self.compiled = _draws.lower(*arguments, lead=made.lead, shape=task.shape).compile()
        self.compile_seconds = time.perf_counter() - began
        again = self._arguments(made, jax.random.clone(jax.random.key(0)), 0)
        jax.block_until_ready(self.compiled(*again))  # what is slow once is no seed's

    def __call__(self, made: Made, key: jax.Array) -> tuple[Draws, float]:
        """The draws that a key names, and the seconds they took."""
        began, parts = time.perf_counter(), []
        for first in range(0, self.num, self.size):
            parts.append(jax.tree.map(np.asarray, self.compiled(*self._arguments(made, jax.random.clone(key), first))))
        seconds = time.perf_counter() - began
        return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: self.num], *parts), seconds

    def _arguments(self, made: Made, key: jax.Array, first: int) -> tuple:
        indices = first + jnp.arange(self.size, dtype=jnp.uint32)
        asked = None if self.asked is None else jnp.take(self.asked, indices, mode="clip")
        return made.sampler, made.rows, made.start, key, indices, asked


def _batch(made: Made, task: Named, num: int) -> int:
    """Draws at a time, so that what a row holds of them stays within memory; equal parts of all draws."""
    size = math.prod(task.shape)
    law = getattr(getattr(getattr(made.sampler, "look", None), "model", None), "target", task.law)
    nodes = law.num_nodes if hasattr(law, "columns") else 1  # a law by quadrature
    points = size * getattr(law, "num_components", 1) * nodes**2
    tree = 6 * size * (made.num_particles or 1) if hasattr(made.sampler, "grid") else 0
    one = max(4 * points, 2048) * max(1, math.prod(made.lead)) + tree
    parts = math.ceil(num / max(1, min(_MOST_DRAWS, _MEMORY // one)))
    return math.ceil(num / parts)


@partial(jax.jit, static_argnames=("lead", "shape"))
def _draws(
    sampler: Any, rows: Any, start: Any, key: jax.Array, indices: Any, asked: Any, *,
    lead: tuple[int, ...], shape: tuple[int, ...],
) -> Draws:  # fmt: skip
    def one(index: Any, digit: Any) -> Draws:
        key_noise, key_run, key_draw = jax.random.split(jax.random.fold_in(key, index), 3)
        x = start * jax.random.normal(key_noise, (*lead, *shape))
        state, ess = nk.run(_ask(sampler, digit), key_run, x, rows, lambda _, info: info.ess)
        nothing = jnp.full((), jnp.nan, x.dtype)
        log_z, effective = nothing, nothing
        if isinstance(state, nk.samplers.Population):
            log_z, effective = nk.samplers.log_z(state), jnp.mean(ess)
        elif hasattr(state, "tree"):
            log_z = jnp.where(sampler.temperature == TEMPERATURE, state.log_weights, nothing)
        if state.log_weights.ndim:
            state = nk.draw(key_draw, nk.State(state.look, state.log_weights, state.evals, state.status))
        return Draws(state.look.x, state.evals, log_z, effective, state.status)

    if asked is None:
        return jax.vmap(lambda index: one(index, None))(indices)
    return jax.vmap(one)(indices, asked)


def _ask(sampler: Any, digit: Any) -> Any:
    """The sampler whose reward asks for a digit: the leaf `label` replaced."""
    if digit is None:
        return sampler

    def swap(path: Any, leaf: Any) -> Any:
        return digit if getattr(path[-1], "name", "") == "label" else leaf

    return jax.tree_util.tree_map_with_path(swap, sampler)
