"""Computes many landscapes in one call, for checkpoints x axes x seeds, and reads the landscapes of a store."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lla_jax.core import files as _files
from lla_jax.core.arguments import MissingEntry, Misuse, check_flag, is_integer, misuse, show_value
from lla_jax.core.called import ask
from lla_jax.core.interrupts import GRACE_S, deferred_interrupts, prompt_interrupts
from lla_jax.core.results import Landscape
from lla_jax.core.signatures import explained
from lla_jax.core.text import table
from lla_jax.core.types import Directions, Execution, Loss, PyTree, UpdateRule
from lla_jax.directions import draws, normalization
from lla_jax.execution import progress as _progress
from lla_jax.execution.plans import Plan
from lla_jax.execution.progress import AskedProgress, Progress, takes_progress
from lla_jax.landscape import grids, jobs, memory, planning, points, refined, rules
from lla_jax.landscape.jobs import Job
from lla_jax.landscape.refinement import Refine
from lla_jax.landscape.store import chunks as _chunks
from lla_jax.landscape.store import folders, reading, refining, scattered, writing
from lla_jax.landscape.store.announcing import Member, announce, existing_stores, folder_of
from lla_jax.landscape.store.chunks import Contents
from lla_jax.landscape.tasks import Policy, Task

Axes = Callable[[Any, PyTree], Directions]


@explained
@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """The landscapes of a sweep, as a mapping that prints one line per landscape.

    Args:
      landscapes: {(index of the checkpoint, name of the axes, seed): Landscape}, in the order of the sweep. The seed is
        None for axes that are given and not drawn.
    """

    landscapes: dict[Member, Landscape]

    def __post_init__(self) -> None:
        given = self.landscapes.items() if isinstance(self.landscapes, Mapping) else [(None, None)]
        if not all(isinstance(k, tuple) and len(k) == 3 and isinstance(v, Landscape) for k, v in given):
            rule = "a dict of landscapes, such as {(0, 'filter', 0): plane}, by (checkpoint, name of the axes, seed)"
            raise misuse("landscapes", self.landscapes, rule)

    def __getitem__(self, member: Member) -> Landscape:
        try:
            return self.landscapes[member]
        except (KeyError, TypeError) as error:
            checkpoints, names, seeds = (list(dict.fromkeys(column)) for column in zip(*self.landscapes))
            raise MissingEntry(
                "table",
                f"[{member!r}] given; its landscapes are table[checkpoint, name of the axes, seed], with checkpoint "
                f"in {checkpoints}, name in {names} and seed in {seeds}",
            ) from error

    def __len__(self) -> int:
        return len(self.landscapes)

    def __iter__(self) -> Iterator[Member]:
        return iter(self.landscapes)

    def rows(self, value: str = "loss") -> list[dict[str, Any]]:
        """Summarize one value of each landscape.

        Args:
          value: the name of the value: "loss", or that of a metric.

        Returns:
          A dict for each landscape: ``checkpoint``, ``axes``, ``seed``; ``centre``, the value at the point whose
          coordinates are nearest to 0; ``least``, ``mean`` and ``largest`` of the finite values; ``finite``, the
          fraction of cells that are finite. Of a refined landscape the mean alone counts interpolated values; where the
          point nearest to 0 was not evaluated, ``centre`` is NaN.
        """
        rows: list[dict[str, Any]] = []
        for (checkpoint, name, seed), plane in self.landscapes.items():
            z, known = plane[value], plane.only_evaluated(value)
            finite, sure = z[np.isfinite(z)], known[np.isfinite(known)]
            mean = finite.mean() if finite.size else np.nan
            least, largest = (sure.min(), sure.max()) if sure.size else (np.nan, np.nan)
            row = {"checkpoint": checkpoint, "axes": name, "seed": seed}
            row["centre"] = float(known[tuple(int(abs(c).argmin()) for c in plane.coords)])
            row |= {"least": float(least), "mean": float(mean), "largest": float(largest)}
            rows.append(row | {"finite": finite.size / z.size})
        return rows

    def to_csv(self, path: str | os.PathLike[str], value: str = "loss") -> Path:
        """Write ``rows(value)`` as comma-separated values, with a head, into a file; return its path."""
        rows, target = self.rows(value), _files.check_path("path", path, "table.csv")
        try:
            with open(target, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        except OSError as error:
            remedy = "pass a file in a folder that exists"
            raise _files.explain("path", target, "cannot be written", error, remedy) from error
        return target

    def __repr__(self) -> str:
        measures = ("centre", "least", "mean", "largest")
        lines = [("checkpoint", "axes", "seed", *measures)]
        for row in self.rows():
            seed = "" if row["seed"] is None else str(row["seed"])
            lines.append((str(row["checkpoint"]), row["axes"], seed, *(f"{row[name]:.5g}" for name in measures)))
        return table(lines, left=(0, 1))


@takes_progress("points")
@deferred_interrupts()
@explained
def sweep(
    loss: Loss | Callable[[PyTree, Any], Any],
    checkpoints: Sequence[PyTree],
    data: Any,
    *,
    axes: Axes | Directions | Mapping[str, Axes | Directions] | None = None,
    grid: Sequence[Any] | None = None,
    seeds: Iterable[int] = (0,),
    states: Sequence[PyTree] | None = None,
    batch_size: int | None = None,
    rule: str | UpdateRule = "add",
    batch_stats: Policy = "frozen",
    metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
    point_metrics: Mapping[str, Callable[[PyTree, Any], Any]] | None = None,
    extra_data: Mapping[str, Any] | None = None,
    key: Any = None,
    execution: Execution = Execution(),  # noqa: B008 (frozen)
    progress: AskedProgress = None,
    store: str | os.PathLike[str] | None = None,
    shard: tuple[int, int] | None = None,
    refine: Refine | None = None,
) -> Table:
    """Compute the landscapes of many checkpoints along many axes, with one copy of the data and one compilation.

    Args:
      loss: a ``Loss`` or a plain function, the same for all landscapes.
      checkpoints: parameter trees of one structure, each the centre of its landscapes.
      data: one data set, a whole or a stream (read once per landscape), as for ``evaluate``.
      axes: ``f(key, params) -> Directions``, called for every checkpoint and seed; or ``Directions``, the same for
        every checkpoint; or a dict of these by name. Default: Gaussian directions, filter-normalized, as many as the
        grid has axes.
      grid: one 1-D array per axis; default ``lla.grid(points=21)``.
      seeds: integers; axes that are functions are drawn once for each, with ``jax.random.key(seed)``.
      states: the ``Loss.state`` of every checkpoint (BatchNorm statistics); default: that of ``loss`` for all.
      batch_size: as for ``evaluate``.
      rule: as for ``evaluate``.
      batch_stats: as for ``evaluate``.
      metrics: as for ``evaluate``.
      point_metrics: as for ``evaluate``.
      extra_data: as for ``evaluate``.
      key: as for ``evaluate``, for ``point_metrics``.
      execution: as for ``evaluate``.
      progress: True for a bar, or a function ``progress(done, total)``, called in points over all landscapes.
      store: a folder with a chunk store for every landscape; a second call continues, or returns the finished sweep.
        More seeds, axes or checkpoints, and a wider or denser grid, are added to the landscapes in the store.
        Checkpoints are recognized by their place in the list.
      shard: (i, n) for the i-th of n processes that write to one store, with i from 1 to n.
      refine: as for ``evaluate``: each landscape is evaluated at as many points as it needs.

    Returns:
      A ``Table``. With a shard, points of other processes are NaN until they are written.

    Raises:
      ValueError: as for ``evaluate``; no checkpoints or seeds; checkpoints of different structure; two names of axes
        that give the same folder.
      OSError: a store that cannot be written.

    Example:
      >>> table = lla.sweep(loss, [early, late], data, grid=lla.grid(points=21), seeds=range(16), store="runs/exp2")
      >>> table  # one line per landscape
    """
    if not isinstance(checkpoints, Sequence) or isinstance(checkpoints, str) or not checkpoints:
        raise misuse("checkpoints", checkpoints, "a list of one or more parameter trees, such as [params]")
    if states is not None and not isinstance(states, Sequence):
        raise misuse("states", states, "a list with the state of each checkpoint, such as [loss.state]")
    if states is not None and len(states) != len(checkpoints):
        raise Misuse(
            "states", f"{len(states)} given for {len(checkpoints)} checkpoints; pass one for each, or leave them out"
        )
    coords = grids.check_grid(grids.grid(points=21) if grid is None else grid)
    checked_rule = rules.check_rule(rule, coords)
    axes_by_name = _check_axes(axes, loss, len(coords))
    members = _list_members(len(checkpoints), axes_by_name, _check_seeds(seeds))
    shard = writing.check_shard(shard, store)
    refine = refined.check_refine(refine, shard)
    task = Task(
        loss,
        data,
        checked_rule,
        batch_size=batch_size,
        batch_stats=batch_stats,
        metrics=metrics,
        point_metrics=point_metrics,
        extra_data=extra_data,
        key=key,
        execution=execution,
    )
    job = jobs.prepare(task, checkpoints[0], coords, "checkpoints[0]")
    if refine is not None:
        refined.check_resolved(refine, job)
    folder = None if store is None else folders.store_folder(store)
    announcement = None if folder is None else announce(folder, members, job.num)
    each = _jobs(job, members, axes_by_name, checkpoints, states, folder)
    try:
        known = () if folder is None else existing_stores(folder, members)
        plan = next((planning.plan_from_recipe(kept.manifest["recipe"], job.num) for kept in known), None)
        planes = compute_each(each, len(members), progress, shard=shard, plan=plan, refine=refine)
        return Table(dict(zip(members, planes, strict=True)))
    except ValueError:
        if announcement is not None:  # so that nobody waits for landscapes that are refused
            announcement.unlink(missing_ok=True)
        raise


def compute_each(
    each: Iterator[tuple[Job, Path | None]],
    num: int,
    progress: Progress | None,
    on_partial: Callable[[Landscape], None] | None = None,
    shard: writing.Shard = None,
    plan: Plan | None = None,
    refine: Refine | None = None,
) -> Iterator[Landscape]:
    """Yield the landscapes of several jobs, each of which is computed when it is asked for.

    Args:
      each: (job with its axes, folder of its store or None), for each landscape; the grids have one shape.
      num: number of jobs.
      progress: called in points over all jobs, or None.
      on_partial: as for ``evaluate``.
      shard: (i, n) to compute only the chunks of process i of n, counted over all stores.
      plan: the plan of new stores; by default that of the first landscape.
      refine: as for ``evaluate``.
    """
    done = 0
    for i in range(num):
        job, folder = next(each)
        if refine is None:
            report = _progress.report_part(progress, i * job.num, job.num, num * job.num)
        else:
            report = _progress.report_open_part(progress, done, num - i)
        plane = compute_one(job, folder, report, on_partial, shard, plan=plan, place=(i, num), refine=refine)
        plan = plan or planning.plan_from_recipe(plane.recipe, job.num)
        done += plane.recipe["points_done"]
        del job  # and with it its axes, before others are drawn
        yield plane


def compute_one(
    job: Job,
    folder: Path | None,
    progress: Progress | None,
    on_partial: Callable[[Landscape], None] | None = None,
    shard: writing.Shard = None,
    *,
    plan: Plan | None = None,
    place: tuple[int, int] = (0, 1),
    resume: Landscape | None = None,
    refine: Refine | None = None,
) -> Landscape:
    """Compute the landscape of a job, in memory or in a store, at all points or refined.

    Args:
      job: the job, with its axes.
      folder: the folder of its store; None to compute in memory.
      progress: as for ``evaluate``.
      on_partial: as for ``evaluate``.
      shard: as for ``evaluate``.
      plan: the plan of a new store; None to choose the fastest one.
      place: as for ``store.writing.compute``.
      resume: as for ``evaluate``.
      refine: as for ``evaluate``.
    """
    if folder is not None:
        if refine is None:
            return writing.compute(job, folder, progress, on_partial, shard, plan, place)
        return refining.compute(job, folder, refine, progress, on_partial, plan)
    if refine is None and getattr(resume, "evaluated", None) is None:
        return memory.compute(job, progress, on_partial, resume)
    return refined.compute(job, refine, progress, on_partial, resume)


def _jobs(
    job: Job,
    members: Sequence[Member],
    axes_by_name: Mapping[str, Any],
    checkpoints: Sequence[PyTree],
    states: Sequence[PyTree] | None,
    folder: Path | None,
) -> Iterator[tuple[Job, Path | None]]:
    """Yield (job, folder) for each member: around its checkpoint and along its axes; None without a store."""
    current = -1
    for member in members:
        checkpoint, name, seed = member
        params = checkpoints[checkpoint]
        if checkpoint != current:
            current = checkpoint
            state = job.loss.state if states is None else states[checkpoint]
            job = jobs.recentre(job, params, state, f"checkpoints[{checkpoint}]")
        place = folder and folder / folder_of(member)
        # no variable holds the axes here, so that they are freed before the next ones are drawn
        yield jobs.set_axes(job, _make_axes(axes_by_name[name], name, seed, params)), place


def _make_axes(source: Any, name: str, seed: int | None, params: PyTree) -> Directions:
    """The axes for one checkpoint and seed: the user's ``Directions``, or those that the user's function gives."""
    axes = source
    if not isinstance(source, Directions):
        given = {"key": jax.random.key(seed or 0), "params": params}
        with prompt_interrupts(GRACE_S):
            axes = ask("axes", source, f"{name}(key, params) -> lla.Directions", given)
    if not isinstance(axes, Directions):
        raise Misuse(
            "axes", f"{name!r} gave a {type(axes).__name__}; it must give lla.Directions, such as lla.directions.random"
        )
    return axes


def _check_seeds(seeds: Any) -> list[int]:
    """The seeds as a list of ints; a ValueError if they are something else."""
    try:
        given = list(np.asarray(seeds) if isinstance(seeds, jax.Array) else seeds)
    except TypeError:
        given = [None]
    if not all(is_integer(seed) and abs(seed) < 2**63 for seed in given):
        raise misuse("seeds", seeds, "a sequence of integers, such as range(16)")
    return [int(seed) for seed in given]


def _check_axes(axes: Any, loss: Any, dims: int) -> dict[str, Any]:
    """The axes by name, each ``Directions`` or a function (key, params) -> Directions; by default Gaussian ones.

    Raises:
      ValueError: an entry is neither, or its name is no non-empty string.
    """
    if axes is None:

        def gaussian(key: Any, params: PyTree) -> Directions:
            drawn = draws.random(key, params, num=dims)
            return normalization.normalize(drawn, params, filter_axis=loss if isinstance(loss, Loss) else None)

        axes = {"filter-normalized": gaussian}
    if not isinstance(axes, Mapping):
        axes = {"axes": axes}
    for name, source in axes.items():
        if not isinstance(name, str) or not name or not (callable(source) or isinstance(source, Directions)):
            raise Misuse(
                "axes",
                f"entry {name!r}: {show_value(source)} given; it must be a function (key, params) -> lla.Directions, "
                "or Directions, or a dict of these by name",
            )
    return dict(axes)


def _list_members(checkpoints: int, axes_by_name: Mapping[str, Any], seeds: Sequence[int]) -> list[Member]:
    """The members of a sweep in their order: (checkpoint, name of the axes, seed).

    Raises:
      ValueError: there are none, or two have the same folder.
    """
    members: list[Member] = [
        (checkpoint, name, seed)
        for checkpoint in range(checkpoints)
        for name, source in axes_by_name.items()
        for seed in ([None] if isinstance(source, Directions) else seeds)
    ]
    folders = Counter(map(folder_of, members))
    if not members or max(folders.values()) > 1:
        raise ValueError(
            f"seeds, axes: {seeds} and {list(axes_by_name)} give {len(members)} landscapes in {len(folders)} folders; "
            "give at least one seed, and seeds and names that differ (in names, letters and digits count)"
        )
    return members


@explained
def merge(store: str | os.PathLike[str], *, partial: bool = False) -> Landscape | Table:
    """Read the landscape, or the sweep, of a store from its chunks; nothing is computed.

    Args:
      store: the folder given as ``store=`` to ``evaluate`` or ``sweep``. Of several grids, the latest one is read.
      partial: whether chunks may be missing or damaged; their points are NaN, and ``recipe["complete"]`` is False.

    Returns:
      A ``Landscape``; for a sweep, or a list of directions, a ``Table`` (with ``partial``, of the landscapes begun).

    Raises:
      ValueError: no store; missing or damaged chunks, which are named (unless ``partial``); a refinement that is not
        finished (unless ``partial``); a loss that is finite nowhere.

    Warns:
      UserWarning: non-finite cells.
    """
    partial = check_flag("partial", partial)
    folder = folders.store_folder(store)
    planes: dict[Any, Landscape] = {}
    missing: list[str] = []
    for member, place in reading.members(folder).items():
        one = folders.read(place)
        if one is None:
            missing.append(f"all of {place.name}")
            continue
        coords = one.grids[-1]
        contents = scattered.read_all(one, coords)
        plane = _chunks.landscape(one, coords, contents)
        if not plane.recipe["complete"] and (found := refining.read(one, coords, contents)) is not None:
            plane = found
        if plane.recipe["complete"]:
            points.check_values(plane)
        else:
            missing += _describe_missing(plane, contents, place)
        planes[member] = plane
    if (missing and not partial) or not planes:
        raise reading.Incomplete(folder, "; ".join(missing[:5]) + " and more" * (len(missing) > 5))
    return planes[None] if None in planes else Table(planes)


def _describe_missing(plane: Landscape, contents: Contents, place: Path) -> list[str]:
    """What a landscape that is not complete lacks, in words; its folder is ``place``."""
    errors = [*contents.damaged.values(), *contents.spoiled.values()]
    damaged = [f"{error.path} (damaged: {error})" for error in errors]
    num = plane.values["loss"].size
    if contents.evaluated is not None:
        return [*damaged, f"points of {place} (it has {contents.done:,}, of at most {num:,})"]
    if contents.missing:
        damaged.append(f"{len(contents.missing)} chunks of {place} ({num - contents.done:,} points)")
    return damaged
