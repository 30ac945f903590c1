"""The trace of an operator from what it does on the span of a few products: the algebra of Hutch++ and XTrace.

A sketch holds an orthonormal basis Q of products A s, and k x k numbers; n-sized vectors other than Q are drawn again
from their numbers when they are needed. With T the test vectors of the remainder, tr A = tr (Q'A Q) + the mean of
t'(I - Q Q') A (I - Q Q') t, and everything follows from

    core = Q'A Q,   inside = Q'T,   product = Q'A T,   whole = diag(T'A T),   squares = diag(T'T).

Inner products are taken on the device in the dtype of the vectors, the k x k algebra on the host in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax import execution as _execution
from lla_jax._types import PyTree
from lla_jax.linear_operator import HostOperator, LinearOperator

Operator = LinearOperator | HostOperator

AT_ONCE = 8  # vectors in a block
PIECE = 4096  # entries of a vector in one matrix product
NOISE = 100  # times eps: added to a product, so that the basis is well defined where the products are dependent


# --- vectors: drawn, multiplied; trees outside, rows (b, n) inside


def halved(compute: Callable[[int, int], Any], lo: int, hi: int) -> list[Any]:
    """``[compute(lo, hi)]``; out of memory takes it in two halves, and so on."""
    try:
        return [compute(lo, hi)]
    except Exception as error:
        if hi - lo == 1 or not _execution.out_of_memory(error):
            raise
    middle = (lo + hi) // 2
    return halved(compute, lo, middle) + halved(compute, middle, hi)


def rows(vectors: PyTree) -> jax.Array:
    """Stacked vectors as rows (b, n)."""
    leaves = jax.tree_util.tree_leaves(vectors)
    dtype = jnp.result_type(*leaves)
    return jnp.concatenate([x.reshape(x.shape[0], -1).astype(dtype) for x in leaves], 1)


def trees(space: Operator, flat: jax.Array) -> PyTree:
    """Rows (b, n) as stacked vectors."""
    sizes = [int(np.prod(s)) for s, _ in space.how.shapes]
    pieces = jnp.split(flat, np.cumsum(sizes)[:-1], axis=1)
    leaves = [x.reshape(len(flat), *s).astype(d) for x, (s, d) in zip(pieces, space.how.shapes, strict=True)]
    return jax.tree_util.tree_unflatten(space.how.structure, leaves)


@partial(jax.jit, static_argnames="distribution")
def _drawn(space: LinearOperator, key: jax.Array, numbers: Any, *, distribution: str) -> jax.Array:
    return rows(jax.vmap(lambda number: space.random(jax.random.fold_in(key, number), distribution))(numbers))


def drawn(H: Operator, key: jax.Array, numbers: np.ndarray, distribution: str) -> jax.Array:
    """The random vectors of these numbers, "normal" or "rademacher", as rows (b, n)."""
    return _drawn(H.space, key, numbers, distribution=distribution)


def times_all(H: LinearOperator, vectors: PyTree) -> PyTree:
    """A times stacked vectors; pure. At once on an accelerator, one after another on a CPU, where eight networks'
    tangents spill the caches: there a batch is up to four times slower, except for the smallest networks."""
    platform = H.how.mesh.devices.flat[0].platform if H.how.mesh is not None else jax.default_backend()
    return jax.lax.map(H.mv, vectors) if platform == "cpu" else jax.vmap(H.mv)(vectors)


@jax.jit
def _products(H: LinearOperator, flat: jax.Array) -> tuple[jax.Array, jax.Array]:
    found = rows(times_all(H, trees(H, flat)))
    return found, jnp.isfinite(found).all(1)


@jax.jit
def _row(space: LinearOperator, flat: jax.Array, i: Any) -> PyTree:
    return jax.tree_util.tree_map(lambda x: x[0], trees(space, flat[i][None]))


def row(H: Operator, flat: jax.Array, i: int) -> PyTree:
    """A row as a vector."""
    return _row(H.space, flat, i)


@jax.jit
def _stacked(vectors: list[PyTree]) -> tuple[jax.Array, jax.Array]:
    found = rows(jax.tree_util.tree_map(lambda *leaves: jnp.stack(leaves), *vectors))
    return found, jnp.isfinite(found).all(1)


class NotFinite(Exception):
    """A product has NaN or infinite entries."""


@dataclass
class Counted:
    """An operator's product with rows (b, n), counted."""

    H: Operator
    used: int = 0

    def __call__(self, flat: jax.Array) -> jax.Array:
        """A times every row.

        Raises:
          NotFinite: a product is not finite; it says which, counted from the first.
        """

        def part(lo: int, hi: int) -> tuple[jax.Array, np.ndarray]:
            return self._of(flat if hi - lo == len(flat) else flat[lo:hi])

        found, finite = zip(*halved(part, 0, len(flat)), strict=True)
        bad = np.flatnonzero(~np.concatenate(finite))
        before, self.used = self.used, self.used + len(flat)
        if len(bad):
            raise NotFinite(f"product {before + int(bad[0]) + 1} is not finite")
        return found[0] if len(found) == 1 else jnp.concatenate(found)

    def _of(self, flat: jax.Array) -> tuple[jax.Array, np.ndarray]:
        if self.H.on_device and isinstance(self.H, LinearOperator):
            found, finite = _products(self.H, flat)
        else:
            found, finite = _stacked([self.H.product(row(self.H, flat, i)) for i in range(len(flat))])
        return found, np.asarray(finite)


