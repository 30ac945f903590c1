"""``lla-jax hessian``: the curvature of a network in parts, each kept in the folder as soon as it is there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax

from lla_jax.cli.options import HessianOptions, LandscapeOptions, Mistake, hessian_settings
from lla_jax.cli.terminal import bar, say
from lla_jax.core import recipes
from lla_jax.core.types import Directions, Eigenpairs, Estimate, Problem, PyTree, Spectrum
from lla_jax.curvature import eigen, estimates, operators, quadrature
from lla_jax.directions import combining, derived
from lla_jax.execution import processes
from lla_jax.measures import layers
from lla_jax.output import plotting
from lla_jax.output.storage import load, save
from lla_jax.output.words import Curvature, numbers, words

ELSEWHERE = "choose another --out, or --overwrite it"
SAVE_EVERY_S = 60.0  # what a kill may cost
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
        devices="all" if options.devices is None else options.devices,
        **drawn,
    )


def eigenpairs(
    operator: Any,
    seed: int,
    k: int,
    which: Any,
    tol: float,
    folder: Path,
    made: Mapping[str, str],
    like: PyTree,
    *,
    overwrite: bool,
    name: str = "eigenpairs",
) -> Eigenpairs:
    """The eigenpairs in the folder, computed or completed if they are missing; more of them than asked for will do."""
    key = jax.random.fold_in(jax.random.key(seed), 0)

    def enough(found: Eigenpairs) -> bool:
        return found.num >= k

    def compute(**options: Any) -> Eigenpairs:
        return eigen.eigenpairs(operator, key, k, which=which, tol=tol, **options)

    made = {**made, "which": which, "tol": f"{tol:g}"}
    number = {"number of eigenpairs": str(k)}
    found = _part(name, folder, operator, made, compute, enough, like, overwrite=overwrite, unfinished=number)
    return replace(found, values=found.values[:k], residuals=found.residuals[:k], vectors=found.vectors[:k])


def axes(problem: Problem, options: LandscapeOptions) -> Directions:
    """The eigenvectors that ``lla-jax landscape --axes hessian`` asks for, kept in the folder as well."""
    devices = "all" if options.devices is None else options.devices
    select = list(options.select) or None
    batch_stats = options.batch_stats if options.batch_stats == "batch" else "frozen"
    operator = operators.hessian(
        problem.loss, problem.params, problem.data,
        batch_size=options.batch_size, select=select, batch_stats=batch_stats, devices=devices,
    )  # fmt: skip
    made = hessian_settings(
        HessianOptions(problem="", select=options.select, batch_stats=batch_stats, seed=options.seed)  # type: ignore
    )

    def vectors(which: str, num: int, name: str) -> Directions:
        pairs = eigenpairs(
            operator, options.seed, num, which, HessianOptions.tol, options.out, made, problem.params,
            overwrite=options.overwrite, name=name,
        )  # fmt: skip
        return derived.eigenvectors(pairs, tuple(range(num)))

    which = options.which or "magnitude"
    if which == "ends":
        ends = combining.join(
            vectors("largest", 1, "eigenpairs-largest"), vectors("smallest", 1, "eigenpairs-smallest")
        )
        names = [re.sub(r"^eigenvector 1", name, old) for name, old in zip(ENDS, ends.recipe["names"])]
        return replace(ends, recipe={**ends.recipe, "names": names})
    return vectors(which, options.dims, "eigenpairs" if which == "magnitude" else f"eigenpairs-{which}")


def spectrum(
    operator: Any, key: Any, steps: int, probes: int, folder: Path, made: Mapping[str, str], *, overwrite: bool
) -> Spectrum:
    """The spectrum in the folder, computed or completed if it is missing."""

    def compute(**options: Any) -> Spectrum:
        return quadrature.spectrum(operator, key, steps=steps, probes=probes, **options)

    made = {**made, "steps": str(steps), "probes": str(probes)}
    return _part("spectrum", folder, operator, made, compute, lambda found: True, None, overwrite=overwrite)


def trace(operator: Any, key: Any, options: HessianOptions, made: Mapping[str, str]) -> Estimate:
    """The trace in the folder, computed if it is missing."""

    def compute(progress: Any) -> dict[str, Any]:
        found = estimates.trace(operator, key, method=options.trace, rtol=options.rtol, progress=progress)
        return asdict(found)

    made = {**made, "trace": options.trace, "rtol": f"{options.rtol:g}"}
    return Estimate(**_noted("trace", operator, options, made, compute))


def by_layer(
    problem: Problem, operator: Any, key: Any, options: HessianOptions, made: Mapping[str, str]
) -> tuple[layers.Layer, ...]:
    """The rows of the layers in the folder, computed if they are missing."""

    def compute(progress: Any) -> list[dict[str, Any]]:
        rows = layers.per_layer(
            problem.loss,
            problem.params,
            problem.data,
            key,
            batch_size=options.batch_size,
            batch_stats=options.batch_stats,
            devices="all" if options.devices is None else options.devices,
            progress=progress,
        )
        return [row._asdict() | {"trace": asdict(row.trace)} for row in rows]

    rows = _noted("layers", operator, options, made, compute)
    return tuple(layers.Layer(**row | {"trace": Estimate(**row["trace"])}) for row in rows)


def run(problem: Problem, options: HessianOptions, made: Mapping[str, str]) -> tuple[Curvature, dict[str, Any]]:
    """Everything the verb computes, and the operator's recipe; each part is saved in ``options.out`` at once."""
    operator, out, key = operator_of(problem, options), options.out, jax.random.key(options.seed)
    if options.top > operator.shape[0]:
        raise Mistake(f"--top {options.top} must be at most {operator.shape[0]}, the number of parameters")
    say(operator.recipe["plan"]["text"])
    if options.overwrite and first():  # what is left of an earlier run would not fit to the parts of this one
        for name in PARTS:
            (out / name).unlink(missing_ok=True)
    keys = [jax.random.fold_in(key, i) for i in range(4)]
    pairs = eigenpairs(
        operator, options.seed, options.top, options.which, options.tol, out, made, problem.params,
        overwrite=options.overwrite,
    )  # fmt: skip
    spec = spectrum(operator, keys[1], options.steps, options.probes, out, made, overwrite=options.overwrite)
    whole = trace(operator, keys[2], options, made)
    rows = by_layer(problem, operator, keys[3], options, made) if options.layers else ()
    return Curvature(pairs, spec, whole, rows), operator.recipe


