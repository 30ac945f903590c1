"""Means over the data and their standard errors, at the points of a grid or at some of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lla_jax.core.types import Landscape, Recipe


class Means(NamedTuple):
    """Means and their standard errors by name, a number for each of C points.

    Args:
      values: {name: (C,)} float64.
      stderr: {name: (C,)} float64, of the names that have one.
    """

    values: dict[str, np.ndarray]
    stderr: dict[str, np.ndarray]

    def put(self, found: Means, at: Any, num: int) -> None:
        """Take in what was found at the points ``at`` (a slice, or indices) of ``num``; the others are NaN at first."""
        for flat, part in zip(self, found, strict=True):
            for name, x in part.items():
                flat.setdefault(name, np.full(num, np.nan))[at] = x

    def landscape(self, coords: tuple[np.ndarray, ...], recipe: Recipe) -> Landscape:
        """On the grid whose points they are of, in row-major order."""
        shape = tuple(map(len, coords))
        values, stderr = ({name: flat.reshape(shape) for name, flat in part.items()} for part in self)
        return Landscape(coords, values, stderr, recipe)
