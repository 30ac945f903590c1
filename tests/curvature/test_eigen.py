"""Eigenpairs and extremes against matrices of known spectrum and dense Hessians."""

import logging
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import lla_jax as lla
from lla_jax.cli import curvature as verb
from lla_jax.cli.options import HessianOptions
from lla_jax.curvature import eigen, operators
from tests.curvature.cases import COPIES, PROBE, check_pairs, counted, dense_hessian, network
from tests.helpers import (
    ONE,
    OPERATORS,
    compilations,
    cross_entropy,
    flat,
    symmetric_matrix,
    vector_operator,
)

KEY = jax.random.key(1)
N = len(COPIES)


def test_either_end_is_found_as_easily():
    a = symmetric_matrix(COPIES)
    for traceable in (True, False):
        low = lla.eigenpairs(vector_operator(a, traceable), KEY, 2, which="smallest", tol=1e-3)
        high = lla.eigenpairs(vector_operator(-a, traceable), KEY, 2, which="largest", tol=1e-3)
        assert low.products == high.products
        assert np.array_equal(low.values, -high.values)
        assert np.array_equal(low.vectors.tree, high.vectors.tree)
        assert np.isclose(low.values[0], -4, atol=1e-5)
    top = lla.eigenpairs(vector_operator(a), KEY, 4, which="largest")
    check_pairs(top, a, [10, 10, 10, 7.03], 1e-3)
    both = lla.eigenpairs(
        vector_operator(symmetric_matrix(np.concatenate([[-10.0, -9.0, 8.0], np.zeros(N - 3)]))), KEY, 3
    )
    assert np.allclose(both.values, [-10, -9, 8], atol=1e-4)


def test_products_are_counted_as_they_are_made():
    H, product = counted(symmetric_matrix(COPIES))
    seen = []
    for k, which in ((1, "magnitude"), (3, "largest")):
        product.count = 0
        seen.clear()
        pairs = lla.eigenpairs(H, KEY, k, which=which, progress=lambda done, total: seen.append((done, total)))
        assert product.count - PROBE == pairs.products == pairs.recipe["products"]
        assert seen[-1] == (pairs.products, None)
        assert [done for done, _ in seen] == list(range(3, pairs.products + 1))
    product.count = 0
    spec = lla.spectrum(H, KEY, steps=7, probes=2, progress=lambda done, total: seen.append((done, total)))
    assert product.count - PROBE == spec.recipe["products"] == 2 + 14
    assert seen[-1] == (16, 16)
    product.count = 0
    found = eigen.extremes(H, KEY, 25)
    assert product.count == found.products < 25


def test_host_and_device_agree_to_rounding():
    with jax.enable_x64(True):
        a = symmetric_matrix(COPIES, "float64")
        device, host = (lla.eigenpairs(vector_operator(a, t), KEY, 5, tol=1e-7) for t in (True, False))
        assert np.allclose(device.values, host.values, atol=1e-11)
        one, two = (lla.spectrum(vector_operator(a, way), KEY, steps=12, probes=2) for way in (True, False))
        assert np.allclose(one.nodes, two.nodes, atol=1e-9)
        assert np.allclose(one.weights, two.weights, atol=1e-9)


def test_masked_operators_have_the_pairs_of_the_block():
    a = symmetric_matrix(COPIES)
    mask = np.arange(N) % 2 == 0
    pairs = lla.eigenpairs(operators.masked(vector_operator(a), mask), KEY, 2)
    block = a[np.ix_(mask, mask)].astype(np.float64)
    values = np.linalg.eigvalsh(block)
    assert np.abs(np.asarray(pairs.vectors.tree)[:, ~mask]).max() == 0
    assert np.allclose(pairs.values, values[np.argsort(-np.abs(values))][:2], atol=1e-3)
    assert pairs.recipe["n"] == mask.sum()


