"""Defines the options of the command line, checks them before anything is computed, and says what they stand for.

This module imports no jax. The strings below the fields are the help texts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

ADAM_B = (0.1, 2.0)  # as in modes.all_modes
MOST_POINTS = 2**27  # as in store/manifest.py, which needs jax


class Mistake(Exception):
    """An error that the user can correct; shown as one message instead of a traceback."""


def mistake(option: str, value: Any, rule: str) -> Mistake:
    """The error for an option that breaks a rule: ``--option: VALUE given; it must be RULE``.

    Args:
      option: its name, without the dashes.
      value: what was given.
      rule: what the option must be, with an example or another remedy.
    """
    return Mistake(f"--{option}: {value} given; it must be {rule}")


def _optional(metavar: str, default: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True)
class DemoOptions:
    """Train a small network on handwritten digits, in a minute, and draw its loss landscape."""

    out: Path = Path("lla-demo")
    """Folder for the pictures and results."""
    seed: int = 0
    """Seed of the network, its training and the random directions."""
    points: int = 41
    """Points per axis of the line and the plane; an odd number puts one on the trained network."""
    debug: bool = False
    """Show the whole traceback of an error."""


@dataclass(frozen=True)
class LandscapeOptions:
    """Compute and draw the loss landscape around your own network.

    Write a function without arguments that returns lla_jax.Problem(loss, params, data), and name it: --problem
    my_module:my_function. For a torch module it returns lla_torch.problem(module, criterion, loader). Or try --problem
    lla_jax.demo:problem. After any interruption (Ctrl-C, a kill, a full disk) the same command continues; with a wider
    or denser grid it reuses the points there are.
    """

    problem: str
    """The factory, MODULE:FUNCTION or FILE.py:FUNCTION, a function that returns lla_jax.Problem or lla_torch.problem;
    modules are also looked for in the current folder."""
    out: Annotated[Path | None, _optional("PATH", "run; run-2, ... if that has another landscape")] = None
    """Folder for the finished chunks, the result (landscape.npz) and the pictures."""
    axes: Literal["random", "hessian", "adam", "gradient", "checkpoints"] = "random"
    """Random Gaussian directions; eigenvectors of the Hessian; Adam's moments m and v; the gradient and a direction
    orthogonal to it; differences to the checkpoints."""
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
    """Seed of the random directions."""
    devices: Annotated[int | None, _optional("INT", "all; on a CPU, one per core")] = None
    """Number of devices that the points are split over."""
    precision: Literal["highest", "high", "default"] = "highest"
    """Precision of matrix products: float32; high and default take fewer bits on a TPU or GPU, which is faster. On a
    CPU all three are float32."""
    shard: Annotated[str | None, _optional("I/N", "all")] = None
    """Compute only shard I of N, such as 3/16, beside other processes with the same --out; then run lla-jax merge."""
    cap: Annotated[float | None, _optional("FLOAT", "no cap")] = None
    """In the pictures, draw larger values as this one (planes and volumes); the saved values stay as they are."""
    log: bool = False
    """Logarithmic scale in the pictures; by default it is chosen if positive values span a factor over 1000."""
    no_log: bool = False
    """Linear scale in the pictures, however far the values span."""
    overwrite: bool = False
    """Start anew even if the folder has a result, finished or interrupted."""
    debug: bool = False
    """Show the whole traceback of an error."""


@dataclass(frozen=True)
class HessianOptions:
    """Compute the curvature of your own network: eigenvalues, spectral density, trace, criteria, and layer by layer.

    --problem is as for the verb landscape. After Ctrl-C the same command continues.
    """

    problem: str
    """The factory, MODULE:FUNCTION or FILE.py:FUNCTION, a function that returns lla_jax.Problem or lla_torch.problem;
    modules are also looked for in the current folder."""
    out: Path = Path("run")
    """Folder for the results (eigenpairs.npz, spectrum.npz, hessian.json, hessian.txt) and the pictures."""
    matrix: Literal["hessian", "ggn", "fisher", "empirical-fisher"] = "hessian"
    """The Hessian; the generalized Gauss-Newton matrix; the Fisher matrix with targets drawn from the model, or from
    the data."""
    top: int = 5
    """Number of eigenpairs; all of them, if there are fewer than by default."""
    which: Literal["magnitude", "largest", "smallest"] = "magnitude"
    """Which eigenpairs: of largest magnitude, the largest, or the smallest (most negative)."""
    tol: float = 1e-3
    """Largest residual |Hv - lambda v| of an eigenpair, relative to the largest eigenvalue."""
    steps: int = 100
    """Lanczos steps per probe of the spectral density."""
    probes: int = 4
    """Random vectors of the spectral density; more than one gives its criteria a standard error."""
    trace: Literal["xtrace", "hutch++", "hutchinson"] = "xtrace"
    """Method that estimates the trace. xtrace and hutch++ hold a vector of the parameters' size for each draw and need
    far fewer draws; hutchinson holds two vectors."""
    rtol: float = 0.02
    """Standard error of the trace, relative to the trace, at which the estimate stops."""
    layers: bool = False
    """Also compute trace and extreme eigenvalues of every layer's block: some ten products for each layer."""
    select: Annotated[tuple[str, ...], _optional("GLOB [GLOB ...]", "all parameters")] = ()
    """Take only the block of parameters whose path matches one of these, such as '**/kernel' (quoted)."""
    batch_size: Annotated[int | None, _optional("INT", "as suits the machine")] = None
    """Examples per block of a product."""
    batch_stats: Literal["frozen", "batch"] = "frozen"
    """BatchNorm statistics: as trained, or of each batch."""
    seed: int = 0
    """Seed of the random vectors."""
    devices: Annotated[int | None, _optional("INT", "all accelerators; on a CPU one, with all cores")] = None
    """Number of devices that the examples are split over."""
    precision: Literal["highest", "high", "default"] = "highest"
    """Precision of matrix products: float32; high and default take fewer bits on a TPU or GPU, which is faster. On a
    CPU all three are float32."""
    overwrite: bool = False
    """Start anew even if the folder has results, finished or interrupted."""
    debug: bool = False
    """Show the whole traceback of an error."""


