"""Lanczos: the relation it is defined by, orthonormality, breakdown, LLA's window, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.curvature import lanczos as core
from lla_jax.curvature import operators
from tests.helpers import (
    OPERATORS,
    VALUES,
    as_tree,
    breaking_operator,
    compilations,
    flat,
    symmetric_matrix,
    times,
    tree_operator,
)

N = 40
KEY = jax.random.key(3)
EPS = {"float32": 1.2e-7, "float64": 2.3e-16}


def tridiagonal(found):
    return np.diag(found.alphas) + np.diag(found.betas[:-1], 1) + np.diag(found.betas[:-1], -1)


@pytest.mark.parametrize("traceable", [True, False], ids=["device", "host"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_relation_and_orthonormality(dtype, traceable):
    with jax.enable_x64(dtype == "float64"):
        a = symmetric_matrix(VALUES, dtype)
        found = core.lanczos(tree_operator(a, traceable), KEY, 19)
        q, r = flat(found.basis, 1), flat(found.remainder)
    assert q.shape == (19, N)
    assert found.alphas.dtype == found.betas.dtype == np.float64
    a, eps = a.astype(np.float64), EPS[dtype]
    rest = a @ q.T - q.T @ tridiagonal(found) - np.outer(r, np.eye(19)[-1])
    assert np.abs(rest).max() < 30 * eps * 9
    assert np.abs(q @ q.T - np.eye(19)).max() < 30 * eps
    assert np.abs(q @ r).max() < 30 * eps * found.betas[-1]
    assert np.isclose(np.linalg.norm(r), found.betas[-1], rtol=1e-5)
    assert found.betas[-1] > 0.1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_steps_give_the_whole_spectrum(dtype):
    with jax.enable_x64(dtype == "float64"):
        a = symmetric_matrix(VALUES, dtype)
        found = core.lanczos(tree_operator(a), KEY, N, start="normal")
    exact = np.linalg.eigvalsh(a.astype(np.float64))
    assert len(found.alphas) == N
    assert np.abs(np.linalg.eigvalsh(tridiagonal(found)) - exact).max() < 100 * EPS[dtype] * 9
    assert found.betas[-1] < 100 * EPS[dtype] * 9  # nothing is left


def test_inner_products_keep_their_digits_over_a_million_entries():
    q = np.random.default_rng(0).standard_normal((2, 2**20)).astype(np.float32)
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    found = np.asarray(jax.jit(core.inner)({"a": q}, {"a": q[1]}), np.float64)
    assert np.abs(found - q.astype(np.float64) @ q[1].astype(np.float64)).max() < 1e-6


def test_a_product_of_another_shape_than_the_rows_is_refused_while_tracing():
    basis = as_tree(jnp.zeros(40))
    rows = jax.tree.map(lambda x: jnp.zeros((4, *x.shape)), basis)
    core.lanczos_step(rows, basis, 1)
    with pytest.raises(AssertionError, match="shape"):
        jax.eval_shape(core.lanczos_step, rows, basis | {"tail": jnp.zeros((5, 3))}, 1)


def test_step_is_pure_and_counts_rounding_as_zero():
    a = symmetric_matrix(VALUES)
    basis = {"head": jnp.zeros((4, N - 10)).at[0, 0].set(1.0), "tail": jnp.zeros((4, 5, 2))}
    first = {"head": basis["head"][0], "tail": basis["tail"][0]}
    step = jax.jit(core.lanczos_step)(basis, times(first, a), 1)
    q = flat(step.basis, 1)
    assert np.isclose(step.size, np.linalg.norm(a[0]), rtol=1e-5)
    assert np.isclose(step.coefficients[0], a[0, 0], atol=1e-6)
    assert np.allclose(step.norm * q[1] + step.coefficients[0] * q[0], a[0], atol=1e-5)
    assert np.abs(q[:2] @ q[:2].T - np.eye(2)).max() < 1e-6
    assert flat(basis, 1)[1].max() == 0  # the argument is as it was
    inside = jax.jit(core.lanczos_step)(step.basis, first, 2)
    assert float(inside.norm) == 0
    assert np.abs(flat(inside.basis, 1)[2]).max() == 0
    assert np.isclose(inside.coefficients[0], 1, atol=1e-6)
    for bad in (np.nan, np.inf):
        broken = jax.jit(core.lanczos_step)(step.basis, {"head": first["head"] * bad, "tail": first["tail"]}, 2)
        assert not np.isfinite(broken.size)
        assert np.abs(flat(broken.basis, 1)[2]).max() == 0


@pytest.mark.parametrize("traceable", [True, False], ids=["device", "host"])
def test_breakdown_ends_it(traceable):
    values = np.concatenate([[3.0, 3.0, -2.0], np.zeros(N - 3)])  # three distinct values
    found = core.lanczos(tree_operator(symmetric_matrix(values), traceable), KEY, 12)
    assert len(found.alphas) == 3
    assert found.betas[-1] == 0
    assert np.abs(flat(found.remainder)).max() == 0
    assert np.allclose(np.linalg.eigvalsh(tridiagonal(found)), [-2, 0, 3], atol=1e-5)
    zero = core.lanczos(tree_operator(np.zeros((N, N), np.float32), traceable), KEY, 12)
    assert (zero.alphas, zero.betas) == (0, 0)


def test_masked_operator_stays_inside_its_mask():
    a = symmetric_matrix(VALUES)
    mask = {"head": np.arange(N - 10) % 3 > 0, "tail": np.zeros((5, 2), bool)}
    found = core.lanczos(operators.masked(tree_operator(a), mask), KEY, 8)
    q, inside = flat(found.basis, 1), flat(mask) > 0
    assert np.abs(q[:, ~inside]).max() == 0
    assert np.abs(q @ q.T - np.eye(8)).max() < 1e-5
    block = a[np.ix_(inside, inside)].astype(np.float64)
    rest = block @ q[:, inside].T - q[:, inside].T @ tridiagonal(found)
    assert np.abs(rest[:, :-1]).max() < 1e-5


def lla_reference(a, v, steps):
    """LLA's recurrence: norm before re-orthogonalisation, one pass against the last 11 vectors."""
    vectors, alphas, betas = [v / np.linalg.norm(v)], [], []
    w = None
    for j in range(steps):
        if j:
            betas.append(np.linalg.norm(w))
            for q in vectors[-11:]:
                w = w - (q @ w) * q
            vectors.append(w / np.linalg.norm(w))
        product = a @ vectors[-1]
        alphas.append(product @ vectors[-1])
        w = product - alphas[-1] * vectors[-1] - (betas[-1] * vectors[-2] if j else 0)
    return np.array(alphas), np.array(betas)


