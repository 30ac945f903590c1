"""Polylines through K points of parameter space: lengths of their segments, points on them, and moves along them.

The points are one stacked tree, with a leading axis K. The first and the last never change, not by a bit.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.types import PyTree


def dots(a: PyTree, b: PyTree) -> jax.Array:
    """The inner products of the K rows of two stacked trees, of shape (K,), in float32 at least."""

    def of_leaf(x: Any, y: Any) -> jax.Array:
        return jnp.sum((_tree.widen(x) * _tree.widen(y)).reshape(len(x), -1), 1)

    return jnp.asarray(sum(jax.tree.leaves(jax.tree.map(of_leaf, a, b))))


def scale(rows: PyTree, factors: jax.Array) -> PyTree:
    """A stacked tree whose K rows are multiplied by K factors."""
    return jax.tree.map(lambda x: x * factors.reshape(-1, *[1] * (x.ndim - 1)), rows)


def segments(points: PyTree) -> PyTree:
    """The differences of neighbours, a stacked tree of K - 1 rows, in float32 at least."""
    return jax.tree.map(lambda x: _tree.widen(x[1:]) - _tree.widen(x[:-1]), points)


@jax.jit
def segment_lengths(points: PyTree) -> jax.Array:
    """The lengths of the K - 1 segments of a polyline, of shape (K - 1,)."""
    steps = segments(points)
    return jnp.sqrt(dots(steps, steps))


def knots_of(points: PyTree) -> np.ndarray:
    """Where the K points lie on their polyline, as shares of its length from 0 to 1, of shape (K,), in float64.

    A polyline without length has equally spaced knots.
    """
    lengths = np.asarray(segment_lengths(points), np.float64)
    if not lengths.sum() > 0:
        return np.linspace(0, 1, len(lengths) + 1)
    knots = np.concatenate([[0.0], np.cumsum(lengths) / lengths.sum()])
    knots[-1] = 1.0
    return knots


@jax.jit
def mix(points: PyTree, low: jax.Array, weight: jax.Array) -> PyTree:
    """Points on a polyline, stacked: (1 - weight) p[low] + weight p[low + 1] for M pairs (low, weight).

    A weight of 0 gives p[low] to the bit.
    """

    def of_leaf(x: jax.Array) -> jax.Array:
        start, end = _tree.widen(x[low]), _tree.widen(x[low + 1])
        by = weight.reshape(-1, *[1] * (x.ndim - 1))
        return (start + by * (end - start)).astype(x.dtype)

    return jax.tree.map(of_leaf, points)


@jax.jit
def redistribute(points: PyTree, knots: jax.Array) -> PyTree:
    """Move points along their own polyline until they lie at given shares of its length.

    It stands in place of springs between neighbours: what pulls pivots along the path is undone, what moves them across
    it stays. Where they lie at their places already, nothing moves.

    Args:
      points: K stacked points.
      knots: (K,) shares of the length, which increase from 0 to 1.

    Returns:
      K stacked points; the first and the last are those of ``points``, to the bit.
    """
    lengths = segment_lengths(points)
    at = jnp.concatenate([jnp.zeros(1, lengths.dtype), jnp.cumsum(lengths)])
    wanted = knots[1:-1].astype(lengths.dtype) * at[-1]
    low = (at[1:-1] <= wanted[:, None]).sum(1)  # the segment in which each place is
    length = lengths[low]
    weight = jnp.where(length > 0, (wanted - at[low]) / jnp.where(length > 0, length, 1), 0)
    inner = mix(points, low, jnp.clip(weight, 0, 1))
    return jax.tree.map(lambda x, y: jnp.concatenate([x[:1], y, x[-1:]]), points, inner)
