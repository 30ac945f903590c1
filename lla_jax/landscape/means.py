"""Holds the means of a landscape and their standard errors, at all points of its grid or at some of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lla_jax.core.types import Landscape, Recipe


class Means(NamedTuple):
    """Means and their standard errors by name, a number of each for every one of C points.

    Args:
      values: {name: (C,)} float64.
      stderr: {name: (C,)} float64, of the names that have one.
    """

    values: dict[str, np.ndarray]
    stderr: dict[str, np.ndarray]

    def put(self, new: Means, at: Any, num: int) -> None:
        """Write new means over those at some of the points.

        Args:
          new: the means.
          at: their points, a slice or indices.
          num: number of points in all; a name that is new is NaN at the others.
        """
        for numbers, new_numbers in zip(self, new, strict=True):
            for name, x in new_numbers.items():
                numbers.setdefault(name, np.full(num, np.nan))[at] = x

    def landscape(self, coords: tuple[np.ndarray, ...], recipe: Recipe) -> Landscape:
        """The landscape on the grid ``coords``, of whose points these are the means, in row-major order."""
        shape = tuple(map(len, coords))
        values, stderr = ({name: x.reshape(shape) for name, x in numbers.items()} for numbers in self)
        return Landscape(coords, values, stderr, recipe)
