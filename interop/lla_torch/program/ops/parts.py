"""Operators on parts of a tensor: windows, diagonals, triangles, slices, strided entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_torch.program.operators import lowering
from lla_torch.program.ops.axes import axis_of


@lowering("aten.unfold", "aten.unfold_copy")
def unfold(x: jax.Array, dimension: int, size: int, step: int) -> jax.Array:
    """The windows of ``size`` entries that start at every ``step``-th entry of an axis, each along a new last axis."""
    if x.ndim == 0:
        return x.reshape(1)[:size]
    axis = axis_of(dimension, x.ndim)
    count = (x.shape[axis] - size) // step + 1
    if step == size:  # windows side by side
        cut = jax.lax.slice_in_dim(x, 0, count * size, axis=axis)
        windows = cut.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])
    else:
        windows = jnp.take(x, np.arange(count)[:, None] * step + np.arange(size), axis=axis)
    return jnp.moveaxis(windows, axis + 1, -1)


@lowering("aten.diagonal", "aten.diagonal_copy", "aten.linalg_diagonal")
def diagonal(x: jax.Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> jax.Array:
    """The diagonals x[i, i + offset] over the axes dim1 and dim2, which a new last axis replaces."""
    return jnp.diagonal(x, offset, axis_of(dim1, x.ndim), axis_of(dim2, x.ndim))


@lowering("aten.diag")
def diag(x: jax.Array, diagonal: int = 0) -> jax.Array:
    """The diagonal of a matrix; of a vector, the matrix with it as its diagonal and zeros elsewhere."""
    return jnp.diag(x, diagonal)


@lowering("aten.diag_embed")
def diag_embed(x: jax.Array, offset: int = 0, dim1: int = -2, dim2: int = -1) -> jax.Array:
    """Matrices over the new axes dim1 and dim2, with the last axis of x as their diagonals and zeros elsewhere."""
    size = x.shape[-1] + abs(offset)
    rows = np.arange(x.shape[-1]) + max(-offset, 0)
    columns = np.arange(x.shape[-1]) + max(offset, 0)
    full = jnp.zeros((*x.shape[:-1], size, size), x.dtype).at[..., rows, columns].set(x)
    return jnp.moveaxis(full, (-2, -1), (axis_of(dim1, x.ndim + 1), axis_of(dim2, x.ndim + 1)))


@lowering("aten.trace")
def trace(x: jax.Array) -> jax.Array:
    """The sum of the diagonal of a matrix."""
    return jnp.trace(x)


@lowering("aten.tril")
def tril(x: jax.Array, diagonal: int = 0) -> jax.Array:
    """x with zeros above the given diagonal of its last two axes."""
    return jnp.tril(x, diagonal)


@lowering("aten.triu")
def triu(x: jax.Array, diagonal: int = 0) -> jax.Array:
    """x with zeros below the given diagonal of its last two axes."""
    return jnp.triu(x, diagonal)


def _storage_places(size: Sequence[int], stride: Sequence[int], offset: int | None) -> np.ndarray:
    places = np.full((), offset or 0)
    for n, step in zip(size, stride):
        places = places[..., None] + np.arange(n) * step
    return places


@lowering("aten.as_strided", "aten.as_strided_copy")
def as_strided(x: jax.Array, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> Any:
    """The entries x.flatten()[storage_offset + i stride[0] + j stride[1] + ...], of shape ``size``.

    In torch these are places of the storage, so x must be all of it, contiguous and from its first entry.

    Raises:
      ValueError: if a place lies beyond the tensor, as it does in a tensor that is a part of a larger storage.
    """
    return x.reshape(-1)[_check_places(_storage_places(size, stride, storage_offset), x)]


@lowering("aten.as_strided_scatter")
def as_strided_scatter(
    x: jax.Array, src: jax.Array, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> jax.Array:
    """``x`` with the entries of ``as_strided(x, size, stride, storage_offset)`` replaced by ``src``."""
    places = _check_places(_storage_places(size, stride, storage_offset), x)
    return x.reshape(-1).at[places].set(src.astype(x.dtype)).reshape(x.shape)


def _check_places(places: np.ndarray, x: jax.Array) -> np.ndarray:
    if places.size and (places.min() < 0 or places.max() >= x.size):
        raise ValueError(
            f"size, stride: they reach entry {places.max()} of a tensor of {x.size}, beyond the tensor in shared "
            "storage; call .contiguous() before as_strided, or write it with slices or unfold"
        )
    return places


@lowering("aten.select_scatter")
def select_scatter(x: jax.Array, src: jax.Array, dim: int, index: int) -> jax.Array:
    """``x`` with the entry ``index`` of the axis ``dim`` replaced by ``src``."""
    where = [slice(None)] * x.ndim
    where[axis_of(dim, x.ndim)] = index  # type: ignore[call-overload]
    return x.at[tuple(where)].set(src.astype(x.dtype))


@lowering("aten.slice_scatter")
def slice_scatter(
    x: jax.Array, src: jax.Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> jax.Array:
    """``x`` with the entries start, start + step, ... before end of the axis ``dim`` replaced by ``src``."""
    axis = axis_of(dim, x.ndim)
    where = [slice(None)] * x.ndim
    begin, stop, _ = slice(start, end).indices(x.shape[axis])
    where[axis] = slice(begin, max(begin, stop), step)
    return x.at[tuple(where)].set(src.astype(x.dtype))


@lowering("aten.diagonal_scatter")
def diagonal_scatter(x: jax.Array, src: jax.Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> jax.Array:
    """``x`` with ``diagonal(x, offset, dim1, dim2)`` replaced by ``src``."""
    places = np.arange(math.prod(x.shape)).reshape(x.shape)
    places = np.diagonal(places, offset, axis_of(dim1, x.ndim), axis_of(dim2, x.ndim))
    return x.reshape(-1).at[places].set(src.astype(x.dtype)).reshape(x.shape)
