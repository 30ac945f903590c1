"""What ``landscape.evaluate`` computes: a checked job, and the means of its losses at any points.

Only weighted sums leave the devices, and are added up in float64: the values do not depend on how points and data are
cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from lla_jax.core import data as _data
from lla_jax.core import losses, recipes
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse
from lla_jax.core.data import Stream
from lla_jax.core.recipes import versions
from lla_jax.core.static import static
from lla_jax.core.types import Batch, Directions, Execution, Loss, PyTree
from lla_jax.execution import devices as _devices
from lla_jax.execution import plans
from lla_jax.execution.plans import Plan
from lla_jax.landscape import batch_stats as _batch_stats
from lla_jax.landscape import kernels

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
        return self.mesh.shape[_devices.GRID]

    @property
    def streamed(self) -> bool:
        return any(isinstance(d, Stream) for d in self.sources.values())


def prepare(
    loss: Any, params: PyTree, data: Any, coords: tuple[np.ndarray, ...], batch_size: Any, rule_name: str, rule: Any,
    affine: bool, adam: bool, batch_stats: str, metrics: Any, point_metrics: Any, extra_data: Any, key: Any,
    execution: Any,
) -> Job:  # fmt: skip
    """Check everything, describe it for the recipe, and bring it to the devices once."""
    plans.check(execution)
    _tree.check_real(params)
    if batch_size is not None:
        _data.check_batch_size(batch_size)
    metrics, point_metrics = check_metrics(metrics, point_metrics, loss)
    check_policy(batch_stats, loss)
    loss = losses.as_loss(loss)
    sets = {"": data} | {f"{name}_": d for name, d in _data.check_extra(extra_data).items()}
    sets = {prefix: d if isinstance(d, Stream) else _data.as_arrays(d) for prefix, d in sets.items()}
    names(list(sets), [name for name, _ in metrics], [name for name, _ in point_metrics])
    counts = {prefix: None if isinstance(d, Stream) else _data.num_examples(d) for prefix, d in sets.items()}
    mesh = _mesh(execution, sets, math.prod(map(len, coords)), batch_stats, loss)
    recipe: dict[str, Any] = {
        "rule": rule_name,
        "batch_stats": batch_stats,
        "batch_size": batch_size,
        "metrics": [name for name, _ in metrics],
        "point_metrics": [name for name, _ in point_metrics],
        "data": recipes.describe(sets[""]),
        "extra_data": {prefix[:-1]: recipes.describe(d) for prefix, d in sets.items() if prefix},
        "params": {"fingerprint": recipes.fingerprint(params)},
        "state": recipes.fingerprint(loss.state),
        "noise": recipes.fingerprint(loss.key),
        "key": recipes.fingerprint(key),
        "precision": {
            "matmul": str(jax.config.values["jax_default_matmul_precision"] or "default"),
            "x64": bool(jax.config.values["jax_enable_x64"]),
        },
    }
    sources = {p: d if isinstance(d, Stream) else _devices.split_rows(d, mesh) for p, d in sets.items()}
    params, loss = _devices.replicate(params, mesh), _devices.replicate(loss, mesh)
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
    devices = _devices.devices_of(execution)
    held = [d for d in sets.values() if not isinstance(d, Stream)]
    nbytes = sum(x.nbytes for x in jax.tree_util.tree_leaves(held))
    return _devices.mesh_of(devices, _devices.data_shards(execution, devices, points, nbytes, whole))


def _batches(data: Any, count: int | None, mesh: Any, whole: bool) -> Any:
    """(batch on the devices, rows that count, number of its first row) of a data set that is there, or of a stream."""
    if count is None:
        return _devices.device_batches(data, mesh, whole, place=_devices.split_rows)
    return iter([(data, count, 0)])


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
    return job._replace(params=_devices.replicate(params, job.mesh), loss=loss, recipe=recipe)


def described(job: Job, directions: Directions) -> tuple[PyTree, dict[str, Any]]:
    """The directions' tree on the devices, and the recipe of their landscape."""
    tree = aligned(directions, job.params, len(job.coords), job.adam)
    recipe = job.recipe | {
        "directions": dict(directions.recipe) | {"contents": recipes.fingerprint(directions.tree)},
        "versions": versions(),
    }
    return _devices.replicate(tree, job.mesh), recipe


def group_size(job: Job, plan: Plan) -> int:
    """Points finished together."""
    if not job.streamed:
        return plan.chunk * job.width
    if job.momenta is None:
        return job.num
    state = sum(x.nbytes for x in jax.tree_util.tree_leaves(job.loss.state))
    return max(plan.chunk * job.width, STATE_BYTES // max(1, state))


def rows_in(job: Job, batch: Batch) -> int:
    """Rows of a batch on one device."""
    return jax.tree_util.tree_leaves(batch)[0].shape[0] // job.mesh.shape[_devices.DATA]


POLICIES = ("frozen", "batch", "reestimate")


def check_policy(batch_stats: str, loss: Any) -> None:
    """Raise unless the policy of normalization statistics is known, and the loss can follow it."""
    if batch_stats not in POLICIES:
        raise ValueError(f"batch_stats: {batch_stats!r} given; the rule is one of {', '.join(POLICIES)}")
    if batch_stats == "frozen":
        return
    if not isinstance(loss, Loss):
        raise Misuse(
            "batch_stats",
            f"{batch_stats!r} needs a model whose normalization layers are visible; a plain function has only "
            "'frozen'. Use lla.from_linen, from_nnx, from_equinox or lla.Loss(apply, criterion, state=...)",
        )
    if batch_stats == "reestimate" and not jax.tree_util.tree_leaves(loss.state):
        raise Misuse("batch_stats", "'reestimate' given, but the loss has no state to re-estimate; use 'frozen'")


def check_metrics(metrics: Any, point_metrics: Any, loss: Any) -> tuple[tuple, tuple]:
    """Both kinds of metrics as ((name, static function), ...)."""
    for argument, functions in (("metrics", metrics), ("point_metrics", point_metrics)):
        if functions is not None and not isinstance(functions, Mapping):
            raise ValueError(f"{argument}: got {type(functions).__name__}; the rule is {{name: function}}")
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


def names(prefixes: Sequence[str], metrics: Sequence[str], point_metrics: Sequence[str]) -> None:
    """Raise if two values would have the same name, such as a metric "test_loss" beside a data set "test"."""
    all_names = [prefix + name for prefix in prefixes for name in ("loss", *metrics)] + list(point_metrics)
    if twice := sorted({name for name in all_names if all_names.count(name) > 1}):
        raise ValueError(
            f"metrics: {twice} would name two values each; the rule is one value a name, and a data set's name is put "
            "before its values. Rename a metric or an entry of extra_data"
        )


def aligned(directions: Directions, params: PyTree, axes: int, adam: bool) -> PyTree:
    """The directions' tree in the structure of the parameters.

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
    if adam and not (raw and recipe.get("chosen", [0, 1]) == [0, 1]):
        raise ValueError(
            f"directions: the adam rule needs Adam's raw moments (m, v), got {dict(recipe)}; use "
            "lla.directions.adam_moments(opt_state, params) without normalize"
        )
    return tree
