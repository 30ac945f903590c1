"""Operators that read or write the entries at given indices, or under a mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lla_jax.models.adapters import misuse
from lla_torch.program.operators import lowering
from lla_torch.program.ops.axes import apply_along, axis_of
from lla_torch.program.views import View

_NAMES = {"add": "sum", "multiply": "prod"}


def _to_jax_indices(indices: Sequence[Any]) -> tuple[Any, ...]:
    """Indices as jax takes them; in torch, None stands for all entries of an axis."""
    if any(i is not None and i.dtype == bool for i in indices):
        raise ValueError(
            "indices: a boolean mask given, so the size of the result would depend on values; write torch.where(mask, "
            "x, 0) or a weighted sum"
        )
    return tuple(slice(None) if i is None else i for i in indices)


@lowering("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(x: jax.Array, indices: Sequence[Any]) -> jax.Array:
    """x[indices], where None stands for all entries of an axis; boolean masks are refused."""
    return x[_to_jax_indices(indices)]


@lowering("aten.index_put", "aten._unsafe_index_put")
def index_put(x: jax.Array, indices: Sequence[Any], values: jax.Array, accumulate: bool = False) -> jax.Array:
    """x with x[indices] replaced (or with ``accumulate`` increased) by ``values``; None: all entries of an axis."""
    values = values.astype(x.dtype)
    by_axis = [(d, i) for d, i in enumerate(indices) if i is not None]
    if any(i.dtype == bool for _, i in by_axis):
        return _masked_put(x, by_axis, values, accumulate)
    where = x.at[_to_jax_indices(indices)]
    return where.add(values) if accumulate else where.set(values)


def _masked_put(x: jax.Array, by_axis: list[tuple[int, jax.Array]], values: jax.Array, accumulate: bool) -> jax.Array:
    (start, mask), *more = by_axis
    tail = x.ndim - start - mask.ndim
    single = values.size == 1 or (start == 0 and (values.ndim <= tail or values.shape[: values.ndim - tail] == (1,)))
    if more or not single:
        raise ValueError(
            f"indices: a boolean mask given with values of shape {values.shape}, so their number would depend on the "
            "mask; write torch.where(mask, values, x)"
        )
    if values.size == 1:
        values = values.reshape(())
    elif values.ndim > tail:
        values = values.reshape(values.shape[1:])
    mask = mask.reshape(mask.shape + (1,) * tail)
    return jnp.where(mask, x + values if accumulate else values, x)


@lowering("aten._unsafe_masked_index")
def masked_index(x: jax.Array, mask: jax.Array, indices: Sequence[Any], fill: Any) -> jax.Array:
    """x[indices] where the mask is set, else ``fill``; indices elsewhere may be out of bounds."""
    return jnp.where(mask, x[_clip_indices(x, indices)], jnp.asarray(fill, x.dtype))


@lowering("aten._unsafe_masked_index_put_accumulate")
def masked_index_put(x: jax.Array, mask: jax.Array, indices: Sequence[Any], values: jax.Array) -> jax.Array:
    """x with x[indices] increased by ``values`` where the mask is set; indices elsewhere may be out of bounds."""
    return x.at[_clip_indices(x, indices)].add(jnp.where(mask, values, 0).astype(x.dtype))


def _clip_indices(x: jax.Array, indices: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(slice(None) if i is None else jnp.clip(i, -n, n - 1) for i, n in zip(indices, x.shape))


@lowering("aten.index_select", "aten.index_select_copy", layout="views")
def index_select(x: View, dim: int, index: View) -> View:
    """x with the axis ``dim`` reduced to its entries at the indices ``index``, in their order."""
    places = index.logical().reshape(-1)
    return apply_along(x, dim, lambda array, axis: jnp.take(array, places, axis))


@lowering("aten.gather")
def gather(x: jax.Array, dim: int, index: jax.Array, *, sparse_grad: bool = False) -> jax.Array:
    """out[i, j] = x[i, index[i, j]] for dim=1, and so on; ``sparse_grad`` (how torch stores it) has no effect."""
    del sparse_grad
    x, index, shape = jnp.atleast_1d(x), jnp.atleast_1d(index), index.shape
    axis = axis_of(dim, x.ndim)
    part = x[tuple(slice(None) if d == axis else slice(n) for d, n in enumerate(index.shape))]
    return jnp.take_along_axis(part, index, axis).reshape(shape)


@lowering("aten.take_along_dim")
def take_along_dim(x: jax.Array, indices: jax.Array, dim: int | None = None) -> jax.Array:
    """``gather`` with broadcasting; dim=None takes the entries of the flattened tensor at the flattened indices."""
    if dim is None:
        return x.reshape(-1)[indices.reshape(-1)]
    return jnp.take_along_axis(x, indices, axis_of(dim, x.ndim))


@lowering("aten.take")
def take(x: jax.Array, index: jax.Array) -> jax.Array:
    """The entries of the flattened x at ``index``, in the shape of ``index``."""
    return x.reshape(-1)[index]


@lowering("aten.put")
def put(x: jax.Array, index: jax.Array, source: jax.Array, accumulate: bool = False) -> jax.Array:
    """x with the entries of the flattened x at ``index`` replaced (or with ``accumulate`` increased) by ``source``."""
    where = x.reshape(-1).at[index.reshape(-1)]
    values = source.reshape(-1).astype(x.dtype)
    return (where.add(values) if accumulate else where.set(values)).reshape(x.shape)


def _targets(dim: int, index: jax.Array) -> tuple[jax.Array, ...]:
    """The places that torch's scatter writes to, per axis: ``index`` along ``dim``, else positions in ``index``."""
    return tuple(
        index if d == dim else jax.lax.broadcasted_iota(index.dtype, index.shape, d) for d in range(index.ndim)
    )


