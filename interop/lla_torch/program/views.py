"""``View``: a tensor with torch's order of axes, kept in an array with another order, so that transposes cost nothing.

torch computes images as (N, C, H, W) and keeps matrices as (out, in); XLA and Flax use (N, H, W, C) and (in, out). A
view keeps the array in one order and notes where torch's axes lie in it. So a network runs in the fast order from end
to end, with a transpose only where an operator needs torch's order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True, eq=False)
class View:
    """A tensor in torch's order of axes (logical) over an array in any order of axes (physical).

        logical = array.reshape(split).transpose(order).reshape(merged)

    Args:
      array: the physical array.
      order: logical axis i, before axes are merged, lies on axis ``order[i]`` of the array (after the split).
      split: the shape to which the array is reshaped first; None: its own.
      merged: the logical shape where several axes are merged, as by a flatten in front of a linear layer; None: the
        shape after the transpose.
    """

    array: Any
    order: tuple[int, ...]
    split: tuple[int, ...] | None = None
    merged: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical shape."""
        if self.merged is not None:
            return self.merged
        return tuple(self.array.shape[i] for i in self.order)

    @property
    def ndim(self) -> int:
        """Number of logical axes."""
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """Type of the entries."""
        return self.array.dtype

    @property
    def is_merged(self) -> bool:
        """Whether ``merged`` is set: some logical axis consists of several axes in another order than the array's."""
        return self.merged is not None

    def logical(self) -> jax.Array:
        """The tensor as an array in torch's order of axes."""
        array = self.array
        if self.split is not None:
            array = array.reshape(self.split)
        if self.order != tuple(range(len(self.order))):
            array = jnp.transpose(array, self.order)
        return array if self.merged is None else array.reshape(self.merged)

    def physical(self, order: Sequence[int]) -> jax.Array:
        """The tensor as an array whose axis ``order[i]`` is logical axis i; the view's own if it has this order."""
        order = tuple(order)
        if not self.is_merged and self.order == order:
            return self.array
        return jnp.transpose(self.logical(), inverse(order))

    def transposed(self, axes: Sequence[int]) -> View:
        """The view whose axis i is axis ``axes[i]``, torch's ``permute``; moves no data unless ``is_merged``."""
        if self.is_merged:
            return plain(self.logical()).transposed(axes)
        return View(self.array, tuple(self.order[a] for a in axes))

    def with_array(self, array: Any) -> View:
        """A view of the same layout over another array of the same physical shape."""
        return View(array, self.order, self.split, self.merged)


def plain(array: Any) -> View:
    """The view over an array whose logical order of axes is the array's own."""
    return View(array, tuple(range(jnp.ndim(array))))


def as_view(x: Any) -> View:
    """``x`` itself if it is a view, else ``plain`` of it as an array."""
    return x if isinstance(x, View) else plain(jnp.asarray(x))


def inverse(order: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes ``order``."""
    result = [0] * len(order)
    for i, axis in enumerate(order):
        result[axis] = i
    return tuple(result)


def channels_last(ndim: int) -> tuple[int, ...]:
    """The ``order`` of a view (N, C, *spatial) over an array (N, *spatial, C), for ``ndim`` axes."""
    return (0, ndim - 1, *range(1, ndim - 1))


def aligned(values: Sequence[Any]) -> tuple[list[Any], View | None]:
    """Physical arrays that broadcast against each other as the logical tensors do, and a view with their layout.

    Args:
      values: views, or Python scalars, which stay as they are.

    Returns:
      The arrays, and the view whose ``with_array`` wraps a result; None if there is no view among the values.
    """
    views = [v for v in values if isinstance(v, View)]
    if not views:
        return list(values), None
    ndim = max(v.ndim for v in views)
    full = [v for v in views if v.ndim == ndim]
    lead = max(full, key=lambda v: (math.prod(v.shape), v.is_merged or v.order != tuple(range(len(v.order)))))
    same = lambda v: (v.order, v.split, v.merged) == (lead.order, lead.split, lead.merged)  # noqa: E731
    if lead.is_merged and not all(same(v) or math.prod(v.shape) == 1 for v in views):
        lead = plain(lead.logical())
    if lead.is_merged:  # the other views are single numbers
        scalar = lambda v: v.logical().reshape((1,) * lead.array.ndim)  # noqa: E731
        return [v if not isinstance(v, View) else v.array if same(v) else scalar(v) for v in values], lead

    def lay(v: Any) -> Any:
        if not isinstance(v, View):
            return v
        if not v.is_merged and v.order == lead.order:
            return v.array
        if v is not lead and v.ndim < ndim:
            if v.ndim == 0:
                return v.array
            v = plain(v.logical().reshape((1,) * (ndim - v.ndim) + v.shape))
        return v.physical(lead.order)

    return [lay(v) for v in values], lead


def merge_tail(x: View, start: int) -> View | None:
    """``x.flatten(start)`` as a view of the same array, or None where there is no such view.

    There is one where the flattened axes lie, in any order, at the end of the array, as (N, C, H, W) in (N, H, W, C).
    """
    if x.is_merged or sorted(x.order[start:]) != list(range(start, x.ndim)) or x.order[:start] != tuple(range(start)):
        return None
    shape = (*x.shape[:start], math.prod(x.shape[start:]))
    physical = x.array.shape
    array = x.array.reshape(shape)
    if sum(n > 1 for n in x.shape[start:]) <= 1 or x.order == tuple(range(x.ndim)):
        return plain(array)  # nothing to reorder
    return View(array, x.order, physical, shape)
