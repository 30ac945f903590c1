"""Sketches: their algebra is the definition, their bases are orthonormal and stay within a mask."""

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core.standard_errors import standard_error
from lla_jax.curvature import flat_rows, sketches
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
                flat_rows.draw_rows(H, jax.random.split(KEY, 3)[0], np.arange(16, dtype=np.uint32), "normal")
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
            S, G = (np.asarray(flat_rows.draw_rows(vector_operator(A), k, numbers, "rademacher")) for k in keys[:2])
        q = np.linalg.qr(A @ S.T)[0]
        rest = G.T - q @ (q.T @ G.T)
        each = np.trace(q.T @ A @ q) + np.einsum("ij,ij->j", rest, A @ rest)
        assert found.mean == pytest.approx(each.mean(), rel=1e-9)
        assert found.sem == pytest.approx(standard_error(each), rel=1e-9)

    def test_the_basis_is_orthonormal_however_parallel_the_products_are(self):
        values = 10.0 ** -np.arange(N)  # in float32 most products are one and the same direction
        H = vector_operator(symmetric_matrix(values, dtype=np.float32))
        counted, sketch = flat_rows.ProductCounter(H), sketches.empty()
        for _ in range(3):
            sketch = sketches.grow_for_xtrace(sketch, counted, jax.random.split(KEY, 3), 8)
        q = np.concatenate([np.asarray(block) for block in sketch.basis])
        np.testing.assert_allclose(q @ q.T, np.eye(24), atol=3e-6)
        assert counted.used == 48
        assert sketches.xtrace(sketch, N)[0] == pytest.approx(values.sum(), rel=1e-5)

    def test_the_basis_stays_within_a_mask(self):
        keep = np.arange(N) >= 10
        H = masked(vector_operator(symmetric_matrix(10.0 ** -np.arange(N), dtype=np.float32)), keep)
        sketch = sketches.grow_for_xtrace(sketches.empty(), flat_rows.ProductCounter(H), jax.random.split(KEY, 3), 8)
        basis = np.asarray(sketch.basis[0])
        assert not basis[:, ~keep].any()
        np.testing.assert_allclose(basis @ basis.T, np.eye(8), atol=3e-6)


def sketch_of(values, draws, rng):
    """The sketch of XTrace of a diagonal matrix, in float64."""
    vectors = rng.standard_normal((len(values), draws))
    images = values[:, None] * vectors
    q, r = np.linalg.qr(images)
    core = q.T @ (values[:, None] * q)
    forms, squares = (vectors * images).sum(0), (vectors**2).sum(0)
    return sketches.Sketch((q.T,), core, r, (), q.T @ vectors, q.T @ images, forms, squares)


class TestErrorBarsCover:
    """The kind of wrong numbers "error bars that do not cover": XTrace's own estimate is too small, by 1.03 to 3."""

    def test_what_is_left_out_is_the_definition(self):
        values = 1 / np.arange(1.0, 41)
        sketch = sketch_of(values, 10, np.random.default_rng(0))
        omega = np.random.default_rng(0).standard_normal((40, 10))  # the same draws
        one, both = sketches._leave_out(sketch, 40)
        for i, j in ((0, 0), (3, 3), (0, 1), (1, 0), (7, 2)):
            others = [k for k in range(10) if k not in (i, j)]
            q = np.linalg.qr(values[:, None] * omega[:, others])[0]
            rest = omega[:, i] - q @ (q.T @ omega[:, i])
            inside = np.trace(q.T @ (values[:, None] * q))
            wanted = inside + (40 - len(others)) * (rest @ (values * rest)) / (rest @ rest)
            assert (one[i] if i == j else both[i, j]) == pytest.approx(wanted, rel=1e-10)

    def test_interactions_have_no_effects_of_rows_and_columns(self):
        rng = np.random.default_rng(1)
        effects = rng.standard_normal((9, 1)) + rng.standard_normal(9)
        np.testing.assert_allclose(sketches._interactions(effects), 0, atol=1e-12)
        h = sketches._interactions(rng.standard_normal((9, 9)))
        np.testing.assert_allclose([h.sum(0), h.sum(1)], 0, atol=1e-12)

    @pytest.mark.parametrize("draws", [8, 32, 96])
    @pytest.mark.parametrize("kind", ["spiked", "flat", "indefinite", "power law"])
    def test_error_bars_of_xtrace_cover_however_many_draws(self, kind, draws):
        rng = np.random.default_rng(0)
        values = {
            "spiked": np.r_[np.linspace(5, 50, 10), rng.uniform(0, 0.2, 110)],
            "flat": np.linspace(0.5, 1.5, 120),
            "indefinite": rng.uniform(-1, 2, 120),
            "power law": np.arange(1.0, 121) ** -1.5,
        }[kind]
        found = np.array([sketches.xtrace(sketch_of(values, draws, np.random.default_rng(i)), 120) for i in range(200)])
        error, stated = np.abs(found[:, 0] - values.sum()), found[:, 1]
        assert (error <= 2 * stated).mean() >= 0.91  # 95 %, less what 200 keys leave to chance
        assert (error <= 3 * stated).mean() >= 0.97
        if draws > 8:
            assert 0.75 < np.sqrt((error**2).mean()) / np.median(stated) < 1.15
