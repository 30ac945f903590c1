"""Running sums and extrema, sorting, order statistics and searches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lla_jax.models.adapters import misuse
from lla_torch.program.operators import lowering
from lla_torch.program.ops.axes import apply_along, pick_along
from lla_torch.program.views import View


def _cast(array: jax.Array, dtype: Any) -> jax.Array:
    return array.astype(int if dtype is None and array.dtype == bool else array.dtype if dtype is None else dtype)


@lowering("aten.cumsum", layout="views")
def cumsum(x: View, dim: int, *, dtype: Any = None) -> View:
    """Running sums along an axis."""
    return apply_along(x, dim, lambda array, axis: jnp.cumsum(_cast(array, dtype), axis))


@lowering("aten.cumprod", layout="views")
def cumprod(x: View, dim: int, *, dtype: Any = None) -> View:
    """Running products along an axis."""
    return apply_along(x, dim, lambda array, axis: jnp.cumprod(_cast(array, dtype), axis))


@lowering("aten.logcumsumexp", layout="views")
def logcumsumexp(x: View, dim: int) -> View:
    """Running log(sum exp(x)) along an axis."""
    return apply_along(x, dim, lambda array, axis: jax.lax.cumlogsumexp(array, axis))


def _scan_extremum(x: View, dim: int, later: Callable[[jax.Array, jax.Array], jax.Array]) -> tuple[View, View]:
    def join(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        new = later(b[0], a[0]) | jnp.isnan(b[0])
        return jnp.where(new, b[0], a[0]), jnp.where(new, b[1], a[1])

    def run(array: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
        places = jax.lax.broadcasted_iota(int, array.shape, axis)
        _, index = jax.lax.associative_scan(join, (jax.lax.stop_gradient(array), places), axis=axis)
        return jnp.take_along_axis(array, index, axis), index

    return apply_along(x, dim, run)


@lowering("aten.cummax", layout="views")
def cummax(x: View, dim: int) -> tuple[View, View]:
    """(running maximum along an axis, the last index of each)."""
    return _scan_extremum(x, dim, jnp.greater_equal)


@lowering("aten.cummin", layout="views")
def cummin(x: View, dim: int) -> tuple[View, View]:
    """(running minimum along an axis, the last index of each)."""
    return _scan_extremum(x, dim, jnp.less_equal)


def _sort(x: View, dim: int, descending: bool) -> tuple[View, View]:
    return pick_along(x, dim, True, lambda array, axis: jnp.argsort(array, axis, stable=True, descending=descending))


@lowering("aten.sort", layout="views")
def sort(x: View, dim: int = -1, descending: bool = False) -> tuple[View, View]:
    """(entries sorted along an axis, their indices); equal entries keep their order."""
    return _sort(x, dim, descending)


@lowering("aten.sort.stable", layout="views")
def sort_stable(x: View, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> tuple[View, View]:
    """(entries sorted along an axis, their indices); equal entries keep their order, whatever ``stable`` says."""
    del stable
    return _sort(x, dim, descending)


@lowering("aten.argsort", layout="views")
def argsort(x: View, dim: int = -1, descending: bool = False) -> View:
    """The indices that sort an axis; equal entries keep their order."""
    return _sort(x, dim, descending)[1]


@lowering("aten.argsort.stable", layout="views")
def argsort_stable(x: View, *, stable: bool, dim: int = -1, descending: bool = False) -> View:
    """The indices that sort an axis; equal entries keep their order, whatever ``stable`` says."""
    del stable
    return _sort(x, dim, descending)[1]


@lowering("aten.msort", layout="views")
def msort(x: View) -> View:
    """The entries sorted along axis 0."""
    return _sort(x, 0, False)[0]


@lowering("aten.topk", layout="views")
def topk(x: View, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[View, View]:
    """(the k largest, or with largest=False smallest, entries of an axis, their indices).

    They are sorted, whatever ``sorted`` says, and equal entries come by index.
    """
    del sorted

    def index(array: jax.Array, axis: int) -> jax.Array:
        if largest:
            return jnp.moveaxis(jax.lax.top_k(jnp.moveaxis(array, axis, -1), k)[1], -1, axis)
        return jax.lax.slice_in_dim(jnp.argsort(array, axis, stable=True), 0, k, axis=axis)

    return pick_along(x, dim, True, index)


def _index_of_rank(n: Callable[[int], int]) -> Callable[[jax.Array, int], jax.Array]:
    def index(array: jax.Array, axis: int) -> jax.Array:
        place = n(array.shape[axis])
        return jax.lax.slice_in_dim(jnp.argsort(array, axis, stable=True), place, place + 1, axis=axis)

    return index


@lowering("aten.kthvalue", layout="views")
def kthvalue(x: View, k: int, dim: int = -1, keepdim: bool = False) -> tuple[View, View]:
    """(the k-th smallest entry along an axis, counted from 1, its index)."""
    return pick_along(x, dim, keepdim, _index_of_rank(lambda n: k - 1))


@lowering("aten.median.dim", layout="views")
def median_dim(x: View, dim: int, keepdim: bool = False) -> tuple[View, View]:
    """(the lower median along an axis, its index); NaN where an entry is NaN."""

    def index(array: jax.Array, axis: int) -> jax.Array:
        middle = _index_of_rank(lambda n: (n - 1) // 2)(array, axis)
        bad = jnp.isnan(array)
        return jnp.where(jnp.any(bad, axis, keepdims=True), jnp.argmax(bad, axis, keepdims=True), middle)

    return pick_along(x, dim, keepdim, index)


@lowering("aten.median", layout="logical")
def median(x: jax.Array) -> jax.Array:
    """The lower median of all entries, NaN if one is NaN; equal entries take equal parts of the derivative."""
    flat = x.reshape(-1)
    fixed = jax.lax.stop_gradient(flat)
    middle = jnp.sort(fixed)[(flat.size - 1) // 2]
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return middle
    middle = jnp.where(jnp.any(jnp.isnan(fixed)), jnp.nan, middle)
    return _among_equal(flat, middle)


@lowering("aten.nanmedian.dim", layout="views")
def nanmedian_dim(x: View, dim: int, keepdim: bool = False) -> tuple[View, View]:
    """(the lower median of the entries along an axis that are not NaN, its index); NaN where all are."""

    def index(array: jax.Array, axis: int) -> jax.Array:
        count = jnp.sum(~jnp.isnan(array), axis, keepdims=True, dtype=int)
        order = jnp.argsort(array, axis, stable=True)  # NaN comes last
        return jnp.take_along_axis(order, jnp.maximum((count - 1) // 2, 0), axis)

    return pick_along(x, dim, keepdim, index)


@lowering("aten.nanmedian", layout="logical")
def nanmedian(x: jax.Array) -> jax.Array:
    """The lower median of all entries that are not NaN; equal entries take equal parts of the derivative."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return median(x)
    flat = x.reshape(-1)
    fixed = jax.lax.stop_gradient(flat)
    count = jnp.sum(~jnp.isnan(fixed))
    return _among_equal(flat, jnp.sort(fixed)[jnp.maximum((count - 1) // 2, 0)])


def _among_equal(flat: jax.Array, value: jax.Array) -> jax.Array:
    """``value``, whose derivative goes in equal parts to the entries that are equal to it."""
    fixed = jax.lax.stop_gradient(flat)
    equal = (fixed == value) | (jnp.isnan(value) & jnp.isnan(fixed))
    change = jnp.where(equal & jnp.isfinite(fixed), flat - fixed, 0.0)  # 0, but for its derivative
    return value + jnp.sum(change) / jnp.maximum(jnp.sum(equal), 1)


@lowering("aten.mode", layout="views")
def mode(x: View, dim: int = -1, keepdim: bool = False) -> tuple[View, View]:
    """(the most frequent value along an axis, the smallest of several, the last index of it)."""

    def index(array: jax.Array, axis: int) -> jax.Array:
        order = jnp.argsort(array, axis, stable=True)
        entries = jnp.take_along_axis(array, order, axis)
        place = jax.lax.broadcasted_iota(int, array.shape, axis)
        new = (place == 0) | (entries != jnp.roll(entries, 1, axis))
        length = place - jax.lax.cummax(jnp.where(new, place, 0), axis)
        return jnp.take_along_axis(order, jnp.argmax(length, axis, keepdims=True), axis)

    return pick_along(x, dim, keepdim, index)


@lowering("aten.histc", layout="logical")
def histc(x: jax.Array, bins: int = 100, min: float = 0, max: float = 0) -> jax.Array:
    """How many entries lie in each of ``bins`` equal intervals from min to max, the last one closed.

    Entries beyond, and NaN, are not counted. If min and max are equal they are the least and the largest entry. The
    counts are constant.
    """
    flat = jax.lax.stop_gradient(x.reshape(-1))
    low, high = jnp.asarray(min, x.dtype), jnp.asarray(max, x.dtype)
    if min == max and x.size:
        low, high = jnp.min(flat), jnp.max(flat)
    equal = low == high
    low, high = jnp.where(equal, low - 1, low), jnp.where(equal, high + 1, high)
    inside = (flat >= low) & (flat <= high)
    place = jnp.floor((jnp.where(inside, flat, low) - low) * bins / (high - low)).astype(int)
    counts = jnp.zeros(bins, jnp.int32).at[jnp.minimum(place, bins - 1)].add(inside.astype(jnp.int32))
    return counts.astype(x.dtype)


def _search(boundaries: jax.Array, x: jax.Array, right: bool, side: str | None = None) -> jax.Array:
    if side is not None and side not in ("left", "right"):
        raise misuse("side", side, "one of 'left', 'right'")
    side = "right" if right or side == "right" else "left"
    find = lambda row, values: jnp.searchsorted(row, values, side=side)  # noqa: E731
    for _ in range(boundaries.ndim - 1):
        find = jax.vmap(find)
    return find(boundaries, x)


@lowering("aten.searchsorted.Tensor", "aten.searchsorted.Scalar")
def searchsorted(
    boundaries: jax.Array,
    x: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: jax.Array | None = None,
) -> jax.Array:
    """The index at which each entry of x would be inserted into its row of sorted boundaries.

    ``right`` or side="right" inserts behind equal boundaries, the default in front of them. ``sorter`` holds indices
    that sort the rows. ``out_int32`` has no effect: the graph holds the result's type.
    """
    del out_int32
    if sorter is not None:
        boundaries = jnp.take_along_axis(boundaries, sorter, -1)
    return _search(boundaries, jnp.asarray(x), right, side)


@lowering("aten.bucketize.Tensor", "aten.bucketize.Scalar")
def bucketize(x: Any, boundaries: jax.Array, *, out_int32: bool = False, right: bool = False) -> jax.Array:
    """The number of the interval between sorted boundaries in which each entry of x lies, see ``searchsorted``."""
    del out_int32
    return _search(boundaries, jnp.asarray(x), right)


@lowering(*(f"aten.isin.{kind}" for kind in ("Tensor_Tensor", "Scalar_Tensor", "Tensor_Scalar")))
def isin(x: Any, test: Any, *, assume_unique: bool = False, invert: bool = False) -> jax.Array:
    """Whether each entry of x is among those of ``test``; with ``invert`` whether it is not."""
    return jnp.isin(jnp.asarray(x), jnp.asarray(test), assume_unique=assume_unique, invert=invert)
