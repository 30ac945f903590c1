"""Losses on a grid of points around a network: line, plane and volume by one function.

The parameters of a point are always computed from the centre, ``rule(params, directions, coord)``; nothing is walked
and nothing accumulates. ``losses`` is the pure kernel, ``evaluate`` the host function that plans, runs and records.
"""

from __future__ import annotations

import logging
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np

from lla_jax.core import recipes
from lla_jax.core.data import Stream
from lla_jax.core.types import Batch, Directions, Execution, Landscape, Loss, PyTree, UpdateRule
from lla_jax.execution import progress as _progress
from lla_jax.execution.plans import Plan
from lla_jax.execution.progress import Progress, span
from lla_jax.landscape import grids, jobs, planning
from lla_jax.landscape.grids import grid_points
from lla_jax.landscape.jobs import Job, described, group_size
from lla_jax.landscape.points import Sums, Table, Values, evaluated, means, warn
from lla_jax.landscape.rules import adam, add, check_rule
from lla_jax.landscape.store import writing

Policy = Literal["frozen", "batch", "reestimate"]


@overload
def evaluate(
    loss: Loss | Callable[[PyTree, Batch], Any],
    params: PyTree,
    data: Batch | Stream,
    directions: Directions,
    grid: Sequence[Any],
    *,
    batch_size: int | None = ...,
    rule: str | UpdateRule = ...,
    batch_stats: Policy = ...,
    metrics: Mapping[str, Callable[[Any, Batch], Any]] | None = ...,
    point_metrics: Mapping[str, Callable[[PyTree, Any], Any]] | None = ...,
    extra_data: Mapping[str, Any] | None = ...,
    key: Any = ...,
    execution: Execution = ...,
    progress: Progress | None = ...,
    on_partial: Callable[[Landscape], None] | None = ...,
    resume: Landscape | None = ...,
    store: str | os.PathLike[str] | None = ...,
    shard: tuple[int, int] | None = ...,
) -> Landscape: ...


@overload
def evaluate(
    loss: Loss | Callable[[PyTree, Batch], Any],
    params: PyTree,
    data: Batch | Stream,
    directions: Sequence[Directions],
    grid: Sequence[Any],
    *,
    batch_size: int | None = ...,
    rule: str | UpdateRule = ...,
    batch_stats: Policy = ...,
    metrics: Mapping[str, Callable[[Any, Batch], Any]] | None = ...,
    point_metrics: Mapping[str, Callable[[PyTree, Any], Any]] | None = ...,
    extra_data: Mapping[str, Any] | None = ...,
    key: Any = ...,
    execution: Execution = ...,
    progress: Progress | None = ...,
    on_partial: Callable[[Landscape], None] | None = ...,
    resume: Landscape | None = ...,
    store: str | os.PathLike[str] | None = ...,
    shard: tuple[int, int] | None = ...,
) -> list[Landscape]: ...


