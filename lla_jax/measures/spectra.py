"""Computes criteria of a point from its spectrum: r_e, K_Hn, the type, the index of a saddle.

``escape_directions`` takes the directions that lead down from eigenpairs. In K_Hn ("pooled") and the index, an
eigenvalue that rounding cannot tell from zero counts as zero: |theta| <= t = min(100 eps, 0.01) max|theta|, with the
eps of the precision in which the products were computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from lla_jax.core import precision
from lla_jax.core.arguments import Misuse, check_choice, check_number, misuse, warn_caller
from lla_jax.core.text import pm
from lla_jax.core.types import Directions, Eigenpairs, Estimate, Spectrum

DEFINITIONS = ("pooled", "lla")
ROUNDING = 100.0  # times eps max|theta|: a node nearer to zero counts as zero
NEAR_ZERO = 0.01  # times max|theta|: nodes up to it count as near zero for the type of a spectrum
TIE = 1e-6  # relative: fractions as close as this are equal

Definition = Literal["pooled", "lla"]


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


def r_e(spec: Spectrum, *, definition: Definition = "pooled") -> Estimate:
    """The ratio of the most negative to the largest eigenvalue, a measure of how far from convex the loss is.

        r_e = |theta_min / theta_max|

    Args:
      spec: from ``spectrum``.
      definition: "pooled" takes the extremes over all probes, which all lie inside the true spectrum; "lla" is the mean
        of the probes' ratios.

    Returns:
      ``Estimate`` with a jackknife standard error over the probes ("lla": of the mean), NaN for one probe. The recipe
      has steps, probes, scheme, definition, ``type`` and ``applies``: False, with a warning, where the spectrum is
      mainly negative or zero. NaN for a zero spectrum, inf where theta_max is zero and theta_min is not. Where
      theta_min is above zero, it is what the formula gives, the inverse condition number.

    Raises:
      ValueError: another definition; a spectrum with nodes that are not finite.

    References: LLA, arXiv 2412.10146. Where we differ from LLA: (1) pooled extremes: the mean of the probes' ratios is
    biased, as each probe misses part of the range; (2) the standard error.
    """
    check_choice("definition", definition, DEFINITIONS)
    nodes, _ = _rows(spec)

    def ratio(kept: np.ndarray) -> float:
        return _ratio(abs(float(nodes[kept].min())), abs(float(nodes[kept].max())))

    recipe = _recipe("r_e", spec, definition)
    mean, sem = _estimate(ratio, spec.probes, definition)
    return Estimate(mean, sem, spec.probes, recipe)


def k_hn(spec: Spectrum, n: float = 0.5, *, definition: Definition = "pooled") -> Estimate:
    """The ratio of negative to positive curvature: sums over weighted eigenvalues, raised to a power.

        K_Hn = sum_{theta < 0} |theta_i w_i|^n / sum_{theta > 0} (theta_i w_i)^n

    both sums over the nodes of all probes. For n = 1 it tends to tr |H-| / tr H+ and hardly depends on the number of
    steps. For n < 1 it is no property of the operator alone: nodes that split count more, so it depends on the steps
    and on the scheme. Compare only spectra with equal steps, probes and scheme; the recipe has them, and K_H1.

    Args:
      spec: from ``spectrum``.
      n: the exponent, above 0.
      definition: "pooled"; or "lla", the mean of the probes' ratios with every node counted, as LLA has it, for spectra
        with ``scheme="lla"`` (others give a warning).

    Returns:
      ``Estimate`` with a jackknife standard error over the probes ("lla": of the mean), NaN for one probe. The recipe
      has n, steps, probes, scheme, definition, ``k_h1`` [mean, sem], ``dropped`` (the fraction of weight at nodes that
      rounding cannot tell from zero: they count as zero), ``type`` and ``applies`` as for ``r_e``. NaN for a zero
      spectrum, inf where no node is above zero.

    Raises:
      ValueError: n not above 0; another definition; a spectrum with nodes that are not finite.

    References: LLA, arXiv 2412.10146. Where we differ from LLA: (1) sums over all probes before dividing, because the
    mean of ratios is biased; (2) rounding errors are not counted: n = 0.5 makes 3e-4 of a convex problem's in float32;
    (3) the standard error.
    """
    check_number("n", n, remedy="such as 0.5 (LLA's) or 1")
    check_choice("definition", definition, DEFINITIONS)
    nodes, weights = _rows(spec)
    zero = np.zeros_like(nodes, bool) if definition == "lla" else np.abs(nodes) <= _rounding(spec)

    def value(power: float) -> tuple[float, float]:
        parts = np.where(zero, 0.0, np.abs(nodes * weights)) ** power
        below, above = np.where(nodes < 0, parts, 0).sum(1), np.where(nodes > 0, parts, 0).sum(1)

        def ratio(kept: np.ndarray) -> float:
            return _ratio(float(below[kept].sum()), float(above[kept].sum()))

        return _estimate(ratio, spec.probes, definition)

    recipe = _recipe("k_hn", spec, definition)
    if definition == "lla" and spec.recipe.get("scheme") != "lla":
        warn_caller(
            "k_hn: definition='lla' of a spectrum with full re-orthogonalisation is not LLA's number, whose ghost "
            "eigenvalues count; use spectrum(..., scheme='lla')"
        )
    recipe |= {"n": float(n), "k_h1": list(value(1.0)), "dropped": float(weights[zero].sum() / spec.probes)}
    return Estimate(*value(float(n)), spec.probes, recipe)


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
    nodes, weights = _rows(spec)
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


def saddle_index(spec: Spectrum) -> Estimate:
    """The fraction of directions in which the loss curves down; times the number of parameters, the index of a saddle.

        alpha = mean over probes of sum_{theta_i < -t} w_i,   t = min(100 eps, 0.01) max|theta|

    Nodes are resolved to about the range over the steps: where many eigenvalues are close to zero, on either side, the
    fraction means little.

    Args:
      spec: from ``spectrum``.

    Returns:
      ``Estimate`` with the standard error over the probes, NaN for one. The recipe has ``threshold`` t, ``zero`` (the
      fraction of directions with |theta| <= t), and steps, probes and scheme.

    Raises:
      ValueError: a spectrum with nodes that are not finite.

    References: Dauphin et al. 2014, arXiv 1406.2572.
    """
    nodes, weights = _rows(spec)
    t = _rounding(spec)
    fraction = np.where(nodes < -t, weights, 0).sum(1)
    sem = float(fraction.std(ddof=1)) / math.sqrt(spec.probes) if spec.probes > 1 else math.nan
    recipe = _describe("saddle_index", spec)
    recipe |= {"threshold": t, "zero": float(weights[np.abs(nodes) <= t].sum() / spec.probes)}
    return Estimate(float(fraction.mean()), sem, spec.probes, recipe)


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


def _rows(spec: Spectrum) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights, (probes, steps) each, in float64; a spectrum that is not finite is refused."""
    if not isinstance(spec, Spectrum):
        raise misuse("spec", spec, "the result of lla.spectrum(H, key)")
    nodes, weights = np.asarray(spec.nodes, np.float64), np.asarray(spec.weights, np.float64)
    bad = int((~np.isfinite(nodes) | ~np.isfinite(weights)).sum())
    if bad or not nodes.size:
        text = f"{bad} of its {nodes.size} nodes are not finite; it must have at least one node, all finite"
        raise Misuse("spec", f"{text}: check that the loss is finite at these parameters")
    return nodes, weights


