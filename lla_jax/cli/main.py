"""Runs the command line ``lla-jax VERB``; each verb is a function of its options, a dataclass in ``cli.options``.

jax and matplotlib are imported inside the functions: after the environment that jax reads at its start is set, and so
that ``lla-jax --help`` is immediate.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from lla_jax._version import __version__
from lla_jax.cli import commands, errors
from lla_jax.cli.checks import (
    check_axes,
    check_compile,
    check_grid,
    check_hessian,
    check_normalize,
    check_pictures,
    check_refine,
)
from lla_jax.cli.environment import make_execution, make_folder, prepare_jax, stay_on_cpu
from lla_jax.cli.options import (
    CompileOptions,
    DemoOptions,
    HessianOptions,
    LandscapeOptions,
    MergeOptions,
    Mistake,
    Options,
    PlotOptions,
    StatusOptions,
    mistake,
)
from lla_jax.cli.problems import load_problem, split_name
from lla_jax.cli.settings import normalization, points, ranges, scale, scale_name, settings, shard
from lla_jax.cli.terminal import (
    bar,
    drop_output,
    is_read,
    plain_warnings,
    print_message,
    show_log,
    tolerate_encodings,
)
from lla_jax.core.interrupts import INTERRUPTED, prompt_interrupts, was_interrupted
from lla_jax.core.text import duration

if TYPE_CHECKING:
    from lla_jax.core.results import Landscape
    from lla_jax.core.types import Directions, Problem


MISUSE = 2
FAILURE = 1
UNREAD = 141  # as a shell says of a program whose reader left


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
      argv: the arguments after the program's name; those of the process by default.

    Returns:
      Exit code: 0, 2 for a mistake of the user, 1 for an error in the user's code or ours, 130 when interrupted, 141
      when nobody reads the output any more (``lla-jax --help | head``).

    Raises:
      SystemExit: --help, or options that cannot be parsed.
      Exception: with --debug, every error of a verb.
    """
    tolerate_encodings()
    try:
        try:
            return _run(commands.complete(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()  # a reader who left is noticed here, not by the interpreter at its end
    except BrokenPipeError:
        if is_read():
            raise
        drop_output()
        return UNREAD


def _run(argv: list[str]) -> int:
    """Check the words of a command line, run it, and return the exit code; a closed pipe is left to ``main``."""
    if argv == ["--version"]:
        print(f"lla-jax {__version__}")
        return 0
    try:
        commands.check(argv)
    except Mistake as error:
        print_message(f"error: {error}")
        raise SystemExit(MISUSE) from error
    options: Any = tyro.cli(
        Options,  # type: ignore[arg-type]
        prog="lla-jax",
        description="Loss landscapes of neural networks. Start with: lla-jax demo",
        args=argv,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    prepare_jax(getattr(options, "devices", None))
    if isinstance(options, CompileOptions):  # where the compiler for TPUs is, jax would look for one
        stay_on_cpu()
    verbs: dict[type, Callable[[Any], None]] = {
        DemoOptions: demo,
        LandscapeOptions: landscape,
        HessianOptions: hessian,
        CompileOptions: compile_,
        MergeOptions: merge,
        StatusOptions: status,
        PlotOptions: plot,
    }
    try:
        with plain_warnings(), prompt_interrupts():
            try:
                verbs[type(options)](options)
            except Exception as error:
                if was_interrupted():  # and something on the way has made another error of it
                    raise KeyboardInterrupt from error
                raise
    except KeyboardInterrupt:
        print_message("interrupted")
        return INTERRUPTED
    except Exception as error:
        if options.debug or (isinstance(error, BrokenPipeError) and not is_read()):
            raise
        is_mistake = errors.is_mistake(error)
        text = errors.message(error, options) if is_mistake else errors.locate(error)
        if fault := errors.platform_fault():
            text, is_mistake = fault, True
        print_message(f"error: {text}\n(--debug shows where it comes from)")
        return MISUSE if is_mistake else FAILURE
    return 0


def demo(options: DemoOptions) -> None:
    """Train the embedded problem and draw its landscapes into ``options.out``."""
    if options.points < 3:
        raise mistake("points", options.points, "at least 3, to draw a surface")
    out = make_folder(options.out)
    from lla_jax.demo import tour

    start = time.perf_counter()
    try:
        paths = tour.run(out, seed=options.seed, points=options.points, bar=bar)
    except KeyboardInterrupt:
        print_message("the demo keeps nothing before its end; the same command begins anew")
        raise
    print("\n" + (out / "summary.txt").read_text(encoding="utf-8"))
    _print_results([path for path in paths if path.suffix != ".npz"])
    print(f"Numbers for your own plots: {out}/*.npz (lla_jax.load). It took {duration(time.perf_counter() - start)}.")


def landscape(options: LandscapeOptions) -> None:
    """Compute the landscape of a user's problem into ``options.out``, or continue an interrupted one."""
    check_grid(options)
    check_axes(options)
    check_normalize(options)
    check_pictures(options, options.dims)
    check_refine(options)
    this_shard, chosen, name = shard(options), settings(options), ":".join(split_name(options.problem))
    from lla_jax import evaluate, grid, refine, save
    from lla_jax.cli import stores

    out = make_folder(options.out or stores.choose_folder(chosen, name))
    _check_devices(options.devices)
    stores.begin(out, chosen, options.overwrite)
    problem, out = _build(options.problem, out)
    options = replace(options, out=out)
    axes = make_axes(problem, options)
    if options.axes == "checkpoints" and options.batch_stats == "frozen" and _has_state(problem):
        _print_note(
            "the model has state; if it is BatchNorm's, that of the checkpoints differs: use --batch-stats reestimate"
        )
    try:
        with bar("landscape") as progress, show_log():
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
                execution=make_execution(options),
                progress=progress,
                store=out,
                shard=this_shard,
                refine=None if options.refine is None else refine(options.refine, scale=scale_name(options)),
            )
    except KeyboardInterrupt:
        stores.report_interruption(out, chosen, name)
        raise
    stores.write_settings(out, chosen, name)
    if not result.recipe["complete"]:
        print(f"Shard {options.shard} is finished.\n{stores.status(out)}\nWhen all are: lla-jax merge {out}")
        return
    path = save(result, out / "landscape.npz")
    for partial in out.glob("landscape.partial*"):
        partial.unlink(missing_ok=True)
    _print_numbers(result)
    _print_results([path])
    _print_results(draw(result, out, cap=options.cap, log=scale(options)), "Pictures")


def hessian(options: HessianOptions) -> None:
    """Compute the curvature of a user's problem into ``options.out``, or continue an interrupted computation."""
    check_hessian(options)
    split_name(options.problem)
    out = make_folder(options.out)
    from lla_jax.cli import curvature
    from lla_jax.output import kept, pictures

    _check_devices(options.devices)
    with show_log():
        problem, out = _build(options.problem, out)
        results = curvature.compute_parts(problem, replace(options, out=out))
    files = curvature.write(results, out)
    if not kept.is_writer():  # one of several processes prints
        return
    print((out / "hessian.txt").read_text(encoding="utf-8"))
    _print_results([*files, out / "eigenpairs.npz", out / "spectrum.npz"])
    _print_results(pictures.draw_curvature(results, out), "Pictures")


def compile_(options: CompileOptions) -> None:
    """Compile a user's problem for a slice of TPUs, print what it costs there, and save it."""
    check_compile(options)
    split_name(options.problem)
    if options.out is not None:
        make_folder(options.out.parent)
    from lla_jax.cli import compiling

    compiling.check_topology(options)
    costs = compiling.costs_of(load_problem(options.problem), options)
    print(costs)
    if options.out is not None:
        compiling.save(costs, options.out)
        _print_results([options.out])


def merge(options: MergeOptions) -> None:
    """Merge the chunks of a store into its result, and draw it."""
    from lla_jax.cli import stores
    from lla_jax.core.results import Landscape

    out = options.out or options.folder
    if options.out is not None or out.is_dir():
        make_folder(out)
    result, paths = stores.merge(options.folder, options.partial, out)
    if not isinstance(result, Landscape):  # the table of a sweep
        print(result)
        _print_results(paths[-1:])
        return
    check_pictures(options, result.dims)
    _print_numbers(result)
    _print_results(paths)
    stem = paths[0].name.removesuffix(".npz")
    _print_results(draw(result, out, stem, cap=options.cap, log=scale(options)), "Pictures")


def status(options: StatusOptions) -> None:
    """Print how far a store is."""
    from lla_jax.cli import stores

    print(stores.status(options.folder))


def plot(options: PlotOptions) -> None:
    """Draw a saved result again, or all results in a folder."""
    if options.file.is_dir():
        _plot_folder(options)
        return
    from lla_jax import load
    from lla_jax.core.results import Landscape

    try:
        saved = load(options.file)
    except FileNotFoundError as error:
        raise Mistake(f"{options.file} does not exist; pass a result that lla-jax or lla_jax.save wrote") from error
    if isinstance(saved, Landscape):
        _plot_landscape(saved, options)
    else:
        _plot_curvature(saved, options)


def _plot_folder(options: PlotOptions) -> None:
    """Draw every result in a folder; those that have no picture are told."""
    from lla_jax import load
    from lla_jax.core.results import Eigenpairs, Landscape, Spectrum

    folder = options.file
    results: dict[Path, Any] = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            results[path] = load(path)
        except (ValueError, OSError) as error:
            _print_note(f"{path} is not drawn: {error}")
    drawn = {p: x for p, x in results.items() if isinstance(x, Landscape | Eigenpairs | Spectrum)}
    if not drawn:
        is_store = (folder / "manifest.json").exists()
        remedy = f"lla-jax merge {folder} writes it" if is_store else "pass the --out of lla-jax landscape or hessian"
        raise Mistake(f"{folder} holds no result (.npz) that has a picture; {remedy}")
    for path, saved in drawn.items():
        one = replace(options, file=path)
        if isinstance(saved, Landscape):
            _plot_landscape(saved, one)
        else:  # the options of the pictures are for the landscapes
            _plot_curvature(saved, PlotOptions(path, options.out, format=options.format))


def _plot_landscape(saved: Landscape, options: PlotOptions) -> None:
    """Draw a landscape again, into --out or the folder of the file."""
    check_pictures(options, saved.dims)
    if options.value not in saved.values:
        raise mistake("value", repr(options.value), f"in {options.file}, which has {', '.join(saved.values)}")
    out = make_folder(options.out or options.file.parent)
    paths = draw(
        saved, out, options.file.stem, options.value, cap=options.cap, log=scale(options), suffix=options.format
    )
    if not paths:
        raise Mistake(f"{options.file} has no picture that could be drawn; the messages above say why")
    _print_results(paths)


def _plot_curvature(saved: Any, options: PlotOptions) -> None:
    """Draw eigenpairs or a spectrum again, into --out or the folder of the file; other results are refused."""
    from lla_jax.core.results import Eigenpairs, Spectrum
    from lla_jax.output import pictures

    if not isinstance(saved, Eigenpairs | Spectrum):
        kind = type(saved).__name__
        raise Mistake(f"{options.file} holds {kind}, which has no picture; pass a landscape, eigenpairs or a spectrum")
    useless = {
        "--value": options.value != "loss",
        "--cap": options.cap is not None,
        "--log": options.log,
        "--no-log": options.no_log,
    }
    if given := [name for name, is_given in useless.items() if is_given]:
        kind = type(saved).__name__
        raise Mistake(f"{given[0]}: given, but it is for landscapes, and {options.file} holds {kind}; leave it out")
    path = make_folder(options.out or options.file.parent) / f"{options.file.stem}.{options.format}"
    pictures.figure_of(saved).savefig(path)
    _print_results([path], "Pictures")


# --- the parts of the verbs


def make_axes(problem: Problem, options: LandscapeOptions) -> Directions:
    """Make the directions that the options ask for, selected and normalized.

    Args:
      problem: its parameters, optimizer state and checkpoints make the directions.
      options: of the command line.

    Returns:
      ``options.dims`` directions.

    Raises:
      Mistake: if the problem has no checkpoints or no optimizer state for these axes.
    """
    import jax

    from lla_jax.core.types import Loss
    from lla_jax.directions import combining, derived, draws
    from lla_jax.directions.normalization import normalize

    key, params, dims = jax.random.key(options.seed), problem.params, options.dims
    if options.axes == "random":
        axes = draws.random(key, params, dims)
    elif options.axes == "checkpoints":
        if len(problem.checkpoints) < dims:
            raise Mistake(
                f"--axes: checkpoints given, which needs {dims} entries in Problem.checkpoints for --dims {dims}, "
                f"and there are {len(problem.checkpoints)}: add some, or use fewer --dims"
            )
        names = ["trained", *(f"checkpoint {i + 1}" for i in range(len(problem.checkpoints[:dims])))]
        axes = derived.between(params, *problem.checkpoints[:dims], names=names)
    elif options.axes == "adam":
        if problem.opt_state is None:
            raise Mistake(
                "--axes: adam given, which needs Problem.opt_state, the optax state at the end of training; set it in "
                "the factory (of a torch module: lla_torch.problem(module, criterion, loader, optimizer))"
            )
        axes = derived.adam_moments(problem.opt_state, params)
    elif options.axes == "hessian":
        from lla_jax.cli import curvature

        axes = curvature.make_axes(problem, options)
    else:
        axes = derived.gradient(problem.loss, params, problem.data, batch_size=options.batch_size)
        if dims > 1:
            axes = draws.orthogonal(key, params, axes)
    if axes.num < dims:
        axes = combining.join(axes, draws.random(jax.random.fold_in(key, 1), params, dims - axes.num))
    elif axes.num > dims:
        axes = axes[:dims]
    if options.select:
        axes = combining.select(axes, list(options.select))
    by: Any = normalization(options)
    if by == "none":
        return axes
    return normalize(
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
    """Save the pictures of a landscape, and return their paths; messages name options of the command line.

    Args, Returns: as for ``pictures.draw_landscape``; ``out`` is its ``folder``.
    """
    from lla_jax.output import pictures

    logarithmic, span = pictures.choose_scale(result, value, cap=cap, log=log)
    if log and not logarithmic:
        _print_note(f"--log: given, but a logarithm needs values above 0 ({span}); the pictures are linear")
    elif log is None and logarithmic:
        _print_note(f"the pictures are logarithmic ({span}); --no-log draws them linearly")
    return pictures.draw_landscape(
        result, out, stem, value, cap=cap, log=logarithmic, suffix=suffix, report=_print_note
    )


def _print_note(text: str) -> None:
    print_message(f"note: {text}")


def _build(spec: str, out: Path) -> tuple[Problem, Path]:
    """The user's problem, and the folder, which stays the same one if the factory goes to another working folder."""
    before = Path.cwd()
    problem = load_problem(spec)
    return problem, out if Path.cwd() == before else before / out


def _check_devices(devices: int | None) -> None:
    """Refuse a number of devices that jax does not have."""
    if devices is None:  # jax is not asked: a problem may join a group of processes before jax starts
        return
    import jax

    local = jax.local_devices()
    if not 1 <= devices <= len(local):
        kind = "CPU cores, one device each" if local[0].platform == "cpu" else f"{local[0].platform.upper()} devices"
        raise mistake("devices", devices, f"from 1 to {len(local)}, the number of {kind}; or leave it out")


def _has_state(problem: Problem) -> bool:
    """Whether the model has state, such as BatchNorm statistics."""
    import jax

    return bool(jax.tree.leaves(getattr(problem.loss, "state", None)))


def _print_numbers(result: Landscape) -> None:
    """Print the size of a landscape and the range of each of its values."""
    import numpy as np

    refined = result.describe_refinement()
    print(f"{' x '.join(map(str, result.shape))} points" + (f"; {refined}" if refined else ""))
    for name, values in result.values.items():
        finite = values[np.isfinite(values)]
        print(f"  {name}: {finite.min():.6g} to {finite.max():.6g}" if finite.size else f"  {name}: nowhere finite")


def _print_results(paths: Sequence[Path], heading: str = "Results") -> None:
    print(f"{heading}:", *paths, sep="\n  ")
