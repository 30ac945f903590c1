"""Trees on the host: to the bit through stacking, and checked against each other by name."""

import jax
import numpy as np
import pytest

from lla_jax.paths import host_trees

ONE = {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.float32(1)}
OTHER = {"w": ONE["w"] + np.float32(2), "b": np.float32(4)}


def test_trees_are_stacked_and_taken_apart_to_the_bit():
    stacked = host_trees.stack([ONE, OTHER])
    assert stacked["w"].shape == (2, 2, 3)
    for tree, again in zip((ONE, OTHER), host_trees.unstack(stacked), strict=True):
        assert host_trees.are_equal(tree, again)
    assert not host_trees.are_equal(ONE, OTHER)


def test_sizes_and_distances_are_those_over_all_leaves():
    assert host_trees.size_of(ONE) == host_trees.size_of(host_trees.shapes_of(ONE)) == 7
    assert host_trees.bytes_of(ONE) == host_trees.bytes_of(host_trees.shapes_of(ONE)) == 28
    assert host_trees.distance(ONE, OTHER) == np.sqrt(6 * 4 + 9)


def test_states_with_floats_belong_to_one_network():
    assert host_trees.has_floats({"mean": np.zeros(2, np.float16)})
    assert not host_trees.has_floats({"count": np.int32(3), "key": jax.random.key(0)})
    assert not host_trees.has_floats(None)


def test_another_type_and_entries_that_are_not_finite_are_refused_by_name():
    with pytest.raises(ValueError, match=r"late: \['w'\] has dtype float16, and in early it is float32"):
        host_trees.align_exactly(ONE | {"w": ONE["w"].astype(np.float16)}, ONE, "late", "early")
    with pytest.raises(ValueError, match=r"state: \['b'\] has NaN or infinite entries; .*: pass another"):
        host_trees.check_finite(ONE | {"b": np.float32(np.inf)}, "state", "pass another")
