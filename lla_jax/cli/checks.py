"""Refuses options that do not fit together, before anything is computed. This module imports no jax."""

from __future__ import annotations

import math

from lla_jax.cli.options import (
    MOST_POINTS,
    CompileOptions,
    ConnectOptions,
    HessianOptions,
    LandscapeOptions,
    MergeOptions,
    Mistake,
    PathOptions,
    PlotOptions,
    mistake,
)
from lla_jax.cli.settings import is_random, normalization, plane_points, points, ranges


def check_grid(options: LandscapeOptions) -> None:
    """Refuse options of the grid that contradict each other or the axes, a batch size below 1, a seed of no effect."""
    dims = options.dims
    if len(options.points) not in (1, dims):
        raise mistake("points", f"{len(options.points)} numbers", f"one, or one for each of the {dims} axes (--dims)")
    _check_least("points", min(options.points), 1, "such as 41")
    _check_most_points("points", points(options))
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
    if options.seed and not is_random(options):
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
    if options.product != "exact" and options.matrix != "hessian":
        raise Mistake(f"--product: {options.product} given, but it is for the Hessian; leave it or --matrix out")
    if options.layers and (options.matrix != "hessian" or options.select):
        raise Mistake("--layers: given, but it takes the blocks of the full Hessian; leave --matrix and --select out")


def check_path(options: PathOptions) -> None:
    """Refuse numbers out of bounds, and options of a curvature or a film that nobody asked for."""
    if len(options.points) not in (1, 2):
        raise mistake("points", f"{len(options.points)} numbers", "one, or one for each of the 2 axes, such as 41")
    _check_least("points", min(options.points), 3, "such as 41")
    _check_most_points("points", plane_points(options))
    if not (math.isfinite(options.margin) and options.margin >= 0):
        raise mistake("margin", options.margin, "a number of at least 0, such as 0.2")
    _check_least("batch-size", options.batch_size, 1, "or leave it out")
    _check_seed(options.seed)
    if len(set(options.curvature)) < len(options.curvature):
        raise mistake("curvature", " ".join(options.curvature), "each name once, such as trace lambda_max")
    _check_least("every", options.every, 1, "or leave it out")
    if options.every is not None and not options.curvature:
        raise Mistake(f"--every: {options.every} given, but it spaces --curvature; name some, such as trace")
    if options.curvature and options.batch_stats == "reestimate":
        raise Mistake(
            "--curvature: given with --batch-stats reestimate, which a Hessian does not know; leave one of them out"
        )
    if options.seed and not options.curvature:
        raise Mistake(f"--seed: {options.seed} given, but only --curvature draws vectors; leave it out")
    _check_least("frames", options.frames, 1, "or leave it out")
    if options.frames is not None and options.film is None:
        raise Mistake(f"--frames: {options.frames} given, but there is no --film; add it, or leave --frames out")
    check_pictures(options, 2)


def check_connect(options: ConnectOptions) -> None:
    """Refuse numbers out of bounds."""
    _check_least("steps", options.steps, 1, "such as 1000")
    least = 1 if options.kind == "band" else 3
    what = "pivots between the ends" if options.kind == "band" else "both ends included, such as 3"
    _check_least("control-points", options.control_points, least, what)
    _check_least("batch-size", options.batch_size, 1, "or leave it out")
    _check_least("save-every", options.save_every, 1, "such as 10")
    _check_least("points", options.points, 3, "both ends included, such as 25")
    if options.plane_points and options.plane_points < 3:
        raise mistake("plane-points", options.plane_points, "at least 3, such as 31; or 0 for no plane")
    _check_most_points("plane-points", (options.plane_points, options.plane_points))
    if options.learning_rate is not None and not (math.isfinite(options.learning_rate) and options.learning_rate > 0):
        raise mistake("learning-rate", options.learning_rate, "a positive number, such as 0.001; or leave it out")
    if not (math.isfinite(options.weight_decay) and options.weight_decay >= 0):
        raise mistake("weight-decay", options.weight_decay, "a number of at least 0, such as 5e-4")
    _check_seed(options.seed)
    if options.cap is not None and options.kind == "band":
        raise Mistake(f"--cap: {options.cap:g} given, but a band is drawn as a line, without a plane; leave it out")
    check_pictures(options, 2)


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


def check_pictures(
    options: LandscapeOptions | MergeOptions | PlotOptions | PathOptions | ConnectOptions, dims: int
) -> None:
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


def _check_most_points(option: str, points: tuple[int, ...]) -> None:
    """Refuse a grid that no file would hold."""
    if (num := math.prod(points)) > MOST_POINTS:
        raise mistake(option, f"{num:,} in all", f"at most {MOST_POINTS:,} in all, such as 101 for each axis")


def check_refine(options: LandscapeOptions) -> None:
    """Refuse --refine with another number than one between 0 and 1, or with a shard."""
    if options.refine is None:
        return
    if not 0 < options.refine < 1:
        raise mistake("refine", options.refine, "above 0 and below 1, a share of the range such as 0.01")
    if options.shard is not None:
        raise Mistake(
            "--refine: given with --shard; the points of a round follow from the values before, so that no shard knows "
            "its own. Leave --shard out: processes with the same --out share the points"
        )
