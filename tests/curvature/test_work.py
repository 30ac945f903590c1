"""Memory as it is said: what is compiled to know it, large vectors step by step, and what does not fit is not begun."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.curvature import lanczos, work
from lla_jax.execution import devices
from tests.helpers import compilations, symmetric_matrix, vector_operator

KEY, N = jax.random.key(0), 24
EIGENVALUES = np.linspace(1.0, 3.0, N)


def test_what_is_compiled_to_know_its_memory_is_not_compiled_again():
    H = vector_operator(symmetric_matrix(EIGENVALUES))
    v = H.random(KEY)
    assert work.product_bytes(H, v) >= 4 * N
    with compilations() as seen:
        H.product(v)
    assert seen.count == 0


def test_bytes_are_those_of_bases_and_the_largest_work():
    H, vector = vector_operator(symmetric_matrix(EIGENVALUES)), 4 * N
    fixed = work.bytes_needed(H, 0, 0)
    assert work.bytes_needed(H, 5, 3 * vector, group=2) == 13 * vector + fixed
    assert work.bytes_needed(H, 5, 3 * vector, grown_from=4) == 9 * vector + fixed
    assert work.bytes_needed(H, 5, 3 * vector, kept=7) == 13 * vector + fixed


@pytest.mark.parametrize("scheme", ["full", "lla"])
def test_large_vectors_go_step_by_step_and_give_the_same(scheme, monkeypatch):
    H = vector_operator(symmetric_matrix(EIGENVALUES))
    small = lla.spectrum(H, KEY, steps=14, probes=2, scheme=scheme)
    assert work.takes_several_steps(H)
    monkeypatch.setattr(work, "LARGE", 4 * N)
    assert not work.takes_several_steps(H)
    large = lla.spectrum(H, KEY, steps=14, probes=2, scheme=scheme)
    np.testing.assert_allclose(large.nodes.mean(1), small.nodes.mean(1), rtol=0.02)
    np.testing.assert_allclose((large.nodes * large.weights).sum(1), (small.nodes * small.weights).sum(1), rtol=1e-4)
    assert large.recipe["memory"]["vectors"] * 2 == small.recipe["memory"]["vectors"]


def test_long_leaves_are_added_up_by_rows(monkeypatch):
    q, w = jax.random.normal(KEY, (11, 6, 64)), jax.random.normal(jax.random.key(1), (6, 64))
    basis, vector = {"a": q, "b": q.reshape(11, -1)}, {"a": w, "b": w.ravel()}
    short = lanczos.inner(basis, vector), lanczos.combine(jnp.arange(11.0), basis)
    monkeypatch.setattr(lanczos, "LONG", 64)
    long = lanczos.inner(basis, vector), lanczos.combine(jnp.arange(11.0), basis)
    for one, two in zip(jax.tree.leaves(short), jax.tree.leaves(long), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


def test_a_search_begins_with_the_rows_that_fit_and_restarts_where_no_more_do(monkeypatch):
    H = vector_operator(symmetric_matrix(EIGENVALUES), traceable=False)
    monkeypatch.setattr(devices, "free_bytes", lambda device: 4 * N * 13)
    pairs = lla.eigenpairs(H, KEY, 2, tol=1e-3, max_vectors=20)
    assert pairs.recipe["converged"]
    assert pairs.recipe["memory"]["vectors"] == 10
    assert pairs.recipe["restarts"] > 0
    np.testing.assert_allclose(pairs.values, [3.0, EIGENVALUES[-2]], rtol=1e-4)
    with pytest.raises(ValueError, match=r"k: 7 given, .* GiB of memory, .* it must be at most 6: take fewer"):
        lla.eigenpairs(H, KEY, 7)
