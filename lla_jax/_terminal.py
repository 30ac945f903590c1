"""Between a command and its user: options, the factory, folders, messages, and the environment that jax starts in.

Importing this imports no jax.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import math
import os
import sys
import sysconfig
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from lla_jax._types import Problem

ADAM_B = (0.1, 2.0)  # as in runs.all_modes
Progress = Callable[[float, float | None], None]
_FORMAT = "{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}, {remaining} left]"


class Mistake(Exception):
    """Something the user can mend; shown as one message instead of a traceback."""


# The verbs' options. The strings below the fields are the help texts.


def _optional(metavar: str, default: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


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
    """The factory, MODULE:FUNCTION or FILE.py:FUNCTION; modules are also looked for in the current folder."""
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
        _optional("LOW HIGH [LOW HIGH ...]", "by --extent; -0.5 1.5 for checkpoints, 0.1 2 for b of --rule adam"),
    ] = ()
    """The ends of each axis one by one, instead of --extent."""
    normalize: Annotated[
        Literal["filter", "layer", "weight", "model", "none"] | None,
        _optional("{filter,layer,weight,model,none}", "filter; none for checkpoints and --rule adam"),
    ] = None
    """How the directions are scaled by the weights they move."""
    order: Annotated[Literal[1, 2] | None, _optional("{1,2}", "2")] = None
    """Order of the norms in --normalize."""
    one_dim: Annotated[Literal["vector", "entry", "zero"] | None, _optional("{vector,entry,zero}", "vector")] = None
    """Biases and normalization layers in --normalize: as one vector, entry by entry, or not moved at all."""
    select: Annotated[tuple[str, ...], _optional("GLOB [GLOB ...]", "all parameters")] = ()
    """Move only parameters whose path matches one of these, such as '**/kernel' (quoted); all others stay frozen."""
    rule: Literal["add", "adam"] = "add"
    """Parameters at a point: theta + a d1 + b d2, or Adam's step theta + (a / sqrt(b)) m / (sqrt(v) + eps)."""
    batch_size: Annotated[int | None, _optional("INT", "all at once")] = None
    """Examples per batch."""
    batch_stats: Literal["frozen", "batch", "reestimate"] = "frozen"
    """BatchNorm statistics: as trained, of each batch, or re-estimated at each point (best between checkpoints)."""
    seed: int = 0
    """Of the random directions."""
    devices: Annotated[int | None, _optional("INT", "all; on a CPU, one per core")] = None
    """Number of devices among which the points are split."""
    cap: Annotated[float | None, _optional("FLOAT", "no cap")] = None
    """In the pictures, draw values above this as this (planes and volumes); the saved values are untouched."""
    log: bool = False
    """Logarithmic scale in the pictures. Without --log, --no-log and --cap: if positive values span over 1000-fold."""
    no_log: bool = False
    """Linear scale in the pictures, however far the values spread."""
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
    """Draw values above this as this (planes and volumes)."""
    log: bool = False
    """Logarithmic scale. Without --log, --no-log and --cap: if positive values span over 1000-fold."""
    no_log: bool = False
    """Linear scale, however far the values spread."""
    format: Literal["png", "pdf", "svg"] = "png"
    """Kind of picture file."""
    debug: bool = False
    """Show the whole traceback of an error."""


Options = (
    Annotated[DemoOptions, tyro.conf.subcommand("demo")]
    | Annotated[LandscapeOptions, tyro.conf.subcommand("landscape")]
    | Annotated[PlotOptions, tyro.conf.subcommand("plot")]
)


# What is checked before anything is computed, and what the options mean


def check_grid(options: LandscapeOptions) -> None:
    dims = options.dims
    if len(options.points) not in (1, dims):
        raise Mistake(f"--points has {len(options.points)} numbers; give one, or one for each of the {dims} axes")
    if min(options.points) < 1:
        raise Mistake(f"--points {min(options.points)} must be at least 1")
    if options.extent is not None and not (math.isfinite(options.extent) and options.extent > 0):
        raise Mistake(f"--extent {options.extent} must be a positive number")
    if options.range and options.extent is not None:
        raise Mistake("--range and --extent both say how far the axes reach: give one of them")
    if options.range and len(options.range) != dims:
        raise Mistake(f"--range has {len(options.range)} pairs; give one for each of the {dims} axes")
    for low, high in options.range:
        if not -math.inf < low < high < math.inf:
            raise Mistake(f"--range {low:g} {high:g} must be two finite numbers, the lower one first")
    if options.rule == "adam" and (options.axes != "adam" or dims != 2):
        raise Mistake("--rule adam is a function of Adam's two moments: it needs --axes adam --dims 2")
    if options.rule == "adam" and ranges(options)[1][0] <= 0:
        raise Mistake(
            "--range: the second axis of --rule adam, b, must be above 0: the rule divides by its square root"
        )
    if options.batch_size is not None and options.batch_size < 1:
        raise Mistake(f"--batch-size {options.batch_size} must be at least 1")
    if options.seed and not _draws(options):
        raise Mistake(f"--seed {options.seed} does nothing: none of these axes is random; leave it out")


