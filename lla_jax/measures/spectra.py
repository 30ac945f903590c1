"""Computes criteria of a point from its spectrum: r_e, K_Hn, the type, the index of a saddle.

``escape_directions`` takes the directions that lead down from eigenpairs. In K_Hn ("pooled") and the index, an
eigenvalue that rounding cannot tell from zero counts as zero: |theta| <= t = min(100 eps, 0.01) max|theta|, with the
eps of the precision in which the products were computed.

The error of a criterion has two parts, whose sum it is. "statistical": the probes are drawn; the spectrum itself says
how much that matters (``curvature.moments.sampling_error``), for one probe too. "systematic": m steps fix only 2 m
moments of a probe's measure; it is half the distance to the farthest value that these moments allow, so that
value +- 2 errors holds all of them. Where the systematic part alone leaves open half of the value, the criterion is not
"resolved": take more steps. A spectrum whose recipe does not say how many parameters there are (one made by hand) is
taken as it stands: its errors are statistical, from the scatter of its probes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import special

from lla_jax.core import precision
from lla_jax.core.arguments import Misuse, check_choice, check_number, misuse, warn_caller
from lla_jax.core.results import Eigenpairs, Estimate, Spectrum
from lla_jax.core.signatures import explained
from lla_jax.core.standard_errors import WITHIN, standard_error
from lla_jax.core.text import pm
from lla_jax.core.types import Directions
from lla_jax.curvature import moments, units
from lla_jax.curvature.quadrature import exhausted

DEFINITIONS = ("pooled", "lla")
ROUNDING = 100.0  # times eps max|theta|: a node nearer to zero counts as zero
ENDS = 32.0  # times eps max|theta|: how far rounding may move an extreme eigenvalue
NEAR_ZERO = 0.01  # times max|theta|: nodes up to it count as near zero for the type of a spectrum
TIE = 1e-6  # relative: fractions as close as this are equal
RULES = 8  # rules with the same moments over which K_Hn is taken
UNLIKELY = 0.025  # probability that an eigenvalue beyond an end of the spectrum was missed
RESOLVED = 0.5  # of the value, which two systematic errors of a resolved criterion take at most

Definition = Literal["pooled", "lla"]


@explained
class SpectrumType(NamedTuple):
    """The type of a spectrum, and the fractions of its absolute curvature that lie below, near and above zero.

    Args:
      kind: "mainly positive", "mainly negative" or "quasi-singular".
      negative: fraction below zero.
      zero: fraction near zero.
      positive: fraction above zero. The three add up to 1.
    """

    kind: str
    negative: float
    zero: float
    positive: float


@explained
def r_e(spec: Spectrum, *, definition: Definition = "pooled") -> Estimate:
    """The ratio of the most negative to the largest eigenvalue, a measure of how far from convex the loss is.

        r_e = |theta_min / theta_max|

    Args:
      spec: from ``spectrum``.
      definition: "pooled" takes the extremes over all probes, which all lie inside the true spectrum; "lla" is the mean
        of the probes' ratios.

    Returns:
      ``Estimate`` with its error. Ritz values lie inside the spectrum, so it is all systematic: an eigenvalue beyond
      them has a mass in every probe, together below the quantile of chi^2_P / n (n parameters, P probes) with
      probability 0.025, and the moments bound that mass. Of a spectrum made by hand it is the jackknife's over the
      probes, and for "lla" that of the mean; NaN for one probe. The recipe has "statistical", "systematic", "resolved",
      steps, probes, scheme, definition, ``type`` and ``applies``: False, with a warning, where the spectrum is mainly
      negative or zero. NaN for a zero spectrum, inf where theta_max is zero and theta_min is not. Where theta_min is
      above zero, it is what the formula gives, the inverse condition number.

    Raises:
      ValueError: another definition; a spectrum with nodes that are not finite.

    References: LLA, arXiv 2412.10146. Where we differ from LLA: (1) pooled extremes: the mean of the probes' ratios is
    biased, as each probe misses part of the range; (2) the error.
    """
    check_choice("definition", definition, DEFINITIONS)
    spec, nodes, weights, _ = _in_unit(spec)

    def ratio(kept: np.ndarray) -> float:
        return _ratio(abs(float(nodes[kept].min())), abs(float(nodes[kept].max())))

    recipe = _recipe("r_e", spec, definition)
    mean, statistical = _estimate(ratio, spec.probes, definition)
    systematic = 0.0
    if definition == "pooled" and "n" in spec.recipe:
        bottom, top = (_reach(spec, nodes, weights, sign) for sign in (-1, 1))
        possible = [_ratio(bottom[0], top[1]), _ratio(bottom[1], top[0])]
        statistical, systematic = 0.0, _farthest(mean, possible) + ENDS * _eps(spec) * (1 + mean) / WITHIN
    return _with_errors(mean, statistical, systematic, spec, recipe)


@explained
def k_hn(spec: Spectrum, n: float = 0.5, *, definition: Definition = "pooled") -> Estimate:
    """The ratio of negative to positive curvature: sums over weighted eigenvalues, raised to a power.

        K_Hn = sum_{theta < 0} |theta_i w_i|^n / sum_{theta > 0} (theta_i w_i)^n

    both sums over the nodes of all probes. With all steps every eigenvalue has about the same weight, and it is

        tr |H-|^n / tr H+^n

    a property of the operator, its "limit". For n = 1 few steps are near it. For n < 1 they are not: nodes that split
    count more, so that the value depends on the steps and on the scheme. So the limit is estimated as well, by the
    quadrature sum of w_i |theta_i|^n, and the error holds it. Compare the values themselves only between spectra with
    equal steps, probes and scheme; the recipe has them, and K_H1.

    Args:
      spec: from ``spectrum``.
      n: the exponent, above 0.
      definition: "pooled"; or "lla", the mean of the probes' ratios with every node counted, as LLA has it, for spectra
        with ``scheme="lla"`` (others give a warning).

    Returns:
      ``Estimate`` with its error: that of the limit over the probes, plus half the distance to the limit, or to the
      values of it that the probes' moments allow. Of a spectrum made by hand it is the jackknife's over the probes, and
      for "lla" that of the mean; NaN for one probe. The recipe has
      "statistical", "systematic", "resolved", ``limit`` (None for "lla"), n, steps, probes, scheme, definition,
      ``k_h1`` [mean, sem], ``dropped`` (the fraction of weight at nodes that rounding cannot tell from zero: they count
      as zero), ``type`` and ``applies`` as for ``r_e``. NaN for a zero spectrum, inf where no node is above zero.

    Raises:
      ValueError: n not above 0; another definition; a spectrum with nodes that are not finite.

    References: LLA, arXiv 2412.10146. Where we differ from LLA: (1) sums over all probes before dividing, because the
    mean of ratios is biased; (2) rounding errors are not counted: n = 0.5 makes 3e-4 of a convex problem's in float32;
    (3) the standard error.
    """
    check_number("n", n, remedy="such as 0.5 (LLA's) or 1")
    check_choice("definition", definition, DEFINITIONS)
    spec, nodes, weights, _ = _in_unit(spec)
    t = 0.0 if definition == "lla" else _rounding(spec)
    if definition == "pooled":
        families = [
            [(theta, w)] if exact else _family(theta, w)
            for theta, w, exact in zip(nodes, weights, exhausted(spec), strict=True)
        ]

    def value(power: float) -> tuple[float, float, float, float]:
        """Value, its statistical and systematic error, limit."""
        mean, statistical = _ratio_of_sums(_sums(nodes, weights, t, power, power), definition)
        if definition == "lla" or "n" not in spec.recipe:
            return mean, statistical, 0.0, math.nan
        limit, statistical = _limit(spec, nodes, weights, t, power)
        each = [np.array([_sums(theta, w, t, 1.0, power) for theta, w in family]) for family in families]
        ends = [[sums[f(sums[:, 0])] for sums in each] for f in (np.argmin, np.argmax)]
        possible = [limit, *(_ratio(*np.sum(end, 0)) for end in ends)]
        return mean, statistical, _farthest(mean, possible), limit

    recipe = _recipe("k_hn", spec, definition)
    if definition == "lla" and spec.recipe.get("scheme") != "lla":
        warn_caller(
            "k_hn: definition='lla' of a spectrum with full re-orthogonalisation is not LLA's number, whose ghost "
            "eigenvalues count; use spectrum(..., scheme='lla')"
        )
    mean, statistical, systematic, limit = value(float(n))
    of_one, *errors, _ = value(1.0) if n != 1 else (mean, statistical, systematic, limit)
    dropped = float(weights[(np.abs(nodes) <= t) & (t > 0)].sum() / spec.probes)
    recipe |= {"n": float(n), "k_h1": [of_one, sum(errors)], "dropped": dropped}
    recipe |= {"limit": None if math.isnan(limit) else limit}
    return _with_errors(mean, statistical, systematic, spec, recipe)


@explained
def spectrum_type(spec: Spectrum) -> SpectrumType:
    """The type of a spectrum: whether most of its absolute curvature lies below, near or above zero.

        negative, zero, positive: fractions of sum_i w_i |theta_i| at theta < -d, |theta| <= d, theta > d
        d = 0.01 max|theta|

    "quasi-singular" where the zero fraction is above 1/2; else "mainly negative" where negative > positive; else
    "mainly positive". The names are those of arXiv 2504.17618; its criterion could not be had, the thresholds are ours.

    Args:
      spec: from ``spectrum``.

    Returns:
      ``SpectrumType``. A zero spectrum is quasi-singular, with zero = 1.

    Raises:
      ValueError: a spectrum with nodes that are not finite.

    References: arXiv 2504.17618 (the three types).
    """
    spec, nodes, weights, _ = _in_unit(spec)
    mass = weights * np.abs(nodes)
    total, near = float(mass.sum()), NEAR_ZERO * float(np.abs(nodes).max())
    if total == 0:
        return SpectrumType("quasi-singular", 0.0, 1.0, 0.0)
    negative, positive = (float(mass[there].sum()) / total for there in (nodes < -near, nodes > near))
    zero = max(0.0, 1 - negative - positive)
    if zero > 0.5:
        kind = "quasi-singular"
    else:
        kind = "mainly negative" if negative > positive * (1 + TIE) else "mainly positive"
    return SpectrumType(kind, negative, zero, positive)


@explained
def saddle_index(spec: Spectrum) -> Estimate:
    """The fraction of directions in which the loss curves down; times the number of parameters, the index of a saddle.

        alpha = mean over probes of F(-t),   t = min(100 eps, 0.01) max|theta|

    F(x) is the mass below x of a probe's measure. m steps leave it open by the mass of about one node: the masses of
    all measures with the probe's moments reach from F0 to F1, those of the rule with a node at x without and with that
    node (Chebyshev, Markov, Stieltjes). Their middle is taken; it depends far less on the steps than the sum of the
    weights below x, which jumps by a node's weight where a node changes its sign. Where no node lies below x, F0 is
    taken, and F1 where none lies above. Where a node is zero to rounding, it is taken for the eigenvalue zero, and x
    lies half way to the next node below.

    Args:
      spec: from ``spectrum``.

    Returns:
      ``Estimate`` with its error: that of the mean over the probes (of a spectrum made by hand from their scatter, NaN
      for one), plus half the distance to F0 or F1, the farther one. The recipe has "statistical", "systematic",
      "resolved", ``threshold`` t, ``zero`` (the fraction of directions with |theta| <= t), ``unresolved`` (F1 - F0, the
      fraction of directions whose sign is not known), and steps, probes and scheme.

    Raises:
      ValueError: a spectrum with nodes that are not finite.

    References: Dauphin et al. 2014, arXiv 1406.2572; Chen et al. 2021, arXiv 2105.06595 (the bounds).
    """
    spec, nodes, weights, unit = _in_unit(spec)
    t = _rounding(spec)
    found = np.array([_share_below(*row, t) for row in zip(nodes, weights, exhausted(spec), strict=True)])
    least, share, most = found.T
    recipe = _describe("saddle_index", spec)
    recipe |= {
        "threshold": t * unit,
        "zero": float(weights[np.abs(nodes) <= t].sum() / spec.probes),
        "unresolved": float((most - least).mean()),
    }
    mean, statistical = float(share.mean()), float(standard_error(share))
    if "n" in spec.recipe:
        second = mean * (1 - mean)
        statistical = float(moments.sampling_error(second, second * (1 - 2 * mean), spec.recipe["n"], spec.probes))
    systematic = float(np.maximum(share - least, most - share).mean()) / WITHIN
    return _with_errors(mean, statistical, systematic, spec, recipe)


@explained
def escape_directions(pairs: Eigenpairs) -> tuple[Directions, np.ndarray]:
    """Directions in which the loss surely curves down: eigenvectors with an eigenvalue below minus its residual.

    Args:
      pairs: from ``eigenpairs(H, key, which="smallest")``.

    Returns:
      (unit directions, most negative first; their eigenvalues (k,)).

    Raises:
      ValueError: there is none among the pairs; pairs without vectors.

    References: Dauphin et al. 2014, arXiv 1406.2572.
    """
    if not isinstance(pairs, Eigenpairs) or pairs.vectors is None:
        raise misuse("pairs", pairs, "lla.eigenpairs(H, key, which='smallest') with its vectors")
    values, residuals = np.asarray(pairs.values, np.float64), np.asarray(pairs.residuals, np.float64)
    below = [int(i) for i in np.argsort(values, kind="stable") if values[i] < -residuals[i]]
    if not below:
        lowest = int(np.argmin(values)) if len(values) else None
        text = "it is empty" if lowest is None else f"the lowest is {pm(values[lowest], residuals[lowest])}"
        raise Misuse(
            "pairs",
            f"none has an eigenvalue below zero by more than its residual ({text}); ask for the other end of the "
            "spectrum, lla.eigenpairs(H, key, k, which='smallest'), or for a smaller tol; a minimum has none",
        )
    return pairs.vectors[below], values[below]


# --- rows of nodes and weights


def _in_unit(spec: Spectrum) -> tuple[Spectrum, np.ndarray, np.ndarray, float]:
    """(the spectrum in a unit of its own, its nodes, its weights, the unit): the criteria are ratios, without a unit.

    Nodes and weights, (probes, steps) each, are in float64; a spectrum that is not finite is refused.
    """
    if not isinstance(spec, Spectrum):
        raise misuse("spec", spec, "the result of lla.spectrum(H, key)")
    nodes, weights = np.asarray(spec.nodes, np.float64), np.asarray(spec.weights, np.float64)
    bad = int((~np.isfinite(nodes) | ~np.isfinite(weights)).sum())
    if bad or not nodes.size:
        text = f"{bad} of its {nodes.size} nodes are not finite; it must have at least one node, all finite"
        raise Misuse("spec", f"{text}: check that the loss is finite at these parameters")
    spec, unit = units.of_spectrum(spec)
    return spec, np.asarray(spec.nodes, np.float64), weights, unit


def _eps(spec: Spectrum) -> float:
    """The relative rounding error of the products."""
    eps = float(jnp.finfo(spec.recipe.get("dtype", "float32")).eps)
    return max(eps, precision.eps_at_work(spec.recipe.get("operator", {})))


def _rounding(spec: Spectrum) -> float:
    """The magnitude that a node must exceed to differ from zero."""
    return min(ROUNDING * _eps(spec), NEAR_ZERO) * float(np.abs(spec.nodes).max())


# --- what the steps leave open


def _share_below(nodes: np.ndarray, weights: np.ndarray, exact: bool, t: float) -> tuple[float, float, float]:
    """(least, estimated, most) mass below -t of the measures with a probe's moments."""
    seen = weights > 0
    below, zero, share = (nodes < -t) & seen, (np.abs(nodes) <= t) & seen, float(weights[nodes < -t].sum())
    if exact or (zero.any() and not below.any()):
        return share, share, share
    x = (float(nodes[below].max()) - t) / 2 if zero.any() else -t
    least, most = moments.mass_below(*moments.jacobi(nodes, weights), x)
    if not below.any():
        return least, least, most
    if below[seen].all():
        return least, most, most
    return least, (least + most) / 2, most