def _scatter(x: jax.Array, dim: int, index: jax.Array, src: Any, reduce: str, include_self: bool = True) -> jax.Array:
    shape = x.shape
    x, index = jnp.atleast_1d(x), jnp.atleast_1d(index)
    axis = axis_of(dim, x.ndim)
    values = jnp.asarray(src, x.dtype)
    if values.ndim:
        values = values[tuple(slice(n) for n in index.shape)]
    values = jnp.broadcast_to(values, index.shape)
    places = _targets(axis, index)
    if reduce == "set":
        result = x.at[places].set(values)
    elif reduce in ("sum", "mean"):
        result = _scatter_sum(x, places, values, include_self, reduce == "mean")
    elif reduce == "prod":
        result = _scatter_prod(x, axis, index, values, include_self)
    elif reduce in ("amax", "amin"):
        result = _scatter_extremum(x, places, values, include_self, reduce == "amax")
    else:
        raise misuse("reduce", reduce, "one of 'sum', 'prod', 'mean', 'amax', 'amin', 'add', 'multiply'")
    return result.reshape(shape)


def _scatter_sum(
    x: jax.Array, places: tuple[jax.Array, ...], values: jax.Array, include_self: bool, mean: bool
) -> jax.Array:
    start = x if include_self else x.at[places].set(0)
    total = start.at[places].add(values)
    if not mean:
        return total
    counts = jnp.zeros(x.shape, int).at[places].add(1) + int(include_self)
    counts = jnp.maximum(counts, 1)
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return total / counts.astype(x.dtype)
    return jnp.floor_divide(total, counts)


def _scatter_prod(x: jax.Array, axis: int, index: jax.Array, values: jax.Array, include_self: bool) -> jax.Array:
    """The product by a mask (axis, entries), whose derivative is right also where entries are 0."""
    full = [(0, x.shape[d] - index.shape[d]) if d != axis else (0, 0) for d in range(x.ndim)]
    index = jnp.pad(index, full, constant_values=x.shape[axis])  # nowhere
    values = jnp.pad(values, full)
    index, values = jnp.moveaxis(index, axis, -1)[..., None, :], jnp.moveaxis(values, axis, -1)[..., None, :]
    hit = index == jnp.arange(x.shape[axis])[:, None]
    product = jnp.prod(jnp.where(hit, values, 1), -1)
    rows = jnp.moveaxis(x, axis, -1)
    result = product * (rows if include_self else jnp.where(jnp.any(hit, -1), 1, rows))
    return jnp.moveaxis(result, -1, axis)


def _scatter_extremum(
    x: jax.Array, places: tuple[jax.Array, ...], values: jax.Array, include_self: bool, largest: bool
) -> jax.Array:
    fixed, fixed_values = jax.lax.stop_gradient(x), jax.lax.stop_gradient(values)
    own = jnp.ones(x.shape, bool) if include_self else jnp.ones(x.shape, bool).at[places].set(False)
    info = jnp.finfo(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype)
    least = (-jnp.inf if largest else jnp.inf) if isinstance(info, jnp.finfo) else info.min if largest else info.max
    start = jnp.where(own, fixed, jnp.asarray(least, x.dtype)).at[places]
    result = start.max(fixed_values) if largest else start.min(fixed_values)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return result
    # equal extrema take equal parts of the derivative; the value of ``change`` is 0, only its derivative counts
    tie = fixed == result  # torch counts it even where the entry itself is left out
    own &= tie
    equal = fixed_values == result[places]
    counts = tie.astype(x.dtype).at[places].add(equal.astype(x.dtype))
    change = jnp.where(own & jnp.isfinite(fixed), x - fixed, 0.0)
    change = change.at[places].add(jnp.where(equal & jnp.isfinite(fixed_values), values - fixed_values, 0.0))
    return result + change / jnp.maximum(counts, 1)


@lowering("aten.scatter.src", "aten.scatter.value")
def scatter(x: jax.Array, dim: int, index: jax.Array, src: Any) -> jax.Array:
    """x with x[i, index[i, j]] = src[i, j] for dim=1, and so on; ``src`` may be a number."""
    return _scatter(x, dim, index, src, "set")


