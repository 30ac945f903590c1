"""Lengths, points and moves along polylines."""

import numpy as np

from lla_jax.paths.bands import polylines


def as_points(xy):
    """Points of the plane as trees of two leaves."""
    return [{"x": np.float32(x), "y": np.full((1, 1), y, np.float32)} for x, y in xy]


def in_plane(points):
    return np.array([[point["x"], np.asarray(point["y"])[0, 0]] for point in points])


def moved(points, knots):
    return in_plane(polylines.redistribute(points, np.asarray(knots), polylines.lengths_of(points)))


CORNER = as_points([[0, 0], [0.1, 0], [3, 0], [3, 4]])


def test_lengths_and_knots_of_a_corner():
    np.testing.assert_allclose(polylines.lengths_of(CORNER), [0.1, 2.9, 4], rtol=1e-6)
    np.testing.assert_allclose(polylines.knots_of(CORNER), [0, 0.1 / 7, 3 / 7, 1], rtol=1e-6)


def test_a_polyline_without_length_has_equal_knots():
    assert polylines.knots_of(as_points(np.ones((3, 2)))).tolist() == [0, 0.5, 1]


def test_redistributed_points_lie_on_the_polyline_at_their_shares_of_its_length():
    found = moved(CORNER, [0, 1.4 / 7, 3.5 / 7, 1])
    np.testing.assert_allclose(found, [[0, 0], [1.4, 0], [3, 0.5], [3, 4]], rtol=1e-6)


def test_points_at_their_places_stay_and_the_ends_stay_to_the_bit():
    odd = as_points(np.random.default_rng(0).normal(size=(6, 2)))
    np.testing.assert_allclose(moved(odd, polylines.knots_of(odd)), in_plane(odd), atol=1e-6)
    equal = moved(odd, np.linspace(0, 1, 6))
    assert (equal[[0, -1]] == in_plane(odd)[[0, -1]]).all()
    assert not np.allclose(equal[1:-1], in_plane(odd)[1:-1], atol=1e-2)


def test_points_that_coincide_are_spread_again():
    assert moved(as_points([[0, 0], [0, 0], [0, 0], [3, 0]]), [0, 1 / 3, 2 / 3, 1])[:, 0].tolist() == [0, 1, 2, 3]
