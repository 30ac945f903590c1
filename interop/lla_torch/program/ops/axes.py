"""Logical axes and where they lie in a view's array; sums, choices and magnitudes along them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lla_torch.program.views import View, plain


def axis_of(dim: int, ndim: int) -> int:
    """The axis that ``dim``, negative from the end, means; torch lets a single number have axis 0."""
    bound = max(ndim, 1)
    if not -bound <= dim < bound:
        raise ValueError(f"dim is {dim}; a tensor of {ndim} axes takes {-bound} to {bound - 1}")
    return dim % bound


def axes_of(dim: Any, ndim: int) -> tuple[int, ...]:
    """The axes that ``dim`` (None or (): all) means."""
    if dim is None or dim == ():
        return tuple(range(ndim))
    dims = (dim,) if isinstance(dim, int) else dim
    return tuple(axis_of(d, ndim) for d in dims) if ndim else ()


def unmerged(x: View) -> View:
    """``x`` with every logical axis an axis of the array."""
    return plain(x.logical()) if x.is_merged else x


def magnitude(x: jax.Array) -> jax.Array:
    """|x|, with derivative 0 at 0 as torch has it; jax's is 1 there."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x * jax.lax.stop_gradient(jnp.sign(x))
    return jnp.abs(x)


def drop(order: Sequence[int], dims: Sequence[int]) -> tuple[int, ...]:
    """The order of a view whose logical axes ``dims`` are taken out of its array."""
    gone = [order[d] for d in dims]
    return tuple(a - sum(g < a for g in gone) for a in order if a not in gone)


def along(x: View, dim: int, function: Callable[[jax.Array, int], Any]) -> Any:
    """``function(array, axis)``, which keeps the axes, on the view's own array; one result or a tuple of them."""
    x = unmerged(x)
    if x.ndim == 0:
        return jax.tree.map(lambda r: r.reshape(()), function(x.array.reshape(1), axis_of(dim, 0)))
    result = function(x.array, x.order[axis_of(dim, x.ndim)])
    return jax.tree.map(lambda r: View(r, x.order), result)


def reduced(x: View, dim: Any, keepdim: bool, function: Callable[..., Any]) -> Any:
    """``function(array, axes, keepdims)`` over the axes ``dim`` (None or (): all); one result or a tuple."""
    dims = axes_of(dim, x.ndim)
    if x.is_merged and len(dims) == x.ndim and not keepdim:
        return function(x.array, tuple(range(x.array.ndim)), False)
    x = unmerged(x)
    result = function(x.array, tuple(x.order[d] for d in dims), keepdim)
    order = x.order if keepdim else drop(x.order, dims)
    return jax.tree.map(lambda r: View(r, order), result)


def picked(x: View, dim: int, keepdim: bool, index: Callable[[jax.Array, int], jax.Array]) -> tuple[View, View]:
    """(entries, indices) along an axis, at ``index(array, axis)``, which keeps the axis with length 1."""

    def pick(array: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
        found = index(jax.lax.stop_gradient(array), axis)
        return jnp.take_along_axis(array, found, axis), found

    values, indices = along(x, dim, pick)
    if keepdim or x.ndim == 0:
        return values, indices
    return squeezed(values, (axis_of(dim, x.ndim),)), squeezed(indices, (axis_of(dim, x.ndim),))


def squeezed(x: View, dims: Sequence[int]) -> View:
    """``x`` without the axes ``dims``, which have length 1."""
    x = unmerged(x)
    return View(jax.lax.squeeze(x.array, [x.order[d] for d in dims]), drop(x.order, dims))


def unsqueezed(x: View, dim: int) -> View:
    """``x`` with a new axis of length 1 at ``dim``, lying next to its neighbour."""
    x = unmerged(x)
    dim = axis_of(dim, x.ndim + 1)
    at = x.order[dim] if dim < x.ndim else x.order[-1] + 1 if x.ndim else 0
    order = [a + (a >= at) for a in x.order]
    return View(jnp.expand_dims(x.array, at), (*order[:dim], at, *order[dim:]))


def common(values: Sequence[View]) -> tuple[list[jax.Array], tuple[int, ...]]:
    """Tensors with the same number of axes in the order of the largest: their arrays, and that order."""
    values = [unmerged(v) for v in values]
    order = max(values, key=lambda v: (math.prod(v.shape), v.order != tuple(range(v.ndim)))).order
    return [v.physical(order) for v in values], order


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Pairs of neighbouring axes of two shapes of one size (not 0) that hold the same entries."""
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


def regrouped(x: View, shape: Sequence[int]) -> View | None:
    """``x.reshape(shape)`` without moving anything, or None where that cannot be.

    Axes are split where they lie, and merged if they lie one after the other: so (N, C, H, W) lying as (N, H, W, C)
    becomes (N, C, H W) lying as (N, H W, C).
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
