"""What a Lanczos sequence begun at random says about eigenvalues that it has not found.

If a start vector has the mass m at an eigenvector with eigenvalue x, then m is at most 1 / sum_j p_j(x)^2, with the
orthonormal polynomials p_j of the sequence (Christoffel). In n dimensions a random direction has a mass below
pi d^2 / (2 n) there with probability d. So an eigenvalue is ruled out where the sum is large.
"""

from __future__ import annotations

import itertools

import numpy as np

DOUBT = 1e-3  # probability that a sequence rules out an eigenvalue that is there
GAP = 0.05  # of the largest value: without a further sequence, values at least so far from those found are looked for
GLANCE = 0.1  # probability that such a value is overlooked


def rules_out(alphas: np.ndarray, betas: np.ndarray, bound: float, outside: float) -> bool:
    """Whether a Lanczos sequence (``alphas``, ``betas``) with a random start rules out an eigenvalue above ``bound``.

    ``outside`` is n, the dimension of the space in which the sequence began. The mass that the start vector has at x is
    at most 1 / sum_j p_j(x)^2, with the orthonormal polynomials p_j of the sequence (Christoffel). In n dimensions a
    random direction has a mass below pi d^2 / (2 n) at a given eigenvector with probability d.
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


def overlooks(alphas: np.ndarray, betas: np.ndarray, wanted: np.ndarray, which: str, n: int) -> bool:
    """Whether a sequence may have overlooked a value far from the wanted ones that it found.

    Where nearly all eigenvalues are equal, a random vector is nearly an eigenvector, and the others show only after
    some steps. So the mass is bounded half way between two wanted values that lie apart, and beyond the outermost ones.

    Args:
      alphas: the sequence's.
      betas: likewise.
      wanted: the values found, in the order asked for.
      which: "magnitude", "largest" or "smallest".
      n: dimension of the space.
    """
    least = 2 * n / (np.pi * GLANCE**2)
    return any(inverse_mass(alphas, betas, x) < least for x in places_between(wanted, which))


def places_between(wanted: np.ndarray, which: str) -> list[float]:
    """Places beyond and between the wanted values, at least GAP times the largest away from them."""
    gap, last, places = GAP * float(np.abs(wanted).max()), float(np.abs(wanted[-1])), []
    for sign in {"magnitude": (1, -1), "largest": (1,), "smallest": (-1,)}[which]:
        mine = sign * wanted
        if which == "magnitude":  # values below the last magnitude are not wanted
            mine = np.append(mine[mine > last], last)
        mine = np.sort(mine)[::-1]
        middles = [(high + low) / 2 for high, low in itertools.pairwise(mine) if high - low >= 2 * gap]
        places += [sign * float(x) for x in (mine[0] + gap, *middles)]
    return places


def inverse_mass(alphas: np.ndarray, betas: np.ndarray, x: float) -> float:
    """sum_j p_j(x)^2, the inverse of the largest mass that the start vector may have at x (Christoffel)."""
    before, now, total, last = 0.0, 1.0, 1.0, 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for alpha, beta in zip(alphas, betas, strict=True):
            if beta == 0:
                return np.inf
            before, now = now, ((x - alpha) * now - last * before) / beta
            total, last = total + now * now, beta
            if not np.isfinite(total):
                return np.inf
    return float(total)
