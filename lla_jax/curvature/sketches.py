"""The algebra of Hutch++ and XTrace gives the trace of an operator from its products on the span of a few vectors.

A sketch holds an orthonormal basis Q of the span of products A s, and small matrices of inner products. Random vectors
are not kept: each has a number, and is drawn again from the key and its number when it is needed. Vectors are the rows
of one array (b, n); where the parameters are sharded over devices they stay a stacked tree, in a tuple, and no leaf is
brought together.

With T the test vectors of the remainder, tr A = tr (Q'A Q) + the mean of
t'(I - Q Q') A (I - Q Q') t, and everything follows from

    core = Q'A Q,   inside = Q'T,   product = Q'A T,   forms = diag(T'A T),   squares = diag(T'T).

Inner products are taken on the device in the dtype of the vectors, the k x k algebra on the host in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core.standard_errors import widening
from lla_jax.core.types import PyTree
from lla_jax.curvature.linear_operator import Operator
from lla_jax.curvature.space import Space, draw

AT_ONCE = 8  # vectors in a block
PIECE = 4096  # entries of a vector in one matrix product
NOISE = 100  # times eps: relative noise added to products, so that dependent ones give a well-defined basis too


# --- vectors: trees for operators, rows (b, n) for sketches (or stacked trees, if the space is sharded)


def rows(vectors: PyTree, space: Space) -> Any:
    """Stacked vectors as rows (b, n); in a sharded space the stacked tree itself, in a tuple."""
    if space.shards is not None:
        return (space.pin(vectors),)
    leaves = jax.tree.leaves(vectors)
    dtype = jnp.result_type(*leaves)
    return jnp.concatenate([x.reshape(x.shape[0], -1).astype(dtype) for x in leaves], 1)


@jax.jit
def trees(space: Space, flat: Any) -> PyTree:
    """Rows, as ``rows`` makes them, as stacked vectors again."""
    if space.shards is not None:
        return flat[0]
    sizes = [int(np.prod(s)) for s, _ in space.shapes]
    pieces = jnp.split(flat, np.cumsum(sizes)[:-1], axis=1)
    return space.tree([x.reshape(len(flat), *s).astype(d) for x, (s, d) in zip(pieces, space.shapes, strict=True)])


@partial(jax.jit, static_argnames="distribution")
def _draw_rows(space: Space, key: jax.Array, numbers: Any, *, distribution: str) -> Any:
    return rows(draw(space, key, numbers, distribution=distribution), space)


def draw_rows(H: Operator, key: jax.Array, numbers: np.ndarray, distribution: str) -> Any:
    """The random vectors with these numbers, "normal" or "rademacher", as rows (b, n)."""
    return H.space.wait_for(H.place(_draw_rows(H.space, key, numbers, distribution=distribution)))


def count(flat: Any) -> int:
    """The number of rows."""
    return int(jax.tree.leaves(flat)[0].shape[0])


def _each(f: Callable, *flats: Any) -> Any:
    return jax.tree.map(f, *flats)


@jax.jit
def _check_finite(vectors: PyTree, space: Space) -> tuple[Any, jax.Array]:
    """(stacked vectors as rows, for each of them whether it is finite)."""
    finite = [jnp.isfinite(x).all(tuple(range(1, x.ndim))) for x in jax.tree.leaves(vectors)]
    return rows(vectors, space), jnp.stack(finite).all(0)


class NotFinite(Exception):
    """A product has NaN or infinite entries."""


@dataclass
class ProductCounter:
    """A function that multiplies rows (b, n) by an operator, and counts its products in ``used``."""

    H: Operator
    used: int = 0

    def __call__(self, flat: Any) -> Any:
        """A times every row.

        Raises:
          NotFinite: a product is not finite; the message has its number, counted from the first.
        """
        space = self.H.space
        images, finite = _check_finite(self.H.products(trees(space, flat)), space)
        bad = np.flatnonzero(~np.asarray(finite))
        before, self.used = self.used, self.used + count(flat)
        if len(bad):
            raise NotFinite(f"product {before + int(bad[0]) + 1} is not finite")
        return images


# --- the basis


def _sizes(flat: Any) -> jax.Array:
    """The norm of every row, (b,)."""
    squares = (jnp.sum(x * x, tuple(range(1, x.ndim))) for x in jax.tree.leaves(flat))
    return jnp.sqrt(sum(squares))  # type: ignore[arg-type]


def _by_row(factor: jax.Array, x: jax.Array) -> jax.Array:
    return factor.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) * x


@jax.jit
def _noisy(flat: Any, noise: Any) -> Any:
    """Every row plus a row of ``noise`` scaled to 100 eps of its norm: only directions of rounding errors change."""
    size = _sizes(flat)
    small = NOISE * jnp.finfo(size.dtype).eps / _sizes(noise) * jnp.where(size > 0, size, 1)
    return _each(lambda x, y: x + _by_row(small, y), flat, noise)


@jax.jit
def _gram(a: Any, b: Any) -> jax.Array:
    """A B', summed in pieces: over 10^7 entries XLA's product with one row on a CPU keeps only three digits."""
    if isinstance(a, tuple):  # no axis is cut, and each device sums its own part
        pairs = zip(*map(jax.tree.leaves, (a, b)), strict=True)
        each = (jnp.sum(x[:, None] * y[None], tuple(range(2, x.ndim + 1))) for x, y in pairs)
        return sum(each)  # type: ignore[return-value]
    chex.assert_rank([a, b], 2)
    n = a.shape[1]
    chex.assert_shape(b, (None, n))
    piece = min(n, PIECE)
    split = (jnp.pad(x, ((0, 0), (0, -n % piece))).reshape(len(x), -1, piece) for x in (a, b))
    with jax.default_matmul_precision("highest"):
        return jnp.einsum("ipn,jpn->pij", *split).sum(0)


@jax.jit
def _without(basis: Any, flat: Any) -> Any:
    """The part of the rows orthogonal to the rows of ``basis``."""
    inner = _gram(flat, basis)
    with jax.default_matmul_precision("highest"):
        return _each(lambda x, q: x - jnp.tensordot(inner.astype(q.dtype), q, 1), flat, basis)


@jax.jit
def _orthonormal(space: Space, flat: Any) -> Any:
    if space.shards is not None:
        return rows(_one_by_one(flat)[0], space)
    q = jnp.linalg.qr(flat.T)[0].T
    if space.scale is None:
        return q
    return jnp.where(rows(_each(lambda s: s[None], space.scale), space) != 0, q, 0)


def _one_by_one(flat: Any) -> Any:
    """Make rows orthonormal by Gram-Schmidt: each is made orthogonal, twice, to the rows before it."""

    def one(i: Any, q: Any) -> Any:
        vector = _each(lambda x: jax.lax.dynamic_index_in_dim(x, i, 0), flat)
        for _ in range(2):
            vector = _without(q, vector)
        size = _sizes(vector)
        unit = _each(lambda x: _by_row(1 / jnp.where(size > 0, size, 1), x), vector)
        return _each(lambda x, u: jax.lax.dynamic_update_index_in_dim(x, u[0], i, 0), q, unit)

    return jax.lax.fori_loop(0, count(flat), one, _each(jnp.zeros_like, flat))


def gram(a: Any, b: Any) -> np.ndarray:
    """The inner products A B' of rows, float64."""
    return np.asarray(_gram(a, b), np.float64)


