"""Trajectories: sequences of parameter trees, in memory or read from disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core.arguments import Misuse
from lla_jax.paths.host_trees import shapes_of
from lla_jax.paths.trajectories import Checkpoint, Trajectory


def tree(i):
    return {"w": np.full((2, 3), float(i), np.float32), "b": jnp.full(3, i, jnp.bfloat16)}


TREES = [tree(i) for i in range(5)]


def test_parameters_states_steps_and_losses_come_back():
    states = [{"mean": np.full(2, i)} for i in range(5)]
    path = lla.paths.given(TREES, states, losses=[1, 2, 3, 4, np.nan], steps=[0, 10, 20, 35, 40])
    assert len(path) == 5
    assert path.names[3] == "step 35"
    np.testing.assert_array_equal(path.steps, [0, 10, 20, 35, 40])
    np.testing.assert_array_equal(path.losses, [1, 2, 3, 4, np.nan])
    for i, params in enumerate(path):
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
        assert params["b"].dtype == jnp.bfloat16
        jax.tree.map(np.testing.assert_array_equal, params, tree(i))
        np.testing.assert_array_equal(path.state(i)["mean"], states[i]["mean"])


def test_a_slice_and_a_list_are_trajectories_that_say_what_was_chosen():
    path = lla.paths.given(TREES, steps=[0, 10, 20, 30, 40])
    part = path[1:][[0, 2]]
    assert isinstance(part, Trajectory)
    assert part.recipe["chosen"] == [1, 3]
    np.testing.assert_array_equal(part.steps, [10, 30])
    np.testing.assert_array_equal(part[-1]["w"], tree(3)["w"])
    assert path.state(0) is None
    with pytest.raises(IndexError, match="there are 5 checkpoints"):
        path[5]


def test_containers_of_another_kind_get_those_of_the_first():
    path = lla.paths.as_trajectory([{"a": [np.ones(2)]}, {"a": (np.zeros(2),)}])
    assert jax.tree.structure(path[1]) == jax.tree.structure(path[0])


def test_what_changes_later_is_not_the_trajectory():
    changing = {"w": np.zeros(2)}
    path = lla.paths.given([changing, {"w": np.ones(2)}])
    changing["w"] += 7
    np.testing.assert_array_equal(path[0]["w"], 0)


def test_a_checkpoint_is_read_when_it_is_asked_for_and_not_kept():
    read = []

    def checkpoint(i):
        return Checkpoint(f"file {i}", lambda: read.append(i) or tree(i))

    like = shapes_of(tree(0))
    path = Trajectory(tuple(map(checkpoint, range(4))), np.arange(4), np.full(4, np.nan), like, None, {})
    assert read == []
    path[1:][1], path[2]
    assert read == [2, 2]


def test_identical_checkpoints_are_a_trajectory():
    assert len(lla.paths.as_trajectory([tree(1)] * 3, least=2)) == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"w": np.ones((2, 3), np.float32)}, r"trees\[5\]: has another structure.*lacks \['b'\]"),
        ({**tree(1), "w": np.ones((3, 2))}, r"trees\[5\]\['w'\] has shape \(3, 2\); it must be \(2, 3\)"),
        ({**tree(1), "w": np.full((2, 3), np.nan)}, r"trees\[5\]\['w'\] has 6 NaN or infinite"),
        ({**tree(1), "b": np.array([1, 2, np.inf])}, r"trees\[5\]\['b'\] has 1 NaN or infinite"),
        ({**tree(1), "w": np.ones((2, 3), int)}, r"trees\[5\]\['w'\] has dtype"),
    ],
)
def test_a_tree_that_does_not_belong_is_named(wrong, message):
    with pytest.raises(Misuse, match=message):
        lla.paths.given([*TREES, wrong])


def test_a_checkpoint_that_does_not_belong_is_named_when_it_is_read():
    read = [lambda: tree(0), lambda: {**tree(1), "b": np.full(3, np.inf)}, lambda: {**tree(1), "b": np.ones(4)}]
    checkpoints = tuple(Checkpoint(f"file{i}.npz", each) for i, each in enumerate(read))
    path = Trajectory(checkpoints, np.arange(3), np.full(3, np.nan), shapes_of(tree(0)), None, {})
    with pytest.raises(Misuse, match=r"path\[1\] \(file1.npz\)\['b'\] has 3 NaN"):
        path[1]
    with pytest.raises(Misuse, match=r"path\[0\] \(file2.npz\)\['b'\] has shape \(4,\)"):
        list(path[2:])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (TREES[:1], "has 1 checkpoint; at least 2 are needed"),
        ([], "has no checkpoints"),
        (TREES[0], r"one tree of parameters make \[params\]"),
        (np.ones((4, 7)), r"make list\(array\)"),
        ("runs/traj", "lla.paths.load"),
        (None, "a list of parameter trees"),
        (lla.paths.given(TREES)[:1], "has 1 checkpoint; at least 2"),
    ],
)
def test_what_is_no_path_is_refused(path, message):
    with pytest.raises(Misuse, match=f"path: .*{message}"):
        lla.paths.as_trajectory(path, least=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": [0, 1, 1, 2, 3]}, "steps: 1 is followed by 1"),
        ({"steps": [0, 1]}, "steps: 2 given for 5"),
        ({"steps": [0.5] * 5}, "steps: .* a list of integers"),
        ({"losses": [1.0]}, "losses: 1 given for 5"),
        ({"losses": "abcde"}, "losses: .* a list of numbers"),
        ({"states": [{"m": np.ones(1)}] * 4}, "states: 4 given for 5"),
        ({"states": [{"m": np.ones(1)}] * 4 + [None]}, "states: entry 4 is None"),
        ({"states": [{"m": np.ones(1)}] * 4 + [{"m": np.ones(2)}]}, r"the state of path\[4\]\['m'\] has shape \(2,\)"),
    ],
)
def test_steps_losses_and_states_are_checked(options, message):
    with pytest.raises(Misuse, match=message):
        lla.paths.given(TREES, **options)


def test_a_trajectory_is_no_array():
    with pytest.raises(TypeError, match=r"take path\[i\]"):
        np.asarray(lla.paths.given(TREES))
