"""Chooses the points of a grid that a refinement evaluates next."""

from __future__ import annotations

import itertools
import math

import numpy as np

from lla_jax.landscape.filling import Cells, Filling

LATTICE = {1: 17, 2: 9}  # points along an axis of the coarse lattice, by the number of axes; 6 for more
SAMPLE = 20_000  # cells at which errors are expected; all of a small grid
MIDDLES = 8  # nearest points of a point, half way to which errors are expected too
APART = 0.7  # chosen points, in multiples of their distance from the evaluated points
GROWTH, LEAST = 0.25, 24  # points in a round: this part of the evaluated ones, at least so many


def round_up(number: int, group: int) -> int:
    """The number of points, filled up to whole groups."""
    return math.ceil(number / group) * group


def lattice(cells: Cells, group: int) -> np.ndarray:
    """Flat indices of a coarse lattice with the borders of the grid, and of the cells around the centre.

    The centre is the cell nearest to coordinates 0; it comes with the next cell on either side along each axis. The
    lattice is as fine as fits into whole groups.
    """
    dims = len(cells.shape)
    cross = _cross(cells)
    each = LATTICE.get(dims, 6)
    most = round_up(_lattice(cells, each).size + cross.size, group)
    while each < max(cells.shape):
        finer = np.union1d(_lattice(cells, each + 1), cross)
        if finer.size > most:
            break
        each += 1
    return np.union1d(_lattice(cells, each), cross)


def _lattice(cells: Cells, each: int) -> np.ndarray:
    axes = [np.unique(np.rint(np.linspace(0, n - 1, min(each, n))).astype(np.int64)) for n in cells.shape]
    return np.ravel_multi_index(np.meshgrid(*axes, indexing="ij"), cells.shape).ravel()


def _cross(cells: Cells) -> np.ndarray:
    centre = [int(abs(c).argmin()) for c in cells.coords]
    steps = [np.zeros(len(centre), int), *(s * row for row in np.eye(len(centre), dtype=int) for s in (-1, 1))]
    inside = [p for p in (centre + step for step in steps) if (p >= 0).all() and (p < cells.shape).all()]
    return np.unique(np.ravel_multi_index(np.transpose(inside), cells.shape))


def candidates(one: Filling, asked: np.ndarray, number: int) -> np.ndarray:
    """Flat indices of cells without a value at which errors are expected: all, or of a large grid a sample.

    Args:
      one: the interpolant.
      asked: (size,), whether a cell has a value.
      number: of the round, which seeds the sample.
    """
    left = np.flatnonzero(~asked)
    if len(left) <= SAMPLE:
        return left
    sample = np.random.default_rng([18, number]).choice(left, SAMPLE, replace=False)
    near = one.points.query(one.cells.fractions(one.at), k=range(2, 2 + min(MIDDLES, len(one.at) - 1)))[1]
    index = np.stack(np.unravel_index(one.at, one.cells.shape), -1)
    middles = (index[:, None] + index[near]) // 2
    flat = np.ravel_multi_index(tuple(np.moveaxis(middles, -1, 0)), one.cells.shape).ravel()
    return np.union1d(sample, flat[~asked[flat]])


def count_needed(one: Filling, flat: np.ndarray, excess: np.ndarray, left: int) -> float:
    """About how many points more a tolerance takes, if errors fall with the square of the distance.

    Args:
      one: the interpolant.
      flat: (q,), candidates.
      excess: (q,), their expected error in multiples of the tolerance.
      left: number of cells without a value.
    """
    _, at = one.points.query(one.cells.fractions(flat))
    worst = np.zeros(len(one.at))
    np.maximum.at(worst, at, excess)
    around = np.bincount(at, minlength=len(one.at)) * (left / len(flat))
    return float(np.minimum(around, np.maximum(worst ** (len(one.cells.shape) / 2) - 1, 0)).sum())


def choose(one: Filling, asked: np.ndarray, flat: np.ndarray, excess: np.ndarray, group: int) -> np.ndarray:
    """The candidates with the largest expected errors, apart from each other: flat indices.

    Args:
      one: the interpolant.
      asked: (size,), whether a cell has a value.
      flat, excess: as in ``count_needed``.
      group: number of points that are computed together.
    """
    most = max(LEAST, int(GROWTH * len(one.at)))
    number = min(round_up(min(most, int((excess > 1).sum())), group), len(flat))
    fractions = one.cells.fractions(flat)
    distance = one.points.query(fractions)[0]
    order = np.lexsort((-distance, -excess))
    chosen: list[int] = []
    free = np.ones(len(flat), bool)
    for i in order:
        if len(chosen) == number:
            break
        if free[i]:
            chosen.append(i)
            free &= ((fractions - fractions[i]) ** 2).sum(1) > (APART * distance[i]) ** 2
            free[i] = False
    taken = set(chosen)
    rest = itertools.islice((i for i in order if i not in taken), -len(chosen) % group)
    return np.unique(flat[[*chosen, *rest]])
