"""What ``landscape.evaluate`` computes: a checked job, and the means of its losses at any points.

Only weighted sums leave the devices, and are added up in float64: the values do not depend on how points and data are
cut.
"""

from __future__ import annotations

import math
import platform
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from lla_jax._version import __version__
from lla_jax.core import data as _data
from lla_jax.core import recipes
from lla_jax.core import tree as _tree
from lla_jax.core.data import Stream
from lla_jax.core.static import static
from lla_jax.core.types import Batch, Directions, Execution, Landscape, Loss, PyTree
from lla_jax.execution import plans
from lla_jax.execution.plans import Plan
from lla_jax.landscape import batch_stats as _batch_stats
from lla_jax.landscape import kernels

Progress = Callable[[float, float | None], None]
Sums = dict[str, np.ndarray]  # by name, a row of weighted sums for every point
Values = dict[str, np.ndarray]  # by name, a number for every point
Table = dict[str, dict[str, np.ndarray]]  # "values" and "stderr" by name, flat
STATE_BYTES = 2**28  # re-estimated statistics held at a time while a stream is read


class Job(NamedTuple):
    """What an ``evaluate`` call holds independently of the directions; arrays are on the devices."""

    loss: Loss
    params: PyTree
    sources: dict[str, Any]  # by the prefix of their values: data on the devices, or a Stream
    counts: dict[str, int | None]  # examples in each; on the devices they may be padded
    coords: tuple[np.ndarray, ...]
    probed: tuple[np.ndarray, ...]  # the grid at whose first points plans are timed and functions recognized
    first: tuple[Batch, int, int]  # batch, rows that count, offset: to plan and to probe with
    how: kernels.How
    point_metrics: tuple[tuple[str, Any], ...]
    key: Any
    whole: bool  # what a batch is matters to the result: it is never cut or padded
    batch_size: int | None
    momenta: list[float | None] | None  # of the state's leaves, where they are re-estimated
    mesh: Any
    execution: Execution
    affine: bool  # the rule is params + sum_i c_i d_i
    adam: bool  # the rule needs Adam's moments
    recipe: dict[str, Any]

    @property
    def num(self) -> int:
        """Points of the grid; their coordinates are made chunk by chunk and never held together."""
        return math.prod(map(len, self.coords))

    @property
    def width(self) -> int:
        """Shares that the points of a call are split into."""
        return self.mesh.shape[plans.GRID]

    @property
    def streamed(self) -> bool:
        return any(isinstance(d, Stream) for d in self.sources.values())


def prepare(
    loss, params, data, coords, batch_size, rule_name, rule, affine, adam, batch_stats, metrics, point_metrics,
    extra_data, key, execution,
) -> Job:  # fmt: skip
    """Check everything, describe it for the recipe, and bring it to the devices once."""
    plans.check(execution)
    _tree.check_real(params)
    if batch_size is not None:
        _data.check_batch_size(batch_size)
    metrics, point_metrics = recipes.check_metrics(metrics, point_metrics, loss)
    recipes.check_policy(batch_stats, loss)
    loss = _data.as_loss(loss)
    sets = {"": data} | {f"{name}_": d for name, d in _data.check_extra(extra_data).items()}
    sets = {prefix: d if isinstance(d, Stream) else _data.as_arrays(d) for prefix, d in sets.items()}
    recipes.names(list(sets), [name for name, _ in metrics], [name for name, _ in point_metrics])
    counts = {prefix: None if isinstance(d, Stream) else _data.num_examples(d) for prefix, d in sets.items()}
    mesh = _mesh(execution, sets, math.prod(map(len, coords)), batch_stats, loss)
    recipe: dict[str, Any] = {
        "rule": rule_name,
        "batch_stats": batch_stats,
        "batch_size": batch_size,
        "metrics": [name for name, _ in metrics],
        "point_metrics": [name for name, _ in point_metrics],
        "data": _data.describe(sets[""]),
        "extra_data": {prefix[:-1]: _data.describe(d) for prefix, d in sets.items() if prefix},
        "params": {"fingerprint": _data.fingerprint(params)},
        "state": _data.fingerprint(loss.state),
        "noise": _data.fingerprint(loss.key),
        "key": _data.fingerprint(key),
        "precision": {
            "matmul": str(jax.config.values["jax_default_matmul_precision"] or "default"),
            "x64": bool(jax.config.values["jax_enable_x64"]),
        },
    }
    sources = {p: d if isinstance(d, Stream) else plans.split_rows(d, mesh) for p, d in sets.items()}
    params, loss = plans.replicate(params, mesh), plans.replicate(loss, mesh)
    leaves = jax.tree_util.tree_leaves(params)
    recipe["params"]["size"] = sum(x.size for x in leaves)
    recipe["precision"]["params"] = sorted({str(x.dtype) for x in leaves})
    momenta = None
    first = next(_batches(sources[""], counts[""], mesh, whole=True))
    if batch_stats == "reestimate":
        batch, count, _ = first
        momenta = _batch_stats.momenta(loss, params, batch, _data.cuts(count, batch_size)[0][1])
    return Job(
        loss=loss,
        params=params,
        sources=sources,
        counts=counts,
        coords=coords,
        probed=coords,
        first=first,
        how=kernels.How(static(rule), batch_stats == "batch", metrics),
        point_metrics=point_metrics,
        key=jax.random.key(0) if key is None and point_metrics else key,
        whole=batch_stats == "batch" or not loss.per_example,
        batch_size=batch_size,
        momenta=momenta,
        mesh=mesh,
        execution=execution,
        affine=affine,
        adam=adam,
        recipe=recipe,
    )


