"""Many landscapes in one call, checkpoints x axes x seeds; and their values put together from a store."""

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

from lla_jax.core.types import Directions, Execution, Landscape, Loss, PyTree, UpdateRule
from lla_jax.directions import draws, normalization
from lla_jax.execution import progress as _progress
from lla_jax.execution.plans import Plan
from lla_jax.execution.progress import Progress
from lla_jax.landscape import grids, jobs, memory, planning, points, rules
from lla_jax.landscape.jobs import Job
from lla_jax.landscape.store import chunks as _chunks
from lla_jax.landscape.store import writing
from lla_jax.landscape.store.announcing import Cell, announce, folder_of, stores_of
from lla_jax.landscape.store.reading import Incomplete, members
from lla_jax.landscape.tasks import Policy, Task

Axes = Callable[[Any, PyTree], Directions]


@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """The landscapes of a sweep.

    Args:
      landscapes: {(number of the checkpoint, name of the axes, seed): Landscape}, in the order of the sweep. The seed
        is None for axes that are given and not drawn.
    """

    landscapes: dict[Cell, Landscape]

    def __getitem__(self, cell: Cell) -> Landscape:
        return self.landscapes[cell]

    def __len__(self) -> int:
        return len(self.landscapes)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.landscapes)

    def rows(self, value: str = "loss") -> list[dict[str, Any]]:
        """One dict per landscape: checkpoint, axes, seed, and of the finite values: at the point nearest to the
        checkpoint (``centre``), least, mean and largest; ``finite`` is the share of such cells."""
        found = []
        for (checkpoint, name, seed), plane in self.landscapes.items():
            z = plane.values[value]
            finite = z[np.isfinite(z)]
            low, mean, high = (finite.min(), finite.mean(), finite.max()) if finite.size else (np.nan,) * 3
            centre = z[tuple(int(abs(c).argmin()) for c in plane.coords)]
            found.append({
                "checkpoint": checkpoint, "axes": name, "seed": seed, "centre": float(centre), "least": float(low),
                "mean": float(mean), "largest": float(high), "finite": finite.size / z.size,
            })  # fmt: skip
        return found

    def to_csv(self, path: str | os.PathLike[str], value: str = "loss") -> Path:
        """Write ``rows`` as comma-separated values; returns the path."""
        rows = self.rows(value)
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return Path(path)

    def __repr__(self) -> str:
        lines = [
            f"{'checkpoint':>10}  {'axes':<24} {'seed':>5} {'centre':>11} {'least':>11} {'mean':>11} {'largest':>11}"
        ]
        for row in self.rows():
            numbers = " ".join(f"{row[name]:11.5g}" for name in ("centre", "least", "mean", "largest"))
            seed = "" if row["seed"] is None else row["seed"]
            lines.append(f"{row['checkpoint']:>10}  {row['axes']:<24} {seed:>5} {numbers}")
        return "\n".join(lines)


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
    progress: Progress | None = None,
    store: str | os.PathLike[str] | None = None,
    shard: tuple[int, int] | None = None,
) -> Table:
    """Landscapes of many checkpoints, on planes of many kinds, with many seeds: one copy of the data, one compilation.

    Args:
      loss: a ``Loss`` or a plain function, the same for all.
      checkpoints: parameter trees of one structure, each the centre of its landscapes.
      data: one data set or a stream (read once per landscape).
      axes: what the landscapes span: ``f(key, params) -> Directions``, called for every checkpoint and seed; or
        ``Directions``, taken as they are for every checkpoint; or a dict of these by name. Default: Gaussian
        directions, filter-normalized, as many as the grid has axes.
      grid: one 1-D array per axis; default ``lla.grid(points=21)``.
      seeds: axes are drawn with ``jax.random.key(seed)``.
      states: the ``Loss.state`` of every checkpoint (BatchNorm statistics); default: that of ``loss`` for all.
      batch_size: as for ``evaluate``, like all that follow.
      rule: update rule.
      batch_stats: policy of normalization statistics.
      metrics: per-example metrics.
      point_metrics: functions of the parameters.
      extra_data: further data sets.
      key: for ``point_metrics``.
      execution: how it is run.
      progress: ``progress(done, total)`` in points over all landscapes.
      store: a folder with a chunk store for every landscape; a second call continues, or returns what is finished.
        Other seeds, axes or checkpoints, a wider or denser grid are added to what is there. Checkpoints are recognized
        by their place in the list.
      shard: (i, n) for the i-th of n processes over one store.

    Returns:
      A ``Table``. With a shard, points that fall to others are NaN until they are there.

    Raises:
      ValueError: as for ``evaluate``; no checkpoints or seeds; checkpoints of different structure; names of axes that
        give one folder.
      OSError: a store that cannot be written.

    Example:
      >>> table = lla.sweep(loss, [early, late], data, grid=lla.grid(points=21), seeds=range(16), store="runs/exp2")
      >>> table  # one line per landscape
    """
    if not isinstance(checkpoints, Sequence) or not checkpoints:
        raise ValueError(
            f"checkpoints: got {type(checkpoints).__name__}; the rule is a non-empty list of parameter trees"
        )
    if states is not None and len(states) != len(checkpoints):
        raise ValueError(f"states: {len(states)} for {len(checkpoints)} checkpoints; the rule is one each")
    coords = grids.check_grid(grids.grid(points=21) if grid is None else grid)
    checked = rules.check_rule(rule, coords)
    kinds = _kinds(axes, loss, len(coords))
    seeds = _seeds(seeds)
    cells = _cells(len(checkpoints), kinds, seeds)
    share = writing.check_shard(shard, store)
    task = Task(
        loss,
        data,
        checked,
        batch_size=batch_size,
        batch_stats=batch_stats,
        metrics=metrics,
        point_metrics=point_metrics,
        extra_data=extra_data,
        key=key,
        execution=execution,
    )
    job = jobs.prepare(task, checkpoints[0], coords)
    folder = None if store is None else Path(store)
    announced = None if folder is None else announce(folder, cells, job.num)
    each = _jobs(job, cells, kinds, checkpoints, states, folder)
    try:
        known = () if folder is None else stores_of(folder, cells)
        plan = next((planning.plan_of(kept.manifest["recipe"]) for kept in known), None)
        planes = one_by_one(each, len(cells), progress, shard=share, plan=plan)
        return Table(dict(zip(cells, planes, strict=True)))
    except ValueError:
        if announced is not None:  # what is refused is not going to be there
            announced.unlink(missing_ok=True)
        raise


