"""``lla-jax <verb>``: pictures of loss landscapes from the command line.

Each verb is a dataclass of its options and a function of that dataclass. jax and matplotlib are imported inside the
functions, after the environment that jax reads at its start is set, and so that ``lla-jax --help`` is immediate.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from lla_jax._terminal import Mistake, bar, duration, plain_warnings, prepare_jax, say, where, writable
from lla_jax._version import __version__

if TYPE_CHECKING:
    from lla_jax._types import Directions, Landscape, Problem

INTERRUPTED = 130
MISUSE = 2


def _optional(metavar: str, default: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


# The verbs and their options. The strings below the fields are the help texts.


@dataclass(frozen=True)
class DemoOptions:
    """Train a small network on handwritten digits, in a minute, and draw its loss landscape."""

    out: Path = Path("lla-demo")
    """Folder for the pictures and results."""
    seed: int = 0
    """Of the network, its training and the random directions."""
    points: int = 41
    """Points per axis of the line and the plane; an odd number puts one on the trained network."""
    debug: bool = False
    """Show the whole traceback of an error."""


@dataclass(frozen=True)
class LandscapeOptions:
    """Compute and draw the loss landscape around your own network.

    Write a function without arguments that returns lla_jax.Problem(loss, params, data), and name it: --problem
    my_module:my_function. Or try --problem lla_jax.demo:problem. After Ctrl-C the same command goes on where it was.
    """

    problem: str
    """The factory, MODULE:FUNCTION; modules are also looked for in the current folder."""
    out: Path = Path("run")
    """Folder for the result (landscape.npz) and the pictures."""
    axes: Literal["random", "adam", "gradient", "checkpoints"] = "random"
    """Random Gaussian; Adam's moments m and v; the gradient and an orthogonal one; differences to the checkpoints."""
    dims: Literal[1, 2, 3] = 2
    """Number of axes: a line, a plane or a volume."""
    points: tuple[int, ...] = (41,)
    """Points per axis: one number, or one for each axis."""
    extent: Annotated[float | None, _optional("FLOAT", "1")] = None
    """The axes reach from -extent to extent, in units of the direction."""
    range: Annotated[
        tuple[tuple[float, float], ...],
        _optional("LOW HIGH [LOW HIGH ...]", "by --extent; -0.5 1.5 for checkpoints, where 0 is the network"),
    ] = ()
    """The ends of each axis one by one, instead of --extent."""
    normalize: Annotated[
        Literal["filter", "layer", "weight", "model", "none"] | None,
        _optional("{filter,layer,weight,model,none}", "filter; none for checkpoints and --rule adam"),
    ] = None
    """How the directions are scaled by the weights they move."""
    order: Literal[1, 2] = 2
    """Order of the norms in --normalize."""
    one_dim: Literal["vector", "entry", "zero"] = "vector"
    """Biases and normalization layers in --normalize: as one vector, entry by entry, or not moved at all."""
    select: Annotated[tuple[str, ...], _optional("GLOB [GLOB ...]", "all parameters")] = ()
    """Move only parameters whose path matches one of these, such as '**/kernel' (quoted); all others stay frozen."""
    rule: Literal["add", "adam"] = "add"
    """Parameters at a point: theta + a d1 + b d2, or Adam's step theta + (a / sqrt(b)) m / (sqrt(v) + eps)."""
    batch_size: Annotated[int | None, _optional("INT", "all at once")] = None
    """Examples per batch."""
    batch_stats: Literal["frozen", "batch", "reestimate"] = "frozen"
    """BatchNorm statistics at each point: those of the trained network, of each batch, or re-estimated at the point."""
    seed: int = 0
    """Of the random directions."""
    devices: Annotated[int | None, _optional("INT", "all; on a CPU, one per core")] = None
    """Number of devices among which the points are split."""
    cap: Annotated[float | None, _optional("FLOAT", "no cap")] = None
    """In the pictures, draw values above this as this; the saved values are untouched."""
    log: bool = False
    """Logarithmic scale in the pictures."""
    overwrite: bool = False
    """Start anew even if the folder has a result, finished or interrupted."""
    debug: bool = False
    """Show the whole traceback of an error."""


