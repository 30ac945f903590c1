"""Computes a landscape in memory, group by group of its points; hands on an unfinished landscape, and continues one."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from lla_jax.core import recipes
from lla_jax.core.arguments import misuse
from lla_jax.core.interrupts import check_interrupt
from lla_jax.core.results import Landscape
from lla_jax.core.types import Recipe
from lla_jax.execution.plans import Plan
from lla_jax.execution.progress import Progress, report_part
from lla_jax.landscape import planning, probes
from lla_jax.landscape.grids import grid_points, is_same_grid
from lla_jax.landscape.jobs import Job, group_size
from lla_jax.landscape.means import Means
from lla_jax.landscape.points import check_values, compute_means
from lla_jax.landscape.probes import Kept

log = logging.getLogger("lla_jax")


def compute(
    job: Job,
    progress: Progress | None,
    on_partial: Callable[[Landscape], None] | None = None,
    resume: Landscape | None = None,
) -> Landscape:
    """Compute the landscape of a job, group by group of its points (see ``jobs.group_size``).

    Args:
      job: the job, with its axes.
      progress: as for ``evaluate``.
      on_partial: as for ``evaluate``.
      resume: as for ``evaluate``.
    """
    table, done = check_resume(job, resume)
    # an interrupt or an error up to here leaves ``resume`` as it is: there is nothing new to hand on
    plan, recipe, seconds = planning.choose_plan(
        job, None if resume is None else planning.plan_from_recipe(resume.recipe, job.num)
    )
    log.info("%s", planning.describe(job, plan, None if seconds is None else seconds * (job.num - done)))
    if job.has_stream and (on_partial is not None or resume is not None):  # it is not read again to compare points
        recipe = recipe | {"corners": probes.record(job, plan, seconds)}
    if resume is not None:
        kept = _some_finished(job, table, done, plan.chunk * job.point_shards, seconds)
        probes.check("resume", job, (plan, recipe, seconds), resume.recipe, kept)
    unfinished: list[Means] = []  # of a stream: means over the batches read so far, at every point
    try:
        while done < job.num:
            check_interrupt()
            last = min(done + group_size(job, plan), job.num)
            coords = grid_points(job.coords, done, last)
            report = report_part(progress, done, last - done, job.num)
            means, plan = compute_means(job, plan, coords, report, unfinished.append if job.has_stream else None)
            table.put(means, slice(done, last), job.num)
            done = last
            if progress is not None:
                progress(done, job.num)
    except BaseException:
        for means in unfinished:
            table.put(means, slice(done, last), job.num)
        if on_partial is not None and (done or unfinished):
            on_partial(_landscape(job, table, recipe, plan, done))
        raise
    result = _landscape(job, table, recipe, plan, done)
    check_values(result, job.reads)
    return result


def check_resume(job: Job, resume: Landscape | None) -> tuple[Means, int]:
    """(means, number of points that are done) of the landscape to continue; (no means, 0) if there is none.

    Raises:
      ValueError: ``resume`` is no landscape, or has another recipe or grid than the job.
    """
    if resume is None:
        return Means({}, {}), 0
    if not isinstance(resume, Landscape):
        raise misuse("resume", resume, "a Landscape, such as lla.load(path) gives")
    then, now = resume.recipe, job.recipe
    if not is_same_grid(resume.coords, job.coords):
        then, now = (
            recipe | {"grid": str([axis.tolist() for axis in coords])}
            for recipe, coords in ((then, resume.coords), (now, job.coords))
        )
    names = (*recipes.LANDSCAPE, "grid")
    recipes.check_same("resume", "the partial landscape", then, now, names, recipes.START_ANEW)
    values, stderr = (
        {name: np.array(z, np.float64).reshape(-1) for name, z in part.items()}
        for part in (resume.values, resume.stderr)
    )
    return Means(values, stderr), int(resume.recipe.get("points_done", 0))


def _some_finished(job: Job, table: Means, done: int, room: int, seconds: float | None) -> Kept | None:
    """The values at a few of the finished points, as ``probes.choose`` chooses them; None if none are finished."""
    done = min(done, job.num)
    if done < 1 or job.has_stream:
        return None
    flat, coords = probes.choose(job.coords, done, room, seconds)
    return Kept(coords, {name: x[flat] for name, x in table.values.items()})


def _landscape(job: Job, table: Means, recipe: Recipe, plan: Plan, done: int) -> Landscape:
    entries = {"complete": done == job.num, "points_done": done, "plan": planning.plan_recipe(job, plan)}
    return table.landscape(job.coords, recipe | entries)
