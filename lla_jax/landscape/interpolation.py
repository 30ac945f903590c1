"""Interpolates values on scattered points of a grid, and predicts the error between them, from their neighbours only.

Each evaluated point, a site, has an interpolant of its own through its nearest sites, local kriging with a polyharmonic
covariance and a quadratic drift: ``f(x) = sum_i a_i phi(|x - x_i|) + p(x)``. Between sites the interpolants of the
nearest three are blended with weights that vanish where another site takes a place among the three, so that the surface
is continuous. Quadratic surfaces are reproduced to rounding. The cost grows with the number of sites and of queries,
never with their product.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

NEIGHBOURS = {1: 8, 2: 24}  # sites in an interpolant, by the number of axes; 40 for more
BLENDED = 3  # interpolants that meet at a query
ALIKE = 6  # sites over which an error is averaged
RIDGE = 1e-10  # of the drift: it stays soluble where the neighbours lie on one line
NUGGET = 1e-13  # of the covariance: as small as rounding, for points at one place
NUMBERS = 4_000_000  # in an array at a time, 32 MB


class Sites(NamedTuple):
    """Evaluated points, and what interpolation between them needs but no value.

    Args:
      tree: finds the nearest sites, in fractions of the grid.
      places: (n, k), coordinates.
      near: (n, K), the nearest sites of each, itself first.
      reach: (n, k), how far these lie from it along each axis at most.
      around: (n, K, k), where they are from it, in multiples of this.
      inverse: (n, K + m, K + m), of the kriging matrix of each; m is the number of terms of the drift.
    """

    tree: Any
    places: np.ndarray
    near: np.ndarray
    reach: np.ndarray
    around: np.ndarray
    inverse: np.ndarray


class Surface(NamedTuple):
    """The interpolants of one value.

    Args:
      coefficients: (n, K + m), of the interpolant of each site.
      log: (n,), whether it interpolates the logarithm.
      rough: (n,), by which the kriging deviation is multiplied for the error that is expected; in the units of the
        picture.
      missed: (n,), the error at each site if it is left out of its interpolant, in these units.
    """

    coefficients: np.ndarray
    log: np.ndarray
    rough: np.ndarray
    missed: np.ndarray


def tree_of(fractions: np.ndarray) -> Any:
    """What finds the nearest of points (n, k)."""
    from scipy.spatial import cKDTree  # here, since it takes time and most landscapes are not refined

    return cKDTree(fractions)


def set_sites(fractions: np.ndarray, places: np.ndarray) -> Sites:
    """Prepare interpolation between points.

    Args:
      fractions: (n, k), the points in fractions of the grid's numbers of points, by which neighbours are found.
      places: (n, k), the same points in coordinates, in which the surface is smooth.
    """
    count, dims = places.shape
    tree = tree_of(fractions)
    size = min(NEIGHBOURS.get(dims, 40), count)
    near = tree.query(fractions, k=range(1, size + 1))[1]
    away = places[near] - places[:, None]
    reach = abs(away).max(1)
    reach[reach == 0] = 1.0  # all on one line: along it alone
    u = away / reach[:, None]
    drift = _drift(u)
    terms = drift.shape[-1]
    matrix = np.zeros((count, size + terms, size + terms))
    matrix[:, :size, :size] = _covariance(u[:, :, None] - u[:, None])
    matrix[:, :size, size:] = drift
    matrix[:, size:, :size] = drift.transpose(0, 2, 1)
    matrix[:, range(size), range(size)] += NUGGET
    diagonal = range(size, size + terms)
    matrix[:, diagonal, diagonal] = -RIDGE
    return Sites(tree, places, near, reach, u, np.linalg.inv(matrix))


def fit(sites: Sites, values: np.ndarray, log: bool) -> Surface:
    """Make the interpolants of one value.

    With ``log`` each site interpolates the value or its logarithm, as its neighbours left out tell: close to a minimum
    the value is a parabola where its logarithm is a sharp bowl, and far away the logarithm is smoother.

    Args:
      sites: the points.
      values: (n,), finite; above 0 with ``log``.
      log: whether the picture is logarithmic, and errors are those of the logarithm.
    """
    if not log:
        unit = float(abs(values).max()) or 1.0  # whose square may overflow
        coefficients, rough, missed = _fit_one(sites, values, np.full(len(values), unit))
        return Surface(coefficients, np.zeros(len(values), bool), rough * unit, missed * unit)
    with np.errstate(all="ignore"):  # the square of a value may have no number; then the logarithm is taken
        plain = _fit_one(sites, values, values)
    other = _fit_one(sites, np.log(values), np.ones(len(values)))
    better = ~(plain[1] <= other[1])
    coefficients = np.where(better[:, None], other[0], plain[0])
    rough, missed = (np.where(better, two, one) for one, two in zip(plain[1:], other[1:], strict=True))
    return Surface(coefficients, better, rough, missed)


def _fit_one(sites: Sites, values: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients, roughness and the errors of values left out, both in multiples of ``unit``."""
    size = sites.near.shape[1]
    middle = values[:, None]  # differences from the site itself, so that rounding is that of the differences
    coefficients = np.einsum("nij,nj->ni", sites.inverse[:, :, :size], values[sites.near] - middle)
    own = abs(sites.inverse[:, 0, 0])
    own = np.maximum(own, np.finfo(float).tiny)
    coefficients[:, size] += values
    left_out = coefficients[:, 0]
    square = (left_out / unit) ** 2 / own
    rough = np.sqrt(square[sites.near[:, :ALIKE]].mean(1))
    return coefficients, rough, abs(left_out) / own / unit


