"""Embeddings: rows of a table, looked up one by one or in bags."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lla_torch.program.operators import lowering

Array = jax.Array


@lowering("aten.embedding.default")
def embedding(
    weight: Array, indices: Array, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Array:
    """Look up rows of a table: (*indices.shape, features); rows that do not exist are NaN.

    Args:
      weight: (rows, features).
      indices: integers of any shape.
      padding_idx: a row that gets no gradient; -1: none.
      scale_grad_by_freq: whether gradients are divided by how often the row is looked up in this call.
      sparse: in torch, how the gradient is stored; a gradient here is always a full array.
    """
    del sparse
    rows = jnp.take(weight, jnp.where(indices < 0, weight.shape[0], indices), axis=0)  # NaN where torch raises
    if scale_grad_by_freq:
        counts = jnp.zeros(weight.shape[:1], weight.dtype).at[indices].add(1)[indices]
        fixed = lax.stop_gradient(rows)
        rows = fixed + (rows - fixed) / counts[..., None]
    if padding_idx >= 0:
        rows = jnp.where((indices == padding_idx)[..., None], lax.stop_gradient(rows), rows)
    return rows


@lowering("aten._embedding_bag.default", "aten._embedding_bag_forward_only.default", "aten.embedding_bag.default")
def embedding_bag(
    weight: Array,
    indices: Array,
    offsets: Array,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Array | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Array, Array, Array, Array]:
    """The sum (mode 0), mean (1) or maximum (2) of the rows of each bag; 0 for an empty bag.

    Args:
      weight: (rows, features).
      indices: (n,), the rows of all bags one after another.
      offsets: (bags,), where each bag starts, or (bags + 1,) with ``include_last_offset``.
      scale_grad_by_freq: see ``embedding``.
      mode: see above.
      sparse: see ``embedding``.
      per_sample_weights: (n,), factors of the rows, for mode 0 only.
      include_last_offset: whether the last offset is the end of the last bag.
      padding_idx: a row that is left out of every bag; -1: none.

    Returns:
      The result (bags, features), the bag of each index (n,), the number of rows of each bag (bags,), and for mode 2
      the row of each maximum (bags, features).
    """
    if per_sample_weights is not None and mode != 0:
        raise ValueError(f'per_sample_weights: given with mode={mode}; leave them out, or use mode 0 ("sum")')
    if indices.ndim != 1:
        raise ValueError(
            f"indices: shape {indices.shape} given; it must be (n,); pass the starts of the bags as offsets"
        )
    num = offsets.shape[0] - include_last_offset
    bags = jnp.searchsorted(offsets, jnp.arange(indices.shape[0], dtype=offsets.dtype), side="right") - 1
    rows = embedding(weight, indices, padding_idx, scale_grad_by_freq, sparse)
    taken = indices != padding_idx if padding_idx >= 0 else jnp.ones(indices.shape, bool)
    counts = jax.ops.segment_sum(taken.astype(offsets.dtype), bags, num)
    if mode == 2:
        result, winners = _maximum(rows, taken, bags, counts)
        return result, bags, counts, jnp.where(counts[:, None] > 0, indices[winners], 0)
    factors = taken.astype(rows.dtype)
    if per_sample_weights is not None:
        factors = jnp.where(taken, per_sample_weights, 0)
    result = jax.ops.segment_sum(rows * factors[:, None], bags, num)
    if mode == 1:
        result = result / jnp.maximum(counts, 1)[:, None].astype(rows.dtype)
    return result, bags, counts, jnp.zeros((num,), offsets.dtype)


@lowering("aten.embedding_bag.padding_idx")
def embedding_bag_padding_idx(
    weight: Array,
    indices: Array,
    offsets: Array,
    scale_grad_by_freq: bool,
    mode: int,
    sparse: bool,
    per_sample_weights: Array | None,
    include_last_offset: bool,
    padding_idx: int | None,
) -> tuple[Any, ...]:
    """``embedding_bag`` where ``padding_idx`` is None for no such row, and counts from the end if it is negative."""
    row = -1 if padding_idx is None else padding_idx % weight.shape[0]
    return embedding_bag(
        weight, indices, offsets, scale_grad_by_freq, mode, sparse, per_sample_weights, include_last_offset, row
    )


def _maximum(rows: Array, taken: Array, bags: Array, counts: Array) -> tuple[Array, Array]:
    """(maxima, positions in ``rows``) per bag and feature; the first of equal ones alone gets the gradient."""
    if rows.shape[0] == 0:
        return jnp.zeros((counts.shape[0], rows.shape[1]), rows.dtype), jnp.zeros((counts.shape[0], rows.shape[1]), int)
    values = jnp.where(taken[:, None], lax.stop_gradient(rows), -jnp.inf)
    top = jax.ops.segment_max(values, bags, counts.shape[0])
    number = jnp.arange(rows.shape[0])[:, None]
    first = jnp.where(taken[:, None] & (values == top[bags]), number, rows.shape[0])
    winners = jnp.minimum(jax.ops.segment_min(first, bags, counts.shape[0]), rows.shape[0] - 1)
    result = jnp.take_along_axis(rows, winners, axis=0)
    return jnp.where(counts[:, None] > 0, result, 0), winners
