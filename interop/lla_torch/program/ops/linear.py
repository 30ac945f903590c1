"""Products of matrices, linear algebra and Fourier transforms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lla_jax.models.adapters import misuse
from lla_torch.program.operators import lowering
from lla_torch.program.views import View, as_view

Array = jax.Array


@lowering("aten.linear.default", layout="views")
def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """x @ weight.T + bias over the last axis, without transposing arrays where their order of axes allows it."""
    x, weight = as_view(x), as_view(weight)
    if weight.ndim == 1:
        result = _contract(x.logical(), weight.logical())
        return result if bias is None else result + as_view(bias).logical()
    if _is_flattened_alike(x, weight):
        inputs, kernel, order = x.array, weight.array, tuple(range(x.ndim))
    elif x.is_merged or x.order[-1] != x.ndim - 1:
        inputs, kernel, order = x.logical(), weight.physical((1, 0)), tuple(range(x.ndim))
    else:
        inputs, kernel, order = x.array, weight.physical((1, 0)), x.order
    result = _contract(inputs, kernel)
    return View(result if bias is None else result + as_view(bias).logical(), order)


def _is_flattened_alike(x: View, weight: View) -> bool:
    """Whether the features of both are the same axes, merged alike, and lie in the same order in both arrays."""
    if x.merged is None or weight.merged is None or x.split is None or weight.split is None:
        return False
    lead = len(x.merged) - 1
    if x.order[:lead] != tuple(range(lead)) or len(weight.merged) != 2 or weight.order[0] != len(weight.split) - 1:
        return False
    features = tuple(axis - lead for axis in x.order[lead:])
    return features == weight.order[1:] and x.split[lead:] == weight.split[:-1] and weight.array.ndim == 2


def _contract(x: Array, kernel: Array) -> Array:
    """x @ kernel by the primitive that Flax's Dense uses."""
    x, kernel = (a.astype(jnp.result_type(x, kernel)) for a in (x, kernel))
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


@lowering("aten.matmul.default", "aten.mm.default", "aten.bmm.default", "aten.mv.default", "aten.linalg_matmul.default")
def matmul(x: Array, other: Array) -> Array:
    """The matrix product x @ other of vectors, matrices or batches of matrices (torch.matmul)."""
    return jnp.matmul(x, other)


@lowering("aten._grouped_mm.default", "transformers.grouped_mm_fallback.default")
def grouped_mm(x: Array, other: Array, offs: Array | None = None, bias: Array | None = None, *args: Any) -> Array:
    """Products of the groups of two matrices, one after the other; group g ends before ``offs[g]``.

    The groups are rows of x (S, k), each with a matrix of its own of other (G, k, n), as in mixtures of experts;
    columns of other (k, n), each with a matrix of x (G, m, k); or both the columns of x and the rows of other, whose
    products are stacked, (G, m, n). Rows and columns behind the last group give 0.

    Args:
      x: (S, k), (m, K) or (G, m, k).
      other: (G, k, n), (K, n), (k, n) or (G, k, n).
      offs: (G,), ascending; None: both have three axes, and it is ``matmul``.
      bias: added to the result.
      args: the type of the result, which is given to it by the program.
    """
    if offs is None:
        result = jnp.matmul(x, other)
    elif x.ndim == other.ndim == 2:
        result = jnp.matmul(_in_group(offs, x.shape[1])[:, None, :] * x, other)
    elif x.ndim == 2:
        within = _in_group(offs, x.shape[0]).T[:, :, None] * x[:, None, :]  # (S, G, k)
        result = within.reshape(x.shape[0], -1) @ other.reshape(-1, other.shape[-1])
    else:
        result = jnp.einsum("gn,gmn->mn", _in_group(offs, other.shape[1]), jnp.matmul(x, other))
    return result if bias is None else result + bias


