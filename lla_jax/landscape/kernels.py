"""Computes on the devices, at many points at once: the sums over blocks of examples, and values of the parameters.

These are pure functions, jitted once per shape and static part; nothing here reads, writes or prints.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lla_jax.core import data as _data
from lla_jax.core import examples, operands
from lla_jax.core import losses as _losses
from lla_jax.core import precision as _precision
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, check_choice, check_flag, misuse
from lla_jax.core.called import call, explain
from lla_jax.core.signatures import explained
from lla_jax.core.static import static
from lla_jax.core.types import Batch, Directions, Loss, PyTree, UpdateRule
from lla_jax.core.wholes import is_array
from lla_jax.execution import devices, plans, rewriting
from lla_jax.execution.plans import Plan
from lla_jax.landscape.rules import add, function_of, params_at


@dataclass(frozen=True)
class Formula:
    """The part of a task for which programs are compiled; two are equal if their functions compare as equal.

    Args:
      rule: ``(params, directions, coord) -> params``.
      train: whether normalization layers use the statistics of each batch.
      metrics: ((name, ``f(outputs, batch)``), ...).
      precision: of matrix products; see ``Execution``.
    """

    rule: Any
    train: bool
    metrics: tuple[tuple[str, Any], ...]
    precision: operands.Precision = "highest"


class Points(NamedTuple):
    """C points around a centre.

    Args:
      params: the centre.
      directions: the stacked tree of the axes, with leading axis k.
      coords: (C, k), the coordinates.
      states: the state of the loss at each point, with leading axis C; None to use the state in the loss at all points.
    """

    params: PyTree
    directions: PyTree
    coords: Any
    states: PyTree = None


class Blocks(NamedTuple):
    """S blocks of rows of a batch.

    Args:
      data: the batch.
      starts: (S,), index of the row at which each block starts; a single index where there is one block.
      rows: number of rows of the batch that are examples; the rows after them are padding. None if all are examples.
      offset: index of the batch's first row in the data set.
    """

    data: Batch
    starts: Any
    rows: Any
    offset: Any


def _check_points(points: Points) -> None:
    """Check the shapes of points while a program is traced; a compiled program does not check again."""
    chex.assert_rank(points.coords, 2)
    num, axes = points.coords.shape
    chex.assert_tree_shape_prefix(points.directions, (axes,))
    chex.assert_tree_shape_prefix(points.states, (num,))


def sums_at_points(
    loss: Loss, points: Points, block: _losses.Block, formula: Formula, plan: Plan, for_cpu: bool = False
) -> dict[str, Any]:
    """The packed sums of the loss and the metrics over one block at C points: {name: (C, 7)}.

    With ``for_cpu``, for forms that are fast on a CPU, or with ``plan.share`` they cannot be differentiated.
    """
    _check_points(points)
    with jax.default_matmul_precision(formula.precision):
        return _sums_at_points(loss, points, block, formula, plan, for_cpu)


def _sums_at_points(
    loss: Loss, points: Points, block: _losses.Block, formula: Formula, plan: Plan, for_cpu: bool
) -> dict[str, Any]:
    params, directions, coords, states = points
    at = functools.partial(params_at, formula.rule, params, directions)

    def sums(p: PyTree, state: PyTree) -> dict[str, Any]:
        outputs, _ = _losses.outputs_of(loss, p, state, block, formula.train)
        packed = {"loss": _losses.pack(_losses.loss_sums(loss, outputs, block))}
        for name, metric in formula.metrics:
            result = call(metric, outputs, block.batch, name)
            packed[name] = _losses.pack(_losses.example_sums(name, result, block.mask))
        return packed

    join = plan.loop == "map"  # batched over weights, convolutions become grouped ones, which gain nothing
    if plan.share and states is None:
        shared = rewriting.share_affine(lambda p: sums(p, loss.state), params, directions, for_cpu, join)
        return plans.map_points(shared, coords, plan.loop)
    sums_of = rewriting.rewrite_for_values(sums, join) if for_cpu else sums
    if states is None:
        return plans.map_points(lambda c: sums_of(at(c), loss.state), coords, plan.loop)
    return plans.map_points(lambda point: sums_of(at(point[0]), point[1]), (coords, states), plan.loop)


@functools.partial(jax.jit, static_argnames=("formula", "plan", "mesh"))
def block_sums(
    loss: Loss, points: Points, blocks: Blocks, *, formula: Formula, plan: Plan, mesh: Mesh
) -> dict[str, Any]:
    """The packed sums of the loss and the metrics over each of S blocks at C points: {name: (C, S, 7)}.

    If the data are split into D shards, the S blocks of each shard are summed, and the shape is (C, D S, 7).
    """
    sharded = mesh.shape[devices.DATA] > 1

    def run(loss: Loss, *parts: Any) -> dict[str, Any]:
        points, (data, starts, count, offset) = Points(*parts[:4]), parts[4:]
        rows = _data.num_examples(data)
        before = jax.lax.axis_index(devices.DATA) * rows if sharded else 0

        def one(start: Any) -> dict[str, Any]:
            examples = jnp.clip(count - before, 0, rows) if sharded else count
            block = _losses.block_at(data, start, plan.microbatch, examples, offset + before)
            return sums_at_points(loss, points, block, formula, plan, for_cpu=devices.on_cpu(mesh))

        sums = plans.map_points(one, starts, "map")
        num_sums = len(_losses.Sums._fields)
        chex.assert_shape(jax.tree.leaves(sums), (len(starts), len(points.coords), num_sums))
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), sums)

    split = (False, False, False, True, True, devices.DATA if sharded else False, False, False, False)
    return devices.shard_over_points(run, mesh, split)(loss, *points, *blocks)


@functools.partial(jax.jit, static_argnames=("formula", "loop", "mesh", "point_metrics"))
def point_values(
    loss: Loss, points: Points, key: Any, *, formula: Formula, loop: str, mesh: Mesh, point_metrics: Any
) -> dict[str, Any]:
    """The point metrics at C points and, under the name '', the penalty of the loss if it has one: {name: (C,)}."""
    _check_points(points)

    def run(loss: Loss, params: PyTree, directions: PyTree, coords: Any, key: Any) -> dict[str, Any]:
        @jax.default_matmul_precision(formula.precision)
        def one(c: Any) -> dict[str, Any]:
            p = params_at(formula.rule, params, directions, c)
            values = {name: _point_value(name, f, p, key) for name, f in point_metrics}
            return values if loss.penalty is None else values | {"": _losses.penalty_of(loss, p)}

        return plans.map_points(one, coords, loop)

    return devices.shard_over_points(run, mesh, (False, False, False, True, False))(loss, *points[:3], key)


def _point_value(name: str, f: Any, params: PyTree, key: Any) -> Any:
    """A point metric, a scalar array."""
    given = {"params": params, "key": key}
    with explain(f, f"the point metric {name!r}", "f(params, key)", given, argument="point_metrics"):
        value = f(params, key)
    rule = "it must return a real scalar per point, such as a mean"
    if not is_array(value) or jnp.issubdtype(jnp.result_type(value), jnp.complexfloating):
        kind = jnp.result_type(value) if is_array(value) else f"a {type(value).__name__}"
        raise Misuse("point_metrics", f"{name!r} returned {kind}; {rule}")
    if jnp.ndim(value):
        raise Misuse("point_metrics", f"{name!r} returned shape {jnp.shape(value)}; {rule}")
    return jnp.asarray(value)


@explained
def losses(
    loss: Loss | Callable[[PyTree, Batch], Any],
    params: PyTree,
    directions: PyTree,
    coords: Any,
    data: Batch,
    *,
    rule: str | UpdateRule = add,
    loop: str = "map",
    share: bool = False,
    precision: operands.Precision = "highest",
) -> Any:
    """The mean loss over one in-memory data set at each of C points; a pure function, to be jitted by the user.

        L(c) = sum_i w_i l_i(rule(params, directions, c)) / sum_i w_i + penalty

    Args:
      loss: a ``Loss`` (frozen statistics) or a plain function.
      params: the centre.
      directions: ``Directions``, or their stacked tree (``axes.tree``), with leading axis k.
      coords: (C, k), the coordinates of the points.
      data: one data set or ``lla.whole(...)``, computed as one block.
      rule: ``add``, ``adam``, their names, or any ``(params, directions, coord) -> params``.
      loop: "map" for one point after another, "vmap" for all at once.
      share: compute the layers that are affine in the coordinates once for all points (rule ``add`` only; the result
        cannot be differentiated then).
      precision: "highest", "high" or "default", of matrix products; as in ``Execution``.

    Returns:
      (C,), a loss for each point.

    Raises:
      ValueError: ``coords`` of another shape, ``share`` with another rule than ``add``, or an unknown ``precision``.
    """
    if not _tree.is_traced(params):
        _tree.check_real(params)
    loss, params = _precision.at_least_single(_losses.as_loss(loss), params)
    directions = directions.tree if isinstance(directions, Directions) else directions
    if isinstance(coords, tuple):  # a grid, one array for each axis
        points = "np.stack(np.meshgrid(*grid, indexing='ij'), -1).reshape(-1, len(grid))"
        raise misuse("coords", coords, f"an array of shape (C, k), one row per point; of a grid: {points}")
    if not np.issubdtype(getattr(coords, "dtype", None) or np.asarray(coords).dtype, np.number):
        raise misuse("coords", coords, "an array of numbers of shape (C, k), one row per point")
    coords, share = jnp.asarray(coords), check_flag("share", share)
    check_choice("loop", loop, ("map", "vmap"))
    check_choice("precision", precision, operands.PRECISIONS)
    if isinstance(data, _data.Stream):
        raise misuse("data", data, "in memory, since this function is traced: pass a batch, or use lla.evaluate")
    rule = function_of(rule)
    if share and rule is not add:
        raise misuse(
            "share", share, "False with this rule, since only the add rule is affine in the coordinates; use rule=add"
        )
    directions = _tree.align(directions, params, "directions", stacked=True)
    axes = len(jax.tree.leaves(directions)[0])
    if np.ndim(coords) != 2 or coords.shape[1] != axes:
        raise misuse(
            "coords",
            coords,
            f"an array of shape (C, {axes}) for C points along {axes} directions, such as jnp.zeros((1, {axes}))",
        )
    data = _data.as_arrays(data)
    examples.check_shapes(loss, params, data)
    formula = Formula(static(rule), False, (), precision)
    plan = plans.Plan(coords.shape[0], _data.num_examples(data), loop, share)
    block = _losses.block_at(data, 0, plan.microbatch, plan.microbatch, 0)

    def sums(coords: Any, for_cpu: bool) -> Any:
        return sums_at_points(loss, Points(params, directions, coords), block, formula, plan, for_cpu)["loss"]

    forms = {"cpu": functools.partial(sums, for_cpu=True), "default": functools.partial(sums, for_cpu=False)}
    packed = jax.lax.platform_dependent(coords, **forms) if share else sums(coords, False)
    value = _losses.unpack(packed).mean
    if loss.penalty is not None:
        with jax.default_matmul_precision(precision):
            value += plans.map_points(
                lambda c: _losses.penalty_of(loss, params_at(rule, params, directions, c)), coords, loop
            )
    return value
