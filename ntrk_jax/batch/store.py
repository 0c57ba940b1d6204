"""Where samples go: a Zarr (v3) group that any Zarr reader opens.

| array | shape | |
|---|---|---|
| `x` | [rows, *shape] | the samples, one unit after the other |
| `reward`, `log_weight`, `status` | [rows] | of a population `log_weight` is log Z; `status` holds bits of `Status` |
| `evals` | [rows, 4] | model, model_vjp, reward, reward_vjp |
| `done` | [chunks] | 0, or the CRC-32 of the chunk's bytes in the five arrays above |

Rows that are not drawn yet read NaN, and -1 in arrays of whole numbers.

A chunk is written, synced to disk, and only then marked in `done`: whatever is killed, what is marked is there. Every
file appears whole, by a rename. A marked chunk whose bytes do not have their checksum is drawn again: samples depend on
their names alone, so that nothing is lost. The attributes say what was run; a store of another plan is refused. The
lock is `flock`, which the kernel gives back when its process dies. Nothing that is read is executed.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ntrk_jax.batch.draw import Drawn
from ntrk_jax.batch.plan import Plan
from ntrk_jax.core import Status

__all__ = ["FORMAT", "Store", "StoreError"]

FORMAT = "ntrk_jax batch 1"
_ARRAYS = ("x", "reward", "log_weight", "status", "evals")
_CONTENT = ("format", "plan", "sampler", "units")
_ORIGIN = ("versions", "git_commit")


class StoreError(RuntimeError):
    """A store cannot be used, in one line; nothing in it was changed or lost."""


class Store:
    """One run's store, open for writing by this process. `path` is the folder."""

    def __init__(self, path: Path, plan: Plan) -> None:
        """Open a store that exists; see `opened`."""
        import zarr

        self.path, self.plan = path, plan
        group: Any = zarr.open_group(path, mode="r+", zarr_format=3)
        whole = {"write_empty_chunks": True}  # a chunk of zeros is a file too
        self.arrays: dict[str, Any] = {name: group[name].with_config(whole) for name in (*_ARRAYS, "done")}

    def pending(self, verify: bool = True, redraw: bool = False) -> tuple[list[int], list[int]]:
        """The chunks that are to be drawn, and those among them that were there once and are damaged now.

        verify: whether to compare what is there with its checksums. redraw: whether to draw again what holds a sample
        with CALLBACK_FAILED.
        """
        missing, damaged, failed = [], [], []
        for chunk in range(self.plan.num_chunks):
            mark = self._mark(chunk)
            if mark == 0:
                missing.append(chunk)
            elif mark is None or (verify and mark != self._checksum(chunk)):
                damaged.append(chunk)
            elif redraw and np.any(self._status(chunk) & Status.CALLBACK_FAILED):
                failed.append(chunk)
        for chunk in damaged + failed:
            self.arrays["done"][chunk] = 0
        return sorted(missing + damaged + failed), damaged

    def write(self, chunk: int, drawn: Drawn) -> None:
        """Write one chunk, sync it, mark it.

        Raises:
            StoreError: if the disk is full or the folder cannot be written; what was marked before stays.
        """
        rows = self._span(chunk)
        parts = dict(zip(_ARRAYS, _columns(drawn), strict=True))
        parts = {name: np.ascontiguousarray(part[: rows.stop - rows.start]) for name, part in parts.items()}
        try:
            for name, part in parts.items():
                self.arrays[name][rows] = part
                self._sync(name, chunk)
            self.arrays["done"][chunk] = _crc(parts.values())
            self._sync("done", chunk)
        except OSError as error:
            raise StoreError(
                f"{self.path}: chunk {chunk} cannot be written ({error.strerror or error}); the chunks before are "
                "safe: make room and run the same command again."
            ) from None

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Rows of an array."""
        return np.asarray(self.arrays[name][rows])

    def origin(self) -> dict[str, Any]:
        """The versions and commits that the store was begun with."""
        attributes = _metadata(self.path, "zarr.json", "it is gone")["attributes"]
        return {name: attributes[name] for name in _ORIGIN}

    def clean(self) -> None:
        """Remove what writes that were killed have left."""
        for name in self.arrays:
            for left in (self.path / name).glob("*.partial"):
                left.unlink(missing_ok=True)
        for stage in self.path.parent.glob(f".{glob.escape(self.path.name)}-*"):
            shutil.rmtree(stage, ignore_errors=True)

    def _span(self, chunk: int) -> slice:
        first = chunk * self.plan.chunk
        return slice(first, first + self.plan.size(chunk))

    def _mark(self, chunk: int) -> int | None:
        try:
            return int(self.arrays["done"][chunk])
        except Exception:
            return None

    def _checksum(self, chunk: int) -> int | None:
        rows = self._span(chunk)
        try:
            return _crc([np.ascontiguousarray(self.read(name, rows)) for name in _ARRAYS])
        except Exception:
            return None

    def _status(self, chunk: int) -> np.ndarray:
        try:
            return self.read("status", self._span(chunk))
        except Exception:
            return np.zeros(1, np.int32)  # damaged, and found so by its checksum

    def _sync(self, name: str, chunk: int) -> None:
        array = self.arrays[name]
        folder = self.path / name
        _fsync(folder / array.metadata.encode_chunk_key((chunk, *(0,) * (array.ndim - 1))))
        _fsync(folder)


@contextmanager
def opened(path: str | os.PathLike, plan: Plan, outputs: Drawn, attributes: dict[str, Any]) -> Iterator[Store]:
    """The store of a plan, made if need be, and locked for the first process of a run.

    Args:
        path: a folder. outputs: shapes and dtypes of drawn rows. attributes: of the group.

    Raises:
        StoreError: if the folder is another's, damaged, in use, or cannot be written.
    """
    path = Path(path).absolute()
    try:
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            _create(path, plan, outputs, attributes)
        _refuse_other(path, attributes, outputs, plan)
        with locked(path):
            _refuse_other(path, attributes, outputs, plan)
            try:
                store = Store(path, plan)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise StoreError(f"{path} is damaged: zarr cannot open it ({error}). Nothing was changed.") from None
            store.clean()
            yield store
    except OSError as error:
        raise StoreError(f"{path} cannot be used as a store: {error.strerror or error}.") from None


@contextmanager
def locked(path: Path, process: int = 0) -> Iterator[None]:
    """Hold the lock of one process of a run; a second run is refused."""
    import fcntl

    with open(path / "done" / f".lock{process}", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{path} is in use by another run; wait for it, or give another folder.") from None
        yield


def _create(path: Path, plan: Plan, outputs: Drawn, attributes: dict[str, Any]) -> None:
    """A complete, empty store, made beside its place and renamed into it."""
    import zarr
    from zarr.codecs import Crc32cCodec

    path.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        group = zarr.create_group(stage / "new", zarr_format=3, attributes=attributes)
        for name, part in zip(_ARRAYS, _columns(outputs), strict=True):
            names = ["sample", *(f"axis{k}" for k in range(len(part.shape) - 1))]
            group.create_array(
                name, shape=(plan.total, *part.shape[1:]), chunks=(plan.chunk, *part.shape[1:]), dtype=part.dtype,
                compressors=(Crc32cCodec(),), chunk_key_encoding={"name": "default", "separator": "."},
                dimension_names=names, fill_value=float("nan") if np.dtype(part.dtype).kind == "f" else -1,
                attributes={"columns": list(outputs.evals._fields)} if name == "evals" else {},
            )  # fmt: skip
        group.create_array("done", shape=(plan.num_chunks,), chunks=(1,), dtype="uint32", compressors=None,
                           chunk_key_encoding={"name": "default", "separator": "."})  # fmt: skip
        for file in (stage / "new").rglob("*"):
            _fsync(file)
        os.rename(stage / "new", path)
        _fsync(path.parent)
    except OSError:
        if not (path / "zarr.json").exists():  # else another run was faster
            raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _refuse_other(path: Path, attributes: dict[str, Any], outputs: Drawn, plan: Plan) -> None:
    """Raise StoreError unless the folder holds this plan's store, whole."""
    found = _metadata(path, "zarr.json", "it is no store of ntrk batch").get("attributes", {})
    if found.get("format") is None and not any(name in found for name in (*_CONTENT, *_ORIGIN)):
        raise StoreError(f"{path} is no store of ntrk batch; give another folder, nothing was changed.")
    for name in (*_CONTENT, *_ORIGIN):
        if name not in found:
            raise StoreError(
                f"{path} has lost its attribute {name!r}, so that what it holds is not known; put it back or give "
                "another folder. Nothing was changed."
            )
    for name in _CONTENT:
        if found[name] != attributes[name]:
            raise StoreError(
                f"{path} was made with another {name} ({_difference(found[name], attributes[name])}); give another "
                "folder. Nothing was changed."
            )
    parts = dict(zip(_ARRAYS, _columns(outputs), strict=True))
    for name in (*_ARRAYS, "done"):
        meta = _metadata(path, f"{name}/zarr.json", f"its array {name!r} is missing")
        shape = [plan.num_chunks] if name == "done" else [plan.total, *parts[name].shape[1:]]
        dtype = "uint32" if name == "done" else str(np.dtype(parts[name].dtype))
        if meta.get("shape") != shape or str(meta.get("data_type")) != dtype:
            raise StoreError(
                f"{path} is damaged, or was made in another precision: its array {name!r} should be {dtype}{shape}. "
                "Nothing was changed."
            )


