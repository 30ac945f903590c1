"""Normalizations against plain numpy in every layout, filters of every framework, and every refusal."""

from __future__ import annotations

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from lla_jax import directions
from lla_jax.core import tree as _tree
from lla_jax.core.types import Directions, Loss, Recipe
from tests.directions.cases import KEY, equal, flat, params_of, rows
from tests.directions.layouts import LAYOUTS, SHAPES, lay_out, plain_normalize, weights_and_direction
from tests.helpers import compilations

CASES = [
    ("none", 2, "zero", False),
    ("weight", 2, "entry", False),
    ("layer", 1, "vector", False),
    ("layer", 2, "vector", False),
    ("layer", 2, "zero", True),
    ("layer", 1, "entry", True),
    ("filter", 1, "vector", False),
    ("filter", 2, "vector", False),
    ("filter", 2, "entry", False),
    ("filter", 1, "zero", False),
    ("filter", 2, "vector", True),
    ("filter", 1, "entry", True),
    ("model", 1, "vector", False),
    ("model", 2, "vector", False),
    ("model", 1, "zero", True),
]


@pytest.mark.parametrize(("by", "order", "one_dim", "unit"), CASES)
@pytest.mark.filterwarnings("ignore:params. weights of norm 0 in conv")
def test_normalize_agrees_with_numpy_in_every_layout(by, order, one_dim, unit):
    w, d = weights_and_direction()
    expected = plain_normalize(w, d, by, order, one_dim, unit)
    with jax.enable_x64(True):
        for layout, (template, naming, to, back) in LAYOUTS.items():
            params = lay_out(template, naming, to, w)
            axes = directions.given(lay_out(template, naming, to, d))
            got = directions.normalize(axes, params, by, order, one_dim=one_dim, unit=unit)
            for path, leaf in zip(_tree.paths(got.tree), jax.tree.leaves(got.tree)):
                name = naming(path)
                actual = back(name, np.asarray(leaf[0]))
                np.testing.assert_allclose(actual, expected[name], 1e-12, 1e-15, err_msg=f"{layout} {path}")
            step = got.recipe["normalize"][-1]
            assert (step["by"], step["order"], step["one_dim"], step["unit"]) == (by, order, one_dim, unit)
            assert step["filter_axis"] == ("equinox" if layout == "equinox" else "flax")


class TestNormalizeMore:
    def setup_method(self):
        self.params = params_of()
        self.axes = directions.random(KEY, self.params, num=2)

    def test_every_direction_by_itself(self):
        both = directions.normalize(self.axes, self.params)
        for i in range(2):
            one = directions.normalize(self.axes[i], self.params)
            np.testing.assert_allclose(rows(one)[0], rows(both)[i], rtol=1e-6)

    def test_float32_filter_norms(self):
        got = directions.normalize(self.axes, self.params).tree["conv"]["kernel"]
        norms = np.linalg.norm(np.asarray(got, "f8").reshape(2, -1, 4), axis=1)
        expected = np.linalg.norm(self.params["conv"]["kernel"].astype("f8").reshape(-1, 4), axis=0)
        np.testing.assert_allclose(norms, [expected, expected], rtol=1e-6)

    def test_exclude_is_left_as_it_is(self):
        got = directions.normalize(self.axes, self.params, "model", exclude="head/*")
        jax.tree.map(np.testing.assert_array_equal, got.tree["head"], self.axes.tree["head"])
        norm = np.linalg.norm(flat(self.params["conv"]))
        np.testing.assert_allclose(
            [np.linalg.norm(flat(jax.tree.map(lambda x: x[0], got.tree["conv"])))], norm, rtol=1e-6
        )
        assert got.recipe["normalize"][0]["exclude"]["paths"] == ["head/bias", "head/kernel"]

    def test_model_counts_only_leaves_that_move(self):
        got = directions.normalize(directions.select(self.axes, "conv/**"), self.params, "model")
        np.testing.assert_allclose(np.linalg.norm(rows(got)[1]), np.linalg.norm(flat(self.params["conv"])), rtol=1e-6)

    @pytest.mark.parametrize(
        ("rule", "recorded"),
        [
            (-1, -1),
            (directions.flax_filter_axis, "flax"),
            (Loss(apply=print, criterion=print, filter_axis=directions.flax_filter_axis), "flax"),
            (Loss(apply=print, criterion=print, filter_axis=-1), -1),
            (Loss(apply=print, criterion=print), "flax"),
            (
                lambda path, leaf: (leaf.ndim - 1,) if path.endswith("kernel") else None,
                {"conv/bias": None, "conv/kernel": [3], "head/bias": None, "head/kernel": [1]},
            ),
        ],
    )
    def test_filter_axis_kinds(self, rule, recorded):
        got = directions.normalize(self.axes, self.params, filter_axis=rule)
        equal(got, directions.normalize(self.axes, self.params))
        assert got.recipe["normalize"][0]["filter_axis"] == recorded

    def test_another_axis_is_another_filter(self):
        got = np.asarray(directions.normalize(self.axes, self.params, filter_axis=0).tree["head"]["kernel"])
        expected = np.linalg.norm(self.params["head"]["kernel"], axis=1)
        np.testing.assert_allclose(np.linalg.norm(got, axis=2), [expected, expected], rtol=1e-6)

    def test_half_precision_norms_do_not_saturate(self):
        params = {"kernel": np.full((300, 2), 20, np.float16)}  # the squares add up to more than float16 holds
        got = directions.normalize(directions.random(KEY, params, 1), params).tree["kernel"]
        norms = np.linalg.norm(np.asarray(got, "f8")[0], axis=0)
        np.testing.assert_allclose(norms, 20 * 300**0.5, rtol=1e-6)

    def test_tiny_moments_do_not_vanish(self):
        axes = directions.given({"kernel": np.full((3, 2), 1e-30, np.float32)})
        got = directions.normalize(axes, {"kernel": np.ones((3, 2), np.float32)})
        np.testing.assert_allclose(np.asarray(got.tree["kernel"])[0], 1, rtol=1e-6)

    def test_no_compilation_for_new_values(self):
        directions.normalize(self.axes, self.params)
        other = jax.tree.map(lambda x: x + np.float32(1), self.params)
        with compilations() as seen:
            directions.normalize(directions.random(jax.random.key(99), other), other)
        assert seen.count == 0


