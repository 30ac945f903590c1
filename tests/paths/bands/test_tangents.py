"""The improved tangent, and gradients taken apart along and across it."""

import numpy as np
import pytest

from lla_jax.paths.bands import tangents as of

CORNER = {"p": np.array([[0, 0], [2, 0], [2, 3]], np.float32)}  # two segments of different length


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([0, 1, 2], [0, 1]),  # uphill: towards the higher neighbour
        ([2, 1, 0], [1, 0]),  # downhill: from the higher neighbour
        ([0, 3, 1], [2, 3]),  # a maximum: |1 - 3| = 2 and |0 - 3| = 3; the higher neighbour is behind
        ([1, 3, 0], [3, 2]),
        ([3, 0, 1], [3, 1]),  # a minimum; the higher neighbour is before it
        ([1, 1, 1], [1, 1]),
        ([0, np.nan, 1], [1, 1]),
    ],
)
def test_the_tangent_follows_the_higher_neighbour(losses, expected):
    found = of.tangents(CORNER, np.asarray(losses, np.float32))["p"][0]
    np.testing.assert_allclose(found, np.array(expected) / np.linalg.norm(expected), rtol=1e-6)


def test_gradients_are_the_sum_of_their_parts():
    gradients = {"p": np.array([[3.0, 4.0], [1.0, -2.0]], np.float32)}
    directions = {"p": np.array([[1.0, 0.0], [0.6, 0.8]], np.float32)}
    along, across = of.along_and_across(gradients, directions)
    np.testing.assert_allclose(along, [3, -1], rtol=1e-6)
    np.testing.assert_allclose(across["p"], [[0, 4], [1.6, -1.2]], rtol=1e-6)
