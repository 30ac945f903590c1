"""Computes the means of the loss and the metrics at any points, from weighted sums that are added up in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from lla_jax.core import data as _data
from lla_jax.core import interrupts, losses, precision
from lla_jax.core.arguments import warn_caller
from lla_jax.core.data import Stream
from lla_jax.core.results import Landscape
from lla_jax.core.types import PyTree
from lla_jax.core.wholes import Whole
from lla_jax.execution import plans
from lla_jax.execution.plans import Plan
from lla_jax.execution.progress import Progress
from lla_jax.landscape import batch_stats as _batch_stats
from lla_jax.landscape import kernels
from lla_jax.landscape.jobs import Job, Piece, pieces, rows_per_device
from lla_jax.landscape.kernels import Blocks, Points
from lla_jax.landscape.means import Means
from lla_jax.landscape.rules import RULES

RESOLVED = 4.0  # units of rounding by which a half-precision loss must bend, for its curvature to be seen

Values = dict[str, np.ndarray]
"""{name: (C,)}, a number for every point."""


def _points(job: Job, plan: Plan, coords: np.ndarray, states: PyTree, lo: int, hi: int) -> Points:
    """The points of rows [lo, hi) of ``coords`` and ``states``, padded to a full chunk on every device."""
    size = plan.chunk * job.point_shards
    rows = job.task.rule.coords(coords[lo:hi]), jax.tree.map(lambda x: x[lo:hi], states)
    return Points(job.params, job.directions, *jax.tree.map(lambda x: plans.pad_points(x, size), rows))


def compute_means(
    job: Job,
    plan: Plan,
    coords: np.ndarray,
    progress: Progress | None = None,
    on_partial: Callable[[Means], None] | None = None,
) -> tuple[Means, Plan]:
    """Compute the means of all values of a job at C points, over all data sets.

    Args:
      job: the job, with its axes.
      plan: the plan to start with.
      coords: (C, k), the coordinates of the points.
      progress: called as ``progress(done, total)``, in points, after every batch of a stream.
      on_partial: called with the means over the data read so far, at all points, if the call is interrupted or fails.

    Returns:
      (means, plan at the end), a smaller plan than at the start if memory did not suffice.
    """
    values, plan = compute_point_values(job, plan, coords)
    states, plan = states_at(job, plan, coords)
    sums: dict[str, np.ndarray] = {}  # packed
    try:
        for prefix, piece in _read(job, len(coords), progress):

            def compute(plan: Plan, lo: int, hi: int, prefix: str = prefix, piece: Piece = piece) -> None:
                points = _points(job, plan, coords, states, lo, hi)
                for name, total in _sum_piece(job, plan, points, piece).items():
                    packed = sums.setdefault(prefix + name, np.zeros((len(coords), total.shape[-1])))
                    packed[lo:hi] += total[: hi - lo]

            plan = plans.run_chunks(compute, 0, len(coords), plan, job.point_shards)
    except BaseException:
        if on_partial is not None and sums:
            on_partial(_means_from_sums(job, sums, values))
        raise
    return _means_from_sums(job, sums, values), plan


def _read(job: Job, num: int, progress: Progress | None) -> Iterator[tuple[str, Piece]]:
    """Yield (prefix of the data set, piece) for all pieces of all data sets, and report progress after each batch.

    Only batches of streams are reported: as the fraction of all data that is read, times ``num`` points; or as the
    number of batches, without a total, if the stream has no length.
    """
    sets, read = job.task.sets, 0
    for i, (prefix, data) in enumerate(sets.items()):
        length = data.num_batches if isinstance(data, Stream) else None
        for j, piece in enumerate(pieces(data, job.counts[prefix], job.mesh, not job.task.couples_examples)):
            yield prefix, piece
            read += 1
            if progress is not None and isinstance(data, Stream):
                fraction = 0.0 if length is None else (i + (j + 1) / length) / len(sets)
                progress(*((read, None) if length is None else (fraction * num, num)))


def _sum_piece(job: Job, plan: Plan, points: Points, piece: Piece) -> dict[str, np.ndarray]:
    """The packed sums of one piece at the C points of one call, in float64: {name: (C, 7)}."""
    calls = plans.split_calls(
        plan, rows_per_device(job, piece.batch), piece.rows, job.task.batch_size, job.task.couples_examples
    )
    results: list[dict[str, Any]] = []
    for step, starts in calls:
        sums = sum_blocks(job, points, piece, step, starts)
        interrupts.wait(results[-1:])  # so that an interrupt acts between the calls
        results.append(sums)
    interrupts.wait(results[-1:])
    return {name: functools.reduce(np.add, [losses.total(sums[name]) for sums in results]) for name in results[0]}


def compute_point_values(job: Job, plan: Plan, coords: np.ndarray) -> tuple[Values, Plan]:
    """Compute the point metrics and, under the name '', the penalty of the loss at points with coordinates (C, k).

    Returns:
      (values, plan at the end), a smaller plan than at the start if memory did not suffice.
    """
    values: Values = {}
    task = job.task
    if not task.point_metrics and job.loss.penalty is None:
        return values, plan

    def compute(plan: Plan, lo: int, hi: int) -> None:
        points = _points(job, plan, coords, None, lo, hi)
        computed = kernels.point_values(
            job.loss,
            points,
            task.key,
            formula=task.formula,
            loop=plan.loop,
            mesh=job.mesh,
            point_metrics=task.point_metrics,
        )
        for name, x in computed.items():
            values.setdefault(name, np.zeros(len(coords)))[lo:hi] = np.asarray(interrupts.wait(x))[: hi - lo]

    plan = plans.run_chunks(compute, 0, len(coords), plan, job.point_shards)
    return values, plan


def sum_blocks(job: Job, points: Points, piece: Piece, plan: Plan, starts: np.ndarray) -> dict[str, Any]:
    """Compute the packed sums of some blocks of a piece at the points of one call; see ``kernels.block_sums``.

    Args:
      job: the job, with its axes.
      points: the C points, a full chunk on every device.
      piece: the examples.
      plan: the plan, whose microbatch is the size of the blocks.
      starts: (S,), index of the row at which each block starts, on every data shard.
    """
    blocks = Blocks(piece.batch, starts, np.int32(piece.rows), np.int32(piece.offset))
    return kernels.block_sums(job.loss, points, blocks, formula=job.task.formula, plan=plan, mesh=job.mesh)


def states_at(job: Job, plan: Plan, coords: np.ndarray) -> tuple[PyTree, Plan]:
    """(states, plan at the end): the state of the loss at each of C points, on the host; None for one at all points.

    They are those that the job gives; averages are re-estimated on the main data if that is the policy.
    """
    states = None if job.states is None else job.states(coords)
    return (states, plan) if job.momenta is None else _reestimate_states(job, plan, coords, states)


def _reestimate_states(job: Job, plan: Plan, coords: np.ndarray, given: PyTree) -> tuple[PyTree, Plan]:
    """The states at C points as ``states_at`` gives them; ``given`` are those before, or None for that of the loss."""
    sums: list[np.ndarray] = []
    weight = 0
    is_average = tuple(m is not None for m in job.momenta or ())
    for piece in pieces(job.task.data, job.counts[""], job.mesh, padded=False):

        def compute(plan: Plan, lo: int, hi: int, piece: Piece = piece) -> None:
            points = _points(job, plan, coords, given, lo, hi)
            total: Any = None
            for start, size in _data.cuts(piece.rows, job.task.batch_size):
                statistics = _batch_stats.batch_statistics(
                    job.loss,
                    points,
                    Blocks(piece.batch, np.int32(start), None, np.int32(piece.offset)),
                    formula=job.task.formula,
                    size=size,
                    loop=plan.loop,
                    mesh=job.mesh,
                    is_average=is_average,
                )
                weighted = [size * np.asarray(x, np.float64)[: hi - lo] for x in interrupts.wait(statistics)]
                total = weighted if total is None else [a + b for a, b in zip(total, weighted, strict=True)]
            if not sums:
                sums.extend(np.zeros((len(coords), *x.shape[1:])) for x in total)
            for x, y in zip(sums, total, strict=True):
                x[lo:hi] += y

        plan = plans.run_chunks(compute, 0, len(coords), plan, job.point_shards)
        weight += piece.rows
    before = given
    if given is None:
        before = jax.tree.map(lambda x: np.broadcast_to(x, (len(coords), *x.shape)), job.loss.state)
    return _batch_stats.restore_state(before, sums, job.momenta or [], weight), plan


def _means_from_sums(job: Job, packed: Mapping[str, np.ndarray], values: Values) -> Means:
    """The means and standard errors of packed sums, the penalty added to losses, and the point metrics."""
    loss_names = {prefix + "loss" for prefix in job.task.sets}
    penalty = values.get("", 0.0)
    sums = {name: losses.unpack(x) for name, x in packed.items()}
    metrics = [name for name, _ in job.task.metrics]
    wholes = [prefix for prefix, data in job.task.sets.items() if isinstance(data, Whole)]
    one_example = {prefix + name for prefix in wholes for name in ("loss", *metrics)}

    def of_examples(name: str) -> bool:
        """Whether the sums count examples, and not batches, which have no squares; each whole of a stream is one."""
        return job.loss.per_example or bool(np.any(sums[name].ww > 0))

    with_error = [name for name in sums if name not in one_example and (name not in loss_names or of_examples(name))]
    means = {name: x.mean + penalty if name in loss_names else x.mean for name, x in sums.items()}
    point_metrics = {name: x for name, x in values.items() if name}
    return Means(means | point_metrics, {name: sums[name].standard_error for name in with_error})


def check_values(landscape: Landscape, reads: bool = True) -> None:
    """Raise an error if the loss of a landscape is finite nowhere; warn of cells that are not, and of a flat loss.

    Args:
      landscape: the landscape.
      reads: whether the loss reads the parameters at all; if not, it is flat as it must be.

    Raises:
      ValueError: the loss is finite at no point.

    Warns:
      UserWarning: for each value with cells that are not finite, their fraction; a loss that is the same at all points
        along normalized directions, and not 0, or differs or bends by less than the network's half precision
        rounds it.
    """
    if not np.isfinite(landscape.values["loss"]).any():
        raise ValueError(
            "loss: not finite at any point of the grid; check the loss at the trained parameters, the directions and "
            "the data for NaN, and the range of the grid"
        )
    for name, cells in landscape.values.items():
        fraction = 1 - np.isfinite(cells).mean()
        if fraction:
            warn_caller(
                f"values[{name!r}]: {fraction:.1%} of the cells are not finite; they are kept as they are and shown as "
                "holes. A smaller extent avoids them"
            )
    if reads:
        _check_spread(landscape)


def _check_spread(landscape: Landscape) -> None:
    loss, rule = landscape.only_evaluated("loss"), landscape.recipe.get("rule")
    known = loss if landscape.evaluated is None else loss[landscape.evaluated]
    low, high = float(known.min()), float(known.max())
    if not (np.isfinite(low) and np.isfinite(high)) or max(loss.shape) < 3 or rule not in RULES:
        return  # two points may be symmetric
    if low == high:
        if low == 0 or not landscape.recipe.get("directions", {}).get("normalize"):
            return  # a fit may be perfect wherever we look, and a direction of the user's be as short as meant
        warn_caller(
            f"loss: exactly {low:.8g} at all {known.size} points of the grid, so that nothing is seen: the directions "
            "move no weights on which the loss depends, or not far enough. Directions are 0 where they were normalized "
            'to weights that are 0, such as the B of a fresh LoRA: use normalize(..., by="model"), or unit=True; or '
            "take a larger extent"
        )
        return
    entry = landscape.recipe.get("precision", {})
    coarse = precision.find_coarse(entry)
    if entry.get("lost", 0) > precision.LOST_MOST:
        return  # said already
    if coarse is None:
        return
    digits = entry["bits"]
    rounding = 2.0**-digits * max(abs(low), abs(high))
    if high - low <= rounding:
        warn_caller(
            f"loss: its values differ by {high - low:.2g}, which {coarse.name} ({digits} significant bits), in which "
            f"{coarse.who}, does not resolve; {coarse.remedy}, or take a larger extent"
        )
    elif any(len(axis) > 2 for axis in landscape.coords):
        bend = _bend(loss, landscape.coords)
        if bend <= RESOLVED * rounding:
            warn_caller(
                f"loss: {coarse.name} ({digits} significant bits), in which {coarse.who}, does not resolve the "
                f"curvature of the loss on this grid, which bends by {bend:.2g} over the whole of an axis at most, "
                f"beside a rounding of {rounding:.1g}; {coarse.remedy}, or take a larger extent"
            )


def _bend(loss: np.ndarray, coords: tuple[np.ndarray, ...]) -> float:
    """The largest second difference over the first, middle and last point along an axis, of those of 3 or more."""
    bends = []
    for i, axis in enumerate(coords):
        if len(axis) > 2:
            middle = len(axis) // 2
            first, centre, last = np.moveaxis(loss, i, 0)[[0, middle, -1]]
            part = (axis[middle] - axis[0]) / (axis[-1] - axis[0])
            bend = np.abs(2 * ((1 - part) * first + part * last - centre))
            bends.append(float(bend[~np.isnan(bend)].max(initial=0.0)) if np.isfinite(bend).any() else np.inf)
    return max(bends)
