"""The command line, `ntrk`: demo, sample, batch, compare, train, list.

Bad input gets one line on stderr, `Error: ...`, and exit status 2; files that exist are never touched unless
`--overwrite` is given, and then only replaced when their successors are complete.
"""

from __future__ import annotations

import click

import ntrk_jax as nk
from ntrk_jax.cli.batch import batch
from ntrk_jax.cli.compare import compare
from ntrk_jax.cli.console import OneLineErrors
from ntrk_jax.cli.demo import demo
from ntrk_jax.cli.listing import list_methods
from ntrk_jax.cli.sample import sample
from ntrk_jax.cli.train import train

__all__ = ["main"]


@click.group(cls=OneLineErrors, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(nk.__version__, prog_name="ntrk")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Draw from a diffusion model tilted towards a reward, p(x) exp(r(x) / temperature)."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for command in (demo, sample, batch, compare, train, list_methods):
    main.add_command(command)
