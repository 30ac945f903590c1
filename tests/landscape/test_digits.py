"""Curvature on the grid is that of the Hessian for weights of every type; networks that round it are pointed out."""

from __future__ import annotations

import dataclasses
import functools
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.landscape import digits
from lla_jax.landscape.kernels import Formula
from tests.helpers import FIXED, ONE, dataset, mlp_loss, params

DATA, LOSS = dataset(), mlp_loss()
CPU, FORMULA = jax.devices()[0], Formula(None, False, ())
LINE = functools.partial(lla.grid, points=3, dims=1)


def cast(tree, dtype):
    return jax.tree.map(lambda x: jnp.asarray(x).astype(dtype), tree)


HALF = cast(params(), jnp.bfloat16)


@pytest.fixture(scope="module")
def top():
    """(the largest eigenvalue of the Hessian at the half-precision weights, its eigenvector)."""
    H = lla.hessian(LOSS, cast(HALF, np.float32), DATA, execution=ONE)
    pairs = lla.eigenpairs(H, jax.random.key(0), k=1, tol=1e-5)
    return pairs.values[0], lla.directions.eigenvectors(pairs, which=0)


def second_difference(plane):
    (x,), z = plane.coords, plane.values["loss"]
    return (z[0] - 2 * z[1] + z[2]) / x[2] ** 2


KINDS = {
    "bfloat16": HALF,
    "float16": cast(HALF, np.float16),
    "some leaves": cast(HALF, np.float32) | {"Dense_0": HALF["Dense_0"]},
    "numpy": jax.tree.map(np.asarray, HALF),
}


@pytest.mark.parametrize("extent", [0.1, 0.03])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_weights_have_the_curvature_of_the_hessian(kind, extent, top):
    value, axis = top
    plane = lla.evaluate(LOSS, KINDS[kind], DATA, axis, LINE(extent), execution=FIXED)
    assert second_difference(plane) == pytest.approx(value, rel=0.05 if extent == 0.1 else 5e-3)
    assert plane.recipe["precision"]["params"] == ["float32"]
    assert plane.recipe["precision"]["bits"] == 24
    assert plane.recipe["precision"]["given"] == sorted({str(x.dtype) for x in jax.tree.leaves(KINDS[kind])})


def test_half_precision_weights_move_under_every_entry(top, tmp_path):
    axis = top[1]
    expected = lla.evaluate(LOSS, cast(HALF, np.float32), DATA, axis, LINE(0.03), execution=FIXED).values["loss"]

    def plain(p, batch):
        return LOSS.criterion(LOSS.apply(p, None, batch, False)[0], batch).mean()

    def moved(p, d, c):
        return lla.landscape.add(p, d, c)

    common = {"grid": LINE(0.03), "execution": FIXED}
    calls = {
        "plain": lambda: lla.evaluate(plain, HALF, DATA, axis, **common),
        "rule": lambda: lla.evaluate(LOSS, HALF, DATA, axis, rule=moved, **common),
        "stream": lambda: lla.evaluate(LOSS, HALF, lla.stream([DATA]), axis, **common),
        "store": lambda: lla.evaluate(LOSS, HALF, DATA, axis, store=tmp_path, **common),
        "list": lambda: lla.evaluate(LOSS, HALF, DATA, [axis], **common)[0],
        "sweep": lambda: lla.sweep(LOSS, [params(), HALF], DATA, axes=axis, **common)[1, "axes", None],
    }
    for name, call in calls.items():
        np.testing.assert_allclose(call().values["loss"], expected, rtol=2e-6, err_msg=name)
    inside = lla.landscape.losses(LOSS, HALF, axis.tree, np.array([[-0.03], [0], [0.03]], np.float32), DATA)
    np.testing.assert_allclose(inside, expected, rtol=2e-6)
    own = dataclasses.replace(LOSS, precision="params")
    with pytest.warns(UserWarning, match="is lost"), pytest.raises(ValueError, match="precision"):
        lla.evaluate(own, HALF, DATA, axis, store=tmp_path, **common)  # its values would be rounded in another way


def test_half_precision_directions_gradients_and_lines_are_in_single_precision():
    single = cast(HALF, np.float32)
    for p in (HALF, single):
        found = lla.directions.gradient(LOSS, p, DATA)
        assert {str(x.dtype) for x in jax.tree.leaves(found.tree)} == {"float32"}
    one, two = (lla.directions.gradient(LOSS, p, DATA).tree for p in (HALF, single))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    scaled = lla.directions.normalize(lla.directions.given(HALF), HALF)
    assert {str(x.dtype) for x in jax.tree.leaves(scaled.tree)} == {"float32"}
    other = cast(params(seed=5), jnp.bfloat16)
    line = lla.directions.between(HALF, other)
    ends = lla.landscape.add(HALF, line.tree, np.ones(1, np.float32))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y.astype(np.float32), rtol=1e-6, atol=1e-7), ends, other)


class Net(nn.Module):
    dtype: object = None

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, dtype=self.dtype)(nn.tanh(nn.Dense(6, dtype=self.dtype)(x)))


def net_loss(dtype):
    module = Net(dtype)
    variables = module.init(jax.random.key(0), DATA[0])
    criterion = lambda out, batch: jnp.square(out.astype(np.float32)).sum(-1)  # noqa: E731
    return lla.from_linen(module, variables, criterion), variables["params"]


