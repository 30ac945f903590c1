"""Trees of arrays on the host: stacked, taken apart, compared, and checked against each other. Nothing is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse
from lla_jax.core.types import PyTree


def to_host(tree: PyTree) -> PyTree:
    """The tree with its arrays as numpy's; keys of ``jax.random`` stay as they are."""
    return jax.tree.map(lambda x: x if is_key(x) else np.asarray(x), tree)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of ``jax.random`` keys, whose numbers numpy cannot hold."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def has_floats(state: PyTree) -> bool:
    """Whether a state has floating leaves, as the running averages of BatchNorm are: it belongs to one network then."""
    return any(jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in jax.tree.leaves(state))


def shapes_of(tree: PyTree) -> PyTree:
    """The tree with the shape and type of each leaf in its place."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype if hasattr(x, "dtype") else float), tree)


def size_of(tree: PyTree) -> int:
    """The number of entries of all leaves, which may be arrays or shapes."""
    return sum(int(np.prod(np.shape(x))) for x in jax.tree.leaves(tree))


def bytes_of(tree: PyTree) -> int:
    """The bytes of all leaves, which may be arrays or shapes, in the types that jax gives them."""
    each = (_tree.shape_dtype(x) for x in jax.tree.leaves(tree))
    return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in each)


def stack(trees: Sequence[PyTree]) -> PyTree:
    """K trees of one structure, stacked along a new leading axis of every leaf."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *trees)


def unstack(stacked: PyTree) -> list[PyTree]:
    """The K trees of a stacked one; their leaves are views."""
    num = len(jax.tree.leaves(stacked)[0])
    return [jax.tree.map(lambda x, k=k: x[k], stacked) for k in range(num)]


def are_equal(one: PyTree, other: PyTree) -> bool:
    """Whether two trees with as many leaves have the same entries."""
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


def distance(one: PyTree, other: PyTree) -> float:
    """|other - one| in float64, of trees of one structure."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    squares = (np.sum(np.square(np.asarray(y, np.float64) - np.asarray(x, np.float64))) for x, y in pairs)
    return float(np.sqrt(sum(squares)))


def align_exactly(tree: PyTree, like: PyTree, name: str, like_name: str) -> PyTree:
    """Parameters in the structure of others, after a check that they are real, finite, and of the same types.

    Args:
      tree: the parameters.
      like: the others.
      name, like_name: their names in errors.

    Raises:
      ValueError: another structure, other shapes or types, or entries that are not finite.
    """
    _tree.check_real(tree, name)
    tree = _tree.align(tree, like, name, like_name)
    for path, leaf, own in zip(_tree.paths(like), jax.tree.leaves(tree), jax.tree.leaves(like), strict=True):
        (_, found), (_, expected) = _tree.shape_dtype(leaf), _tree.shape_dtype(own)
        if found != expected:
            raise Misuse(name, f"[{path!r}] has dtype {found}, and in {like_name} it is {expected}; convert one")
    return tree


def check_finite(state: PyTree, name: str, remedy: str = "") -> None:
    """Raise an error if a floating leaf of a state has entries that are not finite.

    Args:
      state: the state.
      name: in the error.
      remedy: what to do, in words.

    Raises:
      ValueError: it has some; the leaf is named.
    """
    for path, leaf in zip(_tree.paths(state), jax.tree.leaves(state), strict=True):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and not np.isfinite(np.asarray(leaf)).all():
            rule = "all must be finite" + (f": {remedy}" if remedy else "")
            raise Misuse(name, f"[{path!r}] has NaN or infinite entries; {rule}")
