"""`ntrk sample`: any method of the catalogue on a mixture or on the digits."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import click

from ntrk_jax.cli.console import BadInput, Progress, print_table, table, user_input
from ntrk_jax.cli.outputs import plain, refuse_existing, staged, to_json, versions
from ntrk_jax.cli.problems import TARGETS

__all__ = ["sample"]

_TABLES = ("mixture", "reward")


def _read_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    """Make the file's entries the defaults of the options, so that options given on the command line win."""
    if path is None:
        return None
    import tomllib

    with user_input(f"cannot read --config {path}"):
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    names = {p.opts[0].lstrip("-"): str(p.name) for p in ctx.command.params if p.name not in ("config", "help")}
    for name, value in entries.items():
        if name not in names and name not in _TABLES:
            known = ", ".join(sorted(names))
            raise BadInput(f"{path} has an unknown entry {name!r}; known are {known}, [mixture], [reward].")
        if name in _TABLES and not isinstance(value, dict):
            raise BadInput(f"{path}: {name} must be a table [{name}].")
        if name in names and name != "set" and isinstance(value, (dict, list)):
            raise BadInput(f"{path}: {name} must be one value, got {value!r}.")
    ctx.default_map = {names[k]: _as_text(v) for k, v in entries.items() if k in names}
    ctx.meta["tables"] = {k: v for k, v in entries.items() if k in _TABLES}
    return path


def _as_text(value: Any) -> Any:
    """What would have been typed: options are parsed alike from both places."""
    if isinstance(value, dict):
        return [f"{k}={v}" for k, v in value.items()]
    if isinstance(value, list):
        return [str(v) for v in value]
    return str(value).lower() if isinstance(value, bool) else str(value)


@click.command()
@click.option("--config", type=click.Path(path_type=Path), is_eager=True, callback=_read_config, expose_value=False,
              help="A TOML file whose entries are named like the options; those typed win.")  # fmt: skip
@click.option("--target", default="das9", show_default=True, help=f"One of {TARGETS}.")
@click.option("--method", default="ntrk", show_default=True, help="A name that `ntrk list` shows.")
@click.option("--steps", type=click.IntRange(1, 100_000), default=25, show_default=True, help="Steps of the grid.")
@click.option("--num", type=click.IntRange(1, 10_000_000), default=64, show_default=True, help="How many samples.")
@click.option("--start", type=click.IntRange(0, 2**31), default=0, help="The number of the first sample.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Names the samples.")
@click.option("--strength", type=float, help="The method's strength.")
@click.option("--temperature", type=float, help="The temperature, for methods and values that have one.")
@click.option("--particles", type=click.IntRange(1, 100_000), help="Particles or candidates; rollouts of a tree, 100.")
@click.option("--digit", type=click.IntRange(0, 9), help="The digit that the reward asks for.")
@click.option("--kernel", help="The base kernel, e.g. 'DDIM(eta=0.5)' or FlowSDE.")
@click.option("--schedule", help="The noise schedule of a mixture, e.g. RectifiedFlow or 'VPLinear(beta_max=15.0)'.")
@click.option("--value", default="plug-in", show_default=True, metavar="plug-in|exact|DIR",
              help="What stands for the value; DIR was written by `ntrk train guidance`.")  # fmt: skip
