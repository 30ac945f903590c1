"""How ``landscape.evaluate`` runs: check, plan, run group after group, record.

Only weighted sums leave the devices, and are added up in float64: the values do not depend on how points and data are
cut.
"""

from __future__ import annotations

import functools
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax import _tree, lowering
from lla_jax import batch_stats as _batch_stats
from lla_jax import data as _data
from lla_jax import execution as _execution
from lla_jax._types import Batch, Directions, Execution, Landscape, Loss, PyTree, static
from lla_jax._version import __version__
from lla_jax.data import Stream
from lla_jax.execution import Plan

Progress = Callable[[float, float | None], None]
POLICIES = ("frozen", "batch", "reestimate")
STATE_BYTES = 2**28  # re-estimated statistics held at a time while a stream is read
UNSTEADY = 1e-5  # relative difference between two runs of one block that rounding does not explain


@dataclass(frozen=True)
class How:
    """The static part of what is computed at a point; compares by value."""

    rule: Any
    train: bool
    metrics: tuple[tuple[str, Any], ...]


def points_sums(
    loss: Loss,
    params: PyTree,
    directions: PyTree,
    coords: Any,
    states: PyTree,
    block: _data.Block,
    how: How,
    plan: Plan,
) -> dict[str, Any]:
    """{name: (C, 7)}: the sums of one block at every point; ``states`` has a leading axis C, or is None."""

    def sums(p: PyTree, state: PyTree) -> dict[str, Any]:
        outputs, _ = _data.outputs_of(loss, p, state, block, how.train)
        found = {"loss": _data.loss_sums(loss, outputs, block)}
        for name, metric in how.metrics:
            found[name] = _data.example_sums(name, metric(outputs, block.batch), block.mask)
        return found

    if plan.share and states is None:
        shared = lowering.affine(lambda p: sums(p, loss.state), params, directions)
        return _execution.map_points(shared, coords, plan.loop)
    if states is None:
        return _execution.map_points(lambda c: sums(how.rule(params, directions, c), loss.state), coords, plan.loop)
    return _execution.map_points(
        lambda cs: sums(how.rule(params, directions, cs[0]), cs[1]), (coords, states), plan.loop
    )


@functools.partial(jax.jit, static_argnames=("how", "plan", "mesh"))
def _sums_step(loss, params, directions, coords, states, data, starts, count, offset, *, how, plan, mesh):
    """{name: (C, S, 7)} over S blocks of ``data`` starting at ``starts``."""

    def run(loss, params, directions, coords, states, data, starts, count, offset):
        def one(start):
            block = _data.block_at(data, start, plan.microbatch, count, offset)
            return points_sums(loss, params, directions, coords, states, block, how, plan)

        found = _execution.map_points(one, starts, "map")
        return jax.tree_util.tree_map(lambda x: jnp.moveaxis(x, 0, 1), found)

    split = (False, False, False, True, True, False, False, False, False)
    return _execution.over_points(run, mesh, split)(
        loss, params, directions, coords, states, data, starts, count, offset
    )


@functools.partial(jax.jit, static_argnames=("how", "loop", "mesh", "point_metrics"))
def _point_step(loss, params, directions, coords, key, *, how, loop, mesh, point_metrics):
    """{name: (C,)}: what depends on the parameters alone, the penalty under the name ''."""

    def run(loss, params, directions, coords, key):
        def one(c):
            p = how.rule(params, directions, c)
            found = {name: jnp.asarray(f(p, key)) for name, f in point_metrics}
            for name, value in found.items():
                if value.ndim:
                    raise ValueError(
                        f"point_metrics: {name!r} returned shape {value.shape}; the rule is a scalar per point"
                    )
            return found if loss.penalty is None else found | {"": jnp.asarray(loss.penalty(p))}

        return _execution.map_points(one, coords, loop)

    return _execution.over_points(run, mesh, (False, False, False, True, False))(loss, params, directions, coords, key)


