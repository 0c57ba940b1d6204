"""Read a printed sampler back: `loads(repr(sampler)) == sampler`, without executing any code.

The printed form is a Python expression of public constructors and literals. It is parsed, never evaluated:
only classes decorated with `ntrk_jax.tree.pytree` are built, and arrays are made from the numbers printed. Arrays too
large to print appear by digest, and functions by name; both are handed in by the reader.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.tree import REGISTRY, digest, is_key

__all__ = ["loads"]


def loads(text: str, *, arrays: Iterable[Any] = (), functions: Mapping[str, Callable] | None = None) -> Any:
    """The object that `text` prints.

    Args:
        text: what `repr` of a configured object printed.
        arrays: candidates for arrays that were printed by digest, for instance `jax.tree.leaves(sampler)`.
        functions: candidates for functions, by the printed name "module:name".

    Raises:
        ValueError: if the text is no such expression, names an unknown class, or needs an array or function that
            was not handed in.

    Example:
        >>> import ntrk_jax as nk
        >>> nk.config.loads("guidance.Window(rule=guidance.DPS(strength=0.5), low=0.2)").rule.strength
        0.5
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        raise ValueError(
            f"not the printed form of a configured object: {error.msg} at column {error.offset}."
        ) from None
    by_digest = {digest(a): a for a in arrays if isinstance(a, (np.ndarray, jax.Array)) and not is_key(a)}
    return _Reader(by_digest, dict(functions or {})).read(tree.body)


class _Reader:
    """Builds objects from the nodes of a parsed expression."""

    def __init__(self, arrays: dict[str, Any], functions: dict[str, Callable]) -> None:
        self.arrays, self.functions = arrays, functions

    def read(self, node: ast.expr) -> Any:
        """The value of one node."""
        if isinstance(node, ast.Call):
            return self._call(_dotted(node.func), node)
        if isinstance(node, ast.Tuple):
            return tuple(self.read(item) for item in node.elts)
        if isinstance(node, ast.List):
            return [self.read(item) for item in node.elts]
        if isinstance(node, ast.Dict):
            return {self.read(k): self.read(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
        if isinstance(node, ast.Name) and node.id in ("inf", "nan"):
            return float(node.id)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self.read(node.operand)
        try:
            return ast.literal_eval(node)
        except ValueError:
            raise ValueError(f"cannot read {ast.unparse(node)!r}; only constructors and literals are read.") from None

    def _call(self, name: str, node: ast.Call) -> Any:
        args = [self.read(a) for a in node.args]
        kwargs = {k.arg: self.read(k.value) for k in node.keywords if k.arg is not None}
        special: dict[str, Callable] = {
            "array": self._array, "array_by_digest": self._large, "function": self._function, "key": self._key
        }  # fmt: skip
        build = special.get(name) or REGISTRY.get(name)
        if build is None:
            raise ValueError(f"unknown class {name!r}; known are {', '.join(sorted(REGISTRY))}.")
        try:
            return build(*args, **kwargs)
        except TypeError as error:
            raise ValueError(f"{name} cannot be built: {error}.") from None

    def _array(self, values: Any, dtype: str) -> Any:
        array = np.asarray(values, jnp.dtype(dtype))
        kept = jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype
        return jnp.asarray(array) if kept else array  # a double stays one on the host where JAX holds singles

    def _large(self, shape: tuple, dtype: str, name: str) -> Any:
        if name not in self.arrays:
            raise ValueError(f"the array {dtype}{list(shape)} with digest {name} was not handed in; pass arrays=[...].")
        return self.arrays[name]

    def _function(self, name: str, more: str = "") -> Callable:  # the name alone chooses among those handed in
        if name not in self.functions:
            raise ValueError(f"the function {name!r} was not handed in; pass functions={{{name!r}: ...}}.")
        return self.functions[name]

    def _key(self, data: list) -> jax.Array:
        return jax.random.wrap_key_data(jnp.asarray(np.asarray(data, np.uint32)))


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    raise ValueError(f"cannot read {ast.unparse(node)!r}; only constructors and literals are read.")
