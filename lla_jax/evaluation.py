"""How ``landscape.evaluate`` runs: check, plan, run group after group, record.

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

from lla_jax import _tree, checks, kernels, lowering
from lla_jax import batch_stats as _batch_stats
from lla_jax import data as _data
from lla_jax import execution as _execution
from lla_jax._static import static
from lla_jax._types import Batch, Directions, Execution, Landscape, Loss, PyTree
from lla_jax._version import __version__
from lla_jax.data import Stream
from lla_jax.execution import Plan

Progress = Callable[[float, float | None], None]
STATE_BYTES = 2**28  # re-estimated statistics held at a time while a stream is read
UNSTEADY = 1e-5  # relative difference between two runs of one block that rounding does not explain


class Job(NamedTuple):
    """What an ``evaluate`` call holds independently of the directions; arrays are on the devices."""

    loss: Loss
    params: PyTree
    sources: dict[str, Any]  # by the prefix of their values: data on the devices, or a Stream
    coords: tuple[np.ndarray, ...]
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
    def streamed(self) -> bool:
        return any(isinstance(d, Stream) for d in self.sources.values())


def prepare(
    loss, params, data, coords, batch_size, rule_name, rule, affine, adam, batch_stats, metrics, point_metrics,
    extra_data, key, execution,
) -> Job:  # fmt: skip
    """Check everything, describe it for the recipe, and bring it to the devices once."""
    _execution.check(execution)
    _tree.check_real(params)
    if batch_size is not None:
        _data.check_batch_size(batch_size)
    metrics, point_metrics = checks.check_metrics(metrics, point_metrics, loss)
    checks.check_policy(batch_stats, loss)
    loss = _data.as_loss(loss)
    mesh = _execution.mesh_of(_execution.devices_of(execution))
    sets = {"": data} | {f"{name}_": d for name, d in _data.check_extra(extra_data).items()}
    sets = {prefix: d if isinstance(d, Stream) else _data.as_arrays(d) for prefix, d in sets.items()}
    checks.names(list(sets), [name for name, _ in metrics], [name for name, _ in point_metrics])
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
    sources = {p: d if isinstance(d, Stream) else _execution.replicate(d, mesh) for p, d in sets.items()}
    params, loss = _execution.replicate(params, mesh), _execution.replicate(loss, mesh)
    leaves = jax.tree_util.tree_leaves(params)
    recipe["params"]["size"] = sum(x.size for x in leaves)
    recipe["precision"]["params"] = sorted({str(x.dtype) for x in leaves})
    momenta = None
    first = next(_execution.device_batches(sources[""], mesh, whole=True))
    if batch_stats == "reestimate":
        batch, count, _ = first
        momenta = _batch_stats.momenta(loss, params, batch, _data.cuts(count, batch_size)[0][1])
    return Job(
        loss=loss,
        params=params,
        sources=sources,
        coords=coords,
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


def run(job: Job, directions: Directions, progress: Any, on_partial: Any, resume: Landscape | None) -> Landscape:
    """One landscape, group after group of points: a chunk for data in memory, all points for a stream (read once)."""
    tree = checks.aligned(directions, job.params, len(job.coords), job.adam)
    recipe = job.recipe | {
        "directions": dict(directions.recipe) | {"contents": _data.fingerprint(directions.tree)},
        "versions": {"lla_jax": __version__, "jax": jax.__version__, "python": platform.python_version()},
    }
    table, done = _started(job, recipe, resume)
    tree = _execution.replicate(tree, job.mesh)
    plan: Plan | None = None
    sums: dict[str, np.ndarray] = {}
    values: dict[str, np.ndarray] = {}
    try:
        plan = _plan(job, tree) if resume is None else _plan_of(resume.recipe)
        recipe["probe"], difference, plan = _probe(job, tree, plan)
        recipe["deterministic"] = difference <= UNSTEADY
        if resume is not None and recipe["deterministic"]:
            checks.same_probe(resume, recipe["probe"])
        if not recipe["deterministic"]:
            _warn_unsteady(difference)
        while done < job.num:
            last = min(done + _group_size(job, plan), job.num)
            values, plan = _of_params(job, tree, plan, done, last)
            plan = _of_data(job, tree, plan, done, last, sums, span(progress, done, last - done, job.num))
            _store(table, job, sums, values, done)
            sums.clear()
            values, done = {}, last
            if progress is not None:
                progress(done, job.num)
    except BaseException:
        unfinished = job.streamed and bool(sums)  # a stream: every cell has a mean over the batches read so far
        if unfinished:
            _store(table, job, sums, values, done)
        if on_partial is not None and (done or unfinished):
            on_partial(_landscape(job, table, recipe, plan, done))
        raise
    result = _landscape(job, table, recipe, plan, done)
    _warn(result)
    return result


def _started(
    job: Job, recipe: dict[str, Any], resume: Landscape | None
) -> tuple[dict[str, dict[str, np.ndarray]], int]:
    """Flat arrays and the number of points finished: of the landscape to continue, or none."""
    if resume is None:
        return {"values": {}, "stderr": {}}, 0
    checks.resumable(resume, recipe, job.coords)
    kinds = {"values": resume.values, "stderr": resume.stderr}
    table = {
        kind: {name: np.array(found, np.float64).reshape(-1) for name, found in arrays.items()}
        for kind, arrays in kinds.items()
    }
    return table, int(resume.recipe.get("points_done", 0))


PLAN = ("chunk", "microbatch", "loop", "share", "scan")


def _plan_of(recipe: dict[str, Any]) -> Plan:
    """The plan that a landscape was begun with, and is finished with."""
    return Plan(**{name: recipe["plan"][name] for name in PLAN})


def span(progress: Any, first: int, length: int, total: int) -> Any:
    """A progress callback for ``length`` points from ``first`` within a longer run; None stays None."""
    if progress is None:
        return None

    def report(done: float, of: float | None) -> None:
        progress(first + done if of is None else first + length * done / of, None if of is None else total)

    return report


def _group_size(job: Job, plan: Plan) -> int:
    """Points finished together."""
    if not job.streamed:
        return plan.chunk * job.mesh.size
    if job.momenta is None:
        return job.num
    state = sum(x.nbytes for x in jax.tree_util.tree_leaves(job.loss.state))
    return max(plan.chunk * job.mesh.size, STATE_BYTES // max(1, state))


def _points(job: Job, lo: int, hi: int, plan: Plan) -> np.ndarray:
    """Coordinates (C, k) of the points [lo, hi) in row-major order, lengthened to a full chunk."""
    indices = np.unravel_index(np.arange(lo, hi), tuple(map(len, job.coords)))
    coords = np.stack([c[i] for c, i in zip(job.coords, indices, strict=True)], -1)
    return _execution.pad_points(coords, plan.chunk * job.mesh.size)


def _padded(array: Any, lo: int, hi: int, plan: Plan, job: Job) -> Any:
    """Rows [lo, hi) of every leaf, lengthened to a full chunk."""
    size = plan.chunk * job.mesh.size
    return jax.tree_util.tree_map(lambda x: _execution.pad_points(x[lo:hi], size), array)


def _of_params(job: Job, tree: PyTree, plan: Plan, first: int, last: int) -> tuple[dict[str, np.ndarray], Plan]:
    """Point metrics and, under the name '', the penalty at the points [first, last)."""
    values: dict[str, np.ndarray] = {}
    if not job.point_metrics and job.loss.penalty is None:
        return values, plan

    def compute(plan: Plan, lo: int, hi: int) -> None:
        coords = _points(job, lo, hi, plan)
        static = {"how": job.how, "loop": plan.loop, "mesh": job.mesh, "point_metrics": job.point_metrics}
        for name, found in kernels.point_step(job.loss, job.params, tree, coords, job.key, **static).items():
            values.setdefault(name, np.zeros(last - first))[lo - first : hi - first] = np.asarray(found)[: hi - lo]

    plan = _execution.chunks(compute, first, last, plan, job.mesh.size)
    return values, plan


def _of_data(
    job: Job, tree: PyTree, plan: Plan, first: int, last: int, sums: dict[str, np.ndarray], progress: Any
) -> Plan:
    """Add the sums over every data set to ``sums`` {name: (last - first, 6)} at the points [first, last)."""
    states = None
    if job.momenta is not None:
        states, plan = _reestimated(job, tree, plan, first, last)
    read = 0
    for i, (prefix, data) in enumerate(job.sources.items()):
        length = data.num_batches if isinstance(data, Stream) else None
        for j, (batch, count, offset) in enumerate(_execution.device_batches(data, job.mesh, job.whole)):

            def compute(plan: Plan, lo: int, hi: int, batch=batch, count=count, offset=offset, prefix=prefix) -> None:
                coords = _points(job, lo, hi, plan)
                at = None if states is None else _padded(states, lo - first, hi - first, plan, job)
                results = [
                    _call(job, tree, coords, at, batch, call, starts, count, offset)
                    for call, starts in _execution.calls(plan, _rows(batch), count, job.batch_size, job.whole)
                ]
                totals = jax.tree_util.tree_map(lambda *blocks: sum(map(_data.total, blocks)), *results)
                for name, total in totals.items():
                    into = sums.setdefault(prefix + name, np.zeros((last - first, _data.NUM_SUMS)))
                    into[lo - first : hi - first] += total[: hi - lo]

            plan = _execution.chunks(compute, first, last, plan, job.mesh.size)
            read += 1
            if progress is not None and isinstance(data, Stream):
                fraction = 0.0 if length is None else (i + (j + 1) / length) / len(job.sources)
                progress(*((read, None) if length is None else (fraction * (last - first), last - first)))
    return plan


def _rows(batch: Batch) -> int:
    return jax.tree_util.tree_leaves(batch)[0].shape[0]


def _call(job: Job, tree, coords, states, batch, plan: Plan, starts, count: int, offset: int) -> dict[str, Any]:
    return kernels.sums_step(
        job.loss, job.params, tree, coords, states, batch, starts, np.int32(count), np.int32(offset),
        how=job.how, plan=plan, mesh=job.mesh,
    )  # fmt: skip


def _reestimated(job: Job, tree: PyTree, plan: Plan, first: int, last: int) -> tuple[PyTree, Plan]:
    """The state with re-estimated averages at the points [first, last), from the first data set: leading axis the
    points.
    """
    sums: list[np.ndarray] = []
    weight = 0
    averaged = tuple(m is not None for m in job.momenta or ())
    for batch, count, offset in _execution.device_batches(job.sources[""], job.mesh, whole=True):

        def compute(plan: Plan, lo: int, hi: int, batch=batch, count=count, offset=offset) -> None:
            coords = _points(job, lo, hi, plan)
            total: Any = None
            for start, size in _data.cuts(count, job.batch_size):
                static = {"how": job.how, "size": size, "loop": plan.loop, "mesh": job.mesh, "averaged": averaged}
                found = _batch_stats.batch_step(
                    job.loss, job.params, tree, coords, batch, np.int32(start), np.int32(offset), **static
                )
                found = [size * np.asarray(x, np.float64)[: hi - lo] for x in found]
                total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
            if not sums:
                sums.extend(np.zeros((last - first, *x.shape[1:])) for x in total)
            for into, x in zip(sums, total, strict=True):
                into[lo - first : hi - first] += x

        plan = _execution.chunks(compute, first, last, plan, job.mesh.size)
        weight += count
    return _batch_stats.restored(job.loss.state, sums, job.momenta or [], weight), plan


def _plan(job: Job, tree: PyTree) -> Plan:
    """The plan of the run: what the user fixed, and the fastest of the candidates for the rest."""
    batch, count, offset = job.first
    rows = min(_rows(batch), job.batch_size or _rows(batch))
    points = -(-job.num // job.mesh.size)
    bucket = 1 << (min(points, 1024) - 1).bit_length()
    leaves, structure = jax.tree_util.tree_flatten((job.loss, job.params, tree, batch))
    shapes = tuple((x.shape, str(x.dtype)) for x in leaves)
    settings = replace(job.execution, devices=job.mesh.size)
    key = (structure, shapes, rows, bucket, job.how, job.momenta is None, job.whole, settings, job.mesh)

    def candidates() -> list[Plan]:
        few = (
            rows if job.whole else min(256, rows)
        )  # enough for the values of the examples to be larger than the weights
        nbytes, primitives = lowering.profile(
            lambda p, b: kernels.points_sums(
                job.loss,
                p,
                tree,
                np.zeros((1, len(job.coords)), np.float32),
                None,
                _data.block_at(b, 0, few, few, 0),
                job.how,
                Plan(1, few, "map", False),
            ),
            job.params,
            batch,
        )
        return _execution.candidates(
            job.execution,
            points=points,
            rows=rows,
            row_bytes=nbytes // few,
            param_bytes=sum(x.nbytes for x in jax.tree_util.tree_leaves(job.params)),
            whole=job.whole,
            sharable=job.affine and job.momenta is None and _single_or_double(job.params),
            scannable="conv_general_dilated" not in primitives,
            on_cpu=job.mesh.devices.flat[0].platform == "cpu",
        )

    def seconds(plan: Plan) -> float:
        call, starts = next(_execution.calls(plan, _rows(batch), count, job.batch_size, job.whole))
        taken = _execution.timed(lambda: _first_call(job, tree, plan, batch, count, offset, call, starts))
        return taken / (plan.chunk * job.mesh.size * call.microbatch * len(starts))

    total = job.num * count
    return _execution.choose(key, candidates, seconds, total)


def _single_or_double(params: PyTree) -> bool:
    return all(x.dtype in (np.float32, np.float64) for x in jax.tree_util.tree_leaves(params))


def _first_call(
    job: Job, tree: PyTree, plan: Plan, batch: Batch, count: int, offset: int, call: Plan, starts: Any
) -> Any:
    coords = _points(job, 0, min(plan.chunk * job.mesh.size, job.num), plan)
    states = None
    if job.momenta is not None:
        states = jax.tree_util.tree_map(lambda x: np.broadcast_to(x, (len(coords), *x.shape)), job.loss.state)
    return _call(job, tree, coords, states, batch, call, starts, count, offset)


def _probe(job: Job, tree: PyTree, plan: Plan) -> tuple[dict[str, float], float, Plan]:
    """The first block at the first points, run twice: values at the first point, largest relative difference, plan."""
    runs: list[dict[str, np.ndarray]] = []

    def compute(plan: Plan, lo: int, hi: int) -> None:
        if lo == 0:
            batch, count, offset = job.first
            call, starts = next(_execution.calls(plan, _rows(batch), count, job.batch_size, job.whole))
            found = [_first_call(job, tree, plan, batch, count, offset, call, starts) for _ in range(2)]
            runs[:] = [{name: _data.mean(_data.total(x)) for name, x in f.items()} for f in found]

    width = job.mesh.size
    plan = _execution.chunks(compute, 0, min(plan.chunk * width, job.num), plan, width)
    values, plan = _of_params(job, tree, plan, 0, 1)
    one, two = (run["loss"][np.isfinite(runs[0]["loss"])] for run in runs)
    scale = np.maximum(np.abs(one), np.finfo(np.float32).tiny)
    difference = float(np.nan_to_num(np.abs(one - two) / scale, nan=np.inf).max(initial=0))
    return {name: float(found[0]) for name, found in (runs[0] | values).items()}, difference, plan


def _warn_unsteady(difference: float) -> None:
    warnings.warn(
        f"loss: two evaluations of the same batch at the same points differ by {difference:.1e} relative (the rule is "
        f"at most {UNSTEADY}); the landscape holds this noise. Turn off dropout, or pass its key to the Loss",
        stacklevel=4,
    )


def _store(
    table: dict[str, dict[str, np.ndarray]], job: Job, sums: Any, values: dict[str, np.ndarray], first: int
) -> None:
    """Means and standard errors of the points from ``first`` on into the flat arrays of the table."""

    def put(kind: str, name: str, found: np.ndarray) -> None:
        flat = table[kind].setdefault(name, np.full(job.num, np.nan))
        flat[first : first + len(found)] = found

    for name, total in sums.items():
        is_loss = name in {prefix + "loss" for prefix in job.sources}
        penalty = values.get("", 0.0) if is_loss else 0.0
        put("values", name, _data.mean(total) + penalty)
        if not is_loss or job.loss.per_example:
            put("stderr", name, _data.standard_error(total))
    for name, found in values.items():
        if name:
            put("values", name, found)


def _landscape(
    job: Job, table: dict[str, dict[str, np.ndarray]], recipe: dict[str, Any], plan: Plan | None, done: int
) -> Landscape:
    shape = tuple(map(len, job.coords))
    complete = done == job.num
    recipe = recipe | {"complete": complete, "points_done": done}
    if plan is not None:
        recipe["plan"] = {name: getattr(plan, name) for name in PLAN}
        recipe["plan"]["devices"] = job.mesh.size
        recipe["plan"]["platform"] = job.mesh.devices.flat[0].platform
    arrays = {kind: {name: flat.reshape(shape) for name, flat in found.items()} for kind, found in table.items()}
    return Landscape(job.coords, arrays["values"], arrays["stderr"], recipe)


def _warn(landscape: Landscape) -> None:
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
