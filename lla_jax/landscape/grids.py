"""Makes, checks and compares grids: the coordinates of the points of a landscape."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lla_jax.core.arguments import Misuse, misuse
from lla_jax.core.memory import check_memory
from lla_jax.core.signatures import explained

LARGEST = 1e38  # coordinates are used in float32


@explained
def grid(
    extent: float = 1.0,
    points: int | Sequence[int] = 41,
    dims: int = 2,
    *,
    ranges: Sequence[tuple[float, float]] | None = None,
) -> tuple[np.ndarray, ...]:
    """Make the coordinates of a grid: ``points`` values per axis, from -extent to extent or over explicit ranges.

        c_i = (lo + hi) / 2 + (hi - lo) / 2 * (2 i - (n - 1)) / (n - 1)

    An odd number of points over a symmetric range puts one exactly on 0, the centre. One point lies in the middle.

    Args:
      extent: half the range of every axis, in units of the direction.
      points: number of values per axis, one int for all or one per axis.
      dims: number of axes; ignored when ``ranges`` (or a sequence of ``points``) gives it.
      ranges: ``(lo, hi)`` per axis instead of ``extent``.

    Returns:
      A tuple of 1-D float64 arrays, one per axis.

    Raises:
      ValueError: fewer than one point, an extent not above 0, lo >= hi with several points, non-finite ends, numbers
        of axes that disagree.

    Where we differ from the reference (the implementation of LLA, arXiv 2412.10146): its grid covers half the stated
    range, and has no cell on the centre for odd sizes; this one is symmetric.
    """
    try:
        return _grid(extent, points, dims, ranges)
    except Misuse:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise Misuse(
            "grid",
            f"extent={extent!r}, points={points!r}, dims={dims!r}, ranges={ranges!r} given; they must be a number, an "
            "int or one int per axis, an int, and one (lo, hi) per axis, such as lla.grid(extent=1.0, points=41); "
            "arrays of coordinates are a grid already: pass (a, b) where a grid is asked for",
        ) from error


def _grid(extent: Any, points: Any, dims: Any, ranges: Any) -> tuple[np.ndarray, ...]:
    for value in (extent, points, dims, *(points if isinstance(points, list | tuple) else ())):
        if isinstance(value, bool | np.bool_ | str):
            raise TypeError(f"{value!r} is no number")
    if isinstance(points, set | frozenset | Mapping) or isinstance(ranges, str | Mapping):
        raise TypeError("not in order")
    is_one = np.ndim(points) == 0  # also of an array of jax
    points = operator.index(points) if is_one else points
    if ranges is None:
        dims = operator.index(dims) if is_one else len(points)
        if not math.isfinite(extent) or extent <= 0:
            raise misuse("extent", extent, "a finite number above 0; for other ends use ranges=[(lo, hi), ...]")
        ranges = [(-float(extent), float(extent))] * dims
    counts = [points] * len(ranges) if is_one else [operator.index(n) for n in points]
    if len(counts) != len(ranges) or not counts:
        raise Misuse(
            "grid", f"{len(counts)} numbers of points for {len(ranges)} ranges; give one of each for at least one axis"
        )
    if any(isinstance(end, bool | str) for ends in ranges for end in ends):
        raise TypeError("an end is no number")
    check_memory("points", f"{max(counts):,} points on an axis", 24.0 * sum(counts))
    return tuple(_axis(float(lo), float(hi), int(n)) for (lo, hi), n in zip(ranges, counts, strict=True))


def _axis(lo: float, hi: float, n: int) -> np.ndarray:
    if n < 1 or not math.isfinite(hi - lo) or (n > 1 and lo >= hi):
        raise Misuse(
            "grid", f"{n} points from {lo} to {hi} given; an axis must have at least one point, and finite lo < hi"
        )
    if n == 1:
        return np.array([(lo + hi) / 2])
    axis = (lo + hi) / 2 + (hi - lo) / 2 * (2 * np.arange(n) - (n - 1)) / (n - 1)
    axis[[0, -1]] = lo, hi
    return axis


def grid_points(grid: tuple[np.ndarray, ...], lo: int, hi: int) -> np.ndarray:
    """The coordinates (C, k) of the C points of a grid whose flat indices, in row-major order, are in [lo, hi)."""
    return points_at(grid, np.arange(lo, hi))


def points_at(grid: tuple[np.ndarray, ...], flat: np.ndarray) -> np.ndarray:
    """The coordinates (C, k) of the points of a grid with the flat indices (C,), in row-major order."""
    indices = np.unravel_index(flat, tuple(map(len, grid)))
    return np.stack([c[i] for c, i in zip(grid, indices, strict=True)], -1)


SNAP = 1e-12  # coordinates of an axis are the same if they differ by less than this, relative to the largest


def is_same_grid(one: Sequence[np.ndarray], two: Sequence[np.ndarray]) -> bool:
    """Whether two grids have the same coordinates in the same order, axis by axis and up to rounding."""
    return len(one) == len(two) and all(
        len(a) == len(b) and np.all(abs(a - b) <= SNAP * abs(a).max()) for a, b in zip(one, two, strict=True)
    )


def _as_axes(grid: Any) -> Any:
    if isinstance(grid, str | Mapping | set | frozenset):
        raise TypeError("not a sequence of axes")
    return grid


def _axis_hint(axis: np.ndarray) -> str:
    """The end of the message about an axis that is not 1-D: the likely slip."""
    if axis.ndim == 0:
        points = "for numbers of points lla.grid(points=(n1, n2))"
        ends = "for ends lla.grid(ranges=[(lo, hi)])"
        return f"; for a single axis pass a list of one array, [coordinates], {points}, and {ends}"
    return "; of np.meshgrid pass the arguments, not its result" if axis.ndim > 1 else ""


def check_grid(grid: Any) -> tuple[np.ndarray, ...]:
    """Return the grid as a tuple of 1-D float64 arrays, one per axis.

    Raises:
      ValueError: no axis, an axis that is not 1-D or is empty, or coordinates that are not finite numbers.
    """
    if isinstance(grid, np.ndarray) and grid.ndim == 1 and grid.dtype.kind in "fiu":
        grid = (grid,)  # one axis
    try:
        axes = [np.asarray(c) for c in _as_axes(grid)]
        if any(np.iscomplexobj(c) for c in axes):
            raise TypeError("complex")
        coords = tuple(c.astype(np.float64) for c in axes)
    except (TypeError, ValueError) as error:
        raise misuse("grid", grid, "one 1-D array of coordinates per axis, such as lla.grid()") from error
    for i, c in enumerate(coords):
        if c.ndim != 1 or not len(c) or not np.isfinite(c).all():
            raise Misuse(
                "grid",
                f"axis {i} has shape {c.shape}; it must be a 1-D array of one or more finite coordinates, such as "
                f"np.linspace(-1, 1, 41){_axis_hint(c)}",
            )
        if abs(c).max() > LARGEST:
            raise Misuse(
                "grid", f"axis {i} goes to {abs(c).max():.3g}; coordinates must be below {LARGEST:g}, as in float32"
            )
    if not coords:
        raise Misuse("grid", "has no axis; pass one such as lla.grid(extent=1.0, points=41, dims=2)")
    return coords
