"""Half-precision weights are widened, whatever a network says to it; casts inside a network are found and measured."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core import precision

BF = jnp.bfloat16
W = np.float32([[1.0, 0.5], [0.25, 2.0]])
STEP = np.float32([[0.0, 0.001], [0.0, 0.0]])  # 0.5 + 0.001 is 0.5 in bfloat16: all of it is lost
X = np.ones((3, 2), np.float32)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("bfloat16", 8), ("float16", 11), ("float32", 24), ("float64", 53), ("float8_e4m3fn", 4), ("float8_e5m2", 3)],
)
def test_significant_bits(dtype, expected):
    assert precision.bits(dtype) == expected


def test_widening_leaves_wide_types_and_integers():
    tree = {
        "a": np.ones(2, BF),
        "b": np.ones(2, np.float16),
        "c": np.ones(2),
        "d": np.arange(2),
        "e": jax.random.key(0),
    }
    found = {name: str(x.dtype) for name, x in precision.widen(tree).items()}
    assert found == {"a": "float32", "b": "float32", "c": "float64", "d": "int64", "e": "key<fry>"}
    assert precision.widen(jnp.ones(2, jnp.float8_e4m3fn)).dtype == np.float32


def scanned(w, x):
    return jax.lax.scan(lambda h, row: (jnp.tanh(h * row.astype(BF)), None), x.astype(BF), w)[0]


CASTS = {
    "a cast": lambda w, x: x.astype(BF) @ w.astype(BF),
    "a cast in a custom rule": lambda w, x: jax.nn.relu(x.astype(BF) @ w.astype(BF)),
    "a cast under jit": jax.jit(lambda w, x: x.astype(BF) @ w.T.astype(BF)),
    "a cast of a reshaped weight": lambda w, x: x.astype(BF) @ w[::-1].reshape(2, 2).astype(BF),
    "a cast in a scan": scanned,
    "a cast in a checkpointed scan": lambda w, x: jax.checkpoint(scanned)(w, x),
    "a cast in a while loop": lambda w, x: jax.lax.while_loop(
        lambda h: jnp.all(h < 3), lambda h: h + h @ w.astype(BF), x.astype(BF)
    ),
    "a cast in a branch": lambda w, x: jax.lax.cond(x[0, 0] > 0, lambda w: x @ w.astype(BF), lambda w: x @ w, w),
    "reduced precision": lambda w, x: x @ jax.lax.reduce_precision(w, 8, 7),
}


@pytest.mark.parametrize("name", CASTS)
def test_half_precision_casts_lose_displacements(name):
    share = jax.jit(lambda one, two: precision.lost_share(CASTS[name], one, two, X))
    assert share(W, W + STEP) == 1
    assert share(W, W + 0.5) == 0  # exact in bfloat16
    assert share(W, W) == 0
    rounded = (W + 0.01).astype(BF).astype(np.float32) - W
    expected = np.linalg.norm(rounded - np.float32(0.01)) / np.linalg.norm(np.full(W.shape, 0.01))
    assert share(W, W + np.float32(0.01)) == pytest.approx(expected, rel=1e-4)


def test_values_made_of_weights_alone_are_followed_to_their_cast():
    def standardized(p, x):
        return x.astype(BF) @ ((p["w"] - p["w"].mean()) * p["g"]).astype(BF)

    one = {"w": W, "g": np.float32(1)}
    assert precision.lost_share(standardized, one, {"w": W + 1, "g": np.float32(1)}, X) == 0  # the mean takes it away
    assert precision.lost_share(standardized, one, {"w": W, "g": np.float32(1.0001)}, X) == 1


def test_activations_in_half_precision_lose_no_displacement():
    assert precision.lost_share(lambda w, x: (x @ w).astype(BF), W, W + STEP, X) == 0


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda w, x: x @ w, "float32"),
        (lambda w, x: (x @ w).astype(BF).astype(np.float32), "bfloat16"),
        (lambda w, x: x @ w.astype(np.float16).astype(np.float32), "float16"),
        (lambda w, x: scanned(w, x).astype(np.float32), "bfloat16"),
        (lambda w, x: x.astype(BF)[:2].reshape(-1).astype(np.float32), "bfloat16"),
        (lambda w, x: jax.lax.reduce_precision(x @ w, 8, 7), "bfloat16"),
        (lambda w, x: jax.lax.reduce_precision(x @ w, 5, 10), "float16"),
    ],
)
def test_the_lowest_type(f, expected):
    assert precision.lowest_type(jax.make_jaxpr(f)(W, X).jaxpr) == expected


def test_data_in_half_precision_are_exact_numbers():
    jaxpr = jax.make_jaxpr(lambda w, x: x[:2].astype(np.float32) @ w)(W, X.astype(BF)).jaxpr
    assert precision.lowest_type(jaxpr) == "float32"


def loss_of(apply, **options):
    return lla.Loss(apply, lambda out, batch: out.sum(-1), **options)


def test_a_network_that_refuses_other_types_still_works():
    def same_types(params, state, batch, train):
        return jax.lax.dot(batch, params["w"]), state  # lax refuses operands of two types

    def own_type(params, state, batch, train):
        assert params["w"].dtype == BF
        return batch @ params["w"], state

    params = {"w": (W / 3).astype(BF)}
    for apply, batch, dtype in ((same_types, X, "float32"), (same_types, X.astype(BF), "float32"), (own_type, X, BF)):
        loss, wide = precision.at_least_single(loss_of(apply), params)
        assert wide["w"].dtype == np.float32
        outputs, _ = loss.apply(wide, None, batch, False)
        assert outputs.dtype == (np.float32 if apply is same_types else np.result_type(batch, dtype))
        np.testing.assert_array_equal(outputs, X @ params["w"].astype(np.float32))


def test_own_types_and_the_error_of_the_network_itself():
    seen = []

    def apply(params, state, batch, train):
        seen.append((params["w"].dtype, state["n"].dtype))
        if batch.shape[1] != 2:
            raise TypeError("mine")
        return batch @ params["w"], state

    params, state = {"w": W.astype(BF)}, {"n": np.zeros(1, np.float16), "i": np.arange(2), "k": jax.random.key(0)}
    loss = loss_of(apply, state=state)
    wide, p = precision.at_least_single(loss, params)
    assert [str(wide.state[name].dtype) for name in "nik"] == ["float32", "int64", "key<fry>"]
    wide.apply(p, wide.state, X, False)
    assert seen == [(np.float32, np.float32)]
    own, p = precision.at_least_single(dataclasses.replace(loss, precision="params"), params)
    _, new = own.apply(p, own.state, X, False)
    assert seen[1:] == [(BF, np.float16)]
    assert new["n"].dtype == np.float32
    with pytest.raises(TypeError, match="mine"):
        wide.apply(p, wide.state, X[:, :1], False)
    assert precision.at_least_single(loss, {"w": W})[0] is loss
    with pytest.raises(ValueError, match="precision: 'half' given; it must be one of 'float32', 'params'"):
        precision.at_least_single(dataclasses.replace(loss, precision="half"), {"w": W})


def test_the_entry_of_a_recipe():
    loss = loss_of(lambda p, s, b, t: (b, s))
    half = {"w": W.astype(BF), "b": W}
    assert precision.describe(loss, {"w": W}) == {"params": ["float32"]}
    assert precision.describe(loss, half) == {"params": ["float32"], "given": ["bfloat16", "float32"]}
    own = dataclasses.replace(loss, precision="params")
    assert precision.describe(own, half) == {"params": ["bfloat16", "float32"]}
    assert precision.types_at_work({}, ["float32"]) == ["float32"]
    entry = {"params": ["float32"], "lowest": "bfloat16", "bits": 8}
    assert precision.types_at_work({"precision": entry}) == ["float32", "bfloat16"]
    assert precision.types_at_work({"precision": {"params": ["float64"], "lowest": "float32", "bits": 24}}) == [
        "float64"
    ]
