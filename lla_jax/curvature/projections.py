"""Projects vectors on the rows of a basis: inner products, combinations of rows, and what is orthogonal to them.

Pure functions on trees; a basis is a stacked tree (m, ...). Over 10^7 entries the order of sums decides how many digits
are kept, and on a CPU how many hidden copies are made.
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp

from lla_jax.core import tree as _tree
from lla_jax.core.types import PyTree
from lla_jax.curvature.space import vector_at

BREAKDOWN = 10.0  # a remainder below this times eps |A q| is rounding
LONG = 2**20  # entries of a leaf whose rows are added up one by one, on a CPU
TOGETHER = 8  # rows that are added up at once


def inner(basis: PyTree, vector: PyTree) -> jax.Array:
    """Q'w: the inner products ``(m,)`` of a vector with the rows of a basis, in float32 at least."""
    leaves = [tuple(map(_fold, pair)) for pair in zip(jax.tree.leaves(basis), jax.tree.leaves(vector), strict=True)]
    # multiply and sum, not a matrix product: over 10^7 entries XLA's on a CPU keeps three digits, this all
    return sum(jnp.sum(_tree.widen(q) * _tree.widen(w), tuple(range(-w.ndim, 0))) for q, w in leaves)  # type: ignore


def _fold(x: jax.Array) -> jax.Array:
    """The array with a long last axis as two: XLA on a CPU copies four rows at a time to sum over one long axis."""
    size = x.shape[-1] if x.ndim else 0
    width = next((b for b in range(4096, 63, -1) if size % b == 0), 0) if size >= LONG else 0
    return x.reshape(*x.shape[:-1], size // width, width) if width else x


def combine(coefficients: jax.Array, basis: PyTree) -> PyTree:
    """Q c: the sum of the rows of a basis, weighted by c ``(m,)``; k stacked sums for c of shape ``(k, m)``."""
    if coefficients.ndim == 1:
        return plus_rows(jax.tree.map(lambda q: jnp.zeros(q.shape[1:], q.dtype), basis), coefficients, basis)
    with jax.default_matmul_precision("highest"):
        return jax.tree.map(lambda q: jnp.tensordot(coefficients.astype(q.dtype), q, 1), basis)


def plus_rows(vector: PyTree, coefficients: jax.Array, basis: PyTree) -> PyTree:
    """w + Q c, for c ``(m,)``."""

    def at_once(w: jax.Array, c: jax.Array, q: jax.Array) -> jax.Array:
        return w + jnp.tensordot(c, q, 1)

    def row_by_row(w: jax.Array, c: jax.Array, q: jax.Array) -> jax.Array:
        """On a CPU a matrix product of long rows packs them first, which takes the memory of two more bases."""
        whole = len(c) // TOGETHER * TOGETHER

        def some(start: Any, count: int, w: jax.Array) -> jax.Array:
            return w + sum(c[start + i] * vector_at(q, start + i) for i in range(count))

        w = jax.lax.fori_loop(0, whole // TOGETHER, lambda i, w: some(i * TOGETHER, TOGETHER, w), w)
        return some(whole, len(c) - whole, w) if whole < len(c) else w

    def leaf(w: jax.Array, q: jax.Array) -> jax.Array:
        operands = (w, coefficients.astype(q.dtype), q)
        if w.size < LONG:
            return at_once(*operands)
        return jax.lax.platform_dependent(*operands, cpu=row_by_row, default=at_once)

    with jax.default_matmul_precision("highest"):
        return jax.tree.map(leaf, vector, basis)


def row_of(basis: PyTree) -> PyTree:
    """Shapes and dtypes of a row."""
    return jax.tree.map(lambda q: jax.ShapeDtypeStruct(q.shape[1:], q.dtype), basis)


def normalize(vector: PyTree, size: jax.Array, least: Any) -> tuple[PyTree, jax.Array]:
    """(vector / size, size); zeros where the size is not above ``least``, or not finite."""
    good = (size > least) & jnp.isfinite(size)
    factor = 1 / jnp.where(good, size, 1)
    unit = jax.tree.map(lambda x: jnp.where(good, x * factor, 0).astype(x.dtype), vector)
    return unit, jnp.where(good, size, 0)


def orthogonal(
    bases: tuple[PyTree, ...], product: PyTree, scale: Any
) -> tuple[PyTree, list[jax.Array], jax.Array, jax.Array]:
    """Make a product orthogonal to the rows of all bases, twice, and of norm 1.

    Returns:
      (unit remainder, inner products with each of the bases, norm of the remainder, norm of the product). The remainder
      is zero, and so is its norm, where the norm is below 10 eps max(scale, |product|), or not finite.
    """
    for basis in bases:
        chex.assert_trees_all_equal_shapes(row_of(basis), product)
    size, rest = _tree.norm(product), product
    least = BREAKDOWN * jnp.finfo(size.dtype).eps * jnp.maximum(size, scale)
    total: list[Any] = [0] * len(bases)
    for _ in range(2):  # once leaves an error of eps |A q| / beta
        coefficients = [inner(basis, rest) for basis in bases]
        for h, basis in zip(coefficients, bases):
            rest = plus_rows(rest, -h, basis)
        total = [a + b for a, b in zip(total, coefficients)]
    unit, beta = normalize(rest, _tree.norm(rest), least)
    return unit, total, beta, size