@dataclass(frozen=True)
class PlotOptions:
    """Draw a saved result again."""

    file: tyro.conf.Positional[Path]
    """A landscape saved as .npz."""
    out: Annotated[Path | None, _optional("PATH", "that of the file")] = None
    """Folder for the pictures."""
    value: str = "loss"
    """What to draw, such as accuracy or test_loss."""
    cap: Annotated[float | None, _optional("FLOAT", "no cap")] = None
    """Draw values above this as this."""
    log: bool = False
    """Logarithmic scale."""
    format: Literal["png", "pdf", "svg"] = "png"
    """Kind of picture file."""
    debug: bool = False
    """Show the whole traceback of an error."""


Options = (
    Annotated[DemoOptions, tyro.conf.subcommand("demo")]
    | Annotated[LandscapeOptions, tyro.conf.subcommand("landscape")]
    | Annotated[PlotOptions, tyro.conf.subcommand("plot")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
      argv: the arguments after the program's name; those of the process by default.

    Returns:
      Exit code: 0, 2 for a mistake of the user, 130 when interrupted.
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
    verbs: dict[type, Callable[[Any], None]] = {DemoOptions: demo, LandscapeOptions: landscape, PlotOptions: plot}
    try:
        with plain_warnings():
            verbs[type(options)](options)
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except (Mistake, ValueError, OSError) as error:
        if options.debug:
            raise
        say(f"error: {error}\n(--debug shows where it comes from)")
        return MISUSE
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
    _check_grid_options(options)
    out = writable(options.out)
    finished, partial = out / "landscape.npz", out / "landscape.partial.npz"
    from lla_jax import evaluate, grid, load, save
    from lla_jax._types import Execution

    resume = None
    for path in (partial, finished):
        if path.exists() and not options.overwrite:
            resume = load(path)
            break
    problem = load_problem(options.problem)
    axes = make_axes(problem, options)
    coords = grid(points=_points(options), ranges=_ranges(options))

    def keep(unfinished: Landscape) -> None:
        save(unfinished, partial)
        again = "the same command without --overwrite" if options.overwrite else "the same command"
        say(f"what is finished is kept in {partial}; {again} continues it")

    try:
        with bar("landscape", estimate=True) as progress:
            result = evaluate(
                problem.loss,
                problem.params,
                problem.data,
                axes,
                coords,
                batch_size=options.batch_size,
                rule=options.rule,
                batch_stats=options.batch_stats,
                metrics=dict(problem.metrics),
                extra_data=dict(problem.extra_data),
                execution=Execution(devices="all" if options.devices is None else options.devices),
                progress=progress,
                on_partial=keep,
                resume=resume,
            )
    except ValueError as error:
        if resume is None:
            raise
        raise Mistake(
            f"{error}\n{out} has the result of another command: choose another --out, or --overwrite it"
        ) from error
    save(result, finished)
    partial.unlink(missing_ok=True)
    _print_numbers(result)
    _print_results([finished])
    _print_results(draw(result, out, cap=options.cap, log=options.log), "Pictures")


def plot(options: PlotOptions) -> None:
    """Draws a saved landscape again."""
    from lla_jax import load
    from lla_jax._types import Landscape

    saved = load(options.file)
    if not isinstance(saved, Landscape):
        raise Mistake(f"{options.file} holds {type(saved).__name__}, not a landscape")
    out = writable(options.out or options.file.parent)
    stem = options.file.stem
    _print_results(draw(saved, out, stem, options.value, cap=options.cap, log=options.log, suffix=options.format))


# What the verbs are made of


def load_problem(spec: str) -> Problem:
    """Imports ``module:factory``, also from the current folder, and calls the factory.

    Args:
      spec: module and function, separated by a colon.

    Returns:
      What the factory returns.

    Raises:
      Mistake: if there is no such factory, if it fails, or if it returns something else than a ``Problem``.
    """
    from lla_jax._types import Problem

    module_name, colon, name = spec.partition(":")
    if not (colon and module_name and name):
        raise Mistake(f"--problem {spec!r} must be MODULE:FUNCTION, such as lla_jax.demo:problem")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise Mistake(f"--problem {spec!r}: importing it failed: {where(error)}") from error
        raise Mistake(f"--problem {spec!r}: no module {module_name!r} in {here} or among the installed ones") from error
    except Exception as error:
        raise Mistake(f"--problem {spec!r}: importing it failed: {where(error)}") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise Mistake(f"--problem {spec!r}: {module_name} has no function {name!r}")
    say(f"building the problem: {spec}()")
    try:
        problem = factory()
    except Exception as error:
        raise Mistake(f"--problem {spec!r}: the factory failed: {where(error)}") from error
    if not isinstance(problem, Problem):
        raise Mistake(
            f"--problem {spec!r}: the factory returned {type(problem).__name__}; it must return "
            "lla_jax.Problem(loss, params, data)"
        )
    return problem


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

    from lla_jax import directions
    from lla_jax._types import Loss

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
        axes = directions.between(params, *problem.checkpoints[:dims], names=names)
    elif options.axes == "adam":
        if problem.opt_state is None:
            raise Mistake(
                "--axes adam needs Problem.opt_state, the optax state at the end of training: set it in the factory"
            )
        axes = directions.adam_moments(problem.opt_state, params)
    else:
        axes = directions.gradient(problem.loss, params, problem.data, batch_size=options.batch_size)
        if dims > 1:
            axes = directions.orthogonal(key, params, axes)
    if axes.num < dims:
        axes = directions.join(axes, directions.random(jax.random.fold_in(key, 1), params, dims - axes.num))
    elif axes.num > dims:
        axes = axes[:dims]
    if options.select:
        axes = directions.select(axes, list(options.select))
    by = options.normalize or ("none" if options.axes == "checkpoints" or options.rule == "adam" else "filter")
    if by == "none":
        return axes
    return directions.normalize(
        axes,
        params,
        by,
        options.order,
        one_dim=options.one_dim,
        filter_axis=problem.loss if isinstance(problem.loss, Loss) else None,
    )


def draw(
    result: Landscape,
    out: Path,
    stem: str = "landscape",
    value: str = "loss",
    *,
    cap: float | None = None,
    log: bool = False,
    suffix: str = "png",
) -> list[Path]:
    """Saves the pictures that suit a landscape's number of axes.

    Args:
      result: the landscape.
      out: folder.
      stem: first part of the file names.
      value: name of the value to draw.
      cap: values above are drawn as this (planes and volumes).
      log: logarithmic scale.
      suffix: kind of picture file.

    Returns:
      The paths: line and, where there are test data, train and test together; surface and contour; slices of a volume.
    """
    from lla_jax import plotting

    if result.dims == 1:
        figures = {"line": plotting.line(result, value, log=log)}
        if {"test_loss", "accuracy", "test_accuracy"} <= result.values.keys():
            figures["train-test"] = plotting.train_test(result, log=log)
    elif result.dims == 2:
        figures = {
            "surface": plotting.surface(result, value, cap=cap, log=log),
            "contour": plotting.contour(result, value, cap=cap, log=log),
        }
    else:
        figures = {"slices": plotting.volume(result, value, cap=cap, log=log)}
    tag = "" if value == "loss" else f"-{value}"
    paths = {out / f"{stem}{tag}-{name}.{suffix}": figure for name, figure in figures.items()}
    for path, figure in paths.items():
        figure.savefig(path)
    return list(paths)


def _check_grid_options(options: LandscapeOptions) -> None:
    dims = options.dims
    if len(options.points) not in (1, dims):
        raise Mistake(f"--points has {len(options.points)} numbers; give one, or one for each of the {dims} axes")
    if options.range and options.extent is not None:
        raise Mistake("--range and --extent both say how far the axes reach: give one of them")
    if options.range and len(options.range) != dims:
        raise Mistake(f"--range has {len(options.range)} pairs; give one for each of the {dims} axes")
    if options.rule == "adam" and (options.axes != "adam" or dims != 2):
        raise Mistake("--rule adam is a function of Adam's two moments: it needs --axes adam --dims 2")
    if options.normalize not in (None, "none"):
        if options.rule == "adam":
            raise Mistake("--rule adam takes the moments as they are: leave --normalize out")
        if options.axes == "checkpoints":
            raise Mistake(
                "--axes checkpoints has the checkpoints at 1; scaled axes would miss them: leave --normalize out"
            )


def _points(options: LandscapeOptions) -> tuple[int, ...]:
    return options.points * options.dims if len(options.points) == 1 else options.points


def _ranges(options: LandscapeOptions) -> list[tuple[float, float]]:
    if options.range:
        return list(options.range)
    if options.axes == "checkpoints" and options.extent is None:
        return [(-0.5, 1.5)] * options.dims
    extent = 1.0 if options.extent is None else options.extent
    if not (math.isfinite(extent) and extent > 0):
        raise Mistake(f"--extent {extent} must be a positive number")
    ranges = [(-extent, extent)] * options.dims
    if options.rule == "adam":
        ranges[1] = (0.1 * extent, extent)
    return ranges


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
