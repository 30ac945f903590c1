"""The Lanczos process makes an orthonormal basis of the Krylov space of a symmetric operator and a start vector.

Vectors stay trees; a basis is a stacked tree with zeros in the rows not yet filled, so that a projection may take all
rows of the buffer. Operators that run well on the device take several steps in one program, if their vectors are small;
for others the host takes one step after another, with one jitted update, and holds one new row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import arguments, interrupts, precision
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import clamp_count, warn_caller
from lla_jax.core.interrupts import deferred_interrupts
from lla_jax.core.signatures import explained
from lla_jax.core.types import PyTree
from lla_jax.curvature.linear_operator import (
    LinearOperator,
    Operator,
    check_spectral,
    no_finite_product,
)
from lla_jax.curvature.projections import BREAKDOWN, inner, normalize, orthogonal, plus_rows, row_of
from lla_jax.curvature.room import (
    STEPS_PER_CALL,
    check_room,
    goes_one_by_one,
    product_bytes,
    program_bytes,
    stacked_like,
)
from lla_jax.curvature.space import draw_one, take, vector_at
from lla_jax.curvature.steps import error_of_differences
from lla_jax.curvature.symmetry import settle
from lla_jax.curvature.units import Unit, adapt
from lla_jax.execution import sharding

WINDOW = 11  # vectors that LLA re-orthogonalises against


class Step(NamedTuple):
    """The result of ``lanczos_step``.

    Args:
      basis: Q with its new row.
      coefficients: (m,) h = Q'A q.
      norm: beta = |A q - Q h|, 0 where it is rounding.
      size: |A q|.
    """

    basis: PyTree
    coefficients: jax.Array
    norm: jax.Array
    size: jax.Array


class Steps(NamedTuple):
    """The results of several steps, one after another.

    The arrays are float64 on the host. If batched, everything has a leading axis of probes.

    Args:
      vectors: the new rows, stacked; with a window, if one program made several, all rows of the ring.
      coefficients: (steps, m), Q'A q; with a window only q'A q, in the column of q.
      norms: (steps,), |A q - Q Q'A q|, 0 where it is rounding. Unless batched, no step follows one with norm 0.
      sizes: (steps,), |A q|.
    """

    vectors: PyTree
    coefficients: np.ndarray
    norms: np.ndarray
    sizes: np.ndarray


@explained
class Lanczos(NamedTuple):
    """The result of ``lanczos``: A Q - Q T = r e_s', Q'Q = I, T tridiagonal.

    Args:
      basis: Q, a stacked tree of s vectors.
      alphas: (s,) float64, the diagonal of T.
      betas: (s,) float64; the first s - 1 are the off-diagonal of T, the last is |r|.
      remainder: r, a tree; zero where the space is invariant under A.
    """

    basis: PyTree
    alphas: np.ndarray
    betas: np.ndarray
    remainder: PyTree

    def __repr__(self) -> str:
        size = sum(x.size for x in jax.tree.leaves(self.remainder))
        return f"Lanczos({len(self.alphas)} steps, {size:,} parameters, |r| = {float(self.betas[-1]):.3g})"


# --- one step


def _put(basis: PyTree, rows: Any, vectors: PyTree) -> PyTree:
    """The basis with vectors put into these rows; vectors for rows beyond its end are dropped."""
    return jax.tree.map(lambda q, x: q.at[rows].set(x.astype(q.dtype), mode="drop"), basis, vectors)


@explained
def lanczos_step(basis: PyTree, product: PyTree, into: Any, scale: Any = 0.0) -> Step:
    """One step of Lanczos with full re-orthogonalisation, done twice. Pure, to be jitted.

        h = Q'A q,   w = A q - Q h,   beta = |w|,   q_new = w / beta

    Args:
      basis: Q, a stacked tree ``(m, ...)`` of orthonormal rows, zero where not filled.
      product: A q for a row q of the basis. Any other vector is made orthogonal to the basis and of norm 1.
      into: the row of the new vector.
      scale: the norm of A, if it is known: beta below 10 eps max(scale, |A q|) is rounding and counts as 0.

    Returns:
      The ``Step``; its new row is zero where beta is 0 or not finite.
    """
    unit, (h,), beta, size = orthogonal((basis,), product, scale)
    return Step(_put(basis, into, unit), h, beta, size)


def _window_step(
    ring: PyTree, product: PyTree, vector: PyTree, before: PyTree, last: Any, scale: Any
) -> tuple[PyTree, jax.Array, jax.Array, jax.Array]:
    """LLA's step: (unit remainder, alpha, beta, norm of the product). Beta is the norm after the three-term recurrence;
    then the remainder is re-orthogonalised once, against the ring, and normalised."""
    size, alpha = _tree.norm(product), _tree.dot(product, vector)
    rest = jax.tree.map(lambda x, y, z: x - alpha * y - last * z, product, vector, before)
    least = BREAKDOWN * jnp.finfo(size.dtype).eps * jnp.maximum(size, scale)
    _, beta = normalize(rest, _tree.norm(rest), least)
    rest = plus_rows(rest, -inner(ring, rest), ring)
    unit, _ = normalize(rest, _tree.norm(rest), jnp.where(beta > 0, 0, jnp.inf))
    return unit, alpha, beta, size


# --- several steps


class _Carry(NamedTuple):
    done: Any
    new: PyTree  # the new rows; the ring
    vector: PyTree  # to be multiplied
    before: PyTree
    last: Any
    scale: Any
    coefficients: Any
    norms: Any
    sizes: Any


class _Start(NamedTuple):
    """Where the steps of one call begin; see ``advance``."""

    row: Any
    into: Any
    count: Any
    scale: Any
    last: Any


def _loop(H: LinearOperator, basis: PyTree, start: _Start, *, window: bool, stop: bool) -> _Carry:
    """At most STEPS_PER_CALL steps in one program: the first multiplies ``row``, each next one the row made before.

    The basis is only read, so that it outlives an error; the new rows are carried apart from it.
    """
    row, into, count, scale, last = start
    chex.assert_rank(list(start), 0)
    chex.assert_trees_all_equal_shapes_and_dtypes(row_of(basis), H.structure)
    leaves = jax.tree.leaves(basis)
    rows, dtype = leaves[0].shape[0], jnp.result_type(*leaves)

    def continues(c: _Carry) -> Any:
        more = c.done < count
        return more & ((c.done == 0) | (c.last > 0)) if stop else more

    def body(c: _Carry) -> _Carry:
        product, here = H.mv(c.vector), into + c.done
        if window:
            unit, alpha, beta, size = _window_step(c.new, product, c.vector, c.before, c.last, c.scale)
            h = jnp.zeros(rows, dtype).at[(here - 1) % rows].set(alpha)
            new = _put(c.new, here % rows, unit)
        else:
            unit, (h, fresh), beta, size = orthogonal((basis, c.new), product, c.scale)
            h = h.at[into + jnp.arange(STEPS_PER_CALL)].add(fresh, mode="drop")
            new = _put(c.new, c.done, unit)
        return _Carry(
            c.done + 1,
            new,
            unit,
            c.vector if window else None,
            beta,
            jnp.maximum(c.scale, size),
            c.coefficients.at[c.done].set(h),
            c.norms.at[c.done].set(beta),
            c.sizes.at[c.done].set(size),
        )

    blank, zero = jnp.zeros((STEPS_PER_CALL, rows), dtype), jnp.zeros(STEPS_PER_CALL, dtype)
    if window:
        new, vector, before = basis, vector_at(basis, row % rows), vector_at(basis, (row - 1) % rows)
    else:
        new = jax.tree.map(lambda q: jnp.zeros((STEPS_PER_CALL, *q.shape[1:]), q.dtype), basis)
        vector, before = vector_at(basis, row), None
    carry = _Carry(jnp.int32(0), new, vector, before, last.astype(dtype), scale.astype(dtype), blank, zero, zero)
    return jax.lax.while_loop(continues, body, carry)


@partial(jax.jit, static_argnames=("window", "batched"))
def _on_device(H: LinearOperator, basis: PyTree, start: _Start, *, window: bool, batched: bool) -> tuple[Any, ...]:
    if batched:
        # all probes take the same number of steps, so that the loop stays one; after a breakdown one multiplies zeros
        each = partial(_loop, window=window, stop=False)
        end = jax.vmap(each, in_axes=(None, 0, _Start(None, None, None, 0, 0)))(H, basis, start)
    else:
        end = _loop(H, basis, start, window=window, stop=True)
    return end.done, end.new, end.coefficients, end.norms, end.sizes


@partial(jax.jit, static_argnames="shards")
def _from_host(basis: PyTree, product: PyTree, scale: Any, *, shards: Any) -> tuple[Any, ...]:
    unit, (h,), beta, size = orthogonal((basis,), product, scale)
    unit = sharding.constrain(unit, shards)
    return jax.tree.map(lambda x: x[None], (unit, h, beta, size))


@jax.jit
def _window_step_from_host(basis: PyTree, product: PyTree, row: Any, last: Any, scale: Any) -> tuple[Any, ...]:
    rows = jax.tree.leaves(basis)[0].shape[0]
    vector, before = vector_at(basis, row % rows), vector_at(basis, (row - 1) % rows)
    unit, alpha, beta, size = _window_step(basis, product, vector, before, last, scale)
    h = jnp.zeros(rows, size.dtype).at[row % rows].set(alpha)
    return jax.tree.map(lambda x: x[None], (unit, h, beta, size))


def advance(
    H: Operator,
    basis: PyTree,
    row: int,
    into: int,
    count: int,
    scale: Any = 0.0,
    last: Any = 0.0,
    *,
    window: bool = False,
    batched: bool = False,
) -> Steps:
    """Take steps of Lanczos: the first multiplies ``row``, the next one the remainder of the first, and so on.

    The basis is only read; ``store`` puts the new rows into it. Unless batched, the steps end early at a remainder of
    0: a breakdown, or a product that is not finite.

    Args:
      H: the operator.
      basis: the rows; with ``batched`` (only where ``H.on_device``), with a leading axis of probes.
      row: the row that the first step multiplies.
      into: the row at which ``store`` will put the first new vector; with ``window`` it is ``row + 1``, and rows are
        counted around the ring.
      count: steps, at most STEPS_PER_CALL where one program takes several, else 1.
      scale: the largest |A q| so far, one for each probe where batched; inf where no remainder can be more than
        rounding.
      last: the norm of the step that made ``row``, one for each probe where batched; only used with ``window``.
      window: re-orthogonalise as LLA does, against a ring of the last vectors.
      batched: several probes at once.
    """
    scale, last = np.asarray(scale, H.dtype), np.asarray(last, H.dtype)
    if batched or not goes_one_by_one(H):
        assert isinstance(H, LinearOperator)
        start = _Start(np.int32(row), np.int32(into), np.int32(count), scale, last)
        found = _on_device(H, basis, start, window=window, batched=batched)
        done, vectors, *numbers = interrupts.wait(found)
        steps = int(np.max(done))
        coefficients, norms, sizes = (np.asarray(x, np.float64) for x in numbers)
        cut = (slice(None), slice(steps)) if batched else (slice(steps),)
        return Steps(vectors, coefficients[cut], norms[cut], sizes[cut])
    assert count == 1
    rows = jax.tree.leaves(basis)[0].shape[0]
    product = interrupts.wait(H.product(take(basis, np.int32(row % rows if window else row))))
    if not window:
        return orthogonalize(H, basis, product, scale)
    vectors, *numbers = _window_step_from_host(basis, product, np.int32(row), last, scale)
    return Steps(vectors, *(np.asarray(x, np.float64) for x in numbers))


def orthogonalize(H: Operator, basis: PyTree, vector: PyTree, scale: Any) -> Steps:
    """One step with any vector in place of a product: ``Steps`` of its unit part orthogonal to the basis."""
    unit, *numbers = _from_host(basis, vector, np.asarray(scale, H.dtype), shards=H.space.shards)
    return Steps(unit, *(np.asarray(x, np.float64) for x in numbers))


def step_bytes(H: Operator, rows: int, *, group: int = 1, window: bool = False) -> int:
    """Bytes that ``advance`` takes beside its bases, its new rows included. What it compiles is not compiled again.

    Args:
      H: the operator.
      rows: vectors of one basis.
      group: number of bases; more than one are batched.
      window: as for ``advance``.
    """
    batched = group > 1
    basis = stacked_like(H, group, rows) if batched else stacked_like(H, rows)
    zero = np.zeros(group if batched else (), H.dtype)
    if batched or not goes_one_by_one(H):
        start = _Start(np.int32(0), np.int32(1), np.int32(1), zero, zero)
        return program_bytes(_on_device, H, basis, start, window=window, batched=batched)
    if window:
        update = program_bytes(_window_step_from_host, basis, stacked_like(H), np.int32(0), zero, zero)
    else:
        update = program_bytes(_from_host, basis, stacked_like(H), zero, shards=H.space.shards)
    nbytes = H.memory()[0]
    return nbytes + max(product_bytes(H), update, 2 * nbytes)


def steps_program(H: LinearOperator, rows: int) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """(jitted function, arguments, static arguments) of STEPS_PER_CALL steps in one program, for shapes alone."""
    zero = np.zeros((), H.dtype)
    start = _Start(np.int32(0), np.int32(1), np.int32(STEPS_PER_CALL), zero, zero)
    return _on_device, (H, stacked_like(H, rows), start), {"window": False, "batched": False}


def update_program(H: Operator, rows: int) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """(jitted function, arguments, static arguments) of what a step does after its product, for shapes alone."""
    return _from_host, (stacked_like(H, rows), stacked_like(H), np.zeros((), H.dtype)), {"shards": H.space.shards}


@partial(jax.jit, donate_argnums=0, static_argnames="batched")
def _store_rows(basis: PyTree, vectors: PyTree, into: Any, *, batched: bool) -> PyTree:
    count = jax.tree.leaves(vectors)[0].shape[1 if batched else 0]
    put = jax.vmap(_put, in_axes=(0, None, 0)) if batched else _put
    return put(basis, into + jnp.arange(count), vectors)


def store(basis: PyTree, steps: Steps, into: int, *, window: bool = False, batched: bool = False) -> PyTree:
    """The basis with the new rows from row ``into``; with ``window``, counted around the ring.

    Do not use the old basis any more: its memory is used again.
    """
    if window:
        rows, new = (jax.tree.leaves(x)[0].shape[1 if batched else 0] for x in (basis, steps.vectors))
        if new == rows:  # the ring that the steps made
            return steps.vectors
        into %= rows
    return _store_rows(basis, steps.vectors, np.int32(into), batched=batched)


@explained
def random(H: Operator, key: jax.Array, number: int, distribution: str) -> PyTree:
    """The random vector with this number, on the operator's devices."""
    return H.space.wait_for(H.place(draw_one(H.space, key, np.uint32(number), distribution=distribution)))