@click.option("--set", "extra", multiple=True, metavar="NAME=VALUE", help="Another option of the method, repeatable.")
@click.option("--batch", type=click.IntRange(1, 1_000_000), default=256, show_default=True, help="Samples at a time.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="A model made by `ntrk train`: a digits file, or a folder of `ntrk train tilt`.",
)
@click.option("--out", type=click.Path(path_type=Path), help="A folder, or FILE.npz; nothing is written without it.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
def sample(**options: Any) -> None:
    """Draw samples, print what they score and cost, and write them with a picture.

    Sample number i depends on the seed and on i alone, not on --num, --start or --batch.
    """
    from ntrk_jax.cli.build import Choices, prepare
    from ntrk_jax.cli.runs import draw_samples

    out, names = _destination(options["out"])
    if out is not None:
        refuse_existing(out, names, options["overwrite"])
    for name in ("strength", "temperature"):
        if options[name] is not None and not math.isfinite(options[name]):
            raise BadInput(f"--{name} must be a finite number, got {options[name]}.")
    task = _task(options)
    choices = Choices(*(options[k] for k in Choices._fields))
    sampler, steps = prepare(options["method"], task, choices, options["steps"])
    chunks = math.ceil(options["num"] / options["batch"])
    began = time.perf_counter()
    with Progress(chunks) as progress:
        drawn = draw_samples(
            sampler, options["seed"], steps, task.shape, options["num"], start=options["start"],
            batch=options["batch"], progress=lambda done: progress.advance(f"{done} samples"),
        )  # fmt: skip
    seconds = time.perf_counter() - began
    record = _record(options, sampler, drawn, seconds) | _judged(task, options, drawn)
    _show(record)
    if out is not None:
        _write(out, names, options, task, drawn, record)
        click.echo(f"wrote {', '.join(str(out / name) for name in names)}")


def _task(options: dict[str, Any]) -> Any:
    """The problem: that of a tuned model's folder, unless a target says otherwise, or the named one."""
    from ntrk_jax.cli.checkpoints import is_folder, tuned_problem
    from ntrk_jax.cli.problems import problem

    context = click.get_current_context()
    typed = context.get_parameter_source("target") is not click.core.ParameterSource.DEFAULT
    folder = options["checkpoint"]
    if is_folder(folder):
        if options["schedule"] is not None:
            raise BadInput("--schedule is fixed by --checkpoint: the network was trained on its own.")
        task = tuned_problem(folder, options["target"] if typed else None, options["digit"])
        options["target"] = task.name
        return task
    return problem(
        options["target"], schedule=options["schedule"], digit=options["digit"], checkpoint=folder,
        tables=context.meta.get("tables", {}),
    )  # fmt: skip


def _destination(path: Path | None) -> tuple[Path | None, list[str]]:
    """The folder, and the names of the arrays, the picture and the record in it."""
    if path is None:
        return None, []
    folder, stem = (path.parent, path.stem) if path.suffix == ".npz" else (path, "samples")
    return folder, [f"{stem}{suffix}" for suffix in (".npz", ".png", ".json")]


def _record(options: dict[str, Any], sampler: Any, drawn: Any, seconds: float) -> dict[str, Any]:
    """What was asked, what came out."""
    import numpy as np

    rewards = np.asarray(drawn.reward, np.float64)
    return {
        "options": {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()},
        "sampler": repr(sampler),
        "parts": _parts(sampler),
        "mean_reward": float(rewards.mean()),
        "reward_standard_error": float(rewards.std(ddof=1) / len(rewards) ** 0.5) if len(rewards) > 1 else None,
        "evals_per_sample": {k: int(v[0]) for k, v in drawn.evals._asdict().items()},
        "samples_with_a_status_flag": int(np.count_nonzero(drawn.status)),
        "seconds": seconds,
        "versions": versions(),
    }


def _parts(sampler: Any) -> str:
    """What the sampler and the one inside it are made of, without the model, the reward and a tree's grid."""
    from ntrk_jax.tree import through

    parts = list(through(sampler, "sampler"))
    named = [(field.name, getattr(part, field.name)) for part in parts for field in dataclasses.fields(part)]
    named = [(name, part) for name, part in named if name not in ("look", "sampler", "grid")]
    named.append(("value", getattr(parts[-1].look, "value", None)))
    return f"{type(sampler).__name__}: " + ", ".join(f"{name} = {part!r}" for name, part in named if part is not None)


def _judged(task: Any, options: dict[str, Any], drawn: Any) -> dict[str, float]:
    """Of digits what the reward does not say: another classifier's reward, and how far the nearest real digit is."""
    if task.digits is None:
        return {}
    import jax

    import ntrk_jax as nk

    held_out = jax.vmap(task.digits.judge(options["digit"] or 0))(drawn.x)
    distance = nk.metrics.nearest_distance(drawn.x, task.digits.data)
    return {"held_out_reward": float(held_out.mean()), "distance_to_nearest_digit": float(distance.mean())}


def _show(record: dict[str, Any]) -> None:
    evals, error, options = record["evals_per_sample"], record["reward_standard_error"], record["options"]
    judged = {k: f"{record[k]:.3g}" for k in ("held_out_reward", "distance_to_nearest_digit") if k in record}
    words = [k.replace("_", " ") for k in (*judged, *evals)]
    names = ["method", "target", "number", "mean reward", *words, "flagged", "seconds"]
    shown = table("Samples (evaluations are those of one sample)", names, 2)
    reward = f"{record['mean_reward']:.4g}" + ("" if error is None else f" ± {error:.2g}")
    shown.add_row(
        options["method"], options["target"], str(options["num"]), reward, *judged.values(),
        *(str(n) for n in evals.values()),
        str(record["samples_with_a_status_flag"]), f"{record['seconds']:.1f}",
    )  # fmt: skip
    print_table(shown)
    click.echo(record["parts"])


def _write(out: Path, names: list[str], options: dict[str, Any], task: Any, drawn: Any, record: dict[str, Any]) -> None:
    import numpy as np

    from ntrk_jax.cli.build import Choices, aimed_temperature
    from ntrk_jax.cli.figures import picture

    temperature = aimed_temperature(options["method"], Choices(*(options[k] for k in Choices._fields)))
    exact = task.tilted(temperature) if options["method"] != "base" else None
    span = (-1.0, 1.0) if task.name == "digits" else None
    title = f"{options['method']} on {options['target']}, {options['steps']} steps"
    with staged(out, names, options["overwrite"]) as stage:
        np.savez(
            stage / names[0], x=np.asarray(drawn.x), reward=drawn.reward, log_weights=drawn.log_weights,
            status=drawn.status, sampler=np.array(record["sampler"]),
            **{f"evals_{k}": v for k, v in drawn.evals._asdict().items()},
        )  # fmt: skip
        picture(
            stage / names[1], np.asarray(drawn.x), np.asarray(drawn.reward), title, task.law, exact, span, temperature
        )
        (stage / names[2]).write_text(to_json(plain(record)), encoding="utf-8")
