"""Curvature in words and numbers: what the command line and the demo say of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lla_jax.core.recipes import fingerprint
from lla_jax.core.text import pm
from lla_jax.core.types import Eigenpairs, Estimate, Spectrum
from lla_jax.measures import layers, spectra


class Curvature(NamedTuple):
    """What is known of the curvature of one network."""

    pairs: Eigenpairs
    spectrum: Spectrum
    trace: Estimate
    layers: tuple[Any, ...]


def criteria(spec: Spectrum) -> dict[str, Estimate]:
    """The criteria of a spectrum by name."""
    return {
        "r_e": spectra.r_e(spec),
        "K_H0.5": spectra.k_hn(spec, 0.5),
        "K_H1": spectra.k_hn(spec, 1.0),
        "saddle index": spectra.saddle_index(spec),
    }


def words(found: Curvature, recipe: Mapping[str, Any]) -> str:
    """The numbers as text, with their errors and what they mean."""
    pairs, spec = found.pairs, found.spectrum
    data = recipe.get("data", {})
    of = f"over {data['examples']:,} examples" if "examples" in data else "over a stream"
    norm = f", BatchNorm statistics {recipe.get('batch_stats')}" if recipe.get("state") != fingerprint(None) else ""
    chosen = recipe.get("select")
    block = f" ({chosen['text']})" if chosen else ""
    matrix = _MATRIX.get(recipe.get("kind", ""), "matrix")
    kind = spectra.spectrum_type(spec)
    probes = "1 probe" if spec.probes == 1 else f"{spec.probes} probes"
    lines = [
        f"Curvature: {matrix} of {spec.recipe['n']:,} parameters{block}, mean {of}{norm}",
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
    """One line for each, with its residual."""
    return [f"  {i + 1:3d}  {v: .6g} +- {r:.1g}" for i, (v, r) in enumerate(zip(pairs.values, pairs.residuals))]


def numbers(found: Curvature) -> dict[str, Any]:
    """The same for a program: JSON-able."""

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
