"""Random directions: their distribution, what they do not depend on, drawing them again, and orthogonal ones."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lla_jax import directions
from lla_jax.core.types import Recipe
from tests.directions.cases import KEY, equal, flat, params_of, rows, tree_like
from tests.helpers import compilations


class TestRandom:
    def setup_method(self):
        self.params = params_of()

    def test_gaussian(self):
        x = rows(directions.random(KEY, {"kernel": np.ones((200, 100), np.float32)}, 2))
        for row in x:
            assert abs(row.mean()) < 4 / 20_000**0.5
            assert abs(row.var() - 1) < 4 * (2 / 20_000) ** 0.5
            assert abs((row**4).mean() - 3) < 0.3
            assert 0.49 < (row < 0).mean() < 0.51
        assert abs(np.corrcoef(x)[0, 1]) < 4 / 20_000**0.5

    def test_deterministic_and_independent_of_num(self):
        three, two = (directions.random(KEY, self.params, num) for num in (3, 2))
        equal(three[:2], two)
        other = directions.random(jax.random.key(8), self.params)
        assert not np.array_equal(rows(other)[0], rows(two)[0])
        assert not np.array_equal(rows(two)[0], rows(two)[1])

    def test_rbg_is_independent_of_num(self):
        key = jax.random.key(0, impl="rbg")
        equal(directions.random(key, self.params, 3)[:2], directions.random(key, self.params, 2))

    def test_unselected_leaves_are_exactly_zero(self):
        axes = directions.random(KEY, self.params, select="**/kernel")
        assert not np.asarray(axes.tree["conv"]["bias"]).any()
        assert not np.asarray(axes.tree["head"]["bias"]).any()
        assert (np.asarray(axes.tree["head"]["kernel"]) != 0).all()
        assert axes.recipe["select"] == {"text": "**/kernel", "paths": ["conv/kernel", "head/kernel"]}

    def test_half_precision(self):
        wide, half = params_of(), params_of(jnp.bfloat16)
        axes = directions.random(KEY, half)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(axes.tree)} == {"float32"}
        expected = directions.random(KEY, wide).tree["head"]["kernel"]
        np.testing.assert_array_equal(axes.tree["head"]["kernel"], expected)

    def test_one_compilation_and_none_for_a_new_seed(self):
        params = {"a": np.ones((3, 5), np.float32), "b": [np.ones(7, np.float32)] * 6}
        directions.random(KEY, self.params, num=4)  # whatever a key needs
        with compilations() as seen:
            directions.random(KEY, params, num=4)
            assert seen.count == 1
            directions.random(jax.random.key(123), params, num=4)
        assert seen.count == 1

    def test_old_keys(self):
        equal(directions.random(jax.random.PRNGKey(7), self.params), directions.random(KEY, self.params))

    def test_recipe_is_json(self):
        axes = directions.normalize(
            directions.random(KEY, self.params, select="conv/*"), self.params, exclude="conv/bias"
        )
        assert Recipe(json.loads(json.dumps(axes.recipe))) == axes.recipe

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num": 0}, "num: 0 given; it must be an integer of at least 1, the number of directions"),
            ({"num": 1.5}, "num: 1.5 given"),
            ({"key": 3}, "key: 3 given; it must be one jax.random key"),
            ({"params": {"n": np.arange(3)}}, r"params\['n'\] has dtype int"),
            ({"params": {"z": np.ones(2, np.complex64)}}, r"params\['z'\] has dtype complex64"),
            ({"params": {"w": np.array([np.nan, 1], "f4")}}, r"params\['w'\] has 1 NaN"),
            ({"params": {"w": np.ones(2), "f": jax.nn.relu}}, r"params\['f'\].*eqx.filter"),
            ({"select": "nothing"}, "matches no leaf; the leaves are: conv/bias"),
        ],
    )
    def test_refusals(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            directions.random(**{"key": KEY, "params": self.params, **arguments})

    def test_key_arrays_are_refused(self):
        with pytest.raises(ValueError, match=r"key: .* given; it must be one jax\.random key, such as"):
            directions.random(jax.random.split(KEY), self.params)


class TestRebuild:
    def setup_method(self):
        self.params = params_of()

    def again(self, axes, params=None):
        recipe = json.loads(json.dumps(axes.recipe))
        again = directions.rebuild(recipe, self.params if params is None else params)
        equal(again, axes)
        assert dict.__eq__(again.recipe, recipe)

    def test_plain_and_normalized(self):
        axes = directions.random(KEY, self.params, 2)
        self.again(axes)
        self.again(directions.normalize(axes, self.params, exclude="head/bias", one_dim="zero"))
        self.again(directions.normalize(axes, self.params, filter_axis=lambda p, leaf: 0 if leaf.ndim > 1 else None))

    def test_restricted_before_and_after(self):
        axes = directions.random(KEY, self.params, 3, select="**/kernel")
        axes = directions.normalize(directions.select(axes, "conv/*"), self.params, "model")
        axes = directions.select(directions.normalize(axes, self.params, "layer", filter_axis=-1), "conv/kernel")
        self.again(axes)
        self.again(axes[[2, 0]])

    def test_another_generator_is_noticed(self):
        axes = directions.random(KEY, self.params)
        recipe = json.loads(json.dumps(axes.recipe))
        recipe["fingerprint"][1][3] *= 1.001
        with pytest.raises(ValueError, match=r"does not agree with the recipe's fingerprint.*generator changed"):
            directions.rebuild(recipe, self.params)
        with jax.enable_x64(True), pytest.raises(ValueError, match="generator changed"):
            directions.rebuild(axes.recipe, params_of(np.float64))

    def test_other_weights_are_noticed(self):
        axes = directions.normalize(directions.random(KEY, self.params), self.params)
        other = jax.tree.map(lambda x: x * np.float32(1.01), self.params)
        with pytest.raises(ValueError, match="normalized by other weights"):
            directions.rebuild(axes.recipe, other)

    def test_only_random_ones(self):
        with pytest.raises(ValueError, match="recipe: its kind is 'given': only 'random'"):
            directions.rebuild(directions.given(self.params).recipe, self.params)


class TestOrthogonal:
    def setup_method(self):
        self.params = params_of()
        self.tree = tree_like(self.params, 11)

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_orthogonal(self, wrapped):
        first = directions.given(self.tree, names=["mine"]) if wrapped else self.tree
        axes = directions.orthogonal(KEY, self.params, first)
        x, y = rows(axes)
        np.testing.assert_array_equal(x, flat(self.tree))
        np.testing.assert_allclose([np.linalg.norm(y), x @ y / (x @ x)], [np.linalg.norm(x), 0], rtol=1e-5, atol=1e-6)
        assert axes.recipe["names"] == ["mine" if wrapped else "given", "orthogonal"]

    def test_orthogonal_within_a_selection(self):
        axes = directions.orthogonal(KEY, self.params, self.tree, select="head/*")
        x, y = rows(axes)
        assert abs(x @ y) < 1e-5 * (x @ x)

    def test_orthogonal_refuses(self):
        with pytest.raises(ValueError, match="given: has 2 directions"):
            directions.orthogonal(KEY, self.params, directions.random(KEY, self.params))
        with pytest.raises(ValueError, match=r"given lacks \['head/bias'"):
            directions.orthogonal(KEY, self.params, {"conv": self.tree["conv"]})
        with pytest.raises(ValueError, match="direction 1 is zero everywhere; the selected leaves leave no room"):
            directions.orthogonal(KEY, {"w": np.ones(1, "f4")}, {"w": np.ones(1, "f4")})


@settings(deadline=None, max_examples=10, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), index=st.integers(0, 2))
def test_a_direction_follows_from_its_key_and_index_alone(seed, index):
    params, key = params_of(), jax.random.key(seed)
    axes = directions.random(key, params, 3)
    equal(directions.random(jax.random.key(seed), params, 3), axes)
    equal(directions.random(key, params, 3)[index], axes[[index]])
    np.testing.assert_array_equal(rows(directions.random(key, params, index + 1))[-1], rows(axes)[index])
    equal(directions.rebuild(axes[index].recipe, params), axes[index])


@settings(deadline=None, max_examples=10, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3))
def test_an_orthogonal_direction_is_as_long_as_the_given_one(seed, scale):
    tree = jax.tree.map(lambda x: np.float32(scale) * x, tree_like(params_of(), 11))
    x, y = rows(directions.orthogonal(jax.random.key(seed), params_of(), tree))
    assert np.linalg.norm(y) == pytest.approx(np.linalg.norm(x), rel=1e-5)
    assert abs(x @ y) < 1e-5 * (x @ x)