# --- sketches


class Sketch(NamedTuple):
    """A basis of k rows and its inner products with t test vectors, named as in the module's docstring."""

    basis: tuple[Any, ...]  # blocks of rows
    core: np.ndarray  # (k, k)
    factor: np.ndarray  # (k, k), R of Y = Q R, where Y are the products whose span the basis is
    tests: tuple[np.ndarray, ...]  # the numbers from which the test vectors are drawn again, in blocks
    inside: np.ndarray  # (k, t)
    product: np.ndarray  # (k, t)
    forms: np.ndarray  # (t,)
    squares: np.ndarray  # (t,)


def empty() -> Sketch:
    """A sketch without basis and test vectors."""
    no_matrix, no_vector = np.zeros((0, 0)), np.zeros(0)
    return Sketch((), no_matrix, no_matrix, (), no_matrix, no_matrix, no_vector, no_vector)


def widen(
    sketch: Sketch,
    times: ProductCounter,
    images: Any,
    numbers: np.ndarray,
    noise: jax.Array,
    test: jax.Array,
    kind: str,
) -> Sketch:
    """Add the span of more products to the basis. The new rows are multiplied too: as many products again.

    Args:
      sketch: the sketch so far.
      times: the operator.
      images: the products, rows (b, n).
      numbers: the numbers of the vectors that were multiplied; the noise is drawn from them.
      noise: key of the noise that is added to the products.
      test: key from which the test vectors are drawn again.
      kind: distribution of the test vectors.
    """
    space = times.H.space
    noisy = new = _noisy(images, draw_rows(times.H, noise, numbers, "normal"))
    for _ in range(2):  # once leaves an error of eps times the condition number; twice is enough (Kahan)
        for block in sketch.basis:
            new = space.wait_for(_without(block, new))
        new = space.wait_for(_orthonormal(space, new))
    image = times(new)
    none = np.zeros((0, count(new)))
    cross = np.concatenate([none, *(gram(block, image) for block in sketch.basis)])
    above = np.concatenate([none, *(gram(block, noisy) for block in sketch.basis)])
    own = gram(new, image)
    inside, product = (np.zeros((count(new), 0)) for _ in range(2))
    for each in sketch.tests:
        tests = draw_rows(times.H, test, each, kind)
        inside = np.concatenate([inside, gram(new, tests)], 1)
        product = np.concatenate([product, gram(image, tests)], 1)
    return sketch._replace(
        basis=(*sketch.basis, new),
        core=np.block([[sketch.core, cross], [cross.T, (own + own.T) / 2]]),
        factor=np.block([[sketch.factor, above], [np.zeros_like(above.T), np.triu(gram(new, noisy))]]),
        inside=np.concatenate([sketch.inside, inside]),
        product=np.concatenate([sketch.product, product]),
    )


