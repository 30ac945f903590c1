"""``lla-jax <verb>``: pictures of loss landscapes from the command line.

Each verb is a function of its options, a dataclass in ``_options``. jax and matplotlib are imported inside the
functions, after the environment that jax reads at its start is set, and so that ``lla-jax --help`` is immediate.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from lla_jax._version import __version__
from lla_jax.cli.options import (
    DemoOptions,
    HessianOptions,
    LandscapeOptions,
    MergeOptions,
    Mistake,
    Options,
    PlotOptions,
    StatusOptions,
    check_axes,
    check_grid,
    check_hessian,
    check_normalize,
    check_pictures,
    hessian_settings,
    normalization,
    points,
    ranges,
    scale,
    settings,
    shard,
)
from lla_jax.cli.terminal import bar, by_us, load_problem, plain_warnings, prepare_jax, say, told, where, writable
from lla_jax.core.text import duration

if TYPE_CHECKING:
    from lla_jax.core.types import Directions, Landscape, Problem


INTERRUPTED = 130
MISUSE = 2
FAILURE = 1
DECADES = 1000.0  # largest over smallest value from which a linear picture shows nothing


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
      argv: the arguments after the program's name; those of the process by default.

    Returns:
      Exit code: 0, 2 for a mistake of the user, 1 for an error in the user's code or ours, 130 when interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv == ["--version"]:
        print(f"lla-jax {__version__}")
        return 0
    options: Any = tyro.cli(
        Options,  # type: ignore[arg-type]
        prog="lla-jax",
        description="Loss landscapes of neural networks. Start with: lla-jax demo",
        args=argv or ["--help"],
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    prepare_jax(getattr(options, "devices", None))
    verbs: dict[type, Callable[[Any], None]] = {
        DemoOptions: demo,
        LandscapeOptions: landscape,
        HessianOptions: hessian,
        MergeOptions: merge,
        StatusOptions: status,
        PlotOptions: plot,
    }
    try:
        with plain_warnings():
            verbs[type(options)](options)
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except Exception as error:
        if options.debug:
            raise
        told = isinstance(error, Mistake | OSError) or (isinstance(error, ValueError) and by_us(error))
        say(f"error: {_as_typed(str(error), options) if told else where(error)}\n(--debug shows where it comes from)")
        return MISUSE if told else FAILURE
    return 0


def demo(options: DemoOptions) -> None:
    """Trains the embedded problem and draws its landscapes into ``options.out``."""
    if options.points < 3:
        raise Mistake(f"--points {options.points} must be at least 3 to draw a surface")
    out = writable(options.out)
    from lla_jax.demo import tour

    start = time.perf_counter()
    paths = tour.run(out, seed=options.seed, points=options.points, bar=bar)
    print("\n" + (out / "summary.txt").read_text(encoding="utf-8"))
    _print_results([path for path in paths if path.suffix != ".npz"])
    print(f"Numbers for your own plots: {out}/*.npz (lla_jax.load). It took {duration(time.perf_counter() - start)}.")


def landscape(options: LandscapeOptions) -> None:
    """Computes the landscape of a user's problem into ``options.out``, or continues an interrupted one."""
    check_grid(options)
    check_axes(options)
    check_normalize(options)
    check_pictures(options, options.dims)
    share, made = shard(options), settings(options)
    out = writable(options.out)
    from lla_jax import evaluate, grid, save
    from lla_jax.cli import stores as _store_run
    from lla_jax.core.types import Execution

    _check_devices(options.devices)
    _store_run.begin(out, made, options.overwrite)
    problem = load_problem(options.problem)
    axes = make_axes(problem, options)
    if options.axes == "checkpoints" and options.batch_stats == "frozen" and _has_state(problem):
        say(
            "note: the model has state; if it is BatchNorm's, that of the checkpoints differs: --batch-stats reestimate"
        )
    try:
        with bar("landscape") as progress, told():
            result = evaluate(
                problem.loss,
                problem.params,
                problem.data,
                axes,
                grid(points=points(options), ranges=ranges(options)),
                batch_size=options.batch_size,
                rule=options.rule,
                batch_stats=options.batch_stats,
                metrics=dict(problem.metrics),
                extra_data=dict(problem.extra_data),
                execution=Execution(devices="all" if options.devices is None else options.devices),
                progress=progress,
                store=out,
                shard=share,
            )
    except ValueError as error:
        raise _store_run.refused(out, error) from error
    except KeyboardInterrupt:
        _store_run.tell_kept(out, made, options.problem)
        raise
    _store_run.note(out, made, options.problem)
    if not result.recipe["complete"]:
        print(f"Shard {options.shard} is finished.\n{_store_run.status(out)}\nWhen all are: lla-jax merge {out}")
        return
    finished = save(result, out / "landscape.npz")
    for path in out.glob("landscape.partial*"):
        path.unlink(missing_ok=True)
    _print_numbers(result)
    _print_results([finished])
    _print_results(draw(result, out, cap=options.cap, log=scale(options)), "Pictures")


