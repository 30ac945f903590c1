"""A task made ready: its arrays are on the devices, its recipe is written; around a centre, and along axes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from lla_jax.core import data as _data
from lla_jax.core import recipes
from lla_jax.core import tree as _tree
from lla_jax.core.data import Stream
from lla_jax.core.recipes import versions
from lla_jax.core.types import Batch, Directions, Loss, PyTree, Recipe
from lla_jax.execution import devices as _devices
from lla_jax.execution import plans
from lla_jax.execution.plans import Plan
from lla_jax.landscape import batch_stats as _batch_stats
from lla_jax.landscape import tasks
from lla_jax.landscape.tasks import Task

STATE_BYTES = 2**28  # re-estimated statistics held at a time while a stream is read


class Piece(NamedTuple):
    """A batch on the devices, where it may be padded.

    Args:
      batch: its arrays.
      rows: how many of its rows count.
      offset: number of its first row in the data set.
    """

    batch: Batch
    rows: int
    offset: int


class Job(NamedTuple):
    """A task at the points of a grid around a centre.

    Args:
      task: what is computed; its loss and its data are on the devices.
      params: the centre, on the devices.
      coords: the grid.
      probed: the grid at whose first points plans are timed and functions recognized.
      counts: examples in each of the data sets, which may be padded on the devices; None for a stream.
      first: what plans are timed and functions recognized with.
      momenta: of the state's leaves, where they are re-estimated.
      mesh: the devices, by their shares of the points and of the examples.
      recipe: of the landscape.
      directions: the axes' stacked tree on the devices; None until ``along`` gives it.
    """

    task: Task
    params: PyTree
    coords: tuple[np.ndarray, ...]
    probed: tuple[np.ndarray, ...]
    counts: dict[str, int | None]
    first: Piece
    momenta: list[float | None] | None
    mesh: Mesh
    recipe: Recipe
    directions: PyTree = None

    @property
    def loss(self) -> Loss:
        """The task's loss."""
        return self.task.loss

    @property
    def num(self) -> int:
        """Points of the grid; their coordinates are made chunk by chunk and never held together."""
        return math.prod(map(len, self.coords))

    @property
    def width(self) -> int:
        """Shares that the points of a call are split into."""
        return self.mesh.shape[_devices.GRID]

    @property
    def streamed(self) -> bool:
        """Whether data are streamed."""
        return any(isinstance(data, Stream) for data in self.task.sets.values())


def prepare(task: Task, params: PyTree, coords: tuple[np.ndarray, ...]) -> Job:
    """Check everything, describe it for the recipe, and bring it to the devices once.

    Raises:
      ValueError: arguments that do not fit together, naming the argument.
    """
    plans.check(task.execution)
    _tree.check_real(params)
    task = tasks.check(task)
    counts = {p: None if isinstance(d, Stream) else _data.num_examples(d) for p, d in task.sets.items()}
    mesh = _mesh(task, math.prod(map(len, coords)))
    recipe = _recipe(task, params)
    task, params = _on_devices(task, mesh), _devices.replicate(params, mesh)
    leaves = jax.tree.leaves(params)
    recipe["params"]["size"] = sum(x.size for x in leaves)
    recipe["precision"]["params"] = sorted({str(x.dtype) for x in leaves})
    momenta = None
    first = next(pieces(task.data, counts[""], mesh, whole=True))
    if task.batch_stats == "reestimate":
        size = _data.cuts(first.rows, task.batch_size)[0][1]
        momenta = _batch_stats.momenta(task.loss, params, first.batch, size)
    return Job(task, params, coords, coords, counts, first, momenta, mesh, recipe)


def _recipe(task: Task, params: PyTree) -> Recipe:
    return {
        "rule": task.rule.name,
        "batch_stats": task.batch_stats,
        "batch_size": task.batch_size,
        "metrics": [name for name, _ in task.metrics],
        "point_metrics": [name for name, _ in task.point_metrics],
        "data": recipes.describe(task.data),
        "extra_data": {name: recipes.describe(data) for name, data in task.extra_data.items()},
        "params": {"fingerprint": recipes.fingerprint(params)},
        "state": recipes.fingerprint(task.loss.state),
        "noise": recipes.fingerprint(task.loss.key),
        "key": recipes.fingerprint(task.key),
        "precision": {
            "matmul": str(jax.config.values["jax_default_matmul_precision"] or "default"),
            "x64": bool(jax.config.values["jax_enable_x64"]),
        },
    }


