"""Tells which points of a grid of a store no earlier grid has, without a list of all points.

A file of a few coordinates describes very many points, so the points are found for a few rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Coords = tuple[np.ndarray, ...]


class NewPoints:
    """The flat indices of the points of a grid that no earlier grid has, in order: a sequence that is sliced.

    Args:
      grid: its coordinates.
      earlier: the coordinates of the earlier grids.
    """

    def __init__(self, grid: Coords, earlier: Sequence[Coords]):
        shared = [[np.isin(a, b) for a, b in zip(grid, other)] for other in earlier]
        self._rest_shape = tuple(len(axis) for axis in grid[1:])
        self._rest = [masks[1:] for masks in shared]
        # rows, of one coordinate along the first axis, differ only by the earlier grids that have this coordinate
        self._kinds = np.stack([masks[0] for masks in shared], -1)
        kinds, kind_of_row = np.unique(self._kinds, axis=0, return_inverse=True)
        counts = np.array([len(self._row(kind)) for kind in kinds])
        self._starts = np.concatenate([[0], np.cumsum(counts[kind_of_row.reshape(-1)])])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(len(self))
        if start >= stop:
            return np.zeros(0, np.int64)
        first = int(np.searchsorted(self._starts, start, "right")) - 1
        last = int(np.searchsorted(self._starts, stop, "left"))
        size = math.prod(self._rest_shape)
        flat = np.concatenate([row * size + self._row(self._kinds[row]) for row in range(first, last)])
        return flat[start - self._starts[first] : stop - self._starts[first]]

    def _row(self, kind: np.ndarray) -> np.ndarray:
        """The flat indices, within a row, of the points that no earlier grid has."""
        new = np.ones(self._rest_shape, bool)
        for has_row, masks in zip(kind, self._rest):
            if has_row:
                new &= ~_outer(masks)
        return np.flatnonzero(new)


def _outer(masks: Sequence[np.ndarray]) -> np.ndarray:
    """The outer product of masks, one per axis: an array with an axis for each mask; True for none."""
    outer = np.ones((), bool)
    for mask in masks:
        outer = outer[..., None] & mask
    return outer
