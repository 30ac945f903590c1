"""Fills a grid from some of its points: interpolates where values are finite, and keeps regions where they are not."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from lla_jax.core.scales import spans_decades
from lla_jax.landscape import interpolation

FEWEST = 12  # finite values in an interpolant
DOUBTED_BY = 4  # nearest points that must agree whether a cell is finite


class Cells(NamedTuple):
    """The cells of a grid by their flat indices, row-major.

    Args:
      coords: one array per axis.
    """

    coords: tuple[np.ndarray, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of points along each axis."""
        return tuple(map(len, self.coords))

    @property
    def size(self) -> int:
        """The number of cells."""
        return math.prod(self.shape)

    def fractions(self, flat: np.ndarray) -> np.ndarray:
        """Where cells are, from 0 to 1 along each axis in equal steps: (q, k)."""
        parts = np.unravel_index(flat, self.shape)
        return np.stack([i / max(n - 1, 1) for i, n in zip(parts, self.shape, strict=True)], -1)

    def places(self, flat: np.ndarray) -> np.ndarray:
        """The coordinates of cells: (q, k)."""
        parts = np.unravel_index(flat, self.shape)
        return np.stack([c[i] for c, i in zip(self.coords, parts, strict=True)], -1)


class Filling(NamedTuple):
    """What fills a grid with one value.

    Args:
      cells: of the grid.
      at: (n,), flat indices of the points with values.
      values: (n,), these.
      finite: (n,), whether they are.
      points: finds the nearest of all points, finite or not.
      sites: the finite points.
      surface: their interpolants.
      log: whether errors are those of the logarithm.
    """

    cells: Cells
    at: np.ndarray
    values: np.ndarray
    finite: np.ndarray
    points: Any
    sites: interpolation.Sites
    surface: interpolation.Surface
    log: bool


def is_log(values: np.ndarray, scale: str) -> bool:
    """Whether the picture of values is logarithmic: "auto" as the pictures choose, "log" where all are above 0."""
    finite = values[np.isfinite(values)]
    if scale == "auto":
        return spans_decades(finite)
    return scale == "log" and bool(finite.size) and bool((finite > 0).all())


def span(values: np.ndarray, log: bool) -> float:
    """The range of the picture of values: highest less lowest finite value, or its logarithm; 0 of none."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0
    return float(np.ptp(np.log(finite) if log else finite))


def fill(cells: Cells, at: np.ndarray, values: np.ndarray, scale: str, like: Filling | None = None) -> Filling | None:
    """Fit what fills a grid from points; None if too few of their values are finite.

    Args:
      cells: of the grid.
      at: (n,), flat indices.
      values: (n,), at these.
      scale: "auto", "linear" or "log", of the picture.
      like: of another value at the same points, whose preparation is used again where it can be.
    """
    finite = np.isfinite(values)
    if finite.sum() < FEWEST:
        return None
    if like is not None and (like.finite == finite).all():
        points, sites = like.points, like.sites
    else:
        points = interpolation.tree_of(cells.fractions(at))
        sites = interpolation.set_sites(cells.fractions(at[finite]), cells.places(at[finite]))
    log = is_log(values, scale)
    surface = interpolation.fit(sites, values[finite], log)
    return Filling(cells, at, values, finite, points, sites, surface, log)


def predict(filling: Filling, flat: np.ndarray) -> np.ndarray:
    """The values of cells (q,), as the picture has them: logarithms if it is logarithmic.

    A cell whose nearest point is not finite has that point's value. Values stay within what all points keep to: at
    least 0, or from 0 to 1; on a logarithmic picture at least half of the lowest.
    """
    fractions = filling.cells.fractions(flat)
    found = np.empty(len(flat))
    inside = np.ones(len(flat), bool)
    if not filling.finite.all():
        nearest = filling.points.query(fractions)[1]
        inside = filling.finite[nearest]
        found[~inside] = filling.values[nearest[~inside]]
    places = filling.cells.places(flat[inside])
    found[inside] = interpolation.predict(filling.sites, filling.surface, fractions[inside], places, filling.log)
    return _within(filling, found, inside)


def _within(filling: Filling, found: np.ndarray, inside: np.ndarray) -> np.ndarray:
    known = filling.values[filling.finite]
    low, high = known.min(), known.max()
    if filling.log:
        found[inside] = np.maximum(found[inside], np.log(low / 2))
    elif low >= 0:
        found[inside] = np.clip(found[inside], 0.0, 1.0 if high <= 1 else None)
    return found


def expect(filling: Filling, flat: np.ndarray) -> np.ndarray:
    """The standard deviation of the error that is expected at cells (q,), in units of the picture.

    It is 0 in regions that are not finite.
    """
    fractions = filling.cells.fractions(flat)
    found = interpolation.expect(filling.sites, filling.surface, fractions, filling.cells.places(flat))
    if not filling.finite.all():
        found[~filling.finite[filling.points.query(fractions)[1]]] = 0.0
    return found


def doubt(filling: Filling, flat: np.ndarray) -> np.ndarray:
    """Whether it is open if cells (q,) are finite: their nearest points differ."""
    if filling.finite.all():
        return np.zeros(len(flat), bool)
    number = min(DOUBTED_BY, len(filling.at))
    near = filling.finite[filling.points.query(filling.cells.fractions(flat), k=range(1, number + 1))[1]]
    return near.any(1) & ~near.all(1)


def errors(filling: Filling, flat: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The errors of cells (q,) whose values are known, in units of the picture.

    They are infinite where one of the two values is finite and the other is not, or has no logarithm.
    """
    found = predict(filling, flat)
    with np.errstate(all="ignore"):
        true = np.log(values) if filling.log else values
        error = abs(found - true)
    neither = ~np.isfinite(values) & ~np.isfinite(found)
    return np.where(neither, 0.0, np.where(np.isfinite(error), error, np.inf))


def missed(filling: Filling, flat: np.ndarray) -> np.ndarray:
    """How far the points around cells (q,) are missed by the interpolants of the others, in units of the picture."""
    at = filling.sites.tree.query(filling.cells.fractions(flat))[1]
    alike = filling.sites.near[at][:, : interpolation.ALIKE]
    return np.sqrt((filling.surface.missed[alike] ** 2).mean(1))