def _in_group(offs: Array, size: int) -> Array:
    """Whether each of ``size`` positions lies in each group, of shape (G, size)."""
    place = jnp.arange(size)
    starts = jnp.concatenate([jnp.zeros_like(offs[:1]), offs[:-1]])
    return (place >= starts[:, None]) & (place < offs[:, None])


@lowering("aten.mm.dtype", "aten.bmm.dtype")
def matmul_in(x: Array, other: Array, out_dtype: Any) -> Array:
    """The matrix product x @ other, accumulated in the type ``out_dtype``."""
    return jnp.matmul(x, other, preferred_element_type=out_dtype)


lowering("aten.dot.default")(jnp.dot)
lowering("aten.vdot.default")(jnp.vdot)
lowering("aten.inner.default")(jnp.inner)
lowering("aten.outer.default", "aten.ger.default")(jnp.outer)
lowering("aten.kron.default")(jnp.kron)


@lowering("aten.linalg_vecdot.default")
def vecdot(x: Array, y: Array, *, dim: int = -1) -> Array:
    """sum conj(x) y along the axis ``dim``."""
    return jnp.sum(jnp.conj(x) * y, axis=dim)


@lowering("aten.addmm.default", "aten.baddbmm.default", "aten.addmv.default")
def addmm(x: Array, first: Array, second: Array, *, beta: Any = 1, alpha: Any = 1) -> Array:
    """beta x + alpha first @ second; x is not read where beta is 0."""
    return _add_product(x, jnp.matmul(first, second), beta, alpha)


@lowering("aten.addbmm.default")
def addbmm(x: Array, batch1: Array, batch2: Array, *, beta: Any = 1, alpha: Any = 1) -> Array:
    """beta x + alpha sum_b batch1[b] @ batch2[b]; x is not read where beta is 0."""
    return _add_product(x, jnp.einsum("bij,bjk->ik", batch1, batch2), beta, alpha)


@lowering("aten.addr.default")
def addr(x: Array, vec1: Array, vec2: Array, *, beta: Any = 1, alpha: Any = 1) -> Array:
    """beta x + alpha outer(vec1, vec2); x is not read where beta is 0."""
    return _add_product(x, jnp.outer(vec1, vec2), beta, alpha)


def _add_product(x: Array, product: Array, beta: Any, alpha: Any) -> Array:
    product = product if alpha == 1 else alpha * product
    if beta == 0:
        return jnp.broadcast_to(product, jnp.broadcast_shapes(x.shape, product.shape))
    return (x if beta == 1 else beta * x) + product


@lowering("aten.einsum.default")
def einsum(equation: str, tensors: Sequence[Array], *, path: Sequence[int] | None = None) -> Array:
    """The sum of products that ``equation`` describes, as torch.einsum; ``path``, an order of contraction, has no
    effect."""
    del path
    return jnp.einsum(equation.replace(" ", ""), *tensors)


@lowering("aten.bilinear.default")
def bilinear(input1: Array, input2: Array, weight: Array, bias: Array | None = None) -> Array:
    """sum_ij input1_i weight_oij input2_j + bias_o over the last axes."""
    result = jnp.einsum("...i,oij,...j->...o", input1, weight, input2)
    return result if bias is None else result + bias


@lowering("aten.tensordot.default")
def tensordot(x: Array, other: Array, dims_self: Sequence[int], dims_other: Sequence[int]) -> Array:
    """The sum of x times ``other`` over pairs of axes: dims_self[k] of x with dims_other[k] of ``other``.

    An axis of length 1 goes with one of any length, which is summed.
    """
    for a, b in zip(dims_self, dims_other, strict=True):
        if x.shape[a] == 1:
            other = jnp.sum(other, b, keepdims=True)
        elif other.shape[b] == 1:
            x = jnp.sum(x, a, keepdims=True)
    return jnp.tensordot(x, other, (tuple(dims_self), tuple(dims_other)))


