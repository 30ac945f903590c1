"""Finds means over counted entries, such as tokens, in losses of whole batches, whose mean over batches goes wrong.

A scalar loss of a batch counts with the number of its examples. Where it is a mean over those entries that a mask lets
through, batches with many entries must count more, which no value of the loss shows. Its jaxpr does: there the sum of
the losses is divided by a sum that depends on the batch alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import constants, jaxprs, losses
from lla_jax.core import data as _data
from lla_jax.core.apart import NothingCounts, check_weights
from lla_jax.core.arguments import warn_caller
from lla_jax.core.data import Stream
from lla_jax.core.operands import at_highest
from lla_jax.core.remembering import remember, shapes_of
from lla_jax.core.rows import ROWS, Model, like, outputs_of_rows, spread, takes, trace
from lla_jax.core.types import Batch, Loss, PyTree
from lla_jax.core.wholes import Whole

MOST_BATCHES = 3  # that are looked at
EQUAL = 1e-6  # relative difference of two counts that are equal
SHAPES = {"convert_element_type", "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "transpose", "copy"}
"""Primitives that leave the numbers as they are."""
GUARDS = {"max", "min", "add", "add_any", "select_n"}
"""Primitives that make a guarded count of a count, as ``jnp.maximum(mask.sum(), 1)`` does."""
LOOPS = {"scan", "while", "cond"}
SUMS = {"reduce_sum", "dot_general"}
LINEAR = SHAPES | SUMS | {"neg", "slice", "concatenate"}

_MIXED_UP: dict[Hashable, str] = {}  # the warning about the (value, weight) of each model, or an empty string


class _Value(NamedTuple):
    """A value of the jaxpr of a loss.

    Args:
      value: the value.
      moves: whether it follows the parameters smoothly.
      count: the sum over the batch that it is, perhaps with a guard, times a constant or broadcast; None for others.
      normed: the counts by which it is divided, as the mask in ``mask / mask.sum()`` is.
    """

    value: Any
    moves: bool = False
    count: Any = None
    normed: tuple[Any, ...] = ()

    @property
    def is_constant(self) -> bool:
        """Whether it depends neither on the parameters nor on the batch."""
        return not isinstance(self.value, jax.core.Tracer)


def warn_of_counts(loss: Loss, params: PyTree, data: Batch | Stream, batch_size: int | None) -> None:
    """Warn where a loss of whole batches is a mean over entries of which the batches hold different numbers.

    Of a loss with a weight its values are looked at instead, see ``_find_mixed_up``. Nothing is said of losses per
    example, of data in one batch, of wholes, each of which is an example, and of losses that divide by other numbers
    than sums over the batch, as contrastive losses do. The first, a middle and the last batch are looked at, of a
    stream the first three.

    Args:
      loss: the loss.
      params: the parameters.
      data: arrays, or a stream.
      batch_size: examples per batch of a data set; None for all.

    Warns:
      UserWarning: the counts per example differ between the batches; or a loss with a weight returns a sum in place of
        a mean, a mean in place of a sum, or a weight that is no sum.
    """
    if loss.per_example:
        return
    batches = [batch for batch in _some_batches(data, batch_size) if not isinstance(batch, Whole)]
    if not batches:
        return
    for batch in batches if isinstance(data, Stream) else [data]:
        try:
            text = _mixed_up(loss, params, batch, batch_size)
        except NothingCounts:  # of a stream the next batch may count
            if not isinstance(data, Stream):
                raise
            continue
        if text:
            warn_caller(text)
        break
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


def _mixed_up(loss: Loss, params: PyTree, data: Batch, batch_size: int | None) -> str:
    """``_find_mixed_up`` for a block of up to 16 rows of the data and its halves; once per model."""
    count = _data.num_examples(data)
    size = min(ROWS, count, batch_size or count) // 2 * 2
    if size == 0:
        return ""

    def find() -> str:
        model = Model(loss, params, (), False)
        if not takes(model, data, size, size // 2):
            return ""
        traced = trace(model, data, size)
        value, weight = traced.out_info["loss"]
        if weight is None or value.shape or weight.shape:
            return ""
        block = spread(data, size)
        halves = (_data.rows_of(block, start, size // 2) for start in (0, size // 2))
        pairs = [_result(loss, params, *each) for each in (block, *halves)]
        values, weights = (np.asarray(each, np.float64) for each in zip(*pairs, strict=True))
        constants.check_fixed_weights(traced, model)
        check_weights("loss", weights)
        if size == count and not weights.any():
            raise NothingCounts(
                "loss", "its weight is 0, so that no example counts; the weight of a batch must be positive"
            )
        eps = max(float(jnp.finfo(jnp.result_type(x)).eps) for x in (pairs[0][0], 1.0 * pairs[0][1]))
        return _find_mixed_up(values, weights, max(EQUAL * 10, 4 * eps))

    return remember(_MIXED_UP, shapes_of((loss, params, like(data, size))), find)


@jax.jit
@at_highest
def _result(loss: Loss, params: PyTree, rows: Batch, index: Any) -> Any:
    """(value, weight): what the criterion returns for some rows, with their numbers in the data set."""
    return loss.criterion(outputs_of_rows(loss, params, losses.block_of_rows(rows, index), train=False), rows)


def _find_mixed_up(values: np.ndarray, weights: np.ndarray, tolerance: float) -> str:
    """A warning if a criterion or step does not return (mean, weight) or (sum, weight) as it should; else "".

    Of a mean v with the weight w, both w and v w are sums over the examples: those of a block are the sums of those of
    its halves. Losses of pairs, which grow faster, are left alone.

    Args:
      values: (3,), the means v of a block and of its halves; a step's sum is v w.
      weights: (3,), the weights w.
      tolerance: relative difference that rounding makes.
    """
    (v, v1, v2), (w, w1, w2) = values, weights
    totals = values * weights
    known = np.isfinite([*values, *weights]).all() and (weights > 0).all() and v1 != 0 and v2 != 0
    if not known:
        return ""
    if abs(v - v1 - v2) <= tolerance * (abs(v1) + abs(v2)):
        return (
            f"loss: the first value that it returns is a sum ({v:.4g} for a block of examples, {v1:.4g} and {v2:.4g} "
            "for its halves), where the mean is expected; return (mean, weight) from the criterion of "
            "lla.Loss(..., per_example=False), such as (losses.mean(), len(losses))"
        )
    t, slack = totals[0], tolerance * max(abs(totals))
    means = np.average(totals[1:], weights=weights[1:]), totals[1:].mean()  # over entries, or over examples
    if min(abs(t - mean) for mean in means) <= slack and abs(t - totals[1] - totals[2]) > slack:
        return (
            f"loss: the value times the weight, {t:.4g} for a block of examples, {totals[1]:.4g} and "
            f"{totals[2]:.4g} for its halves, does not add up: a mean was returned where a sum is expected, or "
            "the weight is not the sum of the weights of the examples. Return (sum, weight) from a step for "
            "lla_torch.convert_loss, such as (F.cross_entropy(..., reduction='sum'), count), and (mean, weight) from "
            "the criterion of lla.Loss(..., per_example=False)"
        )
    guarded = w1 != w2 and w == max(w1, w2)  # as by max(count, 1) where nothing counts in a half
    if w < (w1 + w2) * (1 - tolerance) and not guarded:
        return (
            f"loss: the weight that it returns is {w:.4g} for a block of examples, and {w1:.4g} and {w2:.4g} for its "
            "halves, so it is not the sum of the weights of the examples, with which batches count; return, for "
            "example, the number of examples or of the tokens that count"
        )
    return ""


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
@at_highest
def _counts(loss: Loss, params: PyTree, batch: Batch) -> tuple[list[Any], list[Any]]:
    """(sums over the batch by which the loss is divided, numbers of its shape by which it is divided)."""

    def value(params: PyTree, batch: Batch) -> Any:
        rows = jax.tree.leaves(batch)[0].shape[0]
        block = losses.block_of_rows(batch, jnp.arange(rows))
        result = loss.criterion(outputs_of_rows(loss, params, block, train=False), batch)
        return () if isinstance(result, tuple) else result  # it has a weight of its own

    closed = jaxprs.needed(jax.make_jaxpr(value)(params, batch))
    counts: list[Any] = []
    sizes: list[Any] = []

    def rule(eqn: Any, values: list[Any]) -> list[_Value]:
        values = [v if isinstance(v, _Value) else _Value(v) for v in values]
        results = jaxprs.bind(eqn, [v.value for v in values])
        name, count, normed = eqn.primitive.name, _count_of(eqn, values), _normed_by(eqn, values)
        described = []
        for i, x in enumerate(results):
            # comparisons and integers do not follow the parameters smoothly
            moves = _reaches(eqn, i, [v.moves for v in values]) and jnp.issubdtype(x.dtype, jnp.inexact)
            scalar = jnp.ndim(x) == 0
            if scalar and moves:
                counts.extend(normed)
                if name == "div" and values[0].moves and values[1].is_constant:
                    sizes.append(jnp.asarray(values[1].value))
            is_sum = name in SUMS | LOOPS or (name in GUARDS and count is not None)
            own = None if moves else x if scalar and is_sum else count
            described.append(_Value(x, moves, own, () if scalar and moves else normed))
        return described

    inputs = [_Value(x, moves=True) for x in jax.tree.leaves(params)] + [_Value(x) for x in jax.tree.leaves(batch)]
    jaxprs.interpret(closed, inputs, rule)
    return counts, sizes


def _count_of(eqn: Any, values: list[_Value]) -> Any:
    """The count that the result of an equation still is, or None."""
    name = eqn.primitive.name
    if name in SHAPES | GUARDS:
        return next((v.count for v in values if v.count is not None), None)
    if name == "mul" or name == "div":
        one, other = values if values[0].count is not None or name == "div" else values[::-1]
        return one.count if other.is_constant else None
    return None


def _normed_by(eqn: Any, values: list[_Value]) -> tuple[Any, ...]:
    """The counts by which the result of an equation is divided; only linear operations keep them."""
    name = eqn.primitive.name
    if name == "div":
        if values[1].moves:
            return ()
        return values[0].normed + (() if values[1].count is None else (values[1].count,))
    if name == "integer_pow":
        return () if values[0].count is None or eqn.params["y"] != -1 else (values[0].count,)
    if name == "mul" or name in LINEAR:
        normed = [v.normed for v in values if v.normed]
        return normed[0] if len(normed) == 1 else ()
    if name in ("add", "sub", "add_any"):  # of terms that are all divided by one count
        return values[0].normed if all(_same(v.normed, values[0].normed) for v in values) else ()
    if name == "select_n":
        terms = [v.normed for v in values[1:] if not v.is_constant]
        return terms[0] if terms and all(_same(each, terms[0]) for each in terms) else ()
    return ()


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _reaches(eqn: Any, output: int, inputs: list[bool]) -> bool:
    """Whether one of the chosen inputs of an equation reaches an output; a loop may keep its outputs apart."""
    if eqn.primitive.name not in LOOPS or not any(inputs):
        return any(inputs)
    alone = jax.make_jaxpr(lambda *values: jaxprs.bind(eqn, values))(*(var.aval for var in eqn.invars))
    used = jaxprs.inputs_of(alone, [i == output for i in range(len(eqn.outvars))])
    return any(a and b for a, b in zip(used, inputs, strict=True))
