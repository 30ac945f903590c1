"""Operators that only rearrange entries, if possible without moving data: reshapes, transposes, slices, joins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.models.adapters import misuse
from lla_torch.program.operators import lowering
from lla_torch.program.ops.axes import (
    align_order,
    apply_along,
    axes_of,
    axis_of,
    insert_axis,
    regroup_axes,
    squeeze_axes,
    unmerge,
)
from lla_torch.program.views import View, merge_tail, plain


def _sizes(sizes: Any) -> tuple[int, ...]:
    return (sizes,) if isinstance(sizes, int) else tuple(sizes)


@lowering(
    *(f"aten.{name}.default" for name in ("view", "_unsafe_view", "reshape", "view_copy", "_reshape_copy")),
    layout="views",
)
def reshape(x: View, shape: Sequence[int]) -> View:
    """x in another shape, its entries in torch's order; -1 stands for the size that the others leave."""
    shape = _sizes(shape)
    if -1 in shape:
        known = math.prod(n for n in shape if n != -1)
        rest = math.prod(x.shape) // known if known else 0
        shape = tuple(rest if n == -1 else n for n in shape)
    if math.prod(shape) != math.prod(x.shape):
        raise misuse(
            "shape", shape, f"of the same number of entries as a tensor of shape {x.shape}, {math.prod(x.shape)}"
        )
    if shape == x.shape:
        return x
    view = regroup_axes(x, shape)
    start = len(shape) - 1
    if view is None and 0 <= start < x.ndim and shape[:-1] == x.shape[:start]:
        view = merge_tail(x, start)
    return plain(x.logical().reshape(shape)) if view is None else view


@lowering("aten.flatten.using_ints", layout="views")
def flatten(x: View, start_dim: int = 0, end_dim: int = -1) -> View:
    """x with its axes start_dim to end_dim, both included, merged into one."""
    start, end = axis_of(start_dim, x.ndim), axis_of(end_dim, x.ndim)
    return reshape(x, (*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]))


