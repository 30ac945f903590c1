"""Computes the missing chunks of a landscape in a chunk store, as one of any number of writers.

Writers share nothing but files. Each computes the missing chunks (with a shard, every n-th chunk) in a random order of
its own, so that several writers rarely compute the same chunk, and early chunks give a coarse picture of the landscape.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lla_jax.core import recipes
from lla_jax.core.arguments import Misuse, is_integer, misuse, warn_caller
from lla_jax.core.interrupts import check_interrupt
from lla_jax.core.recipes import versions
from lla_jax.core.results import Landscape
from lla_jax.execution.plans import Plan
from lla_jax.execution.progress import Progress, report_part
from lla_jax.landscape import planning, probes
from lla_jax.landscape.jobs import Job, group_size
from lla_jax.landscape.means import Means
from lla_jax.landscape.points import check_values, compute_means
from lla_jax.landscape.store import chunks as _chunks
from lla_jax.landscape.store import finished, folders, layout, scattered
from lla_jax.landscape.store import manifest as _manifest
from lla_jax.landscape.store.chunks import DamagedChunk
from lla_jax.landscape.store.layout import Chunk, Store

log = logging.getLogger("lla_jax")

CHUNK_S = 2.0  # seconds that a chunk takes, about: a kill loses no more, and writing the chunk is many times faster
PER_SHARD = 4  # least number of chunks for each shard, if there are enough points
TOGETHER = 4  # chunks of which a part is known are computed so many at a time
OVERHEAD = 4096  # bytes of the file of a chunk in addition to its values

Shard = tuple[int, int] | None
"""(i, n): the i-th of n processes, counted from 1; None for a process that takes all chunks."""


def check_shard(shard: Any, store: Any) -> Shard:
    """Return ``shard`` as (i, n), or None if it is None.

    Raises:
      ValueError: a shard that is not (i, n) with 1 <= i <= n, or is given without a store.
    """
    if shard is None:
        return None
    try:
        i, n = shard
        valid = is_integer(i) and is_integer(n) and 1 <= i <= n
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise misuse("shard", shard, "(i, n) with 1 <= i <= n for the i-th of n processes, such as (3, 16)")
    if store is None:
        raise Misuse("shard", f"{shard!r} given without a store, which the processes share; pass store=folder")
    return int(i), int(n)


def compute(
    job: Job,
    folder: Path,
    progress: Progress | None,
    on_partial: Callable[[Landscape], None] | None,
    shard: Shard,
    plan: Plan | None = None,
    place: tuple[int, int] = (0, 1),
) -> Landscape:
    """Make or continue the chunk store of a landscape: compute its missing chunks, and return the landscape.

    Points that are left to other processes and are not written yet are NaN.

    Args:
      job: the job, with its axes.
      folder: the folder of the store.
      progress: as for ``evaluate``.
      on_partial: as for ``evaluate``.
      shard: (i, n) to compute only the chunks of process i of n; None for all.
      plan: the plan of a new store; None to choose the fastest one.
      place: (index of this landscape, number of landscapes) of a sweep, whose shards are counted over all landscapes.

    Raises:
      ValueError: the store holds a landscape of another recipe, or is damaged; or as for ``evaluate``.
      OSError: the store cannot be written, or its disk is too full.
    """
    shards = 1 if shard is None else -(-shard[1] // place[1])
    job, store, plan, seconds = open_store(job, folder, plan, shards)
    coords = job.coords
    parts, tables = layout.needed(store, coords), scattered.Tables(store)
    mine = {c for i, c in enumerate(parts) if shard is None or (place[0] + i) % shard[1] == shard[0] - 1}
    missing = [c for c in parts if c in mine and not layout.path_of(store, c).exists() and not tables.hold(c)]
    left = sum(parts[c] for c in missing)
    log.info("%s", planning.describe(job, plan, None if seconds is None else seconds * left))
    if left < job.num:
        log.info("store: %s has or leaves to other processes %d of %d points", folder, job.num - left, job.num)
    reported: set[Chunk] = set()
    try:
        while True:
            if missing:
                folders.check_writable(folder, bytes_needed(store, left, len(missing)))
                _compute(job, plan, store, missing, parts, progress)
            contents = scattered.read_all(store, coords)
            check_replaceable(folder, [error for c, error in contents.damaged.items() if c in mine])
            _report({c: error for c, error in contents.damaged.items() if c in mine or c not in reported}, mine)
            reported |= set(contents.damaged)
            missing = [c for c in (*contents.missing, *contents.damaged) if c in mine]
            if not missing:
                break
            remove_damaged(folder, contents.spoiled)
    except BaseException:
        if on_partial is not None:
            contents = scattered.read_all(store, coords)
            if contents.done:
                on_partial(_chunks.landscape(store, coords, contents))
        raise
    result = _chunks.landscape(store, coords, contents)
    if result.recipe["complete"]:
        folders.remove_leftovers(folder)
        check_values(result, job.reads)
    return result


def open_store(
    job: Job, folder: Path, plan: Plan | None, shards: int = 1, call: int | None = None
) -> tuple[Job, Store, Plan, float | None]:
    """Begin the store of a landscape, or check that the store in a folder was begun for the same one.

    Args:
      job: the job, with its axes.
      folder: the folder of the store.
      plan: the plan of a new store; None to choose the fastest one.
      shards: number of processes that share the chunks by their numbers.
      call: the most points that a call of a new plan computes; None for any number.

    Returns:
      (job with the coordinates as the store has them, store with the grid of the job, plan, seconds per point).

    Raises:
      ValueError, OSError: as for ``compute``.
    """
    store, choice = folders.read(folder, job.coords), None
    if store is None:
        store, choice = _begin(job, folder, plan, shards, call)
    job = job._replace(reference_grid=store.grids[0])
    if choice is None:
        folders.restore(store)
        folders.check_same(store, job.recipe)
        recipe = store.manifest["recipe"]
        most = max(math.prod(map(len, store.grids[0])), job.num)
        choice = planning.choose_plan(job, planning.plan_from_recipe(recipe, most))
        probes.check("store", job, choice, recipe, finished.ends(store), folder)
        log.info("store: %s was begun before; its plan is obeyed", folder)
    plan, _, seconds = choice
    store, coords = folders.add_grid(store, job.coords)
    return job._replace(coords=coords), store, plan, seconds


def bytes_needed(store: Store, points: int, chunks: int) -> int:
    """The bytes that the values and standard errors at ``points`` points take in ``chunks`` files."""
    return 16 * len(store.manifest["names"]) * points + (OVERHEAD + _chunks.header_bytes(store)) * chunks


def check_replaceable(folder: Path, damaged: Sequence[DamagedChunk]) -> None:
    """Raise an error that says how to go on if chunks are damaged in a folder that cannot be written to."""
    if not damaged:
        return
    try:
        folders.check_writable(folder)
    except OSError as error:
        raise type(error)(
            error.errno,
            f"store: {damaged[0].path} was damaged ({damaged[0]}), and can only be computed again in a folder that can "
            f"be written to ({os.strerror(error.errno or 0)}); make it so and repeat the call, or read the "
            f"points that are there: lla.runs.merge({str(folder)!r}, partial=True)",
        ) from error


def _report(damaged: dict[Chunk, DamagedChunk], mine: set[Chunk]) -> None:
    """Warn of damaged chunks, and remove the files of those in ``mine``, which are computed again."""
    for chunk, error in damaged.items():
        again = chunk in mine
        action = "removed and computed again" if again else "left to the process to whose shard it belongs"
        warn_caller(f"store: {error.path} was damaged ({error}) and is {action}")
        if again:
            _chunks.remove_chunk(error.path)


def remove_damaged(folder: Path, damaged: Mapping[Path, DamagedChunk]) -> None:
    """Warn of damaged chunks in any places, and remove their files: their points are computed again.

    Raises:
      OSError: the folder cannot be written to.
    """
    check_replaceable(folder, list(damaged.values()))
    for path, error in damaged.items():
        warn_caller(f"store: {path} was damaged ({error}) and is removed; its points are computed again")
        _chunks.remove_chunk(path)


def _begin(job: Job, folder: Path, plan: Plan | None, shards: int, call: int | None) -> tuple[Store, Any]:
    """Make a new store, with chunks small enough for a number of shards; ``call`` is that of ``open_store``.

    Returns:
      (store, result of ``choose_plan``); if another writer made the store first, (its store, None).
    """
    folders.check_storable(job.coords)
    folders.check_writable(folder, OVERHEAD)
    if sweep := next(folder.glob("sweep-*.json"), None):
        raise Misuse("store", f"{folder} holds a sweep ({sweep.name}); pass another folder for a landscape", folder)
    most = -(-job.num // (PER_SHARD * shards)) if shards > 1 else job.num
    plan, recipe, seconds = planning.choose_plan(job, plan, most if call is None else min(most, call))
    size = _chunk_points(job, plan, seconds, most, shards)
    recipe |= {"plan": planning.plan_recipe(job, plan), "corners": probes.record(job, plan, seconds)}
    coords = [axis.tolist() for axis in job.coords]
    store, ours = folders.create(folder, _manifest.make(recipe, recipes.LANDSCAPE, coords, job.task.names, size))
    return store, (plan, recipe, seconds) if ours else None


def _chunk_points(job: Job, plan: Plan, seconds: float | None, most: int, shards: int) -> int:
    """Number of points of a chunk: as many groups of points as take about CHUNK_S; for a stream as many as possible."""
    group = group_size(job, plan)
    if job.has_stream:  # which is read once for each chunk, so there should be few chunks
        return min(group, -(-job.num // shards))
    groups = max(1, min(int(CHUNK_S / max(seconds * group, 1e-9)) if seconds else 1, most // group))
    every = -(-job.num // group)
    return -(-every // -(-every // groups)) * group  # equal chunks


def _compute(
    job: Job, plan: Plan, store: Store, missing: list[Chunk], parts: dict[Chunk, int], progress: Progress | None
) -> None:
    """Compute and write those missing chunks that no other process writes in the meantime."""
    rest = sum(parts[c] for c in missing)
    done = job.num - rest
    if progress is not None and missing:
        progress(done, job.num)
    tables = scattered.Tables(store)
    order = [missing[i] for i in np.random.default_rng().permutation(len(missing))]
    # chunks that have points already are computed several at a time, since each alone fills no call
    step = 1 if tables.is_empty else TOGETHER
    for first in range(0, len(order), step):
        group = order[first : first + step]
        check_interrupt()
        absent = [chunk for chunk in group if not layout.path_of(store, chunk).exists()]
        wanted = sum(parts[chunk] for chunk in group)
        if absent:
            report = report_part(progress, done, wanted, job.num)
            plan = _compute_chunks(job, plan, store, absent, tables, report)
        done += wanted
        if progress is not None:
            progress(done, job.num)


def _compute_chunks(
    job: Job, plan: Plan, store: Store, chunks: list[Chunk], tables: scattered.Tables, report: Progress | None
) -> Plan:
    """Compute the points of some chunks that scattered ones lack, and write them; return the plan at the end."""
    start = time.perf_counter()
    log.debug("store: %s begun", ", ".join(str(layout.path_of(store, chunk)) for chunk in chunks))
    known = [tables.at(chunk) for chunk in chunks]
    lacking = [layout.points(store, chunk)[~there] for chunk, (_, there) in zip(chunks, known, strict=True)]
    means, plan = compute_means(job, plan, np.concatenate(lacking), report)
    about = {
        "plan": planning.plan_recipe(job, plan),
        "seconds": (time.perf_counter() - start) / len(chunks),
        "versions": versions(),
    }
    end = 0
    for chunk, (table, there), coords in zip(chunks, known, lacking, strict=True):
        first, end = end, end + len(coords)
        table.put(Means(*({k: x[first:end] for k, x in numbers.items()} for numbers in means)), ~there, len(there))
        _chunks.write(store, chunk, table, about)
        log.debug("store: %s written", layout.path_of(store, chunk))
    return plan
