"""Searches for wanted eigenvalues and all their copies, in a basis that grows from several Lanczos sequences.

One Krylov sequence sees every distinct eigenvalue once. So when the wanted pairs have converged, another sequence
begins at random in the complement of the vectors multiplied so far, until nothing there can belong to the wanted ones.
The projected matrix is dense, and the remainders of all sequences stay in the basis: the sequences work together,
nothing is lost, and every residual is known.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core.types import PyTree
from lla_jax.curvature import lanczos as _lanczos
from lla_jax.curvature import warm_starts
from lla_jax.curvature.linear_operator import Operator
from lla_jax.curvature.projections import BREAKDOWN, combine
from lla_jax.curvature.room import STEPS_PER_CALL, bases_bytes, goes_one_by_one
from lla_jax.curvature.ruling_out import overlooks, rules_out
from lla_jax.curvature.warm_starts import NORM_SQUARED, Start
from lla_jax.execution import sharding

log = logging.getLogger("lla_jax")

PIECE = 2**16  # entries of a vector that are mixed at once
NOTED = 16  # calls whose errors are kept
BACK = 4  # steps over which the fall of the residuals is measured
LEAST = 10  # steps that a sequence may take to rule out, if all others were shorter


class Goal(NamedTuple):
    """The pairs that are wanted, and how they are sought.

    Args:
      k: number of pairs.
      which: the end of the spectrum.
      tol: relative residual.
      copies: whether further copies are sought, and values that the first sequence does not see.
      start: earlier vectors to begin with, or None.
    """

    k: int
    which: str
    tol: float
    copies: bool = True
    start: Start | None = None


@dataclass
class Search:
    """The state of a search: rows 0 .. known - 1 of the basis have been multiplied, rows known .. filled - 1 are open.

    A q_j = sum_i T_ij q_i over the filled rows i, for j < known. The next row of a sequence is the first open one, once
    the open rows are turned so that it points along ``direction``.

    Every change takes the basis first and puts it back last: where an error leaves a change half done, the basis is
    None, and the state is not to be kept.
    """

    basis: PyTree
    T: np.ndarray  # (rows, rows); of an open row only its couplings to the known ones
    known: int = 0
    filled: int = 1
    direction: np.ndarray = field(default_factory=lambda: np.zeros(0))  # in terms of the open rows; empty: as they are
    alphas: np.ndarray = field(default_factory=lambda: np.zeros(0))  # of the present sequence
    betas: np.ndarray = field(default_factory=lambda: np.zeros(0))  # the last is 0 where it broke down
    outside: float = 0  # dimension of the space in which the sequence began, times |start vector|^2 / |random part|^2
    wanted: np.ndarray = field(default_factory=lambda: np.zeros(0))  # wanted values when it began; none if not random
    longest: int = 0  # steps of the longest sequence before
    scale: float = 0.0  # largest |A q|
    products: int = 0
    draws: int = 1
    restarts: int = 0
    checked: int = 0  # known rows when the Ritz pairs were last computed and the search went on
    most: int = 0  # rows at most
    work: int = 0  # bytes that a step takes beside the basis
    bytes_needed: int = 0  # as logged
    errors: list[tuple[int, float]] = field(default_factory=list)  # (products, largest wanted residual / tolerance)

    @property
    def rows(self) -> int:
        """Rows of the buffer."""
        return len(self.T)

    @property
    def broke_down(self) -> bool:
        """Whether the present sequence broke down: it has no next row."""
        return len(self.betas) > 0 and self.betas[-1] == 0

    def take_basis(self) -> PyTree:
        """Take the basis out of the state, to change it or to give it to a program that destroys it."""
        basis, self.basis = self.basis, None
        return basis


class Ritz(NamedTuple):
    """Ritz pairs in the order asked for.

    Args:
      values: (r,) Ritz values.
      vectors: (known, r) Ritz vectors, in terms of the known rows.
      couplings: (open, r) their products' components along the open rows.
      errors: (r,) norms of the couplings, |A x - theta x|.
    """

    values: np.ndarray
    vectors: np.ndarray
    couplings: np.ndarray
    errors: np.ndarray


def begin(H: Operator, key: jax.Array, rows: int, most: int, used: int, start: Start | None = None) -> Search:
    """A search with a start vector, and nothing multiplied yet.

    Args:
      H: the operator.
      key: draws the start vector.
      rows: rows of the first buffer.
      most: rows that the buffer may grow to.
      used: products that were made before.
      start: earlier vectors, or None.
    """
    basis = _lanczos.begin(warm_starts.begin_with(H, key, 0, start), rows=rows, shards=H.space.shards)
    return Search(basis, np.zeros((rows, rows)), outside=H.shape[0], products=used, most=most)


def order(values: np.ndarray, which: str) -> np.ndarray:
    """Indices that put values in the order asked for."""
    return np.argsort({"magnitude": -abs(values), "largest": -values, "smallest": values}[which], kind="stable")


def ritz_pairs(s: Search, which: str) -> Ritz:
    """The Ritz pairs of the rows that were multiplied (Rayleigh-Ritz), in the order asked for."""
    values, vectors = np.linalg.eigh(s.T[: s.known, : s.known])
    indices = order(values, which)
    values, vectors = values[indices], vectors[:, indices]
    couplings = s.T[s.known : s.filled, : s.known] @ vectors
    return Ritz(values, vectors, couplings, np.linalg.norm(couplings, axis=0))


def _may_be_above(s: Search, ritz: Ritz, k: int, bound: float, sign: int) -> bool:
    """Whether an eigenvalue other than the wanted k may lie above ``bound`` (of -A with ``sign`` -1).

    On the complement of the k vectors, A is [[D, C'], [C, B]]: D holds the other Ritz values, C their couplings, and B
    is A on the complement of the known rows. The present sequence bounds B.
    """
    if not rules_out(sign * s.alphas, s.betas, bound, s.outside):
        return True
    low, high = float((sign * s.alphas).max()), bound
    for _ in range(12):  # the least bound that the sequence gives
        middle = (low + high) / 2
        low, high = (low, middle) if rules_out(sign * s.alphas, s.betas, middle, s.outside) else (middle, high)
    rest, couplings = sign * ritz.values[k:], ritz.couplings[:, k:]
    largest = np.block([[np.diag(rest), couplings.T], [couplings, high * np.eye(len(couplings))]])  # B at its bound
    return float(np.linalg.eigvalsh(largest)[-1]) > bound


def _is_complete(s: Search, ritz: Ritz, goal: Goal) -> bool:
    """Whether the present sequence shows that nothing wanted was missed."""
    slack, last = goal.tol * np.abs(ritz.values).max(), ritz.values[goal.k - 1]
    if goal.which == "magnitude":
        return not any(_may_be_above(s, ritz, goal.k, abs(last) + slack, sign) for sign in (1, -1))
    sign = 1 if goal.which == "largest" else -1
    return not _may_be_above(s, ritz, goal.k, sign * last + slack, sign)


def _may_overlook(s: Search, goal: Goal, wanted: np.ndarray, n: int) -> bool:
    """Whether the first sequence may have overlooked a value far from the wanted ones, and a step more may show it."""
    if goal.start is not None or len(s.alphas) != s.known or s.restarts:
        return False  # not one sequence begun at random
    return overlooks(s.alphas, s.betas, wanted, goal.which, n)


# --- changes of the basis


@partial(jax.jit, static_argnames=("more", "shards"))
def _pad(basis: PyTree, *, more: int, shards: Any) -> PyTree:
    longer = jax.tree.map(lambda q: jnp.pad(q, [(0, more), *[(0, 0)] * (q.ndim - 1)]), basis)
    return sharding.constrain(longer, shards)


@partial(jax.jit, donate_argnums=0, static_argnames="shards")
def _mix_rows(basis: PyTree, new: jax.Array, *, shards: Any) -> PyTree:
    """The basis with ``new`` times its rows, combinations of all of them, in place of the rows."""
    chex.assert_tree_shape_prefix(basis, new.shape[1:])
    return _map_columns(lambda q: combine(new, q), basis, shards)


@partial(jax.jit, donate_argnums=0, static_argnames="shards")
def _mix_rows_from(basis: PyTree, new: jax.Array, start: Any, *, shards: Any) -> PyTree:
    """The basis with the ``len(new)`` rows from ``start`` replaced by ``new`` times these rows."""
    chex.assert_shape(new, (len(new), len(new)))
    at = start + jnp.arange(len(new))

    def mix(q: jax.Array) -> jax.Array:
        rows = q.at[at].get(mode="fill", fill_value=0)
        return q.at[at].set(combine(new, rows), mode="drop")

    return _map_columns(mix, basis, shards)


def _map_columns(f: Callable[[jax.Array], jax.Array], basis: PyTree, shards: Any) -> PyTree:
    """Apply ``f``, which mixes the rows of an array, to every leaf of a basis.

    A large leaf is changed in place, some columns at a time, to save the memory of a second basis. Sharded leaves are
    done at once.
    """
    if shards is not None:
        return sharding.constrain(jax.tree.map(f, basis), shards)

    def leaf(q: jax.Array) -> jax.Array:
        if q.size <= q.shape[0] * PIECE:
            return f(q)
        axis = 1 + int(np.argmax(q.shape[1:]))
        size = max(1, PIECE * q.shape[0] * q.shape[axis] // q.size)
        pieces, rest = divmod(q.shape[axis], size)

        def one(q: jax.Array, start: Any, size: int) -> jax.Array:
            piece = f(jax.lax.dynamic_slice_in_dim(q, start, size, axis))
            return jax.lax.dynamic_update_slice_in_dim(q, piece, start, axis)

        q = jax.lax.fori_loop(0, pieces, lambda i, q: one(q, i * size, size), q)
        return one(q, pieces * size, rest) if rest else q

    return jax.tree.map(leaf, basis)


# --- the moves


def _turn_open_rows(s: Search, H: Operator) -> None:
    """Turn the open rows so that the first of them points along ``s.direction``."""
    unit = s.direction / np.linalg.norm(s.direction)
    sign = 1.0 if unit[0] >= 0 else -1.0
    mirror = unit.copy()
    mirror[0] += sign
    # Householder's: turn @ unit is the first unit vector
    turn = sign * (2 * np.outer(mirror, mirror) / (mirror @ mirror) - np.eye(len(unit)))
    padded = np.eye(max(8, 1 << (len(unit) - 1).bit_length()), dtype=H.dtype)  # few sizes compile
    padded[: len(unit), : len(unit)] = turn
    T = s.T.copy()
    T[s.known : s.filled, : s.known] = turn @ T[s.known : s.filled, : s.known]
    basis = _mix_rows_from(s.take_basis(), padded, np.int32(s.known), shards=H.space.shards)
    s.T, s.direction = T, np.zeros(0)
    s.basis = basis


def _make_room(s: Search, ritz: Ritz, k: int, H: Operator) -> None:
    """Make room for another row: a larger buffer, or a restart from the best Ritz vectors."""
    if s.rows >= s.most:
        _restart(s, ritz, k, H)
        return
    more = _affordable_growth(s, H)
    if not more:
        s.most = s.rows
        _restart(s, ritz, k, H)
        return
    s.bytes_needed = max(s.bytes_needed, bases_bytes(H, s.rows + more, s.work, grown_from=s.rows, kept=k))
    log.info("eigenpairs: from now on %d vectors, %.1f MiB", s.rows + more, s.bytes_needed / 2**20)
    basis = _lengthen(s.take_basis(), more, H)
    s.T = np.pad(s.T, (0, more))
    s.basis = basis


def _affordable_growth(s: Search, H: Operator) -> int:
    """The number of rows that the basis grows by; 0 where the memory has no room for a second, larger one."""
    # where one program takes several steps, a size compiles the product anew
    more = min(s.rows * (1 if goes_one_by_one(H) else 3), s.most - s.rows)
    nbytes, free = H.memory()
    if nbytes * (s.rows + more) + s.work <= free:
        return more
    most = int((free - s.work) // nbytes) - s.rows
    log.info("eigenpairs: %d vectors more do not fit (%.0f MiB free)", more, free / 2**20)
    return most if most >= s.rows // 4 else 0  # a few rows more are not worth a copy


def _lengthen(basis: PyTree, more: int, H: Operator) -> PyTree:
    """The basis with more rows of zeros, one leaf after another, to save the memory of a second basis."""
    if H.space.shards is not None:
        return _pad(basis, more=more, shards=H.space.shards)
    leaves, structure = jax.tree.flatten(basis)
    del basis
    for i, _ in enumerate(leaves):
        leaves[i] = jax.block_until_ready(_pad(leaves[i], more=more, shards=None))
    return jax.tree.unflatten(structure, leaves)


def _restart(s: Search, ritz: Ritz, k: int, H: Operator) -> None:
    """Restart (thick restart): keep the best Ritz vectors in place of the multiplied rows, and the open rows."""
    still = s.filled - s.known
    keep = min(k + max(0, (s.rows - k - still) // 2), s.known, s.rows - still - 1)
    new, T = np.zeros((2, s.rows, s.rows))  # row i of new: the new row i in terms of the old ones
    new[:keep, : s.known] = ritz.vectors[:, :keep].T
    new[np.arange(keep, keep + still), np.arange(s.known, s.filled)] = 1
    T[np.arange(keep), np.arange(keep)] = ritz.values[:keep]
    T[keep : keep + still, :keep] = ritz.couplings[:, :keep]
    basis = _mix_rows(s.take_basis(), new, shards=H.space.shards)
    s.T, s.known, s.filled = T, keep, keep + still
    s.restarts, s.checked = s.restarts + 1, -1
    s.basis = basis


def _begin_sequence(s: Search, H: Operator, key: jax.Array, values: np.ndarray, start: Start | None) -> None:
    """Begin another sequence, at random in the complement of the known rows; ``values`` are the k best Ritz values now.

    The remainders of earlier sequences lie in that complement: the start vector has a part along them.
    """
    n = H.shape[0]
    vector = warm_starts.begin_with(H, key, s.draws, start)
    step = _lanczos.orthogonalize(H, s.basis, vector, np.inf if s.filled >= n else 0.0)
    fresh = step.norms[step.norms > 0]  # none where the basis is complete
    basis = _lanczos.store(s.take_basis(), step, s.filled)
    s.direction = np.append(step.coefficients[0, s.known : s.filled], fresh)
    s.filled += len(fresh)
    s.draws += 1
    s.outside, s.wanted = (n - s.known) * (1 if start is None else NORM_SQUARED), values
    s.longest = max(s.longest, len(s.alphas))
    s.alphas, s.betas = np.zeros(0), np.zeros(0)
    s.most = min(s.most + 1, n)
    s.basis = basis


def _steer(s: Search, ritz: Ritz, k: int) -> None:
    """Go on along the worst residual of the wanted pairs. A sequence not begun at random can rule nothing out."""
    basis = s.take_basis()
    s.direction = ritz.couplings[:, ritz.errors[:k].argmax()]
    s.wanted, s.alphas, s.betas = np.zeros(0), np.zeros(0), np.zeros(0)
    s.basis = basis


def _steps_to_go(s: Search, H: Operator, ritz: Ritz | None, goal: Goal) -> int:
    """Steps until the wanted pairs may have converged, by the last few: several in one program shall not be too many.

    It depends on nothing that a saved state does not have.
    """
    known = s.known - BACK
    if ritz is None or known < goal.k or goes_one_by_one(H):
        return STEPS_PER_CALL
    values, vectors = np.linalg.eigh(s.T[:known, :known])
    wanted = vectors[:, order(values, goal.which)[: goal.k]]
    before = np.linalg.norm(s.T[known : s.filled, :known] @ wanted, axis=0).max()
    now, limit = ritz.errors[: goal.k].max(), goal.tol * np.abs(ritz.values).max()
    if not limit < now < before < np.inf:
        return STEPS_PER_CALL if now > limit else 1
    return max(1, int(BACK * np.log(now / limit) / np.log(before / now)))


def _multiply(s: Search, H: Operator, most: int, checked: int) -> bool:
    """Multiply the first open row; on the device, up to STEPS_PER_CALL rows of the sequence if no other row is open.

    Args:
      s: the state, which changes.
      H: the operator.
      most: products at most.
      checked: the new ``s.checked``.

    Returns:
      Whether all products are finite; the steps before the first that is not are kept.
    """
    n = H.shape[0]
    full, alone = s.filled >= n, s.filled == s.known + 1
    several = not goes_one_by_one(H) and alone and not full
    count = max(1, min(STEPS_PER_CALL, s.rows - s.filled, n - s.filled, most)) if several else 1
    steps = _lanczos.advance(H, s.basis, s.known, s.filled, count, np.inf if full else s.scale)
    good = int(np.isfinite(steps.sizes).cumprod().sum())
    T, at, filled, scale = s.T.copy(), s.known, s.filled, float(steps.sizes[:good].max(initial=s.scale))
    direction, alphas, betas = np.zeros(0), list(s.alphas), list(s.betas)
    for h, beta in zip(steps.coefficients[:good], steps.norms[:good]):
        T[: at + 1, at] = T[at, : at + 1] = h[: at + 1]
        direction = np.append(h[at + 1 : filled], [beta] if beta > 0 else [])
        filled = at + 1 + len(direction)
        T[at + 1 : filled, at] = direction
        alphas.append(h[at])
        size = float(np.linalg.norm(direction))
        betas.append(size if size > BREAKDOWN * float(jnp.finfo(H.dtype).eps) * scale else 0.0)
        at += 1
    basis = _lanczos.store(s.take_basis(), steps, s.filled)
    s.T, s.known, s.filled, s.scale = T, at, filled, scale
    s.direction = direction if good and len(direction) > 1 and betas[-1] > 0 else np.zeros(0)
    s.alphas, s.betas = np.array(alphas), np.array(betas)
    s.products += len(steps.norms)
    s.checked = checked
    s.basis = basis
    return good == len(steps.norms)


# --- the search


def _choose(s: Search, ritz: Ritz, n: int, goal: Goal) -> str:
    """The next move, "multiply", "steer" or "begin"; or why the search is over, "verified" or "unverified"."""
    if s.known == n:
        return "verified"
    k, limit = goal.k, goal.tol * np.abs(ritz.values).max(initial=0.0)
    if s.known < k or (ritz.errors[:k] > limit).any():
        worst = ritz.couplings[:, ritz.errors[:k].argmax()] if s.known else np.zeros(1)
        size = np.linalg.norm(worst)
        if s.broke_down:
            return "steer" if size > limit else "begin"
        return "steer" if size > limit and abs(worst[0]) < size / 2 else "multiply"
    if not goal.copies:
        overlooked = not s.broke_down and _may_overlook(s, goal, ritz.values[:k], n)
        return "multiply" if overlooked else "unverified"
    if len(s.wanted) < k:
        return "begin"
    sign = np.abs if goal.which == "magnitude" else np.asarray
    if np.abs(sign(ritz.values[:k]) - sign(s.wanted)).max() > limit:
        return "begin"  # this sequence has brought another copy, and there may be more
    if _is_complete(s, ritz, goal):
        return "verified"
    return "unverified" if s.broke_down or len(s.alphas) >= max(s.longest, LEAST) else "multiply"


def search(s: Search, H: Operator, key: jax.Array, goal: Goal, limit: int, report: Callable[[int], None]) -> str:
    """Search until the pairs are found.

    Args:
      s: the state, which changes.
      H: the operator.
      key: draws the start vectors.
      goal: the pairs that are wanted.
      limit: products at most.
      report: called with the number of products after every call, of one or several steps; it may raise, which leaves
        the state complete.

    Returns:
      How the search ended: "verified", "unverified", "max_products", or the trouble in words.
    """
    n = H.shape[0]
    while True:
        if len(s.direction):
            _turn_open_rows(s, H)
        if not _needs_ritz_pairs(s, goal.k, limit):
            move, ritz = "multiply", None
        else:
            ritz = ritz_pairs(s, goal.which)
            move = _choose(s, ritz, n, goal)
            _note_error(s, ritz, goal)
        if move in ("verified", "unverified"):
            return move
        if s.products >= limit:
            return "max_products"
        few = _steps_to_go(s, H, ritz, goal) if move == "multiply" else 1
        if ritz is not None and s.rows <= s.filled < n:
            _make_room(s, ritz, goal.k, H)
        elif ritz is not None and move == "begin":
            _begin_sequence(s, H, key, ritz.values[: goal.k], goal.start)
        elif ritz is not None and move == "steer":
            _steer(s, ritz, goal.k)
        elif not _multiply(s, H, min(limit - s.products, few), s.checked if ritz is None else s.known):
            return f"product {s.products} is not finite"
        else:
            report(s.products)


def _note_error(s: Search, ritz: Ritz, goal: Goal) -> None:
    """Keep how far the wanted pairs are from the tolerance, for the progress bar: the last calls of several."""
    limit = goal.tol * np.abs(ritz.values).max(initial=0.0)
    if s.known >= goal.k and limit > 0 and len(s.wanted) == 0:
        s.errors = [*s.errors[-NOTED:], (s.products, float(ritz.errors[: goal.k].max() / limit))]


def _needs_ritz_pairs(s: Search, k: int, limit: int) -> bool:
    """Whether it is time for Ritz pairs, which cost known^3."""
    enough = s.known >= k and not 0 <= s.known - s.checked < max(1, s.known // 32)
    return enough or s.broke_down or s.filled in (s.known, s.rows) or s.products >= limit
