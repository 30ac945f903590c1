"""Computes a refined landscape in a chunk store, as one of any number of writers, and reads one.

The points of each round follow from the values before, so that every writer, at any time, knows them from the files
alone. A round is cut into scattered chunks, of which each writer computes the missing ones, in an order of its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lla_jax.core.interrupts import check_interrupt
from lla_jax.core.recipes import versions
from lla_jax.core.results import Landscape
from lla_jax.execution.plans import Plan
from lla_jax.execution.progress import Progress
from lla_jax.landscape import planning, refined
from lla_jax.landscape.grids import points_at
from lla_jax.landscape.jobs import Job, group_size
from lla_jax.landscape.points import check_values, compute_means
from lla_jax.landscape.refinement import Refine
from lla_jax.landscape.store import folders, layout, requests, scattered, writing
from lla_jax.landscape.store.chunks import Contents, DamagedChunk
from lla_jax.landscape.store.layout import Store
from lla_jax.landscape.store.new_points import Coords
from lla_jax.landscape.store.requests import Request

log = logging.getLogger("lla_jax")

PARTS = 4  # scattered chunks of a round at least, if it has as many calls, so that several writers share it


def compute(
    job: Job,
    folder: Path,
    refine: Refine,
    progress: Progress | None,
    on_partial: Callable[[Landscape], None] | None,
    plan: Plan | None = None,
) -> Landscape:
    """Make or continue the chunk store of a refined landscape, and return the landscape.

    Args:
      job: the job, with its axes.
      folder: the folder of the store.
      refine: the refinement.
      progress: as for ``evaluate``.
      on_partial: as for ``evaluate``.
      plan: the plan of a new store; None to choose the fastest one.

    Raises:
      ValueError, OSError: as for ``writing.compute``.
    """
    job, store, plan, _ = writing.open_store(job, folder, plan, call=refined.most_points(job))
    number = requests.grid_number(store, job.coords)
    request = requests.agree(store, number, refine, min(job.num, plan.chunk * job.point_shards))
    recipe = store.manifest["recipe"]
    refined.warn_of_noise(recipe)
    log.info("%s", planning.describe(job, plan, None))
    seen: set[Path] = set()
    contents = scattered.read_all(store, job.coords, seen)
    writing.remove_damaged(folder, _damaged(contents))
    table, evaluated = contents.means, _mask(store, job.coords, contents)
    if contents.done:
        log.info("store: %s has %d of %d points", folder, contents.done, job.num)
    report = refined.Report(progress, None, job.num)
    report(contents.done)

    def fill(asked: np.ndarray) -> None:
        nonlocal plan
        while (lacking := int(np.count_nonzero(~evaluated[asked]))) > 0:
            report.expect(int(np.count_nonzero(evaluated)), lacking)
            pieces = _cut(job, plan, asked, request.group, layout.size(store))
            folders.check_writable(folder, writing.bytes_needed(store, lacking, len(pieces)))
            for i in np.random.default_rng().permutation(len(pieces)):
                check_interrupt()
                flat = pieces[i][~evaluated[pieces[i]]]
                if len(flat) and not scattered.path_of(store, number, flat).exists():
                    done = int(np.count_nonzero(evaluated))
                    plan = _compute_piece(job, plan, store, number, flat, request, report.part(done, len(flat)))
                damaged = scattered.read_new(store, job.coords, table, evaluated, seen)
                writing.remove_damaged(folder, damaged)
                report(int(np.count_nonzero(evaluated)))

    try:
        found = refined.go_through(refine, job.coords, request.group, table, evaluated, fill)
    except BaseException:
        if on_partial is not None and evaluated.any():
            on_partial(refined.finish(job.coords, table, evaluated, recipe, refine, None, request.group))
        raise
    plane = refined.finish(job.coords, table, evaluated, recipe, refine, found, request.group)
    requests.finish(store, number, request._replace(points=int(np.count_nonzero(evaluated))))
    folders.remove_leftovers(folder)
    check_values(plane, job.reads)
    refined.warn_of_error(plane)
    return plane


def _damaged(contents: Contents) -> dict[Path, DamagedChunk]:
    return {error.path: error for error in contents.damaged.values()} | dict(contents.spoiled)


def _mask(store: Store, coords: Coords, contents: Contents) -> np.ndarray:
    """(n,) bool, the points of the grid that the contents hold."""
    if contents.evaluated is not None:
        return contents.evaluated
    absent = {*contents.missing, *contents.damaged}
    mask = np.zeros(layout.count(coords), bool)
    for part in layout.parts(store, coords):
        mask[part.at] = part.chunk not in absent
    return mask


def _cut(job: Job, plan: Plan, asked: np.ndarray, group: int, size: int) -> list[np.ndarray]:
    """Cut the points of a round, in order, into the scattered chunks in which all writers compute them.

    Args:
      job: the job; a stream is read once for each chunk, so they are as large as possible.
      plan: the plan.
      asked: flat indices of the points.
      group: number of points that are computed together.
      size: number of points of the other chunks of the store.
    """
    if job.has_stream:
        length = group_size(job, plan)
    else:
        calls = -(-len(asked) // (PARTS * group))
        length = max(group, min(calls * group, size))
    return [asked[first : first + length] for first in range(0, len(asked), length)]


def _compute_piece(
    job: Job, plan: Plan, store: Store, number: int, flat: np.ndarray, request: Request, report: Progress | None
) -> Plan:
    """Compute the means at some points and write them into a scattered chunk; return the plan at the end."""
    start = time.perf_counter()
    path = scattered.path_of(store, number, flat)
    log.debug("store: %s begun", path)
    means, plan = compute_means(job, plan, points_at(job.coords, flat), report)
    about = {
        "plan": planning.plan_recipe(job, plan),
        "seconds": time.perf_counter() - start,
        "versions": versions(),
        "refine": request._replace(points=0).record(),
    }
    scattered.write(store, number, flat, means, about)
    log.debug("store: %s written", path)
    return plan


# --- reading what was computed


class _Lacking(Exception):
    """A refinement needs points that were not computed yet."""


def read(store: Store, coords: Coords, contents: Contents) -> Landscape | None:
    """The landscape of the latest refinement of a grid from its points; None if there is none, or it is not finished.

    Args:
      store: the store.
      coords: the grid.
      contents: what ``scattered.read_all`` read of it.
    """
    if contents.evaluated is None and not contents.done:
        return None
    if (request := requests.read(store, requests.grid_number(store, coords))) is None:
        return None
    evaluated = _mask(store, coords, contents)

    def look(asked: np.ndarray) -> None:
        if not evaluated[asked].all():
            raise _Lacking

    table, recipe = contents.means, store.manifest["recipe"]
    try:
        found = refined.go_through(request.refine, coords, request.group, table, evaluated, look)
    except _Lacking:
        return None
    return refined.finish(coords, table, evaluated, recipe, request.refine, found, request.group)
