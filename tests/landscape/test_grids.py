"""Grids reach their ends, hit the centre and list their points in row-major order; bad ones are named."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lla_jax as lla
from lla_jax.landscape import grids

FEW = settings(deadline=None, max_examples=25, derandomize=True)
EXTENTS = st.floats(1e-3, 1e3)
SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=3)


def test_grids_are_symmetric_reach_their_ends_and_hit_the_centre():
    (axis,) = lla.grid(extent=0.3, points=41, dims=1)
    np.testing.assert_array_equal(axis, -axis[::-1])
    assert axis[20] == 0
    assert axis[-1] == 0.3
    (even,) = lla.grid(points=4, dims=1)
    np.testing.assert_allclose(even, [-1, -1 / 3, 1 / 3, 1])
    assert [len(c) for c in lla.grid(points=(3, 5, 7))] == [3, 5, 7]
    (single,) = lla.grid(ranges=[(1, 3)], points=1)
    assert single == [2.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"extent": 0.0}, "extent: 0.0 given"),
        ({"points": 0}, "at least one point"),
        ({"ranges": [(1, -1)]}, "finite lo < hi"),
        ({"ranges": [(0, np.inf)]}, "finite lo < hi"),
        ({"ranges": [(0, 1)], "points": (3, 4)}, "2 numbers of points for 1 ranges"),
    ],
)
def test_bad_grids(arguments, message):
    with pytest.raises(ValueError, match=message):
        lla.grid(**arguments)


def test_numbers_of_points_may_be_arrays_without_axes():
    for count in (3, np.int32(3), np.array(3), jnp.array(3)):
        assert [len(axis) for axis in lla.grid(points=count)] == [3, 3]


def test_an_array_of_coordinates_is_one_axis():
    (axis,) = grids.check_grid(np.array([-1, 0, 2]))
    np.testing.assert_array_equal(axis, [-1.0, 0.0, 2.0])


@pytest.mark.parametrize("arguments", [{"points": 2.5}, {"dims": "2"}, {"ranges": (-1, 1)}, {"extent": "1"}])
def test_grids_of_the_wrong_kind(arguments):
    with pytest.raises(ValueError, match="grid: extent="):
        lla.grid(**arguments)


@FEW
@given(extent=EXTENTS, half=st.integers(1, 30))
def test_a_grid_of_odd_size_is_symmetric_with_its_centre_on_a_cell(extent, half):
    (axis,) = lla.grid(extent, 2 * half + 1, dims=1)
    assert axis[half] == 0
    assert (axis[0], axis[-1]) == (-extent, extent)
    np.testing.assert_array_equal(axis, -axis[::-1])
    np.testing.assert_allclose(np.diff(axis), extent / half, rtol=1e-9)


@FEW
@given(sizes=SIZES, cut=st.integers(0, 125))
def test_the_points_of_a_grid_are_its_coordinates_in_row_major_order(sizes, cut):
    grid = lla.grid(points=sizes)
    num = int(np.prod(sizes))
    every = np.array(list(itertools.product(*grid)))
    np.testing.assert_array_equal(grids.grid_points(grid, 0, num), every)
    cut = min(cut, num)
    parts = [grids.grid_points(grid, 0, cut), grids.grid_points(grid, cut, num)]
    np.testing.assert_array_equal(np.concatenate(parts), every)


@FEW
@given(extent=EXTENTS, sizes=SIZES, rounding=st.sampled_from([-(2.0**-52), 2.0**-52]))
def test_grids_are_the_same_up_to_rounding_and_only_then(extent, sizes, rounding):
    grid = lla.grid(extent, sizes)
    assert grids.is_same_grid(grid, tuple(axis * (1 + rounding) for axis in grid))
    assert not grids.is_same_grid(grid, (*grid[:-1], grid[-1] + 1e-9 * extent))
    assert not grids.is_same_grid(grid, (*grid[:-1], np.append(grid[-1], 2 * extent)))
    assert not grids.is_same_grid(grid, (*grid, grid[0]))


@FEW
@given(extent=EXTENTS, half=st.integers(1, 8), factor=st.integers(2, 3))
def test_a_denser_or_wider_grid_has_the_points_of_the_first(extent, half, factor):
    (axis,) = lla.grid(extent, 2 * half + 1, dims=1)
    (denser,) = lla.grid(extent, 2 * factor * half + 1, dims=1)
    (wider,) = lla.grid(factor * extent, 2 * factor * half + 1, dims=1)
    for other in (denser, wider):
        nearest = np.abs(other[:, None] - axis).min(0)
        assert (nearest <= grids.SNAP * abs(axis).max()).all()