class TestFilterRules:
    @pytest.mark.parametrize(
        ("path", "shape", "axes"),
        [
            ("Conv_0/kernel", (3, 3, 2, 4), -1),
            ("Dense_0/kernel", (4, 1), -1),
            ("Dense_0/kernel", (1, 1), -1),
            ("linear/w", (1, 5), -1),
            ("net/~/conv2_d_transpose/w", (3, 3, 4, 2), -2),
            ("weight", (3, 4), -1),
            ("Embed_0/embedding", (7, 3), 0),
            ("embed/embeddings", (7, 1), 0),
            ("attn/query/kernel", (8, 2, 4), (1, 2)),
            ("attn/value/bias", (2, 4), None),
            ("attn/out/kernel", (2, 4, 8), -1),
            ("attn/out/bias", (8,), None),
            ("batch_norm/scale", (1, 1, 1, 6), None),
            ("conv/bias", (4, 1, 1), None),
            ("bias", (4,), None),
            ("temperature", (), None),
            ("lora_a", (4, 2), -1),
        ],
    )
    def test_flax(self, path, shape, axes):
        assert directions.flax_filter_axis(path, np.zeros(shape)) == axes

    @pytest.mark.parametrize(
        ("path", "shape", "axes"),
        [
            ("layers/0/weight", (4, 2, 3, 3), 0),
            ("layers/0/weight", (1, 5), 0),
            ("layers/0/bias", (4, 1, 1), None),
            ("norm/weight", (4,), None),
            ("cell/weight_ih", (6, 4), 0),
            ("scale", (), None),
        ],
    )
    def test_equinox(self, path, shape, axes):
        assert directions.equinox_filter_axis(path, np.zeros(shape)) == axes

    def test_names_that_modules_really_give(self):
        x = jnp.ones((1, 3, 8))
        linen = jax.eval_shape(nn.MultiHeadDotProductAttention(num_heads=2).init, KEY, x)["params"]
        state = nnx.state(
            nnx.eval_shape(lambda: nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))), nnx.Param
        )
        for tree in (linen, state):
            rules = {
                p: directions.flax_filter_axis(p, leaf) for p, leaf in zip(_tree.paths(tree), jax.tree.leaves(tree))
            }
            assert rules["query/kernel"] == rules["key/kernel"] == (1, 2)
            assert rules["query/bias"] is rules["out/bias"] is None
            assert rules["out/kernel"] == -1

    def test_equinox_inside_containers(self):
        tree = {"enc": [eqx.nn.Linear(2, 3, key=KEY)]}
        got = directions.normalize(directions.random(KEY, tree, 1), tree)
        assert got.recipe["normalize"][0]["filter_axis"] == "equinox"


def relu_net(w, x, y):
    hidden = np.maximum(x @ w["l1"]["kernel"] + w["l1"]["bias"], 0)
    out = hidden @ w["l2"]["kernel"] + w["l2"]["bias"]
    return float(np.mean((out - y) ** 2))


def rescaled(w, a):
    """The same function: hidden units (their weights and biases) times a, the next weights divided by it."""
    return {
        "l1": {"kernel": w["l1"]["kernel"] * a, "bias": w["l1"]["bias"] * a},
        "l2": {"kernel": w["l2"]["kernel"] / np.reshape(a, (-1, 1)), "bias": w["l2"]["bias"]},
    }


def plane(w, axes, x, y):
    tree = jax.tree.map(np.asarray, axes.tree)
    at = lambda a, b: jax.tree.map(lambda p, d: p + a * d[0] + b * d[1], w, tree)  # noqa: E731
    return np.array([[relu_net(at(a, b), x, y) for b in (-0.7, 0.3, 1.0)] for a in (-1.0, 0.4)])


