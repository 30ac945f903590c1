"""``lla-jax hessian``: the curvature of a network in parts, each kept in the folder as soon as it is there."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from lla_jax.cli.options import HessianOptions, LandscapeOptions, Mistake, hessian_settings
from lla_jax.cli.terminal import bar, say
from lla_jax.core.types import Directions, Eigenpairs, Estimate, Execution, Problem, PyTree, Spectrum
from lla_jax.curvature import eigen, estimates, operators, quadrature
from lla_jax.directions import combining, derived
from lla_jax.execution import processes
from lla_jax.measures import layers
from lla_jax.output import kept
from lla_jax.output.words import CurvatureResults, numbers, words

ENDS = ("first eigenvector", "last eigenvector")
PARTS = (
    "eigenpairs.partial.npz", "eigenpairs.npz", "spectrum.partial.npz", "spectrum.npz", "trace.json", "layers.json",
    "layers.png",
)  # fmt: skip


def operator_of(problem: Problem, options: HessianOptions) -> Any:
    """The matrix that the options ask for."""
    make = {"hessian": operators.hessian, "ggn": operators.ggn}.get(options.matrix, operators.fisher)
    drawn: dict[str, Any] = {}
    if options.matrix == "fisher":
        drawn = {"key": jax.random.fold_in(jax.random.key(options.seed), 4)}
    elif options.matrix == "empirical-fisher":
        drawn = {"kind": "empirical"}
    return make(
        problem.loss,
        problem.params,
        problem.data,
        batch_size=options.batch_size,
        select=list(options.select) or None,
        batch_stats=options.batch_stats,
        execution=Execution(devices="all" if options.devices is None else options.devices),
        **drawn,
    )


def run(problem: Problem, options: HessianOptions) -> CurvatureResults:
    """Everything the verb computes; each part is saved in ``options.out`` at once."""
    operator, out = operator_of(problem, options), options.out
    if options.top > operator.shape[0]:
        raise Mistake(f"--top {options.top} must be at most {operator.shape[0]}, the number of parameters")
    say(operator.recipe["plan"]["text"])
    if options.overwrite and kept.is_writer():  # what is left of an earlier run would not fit to the parts of this one
        for name in PARTS:
            (out / name).unlink(missing_ok=True)
    pairs = eigenpairs(operator, problem.params, options)
    spec = spectrum(operator, options)
    whole = trace(operator, options)
    rows = by_layer(problem, operator, options) if options.layers else ()
    return CurvatureResults(pairs, spec, whole, rows)


def write(found: CurvatureResults, out: Path) -> list[Path]:
    """hessian.txt and hessian.json."""
    text, data = out / "hessian.txt", out / "hessian.json"
    if kept.is_writer():
        text.write_text(words(found) + "\n", encoding="utf-8")
        data.write_text(json.dumps(numbers(found), indent=1, default=float) + "\n", encoding="utf-8")
    processes.agree(**{"what is written": text.name})  # no process goes on to read it before it is there
    return [text, data]


def axes(problem: Problem, options: LandscapeOptions) -> Directions:
    """The eigenvectors that ``lla-jax landscape --axes hessian`` asks for, kept in the folder as well."""
    execution = Execution(devices="all" if options.devices is None else options.devices)
    select = list(options.select) or None
    batch_stats = options.batch_stats if options.batch_stats == "batch" else "frozen"
    operator = operators.hessian(
        problem.loss, problem.params, problem.data,
        batch_size=options.batch_size, select=select, batch_stats=batch_stats, execution=execution,
    )  # fmt: skip
    which = options.which or "magnitude"
    asked = HessianOptions(
        problem=options.problem,
        out=options.out,
        top=1 if which == "ends" else options.dims,
        select=options.select,
        batch_stats=batch_stats,
        seed=options.seed,
        overwrite=options.overwrite,
    )

    def vectors(which: Any, name: str) -> Directions:
        pairs = eigenpairs(operator, problem.params, replace(asked, which=which), name)
        return derived.eigenvectors(pairs, tuple(range(asked.top)))

    if which == "ends":
        ends = combining.join(*(vectors(end, f"eigenpairs-{end}") for end in ("largest", "smallest")))
        names = [re.sub(r"^eigenvector 1", name, old) for name, old in zip(ENDS, ends.recipe["names"])]
        return replace(ends, recipe={**ends.recipe, "names": names})
    return vectors(which, "eigenpairs" if which == "magnitude" else f"eigenpairs-{which}")


# --- the parts, each taken from the folder if it is there and made alike, else computed


def eigenpairs(operator: Any, params: PyTree, options: HessianOptions, name: str = "eigenpairs") -> Eigenpairs:
    """As many eigenpairs as asked for, or the first of more."""
    k = options.top
    found = kept.result(
        options.out / f"{name}.npz",
        operator.recipe,
        partial(eigen.eigenpairs, operator, _key(options, 0), k, which=options.which, tol=options.tol),
        {**hessian_settings(options), "which": options.which, "tol": f"{options.tol:g}"},
        unfinished={"number of eigenpairs": str(k)},
        enough=lambda pairs: pairs.num >= k,
        like=params,
        **_ways(options),
    )
    return replace(found, values=found.values[:k], residuals=found.residuals[:k], vectors=found.vectors[:k])


def spectrum(operator: Any, options: HessianOptions) -> Spectrum:
    """The spectral density."""
    return kept.result(
        options.out / "spectrum.npz",
        operator.recipe,
        partial(quadrature.spectrum, operator, _key(options, 1), steps=options.steps, probes=options.probes),
        {**hessian_settings(options), "steps": str(options.steps), "probes": str(options.probes)},
        **_ways(options),
    )


def trace(operator: Any, options: HessianOptions) -> Estimate:
    """The trace."""

    def compute(progress: Any) -> dict[str, Any]:
        key = _key(options, 2)
        return asdict(estimates.trace(operator, key, method=options.trace, rtol=options.rtol, progress=progress))

    made = {**hessian_settings(options), "trace": options.trace, "rtol": f"{options.rtol:g}"}
    return Estimate(**_numbers("trace", operator, compute, made, options))


def by_layer(problem: Problem, operator: Any, options: HessianOptions) -> tuple[layers.Layer, ...]:
    """Trace and extreme eigenvalues layer by layer."""

    def compute(progress: Any) -> list[dict[str, Any]]:
        rows = layers.per_layer(
            problem.loss,
            problem.params,
            problem.data,
            _key(options, 3),
            batch_size=options.batch_size,
            batch_stats=options.batch_stats,
            execution=Execution(devices="all" if options.devices is None else options.devices),
            progress=progress,
        )
        return [row._asdict() | {"trace": asdict(row.trace)} for row in rows]

    rows = _numbers("layers", operator, compute, hessian_settings(options), options)
    return tuple(layers.Layer(**row | {"trace": Estimate(**row["trace"])}) for row in rows)


def _key(options: HessianOptions, part: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(options.seed), part)


def _ways(options: HessianOptions) -> dict[str, Any]:
    """How a result that can be continued is kept."""
    again = "the same command without --overwrite" if options.overwrite else "the same command"
    return {"overwrite": options.overwrite, "again": again, "bar": partial(_bar, estimate=True), "say": say}


def _numbers(name: str, operator: Any, compute: Any, made: dict[str, str], options: HessianOptions) -> Any:
    path = options.out / f"{name}.json"
    return kept.numbers(path, operator.recipe, compute, made, overwrite=options.overwrite, bar=_bar, say=say)


def _bar(name: str, estimate: bool = False) -> Any:
    return bar(name, unit="products", estimate=estimate)