@partial(jax.jit, static_argnames=("rows", "shards"))
def begin(vector: PyTree, *, rows: int, shards: Any = None) -> PyTree:
    """A basis of ``rows`` rows: the first is the vector scaled to norm 1, the others are zero."""
    unit, _ = normalize(vector, _tree.norm(vector), 0)
    blank = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), _tree.widen(x).dtype), unit)
    return sharding.constrain(_put(sharding.constrain(blank, shards), 0, unit), shards)


@partial(jax.jit, static_argnames="rows")
def begin_batch(vectors: list[PyTree], *, rows: int) -> PyTree:
    """The bases of several vectors, each as ``begin`` makes it, stacked."""
    return jax.vmap(partial(begin, rows=rows))(_tree.stack(vectors))


def from_host(H: Operator, leaves: Iterable[np.ndarray], rows: int, axis: int = 0) -> PyTree:
    """A basis of numpy leaves, filled up with zeros to ``rows`` rows along ``axis``, put on the operator's devices.

    One leaf is filled up after another, to save the memory of a second basis.
    """
    longer = (np.pad(x, [(0, (rows - x.shape[a]) * (a == axis)) for a in range(x.ndim)]) for x in leaves)
    placed = list(longer) if H.space.shards is not None else [jnp.array(x) for x in longer]
    return H.place(H.space.tree(placed))