@dataclass(frozen=True)
class CompileOptions:
    """Say what your network costs on a slice of TPUs, without one: memory per chip, operations, estimated time.

    A landscape step, a Hessian product and the steps of Lanczos are compiled by the compiler for TPUs, libtpu (pip
    install "jax[tpu]"); each takes a second to some minutes. Nothing is computed. --problem is as for the verb
    landscape.
    """

    problem: str
    """The factory, MODULE:FUNCTION or FILE.py:FUNCTION, a function that returns lla_jax.Problem or lla_torch.problem;
    modules are also looked for in the current folder."""
    for_: Annotated[str, tyro.conf.arg(name="for", metavar="SLICE")]
    """The slice: tpu-v5e-N, tpu-v5p-N or tpu-v6e-N for N chips, such as tpu-v5e-8; another name brings the list."""
    dims: Literal[1, 2, 3] = 2
    """Number of axes of the landscape."""
    points: tuple[int, ...] = (41,)
    """Points per axis: one number, or one for each axis."""
    products: int = 1
    """Hessian products of the job."""
    steps: int = 100
    """Lanczos steps of the job."""
    batch_size: Annotated[int | None, _optional("INT", "all at once")] = None
    """Examples per batch."""
    batch_stats: Literal["frozen", "batch"] = "frozen"
    """BatchNorm statistics: as trained, or of each batch."""
    data_shards: Annotated[int | None, _optional("INT", "as the memory needs")] = None
    """Chips of a host over which the examples of the landscape are split; the points are split over the others."""
    precision: Literal["highest", "high", "default"] = "highest"
    """Precision of matrix products: float32 (six products of bfloat16 on a TPU), three, or one."""
    out: Annotated[Path | None, _optional("FILE.json", "print only")] = None
    """Also save all numbers as JSON into this file."""
    debug: bool = False
    """Show the whole traceback of an error."""


