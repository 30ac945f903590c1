"""A landscape kept in a chunk store: what is missing of it is computed, chunk by chunk, by any number of processes.

Nothing but files is shared. A writer takes the chunks that are missing, one after another in an order of its own (so
that several writers rarely meet, and what is there early is a coarse picture of the whole); with a shard, every n-th.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lla_jax.core import recipes
from lla_jax.core.arguments import Misuse, warn_caller
from lla_jax.core.recipes import versions
from lla_jax.core.types import Landscape
from lla_jax.execution.plans import Plan
from lla_jax.execution.progress import Progress, span
from lla_jax.landscape import planning
from lla_jax.landscape.jobs import Job, group_size
from lla_jax.landscape.points import evaluated, warn
from lla_jax.landscape.store import chunks as _chunks
from lla_jax.landscape.store import manifest as _manifest
from lla_jax.landscape.store.chunks import Chunk, Damaged, Store

log = logging.getLogger("lla_jax")

CHUNK_S = 2.0  # seconds that a chunk takes, about: what a kill costs, and many times what writing it costs
PER_SHARD = 4  # chunks for each shard at least, where there are points enough
OVERHEAD = 4096  # bytes of a chunk beside its values

Shard = tuple[int, int] | None


def check_shard(shard: Any, store: Any) -> Shard:
    """``shard`` as (i, n), if it is one, and there is a store where the shards meet."""
    if shard is None:
        return None
    try:
        i, n = shard
        good = all(isinstance(x, int | np.integer) and not isinstance(x, bool) for x in (i, n)) and 1 <= i <= n
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(f"shard: {shard!r} given; the rule is (i, n) with 1 <= i <= n, the i-th of n processes")
    if store is None:
        raise ValueError(f"shard: {shard!r} given without a store, where the shards meet; pass store=folder")
    return int(i), int(n)


def run(
    job: Job,
    folder: Path,
    progress: Progress | None,
    on_partial: Callable[[Landscape], None] | None,
    shard: Shard,
    plan: Plan | None = None,
    place: tuple[int, int] = (0, 1),
) -> Landscape:
    """The landscape of a job along its axes, in the store ``folder``, which is made or continued.

    Args:
      job: what is computed.
      folder: of the store.
      progress: as for ``evaluate``.
      on_partial: as for ``evaluate``.
      shard: (i, n): only the chunks that fall to process i of n; None for all.
      plan: for a new store, instead of one timed now.
      place: (number of this landscape, how many there are) where the shards divide several.
    """
    shards = 1 if shard is None else -(-shard[1] // place[1])
    store, begun = _chunks.read(folder), None
    if store is None:
        store, begun = _begun(job, folder, plan, shards)
    job = job._replace(probed=store.grids[0])
    if begun is None:
        _chunks.check_same(store, job.recipe)
        first = store.manifest["recipe"]
        begun = planning.planned(job, planning.plan_of(first))
        recipes.check_same_values("store", first, begun[1], folder)
        log.info("store: %s was begun before; its plan is obeyed", folder)
    plan, _, seconds = begun
    store, coords = _chunks.extended(store, job.coords)
    job = job._replace(coords=coords)
    parts = {part.chunk: len(part.at) for part in _chunks.parts(store, coords)}
    mine = {c for i, c in enumerate(parts) if shard is None or (place[0] + i) % shard[1] == shard[0] - 1}
    missing = [c for c in parts if c in mine and not _chunks.path_of(store, c).exists()]
    left = sum(parts[c] for c in missing)
    log.info("%s", planning.text(job, plan, None if seconds is None else seconds * left))
    if left < job.num:
        log.info("store: %s has or leaves to others %d of %d points", folder, job.num - left, job.num)
    told: set[Chunk] = set()
    try:
        while True:
            if missing:
                _chunks.check_writable(folder, _bytes(store, left, len(missing)))
                _compute(job, plan, store, missing, parts, progress)
            found = _chunks.collected(store, coords)
            _report({c: error for c, error in found.damaged.items() if c in mine or c not in told}, mine)
            told |= set(found.damaged)
            missing = [c for c in (*found.missing, *found.damaged) if c in mine]
            if not missing:
                break
    except BaseException:
        if on_partial is not None:
            found = _chunks.collected(store, coords)
            if found.done:
                on_partial(_chunks.landscape(store, coords, found))
        raise
    result = _chunks.landscape(store, coords, found)
    if result.recipe["complete"]:
        _chunks.sweep_up(folder)
        warn(result)
    return result


def _bytes(store: Store, points: int, chunks: int) -> int:
    """Of so many points in so many files, values and standard errors."""
    return 16 * len(store.manifest["names"]) * points + OVERHEAD * chunks


def _report(damaged: dict[Chunk, Damaged], mine: set[Chunk]) -> None:
    """Name damaged chunks, and remove those that are going to be computed again."""
    for chunk, error in damaged.items():
        again = chunk in mine
        what = "removed and computed again" if again else "left to the process whose share it is"
        warn_caller(f"store: {error.path} was damaged ({error}) and is {what}")
        if again:
            error.path.unlink(missing_ok=True)


def _begun(job: Job, folder: Path, plan: Plan | None, shards: int) -> tuple[Store, Any]:
    """A new store for so many writers, and what ``planned`` gave; None if another writer was first."""
    _chunks.check_distinct(job.coords)
    _chunks.check_writable(folder, OVERHEAD)
    if taken := next(folder.glob("sweep-*.json"), None):
        raise Misuse("store", f"{folder} holds a sweep ({taken.name}); the rule is a folder of its own", folder)
    most = -(-job.num // (PER_SHARD * shards)) if shards > 1 else job.num
    plan, recipe, seconds = planning.planned(job, plan, most)
    size = _chunk_points(job, plan, seconds, most, shards)
    recipe["plan"] = planning.recipe_of(job, plan)
    coords = [axis.tolist() for axis in job.coords]
    store, first = _chunks.create(folder, _manifest.made(recipe, recipes.LANDSCAPE, coords, job.task.names, size))
    return store, (plan, recipe, seconds) if first else None


def _chunk_points(job: Job, plan: Plan, seconds: float | None, most: int, shards: int) -> int:
    """Points of a chunk: whole groups that take about CHUNK_S; a stream is read once for each chunk, so few of them."""
    group = group_size(job, plan)
    if job.streamed:
        return min(group, -(-job.num // shards))
    groups = max(1, min(int(CHUNK_S / max(seconds * group, 1e-9)) if seconds else 1, most // group))
    every = -(-job.num // group)
    return -(-every // -(-every // groups)) * group  # equal chunks


def _compute(
    job: Job, plan: Plan, store: Store, missing: list[Chunk], parts: dict[Chunk, int], progress: Progress | None
) -> None:
    """The chunks that are missing and not written by another in the meantime."""
    rest = sum(parts[c] for c in missing)
    done = job.num - rest
    if progress is not None and missing:
        progress(done, job.num)
    for at in np.random.default_rng().permutation(len(missing)):
        chunk = missing[at]
        if not _chunks.path_of(store, chunk).exists():
            start, coords = time.perf_counter(), _chunks.points(store, chunk)
            log.debug("store: %s begun", _chunks.path_of(store, chunk))
            found, plan = evaluated(job, plan, coords, span(progress, done, parts[chunk], job.num))
            about = {
                "plan": planning.recipe_of(job, plan),
                "seconds": time.perf_counter() - start,
                "versions": versions(),
            }
            _chunks.write(store, chunk, found, about)
            log.debug("store: %s written", _chunks.path_of(store, chunk))
        done += parts[chunk]
        if progress is not None:
            progress(done, job.num)
