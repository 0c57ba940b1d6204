"""Frozen dataclasses that are JAX pytrees, print themselves and compare by value.

Everything a user configures is such an object: its dynamic fields are leaves, so changing a strength compiles nothing
new, and a field that no `derived()` one is computed from may be swept with `jax.vmap`; its printed form is the record
of a run and can be read back with `ntrk_jax.config.loads`.

Three kinds of field:

- an ordinary field is a leaf (or a nested pytree): numbers, arrays, other objects;
- `static()` is part of the compiled program: strings, booleans, shapes, functions;
- `derived()` is a leaf computed from the others (tables); it is neither printed nor compared. The tables hold the
  numbers that are used: to sweep or differentiate a field behind them, build the object, or `replace` the field, inside
  the function that `jax.vmap` or `jax.grad` takes.

JAX rebuilds objects with tracers or placeholders as leaves. The rebuilding here skips `__init__` and
`__post_init__`, so a check in `__post_init__` runs when a person constructs the object and never later;
it must still skip what is not `is_concrete`, because people construct objects inside `jax.jit` too.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ntrk_jax import naming

__all__ = [
    "Function",
    "as_float",
    "derived",
    "describe",
    "digest",
    "is_concrete",
    "is_key",
    "pytree",
    "replace",
    "same",
    "static",
    "through",
]

T = TypeVar("T")

REGISTRY: dict[str, type] = {}
"""Printed name -> class, for every class decorated with `pytree`; what `config.loads` may build."""

_FLAT_MODULES = ("core", "look", "samplers", "run", "tree")
_MAX_PRINTED = 64


def static(*args: Any, **kwargs: Any) -> Any:
    """A dataclass field that is part of the compiled program and not a leaf: `static()` or `static(default)`."""
    return dataclasses.field(**dict(zip(("default",), args, strict=False)), metadata={"static": True}, **kwargs)


def derived(default: Any = None, *, init: Literal[False] = False) -> Any:
    """A leaf computed from the other fields: flattened, but neither printed, compared nor an argument."""
    return dataclasses.field(default=default, init=init, repr=False, metadata={"derived": True})


def is_concrete(value: Any) -> bool:
    """Whether `value` is a number or array whose entries can be read now (no tracer, no placeholder)."""
    if isinstance(value, Tracer):
        return False
    return isinstance(value, (bool, int, float, np.ndarray, np.generic, jax.Array))


def digest(array: Any) -> str:
    """Twelve hexadecimal digits that name the contents of an array."""
    data = np.ascontiguousarray(np.asarray(array))
    return hashlib.sha256(data.tobytes() + str((data.shape, data.dtype.name)).encode()).hexdigest()[:12]


def is_key(value: Any) -> bool:
    """Whether `value` is a typed key, or an array of them; tracers are told too."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _public_name(cls: type) -> str:
    """The name it is printed by: its public path here; elsewhere its own name, unless that is one of ours."""
    parts = cls.__module__.split(".")
    if parts[0] != "ntrk_jax":
        ours = cls.__name__ in REGISTRY and REGISTRY[cls.__name__].__module__.startswith("ntrk_jax.")
        return f"{cls.__module__}.{cls.__name__}" if ours else cls.__name__
    if len(parts) < 2 or parts[1] in _FLAT_MODULES:
        return cls.__name__
    return f"{parts[1]}.{cls.__name__}"


def describe(value: Any) -> str:
    """The printed form of a field: numbers exactly, small arrays in full, large ones by digest."""
    if isinstance(value, Tracer):
        return f"<traced {value.aval.str_short()}>"
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        if is_key(value):
            return f"key({np.asarray(jax.random.key_data(jnp.asarray(value))).tolist()})"
        data = np.asarray(value)
        if data.size <= _MAX_PRINTED:
            return f"array({data.tolist()}, {data.dtype.name!r})"
        return f"array_by_digest({tuple(data.shape)}, {data.dtype.name!r}, {digest(data)!r})"
    if isinstance(value, Mapping):  # flax.core.FrozenDict among them
        return "{" + ", ".join(f"{k!r}: {describe(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        body = ", ".join(f"{k}={describe(v)}" for k, v in zip(getattr(value, "_fields", ()), value, strict=True))
        return f"{getattr(value, 'printed_as', type(value).__name__)}({body})"
    if isinstance(value, (tuple, list)):
        inner = ", ".join(describe(v) for v in value)
        if isinstance(value, list):
            return f"[{inner}]"
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, type) or (callable(value) and not isinstance(value, Function) and not _is_record(value)):
        return naming.function(value, describe)
    if _is_record(value) and type(value).__repr__ is not _repr:
        return naming.record(value, describe)
    return repr(value)


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _repr(self: Any) -> str:
    shown = [f for f in dataclasses.fields(self) if f.repr]
    body = ", ".join(f"{f.name}={describe(getattr(self, f.name))}" for f in shown)
    return f"{_public_name(type(self))}({body}){naming.code_of(type(self), describe)}"


def _equal(a: Any, b: Any) -> bool:
    if is_key(a) or is_key(b):
        same = is_key(a) and is_key(b) and a.dtype == b.dtype
        return same and _equal(jax.random.key_data(a), jax.random.key_data(b))
    if isinstance(a, (np.ndarray, jax.Array)) or isinstance(b, (np.ndarray, jax.Array)):
        return np.shape(a) == np.shape(b) and bool(np.array_equal(np.asarray(a), np.asarray(b)))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)) and type(a) is type(b):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


