"""Computes standard errors of differences of means between points, which share their examples.

Losses at two points are those of the same examples, so that most of their scatter cancels in a difference: its error
comes from the differences of each example, and is far smaller than that of adding the variances of two means.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import data as _data
from lla_jax.core import interrupts, losses
from lla_jax.core.called import call
from lla_jax.core.types import Batch, Loss, PyTree
from lla_jax.core.wholes import Whole
from lla_jax.execution.plans import Plan
from lla_jax.landscape import jobs, points
from lla_jax.landscape.jobs import Job
from lla_jax.landscape.kernels import Formula
from lla_jax.landscape.rules import params_at

Contrast = Mapping[float, float]
"""{t: coefficient}: a sum of means at points, such as {0.5: 1, 0: -0.5, 1: -0.5}."""


def contrast_errors(job: Job, plan: Plan, contrasts: Mapping[str, Sequence[Contrast]]) -> dict[str, list[float]]:
    """The standard errors of sums of means sum_p c_p L(t_p), over independent examples that all points share.

        sqrt(n / (n - 1) sum_i e_i^2),   e_i = sum_p c_p (s_ip - L(t_p) w_ip) / sum_i w_ip

    with the weighted loss s_ip of example i at point p, and its weight w_ip. For weights 1 it is that of the mean of
    sum_p c_p l_i(t_p). The penalty has no error.

    Args:
      job: the job, with its axes.
      plan: its plan, of which the size of the blocks is taken.
      contrasts: {name of a value: contrasts}; of values whose means have a standard error.

    Returns:
      {name: errors}, NaN where there are fewer than two examples.
    """
    at = sorted({t for each in contrasts.values() for contrast in each for t in contrast})
    states, plan = points.states_at(job, plan, np.array(at)[:, None])
    errors: dict[str, list[float]] = {}
    kinds = ("loss", *(name for name, _ in job.task.metrics))
    for prefix in job.task.sets:
        names = [kind for kind in kinds if prefix + kind in contrasts]
        for name, (s, w) in (_entries(job, plan, prefix, at, states, names) if names else {}).items():
            each = contrasts[prefix + name]
            errors[prefix + name] = [_error({at.index(t): c for t, c in one.items()}, s, w) for one in each]
    return errors


def _error(contrast: Mapping[int, float], s: np.ndarray, w: np.ndarray) -> float:
    """The standard error of a contrast of the rows of s and w (P, N)."""
    if all(c == 0 for c in contrast.values()):
        return 0.0
    counted = (w != 0).any(0)
    n = int(counted.sum())
    if n < 2:
        return float("nan")
    with np.errstate(invalid="ignore", divide="ignore"):
        e = sum(c * (s[p] - s[p].sum() / w[p].sum() * w[p]) / w[p].sum() for p, c in contrast.items() if c != 0)
        return float(np.sqrt(n / (n - 1) * np.square(e).sum()))


def _entries(
    job: Job, plan: Plan, prefix: str, at: Sequence[float], states: PyTree, names: Sequence[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{name: (s, w)}, each (P, N) in float64: the weighted sums of each example of a data set at P points."""
    rows = job.task.rule.coords(np.array(at)[:, None])
    found: dict[str, list[list[Any]]] = {name: [[] for _ in at] for name in names}
    task = job.task
    for piece in jobs.pieces(task.sets[prefix], job.counts[prefix], job.mesh, not task.couples_examples):
        for start, size in _blocks(piece.batch, piece.rows, plan, task):
            where = np.int32(start), np.int32(piece.rows), np.int32(piece.offset)
            for p, coord in enumerate(rows):
                state = job.loss.state if states is None else jax.tree.map(lambda x, p=p: x[p], states)
                point = (job.params, job.directions, coord, state)
                values = _example_entries(job.loss, *point, piece.batch, *where, formula=task.formula, size=size)
                for name in names:
                    found[name][p].append(np.asarray(interrupts.wait(values[name]), np.float64))
    joined = {name: np.stack([np.concatenate(each, -1) for each in parts]) for name, parts in found.items()}
    return {name: (x[:, 0], x[:, 1]) for name, x in joined.items()}


def _blocks(batch: Batch, rows: int, plan: Plan, task: Any) -> list[tuple[int, int]]:
    """(start, size) of the blocks of a piece: its batches if these must not be cut, or blocks of one size."""
    if isinstance(batch, Whole):
        return [(0, 1)]
    if task.couples_examples:
        return _data.cuts(rows, task.batch_size)
    size = min(plan.microbatch, _data.num_examples(batch))
    return [(start, size) for start in range(0, rows, size)]


@functools.partial(jax.jit, static_argnames=("formula", "size"))
def _example_entries(
    loss: Loss,
    params: PyTree,
    directions: PyTree,
    coord: Any,
    state: PyTree,
    data: Batch,
    start: Any,
    rows: Any,
    offset: Any,
    *,
    formula: Formula,
    size: int,
) -> dict[str, Any]:
    """{name: (2, B)}: the weighted loss and the weight of each example of a block at one point, 0 where masked."""
    with jax.default_matmul_precision(formula.precision):
        block = losses.block_at(data, start, size, rows, offset)
        p = params_at(formula.rule, params, directions, coord)
        outputs, _ = losses.outputs_of(loss, p, state, block, formula.train)
        results = {name: call(metric, outputs, block.batch, name) for name, metric in formula.metrics}
        if loss.per_example or isinstance(block.batch, Whole):
            results["loss"] = call(loss.criterion, outputs, block.batch)
        return {name: jnp.stack(losses.sum_entries(name, x, block.mask)) for name, x in results.items()}
