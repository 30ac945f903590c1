"""Runs the command line ``lla-jax VERB``; each verb is a function of its options, a dataclass in ``cli.options``.

jax and matplotlib are imported inside the functions: after the environment that jax reads at its start is set, and so
that ``lla-jax --help`` is immediate.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from lla_jax._version import __version__
from lla_jax.cli import commands, errors
from lla_jax.cli.checks import (
    check_axes,
    check_compile,
    check_connect,
    check_grid,
    check_hessian,
    check_normalize,
    check_path,
    check_pictures,
    check_refine,
)
from lla_jax.cli.drawing import draw, plot, print_numbers
from lla_jax.cli.environment import check_devices, make_execution, make_folder, prepare_jax, stay_on_cpu
from lla_jax.cli.options import (
    CompileOptions,
    ConnectOptions,
    DemoOptions,
    HessianOptions,
    LandscapeOptions,
    MergeOptions,
    Mistake,
    Options,
    PathOptions,
    PlotOptions,
    StatusOptions,
    mistake,
)
from lla_jax.cli.problems import build, load_problem, split_name
from lla_jax.cli.settings import normalization, points, ranges, scale, scale_name, settings, shard
from lla_jax.cli.terminal import (
    bar,
    drop_output,
    is_read,
    plain_warnings,
    print_message,
    print_note,
    print_results,
    show_log,
    tolerate_encodings,
)
from lla_jax.core.interrupts import INTERRUPTED, prompt_interrupts, was_interrupted
from lla_jax.core.text import duration

if TYPE_CHECKING:
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
        PathOptions: path,
        ConnectOptions: connect,
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
    print_results([path for path in paths if path.suffix != ".npz"])
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
    check_devices(options.devices)
    stores.begin(out, chosen, options.overwrite)
    problem, out = build(options.problem, out)
    options = replace(options, out=out)
    axes = make_axes(problem, options)
    if options.axes == "checkpoints" and options.batch_stats == "frozen" and _has_state(problem):
        print_note(
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
    print_numbers(result)
    print_results([path])
    print_results(draw(result, out, cap=options.cap, log=scale(options)), "Pictures")


def hessian(options: HessianOptions) -> None:
    """Compute the curvature of a user's problem into ``options.out``, or continue an interrupted computation."""
    check_hessian(options)
    with _begin(options) as (problem, out):
        from lla_jax.cli import curvature

        results = curvature.compute_parts(problem, replace(options, out=out))
    from lla_jax.output import kept, pictures

    files = curvature.write(results, out)
    if not kept.is_writer():  # one of several processes prints
        return
    print((out / "hessian.txt").read_text(encoding="utf-8"))
    print_results([*files, out / "eigenpairs.npz", out / "spectrum.npz"])
    print_results(pictures.draw_curvature(results, out), "Pictures")


def path(options: PathOptions) -> None:
    """Show where a user's training went, on the plane of its principal components, into ``options.out``."""
    check_path(options)
    with _begin(options) as (problem, out):
        from lla_jax.cli import paths

        paths.show(problem, replace(options, out=out))


def connect(options: ConnectOptions) -> None:
    """Train a curve between two solutions of a user's problem, and measure its barrier, into ``options.out``."""
    check_connect(options)
    with _begin(options) as (problem, out):
        from lla_jax.cli import connections

        connections.show(problem, replace(options, out=out))


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
        print_results([options.out])


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
        print_results(paths[-1:])
        return
    check_pictures(options, result.dims)
    print_numbers(result)
    print_results(paths)
    stem = paths[0].name.removesuffix(".npz")
    print_results(draw(result, out, stem, cap=options.cap, log=scale(options)), "Pictures")


def status(options: StatusOptions) -> None:
    """Print how far a store is."""
    from lla_jax.cli import stores

    print(stores.status(options.folder))


# --- the parts of the verbs


@contextlib.contextmanager
def _begin(options: HessianOptions | PathOptions | ConnectOptions) -> Iterator[tuple[Problem, Path]]:
    """A context that gives the user's problem and the folder of the results, and shows the library's log."""
    split_name(options.problem)
    make_folder(options.out)
    check_devices(options.devices)
    with show_log():
        yield build(options.problem, options.out)


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


def _has_state(problem: Problem) -> bool:
    """Whether the model has state, such as BatchNorm statistics."""
    import jax

    return bool(jax.tree.leaves(getattr(problem.loss, "state", None)))
