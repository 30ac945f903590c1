"""Curvature in words and numbers: eigenvalues, spectrum, trace and layers of one network, with their errors."""

from __future__ import annotations

from typing import Any, NamedTuple

from lla_jax.core.recipes import fingerprint
from lla_jax.core.text import pm
from lla_jax.core.types import Eigenpairs, Estimate, Spectrum
from lla_jax.measures import layers, spectra
from lla_jax.measures.layers import Layer


class CurvatureResults(NamedTuple):
    """The results on one operator that are told together.

    Args:
      pairs: what ``lla.eigenpairs`` returned.
      spectrum: what ``lla.spectrum`` returned.
      trace: what ``lla.trace`` returned.
      layers: the rows of ``lla.per_layer``, if there are any.
    """

    pairs: Eigenpairs
    spectrum: Spectrum
    trace: Estimate
    layers: tuple[Layer, ...] = ()


def criteria(spec: Spectrum) -> dict[str, Estimate]:
    """The criteria of a spectrum by name: negative against positive curvature, in four ways.

    Args:
      spec: what ``lla.spectrum`` returned.

    Returns:
      {"r_e", "K_H0.5", "K_H1", "saddle index": an estimate}, with a standard error over the probes.
    """
    return {
        "r_e": spectra.r_e(spec),
        "K_H0.5": spectra.k_hn(spec, 0.5),
        "K_H1": spectra.k_hn(spec, 1.0),
        "saddle index": spectra.saddle_index(spec),
    }


def words(found: CurvatureResults) -> str:
    """The results as a text of some lines: each number with its error and its meaning.

    Args:
      found: the results on one operator.

    Returns:
      The text; the matrix, the data and the treatment of BatchNorm are those in the recipe of the spectrum.
    """
    pairs, spec = found.pairs, found.spectrum
    kind = spectra.spectrum_type(spec)
    probes = "1 probe" if spec.probes == 1 else f"{spec.probes} probes"
    lines = [
        f"Curvature: {_matrix(spec)}",
        f"Eigenvalues, {_FIRST[pairs.recipe['which']]} first (an exact one lies within +- of each; "
        f"{pairs.products} products):",
        *eigenvalue_lines(pairs),
        f"Spectral density: {probes} of {spec.nodes.shape[1]} steps, Ritz values {spec.nodes.min():.4g} to "
        f"{spec.nodes.max():.4g}",
        f"  type {kind.kind}: {kind.negative:.1%} of the absolute curvature is negative, {kind.zero:.1%} near zero, "
        f"{kind.positive:.1%} positive",
        *(f"  {name:<12} {pm(value)}  {_MEANING[name]}" for name, value in criteria(spec).items()),
        f"Trace {pm(found.trace)} ({found.trace.recipe['method']}, {found.trace.num} draws)",
    ]
    return "\n".join([*lines, *(["Layers:", layers.table(found.layers)] if found.layers else [])])


def _matrix(spec: Spectrum) -> str:
    """Which matrix over which data."""
    recipe: dict[str, Any] = spec.recipe["operator"]
    matrix = _MATRIX.get(recipe.get("kind", ""), "matrix")
    block = f" ({recipe['select']['text']})" if recipe.get("select") else ""
    if "data" not in recipe:
        return f"{matrix} of {spec.recipe['n']:,} parameters{block}"
    data = recipe["data"]
    of = f"over {data['examples']:,} examples" if "examples" in data else "over a stream"
    norm = f", BatchNorm statistics {recipe.get('batch_stats')}" if recipe.get("state") != fingerprint(None) else ""
    return f"{matrix} of {spec.recipe['n']:,} parameters{block}, mean {of}{norm}"


_MEANING = {
    "r_e": "|lambda_min / lambda_max|: 0 in a minimum",
    "K_H0.5": "negative over positive curvature, weighted: 0 in a minimum; depends on the number of steps",
    "K_H1": "negative over positive trace: 0 in a minimum",
    "saddle index": "share of directions of negative curvature; depends on the number of steps",
}
_FIRST = {"magnitude": "largest magnitude", "largest": "largest", "smallest": "smallest"}
_MATRIX = {
    "hessian": "Hessian",
    "ggn": "generalized Gauss-Newton matrix",
    "fisher (mc)": "Fisher matrix (targets drawn from the model)",
    "fisher (empirical)": "empirical Fisher matrix",
}


def eigenvalue_lines(pairs: Eigenpairs) -> list[str]:
    """Eigenvalues as lines of text, each with its residual."""
    return [f"  {i + 1:3d}  {v: .6g} +- {r:.1g}" for i, (v, r) in enumerate(zip(pairs.values, pairs.residuals))]


def numbers(found: CurvatureResults) -> dict[str, Any]:
    """The results for another program.

    Args:
      found: the results on one operator.

    Returns:
      A dict of lists, numbers and dicts, as JSON has them: eigenvalues, residuals, criteria, spectrum_type, trace,
      layers.
    """

    def plain(estimate: Estimate) -> dict[str, float]:
        return {"mean": float(estimate.mean), "sem": float(estimate.sem), "num": estimate.num}

    return {
        "eigenvalues": found.pairs.values.tolist(),
        "residuals": found.pairs.residuals.tolist(),
        "criteria": {name: plain(value) for name, value in criteria(found.spectrum).items()},
        "spectrum_type": spectra.spectrum_type(found.spectrum)._asdict(),
        "trace": plain(found.trace),
        "layers": [
            {name: plain(value) if isinstance(value, Estimate) else value for name, value in row._asdict().items()}
            for row in found.layers
        ],
    }
