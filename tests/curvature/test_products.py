"""Products: linear, symmetric, of full precision, the same however the data are cut, and compiled once."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import lla_jax as lla
from lla_jax.curvature import blocks, operators
from tests import helpers
from tests.curvature.cases import (
    CUTS,
    DATA,
    DOUBLE,
    MAKERS,
    MLP,
    SINGLE,
    cast,
    cross_entropy,
    cut,
    inner,
    mean_loss,
    mlp,
    mlp_params,
    reference,
    rows,
    weighted_entropy,
    weights,
)
from tests.helpers import ANEW, KEPT, ONE, error

KEY = jax.random.key(0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_product_is_linear_symmetric_and_the_same_however_it_is_computed(dtype):
    """Science truth 7."""
    tolerance = SINGLE if dtype == "float32" else DOUBLE
    params, data = cast(mlp_params(), dtype), cast((*rows(11), weights(11)), dtype)
    loss = lla.Loss(mlp, weighted_entropy, penalty=lambda p: 0.1 * jnp.sum(p["last"]["kernel"] ** 4))
    with jax.enable_x64(dtype == "float64"):
        H = lla.hessian(loss, params, data, execution=ONE)
        u, v = (H.random(jax.random.key(i), "normal") for i in (0, 1))
        Hu, Hv = H.product(u), H.product(v)
        both = jax.tree.map(lambda x, y: 2 * x - 3 * y, u, v)
        assert error(H.product(both), jax.tree.map(lambda x, y: 2 * x - 3 * y, Hu, Hv)) < tolerance
        assert abs(inner(u, Hv) - inner(v, Hu)) < tolerance * abs(inner(u, Hu))
        exact = reference(mean_loss(loss, data), params) @ np.asarray(ravel_pytree(u)[0])
        assert error(Hu, exact) < (2e-6 if dtype == "float32" else DOUBLE)
        for name, how in CUTS.items():
            found = cut(lambda d, **options: lla.hessian(loss, params, d, **options), data, how).product(u)
            assert error(found, Hu) < tolerance, name
            assert all(x.dtype == dtype for x in jax.tree.leaves(found))
        traced = jax.jit(lambda H, v: H.mv(v))(H, u)
        assert error(traced, Hu) < tolerance
        stacked = jax.jit(jax.vmap(lambda H, v: H.mv(v), (None, 0)))(
            H, jax.tree.map(lambda x, y: jnp.stack([x, y]), u, v)
        )
        assert error(jax.tree.map(lambda x: x[1], stacked), Hv) < tolerance


def test_finite_differences_of_the_gradient_converge_to_the_product_with_order_two(double):
    params, data = mlp_params(), rows()
    H = lla.hessian(MLP, params, data, execution=ONE)
    v = H.random(jax.random.key(3), "normal")
    exact = H.product(v)

    def difference(h: float) -> float:
        ahead, behind = (
            lla.data.mean_gradient(MLP, jax.tree.map(lambda x, d, s=s: x + s * h * d, params, v), data) for s in (1, -1)
        )
        return error(jax.tree.map(lambda a, b: (a - b) / (2 * h), ahead, behind), exact)

    errors = [difference(h) for h in (4e-3, 2e-3, 1e-3)]
    assert errors[-1] < 1e-4
    np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 4, rtol=0.02)


def noisy(p, state, batch, train, keys):
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (5,)))(keys)
    hidden = jnp.tanh(batch[0] @ p["first"]["kernel"] + p["first"]["bias"]) * kept
    return hidden @ p["last"]["kernel"] + p["shift"], state


def test_noise_and_drawn_targets_belong_to_the_example_however_the_data_are_cut():
    params, data = cast(mlp_params(), "float32"), cast(rows(11), "float32")
    loss = lla.Loss(noisy, cross_entropy, key=jax.random.key(3))
    key = jax.random.key(1)
    makers = {
        "hessian": lambda d, **options: lla.hessian(loss, params, d, **options),
        "fisher": lambda d, **options: lla.fisher(loss, params, d, key, samples=2, **options),
    }
    u = lla.hessian(loss, params, data, execution=ONE).random(jax.random.key(0))
    ways = {
        "hessian": ("batches of 3", "recomputed in batches", "4 devices", "streamed in batches over 2 devices"),
        "fisher": ("batches of 3", "streamed in batches over 2 devices"),
    }
    for name, make in makers.items():
        whole = make(data, execution=ONE).product(u)
        for how in ways[name]:
            assert error(cut(make, data, CUTS[how]).product(u), whole) < SINGLE, (name, how)
    other = dataclasses.replace(loss, key=jax.random.key(4))
    assert (
        error(
            lla.hessian(other, params, data, execution=ONE).product(u),
            makers["hessian"](data, execution=ONE).product(u),
        )
        > 0.01
    )
    legacy = dataclasses.replace(loss, key=jax.random.PRNGKey(3))
    found = lla.fisher(legacy, params, data, jax.random.PRNGKey(1), samples=2, execution=ONE).product(u)
    assert error(found, makers["fisher"](data, execution=ONE).product(u)) < SINGLE


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("linearize", [True, False])
@pytest.mark.parametrize("kind", MAKERS)
def test_new_weights_compile_and_trace_nothing(kind, linearize, devices):
    traced = [(kind, linearize, devices)]  # functions are equal that reach equal lists, also those of other tests

    def criterion(outputs, batch):
        traced.append(1)
        return helpers.cross_entropy(outputs, batch)

    apply_hessian = jax.jit(lambda H, v: H.mv(v))

    def product(seed: int) -> Any:
        loss = lla.Loss(helpers.apply, criterion)
        how = lla.Execution(devices=devices, linearize=linearize)
        H = MAKERS[kind](loss, helpers.params(seed), DATA, execution=how)
        v = H.random(KEY)
        return H.product(v), apply_hessian(H, v)

    product(0)
    first = len(traced)
    with helpers.compilations() as seen:
        found = product(1)
    assert seen.count == 0
    assert len(traced) == first
    assert error(*found) < 1e-6
    assert error(product(0), product(1)) > 0.01


def test_products_are_at_full_matmul_precision():
    loss = helpers.mlp_loss(penalty=lambda p: jnp.sum((p["Dense_0"]["kernel"].T @ p["Dense_0"]["kernel"]) ** 2))
    for kind, maker in MAKERS.items():
        for how in (KEPT, ANEW):
            H = maker(loss, helpers.params(), DATA, execution=how, batch_size=4)
            text = str(jax.make_jaxpr(lambda H, v: H.mv(v))(H, H.random(KEY)))
            assert text.count("dot_general[") > 0
            assert text.count("HIGHEST") == 2 * text.count("dot_general["), kind  # one for each operand
    given = operators.given(lambda v, A: A @ v, np.zeros(3, np.float32), np.eye(3, dtype=np.float32))
    assert str(jax.make_jaxpr(given.mv)(np.zeros(3, np.float32))).count("HIGHEST") == 2


def test_a_long_product_on_a_cpu_is_made_from_the_host(monkeypatch):
    made = helpers.mlp_loss(), helpers.params(), helpers.dataset()
    short = lla.hessian(*made, execution=ONE)
    monkeypatch.setattr(blocks, "MOST_FLOPS", 1000)
    long = lla.hessian(*made, execution=ONE)
    assert short.on_device
    assert not long.on_device
    v = short.random(jax.random.key(0))
    assert error(ravel_pytree(long.product(v))[0], ravel_pytree(short.product(v))[0]) < 1e-6
