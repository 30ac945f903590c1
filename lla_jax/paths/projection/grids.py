"""Makes grids around the coordinates of paths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lla_jax.core.arguments import Misuse, check_flag, check_integer, check_number, misuse
from lla_jax.core.signatures import explained
from lla_jax.paths.projection.projections import Projection

FLAT = 1e-9  # an extent below this share of the largest one is rounding


@explained
def grid_around(
    seen: Projection | Sequence[Projection] | Any,
    margin: float = 0.2,
    points: int | Sequence[int] = 41,
    *,
    square: bool = False,
) -> tuple[np.ndarray, ...]:
    """A grid that holds all checkpoints of a path, or of several, and the centre, with a margin.

    The centre, at the coordinates 0, is one of its points, and the spacing is the smallest that allows for it.

    Args:
      seen: a ``Projection``, coordinates (T, k), or a list of these.
      margin: on every side, relative to the extent of the path along the axis.
      points: the number of points per axis, one int for all or one per axis, at least 3.
      square: the same range along all axes, so that distances in a picture are those along axes of equal norm. By
        default each axis has the extent of the path; one along which the path does not move has the largest of the
        others, or 1 where it moves along none.

    Returns:
      A tuple of k 1-D float64 arrays, to be passed to ``lla.evaluate``.

    Raises:
      ValueError: no coordinates, or some that are not finite; a negative margin; fewer than 3 points.
    """
    coords = np.concatenate([np.zeros((1, _coords(seen)[0].shape[1])), *_coords(seen)])
    margin = check_number("margin", margin, least=0.0, remedy="relative to the extent of the path, such as 0.2")
    check_flag("square", square)
    dims = coords.shape[1]
    counts = [points] * dims if np.ndim(points) == 0 else list(points)  # type: ignore[arg-type]
    if len(counts) != dims:
        raise misuse("points", points, f"an integer, or one for each of the {dims} axes")
    counts = [check_integer("points", n, 3, remedy="such as 41") for n in counts]
    lo, hi = coords.min(0), coords.max(0)
    extent = hi - lo
    flat = extent <= FLAT * extent.max()
    wanted = np.where(flat | bool(square), extent.max() or 1.0, extent)
    middle = (lo + hi) / 2
    lo, hi = middle - wanted * (0.5 + margin), middle + wanted * (0.5 + margin)
    return tuple(_with_zero(float(a), float(b), n) for a, b, n in zip(lo, hi, counts, strict=True))


def _coords(seen: Any) -> list[np.ndarray]:
    """The coordinates of each path.

    Raises:
      Misuse: none, of different numbers of axes, or not finite.
    """
    each = [seen] if isinstance(seen, Projection) or hasattr(seen, "shape") else seen
    rule = "a Projection of lla.paths.project, coordinates of shape (T, k), or a list of these"
    if not isinstance(each, list | tuple) or not each:
        raise misuse("seen", seen, rule)
    if not all(isinstance(x, Projection) or hasattr(x, "shape") for x in each):
        raise misuse("seen", seen, rule)
    try:
        arrays = [np.asarray(x.coords if isinstance(x, Projection) else x, np.float64) for x in each]
    except (TypeError, ValueError):
        raise misuse("seen", seen, rule) from None
    if any(x.ndim != 2 or not x.size for x in arrays) or len({x.shape[1] for x in arrays}) > 1:
        raise Misuse("seen", f"has coordinates of shapes {[x.shape for x in arrays]}; they must be (T, k), with one k")
    if not all(np.isfinite(x).all() for x in arrays):
        raise Misuse("seen", "has coordinates that are not finite; leave these checkpoints out")
    return arrays


def _with_zero(lo: float, hi: float, num: int) -> np.ndarray:
    """``num`` equally spaced numbers, one of which is 0, that span at least [lo, hi], which holds 0.

    Of all numbers of steps below 0, the one with the smallest spacing is taken.
    """
    below = np.arange(1, num - 1) if lo < 0 < hi else np.array([num - 1 if hi <= 0 else 0])
    above = num - 1 - below
    steps = np.maximum(-lo / np.maximum(below, 1), hi / np.maximum(above, 1))
    best = int(np.argmin(steps))
    return steps[best] * np.arange(-below[best], above[best] + 1)