def hessian(options: HessianOptions) -> None:
    """Computes the curvature of a user's problem into ``options.out``, or continues an interrupted run."""
    check_hessian(options)
    out = writable(options.out)
    from lla_jax.cli import curvature as _curvature_run

    _check_devices(options.devices)
    with told():
        found, recipe = _curvature_run.run(load_problem(options.problem), options, hessian_settings(options))
    results = _curvature_run.write(found, recipe, out)
    if not _curvature_run.first():  # of several processes one speaks
        return
    print((out / "hessian.txt").read_text(encoding="utf-8"))
    _print_results([*results, out / "eigenpairs.npz", out / "spectrum.npz"])
    _print_results(_curvature_run.draw(found, out), "Pictures")


def merge(options: MergeOptions) -> None:
    """Puts together what is in a store, and draws it."""
    from lla_jax.cli import stores as _store_run
    from lla_jax.core.types import Landscape

    found, paths = _store_run.merge(options.folder, options.partial)
    if not isinstance(found, Landscape):
        print(found)
        _print_results(paths[-1:])
        return
    check_pictures(options, found.dims)
    _print_numbers(found)
    _print_results(paths)
    stem = paths[0].name.removesuffix(".npz")
    _print_results(draw(found, options.folder, stem, cap=options.cap, log=scale(options)), "Pictures")


def status(options: StatusOptions) -> None:
    """Says how far a store is."""
    from lla_jax.cli import stores as _store_run

    print(_store_run.status(options.folder))


def plot(options: PlotOptions) -> None:
    """Draws a saved result again."""
    from lla_jax.core.types import Landscape

    saved = _load(options.file)
    if not isinstance(saved, Landscape):
        _plot_curvature(saved, options)
        return
    check_pictures(options, saved.dims)
    if options.value not in saved.values:
        raise Mistake(f"--value {options.value!r} is not in {options.file}; it has {', '.join(saved.values)}")
    out = writable(options.out or options.file.parent)
    paths = draw(
        saved, out, options.file.stem, options.value, cap=options.cap, log=scale(options), suffix=options.format
    )
    if not paths:
        raise Mistake(f"{options.file} could not be drawn")
    _print_results(paths)


def _plot_curvature(saved: Any, options: PlotOptions) -> None:
    """Eigenpairs or a spectrum."""
    from lla_jax.core.types import Eigenpairs, Spectrum
    from lla_jax.output import plotting

    pictures: dict[type, Callable[[Any], Any]] = {Spectrum: plotting.spectral_density, Eigenpairs: plotting.scree}
    if type(saved) not in pictures:
        raise Mistake(f"{options.file} holds {type(saved).__name__}, of which there is no picture")
    useless = {"--value": options.value != "loss", "--cap": options.cap is not None, "--log": options.log}
    if given := [name for name, yes in (useless | {"--no-log": options.no_log}).items() if yes]:
        raise Mistake(f"{given[0]} is for landscapes, and {options.file} holds {type(saved).__name__}: leave it out")
    path = writable(options.out or options.file.parent) / f"{options.file.stem}.{options.format}"
    pictures[type(saved)](saved).savefig(path)
    _print_results([path], "Pictures")


# What the verbs are made of


def make_axes(problem: Problem, options: LandscapeOptions) -> Directions:
    """The directions that the options ask for, selected and normalized.

    Args:
      problem: gives parameters, optimizer state, checkpoints.
      options: of the command line.

    Returns:
      ``options.dims`` directions.

    Raises:
      Mistake: if the problem lacks what these axes are made of.
    """
    import jax

    from lla_jax.core.types import Loss
    from lla_jax.directions import combining, derived
    from lla_jax.directions import derived as checkpoints
    from lla_jax.directions import draws as directions
    from lla_jax.directions import normalization as _normalization

    key, params, dims = jax.random.key(options.seed), problem.params, options.dims
    if options.axes == "random":
        axes = directions.random(key, params, dims)
    elif options.axes == "checkpoints":
        if len(problem.checkpoints) < dims:
            raise Mistake(
                f"--axes checkpoints --dims {dims} needs {dims} entries in Problem.checkpoints, it has "
                f"{len(problem.checkpoints)}: add some, or use fewer --dims"
            )
        names = ["trained", *(f"checkpoint {i + 1}" for i in range(len(problem.checkpoints[:dims])))]
        axes = checkpoints.between(params, *problem.checkpoints[:dims], names=names)
    elif options.axes == "adam":
        if problem.opt_state is None:
            raise Mistake(
                "--axes adam needs Problem.opt_state, the optax state at the end of training: set it in the factory"
            )
        axes = derived.adam_moments(problem.opt_state, params)
    elif options.axes == "hessian":
        from lla_jax.cli import curvature as _curvature_run

        axes = _curvature_run.axes(problem, options)
    else:
        axes = derived.gradient(problem.loss, params, problem.data, batch_size=options.batch_size)
        if dims > 1:
            axes = directions.orthogonal(key, params, axes)
    if axes.num < dims:
        axes = combining.join(axes, directions.random(jax.random.fold_in(key, 1), params, dims - axes.num))
    elif axes.num > dims:
        axes = axes[:dims]
    if options.select:
        axes = combining.select(axes, list(options.select))
    by: Any = normalization(options)
    if by == "none":
        return axes
    return _normalization.normalize(
        axes,
        params,
        by,
        options.order or 2,
        one_dim=options.one_dim or "vector",
        filter_axis=problem.loss if isinstance(problem.loss, Loss) else None,
    )


