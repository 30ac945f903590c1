from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import lla_jax as lla
from lla_jax.core.losses import Block, as_loss, block_of_rows
from lla_jax.paths.training import batch_slopes as module
from lla_jax.paths.training.batch_slopes import has_statistics, with_fresh_noise
from tests.helpers import apply, cross_entropy, dataset, params

slope = jax.jit(module.slope)

DATA = dataset(8)
BLOCK = block_of_rows(DATA, np.arange(8, dtype=np.int32))


def weighted(outputs, batch):
    return cross_entropy(outputs, batch), (batch[1] + 1.0)


def squares(p):
    return 0.1 * sum(jnp.sum(x**2) for x in jax.tree.leaves(p))


def mean_weighted(p, block=BLOCK):
    losses, weights = weighted(apply(p, None, block.batch, True)[0], block.batch)
    weights = weights * block.mask
    return (weights * losses).sum() / weights.sum() + squares(p)


def assert_same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(ravel_pytree(found[1])[0], ravel_pytree(expected[1])[0], rtol=2e-5, atol=1e-7)


def test_the_slope_is_that_of_the_weighted_mean_and_the_penalty_and_masked_rows_do_not_count():
    loss = lla.Loss(apply, weighted, penalty=squares)
    masked = Block(DATA, np.arange(8) < 5, np.arange(8, dtype=np.int32))
    for block in (BLOCK, masked):
        expected = jax.jit(jax.value_and_grad(mean_weighted))(params(), block)
        assert_same(slope(loss, params(), block), expected)


def normed(p, state, batch, train):
    h = batch[0] @ p["w"]
    mean = h.mean(0) if train else state["mean"]
    return h - mean, {"mean": 0.9 * state["mean"] + 0.1 * h.mean(0)}


def square(outputs, batch):
    return (outputs**2).sum(-1)


def test_a_loss_with_statistics_uses_those_of_the_batch():
    loss = lla.Loss(normed, square, state={"mean": np.full(3, 100.0, np.float32)})
    p = {"w": np.ones((5, 3), np.float32)}
    assert has_statistics(loss)
    assert not has_statistics(replace(loss, state=None))
    h = DATA[0] @ p["w"]
    np.testing.assert_allclose(slope(loss, p, BLOCK)[0], ((h - h.mean(0)) ** 2).sum(-1).mean(), rtol=1e-5)


def noisy(p, state, batch, train, keys):
    return p["w"] * jax.vmap(jax.random.normal)(keys), state


def as_it_is(outputs, batch):
    return outputs


def test_noise_is_fresh_at_each_step_and_the_same_at_all_points():
    loss = lla.Loss(noisy, as_it_is, key=jax.random.key(0))
    p = {"w": np.float32(1)}
    values = [float(slope(with_fresh_noise(loss, step), p, BLOCK)[0]) for step in (0, 1, 1)]
    assert values[0] != values[1] == values[2]
    one, two = (slope(with_fresh_noise(loss, 0), {"w": np.float32(w)}, BLOCK)[0] for w in (1, 2))
    assert two == 2 * one


def spread(p, batch):
    return jnp.var(batch[0] @ p["Dense_0"]["kernel"])


def test_a_plain_function_and_one_of_a_whole_are_called_as_they_are():
    p = params()
    assert_same(slope(as_loss(spread), p, BLOCK), jax.value_and_grad(spread)(p, DATA))
    alone = as_loss(squares)
    whole = block_of_rows(lla.whole(), np.zeros(1, np.int32))
    assert_same(slope(alone, p, whole), jax.value_and_grad(squares)(p))


def test_a_batch_in_which_nothing_counts_has_no_loss_and_the_slope_of_the_penalty():
    loss = lla.Loss(apply, weighted, penalty=squares)
    value, gradient = slope(loss, params(), Block(DATA, np.zeros(8, bool), np.arange(8, dtype=np.int32)))
    assert np.isnan(value)
    np.testing.assert_allclose(ravel_pytree(gradient)[0], 0.2 * ravel_pytree(params())[0], rtol=1e-6)
