"""Files appear whole or not at all.

Everything a command writes goes into a hidden folder beside its destination and is renamed when all of it is
there. What exists is left alone unless `overwrite` is given, and then replaced file by file by the rename.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from ntrk_jax.cli.console import BadInput, user_input

__all__ = ["machine", "plain", "refuse_existing", "staged", "to_json", "versions"]

_PACKAGES = ("ntrk_jax", "jax", "jaxlib", "flax", "numpy", "scipy", "scikit-learn", "matplotlib")


def refuse_existing(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """Stop before any work is done if a file would be overwritten, or the folder cannot be one."""
    for parent in (folder, *folder.parents):
        if parent.exists():
            if not parent.is_dir():
                raise BadInput(f"{parent} is a file; --out needs a folder.")
            if not _takes_folders(parent):
                raise BadInput(f"{parent} is not writable; give another --out.")
            break
    for name in names:
        path = folder / name
        if path.is_dir():
            raise BadInput(f"{path} is a folder; give another --out.")
        if path.exists() and not overwrite:
            raise BadInput(f"{path} exists already; give another --out, or --overwrite to replace it.")


def _takes_folders(folder: Path) -> bool:
    """Whether a folder can be made in this one; tried, since permissions do not say so for the superuser."""
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".ntrk-", dir=folder))
    except OSError:
        return False
    return True


@contextmanager
def staged(folder: Path, names: Sequence[str], overwrite: bool) -> Iterator[Path]:
    """A temporary folder for the files `names`; at the end of the block they are renamed into `folder`.

    If the block raises, nothing in `folder` has changed.
    """
    refuse_existing(folder, names, overwrite)
    with user_input("--out"):
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".ntrk-", dir=folder))
    try:
        yield stage
        refuse_existing(folder, names, overwrite)
        with user_input("--out"):
            for name in names:
                os.replace(stage / name, folder / name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def plain(value: Any) -> Any:
    """A value as JSON can hold it: arrays as lists, numbers that are not finite as null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def to_json(value: Any) -> str:
    """The text of a JSON file."""
    return json.dumps(plain(value), indent=2, allow_nan=False) + "\n"


def versions() -> dict[str, str]:
    """Name -> version of Python and of the packages that matter to a number."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            import ntrk_jax as nk

            found[name] = nk.__version__ if name == "ntrk_jax" else "not installed"
    return found


def machine() -> dict[str, Any]:
    """What the numbers were made on."""
    import jax

    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "devices": [str(d.device_kind) for d in jax.devices()],
        "command": " ".join(["ntrk", *sys.argv[1:]]),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
