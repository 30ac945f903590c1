"""Computes refined landscapes: evaluates the points that ``refinement.rounds`` asks for, and takes its other values."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lla_jax.core import precision
from lla_jax.core.arguments import Misuse, is_integer, misuse, warn_caller
from lla_jax.core.interrupts import check_interrupt
from lla_jax.core.results import Landscape, describe_error
from lla_jax.core.types import Recipe
from lla_jax.execution.progress import Progress, expect_total
from lla_jax.landscape import memory, planning, probes, refinement
from lla_jax.landscape.grids import check_distinct, points_at
from lla_jax.landscape.jobs import Job, group_size
from lla_jax.landscape.means import Means
from lla_jax.landscape.points import check_values, compute_means
from lla_jax.landscape.probes import Kept
from lla_jax.landscape.refinement import Known, Refine, Refined

log = logging.getLogger("lla_jax")

PER_ROUND = 32  # a call computes at most one of so many points of the grid, since a round has few
LEAST_CALL = 16  # points that a call computes, if the plan is free
MOST_CALL = 512  # and at most: a smooth plane needs no more points, however large its grid is
REACH = 2  # points on each side of the centre, along every axis, that are evaluated for its slopes and curvatures
ON_CENTRE = 1e-9  # of an axis' range: a coordinate this close to 0 is the centre
SHARE = 4  # one of so many points is expected to be evaluated, until more is known


def check_refine(refine: Any, shard: Any = None) -> Refine | None:
    """Return ``refine``, or None if it is None.

    Raises:
      ValueError: it is not what ``lla.refine`` makes, or is given with a shard.
    """
    if refine is None:
        return None
    if not isinstance(refine, Refine):
        is_number = isinstance(refine, float | int) and not isinstance(refine, bool) and 0 < refine < 1
        raise misuse("refine", refine, f"lla.refine(rtol={refine if is_number else 0.01}), or None for all points")
    if shard is not None:
        raise Misuse(
            "shard",
            f"{tuple(shard)} given with refine; the points of a round follow from the values of all points before, so "
            "that no shard knows its own: leave shard out, and start the same call in several processes, which share "
            "the points of each round in one store",
        )
    return refine


def check_possible(refine: Refine, job: Job) -> None:
    """Raise a ValueError if the error asked for is below the rounding of the network, or a coordinate given twice."""
    check_distinct(job.coords, "refine")
    bits = job.recipe["precision"].get("bits", precision.SINGLE)
    if refine.rtol < 2.0**-bits:
        lowest = job.recipe["precision"].get("lowest", "float32")
        raise Misuse(
            "refine",
            f"rtol={refine.rtol:g} given, and {lowest} ({bits} significant bits), in which the network computes, "
            f"rounds the loss by {2.0**-bits:.1g} of itself, which no interpolation gets below; take a larger rtol, "
            "such as 0.01, or leave refine out for all points",
        )


def warn_of_noise(recipe: Recipe) -> None:
    """Warn if the loss was found not to be deterministic: its noise is then part of the error."""
    if not recipe.get("deterministic", True):
        warn_caller(
            "refine: the loss is not deterministic, so that no interpolation gets below its noise, which the stated "
            "error holds, and up to all points may be evaluated; turn off dropout, or pass its key to the Loss"
        )


def most_points(job: Job) -> int:
    """The most points that a call of a new plan computes: few, because a call that is not full costs as much."""
    return min(job.num, MOST_CALL, max(LEAST_CALL, job.num // PER_ROUND))


def centre_points(coords: tuple[np.ndarray, ...]) -> np.ndarray:
    """Flat indices of the centre and its nearest ``REACH`` neighbours along each axis; none if no point is there.

    They are evaluated, because the slopes and curvatures at the centre (``plane_report``) need values of the network.
    """
    places = [int(np.abs(axis).argmin()) for axis in coords]
    if any(abs(axis[i]) > ON_CENTRE * np.ptp(axis) for axis, i in zip(coords, places, strict=True)):
        return np.zeros(0, np.int64)
    cells = {tuple(places)}
    for k, axis in enumerate(coords):
        order = np.argsort(axis, kind="stable")
        at = int(np.flatnonzero(order == places[k])[0])
        for i in order[max(0, at - REACH) : at + REACH + 1]:
            cells.add((*places[:k], int(i), *places[k + 1 :]))
    return np.sort(np.ravel_multi_index(tuple(np.array(sorted(cells)).T), tuple(map(len, coords)))).astype(np.int64)


def go_through(
    refine: Refine | None,
    coords: tuple[np.ndarray, ...],
    group: int,
    table: Means,
    evaluated: np.ndarray,
    compute: Callable[[np.ndarray], None],
) -> Refined | None:
    """Go through all rounds of a refinement, from the first one, and return its result.

    The rounds follow from the values alone: of an interrupted refinement those that were computed are found in the
    table, and cost nothing.

    Args:
      refine: the refinement; None for all points in one round, and no result.
      coords: the grid.
      group: number of points that are computed together.
      table: the means at all points of the grid, which ``compute`` fills.
      evaluated: (n,) bool, the points at which the table has values; ``compute`` sets it.
      compute: computes the means at the points with these flat indices, unless they are known.

    Raises:
      ValueError: the loss is finite at no point of the first round.
    """
    if refine is None:
        compute(np.arange(len(evaluated)))
        return None
    shape = tuple(map(len, coords))
    rounds = refinement.rounds(refine, coords, group)
    asked, is_first = np.union1d(next(rounds), centre_points(coords)), True
    while True:
        compute(asked)
        if is_first and not np.isfinite(table.values["loss"][evaluated]).any():
            raise ValueError(
                f"loss: not finite at any of the {np.count_nonzero(evaluated):,} points of the first round; check the "
                "loss at the trained parameters, the directions and the data for NaN, and the range of the grid"
            )
        is_first = False
        values, stderr = ({name: x.reshape(shape) for name, x in numbers.items()} for numbers in table)
        try:
            asked = np.unique(rounds.send(Known(values, stderr, evaluated.reshape(shape))))
        except StopIteration as stop:
            return stop.value


def finish(
    coords: tuple[np.ndarray, ...],
    table: Means,
    evaluated: np.ndarray,
    recipe: Recipe,
    refine: Refine | None,
    refined: Refined | None,
    group: int,
) -> Landscape:
    """Make the landscape of a refinement that is finished (or was not asked for): evaluated values stay to the bit.

    Args:
      coords: the grid.
      table: the means at the evaluated points.
      evaluated: (n,) bool.
      recipe: of the landscape.
      refine: the refinement.
      refined: its result; None if it is unfinished or was not asked for.
      group: number of points that are computed together.
    """
    done, num = int(np.count_nonzero(evaluated)), len(evaluated)
    is_all = done == num
    entries: Recipe = {"complete": is_all or refined is not None, "points_done": done}
    if refine is not None:
        about = {"error": 0.0, "met": True} if is_all else {} if refined is None else refined.about
        asked = {"rtol": refine.rtol, "asked_scale": refine.scale, "group": group, "points": done, "of": num}
        entries["refinement"] = dict(about if refined is None else refined.about) | asked | (about if is_all else {})
    if refined is not None and not is_all:
        values, stderr = (
            {name: np.where(evaluated, x, np.ravel(new.get(name, np.nan))) for name, x in numbers.items()}
            for numbers, new in zip(table, (refined.values, refined.stderr), strict=True)
        )
        table = Means(values, stderr)
    return table.landscape(coords, recipe | entries, None if is_all else evaluated)


def warn_of_error(plane: Landscape) -> None:
    """Warn if the error of the interpolated values is larger than was asked for."""
    about = plane.recipe.get("refinement", {})
    if plane.evaluated is not None and not about.get("met", True):
        reason = f" ({about['reason']})" if about.get("reason") else ""
        warn_caller(
            f"refine: the interpolated values are {describe_error(about)}, and rtol={about['rtol']:g} was asked "
            f"for{reason}; the evaluated points are exact, and without refine all are"
        )


def group_of(about: Any, most: int) -> int | None:
    """The number of points computed together in the entry "refinement" of a recipe, which may come from a damaged file.

    Args:
      about: the entry.
      most: the number of points of the grid.

    Returns:
      None where there is no sound number.
    """
    group: Any = about.get("group") if isinstance(about, Mapping) else None
    return int(group) if is_integer(group) and 0 < group <= most else None


def compute(
    job: Job,
    refine: Refine | None,
    progress: Progress | None,
    on_partial: Callable[[Landscape], None] | None = None,
    resume: Landscape | None = None,
) -> Landscape:
    """Compute the landscape of a job in memory, round by round; the points of ``resume`` are not computed again.

    Args:
      job: the job, with its axes.
      refine: the refinement; None to evaluate all points that ``resume`` lacks.
      progress: as for ``evaluate``.
      on_partial: as for ``evaluate``; it gets the points of finished calls.
      resume: as for ``evaluate``.
    """
    table, evaluated = _resume(job, resume)
    given = None if resume is None else planning.plan_from_recipe(resume.recipe, job.num)
    plan, recipe, seconds = planning.choose_plan(job, given, most_points(job))
    log.info("%s", planning.describe(job, plan, None))
    if job.has_stream and (on_partial is not None or resume is not None):
        recipe = recipe | {"corners": probes.record(job, plan, seconds)}
    if resume is not None:
        kept = _some_evaluated(job, table, evaluated, plan.chunk * job.point_shards, seconds)
        probes.check("resume", job, (plan, recipe, seconds), resume.recipe, kept)
    if refine is not None:
        warn_of_noise(recipe)
    then = None if resume is None else group_of(resume.recipe.get("refinement"), job.num)
    group = then or min(job.num, plan.chunk * job.point_shards)
    report = Report(progress, job.num if refine is None else None, job.num)

    def fill(asked: np.ndarray) -> None:
        nonlocal plan
        left = asked[~evaluated[asked]]
        report.expect(int(np.count_nonzero(evaluated)), len(left))
        while len(left):
            check_interrupt()
            now, left = np.split(left, [group_size(job, plan)])
            done = int(np.count_nonzero(evaluated))
            means, plan = compute_means(job, plan, points_at(job.coords, now), report.part(done, len(now)))
            table.put(means, now, job.num)
            evaluated[now] = True
            report(done + len(now))

    def result(refined: Refined | None) -> Landscape:
        made = recipe | {"plan": planning.plan_recipe(job, plan)}
        return finish(job.coords, table, evaluated, made, refine, refined, group)

    try:
        refined = go_through(refine, job.coords, group, table, evaluated, fill)
    except BaseException:
        if on_partial is not None and evaluated.any():
            on_partial(result(None))
        raise
    plane = result(refined)
    check_values(plane, job.reads)
    warn_of_error(plane)
    return plane


def _resume(job: Job, resume: Landscape | None) -> tuple[Means, np.ndarray]:
    """(means, mask of the points that they hold) of the landscape to continue; interpolated values are left out."""
    table, done = memory.check_resume(job, resume)
    if resume is None or resume.evaluated is None:
        return table, np.arange(job.num) < done
    evaluated = np.array(resume.evaluated, bool).ravel()
    for numbers in table:
        for x in numbers.values():
            x[~evaluated] = np.nan
    return table, evaluated


def _some_evaluated(job: Job, table: Means, evaluated: np.ndarray, room: int, seconds: float | None) -> Kept | None:
    """The values at a few of the evaluated points; None if there are none, or data are streamed."""
    flat = np.flatnonzero(evaluated)
    if not len(flat) or job.has_stream:
        return None
    chosen = flat[probes.choose((np.arange(len(flat)),), len(flat), room, seconds)[0]]
    return Kept(points_at(job.coords, chosen), {name: x[chosen] for name, x in table.values.items()})


class Report:
    """Reports the points that a refinement has evaluated, whose number is not known before its end.

    Args:
      progress: the callback, or None.
      total: number of points in all, where it is known.
      num: number of points of the grid.
    """

    def __init__(self, progress: Progress | None, total: int | None, num: int) -> None:
        self._progress, self._total, self._num = progress, total, num

    def __call__(self, done: float) -> None:
        """Report that ``done`` points are evaluated."""
        if self._progress is not None:
            self._progress(done, self._total)

    def expect(self, done: int, asked: int) -> None:
        """Tell a bar about how many points there will be, when ``asked`` points follow after ``done``."""
        if self._progress is not None and self._total is None:
            expect_total(self._progress, min(self._num, max(self._num // SHARE, done + asked)))

    def part(self, done: int, length: int) -> Progress | None:
        """The callback of ``compute_means`` for ``length`` points after ``done``; None if nobody is told."""
        if self._progress is None:
            return None
        return lambda part, of: self(done + (0.0 if of is None else length * part / of))
