"""Finds labels that are no class, which indexing turns into NaN, into another class, or into a loss of 0.

Integers of the data with the axes of the outputs, but for that of the classes, are taken for labels. Only where some of
them are no number of a class, the loss of these rows is compared with that of other labels: a loss that ignores them,
by a weight or a mask, is left alone.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import jaxprs
from lla_jax.core.apart import SHAKEN
from lla_jax.core.arguments import Misuse
from lla_jax.core.losses import Block
from lla_jax.core.remembering import remember
from lla_jax.core.rows import Model, Run, like, outputs_of_rows, take, trace
from lla_jax.core.types import Batch
from lla_jax.core.wholes import Whole

MOST_READ = 2**22  # entries of the labels that are looked at

INDEX, ONE_HOT = "index", "one-hot"
COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge"}
ELEMENTWISE = COMPARISONS | {
    *("reshape", "broadcast_in_dim", "squeeze", "expand_dims", "transpose", "rev", "convert_element_type", "copy"),
    *("concatenate", "slice", "add", "sub", "min", "max", "clamp", "select_n", "pad", "mul", "reduce_precision"),
}
"""Operations after which labels are still numbers of classes, and comparisons."""

_CLASSES: dict[Hashable, list[_Labels]] = {}  # of the models of this process
_FINE: dict[Hashable, bool] = {}  # labels outside of the classes that a model ignores


class _Labels(NamedTuple):
    """A leaf of the data that may hold labels: its number, its path, and the number of classes of the outputs."""

    leaf: int
    path: str
    classes: int


def check_labels(model: Model, data: Batch, size: int, key: Hashable) -> None:
    """Refuse labels outside of the classes 0, ..., C - 1 that count in the loss.

    Args:
      model: the loss, parameters and metrics.
      data: arrays with leading axis N.
      size: number of rows that the model takes.
      key: stands for the model and the shapes.

    Raises:
      ValueError: the loss of such a label is not finite, that of another class, or 0 for labels 1, ..., C.
    """
    leaves = [] if isinstance(data, Whole) else jax.tree.leaves(data)
    if not any(map(_may_be_labels, leaves)):
        return
    for found in remember(_CLASSES, key, lambda: _find(model, data, size)):
        low, high = _range(leaves[found.leaf])
        if low >= 0 and high < found.classes:
            continue
        known = (key, found.leaf, low, high)
        if known not in _FINE:
            wrong = _compare(model, data, size, found, low, high)
            if wrong:
                raise Misuse("data", _explain(found, low, high, wrong))
            remember(_FINE, known, lambda: True)


def _may_be_labels(x: Any) -> bool:
    held = not isinstance(x, jax.Array) or x.is_fully_addressable
    return held and jnp.issubdtype(x.dtype, jnp.integer) and 1 <= x.ndim <= 3


def _find(model: Model, data: Batch, size: int) -> list[_Labels]:
    """The leaves of the data that have the axes of an output, but for one axis of at least 2 classes."""
    mask, index = (jax.ShapeDtypeStruct((size,), kind) for kind in (np.bool_, np.int32))
    block = Block(like(data, size), mask, index)
    outputs = jax.tree.leaves(outputs_of_rows.eval_shape(model.loss, model.params, block, train=model.train))
    found = []
    for number, (path, x) in enumerate(jax.tree.leaves_with_path(block.batch)):
        if not jnp.issubdtype(x.dtype, jnp.integer):
            continue
        for out in outputs:
            axes = [i for i in (out.ndim - 1, 1) if out.ndim == x.ndim + 1 and i and _without(out.shape, i) == x.shape]
            if axes and out.shape[axes[0]] > 1 and jnp.issubdtype(out.dtype, jnp.floating):
                found.append(_Labels(number, f"data{jax.tree_util.keystr(path)}", out.shape[axes[0]]))
                break
    return found


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def _range(labels: Any) -> tuple[int, int]:
    """(smallest, largest) of the labels; of very many those of some rows."""
    step = -(-labels.size // MOST_READ)
    some = np.asarray(labels[::step] if step > 1 else labels)
    return int(some.min()), int(some.max())


def _compare(model: Model, data: Batch, size: int, found: _Labels, low: int, high: int) -> str:
    """The loss of labels outside of the classes in words, or an empty string if the loss ignores them."""
    leaves, structure = jax.tree.flatten(data)
    labels = np.asarray(leaves[found.leaf])
    outside = ((labels < 0) | (labels >= found.classes)).reshape(len(labels), -1).any(1)
    index = np.resize(np.flatnonzero(outside), size).astype(np.int32)
    rows, run = jax.tree.leaves(take(data, index)), Run(model, data, size)
    given = rows[found.leaf]
    bad = (given < 0) | (given >= found.classes)

    def losses(others: Any, shake: float) -> tuple[np.ndarray, np.ndarray]:
        new = [np.where(bad, others, given).astype(given.dtype) if i == found.leaf else x for i, x in enumerate(rows)]
        values, weights = run(jax.tree.unflatten(structure, new), index, shake)["loss"]
        values = np.asarray(values, np.float64)
        return values, np.ones(values.shape) if weights is None else np.broadcast_to(weights, values.shape)

    for shake in (0.0, SHAKEN):  # where all outputs are the same, as of a new network, every class has the same loss
        now, counts = losses(given, shake)
        first, second = losses(0, shake)[0], losses(1, shake)[0]
        counts = (counts != 0) & np.isfinite(first) & np.isfinite(second)
        if (counts & ~np.isfinite(now)).any():
            return "not finite"
        reads = counts & (first != second)
        if reads.any():
            break
    else:
        return ""
    wrapped = losses(np.where(given < 0, given % found.classes, found.classes - 1), shake)[0]
    if (now == wrapped)[reads].all() and INDEX in _uses(model, data, size, found):
        return f"that of class {found.classes - 1}, or another one from the end"
    zero = (low, high) == (1, found.classes) and (now[reads] == 0).all()
    return "0" if zero and ONE_HOT in _uses(model, data, size, found) else ""


def _uses(model: Model, data: Batch, size: int, found: _Labels) -> set[str]:
    """How a loss reads the labels: as an index, or made one-hot, and not by a comparison of its own, as ``y > 0``."""
    traced = trace(model, data, size)
    number = len(jax.tree.leaves((model.loss, model.params))) + found.leaf
    uses: set[str] = set()

    def rule(eqn: Any, values: list[Any]) -> list[bool]:
        name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape if eqn.outvars else ()
        raw = [value is True for value in values]
        if not any(raw):
            return [False] * len(eqn.outvars)
        if name not in ELEMENTWISE:  # a loop, or another operation that may index
            uses.update({INDEX} if name.endswith("gather") or "slice" in name else {INDEX, ONE_HOT})
        if name == "eq" and shape[-1:] != (1,) and found.classes in shape:
            uses.add(ONE_HOT)
        return [name in ELEMENTWISE - COMPARISONS and (name != "select_n" or any(raw[1:]))] * len(eqn.outvars)

    jaxprs.interpret(traced.jaxpr, [i == number for i in range(len(traced.jaxpr.jaxpr.invars))], rule)
    return uses


def _explain(found: _Labels, low: int, high: int, wrong: str) -> str:
    path, classes = found.path, found.classes
    way = f": pass {path} - 1" if (low, high) == (1, classes) else f", as by np.unique({path}, return_inverse=True)[1]"
    return (
        f"{path} holds labels from {low} to {high}, and the outputs have {classes} classes, 0 to {classes - 1}; for "
        f"labels outside the loss is {wrong}. Number the classes from 0{way}. Labels that do not count need the "
        "weight 0, by (losses, weights) from the criterion; classes are merged in the data"
    )
