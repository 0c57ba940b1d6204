"""What a run was made with: versions and git commits, and what differs between now and then."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from ntrk_jax.batch.store import Store

__all__ = ["commits", "notes", "versions"]

_PACKAGES = ("jax", "jaxlib", "numpy", "zarr")


def notes(store: Store, attributes: dict[str, Any]) -> list[str]:
    """What differs between now and when the store was made, without making it another."""
    found = store.origin()
    return [
        f"the store was begun with {name} {found[name]}, now it is {attributes[name]}: bitwise equality is not promised"
        for name in found
        if found[name] != attributes[name]
    ]


def versions() -> dict[str, str]:
    """Name -> version of the packages that may change a sample's last bits."""
    return {"ntrk_jax": sys.modules["ntrk_jax"].__version__, **{name: metadata.version(name) for name in _PACKAGES}}


def commits() -> dict[str, str | None]:
    """The git commits of this package, if it runs from a checkout, and of the working directory."""
    here = Path(__file__).parent
    tracked = _git(here, "ls-files", "--error-unmatch", "runner.py") is not None
    return {"ntrk_jax": _commit(here) if tracked else None, "working_directory": _commit(Path.cwd())}


def _commit(folder: Path) -> str | None:
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *args: str) -> str | None:
    try:
        command = ["git", "--no-optional-locks", "-C", str(folder), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
