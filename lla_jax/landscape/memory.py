"""A landscape held in memory: computed group after group of points, kept when it is interrupted, and continued."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from lla_jax.core import recipes
from lla_jax.core.types import Landscape
from lla_jax.execution.plans import Plan
from lla_jax.execution.progress import Progress, span
from lla_jax.landscape import planning
from lla_jax.landscape.grids import grid_points
from lla_jax.landscape.jobs import Job, group_size
from lla_jax.landscape.points import Sums, Table, Values, evaluated, means, warn

log = logging.getLogger("lla_jax")


def run(
    job: Job,
    progress: Progress | None,
    on_partial: Callable[[Landscape], None] | None = None,
    resume: Landscape | None = None,
) -> Landscape:
    """The landscape of a job along its axes.

    A group of points is a chunk where data are in memory, and all points for a stream, which is read once.

    Args:
      job: what is computed.
      progress: as for ``evaluate``.
      on_partial: as for ``evaluate``.
      resume: as for ``evaluate``.
    """
    table, done = _started(job, resume)
    recipe = job.recipe
    plan: Plan | None = None
    sums: Sums = {}
    values: Values = {}
    try:
        plan, recipe, seconds = planning.planned(job, None if resume is None else planning.plan_of(resume.recipe))
        log.info("%s", planning.text(job, plan, None if seconds is None else seconds * (job.num - done)))
        if resume is not None:
            recipes.check_same_values("resume", resume.recipe, recipe)
        while done < job.num:
            last = min(done + group_size(job, plan), job.num)
            coords = grid_points(job.coords, done, last)
            plan = evaluated(job, plan, coords, sums, values, span(progress, done, last - done, job.num))
            _put(table, job.num, done, means(job, sums, values))
            sums.clear()
            values.clear()
            done = last
            if progress is not None:
                progress(done, job.num)
    except BaseException:
        unfinished = job.streamed and bool(sums)  # a stream: every cell has a mean over the batches read so far
        if unfinished:
            _put(table, job.num, done, means(job, sums, values))
        if on_partial is not None and (done or unfinished):
            on_partial(_landscape(job, table, recipe, plan, done))
        raise
    result = _landscape(job, table, recipe, plan, done)
    warn(result)
    return result


def _started(job: Job, resume: Landscape | None) -> tuple[Table, int]:
    """Flat arrays and the number of points finished: of the landscape to continue, or none."""
    if resume is None:
        return {"values": {}, "stderr": {}}, 0
    if not isinstance(resume, Landscape):
        raise ValueError(f"resume: got {type(resume).__name__}; the rule is a Landscape, e.g. lla.load(path)")
    then, now = ({"grid": [axis.tolist() for axis in coords]} for coords in (resume.coords, job.coords))
    names = (*recipes.LANDSCAPE, "grid")
    recipes.check_same("resume", "the partial landscape", resume.recipe | then, job.recipe | now, names, recipes.AFRESH)
    kinds = {"values": resume.values, "stderr": resume.stderr}
    table = {
        kind: {name: np.array(found, np.float64).reshape(-1) for name, found in arrays.items()}
        for kind, arrays in kinds.items()
    }
    return table, int(resume.recipe.get("points_done", 0))


def _put(table: Table, num: int, first: int, found: Table) -> None:
    """Into the flat arrays of the whole grid, from the point ``first`` on."""
    for kind, arrays in found.items():
        for name, x in arrays.items():
            flat = table[kind].setdefault(name, np.full(num, np.nan))
            flat[first : first + len(x)] = x


def _landscape(job: Job, table: Table, recipe: dict[str, Any], plan: Plan | None, done: int) -> Landscape:
    shape = tuple(map(len, job.coords))
    complete = done == job.num
    recipe = recipe | {"complete": complete, "points_done": done}
    if plan is not None:
        recipe["plan"] = planning.recipe_of(job, plan)
    arrays = {kind: {name: flat.reshape(shape) for name, flat in found.items()} for kind, found in table.items()}
    return Landscape(job.coords, arrays["values"], arrays["stderr"], recipe)