class Job(NamedTuple):
    """What an ``evaluate`` call holds independently of the directions; arrays are on the devices."""

    loss: Loss
    params: PyTree
    sources: dict[str, Any]  # by the prefix of their values: data on the devices, or a Stream
    coords: tuple[np.ndarray, ...]
    first: tuple[Batch, int, int]  # batch, rows that count, offset: to plan and to probe with
    points: np.ndarray  # (n, k)
    how: How
    point_metrics: tuple[tuple[str, Any], ...]
    key: Any
    whole: bool  # what a batch is matters to the result: it is never cut or padded
    batch_size: int | None
    momenta: list[float | None] | None  # of the state's leaves, where they are re-estimated
    mesh: Any
    execution: Execution
    affine: bool  # the rule is params + sum_i c_i d_i
    recipe: dict[str, Any]

    @property
    def streamed(self) -> bool:
        return any(isinstance(d, Stream) for d in self.sources.values())


def prepare(
    loss, params, data, coords, batch_size, rule_name, rule, affine, batch_stats, metrics, point_metrics, extra_data,
    key, execution,
) -> Job:  # fmt: skip
    """Check everything, describe it for the recipe, and bring it to the devices once."""
    _execution.check(execution)
    _tree.check_real(params)
    if batch_size is not None:
        _data.check_batch_size(batch_size)
    metrics, point_metrics = _check_metrics(metrics, point_metrics, loss)
    _check_policy(batch_stats, loss)
    loss = _data.as_loss(loss)
    mesh = _execution.mesh_of(_execution.devices_of(execution))
    sets = {"": data} | {f"{name}_": d for name, d in _data.check_extra(extra_data).items()}
    leaves = jax.tree_util.tree_leaves(params)
    recipe = {
        "rule": rule_name,
        "batch_stats": batch_stats,
        "batch_size": batch_size,
        "metrics": [name for name, _ in metrics],
        "point_metrics": [name for name, _ in point_metrics],
        "data": {prefix.rstrip("_") or "data": _describe(d) for prefix, d in sets.items()},
        "params": {"fingerprint": _data.fingerprint(params), "size": sum(x.size for x in leaves)},
        "precision": {
            "params": sorted({str(x.dtype) for x in leaves}),
            "matmul": str(jax.config.values["jax_default_matmul_precision"] or "default"),
            "x64": bool(jax.config.values["jax_enable_x64"]),
        },
    }
    sources = {p: d if isinstance(d, Stream) else _execution.replicate(d, mesh) for p, d in sets.items()}
    params, loss = _execution.replicate(params, mesh), _execution.replicate(loss, mesh)
    momenta = None
    first = next(_execution.batches(sources[""], mesh, whole=True))
    if batch_stats == "reestimate":
        batch, count, _ = first
        momenta = _batch_stats.momenta(loss, params, batch, _data.cuts(count, batch_size)[0][1])
    return Job(
        loss=loss,
        params=params,
        sources=sources,
        coords=coords,
        first=first,
        points=np.stack([c.reshape(-1) for c in np.meshgrid(*coords, indexing="ij")], -1),
        how=How(static(rule), batch_stats == "batch", metrics),
        point_metrics=point_metrics,
        key=jax.random.key(0) if key is None and point_metrics else key,
        whole=batch_stats == "batch" or not loss.per_example,
        batch_size=batch_size,
        momenta=momenta,
        mesh=mesh,
        execution=execution,
        affine=affine,
        recipe=recipe,
    )


def _describe(data: Any) -> dict[str, Any]:
    if isinstance(data, Stream):
        return {"kind": "stream"}
    return {"kind": "memory", "examples": _data.num_examples(data), "fingerprint": _data.fingerprint(data)}


