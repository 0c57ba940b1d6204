"""Names of functions: "module:name", and what such a name leaves open.

Where a function was defined does not always fix what it computes. A method has an object, a partial its arguments; a
lambda, or any function that its name does not lead back to, is named by its code, its defaults and what it closes over,
as twelve digits that are the same in every process that reads the same source. Of an object that is called the
attributes count if it compares by value; one that does not may count its calls, say, and stays the same reward: of it
only fractions, texts and arrays count, and those within `in_full` alone. Attributes whose name begins with an
underscore are not looked at.

A name that is found again in its module is enough to print an object and to read it back, but not to say what was run:
within `in_full` the code of a function that is not installed (of a script, a notebook, a package that is worked on)
counts as well, with the numbers, words, tuples, arrays and functions that it reads from its module; lists and
dictionaries there do not, as they may be filled while it runs.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import hashlib
import inspect
import re
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["code_of", "function", "in_full", "record"]

_MAX_PRINTED = 400
_ADDRESS = re.compile(r"( at)? 0x[0-9a-f]+")
_OPEN: ContextVar[frozenset[int]] = ContextVar("functions being described", default=frozenset())
_FULL: ContextVar[dict[int, tuple[Any, str]] | None] = ContextVar("what code counts, as described", default=None)
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_DATA = (bool, int, float, complex, str, bytes, tuple)
_SETTINGS = (float, complex, str, bytes)


def function(value: Callable, describe: Callable[[Any], str]) -> str:
    r"""What a function is printed as: its "module:name", and in a second string what else fixes it, if anything does.

    Args:
        value: a function, method, partial or another object that is called.
        describe: the printed form of anything it may hold.

    Example:
        >>> from ntrk_jax.tree import describe
        >>> describe(len), describe(functools.partial(max, 1.0))
        ("function('builtins:len')", 'function(\'functools:partial\', "function(\'builtins:max\'), 1.0")')
    """
    name = f"{getattr(value, '__module__', '?')}:{getattr(value, '__qualname__', type(value).__qualname__)}"
    if id(value) in _OPEN.get() or (_leads_to(name, value) and not _counts(value)):
        return f"function({name!r})"
    seen = _FULL.get()
    if seen is not None and id(value) in seen:
        return seen[id(value)][1]
    with _opened(value):
        more = _more(value, name, lambda held: _held(held, describe))
    more = more if len(more) <= _MAX_PRINTED else _digest(more)
    text = f"function({name!r}, {more!r})" if more else f"function({name!r})"
    if seen is not None:
        seen[id(value)] = value, text  # held, so that no other object takes its place
    return text


def code_of(cls: type, describe: Callable[[Any], str]) -> str:
    """The digest of the methods of a class in work, within `in_full`; else nothing."""
    return f" of {function(cls, describe)}" if _counts(cls) else ""


def record(value: Any, describe: Callable[[Any], str]) -> str:
    """The printed form of a dataclass that is not a pytree of this package, such as a linen module: field by field."""
    cls = type(value)
    name = function(cls, describe) if "<" in cls.__qualname__ else f"{cls.__module__}.{cls.__qualname__}"
    if id(value) in _OPEN.get():
        return name
    with _opened(value):
        fields = [f.name for f in dataclasses.fields(value) if f.repr]
        body = ", ".join(f"{n}={_held(getattr(value, n, None), describe)}" for n in fields)
        return f"{name}({body}){code_of(cls, describe)}"


@contextmanager
def in_full() -> Iterator[None]:
    """Within it, functions of modules that are not installed are named by their code and what it reads as well."""
    token = _FULL.set({})
    try:
        yield
    finally:
        _FULL.reset(token)


def _counts(value: Any) -> bool:
    """Whether the code counts, as of a script, a notebook or a package that is neither installed nor this one."""
    if _FULL.get() is None:
        return False
    name = getattr(value, "__module__", None)
    file = getattr(sys.modules.get(name or ""), "__file__", None)
    if name is None or name in sys.builtin_module_names or name.split(".")[0] == "ntrk_jax":
        return False
    return name == "__main__" or (file is not None and not file.startswith(_INSTALLED))


@contextmanager
def _opened(value: Any) -> Iterator[None]:
    """While a function is described, one that it holds and that holds it is named alone."""
    token = _OPEN.set(_OPEN.get() | {id(value)})
    try:
        yield
    finally:
        _OPEN.reset(token)


def _leads_to(name: str, value: Any) -> bool:
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found is value


def _more(value: Any, name: str, held: Callable[[Any], str]) -> str:
    """What the name does not say, or nothing."""
    if isinstance(value, functools.partial):
        named = [f"{k}={held(v)}" for k, v in value.keywords.items()]
        return ", ".join([held(value.func), *map(held, value.args), *named])
    owner = getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, types.ModuleType):
        own = getattr(value, "__func__", None)
        return f"of {held(owner)}" + (f" {_digest(_code(own.__code__))}" if own is not None and _counts(own) else "")
    inner = value if hasattr(value, "__code__") else inspect.unwrap(value)  # jax.jit has no code of its own
    if isinstance(inner, types.FunctionType):
        if inner is not value and _leads_to(name, inner) and not _counts(inner):
            return ""
        read = _read(inner, held) if _counts(inner) else ()
        defaults = held((inner.__defaults__, inner.__kwdefaults__))
        return _digest(_code(inner.__code__), defaults, *_cells(inner, held), *read)
    if isinstance(value, type):
        return _digest(*(held(v) for _, v in sorted(vars(value).items()) if isinstance(v, types.FunctionType)))
    open_class = "<" in type(value).__qualname__ or _counts(type(value))
    local = [held(type(value))] if open_class else []
    by_value = type(value).__eq__ is not object.__eq__
    held_by = getattr(value, "__dict__", {}) if by_value or _FULL.get() is not None else {}
    own = {k: v for k, v in held_by.items() if k == "__name__" or not k.startswith("_")}
    own = own if by_value else {k: v for k, v in own.items() if isinstance(v, _SETTINGS) or _is_array(v)}
    return ", ".join([*local, *(f"{k}={held(v)}" for k, v in own.items())])


def _cells(value: types.FunctionType, held: Callable[[Any], str]) -> Iterator[str]:
    for cell in value.__closure__ or ():
        try:
            yield held(cell.cell_contents)
        except ValueError:  # not filled yet
            yield "empty"


def _read(value: types.FunctionType, held: Callable[[Any], str]) -> Iterator[str]:
    """The data and the functions of its module that a function names."""
    for name in sorted(_names(value.__code__)):
        found = value.__globals__.get(name)
        if (
            _is_array(found)
            or isinstance(found, _DATA)
            or (callable(found) and (not isinstance(found, type) or _counts(found)))
        ):
            yield f"{name}={held(found)}"


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, type)


def _names(code: types.CodeType) -> set[str]:
    """The names of the module that code reads, and does not itself set, as a counter of calls would."""
    steps = list(dis.get_instructions(code))
    read, written = ({step.argval for step in steps if step.opname == f"{word}_GLOBAL"} for word in ("LOAD", "STORE"))
    inner = [_names(part) for part in code.co_consts if isinstance(part, types.CodeType)]
    return (read - written).union(*inner)


def _code(code: Any) -> str:
    """A constant of a compiled function, or all of its code, in words without addresses or places in a file."""
    if isinstance(code, types.CodeType):
        return f"{code.co_code.hex()} {code.co_names} {_code(code.co_consts)}"
    if isinstance(code, (tuple, frozenset)):
        parts = [_code(part) for part in code]
        return f"({', '.join(parts if isinstance(code, tuple) else sorted(parts))})"
    return repr(code)


def _held(value: Any, describe: Callable[[Any], str]) -> str:
    """The printed form of something held, without addresses; its type where it has none."""
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(_held(v, describe) for v in value))}}}"
    if isinstance(value, types.ModuleType):
        return value.__name__
    if type(value).__repr__ is object.__repr__:
        return function(value, describe)
    try:
        return _ADDRESS.sub("", describe(value))
    except Exception:
        return type(value).__qualname__


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