# --- the basis


@jax.jit
def _noisy(flat: jax.Array, noise: jax.Array) -> jax.Array:
    """Every row with a random one added, small enough to change nothing but the directions of rounding errors."""
    size = jnp.linalg.norm(flat, axis=1, keepdims=True)
    small = NOISE * jnp.finfo(flat.dtype).eps / jnp.linalg.norm(noise, axis=1, keepdims=True)
    return flat + small * jnp.where(size > 0, size, 1) * noise


@jax.jit
def _gram(a: jax.Array, b: jax.Array) -> jax.Array:
    """A B', summed in pieces: over 10^7 entries XLA's product with one row on a CPU loses all but three digits."""
    n = a.shape[1]
    piece = min(n, PIECE)
    split = (jnp.pad(x, ((0, 0), (0, -n % piece))).reshape(len(x), -1, piece) for x in (a, b))
    with jax.default_matmul_precision("highest"):
        return jnp.einsum("ipn,jpn->pij", *split).sum(0)


@jax.jit
def _without(basis: jax.Array, flat: jax.Array) -> jax.Array:
    """The part of the rows orthogonal to the rows of ``basis``."""
    with jax.default_matmul_precision("highest"):
        return flat - _gram(flat, basis) @ basis


@jax.jit
def _orthonormal(space: LinearOperator, flat: jax.Array) -> jax.Array:
    found = jnp.linalg.qr(flat.T)[0].T
    if space.scale is None:
        return found
    return jnp.where(rows(jax.tree_util.tree_map(lambda s: s[None], space.scale)) != 0, found, 0)


def gram(a: jax.Array, b: jax.Array) -> np.ndarray:
    return np.asarray(_gram(a, b), np.float64)


# --- sketches


class Sketch(NamedTuple):
    """What is known of an operator; see the module. ``factor`` is R of Y = Q R, Y the products that make the basis."""

    basis: tuple[jax.Array, ...]  # blocks of rows
    core: np.ndarray
    factor: np.ndarray
    tests: tuple[np.ndarray, ...]  # their numbers, in blocks
    inside: np.ndarray
    product: np.ndarray
    whole: np.ndarray
    squares: np.ndarray


def empty() -> Sketch:
    """Nothing known yet."""
    nothing, none = np.zeros((0, 0)), np.zeros(0)
    return Sketch((), nothing, nothing, (), nothing, nothing, none, none)


def widened(
    sketch: Sketch, times: Counted, images: jax.Array, numbers: np.ndarray, noise: jax.Array, test: jax.Array, kind: str
) -> Sketch:
    """The sketch with the span of more products in its basis, which takes as many products again.

    Args:
      sketch: what is known so far.
      times: the operator.
      images: the products, rows (b, n).
      numbers: their numbers.
      noise: key of what is added to them.
      test: key of the test vectors.
      kind: distribution of the test vectors.
    """
    space = times.H.space
    noisy = new = _noisy(images, drawn(times.H, noise, numbers, "normal"))
    for _ in range(2):  # once leaves an error of eps times the condition number; twice is enough (Kahan)
        for block in sketch.basis:
            new = _without(block, new)
        new = _orthonormal(space, new)
    image = times(new)
    none = np.zeros((0, len(new)))
    cross = np.concatenate([none, *(gram(block, image) for block in sketch.basis)])
    above = np.concatenate([none, *(gram(block, noisy) for block in sketch.basis)])
    own = gram(new, image)
    inside, product = (np.zeros((len(new), 0)) for _ in range(2))
    for each in sketch.tests:
        tests = drawn(times.H, test, each, kind)
        inside = np.concatenate([inside, gram(new, tests)], 1)
        product = np.concatenate([product, gram(image, tests)], 1)
    return sketch._replace(
        basis=(*sketch.basis, new),
        core=np.block([[sketch.core, cross], [cross.T, (own + own.T) / 2]]),
        factor=np.block([[sketch.factor, above], [np.zeros_like(above.T), np.triu(gram(new, noisy))]]),
        inside=np.concatenate([sketch.inside, inside]),
        product=np.concatenate([sketch.product, product]),
    )


