"""Operators written as matrices: products with vectors, matrices and trees, and operators in SciPy's solvers."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse.linalg import aslinearoperator, eigsh, gmres

import lla_jax as lla
from lla_jax.curvature import operators
from tests import helpers
from tests.curvature.cases import DATA, KEY, LOSS, SINGLE
from tests.helpers import error


@pytest.fixture(scope="module")
def hessian():
    H = lla.hessian(LOSS, helpers.params(), DATA)
    return H, operators.dense(H)


def vector(n, *more):
    return np.random.default_rng(0).normal(size=(n, *more))


def test_products_with_flat_vectors_matrices_and_trees(hessian):
    H, A = hessian
    n, v = len(A), vector(len(A))
    tree = H.random(KEY)
    assert error(helpers.ravel(H @ tree), A @ helpers.ravel(tree)) < SINGLE
    for left in (v, jnp.asarray(v), list(v)):
        assert error(H @ left, A @ v) < SINGLE
    assert error(v @ H, A @ v) < SINGLE
    assert error(H(v), A @ v) < SINGLE
    V = vector(n, 3)
    assert error(H @ V, A @ V) < SINGLE
    assert error(V.T @ H, V.T @ A) < SINGLE
    assert (H @ V[:, :0]).shape == (n, 0)
    assert error(jax.jit(lambda H, v: H @ v)(H, v), A @ v) < SINGLE
    assert H


def test_masked_and_selected_operators_take_their_own_entries(hessian):
    H, A = hessian
    mask = jax.tree.map(lambda x: (np.arange(x.size).reshape(x.shape) % 2).astype(np.float32), helpers.params())
    masked, kept = operators.masked(H, mask), helpers.ravel(mask) > 0
    v, B = vector(len(A)), A[np.ix_(kept, kept)]
    assert error(masked @ v[kept], B @ v[kept]) < SINGLE
    assert error(masked @ v, A * np.outer(kept, kept) @ v) < SINGLE
    with pytest.raises(ValueError, match=r"v: of length 5 given, and H is 28 x 28"):
        masked @ np.ones(5)
    with pytest.raises(ValueError, match="masked operator under jit; it must be a tree"):
        jax.jit(lambda H, v: H @ v)(masked, v[kept])
    assert error(eigsh(masked, k=1, which="LA")[0], np.linalg.eigvalsh(B)[-1:]) < 1e-5


def test_scipy_takes_operators(hessian):
    H, A = hessian
    assert error(eigsh(H, k=2, which="LA")[0], np.linalg.eigvalsh(A)[-2:]) < 1e-5
    taken, v = aslinearoperator(H), vector(len(A))
    assert taken.shape == H.shape
    assert error(taken @ v, A @ v) < SINGLE
    assert error(taken.rmatvec(v), A @ v) < SINGLE  # of columns SciPy 1.18 wants rmatmat
    shifted = np.linalg.eigvalsh(A)
    nearest = shifted[np.abs(shifted - shifted[-1] * 1.1).argmin()]  # GMRES writes into the products that it gets
    assert error(eigsh(H, k=1, sigma=shifted[-1] * 1.1, tol=1e-3)[0][0], nearest) < 1e-2
    assert error(gmres(H, A @ v, atol=0, rtol=1e-2)[0] @ A, A @ v) < 0.1


def test_vectors_of_truth_values_and_copies(hessian):
    H, A = hessian
    entries = vector(len(A)) > 0
    assert error(H @ entries, A @ entries) < SINGLE
    assert error(copy.deepcopy(H) @ entries, A @ entries) < SINGLE


@pytest.mark.parametrize("traceable", [True, False])
def test_vectors_of_other_kinds_of_an_operator_on_arrays(traceable):
    a = np.diag([1.0, 2.0, 3.0]).astype(np.float32)
    H = operators.given(lambda v: a @ v, np.zeros(3, np.float32), traceable=traceable)
    for v in (np.ones(3), np.ones(3, int), [1, 1, 1], [1.0, 1, 1]):
        np.testing.assert_array_equal(H @ v, [1, 2, 3])
    np.testing.assert_array_equal(H @ np.eye(3, dtype=int), a)
    M = operators.given(lambda v: 2 * v, np.zeros((2, 2), np.float32))
    np.testing.assert_array_equal(M @ np.eye(2), 2 * np.eye(2))
    np.testing.assert_array_equal(M @ np.arange(4), [0, 2, 4, 6])


def test_vectors_of_torch():
    torch = pytest.importorskip("torch")
    H = operators.given(lambda v: 2 * v, np.zeros(3, np.float32))
    for v in (torch.ones(3), torch.ones(3, requires_grad=True), torch.ones(3, dtype=torch.bfloat16)):
        np.testing.assert_array_equal(H @ v, [2, 2, 2])
    for v, remedy in ((torch.ones(3).to_sparse(), "to_dense"), (torch.ones(3, device="meta"), "load it first")):
        with pytest.raises(ValueError, match=rf"^v: a .*{remedy}"):
            H @ v


def test_the_remedy_for_another_operator_works(hessian):
    H, A = hessian
    twice = lla.operators.given(lambda v: jax.tree.map(lambda x: 2 * x, H.mv(v)), H.structure)
    v = vector(len(A))
    assert error(twice @ v, 2 * A @ v) < SINGLE


USES = {
    "2 / H": lambda H: 2 / H,
    "H // 2": lambda H: H // 2,
    "H % 2": lambda H: H % 2,
    "H ** 2": lambda H: H**2,
    "abs": abs,
    "H > 1": lambda H: H > 1,
    "H - v": lambda H: H - np.ones(28),
    "float": float,
    "len": len,
    "array": np.asarray,
}


@pytest.mark.parametrize("use", USES)
def test_an_operator_is_no_array_as_python_and_the_library_say_it(hessian, use):
    for kind in (TypeError, ValueError):
        with pytest.raises(kind, match=r"^H: LinearOperator\(hessian"):
            USES[use](hessian[0])
    assert not np.iterable(hessian[0])
