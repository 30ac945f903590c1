"""The line, plane or volume through checkpoints; a part of ``directions``, which has the name users call."""

from __future__ import annotations

import string
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import tree_util

from lla_jax.core import tree as _tree
from lla_jax.core.types import Directions, PyTree, Recipe


def between(
    a: PyTree, b: PyTree, *more: PyTree, orthogonal: bool = False, names: Sequence[str] | None = None
) -> Directions:
    """Differences of checkpoints: d_1 = b - a, d_2 = c - a, ...; the line, plane or volume through all of them.

    With ``orthogonal`` the differences are made orthogonal in turn (Gram-Schmidt) and all as long as b - a, so that
    distances and angles in a picture with equal axes are those of parameter space. In either case ``recipe["marks"]``
    has the coordinates x of every checkpoint, a + sum_i x_i d_i, with a at the origin.

    Args:
      a: the centre, to be passed as ``params`` to ``evaluate``.
      b: a second checkpoint of the same structure.
      *more: a third checkpoint for a plane, a fourth for a volume.
      orthogonal: whether the axes shall be orthogonal and of equal length.
      names: of the checkpoints in pictures, one each; default "A", "B", ...

    Returns:
      One direction per checkpoint besides ``a``, in float32 at least. Batch statistics are no part of them.

    Raises:
      ValueError: checkpoints of different structure or shape, with entries that are not finite, equal to ``a``, or
        (with ``orthogonal``) on one line or plane with those before.

    References:
      Goodfellow et al. 2014, arXiv:1412.6544 (line); Garipov et al. 2018, arXiv:1802.10026 (plane through three).
    """
    points = [a, b, *more]
    names = [string.ascii_uppercase[i % 26] for i in range(len(points))] if names is None else [str(n) for n in names]
    if len(names) != len(points):
        raise ValueError(f"names: {len(names)} given for {len(points)} checkpoints; give one each, that of a first")
    for name, point in zip(names, points):
        _tree.check_real(point, name)
    leaves = [tree_util.tree_leaves(_tree.align(p, a, name, names[0])) for name, p in zip(names, points)]
    diffs = [[np.asarray(x, np.float64) - np.asarray(y, np.float64) for x, y in zip(p, leaves[0])] for p in leaves[1:]]
    lengths = [_host_dot(d, d) ** 0.5 for d in diffs]
    if 0 in lengths:
        raise ValueError(f"{names[1 + lengths.index(0)]} equals {names[0]}; pass checkpoints that differ")
    axes = _equal_orthogonal(diffs, lengths, names[1:]) if orthogonal else diffs
    if orthogonal:
        coords = np.array([[_host_dot(d, e) / _host_dot(e, e) for e in axes] for d in diffs])
    else:
        coords = np.eye(len(diffs))
    recipe = Recipe(
        kind="between",
        names=[
            f"{name} orthogonal" if orthogonal and i else f"{name} - {names[0]}" for i, name in enumerate(names[1:])
        ],
        orthogonal=bool(orthogonal),
        marks=[[names[0], [0.0] * len(axes)], *([n, c.tolist()] for n, c in zip(names[1:], coords))],
    )
    stacked = [
        jnp.asarray(np.stack(column), jnp.promote_types(_tree.shape_dtype(ref)[1], jnp.float32))
        for column, ref in zip(zip(*axes), leaves[0])
    ]
    return Directions(tree_util.tree_unflatten(tree_util.tree_structure(a), stacked), recipe)


def _host_dot(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    return float(sum(np.vdot(x, y) for x, y in zip(a, b)))


def _equal_orthogonal(diffs: list[list[np.ndarray]], lengths: list[float], names: list[str]) -> list[list[np.ndarray]]:
    axes: list[list[np.ndarray]] = []
    for name, diff, length in zip(names, diffs, lengths):
        rest = _remove(diff, axes)
        size = _host_dot(rest, rest) ** 0.5
        if size <= 1e-6 * length:  # parameters are float32: less than that is their rounding
            raise ValueError(
                f"{name} lies on the line or plane of the checkpoints before it; use orthogonal=False or leave it out"
            )
        axes.append([x * (lengths[0] / size) for x in rest])
    return axes


def _remove(vector: list[np.ndarray], axes: list[list[np.ndarray]]) -> list[np.ndarray]:
    """The part of ``vector`` orthogonal to ``axes``; done twice, since once leaves rounding errors."""
    for axis in [*axes, *axes]:
        share = _host_dot(axis, vector) / _host_dot(axis, axis)
        vector = [x - share * y for x, y in zip(vector, axis)]
    return vector
