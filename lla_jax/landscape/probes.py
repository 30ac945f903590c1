"""Computes the values of a job at a few points over all rows, by which a changed function is noticed.

No entry of a recipe tells the loss, the rule or a metric, which are code. Their values do: those of the first rows at
the first point, ``recipe["probe"]``, which ``planning`` has from its first call; those at the corners of the grid,
``recipe["corners"]``, which a store has from the start and writers compare before they join; and those at points that
are finished. Of a stream the first batch alone is read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lla_jax.core import precision, recipes
from lla_jax.core.arguments import Misuse
from lla_jax.core.data import Stream
from lla_jax.core.recipes import Differs
from lla_jax.core.types import Recipe
from lla_jax.execution.plans import Plan
from lla_jax.landscape.grids import grid_points
from lla_jax.landscape.jobs import Job
from lla_jax.landscape.means import Means
from lla_jax.landscape.points import compute_means

LEAST, MOST = 2, 16  # points, of which the first and the last are two
SHARE = 200  # a point of so many is computed for this purpose
PART = 10  # where a call takes long, a point of so many and LEAST are all that is computed
COMPILE_S = 3.0  # if a call takes longer, a program for few points is worth compiling
LOW = 0.1  # a value below this share of the largest one has the rounding of that share
IN_NOISE = 0.05  # standard errors by which a metric may differ: rounding makes single examples change sides


class Kept(NamedTuple):
    """Values of before, at C points.

    Args:
      coords: (C, k), the coordinates of the points.
      values: {name: (C,)}, the means.
    """

    coords: np.ndarray
    values: Mapping[str, np.ndarray]


def spread(grid: tuple[np.ndarray, ...], num: int, most: int) -> np.ndarray:
    """Flat indices of ``most`` of the first ``num`` points of a grid: ends, corners, middle, then points between."""
    shape = tuple(map(len, grid))
    corners = itertools.product(*((0, n - 1) for n in shape[:3]), *((0,) for _ in shape[3:]))
    inside = [int(np.ravel_multi_index(corner, shape)) for corner in corners]
    between = np.linspace(0, num - 1, most).round().astype(int).tolist()
    order = dict.fromkeys([0, num - 1, *(i for i in inside if i < num), num // 2, *between])
    return np.sort(list(order)[:most])


def choose(grid: tuple[np.ndarray, ...], num: int, room: int, seconds: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Choose a few of the first ``num`` points of a grid: as many as a call computes, or fewer if it takes long.

    A landscape of few points that take long would be computed twice otherwise.

    Args:
      grid: the coordinates of each axis.
      num: the number of points to choose from.
      room: the number of points that a call computes.
      seconds: per point, None if unknown.

    Returns:
      (flat indices (C,), coordinates (C, k)).
    """
    if seconds is not None and seconds * room > COMPILE_S:
        room = min(room, num // PART)
    flat = spread(grid, num, min(num, MOST, max(LEAST, room, num // SHARE)))
    return flat, np.concatenate([grid_points(grid, i, i + 1) for i in flat])


def record(job: Job, plan: Plan, seconds: float | None) -> Recipe:
    """The entry "corners" of a recipe: the values of a job at a few points of its reference grid.

    Args:
      job: the job, with its axes.
      plan: the plan.
      seconds: per point, None if unknown.

    Returns:
      The coordinates of the points, the number of rows of each data set and the values, {name: (C,)}.
    """
    num = math.prod(map(len, job.reference_grid))
    _, coords = choose(job.reference_grid, num, plan.chunk * job.point_shards, seconds)
    values = _compute(job, plan, coords, seconds).values
    return {
        "points": coords.tolist(),
        "rows": _rows(job),
        "values": {name: x.tolist() for name, x in values.items()},
    }


def check(
    argument: str,
    job: Job,
    choice: tuple[Plan, Recipe, float | None],
    then: Recipe,
    kept: Kept | None = None,
    path: Path | None = None,
) -> None:
    """Raise ``Differs`` if a value of before is not that of the job, which shows that a function changed.

    Compared are the values of the first rows and those at the corners in the older recipe, if they are over the same
    rows, and, of data in memory, values that are kept; nothing if the loss is not deterministic.

    Args:
      argument: the argument of the call that brought the older recipe.
      job: the job, with its axes.
      choice: plan, recipe and seconds per point, from ``planning.choose_plan``.
      then: the older recipe.
      kept: finished points of the landscape, or None.
      path: the folder that holds the older recipe, or None.
    """
    plan, now, seconds = choice
    if not now["deterministic"]:
        return
    _check_first_rows(argument, then, now, path)
    corners = _corners_of(argument, then, job, path)
    parts = [] if corners is None else [corners]
    if kept is not None and not job.has_stream:
        parts.append(kept)
    if not parts:
        return
    # a finished point may be a corner too
    coords, places = np.unique(np.concatenate([part.coords for part in parts]), axis=0, return_inverse=True)
    means = _compute(job, plan, coords, seconds)
    least = {name: LOW * np.abs(x[np.isfinite(x)]).max(initial=0) for name, x in means.values.items()}
    start = 0
    for part in parts:
        at = places.reshape(-1)[start : start + len(part.coords)]
        found = Means(*({name: x[at] for name, x in numbers.items()} for numbers in means))
        _compare(argument, part, found, least, job, path)
        start += len(at)


def _check_first_rows(argument: str, then: Recipe, now: Recipe, path: Path | None) -> None:
    """Raise ``Differs`` if the values of the first rows at the first point differ.

    Data that were cut in other ways have other first rows, which are not compared.
    """
    if then.get("probe_rows") != now["probe_rows"]:
        return
    before, rounding = then.get("probe", {}), _rounding(now)
    for name, value in now["probe"].items():
        if not recipes.same_numbers(before.get(name, value), value, rounding):
            raise Differs(
                argument,
                {"functions": f"{before[name]} -> {value}"},
                f"{name or 'the penalty'!r} at the first point is {value}, and was {before[name]} when the landscape "
                "was begun; both need the same loss and functions: restore them, or start anew",
                path,
            )


def _rounding(recipe: Recipe) -> float:
    """The relative difference that rounding makes, by the precision in a recipe."""
    return max(recipes.ROUNDING, 2.0 ** -recipe["precision"].get("bits", precision.SINGLE))


def _corners_of(argument: str, then: Recipe, job: Job, path: Path | None) -> Kept | None:
    """The corners in a recipe, which may come from a damaged file; None if it has none, or over other rows."""
    try:
        entry = then.get("corners")
        if entry is None or entry["rows"] != _rows(job):
            return None
        coords = np.array(entry["points"], np.float64)
        values = {name: np.array(x, np.float64) for name, x in entry["values"].items()}
        if coords.ndim != 2 or coords.shape[1] != len(job.coords) or not 0 < len(coords) <= MOST:
            raise ValueError(f"points of shape {coords.shape}")
        if odd := [x for x in values.values() if x.shape != coords.shape[:1]]:
            raise ValueError(f"values of shape {odd[0].shape} at {len(coords)} points")
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        text = f"the corners in its recipe are damaged ({error}); restore it, or start anew"
        raise Misuse(argument, text, path) from error
    return Kept(coords, values)


def _compute(job: Job, plan: Plan, coords: np.ndarray, seconds: float | None) -> Means:
    """The means at a few points, over all data in memory and the first batch of a stream.

    The program of the plan computes them, which is compiled already, or where it takes long one for few points.
    """
    few = -(-len(coords) // job.point_shards)
    if seconds is not None and few < plan.chunk and seconds * (plan.chunk - few) * job.point_shards > COMPILE_S:
        plan = replace(plan, chunk=few)
    return compute_means(_in_memory(job), plan, coords)[0]


def _in_memory(job: Job) -> Job:
    """The job over the data that are held: all data in memory, and the first batch of the main stream."""
    if not job.has_stream:
        return job
    held = {name: data for name, data in job.task.extra_data.items() if not isinstance(data, Stream)}
    data, rows = (
        (job.first_piece.batch, job.first_piece.rows)
        if isinstance(job.task.data, Stream)
        else (job.task.data, job.counts[""])
    )
    counts: dict[str, int | None] = {"": rows} | {f"{name}_": job.counts[f"{name}_"] for name in held}
    return job._replace(task=job.task._replace(data=data, extra_data=held), counts=counts)


def _rows(job: Job) -> dict[str, int | None]:
    return _in_memory(job).counts


def _compare(argument: str, before: Kept, now: Means, least: Mapping[str, float], job: Job, path: Path | None) -> None:
    """Raise ``Differs`` for the first value that differs by more than rounding.

    Args:
      argument: as for ``check``.
      before: the older values.
      now: the values at the same points.
      least: {name: the size below which a value has the rounding of this size}.
      job: the job.
      path: as for ``check``.
    """
    losses = {prefix + "loss" for prefix in job.task.sets}
    rounding = _rounding(job.recipe)
    for name, new in now.values.items():
        old = before.values.get(name)
        if old is None:
            continue
        noise = 0.0 if name in losses else IN_NOISE * np.nan_to_num(now.stderr.get(name, np.zeros(1)))
        different = ~_agree(old, new, np.maximum(rounding * np.maximum(np.abs(old), least[name]), noise))
        if different.any():
            at = int(different.argmax())
            point = ", ".join(f"{c:.6g}" for c in before.coords[at])
            raise Differs(
                argument,
                {"functions": f"{old[at]} -> {new[at]}"},
                f"{name!r} at the point ({point}) is {new[at]}, and was {old[at]} when the landscape was begun; both "
                "need the same loss, rule and functions: restore them, or start anew",
                path,
            )


def _agree(old: np.ndarray, new: np.ndarray, most: Any) -> np.ndarray:
    """(C,), whether two values at each point differ by ``most`` at most; NaN and infinities must be the same."""
    with np.errstate(invalid="ignore"):
        near = np.abs(old - new) <= most
    return np.where(np.isfinite(old) & np.isfinite(new), near, (old == new) | (np.isnan(old) & np.isnan(new)))
