"""Makes the first call of a job: chooses a plan, and records the values that identify the job's functions.

The plan is the fastest of those that ``execution.plans`` proposes and times. The values, ``recipe["probe"]``, are those
of the first block at the first point of the reference grid: they show whether a loss or metric changed, which no other
entry of a recipe tells.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from lla_jax.core import interrupts, losses
from lla_jax.core.arguments import Misuse, warn_caller
from lla_jax.core.remembering import remember
from lla_jax.core.text import duration
from lla_jax.core.types import Batch, Loss, PyTree, Recipe
from lla_jax.execution import devices, plans, rewriting
from lla_jax.execution.plans import Plan
from lla_jax.landscape import kernels
from lla_jax.landscape.grids import grid_points
from lla_jax.landscape.jobs import Job, rows_per_device
from lla_jax.landscape.kernels import Points
from lla_jax.landscape.points import compute_point_values, sum_blocks

NOISE = 1e-5  # a larger relative difference between two evaluations of one block is noise, not rounding
_DETERMINISTIC: dict[Hashable, None] = {}  # programs of this process that gave the same values twice
PLAN = ("chunk", "microbatch", "loop", "share", "scan")


def plan_from_recipe(recipe: Mapping[str, Any], most: int) -> Plan:
    """The ``Plan`` in the recipe of a landscape, with which the landscape was begun and has to be finished.

    Its chunk has at most ``most`` points, those of the landscape: a recipe from a file may claim any number.
    """
    try:
        plan = Plan(**{name: recipe["plan"][name] for name in PLAN})
        return replace(plan, chunk=min(plan.chunk, most))
    except (KeyError, TypeError) as error:
        raise Misuse("resume", "its recipe has no plan, or a damaged one; start anew without resume") from error


def plan_recipe(job: Job, plan: Plan) -> dict[str, Any]:
    """The entry of a recipe that describes the plan and the devices."""
    device = job.mesh.devices.flat[0]
    return {name: getattr(plan, name) for name in PLAN} | {
        "devices": job.mesh.size,
        "data_shards": job.mesh.shape[devices.DATA],
        "platform": device.platform,
    }


def _key(job: Job, rows: int) -> Hashable:
    """A key of everything for which a program is compiled, except the plan."""
    leaves, structure = jax.tree.flatten((job.loss, job.params, job.directions, job.first_piece.batch))
    shapes = tuple((x.shape, str(x.dtype)) for x in leaves)
    return structure, shapes, rows, job.task.formula, not job.has_states, job.task.couples_examples, job.mesh


def _rows(job: Job) -> int:
    """The largest number of rows of the first piece that one device may take as a block."""
    rows = rows_per_device(job, job.first_piece.batch)
    return min(rows, job.task.batch_size or rows)


def _fastest_plan(job: Job, most: int) -> Plan:
    """The fastest of the plans that the user's execution options allow, for at most ``most`` points at a time."""
    task, count = job.task, job.first_piece.rows
    rows, points = _rows(job), -(-min(job.num, most) // job.point_shards)
    bucket = 1 << (min(points, 1024) - 1).bit_length()
    key = (_key(job, rows), bucket, replace(task.execution, devices=job.mesh.size))

    def seconds(plan: Plan) -> float:
        cut, starts = first_blocks(job, plan)
        elapsed = plans.time_call(lambda: _first_call(job, plan, cut, starts))
        return elapsed / (plan.chunk * job.mesh.size * cut.microbatch * len(starts))

    return plans.choose_fastest(key, lambda: propose(job, points), seconds, job.num * count)


def propose(job: Job, points: int) -> list[Plan]:
    """The plans that ``execution.plans`` proposes for a job with so many points on each device; nothing is computed."""
    task, rows = job.task, _rows(job)
    # enough examples for their values to be larger than the weights
    few = rows if task.couples_examples else min(256, rows)

    def one(loss: Loss, params: PyTree, directions: PyTree, batch: Batch) -> Any:
        centre = Points(params, directions, np.zeros((1, job.num_directions), np.float32))
        block = losses.block_at(batch, 0, few, few, 0)
        return kernels.sums_at_points(loss, centre, block, task.formula, Plan(1, few, "map", False))

    device, arguments = job.mesh.devices.flat[0], (job.loss, job.params, job.directions, job.first_piece.batch)
    nbytes, primitives, *_ = rewriting.profile(one, *arguments, device=device)
    return plans.candidates(
        task.execution,
        points=points,
        rows=rows,
        row_bytes=nbytes // few,
        param_bytes=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(job.params)),
        uncut=task.couples_examples,
        sharable=task.rule.affine and not job.has_states and _single_or_double(job.params),
        scannable="conv_general_dilated" not in primitives,
        on_cpu=devices.on_cpu(job.mesh),
    )


def _single_or_double(params: PyTree) -> bool:
    return all(x.dtype in (np.float32, np.float64) for x in jax.tree.leaves(params))


