"""`ntrk batch`: a plan of samples, drawn on all devices into a store that survives being killed."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from ntrk_jax.cli.console import BadInput, Finite, Progress, print_table, table, user_input

__all__ = ["batch"]

_LINES = 20  # of progress in a log


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--store", type=click.Path(path_type=Path), help="The folder of the Zarr store; made if need be.")
@click.option("--dry-run", is_flag=True, help="Show the plan, memory and cost of the compiled programs; write nothing.")
@click.option("--devices", type=click.IntRange(1, 100_000), help="How many of the visible devices; on a CPU, how many "
              "to make of it.")  # fmt: skip
@click.option("--axes", type=click.Choice(["auto", "explicit"]), default="auto", show_default=True,
              help="The type of the mesh's axis.")  # fmt: skip
@click.option("--on-error", type=click.Choice(["stop", "skip"]), default="stop", show_default=True,
              help="When a host callback fails for a sample: stop, or flag the sample and go on.")  # fmt: skip
@click.option(
    "--retries", type=click.IntRange(0, 1000), default=0, show_default=True, help="Further tries of a callback."
)
@click.option("--time-limit", type=Finite(0, min_open=True), help="Seconds that one try of a callback may take.")
@click.option("--no-verify", is_flag=True, help="Trust what is in the store without reading it again.")
@click.option("--redraw-failed", is_flag=True, help="Draw the chunks again in which a callback failed for a sample.")
@click.option("--cache", type=click.Path(path_type=Path), help="A folder that keeps compiled programs between runs.")
@click.option("--coordinator", metavar="HOST:PORT", help="Of several processes: the address of the first, or "
              "auto where the cluster says it (with the other two).")  # fmt: skip
@click.option("--processes", type=click.IntRange(1, 100_000), help="How many processes.")
@click.option("--process", type=click.IntRange(0, 99_999), help="Which of them this is, from 0.")
def batch(plan: Path, store: Path | None, **options: Any) -> None:
    """Draw the samples of a PLAN (TOML) that the store does not hold yet.

    A plan has the entries target (or checkpoint), method and num; seed (0), steps (25) and chunk (256, samples that a
    device draws at a time) unless given; and those of `ntrk sample`: strength, temperature, particles, value, kernel,
    schedule, digit, and tables [set], [mixture] and [reward]. Tables [[units]] hold what differs, one unit each, with a
    name if you like; digits = [0, 1] is short for two.

    A sample depends on its unit, seed and number alone. Run the same command again after it was stopped or killed: the
    store ends as if it had never been.
    """
    if store is None and not options["dry_run"]:
        raise BadInput("--store DIR is missing (or --dry-run, which needs none).")
    _prepare(options)
    import jax

    from ntrk_jax.batch import RewardError, StoreError, make_mesh, run
    from ntrk_jax.cli.batch_plan import read_plan

    planned = read_plan(plan)
    with user_input("--devices"):
        mesh = make_mesh(options["devices"], options["axes"])
    first = jax.process_index() == 0
    if options["dry_run"]:
        return _show_preview(planned, mesh) if first else None
    assert store is not None
    chosen = {name: options[name] for name in ("on_error", "retries", "time_limit")}
    try:
        with Progress(_LINES, quiet=not first) as progress, user_input(str(plan)):
            progress.say("compiling")
            report = run(
                planned, store, mesh=mesh, verify=not options["no_verify"], redraw=options["redraw_failed"],
                progress=_Ticker(progress), **chosen,
            )  # fmt: skip
    except (StoreError, RewardError) as error:
        raise BadInput(str(error)) from None
    except KeyboardInterrupt:
        click.echo(f"Stopped: what was drawn is in {store}; run the same command again to go on.", err=True)
        click.get_current_context().exit(130)
    if first:
        _show(report, store)


def _prepare(options: dict[str, Any]) -> None:
    """What must be said before the first device is asked for."""
    import jax

    given = [options[name] is not None for name in ("coordinator", "processes", "process")]
    if options["cache"] is not None:
        jax.config.update("jax_compilation_cache_dir", str(options["cache"].absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if options["devices"] is not None:
        number, rest = divmod(options["devices"], options["processes"] or 1)
        if rest:
            raise BadInput(f"--devices must be a multiple of --processes, got {options['devices']}.")
        with suppress(RuntimeError):  # raised where the devices are there already: some of them are taken
            jax.config.update("jax_num_cpu_devices", number)
    if any(given):
        auto = options["coordinator"] == "auto"
        if not all(given) and not auto:
            raise BadInput("--coordinator, --processes and --process go together.")
        if options["process"] is not None and options["process"] >= (options["processes"] or 1):
            raise BadInput(f"--process must be below --processes, got {options['process']}.")
        names = {"coordinator": "coordinator_address", "processes": "num_processes", "process": "process_id"}
        named: dict[str, Any] = {} if auto else {new: options[name] for name, new in names.items()}
        try:
            jax.distributed.initialize(**named)
        except (ValueError, RuntimeError, OSError) as error:
            raise BadInput(f"--coordinator: {str(error).strip().splitlines()[0]}") from None


class _Ticker:
    """Turns rows done into a bar on a terminal, and at most a few lines in a log."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.first: tuple[float, int] | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if self.first is None:
            self.first = now, done  # what came before was compilation
        seconds, drawn = now - self.first[0], done - self.first[1]
        rate = f", {drawn / seconds:.3g} a second, {_duration(seconds * (total - done) / drawn)} left" if drawn else ""
        text = f"{done} of {total} samples{rate}"
        self.progress.say(text)
        while self.progress.done < done * _LINES // total:
            if self.progress.done + 1 == done * _LINES // total:
                self.progress.advance(text)
            else:
                self.progress.done += 1


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{rest} s"