def one_by_one(
    each: Iterator[tuple[Job, Path | None]],
    num: int,
    progress: Progress | None,
    on_partial: Callable[[Landscape], None] | None = None,
    shard: writing.Shard = None,
    plan: Plan | None = None,
) -> Iterator[Landscape]:
    """The landscapes of several jobs, each when it is asked for.

    Args:
      each: jobs along their axes, on grids of one shape, each with the folder of its store, or None.
      num: how many they are.
      progress: called in points over all of them.
      on_partial: as for ``evaluate``.
      shard: (i, n): of the chunks of all stores, only those that fall to process i of n.
      plan: of all stores; by default that of the first one.
    """
    for i in range(num):
        job, folder = next(each)
        report = _progress.span(progress, i * job.num, job.num, num * job.num)
        if folder is None:
            found = memory.run(job, report, on_partial)
        else:
            found = writing.run(job, folder, report, on_partial, shard, plan, place=(i, num))
        plan = plan or planning.plan_of(found.recipe)
        del job  # its axes, before others are drawn
        yield found


def _jobs(
    job: Job,
    cells: Sequence[Cell],
    kinds: Mapping[str, Any],
    checkpoints: Sequence[PyTree],
    states: Sequence[PyTree] | None,
    folder: Path | None,
) -> Iterator[tuple[Job, Path | None]]:
    """The job around the checkpoint of each cell, along its axes, and the cell's folder."""
    here = -1
    for cell in cells:
        checkpoint, kind, seed = cell
        params = checkpoints[checkpoint]
        if checkpoint != here:
            here = checkpoint
            job = jobs.recentred(job, params, job.loss.state if states is None else states[checkpoint])
        # the axes have no name here, so that they are gone before the next ones are drawn
        yield jobs.along(job, _drawn(kinds[kind], kind, seed, params)), folder and folder / folder_of(cell)


