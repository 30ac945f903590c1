"""Compiles the step of a landscape for a slice of TPUs: the fastest plan, whether it fits, how long it takes.

The programs are those of ``evaluate`` (``kernels.block_sums``), compiled for shapes alone: nothing is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lla_jax.core import data as _data
from lla_jax.core import precision
from lla_jax.core.data import Stream
from lla_jax.core.types import Execution, PyTree
from lla_jax.core.wholes import Whole
from lla_jax.execution import devices, plans, topologies
from lla_jax.execution.plans import Plan
from lla_jax.execution.topologies import Call, Part, Program, Slice, abstract, abstract_rows
from lla_jax.landscape import kernels, planning, tasks
from lla_jax.landscape.grids import grid
from lla_jax.landscape.jobs import Job, Piece, rows_per_device
from lla_jax.landscape.kernels import Blocks, Points
from lla_jax.landscape.rules import check_rule
from lla_jax.landscape.tasks import Task

REMEDY = (
    "pass a smaller batch_size, or a slice with more chips, over which the examples are split "
    "(execution=lla.Execution(data_shards=...)); a landscape holds all parameters on each chip"
)


def compile_landscape(
    loss: Any,
    params: PyTree,
    data: Any,
    on: Slice,
    *,
    points: tuple[int, ...],
    batch_size: int | None = None,
    batch_stats: str = "frozen",
    metrics: Mapping[str, Any] | None = None,
    extra_data: Mapping[str, Any] | None = None,
    execution: Execution | None = None,
    told: Callable[[str], None] = lambda text: None,
) -> Part:
    """Compile the plans that ``evaluate`` would time on the slice, and choose the one of the least estimated time.

    The points are split over the hosts (``lla-jax landscape --shard I/N``), and on each over its chips. Penalties and
    metrics of the parameters alone, which are computed once for a point, are left out.

    Args:
      loss: as for ``evaluate``, and so are data, batch_size, metrics, extra_data and execution (without devices).
      params: the centre; arrays or ``jax.ShapeDtypeStruct``.
      data: one data set or a stream, whose first batch is compiled for.
      on: the slice.
      points: the points of the grid along each axis.
      batch_stats: "frozen" or "batch".
      told: called with a line before each program that is compiled.
    """
    job = _job(loss, params, data, on, points, batch_size, batch_stats, metrics, extra_data, execution or Execution())
    share = -(-job.num // on.hosts)  # of one host
    tried: dict[str, tuple[Plan, Program]] = {}
    for plan in planning.propose(job, -(-share // job.point_shards)):
        text = planning.describe(job, plan, None).removeprefix("plan: ")
        told(f"landscape: {text}")
        tried[text] = plan, _compile(job, plan, on)
    times = {text: _seconds(job, plan, share, program) for text, (plan, program) in tried.items()}
    fitting = [text for text in tried if tried[text][1].fits]
    best = min(fitting or tried, key=lambda text: (np.inf if times[text] is None else times[text], tried[text][1].peak))
    plan, program = tried.pop(best)
    others = {text: times[text] for text in tried}
    return Part("landscape", best, "points", job.num, (Call(program, _runs(job, plan, share)),), others, REMEDY)


def _job(
    loss: Any,
    params: PyTree,
    data: Any,
    on: Slice,
    points: tuple[int, ...],
    batch_size: int | None,
    batch_stats: str,
    metrics: Any,
    extra_data: Any,
    execution: Execution,
) -> Job:
    """The job of ``evaluate`` with shapes in place of arrays, on the chips of one host."""
    coords = grid(points=points, dims=len(points))
    rule = check_rule("add", coords)
    plans.check_for_landscape(execution)
    task = tasks.check(Task(loss, data, rule, batch_size, batch_stats, metrics, None, extra_data, None, execution))
    wide, params = precision.at_least_single(task.loss, params)
    chips = topologies.devices_of(on, one_host=True)
    num = int(np.prod(points))
    sets = {prefix: _data.first_batch(x) if isinstance(x, Stream) else x for prefix, x in task.sets.items()}
    mesh = _mesh(task, sets, chips, -(-num // on.hosts), on)
    here = devices.replicated(mesh)
    rows = {prefix: abstract_rows(x, mesh, devices.DATA) for prefix, x in sets.items()}
    extra = {prefix[:-1]: x for prefix, x in rows.items() if prefix}
    task = task._replace(loss=abstract(wide, here), data=rows[""], extra_data=extra)
    counts: dict[str, int | None] = {prefix: _length(x) for prefix, x in _data_sets(data, extra_data).items()}
    piece = Piece(rows[""], _data.num_examples(sets[""]), 0)
    params = abstract(params, here)
    axes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(points), *x.shape), x.dtype, sharding=here), params)
    return Job(task, params, coords, coords, counts, piece, None, mesh, {}, True, axes)


def _data_sets(data: Any, extra_data: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"": data} | {f"{name}_": x for name, x in (extra_data or {}).items()}


def _length(data: Any) -> int | None:
    """The examples of a data set, or of all batches of a stream if they are as long as its first; None if unknown."""
    if not isinstance(data, Stream):
        return _data.num_examples(_data.as_arrays(data))
    return None if data.num_batches is None else data.num_batches * _data.num_examples(_data.first_batch(data))


def _mesh(task: Task, sets: Mapping[str, Any], chips: tuple[Any, ...], points: int, on: Slice) -> Mesh:
    """The mesh of the chips of one host, by shards of the points and of the data."""
    uncut = "the batches of this loss are not cut" if task.couples_examples else ""
    if any(isinstance(x, Whole) for x in sets.values()):
        uncut = "lla.whole(data) is one example, which is not split over devices"
    held = [x for x in sets.values() if not isinstance(x, Stream)]
    nbytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(held) if hasattr(x, "dtype"))
    shards = devices.data_shards(task.execution, chips, points, nbytes, uncut, on.chip.memory)
    return devices.mesh_of(chips, shards)


def _compile(job: Job, plan: Plan, on: Slice) -> Program:
    """The program of the first blocks of the data at one chunk of points on every chip."""
    cut, starts = planning.first_blocks(job, plan)
    here = devices.replicated(job.mesh)
    count = plan.chunk * job.point_shards
    points = Points(job.params, job.directions, np.zeros((count, job.num_directions)), None)
    blocks = Blocks(job.first_piece.batch, starts, np.int32(job.first_piece.rows), np.int32(0))
    moved = (points._replace(coords=abstract(points.coords, here)), blocks._replace(**_numbers(blocks, here)))
    return topologies.compile_program(
        kernels.block_sums,
        job.loss,
        *moved,
        on=on,
        name="landscape step",
        formula=job.task.formula,
        plan=cut,
        mesh=job.mesh,
    )


def _numbers(blocks: Blocks, here: Any) -> dict[str, Any]:
    """The starts and counts of blocks as shapes."""
    return {name: abstract(getattr(blocks, name), here) for name in ("starts", "rows", "offset")}


def _runs(job: Job, plan: Plan, share: int) -> int | None:
    """How often one host calls the program for its share of the points and all data; None for unknown lengths."""
    per_chunk = 0
    for prefix, count in job.counts.items():
        if count is None:
            return None
        data = {"": job.first_piece.batch}.get(prefix) if not prefix else job.task.extra_data[prefix[:-1]]
        rows = rows_per_device(job, data)
        length = _data.num_examples(data)
        calls = plans.split_calls(plan, rows, min(count, length), job.task.batch_size, job.task.couples_examples)
        per_chunk += sum(1 for _ in calls) * -(-count // length)
    return per_chunk * -(-share // (plan.chunk * job.point_shards))


def _seconds(job: Job, plan: Plan, share: int, program: Program) -> float | None:
    """The estimated seconds of the whole job under a plan; None if unknown or without the memory for it."""
    runs = _runs(job, plan, share)
    return None if program.seconds is None or runs is None or not program.fits else program.seconds * runs
