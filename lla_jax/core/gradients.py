"""Computes the gradient of a loss over all examples, block by block."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lla_jax.core import called, counts, examples, precision
from lla_jax.core import tree as _tree
from lla_jax.core.data import (
    Stream,
    as_arrays,
    check_batch_size,
    check_uncut,
    host_batches,
    num_examples,
    pad_rows,
    to_numpy,
)
from lla_jax.core.losses import as_loss, block_at, loss_sums, outputs_of, penalty_of
from lla_jax.core.operands import at_highest
from lla_jax.core.signatures import explained
from lla_jax.core.types import Batch, Loss, PyTree
from lla_jax.core.wholes import Whole


@functools.partial(jax.jit, static_argnames="size")
@at_highest
def _add_gradient(
    gradient: PyTree, weight: Any, loss: Loss, params: PyTree, data: Batch, count: Any, offset: Any, *, size: int
):
    block = block_at(data, 0, size, count, offset)

    def weighted_sum(p: PyTree) -> tuple[Any, Any]:
        sums = loss_sums(loss, outputs_of(loss, p, loss.state, block, False)[0], block)
        return sums.m * sums.w + sums.e, sums.w

    grads, w = jax.grad(weighted_sum, has_aux=True)(params)
    return _tree.axpy(1.0, grads, gradient), weight + w


@jax.jit
@at_highest
def _finish_gradient(gradient: PyTree, weight: Any, loss: Loss, params: PyTree) -> PyTree:
    grads = jax.tree.map(lambda g: g / weight.astype(g.dtype), gradient)
    if loss.penalty is None:
        return grads
    return _tree.axpy(1.0, jax.grad(lambda p: penalty_of(loss, p))(params), grads)


@called.differentiated()
@explained
def mean_gradient(
    loss: Loss | Callable, params: PyTree, data: Batch | Stream, *, batch_size: int | None = None
) -> PyTree:
    """Gradient of the loss over all examples, (sum_i w_i grad l_i) / (sum_i w_i) + grad penalty.

    For a batch-coupled loss or a plain function, i counts batches instead of examples. Matrix products are at full
    precision.

    Args:
      loss: a ``Loss``, or a plain ``f(params, batch) -> scalar``; normalization layers use frozen statistics.
      params: the parameters at which the gradient is taken.
      data: one data set, a ``whole`` or a stream.
      batch_size: examples per batch of a data set, or None for all at once; a stream has its own batches.

    Returns:
      A tree of the structure and shapes of ``params``, in its dtypes and float32 at least.
    """
    loss, params = precision.at_least_single(as_loss(loss), params)
    batch_size = batch_size and check_batch_size(batch_size)
    data = data if isinstance(data, Stream) else as_arrays(data)
    check_uncut(data, batch_size)
    counts.warn_of_counts(loss, params, data, batch_size)
    gradient = jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), params)
    weight: Any = np.zeros((), np.float32)
    rows = 0
    if isinstance(data, Stream):
        data = examples.watch(data, loss, params, slopes=True)
    else:
        examples.check(loss, params, data, most=batch_size, slopes=True)
    for batch, offset in host_batches(data, batch_size):
        check_uncut(batch, batch_size)
        count = num_examples(batch)
        rows = max(rows, count)
        if loss.per_example and not isinstance(batch, Whole):  # one shape for all batches
            batch = pad_rows(to_numpy(batch), rows)
        size = num_examples(batch)
        gradient, weight = _add_gradient(
            gradient, weight, loss, params, batch, np.int32(count), np.int32(offset), size=size
        )
    return _finish_gradient(gradient, weight, loss, params)
