"""What runs on the devices: the sums over a block of data, and what depends on the parameters alone, at many points.

Pure functions, jitted once per shape and static part; nothing here reads, writes or prints.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lla_jax.core import data as _data
from lla_jax.core import losses as _losses
from lla_jax.core.static import static
from lla_jax.core.types import Batch, Loss, PyTree, UpdateRule
from lla_jax.execution import devices, plans, rewriting
from lla_jax.execution.plans import Plan
from lla_jax.landscape.rules import add


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
    block: _losses.Block,
    how: How,
    plan: Plan,
    values_only: bool = False,
) -> dict[str, Any]:
    """{name: (C, 7)}: the sums of one block at every point; ``states`` has a leading axis C, or is None.

    With ``values_only`` (as with a shared affine part) nobody differentiates them.
    """

    def sums(p: PyTree, state: PyTree) -> dict[str, Any]:
        outputs, _ = _losses.outputs_of(loss, p, state, block, how.train)
        found = {"loss": _losses.loss_sums(loss, outputs, block)}
        for name, metric in how.metrics:
            with _losses.noting(f"the metric {name!r}", "f(outputs, batch)", block):
                result = metric(outputs, block.batch)
            found[name] = _losses.example_sums(name, result, block.mask)
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
    spread = mesh.shape[devices.DATA] > 1

    def run(loss, params, directions, coords, states, data, starts, count, offset):
        rows = jax.tree_util.tree_leaves(data)[0].shape[0]
        before = jax.lax.axis_index(devices.DATA) * rows if spread else 0

        def one(start):
            mine = jnp.clip(count - before, 0, rows) if spread else count
            block = _losses.block_at(data, start, plan.microbatch, mine, offset + before)
            return points_sums(loss, params, directions, coords, states, block, how, plan, values_only=True)

        found = plans.map_points(one, starts, "map")
        return jax.tree_util.tree_map(lambda x: jnp.moveaxis(x, 0, 1), found)

    split = (False, False, False, True, True, devices.DATA if spread else False, False, False, False)
    return devices.over_points(run, mesh, split)(loss, params, directions, coords, states, data, starts, count, offset)


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

    return devices.over_points(run, mesh, (False, False, False, True, False))(loss, params, directions, coords, key)


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
    how = How(static(rule), False, ())
    plan = plans.Plan(coords.shape[0], _data.num_examples(data), loop, share)
    block = _losses.block_at(data, 0, plan.microbatch, plan.microbatch, 0)
    sums = points_sums(loss, params, directions, coords, None, block, how, plan)["loss"]
    value = sums[:, 2] + sums[:, 3] / sums[:, 1]
    if (penalty := loss.penalty) is not None:
        value = value + plans.map_points(lambda c: penalty(rule(params, directions, c)), coords, loop)
    return value