def through(part: Any, *names: str) -> Iterator[Any]:
    """A part, what it wraps under the first of the names that it has, what that wraps ..., outermost first."""
    while part is not None:
        yield part
        part = next((inner for name in names if (inner := getattr(part, name, None)) is not None), None)


def same(a: Any, b: Any) -> bool:
    """Whether two pytrees of arrays hold the same numbers; not where one is traced."""
    return all(map(is_concrete, jax.tree.leaves((a, b)))) and _equal(a, b)


def _eq(self: Any, other: Any) -> Any:
    if type(self) is not type(other):
        return NotImplemented
    compared = [f for f in dataclasses.fields(self) if f.repr]
    return all(_equal(getattr(self, f.name), getattr(other, f.name)) for f in compared)


@dataclass_transform(frozen_default=True, field_specifiers=(static, derived, dataclasses.field))
def pytree(cls: type[T]) -> type[T]:
    """Turn a class with annotated fields into a frozen, printable, comparable pytree.

    Example:
        >>> import jax
        >>> from ntrk_jax.tree import pytree, static
        >>> @pytree
        ... class Scale:
        ...     factor: float = 1.0
        ...     name: str = static(default="plain")
        >>> jax.tree.leaves(Scale(2.0)), Scale(2.0) == Scale(2.0)
        ([2.0], True)
    """
    cls.__repr__ = _repr  # type: ignore[method-assign]
    cls.__eq__ = _eq  # type: ignore[method-assign, assignment]
    cls.__hash__ = lambda self: hash(type(self))  # type: ignore[method-assign, assignment]
    _wrap_functions_first(cls)
    out = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    names: dict[bool, list[str]] = {True: [], False: []}
    for field in dataclasses.fields(out):  # type: ignore[arg-type]
        names[bool(field.metadata.get("static"))].append(field.name)
    _register(out, tuple(names[False]), tuple(names[True]))
    REGISTRY[_public_name(out)] = out
    return out


def _wrap_functions_first(cls: type) -> None:
    """Before `__post_init__`: a plain function given where a leaf is expected becomes a `Function`, in a tuple
    or a list of members too.

    And a whole or a NumPy number becomes a float where the default is one, or there is none and a Scalar is meant,
    since another type is another program.
    """
    checks = cls.__dict__.get("__post_init__")

    def post_init(self: Any) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name, None)
            if value is None or field.metadata.get("static"):
                continue
            if type(value) in (tuple, list) and any(map(_is_plain_function, value)):
                wrapped = type(value)(Function(v) if _is_plain_function(v) else v for v in value)
                object.__setattr__(self, field.name, wrapped)
            elif _is_plain_function(value):
                object.__setattr__(self, field.name, Function(value))
            elif isinstance(field.default, float) or (field.default is dataclasses.MISSING and field.type == "Scalar"):
                object.__setattr__(self, field.name, as_float(value))
        if checks is not None:
            checks(self)

    cls.__post_init__ = post_init  # type: ignore[attr-defined]


def _is_plain_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, Function) and jax.tree_util.all_leaves([value])


def as_float(value: Any) -> Any:
    """A whole or a NumPy number as a float; anything else as it is."""
    plain = isinstance(value, int | np.integer | np.floating) and not isinstance(value, bool)
    return float(value) if plain else value


class Function:
    """A plain function as part of the compiled program; what a pytree makes of a function given as a field.

    Two wrapped functions are equal if they are the same function: another function compiles another program.
    """

    def __init__(self, fn: Callable) -> None:
        """Hold the function."""
        self.fn = fn

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        return self.fn(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the function, such as `num_calls` or `differentiable`."""
        if name == "fn":
            raise AttributeError(name)
        return getattr(self.fn, name)

    def __repr__(self) -> str:
        """The function's module and name."""
        return describe(self.fn)

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same function."""
        return isinstance(other, Function) and self.fn == other.fn

    def __hash__(self) -> int:
        """The function's hash."""
        return hash(self.fn)


jax.tree_util.register_pytree_node(Function, lambda f: ((), f.fn), lambda fn, _: Function(fn))


def _register(cls: type, leaves: tuple[str, ...], statics: tuple[str, ...]) -> None:
    """Register with JAX; rebuilding restores derived leaves as they were flattened."""

    def build(meta: tuple, children: Any) -> Any:
        self = object.__new__(cls)
        for name, value in zip(leaves, children, strict=True):
            object.__setattr__(self, name, value)
        for name, value in zip(statics, meta, strict=True):
            object.__setattr__(self, name, value)
        return self

    def parts(self: Any) -> tuple[list, tuple]:
        return [getattr(self, n) for n in leaves], tuple(getattr(self, n) for n in statics)

    def parts_with_keys(self: Any) -> tuple[list, tuple]:
        children, meta = parts(self)
        return [(jax.tree_util.GetAttrKey(n), c) for n, c in zip(leaves, children, strict=True)], meta

    jax.tree_util.register_pytree_with_keys(cls, parts_with_keys, build, parts)


replace: Callable[..., Any] = dataclasses.replace
"""A copy of an object with some fields changed; derived tables are rebuilt."""
