"""One step of a nudged elastic band on one batch, and new pivots between the old ones.

The gradient of each inner pivot is computed by itself, one after another, by one compiled program: new pivots compile
it no second time. What moves them all at once is compiled for each number of pivots, and is small.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.operands import Precision
from lla_jax.core.types import Loss, PyTree
from lla_jax.paths.batches import Draw, block_of
from lla_jax.paths.insertion import largest_gaps, places_between, with_new
from lla_jax.paths.optimizers import Optimizer
from lla_jax.paths.polylines import mix, redistribute
from lla_jax.paths.slopes import slope
from lla_jax.paths.tangents import along_and_across, tangents


class Band(NamedTuple):
    """What the steps of a band change.

    Args:
      pivots: K trees; the first and the last are the ends, which never change.
      knots: (K,) float64, the shares of the band's length at which the pivots are held.
      optimizer: the optimizer's state, with a leading axis K - 2.
    """

    pivots: list[PyTree]
    knots: np.ndarray
    optimizer: PyTree


@jax.jit
def loss_at(loss: Loss, params: PyTree, draw: Draw) -> Any:
    """The loss of a batch at one pivot."""
    return slope(loss, params, block_of(draw))[0]


@jax.jit
def slope_at(loss: Loss, params: PyTree, draw: Draw) -> tuple[Any, PyTree]:
    """The loss of a batch at one pivot, and its gradient."""
    return slope(loss, params, block_of(draw))


@partial(jax.jit, static_argnames="optimizer")
def _move(
    pivots: list[PyTree],
    losses: list[Any],
    gradients: list[PyTree],
    state: PyTree,
    knots: Any,
    weight_decay: Any,
    rate: Any,
    *,
    optimizer: Optimizer,
) -> tuple[list[PyTree], PyTree, Any, Any]:
    """(the inner pivots after a step, the optimizer's state, the largest loss before it, whether all are finite)."""
    points, values = _tree.stack(pivots), jnp.stack(losses)
    inner = jax.tree.map(lambda x: x[1:-1], points)
    slopes = jax.tree.map(lambda g, x: g + weight_decay * x, _tree.stack(gradients), inner)
    _, across = along_and_across(slopes, tangents(points, values))
    inner, state = optimizer.move(inner, state, across, values[1:-1].mean(), rate)
    moved = jax.tree.map(lambda x, y: jnp.concatenate([x[:1], y, x[-1:]]), points, inner)
    points = redistribute(moved, knots)
    good = jnp.stack([jnp.isfinite(x).all() for x in [*jax.tree.leaves(points), values]]).all()
    return _tree.unstack(points)[1:-1], state, values.max(), good


def take_step(
    band: Band, loss: Loss, draw: Draw, weight_decay: float, optimizer: Optimizer, rate: float, precision: Precision
) -> tuple[Band, Any, Any]:
    """(the band after one step on a batch, the loss of its highest pivot before it, whether all numbers are finite).

    Args:
      band: before.
      loss: of this step.
      draw: the batch, the same for all pivots.
      weight_decay: times a pivot is added to its gradient.
      optimizer: moves each pivot by itself.
      rate: a factor of its updates.
      precision: of matrix products.
    """
    first, *inner, last = band.pivots
    with jax.default_matmul_precision(precision):
        slopes = [slope_at(loss, params, draw) for params in inner]
        losses = [loss_at(loss, first, draw), *(value for value, _ in slopes), loss_at(loss, last, draw)]
        moved, state, highest, good = _move(
            band.pivots,
            losses,
            [slope for _, slope in slopes],
            band.optimizer,
            band.knots,
            weight_decay,
            rate,
            optimizer=optimizer,
        )
    return Band([first, *moved, last], band.knots, state), highest, good


def insert_pivots(band: Band, loss: Loss, draw: Draw, samples: int, most: int, precision: Precision) -> Band:
    """The band with new pivots where its losses on a batch lie most above the straight line between two pivots.

    A new pivot takes over the state of the optimizer at the pivot next to it.
    """
    with jax.default_matmul_precision(precision):
        losses = [loss_at(loss, params, draw) for params in band.pivots]
        sampled = [
            loss_at(loss, params, draw)
            for one, other in zip(band.pivots, band.pivots[1:])
            for params in between(one, other, samples)
        ]
    places = places_between(len(band.pivots), samples)
    new = largest_gaps(_on_host(losses), _on_host(sampled), places, most)
    if not len(new.low):
        return band
    knots, old = with_new(band.knots, new)
    pivots = [
        band.pivots[low] if weight == 0 else band.pivots[low + 1] if weight == 1 else _at(band.pivots, low, weight)
        for low, weight in zip(old.low, old.weight)
    ]
    nearest = np.clip(np.rint(old.low + old.weight).astype(int), 1, len(band.pivots) - 2)[1:-1] - 1
    # on the host, where other numbers of pivots compile nothing
    return Band(pivots, knots, jax.tree.map(lambda x: np.asarray(x)[nearest], band.optimizer))


def between(one: PyTree, other: PyTree, samples: int) -> list[PyTree]:
    """Equally spaced points between two pivots, without these."""
    weights = np.arange(1, samples + 1, dtype=np.float64) / (samples + 1)
    return _tree.unstack(mix(_tree.stack([one, other]), np.zeros(samples, np.int32), weights))


def _at(pivots: Sequence[PyTree], low: int, weight: float) -> PyTree:
    one = mix(_tree.stack([pivots[low], pivots[low + 1]]), np.zeros(1, np.int32), np.array([weight]))
    return _tree.unstack(one)[0]


def _on_host(values: list[Any]) -> np.ndarray:
    return np.asarray(jax.device_get(values), np.float64)
