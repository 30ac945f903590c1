"""Stacked layers are normalized as the layers they are, whatever stacked them; where no tree tells, the user does."""

from __future__ import annotations

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lla_jax as lla
from lla_jax import directions
from lla_jax.core import tree as _tree
from lla_jax.directions.stacks import stacked_axes
from tests.directions.cases import KEY
from tests.helpers import FIXED

L, WIDTH = 3, 4
X = np.random.default_rng(0).normal(size=(7, WIDTH)).astype(np.float32)


# --- linen


class Block(nn.Module):
    use_bias: bool = True

    @nn.compact
    def __call__(self, x, _=None):
        return nn.LayerNorm()(x + nn.Dense(WIDTH, use_bias=self.use_bias)(nn.tanh(nn.Dense(5)(x)))), None


class Deep(nn.Module):
    """Blocks under ``nn.scan``, or one after another."""

    scan: bool = True
    axis: int = 0

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(WIDTH, name="first")(x)
        if self.scan:
            lifted = nn.scan(
                nn.remat(Block), variable_axes={"params": self.axis}, split_rngs={"params": True}, length=L
            )
            x, _ = lifted(name="blocks")(x, None)
        else:
            for i in range(L):
                x, _ = Block(name=f"block_{i}")(x)
        return nn.Dense(2, name="last")(x)


