"""Directions: draws, normalizations against plain numpy, moments, checkpoints, and every refusal."""

from __future__ import annotations

import json

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze

import lla_jax as lla
from lla_jax import directions
from lla_jax.core import tree as _tree
from lla_jax.core.types import Directions, Eigenpairs, Loss, Recipe
from tests.helpers import FIXED

KEY = jax.random.key(7)
COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: COMPILED.append(name) if name.endswith("backend_compile_duration") else None
)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Everything here is small, so compiling without optimization saves most of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def params_of(dtype=np.float32):
    rng = np.random.default_rng(1)
    return {
        "conv": {"kernel": rng.normal(size=(3, 3, 2, 4)).astype(dtype), "bias": rng.normal(size=4).astype(dtype)},
        "head": {"kernel": rng.normal(size=(8, 5)).astype(dtype), "bias": rng.normal(size=5).astype(dtype)},
    }


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype("f8")


def rows(axes):
    return [flat(jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], axes.tree)) for i in range(axes.num)]


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.tree, b.tree)


# --- one network in three layouts, and the plain numpy normalization of its tensors (filters first)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True, name="bn")(nn.Conv(4, (3, 3), name="conv")(x))
        x = nn.LayerNorm(name="ln")(nn.Dense(5, name="dense")(x.mean((1, 2))))
        return nn.Dense(1, name="dead")(x) * self.param("temperature", nn.initializers.ones, ())


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv, self.bn = nnx.Conv(2, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.dense, self.ln = nnx.Linear(4, 5, rngs=rngs), nnx.LayerNorm(5, rngs=rngs)
        self.dead, self.temperature = nnx.Linear(5, 1, rngs=rngs), nnx.Param(jnp.ones(()))


class Eqx(eqx.Module):
    conv: eqx.nn.Conv2d
    bn: eqx.nn.LayerNorm  # Equinox's BatchNorm keeps its weight and bias in the same shapes
    dense: eqx.nn.Linear
    ln: eqx.nn.LayerNorm
    dead: eqx.nn.Linear
    temperature: jax.Array

    def __init__(self, key):
        self.conv, self.bn = eqx.nn.Conv2d(2, 4, 3, key=key), eqx.nn.LayerNorm(4)
        self.dense, self.ln = eqx.nn.Linear(4, 5, key=key), eqx.nn.LayerNorm(5)
        self.dead, self.temperature = eqx.nn.Linear(5, 1, key=key), jnp.ones(())


def canonical(seed):
    """Tensors with filters first; among them a zero filter, a zero tensor and a matrix with one output."""
    rng = np.random.default_rng(seed)
    shapes = {
        "conv/kernel": (4, 2, 3, 3), "conv/bias": (4,), "bn/scale": (4,), "bn/bias": (4,), "dense/kernel": (5, 4),
        "dense/bias": (5,), "ln/scale": (5,), "ln/bias": (5,), "dead/kernel": (1, 5), "dead/bias": (1,),
        "temperature": (),
    }  # fmt: skip
    return {name: np.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def weights_and_direction():
    w, d = canonical(0), canonical(1)
    w["conv/kernel"][1] = 0
    w["bn/bias"][:] = 0
    w["ln/bias"][2] = 0
    d["conv/kernel"][2] = 0
    d["dead/kernel"][:] = 0
    return w, d


def to_flax(name, x):
    return {2: lambda: x.T, 4: lambda: x.transpose(2, 3, 1, 0)}.get(x.ndim, lambda: x)()


def from_flax(name, x):
    return {2: lambda: x.T, 4: lambda: x.transpose(3, 2, 0, 1)}.get(x.ndim, lambda: x)()


def to_eqx(name, x):
    return x.reshape(4, 1, 1) if name == "conv/bias" else x


def from_eqx(name, x):
    return x.reshape(4) if name == "conv/bias" else x


def eqx_name(path):
    name = path.replace("weight", "kernel" if path.split("/")[0] in ("conv", "dense", "dead") else "scale")
    return name


def templates():
    linen = jax.eval_shape(Linen().init, KEY, jnp.ones((1, 4, 4, 2)))["params"]
    nnx_state = nnx.state(nnx.eval_shape(lambda: Nnx(nnx.Rngs(0))), nnx.Param)
    equinox = eqx.filter_eval_shape(Eqx, KEY)
    equinox = eqx.filter(equinox, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    same = lambda path: path  # noqa: E731
    return {
        "linen": (linen, same, to_flax, from_flax),
        "frozen": (freeze(linen), same, to_flax, from_flax),
        "nnx": (nnx_state, same, to_flax, from_flax),
        "equinox": (equinox, eqx_name, to_eqx, from_eqx),
    }


LAYOUTS = templates()


def lay_out(template, naming, to, tensors):
    shapes, structure = jax.tree.flatten(template)
    leaves = [to(naming(p), tensors[naming(p)]) for p in _tree.paths(template)]
    assert [x.shape for x in leaves] == [s.shape for s in shapes]
    return jax.tree.unflatten(structure, leaves)


def plain_normalize(w, d, by, order, one_dim, unit):
    """The reference: loops over tensors and filters in float64."""

    def length(x):
        return np.abs(x).sum() if order == 1 else np.sqrt((x**2).sum())

    def scaled(weight, direction):
        if length(direction) == 0:
            return np.zeros_like(direction)
        return direction / length(direction) * (1 if unit else length(weight))

    out = {}
    for name in w:
        weight, direction = w[name], d[name]
        if one_dim == "zero" and not name.endswith("kernel"):
            out[name] = np.zeros_like(direction)
        elif by in ("none", "model"):
            out[name] = direction
        elif by == "weight":
            out[name] = direction * weight
        elif name.endswith("kernel") and by == "filter":
            out[name] = np.stack([scaled(weight[f], direction[f]) for f in range(len(weight))])
        elif one_dim == "entry" and not name.endswith("kernel"):
            pairs = zip(weight.ravel(), direction.ravel())
            out[name] = np.array([scaled(a, b) for a, b in pairs]).reshape(weight.shape)
        else:
            out[name] = scaled(weight, direction)
    if by == "model":
        moving = [name for name in w if np.any(out[name])]
        total = [length(np.concatenate([x[name].ravel() for name in moving])) for x in (w, out)]
        out = {name: x * ((1 if unit else total[0]) / total[1]) for name, x in out.items()}
    return out


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
        assert got.dtype == np.float16
        norms = np.linalg.norm(np.asarray(got, "f8")[0], axis=0)
        np.testing.assert_allclose(norms, 20 * 300**0.5, rtol=1e-3)

    def test_tiny_moments_do_not_vanish(self):
        axes = directions.given({"kernel": np.full((3, 2), 1e-30, np.float32)})
        got = directions.normalize(axes, {"kernel": np.ones((3, 2), np.float32)})
        np.testing.assert_allclose(np.asarray(got.tree["kernel"])[0], 1, rtol=1e-6)

    def test_no_compilation_for_new_values(self):
        directions.normalize(self.axes, self.params)
        other = jax.tree.map(lambda x: x + np.float32(1), self.params)
        COMPILED.clear()
        directions.normalize(directions.random(jax.random.key(99), other), other)
        assert COMPILED == []


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


# --- science truth 8


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


# --- random


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
        assert {leaf.dtype.name for leaf in jax.tree.leaves(axes.tree)} == {"bfloat16"}
        expected = np.asarray(directions.random(KEY, wide).tree["head"]["kernel"]).astype(jnp.bfloat16)
        np.testing.assert_array_equal(np.asarray(axes.tree["head"]["kernel"]), expected)

    def test_one_compilation_and_none_for_a_new_seed(self):
        params = {"a": np.ones((3, 5), np.float32), "b": [np.ones(7, np.float32)] * 6}
        directions.random(KEY, self.params, num=4)  # whatever a key needs
        COMPILED.clear()
        directions.random(KEY, params, num=4)
        assert len(COMPILED) == 1
        directions.random(jax.random.key(123), params, num=4)
        assert len(COMPILED) == 1

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

    def test_zero_and_nan_directions(self):
        params = {"kernel": np.ones((2, 3), np.float32)}
        zero = Directions({"kernel": np.stack([np.ones((2, 3), "f4"), np.zeros((2, 3), "f4")])}, Recipe())
        with pytest.raises(ValueError, match="direction 1 is zero everywhere"):
            directions.normalize(zero, params)
        with pytest.raises(ValueError, match="direction 0 has NaN"):
            directions.normalize(Directions({"kernel": np.full((1, 2, 3), np.nan, "f4")}, Recipe()), params)


# --- eigenvectors


def pairs_of(matrix, indices, dtype=np.float32, **changes):
    """Exact eigenpairs of a symmetric (6, 6) matrix on ``{"a": (2, 2), "b": (2,)}``."""
    values, columns = np.linalg.eigh(matrix)
    vectors = jnp.asarray(columns.T[indices], dtype)
    tree = {"a": vectors[:, :4].reshape(-1, 2, 2), "b": vectors[:, 4:]}
    parts = {"values": values[indices], "vectors": Directions(tree, {"kind": "eigenpairs"}), "products": 6}
    return Eigenpairs(**parts | {"residuals": 1e-3 * np.arange(len(indices)), "recipe": {}} | changes)


class TestEigenvectors:
    def setup_method(self):
        # a known spectrum, not in the order of the pairs
        rotation = np.linalg.qr(np.random.default_rng(5).normal(size=(6, 6)))[0]
        self.matrix = (rotation * [-2.5, -1, 0, 0.5, 3, 12.25]) @ rotation.T
        self.order = [5, 4, 0, 1]

    def test_chosen_vectors_with_their_names(self):
        pairs = pairs_of(self.matrix, self.order)
        axes = directions.eigenvectors(pairs)
        equal(axes, pairs.vectors[:2])
        assert axes.recipe["names"] == ["eigenvector 1 (lambda = 12.2)", "eigenvector 2 (lambda = 3)"]
        ends = directions.eigenvectors(pairs, (np.int64(0), -2))
        equal(ends, pairs.vectors[[0, 2]])
        assert ends.recipe["names"][1] == "eigenvector 3 (lambda = -2.5)"
        assert ends.recipe["indices"] == [0, 2]
        np.testing.assert_allclose(ends.recipe["values"], [12.25, -2.5])
        assert ends.recipe["residuals"] == [0, 2e-3]
        assert json.loads(json.dumps(ends.recipe)) == ends.recipe
        for vector in rows(ends):
            assert np.linalg.norm(vector) == pytest.approx(1, rel=1e-6)
        one = directions.eigenvectors(pairs, 3)
        assert one.num == 1
        equal(one, pairs.vectors[3])

    def test_they_join_normalize_and_index_like_all_directions(self):
        pairs = pairs_of(self.matrix, self.order)
        params = {"a": np.ones((2, 2), "f4"), "b": np.ones(2, "f4")}
        axes = directions.eigenvectors(pairs, (0, 2))
        assert axes[1].recipe["names"] == ["eigenvector 3 (lambda = -2.5)"]
        joined = directions.join(axes, directions.random(KEY, params, 1))
        assert joined.recipe["names"][0::2] == ["eigenvector 1 (lambda = 12.2)", "random"]
        scaled = directions.normalize(axes, params, "model")
        np.testing.assert_allclose([np.linalg.norm(row) for row in rows(scaled)], np.sqrt(6), rtol=1e-6)
        assert scaled.recipe["names"] == axes.recipe["names"]

    def test_the_plane_of_a_quadratic_is_its_eigenvalues(self):
        """Science truth 1, in float64: L0 + (lambda_1 a^2 + lambda_2 b^2) / 2 to 1e-12."""
        with jax.enable_x64(True):
            pairs = pairs_of(self.matrix, self.order, np.float64)
            params = {"a": np.zeros((2, 2)), "b": np.zeros(2)}

            def loss(p, batch):
                w = jnp.concatenate([p["a"].reshape(-1), p["b"]])
                return 0.75 + w @ batch[0].mean(0) @ w / 2

            axes = directions.eigenvectors(pairs, (0, -2))
            assert axes.tree["a"].dtype == np.float64
            plane = lla.evaluate(loss, params, (self.matrix[None],), axes, lla.grid(points=(5, 3)), execution=FIXED)
        a, b = np.meshgrid(*plane.coords, indexing="ij")
        expected = 0.75 + (12.25 * a**2 - 2.5 * b**2) / 2
        np.testing.assert_allclose(plane.values["loss"], expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize(
        ("which", "message"),
        [
            ((0, 4), r"which: \(0, 4\) given; it must be indices of the 4 pair.*0 to 3 or -1 to -4 .*for more pairs"),
            ((-5,), r"which: \(-5,\) given"),
            ((1, -3), r"which: \(1, -3\) given; .*each once"),
            ((), r"which: \(\) given"),
            ("01", r"which: '01' given"),
            ((0.0, 1), r"which: \(0.0, 1\) given"),
            ((True, False), r"which: \(True, False\) given"),
            (None, r"which: None given"),
        ],
    )
    def test_indices_that_do_not_exist(self, which, message):
        with pytest.raises(ValueError, match=message):
            directions.eigenvectors(pairs_of(self.matrix, self.order), which)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"vectors": None}, "pairs: has 4 values and no vectors"),
            ({"vectors": Directions({"a": 2 * np.eye(4)}, {})}, r"norms \[2.0, 2.0\]; every norm must be 1"),
            ({"vectors": Directions({"a": np.full((4, 2), np.nan)}, {})}, "NaN or infinite"),
            ({"recipe": {"operator": {"kind": "hessian", "preconditioned": {"eps": 0}}}}, "preconditioned operator"),
            ({"values": np.zeros(0)}, "holds no pair"),
        ],
    )
    def test_pairs_without_use(self, changes, message):
        with pytest.raises(ValueError, match=message):
            directions.eigenvectors(pairs_of(self.matrix, self.order, **changes))

    def test_something_else(self):
        with pytest.raises(ValueError, match=r"pairs: tuple given; it must be Eigenpairs, as lla.eigenpairs"):
            directions.eigenvectors((np.ones(2), np.eye(2)))