@lowering("aten.unflatten.int", layout="views")
def unflatten(x: View, dim: int, sizes: Sequence[int]) -> View:
    """x with the axis ``dim`` split into axes of the lengths ``sizes``; -1 stands for the length that is left."""
    at = axis_of(dim, x.ndim)
    known = math.prod(n for n in sizes if n != -1)
    sizes = tuple(x.shape[at] // known if n == -1 else n for n in sizes)
    return reshape(x, (*x.shape[:at], *sizes, *x.shape[at + 1 :]))


@lowering("aten.permute", "aten.permute_copy", layout="views")
def permute(x: View, dims: Sequence[int]) -> View:
    """x with its axes reordered: axis i of the result is axis ``dims[i]`` of x."""
    return x.transposed([axis_of(d, x.ndim) for d in dims])


@lowering("aten.transpose.int", "aten.transpose_copy.int", "aten.swapaxes", "aten.swapdims", layout="views")
def transpose(x: View, dim0: int, dim1: int) -> View:
    """x with the axes dim0 and dim1 exchanged."""
    if x.ndim == 0:
        return x
    axes = list(range(x.ndim))
    a, b = axis_of(dim0, x.ndim), axis_of(dim1, x.ndim)
    axes[a], axes[b] = axes[b], axes[a]
    return x.transposed(axes)


@lowering("aten.t", "aten.t_copy", "aten.numpy_T", layout="views")
def reverse_axes(x: View) -> View:
    """x with its axes in reverse order, which transposes a matrix."""
    return x.transposed(range(x.ndim)[::-1])


@lowering("aten.mT", "aten.mH", "aten.adjoint", layout="views")
def adjoint(x: View) -> View:
    """x with its last two axes exchanged; complex entries are refused."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError("x: a complex tensor given; it must be real for mT and mH, so write transpose and conj")
    return transpose(x, -2, -1)


@lowering("aten.movedim.int", "aten.movedim.intlist", layout="views")
def movedim(x: View, source: Any, destination: Any) -> View:
    """x with the axes ``source`` moved to the places ``destination``; the others keep their order."""
    return x.transposed(_order_after_move(x.ndim, source, destination))


def _order_after_move(ndim: int, source: Any, destination: Any) -> list[int]:
    sources, targets = axes_of(source, ndim), axes_of(destination, ndim)
    axes = [a for a in range(ndim) if a not in sources]
    for target, axis in sorted(zip(targets, sources)):
        axes.insert(target, axis)
    return axes


@lowering("aten.expand", "aten.expand_copy", layout="views")
def expand(x: View, sizes: Sequence[int], implicit: bool = False) -> View:
    """x with axes of length 1 repeated to ``sizes`` (-1: kept), and new axes in front; ``implicit`` has no effect."""
    del implicit
    sizes = _sizes(sizes)
    x = unmerge(x)
    new = len(sizes) - x.ndim
    shape = (*sizes[:new], *(n if s == -1 else s for s, n in zip(sizes[new:], x.shape)))
    if shape == x.shape:
        return x
    order = (*range(new), *(a + new for a in x.order))
    physical = [0] * len(shape)
    for d, axis in enumerate(order):
        physical[axis] = shape[d]
    return View(jnp.broadcast_to(x.array, physical), order)


@lowering("aten.repeat", "aten.tile")
def repeat(x: jax.Array, repeats: Sequence[int]) -> jax.Array:
    """x repeated ``repeats[i]`` times along axis i, with new axes in front if there are more repeats than axes."""
    return jnp.tile(x, _sizes(repeats))


@lowering("aten.repeat_interleave.self_int", "aten.repeat_interleave.self_Tensor")
def repeat_interleave(x: jax.Array, repeats: Any, dim: int | None = None, *, output_size: int | None = None) -> Any:
    """x with every entry of an axis (None: of the flattened tensor) repeated ``repeats`` times in place."""
    if not isinstance(repeats, int) and output_size is None:
        raise ValueError("output_size: None given, so the size of the result would depend on values; pass output_size=")
    axis = None if dim is None else axis_of(dim, x.ndim)
    if x.ndim == 0:
        x, axis = x.reshape(1), 0
    return jnp.repeat(x, repeats, axis=axis, total_repeat_length=None if isinstance(repeats, int) else output_size)


@lowering("aten.repeat_interleave.Tensor")
def repeat_interleave_indices(repeats: jax.Array, *, output_size: int | None = None) -> jax.Array:
    """The numbers i = 0, 1, ..., each ``repeats[i]`` times in a row; ``output_size`` is their count."""
    return repeat_interleave(jnp.arange(repeats.size), repeats, output_size=output_size)


@lowering("aten.squeeze", "aten.squeeze_copy", layout="views")
def squeeze(x: View) -> View:
    """x without its axes of length 1."""
    return squeeze_axes(x, [d for d, n in enumerate(x.shape) if n == 1])


@lowering(*(f"aten.squeeze{copy}.{kind}" for copy in ("", "_copy") for kind in ("dim", "dims")), layout="views")
def squeeze_dims(x: View, dim: Any) -> View:
    """x without the axes ``dim``; axes of another length than 1 among them stay."""
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    axes = {axis_of(d, x.ndim) for d in dims}
    return squeeze_axes(x, [d for d in sorted(axes) if d < x.ndim and x.shape[d] == 1])


@lowering("aten.unsqueeze", "aten.unsqueeze_copy", layout="views")
def unsqueeze(x: View, dim: int) -> View:
    """x with a new axis of length 1 at ``dim``."""
    return insert_axis(x, dim)


@lowering("aten.select.int", "aten.select_copy.int", layout="views")
def select(x: View, dim: int, index: int) -> View:
    """The entry ``index`` of the axis ``dim``, without this axis."""
    d = axis_of(dim, x.ndim)
    index = _check_index(index, x.shape[d])
    part = apply_along(x, d, lambda array, axis: jax.lax.slice_in_dim(array, index, index + 1, axis=axis))
    return squeeze_axes(part, (d,))


def _check_index(index: int, length: int) -> int:
    if not -length <= index < length:
        raise misuse("index", index, f"from {-length} to {length - 1} for an axis of length {length}")
    return index % length


def _slice(x: View, dim: int, start: int, stop: int, step: int = 1) -> View:
    return apply_along(x, dim, lambda array, axis: jax.lax.slice_in_dim(array, start, stop, step, axis))


def _bounds(length: int, start: int | None, end: int | None) -> tuple[int, int]:
    begin, stop, _ = slice(start, end).indices(length)
    return begin, max(begin, stop)


@lowering("aten.slice.Tensor", "aten.slice_copy.Tensor", layout="views")
def slice_axis(x: View, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> View:
    """x with the entries start, start + step, ... before end of an axis, as by a Python slice."""
    length = x.shape[axis_of(dim, x.ndim)]
    begin, stop = _bounds(length, start, end)
    return x if (begin, stop, step) == (0, length, 1) else _slice(x, dim, begin, stop, step)


@lowering("aten.narrow", "aten.narrow_copy", layout="views")
def narrow(x: View, dim: int, start: int, length: int) -> View:
    """x with the entries start to start + length - 1 of an axis."""
    start = start % x.shape[axis_of(dim, x.ndim)] if start < 0 else start
    return _slice(x, dim, start, start + length)


@lowering(
    *(f"aten.{name}" for name in ("split_with_sizes", "unsafe_split_with_sizes", "split_with_sizes_copy")),
    "aten.split.sizes",
    layout="views",
)
def split_with_sizes(x: View, sizes: Sequence[int], dim: int = 0) -> tuple[View, ...]:
    """x cut along an axis into pieces of the lengths ``sizes``."""
    ends = np.cumsum(sizes)
    return tuple(_slice(x, dim, int(end - n), int(end)) for n, end in zip(sizes, ends))


@lowering("aten.split.Tensor", "aten.unsafe_split.Tensor", "aten.split_copy.Tensor", layout="views")
def split(x: View, size: int, dim: int = 0) -> tuple[View, ...]:
    """x cut along an axis into pieces of length ``size``; the last one may be shorter."""
    length = x.shape[axis_of(dim, x.ndim)]
    if size == 0 or length == 0:
        return (x,)
    return tuple(_slice(x, dim, i, min(i + size, length)) for i in range(0, length, size))


@lowering("aten.chunk", "aten.unsafe_chunk", layout="views")
def chunk(x: View, chunks: int, dim: int = 0) -> tuple[View, ...]:
    """x cut along an axis into at most ``chunks`` pieces of one length; the last one may be shorter."""
    length = x.shape[axis_of(dim, x.ndim)]
    if length == 0:
        return (x,) * chunks
    return split(x, -(-length // chunks), dim)


@lowering("aten.tensor_split.sections", layout="views")
def tensor_split(x: View, sections: int, dim: int = 0) -> tuple[View, ...]:
    """x cut along an axis into ``sections`` pieces; if the length does not divide, the first ones are longer by one."""
    size, longer = divmod(x.shape[axis_of(dim, x.ndim)], sections)
    return split_with_sizes(x, [size + (i < longer) for i in range(sections)], dim)


@lowering("aten.tensor_split.indices", layout="views")
def tensor_split_at(x: View, indices: Sequence[int], dim: int = 0) -> tuple[View, ...]:
    """x cut along an axis in front of the entries ``indices``."""
    return tuple(slice_axis(x, dim, a, b) for a, b in zip((None, *indices), (*indices, None)))


@lowering("aten.unbind.int", "aten.unbind_copy.int", layout="views")
def unbind(x: View, dim: int = 0) -> tuple[View, ...]:
    """The entries of the axis ``dim`` one by one, without this axis, as a tuple."""
    return tuple(select(x, dim, i) for i in range(x.shape[axis_of(dim, x.ndim)]))


@lowering("aten.cat", "aten.concat", "aten.concatenate", layout="views")
def cat(tensors: Sequence[View], dim: int = 0) -> View:
    """The tensors joined along the axis ``dim``; as in torch, tensors of shape (0,) are left out."""
    dtype = jnp.result_type(*(t.dtype for t in tensors))
    kept = [t for t in tensors if t.shape != (0,)] or [tensors[0]]
    arrays, order = align_order([t.with_array(t.array.astype(dtype)) for t in kept])
    return View(jnp.concatenate(arrays, order[axis_of(dim, kept[0].ndim)]), order)


@lowering("aten.stack", layout="views")
def stack(tensors: Sequence[View], dim: int = 0) -> View:
    """Tensors of one shape joined along a new axis ``dim``."""
    ndim = tensors[0].ndim
    arrays, order = align_order(tensors)
    return cat([insert_axis(View(array, order), axis_of(dim, ndim + 1)) for array in arrays], dim)


@lowering("aten.flip", layout="views")
def flip(x: View, dims: Sequence[int]) -> View:
    """x with the entries of the axes ``dims`` in reverse."""
    x = unmerge(x)
    return x.with_array(jnp.flip(x.array, [x.order[d] for d in axes_of(dims, x.ndim)] if dims else ()))


@lowering("aten.fliplr", layout="views")
def fliplr(x: View) -> View:
    """x with the entries of axis 1 in reverse."""
    return flip(x, (1,))


@lowering("aten.flipud", layout="views")
def flipud(x: View) -> View:
    """x with the entries of axis 0 in reverse."""
    return flip(x, (0,))


@lowering("aten.roll", layout="views")
def roll(x: View, shifts: Any, dims: Any = ()) -> View:
    """x shifted cyclically by ``shifts`` along the axes ``dims``; without ``dims`` along the flattened tensor."""
    x, shifts, dims = unmerge(x), _sizes(shifts), _sizes(dims)
    if not dims:
        return plain(jnp.roll(x.logical().reshape(-1), shifts[0]).reshape(x.shape))
    return x.with_array(jnp.roll(x.array, shifts, [x.order[axis_of(d, x.ndim)] for d in dims]))


@lowering("aten.rot90", layout="views")
def rot90(x: View, k: int = 1, dims: Sequence[int] = (0, 1)) -> View:
    """x turned by k right angles in the plane of two axes, from the first towards the second."""
    x = unmerge(x)
    if k % 2 == 0:
        return flip(x, dims) if k % 4 == 2 else x
    return flip(transpose(x, *dims), (dims[0],)) if k % 4 == 1 else flip(transpose(x, *dims), (dims[1],))


@lowering("aten.constant_pad_nd", layout="views")
def constant_pad(x: View, pad: Sequence[int], value: Any = 0) -> View:
    """x with entries ``value`` added before and after its axes.

    ``pad`` holds (before, after) of the last axis, of the one in front of it, and so on; negative numbers cut off.
    """
    x = unmerge(x)
    widths = [(0, 0, 0)] * x.ndim
    for i in range(len(pad) // 2):
        widths[x.order[x.ndim - 1 - i]] = (pad[2 * i], pad[2 * i + 1], 0)
    return x.with_array(jax.lax.pad(x.array, jnp.asarray(value, x.dtype), widths))
