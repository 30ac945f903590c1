"""Lists the arrays of a result in the header of its file, and takes them back out of what was read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from lla_jax.core import files
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, show_value
from lla_jax.core.types import PyTree

Header = dict[str, Any]
Arrays = dict[str, np.ndarray]


class Form(NamedTuple):
    """How results of one type are kept in files.

    Args:
      parts: makes (header, arrays) of a result.
      build: makes the result of these, and removes from the arrays what it takes.
      contradiction: how the parts of a result contradict each other, or ""; saving and loading both refuse such a one.
    """

    parts: Callable[[Any], tuple[Header, Arrays]]
    build: Callable[[Header, Arrays], Any]
    contradiction: Callable[[Any], str]


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by path."""
    names, leaves = _tree.paths(tree), jax.tree.leaves(tree)
    if len(set(names)) < len(names):
        raise Misuse("x", f"two of its leaves have the same path among {names}; rename one of their keys")
    return dict(zip(names, leaves, strict=True))


def list_arrays(named: Mapping[str, Any] | None, prefix: str) -> tuple[list[list[str]] | None, Arrays]:
    """(names with their dtypes for the header, {"{prefix}0", "{prefix}1", ...: array}); (None, {}) for None."""
    if named is None:
        return None, {}
    arrays = [np.asarray(array) for array in named.values()]
    names = [[name, array.dtype.name] for name, array in zip(named, arrays, strict=True)]
    return names, {f"{prefix}{i}": array for i, array in enumerate(arrays)}


def take_arrays(names: list[list[str]] | None, arrays: Arrays, prefix: str) -> dict[str, np.ndarray] | None:
    """The arrays of a list that ``list_arrays`` made, by name; removes them from ``arrays``. None for None."""
    if names is None:
        return None
    return {name: files.restore_dtype(arrays.pop(f"{prefix}{i}"), dtype) for i, (name, dtype) in enumerate(names)}


def check_names(names: Any) -> list[str]:
    """The names of values in a header, after a check."""
    if not isinstance(names, list) or len(set(names)) < len(names):
        raise ValueError(f"its values are named {show_value(names)}")
    return names


def nest(leaves: Mapping[str, np.ndarray]) -> PyTree:
    """A flat dict {path: leaf} as nested dicts."""
    if list(leaves) == [""]:  # the tree is a single array
        return leaves[""]
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
            if not isinstance(node, dict):
                raise Misuse(
                    "like", f"None given, but the path {path!r} passes through another leaf; pass the parameters"
                )
        node[name] = leaf
    return tree


def are_real(*arrays: Any) -> bool:
    """Whether all arrays hold real numbers."""
    return all(np.asarray(array).dtype.kind in "biuf" for array in arrays)
