"""Tells how many digits a network computes with, and whether these resolve the steps of a grid."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import losses, operands, precision
from lla_jax.core import tree as _tree
from lla_jax.core.jaxprs import inputs_of
from lla_jax.core.remembering import remember, shapes_of
from lla_jax.core.types import Batch, Loss, PyTree, Recipe
from lla_jax.landscape.kernels import Formula
from lla_jax.landscape.rules import Rule, params_at


def _loss_of(params: PyTree, loss: Loss, batch: Batch, size: int, train: bool) -> Any:
    block = losses.block_at(batch, 0, size, size, 0)
    outputs, _ = losses.outputs_of(loss, params, loss.state, block, train)
    return losses.loss_sums(loss, outputs, block)


class Traced(NamedTuple):
    """What the jaxpr of a loss tells.

    Args:
      lowest: name of the floating type with the fewest bits in which it computes.
      bits: the fewest significant bits, those of the operands of its matrix products included.
      reads: whether it depends on the parameters.
    """

    lowest: str
    bits: int
    reads: bool


_TRACED: dict[Hashable, Traced] = {}  # of the networks of this process


def trace(loss: Loss, params: PyTree, batch: Batch, size: int, formula: Formula, device: Any) -> Traced:
    """Trace the loss over one block, once for every network and shape; nothing is computed.

    Args:
      loss: the loss.
      params: the parameters as the network gets them.
      batch: examples.
      size: number of examples in a block.
      formula: the mode of the network, and the precision of its matrix products.
      device: the device on which it runs.
    """
    leaves, structure = jax.tree.flatten((params, loss, batch))
    asked = formula.train, formula.precision, operands.format_of(device, "default")
    key = shapes_of((params, loss, batch)), size, *asked

    def look() -> Traced:
        shapes = jax.tree.unflatten(structure, [_tree.struct_of(x) for x in leaves])
        with jax.default_matmul_precision(formula.precision):
            closed = jax.make_jaxpr(functools.partial(_loss_of, size=size, train=formula.train))(*shapes)
        used = inputs_of(closed, [True] * len(closed.jaxpr.outvars))
        return Traced(*precision.bits_inside(closed.jaxpr, device), any(used[: len(jax.tree.leaves(params))]))

    return remember(_TRACED, key, look)


def check_resolved(
    recipe: Recipe,
    loss: Loss,
    params: PyTree,
    directions: PyTree,
    coords: tuple[np.ndarray, ...],
    batch: Batch,
    size: int,
    formula: Formula,
    rule: Rule,
    device: Any,
) -> Recipe:
    """Warn if a network that computes in half precision loses much of the step from the centre to the next points.

    Args:
      recipe: the recipe of a landscape.
      loss: its loss.
      params: the centre.
      directions: the stacked tree of the axes.
      coords: the grid.
      batch: examples.
      size: number of examples in a block.
      formula: the mode of the network, and the precision of its matrix products.
      rule: the rule, which gives the coordinates that its function gets.
      device: the device on which it runs.

    Returns:
      The entry "precision" of the recipe. Of a network in half precision it has "lost", the share of the step that is
      lost: the largest among the axes, 0 where no weights are rounded.

    Warns:
      UserWarning: more than 5 % are lost.
    """
    entry = recipe["precision"]
    if entry["bits"] >= precision.SINGLE:
        return entry
    steps = rule.coords(_steps(coords))
    static = {"formula": formula, "size": size, "device": device}
    shares = _lost(loss, params, directions, batch, steps, **static) if len(steps) > 1 else [0.0]
    share = float(np.max(shares))
    precision.warn_of_lost(share, entry, loss.precision)
    return entry | {"lost": share}


def _steps(coords: tuple[np.ndarray, ...]) -> np.ndarray:
    """(1 + k, k): the coordinates of the point nearest to the centre, and of the point next to it along each axis.

    An axis of one point has no next one, and no row.
    """
    centre = np.array([axis[np.abs(axis).argmin()] for axis in coords])
    rows = [centre]
    for i, axis in enumerate(coords):
        others = axis[axis != centre[i]]
        if others.size:
            rows.append(np.where(np.arange(len(coords)) == i, others[np.abs(others - centre[i]).argmin()], centre))
    return np.stack(rows)


@functools.partial(jax.jit, static_argnames=("formula", "size", "device"))
def _lost(
    loss: Loss,
    params: PyTree,
    directions: PyTree,
    batch: Batch,
    steps: Any,
    *,
    formula: Formula,
    size: int,
    device: Any,
) -> Any:
    """The lost share of the steps from the first of the points to each of the others."""
    f = functools.partial(_loss_of, size=size, train=formula.train)
    with jax.default_matmul_precision(formula.precision):
        one, *others = (params_at(formula.rule, params, directions, c) for c in steps)
        return jnp.stack([precision.lost_share(f, one, two, loss, batch, device=device) for two in others])
