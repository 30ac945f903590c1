"""What runs on the devices: the sums over a block of data, and what depends on the parameters alone, at many points.

Pure functions, jitted once per shape and static part; nothing here reads, writes or prints.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lla_jax.core import data as _data
from lla_jax.core.types import Loss, PyTree
from lla_jax.execution import plans, rewriting
from lla_jax.execution.plans import Plan


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
    values_only: bool = False,
) -> dict[str, Any]:
    """{name: (C, 7)}: the sums of one block at every point; ``states`` has a leading axis C, or is None.

    With ``values_only`` (as with a shared affine part) nobody differentiates them.
    """

    def sums(p: PyTree, state: PyTree) -> dict[str, Any]:
        outputs, _ = _data.outputs_of(loss, p, state, block, how.train)
        found = {"loss": _data.loss_sums(loss, outputs, block)}
        for name, metric in how.metrics:
            with _data.noting(f"the metric {name!r}", "f(outputs, batch)", block):
                result = metric(outputs, block.batch)
            found[name] = _data.example_sums(name, result, block.mask)
        return found

    if plan.share and states is None:
        shared = rewriting.affine(lambda p: sums(p, loss.state), params, directions)
        return plans.map_points(shared, coords, plan.loop)
    at = rewriting.values_only(sums) if values_only else sums
    if states is None:
        return plans.map_points(lambda c: at(how.rule(params, directions, c), loss.state), coords, plan.loop)
    return plans.map_points(lambda cs: at(how.rule(params, directions, cs[0]), cs[1]), (coords, states), plan.loop)


@functools.partial(jax.jit, static_argnames=("how", "plan", "mesh"))
def sums_step(
    loss, params, directions, coords, states, data, starts, count, offset, *, how, plan, mesh
) -> dict[str, Any]:
    """{name: (C, S, 7)} over S blocks of ``data`` starting at ``starts``, and over the shares of the data."""
    spread = mesh.shape[plans.DATA] > 1

    def run(loss, params, directions, coords, states, data, starts, count, offset):
        rows = jax.tree_util.tree_leaves(data)[0].shape[0]
        before = jax.lax.axis_index(plans.DATA) * rows if spread else 0

        def one(start):
            mine = jnp.clip(count - before, 0, rows) if spread else count
            block = _data.block_at(data, start, plan.microbatch, mine, offset + before)
            return points_sums(loss, params, directions, coords, states, block, how, plan, values_only=True)

        found = plans.map_points(one, starts, "map")
        return jax.tree_util.tree_map(lambda x: jnp.moveaxis(x, 0, 1), found)

    split = (False, False, False, True, True, plans.DATA if spread else False, False, False, False)
    return plans.over_points(run, mesh, split)(loss, params, directions, coords, states, data, starts, count, offset)


@functools.partial(jax.jit, static_argnames=("how", "loop", "mesh", "point_metrics"))
def point_step(loss, params, directions, coords, key, *, how, loop, mesh, point_metrics) -> dict[str, Any]:
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

        return plans.map_points(one, coords, loop)

    return plans.over_points(run, mesh, (False, False, False, True, False))(loss, params, directions, coords, key)