def axis_of(p):
    drawn = lla.directions.random(jax.random.key(1), p, 1)
    return lla.directions.normalize(drawn, p, by="model")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_half_precision_casts_inside_a_network_warn_of_what_is_lost(dtype):
    loss, p = net_loss(dtype)
    name = np.dtype(dtype).name
    axis = axis_of(p)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a wide grid is resolved
        wide = lla.evaluate(loss, p, DATA, axis, LINE(1.0), execution=FIXED)
    with pytest.warns(UserWarning, match=f"rounds its weights to {name}, .*% of the displacement"):
        fine = lla.evaluate(loss, p, DATA, axis, LINE(1e-3), execution=FIXED)
    leaves = [
        (np.asarray(x), np.asarray(d[0])) for x, d in zip(jax.tree.leaves(p), jax.tree.leaves(axis.tree), strict=True)
    ]
    for plane, step in ((wide, -1.0), (fine, -1e-3)):
        got = [(x + np.float32(step) * d).astype(dtype).astype("f8") - x.astype(dtype).astype("f8") for x, d in leaves]
        want = [step * d.astype("f8") for _, d in leaves]
        lost = sum(np.sum((g - w) ** 2) for g, w in zip(got, want)) / sum(np.sum(w**2) for w in want)
        assert plane.recipe["precision"]["lost"] == pytest.approx(lost**0.5, rel=0.02)
    assert wide.recipe["precision"]["lost"] < 0.01
    assert wide.recipe["precision"]["bits"] == (8 if dtype == jnp.bfloat16 else 11)


def test_half_precision_on_request_warns_too(top):
    own = dataclasses.replace(LOSS, precision="params")
    with pytest.warns(UserWarning, match='leave out precision="params"'):
        plane = lla.evaluate(own, HALF, DATA, top[1], LINE(0.01), execution=FIXED)
    assert plane.recipe["precision"]["params"] == ["bfloat16"]
    assert plane.recipe["precision"]["lost"] > 0.05
    module = Net()
    variables = module.init(jax.random.key(0), DATA[0])
    assert lla.from_linen(module, variables, LOSS.criterion, precision="params").precision == "params"


def test_half_precision_activations_that_hide_the_differences_are_pointed_out():
    def apply(p, state, batch, train):
        return (batch[0] @ p["w"]).astype(jnp.bfloat16), state

    loss = lla.Loss(apply, lambda out, batch: 100 + out.astype(np.float32))
    p = {"w": np.ones(5, np.float32)}
    with pytest.warns(UserWarning, match="its values differ by .* which bfloat16 .* does not resolve"):
        lla.evaluate(loss, p, DATA, axis_of(p), LINE(0.01), execution=FIXED)


def test_half_precision_activations_that_hide_the_curvature_are_pointed_out():
    def apply(p, state, batch, train):
        return jnp.tanh(batch[0] @ p["w"]).astype(jnp.bfloat16), state

    loss = lla.Loss(apply, lambda out, batch: (out.astype(np.float32) - 1) ** 2)
    p = {"w": np.full(5, 0.3, np.float32)}
    with pytest.warns(UserWarning, match="bfloat16 .* does not resolve the curvature of the loss on this grid"):
        lla.evaluate(loss, p, DATA, axis_of(p), LINE(0.1), execution=FIXED)
    lla.evaluate(loss, p, DATA, axis_of(p), (np.linspace(-1, 1, 41),), execution=FIXED)  # without a word


def test_a_landscape_on_which_nothing_moves_is_pointed_out():
    def product(p, batch):
        return jnp.mean((batch[0] @ p["a"] @ p["b"]) ** 2) + 1

    p = {"a": np.ones((5, 2), np.float32), "b": np.zeros((2, 3), np.float32)}
    axis = lla.directions.random(jax.random.key(0), p, 1)
    with pytest.warns(UserWarning, match="norm"):
        axis = lla.directions.normalize(axis, p, by="layer")
    with pytest.warns(UserWarning, match="loss: exactly 1 at all 3 points of the grid"):
        lla.evaluate(product, p, DATA, axis, LINE(1.0), execution=FIXED)
    symmetric = (np.array([-1.0, 1.0]),)  # two points show no flatness
    lla.evaluate(lambda q, batch: q["a"][0, 0] ** 2 * 0 + 1.0, p, DATA, axis, symmetric, execution=FIXED)


def test_steps_of_a_grid():
    np.testing.assert_array_equal(digits._steps(lla.grid(1.0, 5)), [[0, 0], [-0.5, 0], [0, -0.5]])
    np.testing.assert_array_equal(digits._steps((np.array([3.0, 1.0]), np.array([2.0]))), [[1, 2], [3, 2]])


def test_a_loss_is_traced_once():
    loss = dataclasses.replace(LOSS, criterion=lambda out, batch: out.sum(-1) * 1.25)
    count = []

    def apply(p, state, batch, train):
        count.append(1)
        return LOSS.apply(p, state, batch, train)

    loss = dataclasses.replace(loss, apply=apply)
    for _ in range(3):
        assert digits.trace(loss, params(), DATA, 5, FORMULA, CPU) == digits.Traced("float32", 24, True)
    assert len(count) == 1
    assert not digits.trace(
        lla.Loss(lambda p, s, b, t: (b[0], s), lambda o, b: o[:, 0]), params(), DATA, 5, FORMULA, CPU
    ).reads
