"""Paths, selections, and the arithmetic of trees."""

from __future__ import annotations

import re

import chex
import flax
import hypothesis.extra.numpy as arrays
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse

TREE = {
    "Conv_0": {"kernel": np.ones((2, 3), np.float32), "bias": np.zeros(3, np.float32)},
    "head": [np.full((2,), 2, np.float32), {"kernel": np.float32(3)}],
}
PATHS = ["Conv_0/bias", "Conv_0/kernel", "head/0", "head/1/kernel"]


class TestPaths:
    def test_plain_and_frozen(self):
        assert _tree.paths(TREE) == PATHS
        assert _tree.paths(flax.core.freeze({"a": TREE["Conv_0"]})) == ["a/bias", "a/kernel"]

    def test_nnx_without_value(self):
        state = nnx.State({"conv": {"kernel": nnx.Param(np.ones(2))}, "ll": {0: {"bias": nnx.Param(np.ones(3))}}})
        assert _tree.paths(state) == ["conv/kernel", "ll/0/bias"]

    def test_single_leaf(self):
        assert _tree.paths(np.ones(3)) == [""]


class TestSelected:
    @pytest.mark.parametrize(
        ("select", "expected"),
        [
            (None, PATHS),
            ("**", PATHS),
            ("**/kernel", ["Conv_0/kernel", "head/1/kernel"]),
            ("*/kernel", ["Conv_0/kernel"]),
            ("Conv_?/*", ["Conv_0/bias", "Conv_0/kernel"]),
            ("head/**", ["head/0", "head/1/kernel"]),
            ("head/**/kernel", ["head/1/kernel"]),
            ("head/0", ["head/0"]),
            (re.compile("bias|^head"), ["Conv_0/bias", "head/0", "head/1/kernel"]),
            (lambda path, leaf: np.ndim(leaf) == 1, ["Conv_0/bias", "head/0"]),
            (["head/0", re.compile("bias$")], ["Conv_0/bias", "head/0"]),
            ({"head/0", "Conv_0/bias"}, ["Conv_0/bias", "head/0"]),
            (np.array(["head/0", "Conv_0/bias"]), ["Conv_0/bias", "head/0"]),
        ],
    )
    def test_kinds(self, select, expected):
        assert [p for p, chosen in zip(PATHS, _tree.select_leaves(select, TREE)) if chosen] == expected

    def test_double_star_includes_no_level(self):
        assert _tree.select_leaves("**/kernel", {"kernel": 1.0, "x": 2.0}) == [True, False]

    @pytest.mark.parametrize("select", ["kernel", "Conv", [], "conv_0/*"])
    def test_nothing_matches(self, select):
        with pytest.raises(ValueError, match=r"matches no leaf.*Conv_0/bias, Conv_0/kernel"):
            _tree.select_leaves(select, TREE)

    def test_a_set_of_paths_is_described_in_order(self):
        chosen = _tree.select_leaves({"head/0", "Conv_0/bias"}, TREE)
        assert _tree.describe({"head/0", "Conv_0/bias"}, TREE, chosen)["text"] == "Conv_0/bias, head/0"

    def test_unknown_kind(self):
        with pytest.raises(ValueError, match="select: 3 given; it must be a glob such as"):
            _tree.select_leaves(3, TREE)


class TestArithmetic:
    def setup_method(self):
        rng = np.random.default_rng(0)
        self.a, self.b, self.c = (
            {"x": rng.normal(size=(3, 2)).astype("f4"), "y": [rng.normal(size=4).astype("f4")]} for _ in range(3)
        )

    @staticmethod
    def flat(tree):
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype("f8")

    def test_dot_norm_axpy(self):
        a, b = self.flat(self.a), self.flat(self.b)
        np.testing.assert_allclose(_tree.dot(self.a, self.b), a @ b, rtol=1e-6)
        np.testing.assert_allclose(_tree.norm(self.a), np.linalg.norm(a), rtol=1e-6)
        np.testing.assert_allclose(_tree.norm(self.a, 1), np.abs(a).sum(), rtol=1e-6)
        np.testing.assert_allclose(self.flat(_tree.axpy(2.5, self.a, self.b)), 2.5 * a + b, rtol=1e-5)

    def test_stack_and_back(self):
        stacked = _tree.stack([self.a, self.b])
        assert stacked["x"].shape == (2, 3, 2)
        for got, want in zip(_tree.unstack(stacked), (self.a, self.b)):
            jax.tree.map(np.testing.assert_array_equal, got, want)

    def test_the_largest_magnitude_is_nan_where_there_is_one(self):
        assert _tree.largest({"a": np.float32([1, -3]), "b": np.float32(2), "c": np.zeros((0, 2), "f4")}) == 3
        assert np.isnan(_tree.largest({"a": np.float32([1, np.nan]), "b": np.float32(2)}))

    def test_orthonormalize(self):
        dependent = jax.tree.map(lambda x, y: x - 2 * y, self.a, self.b)
        vectors = _tree.unstack(_tree.orthonormalize(_tree.stack([self.a, self.b, dependent, self.c])))
        flat = np.stack([self.flat(v) for v in vectors])
        np.testing.assert_allclose(flat @ flat.T, np.diag([1, 1, 0, 1]), atol=1e-6)
        np.testing.assert_allclose(flat[0], self.flat(self.a) / np.linalg.norm(self.flat(self.a)), rtol=1e-5)

    def test_norms_of_another_order_are_refused(self):
        with pytest.raises(ValueError, match="order: 3 given; it must be one of 1, 2"):
            _tree.norm(self.a, 3)

    def test_a_second_tree_of_the_same_shapes_is_not_traced_again(self):
        square = jax.jit(chex.assert_max_traces(lambda tree: _tree.dot(tree, tree), n=1))
        for tree in (self.a, self.b, self.c):
            np.testing.assert_allclose(square(tree), _tree.norm(tree) ** 2, rtol=1e-6)

    def test_half_precision_sums_are_wide(self):
        tree = [np.ones(4096, jnp.bfloat16)]
        assert _tree.norm(tree, 1) == 4096
        assert _tree.dot(tree, tree).dtype == np.float32