def add_tests(sketch: Sketch, tests: Any, of_tests: Any, numbers: np.ndarray) -> Sketch:
    """Add test vectors to the sketch, as their inner products with the basis and with their own products.

    Args:
      sketch: the sketch so far.
      tests: the test vectors, rows (b, n).
      of_tests: their products, rows (b, n).
      numbers: (b,) the numbers from which the test vectors are drawn again.
    """
    none = np.zeros((0, count(tests)))
    inside = np.concatenate([none, *(gram(block, tests) for block in sketch.basis)])
    product = np.concatenate([none, *(gram(block, of_tests) for block in sketch.basis)])
    return sketch._replace(
        tests=(*sketch.tests, numbers),
        inside=np.concatenate([sketch.inside, inside], 1),
        product=np.concatenate([sketch.product, product], 1),
        forms=np.concatenate([sketch.forms, np.diag(gram(tests, of_tests))]),
        squares=np.concatenate([sketch.squares, np.diag(gram(tests, tests))]),
    )


def _numbers(sketch: Sketch, size: int) -> np.ndarray:
    """The numbers of the next ``size`` vectors: they count on from those of the test vectors so far."""
    return np.arange(len(sketch.forms), len(sketch.forms) + size, dtype=np.uint32)


def grow_for_xtrace(sketch: Sketch, times: ProductCounter, keys: jax.Array, size: int) -> Sketch:
    """Add ``size`` rows to the basis and as many test vectors, the vectors whose products make the rows (2 ``size``
    products)."""
    numbers = _numbers(sketch, size)
    vectors = draw_rows(times.H, keys[0], numbers, "normal")
    images = times(vectors)
    sketch = widen(sketch, times, images, numbers, keys[2], keys[0], "normal")
    return add_tests(sketch, vectors, images, numbers)


def grow_for_hutch(sketch: Sketch, times: ProductCounter, keys: jax.Array, size: int) -> Sketch:
    """Add ``size`` rows to the basis and as many test vectors, others than those whose products make the rows
    (3 ``size`` products)."""
    numbers = _numbers(sketch, size)
    images = times(draw_rows(times.H, keys[0], numbers, "rademacher"))
    sketch = widen(sketch, times, images, numbers, keys[2], keys[1], "rademacher")
    return draw_tests(sketch, times, keys[1], size)


def draw_tests(sketch: Sketch, times: ProductCounter, key: jax.Array, size: int) -> Sketch:
    """Add ``size`` test vectors of signs, and leave the basis as it is (``size`` products)."""
    numbers = _numbers(sketch, size)
    tests = draw_rows(times.H, key, numbers, "rademacher")
    return add_tests(sketch, tests, times(tests), numbers)


def _remainders(sketch: Sketch, inside: np.ndarray) -> np.ndarray:
    """(t - Q x)'A (t - Q x) for every test vector t, with x its column of ``inside``; (t,)."""
    return (
        sketch.forms
        - 2 * np.einsum("ij,ij->j", inside, sketch.product)
        + np.einsum("ij,ij->j", inside, sketch.core @ inside)
    )


def hutch_plus_plus(sketch: Sketch) -> np.ndarray:
    """The estimates of the trace by Hutch++, one for each test vector, (t,)."""
    return np.trace(sketch.core) + _remainders(sketch, sketch.inside)


