"""`ntrk list`: the catalogue of methods."""

from __future__ import annotations

import click

import ntrk_jax as nk
from ntrk_jax.cli.console import print_table, table, terminal_width
from ntrk_jax.cli.outputs import to_json

__all__ = ["list_methods"]

_WIDE = 110


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def list_methods(as_json: bool) -> None:
    """List the methods: what each needs, costs, and what is exact about it."""
    rows = {
        name: {
            "summary": entry.summary, "needs": entry.needs, "cost": entry.cost, "exact": entry.exact,
            "strength": entry.strength, "low": entry.low, "high": entry.high, "population": entry.population,
        }
        for name, entry in nk.methods.CATALOGUE.items()
    }  # fmt: skip
    if as_json:
        click.echo(to_json(rows), nl=False)
        return
    if terminal_width() < _WIDE:
        for name, row in rows.items():
            strength = f"\n    option: --{row['strength']}" if row["strength"] else ""
            click.echo(f"{name}: {row['summary']}\n    needs {row['needs']}\n    costs {row['cost']} per step")
            click.echo(f"    exact: {row['exact']}{strength}")
        return
    out = table("Methods", ["name", "what it is", "needs", "cost per step", "exact?", "strength"], left=6)
    for name, row in rows.items():
        out.add_row(name, row["summary"], row["needs"], row["cost"], row["exact"], row["strength"] or "")
    print_table(out)