def tested(sketch: Sketch, tests: jax.Array, of_tests: jax.Array, numbers: np.ndarray) -> Sketch:
    """The sketch with more test vectors: rows (b, n), their products and their numbers."""
    none = np.zeros((0, len(tests)))
    inside = np.concatenate([none, *(gram(block, tests) for block in sketch.basis)])
    product = np.concatenate([none, *(gram(block, of_tests) for block in sketch.basis)])
    return sketch._replace(
        tests=(*sketch.tests, numbers),
        inside=np.concatenate([sketch.inside, inside], 1),
        product=np.concatenate([sketch.product, product], 1),
        whole=np.concatenate([sketch.whole, np.diag(gram(tests, of_tests))]),
        squares=np.concatenate([sketch.squares, np.diag(gram(tests, tests))]),
    )


def _numbers(sketch: Sketch, size: int) -> np.ndarray:
    """Of the next vectors."""
    return np.arange(len(sketch.whole), len(sketch.whole) + size, dtype=np.uint32)


def grown_for_xtrace(sketch: Sketch, times: Counted, keys: jax.Array, size: int) -> Sketch:
    """The vectors whose products make the basis are the test vectors."""
    numbers = _numbers(sketch, size)
    found = drawn(times.H, keys[0], numbers, "normal")
    images = times(found)
    sketch = widened(sketch, times, images, numbers, keys[2], keys[0], "normal")
    return tested(sketch, found, images, numbers)


def grown_for_hutch(sketch: Sketch, times: Counted, keys: jax.Array, size: int) -> Sketch:
    """The test vectors are others than those whose products make the basis."""
    numbers = _numbers(sketch, size)
    images = times(drawn(times.H, keys[0], numbers, "rademacher"))
    sketch = widened(sketch, times, images, numbers, keys[2], keys[1], "rademacher")
    return more_tests(sketch, times, keys[1], size)


def more_tests(sketch: Sketch, times: Counted, key: jax.Array, size: int) -> Sketch:
    """More test vectors, signs, against the basis as it is."""
    numbers = _numbers(sketch, size)
    found = drawn(times.H, key, numbers, "rademacher")
    return tested(sketch, found, times(found), numbers)


def _remainders(sketch: Sketch, inside: np.ndarray) -> np.ndarray:
    """(t - Q x)'A (t - Q x) for every test vector t, with x the columns of ``inside``."""
    return (
        sketch.whole
        - 2 * np.einsum("ij,ij->j", inside, sketch.product)
        + np.einsum("ij,ij->j", inside, sketch.core @ inside)
    )


def hutch_plus_plus(sketch: Sketch) -> np.ndarray:
    """One estimate of the trace for each test vector."""
    return np.trace(sketch.core) + _remainders(sketch, sketch.inside)


def xtrace(sketch: Sketch, n: int) -> np.ndarray:
    """One estimate of the trace for each test vector i, from a basis that leaves the product of vector i out.

    That basis is Q (I - s s'), s the unit vector orthogonal to the other columns of R: a column of R^-T. The remainder
    is taken over a sphere: the part of a Gaussian outside of the basis has a uniform direction, so its squared length
    is replaced by the dimension.
    """
    s = np.linalg.inv(sketch.factor).T
    s /= np.linalg.norm(s, axis=0)
    k = len(s)
    inside = sketch.inside - s * np.einsum("ij,ij->j", s, sketch.inside)
    outside = sketch.squares - np.einsum("ij,ij->j", inside, inside)
    left_out = np.einsum("ij,ij->j", s, sketch.core @ s)
    return np.trace(sketch.core) - left_out + (n - k + 1) / outside * _remainders(sketch, inside)
