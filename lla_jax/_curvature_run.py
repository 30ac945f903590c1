"""``lla-jax hessian``: the curvature of a network in parts, each kept in the folder as soon as it is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from lla_jax import directions, layers, operators, plotting, spectral, stochastic
from lla_jax._options import HessianOptions, LandscapeOptions, Mistake, hessian_settings
from lla_jax._terminal import bar, say
from lla_jax._types import Directions, Eigenpairs, Problem, PyTree, Spectrum
from lla_jax._words import Curvature, numbers, words
from lla_jax.storage import load, save

ELSEWHERE = "choose another --out, or --overwrite it"


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
        return spectral.eigenpairs(operator, key, k, which=which, tol=tol, **options)

    made = {**made, "which": which, "tol": f"{tol:g}"}
    found = _part(name, folder, operator, made, compute, enough, like, overwrite=overwrite)
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
        return directions.eigenvectors(pairs, tuple(range(num)))

    which = options.which or "magnitude"
    if which == "ends":
        return directions.join(
            vectors("largest", 1, "eigenpairs-largest"), vectors("smallest", 1, "eigenpairs-smallest")
        )
    return vectors(which, options.dims, "eigenpairs" if which == "magnitude" else f"eigenpairs-{which}")


def spectrum(
    operator: Any, key: Any, steps: int, probes: int, folder: Path, made: Mapping[str, str], *, overwrite: bool
) -> Spectrum:
    """The spectrum in the folder, computed or completed if it is missing."""

    def compute(**options: Any) -> Spectrum:
        return spectral.spectrum(operator, key, steps=steps, probes=probes, **options)

    made = {**made, "steps": str(steps), "probes": str(probes)}
    return _part("spectrum", folder, operator, made, compute, lambda found: True, None, overwrite=overwrite)


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
) -> Any:
    """A result of the folder, loaded if finished and made alike, continued if interrupted, else computed and saved."""
    finished, partial = folder / f"{name}.npz", folder / f"{name}.partial.npz"
    resume = None
    if overwrite:
        partial.unlink(missing_ok=True)
    else:
        found = next((path for path in (partial, finished) if path.exists()), None)
        before = None if found is None else _load(found, like)
        if found is not None and before is not None:
            _check_same(found, before, operator, made)
            if found == finished and enough(before):
                say(f"{name}: taken from {finished}")
                return before
            resume = before if found == partial else None

    def keep(result: Any, path: Path) -> None:
        save(replace(result, recipe={**result.recipe, "command": dict(made)}), path)

    def keep_unfinished(unfinished: Any) -> None:
        keep(unfinished, partial)
        again = "the same command without --overwrite" if overwrite else "the same command"
        say(f"what is finished is kept in {partial}; {again} continues it")

    with bar(name, unit="products", estimate=True) as progress:
        result = compute(progress=progress, on_partial=keep_unfinished, resume=resume)
    keep(result, finished)
    partial.unlink(missing_ok=True)
    return result


def _load(path: Path, like: PyTree) -> Any:
    try:
        return load(path, like=like)
    except ValueError as error:
        raise Mistake(f"{str(error).removeprefix('path: ')}\n{ELSEWHERE}") from error


def _check_same(path: Path, result: Any, operator: Any, made: Mapping[str, str]) -> None:
    before = result.recipe.get("command", {})
    changed = [f"{name} {before[name]} -> {now}" for name, now in made.items() if before.get(name, now) != now]
    if changed:
        raise Mistake(f"{path} was made with other options: {', '.join(changed)}\n{ELSEWHERE}")
    then, now = (_identity(x) for x in (result.recipe.get("operator", {}), operator.recipe))
    if then != now:
        other = [name for name in now if then.get(name) != now[name]]
        raise Mistake(f"{path} was made with other {', '.join(other)}\n{ELSEWHERE}")


def _identity(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps({name: value for name, value in recipe.items() if name != "plan"}, default=repr))


def run(problem: Problem, options: HessianOptions, made: Mapping[str, str]) -> tuple[Curvature, dict[str, Any]]:
    """Everything the verb computes, and the operator's recipe; each part is saved in ``options.out`` at once."""
    operator, out, key = operator_of(problem, options), options.out, jax.random.key(options.seed)
    say(operator.recipe["plan"]["text"])
    keys = [jax.random.fold_in(key, i) for i in range(4)]
    pairs = eigenpairs(
        operator, options.seed, options.top, options.which, options.tol, out, made, problem.params,
        overwrite=options.overwrite,
    )  # fmt: skip
    spec = spectrum(operator, keys[1], options.steps, options.probes, out, made, overwrite=options.overwrite)
    with bar("trace", unit="products") as progress:
        trace = stochastic.trace(operator, keys[2], method=options.trace, rtol=options.rtol, progress=progress)
    rows: tuple[Any, ...] = ()
    if options.layers:
        with bar("layers", unit="products") as progress:
            rows = layers.per_layer(
                problem.loss,
                problem.params,
                problem.data,
                keys[3],
                batch_size=options.batch_size,
                batch_stats=options.batch_stats,
                devices="all" if options.devices is None else options.devices,
                progress=progress,
            )
    return Curvature(pairs, spec, trace, rows), operator.recipe


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
        figure.savefig(path)
    return paths


def write(found: Curvature, recipe: Mapping[str, Any], out: Path) -> Sequence[Path]:
    """hessian.txt and hessian.json."""
    text, data = out / "hessian.txt", out / "hessian.json"
    text.write_text(words(found, recipe) + "\n", encoding="utf-8")
    data.write_text(json.dumps(numbers(found), indent=1, default=float) + "\n", encoding="utf-8")
    return text, data
