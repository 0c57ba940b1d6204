"""`ntrk train tilt`: train a base model, move it to the tilted law, and compare it with the exact one."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any

import click

import ntrk_jax as nk
from ntrk_jax.cli.console import BadInput, Finite, Progress, print_table, table, user_input
from ntrk_jax.cli.outputs import machine, plain, refuse_existing, staged, to_json, versions
from ntrk_jax.cli.problems import NAMED, Named, problem
from ntrk_jax.cli.unfinished import kept, open_work

__all__ = ["train_tilt"]

_REPORT = "report.json"
_JUDGED = 10_000


def _two_numbers(_ctx: Any, _param: Any, text: str | None) -> list[float] | None:
    if text is None:
        return None
    with user_input("--b needs two numbers as in 0.5,4"):
        b = [float(part) for part in text.split(",")]
    if len(b) != 2 or not all(map(math.isfinite, b)):
        raise BadInput(f"--b needs two finite numbers as in 0.5,4, got {text!r}.")
    return b


def _positive(_ctx: Any, param: Any, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise BadInput(f"--{param.name} must be a finite number above 0, got {value}.")
    return value


@click.command("tilt")
@click.option("--target", default="two_modes", show_default=True, help=f"One of {NAMED}.")
@click.option("--b", callback=_two_numbers, metavar="X,Y", help="The reward of two_modes, 0,4 unless given.")
@click.option("--digit", type=click.IntRange(0, 9), help="The digit whose logit is the reward of digits.")
@click.option("--schedule", help="The noise schedule, e.g. RectifiedFlow.")
@click.option("--temperature", type=float, default=1.0, show_default=True, callback=_positive, help="Of the tilt.")
@click.option("--method", type=click.Choice(["auto", "explicit", "implicit", "weighted"]),
              default="auto", show_default=True,
              help="What students are trained on; auto is one weighted round if the tilt is mild.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(1, 256), help="How many; chosen by effective sample size unless given.")
@click.option("--ess", type=Finite(0.01, 0.99), help="The share of effective samples that a round keeps.")
@click.option("--samples", type=click.IntRange(2, 1 << 20), default=8192, show_default=True, help="Of each round.")
@click.option(
    "--keep", type=click.IntRange(1, 64), default=1, show_default=True, help="Rounds of samples used together."
)
@click.option(
    "--steps", type=click.IntRange(1, 1_000_000), default=600, show_default=True, help="Of a round's training."
)
@click.option("--refresh", type=click.IntRange(0, 1_000_000), default=0, show_default=True,
              help="Steps of plain denoising at the end.")  # fmt: skip
@click.option("--base-steps", type=click.IntRange(1, 1_000_000), default=2000, show_default=True,
              help="Of the base model's training.")  # fmt: skip
@click.option("--base-samples", type=click.IntRange(2, 1 << 22), default=1 << 16, show_default=True,
              help="Exact samples that the base model is trained on.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1, 1 << 16), default=512, show_default=True, help="Samples a step.")
@click.option("--rate", type=float, default=1e-3, show_default=True, callback=_positive, help="The learning rate.")
@click.option("--width", type=click.IntRange(1, 4096), default=64, show_default=True, help="Of the network.")
@click.option("--depth", type=click.IntRange(1, 64), default=3, show_default=True, help="Of the network.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Names every draw.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A folder for the model and its report.")
@click.option("--overwrite", is_flag=True, help="Replace what is there; a run of these options goes on.")
def train_tilt(out: Path, overwrite: bool, **settings: Any) -> None:
    """Move a trained model to p exp(r / temperature) / Z by rounds of drawing, weighing and regressing.

    The reward is only evaluated, never differentiated. A run that was stopped goes on where it was. The folder gets
    report.json, which compares the tuned model with the exact law, and a model for `ntrk sample --checkpoint`.
    """
    from ntrk_jax.cli.checkpoints import MODEL, RECORD, describe, write_arrays

    settings |= {"moments": "full", "hidden": 2 * settings["width"]}
    task = problem(
        settings["target"], schedule=settings["schedule"], digit=settings["digit"], b=settings["b"],
    )  # fmt: skip
    if task.name != "digits":
        settings["moments"] = "full" if math.prod(task.shape) <= 64 else "diagonal"
        if task.tilted(settings["temperature"]) is None:
            raise BadInput(f"{task.name} has no tilt at temperature {settings['temperature']:g}; raise --temperature.")
    refuse_existing(out, [_REPORT, RECORD], overwrite)
    plan = _plan(settings)
    work, resumed = open_work(out, settings, overwrite, MODEL)
    began, spent = time.perf_counter(), time.process_time()
    with kept(work), Progress(settings["rounds"] or 2) as progress:
        base, state = _train(task, settings, plan, work, progress)
        _advance(progress, "judging", last=True)
        report = _report(task, settings, base, state)
    report |= {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - spent, "resumed": resumed}
    write_arrays(out, state.model)
    with staged(out, [_REPORT, RECORD], overwrite) as stage:
        (stage / RECORD).write_text(to_json(describe(task, settings)), encoding="utf-8")
        (stage / _REPORT).write_text(to_json(plain(report)), encoding="utf-8")
    shutil.rmtree(work, ignore_errors=True)
    _show(report)
    click.echo(f"wrote {', '.join(str(out / name) for name in (_REPORT, RECORD, MODEL))}")


def _advance(progress: Progress, text: str, last: bool = False) -> None:
    """Another stage is done; how many there will be is not known before the last."""
    progress.total = progress.done + 1 if last else max(progress.total, progress.done + 2)
    progress.advance(text)


def _plan(settings: dict[str, Any]) -> Any:
    """The rounds that the options ask for."""
    from ntrk_jax.training import TiltPlan

    with user_input("--ess" if settings["ess"] is not None else ""):
        return TiltPlan(
            settings["method"], num_rounds=settings["rounds"], ess=settings["ess"], num_samples=settings["samples"],
            keep=settings["keep"], num_steps=settings["steps"], batch_size=settings["batch"], rate=settings["rate"],
            num_refresh=settings["refresh"],
        )  # fmt: skip


def _train(
    task: Named, settings: dict[str, Any], plan: Any, work: Path, progress: Progress
) -> tuple[Any, Any]:  # fmt: skip
    """The base model, and the state of the tilt at its end."""
    import jax

    from ntrk_jax.training import tilt

    keys = jax.random.split(jax.random.key(settings["seed"]), 2)
    base = task.model if task.name == "digits" else _base(keys[0], task, settings, work)
    _advance(progress, "base model")
    with user_input("training"):
        state = tilt(
            keys[1], base, task.reward, task.shape, temperature=settings["temperature"], plan=plan,
            checkpoint=work / "rounds", progress=lambda text: _advance(progress, text),
        )  # fmt: skip
    return base, state


def _base(key: Any, task: Named, settings: dict[str, Any], work: Path) -> Any:
    """A network trained on exact samples of the target, or the one that an earlier call has trained."""
    import jax

    from ntrk_jax.training import denoise, restore, save

    keys = jax.random.split(key, 3)
    x = task.law.sample(keys[0], settings["base_samples"]).reshape(-1, *task.shape)
    sizes = {k: settings[k] for k in ("moments", "width", "hidden", "depth")}
    blank = nk.models.moment_network(keys[1], x, task.schedule, **sizes)
    folder = work / "base"
    with user_input("--out"):
        if folder.exists():
            return restore(folder, blank)
    base = denoise(keys[2], blank, x, settings["base_steps"], settings["batch"], 2 * settings["rate"])
    save(folder, base)
    return base


def _report(task: Named, settings: dict[str, Any], base: Any, state: Any) -> dict[str, Any]:
    from ntrk_jax.cli.tilt_report import judge

    rounds = int(state.round)
    names = ("from", "to", "effective_share", "mean_reward", "loss")
    history = [dict(zip(names, map(float, row), strict=True)) for row in state.history[:rounds]]
    judged = judge(task, settings["temperature"], base, state.model, settings["seed"], _JUDGED)
    return {
        **judged, "rounds": rounds, "reward_calls": rounds * settings["samples"], "history": history,
        "settings": settings, "schedule": repr(task.schedule), "versions": versions(), "machine": machine(),
    }  # fmt: skip


def _show(report: dict[str, Any]) -> None:
    shown = table("Tuned model", ["number", "base model", "tuned", "exact"])
    for name, value in report.items():
        exact, base = report.get(f"{name}_exact"), report.get("base", {}).get(name)
        if name in report.get("base", {}):
            shown.add_row(name.replace("_", " "), *map(_text, (base, value, exact)))
    print_table(shown)
    floor = "" if report.get("sw2_floor") is None else f"; exact samples lie {report['sw2_floor']:.3f} apart"
    click.echo(f"{report['rounds']} rounds, {report['reward_calls']} reward calls, {report['seconds']:.0f} s{floor}")


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join(map(_text, value)) if len(value) <= 10 else "..."
    return f"{value:.3f}"