def _limit(spec: Spectrum, nodes: np.ndarray, weights: np.ndarray, t: float, power: float) -> tuple[float, float]:
    """The limit of K_Hn, the ratio of the sums of w |theta|^n, and its error over the probes by the delta method."""
    sizes = np.abs(nodes) ** power
    below, above = np.where(nodes < -t, sizes, 0.0), np.where(nodes > t, sizes, 0.0)
    under, over = ((weights * side).sum() / spec.probes for side in (below, above))
    limit = _ratio(float(under), float(over))
    if not math.isfinite(limit):
        return limit, math.nan
    change = (below - limit * above) / over
    second, third = ((weights * np.abs(change) ** k).sum() / spec.probes for k in (2, 3))
    return limit, float(moments.sampling_error(second, third, spec.recipe["n"], spec.probes))


def _family(nodes: np.ndarray, weights: np.ndarray) -> list[moments.Rule]:
    """A probe's rule, and others with its moments: a node moves from the last one below zero to the next one."""
    own = nodes[weights > 0]
    first = int(np.searchsorted(own, 0.0))
    if 0 < first < len(own):
        ends = own[first - 1], own[first]
    else:  # all on one side: as far beyond as the next one is within
        near, far = (own[0], own[min(1, len(own) - 1)]) if first == 0 else (own[-1], own[max(-2, -len(own))])
        ends = 2 * near - far, near
    matrix = moments.jacobi(nodes, weights)
    return [(nodes, weights), *(moments.rule_at(*matrix, x) for x in np.linspace(*ends, RULES + 1)[:-1])]


