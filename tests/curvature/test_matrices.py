"""The matrices themselves, against brute force: dense second derivatives, known identities, sums over the examples."""

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
from tests.helpers import ANEW, KEPT, ONE

N, C = 7, 3
DOUBLE, SINGLE = 1e-12, 1e-6  # "equal to rounding", relative to the largest entry


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def cast(tree: Any, dtype: str = "float64") -> Any:
    """Floating leaves in another precision."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if np.issubdtype(x.dtype, np.floating) else x, jax.tree.map(np.asarray, tree)
    )


def cross_entropy(outputs, batch):
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), batch[1][..., None], -1)[..., 0]


def weighted_entropy(outputs, batch):
    return cross_entropy(outputs, batch), batch[2]


def mlp(p, state, batch, train):
    return jnp.tanh(batch[0] @ p["first"]["kernel"] + p["first"]["bias"]) @ p["last"]["kernel"] + p["shift"], state


MLP = lla.Loss(mlp, cross_entropy)
WEIGHTED = lla.Loss(mlp, weighted_entropy)


def mlp_params(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "first": {"kernel": rng.standard_normal((4, 5)), "bias": rng.standard_normal(5)},
        "last": {"kernel": rng.standard_normal((5, C))},
        "shift": np.asarray(0.3),
    }


def rows(n: int = N, *shape: int, labels: tuple[int, ...] = (), seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, *(shape or (4,)))), rng.integers(0, C, (n, *labels))


def weights(n: int = N, *shape: int) -> np.ndarray:
    """Between 0 and 3, and one of them zero."""
    found = np.random.default_rng(2).uniform(0, 3, (n, *shape))
    found.flat[1] = 0
    return found


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


def mean_loss(loss: lla.Loss, data: Any, train: bool = False):
    """The loss over all data, written plainly."""

    def value(p):
        result = loss.criterion(loss.apply(p, loss.state, data, train)[0], data)
        losses, w = result if isinstance(result, tuple) else (result, jnp.ones(result.shape))
        return jnp.sum(losses * w) / jnp.sum(w) + (0 if loss.penalty is None else loss.penalty(p))

    return value


def reference(f, params: Any) -> np.ndarray:
    """The Hessian of f, dense, entries in the order of the raveled leaves."""
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda x: f(unravel(x))))(flat))


def error(found: Any, expected: Any) -> float:
    """Largest difference relative to the largest entry."""
    found, expected = (ravel_pytree(x)[0] for x in (found, expected))
    return float(np.abs(np.asarray(found) - np.asarray(expected)).max() / np.abs(np.asarray(expected)).max())


def pieces(data: Any, *cuts: int) -> Any:
    """The data as a stream of unequal batches."""
    return lla.stream([tuple(x[a:b] for x in data) for a, b in zip((0, *cuts), (*cuts, len(data[0])), strict=True)])


# --- the Hessian


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


CUTS: dict[str, Any] = {
    "batches of 3": {"batch_size": 3},
    "batches of 4": {"batch_size": 4},
    "a batch larger than the data": {"batch_size": 100},
    "recomputed": {"execution": ANEW},
    "recomputed in batches": {"execution": ANEW, "batch_size": 3},
    "2 devices": {"execution": lla.Execution(devices=2)},
    "4 devices": {"execution": lla.Execution(devices=4)},
    "2 devices in batches, recomputed": {"execution": lla.Execution(devices=2, linearize=False), "batch_size": 3},
    "streamed": {"data": (2, 7, 8)},
    "streamed in batches over 2 devices": {"data": (5,), "batch_size": 2, "execution": lla.Execution(devices=2)},
}


def cut(make, data: Any, how: dict) -> Any:
    """An operator over the same data, cut and driven another way."""
    options = {"execution": ONE} | how
    return make(pieces(data, *options.pop("data")) if "data" in options else data, **options)


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


def inner(u, v) -> float:
    return float(np.asarray(ravel_pytree(u)[0], np.float64) @ np.asarray(ravel_pytree(v)[0], np.float64))


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


# --- known identities


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


# --- Gauss-Newton and Fisher matrices


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
    with pytest.raises(ValueError, match="sample: by default targets are drawn as classes"):
        lla.fisher(squares, params, data, jax.random.key(0))


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
