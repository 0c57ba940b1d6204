"""`ntrk train guidance`: learn the soft value of a target, and say how far from the exact one it is.

The folder of `--out` holds `unfinished/` while the command is under way, so that the same command goes on where an
earlier one was stopped, and at the end `value/` (read by `ntrk_jax.training.load_value`) and `report.json`.
"""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp

import ntrk_jax as nk
from ntrk_jax.cli.console import BadInput, Finite, Progress, print_table, table
from ntrk_jax.cli.outputs import machine, refuse_existing, staged, to_json, versions
from ntrk_jax.cli.problems import Named, problem
from ntrk_jax.cli.runs import draw_samples
from ntrk_jax.cli.unfinished import kept, open_work

__all__ = ["evaluate", "learn", "train_guidance"]

_LOSSES = ("bregman", "regression", "log", "consistency")
_POINTS, _ROWS, _PARTICLES, _POPULATIONS = 8192, 50, 32, 64


@click.command("guidance")
@click.option("--target", default="skew2", show_default=True, help="One whose tilted law is known; see ntrk sample.")
@click.option("--temperature", type=Finite(1e-6, 1e6), default=1.0, show_default=True, help="Of the tilt.")
@click.option("--loss", type=click.Choice(_LOSSES), default="bregman", show_default=True, help="What is minimised.")
@click.option("--consistency", type=Finite(0.0, 1e6), default=1.0, show_default=True,
              help="The weight of the gradient's own term; 0 leaves it out.")  # fmt: skip
@click.option("--steps", type=click.IntRange(1, 10_000_000), default=3000, show_default=True, help="Of each round.")
@click.option("--samples", type=click.IntRange(2, 10_000_000), default=65_536, show_default=True,
              help="Draws of the base law, and as many of the tilted one.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(1, 20), default=2, show_default=True,
              help="From the second on, tilted draws come from SMC with the value of the last.")  # fmt: skip
@click.option("--group", type=click.IntRange(1, 100_000), default=256, show_default=True, help="Draws a step.")
@click.option("--width", type=click.IntRange(1, 65_536), default=128, show_default=True, help="Of the network.")
@click.option("--schedule", help="The noise schedule, e.g. RectifiedFlow; by default that of the target.")
@click.option("--num", type=click.IntRange(2, 1_000_000), default=4096, show_default=True, help="Samples compared.")
@click.option("--sampling-steps", type=click.IntRange(2, 100_000), default=200, show_default=True, help="Of samplers.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Names every draw.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A folder; a stopped run there goes on.")
@click.option("--overwrite", is_flag=True, help="Replace what is there; a run of these options goes on.")
def train_guidance(out: Path, overwrite: bool, **options: Any) -> None:
    """Learn temperature log E[exp(reward / temperature) | x_t] of a target; the reward is never differentiated."""
    from ntrk_jax.training.guidance_fit import save_value

    task = problem(options["target"], schedule=options["schedule"])
    tilted = task.tilted(options["temperature"])
    if tilted is None:
        raise BadInput(f"--target {task.name} has no tilted law in closed form at this temperature to compare with.")
    if options["group"] > options["samples"]:
        raise BadInput(f"--group must be at most --samples, got {options['group']} and {options['samples']}.")
    refuse_existing(out, ["report.json"], overwrite)
    work, _ = open_work(out, options, overwrite, "value")
    began, cpu = time.perf_counter(), time.process_time()
    with kept(work):
        value = learn(task, options, work)
    seconds = {"training": time.perf_counter() - began, "training_cpu": time.process_time() - cpu}
    report = evaluate(task, tilted, value, options)
    report |= {"seconds": seconds | {"total": time.perf_counter() - began}, "settings": options}
    report |= {"versions": versions(), "machine": machine()}
    save_value(out / "value", value)
    with staged(out, ["report.json"], overwrite=True) as stage:
        (stage / "report.json").write_text(to_json(report), encoding="utf-8")
    shutil.rmtree(work, ignore_errors=True)
    _show(report)
    click.echo(f"wrote {out / 'report.json'} and {out / 'value'}")