def test_rescaling_of_relu_layers():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
    w = {
        "l1": {"kernel": rng.normal(size=(3, 6)), "bias": rng.normal(size=6)},
        "l2": {"kernel": rng.normal(size=(6, 2)), "bias": rng.normal(size=2)},
    }
    layer_wise, per_neuron = rescaled(w, np.full(6, 3.0)), rescaled(w, rng.uniform(0.2, 4, size=6))
    np.testing.assert_allclose(relu_net(per_neuron, x, y), relu_net(w, x, y), rtol=1e-12)
    with jax.enable_x64(True):
        axes = directions.random(KEY, w, 2)
        planes = {
            by: [plane(v, directions.normalize(axes, v, by), x, y) for v in (w, layer_wise, per_neuron)]
            for by in ("filter", "layer", "weight")
        }
    for by in ("filter", "layer"):
        np.testing.assert_allclose(planes[by][1], planes[by][0], rtol=1e-12)
    np.testing.assert_allclose(planes["weight"][2], planes["weight"][0], rtol=1e-12)
    assert np.abs(planes["filter"][2] / planes["filter"][0] - 1).max() > 1e-2


class TestNormalizeRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"by": "filters"}, "by: 'filters' given; it must be one of 'none', 'weight'"),
            ({"order": 3}, "order: 3 given; it must be one of 1, 2"),
            ({"one_dim": "biasbn"}, "one_dim: 'biasbn' given; it must be one of"),
            (
                {"by": "weight", "unit": True},
                "unit: True given; it must be False, since by='weight' has no norm to divide by",
            ),
            ({"filter_axis": 2}, r"filter_axis: gives \(2,\) for 'head/kernel'"),
            ({"filter_axis": "last"}, "filter_axis: 'last' given; it must be an int, a function"),
            ({"exclude": "nothing"}, "matches no leaf"),
        ],
    )
    def test_options(self, options, message):
        params = params_of()
        with pytest.raises(ValueError, match=message):
            directions.normalize(directions.random(KEY, params), params, **options)

    def test_trees(self):
        params = params_of()
        axes = directions.random(KEY, params)
        with pytest.raises(ValueError, match=r"lacks \['head/bias', 'head/kernel'\]"):
            directions.normalize(Directions({"conv": axes.tree["conv"]}, Recipe()), params)
        head = {**params["head"], "bias": np.ones(6, np.float32)}
        with pytest.raises(ValueError, match=r"axes\['head/bias'\] has shape \(2, 5\)"):
            directions.normalize(axes, {**params, "head": head})
        with pytest.raises(ValueError, match=r"params\['head/bias'\] has 5 NaN"):
            directions.normalize(axes, {**params, "head": {**params["head"], "bias": np.full(5, np.nan)}})


FEW = settings(deadline=None, max_examples=10, derandomize=True)
SEEDS = st.integers(0, 2**32 - 1)


def draw(seed, scale=1.0):
    """Weights, and a direction times ``scale``, of the tensors of one network, in float64."""
    rng = np.random.default_rng(seed)
    w, d = ({name: np.asarray(rng.normal(size=shape)) for name, shape in SHAPES.items()} for _ in range(2))
    return w, {name: scale * x for name, x in d.items()}


def normalize(w, d, *options, **more):
    template, naming, to, back = LAYOUTS["linen"]
    with jax.enable_x64(True):
        axes = directions.given(lay_out(template, naming, to, d))
        got = directions.normalize(axes, lay_out(template, naming, to, w), *options, **more)
        names, leaves = _tree.paths(got.tree), jax.tree.leaves(got.tree)
        return {naming(path): back(naming(path), np.asarray(leaf[0])) for path, leaf in zip(names, leaves)}


@FEW
@given(seed=SEEDS, case=st.sampled_from(CASES))
def test_any_weights_and_direction_agree_with_numpy(seed, case):
    by, order, one_dim, unit = case
    w, d = draw(seed)
    got, expected = normalize(w, d, by, order, one_dim=one_dim, unit=unit), plain_normalize(w, d, *case)
    for name, x in expected.items():
        np.testing.assert_allclose(got[name], x, 1e-12, 1e-15, err_msg=name)


@FEW
@given(seed=SEEDS, order=st.sampled_from([1, 2]))
def test_every_filter_has_the_norm_of_its_weights(seed, order):
    w, d = draw(seed)
    for name, x in normalize(w, d, "filter", order).items():
        filters = [(x, w[name])] if not name.endswith("kernel") else zip(x, w[name])
        for one, weights in filters:
            norms = [np.linalg.norm(np.ravel(each), order) for each in (one, weights)]
            assert norms[0] == pytest.approx(norms[1], rel=1e-12)


@FEW
@given(seed=SEEDS, scale=st.floats(1e-6, 1e6), by=st.sampled_from(["filter", "layer", "model"]))
def test_the_scale_of_a_direction_does_not_matter(seed, scale, by):
    one, other = (normalize(*draw(seed, factor), by) for factor in (1.0, scale))
    for name, x in one.items():
        np.testing.assert_allclose(other[name], x, rtol=1e-10)
