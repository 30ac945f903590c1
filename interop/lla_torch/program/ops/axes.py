"""Helpers for operators along logical axes: their places in a view's array, and work along them without transposes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lla_jax.models.adapters import misuse
from lla_torch.program.views import View, plain


def axis_of(dim: int, ndim: int) -> int:
    """The axis ``dim`` counted from 0, where ``dim`` may be negative; a tensor without axes has axis 0, as in torch."""
    bound = max(ndim, 1)
    if not -bound <= dim < bound:
        raise misuse("dim", dim, f"from {-bound} to {bound - 1} for a tensor of {ndim} axes")
    return dim % bound


def axes_of(dim: Any, ndim: int) -> tuple[int, ...]:
    """The axes ``dim`` (a number or several, which may be negative) counted from 0; None or () means all."""
    if dim is None or dim == ():
        return tuple(range(ndim))
    dims = (dim,) if isinstance(dim, int) else dim
    return tuple(axis_of(d, ndim) for d in dims) if ndim else ()


def unmerge(x: View) -> View:
    """``x`` as a view that is not merged: every logical axis is an axis of the array."""
    return plain(x.logical()) if x.is_merged else x


def drop_axes(order: Sequence[int], dims: Sequence[int]) -> tuple[int, ...]:
    """The order of a view after its logical axes ``dims`` were removed from its array."""
    removed = [order[d] for d in dims]
    return tuple(a - sum(r < a for r in removed) for a in order if a not in removed)


def apply_along(x: View, dim: int, function: Callable[[jax.Array, int], Any]) -> Any:
    """Apply ``function(array, axis)``, which keeps all axes, to the view's own array along the logical axis ``dim``.

    The result, or each one of a tuple, is a view; of a tensor without axes it is an array.
    """
    x = unmerge(x)
    if x.ndim == 0:
        return jax.tree.map(lambda r: r.reshape(()), function(x.array.reshape(1), axis_of(dim, 0)))
    result = function(x.array, x.order[axis_of(dim, x.ndim)])
    return jax.tree.map(lambda r: View(r, x.order), result)


def reduce_axes(x: View, dim: Any, keepdim: bool, function: Callable[..., Any]) -> Any:
    """Apply a reduction ``function(array, axes, keepdims)`` to the view's own array over the logical axes ``dim``.

    None or () means all axes. The result, or each one of a tuple, is a view, or an array where a merged view is
    reduced.
    """
    dims = axes_of(dim, x.ndim)
    if x.is_merged and len(dims) == x.ndim and not keepdim:
        return function(x.array, tuple(range(x.array.ndim)), False)
    x = unmerge(x)
    result = function(x.array, tuple(x.order[d] for d in dims), keepdim)
    order = x.order if keepdim else drop_axes(x.order, dims)
    return jax.tree.map(lambda r: View(r, order), result)


def pick_along(x: View, dim: int, keepdim: bool, index: Callable[[jax.Array, int], jax.Array]) -> tuple[View, View]:
    """(entries of ``x``, indices) along the axis ``dim``, where the indices are ``index(array, axis)``.

    Without ``keepdim`` the axis is removed, so the indices must have length 1 along it. The entries alone have a
    derivative.
    """

    def pick(array: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
        indices = index(jax.lax.stop_gradient(array), axis)
        return jnp.take_along_axis(array, indices, axis), indices

    values, indices = apply_along(x, dim, pick)
    if keepdim or x.ndim == 0:
        return values, indices
    return squeeze_axes(values, (axis_of(dim, x.ndim),)), squeeze_axes(indices, (axis_of(dim, x.ndim),))


def squeeze_axes(x: View, dims: Sequence[int]) -> View:
    """``x`` without the axes ``dims``, which have length 1."""
    x = unmerge(x)
    return View(jax.lax.squeeze(x.array, [x.order[d] for d in dims]), drop_axes(x.order, dims))


def insert_axis(x: View, dim: int) -> View:
    """``x`` with a new axis of length 1 at ``dim``, which lies beside its logical neighbour in the array."""
    x = unmerge(x)
    dim = axis_of(dim, x.ndim + 1)
    at = x.order[dim] if dim < x.ndim else x.order[-1] + 1 if x.ndim else 0
    order = [a + (a >= at) for a in x.order]
    return View(jnp.expand_dims(x.array, at), (*order[:dim], at, *order[dim:]))


def align_order(values: Sequence[View]) -> tuple[list[jax.Array], tuple[int, ...]]:
    """(arrays, order): tensors with equally many axes as arrays in a common order, that of the largest tensor."""
    values = [unmerge(v) for v in values]
    order = max(values, key=lambda v: (math.prod(v.shape), v.order != tuple(range(v.ndim)))).order
    return [v.physical(order) for v in values], order


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Cut two shapes with the same number of entries (not 0) into pairs of runs of axes that hold the same entries."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) and j < len(new):
        left, right, a, b = [i], [j], old[i], new[j]
        while a != b:
            if a < b:
                i += 1
                a *= old[i]
                left.append(i)
            else:
                j += 1
                b *= new[j]
                right.append(j)
        groups.append((left, right))
        i, j = i + 1, j + 1
    if groups:  # axes of length 1 may be left over
        groups[-1][0].extend(range(i, len(old)))
        groups[-1][1].extend(range(j, len(new)))
    return groups


def regroup_axes(x: View, shape: Sequence[int]) -> View | None:
    """``x.reshape(shape)`` as a view of the same array, or None where there is no such view.

    Axes are split where they lie, and merged if they lie one after the other. For example, (N, C, H, W) lying as
    (N, H, W, C) becomes (N, C, H W) lying as (N, H W, C).
    """
    if x.is_merged or math.prod(shape) == 0 or not shape or not x.ndim:
        return None
    real = sorted(x.order[d] for d in range(x.ndim) if x.shape[d] != 1)
    rank = {axis: r for r, axis in enumerate(real)}
    placed: list[tuple[int, int, list[int]]] = []
    for number, (left, right) in enumerate(_groups(x.shape, shape)):
        ranks = [rank[x.order[d]] for d in left if x.shape[d] != 1]
        if ranks and ranks != list(range(ranks[0], ranks[0] + len(ranks))):
            return None
        place = ranks[0] if ranks else placed[-1][0] if placed else -1
        placed.append((place, number, right))
    physical = [d for _, _, right in sorted(placed) for d in right]
    order = [0] * len(shape)
    for axis, d in enumerate(physical):
        order[d] = axis
    return View(x.array.reshape([shape[d] for d in physical]), tuple(order))