def check_normalize(options: LandscapeOptions) -> None:
    by = normalization(options)
    if by != "none" and options.rule == "adam":
        raise Mistake("--rule adam takes the moments as they are: leave --normalize out")
    if by != "none" and options.axes == "checkpoints":
        raise Mistake("--axes checkpoints has the checkpoints at 1; scaled axes would miss them: leave --normalize out")
    if options.order and by in ("none", "weight"):
        raise Mistake(f"--order {options.order} does nothing: --normalize {by} takes no norm; leave it out")
    if options.one_dim and (by == "none" or (options.one_dim == "entry" and by in ("weight", "model"))):
        raise Mistake(f"--one-dim {options.one_dim} does nothing with --normalize {by}; leave it out")


def check_pictures(options: LandscapeOptions | PlotOptions, dims: int) -> None:
    if options.log and options.no_log:
        raise Mistake("--log and --no-log contradict each other: give one of them")
    if options.cap is None:
        return
    if dims == 1:
        raise Mistake(f"--cap {options.cap:g} does nothing: it caps planes and volumes, not lines; leave it out")
    if not math.isfinite(options.cap) or (options.log and options.cap <= 0):
        raise Mistake(f"--cap {options.cap:g} must be a finite number{' above 0, with --log' if options.log else ''}")


def settings(options: LandscapeOptions) -> dict[str, str]:
    """The options that decide the result, as they would be typed; those without effect are left out."""
    by = normalization(options)
    settings = {
        "axes": options.axes,
        "dims": str(options.dims),
        "points": _each(f"{n}" for n in points(options)),
        "range": _each(f"{low:.12g} {high:.12g}" for low, high in ranges(options)),
        "normalize": by,
        "select": " ".join(options.select) or "all",
        "rule": options.rule,
        "batch-size": str(options.batch_size or "all"),
        "batch-stats": options.batch_stats,
    }
    if by != "none":
        settings |= {"order": str(options.order or 2), "one-dim": options.one_dim or "vector"}
    return settings | ({"seed": str(options.seed)} if _draws(options) else {})


def _each(texts: Iterable[str]) -> str:
    """One for all axes if they are alike."""
    texts = list(texts)
    return " ".join(texts[:1] if len(set(texts)) == 1 else texts)


def points(options: LandscapeOptions) -> tuple[int, ...]:
    return options.points * options.dims if len(options.points) == 1 else options.points


def ranges(options: LandscapeOptions) -> list[tuple[float, float]]:
    if options.range:
        return list(options.range)
    if options.axes == "checkpoints" and options.extent is None:
        return [(-0.5, 1.5)] * options.dims
    extent = 1.0 if options.extent is None else options.extent
    ranges = [(-extent, extent)] * options.dims
    if options.rule == "adam":
        ranges[1] = ADAM_B
    return ranges


def normalization(options: LandscapeOptions) -> str:
    return options.normalize or ("none" if options.axes == "checkpoints" or options.rule == "adam" else "filter")


def _draws(options: LandscapeOptions) -> bool:
    """Whether an axis is random."""
    return options.dims > {"random": 0, "gradient": 1, "adam": 2, "checkpoints": 3}[options.axes]


def scale(options: LandscapeOptions | PlotOptions) -> bool | None:
    return True if options.log else False if options.no_log else None


# The environment, folders, progress


def prepare_jax(devices: int | None) -> None:
    """Sets what jax reads when it starts, leaving alone what the user has set."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lla_jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags:
        count = f"--xla_force_host_platform_device_count={max(1, min(devices or _cores(), _cores()))}"
        os.environ["XLA_FLAGS"] = f"{flags} {count}".strip()


def _cores() -> int:
    """Cores this process may use; a container's quota counts, since affinity does not show it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def writable(folder: Path) -> Path:
    """The folder, made if needed, after a file could be written into it: found before computing, not after."""
    probe = folder / f".lla-jax-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Mistake(f"--out {folder} is not a folder that can be written to: {error}") from error
    return folder