def evaluate(
    loss: Loss | Callable[[PyTree, Batch], Any],
    params: PyTree,
    data: Batch | Stream,
    directions: Directions | Sequence[Directions],
    grid: Sequence[Any],
    *,
    batch_size: int | None = None,
    rule: str | UpdateRule = "add",
    batch_stats: Policy = "frozen",
    metrics: Mapping[str, Callable[[Any, Batch], Any]] | None = None,
    point_metrics: Mapping[str, Callable[[PyTree, Any], Any]] | None = None,
    extra_data: Mapping[str, Any] | None = None,
    key: Any = None,
    execution: Execution = Execution(),  # noqa: B008 (frozen)
    progress: Progress | None = None,
    on_partial: Callable[[Landscape], None] | None = None,
    resume: Landscape | None = None,
    store: str | os.PathLike[str] | None = None,
    shard: tuple[int, int] | None = None,
) -> Landscape | list[Landscape]:
    """The landscape: loss and metrics over the whole data set at every point of a grid.

        values[i, j] = L(rule(params, directions, (coords[0][i], coords[1][j])))

    Args:
      loss: a ``Loss``, or a plain ``f(params, batch) -> scalar`` (the mean over batches weighted by size; no standard
        error).
      params: the centre, a pytree of finite floating arrays.
      data: one data set, an array pytree with leading axis N, or ``lla.stream(loader)``, read once per landscape
        (re-estimated statistics read it twice).
      directions: the axes, one per grid dimension; a list of them gives a list of landscapes with one compilation.
      grid: one 1-D array of coordinates per axis, e.g. ``lla.grid()``.
      batch_size: examples per batch. Where batches matter (``batch_stats`` other than "frozen", ``per_example=False``)
        it is part of the result; otherwise an upper bound on the block that is held at a time. Default: the whole data
        set.
      rule: "add", "adam" or any ``(params, directions, coord) -> params``.
      batch_stats: normalization statistics at a point: "frozen" as trained, "batch" of each batch, or "reestimate": the
        mean over the batches of the statistics at that point, then used as frozen ones.
      metrics: ``{name: f(outputs, batch) -> (B,)}`` (or values and weights), averaged like the loss in the same pass.
      point_metrics: ``{name: f(params, key) -> scalar}``; the key is common to all points.
      extra_data: ``{name: data}`` evaluated at the same points; its values are called ``name_loss``, ``name_<metric>``.
      key: for ``point_metrics``; default ``jax.random.key(0)``.
      execution: how it is run; "auto" is timed on the first chunk.
      progress: called as ``progress(done, total)`` in points after every chunk; ``total`` is None while unknown
        (streams without a length).
      on_partial: called with what is finished (other cells NaN, ``recipe["complete"]`` False) if the run is interrupted
        or fails; the exception is then re-raised.
      resume: such a partial landscape of the same recipe, to be continued.
      store: a folder that keeps what is finished, chunk by chunk, and survives any interruption (``kill -9`` too): a
        second call continues, or returns the finished landscape. Several processes may work on one store at once. A
        wider or denser grid reuses the points there are. In ``docs/scaling.md``.
      shard: (i, n) for the i-th of n processes over one store: it computes its share, and the others' points are NaN
        until they are there (``recipe["complete"]`` False); ``lla.runs.merge(store)`` then gives the whole.

    Returns:
      A ``Landscape``, or a list of them for a list of directions. Values in float64, whatever the network's precision.

    Raises:
      ValueError: arguments that do not fit together, naming the argument; a loss that is finite at no point; a store
        that holds a landscape of another recipe, saying what differs.
      OSError: a store that cannot be written or a disk that is full; finished chunks are kept.

    Warns:
      UserWarning: non-finite cells (their share), a loss that is not deterministic, damaged chunks of a store.

    Example:
      >>> axes = lla.directions.normalize(lla.directions.random(jax.random.key(0), params), params)
      >>> plane = lla.evaluate(loss, params, (x, y), axes, lla.grid(extent=1.0, points=41))
      >>> lla.plotting.surface(plane).savefig("plane.png")

    References: Li et al. 2018, arXiv 1712.09913, equation 1; Gabdullin 2024, arXiv 2412.10146.

    Where we differ from the reference implementations: (1) each point is computed from the centre, not walked in place,
    so that no rounding or shift accumulates. (2) The loss is the mean over the whole data set with its standard error,
    not that of one minibatch. (3) The network is in evaluation mode unless asked otherwise, and nothing of the user's
    is changed.
    """
    coords = grids.check_grid(grid)
    name, base, rule = check_rule(rule, coords)
    job = jobs.prepare(
        loss, params, data, coords, batch_size, name, rule, rule is add, base is adam, batch_stats, metrics,
        point_metrics, extra_data, key, execution,
    )  # fmt: skip
    if resume is not None and (store is not None or not isinstance(directions, Directions)):
        raise ValueError("resume: continues one landscape held in memory; leave store out, and pass one Directions")
    if (share := writing.check_shard(shard)) is not None and store is None:
        raise ValueError(f"shard: {shard!r} given without a store, where the shards meet; pass store=folder")
    if isinstance(directions, Directions):
        if store is not None:
            return writing.run(job, directions, pathlib.Path(store), progress, on_partial, share)
        return run(job, directions, progress, on_partial, resume)
    if not isinstance(directions, Sequence) or not directions:
        raise ValueError(
            f"directions: got {type(directions).__name__}; the rule is lla.Directions (from lla.directions.random, "
            ".given, ...) or a non-empty list of them"
        )
    total, planes = len(directions) * job.num, []
    for i, axes in enumerate(directions):  # a loop, so that warnings name the caller's line
        report = _progress.span(progress, i * job.num, job.num, total)
        if store is not None:
            planes.append(writing.run(job, axes, pathlib.Path(store) / f"{i:03d}", report, on_partial, share))
        else:
            planes.append(run(job, axes, report, on_partial, None))
    return planes


log = logging.getLogger("lla_jax")


def run(job: Job, directions: Directions, progress: Any, on_partial: Any, resume: Landscape | None) -> Landscape:
    """One landscape, group after group of points: a chunk for data in memory, all points for a stream (read once)."""
    tree, recipe = described(job, directions)
    table, done = _started(job, recipe, resume)
    plan: Plan | None = None
    sums: Sums = {}
    values: Values = {}
    try:
        plan, recipe, seconds = planning.planned(
            job, tree, recipe, None if resume is None else planning.plan_of(resume.recipe)
        )
        log.info("%s", planning.text(job, plan, None if seconds is None else seconds * (job.num - done)))
        if resume is not None:
            recipes.check_same_values("resume", resume.recipe, recipe)
        while done < job.num:
            last = min(done + group_size(job, plan), job.num)
            coords = grid_points(job.coords, done, last)
            plan = evaluated(job, tree, plan, coords, sums, values, span(progress, done, last - done, job.num))
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


def _started(job: Job, recipe: dict[str, Any], resume: Landscape | None) -> tuple[Table, int]:
    """Flat arrays and the number of points finished: of the landscape to continue, or none."""
    if resume is None:
        return {"values": {}, "stderr": {}}, 0
    if not isinstance(resume, Landscape):
        raise ValueError(f"resume: got {type(resume).__name__}; the rule is a Landscape, e.g. lla.load(path)")
    then, now = ({"grid": [axis.tolist() for axis in coords]} for coords in (resume.coords, job.coords))
    names = (*recipes.LANDSCAPE, "grid")
    recipes.check_same("resume", "the partial landscape", resume.recipe | then, recipe | now, names, recipes.AFRESH)
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
