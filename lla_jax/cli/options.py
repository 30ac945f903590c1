"""The options of the command line: what can be asked for, what is refused before anything is computed, what it means.

Importing this imports no jax. The strings below the fields are the help texts.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

ADAM_B = (0.1, 2.0)  # as in modes.all_modes


class Mistake(Exception):
    """Something the user can mend; shown as one message instead of a traceback."""


def cores() -> int:
    """Cores this process may use; a container's quota counts, since affinity does not show it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


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
    my_module:my_function. Or try --problem lla_jax.demo:problem. However it was interrupted (Ctrl-C, a kill, a full
    disk), the same command goes on; with a wider or denser grid it reuses the points there are.
    """

    problem: str
    """The factory, MODULE:FUNCTION or FILE.py:FUNCTION; modules are also looked for in the current folder."""
    out: Path = Path("run")
    """Folder for the chunks that are finished, the result (landscape.npz) and the pictures."""
    axes: Literal["random", "hessian", "adam", "gradient", "checkpoints"] = "random"
    """Random Gaussian; eigenvectors of the Hessian; Adam's moments m and v; the gradient and an orthogonal one;
    differences to the checkpoints."""
    which: Annotated[
        Literal["magnitude", "largest", "smallest", "ends"] | None,
        _optional("{magnitude,largest,smallest,ends}", "magnitude"),
    ] = None
    """Which eigenvalues --axes hessian takes: of largest magnitude, the largest, the smallest (most negative), or the
    largest and the smallest one (--dims 2)."""
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
        _optional("{filter,layer,weight,model,none}", "filter; none for hessian, checkpoints and --rule adam"),
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
    shard: Annotated[str | None, _optional("I/N", "all")] = None
    """Compute only share I of N, such as 3/16, beside other processes with the same --out; then lla-jax merge."""
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
class HessianOptions:
    """Compute the curvature of your own network: eigenvalues, spectral density, trace, criteria, shares of the layers.

    --problem is as for the verb landscape. After Ctrl-C the same command goes on where it was.
    """

    problem: str
    """The factory, MODULE:FUNCTION or FILE.py:FUNCTION; modules are also looked for in the current folder."""
    out: Path = Path("run")
    """Folder for the results (eigenpairs.npz, spectrum.npz, hessian.json, hessian.txt) and the pictures."""
    matrix: Literal["hessian", "ggn", "fisher", "empirical-fisher"] = "hessian"
    """The Hessian; the generalized Gauss-Newton matrix; the Fisher matrix with targets drawn from the model, or from
    the data."""
    top: int = 5
    """Number of eigenpairs."""
    which: Literal["magnitude", "largest", "smallest"] = "magnitude"
    """Which eigenpairs: of largest magnitude, the largest, or the smallest (most negative)."""
    tol: float = 1e-3
    """Largest residual |Hv - lambda v| of an eigenpair, relative to the largest eigenvalue."""
    steps: int = 100
    """Lanczos steps per probe of the spectral density."""
    probes: int = 4
    """Random vectors of the spectral density; more than one gives its criteria a standard error."""
    trace: Literal["xtrace", "hutch++", "hutchinson"] = "xtrace"
    """How the trace is estimated. The first two hold a vector of the parameters' size for each draw and need far fewer
    of them; hutchinson holds two."""
    rtol: float = 0.02
    """Standard error of the trace, relative to it, at which its estimate stops."""
    layers: bool = False
    """Also trace and extreme eigenvalues of every layer's block: some ten products for each layer."""
    select: Annotated[tuple[str, ...], _optional("GLOB [GLOB ...]", "all parameters")] = ()
    """Only the block of parameters whose path matches one of these, such as '**/kernel' (quoted)."""
    batch_size: Annotated[int | None, _optional("INT", "what suits the machine")] = None
    """Examples per block of a product."""
    batch_stats: Literal["frozen", "batch"] = "frozen"
    """BatchNorm statistics: as trained, or of each batch."""
    seed: int = 0
    """Of the random vectors."""
    devices: Annotated[int | None, _optional("INT", "all accelerators; on a CPU one, with all cores")] = None
    """Number of devices among which the examples are split."""
    overwrite: bool = False
    """Start anew even if the folder has results, finished or interrupted."""
    debug: bool = False
    """Show the whole traceback of an error."""


@dataclass(frozen=True)
class PlotOptions:
    """Draw a saved result again."""

    file: tyro.conf.Positional[Path]
    """A result saved as .npz: a landscape, eigenpairs or a spectrum."""
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