@contextlib.contextmanager
def bar(label: str, unit: str = "points", estimate: bool = False) -> Iterator[Progress]:
    """A progress bar as a callback ``progress(done, total)``; with ``estimate`` it announces the time of a long run."""
    from tqdm import tqdm

    # where no one watches, a line now and then is enough
    every = 0.2 if sys.stderr.isatty() else 10.0
    began: tuple[float, float] | None = None
    announced = not estimate
    with tqdm(desc=label, unit=f" {unit}", mininterval=every, bar_format=_FORMAT, dynamic_ncols=True) as shown:

        def progress(done: float, total: float | None) -> None:
            nonlocal began, announced
            shown.total = total
            shown.update(round(done) - shown.n)
            if announced or not total:
                return
            now = time.monotonic()
            if began is None:  # the first chunk also compiled, and says nothing about the others
                began = now, done
                return
            seconds, points = now - began[0], done - began[1]
            if seconds > 1 and points > 0:
                announced = True
                left = (total - done) * seconds / points
                if left > 10:
                    say(f"expected time: about {duration(left)} for the other {total - done:.0f} {unit}")

        yield progress


def duration(seconds: float) -> str:
    """A time in the unit in which it is easily read."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as one line each, without the source line that means nothing to the user of a command."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: say(f"warning: {message}")
        yield


def load_problem(spec: str) -> Problem:
    """Imports ``module:factory``, also from the current folder, or ``file.py:factory``, and calls the factory.

    Args:
      spec: module or file, and function, separated by a colon.

    Returns:
      What the factory returns.

    Raises:
      Mistake: if there is no such factory, if it fails, or if it returns something else than a ``Problem``.
    """
    from lla_jax._types import Problem

    module_name, colon, name = spec.rpartition(":")
    if not (colon and module_name and name):
        raise Mistake(f"--problem {spec!r} must be MODULE:FUNCTION or FILE.py:FUNCTION, such as lla_jax.demo:problem")
    try:
        module = _module(module_name)
    except Mistake as mistake:
        raise Mistake(f"--problem {spec!r}: {mistake}") from mistake
    except (Exception, SystemExit) as error:
        raise Mistake(f"--problem {spec!r}: importing it failed: {where(error)}") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise Mistake(f"--problem {spec!r}: {module_name} has no function {name!r}")
    with contextlib.suppress(ValueError):  # a callable without a signature
        if needed := [
            p.name
            for p in inspect.signature(factory).parameters.values()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]:
            raise Mistake(
                f"--problem {spec!r}: the factory must take no arguments, but {name} needs {', '.join(needed)}; "
                "give them defaults, or write a function that calls it"
            )
    say(f"building the problem: {spec}()")
    try:
        problem = factory()
    except (Exception, SystemExit) as error:
        raise Mistake(f"--problem {spec!r}: the factory failed: {where(error)}") from error
    if not isinstance(problem, Problem):
        raise Mistake(
            f"--problem {spec!r}: the factory returned {type(problem).__name__}; it must return "
            "lla_jax.Problem(loss, params, data)"
        )
    return problem


def _module(name: str) -> ModuleType:
    """A module by its name, or by its file: then, as for a script, the modules beside it are found too."""
    path = Path(name)
    here = str(path.parent.resolve() if path.suffix == ".py" else Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    if path.suffix == ".py":
        if not path.is_file():
            raise Mistake(f"there is no file {name}")
        own = path.stem if path.stem not in sys.modules else f"problem_{path.stem}"
        spec = importlib.util.spec_from_file_location(own, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[own] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[own]
            raise
        return module
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise Mistake(f"no module {name!r} in {here} or among the installed ones") from error


def where(error: BaseException) -> str:
    """An error in the user's code in a line: what it is, and the last line of theirs that it passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    installed = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
    foreign = (*installed, str(Path(__file__).parent), "<frozen")
    frame = next((f for f in reversed(frames) if not f.filename.startswith(foreign)), frames[-1])
    return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"


def by_us(error: BaseException) -> bool:
    """Whether the library raised it, with a message to the user, rather than what it called."""
    return traceback.extract_tb(error.__traceback__)[-1].filename.startswith(str(Path(__file__).parent))


def say(text: str) -> None:
    """A message to the user on the error stream, so that the output has results only."""
    from tqdm import tqdm

    tqdm.write(f"lla-jax: {text}", sys.stderr)  # above a progress bar, if there is one
