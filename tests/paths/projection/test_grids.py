"""Grids around paths hold all checkpoints with a margin, and the centre on a cell."""

from __future__ import annotations

import numpy as np
import pytest

import lla_jax as lla

COORDS = np.array([[3.0, -0.5], [1.0, 0.2], [0.0, 0.0]])


def check(grid, coords, margin):
    """All coordinates with a margin lie inside, 0 is a point, and the points are evenly spaced."""
    for axis, column in zip(grid, np.asarray(coords).T, strict=True):
        lo, hi = min(column.min(), 0), max(column.max(), 0)
        room = (margin - 1e-12) * (hi - lo)
        assert axis[0] <= lo - room
        assert axis[-1] >= hi + room
        assert (axis == 0).sum() == 1
        np.testing.assert_allclose(np.diff(axis), axis[1] - axis[0], rtol=1e-9)


@pytest.mark.parametrize("margin", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("points", [3, 4, 41, (5, 30)])
@pytest.mark.parametrize("sign", [1, -1])
def test_all_checkpoints_and_the_centre_are_inside(margin, points, sign):
    grid = lla.paths.grid_around(sign * COORDS, margin, points)
    check(grid, sign * COORDS, margin)
    assert tuple(map(len, grid)) == (points if isinstance(points, tuple) else (points, points))


def test_the_grid_is_hardly_wider_than_it_must_be():
    for axis, column in zip(lla.paths.grid_around(COORDS, 0.2, 41), COORDS.T, strict=True):
        assert np.ptp(axis) <= 1.05 * 1.4 * np.ptp(column)


def test_several_paths_are_inside():
    draw = np.random.default_rng(0).standard_normal
    runs = [lla.paths.given([{"w": row} for row in draw((num, 5)).astype(np.float32)]) for num in (4, 3)]
    axes, coords = lla.paths.pca(runs)
    check(lla.paths.grid_around(coords), np.concatenate(coords), 0.2)
    seen = lla.paths.project(runs, axes)
    for one, two in zip(lla.paths.grid_around(seen), lla.paths.grid_around(coords), strict=True):
        np.testing.assert_array_equal(one, two)


def test_an_axis_without_movement_has_the_extent_of_the_others():
    flat = COORDS * [1, 1e-15]
    grid = lla.paths.grid_around(flat)
    check(grid, flat, 0.2)
    assert np.ptp(grid[1]) == pytest.approx(np.ptp(grid[0]), rel=0.1)
    assert grid[1][0] == pytest.approx(-grid[1][-1])
    still = lla.paths.grid_around(np.zeros((1, 2)))
    assert [axis[[0, -1]].tolist() for axis in still] == [[-0.7, 0.7], [-0.7, 0.7]]


def test_a_square_has_one_extent():
    one, two = lla.paths.grid_around(COORDS, square=True)
    check((one, two), COORDS, 0.2)
    assert np.ptp(one) == pytest.approx(np.ptp(two), rel=0.05)


def test_slips_are_told():
    for arguments, text in (
        (("runs",), "^seen: 'runs' given"),
        (([],), "^seen: "),
        ((COORDS[:, 0],), r"^seen: has coordinates of shapes \[\(3,\)\]"),
        ((COORDS * np.nan,), "^seen: has coordinates that are not finite"),
        ((COORDS, -0.1), "^margin: -0.1 given"),
        ((COORDS, 0.2, 2), "^points: 2 given"),
        ((COORDS, 0.2, (5, 5, 5)), r"^points: \(5, 5, 5\) given"),
    ):
        with pytest.raises(ValueError, match=text):
            lla.paths.grid_around(*arguments)