def _metadata(path: Path, name: str, reason: str) -> dict[str, Any]:
    if not path.is_dir():
        raise StoreError(f"{path} is a file; a store needs a folder.")
    try:
        found = json.loads((path / name).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    except FileNotFoundError:
        raise StoreError(f"{path} cannot be used: {reason}; give another folder, nothing was changed.") from None
    except ValueError:
        pass
    raise StoreError(f"{path} is damaged: {name} is not readable. Put it back or give another folder.")


def _difference(was: Any, now: Any) -> str:
    """The first difference of two records, in a few words."""
    if isinstance(was, dict) and isinstance(now, dict):
        key = next(k for k in [*was, *now] if was.get(k) != now.get(k))
        return f"{key}: {_difference(was.get(key), now.get(key))}"
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        return next(_difference(a, b) for a, b in zip(was, now, strict=True) if a != b)
    was, now = str(was), str(now)
    start = next((k for k, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), min(len(was), len(now)))
    start = max(0, start - 30)
    return f"it was {was[start : start + 70]!r}, now {now[start : start + 70]!r}"


def _columns(drawn: Drawn) -> tuple:
    """The five arrays of a `Drawn`, or their shapes; bfloat16, which Zarr does not have, is kept as float32."""
    first, x = drawn.evals[0], drawn.x
    if isinstance(first, np.ndarray):
        evals: Any = np.stack(drawn.evals, axis=-1)
        x = x if x.dtype.kind == "f" else x.astype(np.float32)
    else:
        evals = type(first)((*first.shape, len(drawn.evals)), first.dtype)
        x = x if np.dtype(x.dtype).kind == "f" else type(x)(x.shape, np.float32)
    return x, drawn.reward, drawn.log_weights, drawn.status, evals


def _crc(parts: Any) -> int:
    value = 0
    for part in parts:
        value = zlib.crc32(part.tobytes(), value)
    return value or 1


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
