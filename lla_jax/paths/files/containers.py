"""Outlines: the containers of a tree of arrays as plain data, from which a file's arrays become a tree again.

Dicts, lists and tuples come back as they were. Other containers, such as ``nnx.State`` and Equinox modules, come back
as dicts of the same paths; where their own structure is wanted, a tree of it is given (``like=``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import tree_util

from lla_jax.core import tree as _tree
from lla_jax.core.files import restore_dtype
from lla_jax.core.types import PyTree
from lla_jax.paths.host_trees import is_key

Row = list[Any]
"""[path, type, shape] of a leaf."""

_KEYS = "key:"  # what the type of an array of random keys begins with
_VALUES = (tree_util.GetAttrKey("value"), tree_util.GetAttrKey("raw_value"))  # of nnx variables


def outline(tree: PyTree) -> Any:
    """The containers of a tree as plain data; a leaf is its number in leaf order.

    ``{"dict" | "list" | "tuple" | "node": [[key, inner outline], ...]}``, where a node is another container, and None
    is None.
    """
    numbers = iter(range(len(jax.tree.leaves(tree))))

    def describe(node: Any) -> Any:
        pairs = tree_util.tree_flatten_with_path(node, is_leaf=lambda inner: inner is not node)[0]
        if len(pairs) == 1 and not pairs[0][0]:
            return next(numbers)
        if node is None:
            return None
        if len(pairs) == 1 and pairs[0][0][-1] in _VALUES:
            return describe(pairs[0][1])
        kind = type(node).__name__ if type(node) in (dict, list, tuple) else "node"
        return {kind: [[_plain(keys[-1]), describe(inner)] for keys, inner in pairs]}

    return describe(tree)


def _plain(key: Any) -> str | int:
    """A key of a container as plain data: text, or an integer."""
    inner = getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))
    return inner if isinstance(inner, int) and not isinstance(inner, bool) else str(inner)


def rebuild(outlined: Any, leaves: Sequence[Any]) -> PyTree:
    """The tree of an outline, with these leaves in their order.

    Raises:
      Exception: of any type for an outline from a damaged file.
    """
    if outlined is None:
        return None
    if isinstance(outlined, int):
        return leaves[outlined]
    ((kind, entries),) = outlined.items()
    inner = {key: rebuild(each, leaves) for key, each in entries}
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(inner.values())
    return inner if kind == "dict" else {key: each for key, each in inner.items() if each is not None}


def rows(tree: PyTree) -> list[Row]:
    """[path, type, shape] of each leaf in leaf order, as plain data."""
    return [[path, _type_of(x), list(np.shape(x))] for path, x in zip(_tree.paths(tree), jax.tree.leaves(tree))]


def _type_of(leaf: Any) -> str:
    if is_key(leaf):
        return f"{_KEYS}{jax.random.key_impl(leaf)}"
    return str(leaf.dtype.name if hasattr(leaf, "dtype") else np.asarray(leaf).dtype.name)


def to_array(leaf: Any) -> np.ndarray:
    """A leaf as an array of numpy; of random keys their numbers."""
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def from_array(array: np.ndarray, row: Row) -> Any:
    """The leaf of a row, from an array of a file.

    Raises:
      Exception: of any type if the array is not the one that the row describes.
    """
    _, kind, shape = row
    if kind.startswith(_KEYS):
        leaf: Any = jax.random.wrap_key_data(jnp.asarray(restore_dtype(array, "uint32")), impl=kind.removeprefix(_KEYS))
    else:
        leaf = restore_dtype(array, kind)
    if list(leaf.shape) != shape:
        raise ValueError(f"the array of {row[0]!r} has shape {leaf.shape}, but {tuple(shape)} by the header")
    return leaf


def shape_of(row: Row) -> jax.ShapeDtypeStruct:
    """The shape and type of a row's leaf."""
    _, kind, shape = row
    dtype = jax.random.key(0, impl=kind.removeprefix(_KEYS)).dtype if kind.startswith(_KEYS) else jnp.dtype(kind)
    return jax.ShapeDtypeStruct(tuple(shape), dtype)


def describe(tree: PyTree) -> dict[str, Any] | None:
    """A tree as plain data, {"outline": ..., "leaves": rows}; None for a tree without leaves."""
    return {"outline": outline(tree), "leaves": rows(tree)} if jax.tree.leaves(tree) else None


def difference(then: Mapping[str, Any], now: Mapping[str, Any], name: str) -> str:
    """The first difference between two descriptions of trees in words; "" if they have the same leaves.

    Args:
      then: {name: description or None}, the earlier one.
      now: the later one.
      name: "params" or "state".
    """
    before, after = (each.get(name) for each in (then, now))
    if before is None or after is None:
        if before is after:
            return ""
        return "given now, and not then" if before is None else "given then, and not now"
    old, new = ({path: (kind, shape) for path, kind, shape in each["leaves"]} for each in (before, after))
    missing, extra = [path for path in old if path not in new], [path for path in new if path not in old]
    if missing or extra:
        return f"lacks {missing[:10]} and has {extra[:10]} besides"
    for path, (kind, shape) in new.items():
        if old[path] != (kind, shape):
            then_was = f"{old[path][0]} {tuple(old[path][1])}"
            return f"its leaf {path!r} is {kind} {tuple(shape)}, and was {then_was}"
    return ""