@lowering("aten.cross.default")
def cross(x: Array, other: Array, dim: int | None = None) -> Array:
    """The cross product along the axis ``dim``; None: the first axis of length 3."""
    return jnp.cross(x, other, axis=x.shape.index(3) if dim is None else dim)


@lowering("aten.linalg_cross.default")
def linalg_cross(x: Array, other: Array, *, dim: int = -1) -> Array:
    """The cross product along the axis ``dim``."""
    return jnp.cross(x, other, axis=dim)


# --- linear algebra: torch raises at singular matrices where check_errors is set; a compiled function cannot, and
# returns the inf or nan of LAPACK with a nonzero ``info``


def _info(result: Array) -> Array:
    """1 where a matrix of the result has an entry that is not finite, else 0."""
    return jnp.any(~jnp.isfinite(result), axis=(-2, -1)).astype(jnp.int32)


def _complete_hermitian(a: Array, lower: bool = True) -> Array:
    """The Hermitian matrix of which one triangle is given, with torch's gradient, that of a Hermitian argument."""
    half = 0.5 * (a + _adjoint(a))
    triangle, strict = (jnp.tril(a), jnp.tril(a, -1)) if lower else (jnp.triu(a), jnp.triu(a, 1))
    return half + lax.stop_gradient(triangle + _adjoint(strict) - half)


def _adjoint(a: Array) -> Array:
    return jnp.conj(jnp.swapaxes(a, -1, -2))


lowering("aten.linalg_inv.default", "aten.inverse.default")(jnp.linalg.inv)
lowering("aten.linalg_det.default", "aten.det.default")(jnp.linalg.det)
lowering("aten.linalg_matrix_exp.default", "aten.matrix_exp.default")(jax.scipy.linalg.expm)


@lowering("aten.linalg_inv_ex.default")
def inv_ex(a: Array, *, check_errors: bool = False) -> tuple[Array, Array]:
    """(inverse, info); info is 1 where the inverse is not finite, else 0."""
    del check_errors
    result = jnp.linalg.inv(a)
    return result, _info(result)


@lowering("aten.linalg_solve.default")
def solve(a: Array, b: Array, *, left: bool = True) -> Array:
    """X of A X = B, or with left=False of X A = B; B holds vectors if its shape is A's without the last axis."""
    vector = b.ndim == 1 or (a.ndim - 1 == b.ndim and b.shape == a.shape[:-1])
    b = b[..., None] if vector else b
    if not left:
        return _transpose(solve(_transpose(a), _transpose(b)))
    lead = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    result = jnp.linalg.solve(_broadcast_batch(a, lead), _broadcast_batch(b, lead))
    return result[..., 0] if vector else result


def _transpose(a: Array) -> Array:
    return jnp.swapaxes(a, -1, -2)


def _broadcast_batch(a: Array, lead: tuple[int, ...]) -> Array:
    return jnp.broadcast_to(a, (*lead, *a.shape[-2:]))


@lowering("aten.linalg_solve_ex.default")
def solve_ex(a: Array, b: Array, *, left: bool = True, check_errors: bool = False) -> tuple[Array, Array]:
    """(X of ``solve``, info); info is the first zero pivot of A counted from 1, or 0."""
    del check_errors
    return solve(a, b, left=left), _first_zero_pivot(lu(a)[0])


@lowering("aten._linalg_solve_ex.default")
def solve_ex_lu(a: Array, b: Array, *, left: bool = True, check_errors: bool = False) -> tuple[Array, ...]:
    """(X, LU, pivots, info) of ``solve_ex`` and ``lu``."""
    del check_errors
    factors, pivots = lu(a)
    return solve(a, b, left=left), factors, pivots, _first_zero_pivot(factors)


def lu(a: Array) -> tuple[Array, Array]:
    """(LU, pivots counted from 1) of matrices with rows exchanged, as LAPACK returns them."""
    factors, pivots, _ = lax.linalg.lu(a)
    return factors, pivots + 1


