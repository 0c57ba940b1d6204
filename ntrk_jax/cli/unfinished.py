"""A command that can be stopped: what it was asked for and what it has done so far lie in a folder until it is done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ntrk_jax.cli.console import BadInput, user_input
from ntrk_jax.cli.outputs import to_json

__all__ = ["open_work"]


def open_work(out: Path, settings: dict[str, Any], overwrite: bool) -> tuple[Path, bool]:
    """The folder of a run that is under way, out/unfinished, and whether it was there before; delete it at the end.

    The same settings go on where the run was stopped, with `overwrite` or without: a stopped command is repeated as it
    was. Other settings are refused, or with `overwrite` begin anew.
    """
    work = out / "unfinished"
    path, text = work / "settings.json", to_json(settings)
    with user_input("--out"):
        if path.exists():
            if json.loads(path.read_text(encoding="utf-8")) == json.loads(text):
                return work, True
            if not overwrite:
                raise BadInput(f"{work} holds an unfinished run of other options; repeat those, or --overwrite.")
            shutil.rmtree(work)
        work.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return work, False