def first_blocks(job: Job, plan: Plan) -> tuple[Plan, np.ndarray]:
    """(plan, starts of the blocks) of the first call over the first piece."""
    rows = rows_per_device(job, job.first_piece.batch)
    return next(plans.split_calls(plan, rows, job.first_piece.rows, job.task.batch_size, job.task.couples_examples))


def _first_call(job: Job, plan: Plan, cut: Plan, starts: np.ndarray) -> dict[str, Any]:
    """The packed sums of some blocks of the first piece, at the first points of the reference grid."""
    size = plan.chunk * job.point_shards
    coords = grid_points(job.reference_grid, 0, min(size, math.prod(map(len, job.reference_grid))))
    coords, states = plans.pad_points(coords, size), None
    if job.states is not None:
        states = job.states(coords)
    elif job.momenta is not None:
        states = jax.tree.map(lambda x: np.broadcast_to(x, (len(coords), *x.shape)), job.loss.state)
    points = Points(job.params, job.directions, job.task.rule.coords(coords), states)
    return sum_blocks(job, points, job.first_piece, cut, starts)


def choose_plan(job: Job, plan: Plan | None, most: int | None = None) -> tuple[Plan, Recipe, float | None]:
    """Choose a plan, make the first call with it, and record the values that identify the functions of the job.

    The call is made twice, unless it is known to be deterministic, and a loss whose values differ gives a warning. If
    memory does not suffice, a smaller plan is taken.

    Args:
      job: the job, with its axes.
      plan: a plan to take; None for the fastest one.
      most: the largest number of points that will be computed at a time; None for all.

    Returns:
      (plan, recipe, seconds per point). The recipe is that of the job with the entries "probe", "probe_rows" and
      "deterministic". The seconds are None if the number of examples is unknown.
    """
    plan = _fastest_plan(job, most or job.num) if plan is None else plan
    compiled_for = (_key(job, _rows(job)), plan)
    calls: list[dict[str, np.ndarray]] = []
    identity: dict[str, float] = {}
    seconds, recipe = 0.0, dict(job.recipe)

    def compute(plan: Plan, lo: int, hi: int) -> None:
        nonlocal seconds
        calls.clear()  # of an attempt that ran out of memory
        cut, starts = first_blocks(job, plan)
        for _ in range(1 if compiled_for in _DETERMINISTIC else 2):
            start = time.perf_counter()
            sums = interrupts.wait(_first_call(job, plan, cut, starts))
            seconds = (time.perf_counter() - start) / (cut.microbatch * len(starts) * plan.chunk * job.mesh.size)
            calls.append({name: _mean(x) for name, x in sums.items()})
        # only the first block of the first data shard, which is the same under other plans and on other devices
        identity.update({name: float(_mean(np.asarray(x)[:1, :1])[0]) for name, x in sums.items()})
        recipe["probe_rows"] = min(cut.microbatch, rows_per_device(job, job.first_piece.batch), job.first_piece.rows)

    plan = plans.run_chunks(compute, 0, 1, plan, 1)
    values, plan = compute_point_values(job, plan, grid_points(job.reference_grid, 0, 1))
    one, two = (means["loss"][np.isfinite(calls[0]["loss"])] for means in (calls[0], calls[-1]))
    scale = np.maximum(np.abs(one), np.finfo(np.float32).tiny)
    difference = float(np.nan_to_num(np.abs(one - two) / scale, nan=np.inf).max(initial=0))
    recipe["probe"] = identity | {name: float(value[0]) for name, value in values.items()}
    recipe["deterministic"] = difference <= NOISE
    if difference > NOISE:
        _warn_of_noise(difference)
    else:
        remember(_DETERMINISTIC, compiled_for, lambda: None)
    known = [count for count in job.counts.values() if count is not None]
    return plan, recipe, seconds * sum(known) if len(known) == len(job.counts) else None


def _mean(blocks: Any) -> np.ndarray:
    """The means (...) that the packed sums (..., S, 7) of S blocks give together."""
    return losses.unpack(losses.total(blocks)).mean


def describe(job: Job, plan: Plan, seconds: float | None) -> str:
    """The plan in words, for the log, with the seconds that the job is expected to take (None if unknown)."""
    shards = job.mesh.shape[devices.DATA]
    parts = [
        f"{' x '.join(map(str, map(len, job.coords)))} points",
        f"{plan.chunk} a call" + (f" on each of {job.mesh.size} devices" if job.mesh.size > 1 else ""),
        *([f"data in {shards} shards"] if shards > 1 else []),
        "as a batch" if plan.loop == "vmap" else "one by one",
        "batches as they are" if job.task.couples_examples else f"{plan.microbatch} examples a block",
        *(["blocks looped over on the device"] if plan.scan else []),
        *(["first layer shared"] if plan.share else []),
    ]
    text = f"plan: {', '.join(parts)}"
    return text if seconds is None else f"{text}; expected time {duration(seconds)}"


def _warn_of_noise(difference: float) -> None:
    warn_caller(
        f"loss: two evaluations of the same batch at the same points differ by {difference:.1e} relative; it must be "
        f"at most {NOISE}, and the landscape holds this noise. Turn off dropout, or pass its key to the Loss"
    )
