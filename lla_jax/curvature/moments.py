"""Says what the moments of a measure leave open: m steps of Lanczos fix 2 m of them, and many measures have the same.

The measure is that of a start vector v, with the mass (v'u)^2 at the eigenvalue of the eigenvector u. Its first
moments, v'A^k v, are all that Lanczos learns of it. Among the measures of m masses with the same moments 0 .. 2 m - 2
one has a node at any given x: these rules are one family, and the values that a quantity takes over the family are
those that the steps cannot tell apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import linalg

ROUNDS = 4  # of a search that cuts an interval into 32: to 1e-6 of the distance
HUGE = 1e150  # a larger polynomial is not told from this one
FAR = 1e6  # times the largest entry: a node as far out has no weight

Rule = tuple[np.ndarray, np.ndarray]
"""Nodes, ascending, and weights of a quadrature rule, (m,) each."""


def jacobi(nodes: np.ndarray, weights: np.ndarray) -> Rule:
    """The Jacobi matrix of a rule: its diagonal (m,) and the entries beside it (m - 1,).

    Nodes without weight are left out. Householder's reflections make the matrix, so that no digit is lost.
    """
    nodes, roots = nodes[weights > 0], np.sqrt(weights[weights > 0])
    arrow = np.block([[np.zeros((1, 1)), roots[None]], [roots[:, None], np.diag(nodes)]])
    tridiagonal = linalg.hessenberg(arrow)[1:, 1:]
    return np.diag(tridiagonal).copy(), np.abs(np.diag(tridiagonal, -1))


@np.errstate(over="ignore")  # a pivot may be next to zero, and the last entry far away then
def rule_at(alphas: np.ndarray, betas: np.ndarray, x: float) -> Rule:
    """The rule with a node at x that has the moments 0 .. 2 m - 2 of the Jacobi matrix (Gauss and Radau's).

    Args:
      alphas: (m,) the diagonal of the Jacobi matrix.
      betas: (m - 1,) the entries beside it.
      x: the node, any real number.
    """
    pivot = 1.0
    for j, alpha in enumerate(alphas[:-1]):
        pivot = alpha - x - (betas[j - 1] ** 2 / pivot if j else 0.0)
        pivot = pivot or np.finfo(float).tiny
    last = x + (betas[-1] ** 2 / pivot if len(betas) else 0.0)
    diagonal, beside = np.append(alphas[:-1], last), betas
    if abs(last) > FAR * (np.abs(alphas).max() + abs(x)):  # x is a node of the rule of one step less
        diagonal, beside = diagonal[:-1], beside[:-1]
    nodes, vectors = linalg.eigh_tridiagonal(diagonal, beside)
    return nodes, vectors[0] ** 2


def mass_below(alphas: np.ndarray, betas: np.ndarray, x: float) -> tuple[float, float]:
    """(least, most) mass below x of all measures with these moments.

    The inequalities of Chebyshev, Markov and Stieltjes: the weights of the rule with a node at x, without and with x.

    References: Chen et al. 2021, arXiv 2105.06595.
    """
    nodes, weights = rule_at(alphas, betas, x)
    at = int(np.abs(nodes - x).argmin())
    least = float(weights[:at].sum())
    return least, least + float(weights[at])


def largest_mass(alphas: np.ndarray, betas: np.ndarray, x: Any) -> Any:
    """The largest mass at x of all measures with these moments.

        1 / sum_j p_j(x)^2,   p_j the orthonormal polynomials of the Jacobi matrix (Christoffel)

    A mass below 1e-300 is not told from 0.

    Args:
      alphas: (..., m) the diagonals of Jacobi matrices.
      betas: (..., m - 1) the entries beside them.
      x: a number or an array that broadcasts with the leading axes.
    """
    before, now, total = 0.0, 1.0, 1.0
    for j in range(betas.shape[-1]):
        last = betas[..., j - 1] * before if j else 0.0
        before, now = now, np.clip(((x - alphas[..., j]) * now - last) / betas[..., j], -HUGE, HUGE)
        total = total + now * now
    return 1 / total


def sampling_error(second: Any, third: Any, n: int, probes: int) -> Any:
    """The standard error of a mean of v'f(A)v over random unit vectors v, from the spectrum instead of the few probes.

        Var v'f(A)v = (2 / n) tr (f - tr f / n)^2 / n

    for Gaussian v to order 1 / n, and at most this for v of signs. A function that takes its values from a few
    eigenvalues is skewed: its error is small where its value is. So 2 c^2 / (n probes), c = third / second, is added
    to the second moment, as if two eigenvectors more had been seen: calibrated, as one covers too little of 2 probes.

    Args:
      second: the mean of (f - mean f)^2 over the spectrum, a number or an array.
      third: the mean of |f - mean f|^3, likewise.
      n: the number of eigenvalues.
      probes: the number of random vectors.
    """
    c = np.divide(third, second, out=np.zeros(np.shape(second)), where=np.asarray(second) > 0)
    return np.sqrt(2 / (n * probes) * (second + 2 * c**2 / (n * probes)))[()]


def outermost(rules: Sequence[Rule], start: float, sign: int, mass: float) -> float:
    """How far out an eigenvalue may lie: the x at which the largest masses of all start vectors add up to ``mass``.

    Args:
      rules: Jacobi matrices (alphas, betas) of several start vectors.
      start: an x that has no node beyond it.
      sign: 1 to go up from it, -1 to go down.
      mass: what the eigenvector of the outermost eigenvalue has at least, over all start vectors together.
    """

    together = defaultdict(list)  # of equal length, for one recurrence
    for alphas, betas in rules:
        together[len(alphas)].append((alphas, betas))
    stacks = [[np.stack(each)[:, None] for each in zip(*group)] for group in together.values()]

    def first_too_light(steps: np.ndarray) -> int:
        masses = sum(largest_mass(alphas, betas, start + sign * steps).sum(0) for alphas, betas in stacks)
        return int(np.argmax(np.append(masses < mass, True)))

    unit = max(np.abs(alphas).max() for alphas, _ in rules) or 1.0
    steps = unit * 2.0 ** np.arange(-40, 60)
    for _ in range(ROUNDS):
        at = first_too_light(steps)
        if at == len(steps):
            break
        low = steps[at - 1] if at else 0.0
        steps = np.linspace(low, steps[at], 33)
    return start + sign * float(steps[-1])