@dataclass(frozen=True)
class PlotOptions:
    """Draw a saved result again."""

    file: tyro.conf.Positional[Path]
    """A result saved as .npz: a landscape, eigenpairs or a spectrum; or a folder, to draw all in it."""
    out: Annotated[Path | None, _optional("PATH", "that of the file")] = None
    """Folder for the pictures."""
    value: str = "loss"
    """Name of the values to draw, such as accuracy or test_loss."""
    cap: Annotated[float | None, _optional("FLOAT", "no cap")] = None
    """Draw larger values as this one (planes and volumes)."""
    log: bool = False
    """Logarithmic scale; by default it is chosen if positive values span a factor over 1000 and there is no --cap."""
    no_log: bool = False
    """Linear scale, however far the values span."""
    format: Literal["png", "pdf", "svg"] = "png"
    """Kind of picture file."""
    debug: bool = False
    """Show the whole traceback of an error."""


@dataclass(frozen=True)
class MergeOptions:
    """Merge what several processes computed: the result and its pictures, from the chunks in a folder.

    For a sweep made with lla_jax.sweep, a landscape.npz is written into each of its folders, and table.csv.
    """

    folder: tyro.conf.Positional[Path]
    """The --out of lla-jax landscape, or the store= of lla_jax.evaluate and sweep."""
    partial: bool = False
    """Merge the chunks there are, even if some are missing, into landscape.partial.npz."""
    out: Annotated[Path | None, _optional("PATH", "the folder of the store")] = None
    """Write the result and its pictures here, as for a store that cannot be written to."""
    cap: Annotated[float | None, _optional("FLOAT", "no cap")] = None
    """Draw larger values as this one (planes and volumes)."""
    log: bool = False
    """Logarithmic scale; by default it is chosen if positive values span a factor over 1000 and there is no --cap."""
    no_log: bool = False
    """Linear scale, however far the values span."""
    debug: bool = False
    """Show the whole traceback of an error."""


@dataclass(frozen=True)
class StatusOptions:
    """Say how far the computation in a folder is: chunks, writers, damage, time left."""

    folder: tyro.conf.Positional[Path]
    """The --out of lla-jax landscape, or the store= of lla_jax.evaluate and sweep."""
    debug: bool = False
    """Show the whole traceback of an error."""


Options = (
    Annotated[DemoOptions, tyro.conf.subcommand("demo")]
    | Annotated[LandscapeOptions, tyro.conf.subcommand("landscape")]
    | Annotated[HessianOptions, tyro.conf.subcommand("hessian")]
    | Annotated[CompileOptions, tyro.conf.subcommand("compile")]
    | Annotated[MergeOptions, tyro.conf.subcommand("merge")]
    | Annotated[StatusOptions, tyro.conf.subcommand("status")]
    | Annotated[PlotOptions, tyro.conf.subcommand("plot")]
)


# --- checks, made before anything is computed


def check_grid(options: LandscapeOptions) -> None:
    """Refuse options of the grid that contradict each other or the axes, a batch size below 1, a seed of no effect."""
    dims = options.dims
    if len(options.points) not in (1, dims):
        raise mistake("points", f"{len(options.points)} numbers", f"one, or one for each of the {dims} axes (--dims)")
    _check_least("points", min(options.points), 1, "such as 41")
    if (num := math.prod(points(options))) > MOST_POINTS:
        raise mistake("points", f"{num:,} in all", f"at most {MOST_POINTS:,} in all, such as 101 for each axis")
    if options.extent is not None and not (math.isfinite(options.extent) and options.extent > 0):
        raise mistake("extent", options.extent, "a positive number, such as 1")
    if options.range and options.extent is not None:
        raise Mistake("--range: given with --extent; both say how far the axes reach, so give one of them")
    if options.range and len(options.range) != dims:
        rule = f"one pair for each of the {dims} axes (--dims), such as -1 1"
        raise mistake("range", f"{len(options.range)} pairs", rule)
    for low, high in options.range:
        if not -math.inf < low < high < math.inf:
            raise mistake("range", f"{low:g} {high:g}", "two finite numbers, the lower one first, such as -1 1")
    if options.rule == "adam" and (options.axes != "adam" or dims != 2):
        raise Mistake("--rule: adam given, which is a function of Adam's two moments; it needs --axes adam --dims 2")
    if options.rule == "adam" and (b := ranges(options)[1])[0] <= 0:
        rule = "above 0, because --rule adam divides by its square root"
        raise mistake("range", f"{b[0]:g} {b[1]:g} for the second axis, b,", rule)
    _check_least("batch-size", options.batch_size, 1, "or leave it out")
    _check_seed(options.seed)
    if options.seed and not _is_random(options):
        raise Mistake(f"--seed: {options.seed} given, but none of these axes is random; leave it out")