def _show(report: Any, store: Path) -> None:
    shown = table(f"Samples in {store}", ["samples", "drawn now", "mean reward", "flagged", "samples/s"], 0)
    reward = f"{report.mean_reward:.4g} ± {report.reward_error:.2g}"
    rate = f"{report.samples_per_second:.4g}" if report.drawn else ""
    shown.add_row(str(report.total), str(report.drawn), reward, str(report.num_flagged), rate)
    print_table(shown)
    for name, count in report.flagged.items():
        click.echo(f"{name}: {count} of {report.total} samples")
    for line in report.failures[:3]:
        click.echo(f"skipped: the reward failed for {line}")
    if len(report.failures) > 3:
        click.echo(f"skipped: {len(report.failures) - 3} more")
    for chunk in report.damaged:
        click.echo(f"chunk {chunk} was damaged and has been drawn again")
    for line in report.notes:
        click.echo(f"note: {line}", err=True)


def _show_preview(plan: Any, mesh: Any) -> None:
    from ntrk_jax.batch import preview

    names = [
        "units",
        "samples",
        "chunks",
        "devices",
        "rounds",
        "MiB a device",
        "of it temporary",
        "GFLOP",
        "collectives",
    ]
    shown = table("Plan (nothing is written; GFLOP: the first look and one step of a chunk)", names)
    for row in preview(plan, mesh=mesh):
        memory, units = row["memory"], row["units"]
        text = ", ".join(units[:3]) + (f" and {len(units) - 3} more" if len(units) > 3 else "")
        numbers = [len(units) * plan.num, row["chunks"], row["devices"], row["rounds"]]
        sizes = [f"{b / 2**20:.3g}" for b in (sum(memory.values()), memory["temp"])]
        flops = f"{row['cost']['flops'] / 1e9:.3g}" if "flops" in row["cost"] else ""
        shown.add_row(text, *map(str, numbers), *sizes, flops, ", ".join(row["collectives"]) or "none")
    print_table(shown)
    click.echo(f"{plan.total} samples of shape {list(plan.shape)}, {plan.chunk} a chunk, seed {plan.seed}")