def learn(task: Named, options: dict[str, Any], checkpoint: Path | None = None) -> Any:
    """The learned value of a task: draws of the base law, then rounds of training."""
    from ntrk_jax.training.guidance_fit import fit_value, smc_draws, value_network

    beta, num, steps, rounds = (options[k] for k in ("temperature", "samples", "steps", "rounds"))
    draw_key, *keys = jax.random.split(jax.random.key(options["seed"]), 1 + 2 * rounds)
    draws = jax.jit(task.law.sample, static_argnums=1)(draw_key, num).reshape(num, *task.shape)
    rewards = jax.jit(jax.vmap(task.reward))(draws)
    network = value_network(draws, task.schedule, width=options["width"])
    model = None if options["consistency"] == 0 and options["loss"] != "consistency" else task.model
    chunk = min(500, -(-steps // 4))
    value, params, tilted = None, None, None
    with Progress(rounds * -(-steps // chunk) + rounds - 1) as progress:
        for i in range(rounds):
            if i:
                progress.say(f"round {i + 1}: drawing the tilted law")
                tilted = smc_draws(
                    keys[2 * i], value, task.model, task.reward, task.schedule, task.shape, num, beta,
                    num_steps=options["sampling_steps"],
                )  # fmt: skip
                progress.advance(f"round {i + 1}: drew the tilted law")

            def report(step: int, loss: float, i: int = i) -> None:
                progress.advance(f"round {i + 1}: step {step} of {steps}, loss {loss:.4g}")

            folder = None if checkpoint is None else checkpoint / f"round-{i + 1}"
            value = fit_value(
                keys[2 * i + 1], network, task.schedule, draws, rewards, beta, model=model, tilted=tilted,
                kind=options["loss"], consistency=options["consistency"], num_steps=steps, group=options["group"],
                params=params, checkpoint=folder, progress=report, chunk=chunk,
            )  # fmt: skip
            params = value.params["network"]
    return value


def evaluate(task: Named, tilted: Any, value: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The learned value and the plug-in beside the exact law: gradients, samples, effective sample sizes."""
    beta, num, seed = options["temperature"], options["num"], options["seed"]
    exact = nk.values.Exact(task.law, task.schedule, task.reward, beta)
    values = {"learned": value}
    if getattr(task.reward, "differentiable", True):
        values["plug_in"] = nk.values.PlugIn()
    point_key, exact_key, floor_key, slice_key, run_key = jax.random.split(jax.random.key(seed + 1), 5)
    parts = task.shape, task.model, task.reward, task.schedule
    law = jax.jit(tilted.sample, static_argnums=1)(exact_key, num).reshape(num, *task.shape)
    out: dict[str, Any] = {"gradient_error": {}, "sw2": {}, "tds_ess": {}}
    for name, one in values.items():
        out["gradient_error"][name] = float(_gradient_error(jax.random.clone(point_key), *parts, tilted, exact, one))
        x = _guided(task, one, beta, num, seed, options["sampling_steps"])
        out["sw2"][name] = float(nk.metrics.sliced_wasserstein(jax.random.clone(slice_key), x, law))
        out["tds_ess"][name] = float(_ess(jax.random.clone(run_key), *parts, one, beta))
    out["sw2_floor"] = float(nk.metrics.two_sample_floor(floor_key, tilted, num))
    noise = jnp.zeros(task.shape, jnp.float32)
    at_noise = float(value(None, noise, 1.0)) / beta
    log_z = float(nk.targets.tilt(task.law, task.reward, beta).log_normalizer)
    out["log_z"] = {"exact": log_z, "level": float(value.params["level"]) / beta, "value_at_noise": at_noise}
    return out


@partial(jax.jit, static_argnums=1)
def _gradient_error(
    key: Any, shape: tuple, model: Any, reward: Any, schedule: Any, tilted: Any, exact: Any, value: Any
) -> Any:
    """The root mean square of sigma (grad value - grad exact) relative to that of sigma grad exact, over tilted x_t."""
    draw_key, time_key, noise_key, look_key = jax.random.split(key, 4)
    x0 = tilted.sample(draw_key, _POINTS).reshape(_POINTS, *shape)
    times = jax.random.uniform(time_key, (_POINTS,), minval=1e-3)
    looks = [nk.Look(model, reward, grad=True, value=v) for v in (value, exact)]

    def one(args: tuple) -> tuple[Any, Any]:
        x0, t, z = args
        alpha, sigma = schedule(t)
        seen, right = (look(jax.random.clone(look_key), alpha * x0 + sigma * z, t)[0].grad for look in looks)
        return jnp.sum(jnp.square(sigma * (seen - right))), jnp.sum(jnp.square(sigma * right))

    wrong, size = jax.lax.map(one, (x0, times, jax.random.normal(noise_key, x0.shape)), batch_size=1024)
    return jnp.sqrt(jnp.mean(wrong) / jnp.mean(size))


def _guided(task: Named, value: Any, beta: float, num: int, seed: int, num_steps: int) -> jax.Array:
    """Samples [num, *shape] of the deterministic flow whose score is guided by a value."""
    rule = nk.guidance.Twisted(1.0 / beta, noiseless=True)
    sampler = nk.Single(nk.Look(task.model, task.reward, grad=True, value=value), nk.kernels.DDIM(0.0), rule)
    steps = nk.grids.usual(task.model, task.schedule, num_steps)
    return jnp.asarray(draw_samples(sampler, seed, steps, task.shape, num, batch=min(num, 1024)).x)


@partial(jax.jit, static_argnums=1)
def _ess(key: Any, shape: tuple, model: Any, reward: Any, schedule: Any, value: Any, beta: Any) -> Any:
    """The mean effective share of TDS's particles over rows and populations, never resampled below one half."""
    own = {"temperature": beta, "num_particles": _PARTICLES, "value": value}
    sampler = nk.methods.tds(model, reward, shape, schedule=None, **own)  # not tempered: exact values have even weights
    steps = nk.grid(schedule, nk.grids.uniform(_ROWS))

    def population(key: Any) -> Any:
        noise_key, run_key = jax.random.split(key)
        x = steps.sigma_t[0] * jax.random.normal(noise_key, (_PARTICLES, *shape))
        return jnp.mean(nk.run(sampler, run_key, x, steps)[1].ess) / _PARTICLES

    return jnp.mean(jax.lax.map(population, jax.random.split(key, _POPULATIONS), batch_size=16))


def _show(report: dict[str, Any]) -> None:
    options = report["settings"]
    title = f"Learned guidance, {options['target']}, temperature {options['temperature']:g}"
    shown = table(title, ["value", "gradient error", "sliced W2", "floor", "TDS ESS"])
    for name in report["gradient_error"]:
        cells = [report["gradient_error"][name], report["sw2"][name], report["sw2_floor"], report["tds_ess"][name]]
        shown.add_row(name.replace("_", "-"), *(f"{c:.3f}" for c in cells))
    print_table(shown)