class TestChecks:
    @pytest.mark.parametrize(
        ("leaf", "message"),
        [
            (np.arange(3), r"params\['a/b'\] has dtype int"),
            (np.ones(2, np.complex64), r"params\['a/b'\] has dtype complex64"),
            (np.array([1, np.nan], "f4"), r"params\['a/b'\] has 1 NaN or infinite entries of 2"),
            (np.array([1, np.inf], jnp.bfloat16), r"params\['a/b'\] has 1 NaN"),
            (jax.nn.relu, r"params\['a/b'\] is .* not an array"),
        ],
    )
    def test_bad_leaf(self, leaf, message):
        with pytest.raises(Misuse, match=message):
            _tree.check_real({"a": {"b": leaf, "c": np.ones(2)}})

    def test_empty(self):
        with pytest.raises(ValueError, match="no array leaves"):
            _tree.check_real({})

    def test_large_numbers_of_64_bits_pass_where_they_are_kept(self):
        with jax.enable_x64(True):
            _tree.check_real({"w": np.array([1e300])})
        _tree.check_real({"w": np.array([1e30])})

    def test_numbers_pass(self):
        _tree.check_real([1.0, np.float16(2), np.ones(2, jnp.bfloat16)])

    def test_what_is_traced(self):
        seen = []
        jax.eval_shape(lambda x: seen.append(_tree.is_traced({"w": x, "b": TREE})) or x, np.ones(2))
        assert seen == [True]
        assert not _tree.is_traced((TREE, jnp.ones(2), 3.0))

    def test_align_by_path(self):
        aligned = _tree.align(flax.core.freeze({"b": np.ones(2), "a": np.zeros(3)}), {"a": np.ones(3), "b": np.ones(2)})
        assert isinstance(aligned, dict)
        np.testing.assert_array_equal(aligned["a"], np.zeros(3))

    @pytest.mark.parametrize(
        ("tree", "stacked", "message"),
        [
            ({"a": np.ones(3)}, False, r"lacks \['b'\]"),
            ({"a": np.ones(3), "b": np.ones(2), "c": 1.0}, False, r"has \['c'\] besides"),
            ({"a": np.ones(3), "b": np.ones(4)}, False, r"tree\['b'\] has shape \(4,\)"),
            ({"a": np.ones((2, 3)), "b": np.ones((1, 2))}, True, r"tree\['b'\] has shape \(1, 2\)"),
            ({"a": np.ones(()), "b": np.ones(2)}, True, r"tree\['a'\] has shape \(\)"),
        ],
    )
    def test_align_refuses(self, tree, stacked, message):
        with pytest.raises(Misuse, match=message):
            _tree.align(tree, {"a": np.ones(3), "b": np.ones(2)}, stacked=stacked)


floats = st.floats(-100, 100, width=32)
trees = st.fixed_dictionaries(
    {
        "x": arrays.arrays(np.float32, (3, 2), elements=floats),
        "y": st.tuples(
            arrays.arrays(np.float32, (4,), elements=floats), arrays.arrays(np.float32, (), elements=floats)
        ),
    }
)


class TestProperties:
    @given(st.lists(trees, min_size=3, max_size=3))
    def test_unstack_is_the_inverse_of_stack(self, vectors):
        chex.assert_trees_all_equal(_tree.unstack(_tree.stack(vectors)), vectors)

    @given(trees, trees)
    def test_dot_and_norms_are_those_of_the_flat_vector(self, a, b):
        one, two = (np.asarray(ravel_pytree(tree)[0], np.float64) for tree in (a, b))
        scale = 1e-5 * np.abs(one) @ np.abs(two)
        assert _tree.dot(a, b) == _tree.dot(b, a) == pytest.approx(one @ two, abs=scale + 1e-30)
        assert _tree.norm(a) == pytest.approx(np.linalg.norm(one), rel=1e-5, abs=1e-30)
        assert _tree.norm(a, 1) == pytest.approx(np.abs(one).sum(), rel=1e-5, abs=1e-30)
        assert _tree.norm(a) <= _tree.norm(a, 1) * 1.00001

    @given(trees, st.sampled_from(["**", "x", "y/*", "y/1", re.compile("0$"), ["x", "y/0"]]))
    def test_a_selection_and_its_complement_take_every_leaf_once(self, tree, select):
        chosen = _tree.select_leaves(select, tree)
        rest = [path for path, yes in zip(_tree.paths(tree), chosen, strict=True) if not yes]
        assert len(chosen) == len(jax.tree.leaves(tree))
        if rest:
            assert [not yes for yes in chosen] == _tree.select_leaves(rest, tree)

    @given(trees)
    def test_align_by_path_changes_no_leaf(self, tree):
        swapped = {"y": list(tree["y"]), "x": tree["x"]}
        chex.assert_trees_all_equal(_tree.align(swapped, tree), tree)


def test_paths_of_whole_variables_select_too():
    params = {"fc": {"kernel": np.ones(2), "bias": np.ones(1)}, "params": {"kernel": np.ones(3)}}
    assert _tree.select_leaves("params/fc/*", params) == [True, True, False]
    assert _tree.select_leaves(["params/fc/bias", "fc/kernel"], params) == [True, True, False]
    assert _tree.select_leaves("params/kernel", params) == [False, False, True]  # a path of the tree itself comes first
