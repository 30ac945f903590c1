"""The matrices against brute force: dense second derivatives, known identities, sums over the examples."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import lla_jax as lla
from lla_jax.curvature import operators
from tests.curvature.cases import (
    MLP,
    WEIGHTED,
    C,
    N,
    cast,
    cross_entropy,
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

DOUBLE, SINGLE = 1e-12, 1e-6  # "equal to rounding", relative to the largest entry


DOUBLE, SINGLE = 1e-12, 1e-6  # "equal to rounding", relative to the largest entry


class Convolutions(nn.Module):
    """Two convolutions with BatchNorm: 190 parameters."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(3, (3, 3))(x))
        x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
        return nn.Dense(C)(jnp.tanh(nn.Conv(4, (3, 3))(x)).mean((1, 2)))


class Attention(nn.Module):
    """One block over 4 tokens: 297 parameters."""

    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        return nn.Dense(C)(x + nn.Dense(6)(nn.gelu(nn.Dense(8)(x))))


class Normalized(nn.Module):
    """BatchNorm that sees no scale of the weights before it."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(use_running_average=not train, epsilon=0)(nn.Dense(5, use_bias=False)(x))
        return nn.Dense(C)(jnp.tanh(x))


def normalized() -> tuple[lla.Loss, Any, Any]:
    data = rows()
    variables = cast(jax.jit(lambda key, x: Normalized().init(key, x, False))(jax.random.key(0), data[0]))
    return lla.from_linen(Normalized(), variables, cross_entropy), variables["params"], data


def convolutional() -> tuple[lla.Loss, Any, Any]:
    data = rows(N, 6, 6, 2)
    variables = cast(jax.jit(lambda key, x: Convolutions().init(key, x, False))(jax.random.key(0), data[0]))
    variables["batch_stats"] = jax.tree.map(lambda x: x + np.arange(x.size) / 4, variables["batch_stats"])
    return lla.from_linen(Convolutions(), variables, cross_entropy), variables["params"], data


def attentive() -> tuple[lla.Loss, Any, Any]:
    data = (*rows(N, 4, 6, labels=(4,)), weights(N, 4))
    variables = cast(jax.jit(Attention().init)(jax.random.key(0), data[0]))
    return lla.from_linen(Attention(), variables, weighted_entropy), variables["params"], data


MODELS = {"mlp": lambda: (MLP, mlp_params(), rows()), "convolutions": convolutional, "attention": attentive}


@pytest.mark.parametrize(("model", "linearize"), [("mlp", True), ("convolutions", False), ("attention", True)])
def test_dense_hessian_equals_jax_hessian(double, model, linearize):
    loss, params, data = MODELS[model]()
    H = lla.hessian(loss, params, data, batch_size=3, execution=KEPT if linearize else ANEW)
    assert error(operators.dense(H), reference(mean_loss(loss, data), params)) < DOUBLE
    assert H.recipe["plan"]["blocks"] == 3
    assert H.shape == (ravel_pytree(params)[0].size,) * 2
    assert H.on_device == (model != "convolutions")
    if model == "convolutions":
        two = lla.hessian(loss, params, data, batch_size=3, execution=lla.Execution(devices=2, linearize=True))
        v = H.random(jax.random.key(0))
        assert error(two.product(v), H.product(v)) < DOUBLE
        assert len(two.blocks) == 2  # called one after another from the host


def test_weighted_tokens_and_the_penalty_are_those_of_the_loss(double):
    data = (*rows(N, 2, 4, labels=(2,)), weights(N, 2))
    loss = dataclasses.replace(WEIGHTED, penalty=lambda p: jnp.sum((p["last"]["kernel"] @ p["last"]["kernel"].T) ** 2))
    params = mlp_params()
    expected = reference(mean_loss(loss, data), params)
    for devices, size in ((1, None), (2, 2)):
        assert (
            error(
                operators.dense(
                    lla.hessian(loss, params, data, batch_size=size, execution=lla.Execution(devices=devices))
                ),
                expected,
            )
            < DOUBLE
        )
    missing = data[1].copy()
    missing[data[2] == 0] = -100  # how an ignored label is often marked
    assert (
        error(operators.dense(lla.hessian(loss, params, (data[0], missing, data[2]), execution=ONE)), expected) < DOUBLE
    )


@pytest.mark.parametrize("select", ["first/*", "**/kernel", ["shift", "last/*"]])
def test_blocks_equal_slices_of_the_dense_hessian(double, select):
    params, data = mlp_params(), rows()
    whole = operators.dense(lla.hessian(MLP, params, data, execution=ONE))
    H = lla.hessian(MLP, params, data, execution=ONE, select=select)
    marked = jax.tree.map(lambda x, yes: np.full(x.shape, yes), params, _chosen(H, params))
    chosen = np.flatnonzero(ravel_pytree(marked)[0])
    assert 0 < len(chosen) < len(whole)
    assert H.shape == (len(chosen),) * 2
    assert error(operators.dense(H), whole[np.ix_(chosen, chosen)]) < DOUBLE


def _chosen(H: Any, params: Any) -> Any:
    return jax.tree.unflatten(jax.tree.structure(params), H.leaf_mask)


def test_batch_statistics_and_coupled_losses_take_whole_batches(double):
    loss, params, data = normalized()
    batches = [tuple(x[a:b] for x in data) for a, b in ((0, 4), (4, N))]
    each = [reference(mean_loss(loss, batch, train=True), params) for batch in batches]
    expected = (4 * each[0] + 3 * each[1]) / N
    for given, size in ((data, 4), (lla.stream(batches), None)):
        H = lla.hessian(loss, params, given, batch_stats="batch", batch_size=size)
        assert error(operators.dense(H), expected) < 1e-11
    assert error(operators.dense(lla.hessian(loss, params, data, execution=ONE)), expected) > 0.01

    def coupled(outputs, batch):
        return jnp.log(jnp.mean(jnp.exp(cross_entropy(outputs, batch))))

    params, data = mlp_params(), rows()
    one = lla.Loss(mlp, coupled, per_example=False)
    plain = lambda p, batch: coupled(mlp(p, None, batch, False)[0], batch)  # noqa: E731
    halves = [tuple(x[a:b] for x in data) for a, b in ((0, 4), (4, N))]
    each = [reference(lambda p, batch=batch: plain(p, batch), params) for batch in halves]
    blocks = lla.hessian(one, params, data, batch_size=2, execution=lla.Execution(linearize=False)).blocks
    assert [(block.starts.tolist(), block.size) for block in blocks] == [([0, 2, 4], 2), ([6], 1)]
    for f in (one, plain):
        assert (
            error(operators.dense(lla.hessian(f, params, data, batch_size=4)), (4 * each[0] + 3 * each[1]) / N) < DOUBLE
        )
    weighed = lla.Loss(mlp, lambda o, b: (coupled(o, b), b[2].sum()), per_example=False)
    w = weights()
    found = operators.dense(lla.hessian(weighed, params, (*data, w), batch_size=4))
    assert error(found, (w[:4].sum() * each[0] + w[4:].sum() * each[1]) / w.sum()) < DOUBLE


def test_scale_invariant_weights(double):
    """Science truth 9: for f(w / |w|), w'g = 0, Hw = -g and H(cw) = H(w) / c^2."""
    params, data = mlp_params(), rows()

    def normalized(p, state, batch, train):
        return mlp({**p, "first": {**p["first"], "kernel": _unit(p["first"]["kernel"])}}, state, batch, train)

    loss = lla.Loss(normalized, cross_entropy)
    gradient = jax.grad(mean_loss(loss, data))

    def block(p):
        return operators.dense(lla.hessian(loss, p, data, select="first/kernel", execution=ONE))

    _check_scale_invariance(params, lambda p: p["first"]["kernel"], gradient, block, ("first", "kernel"))