def to_host(rows: jax.Array, count: int) -> np.ndarray:
    """The first rows of a leaf of a basis.

    On a CPU no program is begun for it, which would wait for a product that an interrupt has left unfinished; and the
    rows are not copied, unless the search goes on while they are kept.
    """
    on_cpu = all(device.platform == "cpu" for device in rows.devices())
    return np.asarray(rows)[:count] if on_cpu else np.asarray(rows[:count])


def tridiagonal(alphas: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """T, (s, s), from its diagonal (s,) and the norms (s,), the last of which is not part of T."""
    return np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)


def sequence(
    H: Operator,
    basis: PyTree,
    steps: int,
    *,
    stop: Callable[[np.ndarray, np.ndarray], bool] | None = None,
    look: Callable[[float, int], None] | None = None,
) -> tuple[PyTree, np.ndarray, np.ndarray, int]:
    """Take at most ``steps`` steps of Lanczos from row 0, up to a breakdown.

    A product that is not finite ends the sequence too, and its step is left out. The given basis is destroyed.

    Args:
      H: the operator.
      basis: from ``begin``, with ``steps`` + 1 rows.
      steps: products at most.
      stop: ``stop(alphas, betas)`` is asked after every call, of up to STEPS_PER_CALL steps, whether to end here.
      look: called with the largest |A q| so far, NaN if there is none, and the products so far: ``Unit.check``.

    Returns:
      (basis, alphas (s,), betas (s,), products used).
    """
    alphas, betas, scale, products = np.zeros(0), np.zeros(0), 0.0, 0
    with deferred_interrupts() as check:
        while len(alphas) < steps and not (len(betas) and betas[-1] == 0):
            check()
            j = len(alphas)
            count = min(STEPS_PER_CALL, steps - j) if not goes_one_by_one(H) else 1
            new = advance(H, basis, j, j + 1, count, scale)
            basis, products = store(basis, new, j + 1), products + len(new.norms)
            good = int(np.isfinite(new.sizes).cumprod().sum())
            alphas = np.append(alphas, [new.coefficients[i, j + i] for i in range(good)])
            betas = np.append(betas, new.norms[:good])
            scale = float(new.sizes[:good].max(initial=scale))
            if look is not None:
                look(scale if len(alphas) else np.nan, products)
            if good < len(new.norms) or (stop is not None and stop(alphas, betas)):
                break
    return basis, alphas, betas, products


