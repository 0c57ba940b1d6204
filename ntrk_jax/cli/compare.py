"""`ntrk compare`: any methods on a named target, at one budget, judged by the exact law."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

import ntrk_jax as nk
from ntrk_jax.cli.console import BadInput, Progress, print_table
from ntrk_jax.cli.outputs import machine, refuse_existing, staged, to_json, versions
from ntrk_jax.cli.problems import NAMED

__all__ = ["compare"]

_FILES = ["report.json", "report.md", "compare.png"]
_METHODS = "exact,base,best_of_n,svdd,dps,ntrk,calibrated,fk,tds,das"
_RULES = {
    "budget": (
        "what one returned draw may cost. With --nfe N, methods with particles or rollouts take K = min(N / 25, "
        "sqrt(N)) of them, at least 2, or --particles; every method takes as many rows as its N allow, at most "
        "--max-steps. With --steps T --particles K, single paths take T rows, the others K times T."
    ),
    "tuning": (
        "those listed in a method's catalogue row, NTRK's included; beyond them while the best is at an end (three "
        "more at most); then half a step to either side; the best one on draws of a seed that is not reported. Of "
        "methods that list none and take the data for Gaussian the spread is tried, the others run at their defaults. "
        "Best: "
    ),
}


@click.command()
@click.option("--target", default="das9", show_default=True, help=f"One of {NAMED}.")
@click.option(
    "--methods",
    default=_METHODS,
    show_default=True,
    help="Names that `ntrk list` shows, and exact: the base sampler on the exact tilted denoiser; or all.",
)
@click.option(
    "--nfe", type=click.IntRange(1, 10_000_000), help="Model evaluations a draw; 100 unless --steps is given."
)
@click.option("--steps", type=click.IntRange(1, 100_000), help="Rows of the grid, instead of --nfe.")
@click.option("--particles", type=click.IntRange(1, 100_000), help="Particles, candidates or rollouts of a draw.")
@click.option(
    "--max-steps", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="Most rows of --nfe."
)
@click.option("--seeds", type=click.IntRange(1, 10_000), default=4, show_default=True, help="How many seeds.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="The first seed.")
@click.option("--num", type=click.IntRange(2, 1_000_000), help="Draws for each seed; 1000, of digits 100.")
@click.option("--tune/--no-tune", default=True, show_default=True, help="Choose strengths, or take the defaults.")
@click.option("--observed", type=click.IntRange(1, 64), help="Numbers seen, of cardosoD.")
@click.option("--instance", type=click.IntRange(0, 2**31), help="Of the random problem, of cardosoD.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Of digits: a file of `ntrk train digits`.")
@click.option("--kernel", help="The base kernel of methods that take one, e.g. 'DDIM(eta=0.85)'.")
@click.option("--schedule", help="The noise schedule, e.g. RectifiedFlow.")
@click.option("--value", type=click.Choice(["plug-in", "exact"]), default="plug-in", help="For methods that take one.")
@click.option("--out", type=click.Path(path_type=Path), help=f"A folder for {', '.join(_FILES)}.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
def compare(**options: Any) -> None:  # fmt: skip
    """Compare methods on a target whose tilted law is known, or on the digits, at one budget.

    The budget is what one returned draw may cost; a population or a tree is one draw. With --nfe N, methods with
    particles or rollouts take K = min(N / 25, sqrt(N)) of them (at least 2), or --particles; then every method takes as
    many rows as N allows. With --steps T --particles K, single paths take T rows, the others K times T.

    Strengths are chosen by one rule for every method: those listed in its catalogue row are tried, beyond them while
    the best is at an end (three more at most), then half a step to either side; the best one on draws of a seed that is
    not reported is taken. Of a method that takes the data for Gaussian their spread is chosen so. Best is the smallest
    sliced W2 to exact draws; on the digits, the highest mean of target and held-out reward at a distance to real digits
    of at most 1.2 times the base sampler's.

    Methods that cannot serve the target (gradients of a cliff, say) are left out with a line that says why.
    """
    out = options["out"]
    if out is not None:
        refuse_existing(out, _FILES, options["overwrite"])
    began = time.perf_counter()
    report, judge, outcomes = _study(options)
    report |= {"seconds": time.perf_counter() - began, "machine": machine(), "versions": versions()}
    _show(report)
    if out is not None:
        _write(out, options["overwrite"], report, judge, outcomes)
        click.echo(f"wrote {', '.join(str(out / name) for name in _FILES)}")


def _study(options: dict[str, Any]) -> tuple[dict[str, Any], Any, list[Any]]:
    """Run everything: the report, the judge and what each method did."""
    from ntrk_jax.cli.compare_study import compare_method, judge_for, refusal, summary_of
    from ntrk_jax.cli.problems import problem

    names, plan = _names(options["methods"]), _plan(options)
    if options["target"] == "mixture":
        raise BadInput(f"--target mixture is not known to compare; known are {NAMED}.")
    given = {name: options[name] for name in ("schedule", "observed", "instance", "checkpoint")}
    task = problem(options["target"], **given)
    reasons = {name: refusal(name, task, plan) for name in names}
    outcomes, skipped = [], [{"method": name, "reason": why} for name, why in reasons.items() if why is not None]
    names = [name for name in names if reasons[name] is None]
    if not names:
        raise BadInput(f"no method can run here; {skipped[0]['method']}: {skipped[0]['reason']}")
    with Progress(len(names) * (len(plan.seeds) + plan.tune)) as progress:
        progress.say("the exact law")
        judge = judge_for(task, plan.num)
        for name in names:
            try:
                outcomes.append(compare_method(name, task, judge, plan, progress))
            except BadInput as error:
                skipped.append({"method": name, "reason": error.message})
    if not outcomes:
        raise BadInput(f"no method could run; {skipped[-1]['method']}: {skipped[-1]['reason']}")
    settings = {
        **plan._asdict(), "budget": plan.budget._asdict(), "observed": options["observed"],
        "instance": options["instance"], "checkpoint": options["checkpoint"] and str(options["checkpoint"]),
        "schedule": repr(task.schedule), "reward": type(task.reward).__name__,
    }  # fmt: skip
    rules = {**_RULES, "tuning": _RULES["tuning"] + judge.criterion + "." if plan.tune else "the defaults."}
    report = {
        "format": "ntrk compare 1", "target": options["target"], "exact": judge.exact, "floor": judge.floor,
        "rows": [row for one in outcomes for row in one.rows], "summary": summary_of(outcomes), "skipped": skipped,
        "settings": settings, "rules": rules,
    }  # fmt: skip
    return report, judge, outcomes


def _names(text: str) -> list[str]:
    """The methods asked for, each once."""
    known = ["exact", *nk.methods.names()]
    names = known if text == "all" else list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if unknown := [name for name in names if name not in known]:
        raise BadInput(f"--methods: unknown method {unknown[0]!r}; known are {', '.join(known)}, or all.")
    if not names:
        raise BadInput("--methods needs at least one name.")
    return names


def _plan(options: dict[str, Any]) -> Any:
    from ntrk_jax.cli.compare_runs import Budget
    from ntrk_jax.cli.compare_study import Plan

    nfe, steps = options["nfe"], options["steps"]
    if nfe is not None and steps is not None:
        raise BadInput("give --nfe N, or --steps T --particles K, not both --nfe and --steps.")
    nfe = 100 if nfe is None and steps is None else nfe
    num = options["num"] or (100 if options["target"] == "digits" else 1000)
    seeds = tuple(range(options["seed"], options["seed"] + options["seeds"]))
    budget = Budget(nfe, steps, options["particles"], options["max_steps"])
    return Plan(budget, num, seeds, options["tune"], options["kernel"], options["value"])


def _show(report: dict[str, Any]) -> None:
    from ntrk_jax.cli.compare_report import compare_table

    print_table(compare_table(report))
    for one in report["skipped"]:
        click.echo(f"left out {one['method']}: {one['reason']}")
    click.echo(f"{report['seconds']:.0f} seconds in all, compilation included.")


def _write(out: Path, overwrite: bool, report: dict[str, Any], judge: Any, outcomes: list[Any]) -> None:
    from ntrk_jax.cli.compare_report import markdown, picture

    exact = None if judge.tilted is None else judge.reference(report["settings"]["seeds"][0])
    with staged(out, _FILES, overwrite) as stage:
        (stage / "report.json").write_text(to_json(report), encoding="utf-8")
        (stage / "report.md").write_text(markdown(report), encoding="utf-8")
        clouds = {one.method: one.first.x for one in outcomes}
        picture(stage / "compare.png", report, judge.tilted, exact, clouds)
