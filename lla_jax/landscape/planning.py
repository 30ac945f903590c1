"""How a job is going to run: the plan, timed on the first chunk; the probe that recognizes functions; both in words."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from lla_jax.core import losses
from lla_jax.core.arguments import warn_caller
from lla_jax.core.types import Batch, PyTree, Recipe
from lla_jax.execution import devices, plans, rewriting
from lla_jax.execution.plans import Plan
from lla_jax.landscape import kernels
from lla_jax.landscape.grids import grid_points
from lla_jax.landscape.jobs import Job, rows_in
from lla_jax.landscape.kernels import Points
from lla_jax.landscape.points import call, of_params

UNSTEADY = 1e-5  # relative difference between two runs of one block that rounding does not explain
_STEADY: dict[Hashable, None] = {}  # programs of this process that gave the same values twice
PLAN = ("chunk", "microbatch", "loop", "share", "scan")


def plan_of(recipe: dict[str, Any]) -> Plan:
    """The plan that a landscape was begun with, and is finished with."""
    return Plan(**{name: recipe["plan"][name] for name in PLAN})


def recipe_of(job: Job, plan: Plan) -> dict[str, Any]:
    """The plan as a recipe holds it."""
    device = job.mesh.devices.flat[0]
    return {name: getattr(plan, name) for name in PLAN} | {
        "devices": job.mesh.size,
        "data_shards": job.mesh.shape[devices.DATA],
        "platform": device.platform,
    }


def _key(job: Job, rows: int) -> Hashable:
    """What a program is compiled for, apart from the plan."""
    leaves, structure = jax.tree.flatten((job.loss, job.params, job.directions, job.first.batch))
    shapes = tuple((x.shape, str(x.dtype)) for x in leaves)
    return structure, shapes, rows, job.task.formula, job.momenta is None, job.task.whole, job.mesh


def _rows(job: Job) -> int:
    rows = rows_in(job, job.first.batch)
    return min(rows, job.task.batch_size or rows)


def _plan(job: Job, most: int) -> Plan:
    """The plan of the run: what the user fixed, and the fastest of the candidates for the rest; of use for at most
    ``most`` points at a time."""
    task, count = job.task, job.first.rows
    rows, points = _rows(job), -(-min(job.num, most) // job.width)
    bucket = 1 << (min(points, 1024) - 1).bit_length()
    key = (_key(job, rows), bucket, replace(task.execution, devices=job.mesh.size))

    def candidates() -> list[Plan]:
        few = rows if task.whole else min(256, rows)  # enough for the examples' values to be larger than the weights

        def one(params: PyTree, batch: Batch) -> Any:
            centre = Points(params, job.directions, np.zeros((1, len(job.coords)), np.float32))
            block = losses.block_at(batch, 0, few, few, 0)
            return kernels.points_sums(job.loss, centre, block, task.formula, Plan(1, few, "map", False))

        nbytes, primitives = rewriting.profile(one, job.params, job.first.batch)
        return plans.candidates(
            task.execution,
            points=points,
            rows=rows,
            row_bytes=nbytes // few,
            param_bytes=sum(x.nbytes for x in jax.tree.leaves(job.params)),
            whole=task.whole,
            sharable=task.rule.affine and job.momenta is None and _single_or_double(job.params),
            scannable="conv_general_dilated" not in primitives,
            on_cpu=job.mesh.devices.flat[0].platform == "cpu",
        )

    def seconds(plan: Plan) -> float:
        step, starts = _first_blocks(job, plan)
        taken = plans.timed(lambda: _first_call(job, plan, step, starts))
        return taken / (plan.chunk * job.mesh.size * step.microbatch * len(starts))

    return plans.choose(key, candidates, seconds, job.num * count)


def _single_or_double(params: PyTree) -> bool:
    return all(x.dtype in (np.float32, np.float64) for x in jax.tree.leaves(params))


def _first_blocks(job: Job, plan: Plan) -> tuple[Plan, np.ndarray]:
    """The plan with its microbatch, and the block starts, of the first call over the first batch."""
    rows = rows_in(job, job.first.batch)
    return next(plans.calls(plan, rows, job.first.rows, job.task.batch_size, job.task.whole))


def _first_call(job: Job, plan: Plan, step: Plan, starts: np.ndarray) -> dict[str, Any]:
    width = plan.chunk * job.width
    coords = grid_points(job.probed, 0, min(width, math.prod(map(len, job.probed))))
    coords, states = plans.pad_points(coords, width), None
    if job.momenta is not None:
        states = jax.tree.map(lambda x: np.broadcast_to(x, (len(coords), *x.shape)), job.loss.state)
    return call(job, Points(job.params, job.directions, coords, states), job.first, step, starts)


def planned(job: Job, plan: Plan | None, most: int | None = None) -> tuple[Plan, Recipe, float | None]:
    """(plan, recipe, seconds per point): the plan given or the fastest one, and its first call at the first points, run
    twice to see noise (once, where the same program was seen to have none). The mean over the first block at the first
    point is the probe, by which functions are recognized.

    ``most`` points at a time are going to be asked for, by default all. The seconds are None where nobody knows how
    many examples there are.
    """
    plan = _plan(job, most or job.num) if plan is None else plan
    program = (_key(job, _rows(job)), plan)
    runs: list[dict[str, np.ndarray]] = []
    probe: dict[str, float] = {}
    seconds, recipe = 0.0, dict(job.recipe)

    def compute(plan: Plan, lo: int, hi: int) -> None:
        nonlocal seconds
        runs.clear()  # of an attempt that ran out of memory
        step, starts = _first_blocks(job, plan)
        for _ in range(1 if program in _STEADY else 2):
            start = time.perf_counter()
            found = jax.block_until_ready(_first_call(job, plan, step, starts))
            seconds = (time.perf_counter() - start) / (step.microbatch * len(starts) * plan.chunk * job.mesh.size)
            runs.append({name: _mean(x) for name, x in found.items()})
        # of a call over several blocks, or shares of the data, the first one: it is the same for other layouts
        probe.update({name: float(_mean(np.asarray(x)[:1, :1])[0]) for name, x in found.items()})
        recipe["probe_rows"] = min(step.microbatch, rows_in(job, job.first.batch), job.first.rows)

    plan = plans.chunks(compute, 0, 1, plan, 1)
    values, plan = of_params(job, plan, grid_points(job.probed, 0, 1))
    one, two = (run["loss"][np.isfinite(runs[0]["loss"])] for run in (runs[0], runs[-1]))
    scale = np.maximum(np.abs(one), np.finfo(np.float32).tiny)
    difference = float(np.nan_to_num(np.abs(one - two) / scale, nan=np.inf).max(initial=0))
    recipe["probe"] = probe | {name: float(found[0]) for name, found in values.items()}
    recipe["deterministic"] = difference <= UNSTEADY
    if difference > UNSTEADY:
        _warn_unsteady(difference)
    else:
        _STEADY[program] = None
        if len(_STEADY) > plans.MOST_REMEMBERED:  # keys hold the functions they compare
            del _STEADY[next(iter(_STEADY))]
    known = [count for count in job.counts.values() if count is not None]
    return plan, recipe, seconds * sum(known) if len(known) == len(job.counts) else None


def _mean(blocks: Any) -> np.ndarray:
    return losses.unpack(losses.total(blocks)).mean


def text(job: Job, plan: Plan, seconds: float | None) -> str:
    """The plan for people, with the time it is going to take."""
    shards = job.mesh.shape[devices.DATA]
    said = [
        f"{' x '.join(map(str, map(len, job.coords)))} points",
        f"{plan.chunk} a call" + (f" on each of {job.mesh.size} devices" if job.mesh.size > 1 else ""),
        *([f"examples in {shards} shares"] if shards > 1 else []),
        "as a batch" if plan.loop == "vmap" else "one by one",
        "whole batches" if job.task.whole else f"{plan.microbatch} examples a block",
        *(["blocks looped over on the device"] if plan.scan else []),
        *(["first layer shared"] if plan.share else []),
    ]
    text = f"plan: {', '.join(said)}"
    return text if seconds is None else f"{text}; expected time {_duration(seconds)}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _warn_unsteady(difference: float) -> None:
    warn_caller(
        f"loss: two evaluations of the same batch at the same points differ by {difference:.1e} relative (the rule is "
        f"at most {UNSTEADY}); the landscape holds this noise. Turn off dropout, or pass its key to the Loss"
    )