def _first_zero_pivot(factors: Array) -> Array:
    """LAPACK's info: the first zero pivot, counted from 1, or 0."""
    zero = jnp.diagonal(factors, axis1=-2, axis2=-1) == 0
    return jnp.where(jnp.any(zero, -1), jnp.argmax(zero, -1) + 1, 0).astype(jnp.int32)


@lowering("aten.linalg_lu_factor_ex.default")
def lu_factor_ex(a: Array, *, pivot: bool = True, check_errors: bool = False) -> tuple[Array, Array, Array]:
    """(LU, pivots, info) of ``lu``; info is the first zero pivot counted from 1, or 0."""
    del check_errors
    if not pivot:
        raise misuse("pivot", pivot, "True, since LU factors without pivoting are not supported")
    factors, pivots = lu(a)
    return factors, pivots, _first_zero_pivot(factors)


@lowering("aten.linalg_cholesky.default", "aten.cholesky.default")
def cholesky(a: Array, upper: bool = False) -> Array:
    """L of A = L L^H, or with ``upper`` its adjoint; only this triangle of A is read."""
    lower = lax.linalg.cholesky(_complete_hermitian(a, not upper), symmetrize_input=False)
    return _adjoint(lower) if upper else lower


@lowering("aten.linalg_cholesky_ex.default")
def cholesky_ex(a: Array, *, upper: bool = False, check_errors: bool = False) -> tuple[Array, Array]:
    """(``cholesky``, info); info is 1 where the factor is not finite, else 0."""
    del check_errors
    result = cholesky(a, upper)
    return result, _info(result)


@lowering("aten._linalg_det.default")
def det_lu(a: Array) -> tuple[Array, Array, Array]:
    """(determinant, LU, pivots) of matrices, see ``lu``."""
    return jnp.linalg.det(a), *lu(a)


@lowering("aten.linalg_slogdet.default", "aten.slogdet.default")
def slogdet(a: Array) -> tuple[Array, Array]:
    """(sign, log |det|) of matrices."""
    sign, logabsdet = jnp.linalg.slogdet(a)
    return sign, logabsdet


@lowering("aten._linalg_slogdet.default")
def slogdet_lu(a: Array) -> tuple[Array, ...]:
    """(sign, log |det|, LU, pivots) of matrices, see ``lu``."""
    return *slogdet(a), *lu(a)


@lowering("aten.logdet.default")
def logdet(a: Array) -> Array:
    """log det of matrices, NaN where the determinant is negative."""
    sign, logabsdet = jnp.linalg.slogdet(a)
    return jnp.where(sign < 0, jnp.nan, logabsdet)


@lowering("aten.linalg_qr.default")
def qr(a: Array, mode: str = "reduced") -> tuple[Array, Array]:
    """(Q, R) of A = Q R in the mode "reduced", "complete" or "r", where Q is empty."""
    if mode == "r":
        return jnp.zeros((0,), a.dtype), jnp.linalg.qr(a, mode="r")
    q, r = jnp.linalg.qr(a, mode=mode)
    return q, r


@lowering("aten._linalg_eigh.default")
def eigh(a: Array, uplo: str = "L", compute_v: bool = True) -> tuple[Array, Array]:
    """(eigenvalues, eigenvectors or empty) of Hermitian matrices, of which the triangle ``uplo`` is read."""
    values, vectors = jnp.linalg.eigh(_complete_hermitian(a, uplo == "L"), symmetrize_input=False)
    return values, vectors if compute_v else jnp.zeros((0,), a.dtype)


@lowering("aten.linalg_eigh.default")
def linalg_eigh(a: Array, uplo: str = "L") -> tuple[Array, Array]:
    """(eigenvalues, eigenvectors) of Hermitian matrices, of which the triangle ``uplo`` is read."""
    return eigh(a, uplo)


@lowering("aten.linalg_eigvalsh.default")
def eigvalsh(a: Array, uplo: str = "L") -> Array:
    """The eigenvalues of Hermitian matrices, of which the triangle ``uplo`` is read."""
    return eigh(a, uplo, False)[0]