def test_weights_before_batch_statistics_are_scale_invariant(double):
    loss, params, data = normalized()
    gradient = jax.grad(mean_loss(loss, data, train=True))

    def block(p):
        return operators.dense(lla.hessian(loss, p, data, select="Dense_0/*", batch_stats="batch"))

    _check_scale_invariance(params, lambda p: p["Dense_0"]["kernel"], gradient, block, ("Dense_0", "kernel"))
    frozen = operators.dense(lla.hessian(loss, params, data, select="Dense_0/*", execution=ONE))
    w = params["Dense_0"]["kernel"].ravel()
    assert np.abs(frozen @ w + np.ravel(jax.grad(mean_loss(loss, data))(params)["Dense_0"]["kernel"])).max() > 1e-3


def _unit(w):
    return w / jnp.sqrt(jnp.sum(w * w))


def _check_scale_invariance(params, weight_of, gradient, block, path) -> None:
    w, g = np.ravel(weight_of(params)), np.ravel(weight_of(jax.jit(gradient)(params)))
    H = block(params)
    assert np.abs(g).max() > 1e-2
    assert abs(w @ g) < DOUBLE * np.linalg.norm(w) * np.linalg.norm(g)
    assert error(H @ w, -g) < 1e-11
    module, name = path
    scaled = params | {module: params[module] | {name: 2.5 * params[module][name]}}
    assert error(block(scaled), H / 2.5**2) < 1e-11