@explained
def lanczos(H: Operator, key: jax.Array, steps: int, *, start: str = "rademacher") -> Lanczos:
    """Take the steps of Lanczos from a random vector, with full re-orthogonalisation, done twice.

        A Q - Q T = r e_s',   Q'Q = I,   Q'r = 0,   T = Q'A Q tridiagonal

    Args:
      H: a symmetric operator: ``hessian``, ``ggn``, ``fisher`` or ``operators.given``.
      key: draws the start vector.
      steps: number of products s. Fewer are done, and returned, where the space becomes invariant before.
      start: distribution of the start vector's entries, "rademacher" (signs) or "normal".

    Returns:
      ``Lanczos``: basis, alphas, betas, remainder. A later product that is not finite ends it early, with a warning.

    Raises:
      ValueError: ``steps`` below 1, another ``start``, an operator that is not symmetric, a first product that is not
        finite.

    References: Lanczos 1950; Giraud et al. 2005 (why twice is enough).
    """
    key = check_spectral(H, key)
    check_start(start)
    steps = clamp_count("steps", steps, H.shape[0])
    check_room(H, "steps", steps)

    def compute(unit: Unit) -> Lanczos:
        basis = begin(random(H, key, 0, start), rows=steps + 1, shards=H.space.shards)
        basis, alphas, betas, products = sequence(unit.H, basis, steps, look=unit.check)
        if not len(alphas):
            raise no_finite_product(f"product {products} is not finite")
        if products > len(alphas):
            warn_caller(f"H: product {products} is not finite; the {len(alphas)} steps before it are kept")
        done, alphas, betas = len(alphas), alphas * unit.size, betas * unit.size
        rest = jax.tree.map(lambda q: q[done] * betas[-1].astype(q.dtype), basis)
        return Lanczos(H.place(jax.tree.map(lambda q: q[:done], basis)), alphas, betas, H.place(rest))

    return adapt(settle(H, key), key, compute)


# --- rounding, arguments


def rounding(H: Operator, times: float, largest: float) -> float:
    """The rounding error of a product with a vector of norm 1, where ``largest`` is the largest eigenvalue.

    It is ``times`` eps of the vectors' dtype, or eps of the types in which the loss is computed, or of the operands of
    its matrix products, each times ``largest``; or the error of finite differences, if that is larger.
    """
    return max(
        error_of_differences(H), largest * max(times * float(jnp.finfo(H.dtype).eps), precision.eps_at_work(H.recipe))
    )


def check_start(start: Any) -> None:
    """Refuse an unknown distribution of start vectors."""
    arguments.check_choice("start", start, ("rademacher", "normal"))
