"""Residuals of eigenpairs: one product speaks for all, and where it does not fit what is known, each gets its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.curvature import operators
from tests.curvature.cases import COPIES, PROBE, Counted, check_pairs, counted
from tests.helpers import flat, symmetric_matrix

KEY = jax.random.key(1)
N = len(COPIES)
SEPARATED = np.concatenate([[9.0, 7, -6, 5, 4], np.linspace(-0.5, 1, N - 5)])


class Turns(Counted):
    """A product that is another one from some call on, as that of a loss that is not what it was."""

    def __init__(self, a, other, at):
        super().__init__(a)
        self.other, self.at = other, at

    def __call__(self, v):
        self.count += 1
        return jnp.asarray((self.a if self.count <= self.at else self.other) @ np.asarray(v))


def turning(a, other, at):
    product = Turns(a, other, PROBE + at)
    return operators.given(product, jnp.zeros(len(a), a.dtype), traceable=False), product


@pytest.mark.parametrize("copies", [True, False])
def test_one_product_confirms_the_residuals_of_all_pairs(copies):
    a = symmetric_matrix(SEPARATED)
    for k in (1, 5):
        H, product = counted(a)
        pairs = lla.eigenpairs(H, KEY, k, copies=copies)
        check_pairs(pairs, a, [9, 7, -6, 5, 4][:k], 1e-3)
        assert pairs.recipe["residuals"] == "together"
        assert product.count - PROBE == pairs.products
        short, _ = turning(a, a * np.nan, pairs.products - 1)  # the search itself takes one product less
        with pytest.warns(UserWarning, match="the largest residual inf"):
            assert lla.eigenpairs(short, KEY, k, copies=copies).recipe["stopped"] is None


@pytest.mark.parametrize("which", range(5))
def test_a_change_along_any_one_vector_is_seen(which):
    a = symmetric_matrix(SEPARATED)
    found = lla.eigenpairs(counted(a)[0], KEY, 5)
    v = flat(found.vectors.tree, 1)[which].astype(np.float32)
    other = a + np.float32(1e-2) * np.outer(v, v)
    H, product = turning(a, other, found.products - 1)
    pairs = lla.eigenpairs(H, KEY, 5)
    assert pairs.recipe["residuals"] == "each"
    assert pairs.products == found.products + 5 == product.count - PROBE
    assert np.isclose(pairs.values[which] - found.values[which], 1e-2, atol=1e-4)
    vectors = flat(pairs.vectors.tree, 1)
    true = np.linalg.norm(other.astype(np.float64) @ vectors.T - vectors.T * pairs.values, axis=0)
    assert (true <= 1.001 * pairs.residuals).all()


def test_pairs_that_no_product_is_left_for_have_no_residual():
    a = symmetric_matrix(SEPARATED)
    needed = lla.eigenpairs(counted(a)[0], KEY, 3).products
    H, product = turning(a, 2 * a, needed - 1)
    with pytest.warns(UserWarning, match="the largest residual inf"):
        pairs = lla.eigenpairs(H, KEY, 3, max_products=needed + 1)
    assert product.count - PROBE == pairs.products == needed + 1
    assert np.isfinite(pairs.residuals).sum() == 1
    assert not pairs.recipe["converged"]
