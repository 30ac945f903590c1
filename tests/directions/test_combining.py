"""Directions that are given, joined, or restricted to some leaves."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lla_jax import directions
from lla_jax.core.types import Recipe
from tests.directions.cases import KEY, equal, flat, params_of, rows, tree_like


class TestSelect:
    def test_frozen_leaves_are_exactly_zero(self):
        params = params_of()
        axes = directions.normalize(directions.random(KEY, params), params)
        got = directions.select(axes, lambda path, leaf: leaf.shape == (8, 5))
        np.testing.assert_array_equal(got.tree["head"]["kernel"], axes.tree["head"]["kernel"])
        assert not flat(got.tree["conv"]).any()
        assert not np.asarray(got.tree["head"]["bias"]).any()
        assert got.recipe["restrict"][0]["paths"] == ["head/kernel"]
        assert "restrict" not in axes.recipe

    def test_refusals(self):
        params = params_of()
        axes = directions.random(KEY, params, select="conv/*")
        with pytest.raises(ValueError, match="matches no leaf"):
            directions.select(axes, "tail/*")
        with pytest.raises(ValueError, match="direction 0 is zero everywhere"):
            directions.select(axes, "head/*")


class TestGiven:
    def setup_method(self):
        self.params = params_of()
        self.tree = tree_like(self.params, 11)

    def test_given(self):
        axes = directions.given(self.tree, self.params, names=["step", "weights"])
        np.testing.assert_array_equal(rows(axes)[1], flat(self.params))
        assert axes.recipe == Recipe(kind="given", names=["step", "weights"])
        assert axes.recipe["names"] == ["step", "weights"]

    def test_a_list_of_like_trees_counts_as_these(self):
        expected = rows(directions.given(self.tree, self.params))
        for trees in ([self.tree, self.params], (self.tree, self.params), iter([self.tree, self.params])):
            np.testing.assert_array_equal(rows(directions.given(trees)), expected)

    @pytest.mark.parametrize("layers", [[{"w": np.ones((2, 3))}, {"w": np.ones((3, 1))}], [np.ones(2), np.ones(2)]])
    def test_a_list_of_layers_stays_one_tree(self, layers):
        assert directions.given(layers).num == 1

    def test_a_single_name_says_that_a_list_is_one_tree(self):
        assert directions.given([self.tree, self.params], names=["step"]).num == 1

    @pytest.mark.parametrize(
        ("trees", "names", "message"),
        [
            ([], None, "trees: none given; pass at least one tree"),
            ([{"w": np.ones(2)}], ["a", "b"], "names: .* given; it must be one name per tree, a list of 1"),
            ([{"w": np.ones(2)}], "a", "names: .* given; it must be one name per tree, a list of 1"),
            ([{"w": np.ones(2)}, {"w": np.ones(3)}], None, r"trees\[1\]\['w'\] has shape \(3,\)"),
            ([{"w": np.ones(2)}, {"v": np.ones(2)}], None, r"trees\[1\] lacks \['w'\]"),
            ([{"w": np.zeros(2)}], None, "direction 0 is zero everywhere"),
            ([{"w": np.array([1, np.inf])}], None, r"trees\[0\]\['w'\] has 1 NaN or infinite"),
        ],
    )
    def test_given_refuses(self, trees, names, message):
        with pytest.raises(ValueError, match=message):
            directions.given(*trees, names=names)


class TestJoin:
    def setup_method(self):
        self.params = params_of()
        self.tree = tree_like(self.params, 11)

    def test_a_list_of_directions_counts_as_these(self):
        parts = [directions.given(self.tree, names=["mine"]), directions.random(KEY, self.params)]
        np.testing.assert_array_equal(rows(directions.join(parts)), rows(directions.join(*parts)))

    def test_join(self):
        random = directions.random(KEY, self.params, 2)
        axes = directions.join(directions.given(self.tree, names=["mine"]), random)
        assert axes.recipe["names"] == ["mine", "random 1", "random 2"]
        assert [part["kind"] for part in axes.recipe["parts"]] == ["given", "random"]
        for row, expected in zip(rows(axes), [flat(self.tree), *rows(random)], strict=True):
            np.testing.assert_array_equal(row, expected)
        json.dumps(axes.recipe)

    def test_join_refuses(self):
        with pytest.raises(ValueError, match="axes: none given; pass at least one"):
            directions.join()
        with pytest.raises(ValueError, match=r"axes\[1\] lacks"):
            directions.join(directions.given(self.tree), directions.given({"conv": self.tree["conv"]}))


INDICES = st.lists(st.integers(-4, 3), min_size=3, max_size=3)


@settings(deadline=None, max_examples=15, derandomize=True)
@given(first=INDICES, second=st.lists(st.integers(0, 2), min_size=2, max_size=2))
def test_indexing_takes_directions_names_and_numbers_alike(first, second):
    params = params_of()
    axes = directions.join(directions.random(KEY, params, 3), directions.given(tree_like(params, 11)))
    chosen = axes[first]
    np.testing.assert_array_equal(rows(chosen), np.array(rows(axes))[first])
    assert chosen.recipe["names"] == [axes.recipe["names"][i] for i in first]
    assert chosen.recipe["chosen"] == [i % 4 for i in first]
    twice = chosen[second]
    equal(twice, axes[[first[i] for i in second]])
    assert twice.recipe["chosen"] == [first[i] % 4 for i in second]


@settings(deadline=None, max_examples=10, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), pattern=st.sampled_from(["conv/*", "head/*", "**/kernel", "**/bias"]))
def test_joining_and_selecting_commute(seed, pattern):
    params = params_of()
    one, two = directions.random(jax.random.key(seed), params, 2), directions.given(tree_like(params, 11))
    joined = directions.join(one, two)
    np.testing.assert_array_equal(rows(joined), [*rows(one), *rows(two)])
    equal(directions.select(joined, pattern), directions.join(*(directions.select(x, pattern) for x in (one, two))))
    kept = directions.select(joined, pattern)
    equal(directions.select(kept, pattern), kept)


def test_layers_in_a_list_are_one_tree_if_it_has_a_name():
    layers = [{"w": np.ones((2, 2), np.float32)}, {"w": np.full((2, 2), 2.0, np.float32)}]
    assert directions.given(layers).num == 2  # as given(*layers), which is what most mean
    step = directions.given(layers, names=["step"])
    assert jax.tree.map(np.shape, step.tree) == [{"w": (1, 2, 2)}] * 2
    one = directions.given(layers[:1])
    assert isinstance(one.tree, list)
    with pytest.raises(ValueError, match=r"given\(step, names=\['step'\]\)"):
        directions.normalize(directions.given(layers), layers)