def check_axes(options: LandscapeOptions) -> None:
    """Refuse --which for other axes than Hessian ones, and --which ends for other dimensions than 2."""
    if options.which and options.axes != "hessian":
        raise Mistake(f"--which: {options.which} given, which chooses eigenvectors; it needs --axes hessian")
    if options.which == "ends" and options.dims != 2:
        raise Mistake("--which: ends given, which are the eigenvectors at both ends, two axes; it needs --dims 2")


def check_hessian(options: HessianOptions) -> None:
    """Refuse numbers out of bounds, and --layers of another matrix than the complete Hessian."""
    _check_seed(options.seed)
    _check_least("top", options.top, 1, "such as 5")
    _check_least("steps", options.steps, 2, "such as 100")
    _check_least("probes", options.probes, 1, "such as 4")
    for name, example in (("tol", 0.001), ("rtol", 0.02)):
        if not 0 < getattr(options, name) < 1:
            raise mistake(name, getattr(options, name), f"between 0 and 1, such as {example}")
    _check_least("batch-size", options.batch_size, 1, "or leave it out")
    if options.layers and (options.matrix != "hessian" or options.select):
        raise Mistake("--layers: given, but it takes the blocks of the full Hessian; leave --matrix and --select out")


def check_compile(options: CompileOptions) -> None:
    """Refuse numbers out of bounds, and a file of --out that is no JSON."""
    if len(options.points) not in (1, options.dims):
        rule = f"one, or one for each of the {options.dims} axes (--dims)"
        raise mistake("points", f"{len(options.points)} numbers", rule)
    _check_least("points", min(options.points), 1, "such as 41")
    for name in ("products", "steps", "batch-size", "data-shards"):
        _check_least(name, getattr(options, name.replace("-", "_")), 1, "or leave it out")
    if options.out is not None and options.out.suffix != ".json":
        raise mistake("out", options.out, "a file that ends in .json, such as costs.json")


def check_normalize(options: LandscapeOptions) -> None:
    """Refuse a normalization of axes that must keep their lengths, and options of it that have no effect."""
    by = normalization(options)
    if by != "none" and options.rule == "adam":
        raise Mistake(f"--normalize: {by} given, but --rule adam takes the moments as they are; leave it out")
    if by != "none" and options.axes == "checkpoints":
        raise Mistake(
            f"--normalize: {by} given, but --axes checkpoints has the checkpoints at 1, which scaled axes would miss; "
            "leave --normalize out"
        )
    if options.order and by in ("none", "weight"):
        raise Mistake(f"--order: {options.order} given, but --normalize {by} takes no norm; leave it out")
    if options.one_dim and (by == "none" or (options.one_dim == "entry" and by in ("weight", "model"))):
        raise Mistake(f"--one-dim: {options.one_dim} given, which has no effect with --normalize {by}; leave it out")