def _reach(spec: Spectrum, nodes: np.ndarray, weights: np.ndarray, sign: int) -> tuple[float, float]:
    """(least, most) magnitude of the largest eigenvalue (``sign`` 1) or the smallest (-1)."""
    near = float(nodes.max() if sign > 0 else nodes.min())
    open_ended = [moments.jacobi(*row) for row, exact in zip(zip(nodes, weights), exhausted(spec)) if not exact]
    mass = float(special.chdtri(spec.probes, 1 - UNLIKELY)) / spec.recipe["n"]
    far = moments.outermost(open_ended, near, sign, mass) if open_ended else near
    sizes = sorted((abs(near), abs(far)))
    return (0.0 if near * far < 0 else sizes[0]), sizes[1]


def _farthest(value: float, possible: list[float]) -> float:
    """Half the distance from a value to the farthest of the possible ones."""
    with np.errstate(invalid="ignore"):
        return float(max(abs(each - value) for each in possible)) / WITHIN


def _with_errors(
    mean: float, statistical: float, systematic: float, spec: Spectrum, recipe: dict[str, Any]
) -> Estimate:
    resolved = bool(WITHIN * systematic <= RESOLVED * abs(mean)) if math.isfinite(systematic) else False
    recipe |= {"statistical": statistical, "systematic": systematic, "resolved": resolved}
    if spec.probes == 1 and math.isnan(statistical) and not math.isnan(mean) and "n" in spec.recipe:
        remedy = "take spectrum(H, key, probes=4), or definition='pooled', whose error one probe has"
        warn_caller(
            f"{recipe['kind']}: no error of {mean:.4g}, since its only source is the scatter of probes; {remedy}"
        )
    return Estimate(mean, statistical + systematic, spec.probes, recipe)


