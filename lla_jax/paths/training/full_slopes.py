"""Computes losses and gradients over all examples as a training sees them: in train mode, batch by batch.

    L(theta) = (sum_b sum_i w_i l_i) / (sum_b sum_i w_i) + penalty(theta),   b over the batches of one pass

Without batch statistics this is the loss of the data set, however it is cut. With them, each batch has its own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import losses
from lla_jax.core import tree as _tree
from lla_jax.core.interrupts import check_interrupt
from lla_jax.core.operands import Precision
from lla_jax.core.types import Loss, PyTree
from lla_jax.paths.training.batch_slopes import has_statistics
from lla_jax.paths.training.batches import Batches, Draw, block_of


def couples(loss: Loss) -> bool:
    """Whether the examples of a batch have a part in each other's losses, so that no row may be padding."""
    return not loss.per_example or has_statistics(loss)


@dataclass(frozen=True)
class Pass:
    """One pass over the batches of a training, which can be repeated: the same batches each time.

    For losses per example it takes all examples, in their order. Where a batch couples its examples, it is the first
    epoch, whose examples are in random order and without the rest below a full batch.

    Args:
      batches: of the training.
      coupled: whether a batch couples its examples.
      count: number of batches.
    """

    batches: Batches
    coupled: bool
    count: int

    def __iter__(self) -> Iterator[Draw]:
        batches = self.batches
        if batches.is_stream or batches.size is None or self.coupled:
            draws = batches.from_step(0)
            for _ in range(self.count):
                yield next(draws)
            return
        size = batches.size
        for start in range(0, batches.num, size):
            rows = np.minimum(np.arange(start, start + size), batches.num - 1)
            yield Draw(_take(batches.data, rows), None, np.int32(min(size, batches.num - start)), np.int32(start))


def one_pass(batches: Batches, loss: Loss) -> Pass:
    """The batches of one pass; a stream is read once to count them."""
    coupled = couples(loss)
    if batches.is_stream:
        return Pass(batches, coupled, sum(1 for _ in batches.data))
    if batches.size is None:
        return Pass(batches, coupled, 1)
    whole = batches.num // batches.size
    return Pass(batches, coupled, whole if coupled else -(-batches.num // batches.size))


@jax.jit
def _take(data: PyTree, rows: Any) -> PyTree:
    return jax.tree.map(lambda x: x[rows], data)


def _totals(loss: Loss, params: PyTree, draw: Draw) -> tuple[Any, Any]:
    block = block_of(draw)
    outputs = losses.outputs_of(loss, params, loss.state, block, has_statistics(loss))[0]
    return losses.loss_total(loss, outputs, block)


@jax.jit
def _value_totals(loss: Loss, params: PyTree, draw: Draw) -> tuple[Any, Any]:
    return _totals(loss, params, draw)


@jax.jit
def _slope_totals(loss: Loss, params: PyTree, draw: Draw) -> tuple[Any, Any, PyTree]:
    (total, weight), gradient = jax.value_and_grad(lambda p: _totals(loss, p, draw), has_aux=True)(params)
    return total, weight, gradient


@jax.jit
def _penalty(loss: Loss, params: PyTree) -> tuple[Any, PyTree]:
    return jax.value_and_grad(functools.partial(losses.penalty_of, loss))(params)


def full_losses(loss: Loss, trees: Iterable[PyTree], draws: Iterable[Draw], precision: Precision) -> np.ndarray:
    """The losses over all batches at T points, (T,) float64; NaN where nothing counts.

    Args:
      loss: the loss, with the penalty.
      trees: T parameter trees.
      draws: the batches, such as a ``Pass``.
      precision: of matrix products.
    """
    trees = list(trees)
    sums = np.zeros((2, len(trees)))
    with jax.default_matmul_precision(precision):
        for draw in draws:
            check_interrupt()
            sums += np.asarray(jax.device_get([_value_totals(loss, params, draw) for params in trees]), np.float64).T
        extra = [0.0 if loss.penalty is None else float(_penalty(loss, params)[0]) for params in trees]
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[0] / sums[1] + np.asarray(extra)


def full_slope(loss: Loss, params: PyTree, draws: Iterable[Draw], precision: Precision) -> tuple[float, PyTree]:
    """(the loss over all batches, its gradient), at one point; NaN where nothing counts.

    Args:
      loss: the loss, with the penalty.
      params: the point.
      draws: the batches, such as a ``Pass``.
      precision: of matrix products.
    """
    total: Any = 0.0
    weight: Any = 0.0
    gradient: PyTree = None
    with jax.default_matmul_precision(precision):
        for draw in draws:
            check_interrupt()
            t, w, g = _slope_totals(loss, params, draw)
            total, weight = total + float(t), weight + float(w)
            gradient = g if gradient is None else _tree.axpy(1.0, g, gradient)
        weight = weight or float("nan")
        gradient = jax.tree.map(lambda g: g / jnp.asarray(weight, g.dtype), gradient)
        if loss.penalty is not None:
            value, slope = _penalty(loss, params)
            return total / weight + float(value), _tree.axpy(1.0, slope, gradient)
    return total / weight, gradient