def jitter(tree, seed=0):
    """The tree with noise on all leaves, so that no weight is 0 and no two layers are equal."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(x + 0.3 * rng.normal(size=x.shape), np.float32), tree)


def unroll(tree, axis=0):
    blocks = {f"block_{i}": jax.tree.map(lambda x, i=i: jnp.take(x, i, axis), tree["blocks"]) for i in range(L)}
    return {"first": tree["first"], "last": tree["last"], **blocks}


def linen(axis=0):
    return jitter(Deep(axis=axis).init(KEY, X)["params"])


# --- any stack: a tree {"first", "blocks", "last"} and one of its layers


class NnxBlock(nnx.Module):
    def __init__(self, key):
        rngs = nnx.Rngs(key)
        self.dense, self.norm = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)


class EqxBlock(eqx.Module):
    dense: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    conv: eqx.nn.Conv1d
    gain: jax.Array

    def __init__(self, key):
        self.dense, self.norm = eqx.nn.Linear(WIDTH, L, key=key), eqx.nn.LayerNorm(WIDTH)
        self.conv, self.gain = eqx.nn.Conv1d(2, L, 3, key=key), jnp.ones(())


def plain(key):
    return nn.Sequential([nn.Dense(5), nn.Dense(L)]).init(key, X)["params"]


def dense(key):
    return {"Dense_0": {"kernel": nn.Dense(WIDTH, use_bias=False).init(key, X)["params"]["kernel"]}}


def experts(key):
    return jax.vmap(plain)(jax.random.split(key, 2))


KEYS = jax.random.split(KEY, L)
STACKS = {
    "nnx": nnx.state(nnx.vmap(NnxBlock)(KEYS), nnx.Param),
    "nnx, dict": nnx.to_pure_dict(nnx.state(nnx.vmap(NnxBlock)(KEYS), nnx.Param)),
    "equinox": eqx.filter(eqx.filter_vmap(EqxBlock)(KEYS), eqx.is_inexact_array),
    "vmapped init": jax.vmap(plain)(KEYS),
    "no biases": jax.vmap(dense)(KEYS),
    "attention": jax.vmap(lambda key: nn.MultiHeadAttention(2).init(key, X)["params"])(KEYS),
    "haiku": {"__layer_stack_no_per_layer/linear": {"w": jnp.ones((L, WIDTH, 5)), "b": jnp.ones((L, 5))}},
    "haiku, no biases": {"__layer_stack_no_per_layer/linear": {"w": jnp.ones((L, WIDTH, 5))}},
    "lifted, no biases": {"ScanCheckpointBlock_0": {"mine": {"kernel": jnp.ones((L, WIDTH, 5))}}},
    "norm scales": {"norm": {"scale": jnp.ones((L, 5))}, "mine": {"kernel": jnp.ones((L, WIDTH, 5))}},
    "partitioned": {
        "a": {"kernel": nn.Partitioned(jnp.ones((L, WIDTH, 5)), names=("layers", None, "mlp"))},
        "b": {"kernel": nn.LogicallyPartitioned(jnp.ones((L, WIDTH, 5)), names=("layers", None, "mlp"))},
    },
}


@pytest.mark.parametrize(
    ("name", "by"), [*((name, "filter") for name in STACKS), ("nnx", "layer"), ("equinox", "layer")]
)
def test_stacked_layers_are_normalized_as_the_layers_that_they_are(name, by):
    first = nn.Dense(WIDTH).init(KEY, X)["params"]  # kernel and bias have the length L nowhere
    params = jitter({"first": first, "blocks": STACKS[name]})
    axes = directions.random(KEY, params, 2)
    found = directions.normalize(axes, params, by).tree
    for i in range(L):
        layer = jax.tree.map(lambda x, i=i: x[i], params["blocks"])
        layer_axes = directions.given(*(jax.tree.map(lambda x, i=i, j=j: x[j, i], axes.tree["blocks"]) for j in (0, 1)))
        expected = directions.normalize(layer_axes, layer, by, stacked={}).tree
        got = jax.tree.map(lambda x, i=i: x[:, i], found["blocks"])
        assert_close(got, expected)
    if name == "equinox":
        return  # its first axis indexes the filters of all leaves
    alone = directions.normalize(
        directions.given(jax.tree.map(lambda x: x[0], axes.tree["first"])), params["first"], by
    )
    assert_close(jax.tree.map(lambda x: x[:1], found["first"]), alone.tree)


def assert_close(got, expected):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-7), got, expected)


def test_stacked_network_has_the_plane_of_the_unrolled_network():
    params = linen()
    axes = directions.random(KEY, params, 1)
    lined_up = directions.given(unroll(_tree.unstack(axes.tree)[0]))
    across = directions.given(unroll(_tree.unstack(directions.normalize(axes, params, stacked={}).tree)[0]))
    lines = []
    for module, p, d in ((Deep(), params, axes), (Deep(scan=False), unroll(params), lined_up)):
        loss = lla.from_linen(module, {"params": p}, lambda out, batch: jnp.square(out).sum(-1))
        each = [directions.normalize(d, p, filter_axis=loss)] + ([] if module.scan else [across])
        lines += lla.evaluate(loss, p, X, each, lla.grid(points=3, dims=1), execution=FIXED)
    stacked, unrolled, wrong = (line.values["loss"] for line in lines)
    np.testing.assert_allclose(stacked, unrolled, rtol=2e-5)
    assert np.abs(wrong / unrolled - 1).max() > 0.02  # norms across the stack


def test_stacked_axes_other_than_the_first():
    params = linen(axis=1)
    axes = directions.random(KEY, params, 1)
    found = directions.normalize(axes, params)
    unrolled = unroll(params, 1)
    expected = directions.normalize(directions.given(unroll(_tree.unstack(axes.tree)[0], 1)), unrolled)
    assert_close(unroll(_tree.unstack(found.tree)[0], 1), _tree.unstack(expected.tree)[0])
    assert found.recipe["normalize"][0]["stacked"]["blocks/Dense_0/kernel"] == [1]


def test_stacks_in_stacks_and_whole_models():
    nested = {"inner": jax.vmap(experts)(KEYS), "out": {"kernel": jnp.ones((L, 5, 2)), "bias": jnp.ones((L, 2))}}
    found = stacked_axes(None, nested)
    assert found["inner/layers_0/kernel"] == found["inner/layers_1/bias"] == (0, 1)
    assert found["out/kernel"] == found["out/bias"] == (0,)
    whole = stacked_axes(None, jax.vmap(lambda key: Deep().init(key, X)["params"])(jax.random.split(KEY, 2)))
    assert whole["first/kernel"] == (0,)
    assert whole["blocks/Dense_0/kernel"] == (0, 1)


UNSTACKED = {
    "attention": lambda: nn.MultiHeadAttention(WIDTH).init(KEY, X)["params"],
    "general": lambda: nn.DenseGeneral((5, 3)).init(KEY, X)["params"],
    "convolution": lambda: nn.Conv(4, (3,)).init(KEY, X)["params"],
    "norm over two axes": lambda: nn.LayerNorm(feature_axes=(0, 1), reduction_axes=(0, 1)).init(KEY, X)["params"],
    "recurrent": lambda: nn.RNN(nn.LSTMCell(4)).init(KEY, X[None])["params"],
    "unrolled": lambda: Deep(scan=False).init(KEY, X)["params"],
    "shared": lambda: nn.vmap(nn.Dense, variable_axes={"params": None}, split_rngs={"params": False})(WIDTH).init(
        KEY, X
    )["params"],
    "equinox": lambda: eqx.filter(eqx.nn.MultiheadAttention(2, 4, key=KEY), eqx.is_inexact_array),
    "equinox convolution": lambda: eqx.filter(eqx.nn.Conv2d(3, 3, 3, key=KEY), eqx.is_inexact_array),
    "haiku norm": lambda: {"norm": {"scale": jnp.ones((1, 1, 1, 4)), "offset": jnp.ones((1, 1, 1, 4))}},
}


@pytest.mark.parametrize("name", UNSTACKED)
def test_layers_that_are_no_stacks(name):
    assert stacked_axes(None, UNSTACKED[name]()) == {}


def test_stacked_axes_are_told_where_no_tree_tells():
    params = {"mine": {"kernel": jitter(np.zeros((L, WIDTH, 5)))}, "other": {"kernel": jitter(np.zeros((WIDTH, 2)))}}
    axes = directions.random(KEY, params, 1)
    expected = np.linalg.norm(params["mine"]["kernel"], axis=1)
    for stacked in ({"mine/*": 0}, {"mine/kernel": (0,)}, lambda path, leaf: 0 if leaf.ndim == 3 else None):
        got = directions.normalize(axes, params, stacked=stacked)
        np.testing.assert_allclose(np.linalg.norm(got.tree["mine"]["kernel"][0], axis=1), expected, rtol=1e-5)
        assert got.recipe["normalize"][-1]["stacked"] == {"mine/kernel": [0]}
        again = directions.rebuild(got.recipe, params)
        assert_close(again.tree, got.tree)
    alone = directions.normalize(axes, params)
    assert "stacked" not in alone.recipe["normalize"][-1]
    one_layer = directions.normalize(axes, params, filter_axis=lambda path, leaf: 1, stacked={"mine/*": 0})
    assert_close(one_layer.tree, got.tree)
    assert_close(directions.rebuild(one_layer.recipe, params).tree, got.tree)
    whole = directions.normalize(axes, params, filter_axis=lambda path, leaf: (0, 2) if leaf.ndim == 3 else 1)
    assert_close(whole.tree, got.tree)


@pytest.mark.parametrize(
    ("stacked", "match"),
    [
        (0, r"stacked: 0 given; it must be a dict \{glob: axis\}"),
        ({"nowhere": 0}, "matches no leaf"),
        ({"**": 3}, "gives 3 for 'a/kernel' of shape"),
        (lambda path, leaf: "layers", "gives 'layers' for"),
    ],
)
def test_stacked_axes_that_are_refused(stacked, match):
    params = {"a": {"kernel": np.ones((2, 3, 4), np.float32)}}
    with pytest.raises(ValueError, match=match):
        directions.normalize(directions.random(KEY, params), params, stacked=stacked)


def test_stacked_or_not_where_shapes_do_not_tell():
    params = jitter({"a": {"kernel": np.zeros((3, 3, 3)), "bias": np.zeros((3, 3))}})
    with pytest.warns(UserWarning, match=r"may be one layer or a stack of 3.* Pass stacked=\{'a/kernel': 0") as seen:
        directions.normalize(directions.random(KEY, params), params)
    assert [w.filename for w in seen] == [__file__]
    directions.normalize(directions.random(KEY, params), params, stacked={})


# --- norms of zero


def lora(zero=("b",)):
    shapes = {"a": (5, 2), "b": (2, 4)}
    return {"lora": {n: {"kernel": np.zeros(s) if n in zero else np.ones(s)} for n, s in shapes.items()}}


def test_zero_norms_are_warned_of_by_name():
    params = jax.tree.map(np.float32, lora())
    axes = directions.random(KEY, params)
    for by in ("filter", "layer", "weight"):
        with pytest.warns(UserWarning, match="params: weights of norm 0 in lora/b/kernel; .* do not move") as seen:
            got = directions.normalize(axes, params, by)
        assert [w.filename for w in seen] == [__file__]
        assert not np.any(got.tree["lora"]["b"]["kernel"])
    for options in ({"by": "model"}, {"unit": True}, {"by": "layer", "unit": True}, {"exclude": "lora/b/*"}):
        got = directions.normalize(axes, params, **options)
        assert np.all(np.any(got.tree["lora"]["b"]["kernel"] != 0, axis=(1, 2)))
    directions.normalize(directions.random(KEY, params, select="lora/a/*"), params)  # moves no other weights
    zero = jax.tree.map(np.float32, lora("ab"))
    drawn = directions.random(KEY, zero)
    with pytest.raises(ValueError, match="leaves nothing of it"):
        directions.normalize(drawn, zero, "model")


def test_zero_filters_are_counted():
    params = {f"l{i}": {"kernel": np.ones((3, 8), np.float32), "bias": np.zeros(8, np.float32)} for i in range(7)}
    for i in range(7):
        params[f"l{i}"]["kernel"][:, : i + 1] = 0
    with pytest.warns(
        UserWarning, match=r"l0/kernel \(1 of 8 filters\), .*l4/kernel \(5 of 8 filters\) and 2 other"
    ) as w:
        directions.normalize(directions.random(KEY, params), params)
    assert len(w) == 1


def test_zero_norms_that_are_no_mistake():
    embedding = np.ones((6, 3), np.float32)
    embedding[0] = 0  # padding
    params = {"embedding": embedding, "bias": np.zeros(3, np.float32), "scale": np.ones(3, np.float32)}
    directions.normalize(directions.random(KEY, params), params)
    with pytest.warns(UserWarning, match="weights of norm 0 in scale"):
        directions.normalize(directions.random(KEY, params), params | {"scale": np.zeros(3, np.float32)})


def test_zero_norms_of_a_fresh_lora_give_a_flat_plane_that_is_pointed_out():
    params = jax.tree.map(np.float32, lora())

    def loss(p, batch):
        return jnp.mean((batch @ p["lora"]["a"]["kernel"] @ p["lora"]["b"]["kernel"] - 1) ** 2)

    data = np.ones((3, 5), np.float32)
    with pytest.warns(UserWarning, match="weights of norm 0 in lora/b/kernel"):
        axes = directions.normalize(directions.random(KEY, params), params)
    with pytest.warns(UserWarning, match="exactly 1 at all 9 points"):
        lla.evaluate(loss, params, data, axes, lla.grid(points=3), execution=FIXED)
    axes = directions.normalize(directions.random(KEY, params), params, "model")
    assert np.ptp(lla.evaluate(loss, params, data, axes, lla.grid(points=3), execution=FIXED).values["loss"]) > 0.1


@pytest.mark.parametrize("axis", [0, 1])
def test_a_stack_of_square_layers_has_the_axis_that_its_biases_tell(axis):
    layer = {"kernel": np.ones((6, 6)), "bias": np.ones(6)}
    params = {"ScanBlock_0": {"Dense_0": jax.tree.map(lambda x: np.stack([x] * 4, axis), layer)}}
    assert set(stacked_axes(None, params).values()) == {(axis,)}
    assert stacked_axes(None, {"mine": params["ScanBlock_0"]["Dense_0"]}) == dict.fromkeys(
        ("mine/kernel", "mine/bias"), (axis,)
    )


@pytest.mark.parametrize(
    "params",
    [
        {"ScanBlock_0": {"Dense_0": {"kernel": np.ones((6, 4, 6))}}},
        {"ScanBlock_0": {"Dense_0": {"kernel": np.ones((4, 4, 4)), "bias": np.ones((4, 4))}}},
        {"blocks": {"kernel": np.ones((4, 6, 6))}},
    ],
)
def test_stacks_that_nothing_tells_are_asked_for(params):
    with pytest.warns(UserWarning, match="stacked: .* is assumed. Pass "):
        stacked_axes(None, params)


def test_layers_under_nnx_vmap_without_biases_are_known_by_their_loss():
    make = nnx.vmap(lambda key: nnx.Linear(6, 6, use_bias=False, rngs=nnx.Rngs(key)))
    layers = make(jax.random.split(KEY, 4))
    loss, params = lla.from_nnx(layers, lambda outputs, batch: outputs), nnx.state(layers, nnx.Param)
    (found,) = jax.tree.leaves(directions.normalize(directions.random(KEY, params, 1), params, filter_axis=loss).tree)
    (kernel,) = jax.tree.leaves(params)
    np.testing.assert_allclose(np.linalg.norm(found[0], axis=1), np.linalg.norm(kernel, axis=1), rtol=1e-5)
