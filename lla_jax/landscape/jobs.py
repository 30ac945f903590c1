"""Makes jobs of tasks: puts arrays on the devices, writes the recipe, and gives the task a centre, a grid and axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from lla_jax.core import data as _data
from lla_jax.core import examples, operands, precision, recipes
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse
from lla_jax.core.counts import warn_of_counts
from lla_jax.core.data import Stream
from lla_jax.core.memory import check_memory
from lla_jax.core.recipes import versions
from lla_jax.core.text import duration
from lla_jax.core.types import Batch, Directions, Loss, PyTree, Recipe
from lla_jax.core.wholes import Whole
from lla_jax.execution import devices as _devices
from lla_jax.execution import plans
from lla_jax.execution.cpus import mention_one_device
from lla_jax.execution.plans import Plan
from lla_jax.landscape import batch_stats as _batch_stats
from lla_jax.landscape import digits, tasks
from lla_jax.landscape.tasks import Task

STATE_BYTES = 2**28  # bytes of re-estimated statistics that may be held while a stream is read


class Piece(NamedTuple):
    """Examples that are read at once: a data set in memory, or a batch of a stream.

    Args:
      batch: the arrays on the devices, perhaps padded.
      rows: number of rows that are examples; the rows after them are padding.
      offset: index of the first row in the data set.
    """

    batch: Batch
    rows: int
    offset: int


class Job(NamedTuple):
    """A task to be computed at the points of a grid around a centre.

    Args:
      task: the task, with its loss and its data on the devices.
      params: the centre, on the devices.
      coords: the grid.
      reference_grid: the grid at whose first points plans are timed and functions recognized.
      counts: {prefix of the data set: number of its examples without padding, None for a stream}.
      first_piece: the examples with which plans are timed and functions recognized.
      momenta: if statistics are re-estimated, the momentum of each state leaf (None for a leaf that is no running
        average); otherwise None.
      mesh: the devices, by shards of the points and of the data.
      recipe: the recipe of the landscape.
      reads: whether the loss depends on the parameters.
      directions: the stacked tree of the axes, on the devices; None until ``set_axes`` gives it.
      states: (C, k) coordinates of points -> the state of the loss at each, with a leading axis C, on the host, as
        ``set_states`` makes it; None where the loss has one state for all points.
    """

    task: Task
    params: PyTree
    coords: tuple[np.ndarray, ...]
    reference_grid: tuple[np.ndarray, ...]
    counts: dict[str, int | None]
    first_piece: Piece
    momenta: list[float | None] | None
    mesh: Mesh
    recipe: Recipe
    reads: bool
    directions: PyTree = None
    states: Callable[[np.ndarray], PyTree] | None = None

    @property
    def loss(self) -> Loss:
        """The loss of the task."""
        return self.task.loss

    @property
    def num(self) -> int:
        """Number of points of the grid."""
        return math.prod(map(len, self.coords))

    @property
    def num_directions(self) -> int:
        """Number of directions, by default one per axis of the grid."""
        return self.task.rule.directions or len(self.coords)

    @property
    def has_states(self) -> bool:
        """Whether the loss has a state of its own at each point."""
        return self.momenta is not None or self.states is not None

    @property
    def point_shards(self) -> int:
        """Number of shards into which the points of a call are split."""
        return self.mesh.shape[_devices.GRID]

    @property
    def has_stream(self) -> bool:
        """Whether one of the data sets is a stream."""
        return any(isinstance(data, Stream) for data in self.task.sets.values())


def prepare(task: Task, params: PyTree, coords: tuple[np.ndarray, ...], name: str = "params") -> Job:
    """Make the job of a task around a centre: check the arguments, describe them in a recipe, put them on the devices.

    The job has no axes yet; ``set_axes`` adds them. ``name`` is that of the argument with the centre, for errors.

    Raises:
      ValueError: arguments that do not fit together, naming the argument.
    """
    plans.check_for_landscape(task.execution)
    _tree.check_real(params, name)
    task = tasks.check(task)
    num = math.prod(map(len, coords))
    text = f"{' x '.join(f'{len(c):,}' for c in coords)} = {num:.4g} points (at 1 ms each {duration(num / 1000)})"
    check_memory("grid", text, 16.0 * num * len(task.names))
    counts: dict[str, int | None] = {}
    for prefix, data in task.sets.items():
        with tasks.named(prefix):
            counts[prefix] = None if isinstance(data, Stream) else _data.num_examples(data)
    mesh = _mesh(task, num)
    recipe = _recipe(task, params, mesh.devices.flat[0])
    loss, params = precision.at_least_single(task.loss, params)
    for data in task.sets.values():
        warn_of_counts(loss, params, data, task.batch_size)
    task = task._replace(loss=loss)
    _check_examples(task, params)
    task, params = _on_devices(task, mesh), _devices.replicate(params, mesh)
    task = _watch_streams(task, params)
    momenta = None
    first_piece = next(pieces(task.data, counts[""], mesh, padded=False))
    _data.check_uncut(first_piece.batch, task.batch_size)
    size = _data.cuts(first_piece.rows, task.batch_size)[0][1]
    traced = digits.trace(task.loss, params, first_piece.batch, size, task.formula, mesh.devices.flat[0])
    recipe["precision"] |= {"lowest": traced.lowest, "bits": traced.bits}
    if task.batch_stats == "reestimate":
        momenta = _batch_stats.momenta(task.loss, params, first_piece.batch, size)
    return Job(task, params, coords, coords, counts, first_piece, momenta, mesh, recipe, traced.reads)


def _check_examples(task: Task, params: PyTree) -> None:
    """Check, once per model, that each example in memory has a loss of its own."""
    for prefix, data in task.sets.items():
        with tasks.named(prefix):
            if not isinstance(data, Stream):
                examples.check(task.loss, params, data, task.metrics, train=task.formula.train, most=_most_rows(task))


def _watch_streams(task: Task, params: PyTree) -> Task:
    """The task with streams whose batches are checked in the same way when they come."""

    def watched(data: Any) -> Any:
        if not isinstance(data, Stream):
            return data
        train, most = task.formula.train, _most_rows(task)
        return examples.watch(data, task.loss, params, task.metrics, train=train, most=most)

    extra = {name: watched(data) for name, data in task.extra_data.items()}
    return task._replace(data=watched(task.data), extra_data=extra)


def _most_rows(task: Task) -> int | None:
    """The most rows that the user wants to be computed at a time; None if that is free."""
    if task.couples_examples or task.execution.microbatch == "auto":
        return task.batch_size
    return min(task.batch_size or task.execution.microbatch, task.execution.microbatch)


def _recipe(task: Task, params: PyTree, device: Any) -> Recipe:
    return {
        "rule": task.rule.name,
        "batch_stats": task.batch_stats,
        "batch_size": task.batch_size,
        "metrics": [name for name, _ in task.metrics],
        "point_metrics": [name for name, _ in task.point_metrics],
        "data": recipes.describe(task.data),
        "extra_data": {name: recipes.describe(data) for name, data in task.extra_data.items()},
        "params": {"fingerprint": recipes.fingerprint(params), "size": sum(map(np.size, jax.tree.leaves(params)))},
        "state": recipes.fingerprint(task.loss.state),
        "noise": recipes.fingerprint(task.loss.key),
        "key": recipes.fingerprint(task.key),
        "precision": {
            **operands.describe(task.execution.precision, device),
            "x64": bool(jax.config.values["jax_enable_x64"]),
            **precision.describe(task.loss, params),
        },
    }


def _on_devices(task: Task, mesh: Mesh) -> Task:
    """Put the loss and the data of a task on the devices, and add a key if point metrics need one and none is given."""

    def place(data: Any) -> Any:
        return data if isinstance(data, Stream) else _devices.split_rows(data, mesh)

    return task._replace(
        loss=_devices.replicate(task.loss, mesh),
        data=place(task.data),
        extra_data={name: place(data) for name, data in task.extra_data.items()},
        key=jax.random.key(0) if task.key is None and task.point_metrics else task.key,
    )


def _mesh(task: Task, points: int) -> Mesh:
    """The mesh of the devices, by shards of the points and of the data."""
    uncut = "" if task.loss.per_example else "the loss couples the examples of a batch"  # why data have one shard
    uncut = uncut if task.batch_stats == "frozen" else f"batch_stats={task.batch_stats!r} needs whole batches"
    devices = _devices.devices_of(task.execution)
    if len(devices) == 1 and task.execution.devices == "all" and devices[0].platform == "cpu":
        mention_one_device()
    held = [data for data in task.sets.values() if not isinstance(data, Stream)]
    nbytes = sum(x.nbytes for x in jax.tree.leaves(held))
    unsplit = "lla.whole(data) is one example, which is not split over devices"
    uncut = unsplit if any(isinstance(data, Whole) for data in held) else uncut
    shards = _devices.data_shards(task.execution, devices, points, nbytes, uncut)
    if shards > 1 and any(isinstance(_data.first_batch(data), Whole) for data in task.sets.values()):
        shards = _devices.data_shards(task.execution, devices, points, nbytes, unsplit)
    return _devices.mesh_of(devices, shards)


def pieces(data: Any, count: int | None, mesh: Mesh, padded: bool) -> Iterator[Piece]:
    """Iterate over the pieces of a data set: one for data on the devices, or the batches of a stream as it is read.

    Args:
      data: the data set.
      count: its number of examples; None for a stream.
      mesh: the devices.
      padded: whether batches of a stream may be cut and padded to equal lengths.
    """
    if count is None:
        batches = _devices.device_batches(data, mesh, not padded, place=_devices.split_rows)
        return (Piece(*batch) for batch in batches)
    return iter([Piece(data, count, 0)])


def recentre(job: Job, params: PyTree, state: PyTree, name: str) -> Job:
    """The same job around other parameters and with another state of the loss; the data stay on the devices.

    ``name`` is that of the parameters in errors, such as "checkpoints[1]".

    Raises:
      ValueError: parameters of another structure or shape.
    """
    _tree.check_real(params, name)
    params = _tree.align(params, job.params, name, "checkpoints[0]")
    recipe = job.recipe | {
        "params": job.recipe["params"] | {"fingerprint": recipes.fingerprint(params)},
        "state": recipes.fingerprint(state),
    }
    state = precision.widen(state) if precision.is_widened(job.loss) else state
    loss = _devices.replicate(replace(job.loss, state=state), job.mesh)
    params = _devices.replicate(precision.widen(params), job.mesh)
    return job._replace(task=job.task._replace(loss=loss), params=params, recipe=recipe)


def set_axes(job: Job, directions: Directions) -> Job:
    """The same job along these axes, with the directions and the versions in its recipe.

    Raises:
      ValueError: directions of another structure or shape, more or fewer directions than axes of the grid, or other
        directions than the rule needs.
    """
    tree = align_directions(directions, job.params, job.num_directions, job.task.rule.moments)
    recipe = job.recipe | {
        "directions": dict(directions.recipe) | {"contents": recipes.fingerprint(directions.tree)},
        "versions": versions(),
    }
    tree = _devices.replicate(tree, job.mesh)
    batch, rows, _ = job.first_piece
    size = _data.cuts(rows, job.task.batch_size)[0][1]
    formula, rule, device = job.task.formula, job.task.rule, job.mesh.devices.flat[0]
    recipe["precision"] = digits.check_resolved(
        recipe, job.loss, job.params, tree, job.coords, batch, size, formula, rule, device
    )
    return job._replace(directions=tree, recipe=recipe)


def set_states(job: Job, states: PyTree, weights: Callable[[np.ndarray], np.ndarray]) -> Job:
    """The same job whose loss has a state of its own at each point, sum_s w_s S_s.

    Where a weight is 1 it is that state to the bit. Leaves that are not floating are those of the largest weight.

    Args:
      job: the job.
      states: the S states, with a leading axis on every leaf, in the structure of the loss's state.
      weights: (C, k) coordinates of points -> (C, S), the weights of the states at each.
    """
    fingerprint = recipes.fingerprint(states)
    wide = precision.widen(states) if precision.is_widened(job.loss) else states
    leaves, structure = [np.asarray(x) for x in jax.tree.leaves(wide)], jax.tree.structure(wide)

    def at(coords: np.ndarray) -> PyTree:
        w = weights(coords)
        largest, single = w.argmax(1), w.max(1) == 1

        def mix(leaf: np.ndarray) -> np.ndarray:
            nearest = leaf[largest]
            if single.all() or not jax.numpy.issubdtype(leaf.dtype, np.floating):
                return nearest
            mixed = np.tensordot(w, leaf.astype(np.float64), 1).astype(leaf.dtype)
            return np.where(single.reshape(-1, *[1] * (leaf.ndim - 1)), nearest, mixed)

        return jax.tree.unflatten(structure, [mix(leaf) for leaf in leaves])

    return job._replace(states=at, recipe=job.recipe | {"state": fingerprint})


def group_size(job: Job, plan: Plan) -> int:
    """Number of points that are computed together, from all data.

    For data in memory this is a chunk on every device; for a stream all points or, if each has its own state, as many
    as ``STATE_BYTES`` allow.
    """
    if not job.has_stream:
        return plan.chunk * job.point_shards
    if not job.has_states:
        return job.num
    state = sum(x.nbytes for x in jax.tree.leaves(job.loss.state))
    return max(plan.chunk * job.point_shards, STATE_BYTES // max(1, state))


def rows_per_device(job: Job, batch: Batch) -> int:
    """Number of rows of a batch on one device, padding included."""
    return _data.num_examples(batch) // job.mesh.shape[_devices.DATA]


def align_directions(directions: Directions, params: PyTree, axes: int, moments: bool) -> PyTree:
    """Put the tree of the directions into the structure of the parameters, after a check that they suit the grid.

    Args:
      directions: the axes.
      params: the centre.
      axes: number of axes of the grid.
      moments: whether the directions have to be Adam's raw moments (m, v).

    Raises:
      ValueError: directions of another structure or shape, more or fewer directions than axes, or not Adam's moments.
    """
    tree = _tree.align(directions.tree, params, "directions", stacked=True)
    if directions.num != axes:
        raise Misuse(
            "grid",
            f"{axes} axes given for {directions.num} directions; there must be one axis per direction, such as "
            f"lla.grid(dims={directions.num}) or axes[:{axes}]",
        )
    recipe = directions.recipe
    raw = recipe.get("kind") == "adam_moments" and not recipe.get("normalize")
    if moments and not (raw and recipe.get("chosen", [0, 1]) == [0, 1]):
        raise Misuse(
            "directions",
            f"{dict(recipe)} given; the adam rule needs Adam's raw moments (m, v): use "
            "lla.directions.adam_moments(opt_state, params) without normalize",
        )
    return tree
