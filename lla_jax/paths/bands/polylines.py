"""Polylines through K points of parameter space: lengths of their segments, points on them, and moves along them.

Points are a list of trees, so that programs are compiled for a pair of them, whatever their number; what is traced
takes them stacked, with a leading axis K. The first and the last never change, not by a bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
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


def segment_lengths(points: PyTree) -> jax.Array:
    """The lengths of the K - 1 segments between stacked points, of shape (K - 1,); to be traced."""
    steps = segments(points)
    return jnp.sqrt(dots(steps, steps))


@jax.jit
def distance(one: PyTree, other: PyTree) -> jax.Array:
    """|other - one|, a scalar in float32 at least."""
    step = jax.tree.map(lambda x, y: _tree.widen(y) - _tree.widen(x), one, other)
    return _tree.norm(step)


def lengths_of(points: Sequence[PyTree]) -> np.ndarray:
    """The lengths of the K - 1 segments of a polyline, of shape (K - 1,), in float64."""
    return np.asarray(jax.device_get([distance(one, other) for one, other in itertools.pairwise(points)]), np.float64)


def knots_of(points: Sequence[PyTree]) -> np.ndarray:
    """Where the K points lie on their polyline, as shares of its length from 0 to 1, of shape (K,), in float64.

    A polyline without length has equally spaced knots.
    """
    lengths = lengths_of(points)
    if not lengths.sum() > 0:
        return np.linspace(0, 1, len(lengths) + 1)
    knots = np.concatenate([[0.0], np.cumsum(lengths) / lengths.sum()])
    knots[-1] = 1.0
    return knots


@jax.jit
def between(one: PyTree, other: PyTree, weight: Any) -> PyTree:
    """The point one + weight (other - one) of a segment."""

    def of_leaf(x: Any, y: Any) -> jax.Array:
        start, end = _tree.widen(x), _tree.widen(y)
        return (start + weight * (end - start)).astype(jnp.result_type(x))

    return jax.tree.map(of_leaf, one, other)


def redistribute(points: Sequence[PyTree], knots: np.ndarray, lengths: np.ndarray) -> list[PyTree]:
    """Move points along their own polyline until they lie at given shares of its length.

    It stands in place of springs between neighbours: what pulls pivots along the path is undone, what moves them across
    it stays. Where they lie at their places already, nothing moves.

    Args:
      points: K points.
      knots: (K,) shares of the length, which increase from 0 to 1.
      lengths: (K - 1,) of the segments.

    Returns:
      K points; the first and the last are those of ``points``.
    """
    at = np.concatenate([[0.0], np.cumsum(lengths)])
    wanted = knots[1:-1] * at[-1]
    low = np.clip(np.searchsorted(at, wanted, side="right") - 1, 0, len(lengths) - 1)
    inner = []
    for k, place in zip(low, wanted, strict=True):
        weight = (place - at[k]) / lengths[k] if lengths[k] > 0 else 0.0
        inner.append(between(points[k], points[k + 1], np.float32(weight)))
    return [points[0], *inner, points[-1]]
