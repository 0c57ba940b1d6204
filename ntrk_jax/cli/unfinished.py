"""A command that can be stopped: what it was asked for and what it has done so far lie in a folder until it is done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ntrk_jax.cli.console import BadInput, user_input
from ntrk_jax.cli.outputs import to_json

__all__ = ["kept", "open_work"]


def open_work(out: Path, settings: dict[str, Any], overwrite: bool, product: str) -> tuple[Path, bool]:
    """The folder of a run that is under way, out/unfinished, and whether it was there before; delete it at the end.

    The same settings go on where the run was stopped, with `overwrite` or without: a stopped command is repeated as it
    was. Other settings are refused, or with `overwrite` begin anew. product: the folder in `out` that the run will
    write; one that exists is refused without `overwrite`, as is whatever lies in the way and no run has made.
    """
    work = out / "unfinished"
    path, text = work / "settings.json", to_json(settings)
    with user_input("--out"):
        if path.exists():
            if json.loads(path.read_text(encoding="utf-8")) == json.loads(text):
                return work, True
            if not overwrite:
                raise BadInput(f"{work} holds an unfinished run of other options; repeat those, or --overwrite.")
        elif work.exists() and not (work.is_dir() and not any(work.iterdir())):
            raise BadInput(f"{work} is in the way and no unfinished run; give another --out.")
        _refuse_product(out / product, overwrite)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return work, False


def _refuse_product(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is a file where a folder will be written; give another --out.")
    if folder.exists() and not overwrite:
        raise BadInput(f"{folder} exists already; give another --out, or --overwrite to replace it.")


@contextmanager
def kept(work: Path) -> Iterator[None]:
    """Say, where a person stops the command, that it goes on from what it has done."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"Stopped: what was done is in {work}; run the same command again to go on.", err=True)
        click.get_current_context().exit(130)