def _drift(u: np.ndarray) -> np.ndarray:
    """The monomials up to degree 2 of local coordinates (..., k): (..., m)."""
    axes = range(u.shape[-1])
    pairs = [u[..., i] * u[..., j] for i, j in itertools.combinations_with_replacement(axes, 2)]
    return np.stack([np.ones(u.shape[:-1]), *(u[..., i] for i in axes), *pairs], -1)


def _covariance(u: np.ndarray) -> np.ndarray:
    """The polyharmonic covariance -r^5 of differences (..., k)."""
    square = np.einsum("...k,...k->...", u, u)
    return -(square * square) * np.sqrt(square)


def _basis(sites: Sites, places: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The functions of the interpolants of sites ``at`` (q,) at places (q, k): (q, K + m)."""
    u = (places - sites.places[at]) / sites.reach[at]
    return np.concatenate([_covariance(u[:, None] - sites.around[at]), _drift(u)], -1)


def _slices(count: int, each: int) -> Iterator[slice]:
    step = max(1, NUMBERS // each)
    return (slice(lo, lo + step) for lo in range(0, count, step))


def predict(
    sites: Sites, surfaces: Sequence[Surface], fractions: np.ndarray, places: np.ndarray, logs: Sequence[bool]
) -> np.ndarray:
    """Several surfaces at queries, in the units of their pictures: logarithms for those with ``log``.

    Args:
      sites, surfaces: the interpolants.
      fractions, places: (q, k), as in ``set_sites``.
      logs: as in ``fit``, one for each surface.

    Returns:
      (number of surfaces, q).
    """
    found = np.zeros((len(surfaces), len(places)))
    for rows in _slices(len(places), sites.inverse.shape[1] * places.shape[1]):
        weights, at = _blend(sites, fractions[rows])
        for i in range(at.shape[1]):
            basis = _basis(sites, places[rows], at[:, i])
            for new, surface, log in zip(found, surfaces, logs, strict=True):
                new[rows] += weights[:, i] * _predict_one(surface, basis, at[:, i], log)
    return found


def _blend(sites: Sites, fractions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights and numbers of the sites that meet at queries, each (q, BLENDED)."""
    if len(sites.places) <= BLENDED:
        at = sites.tree.query(fractions, k=[1])[1]
        return np.ones(at.shape), at
    distance, at = sites.tree.query(fractions, k=range(1, BLENDED + 2))
    end, distance = distance[:, -1:], np.maximum(distance[:, :-1], 1e-12)
    weights = ((end - distance) / (end * distance)) ** 2
    weights[weights.sum(1) == 0, 0] = 1.0  # all as far
    return weights / weights.sum(1, keepdims=True), at[:, :-1]


def _predict_one(surface: Surface, basis: np.ndarray, at: np.ndarray, log: bool) -> np.ndarray:
    found = np.einsum("qi,qi->q", basis, surface.coefficients[at])
    if log:
        plain = ~surface.log[at]
        found[plain] = np.log(np.maximum(found[plain], np.finfo(float).tiny))
    return found


def expect(sites: Sites, surface: Surface, fractions: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The standard deviation of the error that kriging expects at queries (q, k), in the units of the picture: (q,)."""
    found = np.empty(len(places))
    for rows in _slices(len(places), sites.inverse.shape[1] ** 2):
        at = sites.tree.query(fractions[rows], k=1)[1]
        basis = _basis(sites, places[rows], at)
        square = np.einsum("qi,qi->q", basis, (sites.inverse[at] @ basis[..., None])[..., 0])
        found[rows] = surface.rough[at] * np.sqrt(abs(square))
    return found