def test_loss_along_an_eigenvector_is_quadratic_up_to_third_order(double):
    """Science truth 13: L(theta + t u) - L - t g'u - t^2 lambda / 2 falls as t^3."""
    params, data = mlp_params(), rows()
    unravel = ravel_pytree(params)[1]
    values, vectors = np.linalg.eigh(reference(mean_loss(MLP, data), params))
    u = unravel(jnp.asarray(vectors[:, -1]))
    H = lla.hessian(MLP, params, data, execution=ONE)
    assert error(H.product(u), values[-1] * vectors[:, -1]) < 1e-11
    t = np.geomspace(3e-3, 3e-2, 7)
    line = lla.evaluate(
        MLP,
        params,
        data,
        lla.directions.given(u),
        [np.concatenate([[0], t])],
        execution=lla.Execution(chunk=1, microbatch=N, loop="map", share=False, devices=1),
    )
    losses = line.values["loss"]
    slope = inner(lla.data.mean_gradient(MLP, params, data), u)
    rest = np.abs(losses[1:] - losses[0] - t * slope - t**2 * values[-1] / 2)
    fitted = np.polyfit(np.log(t), np.log(rest), 1)[0]
    assert abs(fitted - 3) < 0.05, fitted
    half = np.abs(losses[1:] - losses[0] - t * slope - t**2 * 1.01 * values[-1] / 2)  # a value off by 1 % shows
    assert np.polyfit(np.log(t), np.log(half), 1)[0] < 2.7


def linear(p, state, batch, train):
    return batch[0] @ p["kernel"] + p["bias"], state


LINEAR = lla.Loss(linear, cross_entropy)


def linear_params() -> dict:
    rng = np.random.default_rng(4)
    return {"kernel": rng.standard_normal((4, C)), "bias": rng.standard_normal(C)}


def test_ggn_equals_the_hessian_of_a_linear_model(double):
    params, data = linear_params(), rows()
    H = operators.dense(lla.hessian(LINEAR, params, data, execution=ONE))
    assert error(operators.dense(lla.ggn(LINEAR, params, data, execution=ONE)), H) < DOUBLE
    values = np.linalg.eigvalsh(H)
    assert values[0] > -1e-14
    assert np.sum(np.abs(values) < 1e-12 * values[-1]) == 4 + 1  # softmax: moving all classes alike changes nothing


def test_ggn_equals_its_formula_for_a_network(double):
    params, data = mlp_params(), (*rows(), weights())
    flat, unravel = ravel_pytree(params)
    J = np.asarray(jax.jacobian(lambda x: mlp(unravel(x), None, data, False)[0])(flat))  # (N, C, n)
    s = np.asarray(jax.nn.softmax(mlp(params, None, data, False)[0]))
    middle = np.einsum("ij,jk->ijk", s, np.eye(C)) - s[:, :, None] * s[:, None, :]
    expected = np.einsum("i,iap,iab,ibq->pq", data[2], J, middle, J) / data[2].sum()
    found = operators.dense(lla.ggn(WEIGHTED, params, data, execution=ONE))
    assert error(found, expected) < DOUBLE
    assert error(found, reference(mean_loss(WEIGHTED, data), params)) > 0.01
    penalized = dataclasses.replace(WEIGHTED, penalty=lambda p: 0.5 * jnp.sum(p["first"]["kernel"] ** 2))
    diagonal = ravel_pytree(
        jax.tree.map(jnp.zeros_like, params) | {"first": {"bias": jnp.zeros(5), "kernel": jnp.ones((4, 5))}}
    )
    found = operators.dense(
        lla.ggn(penalized, params, data, batch_size=2, execution=lla.Execution(devices=2, linearize=False))
    )
    assert error(found, expected + np.diag(diagonal[0])) < DOUBLE