def draw(
    result: Landscape,
    out: Path,
    stem: str = "landscape",
    value: str = "loss",
    *,
    cap: float | None = None,
    log: bool | None = None,
    suffix: str = "png",
) -> list[Path]:
    """Saves the pictures that suit a landscape's number of axes; one that cannot be drawn is announced and left out.

    Args:
      result: the landscape.
      out: folder.
      stem: first part of the file names.
      value: name of the value to draw.
      cap: values above are drawn as this (planes and volumes).
      log: logarithmic scale, where values allow it; None decides by their span.
      suffix: kind of picture file.

    Returns:
      The paths: line and, where there are test data, train and test together; surface and contour (a heat map where an
      axis has one point); slices of a volume.
    """
    from lla_jax.output import plotting

    twin = value == "loss" and {"test_loss", "accuracy", "test_accuracy"} <= result.values.keys()
    log = _logarithmic(result, [value, "test_loss"] if result.dims == 1 and twin else [value], cap, log)
    pictures: dict[str, Callable[[], Any]]
    if result.dims == 1:
        pictures = {"line": lambda: plotting.line(result, value, log=log)}
        if twin:
            pictures["train-test"] = lambda: plotting.train_test(result, log=log)
    elif result.dims == 2 and min(result.shape) == 1:
        pictures = {"heatmap": lambda: plotting.heatmap(result, value, cap=cap, log=log)}
    elif result.dims == 2:
        pictures = {
            "surface": lambda: plotting.surface(result, value, cap=cap, log=log),
            "contour": lambda: plotting.contour(result, value, cap=cap, log=log),
        }
    else:
        pictures = {"slices": lambda: plotting.volume(result, value, cap=cap, log=log)}
    tag = "" if value == "loss" else f"-{value}"
    paths = []
    for name, picture in pictures.items():
        path = out / f"{stem}{tag}-{name}.{suffix}"
        try:
            picture().savefig(path)
        except ValueError as error:
            say(f"note: no picture {path.name}: {error}")
        else:
            paths.append(path)
    return paths


def _logarithmic(result: Landscape, names: Sequence[str], cap: float | None, log: bool | None) -> bool:
    """Whether to draw logarithmically: as asked if values are positive, else by their span; says what it decided."""
    import numpy as np

    values = np.concatenate([result.values[name].ravel() for name in names])
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
    span = f"{' and '.join(names)}: {low:.4g} to {high:.4g}"
    if log and low <= 0:
        say(f"note: --log needs values above 0 ({span}); the pictures are linear")
        return False
    if log is None and cap is None and low > 0 and high > DECADES * low:
        say(f"note: the pictures are logarithmic ({span}); --no-log draws them linearly")
        return True
    return bool(log)


# What is checked before anything is computed


def _check_devices(devices: int | None) -> None:
    if devices is None:  # and a problem that joins a group of processes does so before jax starts
        return
    import jax

    local = jax.local_devices()
    if not 1 <= devices <= len(local):
        kind = "CPU cores, one device each" if local[0].platform == "cpu" else f"{local[0].platform.upper()} devices"
        raise Mistake(f"--devices {devices} must be 1 to {len(local)}, the number of {kind}; or leave it out")


def _has_state(problem: Problem) -> bool:
    import jax

    return bool(jax.tree_util.tree_leaves(getattr(problem.loss, "state", None)))


def _load(path: Path) -> Any:
    from lla_jax import load

    try:
        saved = load(path)
    except (ValueError, FileNotFoundError) as error:
        raise Mistake(str(error).removeprefix("path: ")) from error
    return saved


def _as_typed(text: str, options: Any) -> str:
    """A message of the library that begins with the name of an argument, with that of the option."""
    name, colon, rest = text.partition(":")
    return f"--{name.replace('_', '-')}{colon}{rest}" if name in vars(options) else text


def _print_numbers(result: Landscape) -> None:
    import numpy as np

    print(f"{' x '.join(map(str, result.shape))} points")
    for name, values in result.values.items():
        finite = values[np.isfinite(values)]
        print(f"  {name}: {finite.min():.6g} to {finite.max():.6g}" if finite.size else f"  {name}: nowhere finite")


def _print_results(paths: Sequence[Path], what: str = "Results") -> None:
    print(f"{what}:", *paths, sep="\n  ")


if __name__ == "__main__":
    sys.exit(main())
