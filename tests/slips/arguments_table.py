"""Slips in single arguments of public functions."""

from __future__ import annotations

import lla_jax as lla
from tests.slips.slip import table

SLIPS, slip = table()


@slip("grid", "at least one point")
def a_grid_of_no_points() -> None:
    lla.grid(points=0)
