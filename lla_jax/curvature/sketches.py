"""The algebra of Hutch++ and XTrace gives the trace of an operator from its products on the span of a few vectors.

A sketch holds an orthonormal basis Q of the span of products A s, and small matrices of inner products. Random vectors
are not kept: each has a number, and is drawn again from the key and its number when it is needed. Vectors are rows, as
``flat_rows`` makes them.

With T the test vectors of the remainder, tr A = tr (Q'A Q) + the mean of
t'(I - Q Q') A (I - Q Q') t, and everything follows from

    core = Q'A Q,   inside = Q'T,   product = Q'A T,   forms = diag(T'A T),   squares = diag(T'T).

The k x k algebra is done on the host in float64.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from lla_jax.core.standard_errors import widening
from lla_jax.curvature.flat_rows import ProductCounter, count, draw_rows, gram, new_rows

AT_ONCE = 8  # vectors in a block


class Sketch(NamedTuple):
    """A basis of k rows and its inner products with t test vectors, named as in the module's docstring."""

    basis: tuple[Any, ...]  # blocks of rows
    core: np.ndarray  # (k, k)
    factor: np.ndarray  # (k, k), R of Y = Q R, where Y are the products whose span the basis is; of XTrace only
    tests: tuple[np.ndarray, ...]  # the numbers from which the test vectors are drawn again, in blocks
    inside: np.ndarray  # (k, t)
    product: np.ndarray  # (k, t)
    forms: np.ndarray  # (t,)
    squares: np.ndarray  # (t,)


class Tests(NamedTuple):
    """Inner products of b more test vectors with each other, their products and the k rows of a basis."""

    numbers: np.ndarray  # (b,) from which they are drawn again
    inside: np.ndarray  # (k, b)
    product: np.ndarray  # (k, b)
    forms: np.ndarray  # (b,)
    squares: np.ndarray  # (b,)


def empty() -> Sketch:
    """A sketch without basis and test vectors."""
    no_matrix, no_vector = np.zeros((0, 0)), np.zeros(0)
    return Sketch((), no_matrix, no_matrix, (), no_matrix, no_matrix, no_vector, no_vector)


def measure(basis: tuple[Any, ...], numbers: np.ndarray, tests: Any, of_tests: Any) -> Tests:
    """The inner products of test vectors and of their products, both rows (b, width)."""
    none = np.zeros((0, count(tests)))
    inside, product = (np.concatenate([none, *(gram(q, x) for q in basis)]) for x in (tests, of_tests))
    return Tests(numbers, inside, product, np.diag(gram(tests, of_tests)), np.diag(gram(tests, tests)))


def widen(sketch: Sketch, times: ProductCounter, new: Any, test: jax.Array, kind: str) -> Sketch:
    """Add orthonormal rows to the basis. They are multiplied: as many products as rows.

    Args:
      sketch: the sketch so far.
      times: the operator.
      new: the new rows (b, width), orthogonal to the basis.
      test: key from which the test vectors are drawn again.
      kind: distribution of the test vectors.
    """
    image = times(new)
    own = gram(new, image)
    cross = np.concatenate([np.zeros((0, count(new))), *(gram(block, image) for block in sketch.basis)])
    inside, product = (np.zeros((count(new), 0)) for _ in range(2))
    for block in sketch.tests:
        for numbers in np.split(block, len(block)) if times.each else (block,):
            tests = draw_rows(times.H, test, numbers, kind, each=times.each)
            inside = np.concatenate([inside, gram(new, tests)], 1)
            product = np.concatenate([product, gram(image, tests)], 1)
            del tests  # before the next ones are drawn
    return sketch._replace(
        basis=(*sketch.basis, new),
        core=np.block([[sketch.core, cross], [cross.T, (own + own.T) / 2]]),
        inside=np.concatenate([sketch.inside, inside]),
        product=np.concatenate([sketch.product, product]),
    )


def add_tests(sketch: Sketch, new: Tests) -> Sketch:
    """Add test vectors to a sketch of the same basis."""
    return sketch._replace(
        tests=(*sketch.tests, new.numbers),
        inside=np.concatenate([sketch.inside, new.inside], 1),
        product=np.concatenate([sketch.product, new.product], 1),
        forms=np.concatenate([sketch.forms, new.forms]),
        squares=np.concatenate([sketch.squares, new.squares]),
    )


def _numbers(sketch: Sketch, size: int) -> np.ndarray:
    """The numbers of the next ``size`` vectors: they count on from those of the test vectors so far."""
    return np.arange(len(sketch.forms), len(sketch.forms) + size, dtype=np.uint32)


def grow_for_xtrace(sketch: Sketch, times: ProductCounter, keys: jax.Array, size: int) -> Sketch:
    """Add ``size`` rows to the basis and as many test vectors, the vectors whose products make the rows (2 ``size``
    products)."""
    numbers = _numbers(sketch, size)
    vectors = draw_rows(times.H, keys[0], numbers, "normal", each=times.each)
    images = times(vectors)
    new, noise = new_rows(times.H.space, sketch.basis, images, vectors)
    tests = measure((*sketch.basis, new), numbers, vectors, images)
    del vectors, images  # before the new rows are multiplied
    factor = tests.product + tests.inside * noise
    wide = len(sketch.factor)
    above, own = factor[:wide], np.triu(factor[wide:])
    sketch = sketch._replace(factor=np.block([[sketch.factor, above], [np.zeros_like(above.T), own]]))
    return add_tests(widen(sketch, times, new, keys[0], "normal"), tests)


def grow_for_hutch(sketch: Sketch, times: ProductCounter, keys: jax.Array, size: int) -> Sketch:
    """Add ``size`` rows to the basis and as many test vectors, others than those whose products make the rows
    (3 ``size`` products)."""
    vectors = draw_rows(times.H, keys[0], _numbers(sketch, size), "rademacher", each=times.each)
    images = times(vectors)
    new = new_rows(times.H.space, sketch.basis, images, vectors)[0]
    del vectors, images  # before the new rows are multiplied
    sketch = widen(sketch, times, new, keys[1], "rademacher")
    return draw_tests(sketch, times, keys[1], size)


def draw_tests(sketch: Sketch, times: ProductCounter, key: jax.Array, size: int) -> Sketch:
    """Add ``size`` test vectors of signs, and leave the basis as it is (``size`` products)."""
    numbers = _numbers(sketch, size)
    tests = draw_rows(times.H, key, numbers, "rademacher", each=times.each)
    return add_tests(sketch, measure(sketch.basis, numbers, tests, times(tests)))


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