def _rounding(spec: Spectrum) -> float:
    """The magnitude that a node must exceed to differ from zero."""
    recipe = spec.recipe
    computed = precision.types_at_work(recipe.get("operator", {}))
    eps = max(float(jnp.finfo(name).eps) for name in [recipe.get("dtype", "float32"), *computed])
    return min(ROUNDING * eps, NEAR_ZERO) * float(np.abs(spec.nodes).max())


def _ratio(a: float, b: float) -> float:
    if b == 0:
        return math.inf if a > 0 else math.nan
    return a / b


def _estimate(ratio: Callable[[np.ndarray], float], probes: int, definition: str) -> tuple[float, float]:
    """(value, standard error) of ``ratio(indices of probes)``, NaN for the error of one probe.

    "pooled": the ratio of all probes, with the jackknife; "lla": the mean of the ratios of single probes.
    """
    every = np.arange(probes)
    if definition == "lla":
        each = np.array([ratio(every[i : i + 1]) for i in every])
        with np.errstate(invalid="ignore"):
            return float(each.mean()), float(each.std(ddof=1)) / math.sqrt(probes) if probes > 1 else math.nan
    if probes == 1:
        return ratio(every), math.nan
    without = np.array([ratio(np.delete(every, i)) for i in every])
    with np.errstate(invalid="ignore"):
        return ratio(every), math.sqrt((probes - 1) / probes * float(((without - without.mean()) ** 2).sum()))


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
