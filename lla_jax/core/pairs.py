"""Finds losses of whole batches in which outputs (N, 1) meet labels (N,), so that every pair of examples counts.

The result of such a loss is a scalar, so that only its jaxpr shows it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from lla_jax.core import jaxprs
from lla_jax.core.data import num_examples
from lla_jax.core.rows import Model, like, takes, trace
from lla_jax.core.types import Batch


class _Seen(NamedTuple):
    """What is known of a value in a jaxpr whose axes of length N are axes of examples.

    Args:
      of_params: whether it depends on the parameters.
      of_data: whether it depends on the data.
      column: whether its axis of examples has a last axis of length 1 that the user put in, as by ``labels[:, None]``.
      axis: of a value (.., N, .., N, ..) that repeats one with a single axis of examples: the axis that is no copy.
    """

    of_params: bool = False
    of_data: bool = False
    column: bool = False
    axis: int | None = None


def find_pairs(model: Model, data: Batch) -> str:
    """The warning of a loss in which outputs (N, 1) meet labels (N,), so that every pair of examples has a number.

    The result of a batch-coupled loss is a scalar, so that only the jaxpr shows it: an operation whose result has two
    axes of examples, one from values of the parameters and one from data alone. Columns that the user made, and
    products of matrices, are taken as meant.
    """
    size = odd_length(model, data)
    if not size:
        return ""
    traced = trace(model, data, size)
    loss, params = (len(jax.tree.leaves(tree)) for tree in (model.loss, model.params))
    found: list[str] = []

    def see(eqn: Any, values: list[Any]) -> list[_Seen]:
        known = [v if isinstance(v, _Seen) else _Seen() for v in values]
        shapes = [tuple(getattr(v.aval, "shape", ())) for v in eqn.invars]
        name, results = eqn.primitive.name, []
        for shape in (v.aval.shape for v in eqn.outvars):
            axis, pairs = None, [i for i, n in enumerate(shape) if n == size]
            if len(pairs) == 2 and name == "broadcast_in_dim":
                axis = _kept_axis(eqn, shapes[0], size, known[0], pairs)
            elif len(pairs) == 2 and name != "dot_general" and _meet(known, shapes, shape, pairs, size):
                found.append(name)
            of = any(v.of_params for v in known), any(v.of_data for v in known)
            results.append(_Seen(*of, _is_column(name, known, shapes, shape, size), axis))
        return results

    inputs = [_Seen(loss <= i < loss + params, i >= loss + params) for i in range(len(traced.jaxpr.jaxpr.invars))]
    jaxprs.interpret(traced.jaxpr, inputs, see)
    if not found:
        return ""
    return (
        f"loss: it combines (N, 1) with (N,), by {found[0]}, which gives (N, N) numbers for N examples. Give outputs "
        "and labels one shape, as by outputs[:, 0] or labels[:, None]; if all pairs are meant, put both axes in: "
        "outputs[:, 0][:, None] and labels[None, :]"
    )


def odd_length(model: Model, data: Batch) -> int:
    """A number of rows that the model takes and that is the length of no other axis; 0 if there is none."""
    others = {n for x in jax.tree.leaves((model.params, model.loss.state, like(data, 1))) for n in np.shape(x)}
    lengths = [next(n for n in range(11, 10**6) if n not in others), num_examples(data)]
    for size in lengths:
        if size in others or size < 2 or not takes(model, data, size):
            continue
        consts = {n for c in trace(model, data, size).jaxpr.consts for n in np.shape(c)}
        if size not in consts:
            return size
    return 0


def _kept_axis(eqn: Any, shape: tuple[int, ...], size: int, value: _Seen, pairs: list[int]) -> int | None:
    """The axis of examples of a value that is repeated along another one."""
    if shape.count(size) != 1:
        return value.axis
    return int(eqn.params["broadcast_dimensions"][shape.index(size)])


def _meet(
    known: list[_Seen], shapes: list[tuple[int, ...]], shape: tuple[int, ...], pairs: list[int], size: int
) -> bool:
    """Whether a value of the parameters and one of the data alone, each with its own axis of examples, are combined."""
    along: dict[int, list[_Seen]] = {}
    for value, own in zip(known, shapes, strict=True):
        axes = [i for i in pairs if len(own) == len(shape) and own[i] == size]
        axis = axes[0] if len(axes) == 1 else value.axis if len(axes) == 2 else None
        if axis is not None:
            along.setdefault(axis, []).append(value)
    if len(along) != 2:
        return False
    columns, rows = along[pairs[0]], along[pairs[1]]
    of_params = [any(v.of_params for v in each) for each in (columns, rows)]
    of_data = all(any(v.of_data for v in each) for each in (columns, rows))
    return of_data and of_params[0] != of_params[1] and not any(v.column for v in columns)


def _is_column(name: str, known: list[_Seen], shapes: list[tuple[int, ...]], shape: tuple[int, ...], size: int) -> bool:
    """Whether a value is (N, 1) by the user's will: made of (N,), or of such columns alone."""
    if name in ("broadcast_in_dim", "reshape") and shapes[0] == (size,) and shape == (size, 1):
        return known[0].of_params or known[0].of_data
    having = [v.column for v, own in zip(known, shapes, strict=True) if size in own]
    return bool(having) and all(having)