def check_pictures(options: LandscapeOptions | MergeOptions | PlotOptions, dims: int) -> None:
    """Refuse --log with --no-log, and a --cap that cannot be drawn in a picture of ``dims`` axes."""
    if options.log and options.no_log:
        raise Mistake("--log: given with --no-log, which contradicts it; give one of them")
    if options.cap is None:
        return
    if dims == 1:
        raise Mistake(f"--cap: {options.cap:g} given, but it caps planes and volumes, not lines; leave it out")
    if not math.isfinite(options.cap) or (options.log and options.cap <= 0):
        rule = f"a finite number{' above 0, with --log' if options.log else ''}"
        raise mistake("cap", f"{options.cap:g}", f"{rule}, such as 5")


def _check_seed(seed: int) -> None:
    if not -(2**63) <= seed < 2**63:
        raise mistake("seed", seed, "an integer of at most 63 bits, such as 0")


def _check_least(option: str, value: int | None, least: int, remedy: str) -> None:
    """Refuse an integer below the least allowed; one that is not given may pass."""
    if value is not None and value < least:
        raise mistake(option, value, f"at least {least}, {remedy}")


# --- the meaning of the options


def hessian_settings(options: HessianOptions) -> dict[str, str]:
    """{option: its value as it would be typed} of the options that decide the matrix."""
    return {
        "matrix": options.matrix,
        "select": " ".join(options.select) or "all",
        "batch-stats": options.batch_stats,
        "seed": str(options.seed),
    }


def shard(options: LandscapeOptions) -> tuple[int, int] | None:
    """The numbers (I, N) of --shard I/N, or None; refuses other texts, and --overwrite with a shard."""
    if options.shard is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", options.shard)
    i, n = map(int, match.groups()) if match else (0, 0)
    if not 1 <= i <= n:
        raise mistake("shard", options.shard, "I/N with I from 1 to N, such as 3/16")
    if options.overwrite:
        raise Mistake(
            "--overwrite: given with --shard; it would remove what the other shards computed, so start with an empty "
            "--out instead"
        )
    return i, n


def settings(options: LandscapeOptions) -> dict[str, str]:
    """{option: its value as it would be typed} of the options that decide the result; those without effect left out."""
    by = normalization(options)
    settings = {
        "axes": options.axes,
        **({"which": options.which or "magnitude"} if options.axes == "hessian" else {}),
        "dims": str(options.dims),
        "points": _join_texts([f"{n}" for n in points(options)]),
        "range": _join_texts([f"{low:.12g} {high:.12g}" for low, high in ranges(options)]),
        "normalize": by,
        "select": " ".join(options.select) or "all",
        "rule": options.rule,
        "batch-size": str(options.batch_size or "all"),
        "batch-stats": options.batch_stats,
    }
    if by != "none":
        settings |= {"order": str(options.order or 2), "one-dim": options.one_dim or "vector"}
    return settings | ({"seed": str(options.seed)} if _is_random(options) else {})


def _join_texts(texts: Sequence[str]) -> str:
    """The texts of all axes, joined by spaces; a single one if all are equal."""
    return " ".join(texts[:1] if len(set(texts)) == 1 else texts)


def points(options: LandscapeOptions | CompileOptions) -> tuple[int, ...]:
    """The number of points of each axis, (dims,)."""
    return options.points * options.dims if len(options.points) == 1 else options.points


def ranges(options: LandscapeOptions) -> list[tuple[float, float]]:
    """The two ends of each axis, by --range, --extent or the default of these axes."""
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
    """The normalization that --normalize asks for, or the default of these axes."""
    raw = options.axes in ("checkpoints", "hessian") or options.rule == "adam"
    return options.normalize or ("none" if raw else "filter")


def _is_random(options: LandscapeOptions) -> bool:
    """Whether at least one axis is random, so that the seed matters."""
    return options.dims > {"random": 0, "gradient": 1, "adam": 2, "checkpoints": 3, "hessian": -1}[options.axes]


def scale(options: LandscapeOptions | MergeOptions | PlotOptions) -> bool | None:
    """The scale by --log and --no-log: True for logarithmic, False for linear, None where the values decide."""
    return True if options.log else False if options.no_log else None
