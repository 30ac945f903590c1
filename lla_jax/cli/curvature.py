"""Computes the curvature of a network for ``lla-jax hessian``, in parts that are kept in the folder one by one."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from lla_jax.cli.environment import make_execution
from lla_jax.cli.options import HessianOptions, LandscapeOptions, mistake
from lla_jax.cli.settings import hessian_settings
from lla_jax.cli.stores import DEFAULT
from lla_jax.cli.terminal import bar, print_message
from lla_jax.core.arguments import Misuse
from lla_jax.core.results import Eigenpairs, Estimate, Spectrum
from lla_jax.core.types import Directions, Problem, PyTree
from lla_jax.curvature import eigen, estimates, operators, quadrature
from lla_jax.directions import combining, derived
from lla_jax.execution import processes
from lla_jax.measures import layers
from lla_jax.output import kept, storage
from lla_jax.output.words import CurvatureResults, describe, plain_data

ENDS = ("first eigenvector", "last eigenvector")
SUMMARY = ("hessian.txt", "hessian.json")
RESULTS = ("eigenpairs.npz", "spectrum.npz", "trace.json", "layers.json", "layers.png", *SUMMARY)
PARTIAL = tuple(f"{name}.partial.npz" for name in ("eigenpairs", "spectrum", "trace", "layers"))


def make_operator(problem: Problem, options: HessianOptions) -> Any:
    """Make the operator of the matrix that the options ask for."""
    make = {"hessian": operators.hessian, "ggn": operators.ggn}.get(options.matrix, operators.fisher)
    more: dict[str, Any] = {"product": options.product} if options.matrix == "hessian" else {}
    if options.matrix == "fisher":
        more = {"key": jax.random.fold_in(jax.random.key(options.seed), 4)}
    elif options.matrix == "empirical-fisher":
        more = {"kind": "empirical"}
    return make(
        problem.loss,
        problem.params,
        problem.data,
        batch_size=options.batch_size,
        select=list(options.select) or None,
        batch_stats=options.batch_stats,
        execution=make_execution(options),
        **more,
    )


def compute_parts(problem: Problem, options: HessianOptions) -> CurvatureResults:
    """Compute all parts of the curvature, each saved in ``options.out`` as soon as it is finished.

    Parts in the folder are loaded if they were made with the same settings, else refused; ``options.overwrite`` removes
    them first.
    """
    operator, out = make_operator(problem, options), options.out
    if options.top > (n := operator.shape[0]):
        if options.top != HessianOptions.top:
            raise mistake("top", options.top, f"at most {n}, the number of parameters")
        options = replace(options, top=n)  # nobody asked for more
    print_message(operator.recipe["plan"]["text"])
    if options.overwrite and kept.is_writer():  # parts of another command would not fit to those of this one
        for name in (*RESULTS, *PARTIAL):
            (out / name).unlink(missing_ok=True)
    pairs = eigenpairs(operator, problem.params, options)
    spec = spectrum(operator, options)
    total = trace(operator, options)
    rows = layer_rows(problem, operator, options) if options.layers else ()
    return CurvatureResults(pairs, spec, total, rows)


def write(results: CurvatureResults, out: Path) -> list[Path]:
    """Write hessian.txt and hessian.json, and return their paths; of several processes one writes, and all wait."""
    text, data = (out / name for name in SUMMARY)
    if kept.is_writer():
        text.write_text(describe(results) + "\n", encoding="utf-8")
        data.write_text(json.dumps(plain_data(results), indent=1, default=float) + "\n", encoding="utf-8")
    processes.agree(**{"what is written": text.name})  # no process reads it before it is written
    return [text, data]


def make_axes(problem: Problem, options: LandscapeOptions) -> Directions:
    """The eigenvectors that ``lla-jax landscape --axes hessian`` asks for; their eigenpairs are kept in the folder."""
    select = list(options.select) or None
    batch_stats = options.batch_stats if options.batch_stats == "batch" else "frozen"
    operator = operators.hessian(
        problem.loss,
        problem.params,
        problem.data,
        batch_size=options.batch_size,
        select=select,
        batch_stats=batch_stats,
        execution=make_execution(options),
    )
    which = options.which or "magnitude"
    hessian_options = HessianOptions(
        problem=options.problem,
        out=options.out or DEFAULT,
        top=1 if which == "ends" else options.dims,
        select=options.select,
        batch_stats=batch_stats,
        seed=options.seed,
        overwrite=options.overwrite,
    )

    def vectors(which: Any, name: str) -> Directions:
        pairs = eigenpairs(operator, problem.params, replace(hessian_options, which=which), name)
        return derived.eigenvectors(pairs, tuple(range(hessian_options.top)))

    if which == "ends":
        ends = combining.join(*(vectors(end, f"eigenpairs-{end}") for end in ("largest", "smallest")))
        names = [re.sub(r"^eigenvector 1", name, old) for name, old in zip(ENDS, ends.recipe["names"])]
        return replace(ends, recipe={**ends.recipe, "names": names})
    return vectors(which, "eigenpairs" if which == "magnitude" else f"eigenpairs-{which}")


# --- the parts, each taken from the folder if it was made with the same settings, else computed


def eigenpairs(operator: Any, params: PyTree, options: HessianOptions, name: str = "eigenpairs") -> Eigenpairs:
    """The ``options.top`` eigenpairs, from ``name.npz``, which may hold more, or computed and kept there."""
    k, start = options.top, None if options.start is None else _start(options.start, params)
    compute = partial(eigen.eigenpairs, operator, _key(options, 0), k, which=options.which, tol=options.tol)
    settings = {"which": options.which, "tol": f"{options.tol:g}", "no-copies": "yes" if options.no_copies else "no"}
    pairs = kept.result(
        options.out / f"{name}.npz",
        operator,
        partial(compute, copies=not options.no_copies, start=start),
        {**hessian_settings(options), **settings, "start": str(options.start or "random vectors")},
        unfinished={"number of eigenpairs": str(k)},
        accept=lambda pairs: pairs.num >= k,
        like=params,
        **_result_options(options),
    )
    return replace(pairs, values=pairs.values[:k], residuals=pairs.residuals[:k], vectors=pairs.vectors[:k])


def _start(path: Path, params: PyTree) -> Eigenpairs:
    """The eigenpairs in the file that --start names."""
    if not path.is_file():
        raise mistake("start", path, "a file of eigenpairs, such as eigenpairs.npz of another --out")
    pairs = storage.load(path, like=params)
    if not isinstance(pairs, Eigenpairs):
        raise mistake("start", path, f"a file of eigenpairs, such as eigenpairs.npz, and holds {type(pairs).__name__}")
    return pairs


def spectrum(operator: Any, options: HessianOptions) -> Spectrum:
    """The spectrum, from spectrum.npz, or computed and kept there."""
    return kept.result(
        options.out / "spectrum.npz",
        operator,
        partial(quadrature.spectrum, operator, _key(options, 1), steps=options.steps, probes=options.probes),
        {**hessian_settings(options), "steps": str(options.steps), "probes": str(options.probes)},
        **_result_options(options),
    )


def trace(operator: Any, options: HessianOptions) -> Estimate:
    """The trace, from trace.json, or computed and kept there."""

    def compute(**kept: Any) -> dict[str, Any]:
        return _plain(estimates.trace(operator, _key(options, 2), method=options.trace, rtol=options.rtol, **kept))

    settings = {**hessian_settings(options), "trace": options.trace, "rtol": f"{options.rtol:g}"}
    found = _numbers("trace", operator, compute, settings, options)
    with _readable(options, "trace"):
        return Estimate(**found)


def layer_rows(problem: Problem, operator: Any, options: HessianOptions) -> tuple[layers.Layer, ...]:
    """The rows of ``per_layer``, from layers.json, or computed and kept there."""

    def compute(**kept: Any) -> list[dict[str, Any]]:
        rows = layers.per_layer(
            problem.loss,
            problem.params,
            problem.data,
            _key(options, 3),
            batch_size=options.batch_size,
            batch_stats=options.batch_stats,
            product=options.product,
            execution=make_execution(options),
            **kept,
        )
        return [row._asdict() | {"trace": _plain(row.trace)} for row in rows]

    rows = _numbers("layers", operator, compute, hessian_settings(options), options)
    with _readable(options, "layers"):
        return tuple(layers.Layer(**row | {"trace": Estimate(**row["trace"])}) for row in rows)


def _plain(estimate: Estimate) -> dict[str, Any]:
    """A finished estimate as numbers."""
    return {name: value for name, value in asdict(estimate).items() if name != "state"}


@contextlib.contextmanager
def _readable(options: HessianOptions, name: str) -> Iterator[None]:
    """A context that takes numbers from ``name.json``, which may hold others than this command writes."""
    try:
        yield
    except (TypeError, ValueError, LookupError) as error:
        path = options.out / f"{name}.json"
        raise Misuse("path", f"{path} is not what lla_jax wrote ({error}). Remove it", path) from error


def _key(options: HessianOptions, part: int) -> jax.Array:
    """The random key of a part: the seed's, folded with the number of the part."""
    return jax.random.fold_in(jax.random.key(options.seed), part)


def _result_options(options: HessianOptions) -> dict[str, Any]:
    """Arguments of ``kept.result``: overwriting, messages and a progress bar."""
    repeat = "the same command without --overwrite" if options.overwrite else "the same command"
    estimate = partial(_bar, estimate=True)
    return {"overwrite": options.overwrite, "repeat": repeat, "bar": estimate, "report": print_message}


def _numbers(name: str, operator: Any, compute: Any, settings: dict[str, str], options: HessianOptions) -> Any:
    """The numbers in ``name.json`` if they were made with the same settings, else those computed and kept there."""
    path, shared = options.out / f"{name}.json", _result_options(options) | {"bar": _bar}
    try:
        return kept.numbers(path, operator, compute, settings, continues=True, **shared)
    except KeyboardInterrupt:
        if not path.with_suffix(".partial.npz").exists():  # nothing of it was finished
            before = f"what was finished before the {name} is kept in {options.out}"
            print_message(f"{before}; {shared['repeat']} begins with the {name}")
        raise


def _bar(name: str, estimate: bool = False) -> Any:
    """The progress bar of a part, in products."""
    return bar(name, unit="products", estimate=estimate)