def test_small_and_degenerate_operators():
    for traceable in (True, False):
        zero = lla.eigenpairs(vector_operator(np.zeros((20, 20), np.float32), traceable), KEY, 3)
        assert np.array_equal(zero.values, [0, 0, 0])
        assert np.array_equal(zero.residuals, [0, 0, 0])
        assert zero.recipe["converged"]
        vectors = flat(zero.vectors.tree, 1)
        assert np.abs(vectors @ vectors.T - np.eye(3)).max() < 1e-5
        one = lla.eigenpairs(vector_operator(3 * np.eye(20, dtype=np.float32), traceable), KEY, 4)
        assert np.allclose(one.values, 3, atol=1e-5)
        whole = lla.eigenpairs(
            vector_operator(symmetric_matrix(np.arange(-3.0, 17)), traceable), KEY, 20, max_products=100
        )
        assert np.allclose(
            whole.values, [*range(16, 3, -1), 3, -3, 2, -2, 1, -1, 0][:13] + list(whole.values[13:]), atol=1e-4
        )
        assert np.allclose(np.sort(whole.values), np.arange(-3, 17), atol=1e-4)
    spec = lla.spectrum(vector_operator(np.zeros((20, 20), np.float32)), KEY, steps=10, probes=3)
    assert np.array_equal(spec.nodes, np.zeros((3, 10)))
    assert np.array_equal(spec.weights[:, 0], np.ones(3))
    assert spec.recipe["steps_done"] == [1, 1, 1]


def test_more_than_there_are_is_clamped_with_a_word():
    H = vector_operator(symmetric_matrix(np.arange(-3.0, 17)))
    with pytest.warns(UserWarning, match="k: 25 asked for, but there are only 20 parameters; 20 are done"):
        pairs = lla.eigenpairs(H, KEY, 25, max_products=100)
    assert pairs.num == 20
    with pytest.warns(UserWarning, match="steps: 100 asked for, but there are only 20"):
        spec = lla.spectrum(H, KEY, steps=100, probes=1)
    assert np.allclose(spec.nodes[0], np.arange(-3, 17), atol=1e-4)


def test_too_few_products_give_all_pairs_and_a_warning():
    a = symmetric_matrix(COPIES)
    for traceable in (True, False):
        with pytest.warns(UserWarning, match="after 20 products, and tol=1e-06 asks for 1e-05; raise max_products"):
            pairs = lla.eigenpairs(vector_operator(a, traceable), KEY, 5, tol=1e-6, max_products=20)
        assert pairs.num == 5
        assert pairs.products == 20
        assert pairs.recipe["converged"] is False
        assert pairs.recipe["stopped"] == "max_products"
        exact = np.linalg.eigvalsh(a.astype(np.float64))
        assert (np.abs(exact[:, None] - pairs.values).min(0) <= pairs.residuals).all()


def test_a_tolerance_below_rounding_is_said_to_be():
    with pytest.warns(UserWarning, match="below the rounding of the products in float32; raise tol"):
        pairs = lla.eigenpairs(vector_operator(symmetric_matrix(COPIES)), KEY, 2, tol=1e-8)
    assert not pairs.recipe["converged"]
    assert pairs.recipe["stopped"] is None


def test_a_quadratic_is_exact_with_all_steps():
    with jax.enable_x64(True):
        a = symmetric_matrix(np.linspace(-2, 5, 40), "float64")

        def loss(p, batch):
            v = jnp.concatenate([p["head"], p["tail"].reshape(-1)])
            return 0.5 * batch[0].mean() * (v @ a @ v)

        center = {"head": jnp.ones(30), "tail": jnp.ones((5, 2))}
        H = lla.hessian(loss, center, (np.ones((1, 1)),), execution=ONE)
        spec = lla.spectrum(H, KEY, steps=40, probes=1)
        pairs = lla.eigenpairs(H, KEY, 2, which="smallest", tol=1e-9)
    assert np.allclose(spec.nodes[0], np.linspace(-2, 5, 40), atol=1e-12)
    assert np.allclose(pairs.values, np.linspace(-2, 5, 40)[:2], atol=1e-12)


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
            eigen.extremes(masked, key, 10)

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
        "H": vector_operator(symmetric_matrix(np.arange(20.0))),
        "key": KEY,
        **({"steps": 5} if call == "spectrum" else {}),
    } | change
    with pytest.raises(ValueError, match=match):
        getattr(lla, call)(**arguments)


