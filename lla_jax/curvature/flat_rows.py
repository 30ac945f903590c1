"""Vectors as the rows of one array (b, width), and bases of them: drawn, multiplied, made orthonormal in their memory.

Where the parameters are sharded over devices, rows stay a stacked tree, in a tuple, and no leaf is brought together.
Inner products are taken on the device in the dtype of the vectors. Long rows are taken part by part, so that what is
computed of them takes no memory like theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core.interrupts import deferred_interrupts
from lla_jax.core.types import PyTree
from lla_jax.curvature.linear_operator import Operator
from lla_jax.curvature.space import Space, draw, zeros

PIECE = 4096  # entries of a vector in one matrix product
PIECES = 64  # that are brought together at a time
NOISE = 100  # times eps: relative noise added to products, so that dependent ones give a well-defined basis too


def width(size: int) -> int:
    """The length of a row that holds ``size`` entries: that of whole pieces, so that no row is copied to be cut."""
    if size <= PIECE:
        return size
    cuts = -(-size // (PIECES * PIECE))
    return cuts * -(-size // (cuts * PIECE)) * PIECE


def _cuts(flat: Any) -> int:
    """Into how many parts rows are cut, which are brought together one by one."""
    return max(1, -(-flat.shape[1] // (PIECES * PIECE)))


def rows(vectors: PyTree, space: Space) -> Any:
    """Stacked vectors as rows (b, width) with zeros at their ends; in a sharded space the stacked tree, in a tuple."""
    if space.shards is not None:
        return (space.pin(vectors),)
    leaves = jax.tree.leaves(vectors)
    dtype = jnp.result_type(*leaves)
    flat = jnp.concatenate([x.reshape(x.shape[0], -1).astype(dtype) for x in leaves], 1)
    return jnp.pad(flat, ((0, 0), (0, width(space.size) - space.size)))


@jax.jit
def trees(space: Space, flat: Any) -> PyTree:
    """Rows, as ``rows`` makes them, as stacked vectors again."""
    return _trees(space, flat, 0, count(flat))


@partial(jax.jit, static_argnames="num")
def _some_trees(space: Space, flat: Any, start: Any, *, num: int) -> PyTree:
    return _trees(space, flat, start, num)


def _trees(space: Space, flat: Any, start: Any, num: int) -> PyTree:
    """``num`` rows from ``start`` as stacked vectors."""
    if space.shards is not None:
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, num), flat[0])
    sizes = [int(np.prod(s)) for s, _ in space.shapes]
    offsets = np.cumsum([0, *sizes[:-1]])
    start = jnp.asarray(start, jnp.int32)  # all indices of a slice have one type, in 64 bits, too
    pieces = [jax.lax.dynamic_slice(flat, (start, np.int32(o)), (num, n)) for o, n in zip(offsets, sizes, strict=True)]
    return space.tree([x.reshape(num, *s).astype(d) for x, (s, d) in zip(pieces, space.shapes, strict=True)])


@partial(jax.jit, donate_argnums=1)
def _put(space: Space, flat: Any, vector: PyTree, at: Any) -> tuple[Any, jax.Array]:
    """(rows with a stacked vector (1, ...) in row ``at``, whether it is finite); the rows are used again."""
    finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(vector)]).all()
    if space.shards is not None:
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=at, axis=0)
        return (space.pin(jax.tree.map(put, flat[0], vector)),), finite
    offset = 0
    for x in jax.tree.leaves(vector):
        flat = jax.lax.dynamic_update_slice(flat, x.reshape(1, -1).astype(flat.dtype), (at, np.int32(offset)))
        offset += x.size
    return flat, finite


@partial(jax.jit, static_argnames="num")
def _zeros(space: Space, *, num: int) -> Any:
    if space.shards is not None:
        return (zeros(space, leading=(num,)),)
    return jnp.zeros((num, width(space.size)), space.dtype)


@partial(jax.jit, static_argnames="distribution")
def _draw_rows(space: Space, key: jax.Array, numbers: Any, *, distribution: str) -> Any:
    return rows(draw(space, key, numbers, distribution=distribution), space)


def draw_rows(H: Operator, key: jax.Array, numbers: np.ndarray, distribution: str, *, each: bool = False) -> Any:
    """The random vectors with these numbers, "normal" or "rademacher", as rows (b, width).

    With ``each`` they are drawn one after another, so that one of them at a time takes what drawing takes.
    """
    if not each:
        return H.space.wait_for(H.place(_draw_rows(H.space, key, numbers, distribution=distribution)))
    flat = H.place(_zeros(H.space, num=len(numbers)))
    for i in range(len(numbers)):
        vector = H.place(draw(H.space, key, numbers[i : i + 1], distribution=distribution))
        flat = H.space.wait_for(_put(H.space, flat, H.space.wait_for(vector), np.int32(i))[0])
    return flat


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
    """A function that multiplies rows (b, width) by an operator, and counts its products in ``used``.

    Args:
      H: the operator.
      used: products so far.
      each: whether vectors are drawn and multiplied one after another, so that a row takes little beside itself.
    """

    H: Operator
    used: int = 0
    each: bool = False

    def __call__(self, flat: Any) -> Any:
        """A times every row.

        Raises:
          NotFinite: a product is not finite; the message has its number, counted from the first.
        """
        space, before, num = self.H.space, self.used, count(flat)
        if not self.each:
            images, finite = _check_finite(self.H.products(trees(space, flat)), space)
            self.used += num
            if len(bad := np.flatnonzero(~np.asarray(finite))):
                raise NotFinite(f"product {before + int(bad[0]) + 1} is not finite")
            return images
        images = self.H.place(_zeros(space, num=num))
        with deferred_interrupts() as check:
            for i in range(num):
                check()
                product = self.H.products(_some_trees(space, flat, np.int32(i), num=1))
                images, finite = space.wait_for(_put(space, images, product, np.int32(i)))
                self.used += 1
                if not finite:
                    raise NotFinite(f"product {self.used} is not finite")
        return images


# --- the basis


def _sizes(flat: Any) -> jax.Array:
    """The norm of every row, (b,)."""
    squares = (jnp.sum(x * x, tuple(range(1, x.ndim))) for x in jax.tree.leaves(flat))
    return jnp.sqrt(sum(squares))  # type: ignore[arg-type]


def _by_row(factor: jax.Array, x: jax.Array) -> jax.Array:
    return factor.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) * x


@jax.jit
def _noisy(images: Any, vectors: Any) -> tuple[Any, jax.Array]:
    """(the products plus 100 eps of their norms along their own vectors, the factors of these).

    A basis of the span of (A + e I) s serves as well as one of A s, and only directions of rounding errors change. A
    row depends on its own vector alone, as it does without the noise.
    """
    size = _sizes(images)
    small = NOISE * jnp.finfo(size.dtype).eps / _sizes(vectors) * jnp.where(size > 0, size, 1)
    return _each(lambda x, y: x + _by_row(small, y), images, vectors), small


def _part(flat: Any, i: Any) -> Any:
    """Part ``i`` of rows, in pieces (b, pieces, piece)."""
    long = flat.shape[1] // _cuts(flat)
    piece = min(long, PIECE)
    return jax.lax.dynamic_slice_in_dim(flat, i * long, long, 1).reshape(len(flat), -1, piece)


@jax.jit
def _gram(a: Any, b: Any) -> jax.Array:
    """A B', summed in pieces: over 10^7 entries XLA's product with one row on a CPU keeps only three digits."""
    if isinstance(a, tuple):  # no axis is cut, and each device sums its own part
        pairs = zip(*map(jax.tree.leaves, (a, b)), strict=True)
        each = (jnp.sum(x[:, None] * y[None], tuple(range(2, x.ndim + 1))) for x, y in pairs)
        return sum(each)  # type: ignore[return-value]
    chex.assert_rank([a, b], 2)
    chex.assert_shape(b, (None, a.shape[1]))

    def one(i: Any) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return jnp.einsum("ipn,jpn->pij", _part(a, i), _part(b, i)).sum(0)

    return one(0) if _cuts(a) == 1 else jax.lax.map(one, jnp.arange(_cuts(a))).sum(0)


def _subtract(flat: Any, inner: jax.Array, basis: Any) -> Any:
    """The rows minus ``inner`` (b, k) times the rows of the basis, part by part."""

    def less(x: Any, q: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return x - jnp.tensordot(inner.astype(q.dtype), q, 1)

    if isinstance(flat, tuple) or _cuts(flat) == 1:
        return _each(less, flat, basis)
    long = flat.shape[1] // _cuts(flat)

    def one(i: Any, flat: Any) -> Any:
        x, q = (jax.lax.dynamic_slice_in_dim(each, i * long, long, 1) for each in (flat, basis))
        return jax.lax.dynamic_update_slice_in_dim(flat, less(x, q), i * long, 1)

    return jax.lax.fori_loop(0, _cuts(flat), one, flat)


@partial(jax.jit, donate_argnums=1)
def _without(basis: Any, flat: Any) -> Any:
    """The part of the rows orthogonal to the rows of ``basis``, in their memory."""
    return _subtract(flat, _gram(flat, basis), basis)


@partial(jax.jit, donate_argnums=1)
def _orthonormal(space: Space, flat: Any) -> Any:
    """The rows made orthonormal by Gram-Schmidt, in their memory: each, twice, orthogonal to those before it."""
    before = jnp.arange(count(flat))

    def one(i: Any, flat: Any) -> Any:
        vector = _each(lambda x: jax.lax.dynamic_slice_in_dim(x, i, 1), flat)
        for _ in range(2):
            vector = _subtract(vector, jnp.where(before < i, _gram(vector, flat), 0), flat)
        size = _sizes(vector)
        unit = _each(lambda x: _by_row(1 / jnp.where(size > 0, size, 1), x), vector)
        return _each(lambda x, u: jax.lax.dynamic_update_slice_in_dim(x, u, i, 0), flat, unit)

    flat = jax.lax.fori_loop(0, count(flat), one, flat)
    return flat if space.shards is None else (space.pin(flat[0]),)


def gram(a: Any, b: Any) -> np.ndarray:
    """The inner products A B' of rows, float64."""
    return np.asarray(_gram(a, b), np.float64)


def new_rows(space: Space, basis: tuple[Any, ...], images: Any, vectors: Any) -> tuple[Any, np.ndarray]:
    """(rows orthonormal to each other and to a basis, in the span of the basis and products; the factors of noise).

    Args:
      space: the space of the vectors.
      basis: blocks of orthonormal rows.
      images: products, rows.
      vectors: the vectors that were multiplied, rows; times the factors, they are the noise that is added.
    """
    new, noise = _noisy(images, vectors)
    for _ in range(2):  # once leaves an error of eps times the condition number; twice is enough (Kahan)
        for block in basis:
            new = space.wait_for(_without(block, new))
        new = space.wait_for(_orthonormal(space, new))
    return new, np.asarray(noise, np.float64)