@dataclass(frozen=True)
class MergeOptions:
    """Put together what several processes computed: the result and its pictures, from the chunks in a folder.

    A sweep made with lla_jax.sweep gives a landscape.npz in each of its folders, and table.csv.
    """

    folder: tyro.conf.Positional[Path]
    """The --out of lla-jax landscape, or the store= of lla_jax.evaluate and sweep."""
    partial: bool = False
    """Take what there is, even if chunks are missing: landscape.partial.npz."""
    cap: Annotated[float | None, _optional("FLOAT", "no cap")] = None
    """Draw values above this as this (planes and volumes)."""
    log: bool = False
    """Logarithmic scale. Without --log, --no-log and --cap: if positive values span over 1000-fold."""
    no_log: bool = False
    """Linear scale, however far the values spread."""
    debug: bool = False
    """Show the whole traceback of an error."""


@dataclass(frozen=True)
class StatusOptions:
    """Say how far the runs over a folder are: chunks, writers, damage, time left."""

    folder: tyro.conf.Positional[Path]
    """The --out of lla-jax landscape, or the store= of lla_jax.evaluate and sweep."""
    debug: bool = False
    """Show the whole traceback of an error."""


Options = (
    Annotated[DemoOptions, tyro.conf.subcommand("demo")]
    | Annotated[LandscapeOptions, tyro.conf.subcommand("landscape")]
    | Annotated[HessianOptions, tyro.conf.subcommand("hessian")]
    | Annotated[MergeOptions, tyro.conf.subcommand("merge")]
    | Annotated[StatusOptions, tyro.conf.subcommand("status")]
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


def check_axes(options: LandscapeOptions) -> None:
    if options.which and options.axes != "hessian":
        raise Mistake(f"--which {options.which} chooses eigenvectors: it needs --axes hessian")
    if options.which == "ends" and options.dims != 2:
        raise Mistake("--which ends has two axes, the largest and the smallest eigenvalue's: it needs --dims 2")


def check_hessian(options: HessianOptions) -> None:
    for name, least in (("top", 1), ("steps", 2), ("probes", 1)):
        if getattr(options, name) < least:
            raise Mistake(f"--{name} {getattr(options, name)} must be at least {least}")
    for name in ("tol", "rtol"):
        if not 0 < getattr(options, name) < 1:
            raise Mistake(f"--{name} {getattr(options, name)} must lie between 0 and 1")
    if options.batch_size is not None and options.batch_size < 1:
        raise Mistake(f"--batch-size {options.batch_size} must be at least 1")
    if options.layers and (options.matrix != "hessian" or options.select):
        raise Mistake("--layers has the blocks of the whole Hessian: leave --matrix and --select out")


def hessian_settings(options: HessianOptions) -> dict[str, str]:
    """The options that decide which matrix it is, as they would be typed."""
    return {
        "matrix": options.matrix,
        "select": " ".join(options.select) or "all",
        "batch-stats": options.batch_stats,
        "seed": str(options.seed),
    }


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


def check_pictures(options: LandscapeOptions | MergeOptions | PlotOptions, dims: int) -> None:
    if options.log and options.no_log:
        raise Mistake("--log and --no-log contradict each other: give one of them")
    if options.cap is None:
        return
    if dims == 1:
        raise Mistake(f"--cap {options.cap:g} does nothing: it caps planes and volumes, not lines; leave it out")
    if not math.isfinite(options.cap) or (options.log and options.cap <= 0):
        raise Mistake(f"--cap {options.cap:g} must be a finite number{' above 0, with --log' if options.log else ''}")


def shard(options: LandscapeOptions) -> tuple[int, int] | None:
    """--shard as numbers."""
    if options.shard is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", options.shard)
    i, n = map(int, found.groups()) if found else (0, 0)
    if not 1 <= i <= n:
        raise Mistake(f"--shard {options.shard} must be I/N with I from 1 to N, such as 3/16")
    if options.overwrite:
        raise Mistake("--overwrite would remove what the other shards did: start with an empty --out instead")
    return i, n


def settings(options: LandscapeOptions) -> dict[str, str]:
    """The options that decide the result, as they would be typed; those without effect are left out."""
    by = normalization(options)
    settings = {
        "axes": options.axes,
        **({"which": options.which or "magnitude"} if options.axes == "hessian" else {}),
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
    raw = options.axes in ("checkpoints", "hessian") or options.rule == "adam"
    return options.normalize or ("none" if raw else "filter")


def _draws(options: LandscapeOptions) -> bool:
    """Whether an axis is random."""
    return options.dims > {"random": 0, "gradient": 1, "adam": 2, "checkpoints": 3, "hessian": -1}[options.axes]


def scale(options: LandscapeOptions | MergeOptions | PlotOptions) -> bool | None:
    return True if options.log else False if options.no_log else None