@lowering("aten._linalg_svd.default")
def svd(
    a: Array, full_matrices: bool = False, compute_uv: bool = True, *, driver: str | None = None
) -> tuple[Array, Array, Array]:
    """(U, S, V^H) of A = U S V^H; U and V^H are empty without ``compute_uv``. ``driver`` has no effect."""
    del driver
    if not compute_uv:
        empty = jnp.zeros((0,), a.dtype)
        return empty, jnp.linalg.svd(a, compute_uv=False), empty
    u, s, vh = jnp.linalg.svd(a, full_matrices=full_matrices)
    return u, s, vh


@lowering("aten.linalg_svd.default")
def linalg_svd(a: Array, full_matrices: bool = True, *, driver: str | None = None) -> tuple[Array, Array, Array]:
    """(U, S, V^H) of A = U S V^H; ``driver`` has no effect."""
    return svd(a, full_matrices, driver=driver)


@lowering("aten.linalg_svdvals.default")
def svdvals(a: Array, *, driver: str | None = None) -> Array:
    """The singular values of matrices; ``driver`` has no effect."""
    return svd(a, compute_uv=False, driver=driver)[1]


@lowering("aten.linalg_pinv.atol_rtol_tensor", "aten.linalg_pinv.atol_rtol_float")
def pinv(a: Array, *, atol: Any = None, rtol: Any = None, hermitian: bool = False) -> Array:
    """The pseudo-inverse; singular values up to max(atol, rtol * the largest one) count as zero.

    Of a ``hermitian`` matrix the lower triangle is read; the derivative is that of a general one, as in torch.
    """
    a = a + lax.stop_gradient(_complete_hermitian(a) - a) if hermitian else a
    if rtol is None:
        rtol = jnp.finfo(a.dtype).eps * max(a.shape[-2:]) if atol is None else 0.0
    largest = lax.stop_gradient(jnp.linalg.svd(a, compute_uv=False)).max(-1)
    relative = jnp.maximum(rtol, (0.0 if atol is None else atol) / largest)
    return jnp.linalg.pinv(a, rtol=relative)  # with hermitian, jax's derivative is that of a Hermitian argument


