"""Describes the curvature of a network, in words and as plain numbers, each with its error."""

from __future__ import annotations

from typing import Any, NamedTuple

from lla_jax.core.recipes import fingerprint
from lla_jax.core.results import Eigenpairs, Estimate, Spectrum
from lla_jax.core.text import pm, table
from lla_jax.measures import layers, spectra
from lla_jax.measures.layers import Layer


class CurvatureResults(NamedTuple):
    """Eigenpairs, spectrum, trace and layers of one operator, described and drawn together.

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
    """The four criteria of a spectrum, each a measure of its negative curvature.

    Args:
      spec: what ``lla.spectrum`` returned.

    Returns:
      {"r_e", "K_H0.5", "K_H1", "saddle index": an ``Estimate``}, each with its error.
    """
    return {
        "r_e": spectra.r_e(spec),
        "K_H0.5": spectra.k_hn(spec, 0.5),
        "K_H1": spectra.k_hn(spec, 1.0),
        "saddle index": spectra.saddle_index(spec),
    }


def describe(results: CurvatureResults) -> str:
    """Describe the results in a text of some lines, each number with its error and its meaning.

    Args:
      results: of one operator.

    Returns:
      The text. Its first line names the matrix, the data and the BatchNorm statistics, from the spectrum's recipe.
    """
    pairs, spec, trace = results.pairs, results.spectrum, results.trace
    kind = spectra.spectrum_type(spec)
    meanings = [(name, pm(value.mean, value.sem), _meaning(name, value)) for name, value in criteria(spec).items()]
    probes = "1 probe" if spec.probes == 1 else f"{spec.probes} probes"
    lines = [
        f"Curvature: {_describe_matrix(spec)}",
        f"Eigenvalues, {_FIRST[pairs.recipe['which']]} first (an exact one lies within +- of each; "
        f"{pairs.products} products):",
        eigenvalue_table(pairs),
        f"Spectral density: {probes} of {spec.nodes.shape[1]} steps, Ritz values {spec.nodes.min():.4g} to "
        f"{spec.nodes.max():.4g}",
        f"  type {kind.kind}: {kind.negative:.1%} of the absolute curvature is negative, {kind.zero:.1%} near zero, "
        f"{kind.positive:.1%} positive",
        table(meanings, left=(0, 2), indent=2),
        f"Trace {pm(trace.mean, trace.sem)} ({trace.recipe['method']}, {trace.num} draws)",
    ]
    return "\n".join([*lines, *(["Layers:", layers.table(results.layers)] if results.layers else [])])


def _describe_matrix(spec: Spectrum) -> str:
    """Name and size of the matrix, the data over which it is a mean, and the BatchNorm statistics."""
    recipe: dict[str, Any] = spec.recipe["operator"]
    matrix = _MATRIX.get(recipe.get("kind", ""), "matrix")
    block = f" ({recipe['select']['text']})" if recipe.get("select") else ""
    if "data" not in recipe:
        return f"{matrix} of {spec.recipe['n']:,} parameters{block}"
    data = recipe["data"]
    of = f"mean over {data['examples']:,} examples" if "examples" in data else "mean over a stream"
    of = "of one example, always whole" if data.get("whole") and data["examples"] == 1 else of
    norm = f", BatchNorm statistics {recipe.get('batch_stats')}" if recipe.get("state") != fingerprint(None) else ""
    return f"{matrix} of {spec.recipe['n']:,} parameters{block}, {of}{norm}"


def _meaning(name: str, value: Estimate) -> str:
    """What a criterion means; and that it is not resolved, where its error says so."""
    if value.recipe["resolved"]:
        return _MEANING[name]
    open_signs = value.recipe.get("unresolved")
    share = "" if open_signs is None else f" (the signs of {open_signs:.0%} are not known)"
    return f"{_MEANING[name]}; not resolved{share}: take more steps"


_MEANING = {
    "r_e": "|lambda_min / lambda_max|: 0 in a minimum",
    "K_H0.5": "negative over positive curvature, weighted: 0 in a minimum; depends on steps, its error holds the limit",
    "K_H1": "negative over positive trace: 0 in a minimum",
    "saddle index": "fraction of directions of negative curvature",
}
_FIRST = {"magnitude": "largest magnitude", "largest": "largest", "smallest": "smallest"}
_MATRIX = {
    "hessian": "Hessian",
    "ggn": "generalized Gauss-Newton matrix",
    "fisher (mc)": "Fisher matrix (targets drawn from the model)",
    "fisher (empirical)": "empirical Fisher matrix",
}


def eigenvalue_table(pairs: Eigenpairs) -> str:
    """Eigenvalues as lines of text, each with its rank and its residual."""
    rows = [(str(i + 1), pm(v, r, 6)) for i, (v, r) in enumerate(zip(pairs.values, pairs.residuals))]
    return table(rows, left=(), indent=4)


def plain_data(results: CurvatureResults) -> dict[str, Any]:
    """The results as lists, numbers and dicts, for JSON and other programs.

    Args:
      results: of one operator.

    Returns:
      A dict with "eigenvalues", "residuals", "criteria", "spectrum_type", "trace" and "layers".
    """

    def plain(estimate: Estimate) -> dict[str, Any]:
        return {"mean": float(estimate.mean), "sem": float(estimate.sem), "num": estimate.num}

    return {
        "eigenvalues": results.pairs.values.tolist(),
        "residuals": results.pairs.residuals.tolist(),
        "criteria": {
            name: plain(value) | {"resolved": value.recipe["resolved"]}
            for name, value in criteria(results.spectrum).items()
        },
        "spectrum_type": spectra.spectrum_type(results.spectrum)._asdict(),
        "trace": plain(results.trace),
        "layers": [
            {name: plain(value) if isinstance(value, Estimate) else value for name, value in row._asdict().items()}
            for row in results.layers
        ],
    }
