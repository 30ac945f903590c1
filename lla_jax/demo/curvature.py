"""Computes the second half of the demo: the curvature before and after training, and the plane of Hessian axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from lla_jax import demo
from lla_jax.core.results import Eigenpairs, Spectrum
from lla_jax.core.text import pm, table
from lla_jax.core.types import Problem
from lla_jax.curvature import operators
from lla_jax.curvature.eigen import eigenpairs
from lla_jax.curvature.estimates import trace
from lla_jax.curvature.quadrature import spectrum
from lla_jax.directions import derived
from lla_jax.landscape.evaluation import evaluate
from lla_jax.landscape.grids import grid
from lla_jax.measures import convexity_map, layers, planes
from lla_jax.measures import spectra as _spectra
from lla_jax.models import linen
from lla_jax.output import plotting
from lla_jax.output.words import criteria, eigenvalue_table

STEPS, PROBES, TOP = 60, 4, 5
EXTENT = 0.5  # of the Hessian axes, which have length 1
CONVEXITY_POINTS = 7


class CurvaturePart(NamedTuple):
    """The results and figures of the second half by file name, its eigenpairs, and a text with its numbers."""

    pairs: Eigenpairs
    results: dict[str, Any]
    figures: dict[str, Any]
    text: str


def run(trained: demo.Trained, problem: Problem, key: Any, *, points: int, bar: Any) -> CurvaturePart:
    """Compute spectra at initialization and after training, eigenpairs, trace, layers and the plane of Hessian axes.

    Args:
      trained: the network, with its variables at initialization and after training.
      problem: the trained network as a problem, from ``demo.make_problem``.
      key: for all random vectors.
      points: per axis of the plane.
      bar: as for ``tour.run``.

    Returns:
      The ``CurvaturePart``; nothing is written.
    """
    params, data = problem.params, problem.data
    start = linen.from_linen(trained.module, trained.initial, demo.cross_entropy)
    networks = {
        "at initialization": operators.hessian(start, trained.initial["params"], data),
        "after training": operators.hessian(problem.loss, params, data),
    }
    keys = jax.random.split(key, 4)
    spectra: dict[str, Spectrum] = {}
    for when, operator in networks.items():
        with bar(f"spectrum {when}", "products") as progress:
            spectra[when] = spectrum(operator, keys[0], steps=STEPS, probes=PROBES, progress=progress)
    operator = networks["after training"]
    with bar("eigenpairs", "products") as progress:
        pairs = eigenpairs(operator, keys[1], TOP, progress=progress)
    with bar("trace", "products") as progress:
        total = trace(operator, keys[2], method="xtrace", progress=progress)
    with bar("layers", "products") as progress:
        rows = layers.per_layer(problem.loss, params, data, keys[3], progress=progress)
    axes = derived.eigenvectors(pairs, (0, 1))
    with bar("Hessian axes") as progress:
        plane = evaluate(problem.loss, params, data, axes, grid(points=points, extent=EXTENT), progress=progress)
    report = planes.plane_report(plane, axes, operator, pairs=pairs, trace=total)
    with bar("convexity", "products") as progress:
        coarse = grid(points=CONVEXITY_POINTS, extent=EXTENT)
        convexity = convexity_map.convexity(problem.loss, params, data, axes, coarse, keys[0], progress=progress)
    names = {"at initialization": "spectrum-initial", "after training": "spectrum"}
    return CurvaturePart(
        pairs,
        {names[when]: spec for when, spec in spectra.items()}
        | {"eigenpairs": pairs, "hessian-plane": plane, "convexity": convexity},
        {
            "spectrum": plotting.spectral_density(spectra, title="Digits CNN: Hessian spectrum"),
            "eigenvalues": plotting.scree(pairs, title="Digits CNN: eigenvalues"),
            "layers": plotting.layers(rows, title="Digits CNN: curvature by layer"),
            "hessian-plane": plotting.contour(plane, log=True, title="Digits CNN: plane of the top eigenvectors"),
            "convexity": plotting.convexity(convexity, title="Digits CNN: convexity"),
        },
        "\n".join(
            [
                compare(spectra),
                "Largest eigenvalues of the Hessian after training (an exact one lies within +- of each):",
                eigenvalue_table(pairs),
                f"Its trace: {pm(total.mean, total.sem)}. Layer by layer:",
                *(f"  {line}" for line in layers.table(rows).splitlines()),
                "The plane of the two top eigenvectors:",
                *(f"  {line}" for line in str(report).splitlines()),
            ]
        ),
    )


def compare(spectra: Mapping[str, Spectrum]) -> str:
    """The criteria of several spectra as a text, {name: spectrum} in columns, with their errors."""
    by_time = [criteria(spec) for spec in spectra.values()]
    rows = [
        ("", *spectra),
        *((name, *(pm(each[name].mean, each[name].sem) for each in by_time)) for name in by_time[0]),
        ("type", *(_spectra.spectrum_type(spec).kind for spec in spectra.values())),
    ]
    head = f"Curvature criteria, {PROBES} probes of {STEPS} Lanczos steps (0 in a minimum; +- 2 errors hold the truth):"
    return f"{head}\n{table(rows, indent=2)}"
