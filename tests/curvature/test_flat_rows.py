"""Rows of vectors: cut into parts they are what they are whole, and they are changed in their own memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lla_jax.curvature import flat_rows
from lla_jax.curvature.flat_rows import ProductCounter, draw_rows
from tests.helpers import symmetric_matrix, vector_operator

KEY = jax.random.key(0)
N = 111  # no other test has rows of this length


@pytest.fixture
def cut(monkeypatch):
    """Rows of 111 entries are padded to 4 parts of 28."""
    monkeypatch.setattr(flat_rows, "PIECE", 7)
    monkeypatch.setattr(flat_rows, "PIECES", 4)


def operator():
    return vector_operator(symmetric_matrix(np.linspace(-1.0, 2.0, N), dtype=np.float32))


def test_rows_are_padded_to_whole_parts(cut):
    for size, width in ((7, 7), (8, 14), (28, 28), (29, 42), (N, 112)):
        assert flat_rows.width(size) == width
    H = operator()
    flat = draw_rows(H, KEY, np.arange(3, dtype=np.uint32), "normal")
    assert flat.shape == (3, 112)
    assert not flat[:, N:].any()
    np.testing.assert_array_equal(flat_rows.trees(H.space, flat), flat[:, :N])


def test_cut_rows_are_what_they_are_whole(cut):
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.standard_normal((k, 112)), jnp.float32) for k in (3, 5))
    np.testing.assert_allclose(flat_rows.gram(a, b), np.asarray(a) @ np.asarray(b).T, rtol=1e-4, atol=1e-5)
    H = operator()
    basis = flat_rows._orthonormal(H.space, b + 0)
    np.testing.assert_allclose(basis @ basis.T, np.eye(5), atol=1e-6)
    inside = np.asarray(b) - np.asarray(b) @ basis.T @ basis
    np.testing.assert_allclose(inside, 0, atol=1e-5)
    rest = flat_rows._without(basis, a + 0)
    np.testing.assert_allclose(rest, a - (a @ basis.T) @ basis, atol=1e-5)


def test_one_after_another_they_are_what_they_are_at_once(cut):
    H, numbers = operator(), np.array([4, 0, 7], np.uint32)
    for kind in ("normal", "rademacher"):
        at_once = draw_rows(H, KEY, numbers, kind)
        np.testing.assert_array_equal(draw_rows(H, KEY, numbers, kind, each=True), at_once)
    each = ProductCounter(H, each=True)
    np.testing.assert_allclose(each(at_once), ProductCounter(H)(at_once), rtol=1e-5, atol=1e-5)
    assert each.used == 3


def test_rows_are_changed_in_their_memory(cut):
    H = operator()
    flat = draw_rows(H, KEY, np.arange(4, dtype=np.uint32), "normal")
    basis = flat_rows._orthonormal(H.space, draw_rows(H, KEY, np.arange(4, 6, dtype=np.uint32), "normal"))
    before = flat.unsafe_buffer_pointer()
    flat = flat_rows._orthonormal(H.space, flat_rows._without(basis, flat))
    assert flat.unsafe_buffer_pointer() == before
    vector = H.random(KEY)[None]
    flat, finite = flat_rows._put(H.space, flat, vector, np.int32(2))
    assert finite
    assert flat.unsafe_buffer_pointer() == before
    np.testing.assert_array_equal(flat[2, :N], vector[0])