def run(job: Job, directions: Directions, progress: Any, on_partial: Any, resume: Landscape | None) -> Landscape:
    """One landscape, group after group of points: a chunk for data in memory, all points for a stream (read once)."""
    tree = _aligned(directions, job)
    recipe = job.recipe | {
        "directions": dict(directions.recipe) | {"contents": _data.fingerprint(directions.tree)},
        "versions": {"lla_jax": __version__, "jax": jax.__version__, "python": platform.python_version()},
    }
    table, done = _resumed(job, recipe, resume)
    tree = _execution.replicate(tree, job.mesh)
    plan: Plan | None = None
    sums: dict[str, np.ndarray] = {}
    values: dict[str, np.ndarray] = {}
    try:
        plan = _plan(job, tree)
        recipe["deterministic"] = _steady(job, tree, plan)
        while done < len(job.points):
            last = min(done + _group_size(job, plan), len(job.points))
            sums.clear()
            values, plan = _of_params(job, tree, plan, done, last)
            plan = _of_data(job, tree, plan, done, last, sums, span(progress, done, last - done, len(job.points)))
            _store(table, job, sums, values, done)
            done = last
            if progress is not None:
                progress(done, len(job.points))
    except BaseException:
        if on_partial is not None and (done or (sums and job.streamed)):
            if job.streamed:  # every cell has a mean over the batches read so far
                _store(table, job, sums, values, done)
            on_partial(_landscape(job, table, recipe, plan, done))
        raise
    result = _landscape(job, table, recipe, plan, done)
    _warn(result)
    return result


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
        return len(job.points)
    state = sum(x.nbytes for x in jax.tree_util.tree_leaves(job.loss.state))
    return max(plan.chunk * job.mesh.size, STATE_BYTES // max(1, state))


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
        coords = _padded(job.points, lo, hi, plan, job)
        static = {"how": job.how, "loop": plan.loop, "mesh": job.mesh, "point_metrics": job.point_metrics}
        for name, found in _point_step(job.loss, job.params, tree, coords, job.key, **static).items():
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
    for i, (prefix, data) in enumerate(job.sources.items()):
        length = len(data) if isinstance(data, Stream) and hasattr(data.source, "__len__") else None
        for j, (batch, count, offset) in enumerate(_execution.batches(data, job.mesh, job.whole)):

            def compute(plan: Plan, lo: int, hi: int, batch=batch, count=count, offset=offset, prefix=prefix) -> None:
                coords = _padded(job.points, lo, hi, plan, job)
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
            if progress is not None and isinstance(data, Stream):
                fraction = None if length is None else (i + (j + 1) / length) / len(job.sources)
                progress(*((last - first) * np.array([fraction, 1])) if fraction else ((j + 1), None))
    return plan


def _rows(batch: Batch) -> int:
    return jax.tree_util.tree_leaves(batch)[0].shape[0]


def _call(job: Job, tree, coords, states, batch, plan: Plan, starts, count: int, offset: int) -> dict[str, Any]:
    return _sums_step(
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
    for batch, count, offset in _execution.batches(job.sources[""], job.mesh, whole=True):

        def compute(plan: Plan, lo: int, hi: int, batch=batch, count=count, offset=offset) -> None:
            coords = _padded(job.points, lo, hi, plan, job)
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
    points = -(-len(job.points) // job.mesh.size)
    bucket = 1 << (min(points, 1024) - 1).bit_length()
    leaves, structure = jax.tree_util.tree_flatten((job.loss, job.params, tree, batch))
    shapes = tuple((x.shape, str(x.dtype)) for x in leaves)
    settings = replace(job.execution, devices=job.mesh.size)
    key = (structure, shapes, rows, bucket, job.how, job.momenta is None, job.whole, settings, job.mesh)

    def candidates() -> list[Plan]:
        few = min(256, rows)  # enough for the values of the examples to be larger than the weights
        nbytes, primitives = lowering.profile(
            lambda p, b: points_sums(
                job.loss,
                p,
                tree,
                job.points[:1],
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
        taken, _ = _execution.timed(lambda: _first_call(job, tree, plan, batch, count, offset, call, starts))
        return taken / (plan.chunk * job.mesh.size * call.microbatch * len(starts))

    total = len(job.points) * count
    return _execution.choose(key, candidates, seconds, total)


def _single_or_double(params: PyTree) -> bool:
    return all(x.dtype in (np.float32, np.float64) for x in jax.tree_util.tree_leaves(params))


def _first_call(
    job: Job, tree: PyTree, plan: Plan, batch: Batch, count: int, offset: int, call: Plan, starts: Any
) -> Any:
    coords = _padded(job.points, 0, len(job.points), plan, job)[: plan.chunk * job.mesh.size]
    states = None
    if job.momenta is not None:
        states = jax.tree_util.tree_map(lambda x: np.broadcast_to(x, (len(coords), *x.shape)), job.loss.state)
    return _call(job, tree, coords, states, batch, call, starts, count, offset)


def _steady(job: Job, tree: PyTree, plan: Plan) -> bool:
    """Whether two runs of the first block agree; warns where they do not."""
    batch, count, offset = job.first
    call, starts = next(_execution.calls(plan, _rows(batch), count, job.batch_size, job.whole))
    runs = [_first_call(job, tree, plan, batch, count, offset, call, starts)["loss"] for _ in range(2)]
    first, second = (_data.mean(_data.total(x)) for x in runs)
    agree = np.allclose(first, second, rtol=UNSTEADY, atol=0, equal_nan=True)
    if not agree:
        worst = np.nanmax(np.abs(first - second) / np.abs(first))
        warnings.warn(
            f"loss: two evaluations of the same batch at the same points differ by {worst:.1e} relative (the rule is "
            f"at most {UNSTEADY}); the landscape holds this noise. Turn off dropout, or pass its key to the Loss",
            stacklevel=4,
        )
    return bool(agree)


def _store(
    table: dict[str, dict[str, np.ndarray]], job: Job, sums: Any, values: dict[str, np.ndarray], first: int
) -> None:
    """Means and standard errors of the points from ``first`` on into the flat arrays of the table."""

    def put(kind: str, name: str, found: np.ndarray) -> None:
        flat = table[kind].setdefault(name, np.full(len(job.points), np.nan))
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
    complete = done == len(job.points)
    recipe = recipe | {"complete": complete, "points_done": done}
    if plan is not None:
        recipe["plan"] = {"chunk": plan.chunk, "microbatch": plan.microbatch, "loop": plan.loop, "share": plan.share}
        recipe["plan"]["devices"] = job.mesh.size
        recipe["plan"]["platform"] = job.mesh.devices.flat[0].platform
    arrays = {kind: {name: flat.reshape(shape) for name, flat in found.items()} for kind, found in table.items()}
    return Landscape(job.coords, arrays["values"], arrays["stderr"], recipe)


IDENTITY = ("rule", "batch_stats", "batch_size", "metrics", "point_metrics", "data", "params", "directions")


def _resumed(
    job: Job, recipe: dict[str, Any], resume: Landscape | None
) -> tuple[dict[str, dict[str, np.ndarray]], int]:
    """Flat arrays and the number of points finished, of a partial landscape of the same recipe or of none."""
    if resume is None:
        return {"values": {}, "stderr": {}}, 0
    changed = [k for k in IDENTITY if _json(resume.recipe.get(k)) != _json(recipe[k])]
    if len(resume.coords) != len(job.coords) or any(
        not np.array_equal(a, b) for a, b in zip(resume.coords, job.coords, strict=True)
    ):
        changed.append("grid")
    if changed:
        raise ValueError(
            f"resume: the partial landscape differs in {', '.join(changed)}; the rule is the same recipe and grid. "
            "Repeat the arguments it was made with, or start anew without resume"
        )
    table = {
        kind: {name: np.array(found, np.float64).reshape(-1) for name, found in arrays.items()}
        for kind, arrays in (("values", resume.values), ("stderr", resume.stderr))
    }
    return table, int(resume.recipe.get("points_done", 0))


def _json(value: Any) -> Any:
    """As it would come back from a file: tuples are lists."""
    if isinstance(value, Mapping):
        return {str(k): _json(v) for k, v in value.items()}
    return [_json(v) for v in value] if isinstance(value, list | tuple) else value


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


# -- checks ------------------------------------------------------------------------------------------------------------


def check_grid(grid: Sequence[Any]) -> tuple[np.ndarray, ...]:
    try:
        coords = tuple(np.asarray(c, np.float64) for c in grid)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"grid: expected one 1-D array of coordinates per axis, e.g. lla.grid(); got {grid!r}"
        ) from error
    for i, c in enumerate(coords):
        if c.ndim != 1 or not len(c) or not np.isfinite(c).all():
            raise ValueError(
                f"grid: axis {i} has shape {c.shape}; the rule is a non-empty 1-D array of finite coordinates"
            )
    if not coords:
        raise ValueError("grid: has no axis; pass e.g. lla.grid(extent=1.0, points=41, dims=2)")
    return coords


def _check_policy(batch_stats: str, loss: Any) -> None:
    if batch_stats not in POLICIES:
        raise ValueError(f"batch_stats: {batch_stats!r} given; the rule is one of {', '.join(POLICIES)}")
    if batch_stats == "frozen":
        return
    if not isinstance(loss, Loss):
        raise ValueError(
            f"batch_stats: {batch_stats!r} needs a model whose normalization layers are visible; a plain function has "
            "only 'frozen'. Use lla.from_linen, from_nnx, from_equinox or lla.Loss(apply, criterion, state=...)"
        )
    if batch_stats == "reestimate" and not jax.tree_util.tree_leaves(loss.state):
        raise ValueError("batch_stats: 'reestimate' given, but the loss has no state to re-estimate; use 'frozen'")


def _check_metrics(metrics: Any, point_metrics: Any, loss: Any) -> tuple[tuple, tuple]:
    metrics, point_metrics = dict(metrics or {}), dict(point_metrics or {})
    for argument, functions in (("metrics", metrics), ("point_metrics", point_metrics)):
        for name, f in functions.items():
            if not isinstance(name, str) or not name or name == "loss" or not callable(f):
                raise ValueError(
                    f"{argument}: entry {name!r}: {f!r}; the rule is a name other than 'loss' and a function"
                )
    if both := set(metrics) & set(point_metrics):
        raise ValueError(f"point_metrics: {sorted(both)} are names of metrics already; rename them")
    if metrics and not isinstance(loss, Loss):
        raise ValueError(
            "metrics: need the model's outputs, which a plain function hides; use lla.Loss(apply, criterion)"
        )
    return tuple((k, static(f)) for k, f in metrics.items()), tuple((k, static(f)) for k, f in point_metrics.items())


def _aligned(directions: Directions, job: Job) -> PyTree:
    """The directions' tree in the structure of the parameters.

    Raises:
      ValueError: another structure, shape or number than the grid's, or not what the rule needs.
    """
    tree = _tree.align(directions.tree, job.params, "directions", stacked=True)
    if directions.num != len(job.coords):
        raise ValueError(
            f"grid: {len(job.coords)} axes for {directions.num} directions; the rule is one axis per direction, e.g. "
            f"lla.grid(dims={directions.num}) or axes[:{len(job.coords)}]"
        )
    recipe = directions.recipe
    raw = (
        recipe.get("kind") == "adam_moments" and not recipe.get("normalize") and recipe.get("chosen", [0, 1]) == [0, 1]
    )
    if job.recipe["rule"].startswith("adam") and not raw:
        raise ValueError(
            f"directions: the adam rule needs Adam's raw moments (m, v), got {dict(recipe)}; use "
            "lla.directions.adam_moments(opt_state, params) without normalize"
        )
    return tree