@pytest.mark.parametrize("traceable", [True, False], ids=["device", "host"])
def test_window_is_that_of_lla(traceable):
    with jax.enable_x64(True):
        a = symmetric_matrix(np.linspace(-1, 1, N), "float64")  # nothing converges: lost orthogonality is chaotic
        H = tree_operator(a, traceable)
        spec = lla.spectrum(H, KEY, steps=24, probes=1, scheme="lla")
        start = flat(core.random(H, KEY, 0, "rademacher"))
    alphas, betas = lla_reference(a, start, 24)
    nodes, vectors = np.linalg.eigh(np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1))
    assert np.allclose(spec.nodes[0], nodes, atol=1e-9)
    assert np.allclose(spec.weights[0], vectors[0] ** 2, atol=1e-9)


def test_window_splits_an_eigenvalue_where_full_orthogonality_does_not():
    a = symmetric_matrix(np.concatenate([[30.0], np.linspace(-1, 1, N - 1)]))
    counts = {}
    for scheme in ("lla", "full"):
        spec = lla.spectrum(tree_operator(a), KEY, steps=36, probes=1, scheme=scheme)
        counts[scheme] = int(((np.abs(spec.nodes[0] - 30) < 0.01) & (spec.weights[0] > 0)).sum())
    assert counts["full"] == 1
    assert counts["lla"] > 1


def test_new_matrices_keys_and_numbers_of_steps_compile_nothing():
    a = symmetric_matrix(VALUES)
    core.sequence(tree_operator(a), core.begin(core.random(tree_operator(a), KEY, 0, "normal"), rows=20), 20)
    with compilations() as seen:
        H = tree_operator(2 * a)
        core.sequence(H, core.begin(core.random(H, jax.random.key(9), 5, "normal"), rows=20), 13)
    assert seen.count == 0


def test_more_steps_than_parameters_are_clamped_with_a_word():
    with pytest.warns(UserWarning, match="steps: 50 asked for, but there are only 40 parameters"):
        found = core.lanczos(tree_operator(symmetric_matrix(VALUES)), KEY, 50)
    assert len(found.alphas) == N


def test_products_that_are_not_finite():
    H, _ = breaking_operator(3 + 6)  # after the two of the symmetry check
    with pytest.warns(UserWarning, match="product 7 is not finite; the 6 steps before it are kept"):
        found = core.lanczos(H, KEY, 12)
    whole = core.lanczos(tree_operator(symmetric_matrix(VALUES), False), KEY, 6)
    assert np.array_equal(found.alphas, whole.alphas)
    H, _ = breaking_operator(3)
    with pytest.raises(ValueError, match="product 1 is not finite, and there is nothing to keep"):
        core.lanczos(H, KEY, 12)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"steps": 0}, "steps: 0 given"),
        ({"steps": 2.5}, "steps: 2.5 given"),
        ({"start": "uniform"}, "start: 'uniform' given"),
        ({"H": np.eye(3)}, "H: ndarray of shape"),
    ],
)
def test_bad_arguments(change, match):
    arguments = {"H": tree_operator(symmetric_matrix(VALUES)), "key": KEY, "steps": 5} | change
    with pytest.raises(ValueError, match=match):
        core.lanczos(**arguments)


def test_an_operator_that_is_not_symmetric_is_refused():
    a = np.triu(symmetric_matrix(VALUES))
    for call in (core.lanczos, lla.eigenpairs, lla.spectrum):
        with pytest.raises(ValueError, match="not symmetric"):
            call(tree_operator(a), KEY, **({} if call is lla.eigenpairs else {"steps": 5}))


@pytest.mark.parametrize("name", OPERATORS)
def test_the_relation_holds_for_every_operator(name):
    H, a = OPERATORS[name]()
    found = core.lanczos(H, KEY, 7)
    q, scale = flat(found.basis, 1), np.linalg.norm(a, 2)
    rest = a @ q.T - q.T @ tridiagonal(found) - np.outer(flat(found.remainder), np.eye(7)[-1])
    assert np.abs(rest).max() < 1e-5 * scale
    assert np.abs(q @ q.T - np.eye(7)).max() < 1e-5
