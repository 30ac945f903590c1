"""Means of some points are put into a table of all."""

from __future__ import annotations

import numpy as np

from lla_jax.landscape.means import Means


def test_means_are_put_together_from_parts_and_what_lacks_is_nan():
    table = Means({}, {})
    table.put(Means({"loss": np.array([1.0, 2.0])}, {"loss": np.array([0.1, 0.2])}), slice(0, 2), 6)
    table.put(Means({"loss": np.array([5.0, 4.0]), "hits": np.ones(2)}, {}), np.array([4, 3]), 6)
    plane = table.landscape((np.arange(2.0), np.arange(3.0)), {"rule": "add"})
    np.testing.assert_array_equal(plane.values["loss"], [[1, 2, np.nan], [4, 5, np.nan]])
    np.testing.assert_array_equal(plane.values["hits"], [[np.nan] * 3, [1, 1, np.nan]])
    np.testing.assert_array_equal(plane.stderr["loss"], [[0.1, 0.2, np.nan], [np.nan] * 3])
    assert plane.recipe == {"rule": "add"}
