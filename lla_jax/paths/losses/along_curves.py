"""Evaluates the loss along a curve, as a landscape of one axis t: ``evaluate``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, is_integer, misuse
from lla_jax.core.data import Stream
from lla_jax.core.interrupts import deferred_interrupts
from lla_jax.core.losses import as_loss
from lla_jax.core.results import Landscape
from lla_jax.core.signatures import explained
from lla_jax.core.types import Batch, Directions, Execution, Loss, PyTree
from lla_jax.execution.progress import AskedProgress, check_on_partial, takes_progress
from lla_jax.landscape import jobs, sweeps
from lla_jax.landscape.jobs import Job
from lla_jax.landscape.rules import Rule
from lla_jax.landscape.store import folders, writing
from lla_jax.landscape.tasks import Policy, Task
from lla_jax.paths.curves import Curve, as_numbers, fingerprints
from lla_jax.paths.host_trees import has_floats


def combine(params: PyTree, directions: PyTree, coord: Any) -> PyTree:
    """The rule of a curve, sum_k w_k P_k, with the basis functions w as coordinates; float32 at least, as ``add``."""

    def move(p: Any, d: Any) -> Any:
        dtype = _tree.wide(p.dtype)
        q = coord[0].astype(dtype) * d[0].astype(dtype)
        for k in range(1, d.shape[0]):
            q = q + coord[k].astype(dtype) * d[k].astype(dtype)
        return q

    return jax.tree.map(move, params, directions)


def policy_of(batch_stats: Policy | None, loss: Any) -> Policy:
    """The policy of normalization statistics along a curve: by default they are re-estimated where there are some.

    "reestimate" may be asked for of every network: of one without a state there is nothing to re-estimate.
    """
    if batch_stats == "reestimate" and isinstance(loss, Loss) and not jax.tree.leaves(loss.state):
        return "frozen"
    if batch_stats is not None:
        return batch_stats
    return "reestimate" if isinstance(loss, Loss) and has_floats(loss.state) else "frozen"


def curve_job(curve: Curve, coords: np.ndarray, task: Task) -> Job:
    """The job of a task at the points t of a curve, each under its own state.

    Args:
      curve: the curve, whose states, if it has some, take the place of the loss's.
      coords: (n,) the points t.
      task: the task; its rule is replaced.

    Raises:
      Misuse: the loss has statistics that belong to one network, and the curve has no states of its ends.
    """
    task = task._replace(loss=as_loss(task.loss), rule=rule_of(curve))
    states = curve.states
    own = task.loss.state
    if states is not None and jax.tree.leaves(own):
        first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x)[1:], x.dtype), states)
        _tree.align(first, own, "curve.states", "loss.state")
        states = _tree.align(states, own, "curve.states", "loss.state", stacked=True)
        task = task._replace(loss=replace(task.loss, state=jax.tree.map(lambda x: x[0], states)))
    elif task.batch_stats == "frozen" and has_floats(own):
        raise Misuse(
            "curve",
            "holds no states of its ends, and the loss has a state of floats (running averages, such as BatchNorm's), "
            "which belong to one network; make it with both, such as lla.paths.line(a, b, state_a, state_b), or use "
            "batch_stats='reestimate'",
        )
    job = jobs.prepare(task, curve.ends[0], (coords,), "curve")
    if states is not None and jax.tree.leaves(own):
        job = jobs.set_states(job, states, _end_weights)
    elif job.momenta is not None:
        _check_averages(job)
    recipe = {
        "kind": "curve",
        "curve": curve.kind,
        "names": ["t"],
        "marks": [["a", [0.0]], ["b", [1.0]]],
        "points": fingerprints(curve),
        **({} if curve.knots is None else {"knots": curve.knots.tolist()}),
    }
    job = jobs.set_axes(job, Directions(curve.points, recipe))
    return job._replace(recipe=job.recipe | {"curve": dict(curve.recipe)})


def rule_of(curve: Curve) -> Rule:
    """The rule of a curve; its function is that of all curves."""
    return Rule("curve", combine, directions=curve.num, weights=lambda coords: curve.weights(coords[:, 0]))


def _end_weights(coords: np.ndarray) -> np.ndarray:
    t = coords[:, 0]
    return np.stack([1 - t, t], -1)


def _check_averages(job: Job) -> None:
    """Raise an error if the loss's state has other floats than running averages: they would be the first end's."""
    leaves = zip(_tree.paths(job.loss.state), jax.tree.leaves(job.loss.state), job.momenta or (), strict=True)
    others = [path for path, x, m in leaves if m is None and jnp.issubdtype(x.dtype, jnp.floating)]
    if others:
        raise Misuse(
            "curve",
            f"holds no states of its ends, and the loss's state has floats that are not re-estimated ({others[0]!r}); "
            "make it with both, such as lla.paths.line(a, b, state_a, state_b)",
        )


@takes_progress("points")
@deferred_interrupts()
@explained
def evaluate(
    curve: Curve,
    loss: Loss | Callable[[PyTree, Batch], Any],
    data: Batch | Stream,
    *,
    points: int | Sequence[float] | np.ndarray = 61,
    by: str = "t",
    batch_size: int | None = None,
    batch_stats: Policy | None = None,
    metrics: Mapping[str, Callable[[Any, Batch], Any]] | None = None,
    point_metrics: Mapping[str, Callable[[PyTree, Any], Any]] | None = None,
    extra_data: Mapping[str, Any] | None = None,
    key: Any = None,
    execution: Execution = Execution(),  # noqa: B008 (frozen)
    progress: AskedProgress = None,
    on_partial: Callable[[Landscape], None] | None = None,
    resume: Landscape | None = None,
    store: str | os.PathLike[str] | None = None,
    shard: tuple[int, int] | None = None,
) -> Landscape:
    """Compute the loss and the metrics along a curve: a landscape of one axis, t from 0 (the end a) to 1 (the end b).

    Args:
      curve: the curve, such as ``lla.paths.line(a, b)``.
      loss: a ``Loss`` or a plain function, as for ``lla.evaluate``. The curve's states take the place of its state.
      data: one data set, a whole or a stream, as for ``lla.evaluate``.
      points: the number of points, both ends included; or their t, an array of numbers from 0 to 1.
      by: how this number of points is spaced, evenly in "t" or along the curve ("length"); the axis is t in both cases.
      batch_size: as for ``lla.evaluate``.
      batch_stats: "reestimate" (the default where the loss has a state of floats), "batch", or "frozen", for which the
        states of the ends are interpolated linearly.
      metrics: as for ``lla.evaluate``.
      point_metrics: as for ``lla.evaluate``.
      extra_data: as for ``lla.evaluate``, such as ``{"test": ...}``.
      key: as for ``lla.evaluate``.
      execution: as for ``lla.evaluate``.
      progress: as for ``lla.evaluate``.
      on_partial: as for ``lla.evaluate``.
      resume: as for ``lla.evaluate``.
      store: as for ``lla.evaluate``.
      shard: as for ``lla.evaluate``.

    Returns:
      A ``Landscape`` with ``coords = (t,)``; ``lla.plotting.line`` draws it. ``recipe["directions"]`` has the kind of
      the curve and the fingerprints of its control points.

    Raises:
      ValueError: as ``lla.evaluate``; points outside of [0, 1]; a loss with statistics of one network, and a curve
        without the states of its ends.

    References: Garipov et al. 2018, arXiv 1802.10026.
    """
    check_on_partial(on_partial)
    if not isinstance(curve, Curve):
        raise misuse("curve", curve, "a curve, such as lla.paths.line(a, b) or what lla.paths.connect returns")
    task = Task(
        loss,
        data,
        rule_of(curve),
        batch_size=batch_size,
        batch_stats=policy_of(batch_stats, loss),
        metrics=metrics,
        point_metrics=point_metrics,
        extra_data=extra_data,
        key=key,
        execution=execution,
    )
    job = curve_job(curve, place(curve, points, by), task)
    if resume is not None and store is not None:
        raise Misuse("resume", "continues a landscape held in memory; leave store out")
    shard = writing.check_shard(shard, store)
    folder = None if store is None else folders.store_folder(store)
    return sweeps.compute_one(job, folder, progress, on_partial, shard, resume=resume)


def place(curve: Curve, points: Any, by: str) -> np.ndarray:
    """The t (n,) of the points that are asked for: a number of them, or their t.

    Raises:
      Misuse: t outside of [0, 1], or not increasing.
    """
    if is_integer(points):
        return curve.spaced(points, by)
    at = as_numbers(points)
    if at is None or at.ndim != 1 or not at.size or not (at[0] >= 0 and at[-1] <= 1 and (np.diff(at) > 0).all()):
        raise misuse("points", points, "a number of points, such as 61, or a list of increasing t from 0 to 1")
    return at
