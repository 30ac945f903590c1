"""Means of the loss and the metrics at any points, from weighted sums added up in float64."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import numpy as np

from lla_jax.core import data as _data
from lla_jax.core import losses
from lla_jax.core.data import Stream
from lla_jax.core.types import Landscape, PyTree
from lla_jax.execution import plans
from lla_jax.execution.plans import Plan
from lla_jax.landscape import batch_stats as _batch_stats
from lla_jax.landscape import kernels
from lla_jax.landscape.jobs import Job, _batches, rows_in

Sums = dict[str, np.ndarray]  # by name, a row of weighted sums for every point
Values = dict[str, np.ndarray]  # by name, a number for every point
Table = dict[str, dict[str, np.ndarray]]  # "values" and "stderr" by name, flat


def _padded(array: Any, lo: int, hi: int, plan: Plan, job: Job) -> Any:
    """Rows [lo, hi) of every leaf, lengthened to a full chunk."""
    size = plan.chunk * job.width
    return jax.tree_util.tree_map(lambda x: plans.pad_points(x[lo:hi], size), array)


def evaluated(
    job: Job, tree: PyTree, plan: Plan, coords: np.ndarray, sums: Sums, values: Values, progress: Any
) -> Plan:
    """What depends on the parameters alone into ``values``, the sums over the data into ``sums``, at the points of
    ``coords`` (C, k). Returns the plan in force at the end: less memory than expected makes it smaller."""
    found, plan = of_params(job, tree, plan, coords)
    values.update(found)
    return _of_data(job, tree, plan, coords, sums, progress)


def of_params(job: Job, tree: PyTree, plan: Plan, points: np.ndarray) -> tuple[Values, Plan]:
    """Point metrics and, under the name '', the penalty at the points (C, k)."""
    values: Values = {}
    if not job.point_metrics and job.loss.penalty is None:
        return values, plan

    def compute(plan: Plan, lo: int, hi: int) -> None:
        coords = _padded(points, lo, hi, plan, job)
        static = {"how": job.how, "loop": plan.loop, "mesh": job.mesh, "point_metrics": job.point_metrics}
        for name, found in kernels.point_step(job.loss, job.params, tree, coords, job.key, **static).items():
            values.setdefault(name, np.zeros(len(points)))[lo:hi] = np.asarray(found)[: hi - lo]

    plan = plans.chunks(compute, 0, len(points), plan, job.width)
    return values, plan


def _of_data(job: Job, tree: PyTree, plan: Plan, points: np.ndarray, sums: Sums, progress: Any) -> Plan:
    """Add the sums over every data set to ``sums`` {name: (C, 6)} at the points (C, k)."""
    states, num = None, len(points)
    if job.momenta is not None:
        states, plan = _reestimated(job, tree, plan, points)
    read = 0
    for i, (prefix, data) in enumerate(job.sources.items()):
        length = data.num_batches if isinstance(data, Stream) else None
        batches = _batches(data, job.counts[prefix], job.mesh, job.whole)
        for j, (batch, count, offset) in enumerate(batches):

            def compute(plan: Plan, lo: int, hi: int, batch=batch, count=count, offset=offset, prefix=prefix) -> None:
                coords = _padded(points, lo, hi, plan, job)
                at = None if states is None else _padded(states, lo, hi, plan, job)
                results = [
                    call(job, tree, coords, at, batch, step, starts, count, offset)
                    for step, starts in plans.calls(plan, rows_in(job, batch), count, job.batch_size, job.whole)
                ]
                totals = jax.tree_util.tree_map(lambda *blocks: sum(map(losses.total, blocks)), *results)
                for name, total in totals.items():
                    into = sums.setdefault(prefix + name, np.zeros((num, losses.NUM_SUMS)))
                    into[lo:hi] += total[: hi - lo]

            plan = plans.chunks(compute, 0, num, plan, job.width)
            read += 1
            if progress is not None and isinstance(data, Stream):
                fraction = 0.0 if length is None else (i + (j + 1) / length) / len(job.sources)
                progress(*((read, None) if length is None else (fraction * num, num)))
    return plan


def call(
    job: Job, tree: PyTree, coords: Any, states: Any, batch: Any, plan: Plan, starts: Any, count: int, offset: int
) -> dict[str, Any]:
    """The sums over blocks of one batch at the points of one call."""
    return kernels.sums_step(
        job.loss, job.params, tree, coords, states, batch, starts, np.int32(count), np.int32(offset),
        how=job.how, plan=plan, mesh=job.mesh,
    )  # fmt: skip


def _reestimated(job: Job, tree: PyTree, plan: Plan, points: np.ndarray) -> tuple[PyTree, Plan]:
    """The state with re-estimated averages at the points [first, last), from the first data set: leading axis the
    points.
    """
    sums: list[np.ndarray] = []
    weight = 0
    averaged = tuple(m is not None for m in job.momenta or ())
    for batch, count, offset in _batches(job.sources[""], job.counts[""], job.mesh, whole=True):

        def compute(plan: Plan, lo: int, hi: int, batch=batch, count=count, offset=offset) -> None:
            coords = _padded(points, lo, hi, plan, job)
            total: Any = None
            for start, size in _data.cuts(count, job.batch_size):
                static = {"how": job.how, "size": size, "loop": plan.loop, "mesh": job.mesh, "averaged": averaged}
                found = _batch_stats.batch_step(
                    job.loss, job.params, tree, coords, batch, np.int32(start), np.int32(offset), **static
                )
                found = [size * np.asarray(x, np.float64)[: hi - lo] for x in found]
                total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
            if not sums:
                sums.extend(np.zeros((len(points), *x.shape[1:])) for x in total)
            for into, x in zip(sums, total, strict=True):
                into[lo:hi] += x

        plan = plans.chunks(compute, 0, len(points), plan, job.width)
        weight += count
    return _batch_stats.restored(job.loss.state, sums, job.momenta or [], weight), plan


def means(job: Job, sums: Sums, values: Values) -> Table:
    """Means and standard errors of the points that sums and values are of."""
    table: Table = {"values": {}, "stderr": {}}
    for name, total in sums.items():
        is_loss = name in {prefix + "loss" for prefix in job.sources}
        table["values"][name] = losses.mean(total) + (values.get("", 0.0) if is_loss else 0.0)
        if not is_loss or job.loss.per_example:
            table["stderr"][name] = losses.standard_error(total)
    table["values"] |= {name: found for name, found in values.items() if name}
    return table


def warn(landscape: Landscape) -> None:
    """Raise if the loss is finite nowhere; warn of the share of cells where a value is not finite."""
    if not np.isfinite(landscape.values["loss"]).any():
        raise ValueError(
            "loss: not finite at any point of the grid; check the loss at the trained parameters, the data for NaN, "
            "and the range of the grid"
        )
    for name, found in landscape.values.items():
        share = 1 - np.isfinite(found).mean()
        if share:
            warnings.warn(
                f"values[{name!r}]: {share:.1%} of the cells are not finite; they are kept as they are and shown as "
                "holes. A smaller extent avoids them",
                stacklevel=4,
            )
