"""A basis grown from several Lanczos sequences, and the search in it for wanted eigenvalues and all their copies.

One Krylov sequence sees every distinct eigenvalue once. Once the wanted pairs have converged, another therefore begins
at random in the complement of the vectors multiplied so far, until nothing there can belong to the wanted ones. The
projected matrix is dense, so that all sequences work together; the remainder in which a sequence ended is let go, and
what the others find of it later is subtracted from the error that this leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax import lanczos as _lanczos
from lla_jax._types import PyTree
from lla_jax.lanczos import CHUNK
from lla_jax.linear_operator import HostOperator, LinearOperator

Operator = LinearOperator | HostOperator
DOUBT = 1e-3  # probability that a sequence rules out an eigenvalue that is there
LEAST = 10  # steps that a sequence may take to rule out, if all others were shorter


@dataclass
class Search:
    """Where a search stands: rows 0 .. known - 1 of the basis have been multiplied, row ``known`` is next if ``open``.

    A q_j = sum_i T_ij q_i + sum_t lost_tj r_t for j < known, where i runs over the rows and r_t, of norm 1, are
    remainders that were let go.
    """

    basis: PyTree
    T: np.ndarray  # (rows, rows); of the open row only its couplings to the known ones
    lost: np.ndarray  # (t, rows)
    known: int = 0
    open: bool = True
    alphas: np.ndarray = field(default_factory=lambda: np.zeros(0))  # of the present sequence
    betas: np.ndarray = field(default_factory=lambda: np.zeros(0))
    outside: int = 0  # dimension of the space in which it began
    wanted: np.ndarray = field(default_factory=lambda: np.zeros(0))  # values then; none in the first sequence
    longest: int = 0  # steps of the longest sequence before
    scale: float = 0.0  # largest |A q|
    products: int = 0
    draws: int = 1
    restarts: int = 0
    most: int = 0  # rows at most

    @property
    def rows(self) -> int:
        return len(self.T)

    @property
    def filled(self) -> int:
        return self.known + self.open

    @property
    def gone(self) -> bool:
        """Whether an interrupted call took the basis with it."""
        return any(x.is_deleted() for x in jax.tree_util.tree_leaves(self.basis))


class Ritz(NamedTuple):
    """Ritz values in the order asked for, their vectors ``(known, r)``, and |A x - theta x| at most."""

    values: np.ndarray
    vectors: np.ndarray
    errors: np.ndarray


def begin(H: Operator, key: jax.Array, rows: int, most: int, used: int) -> Search:
    """A search with a random start vector and nothing multiplied; ``used`` products were made before."""
    basis = _lanczos.begin(_lanczos.random(H, key, 0, "normal"), rows=rows)
    return Search(basis, np.zeros((rows, rows)), np.zeros((0, rows)), outside=H.shape[0], products=used, most=most)


def order(values: np.ndarray, which: str) -> np.ndarray:
    """Indices that put values in the order asked for."""
    return np.argsort({"magnitude": -abs(values), "largest": -values, "smallest": values}[which], kind="stable")


def ritz_pairs(s: Search, which: str, n: int) -> Ritz:
    """Rayleigh-Ritz on the rows that were multiplied."""
    values, vectors = np.linalg.eigh(s.T[: s.known, : s.known])
    chosen = order(values, which)
    values, vectors = values[chosen], vectors[:, chosen]
    errors = np.zeros(len(values))
    if s.known < n:
        errors += np.abs(s.lost[:, : s.known] @ vectors).sum(0)
        errors += np.abs(s.T[s.known, : s.known] @ vectors) if s.open else 0.0
    return Ritz(values, vectors, errors)


def ruled_out(alphas: np.ndarray, betas: np.ndarray, bound: float, outside: int) -> bool:
    """Whether no eigenvalue lies above ``bound``, going by a Lanczos sequence with a random start.

    The mass that the start vector has at x is at most 1 / sum_j p_j(x)^2, with the orthonormal polynomials p_j of the
    sequence (Christoffel). In n dimensions a random direction has a mass below pi d^2 / (2 n) at a given eigenvector
    with probability d.
    """
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


def _settled(s: Search, ritz: Ritz, k: int, which: str, tol: float) -> bool:
    """Whether the present sequence shows that nothing wanted was missed."""
    slack = tol * np.abs(ritz.values).max()
    last = ritz.values[k - 1]
    if which == "magnitude":
        bound = abs(last) + slack
        return all(ruled_out(sign * s.alphas, s.betas, bound, s.outside) for sign in (1, -1))
    sign = 1 if which == "largest" else -1
    return ruled_out(sign * s.alphas, s.betas, sign * last + slack, s.outside)


# --- moving on: a search changes at once, so that an interrupt finds it before a step or after


_rotated = jax.jit(_lanczos.combine)
_padded = jax.jit(
    lambda basis, more: jax.tree_util.tree_map(lambda q: jnp.pad(q, [(0, more), *[(0, 0)] * (q.ndim - 1)]), basis),
    static_argnums=1,
)


def _room(s: Search, ritz: Ritz, k: int, on_device: bool) -> None:
    """Make room for another row: a larger buffer, or a restart from the best Ritz vectors."""
    if s.rows >= s.most:
        _restart(s, ritz, k)
        return
    more = min(s.rows * (3 if on_device else 1), s.most - s.rows)  # on the device a size compiles the product anew
    vars(s).update(basis=_padded(s.basis, more), T=np.pad(s.T, (0, more)), lost=np.pad(s.lost, ((0, 0), (0, more))))


def _restart(s: Search, ritz: Ritz, k: int) -> None:
    """Thick restart: the best Ritz vectors and the open row."""
    keep = min(k + max(0, (s.rows - k - s.open) // 2), s.known, s.rows - s.open - 1)
    new = np.zeros((s.rows, s.rows))  # row i: the new row i in terms of the old ones
    new[:keep, : s.known] = ritz.vectors[:, :keep].T
    T = np.zeros_like(s.T)
    T[np.arange(keep), np.arange(keep)] = ritz.values[:keep]
    if s.open:
        new[keep, s.known] = 1
        T[keep, :keep] = s.T[s.known, : s.known] @ ritz.vectors[:, :keep]
    lost = s.lost @ new.T
    vars(s).update(basis=_rotated(new, s.basis), T=T, lost=lost, known=keep, restarts=s.restarts + 1)


def _inject(s: Search, H: Operator, key: jax.Array, values: np.ndarray) -> None:
    """Begin another sequence, at random in the complement of the known rows; the open row is let go.

    ``values`` are the wanted ones as they are.
    """
    lost, T = s.lost, s.T.copy()
    if s.open:
        lost = np.concatenate([lost, np.zeros((1, s.rows))])
        lost[-1, : s.known] = T[s.known, : s.known]
        T[s.known] = 0
    vector = _lanczos.random(H, key, s.draws, "normal")
    vars(s).update(
        basis=_lanczos.inject(H, s.basis, s.known, vector), T=T, lost=lost, open=True, draws=s.draws + 1,
        outside=H.shape[0] - s.known, wanted=values, longest=max(s.longest, len(s.alphas)),
        alphas=np.zeros(0), betas=np.zeros(0),
    )  # fmt: skip


def _found_again(lost: np.ndarray, surprise: np.ndarray) -> np.ndarray:
    """``lost`` without what a new row has of the remainders: its couplings to the known rows that none expected."""
    if not len(lost):
        return lost
    part = np.linalg.lstsq(lost[:, : len(surprise)].T, surprise, rcond=1e-6)[0]
    return lost * np.sqrt(np.maximum(0, 1 - part**2))[:, None]


def _multiply(s: Search, H: Operator, most: int) -> bool:
    """Multiply the open row, and on the device those that follow; False where a product is not finite."""
    n = H.shape[0]
    full = s.filled >= n
    count = 1 if full or not H.on_device else max(1, min(CHUNK, s.rows - s.filled, n - s.filled, most))
    found = _lanczos.advance(H, s.basis, s.known, s.filled, count, np.inf if full else s.scale)
    good = int(np.isfinite(found.sizes).cumprod().sum())
    T, lost, at = s.T.copy(), s.lost, s.known
    for h, beta in zip(found.coefficients[:good], found.norms[:good]):
        lost = _found_again(lost, h[:at] - T[at, :at])
        T[: at + 1, at] = T[at, : at + 1] = h[: at + 1]
        at += 1
        if beta > 0:
            T[at, at - 1] = beta
    ends = good > 0 and found.norms[good - 1] == 0
    alphas = [h[s.known + i] for i, h in enumerate(found.coefficients[:good])]
    vars(s).update(
        basis=_lanczos.store(s.basis, found, s.filled), T=T, lost=lost, known=at, open=not ends,
        alphas=np.append(s.alphas, alphas), betas=np.append(s.betas, found.norms[:good]),
        scale=float(found.sizes[:good].max(initial=s.scale)), products=s.products + len(found.norms),
    )  # fmt: skip
    return good == len(found.norms)


def _choose(s: Search, ritz: Ritz, k: int, n: int, which: str, tol: float) -> str:
    """What to do next, "multiply" or "inject"; or why it is over, "verified" or "unverified"."""
    further = "multiply" if s.open else "inject"
    if s.known < k or (ritz.errors[:k] > tol * np.abs(ritz.values).max()).any():
        return further
    if s.filled >= n:
        return further if s.open else "verified"
    if len(s.wanted) < k:
        return "inject"
    sign = np.abs if which == "magnitude" else np.asarray
    if np.abs(sign(ritz.values[:k]) - sign(s.wanted)).max() > tol * np.abs(ritz.values).max():
        return "inject"  # this sequence has brought another copy, and there may be more
    if not s.open or _settled(s, ritz, k, which, tol):
        return "verified"
    return "unverified" if len(s.alphas) >= max(s.longest, LEAST) else "multiply"


def search(
    s: Search, H: Operator, key: jax.Array, k: int, which: str, tol: float, limit: int,
    progress: Callable[[float, float | None], None] | None,
) -> str:  # fmt: skip
    """Until the pairs are found; says how it ended: "verified", "unverified", "max_products", or what went wrong."""
    n = H.shape[0]
    while True:
        ritz = ritz_pairs(s, which, n)
        todo = _choose(s, ritz, k, n, which, tol)
        if todo in ("verified", "unverified"):
            return todo
        if s.products >= limit:
            return "max_products"
        if s.rows <= s.filled < n:
            _room(s, ritz, k, H.on_device)
            continue
        if todo == "inject":
            _inject(s, H, key, ritz.values[:k])
        elif not _multiply(s, H, limit - s.products):
            return f"product {s.products} is not finite"
        elif progress is not None:
            progress(s.products, None)
