"""Eigenpairs, spectra, densities and extremes: against dense matrices of known spectrum and dense Hessians."""

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import lla_jax as lla
from lla_jax.cli import curvature as verb
from lla_jax.cli.options import HessianOptions
from lla_jax.curvature import eigen as spectral
from lla_jax.curvature import eigensearch as krylov
from lla_jax.curvature import operators
from lla_jax.execution import devices
from tests.curvature.test_lanczos import breaking, flat, matrix, operator
from tests.helpers import ONE, compilations, cross_entropy, dataset, mlp_loss, params

KEY = jax.random.key(1)
N = 300
COPIES = np.concatenate([[10.0] * 3, [7.03, 7.02, 7.01, 7.0], [-4.0], np.linspace(-0.5, 1, N - 8)])
"""A threefold top value, a cluster, a negative value and a bulk."""
EPS = {"float32": 1.2e-7, "float64": 2.3e-16}


def plain(a, traceable=True):
    """A matrix as an operator on vectors."""
    like = jnp.zeros(len(a), a.dtype)
    if traceable:
        return operators.given(lambda v, a: jnp.matmul(a, v, precision="highest"), like, jnp.asarray(a))
    return operators.given(lambda v: jnp.asarray(a @ np.asarray(v)), like, traceable=False)


class Counted:
    """A product on the host that counts its calls."""

    def __init__(self, a):
        self.a, self.count = a, 0

    def __call__(self, v):
        self.count += 1
        return jnp.asarray(self.a @ np.asarray(v))


def counted(a):
    product = Counted(a)
    return operators.given(product, jnp.zeros(len(a), a.dtype), traceable=False), product


def check_pairs(pairs, a, wanted, tol):
    """Every pair within its residual of an exact one; the residuals what they are said to be; orthonormal vectors."""
    a = np.asarray(a, np.float64)
    exact, scale = np.linalg.eigvalsh(a), np.abs(wanted).max()
    vectors = flat(pairs.vectors.tree, 1)
    distance = np.abs(exact[:, None] - pairs.values).min(0)
    assert (distance <= pairs.residuals).all(), (distance, pairs.residuals)
    true = np.linalg.norm(a @ vectors.T - vectors.T * pairs.values, axis=0)
    assert (true <= 1.001 * pairs.residuals).all(), (true, pairs.residuals)
    assert (pairs.residuals <= 1.02 * tol * scale).all()
    assert np.abs(pairs.values - wanted).max() <= tol * scale
    assert np.abs(vectors @ vectors.T - np.eye(len(wanted))).max() < max(1e-5, 1e3 * tol**2)
    assert (vectors[np.arange(len(vectors)), np.abs(vectors).argmax(1)] > 0).all()
    assert pairs.recipe["converged"] is True
    assert pairs.recipe["stopped"] is None


# --- eigenpairs on chosen spectra


