"""Sketches: their algebra is the definition, their bases are orthonormal and stay within a mask."""

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core.standard_errors import standard_error
from lla_jax.curvature import sketches
from lla_jax.curvature.operators import masked
from tests.curvature.cases import quiet, symmetric
from tests.helpers import symmetric_matrix, vector_operator

KEY = jax.random.key(0)
N = 30


class TestDefinitions:
    @pytest.mark.parametrize("mask", [False, True])
    def test_xtrace_is_the_mean_over_what_is_left_out(self, mask):
        A = symmetric(dtype=np.float64)
        with jax.enable_x64(True), quiet():
            H = vector_operator(A)
            if mask:
                keep = np.arange(N) % 3 > 0
                H, A = masked(H, keep), A * np.outer(keep, keep)
            found = lla.trace(H, KEY, method="xtrace", rtol=0, max_products=32)
            omega = np.asarray(
                sketches.draw_rows(H, jax.random.split(KEY, 3)[0], np.arange(16, dtype=np.uint32), "normal")
            )
        each = []
        for i in range(16):
            others = np.delete(omega, i, 0)
            q = np.linalg.qr(A @ others.T)[0]
            rest = omega[i] - q @ (q.T @ omega[i])
            each.append(np.trace(q.T @ A @ q) + (H.shape[0] - 15) * (rest @ A @ rest) / (rest @ rest))
        assert found.mean == pytest.approx(np.mean(each), rel=1e-9)
        assert found.sem > np.std(each, ddof=1) / np.sqrt(16)  # they share all vectors but one
        assert found.num == 16

    def test_hutch_is_the_remainder_outside_of_a_basis(self):
        A = symmetric(dtype=np.float64)
        with jax.enable_x64(True), quiet():
            found = lla.trace(vector_operator(A), KEY, method="hutch++", rtol=0, max_products=48)
            keys = jax.random.split(KEY, 3)
            numbers = np.arange(16, dtype=np.uint32)
            S, G = (np.asarray(sketches.draw_rows(vector_operator(A), k, numbers, "rademacher")) for k in keys[:2])
        q = np.linalg.qr(A @ S.T)[0]
        rest = G.T - q @ (q.T @ G.T)
        each = np.trace(q.T @ A @ q) + np.einsum("ij,ij->j", rest, A @ rest)
        assert found.mean == pytest.approx(each.mean(), rel=1e-9)
        assert found.sem == pytest.approx(standard_error(each), rel=1e-9)

    def test_the_basis_is_orthonormal_however_parallel_the_products_are(self):
        values = 10.0 ** -np.arange(N)  # in float32 most products are one and the same direction
        H = vector_operator(symmetric_matrix(values, dtype=np.float32))
        counted, sketch = sketches.ProductCounter(H), sketches.empty()
        for _ in range(3):
            sketch = sketches.grow_for_xtrace(sketch, counted, jax.random.split(KEY, 3), 8)
        q = np.concatenate([np.asarray(block) for block in sketch.basis])
        np.testing.assert_allclose(q @ q.T, np.eye(24), atol=3e-6)
        assert counted.used == 48
        assert sketches.xtrace(sketch, N)[0] == pytest.approx(values.sum(), rel=1e-5)

    def test_the_basis_stays_within_a_mask(self):
        keep = np.arange(N) >= 10
        H = masked(vector_operator(symmetric_matrix(10.0 ** -np.arange(N), dtype=np.float32)), keep)
        sketch = sketches.grow_for_xtrace(sketches.empty(), sketches.ProductCounter(H), jax.random.split(KEY, 3), 8)
        basis = np.asarray(sketch.basis[0])
        assert not basis[:, ~keep].any()
        np.testing.assert_allclose(basis @ basis.T, np.eye(8), atol=3e-6)
