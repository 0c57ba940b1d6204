"""`ntrk demo`: the main job. What NTRK does to real digits, and where it leads on a law known in closed form."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import click

from ntrk_jax.cli.console import Progress, print_table, user_input
from ntrk_jax.cli.outputs import machine, refuse_existing, staged, to_json, versions
from ntrk_jax.grids import usual

__all__ = ["demo"]

_FILES = ["digits.png", "mixture.png", "report.json", "report.md"]


class _Plan(NamedTuple):
    """How much of everything; `quick` is for looking at the machinery, not at the numbers."""

    num: int
    seeds: tuple[int, ...]
    digits: tuple[int, ...]
    num_steps: int = 25
    particles: int = 20
    mixture_num: int = 4096
    mixture_steps: tuple[int, ...] = (25, 100, 400)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help=f"A folder for {', '.join(_FILES)}.")
@click.option("--seeds", type=click.IntRange(1, 1000), default=5, show_default=True, help="How many seeds, from 0 on.")
@click.option("--num", type=click.IntRange(1, 1000), default=100, show_default=True, help="Samples for each seed.")
@click.option("--digit", type=click.IntRange(0, 9), help="Ask for this digit only; without it, for all ten in turn.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="A digits model made by `ntrk train digits`.")
@click.option("--quick", is_flag=True, help="One seed and few steps: a look at the machinery, not at the numbers.")
@click.option("--overwrite", is_flag=True, help="Replace a report that exists.")
def demo(
    out: Path | None, seeds: int, num: int, digit: int | None, checkpoint: Path | None, quick: bool, overwrite: bool
) -> None:
    """Compare base sampling, best-of-20, DPS and NTRK on real digits, and NTRK with the exact law on a mixture.

    One to three minutes on two CPU cores. With --out, writes pictures and a report.
    """
    from ntrk_jax.training import digits

    if out is not None:
        refuse_existing(out, _FILES, overwrite)
    with user_input("--checkpoint" if checkpoint else "digits"):
        model = digits.load_digits_model(checkpoint)
    asked = tuple(range(10)) if digit is None else (digit,)
    plan = _Plan(num, tuple(range(seeds)), asked)
    if quick:
        plan = _Plan(min(num, 20), (0,), asked, 6, 4, 200, (8,))
    began = time.perf_counter()
    outcomes, clouds = _studies(model, plan)
    report = _report(model, plan, outcomes, clouds, time.perf_counter() - began)
    _show(report)
    if out is not None:
        _write(out, overwrite, report, outcomes, clouds, model)
        click.echo(f"wrote {', '.join(str(out / name) for name in _FILES)}")


def _studies(model: Any, plan: _Plan) -> tuple[list[Any], Any]:
    """Run both studies, with progress."""
    import jax.numpy as jnp

    from ntrk_jax.cli import digits_study, mixture_study

    methods = digits_study.digit_methods(tuple(model.data.shape[1:]), plan.particles)
    steps = usual(model.denoiser, model.schedule, plan.num_steps)
    asked = jnp.asarray([plan.digits[i % len(plan.digits)] for i in range(plan.num)])
    outcomes = []
    with Progress(len(methods) * len(plan.seeds) + 1 + 2 * len(plan.mixture_steps)) as progress:
        for method in methods:
            progress.say(f"digits: compiling {method.label}")
            outcomes.append(digits_study.run_method(
                method, model, asked, steps, plan.seeds,
                lambda seed, label=method.label: progress.advance(f"digits: {label}, seed {seed}"),
            ))  # fmt: skip
        clouds = mixture_study.study(plan.mixture_num, plan.mixture_steps, on_cloud=progress.advance)
    return outcomes, clouds


def _report(model: Any, plan: _Plan, outcomes: list[Any], clouds: Any, seconds: float) -> dict[str, Any]:
    from ntrk_jax.cli import digits_study, mixture_study

    rows = digits_study.summary_of(outcomes, plan.seeds, plan.num)
    return {
        "format": "ntrk demo 1",
        "settings": plan._asdict(),
        "digits": {
            "methods": rows, "verdict": digits_study.verdict_of(rows), "metrics": digits_study.METRICS,
            "real_distance": digits_study.real_distance(model), "real_spread": digits_study.real_spread(),
            "model": model.record,
        },
        "mixture": mixture_study.summary_of(clouds),
        "seconds": seconds, "machine": machine(), "versions": versions(),
    }  # fmt: skip


def _show(report: dict[str, Any]) -> None:
    from ntrk_jax.cli.report import digits_table, mixture_table, rival_line, verdict_line

    print_table(digits_table(report))
    print_table(mixture_table(report))
    click.echo(verdict_line(report["digits"]["verdict"]))
    click.echo(rival_line(report["digits"]["verdict"]))
    click.echo(f"{report['seconds']:.0f} seconds in all, compilation included.")


def _write(out: Path, overwrite: bool, report: dict[str, Any], outcomes: list[Any], clouds: Any, model: Any) -> None:
    from ntrk_jax.cli.demo_figures import digits_picture, mixture_picture
    from ntrk_jax.cli.digits_study import one_real_digit_each
    from ntrk_jax.cli.report import markdown

    with staged(out, _FILES, overwrite) as stage:
        digits_picture(
            stage / "digits.png",
            outcomes,
            report["digits"]["methods"],
            one_real_digit_each(report["settings"]["digits"]),
        )
        mixture_picture(stage / "mixture.png", clouds)
        (stage / "report.json").write_text(to_json(report), encoding="utf-8")
        (stage / "report.md").write_text(markdown(report), encoding="utf-8")
