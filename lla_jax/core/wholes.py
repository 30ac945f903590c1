"""Holds data that are one example and stay whole: sets of points, a graph, a list of boxes, or no data at all.

Their arrays share no leading axis, so they are neither cut, padded nor put in another order. A block that holds them
has one row: inside of the library their arrays, the outputs and the losses get a leading axis of length 1, and so all
that is computed of examples is computed of them too. The user's functions see neither this axis nor a wrapper.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core.arguments import Misuse
from lla_jax.core.identities import identity
from lla_jax.core.signatures import explained
from lla_jax.core.types import Batch, PyTree

FIXED = bool | int | float | complex | str | bytes | enum.Enum | np.dtype
"""Types of the leaves that are no arrays: they are kept as they are, and a program is compiled for each value."""


class Fixed(NamedTuple):
    """A leaf that is no array."""

    number: int
    identity: Hashable  # by which it compares: 0.0 and -0.0 are equal, and make different programs
    value: Any


class Form(NamedTuple):
    """What of the user's data is no array: their structure, and the leaves that are fixed; it compares by value."""

    structure: Any
    names: tuple[str, ...]  # of the arrays
    fixed: tuple[Fixed, ...]


@explained
@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False, repr=False)
class Whole:
    """One example that stays whole, as ``lla.whole`` makes it: a pytree of the arrays in the user's data.

    Args:
      arrays: the arrays, in the order of the leaves.
      form: the rest of the data.
    """

    arrays: tuple[Any, ...]
    form: Form

    @property
    def data(self) -> PyTree:
        """The data as the user gave them, with the present arrays."""
        arrays, fixed = iter(self.arrays), {each.number: each.value for each in self.form.fixed}
        count = len(self.arrays) + len(fixed)
        leaves = [fixed[i] if i in fixed else next(arrays) for i in range(count)]
        return jax.tree.unflatten(self.form.structure, leaves)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{n or 'array'} {np.shape(x)}" for n, x in zip(self.form.names, self.arrays, strict=True))
        return f"Whole({shapes or 'no arrays'})"

    def tree_flatten_with_keys(self) -> tuple[Any, Form]:
        """The arrays with their names, and the rest, as jax asks for them."""
        keys = map(jax.tree_util.GetAttrKey, self.form.names)
        return tuple(zip(keys, self.arrays, strict=True)), self.form

    @classmethod
    def tree_unflatten(cls, form: Form, arrays: Any) -> Whole:
        """The data of this form with other arrays."""
        return cls(tuple(arrays), form)


def pack(data: PyTree) -> Whole:
    """Take the data apart into arrays and their form.

    Raises:
      ValueError: a leaf is neither an array nor a number, a string or the like.
    """
    leaves, structure = jax.tree.flatten(data)
    names = [jax.tree_util.keystr(keys, simple=True, separator="/") for keys, _ in jax.tree.leaves_with_path(data)]
    arrays: list[tuple[str, Any]] = []
    fixed: list[Fixed] = []
    for number, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
        if isinstance(leaf, FIXED) and not isinstance(leaf, np.generic):
            fixed.append(Fixed(number, identity(leaf), leaf))
        elif hasattr(leaf, "shape") and (hasattr(leaf, "__array__") or isinstance(leaf, jax.ShapeDtypeStruct)):
            arrays.append((name, leaf))
        else:
            raise Misuse(
                "data",
                f"{f'leaf {name!r}' if name else 'it'} is a {type(leaf).__name__}, neither an array nor a number; give "
                'its arrays in a dict or tuple, such as lla.whole({"x": graph.x, "edge_index": graph.edge_index}), a '
                "sparse matrix as jax.experimental.sparse.BCOO, and let the loss hold the rest",
            )
    return Whole(tuple(x for _, x in arrays), Form(structure, tuple(name for name, _ in arrays), tuple(fixed)))


def is_array(value: Any) -> bool:
    """Whether a value that a user's function returned is one array or number, perhaps one of another library."""
    return (
        isinstance(value, bool | int | float | complex) or hasattr(value, "__array__") or isinstance(value, jax.Array)
    )


def with_axis(tree: PyTree) -> PyTree:
    """The tree with a leading axis of length 1 on every leaf (an array or its shape): the batch of one example."""

    def add(x: Any) -> Any:
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct((1, *x.shape), x.dtype)
        return jnp.asarray(x)[None]

    return jax.tree.map(add, tree)


def without_axis(tree: PyTree) -> PyTree:
    """The one example of a batch, without the leading axis."""
    return jax.tree.map(lambda x: x[0], tree)


def example_of(batch: Batch) -> Any:
    """A batch as the user's functions get it: of a block of a ``Whole``, the user's data."""
    return without_axis(batch).data if isinstance(batch, Whole) else batch


def call_on_whole(f: Callable[[Any, Any], Any], outputs: Any, batch: Whole) -> Any:
    """The result of a criterion or metric for a ``Whole``, ``f(outputs, batch)``, as one row; see ``called.call``."""
    result = f(without_axis(outputs), example_of(batch))
    row = lambda x: jnp.asarray(x)[None] if is_array(x) or isinstance(x, list) else x  # noqa: E731
    return tuple(map(row, result)) if isinstance(result, tuple) else row(result)