@lowering("aten.linalg_solve_triangular.default")
def solve_triangular(a: Array, b: Array, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Array:
    """X of A X = B, or with left=False of X A = B, for triangular A; the other triangle is not read."""
    lead = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return lax.linalg.triangular_solve(
        _broadcast_batch(a, lead),
        _broadcast_batch(b, lead),
        left_side=left,
        lower=not upper,
        unit_diagonal=unitriangular,
    )


@lowering("aten.triangular_solve.default")
def triangular_solve(
    b: Array, a: Array, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> tuple[Array, Array]:
    """(X, A), where A is triangular and A X = B, or with ``transpose`` A^T X = B."""
    if transpose:
        return solve_triangular(_transpose(a), b, upper=not upper, unitriangular=unitriangular), a
    return solve_triangular(a, b, upper=upper, unitriangular=unitriangular), a


@lowering("aten.cholesky_solve.default")
def cholesky_solve(b: Array, factor: Array, upper: bool = False) -> Array:
    """X of A X = B, where A is given by its factor: A = L L^H, or with ``upper`` A = U^H U."""
    lower = _adjoint(factor) if upper else factor
    return solve_triangular(_adjoint(lower), solve_triangular(lower, b, upper=False), upper=True)


@lowering("aten.cholesky_inverse.default")
def cholesky_inverse(factor: Array, upper: bool = False) -> Array:
    """The inverse of A, which is given by its factor: A = L L^H, or with ``upper`` A = U^H U."""
    return cholesky_solve(jnp.eye(factor.shape[-1], dtype=factor.dtype), factor, upper)


# --- Fourier transforms: torch's codes of normalization are 0: none, 1: by sqrt(n), 2: by n, in both directions


def _without_factor(function: Callable[..., Array], forward: bool) -> Callable[..., Array]:
    """A transform of jnp.fft without its factor."""
    return lambda x, **sizes: function(x, norm="backward" if forward else "forward", **sizes)


def _single(x: Array) -> Array:
    """x with at least 32 bits, which transforms need; those of weights in half precision have less."""
    return x.astype(jnp.float32) if x.dtype.itemsize == 2 else x


def _normalize(x: Array, count: int, normalization: int) -> Array:
    return x if normalization == 0 else x / (math.sqrt(count) if normalization == 1 else count)


def _count(shape: Sequence[int], dim: Sequence[int]) -> int:
    return math.prod(shape[d] for d in dim)


@lowering("aten._fft_r2c.default")
def fft_r2c(x: Array, dim: Sequence[int], normalization: int, onesided: bool) -> Array:
    """Fourier transform of real numbers over the axes ``dim``; ``onesided`` keeps half of the last one."""
    transform = _without_factor(jnp.fft.rfftn if onesided else jnp.fft.fftn, True)
    return _normalize(transform(_single(x), axes=dim), _count(x.shape, dim), normalization)


@lowering("aten._fft_c2c.default")
def fft_c2c(x: Array, dim: Sequence[int], normalization: int, forward: bool) -> Array:
    """Fourier transform of complex numbers over the axes ``dim``, with exp(-i ...) if ``forward``, else exp(i ...)."""
    transform = _without_factor(jnp.fft.fftn if forward else jnp.fft.ifftn, forward)
    return _normalize(transform(x, axes=dim), _count(x.shape, dim), normalization)


@lowering("aten._fft_c2r.default")
def fft_c2r(x: Array, dim: Sequence[int], normalization: int, last_dim_size: int) -> Array:
    """Real inverse of ``fft_r2c``; the last axis of ``dim`` is the kept half of one of length ``last_dim_size``."""
    sizes = (*(x.shape[d] for d in dim[:-1]), last_dim_size)
    result = _without_factor(jnp.fft.irfftn, False)(x, s=sizes, axes=dim)
    return _normalize(result, math.prod(sizes), normalization)


def _register_one_dimensional(name: str, function: Callable[..., Array]) -> None:
    @lowering(f"aten.fft_{name}.default")
    def transform(x: Array, n: int | None = None, dim: int = -1, norm: str | None = None) -> Array:
        return function(_single(x), n, dim, norm)


def _register_many_dimensional(name: str, function: Callable[..., Array], axes: tuple[int, ...] | None) -> None:
    @lowering(f"aten.fft_{name}.default")
    def transform(
        x: Array, s: Sequence[int] | None = None, dim: Sequence[int] | None = axes, norm: str | None = None
    ) -> Array:
        if dim is None:
            dim = range(-(x.ndim if s is None else len(s)), 0)
        half = name.startswith("irfft")  # jnp cuts or pads its last axis, which stands for one of another length
        sizes = s and tuple(
            x.shape[d] if n == -1 and not (half and i == len(s) - 1) else n
            for i, (n, d) in enumerate(zip(s, dim, strict=True))
        )
        if half and sizes and sizes[-1] == -1:
            sizes = (*sizes[:-1], 2 * (x.shape[dim[-1]] - 1))
        return function(_single(x), sizes or None, tuple(dim), norm)


for _name in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft"):
    _register_one_dimensional(_name, getattr(jnp.fft, _name))
for _name in ("fft", "ifft", "rfft", "irfft"):
    _register_many_dimensional(f"{_name}2", getattr(jnp.fft, f"{_name}n"), (-2, -1))
    _register_many_dimensional(f"{_name}n", getattr(jnp.fft, f"{_name}n"), None)


lowering("aten.fft_fftshift.default")(jnp.fft.fftshift)
lowering("aten.fft_ifftshift.default")(jnp.fft.ifftshift)
