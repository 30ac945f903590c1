"""Says what the options of the command line stand for, defaults included. This module imports no jax."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from lla_jax.cli.options import (
    ADAM_B,
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


def hessian_settings(options: HessianOptions) -> dict[str, str]:
    """{option: its value as it would be typed} of the options that decide the matrix."""
    return {
        "matrix": options.matrix,
        **({} if options.product == "exact" else {"product": options.product}),
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
    return settings | ({"seed": str(options.seed)} if is_random(options) else {})


def path_settings(options: PathOptions) -> dict[str, str]:
    """{option: its value as it would be typed} of the options of ``lla-jax path`` that decide the plane."""
    return {
        "axes": "path",  # which those of a landscape in the folder are not
        "points": _join_texts([f"{n}" for n in plane_points(options)]),
        "margin": f"{options.margin:.12g}",
        "batch-size": str(options.batch_size or "all"),
        "batch-stats": options.batch_stats,
    }


def plane_points(options: PathOptions) -> tuple[int, ...]:
    """The number of points of both axes of the plane of a path."""
    return options.points * 2 if len(options.points) == 1 else options.points


def connect_settings(options: ConnectOptions) -> dict[str, str]:
    """{option: its value as it would be typed} of the options of ``lla-jax connect`` that decide the plane."""
    return {
        "axes": "connect",
        "kind": options.kind,
        "plane-points": f"{options.plane_points}",
        "batch-size": str(options.batch_size or "all"),
        "batch-stats": options.batch_stats or "reestimate, where there are some",
    }


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


def is_random(options: LandscapeOptions) -> bool:
    """Whether at least one axis is random, so that the seed matters."""
    return options.dims > {"random": 0, "gradient": 1, "adam": 2, "checkpoints": 3, "hessian": -1}[options.axes]


def scale(options: LandscapeOptions | MergeOptions | PlotOptions | PathOptions | ConnectOptions) -> bool | None:
    """The scale by --log and --no-log: True for logarithmic, False for linear, None where the values decide."""
    return True if options.log else False if options.no_log else None


def scale_name(options: LandscapeOptions) -> Literal["auto", "linear", "log"]:
    """The scale in which --refine measures errors: that of the pictures."""
    return {None: "auto", True: "log", False: "linear"}[scale(options)]  # type: ignore[return-value]
