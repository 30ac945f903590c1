"""One step of a nudged elastic band on one batch, and new pivots between the old ones.

Each inner pivot is moved by itself, one after another, by programs that are compiled for one pivot and its neighbours:
new pivots compile nothing.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.interrupts import wait
from lla_jax.core.operands import Precision
from lla_jax.core.types import Loss, PyTree
from lla_jax.paths.bands.insertion import largest_gaps, places_between, with_new
from lla_jax.paths.bands.polylines import between, lengths_of, redistribute
from lla_jax.paths.bands.tangents import along_and_across, tangents
from lla_jax.paths.training.batch_slopes import slope
from lla_jax.paths.training.batches import Draw, block_of
from lla_jax.paths.training.optimizers import Optimizer


class Band(NamedTuple):
    """What the steps of a band change.

    Args:
      pivots: K trees; the first and the last are the ends, which never change.
      knots: (K,) float64, the shares of the band's length at which the pivots are held.
      memory: K - 2 states of the optimizer, each as for one stacked point.
    """

    pivots: list[PyTree]
    knots: np.ndarray
    memory: list[PyTree]


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
    three: tuple[PyTree, PyTree, PyTree],
    losses: tuple[Any, Any, Any],
    gradient: PyTree,
    memory: PyTree,
    weight_decay: Any,
    rate: Any,
    *,
    optimizer: Optimizer,
) -> tuple[PyTree, PyTree, Any]:
    """(a pivot after a step across the band, the optimizer's memory, whether the pivot is finite).

    Args:
      three: the pivots before it, itself, and behind it.
      losses: theirs.
      gradient: at the pivot.
      memory: of the optimizer, as for one stacked point.
      weight_decay: times the pivot is added to the gradient.
      rate: a factor of the optimizer's updates.
      optimizer: moves the pivot.
    """
    here = _tree.stack([three[1]])
    slope = jax.tree.map(lambda g, x: g + weight_decay * x, _tree.stack([gradient]), here)
    _, across = along_and_across(slope, tangents(_tree.stack(three), jnp.stack(losses)))
    moved, memory = optimizer.move(here, memory, across, losses[1], rate)
    good = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(moved)]).all() & jnp.isfinite(losses[1])
    return _tree.unstack(moved)[0], memory, good


def take_step(
    band: Band, loss: Loss, draw: Draw, weight_decay: float, optimizer: Optimizer, rate: float, precision: Precision
) -> tuple[Band, float, bool]:
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
        moved = [
            _move(
                (band.pivots[i], band.pivots[i + 1], band.pivots[i + 2]),
                (losses[i], losses[i + 1], losses[i + 2]),
                gradient,
                memory,
                weight_decay,
                rate,
                optimizer=optimizer,
            )
            for i, ((_, gradient), memory) in enumerate(zip(slopes, band.memory, strict=True))
        ]
    pivots = [first, *(pivot for pivot, _, _ in moved), last]
    lengths = lengths_of(wait(pivots))
    values, good = jax.device_get((losses, [each[2] for each in moved]))
    highest = float(np.max(values))
    if not (all(good) and np.isfinite(highest) and np.isfinite(lengths).all()):
        return band, highest, False
    return Band(redistribute(pivots, band.knots, lengths), band.knots, [m for _, m, _ in moved]), highest, True


def insert_pivots(band: Band, loss: Loss, draw: Draw, samples: int, most: int, precision: Precision) -> Band:
    """The band with new pivots where its losses on a batch lie most above the straight line between two pivots.

    A new pivot takes over the memory of the optimizer at the pivot next to it.

    Args:
      band: the band.
      loss: of this step.
      draw: the batch.
      samples: points between two pivots at which losses are computed.
      most: new pivots at most.
      precision: of matrix products.
    """

    def losses_of(trees: list[PyTree]) -> np.ndarray:
        with jax.default_matmul_precision(precision):
            values = [loss_at(loss, params, draw) for params in trees]
        return np.asarray(jax.device_get(values), np.float64)

    losses = losses_of(band.pivots)  # segment by segment, since samples take memory
    sampled = [losses_of(samples_between(one, other, samples)) for one, other in itertools.pairwise(band.pivots)]
    places = places_between(len(band.pivots), samples)
    new = largest_gaps(losses, np.concatenate(sampled), places, most)
    knots, old = with_new(band.knots, new)
    pivots = [
        band.pivots[low + int(weight)]
        if weight in (0, 1)
        else between(band.pivots[low], band.pivots[low + 1], np.float32(weight))
        for low, weight in zip(old.low, old.weight, strict=True)
    ]
    nearest = np.clip(np.rint(old.low + old.weight).astype(int), 1, len(band.memory))[1:-1] - 1
    return Band(pivots, knots, [band.memory[i] for i in nearest])


def samples_between(one: PyTree, other: PyTree, samples: int) -> list[PyTree]:
    """Equally spaced points between two pivots, without these."""
    return [between(one, other, np.float32((i + 1) / (samples + 1))) for i in range(samples)]
