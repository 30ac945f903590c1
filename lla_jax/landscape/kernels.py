"""What runs on the devices: the sums over a block of data, and what depends on the parameters alone, at many points.

Pure functions, jitted once per shape and static part; nothing here reads, writes or prints.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lla_jax.core import data as _data
from lla_jax.core import losses as _losses
from lla_jax.core.static import static
from lla_jax.core.types import Batch, Loss, PyTree, UpdateRule
from lla_jax.execution import devices, plans, rewriting
from lla_jax.execution.plans import Plan
from lla_jax.landscape.rules import add


@dataclass(frozen=True)
class Formula:
    """What is computed at a point, as far as a program is compiled for it; compares by value.

    Args:
      rule: ``(params, directions, coord) -> params``.
      train: normalization layers use the statistics of each batch.
      metrics: ((name, function), ...) of the outputs, beside the loss.
    """

    rule: Any
    train: bool
    metrics: tuple[tuple[str, Any], ...]


class Points(NamedTuple):
    """C points around a centre.

    Args:
      params: the centre.
      directions: the stacked tree, leading axis k.
      coords: (C, k).
      states: the loss's state at each of them, leading axis C; None where it is that of the loss.
    """

    params: PyTree
    directions: PyTree
    coords: Any
    states: PyTree = None


class Blocks(NamedTuple):
    """Blocks of rows of a batch.

    Args:
      data: the batch.
      starts: first row of each block, (S,).
      rows: how many of the batch's rows count, from its first one on; None for all.
      offset: number of its first row in the whole data set.
    """

    data: Batch
    starts: Any
    rows: Any
    offset: Any


def points_sums(
    loss: Loss, points: Points, block: _losses.Block, formula: Formula, plan: Plan, values_only: bool = False
) -> dict[str, Any]:
    """{name: (C, 7)}: the packed sums of one block at every point.

    With ``values_only`` (as with a shared affine part) nobody differentiates them.
    """
    params, directions, coords, states = points

    def sums(p: PyTree, state: PyTree) -> dict[str, Any]:
        outputs, _ = _losses.outputs_of(loss, p, state, block, formula.train)
        found = {"loss": _losses.pack(_losses.loss_sums(loss, outputs, block))}
        for name, metric in formula.metrics:
            with _losses.noting(f"the metric {name!r}", "f(outputs, batch)", block):
                result = metric(outputs, block.batch)
            found[name] = _losses.pack(_losses.example_sums(name, result, block.mask))
        return found

    if plan.share and states is None:
        shared = rewriting.affine(lambda p: sums(p, loss.state), params, directions)
        return plans.map_points(shared, coords, plan.loop)
    at = rewriting.values_only(sums) if values_only else sums
    if states is None:
        return plans.map_points(lambda c: at(formula.rule(params, directions, c), loss.state), coords, plan.loop)
    moved = functools.partial(formula.rule, params, directions)
    return plans.map_points(lambda cs: at(moved(cs[0]), cs[1]), (coords, states), plan.loop)


@functools.partial(jax.jit, static_argnames=("formula", "plan", "mesh"))
def sums_step(
    loss: Loss, points: Points, blocks: Blocks, *, formula: Formula, plan: Plan, mesh: Mesh
) -> dict[str, Any]:
    """{name: (C, S, 7)}: the packed sums of S blocks, and of the shares of the data, at every point."""
    spread = mesh.shape[devices.DATA] > 1

    def run(loss: Loss, *parts: Any) -> dict[str, Any]:
        points, (data, starts, count, offset) = Points(*parts[:4]), parts[4:]
        rows = jax.tree.leaves(data)[0].shape[0]
        before = jax.lax.axis_index(devices.DATA) * rows if spread else 0

        def one(start: Any) -> dict[str, Any]:
            mine = jnp.clip(count - before, 0, rows) if spread else count
            block = _losses.block_at(data, start, plan.microbatch, mine, offset + before)
            return points_sums(loss, points, block, formula, plan, values_only=True)

        found = plans.map_points(one, starts, "map")
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), found)

    split = (False, False, False, True, True, devices.DATA if spread else False, False, False, False)
    return devices.over_points(run, mesh, split)(loss, *points, *blocks)


@functools.partial(jax.jit, static_argnames=("formula", "loop", "mesh", "point_metrics"))
def point_step(
    loss: Loss, points: Points, key: Any, *, formula: Formula, loop: str, mesh: Mesh, point_metrics: Any
) -> dict[str, Any]:
    """{name: (C,)}: what depends on the parameters alone, the penalty under the name ''."""

    def run(loss: Loss, params: PyTree, directions: PyTree, coords: Any, key: Any) -> dict[str, Any]:
        def one(c: Any) -> dict[str, Any]:
            p = formula.rule(params, directions, c)
            found = {name: jnp.asarray(f(p, key)) for name, f in point_metrics}
            for name, value in found.items():
                if value.ndim:
                    raise ValueError(
                        f"point_metrics: {name!r} returned shape {value.shape}; the rule is a scalar per point"
                    )
            return found if loss.penalty is None else found | {"": jnp.asarray(loss.penalty(p))}

        return plans.map_points(one, coords, loop)

    return devices.over_points(run, mesh, (False, False, False, True, False))(loss, *points[:3], key)


def losses(
    loss: Loss | Callable[[PyTree, Batch], Any],
    params: PyTree,
    directions: PyTree,
    coords: Any,
    data: Batch,
    *,
    rule: UpdateRule = add,
    loop: str = "map",
    share: bool = False,
) -> Any:
    """The kernel: the loss over one in-memory data set at each of C points; pure, to be jitted by the user.

        L(c) = sum_i w_i l_i(rule(params, directions, c)) / sum_i w_i + penalty

    Args:
      loss: a ``Loss`` (frozen statistics) or a plain function.
      params: the centre.
      directions: the stacked tree (``axes.tree``), leading axis k.
      coords: (C, k).
      data: one data set, evaluated in one block.
      rule: ``add``, ``adam`` or any ``(params, directions, coord) -> params``.
      loop: "map" for one point after another, "vmap" for all at once.
      share: compute what is affine in the coordinates once for all points (rule ``add`` only; not differentiable).

    Returns:
      (C,) losses.
    """
    loss = _losses.as_loss(loss)
    if share and rule is not add:
        raise ValueError("share: only the add rule is affine in the coordinates; use share=False with another rule")
    formula = Formula(static(rule), False, ())
    plan = plans.Plan(coords.shape[0], _data.num_examples(data), loop, share)
    block = _losses.block_at(data, 0, plan.microbatch, plan.microbatch, 0)
    sums = points_sums(loss, Points(params, directions, coords), block, formula, plan)["loss"]
    value = _losses.unpack(sums).mean
    if (penalty := loss.penalty) is not None:
        value = value + plans.map_points(lambda c: penalty(rule(params, directions, c)), coords, loop)
    return value
