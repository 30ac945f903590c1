"""Means of the loss and the metrics at any points, from weighted sums added up in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from lla_jax.core import data as _data
from lla_jax.core import losses
from lla_jax.core.arguments import warn_caller
from lla_jax.core.data import Stream
from lla_jax.core.types import Landscape, PyTree
from lla_jax.execution import plans
from lla_jax.execution.plans import Plan
from lla_jax.execution.progress import Progress
from lla_jax.landscape import batch_stats as _batch_stats
from lla_jax.landscape import kernels
from lla_jax.landscape.jobs import Job, Piece, pieces, rows_in
from lla_jax.landscape.kernels import Blocks, Points
from lla_jax.landscape.means import Means

Values = dict[str, np.ndarray]  # by name, a number for every point


def _points(job: Job, plan: Plan, coords: np.ndarray, states: PyTree, lo: int, hi: int) -> Points:
    """The points [lo, hi), lengthened to a full chunk."""
    size = plan.chunk * job.width
    coords, states = jax.tree.map(lambda x: plans.pad_points(x[lo:hi], size), (coords, states))
    return Points(job.params, job.directions, coords, states)


def evaluated(
    job: Job,
    plan: Plan,
    coords: np.ndarray,
    progress: Progress | None = None,
    on_partial: Callable[[Means], None] | None = None,
) -> tuple[Means, Plan]:
    """Means of everything the job asks for.

    Args:
      job: what is computed.
      plan: how.
      coords: (C, k), the points.
      progress: called in points as streams are read.
      on_partial: called with the means over the data read so far if reading is interrupted or fails.

    Returns:
      The means at the points, and the plan in force at the end: less memory than expected makes it smaller.
    """
    values, plan = of_params(job, plan, coords)
    states: PyTree = None
    if job.momenta is not None:
        states, plan = _reestimated(job, plan, coords)
    sums: dict[str, np.ndarray] = {}  # packed
    try:
        for prefix, piece in _read(job, len(coords), progress):

            def compute(plan: Plan, lo: int, hi: int, prefix: str = prefix, piece: Piece = piece) -> None:
                points = _points(job, plan, coords, states, lo, hi)
                for name, total in _of_piece(job, plan, points, piece).items():
                    into = sums.setdefault(prefix + name, np.zeros((len(coords), total.shape[-1])))
                    into[lo:hi] += total[: hi - lo]

            plan = plans.chunks(compute, 0, len(coords), plan, job.width)
    except BaseException:
        if on_partial is not None and sums:
            on_partial(means(job, sums, values))
        raise
    return means(job, sums, values), plan


def _read(job: Job, num: int, progress: Progress | None) -> Iterator[tuple[str, Piece]]:
    """Every piece of every data set, with the prefix of its values; after one of a stream, the progress in points."""
    sets, read = job.task.sets, 0
    for i, (prefix, data) in enumerate(sets.items()):
        length = data.num_batches if isinstance(data, Stream) else None
        for j, piece in enumerate(pieces(data, job.counts[prefix], job.mesh, job.task.whole)):
            yield prefix, piece
            read += 1
            if progress is not None and isinstance(data, Stream):
                fraction = 0.0 if length is None else (i + (j + 1) / length) / len(sets)
                progress(*((read, None) if length is None else (fraction * num, num)))


def _of_piece(job: Job, plan: Plan, points: Points, piece: Piece) -> dict[str, np.ndarray]:
    """{name: (C, 7)}: packed sums over one piece of data at the points of one call."""
    calls = plans.calls(plan, rows_in(job, piece.batch), piece.rows, job.task.batch_size, job.task.whole)
    results = [call(job, points, piece, step, starts) for step, starts in calls]
    return {name: functools.reduce(np.add, [losses.total(found[name]) for found in results]) for name in results[0]}


def of_params(job: Job, plan: Plan, coords: np.ndarray) -> tuple[Values, Plan]:
    """Point metrics and, under the name '', the penalty at the points (C, k)."""
    values: Values = {}
    task = job.task
    if not task.point_metrics and job.loss.penalty is None:
        return values, plan

    def compute(plan: Plan, lo: int, hi: int) -> None:
        points = _points(job, plan, coords, None, lo, hi)
        found = kernels.point_step(
            job.loss,
            points,
            task.key,
            formula=task.formula,
            loop=plan.loop,
            mesh=job.mesh,
            point_metrics=task.point_metrics,
        )
        for name, x in found.items():
            values.setdefault(name, np.zeros(len(coords)))[lo:hi] = np.asarray(x)[: hi - lo]

    plan = plans.chunks(compute, 0, len(coords), plan, job.width)
    return values, plan


def call(job: Job, points: Points, piece: Piece, plan: Plan, starts: np.ndarray) -> dict[str, Any]:
    """The packed sums of some of a piece's blocks at the points of one call."""
    blocks = Blocks(piece.batch, starts, np.int32(piece.rows), np.int32(piece.offset))
    return kernels.sums_step(job.loss, points, blocks, formula=job.task.formula, plan=plan, mesh=job.mesh)


def _reestimated(job: Job, plan: Plan, coords: np.ndarray) -> tuple[PyTree, Plan]:
    """The state with re-estimated averages at the points (C, k), from the first data set: leading axis C."""
    sums: list[np.ndarray] = []
    weight = 0
    averaged = tuple(m is not None for m in job.momenta or ())
    for piece in pieces(job.task.data, job.counts[""], job.mesh, whole=True):

        def compute(plan: Plan, lo: int, hi: int, piece: Piece = piece) -> None:
            points = _points(job, plan, coords, None, lo, hi)
            total: Any = None
            for start, size in _data.cuts(piece.rows, job.task.batch_size):
                found = _batch_stats.batch_step(
                    job.loss,
                    points,
                    Blocks(piece.batch, np.int32(start), None, np.int32(piece.offset)),
                    formula=job.task.formula,
                    size=size,
                    loop=plan.loop,
                    mesh=job.mesh,
                    averaged=averaged,
                )
                found = [size * np.asarray(x, np.float64)[: hi - lo] for x in found]
                total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
            if not sums:
                sums.extend(np.zeros((len(coords), *x.shape[1:])) for x in total)
            for into, x in zip(sums, total, strict=True):
                into[lo:hi] += x

        plan = plans.chunks(compute, 0, len(coords), plan, job.width)
        weight += piece.rows
    return _batch_stats.restored(job.loss.state, sums, job.momenta or [], weight), plan


def means(job: Job, packed: Mapping[str, np.ndarray], values: Values) -> Means:
    """Means and standard errors of the points that packed sums and values are of."""
    of_loss = {prefix + "loss" for prefix in job.task.sets}
    penalty = values.get("", 0.0)
    sums = {name: losses.unpack(x) for name, x in packed.items()}
    known = [name for name in sums if name not in of_loss or job.loss.per_example]
    found = {name: x.mean + penalty if name in of_loss else x.mean for name, x in sums.items()}
    rest = {name: x for name, x in values.items() if name}
    return Means(found | rest, {name: sums[name].standard_error for name in known})


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
            warn_caller(
                f"values[{name!r}]: {share:.1%} of the cells are not finite; they are kept as they are and shown as "
                "holes. A smaller extent avoids them"
            )
