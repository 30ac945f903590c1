"""A landscape held in memory: computed group after group of points, kept when it is interrupted, and continued."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from lla_jax.core import recipes
from lla_jax.core.types import Landscape, Recipe
from lla_jax.execution.plans import Plan
from lla_jax.execution.progress import Progress, span
from lla_jax.landscape import planning
from lla_jax.landscape.grids import grid_points, same_grid
from lla_jax.landscape.jobs import Job, group_size
from lla_jax.landscape.means import Means
from lla_jax.landscape.points import evaluated, warn

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
    unfinished: list[Means] = []  # of a stream: every cell has a mean over the batches read so far
    try:
        plan, recipe, seconds = planning.planned(job, None if resume is None else planning.plan_of(resume.recipe))
        log.info("%s", planning.text(job, plan, None if seconds is None else seconds * (job.num - done)))
        if resume is not None:
            recipes.check_same_values("resume", resume.recipe, recipe)
        while done < job.num:
            last = min(done + group_size(job, plan), job.num)
            coords = grid_points(job.coords, done, last)
            report = span(progress, done, last - done, job.num)
            found, plan = evaluated(job, plan, coords, report, unfinished.append if job.streamed else None)
            table.put(found, slice(done, last), job.num)
            done = last
            if progress is not None:
                progress(done, job.num)
    except BaseException:
        for found in unfinished:
            table.put(found, slice(done, last), job.num)
        if on_partial is not None and (done or unfinished):
            on_partial(_landscape(job, table, recipe, plan, done))
        raise
    result = _landscape(job, table, recipe, plan, done)
    warn(result)
    return result


def _started(job: Job, resume: Landscape | None) -> tuple[Means, int]:
    """What there is, and the number of points finished: of the landscape to continue, or none."""
    if resume is None:
        return Means({}, {}), 0
    if not isinstance(resume, Landscape):
        raise ValueError(f"resume: got {type(resume).__name__}; the rule is a Landscape, e.g. lla.load(path)")
    then, now = resume.recipe, job.recipe
    if not same_grid(resume.coords, job.coords):
        then, now = (
            recipe | {"grid": str([axis.tolist() for axis in coords])}
            for recipe, coords in ((then, resume.coords), (now, job.coords))
        )
    names = (*recipes.LANDSCAPE, "grid")
    recipes.check_same("resume", "the partial landscape", then, now, names, recipes.AFRESH)
    values, stderr = (
        {name: np.array(z, np.float64).reshape(-1) for name, z in part.items()}
        for part in (resume.values, resume.stderr)
    )
    return Means(values, stderr), int(resume.recipe.get("points_done", 0))


def _landscape(job: Job, table: Means, recipe: Recipe, plan: Plan | None, done: int) -> Landscape:
    recipe = recipe | {"complete": done == job.num, "points_done": done}
    if plan is not None:
        recipe["plan"] = planning.recipe_of(job, plan)
    return table.landscape(job.coords, recipe)
