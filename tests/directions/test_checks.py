"""Directions that are zero or not finite are refused, whatever makes them."""

from __future__ import annotations

import numpy as np
import pytest

from lla_jax import directions
from lla_jax.core.types import Directions, Recipe


def test_zero_and_nan_directions():
    params = {"kernel": np.ones((2, 3), np.float32)}
    zero = Directions({"kernel": np.stack([np.ones((2, 3), "f4"), np.zeros((2, 3), "f4")])}, Recipe())
    with pytest.raises(ValueError, match="direction 1 is zero everywhere"):
        directions.normalize(zero, params)
    with pytest.raises(ValueError, match="direction 0 has NaN"):
        directions.normalize(Directions({"kernel": np.full((1, 2, 3), np.nan, "f4")}, Recipe()), params)
