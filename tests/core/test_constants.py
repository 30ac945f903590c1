"""Losses that are constants are refused, and those that only look like it are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from tests.helpers import ONE, apply, cross_entropy, dataset, params

DATA = dataset(12)


def mean(p, batch):
    return cross_entropy(apply(p, None, batch, False)[0], batch).mean()


@jax.custom_jvp
def through(x):
    return jnp.round(x)


through.defjvp(lambda values, slopes: (jnp.round(values[0]), slopes[0]))


MOVING = {
    "some parameters are not read": lambda p, b: p["gain"] ** 2 + b[0].sum(),
    "rounding with a slope of its own": lambda p, b: through(p["gain"]) ** 2,
    "rounding that is passed by": lambda p, b: p["gain"] + jax.lax.stop_gradient(jnp.round(p["gain"]) - p["gain"]),
    "inside of a loop": lambda p, b: jax.lax.fori_loop(0, 3, lambda i, x: x * p["gain"], jnp.float32(1)),
    "inside of a branch": lambda p, b: jax.lax.cond(b[0].sum() > 0, lambda: p["gain"], lambda: -p["gain"]),
    "checkpointed": jax.checkpoint(lambda p, b: p["gain"] * b[0].mean()),
    "constants of every kind": lambda p, b: p["gain"] * jnp.asarray(np.arange(3.0)).sum() / len(b[0]),
}


@pytest.mark.parametrize("name", MOVING)
def test_a_loss_that_follows_some_parameters_is_none_of_them(name):
    lla.hessian(MOVING[name], params(), DATA, execution=ONE)


def test_a_penalty_alone_follows_the_parameters():
    loss = lla.Loss(lambda p, s, b, t: (b[0], s), lambda o, b: o[:, 0], penalty=lambda p: p["gain"] ** 2)
    slope = lla.directions.gradient(loss, params(), DATA)
    assert float(slope.tree["gain"][0]) == pytest.approx(3.0)


def test_an_accuracy_has_a_landscape_and_no_curvature():
    def accuracy(p, b):
        return (apply(p, None, b, False)[0].argmax(1) == b[1]).mean()

    lla.check_examples(accuracy, params(), DATA)
    with pytest.raises(ValueError, match="only through integers, comparisons"):
        lla.hessian(accuracy, params(), DATA)


def test_a_loss_is_traced_again_only_where_its_constants_differ_between_sizes():
    calls = []

    def counted(outputs, batch):
        calls.append(len(outputs))
        return cross_entropy(outputs, batch)

    lla.check_examples(lla.Loss(apply, counted), params(), DATA)
    assert sorted(calls) == [6, 12]


def test_a_global_that_changes_between_calls_and_not_within_is_left_alone():
    scale = [2.0]
    for scale[0] in (2.0, 3.0):
        lla.check_examples(lambda p, b: scale[0] * mean(p, b), params(), DATA)


def test_what_a_first_call_alone_computes_and_does_not_use_is_left_alone():
    seen = []

    def checks_once(p, batch):
        if not seen:
            seen.append(jnp.dot(batch[0], batch[0].T).shape)
        return mean(p, batch)

    lla.check_examples(checks_once, params(), DATA)


def test_a_loss_may_close_over_a_value_that_is_being_traced():
    axes = jax.tree.map(lambda x: x[None], params())

    def scaled(a):
        return lla.landscape.losses(lambda p, b: a * mean(p, b), params(), axes, jnp.zeros((1, 1)), DATA)[0]

    once = scaled(1.0)
    np.testing.assert_allclose(jax.jit(scaled)(3.0), 3 * once, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(scaled)(3.0), once, rtol=1e-6)
    product = jax.jit(lambda a: lla.hessian(lambda p, b: a * mean(p, b), params(), DATA).mv(params()))
    np.testing.assert_allclose(product(2.0)["gain"], 2 * product(1.0)["gain"], rtol=1e-5)
