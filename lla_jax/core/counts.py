"""Finds means over counted entries, such as tokens, in losses of whole batches, whose mean over batches goes wrong.

A scalar loss of a batch counts with the number of its examples. Where it is a mean over those entries that a mask lets
through, batches with many entries must count more, which no value of the loss shows. Its jaxpr does: there the sum of
the losses is divided by a sum that depends on the batch alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from lla_jax.core import data as _data
from lla_jax.core import jaxprs, losses
from lla_jax.core.arguments import warn_caller
from lla_jax.core.data import Stream
from lla_jax.core.types import Batch, Loss, PyTree

MOST_BATCHES = 3  # that are looked at
EQUAL = 1e-6  # relative difference of two counts that are equal
PASS = {"convert_element_type", "max", "min", "add", "add_any", "select_n", "reshape", "squeeze", "broadcast_in_dim"}
"""Primitives that make a guarded count of a count, as ``jnp.maximum(mask.sum(), 1)`` does."""
REMAT = {"remat2": "jaxpr"}  # as jax names it before differentiation
SUMS = {"reduce_sum", "dot_general"}


class _Value(NamedTuple):
    """A value of the jaxpr of a loss: whether it follows the parameters smoothly, and whether it is a count."""

    value: Any
    moves: bool = False
    counts: bool = False
    inverse: Any = None  # the count of which it is the inverse


def warn_of_counts(loss: Loss, params: PyTree, data: Batch | Stream, batch_size: int | None) -> None:
    """Warn where a loss of whole batches is a mean over entries of which the batches hold different numbers.

    Nothing is said of losses per example or with a weight, of data in one batch, and of losses that divide by other
    numbers than sums over the batch, as contrastive losses do. The first, a middle and the last batch are looked at,
    of a stream the first three.

    Args:
      loss: the loss.
      params: the parameters.
      data: a data set or a stream.
      batch_size: examples per batch of a data set; None for all.

    Warns:
      UserWarning: the counts per example differ between the batches.
    """
    if loss.per_example:
        return
    batches = list(_some_batches(data if isinstance(data, Stream) else _data.as_arrays(data), batch_size))
    if len(batches) < 2:
        return
    shapes = {tuple(x.shape[1:] for x in jax.tree.leaves(batch)) for batch in batches}
    of_values, of_shapes = [], []
    for batch in batches:
        counts, sizes = _counts(loss, params, batch)
        rows = _data.num_examples(batch)
        of_values.append([float(c) / rows for c in counts])
        of_shapes.append([float(n) / rows if len(shapes) > 1 else 0.0 for n in sizes])
    for each in (of_values, of_shapes):
        for ratios in zip(*each, strict=False):
            least, most = np.nanmin(ratios), np.nanmax(ratios)
            if most - least > EQUAL * max(abs(most), 1) and not _is_constant(ratios, batches):
                warn_caller(
                    "loss: it is a mean over the entries that count in a batch, and the batches hold different numbers "
                    f"of them ({least:.4g} to {most:.4g} per example in {len(batches)} batches), but each batch counts "
                    "by its examples, so that the result is not the mean over all entries. Return (mean, number of "
                    "entries) from the criterion of lla.Loss(..., per_example=False), (losses, weights) per example, "
                    "or (sum, weight) from a step for lla_torch.convert_loss"
                )
                return


def _is_constant(ratios: Any, batches: list[Batch]) -> bool:
    """Whether the numbers themselves are equal, as a factor is that depends on nothing."""
    numbers = [ratio * _data.num_examples(batch) for ratio, batch in zip(ratios, batches, strict=True)]
    return bool(np.ptp(numbers) <= EQUAL * max(np.abs(numbers)))


def _some_batches(data: Batch | Stream, batch_size: int | None) -> Iterator[Batch]:
    if isinstance(data, Stream):
        yield from itertools.islice(data, MOST_BATCHES)
        return
    cuts = _data.cuts(_data.num_examples(data), batch_size)
    for number in sorted({0, len(cuts) // 2, len(cuts) - 1}):
        yield _data.rows_of(data, *cuts[number])


@jax.jit
def _counts(loss: Loss, params: PyTree, batch: Batch) -> tuple[list[Any], list[Any]]:
    """(sums over the batch by which the loss is divided, numbers of its shape by which it is divided)."""

    def value(params: PyTree, batch: Batch) -> Any:
        rows = jax.tree.leaves(batch)[0].shape[0]
        block = losses.Block(batch, jnp.ones(rows, bool), jnp.arange(rows))
        result = loss.criterion(losses.outputs_of(loss, params, loss.state, block, False)[0], batch)
        return () if isinstance(result, tuple) else result  # it has a weight of its own

    closed = jax.make_jaxpr(value)(params, batch)
    needed, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
    closed = closed.replace(jaxpr=needed)
    counts: list[Any] = []
    sizes: list[Any] = []

    def rule(eqn: Any, values: list[Any]) -> list[_Value]:
        values = [v if isinstance(v, _Value) else _Value(v) for v in values]
        results = jaxprs.bind(eqn, [v.value for v in values])
        name, moves = eqn.primitive.name, any(v.moves for v in values)
        if name in ("div", "mul") and jnp.ndim(results[0]) == 0 and moves:
            if name == "div" and not values[1].moves:
                _note(values[1], counts, sizes)
            elif name == "mul":
                counts.extend(v.inverse for v in values if v.inverse is not None)
        count = name in SUMS or (name in PASS and any(v.counts for v in values))
        inverse = values[1].value if name == "div" and values[1].counts else None
        if name == "integer_pow" and eqn.params["y"] == -1 and values[0].counts:
            inverse = values[0].value
        return [_describe(x, moves, count, inverse) for x in results]

    inputs = [_Value(x, moves=True) for x in jax.tree.leaves(params)] + [_Value(x) for x in jax.tree.leaves(batch)]
    jaxprs.interpret(closed, inputs, rule, jaxprs.CALLS | REMAT)
    return counts, sizes


def _note(divisor: _Value, counts: list[Any], sizes: list[Any]) -> None:
    if divisor.counts:
        counts.append(divisor.value)
    elif not isinstance(divisor.value, jax.core.Tracer):
        sizes.append(jnp.asarray(divisor.value))


def _describe(x: Any, moves: bool, count: bool, inverse: Any) -> _Value:
    """A result of an equation; comparisons and integers do not follow the parameters smoothly."""
    moves = moves and jnp.issubdtype(x.dtype, jnp.inexact)
    scalar = jnp.ndim(x) == 0 and not moves
    return _Value(x, moves, count and scalar, inverse if scalar else None)
