"""A landscape kept in a chunk store: computed chunk by chunk by any number of processes, and continued by any of them.

Nothing but files is shared. A writer takes the chunks that are missing, one after another in an order of its own (so
that several writers rarely meet, and what is there early is a coarse picture of the whole); with a shard, every n-th.
"""

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from lla_jax import checks, chunk_store, planning
from lla_jax._types import Directions, Landscape, PyTree
from lla_jax.chunk_store import Chunk, Store
from lla_jax.evaluation import Job, Sums, Values, described, evaluated, group_size, means, span, versions, warn
from lla_jax.execution import Plan

log = logging.getLogger("lla_jax")

CHUNK_S = 2.0  # seconds that a chunk takes, about: what a kill costs, and many times what writing it costs
PER_SHARD = 4  # chunks for each shard at least, where there are points enough
OVERHEAD = 4096  # bytes of a chunk beside its values

Shard = tuple[int, int] | None


def check_shard(shard: Any) -> Shard:
    """``shard`` as (i, n), if it is one."""
    if shard is None:
        return None
    try:
        i, n = shard
        if all(isinstance(x, int | np.integer) and not isinstance(x, bool) for x in (i, n)) and 1 <= i <= n:
            return int(i), int(n)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"shard: {shard!r} given; the rule is (i, n) with 1 <= i <= n, the i-th of n processes")


def run(
    job: Job,
    directions: Directions,
    folder: Path,
    progress: Any,
    on_partial: Any,
    shard: Shard,
    plan: Plan | None = None,
    place: tuple[int, int] = (0, 1),
) -> Landscape:
    """One landscape in the store ``folder``, which is made or continued.

    Args:
      job: what is computed.
      directions: the axes.
      folder: of the store.
      progress: as for ``evaluate``.
      on_partial: as for ``evaluate``.
      shard: (i, n): only the chunks that fall to process i of n; None for all.
      plan: for a new store, instead of one timed now.
      place: (number of this landscape, how many there are) where the shards divide several.
    """
    count = len(job.sources) * (1 + len(job.how.metrics)) + len(job.point_metrics)
    chunk_store.check_writable(folder, 16 * count * job.num + OVERHEAD)
    tree, recipe = described(job, directions)
    store = chunk_store.read(folder)
    if store is None:
        store, seconds, plan = _begun(job, tree, recipe, folder, plan, 1 if shard is None else -(-shard[1] // place[1]))
    else:
        chunk_store.check_same(store, recipe)
        job = job._replace(probed=store.grids[0])
        plan, recipe, seconds = planning.planned(job, tree, recipe, planning.plan_of(store.manifest["recipe"]))
        if recipe["deterministic"]:
            checks.same_probe(store.manifest["recipe"], recipe["probe"], "store")
    store, coords = chunk_store.extended(store, job.coords)
    job = job._replace(coords=coords)
    parts = {part.chunk: len(part.at) for part in chunk_store.parts(store, coords)}
    mine = [c for i, c in enumerate(parts) if shard is None or (place[0] + i) % shard[1] == shard[0] - 1]
    missing = [c for c in mine if not chunk_store.path_of(store, c).exists()]
    left = sum(parts[c] for c in missing)
    log.info("%s", planning.text(job, plan, None if seconds is None else seconds * left))
    if left < job.num:
        log.info("store: %s has or leaves to others %d of %d points", folder, job.num - left, job.num)
    try:
        while True:
            _compute(job, tree, plan, store, missing, parts, progress)
            table, done, damaged = chunk_store.collected(store, coords)
            for error in damaged:
                warnings.warn(f"store: {error.path} was damaged ({error}), is removed and computed again", stacklevel=4)
                error.path.unlink(missing_ok=True)
            missing = [c for c in mine if not chunk_store.path_of(store, c).exists()]
            if not missing:
                break
    except BaseException:
        if on_partial is not None:
            table, done, _ = chunk_store.collected(store, coords)
            if done:
                on_partial(chunk_store.landscape(store, coords, table, done))
        raise
    result = chunk_store.landscape(store, coords, table, done)
    if result.recipe["complete"]:
        chunk_store.sweep_up(folder)
        warn(result)
    return result


def _begun(
    job: Job, tree: PyTree, recipe: dict[str, Any], folder: Path, plan: Plan | None, shards: int
) -> tuple[Store, float | None, Plan]:
    """A new store for so many writers, unless another one is first; its plan."""
    most = -(-job.num // (PER_SHARD * shards)) if shards > 1 else job.num
    plan, recipe, seconds = planning.planned(job, tree, recipe, plan, most)
    size = _chunk_points(job, plan, seconds, most, shards)
    recipe = recipe | {"plan": planning.recipe_of(job, plan)}
    store = chunk_store.create(folder, recipe, checks.IDENTITY, job.coords, size)
    chunk_store.check_same(store, recipe)
    if recipe["deterministic"] and np.array_equal(store.grids[0][0][:1], job.coords[0][:1]):
        checks.same_probe(store.manifest["recipe"], recipe["probe"], "store")
    return store, seconds, planning.plan_of(store.manifest["recipe"])


def _chunk_points(job: Job, plan: Plan, seconds: float | None, most: int, shards: int) -> int:
    """Points of a chunk: whole groups that take about CHUNK_S; a stream is read once for each chunk, so few of them."""
    group = group_size(job, plan)
    if job.streamed:
        return min(group, -(-job.num // shards))
    groups = max(1, min(int(CHUNK_S / max(seconds * group, 1e-9)) if seconds else 1, most // group))
    every = -(-job.num // group)
    return -(-every // -(-every // groups)) * group  # equal chunks


def _compute(
    job: Job, tree: PyTree, plan: Plan, store: Store, missing: list[Chunk], parts: dict[Chunk, int], progress: Any
) -> None:
    """The chunks that are missing and not written by another in the meantime."""
    rest = sum(parts[c] for c in missing)
    done = job.num - rest
    if progress is not None and missing:
        progress(done, job.num)
    for at in np.random.default_rng().permutation(len(missing)):
        chunk = missing[at]
        if not chunk_store.path_of(store, chunk).exists():
            start, coords = time.perf_counter(), chunk_store.points(store, chunk)
            log.debug("store: %s begun", chunk_store.path_of(store, chunk))
            sums: Sums = {}
            values: Values = {}
            plan = evaluated(job, tree, plan, coords, sums, values, span(progress, done, parts[chunk], job.num))
            found = means(job, sums, values)
            about = {
                "plan": planning.recipe_of(job, plan),
                "seconds": time.perf_counter() - start,
                "versions": versions(),
            }
            chunk_store.write(store, chunk, found["values"], found["stderr"], about)
            log.debug("store: %s written", chunk_store.path_of(store, chunk))
        done += parts[chunk]
        if progress is not None:
            progress(done, job.num)