def test_memory_is_said_before(caplog):
    H = vector_operator(symmetric_matrix(COPIES))
    with caplog.at_level(logging.INFO, logger="lla_jax"):
        pairs = lla.eigenpairs(H, KEY, 1)
        spec = lla.spectrum(H, KEY, steps=10, probes=2)
    rows, vector = pairs.recipe["memory"]["vectors"], 4 * H.shape[0]
    assert f"eigenpairs: {rows} vectors of" in caplog.text
    assert 0 < pairs.recipe["memory"]["bytes"] - rows * vector < 2**28
    assert "spectrum: 2 of 2 probes at a time: 20 vectors" in caplog.text
    assert spec.recipe["memory"]["vectors"] == 20


@pytest.mark.parametrize("what", ["eigenpairs", "spectrum"])
def test_saved_on_the_way_and_continued_after_a_kill(what, tmp_path):
    H, product = counted(symmetric_matrix(COPIES))
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
    with pytest.raises(ValueError, match="save_every: 0 given; it must be a finite number above 0"):
        call(on_partial=parts.append, save_every=0)
    with pytest.raises(ValueError, match=r"save_every: 5\.0 given without on_partial"):
        call(save_every=5.0)


def test_the_command_line_saves_on_the_way(tmp_path, monkeypatch):
    a, seen = symmetric_matrix(COPIES), []

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


def test_extremes_are_inside_and_within_their_residual():
    for traceable in (True, False):
        found = eigen.extremes(vector_operator(symmetric_matrix(COPIES), traceable), KEY, 40)
        assert -4 - 1e-5 <= found.smallest <= -4 + found.residual
        assert 10 - found.residual <= found.largest <= 10 + 1e-5
        assert found.residual <= 1e-2
        assert found.products < 40
    with pytest.raises(ValueError, match="steps: 0 given; it must be an integer of at least 1"):
        eigen.extremes(vector_operator(symmetric_matrix(COPIES)), KEY, 0)
    zero = eigen.extremes(vector_operator(np.zeros((N, N), np.float32)), KEY, 40)
    assert zero == (0, 0, 0, 1)
    mask = np.arange(N) < 4
    block = symmetric_matrix(COPIES)[:4, :4]
    found = eigen.extremes(operators.masked(vector_operator(symmetric_matrix(COPIES)), mask), KEY, 40)
    assert np.allclose([found.smallest, found.largest], np.linalg.eigvalsh(block)[[0, -1]], atol=1e-5)
    assert found.products == 4


@pytest.mark.parametrize("name", OPERATORS)
def test_pairs_and_extremes_of_every_operator_are_within_their_residuals(name):
    H, a = OPERATORS[name]()
    exact = np.linalg.eigvalsh(a)
    scale = np.abs(exact).max()
    for which, wanted in (("magnitude", exact[np.argsort(-np.abs(exact))]), ("smallest", exact)):
        pairs = lla.eigenpairs(H, KEY, 2, which=which)
        assert (np.abs(exact[:, None] - pairs.values).min(0) <= pairs.residuals + 1e-6 * scale).all()
        assert np.abs(pairs.values - wanted[:2]).max() <= 1e-3 * scale
    ends = eigen.extremes(H, KEY, 40)
    assert abs(ends.largest - exact[-1]) <= max(2e-3 * scale, ends.residual)
    assert abs(ends.smallest - exact[0]) <= max(2e-3 * scale, ends.residual)
