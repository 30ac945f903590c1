"""The noise of a landscape near a minimum, with matrix products as a TPU and a GPU round them."""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))

from harness import emulation

X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
Y = np.sin(X[:, :1]).astype(np.float32)
ONE = {"devices": 1, "chunk": 21, "microbatch": 32, "loop": "map"}
MATRIX = np.random.default_rng(1).normal(size=(16, 16)).astype(np.float32)


def apply(params, state, batch, train):
    return jnp.tanh(batch[0] @ params["in"]) @ params["out"], state


LOSS = lla.Loss(apply, lambda outputs, batch: ((outputs - batch[1]) ** 2).sum(-1))


@functools.cache
def minimum():
    """(trained parameters, axes): a network that fits its examples."""
    rng = np.random.default_rng(2)
    start = {"in": rng.normal(size=(4, 64)).astype(np.float32), "out": np.zeros((64, 1), np.float32)}
    hidden = np.tanh(X @ start["in"]).astype(np.float64)
    params = start | {"out": np.linalg.lstsq(hidden, Y.astype(np.float64), rcond=None)[0].astype(np.float32)}
    axes = lla.directions.normalize(lla.directions.random(jax.random.key(0), params, 1), params)
    return params, axes


def line(execution):
    params, axes = minimum()
    return lla.evaluate(LOSS, params, (X, Y), axes, lla.grid(extent=1e-3, points=21, dims=1), execution=execution)


@functools.cache
def exact():
    """The losses in float64."""
    params, axes = minimum()
    with jax.enable_x64(True):
        wide = jax.tree.map(np.float64, params)
        along = lla.directions.given(jax.tree.map(lambda x: np.asarray(x[0], np.float64), axes.tree))
        grid = lla.grid(extent=1e-3, points=21, dims=1)
        return lla.evaluate(LOSS, wide, (np.float64(X), np.float64(Y)), along, grid)["loss"]


def noise(values):
    """The largest error of the rise above the centre, in units of the largest rise."""
    rise, true = (x - x[10] for x in (values, exact()))
    return np.abs(rise - true).max() / true.max()


@functools.cache
def noise_on(platform, **fields):
    with emulation.landscapes_on(platform):
        return noise(line(lla.Execution(**ONE, **fields))["loss"])


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_by_default_a_plane_near_a_minimum_has_no_more_noise_than_float32(platform, share):
    here = noise(line(lla.Execution(**ONE, share=share))["loss"])
    assert here < 0.02
    assert noise_on(platform, share=share) <= 2 * here
    assert noise_on(platform, share=share, precision="default") > 0.2 > 10 * here


def test_high_is_three_passes_on_a_tpu_and_no_more_than_the_default_on_a_gpu():
    assert noise_on("tpu", share=False) < noise_on("tpu", share=False, precision="high")
    assert 10 * noise_on("tpu", share=False, precision="high") < noise_on("tpu", share=False, precision="default")
    assert noise_on("gpu", share=False, precision="high") == noise_on("gpu", share=False, precision="default")


def with_custom_gradient():
    f = jax.custom_vjp(lambda x: x @ MATRIX)
    f.defvjp(lambda x: (x @ MATRIX, None), lambda _, g: (g @ MATRIX.T,))
    return f


PROGRAMS = {
    "jit": jax.jit(lambda x: x @ MATRIX),
    "scan": lambda x: jax.lax.scan(lambda c, _: (c, c @ MATRIX), x, None, length=2)[1][1],
    "while": lambda x: jax.lax.while_loop(lambda s: s[0] < 1, lambda s: (s[0] + 1, s[1] @ MATRIX), (0, x))[1],
    "cond": lambda x: jax.lax.cond(x[0, 0] < 9, lambda y: y @ MATRIX, lambda y: y, x),
    "custom gradient": with_custom_gradient(),
    "gradient": jax.grad(lambda x: (with_custom_gradient()(x) * MATRIX).sum()),
    "rematerialised": jax.grad(lambda x: (jax.checkpoint(lambda y: jnp.sin(y @ MATRIX))(x)).sum()),
    "batched": jax.vmap(lambda row: row @ MATRIX),
    "convolution": lambda x: jax.lax.conv(x[None, None], MATRIX[None, None, :3, :3], (1, 1), "SAME"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_emulation_reaches_every_product_but_those_at_full_precision(name):
    x = np.random.default_rng(3).normal(size=(16, 16)).astype(np.float32)
    exact = np.asarray(PROGRAMS[name](x))

    def error(precision):
        with jax.default_matmul_precision(precision):
            found = jax.jit(emulation.emulate(PROGRAMS[name], "tpu"))(x)
        return np.abs(np.asarray(found) - exact).max() / np.abs(exact).max()

    assert error("highest") < 1e-6
    assert 1e-6 < error("high") < 1e-4
    assert 2e-4 < error("default") < 0.1
