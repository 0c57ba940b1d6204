"""Names of functions: "module:name", and what such a name leaves open.

Where a function was defined does not always fix what it computes. A method has an object, a partial its arguments; a
lambda, or any function that its name does not lead back to, is named by its code, its defaults and what it closes over,
as twelve digits that are the same in every process that reads the same source. Of an object that is called the
attributes count if it compares by value; one that does not may count its calls, say, and stays the same reward. Values
of globals are not looked at, nor attributes whose name begins with an underscore.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["function", "record"]

_MAX_PRINTED = 400
_ADDRESS = re.compile(r"( at)? 0x[0-9a-f]+")
_OPEN: ContextVar[frozenset[int]] = ContextVar("functions being described", default=frozenset())


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
    if id(value) in _OPEN.get() or _leads_to(name, value):
        return f"function({name!r})"
    with _opened(value):
        more = _more(value, name, lambda held: _held(held, describe))
    more = more if len(more) <= _MAX_PRINTED else _digest(more)
    return f"function({name!r}, {more!r})" if more else f"function({name!r})"


def record(value: Any, describe: Callable[[Any], str]) -> str:
    """The printed form of a dataclass that is not a pytree of this package, such as a linen module: field by field."""
    cls = type(value)
    name = function(cls, describe) if "<" in cls.__qualname__ else f"{cls.__module__}.{cls.__qualname__}"
    if id(value) in _OPEN.get():
        return name
    with _opened(value):
        fields = [f.name for f in dataclasses.fields(value) if f.repr]
        return f"{name}({', '.join(f'{n}={_held(getattr(value, n, None), describe)}' for n in fields)})"


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
        return f"of {held(owner)}"
    inner = value if hasattr(value, "__code__") else inspect.unwrap(value)  # jax.jit has no code of its own
    if isinstance(inner, types.FunctionType):
        if inner is not value and _leads_to(name, inner):
            return ""
        return _digest(_code(inner.__code__), held((inner.__defaults__, inner.__kwdefaults__)), *_cells(inner, held))
    if isinstance(value, type):
        return _digest(*(held(v) for _, v in sorted(vars(value).items()) if isinstance(v, types.FunctionType)))
    local = [held(type(value))] if "<" in type(value).__qualname__ else []
    by_value = type(value).__eq__ is not object.__eq__
    held_by = getattr(value, "__dict__", {}) if by_value else {}
    own = {k: v for k, v in held_by.items() if k == "__name__" or not k.startswith("_")}
    return ", ".join([*local, *(f"{k}={held(v)}" for k, v in own.items())])


def _cells(value: types.FunctionType, held: Callable[[Any], str]) -> Iterator[str]:
    for cell in value.__closure__ or ():
        try:
            yield held(cell.cell_contents)
        except ValueError:  # not filled yet
            yield "empty"


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