def draw(found: Curvature, out: Path, suffix: str = "png") -> list[Path]:
    """Pictures of density, eigenvalues and layers."""
    figures = {
        "spectrum": plotting.spectral_density(found.spectrum, pairs=found.pairs),
        "eigenvalues": plotting.scree(found.pairs),
    }
    if found.layers:
        figures["layers"] = plotting.layers(found.layers)
    paths = [out / f"{name}.{suffix}" for name in figures]
    for path, figure in zip(paths, figures.values()):
        if first():
            figure.savefig(path)
    return paths


def write(found: Curvature, recipe: Mapping[str, Any], out: Path) -> Sequence[Path]:
    """hessian.txt and hessian.json."""
    text, data = out / "hessian.txt", out / "hessian.json"
    if first():
        text.write_text(words(found, recipe) + "\n", encoding="utf-8")
        data.write_text(json.dumps(numbers(found), indent=1, default=float) + "\n", encoding="utf-8")
    _agreed(text, "what is written")  # no process goes on to read it before it is there
    return text, data


# --- a part in the folder: read, continued, or computed and kept


def _part(
    name: str,
    folder: Path,
    operator: Any,
    made: Mapping[str, str],
    compute: Callable[..., Any],
    enough: Callable[[Any], bool],
    like: PyTree,
    *,
    overwrite: bool,
    unfinished: Mapping[str, str] | None = None,
) -> Any:
    """A result of the folder, loaded if finished and made alike, continued if interrupted, else computed and saved.

    What is not finished must be alike in ``unfinished`` as well.
    """
    whole = {**made, **(unfinished or {})}
    finished, partial = folder / f"{name}.npz", folder / f"{name}.partial.npz"
    resume, writes = None, first()
    if overwrite:
        if writes:
            partial.unlink(missing_ok=True)
    else:
        found = next((path for path in (partial, finished) if path.exists()), None)
        _agreed(found, name)
        before = None if found is None else _load(found, like)
        if found is not None and before is not None:
            _check_same(found, before.recipe, operator, made if found == finished else whole)
            if found == finished and enough(before):
                say(f"{name}: taken from {finished}")
                return before
            resume = before if found == partial else None

    def keep(result: Any, path: Path) -> None:
        if writes:
            save(replace(result, recipe={**result.recipe, "command": whole}), path)

    def keep_unfinished(begun: Any) -> None:
        keep(begun, partial)
        if not writes or begun.recipe["stopped"] == "running":
            return
        again = "the same command without --overwrite" if overwrite else "the same command"
        say(f"what is finished is kept in {partial}; {again} continues it")

    with bar(name, unit="products", estimate=True) as progress:
        result = compute(
            progress=progress, on_partial=keep_unfinished, save_every=SAVE_EVERY_S if writes else None, resume=resume
        )
    keep(result, finished)
    if writes:
        partial.unlink(missing_ok=True)
    return result


