"""Products, linear algebra and Fourier transforms against torch in float64, with derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

torch = pytest.importorskip("torch")

from lla_torch.program.operators import TABLE, full_name
from lla_torch.program.ops import linear
from lla_torch.program.views import View, merge_tail, plain

from tests.interop.program.check_operators import FIRST, as_constant, assert_close, compare, r, run_operator, to_jax

aten = torch.ops.aten

pytestmark = pytest.mark.usefixtures("double")


def symmetric(n: int) -> Any:
    """A positive definite matrix."""
    a = r(2, n, n)
    return a @ a.mT + n * torch.eye(n, dtype=torch.float64)


def regular(*lead: int) -> Any:
    """A well conditioned 3 x 3 matrix."""
    return r(*lead, 3, 3) + 3 * torch.eye(3, dtype=torch.float64)


PRODUCTS: dict[str, Callable[[], tuple]] = {
    "linear": lambda: (aten.linear.default, (r(2, 3, 4), r(5, 4), r(5))),
    "linear vector": lambda: (aten.linear.default, (r(4), r(5, 4))),
    "linear to numbers": lambda: (aten.linear.default, (r(3, 4), r(4))),
    "matmul": lambda: (aten.matmul.default, (r(2, 1, 3, 4), r(5, 4, 2))),
    "matmul vector": lambda: (aten.matmul.default, (r(4), r(5, 4, 2))),
    "mm": lambda: (aten.mm.default, (r(3, 4), r(4, 2))),
    "bmm": lambda: (aten.bmm.default, (r(2, 3, 4), r(2, 4, 2))),
    "mv": lambda: (aten.mv.default, (r(3, 4), r(4))),
    "dot": lambda: (aten.dot.default, (r(4), r(4))),
    "outer": lambda: (aten.outer.default, (r(4), r(3))),
    "inner": lambda: (aten.inner.default, (r(2, 4), r(3, 4))),
    "vecdot": lambda: (aten.linalg_vecdot.default, (r(2, 4), r(1, 4))),
    "addmm": lambda: (aten.addmm.default, (r(2), r(3, 4), r(4, 2)), {"beta": 0.5, "alpha": 2}),
    "addmm beta 0": lambda: (aten.addmm.default, (r(2), r(3, 4), r(4, 2)), {"beta": 0}),
    "baddbmm": lambda: (aten.baddbmm.default, (r(2, 3, 2), r(2, 3, 4), r(2, 4, 2)), {"alpha": 2}),
    "addbmm": lambda: (aten.addbmm.default, (r(3, 2), r(2, 3, 4), r(2, 4, 2)), {"beta": 2, "alpha": 3}),
    "addmv": lambda: (aten.addmv.default, (r(3), r(3, 4), r(4)), {"beta": 2}),
    "addr": lambda: (aten.addr.default, (r(3, 4), r(3), r(4)), {"alpha": 2}),
    "einsum": lambda: (aten.einsum.default, ("b i j, bjk -> kbi", [r(2, 3, 4), r(1, 4, 2)])),
    "einsum implicit": lambda: (aten.einsum.default, ("...bA,...ab", [r(2, 3, 4), r(5, 3)])),
    "einsum three": lambda: (
        aten.einsum.default,
        ("ij,jk,kl->il", [r(2, 3), r(3, 4), r(4, 2)]),
        {"path": [0, 1, 0, 1]},
    ),
    "bilinear": lambda: (aten.bilinear.default, (r(2, 3), r(2, 4), r(5, 3, 4), r(5))),
    "tensordot of one with many": lambda: (aten.tensordot.default, (r(2, 1, 4), r(4, 3, 1), [2, 1], [0, 1])),
    "tensordot of many with one": lambda: (aten.tensordot.default, (r(2, 4), r(1, 3), [1], [0])),
    "tensordot": lambda: (aten.tensordot.default, (r(2, 3, 4), r(4, 2, 5), [2, 0], [0, 1])),
    "kron": lambda: (aten.kron.default, (r(2, 3), r(3, 2))),
    "trace": lambda: (aten.trace.default, (r(3, 4),)),
    "cross": lambda: (aten.cross.default, (r(2, 3, 3), r(2, 3, 3))),
    "linalg_cross": lambda: (aten.linalg_cross.default, (r(2, 3), r(1, 3))),
}


LINALG: dict[str, Callable[[], tuple]] = {
    "inv_ex": lambda: (aten.linalg_inv_ex.default, (regular(2),)),
    "inv": lambda: (aten.linalg_inv.default, (regular(),)),
    "solve": lambda: (aten.linalg_solve.default, (regular(2), r(3, 2))),
    "solve vectors": lambda: (aten.linalg_solve.default, (regular(2), r(2, 3))),
    "solve right": lambda: (aten.linalg_solve.default, (regular(), r(2, 3)), {"left": False}),
    "solve_ex": lambda: (aten.linalg_solve_ex.default, (regular(), r(3, 2))),
    "_solve_ex": lambda: (aten._linalg_solve_ex.default, (regular(), r(3))),
    "det": lambda: (aten._linalg_det.default, (regular(2),), {}, FIRST),
    "slogdet": lambda: (aten._linalg_slogdet.default, (regular(2),), {}, slice(2)),
    "logdet": lambda: (aten.logdet.default, (symmetric(3),)),
    "lu_factor": lambda: (aten.linalg_lu_factor_ex.default, (regular(),)),
    "cholesky": lambda: (aten.linalg_cholesky_ex.default, (symmetric(3),)),
    "cholesky lower only": lambda: (aten.linalg_cholesky.default, (torch.tril(symmetric(3)),)),
    "cholesky upper": lambda: (aten.linalg_cholesky.default, (symmetric(3),), {"upper": True}),
    "qr": lambda: (aten.linalg_qr.default, (r(4, 3),)),
    "qr complete": lambda: (aten.linalg_qr.default, (r(3, 3), "complete")),
    "eigh values": lambda: (aten._linalg_eigh.default, (symmetric(3), "U"), {}, FIRST),
    "svd values": lambda: (aten._linalg_svd.default, (r(4, 3),), {}, slice(1, 2)),
    "svd values only": lambda: (aten._linalg_svd.default, (as_constant(r(4, 3)), False, False)),
    "svdvals": lambda: (aten.linalg_svdvals.default, (r(2, 3, 4),)),
    "pinv": lambda: (aten.linalg_pinv.atol_rtol_tensor, (r(4, 3),)),
    "pinv of a triangle": lambda: (
        aten.linalg_pinv.atol_rtol_float,
        (as_constant(r(3, 3)),),
        {"hermitian": True},
    ),
    "pinv hermitian": lambda: (
        aten.linalg_pinv.atol_rtol_float,
        (symmetric(3).detach().requires_grad_(),),
        {"hermitian": True},
    ),
    "pinv rtol": lambda: (aten.linalg_pinv.atol_rtol_float, (r(4, 3),), {"rtol": 1e-3, "atol": 1e-4}),
    "matrix_exp": lambda: (aten.linalg_matrix_exp.default, (r(3, 3),)),
    "triangular": lambda: (aten.linalg_solve_triangular.default, (regular(2), r(3, 2)), {"upper": False}),
    "triangular right": lambda: (
        aten.linalg_solve_triangular.default,
        (regular(), r(2, 3)),
        {"upper": True, "left": False, "unitriangular": True},
    ),
    "triangular_solve": lambda: (aten.triangular_solve.default, (r(3, 2), regular(), True, True), {}, FIRST),
    "cholesky_solve": lambda: (aten.cholesky_solve.default, (r(3, 2), as_constant(torch.triu(regular())), True)),
    "cholesky_inverse": lambda: (aten.cholesky_inverse.default, (as_constant(torch.tril(regular())),)),
}
CASES = PRODUCTS | LINALG

TWICE = {"cholesky"}


@pytest.mark.parametrize("name", CASES)
def test_operator(name: str):
    compare(*CASES[name](), second=name in TWICE)


X = object()  # the result of the step before

Z, PAIR = aten.view_as_complex.default, aten.view_as_real.default


CHAINS: dict[str, tuple] = {
    "r2c": ((4, 5), (aten._fft_r2c.default, X, [0, 1], 1, True), (PAIR, X)),
    "r2c full": ((4, 5), (aten._fft_r2c.default, X, [1], 2, False), (PAIR, X)),
    "c2c": ((3, 4, 2), (Z, X), (aten._fft_c2c.default, X, [0, 1], 2, True), (PAIR, X)),
    "c2c back": ((3, 4, 2), (Z, X), (aten._fft_c2c.default, X, [1], 0, False), (PAIR, X)),
    "c2r": ((3, 4, 2), (Z, X), (aten._fft_c2r.default, X, [0, 1], 2, 6)),
    "c2r odd": ((3, 4, 2), (Z, X), (aten._fft_c2r.default, X, [1], 1, 7)),
    "fft": ((3, 4), (aten.fft_fft.default, X, 5, 0, "ortho"), (aten.imag.default, X)),
    "rfft": ((3, 4), (aten.fft_rfft.default, X), (aten.conj.default, X), (aten.resolve_conj.default, X), (PAIR, X)),
    "irfft": ((3, 4, 2), (Z, X), (aten.fft_irfft.default, X, None, 0)),
    "hfft": ((3, 4, 2), (Z, X), (aten.fft_hfft.default, X)),
    "fft2": ((3, 4, 2), (Z, X), (aten.fft_ifft2.default, X, [4, -1]), (PAIR, X)),
    "rfftn": ((2, 3, 4), (aten.fft_rfftn.default, X, [3, 6]), (PAIR, X)),
    "irfftn": ((3, 4, 2), (Z, X), (aten.fft_irfftn.default, X, [-1, 6])),
    "irfft2": ((3, 4, 2), (Z, X), (aten.fft_irfft2.default, X, [-1, -1])),
    "shift": ((3, 4), (aten.fft_fftshift.default, X, [1])),
    "ishift": ((3, 4), (aten.fft_ifftshift.default, X)),
    "complex": ((3, 4), (aten.complex.default, X, X), (aten.fft_ifft.default, X), (aten.real.default, X)),
    "polar": ((3, 4), (aten.polar.default, X, X), (PAIR, X)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_complex_operators_between_real_ends(name: str):
    shape, *steps = CHAINS[name]
    x = r(*shape).abs().requires_grad_()
    theirs = x
    for op, *args in steps:
        theirs = op(*(theirs if a is X else a for a in args))
    cotangent = r(*theirs.shape)

    def ours(value: jax.Array) -> jax.Array:
        for op, *args in steps:
            value = TABLE[full_name(op)].function(*(value if a is X else to_jax(a) for a in args))
        return value

    at = jnp.asarray(x.detach().numpy())
    result, pullback = jax.vjp(ours, at)
    assert_close(result, theirs.detach(), 1e-12)
    (grad,) = torch.autograd.grad(theirs, x, cotangent)
    assert_close(pullback(jnp.asarray(cotangent.numpy()))[0], grad, 1e-10)


def test_linear_of_a_flattened_image_moves_nothing():
    """(N, C, H, W) lying as (N, H, W, C), flattened, times a weight that lies in the same order."""
    image, weight, bias = r(2, 3, 2, 2), r(4, 12), r(4)
    expected = aten.linear.default(image.flatten(1), weight, bias)
    x = merge_tail(View(jnp.asarray(image.permute(0, 2, 3, 1).numpy()), (0, 3, 1, 2)), 1)
    lying = weight.reshape(4, 3, 2, 2).permute(2, 3, 1, 0).reshape(12, 4)
    w = View(jnp.asarray(lying.numpy()), (3, 2, 0, 1), (2, 2, 3, 4), (4, 12))
    arguments = {
        "same": (x, w),
        "other weight": (x, plain(jnp.asarray(weight.numpy()))),
        "other x": (plain(x.logical()), w),
    }
    for case in arguments.values():
        (ours,) = run_operator("linear", (*case, to_jax(bias)), {}, (expected,))
        assert_close(ours, expected, 1e-12)
    program = jax.make_jaxpr(lambda a, b: linear.linear(x.with_array(a), w.with_array(b)).array)(x.array, w.array)
    assert [e.primitive.name for e in program.eqns] == ["dot_general"]


def test_linear_keeps_the_order_of_other_axes():
    x, weight = r(5, 2, 4), r(3, 4)
    view = View(jnp.asarray(x.numpy()), (1, 0, 2))  # as after a transpose of the first two axes
    kernel = View(jnp.asarray(weight.T.contiguous().numpy()), (1, 0))
    result = linear.linear(view, kernel)
    assert result.order == view.order
    assert_close(result.logical(), torch.nn.functional.linear(x.transpose(0, 1), weight), 1e-12)
    program = jax.make_jaxpr(lambda a: linear.linear(view.with_array(a), kernel).array)(view.array)
    assert [e.primitive.name for e in program.eqns] == ["dot_general"]
    turned = View(jnp.asarray(x.permute(2, 0, 1).contiguous().numpy()), (1, 2, 0))
    assert_close(linear.linear(turned, kernel).logical(), torch.nn.functional.linear(x, weight), 1e-12)


@pytest.mark.parametrize("offs", [[2, 2, 5], [0, 4, 6], [6, 6, 6]], ids=str)
def test_grouped_products_are_those_of_the_groups(offs):
    x, other, ends = r(6, 4), r(3, 4, 5), list(zip([0, *offs], offs))
    found = linear.grouped_mm(jnp.asarray(x), jnp.asarray(other), jnp.asarray(offs))
    expected = torch.cat([*(x[a:b] @ w for (a, b), w in zip(ends, other)), torch.zeros(6 - offs[-1], 5)])
    assert_close(found, expected, 1e-14)
    columns, rows = r(3, 6), r(6, 5)
    found = linear.grouped_mm(jnp.asarray(columns), jnp.asarray(rows), jnp.asarray(offs))
    assert_close(found, torch.stack([columns[:, a:b] @ rows[a:b] for a, b in ends]), 1e-14)
    stack, wide = r(3, 2, 4), r(4, 6)
    found = linear.grouped_mm(jnp.asarray(stack), jnp.asarray(wide), jnp.asarray(offs))
    parts = [m @ wide[:, a:b] for (a, b), m in zip(ends, stack)]
    assert_close(found, torch.cat([*parts, torch.zeros(2, 6 - offs[-1])], 1), 1e-14)
    assert_close(linear.grouped_mm(jnp.asarray(stack), jnp.asarray(other)), stack @ other, 1e-14)
