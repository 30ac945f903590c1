"""The density of a spectrum: Gaussians at its nodes; its error tells where the steps do not resolve their width."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from scipy.special import ndtr

from lla_jax.core import arguments
from lla_jax.core.results import Spectrum
from lla_jax.core.signatures import explained
from lla_jax.core.standard_errors import standard_error
from lla_jax.curvature import moments, units
from lla_jax.curvature.quadrature import CLOSE, exhausted

MOST_POINTS = 10**7  # of a density


@explained
class Density(NamedTuple):
    """A spectral density on a grid.

    Args:
      x: (points,) float64, eigenvalues, ascending.
      density: (points,) per unit of ``t``: the mean over the probes, sum(density) (t[1] - t[0]) = 1.
      sem: (points,) its standard error over the probes, from the spectrum itself (``moments.sampling_error``), plus
        half the distance to the density of other rules with the same moments, whose nodes lie between these: it shows
        where the steps do not resolve the width. Of a spectrum made by hand from the scatter of its probes, NaN for
        one.
      t: (points,) the coordinate, evenly spaced: ``x`` itself ("linear") or sign(x) log10(1 + |x| / threshold).
      sigma: standard deviation of the Gaussians, in units of ``t``.
      scale: "linear" or "symlog".
      threshold: of "symlog", in units of ``x``; 0 for "linear".
    """

    x: np.ndarray
    density: np.ndarray
    sem: np.ndarray
    t: np.ndarray
    sigma: float
    scale: str
    threshold: float

    def __repr__(self) -> str:
        return (
            f"Density({len(self.x)} points, {self.x[0]:.4g} .. {self.x[-1]:.4g}, {self.scale}, sigma {self.sigma:.3g})"
        )


@explained
def density(
    spec: Spectrum,
    *,
    points: int = 1000,
    width: float = 0.01,
    scale: Literal["linear", "symlog"] = "linear",
    threshold: float | None = None,
) -> Density:
    """The spectral density: a mixture of Gaussians around the nodes, of mass 1.

        rho(t) = mean over probes of sum_i w_i N(t; t_i, sigma^2),   sigma = width (max t_i - min t_i)

    averaged over the cells of the grid, so that a Gaussian narrower than a cell keeps its mass. The grid reaches
    5 sigma beyond all nodes of all probes.

    Args:
      spec: what ``spectrum`` returned.
      points: of the grid.
      width: standard deviation of a Gaussian, relative to the range of the nodes (where that is zero, to the largest
        |node|, or to 1).
      scale: "linear", or "symlog": Gaussians, grid and mass in the coordinate t = sign(x) log10(1 + |x| / threshold).
      threshold: below it "symlog" is about linear; by default 1e-4 of the largest |node|.

    Returns:
      ``Density``.

    Raises:
      ValueError: an argument out of its range; an empty spectrum; a threshold with "linear".

    References: Lin et al. 2016, arXiv 1308.5467. Where we differ from LLA: (1) the width is relative to the range;
    (2) the grid holds the ends of every probe, not their means; (3) no constant is added.
    """
    if not isinstance(spec, Spectrum) or not spec.nodes.size:
        raise arguments.misuse("spec", spec, "the result of lla.spectrum(H, key), with at least one probe")
    arguments.check_integer("points", points, least=2, most=MOST_POINTS, remedy="such as 1000")
    arguments.check_number("width", width, remedy="relative to the range of the nodes, such as 0.01")
    arguments.check_choice("scale", scale, ("linear", "symlog"))
    if scale == "linear" and threshold is not None:
        text = f'{threshold!r} given with scale="linear", which has none'
        raise arguments.Misuse("threshold", f'{text}; leave it out, or use scale="symlog"')
    if threshold is not None:
        threshold = arguments.check_number("threshold", threshold, remedy="in units of eigenvalues, or None")
    spec, unit = units.of_spectrum(spec)
    largest = float(np.abs(spec.nodes).max())
    knee = 1e-4 * (largest or 1.0) if threshold is None else threshold / unit

    def coordinate(x: np.ndarray) -> np.ndarray:
        return x if scale == "linear" else np.sign(x) * np.log10(1 + np.abs(x) / knee)

    nodes = coordinate(spec.nodes)
    low, high = nodes.min(), nodes.max()
    span = float(high - low)
    if span <= CLOSE * np.finfo(np.float64).eps * np.abs(nodes).max():
        span = float(np.abs(nodes).max()) or 1.0
    sigma = width * span
    edges = np.linspace(low - 5 * sigma, high + 5 * sigma, points + 1)
    cell = edges[1] - edges[0]
    powers = [_smooth(*row, edges, sigma) for row in zip(nodes, spec.weights, strict=True)]
    each = np.stack([power[0] / (power[0].sum() * cell) for power in powers])
    t = (edges[1:] + edges[:-1]) / 2
    x = t if scale == "linear" else np.sign(t) * knee * (10.0 ** np.abs(t) - 1)
    mean, sem = each.mean(0), standard_error(each)
    if n := spec.recipe.get("n"):
        _, squares, cubes = np.mean(powers, 0)
        sem = moments.sampling_error(np.maximum(squares - mean**2, 0.0), cubes, n, spec.probes)
        others = [
            power[0] if exact else _smooth(coordinate(theta), w, edges, sigma)[0]
            for power, exact, (theta, w) in zip(powers, exhausted(spec), map(_shifted, spec.nodes, spec.weights))
        ]
        sem = sem + np.abs(np.mean(others, 0) - mean) / 2
    if scale == "linear":
        return Density(x * unit, mean / unit, sem / unit, t * unit, float(sigma) * unit, scale, 0.0)
    return Density(x * unit, mean, sem, t, float(sigma), scale, knee * unit)


def _smooth(nodes: np.ndarray, weights: np.ndarray, edges: np.ndarray, sigma: float) -> np.ndarray:
    """The sums of w k, w k^2 and w k^3 over the nodes, (3, points): k is a node's Gaussian, averaged over a cell."""
    sums = np.zeros((3, len(edges) - 1))
    for t, w in zip(nodes, weights, strict=True):
        if w > 0:
            kernel = np.diff(ndtr((edges - t) / sigma)) / (edges[1] - edges[0])
            sums += w * kernel ** np.array([[1], [2], [3]])
    return sums


def _shifted(nodes: np.ndarray, weights: np.ndarray) -> moments.Rule:
    """Another rule with the moments of a probe's: a node lies half way between two in the middle, and so do most."""
    theta = nodes[weights > 0]
    if len(theta) < 2:
        return nodes, weights
    at = min(int(np.searchsorted(np.cumsum(weights[weights > 0]), 0.5)), len(theta) - 2)
    return moments.rule_at(*moments.jacobi(nodes, weights), float(theta[at] + theta[at + 1]) / 2)
