"""A basis grown from several Lanczos sequences, and the search in it for wanted eigenvalues and all their copies.

One Krylov sequence sees every distinct eigenvalue once. Once the wanted pairs have converged, another therefore begins
at random in the complement of the vectors multiplied so far, until nothing there can belong to the wanted ones. The
projected matrix is dense and the remainders of all sequences stay in the basis: the sequences work together, nothing is
lost, and every residual is known.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core.types import PyTree
from lla_jax.curvature import lanczos as _lanczos
from lla_jax.curvature.lanczos import BREAKDOWN, CHUNK
from lla_jax.curvature.linear_operator import Operator
from lla_jax.execution import sharding

log = logging.getLogger("lla_jax")

DOUBT = 1e-3  # probability that a sequence rules out an eigenvalue that is there
PIECE = 2**16  # entries of a vector that are turned at once
LEAST = 10  # steps that a sequence may take to rule out, if all others were shorter


@dataclass
class Search:
    """Where a search stands: rows 0 .. known - 1 of the basis have been multiplied, rows known .. filled - 1 are open.

    A q_j = sum_i T_ij q_i over the filled rows i, for j < known. The next row of a sequence is the first open one, once
    the open rows are turned so that it points along ``direction``.
    """

    basis: PyTree
    T: np.ndarray  # (rows, rows); of an open row only its couplings to the known ones
    known: int = 0
    filled: int = 1
    direction: np.ndarray = field(default_factory=lambda: np.zeros(0))  # in terms of the open rows; empty: as they are
    alphas: np.ndarray = field(default_factory=lambda: np.zeros(0))  # of the present sequence
    betas: np.ndarray = field(default_factory=lambda: np.zeros(0))  # the last is 0 where it broke down
    outside: int = 0  # dimension of the space in which it began
    wanted: np.ndarray = field(default_factory=lambda: np.zeros(0))  # values then; none where it is to show nothing
    longest: int = 0  # steps of the longest sequence before
    scale: float = 0.0  # largest |A q|
    products: int = 0
    draws: int = 1
    restarts: int = 0
    checked: int = 0  # known rows when Ritz pairs last said to go on
    most: int = 0  # rows at most
    saved: bool = False  # whether it is copied on the way
    needed: int = 0  # bytes that it has said to need

    @property
    def rows(self) -> int:
        return len(self.T)

    @property
    def ended(self) -> bool:
        """Whether the present sequence broke down: it has no next row."""
        return len(self.betas) > 0 and self.betas[-1] == 0

    @property
    def gone(self) -> bool:
        """Whether an interrupted call took the basis with it."""
        return any(x.is_deleted() for x in jax.tree.leaves(self.basis))


class Ritz(NamedTuple):
    """Ritz values in the order asked for, their vectors ``(known, r)``, their couplings to the open rows ``(open, r)``,
    and the norms of these, |A x - theta x|."""

    values: np.ndarray
    vectors: np.ndarray
    couplings: np.ndarray
    errors: np.ndarray


def begin(H: Operator, key: jax.Array, rows: int, most: int, used: int) -> Search:
    """A search with a random start vector and nothing multiplied; ``used`` products were made before."""
    basis = _lanczos.begin(_lanczos.random(H, key, 0, "normal"), rows=rows, spread=H.space.shards)
    return Search(basis, np.zeros((rows, rows)), outside=H.shape[0], products=used, most=most)


def order(values: np.ndarray, which: str) -> np.ndarray:
    """Indices that put values in the order asked for."""
    return np.argsort({"magnitude": -abs(values), "largest": -values, "smallest": values}[which], kind="stable")


def ritz_pairs(s: Search, which: str) -> Ritz:
    """Rayleigh-Ritz on the rows that were multiplied."""
    values, vectors = np.linalg.eigh(s.T[: s.known, : s.known])
    chosen = order(values, which)
    values, vectors = values[chosen], vectors[:, chosen]
    couplings = s.T[s.known : s.filled, : s.known] @ vectors
    return Ritz(values, vectors, couplings, np.linalg.norm(couplings, axis=0))


def ruled_out(alphas: np.ndarray, betas: np.ndarray, bound: float, outside: int) -> bool:
    """Whether no eigenvalue lies above ``bound``, going by a Lanczos sequence with a random start.

    The mass that the start vector has at x is at most 1 / sum_j p_j(x)^2, with the orthonormal polynomials p_j of the
    sequence (Christoffel). In n dimensions a random direction has a mass below pi d^2 / (2 n) at a given eigenvector
    with probability d.
    """
    if not len(alphas):
        return False
    before, now, total = 0.0, 1.0, 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        for j, (alpha, beta) in enumerate(zip(alphas, betas, strict=True)):
            top = (bound - alpha) * now - (betas[j - 1] * before if j else 0.0)
            if not top > 0:  # a Ritz value is above the bound
                return False
            if beta == 0:
                return True
            before, now = now, top / beta
            total += now * now
            if not np.isfinite(total):
                return True
    return bool(total > 2 * outside / (np.pi * DOUBT**2))


def _beyond(s: Search, ritz: Ritz, k: int, bound: float, sign: int) -> bool:
    """Whether an eigenvalue other than the wanted k may lie above ``bound`` (of -A with ``sign`` -1).

    With the k vectors put aside, A is [[D, C'], [C, B]]: the other Ritz values, their couplings, and what it is on the
    complement of the known rows. The present sequence bounds B.
    """
    if not ruled_out(sign * s.alphas, s.betas, bound, s.outside):
        return True
    low, high = float((sign * s.alphas).max()), bound
    for _ in range(12):  # the least bound that the sequence gives
        middle = (low + high) / 2
        low, high = (low, middle) if ruled_out(sign * s.alphas, s.betas, middle, s.outside) else (middle, high)
    rest, couplings = sign * ritz.values[k:], ritz.couplings[:, k:]
    whole = np.block([[np.diag(rest), couplings.T], [couplings, high * np.eye(len(couplings))]])
    return float(np.linalg.eigvalsh(whole)[-1]) > bound


def _settled(s: Search, ritz: Ritz, k: int, which: str, tol: float) -> bool:
    """Whether the present sequence shows that nothing wanted was missed."""
    slack, last = tol * np.abs(ritz.values).max(), ritz.values[k - 1]
    if which == "magnitude":
        return not any(_beyond(s, ritz, k, abs(last) + slack, sign) for sign in (1, -1))
    sign = 1 if which == "largest" else -1
    return not _beyond(s, ritz, k, sign * last + slack, sign)


# --- moving on: a search changes at once, so that an interrupt finds it before a step or after


@partial(jax.jit, static_argnames=("more", "spread"))
def _padded(basis: PyTree, *, more: int, spread: Any) -> PyTree:
    longer = jax.tree.map(lambda q: jnp.pad(q, [(0, more), *[(0, 0)] * (q.ndim - 1)]), basis)
    return sharding.pinned(longer, spread)


@partial(jax.jit, donate_argnums=0, static_argnames="spread")
def _combined(basis: PyTree, new: jax.Array, *, spread: Any) -> PyTree:
    """The basis with ``new`` times its rows in their place."""
    return _piecewise(lambda q: _lanczos.combine(new, q), basis, spread)


@partial(jax.jit, donate_argnums=0, static_argnames="spread")
def _turned(basis: PyTree, turn: jax.Array, first: Any, *, spread: Any) -> PyTree:
    """The basis with the rows from ``first`` replaced by ``turn`` times them."""
    at = first + jnp.arange(len(turn))

    def turned(q: jax.Array) -> jax.Array:
        rows = q.at[at].get(mode="fill", fill_value=0)
        return q.at[at].set(_lanczos.combine(turn, rows), mode="drop")

    return _piecewise(turned, basis, spread)


def _piecewise(f: Callable[[jax.Array], jax.Array], basis: PyTree, spread: Any) -> PyTree:
    """``f``, which mixes rows, of the columns of every leaf: a piece at a time, in place, not a second basis."""
    if spread is not None:
        return sharding.pinned(jax.tree.map(f, basis), spread)

    def leaf(q: jax.Array) -> jax.Array:
        if q.size <= q.shape[0] * PIECE:
            return f(q)
        axis = 1 + int(np.argmax(q.shape[1:]))
        size = max(1, PIECE * q.shape[0] * q.shape[axis] // q.size)
        whole, rest = divmod(q.shape[axis], size)

        def one(q: jax.Array, start: Any, size: int) -> jax.Array:
            piece = f(jax.lax.dynamic_slice_in_dim(q, start, size, axis))
            return jax.lax.dynamic_update_slice_in_dim(q, piece, start, axis)

        q = jax.lax.fori_loop(0, whole, lambda i, q: one(q, i * size, size), q)
        return one(q, whole * size, rest) if rest else q

    return jax.tree.map(leaf, basis)


def _turn(s: Search, H: Operator) -> None:
    """Turn the open rows so that the first of them points along ``s.direction``."""
    unit = s.direction / np.linalg.norm(s.direction)
    sign = 1.0 if unit[0] >= 0 else -1.0
    mirror = unit.copy()
    mirror[0] += sign
    # Householder's: turn @ unit is the first unit vector
    turn = sign * (2 * np.outer(mirror, mirror) / (mirror @ mirror) - np.eye(len(unit)))
    T = s.T.copy()
    T[s.known : s.filled, : s.known] = turn @ T[s.known : s.filled, : s.known]
    whole = np.eye(max(8, 1 << (len(unit) - 1).bit_length()), dtype=H.dtype)  # few sizes compile
    whole[: len(unit), : len(unit)] = turn
    vars(s).update(basis=_turned(s.basis, whole, np.int32(s.known), spread=H.space.shards), T=T, direction=np.zeros(0))


def _room(s: Search, ritz: Ritz, k: int, H: Operator) -> None:
    """Make room for another row: a larger buffer, or a restart from the best Ritz vectors."""
    if s.rows >= s.most:
        _restart(s, ritz, k, H)
        return
    more = min(s.rows * (3 if H.on_device else 1), s.most - s.rows)  # on the device a size compiles the product anew
    s.needed = max(s.needed, _lanczos.needed(H, s.rows + more, saved=s.saved, grown_from=s.rows))
    log.info("eigenpairs: %d vectors from here on, %.1f MiB", s.rows + more, s.needed / 2**20)
    vars(s).update(basis=_padded(s.basis, more=more, spread=H.space.shards), T=np.pad(s.T, (0, more)))


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block is done: in between, the old basis is gone and the new one not yet known."""
    before = signal.getsignal(signal.SIGINT)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if seen:
            signal.raise_signal(signal.SIGINT)


def _restart(s: Search, ritz: Ritz, k: int, H: Operator) -> None:
    """Thick restart: the best Ritz vectors and the open rows."""
    still = s.filled - s.known
    keep = min(k + max(0, (s.rows - k - still) // 2), s.known, s.rows - still - 1)
    new, T = np.zeros((2, s.rows, s.rows))  # row i of new: the new row i in terms of the old ones
    new[:keep, : s.known] = ritz.vectors[:, :keep].T
    new[np.arange(keep, keep + still), np.arange(s.known, s.filled)] = 1
    T[np.arange(keep), np.arange(keep)] = ritz.values[:keep]
    T[keep : keep + still, :keep] = ritz.couplings[:, :keep]
    with _uninterrupted():
        vars(s).update(
            basis=_combined(s.basis, new, spread=H.space.shards), T=T, known=keep, filled=keep + still,
            restarts=s.restarts + 1, checked=-1,
        )  # fmt: skip


def _inject(s: Search, H: Operator, key: jax.Array, values: np.ndarray) -> None:
    """Begin another sequence, at random in the complement of the known rows; ``values`` are the wanted ones now.

    The remainders of the sequences before are in that complement: the start has a part along them.
    """
    n = H.shape[0]
    vector = _lanczos.random(H, key, s.draws, "normal")
    found = _lanczos.orthogonalized(H, s.basis, vector, np.inf if s.filled >= n else 0.0)
    fresh = found.norms[found.norms > 0]  # none where the basis is complete
    vars(s).update(
        basis=_lanczos.store(s.basis, found, s.filled), filled=s.filled + len(fresh), draws=s.draws + 1,
        direction=np.append(found.coefficients[0, s.known : s.filled], fresh), outside=n - s.known, wanted=values,
        alphas=np.zeros(0), betas=np.zeros(0), longest=max(s.longest, len(s.alphas)), most=min(s.most + 1, n),
    )  # fmt: skip


def _multiply(s: Search, H: Operator, most: int, checked: int) -> bool:
    """Multiply the first open row, and on the device those that follow; False where a product is not finite."""
    n = H.shape[0]
    full, alone = s.filled >= n, s.filled == s.known + 1
    count = max(1, min(CHUNK, s.rows - s.filled, n - s.filled, most)) if H.on_device and alone and not full else 1
    found = _lanczos.advance(H, s.basis, s.known, s.filled, count, np.inf if full else s.scale)
    good = int(np.isfinite(found.sizes).cumprod().sum())
    T, at, filled, scale = s.T.copy(), s.known, s.filled, float(found.sizes[:good].max(initial=s.scale))
    direction, alphas, betas = np.zeros(0), list(s.alphas), list(s.betas)
    for h, beta in zip(found.coefficients[:good], found.norms[:good]):
        T[: at + 1, at] = T[at, : at + 1] = h[: at + 1]
        direction = np.append(h[at + 1 : filled], [beta] if beta > 0 else [])
        filled = at + 1 + len(direction)
        T[at + 1 : filled, at] = direction
        alphas.append(h[at])
        size = float(np.linalg.norm(direction))
        betas.append(size if size > BREAKDOWN * float(jnp.finfo(H.dtype).eps) * scale else 0.0)
        at += 1
    vars(s).update(
        basis=_lanczos.store(s.basis, found, s.filled), T=T, known=at, filled=filled, scale=scale,
        direction=direction if good and len(direction) > 1 and betas[-1] > 0 else np.zeros(0),
        alphas=np.array(alphas), betas=np.array(betas), products=s.products + len(found.norms), checked=checked,
    )  # fmt: skip
    return good == len(found.norms)


def _choose(s: Search, ritz: Ritz, k: int, n: int, which: str, tol: float) -> str:
    """What to do next, "multiply", "steer" or "inject"; or why it is over, "verified" or "unverified"."""
    if s.known == n:
        return "verified"
    limit = tol * np.abs(ritz.values).max(initial=0.0)
    if s.known < k or (ritz.errors[:k] > limit).any():
        worst = ritz.couplings[:, ritz.errors[:k].argmax()] if s.known else np.zeros(1)
        size = np.linalg.norm(worst)
        if s.ended:
            return "steer" if size > limit else "inject"
        return "steer" if size > limit and abs(worst[0]) < size / 2 else "multiply"  # to the worst residual
    if len(s.wanted) < k:
        return "inject"
    sign = np.abs if which == "magnitude" else np.asarray
    if np.abs(sign(ritz.values[:k]) - sign(s.wanted)).max() > limit:
        return "inject"  # this sequence has brought another copy, and there may be more
    if _settled(s, ritz, k, which, tol):
        return "verified"
    return "unverified" if s.ended or len(s.alphas) >= max(s.longest, LEAST) else "multiply"


def search(
    s: Search, H: Operator, key: jax.Array, k: int, which: str, tol: float, limit: int,
    progress: Callable[[float, float | None], None] | None,
) -> str:  # fmt: skip
    """Until the pairs are found; says how it ended: "verified", "unverified", "max_products", or what went wrong."""
    n = H.shape[0]
    while True:
        if len(s.direction):
            _turn(s, H)
        if not _due(s, k, limit):
            todo, ritz = "multiply", None
        else:
            ritz = ritz_pairs(s, which)
            todo = _choose(s, ritz, k, n, which, tol)
        if todo in ("verified", "unverified"):
            return todo
        if s.products >= limit:
            return "max_products"
        if ritz is not None and s.rows <= s.filled < n:
            _room(s, ritz, k, H)
        elif ritz is not None and todo == "inject":
            _inject(s, H, key, ritz.values[:k])
        elif ritz is not None and todo == "steer":  # such a sequence, not begun at random, shows nothing
            worst = ritz.couplings[:, ritz.errors[:k].argmax()]
            vars(s).update(direction=worst, wanted=np.zeros(0), alphas=np.zeros(0), betas=np.zeros(0))
        elif not _multiply(s, H, limit - s.products, s.checked if ritz is None else s.known):
            return f"product {s.products} is not finite"
        elif progress is not None:
            progress(s.products, None)


def _due(s: Search, k: int, limit: int) -> bool:
    """Whether it is time for Ritz pairs, which cost known^3."""
    enough = s.known >= k and not 0 <= s.known - s.checked < max(1, s.known // 32)
    return enough or s.ended or s.filled in (s.known, s.rows) or s.products >= limit