# --- ratios of sums


def _ratio(a: float, b: float) -> float:
    if b == 0:
        return math.inf if a > 0 else math.nan
    return a / b


def _sums(nodes: np.ndarray, weights: np.ndarray, t: float, of_weight: float, of_node: float) -> np.ndarray:
    """The sums of |w|^a |theta|^b over nodes below -t and above t, (..., 2) for nodes and weights (..., m)."""
    parts = weights**of_weight * np.abs(nodes) ** of_node
    return np.stack([np.where(side > t, parts, 0.0).sum(-1) for side in (-nodes, nodes)], -1)


def _ratio_of_sums(sums: np.ndarray, definition: str) -> tuple[float, float]:
    """(value, standard error) of the ratio of the probes' sums (probes, 2)."""

    def ratio(kept: np.ndarray) -> float:
        return _ratio(*sums[kept].sum(0).tolist())

    return _estimate(ratio, len(sums), definition)


def _estimate(ratio: Callable[[np.ndarray], float], probes: int, definition: str) -> tuple[float, float]:
    """(value, standard error) of ``ratio(indices of probes)``, NaN for the error of one probe.

    "pooled": the ratio of all probes, with the jackknife; "lla": the mean of the ratios of single probes.
    """
    every = np.arange(probes)
    with np.errstate(invalid="ignore"):
        if definition == "lla":
            each = np.array([ratio(every[i : i + 1]) for i in every])
            return float(each.mean()), float(standard_error(each))
        mean = ratio(every)
        if probes == 1:
            return mean, math.nan
        without = np.array([ratio(np.delete(every, i)) for i in every])
        return mean, float(standard_error(probes * mean - (probes - 1) * without))


def _describe(kind: str, spec: Spectrum) -> dict[str, Any]:
    names = {"start": "start", "scheme": "scheme", "dtype": "dtype", "size": "n", "operator": "operator"}
    taken_over = {name: spec.recipe[inner] for name, inner in names.items() if inner in spec.recipe}
    return {"kind": kind, "steps": int(spec.nodes.shape[1]), "probes": spec.probes} | taken_over


def _recipe(kind: str, spec: Spectrum, definition: str) -> dict[str, Any]:
    """The recipe of a criterion; "applies" says whether the criterion has a meaning for this spectrum; warns if not."""
    of_type = spectrum_type(spec)
    zero = not np.any(spec.nodes)
    applies = of_type.kind != "mainly negative" and not zero
    if not applies:
        trouble = "zero" if zero else f"mainly negative ({of_type.negative:.0%} of its curvature)"
        warn_caller(f"{kind}: the spectrum is {trouble}, where this criterion has no meaning")
    return _describe(kind, spec) | {"definition": definition, "type": of_type._asdict(), "applies": applies}