def _drawn(made: Any, kind: str, seed: int | None, params: PyTree) -> Directions:
    axes = made if isinstance(made, Directions) else made(jax.random.key(seed or 0), params)
    if not isinstance(axes, Directions):
        raise ValueError(f"axes: {kind!r} gave a {type(axes).__name__}; the rule is lla.Directions")
    return axes


def _seeds(seeds: Any) -> list[int]:
    try:
        found = list(seeds)
    except TypeError:
        found = [None]
    if not all(isinstance(seed, int | np.integer) and not isinstance(seed, bool) for seed in found):
        raise ValueError(f"seeds: {seeds!r} given; the rule is a sequence of integers, such as range(16)")
    return [int(seed) for seed in found]


def _kinds(axes: Any, loss: Any, dims: int) -> dict[str, Any]:
    """The axes by name."""
    if axes is None:

        def gaussian(key: Any, params: PyTree) -> Directions:
            drawn = draws.random(key, params, num=dims)
            return normalization.normalize(drawn, params, filter_axis=loss if isinstance(loss, Loss) else None)

        axes = {"filter-normalized": gaussian}
    if not isinstance(axes, Mapping):
        axes = {"axes": axes}
    for name, made in axes.items():
        if not isinstance(name, str) or not name or not (callable(made) or isinstance(made, Directions)):
            raise ValueError(
                f"axes: entry {name!r}: {made!r}; the rule is a function (key, params) -> lla.Directions, or "
                "Directions, or a dict of these by name"
            )
    return dict(axes)


def _cells(checkpoints: int, kinds: Mapping[str, Any], seeds: Sequence[int]) -> list[Cell]:
    cells: list[Cell] = [
        (checkpoint, kind, seed)
        for checkpoint in range(checkpoints)
        for kind, made in kinds.items()
        for seed in ([None] if isinstance(made, Directions) else seeds)
    ]
    folders = Counter(map(folder_of, cells))
    if not cells or max(folders.values()) > 1:
        raise ValueError(
            f"seeds, axes: {seeds} and {list(kinds)} give {len(cells)} landscapes in {len(folders)} folders; the rule "
            "is at least one, and different seeds and names (letters and digits count)"
        )
    return cells


def merge(store: str | os.PathLike[str], *, partial: bool = False) -> Landscape | Table:
    """The result that the chunks of a store make up, whoever computed them; nothing is computed.

    Args:
      store: the folder given as ``store=`` to ``evaluate`` or ``sweep``. Of several grids, the one that came last.
      partial: accept missing chunks: their points are NaN, and ``recipe["complete"]`` is False.

    Returns:
      A ``Landscape``; for a sweep, or a list of directions, a ``Table``.

    Raises:
      ValueError: no store, missing chunks (unless ``partial``), damaged chunks, naming them; a loss that is finite
        nowhere.

    Warns:
      UserWarning: non-finite cells.
    """
    found: dict[Any, Landscape] = {}
    lacks: list[str] = []
    for cell, folder in members(Path(store)).items():
        one = _chunks.read(folder)
        if one is None:
            lacks.append(f"all of {folder.name}")
            continue
        there = _chunks.collected(one, one.grids[-1])
        plane = _chunks.landscape(one, one.grids[-1], there)
        lacks += [f"{error.path} (damaged: {error})" for error in there.damaged.values()]
        if there.missing:
            left = plane.values["loss"].size - there.done
            lacks.append(f"{len(there.missing)} chunks of {folder} ({left:,} points)")
        elif not there.damaged:
            points.warn(plane)
        found[cell] = plane
    if (lacks and not partial) or not found:
        raise Incomplete(Path(store), "; ".join(lacks[:5]) + " and more" * (len(lacks) > 5))
    return found[None] if None in found else Table(found)
