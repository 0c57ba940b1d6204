"""`ntrk train`: rebuild a shipped model from scratch."""

from __future__ import annotations

from pathlib import Path

import click

from ntrk_jax import tweedie
from ntrk_jax.cli.console import Progress, print_table, table
from ntrk_jax.cli.outputs import refuse_existing, staged
from ntrk_jax.cli.train_guidance import train_guidance
from ntrk_jax.cli.train_tilt import train_tilt

__all__ = ["train"]

_PARTS = 3
_REPORTS = 4


@click.group(invoke_without_command=True)
@click.pass_context
def train(context: click.Context) -> None:
    """Train a model, tune one to a reward, or learn a value."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@train.command("digits")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A folder (for digits.npz) or FILE.npz.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Names every draw.")
@click.option("--steps", type=click.IntRange(1, 10_000_000), default=10_000, show_default=True, help="Of the denoiser.")
@click.option("--classifier-steps", type=click.IntRange(1, 10_000_000), default=4_000, show_default=True,
              help="Of the reward and of the judge.")  # fmt: skip
@click.option("--kind", type=click.Choice(tweedie.KINDS), default="x0", show_default=True,
              help="What the denoiser's network predicts.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
def train_digits(out: Path, seed: int, steps: int, classifier_steps: int, kind: str, overwrite: bool) -> None:
    """Train the digits model: the denoiser, the reward and the judge; about a minute on two CPU cores."""
    folder, name = (out.parent, out.name) if out.suffix == ".npz" else (out, "digits.npz")
    refuse_existing(folder, [name], overwrite)
    from ntrk_jax.training import digits

    with Progress(_PARTS * _REPORTS) as progress:
        reached: dict[str, int] = {}

        def report(part: str, step: int, num_steps: int, loss: float) -> None:
            progress.say(f"{part}: step {step} of {num_steps}, loss {loss:.4g}")
            while reached.get(part, 0) < step * _REPORTS // num_steps:
                reached[part] = reached.get(part, 0) + 1
                progress.advance(f"{part}: step {step} of {num_steps}, loss {loss:.4g}")

        with staged(folder, [name], overwrite) as stage:
            model = digits.train_digits(
                seed, stage / name, progress=report, num_steps=steps, classifier_steps=classifier_steps, kind=kind
            )
    shown = table(f"Digits model, seed {seed}", ["number", "value"])
    for key, value in model.record["numbers"].items():
        shown.add_row(key.replace("_", " "), f"{value:g}")
    print_table(shown)
    click.echo(f"wrote {folder / name}")


train.add_command(train_guidance)
train.add_command(train_tilt)