# --- Adam's moments


def tree_like(params, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=np.shape(x)).astype("f4"), params)


def after_one_step(tx, params, grads):
    return jax.jit(lambda p, g: tx.update(g, tx.init(p), p)[1])(params, grads)


def kernels(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


def labels(params):
    return jax.tree.map(lambda x: "matrices" if x.ndim > 1 else "others", params)


class TestAdamMoments:
    def setup_method(self):
        self.params = params_of()
        self.grads = tree_like(self.params, 5)

    def expect(self, axes, b2=0.999, masked=False):
        assert axes.recipe["kind"] == "adam_moments"
        assert axes.recipe["names"] == ["m", "v"]

        def check(leaf, g):
            g = np.zeros_like(g) if masked and g.ndim == 1 else g
            np.testing.assert_allclose(leaf, np.stack([0.1 * g, (1 - b2) * g**2]), rtol=1e-4)

        jax.tree.map(check, axes.tree, self.grads)

    @pytest.mark.parametrize(
        ("tx", "masked"),
        [
            (optax.adam(1e-3), False),
            (optax.chain(optax.identity(), optax.adamw(optax.constant_schedule(1e-3))), False),
            (optax.masked(optax.adam(1e-3), kernels), True),
            (optax.inject_hyperparams(optax.adam)(learning_rate=1e-3), False),
            (optax.partition({"matrices": optax.adam(1e-3), "others": optax.adamw(1e-2)}, labels), False),
            (optax.partition({"matrices": optax.adam(1e-3), "others": optax.sgd(1e-2)}, labels), True),
            (optax.MultiSteps(optax.adam(1e-3), 1).gradient_transformation(), False),
            (optax.amsgrad(1e-3), False),
        ],
        ids=["adam", "chain", "masked", "inject", "partition", "partition-sgd", "multisteps", "amsgrad"],
    )
    def test_out_of_any_state(self, tx, masked):
        state = after_one_step(tx, self.params, self.grads)
        self.expect(directions.adam_moments(state, self.params), masked=masked)

    def test_nnx_optimizer(self):
        model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
        params = nnx.state(model, nnx.Param)
        optimizer.update(model, jax.tree.map(lambda x: np.full(x.shape, 2, np.float32), params))
        for state in (optimizer, optimizer.opt_state):
            axes = directions.adam_moments(state, params)
            assert jax.tree.structure(axes.tree) == jax.tree.structure(params)
            np.testing.assert_allclose(axes.tree["kernel"].get_value()[0], np.full((2, 3), 0.2), rtol=1e-6)

    def test_mixed_precision_moments(self):
        params = {"w": np.ones(3, np.float32)}
        state = after_one_step(optax.adam(1e-3, mu_dtype=jnp.bfloat16), params, {"w": np.ones(3, np.float32)})
        assert directions.adam_moments(state, params).tree["w"].dtype == np.float32

    def test_refusals(self):
        params = {"w": np.ones(3, np.float32)}
        with pytest.raises(ValueError, match="its states are: TraceState, EmptyState"):
            directions.adam_moments(optax.sgd(0.1, momentum=0.9).init(params), params)
        twice = optax.chain(optax.adam(1e-3), optax.scale_by_adam())
        with pytest.raises(ValueError, match="several Adam states with mu for 'w'"):
            directions.adam_moments(twice.init(params), params)
        with pytest.raises(ValueError, match="taken no step"):
            directions.adam_moments(optax.adam(1e-3).init(params), params)
        state = after_one_step(optax.adam(1e-3), params, params)
        with pytest.raises(ValueError, match=r"opt_state: its mu has leaves \['w'\] that params lack"):
            directions.adam_moments(state, {"v": np.ones(3, np.float32)})
        with pytest.raises(ValueError, match=r"mu\['w'\] has shape \(3,\)"):
            directions.adam_moments(state, {"w": np.ones(4, np.float32)})


# --- checkpoints, gradient, the user's own


class TestBetween:
    def setup_method(self):
        self.a, self.b, self.c, self.d = (tree_like(params_of(), seed) for seed in range(4))

    def check_marks(self, axes, checkpoints):
        assert [name for name, _ in axes.recipe["marks"]] == ["A", "B", "C", "D"][: len(checkpoints)]
        for (_, coords), checkpoint in zip(axes.recipe["marks"], checkpoints):
            point = flat(self.a) + sum(x * row for x, row in zip(coords, rows(axes), strict=True))
            np.testing.assert_allclose(point, flat(checkpoint), atol=1e-5)

    @pytest.mark.parametrize("orthogonal", [False, True])
    def test_line_plane_volume(self, orthogonal):
        for checkpoints in ((self.a, self.b), (self.a, self.b, self.c), (self.a, self.b, self.c, self.d)):
            axes = directions.between(*checkpoints, orthogonal=orthogonal)
            assert axes.num == len(checkpoints) - 1 == len(axes.recipe["names"])
            json.dumps(axes.recipe)
            self.check_marks(axes, checkpoints)
        np.testing.assert_allclose(rows(axes)[0], flat(self.b) - flat(self.a), atol=1e-6)
        if orthogonal:
            gram = np.array([[x @ y for y in rows(axes)] for x in rows(axes)])
            np.testing.assert_allclose(gram / gram[0, 0], np.eye(3), atol=1e-6)

    def test_half_precision_checkpoints_are_met(self):
        a, b = ({"w": np.asarray(x, jnp.bfloat16)} for x in ([1.0, 256.0], [1.0078125, -0.00390625]))
        axes = directions.between(a, b)
        assert axes.tree["w"].dtype == np.float32
        np.testing.assert_array_equal(np.asarray(a["w"], "f4") + axes.tree["w"][0], np.asarray(b["w"], "f4"))

    def test_refusals(self):
        with pytest.raises(ValueError, match="C equals A"):
            directions.between(self.a, self.b, self.a)
        middle = jax.tree.map(lambda x, y: (x + y) / 2, self.a, self.b)
        with pytest.raises(ValueError, match="C lies on the line"):
            directions.between(self.a, self.b, middle, orthogonal=True)
        with pytest.raises(ValueError, match="B lacks"):
            directions.between(self.a, {"conv": self.a["conv"]})
        with pytest.raises(ValueError, match=r"B\['w'\] has 1 NaN"):
            directions.between({"w": np.ones(1)}, {"w": np.full(1, np.nan)})


def test_gradient():
    x = np.random.default_rng(0).normal(size=(7, 3)).astype("f4")
    params = {"w": np.array([1, 2, 3], "f4")}
    loss = Loss(apply=lambda p, state, batch, train: (batch @ p["w"], state), criterion=lambda out, batch: 0.5 * out**2)
    axes = directions.gradient(loss, params, x, batch_size=3)
    assert axes.num == 1
    assert axes.recipe["kind"] == "gradient"
    np.testing.assert_allclose(axes.tree["w"][0], x.T @ (x @ params["w"]) / 7, rtol=1e-5)
    with pytest.raises(ValueError, match="stationary point"):
        directions.gradient(loss, {"w": np.zeros(3, "f4")}, x)


class TestGivenOrthogonalJoin:
    def setup_method(self):
        self.params = params_of()
        self.tree = tree_like(self.params, 11)

    def test_given(self):
        axes = directions.given(self.tree, self.params, names=["step", "weights"])
        np.testing.assert_array_equal(rows(axes)[1], flat(self.params))
        assert axes.recipe == Recipe(kind="given", names=["step", "weights"])
        assert axes.recipe["names"] == ["step", "weights"]

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