@pytest.mark.parametrize("traceable", [True, False], ids=["device", "host"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_copies_of_a_repeated_value_are_found_within_300_products(dtype, traceable):
    with jax.enable_x64(dtype == "float64"):
        a = matrix(COPIES, dtype)
        pairs = lla.eigenpairs(plain(a, traceable), KEY, 8, tol=1e-4)
        check_pairs(pairs, a, [10, 10, 10, 7.03, 7.02, 7.01, 7.0, -4], 1e-4)
    assert pairs.products <= 60
    assert pairs.recipe["verified"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_ghosts_and_each_distinct_value_once(dtype):
    with jax.enable_x64(dtype == "float64"):
        spec = lla.spectrum(plain(matrix(COPIES, dtype)), KEY, steps=100, probes=2)
    distinct = [10.0, 7.03, 7.02, 7.01, 7.0, -4.0]
    for nodes, weights in zip(spec.nodes, spec.weights, strict=True):
        shown = nodes[weights > 0]
        assert (np.diff(shown) > 0).all()
        outside = shown[(shown > 1.01) | (shown < -0.51)]
        assert np.allclose(np.sort(outside), np.sort(distinct), atol=2e-4)
    assert np.allclose(spec.weights.sum(1), 1)
    # the threefold value has the weight of three: v'P v for the probe's part in its eigenspace, 3 / n in the mean
    assert 0.2 < (spec.weights * (spec.nodes > 9)).sum(1).mean() * N / 3 < 5


def test_either_end_is_found_as_easily():
    a = matrix(COPIES)
    for traceable in (True, False):
        low = lla.eigenpairs(plain(a, traceable), KEY, 2, which="smallest", tol=1e-3)
        high = lla.eigenpairs(plain(-a, traceable), KEY, 2, which="largest", tol=1e-3)
        assert low.products == high.products
        assert np.array_equal(low.values, -high.values)
        assert np.array_equal(low.vectors.tree, high.vectors.tree)
        assert np.isclose(low.values[0], -4, atol=1e-5)
    top = lla.eigenpairs(plain(a), KEY, 4, which="largest")
    check_pairs(top, a, [10, 10, 10, 7.03], 1e-3)
    both = lla.eigenpairs(plain(matrix(np.concatenate([[-10.0, -9.0, 8.0], np.zeros(N - 3)]))), KEY, 3)
    assert np.allclose(both.values, [-10, -9, 8], atol=1e-4)


def test_products_are_counted_as_they_are_made():
    H, product = counted(matrix(COPIES))
    seen = []
    for k, which in ((1, "magnitude"), (3, "largest")):
        product.count = 0
        seen.clear()
        pairs = lla.eigenpairs(H, KEY, k, which=which, progress=lambda done, total: seen.append((done, total)))
        assert product.count == pairs.products == pairs.recipe["products"]
        assert seen[-1] == (pairs.products, None)
        assert [done for done, _ in seen] == list(range(3, pairs.products + 1))
    product.count = 0
    spec = lla.spectrum(H, KEY, steps=7, probes=2, progress=lambda done, total: seen.append((done, total)))
    assert product.count == spec.recipe["products"] == 2 + 14
    assert seen[-1] == (16, 16)
    product.count = 0
    found = spectral.extremes(H, KEY, 25)
    assert product.count == found.products < 25


def test_few_products_suffice_for_separated_values():
    H, _ = counted(matrix(np.concatenate([[30.0, 20.0], np.linspace(-0.5, 2, N - 2)])))
    assert lla.eigenpairs(H, KEY, 2).products <= 18


def test_a_sequence_rules_out_only_what_it_would_have_seen():
    a = matrix(COPIES, "float64")
    values = np.linalg.eigvalsh(a)
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(20):
        v = rng.standard_normal(N)
        q, alphas, betas = [v / np.linalg.norm(v)], [], []
        for _ in range(20):
            w = a @ q[-1]
            alphas.append(w @ q[-1])
            for _ in range(2):
                w = w - np.array(q).T @ (np.array(q) @ w)
            betas.append(np.linalg.norm(w))
            q.append(w / betas[-1])
            wrong += krylov.rules_out(np.array(alphas), np.array(betas), 9.9, N)
        assert krylov.rules_out(np.array(alphas), np.array(betas), values.max() + 2, N)
    assert wrong == 0


def test_host_and_device_agree_to_rounding():
    with jax.enable_x64(True):
        a = matrix(COPIES, "float64")
        device, host = (lla.eigenpairs(plain(a, t), KEY, 5, tol=1e-7) for t in (True, False))
        assert np.allclose(device.values, host.values, atol=1e-11)
        one, two = (lla.spectrum(plain(a, way), KEY, steps=12, probes=2) for way in (True, False))
        assert np.allclose(one.nodes, two.nodes, atol=1e-9)
        assert np.allclose(one.weights, two.weights, atol=1e-9)


@pytest.mark.parametrize("traceable", [True, False], ids=["device", "host"])
def test_restarts_within_few_vectors(traceable):
    a = matrix(COPIES)
    pairs = lla.eigenpairs(plain(a, traceable), KEY, 5, tol=1e-3, max_vectors=12)
    check_pairs(pairs, a, [10, 10, 10, 7.03, 7.02], 2.2e-3)  # within the cluster any vector does
    assert pairs.recipe["restarts"] > 0


def test_masked_operators_have_the_pairs_of_the_block():
    a = matrix(COPIES)
    mask = np.arange(N) % 2 == 0
    pairs = lla.eigenpairs(operators.masked(plain(a), mask), KEY, 2)
    block = a[np.ix_(mask, mask)].astype(np.float64)
    values = np.linalg.eigvalsh(block)
    assert np.abs(np.asarray(pairs.vectors.tree)[:, ~mask]).max() == 0
    assert np.allclose(pairs.values, values[np.argsort(-np.abs(values))][:2], atol=1e-3)
    assert pairs.recipe["n"] == mask.sum()


def test_small_and_degenerate_operators():
    for traceable in (True, False):
        zero = lla.eigenpairs(plain(np.zeros((20, 20), np.float32), traceable), KEY, 3)
        assert np.array_equal(zero.values, [0, 0, 0])
        assert np.array_equal(zero.residuals, [0, 0, 0])
        assert zero.recipe["converged"]
        vectors = flat(zero.vectors.tree, 1)
        assert np.abs(vectors @ vectors.T - np.eye(3)).max() < 1e-5
        one = lla.eigenpairs(plain(3 * np.eye(20, dtype=np.float32), traceable), KEY, 4)
        assert np.allclose(one.values, 3, atol=1e-5)
        whole = lla.eigenpairs(plain(matrix(np.arange(-3.0, 17)), traceable), KEY, 20, max_products=100)
        assert np.allclose(
            whole.values, [*range(16, 3, -1), 3, -3, 2, -2, 1, -1, 0][:13] + list(whole.values[13:]), atol=1e-4
        )
        assert np.allclose(np.sort(whole.values), np.arange(-3, 17), atol=1e-4)
    spec = lla.spectrum(plain(np.zeros((20, 20), np.float32)), KEY, steps=10, probes=3)
    assert np.array_equal(spec.nodes, np.zeros((3, 10)))
    assert np.array_equal(spec.weights[:, 0], np.ones(3))
    assert spec.recipe["steps_done"] == [1, 1, 1]


def test_more_than_there_are_is_clamped_with_a_word():
    H = plain(matrix(np.arange(-3.0, 17)))
    with pytest.warns(UserWarning, match="k: 25 asked for, but there are only 20 parameters; 20 are done"):
        pairs = lla.eigenpairs(H, KEY, 25, max_products=100)
    assert pairs.num == 20
    with pytest.warns(UserWarning, match="steps: 100 asked for, but there are only 20"):
        spec = lla.spectrum(H, KEY, steps=100, probes=1)
    assert np.allclose(spec.nodes[0], np.arange(-3, 17), atol=1e-4)


def test_too_few_products_give_all_pairs_and_a_warning():
    a = matrix(COPIES)
    for traceable in (True, False):
        with pytest.warns(UserWarning, match="after 20 products, and tol=1e-06 asks for 1e-05; raise max_products"):
            pairs = lla.eigenpairs(plain(a, traceable), KEY, 5, tol=1e-6, max_products=20)
        assert pairs.num == 5
        assert pairs.products == 20
        assert pairs.recipe["converged"] is False
        assert pairs.recipe["stopped"] == "max_products"
        exact = np.linalg.eigvalsh(a.astype(np.float64))
        assert (np.abs(exact[:, None] - pairs.values).min(0) <= pairs.residuals).all()


def test_a_tolerance_below_rounding_is_said_to_be():
    with pytest.warns(UserWarning, match="below the rounding of the products in float32; raise tol"):
        pairs = lla.eigenpairs(plain(matrix(COPIES)), KEY, 2, tol=1e-8)
    assert not pairs.recipe["converged"]
    assert pairs.recipe["stopped"] is None


# --- truths


def test_a_quadratic_is_exact_with_all_steps():
    with jax.enable_x64(True):
        a = matrix(np.linspace(-2, 5, 40), "float64")

        def loss(p, batch):
            v = jnp.concatenate([p["head"], p["tail"].reshape(-1)])
            return 0.5 * batch[0].mean() * (v @ a @ v)

        center = {"head": jnp.ones(30), "tail": jnp.ones((5, 2))}
        H = lla.hessian(loss, center, (np.ones((1, 1)),), execution=ONE)
        spec = lla.spectrum(H, KEY, steps=40, probes=1)
        pairs = lla.eigenpairs(H, KEY, 2, which="smallest", tol=1e-9)
    assert np.allclose(spec.nodes[0], np.linspace(-2, 5, 40), atol=1e-12)
    assert np.allclose(pairs.values, np.linspace(-2, 5, 40)[:2], atol=1e-12)


@pytest.mark.parametrize("traceable", [True, False], ids=["device", "host"])
def test_moments_are_exact_up_to_twice_the_steps(traceable):
    with jax.enable_x64(True):
        a = matrix(COPIES / 10, "float64")
        H = plain(a, traceable)
        steps = 6
        spec = lla.spectrum(H, KEY, steps=steps, probes=2)
        starts = [np.asarray(lla.lanczos.random(H, KEY, p, "rademacher")) for p in range(2)]
    for nodes, weights, v in zip(spec.nodes, spec.weights, starts, strict=True):
        v = v / np.linalg.norm(v)
        exact, power = [], v
        for _ in range(2 * steps + 1):
            exact.append(v @ power)
            power = a @ power
        found = [(weights * nodes**j).sum() for j in range(2 * steps + 1)]
        assert np.allclose(found[:-1], exact[:-1], rtol=0, atol=1e-13)
        assert abs(found[-1] - exact[-1]) > 1e-10  # and no further


# --- networks against the dense Hessian


def conv_params(rng):
    draw = lambda *shape: 0.4 * rng.standard_normal(shape)  # noqa: E731
    return {
        "conv": {"kernel": draw(3, 3, 2, 6), "bias": draw(6)},
        "norm": {"scale": 1 + 0.1 * draw(6), "bias": draw(6)},
        "dense": {"kernel": draw(6 * 9, 4), "bias": draw(4)},
    }


def conv_apply(p, state, batch, train):
    x = jax.lax.conv_general_dilated(
        batch[0], p["conv"]["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = x + p["conv"]["bias"]
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (state["mean"], state["var"])
    x = jnp.tanh((x - mean) / jnp.sqrt(var + 1e-5) * p["norm"]["scale"] + p["norm"]["bias"])
    return x.reshape(len(x), -1) @ p["dense"]["kernel"] + p["dense"]["bias"], state


def attention_params(rng):
    draw = lambda *shape: 0.5 * rng.standard_normal(shape)  # noqa: E731
    return {"qkv": draw(6, 3, 2, 4), "out": draw(2, 4, 6), "mlp": draw(6, 12), "head": draw(12, 4), "bias": draw(4)}


def attention_apply(p, state, batch, train):
    x = batch[0]
    q, k, v = jnp.einsum("btd,dchk->cbthk", x, p["qkv"])
    weights = jax.nn.softmax(jnp.einsum("bqhk,bshk->bhqs", q, k) / 2, -1)
    x = x + jnp.einsum("bhqs,bshk,hkd->bqd", weights, v, p["out"])
    return jax.nn.gelu(x @ p["mlp"]).mean(1) @ p["head"] + p["bias"], state


def network(name, dtype):
    rng = np.random.default_rng(0)
    if name == "mlp":
        return mlp_loss(), params(0, dtype), dataset(23, 1, dtype)
    make, apply, shape = {
        "cnn": (conv_params, conv_apply, (12, 6, 6, 2)),
        "attention": (attention_params, attention_apply, (12, 5, 6)),
    }[name]
    p = make(rng)
    data = rng.standard_normal(shape).astype(dtype), rng.integers(0, 4, len(np.empty(shape)))
    state = {"mean": np.full(6, 0.1, dtype), "var": np.full(6, 0.7, dtype)} if name == "cnn" else None
    return lla.Loss(apply, cross_entropy, state=state), jax.tree.map(lambda x: x.astype(dtype), p), data


def dense_hessian(loss, p, data):
    """By jax.hessian, in float64."""
    with jax.enable_x64(True):
        p, data = jax.tree.map(lambda x: np.asarray(x, np.float64) if x.dtype.kind == "f" else x, (p, data))
        vector, unravel = jax.flatten_util.ravel_pytree(p)
        state = jax.tree.map(lambda x: np.asarray(x, np.float64), loss.state)
        mean = lambda v: cross_entropy(loss.apply(unravel(v), state, data, False)[0], data).mean()  # noqa: E731
        return np.asarray(jax.jit(jax.hessian(mean))(vector))


@pytest.mark.parametrize("name", ["mlp", "cnn", "attention"])
def test_every_pair_is_within_its_residual_of_the_dense_hessian(name):
    exact = None
    for dtype, tol in (("float64", 1e-7), ("float32", 1e-3)):
        with jax.enable_x64(dtype == "float64"):
            loss, p, data = network(name, dtype)
            H = lla.hessian(loss, p, data, execution=ONE)
            found = {w: lla.eigenpairs(H, KEY, 4, which=w, tol=tol) for w in ("magnitude", "smallest")}
        if exact is None:
            exact = np.linalg.eigvalsh(dense_hessian(loss, p, data))
        scale = np.abs(exact).max()
        for which, pairs in found.items():
            wanted = exact[np.argsort(-np.abs(exact) if which == "magnitude" else exact)][:4]
            assert (np.abs(exact[:, None] - pairs.values).min(0) <= pairs.residuals).all()
            assert np.abs(pairs.values - wanted).max() <= (1e-8 if dtype == "float64" else 1e-3) * scale
            assert pairs.recipe["converged"]
            assert pairs.vectors.recipe["kind"] == "eigenvectors"
            assert jax.tree.structure(pairs.vectors.tree) == jax.tree.structure(p)


LAPACK = 1e-13  # what rounding makes of the reference itself at this size


@pytest.mark.slow
def test_pairs_of_five_thousand_parameters_are_within_their_residuals():
    rng = np.random.default_rng(0)
    p = {"in": 0.2 * rng.standard_normal((44, 90)), "out": 0.2 * rng.standard_normal((90, 11))}
    data = rng.standard_normal((64, 44)), rng.integers(0, 11, 64)
    apply = lambda p, state, batch, train: (jnp.tanh(batch[0] @ p["in"]) @ p["out"], state)  # noqa: E731
    loss = lla.Loss(apply, cross_entropy)
    exact = scipy.linalg.eigvalsh(dense_hessian(loss, p, data))
    assert len(exact) == 4950
    scale = np.abs(exact).max()
    for dtype, tol in (("float64", 1e-7), ("float32", 1e-3)):
        with jax.enable_x64(dtype == "float64"):
            cast = lambda x, dtype=dtype: x.astype(dtype) if x.dtype.kind == "f" else x  # noqa: E731
            pairs = lla.eigenpairs(lla.hessian(loss, *jax.tree.map(cast, (p, data)), execution=ONE), KEY, 10, tol=tol)
        wanted = exact[np.argsort(-np.abs(exact))][:10]
        assert (np.abs(exact[:, None] - pairs.values).min(0) <= pairs.residuals + LAPACK * scale).all()
        assert np.abs(np.sort(pairs.values) - np.sort(wanted)).max() <= (1e-8 if dtype == "float64" else 1e-3) * scale


def test_new_weights_compile_nothing():
    for name in ("mlp", "cnn"):  # in a loop on the device, and step by step from the host
        loss, p, data = network(name, "float32")

        def every(p, seed, loss=loss, data=data):
            H, key = lla.hessian(loss, p, data, execution=ONE), jax.random.key(seed)
            lla.eigenpairs(H, key, 2 + seed, tol=1e-2)
            lla.spectrum(H, key, steps=10, probes=2)
            leaves = jax.tree.leaves(p)
            mask = [np.full(x.shape, i != seed) for i, x in enumerate(leaves)]
            masked = operators.masked(H, jax.tree.unflatten(jax.tree.structure(p), mask))
            spectral.extremes(masked, key, 10)

        every(p, 0)
        every(p, 1)  # another number of pairs is another number of vectors to be stacked
        with compilations() as seen:
            every(jax.tree.map(lambda x: 1.1 * x, p), 1)
        assert seen.count == 0


def test_several_devices_give_the_same():
    loss, p, data = network("mlp", "float32")
    one, two = (lla.hessian(loss, p, data, execution=lla.Execution(devices=d)) for d in (1, 2))
    a, b = (lla.eigenpairs(H, KEY, 3) for H in (one, two))
    assert np.allclose(a.values, b.values, rtol=1e-5)
    s, t = (lla.spectrum(H, KEY, steps=8, probes=2) for H in (one, two))
    assert np.allclose(s.nodes, t.nodes, atol=1e-5)
    low, high = lla.hessian(loss, p, lla.stream([data]), execution=ONE), one
    c = lla.eigenpairs(low, KEY, 3)
    assert np.allclose(a.values, c.values, rtol=1e-5)
    assert not low.on_device
    assert high.on_device


# --- trouble


def test_products_that_are_not_finite_end_the_search_with_what_there_is():
    for at, kept in ((2 + 12, 3), (2 + 3, 2)):
        H, product = breaking(at)
        with pytest.warns(UserWarning, match=f"it ends there, because product {at} is not finite"):
            pairs = lla.eigenpairs(H, KEY, 3, tol=1e-6)
        assert pairs.num == kept
        assert pairs.recipe["stopped"] == f"product {at} is not finite"
        assert pairs.recipe["converged"] is False
        assert np.isinf(pairs.residuals).all()  # nothing could be multiplied any more
        assert product.count == pairs.products
    H, _ = breaking(3)
    with pytest.raises(ValueError, match="product 3 is not finite, and there is nothing to keep"):
        lla.eigenpairs(H, KEY, 3)


def test_products_that_are_not_finite_end_a_spectrum():
    H, product = breaking(2 + 10 + 5)
    whole = lla.spectrum(operator(product.a, False), KEY, steps=10)
    with pytest.warns(UserWarning, match="product 5 of probe 2 is not finite; the 2 of 4 probes"):
        spec = lla.spectrum(H, KEY, steps=10)
    assert spec.nodes.shape == (2, 10)
    assert np.array_equal(spec.nodes[0], whole.nodes[0])
    assert spec.recipe["steps_done"] == [10, 4]
    assert (spec.weights[1] > 0).sum() == 4
    H, _ = breaking(3)
    with pytest.raises(ValueError, match="nothing to keep"):
        lla.spectrum(H, KEY, steps=10)
    found = spectral.extremes(breaking(1)[0], KEY, 10)
    assert np.isnan([found.smallest, found.largest, found.residual]).all()
    assert found.products == 1


@pytest.mark.parametrize(
    ("call", "change", "match"),
    [
        ("eigenpairs", {"k": 0}, "k: 0 given"),
        ("eigenpairs", {"which": "top"}, "which: 'top' given"),
        ("eigenpairs", {"tol": 0.0}, "tol: 0.0 given"),
        (
            "eigenpairs",
            {"k": 3, "max_products": 7},
            "max_products: 7 given; it must be an integer of at least 8, for this k",
        ),
        (
            "eigenpairs",
            {"k": 3, "max_vectors": 6},
            "max_vectors: 6 given; it must be an integer of at least 7, for this k",
        ),
        ("eigenpairs", {"H": np.eye(3)}, "H: ndarray of shape"),
        ("spectrum", {"probes": 0}, "probes: 0 given"),
        ("spectrum", {"start": "signs"}, "start: 'signs' given"),
        ("spectrum", {"scheme": "none"}, "scheme: 'none' given"),
        ("spectrum", {"steps": True}, "steps: True given"),
        ("spectrum", {"resume": 1}, "resume: 1 given"),
        ("eigenpairs", {"resume": 1}, "resume: 1 given"),
    ],
)
def test_bad_arguments(call, change, match):
    arguments = {
        "H": plain(matrix(np.arange(20.0))),
        "key": KEY,
        **({"steps": 5} if call == "spectrum" else {}),
    } | change
    with pytest.raises(ValueError, match=match):
        getattr(lla, call)(**arguments)


def test_a_spectrum_that_memory_cannot_hold_is_refused(monkeypatch):
    monkeypatch.setattr(devices, "free_bytes", lambda device: 20 * 4 * 15)
    H = plain(matrix(np.arange(20.0)))
    with pytest.raises(ValueError, match=r"steps: 16 given, .*; it must be at most 15: take fewer"):
        lla.spectrum(H, KEY, steps=16, probes=1)
    assert lla.spectrum(H, KEY, steps=16, probes=1, scheme="lla").nodes.shape == (1, 16)
    assert lla.spectrum(H, KEY, steps=4, probes=4).nodes.shape == (4, 4)  # one at a time


def test_out_of_memory_halves_the_probes_at_once(monkeypatch):
    H = plain(matrix(np.arange(20.0)))
    whole = lla.spectrum(H, KEY, steps=4, probes=4)
    advance = krylov._lanczos.advance

    def scarce(H, basis, *args, **options):
        if jax.tree.leaves(basis)[0].shape[0] > 2 and options["batched"]:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return advance(H, basis, *args, **options)

    monkeypatch.setattr(krylov._lanczos, "advance", scarce)
    spec = lla.spectrum(H, KEY, steps=4, probes=4)
    assert np.allclose(spec.nodes, whole.nodes, atol=1e-4)
    assert spec.recipe["products"] == whole.recipe["products"] == 18


def test_memory_is_said_before(caplog):
    H = plain(matrix(COPIES))
    with caplog.at_level(logging.INFO, logger="lla_jax"):
        pairs = lla.eigenpairs(H, KEY, 1)
        spec = lla.spectrum(H, KEY, steps=10, probes=2)
    rows, vector = pairs.recipe["memory"]["vectors"], 4 * H.shape[0]
    assert f"eigenpairs: {rows} vectors of" in caplog.text
    assert 0 < pairs.recipe["memory"]["bytes"] - rows * vector < 2**28
    assert "spectrum: 2 of 2 probes at a time: 20 vectors" in caplog.text
    assert spec.recipe["memory"]["vectors"] == 20


NEEDED = """
import pathlib, jax, lla_jax as lla
from lla_jax.curvature import operators

def now(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(x for x in lines if x.startswith(name)).split()[1])

like = jax.numpy.linspace(-1, 2, 16_000_000)
H = operators.given(lambda v: like * v, like, traceable=False)
H.product(H.random(jax.random.key(0)))
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = now("VmRSS")
found = lla.spectrum(H, jax.random.key(0), steps=17, probes=1)
print(found.recipe["memory"]["bytes"] / (now("VmHWM") - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the kernel does not count")
def test_memory_is_what_is_said():
    """Within 15 %, for 17 vectors of 61 MiB, 1.0 GiB in all."""
    command = [sys.executable, "-c", NEEDED]
    ratio = float(subprocess.run(command, check=True, capture_output=True, text=True, timeout=200).stdout)
    assert abs(ratio - 1) < 0.15


# --- interrupted and continued


class Interrupts:
    """A progress callback that interrupts once, at a number of products."""

    def __init__(self, at, error):
        self.at, self.error = at, error

    def __call__(self, done, total):
        if done >= self.at:
            raise self.error


def interrupted(call, at, error=KeyboardInterrupt, **options):
    parts = []
    with pytest.raises(error):
        call(progress=Interrupts(at, error), on_partial=parts.append, **options)
    (part,) = parts
    assert part.recipe["complete"] is False
    state = {name: np.array(x) for name, x in part.state.items()}  # arrays, as a file gives them back
    assert all(x.dtype.kind in "fiub" for x in state.values())
    return dataclasses.replace(part, state=state)


@pytest.mark.parametrize("traceable", [True, False], ids=["device", "host"])
def test_resumed_eigenpairs_are_the_same_to_the_bit(traceable, tmp_path):
    a = matrix(COPIES)
    H = plain(a, traceable)
    for options in ({"tol": 1e-4}, {"tol": 1e-3, "max_vectors": 12}):

        def call(H=H, **more):
            return lla.eigenpairs(H, KEY, 5, **{**options, **more})  # noqa: B023

        whole = call()
        for at in (4, 15, whole.products - 8, whole.products - 2):
            part = interrupted(call, at)
            assert part.num == min(5, len(part.values)) > 0
            lla.save(part, tmp_path / "part")
            again = call(resume=lla.load(tmp_path / "part.npz", like=jnp.zeros(N)))
            assert np.array_equal(again.values, whole.values)
            assert np.array_equal(again.residuals, whole.residuals)
            assert np.array_equal(again.vectors.tree, whole.vectors.tree)
            assert again.recipe == whole.recipe
        assert call(resume=whole) is whole
    with pytest.raises(ValueError, match=r"the partial run of eigenpairs differs in k \("):
        lla.eigenpairs(H, KEY, 4, tol=1e-3, max_vectors=12, resume=part)
    with pytest.raises(ValueError, match=r"the partial run of eigenpairs differs in key \("):
        lla.eigenpairs(H, jax.random.key(2), 5, tol=1e-3, max_vectors=12, resume=part)


def test_what_cannot_be_ruled_out_is_not_said_to_be():
    """Values so close that a second sequence would take longer than the first to tell them apart."""
    H = plain(matrix(np.linspace(0, 1, N)), False)
    whole = lla.eigenpairs(H, KEY, 1, tol=1e-4)
    assert whole.recipe["converged"]
    assert whole.recipe["verified"] is False
    assert abs(whole.values[0] - 1) < 1e-5
    assert whole.products > 100  # many enough that not every step asks for Ritz pairs
    part = interrupted(lambda **more: lla.eigenpairs(H, KEY, 1, tol=1e-4, **more), 95)
    again = lla.eigenpairs(H, KEY, 1, tol=1e-4, resume=part)
    assert np.array_equal(again.vectors.tree, whole.vectors.tree)
    assert again.recipe == whole.recipe


@pytest.mark.parametrize("scheme", ["full", "lla"])
@pytest.mark.parametrize("traceable", [True, False], ids=["device", "host"])
def test_resumed_spectra_are_the_same_to_the_bit(traceable, scheme, tmp_path):
    H = plain(matrix(COPIES), traceable)

    def call(**more):
        return lla.spectrum(H, KEY, **{"steps": 20, "probes": 2, "scheme": scheme, **more})

    whole = call()
    for at in (9, 22, 40):
        part = interrupted(call, at)
        lla.save(part, tmp_path / "part")
        again = call(resume=lla.load(tmp_path / "part.npz"))
        assert np.array_equal(again.nodes, whole.nodes)
        assert np.array_equal(again.weights, whole.weights)
        assert again.recipe == whole.recipe
    assert call(resume=whole) is whole
    with pytest.raises(ValueError, match=r"the partial run of spectrum differs in steps \("):
        call(resume=part, steps=21)


@pytest.mark.parametrize("what", ["eigenpairs", "spectrum"])
def test_saved_on_the_way_and_continued_after_a_kill(what, tmp_path):
    H, product = counted(matrix(COPIES))
    arguments = {"k": 3} if what == "eigenpairs" else {"steps": 12, "probes": 2}
    call = partial(getattr(lla, what), H, KEY, **arguments)
    whole, parts = call(), []
    product.count = 0
    again = call(on_partial=parts.append, save_every=1e-9)  # after every product
    assert len(parts) >= 15
    assert {part.recipe["stopped"] for part in parts} == {"running"}
    assert again.recipe["stopped"] is None
    lla.save(parts[7], tmp_path / "part")  # what a killed process leaves
    product.count = 0
    continued = call(resume=lla.load(tmp_path / "part.npz", like=jnp.zeros(N)))
    assert product.count <= again.recipe["products"] - 8
    assert continued.recipe["products"] == whole.recipe["products"]
    for name in ("values", "residuals") if what == "eigenpairs" else ("nodes", "weights"):
        assert np.array_equal(getattr(continued, name), getattr(whole, name))
        assert np.array_equal(getattr(again, name), getattr(whole, name))
    parts.clear()
    call(on_partial=parts.append, save_every=1000.0)
    assert not parts
    with pytest.raises(ValueError, match="save_every: 0 given; the rule is seconds above 0"):
        call(on_partial=parts.append, save_every=0)
    with pytest.raises(ValueError, match=r"save_every: 5\.0 given without on_partial"):
        call(save_every=5.0)


def test_an_interrupt_during_a_restart_loses_nothing(monkeypatch):
    H, parts = plain(matrix(COPIES)), []
    mix_rows = krylov._mix_rows

    def interrupting(*args, **options):
        found = jax.block_until_ready(mix_rows(*args, **options))  # the old basis is gone
        signal.raise_signal(signal.SIGINT)
        return found

    call = partial(lla.eigenpairs, H, KEY, 5, tol=1e-3, max_vectors=12)
    whole = call()
    monkeypatch.setattr(krylov, "_mix_rows", interrupting)
    with pytest.raises(KeyboardInterrupt):
        call(on_partial=parts.append)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.undo()
    assert parts[0].state is not None
    again = call(resume=parts[0])
    assert np.array_equal(again.vectors.tree, whole.vectors.tree)
    assert again.recipe == whole.recipe


@pytest.mark.parametrize("traceable", [True, False], ids=["device", "host"])
def test_a_single_interrupt_at_any_moment_ends_the_search_and_keeps_its_pairs(traceable):
    H, moments = plain(matrix(np.linspace(0, 1, N)), traceable), np.random.default_rng(0)
    call = partial(lla.eigenpairs, H, KEY, 5, tol=1e-4, max_vectors=30, max_products=300)
    whole, in_time = call(), 0

    def search_and_wait(sender, at, parts):
        begin = lambda done, total: sender.start() if done >= at and sender.ident is None else None  # noqa: E731
        call(on_partial=parts.append, progress=begin)
        parts.append(None)  # the signal comes too late on a busy machine
        time.sleep(20)

    for at in moments.integers(5, 100, 8):
        parts = []
        sender = threading.Timer(moments.uniform(0, 3e-3), os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            search_and_wait(sender, at, parts)
        sender.join()
        (part,) = parts
        if part is not None:
            again, in_time = call(resume=part), in_time + 1
            assert np.array_equal(again.vectors.tree, whole.vectors.tree)
            assert again.recipe == whole.recipe
    assert in_time >= 4


def test_the_command_line_saves_on_the_way(tmp_path, monkeypatch):
    a, seen = matrix(COPIES), []

    def product(v):
        seen.append((tmp_path / "eigenpairs.partial.npz").exists())
        return jnp.asarray(a @ np.asarray(v))

    H = operators.given(product, jnp.zeros(N, a.dtype), traceable=False)
    monkeypatch.setattr("lla_jax.output.kept.SAVE_EVERY_S", 1e-9)
    options = HessianOptions(problem="", out=tmp_path, top=2, which="largest", tol=1e-3)
    found = verb.eigenpairs(H, jnp.zeros(N, a.dtype), options)
    assert all(seen[4:-1])
    assert not any(seen[:3])
    assert np.allclose(found.values, 10, rtol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["eigenpairs.npz"]


def test_an_error_in_the_product_leaves_what_there_was():
    H, product = counted(matrix(COPIES))

    class Fails(Counted):
        def __call__(self, v):
            if self.count == 12:
                raise RuntimeError("lost connection")
            return super().__call__(v)

    failing = dataclasses.replace(H, call=Fails(product.a))
    parts = []
    with pytest.raises(RuntimeError, match="lost connection"):
        lla.eigenpairs(failing, KEY, 3, on_partial=parts.append)
    again = lla.eigenpairs(H, KEY, 3, resume=parts[0])
    whole = lla.eigenpairs(H, KEY, 3)
    assert np.array_equal(again.values, whole.values)
    assert again.products == whole.products
    parts.clear()
    failing = dataclasses.replace(H, call=Fails(product.a))
    failing.call.count = 10
    with pytest.raises(RuntimeError, match="lost connection"):
        lla.eigenpairs(failing, KEY, 3, on_partial=parts.append)
    assert not parts  # nothing was known yet


# --- density


def made(nodes, weights):
    return lla.Spectrum(np.atleast_2d(np.asarray(nodes, float)), np.atleast_2d(np.asarray(weights, float)), {})


@pytest.mark.parametrize("scale", ["linear", "symlog"])
def test_density_has_mass_one_and_keeps_the_tails(scale):
    spec = made([[-3.0, 0.0, 5.0], [-1.0, 0.01, 90.0]], [[0.2, 0.7, 0.1], [0.3, 0.69, 0.01]])
    for points, width in ((2000, 1e-3), (60, 1e-5)):  # the second: Gaussians far narrower than a cell
        found = lla.density(spec, points=points, width=width, scale=scale)
        cell = found.t[1] - found.t[0]
        assert np.isclose(found.density.sum() * cell, 1, atol=1e-12)
        assert np.isclose(found.density[found.x > 50].sum() * cell, 0.005, atol=1e-6)
        assert np.isclose(found.density[found.x < -2].sum() * cell, 0.1, atol=1e-6)
        assert (np.diff(found.x) > 0).all()
        ends = np.array([-3.0, 90.0])
        ends = ends if scale == "linear" else np.sign(ends) * np.log10(1 + np.abs(ends) / found.threshold)
        assert found.t[0] - cell / 2 < ends[0] < ends[1] < found.t[-1] + cell / 2
        assert (found.density >= 0).all()
    one = lla.density(made([0.0, 1.0], [0.5, 0.5]), points=4001, width=0.02)
    gaussians = 0.5 * (np.exp(-(one.t**2) / 8e-4) + np.exp(-((one.t - 1) ** 2) / 8e-4)) / np.sqrt(2 * np.pi * 4e-4)
    assert np.allclose(one.density, gaussians, atol=1e-3)
    assert np.isnan(one.sem).all()
    half = lla.density(made([[0.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [0.6, 0.4]]), points=500)
    assert np.allclose(half.sem, np.where(half.x < 0.5, 0.25, 1) * half.density)  # 1 and 0.6, 0 and 0.4


def test_density_on_a_symlog_axis_is_a_change_of_coordinates():
    spec = made([-10.0, 0.0, 10.0], [0.25, 0.5, 0.25])
    found = lla.density(spec, scale="symlog", threshold=0.1, width=0.05)
    assert found.threshold == 0.1
    assert np.allclose(found.x, np.sign(found.t) * 0.1 * (10 ** np.abs(found.t) - 1))
    peak = found.t[np.argmax(np.where(found.t > 1, found.density, 0))]
    assert np.isclose(peak, np.log10(101), atol=0.01)
    assert np.allclose(found.density, found.density[::-1], atol=1e-9)
    assert lla.density(spec, scale="symlog").threshold == pytest.approx(1e-3)


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
@pytest.mark.parametrize("scale", ["linear", "symlog"])
def test_density_of_a_single_value(value, scale):
    found = lla.density(made([value] * 3, [1, 0, 0]), scale=scale)
    assert np.isclose(found.density.sum() * (found.t[1] - found.t[0]), 1)
    assert abs(found.x[found.density.argmax()] - value) <= 0.02 * max(1, abs(value))
    assert np.isfinite(found.density).all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"points": 1}, "points: 1 given"),
        ({"width": 0}, "width: 0 given"),
        ({"scale": "log"}, "scale: 'log' given"),
        ({"threshold": 1.0}, 'threshold: 1.0 given with scale="linear"'),
        ({"threshold": -1.0, "scale": "symlog"}, "threshold: -1.0 given"),
        ({"spec": made(np.zeros((0, 3)), np.zeros((0, 3)))}, "spec: Spectrum"),
    ],
)
def test_density_refuses(change, match):
    with pytest.raises(ValueError, match=match):
        lla.density(**{"spec": made([0.0, 1.0], [0.5, 0.5]), **change})


# --- extremes


def test_extremes_are_inside_and_within_their_residual():
    for traceable in (True, False):
        found = spectral.extremes(plain(matrix(COPIES), traceable), KEY, 40)
        assert -4 - 1e-5 <= found.smallest <= -4 + found.residual
        assert 10 - found.residual <= found.largest <= 10 + 1e-5
        assert found.residual <= 1e-2
        assert found.products < 40
    zero = spectral.extremes(plain(np.zeros((N, N), np.float32)), KEY, 40)
    assert zero == (0, 0, 0, 1)
    mask = np.arange(N) < 4
    block = matrix(COPIES)[:4, :4]
    found = spectral.extremes(operators.masked(plain(matrix(COPIES)), mask), KEY, 40)
    assert np.allclose([found.smallest, found.largest], np.linalg.eigvalsh(block)[[0, -1]], atol=1e-5)
    assert found.products == 4