def xtrace(sketch: Sketch, n: int) -> tuple[float, float]:
    """The estimate of the trace by XTrace, and its standard error (NaN for one test vector).

        T = mean of T_i,   Var T = s^2 / t + C,   C = mean over i != j of h_ij h_ji

    T_i, that of test vector i, has a basis without the product of vector i. All T_i share the other products, so that
    they are not independent: their sample variance s^2 alone, the error estimate of XTrace's authors, misses their
    covariance C, and so understates the error (by 1.3 times at few draws, 3 at as many as n). Given all other vectors,
    T_i has the right mean whatever vector j is, so C is that of the interaction h of the two: what the product of
    vector j changes in T_i, d_ij = T_i - T_i without j, minus what it changes on average, the effects of rows and
    columns of d.

    Args:
      sketch: what ``grow_for_xtrace`` made, of t test vectors.
      n: the number of entries of a vector.

    References: Epperly et al. 2023, arXiv 2301.07825 (T_i and s^2 / t); Efron and Stein 1981 (the decomposition into
    effects of one vector and interactions of two).
    """
    draws, without = _leave_out(sketch, n)
    t = len(draws)
    mean = float(draws.mean())
    if t < 2:
        return mean, math.nan
    variance, shared = float(draws.var(ddof=1)), 0.0
    if t > 3:
        h = _interactions(draws[:, None] - without)
        shared = min(max(float((h * h.T).sum()) / ((t - 1) * (t - 2) - 1), 0.0), variance)
    # draws that share their vectors count for fewer; half is calibrated
    return mean, widening((t - 1) / 2) * math.sqrt(variance / t + shared)


def _interactions(changes: np.ndarray) -> np.ndarray:
    """``changes`` (t, t) without its diagonal and without the effects of rows and columns, fitted by least squares."""
    t = len(changes)
    changes = np.where(np.eye(t, dtype=bool), 0.0, changes)
    rows, columns, every = changes.sum(1), changes.sum(0), changes.sum()
    # solves the normal equations of a table whose diagonal is missing
    of_row = ((t - 1) * rows + columns) / (t * (t - 2))
    of_column = ((t - 1) * columns + rows) / (t * (t - 2))
    fitted = of_row[:, None] + of_column[None, :] - every / ((t - 1) * (t - 2))
    return np.where(np.eye(t, dtype=bool), 0.0, changes - fitted)


def _leave_out(sketch: Sketch, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The estimates (t,) of which row i has a basis without the product of vector i, and those (t, t) without i and j.

    The basis without i is Q (I - s s'), s the unit vector orthogonal to the other columns of R: a column of R^-T. That
    without i and j is Q (I - s s' - u u'), u the part of the j-th s orthogonal to the i-th, scaled to norm 1. The
    remainder is taken over a sphere: the part of a Gaussian outside of the basis has a uniform direction, so its
    squared length is replaced by the dimension. The diagonal of the second result means nothing.
    """
    s = np.linalg.inv(sketch.factor).T
    s /= np.linalg.norm(s, axis=0)
    k, core, inside = len(s), sketch.core, sketch.inside
    cosine, core_s = s.T @ s, s.T @ core @ s
    s_inside, s_product, s_core = s.T @ inside, s.T @ sketch.product, s.T @ core @ inside
    own, own_core = np.diag(s_inside), np.diag(core_s)

    # without i: x = inside - s (s'inside) in place of inside
    outside = sketch.squares - (inside**2).sum(0) + own**2
    forms = sketch.forms - 2 * ((inside * sketch.product).sum(0) - own * np.diag(s_product))
    forms += (inside * (core @ inside)).sum(0) - 2 * own * np.diag(s_core) + own**2 * own_core
    left = np.trace(core) - own_core
    one = left + (n - k + 1) / outside * forms

    # without j too: row i, column j
    length = np.sqrt(np.maximum(1 - cosine**2, np.finfo(float).tiny))

    def along(of: np.ndarray) -> np.ndarray:
        """u' times something of which ``of[j, i]`` is s_j' times it."""
        return (of.T - cosine * np.diag(of)[:, None]) / length

    with np.errstate(over="ignore", invalid="ignore"):
        u, u_s = along(s_inside), along(core_s)
        u_core = (own_core[None, :] - 2 * cosine * core_s + cosine**2 * own_core[:, None]) / length**2
        moved = u**2 * u_core - 2 * u * along(s_core) + 2 * u * own[:, None] * u_s + 2 * u * along(s_product)
        both = left[:, None] - u_core + (n - k + 2) / (outside[:, None] + u**2) * (forms[:, None] + moved)
    return one, np.where(np.isfinite(both), both, one[:, None])