def _on_devices(task: Task, mesh: Mesh) -> Task:
    """The task with its loss and its data on the devices, and a key where one is used."""

    def place(data: Any) -> Any:
        return data if isinstance(data, Stream) else _devices.split_rows(data, mesh)

    return task._replace(
        loss=_devices.replicate(task.loss, mesh),
        data=place(task.data),
        extra_data={name: place(data) for name, data in task.extra_data.items()},
        key=jax.random.key(0) if task.key is None and task.point_metrics else task.key,
    )


def _mesh(task: Task, points: int) -> Mesh:
    """The devices, by their shares of the points and of the examples."""
    whole = "" if task.loss.per_example else "the loss couples the examples of a batch"
    whole = whole if task.batch_stats == "frozen" else f"batch_stats={task.batch_stats!r} needs whole batches"
    devices = _devices.devices_of(task.execution)
    held = [data for data in task.sets.values() if not isinstance(data, Stream)]
    nbytes = sum(x.nbytes for x in jax.tree.leaves(held))
    return _devices.mesh_of(devices, _devices.data_shards(task.execution, devices, points, nbytes, whole))


def pieces(data: Any, count: int | None, mesh: Mesh, whole: bool) -> Iterator[Piece]:
    """What there is to read of a data set that is on the devices (all of it at once), or of a stream."""
    if count is None:
        batches = _devices.device_batches(data, mesh, whole, place=_devices.split_rows)
        return (Piece(*batch) for batch in batches)
    return iter([Piece(data, count, 0)])


def recentred(job: Job, params: PyTree, state: PyTree) -> Job:
    """The same job around other parameters; the data stay where they are.

    Raises:
      ValueError: parameters of another structure or shape.
    """
    _tree.check_real(params)
    params = _tree.align(params, job.params, "checkpoints", "the first of them")
    recipe = job.recipe | {
        "params": job.recipe["params"] | {"fingerprint": recipes.fingerprint(params)},
        "state": recipes.fingerprint(state),
    }
    loss = _devices.replicate(replace(job.loss, state=state), job.mesh)
    return job._replace(task=job.task._replace(loss=loss), params=_devices.replicate(params, job.mesh), recipe=recipe)


def along(job: Job, directions: Directions) -> Job:
    """The same job along these axes, with the recipe of their landscape.

    Raises:
      ValueError: directions of another structure or shape, more or fewer than the grid's axes, or not those that the
        rule needs.
    """
    tree = aligned(directions, job.params, len(job.coords), job.task.rule.moments)
    recipe = job.recipe | {
        "directions": dict(directions.recipe) | {"contents": recipes.fingerprint(directions.tree)},
        "versions": versions(),
    }
    return job._replace(directions=_devices.replicate(tree, job.mesh), recipe=recipe)


def group_size(job: Job, plan: Plan) -> int:
    """Points finished together."""
    if not job.streamed:
        return plan.chunk * job.width
    if job.momenta is None:
        return job.num
    state = sum(x.nbytes for x in jax.tree.leaves(job.loss.state))
    return max(plan.chunk * job.width, STATE_BYTES // max(1, state))


def rows_in(job: Job, batch: Batch) -> int:
    """Rows of a batch on one device."""
    return jax.tree.leaves(batch)[0].shape[0] // job.mesh.shape[_devices.DATA]


def aligned(directions: Directions, params: PyTree, axes: int, moments: bool) -> PyTree:
    """The directions' tree in the structure of the parameters; with ``moments`` they have to be Adam's raw (m, v).

    Raises:
      ValueError: another structure, shape or number than the grid's, or not what the rule needs.
    """
    tree = _tree.align(directions.tree, params, "directions", stacked=True)
    if directions.num != axes:
        raise ValueError(
            f"grid: {axes} axes for {directions.num} directions; the rule is one axis per direction, e.g. "
            f"lla.grid(dims={directions.num}) or axes[:{axes}]"
        )
    recipe = directions.recipe
    raw = recipe.get("kind") == "adam_moments" and not recipe.get("normalize")
    if moments and not (raw and recipe.get("chosen", [0, 1]) == [0, 1]):
        raise ValueError(
            f"directions: the adam rule needs Adam's raw moments (m, v), got {dict(recipe)}; use "
            "lla.directions.adam_moments(opt_state, params) without normalize"
        )
    return tree