def first() -> bool:
    """Whether this is the process that writes, where several compute one thing."""
    return jax.process_index() == 0


def _agreed(found: Path | None, name: str) -> None:
    """Processes that found different files would wait for each other forever."""
    try:
        processes.agree(**{f"{name} in --out": found.name if found else "nothing"})
    except ValueError as error:
        raise Mistake(f"{error}\n--out must be one folder that all processes see") from error


def _noted(
    name: str, operator: Any, options: HessianOptions, made: Mapping[str, str], compute: Callable[[Any], Any]
) -> Any:
    """A result of some numbers in the folder, read if made alike, else computed and saved; only whole ones are."""
    path = options.out / f"{name}.json"
    kept_there = path.exists() and not options.overwrite
    _agreed(path if kept_there else None, name)
    if kept_there:
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            found = kept["result"]
        except (ValueError, LookupError, TypeError) as error:
            raise Mistake(f"{path} is not what lla-jax hessian wrote: {error!r}\n{ELSEWHERE}") from error
        _check_same(path, kept, operator, made)
        say(f"{name}: taken from {path}")
        return found
    with bar(name, unit="products") as progress:
        found = compute(progress)
    if not first():
        return found
    kept = {"command": dict(made), "operator": operator.recipe, "result": found}
    unfinished = path.with_suffix(".json.tmp")
    unfinished.write_text(json.dumps(kept, indent=1, default=_plain) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
    return found


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else repr(value)


def _load(path: Path, like: PyTree) -> Any:
    try:
        return load(path, like=like)
    except ValueError as error:
        raise Mistake(f"{str(error).removeprefix('path: ')}\n{ELSEWHERE}") from error


def _check_same(path: Path, recipe: Mapping[str, Any], operator: Any, made: Mapping[str, str]) -> None:
    before = recipe.get("command", {})
    changed = [f"{name} {before[name]} -> {now}" for name, now in made.items() if before.get(name, now) != now]
    if changed:
        raise Mistake(f"{path} was made with other options: {', '.join(changed)}\n{ELSEWHERE}")
    if other := recipes.differences(recipe.get("operator", {}), operator.recipe, operator.recipe):
        raise Mistake(f"{path} was made with other {', '.join(other)}\n{ELSEWHERE}")