@lowering("aten.scatter.reduce", "aten.scatter.value_reduce")
def scatter_with(x: jax.Array, dim: int, index: jax.Array, src: Any, *, reduce: str) -> jax.Array:
    """x with x[i, index[i, j]] increased ("add") or multiplied ("multiply") by src[i, j] for dim=1, and so on."""
    return _scatter(x, dim, index, src, _NAMES.get(reduce, reduce))


@lowering("aten.scatter_add")
def scatter_add(x: jax.Array, dim: int, index: jax.Array, src: jax.Array) -> jax.Array:
    """x with x[i, index[i, j]] += src[i, j] for dim=1, and so on."""
    return _scatter(x, dim, index, src, "sum")


@lowering("aten.scatter_reduce.two")
def scatter_reduce(
    x: jax.Array, dim: int, index: jax.Array, src: jax.Array, reduce: str, *, include_self: bool = True
) -> jax.Array:
    """x with each entry x[i, k] reduced with all src[i, j] where index[i, j] = k: sum, prod, mean, amax or amin.

    This is for dim=1, others alike. Without ``include_self`` the entry itself does not count. Entries without such a j
    stay.
    """
    return _scatter(x, dim, index, src, reduce, include_self)


def _entries_at(x: jax.Array, dim: int, index: jax.Array) -> Any:
    where = [slice(None)] * x.ndim
    where[axis_of(dim, x.ndim)] = index.reshape(-1)  # type: ignore[call-overload]
    return x.at[tuple(where)]


def _allow_scalar(function: Any) -> Any:
    """A function on axes that takes a tensor without axes as one of a single entry."""

    def on_axis(x: jax.Array, dim: int, index: jax.Array, source: Any, **kwargs: Any) -> jax.Array:
        if x.ndim == 0:
            return function(x.reshape(1), dim, index, jnp.asarray(source).reshape(-1), **kwargs).reshape(())
        return function(x, dim, index, source, **kwargs)

    on_axis.__doc__ = function.__doc__
    return on_axis


@lowering("aten.index_add")
@_allow_scalar
def index_add(x: jax.Array, dim: int, index: jax.Array, source: jax.Array, *, alpha: Any = 1) -> jax.Array:
    """x with ``alpha source`` added to the entries of an axis at the indices ``index``."""
    return _entries_at(x, dim, index).add((source * alpha).astype(x.dtype))


@lowering("aten.index_copy")
@_allow_scalar
def index_copy(x: jax.Array, dim: int, index: jax.Array, source: jax.Array) -> jax.Array:
    """x with the entries of an axis at the indices ``index`` replaced by those of ``source``."""
    return _entries_at(x, dim, index).set(source.astype(x.dtype))


@lowering("aten.index_fill.int_Scalar", "aten.index_fill.int_Tensor")
@_allow_scalar
def index_fill(x: jax.Array, dim: int, index: jax.Array, value: Any) -> jax.Array:
    """x with the entries of an axis at the indices ``index`` set to ``value``."""
    return _entries_at(x, dim, index).set(jnp.asarray(value, x.dtype))


@lowering("aten.index_reduce")
def index_reduce(
    x: jax.Array, dim: int, index: jax.Array, source: jax.Array, reduce: str, *, include_self: bool = True
) -> jax.Array:
    """x with each entry x[k] of an axis reduced with all source[j] where index[j] = k: prod, mean, amax or amin.

    Without ``include_self`` the entry itself does not count. Entries without such a j stay.
    """
    shape = [1] * max(x.ndim, 1)
    shape[axis_of(dim, x.ndim)] = -1
    source = jnp.atleast_1d(source)
    return _scatter(x, dim, jnp.broadcast_to(index.reshape(shape), source.shape), source, reduce, include_self)


@lowering("aten.masked_scatter")
def masked_scatter(x: jax.Array, mask: jax.Array, source: jax.Array) -> jax.Array:
    """x with its entries under the mask replaced by the first entries of the flattened ``source``, in order."""
    shape = jnp.broadcast_shapes(x.shape, mask.shape)
    mask = jnp.broadcast_to(mask, shape)
    number = jnp.cumsum(mask.reshape(-1).astype(int)) - 1
    taken = source.reshape(-1)[jnp.clip(number, 0, math.prod(source.shape) - 1)].reshape(shape)
    return jnp.where(mask, taken.astype(x.dtype), jnp.broadcast_to(x, shape))


@lowering("aten.one_hot")
def one_hot(x: jax.Array, num_classes: int = -1) -> jax.Array:
    """1 at index x of a new last axis of length ``num_classes``, 0 elsewhere."""
    if num_classes < 0:
        raise ValueError("num_classes: none given, so the size of the result would depend on values; pass num_classes=")
    return (x[..., None] == jnp.arange(num_classes)).astype(int)
