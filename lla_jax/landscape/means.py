"""Holds the means of the loss and the metrics with their standard errors, at all points of a grid or at some."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lla_jax.core.results import Landscape
from lla_jax.core.types import Recipe


class Means(NamedTuple):
    """The means of a landscape and their standard errors at C points.

    Args:
      values: {name: (C,)} float64, the means.
      stderr: {name: (C,)} float64, the standard errors, of those means that have one.
    """

    values: dict[str, np.ndarray]
    stderr: dict[str, np.ndarray]

    def put(self, new: Means, at: Any, num: int) -> None:
        """Write new means, in place, over the means at some of the points.

        Args:
          new: the new means and standard errors.
          at: the points of ``new``, a slice or indices.
          num: number of points in all; a name that was not there before gets NaN at the other points.
        """
        for numbers, new_numbers in zip(self, new, strict=True):
            for name, x in new_numbers.items():
                numbers.setdefault(name, np.full(num, np.nan))[at] = x

    def landscape(
        self, coords: tuple[np.ndarray, ...], recipe: Recipe, evaluated: np.ndarray | None = None
    ) -> Landscape:
        """Make the landscape on the grid ``coords``, whose points, in row-major order, are the C points here.

        Args:
          coords: the grid.
          recipe: of the landscape.
          evaluated: (C,), whether a point was evaluated; None where no value is interpolated.
        """
        shape = tuple(map(len, coords))
        values, stderr = ({name: x.reshape(shape) for name, x in numbers.items()} for numbers in self)
        return Landscape(coords, values, stderr, recipe, None if evaluated is None else evaluated.reshape(shape))