def _mesh(execution: Execution, sets: dict[str, Any], points: int, batch_stats: str, loss: Loss) -> Any:
    """The devices, by their shares of the points and of the examples."""
    whole = "" if loss.per_example else "the loss couples the examples of a batch"
    whole = whole if batch_stats == "frozen" else f"batch_stats={batch_stats!r} needs whole batches"
    devices = plans.devices_of(execution)
    held = [d for d in sets.values() if not isinstance(d, Stream)]
    nbytes = sum(x.nbytes for x in jax.tree_util.tree_leaves(held))
    return plans.mesh_of(devices, plans.data_shards(execution, devices, points, nbytes, whole))


def _batches(data: Any, count: int | None, mesh: Any, whole: bool) -> Any:
    """(batch on the devices, rows that count, number of its first row) of a data set that is there, or of a stream."""
    if count is None:
        return plans.device_batches(data, mesh, whole, place=plans.split_rows)
    return iter([(data, count, 0)])


def recentred(job: Job, params: PyTree, state: PyTree) -> Job:
    """The same job around other parameters; the data stay where they are.

    Raises:
      ValueError: parameters of another structure or shape.
    """
    _tree.check_real(params)
    params = _tree.align(params, job.params, "checkpoints", "the first of them")
    recipe = job.recipe | {
        "params": job.recipe["params"] | {"fingerprint": _data.fingerprint(params)},
        "state": _data.fingerprint(state),
    }
    loss = plans.replicate(replace(job.loss, state=state), job.mesh)
    return job._replace(params=plans.replicate(params, job.mesh), loss=loss, recipe=recipe)


def described(job: Job, directions: Directions) -> tuple[PyTree, dict[str, Any]]:
    """The directions' tree on the devices, and the recipe of their landscape."""
    tree = recipes.aligned(directions, job.params, len(job.coords), job.adam)
    recipe = job.recipe | {
        "directions": dict(directions.recipe) | {"contents": _data.fingerprint(directions.tree)},
        "versions": versions(),
    }
    return plans.replicate(tree, job.mesh), recipe


def versions() -> dict[str, str]:
    """Of what the values depend on beyond the recipe."""
    return {"lla_jax": __version__, "jax": jax.__version__, "python": platform.python_version()}


def span(progress: Any, first: int, length: int, total: int) -> Any:
    """A progress callback for ``length`` points from ``first`` within a longer run; None stays None."""
    if progress is None:
        return None

    def report(done: float, of: float | None) -> None:
        progress(first + done if of is None else first + length * done / of, None if of is None else total)

    return report


def group_size(job: Job, plan: Plan) -> int:
    """Points finished together."""
    if not job.streamed:
        return plan.chunk * job.width
    if job.momenta is None:
        return job.num
    state = sum(x.nbytes for x in jax.tree_util.tree_leaves(job.loss.state))
    return max(plan.chunk * job.width, STATE_BYTES // max(1, state))


def grid_points(grid: tuple[np.ndarray, ...], lo: int, hi: int) -> np.ndarray:
    """Coordinates (C, k) of the points [lo, hi) in row-major order."""
    indices = np.unravel_index(np.arange(lo, hi), tuple(map(len, grid)))
    return np.stack([c[i] for c, i in zip(grid, indices, strict=True)], -1)


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
                totals = jax.tree_util.tree_map(lambda *blocks: sum(map(_data.total, blocks)), *results)
                for name, total in totals.items():
                    into = sums.setdefault(prefix + name, np.zeros((num, _data.NUM_SUMS)))
                    into[lo:hi] += total[: hi - lo]

            plan = plans.chunks(compute, 0, num, plan, job.width)
            read += 1
            if progress is not None and isinstance(data, Stream):
                fraction = 0.0 if length is None else (i + (j + 1) / length) / len(job.sources)
                progress(*((read, None) if length is None else (fraction * num, num)))
    return plan


def rows_in(job: Job, batch: Batch) -> int:
    """Rows of a batch on one device."""
    return jax.tree_util.tree_leaves(batch)[0].shape[0] // job.mesh.shape[plans.DATA]


def call(job: Job, tree, coords, states, batch, plan: Plan, starts, count: int, offset: int) -> dict[str, Any]:
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
        table["values"][name] = _data.mean(total) + (values.get("", 0.0) if is_loss else 0.0)
        if not is_loss or job.loss.per_example:
            table["stderr"][name] = _data.standard_error(total)
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
