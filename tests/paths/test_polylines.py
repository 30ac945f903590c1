"""Lengths, points and moves along polylines."""

import jax.numpy as jnp
import numpy as np

from lla_jax.paths import polylines


def as_points(xy):
    """Points of the plane as a stacked tree of two leaves."""
    xy = np.asarray(xy, np.float32)
    return {"x": xy[:, 0], "y": xy[:, 1:, None]}


def in_plane(points):
    return np.stack([points["x"], np.asarray(points["y"])[:, 0, 0]], 1)


CORNER = as_points([[0, 0], [0.1, 0], [3, 0], [3, 4]])


def test_lengths_and_knots_of_a_corner():
    np.testing.assert_allclose(polylines.segment_lengths(CORNER), [0.1, 2.9, 4], rtol=1e-6)
    np.testing.assert_allclose(polylines.knots_of(CORNER), [0, 0.1 / 7, 3 / 7, 1], rtol=1e-6)


def test_a_polyline_without_length_has_equal_knots():
    assert polylines.knots_of(as_points(np.ones((3, 2)))).tolist() == [0, 0.5, 1]


def test_redistributed_points_lie_on_the_polyline_at_their_shares_of_its_length():
    moved = polylines.redistribute(CORNER, jnp.array([0, 1.4 / 7, 3.5 / 7, 1]))
    np.testing.assert_allclose(in_plane(moved), [[0, 0], [1.4, 0], [3, 0.5], [3, 4]], rtol=1e-6)


def test_points_at_their_places_stay_and_the_ends_stay_to_the_bit():
    odd = as_points(np.random.default_rng(0).normal(size=(6, 2)))
    again = polylines.redistribute(odd, polylines.knots_of(odd))
    np.testing.assert_allclose(in_plane(again), in_plane(odd), atol=1e-6)
    equal = polylines.redistribute(odd, np.linspace(0, 1, 6))
    assert (in_plane(equal)[[0, -1]] == in_plane(odd)[[0, -1]]).all()
    assert not np.allclose(in_plane(equal)[1:-1], in_plane(odd)[1:-1], atol=1e-2)


def test_a_weight_of_zero_is_the_point_to_the_bit():
    mixed = polylines.mix(CORNER, np.array([1, 2]), np.array([0.0, 0.25]))
    assert (in_plane(mixed)[0] == in_plane(CORNER)[1]).all()
    np.testing.assert_allclose(in_plane(mixed)[1], [3, 1])