def test_outputs_may_be_a_tree_with_entries_that_are_not_floating(double):
    params, data = mlp_params(), rows()

    def several(p, state, batch, train):
        scores = mlp(p, None, batch, train)[0]
        return {"scores": scores, "class": scores.argmax(-1), "nothing": None}, state

    loss = lla.Loss(several, lambda outputs, batch: cross_entropy(outputs["scores"], batch) + 0 * outputs["class"])
    G = operators.dense(lla.ggn(loss, params, data, execution=ONE))
    assert error(G, operators.dense(lla.ggn(MLP, params, data, execution=ONE))) < DOUBLE
    key = jax.random.key(0)
    draw = lambda key, outputs, example: (example[0], jax.random.categorical(key, outputs["scores"]))  # noqa: E731
    F = operators.dense(lla.fisher(loss, params, data, key, sample=draw, execution=ONE))
    assert error(F, operators.dense(lla.fisher(MLP, params, data, key, execution=ONE))) < DOUBLE
    twisted = lla.Loss(lambda *a: (mlp(*a)[0] * jnp.exp(1j), None), lambda o, b: jnp.abs(o).sum(-1))
    with pytest.raises(ValueError, match="outputs are complex"):
        lla.ggn(twisted, params, data)


def test_monte_carlo_fisher_agrees_with_the_ggn_within_its_standard_error(double):
    params, data = linear_params(), (*rows(), weights())
    loss = lla.Loss(linear, weighted_entropy)
    G = operators.dense(lla.ggn(loss, params, data, execution=ONE))
    draws = np.stack(
        [
            operators.dense(lla.fisher(loss, params, data, jax.random.key(i), samples=50, execution=ONE))
            for i in range(40)
        ]
    )
    sem = draws.std(0, ddof=1) / np.sqrt(len(draws))
    assert sem.max() < 0.03 * np.abs(G).max()
    assert np.all(np.abs(draws.mean(0) - G) <= 4 * sem + 1e-14)
    biased = np.abs(draws.mean(0) - 1.1 * G) / (sem + 1e-14)
    assert biased.max() > 4  # and ten percent would be seen


def test_targets_that_are_not_classes_are_drawn_by_a_function_of_the_users(double):
    squares = lla.Loss(linear, lambda outputs, batch: 0.5 * jnp.sum((outputs - batch[1]) ** 2, -1))
    params, data = linear_params(), (rows()[0], rows(N, C, seed=5)[0])

    def normal(key, outputs, example):
        return example[0], outputs + jax.random.normal(key, outputs.shape)

    F = lla.fisher(squares, params, data, jax.random.key(0), sample=normal, samples=400, execution=ONE)
    G = lla.ggn(squares, params, data, execution=ONE)
    assert error(operators.dense(F), operators.dense(G)) < 0.1
    recognised = lla.fisher(squares, params, data, jax.random.key(0), samples=400, execution=ONE)
    assert recognised.recipe["likelihood"] == "Gaussian"
    assert error(operators.dense(recognised), operators.dense(G)) < 0.1


@pytest.mark.parametrize("shape", [(), (2,)], ids=["examples", "tokens"])
def test_empirical_fisher_is_the_mean_of_outer_products_of_gradients(double, shape):
    params, data = mlp_params(), (*rows(N, *shape, 4, labels=shape), weights(N, *shape))
    flat, unravel = ravel_pytree(params)

    def root_weighted(x, i):  # an example's entries are one observation
        example = jax.tree.map(lambda leaf: leaf[i : i + 1], data)
        return jnp.sum(jnp.sqrt(example[2]) * cross_entropy(mlp(unravel(x), None, example, False)[0], example))

    each = np.stack([jax.grad(root_weighted)(flat, i) for i in range(N)])
    expected = sum(np.outer(g, g) for g in each) / data[2].sum()
    loss = dataclasses.replace(WEIGHTED, penalty=lambda p: jnp.sum(p["first"]["kernel"] ** 2))  # a prior: no part of it
    for how, size in ((ONE, None), (lla.Execution(devices=2, linearize=False), None), (ONE, 3)):
        F = lla.fisher(loss, params, data, kind="empirical", batch_size=size, execution=how)
        assert error(operators.dense(F), expected) < DOUBLE
    plain = operators.dense(lla.fisher(MLP, params, data[:2], kind="empirical", execution=ONE))
    ones = operators.dense(
        lla.fisher(WEIGHTED, params, (*data[:2], np.ones((N, *shape))), kind="empirical", execution=ONE)
    )
    assert error(plain, ones) < DOUBLE
