"""The climbing image: the highest point of a band moves up along its tangent and down across it, to a saddle.

    x <- x - a F,   F = g - 2 (g.t) t

with g the gradient and t the tangent. F is zero only where g is. The step length a follows from the last two points
(Barzilai and Borwein 1988), so that no rate is to be chosen; no step is longer than a quarter of the distance to the
nearer neighbour, and the neighbours stay.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lla_jax.core import tree as _tree
from lla_jax.core.types import PyTree
from lla_jax.paths.bands.polylines import segment_lengths
from lla_jax.paths.bands.tangents import tangents

FIRST_STEP = 0.02  # of the distance to the nearer neighbour
LONGEST_STEP = 0.25
SINKS = 0.1  # of the height of the start above the higher end


class Climb(NamedTuple):
    """A climbing image between its neighbours.

    Args:
      params: where the image is.
      before: where it was.
      force: F there.
      step: number of steps done.
      best: where the gradient was smallest, among the points that are not below the floor.
      best_norm: its norm there.
      best_across: the norm of its part across the tangent there.
      best_loss: the loss there.
    """

    params: PyTree
    before: PyTree
    force: PyTree
    step: Any
    best: PyTree
    best_norm: Any
    best_across: Any
    best_loss: Any


def start_climb(params: PyTree) -> Climb:
    """A climb that begins at these parameters."""
    zeros = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), _tree.wide(jnp.result_type(x))), params)
    unknown = jnp.asarray(jnp.inf, jnp.result_type(*jax.tree.leaves(zeros)))
    return Climb(params, params, zeros, jnp.zeros((), jnp.int32), params, unknown, unknown, unknown)


def floor_of(start: float, neighbours: Any, ends: Any) -> float:
    """The loss below which the image is no top: it has slid off into a basin.

    That of the higher neighbour, less a tenth of the height of the start above the higher end: neighbours that are not
    relaxed may be somewhat higher than the saddle.

    Args:
      start: the loss where the climb began.
      neighbours: (2,) losses.
      ends: (2,) losses of the ends of the band.
    """
    return float(max(neighbours) - SINKS * (start - max(ends)))


@jax.jit
def climb_step(
    climb: Climb, loss: Any, gradient: PyTree, neighbours: PyTree, neighbour_losses: Any, floor: Any
) -> Climb:
    """One step of a climbing image.

    Args:
      climb: the image.
      loss: at its parameters.
      gradient: there.
      neighbours: two stacked pivots, before and behind it on the band.
      neighbour_losses: (2,).
      floor: the loss below which a point is no top.

    Returns:
      The image after the step; its ``best`` counts the point at which it was.
    """
    three = jax.tree.map(lambda p, x: jnp.stack([p[0], x.astype(p.dtype), p[1]]), neighbours, climb.params)
    losses = jnp.stack([neighbour_losses[0], jnp.asarray(loss), neighbour_losses[1]])
    # the image is the highest point of the band even where rounding, or its first steps, say otherwise
    losses = losses.at[1].max(losses.max())
    tangent = jax.tree.map(lambda x: x[0], tangents(three, losses))
    along = _tree.dot(gradient, tangent)
    force = _tree.axpy(-2 * along, tangent, gradient)
    norm = _tree.norm(gradient)
    across = _tree.norm(_tree.axpy(-along, tangent, gradient))

    reach = segment_lengths(three).min()
    size = _tree.norm(force)
    moved = jax.tree.map(lambda x, y: _tree.widen(x) - _tree.widen(y), climb.params, climb.before)
    changed = _tree.axpy(-1.0, climb.force, force)
    square = _tree.dot(changed, changed)
    rate = jnp.abs(_tree.dot(moved, changed)) / jnp.where(square > 0, square, 1)
    first = FIRST_STEP * reach / jnp.where(size > 0, size, 1)
    rate = jnp.where((climb.step > 0) & (square > 0) & (rate > 0), rate, first)
    rate = jnp.minimum(rate, LONGEST_STEP * reach / jnp.where(size > 0, size, 1))

    high = (climb.step == 0) | (jnp.asarray(loss) >= floor)
    better = high & (norm < climb.best_norm)

    def keep(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda x, y: jnp.where(better, x, y).astype(y.dtype), new, old)

    return Climb(
        _tree.axpy(-rate, force, climb.params),
        climb.params,
        force,
        climb.step + 1,
        keep(climb.params, climb.best),
        keep(norm, climb.best_norm),
        keep(across, climb.best_across),
        keep(jnp.asarray(loss), climb.best_loss),
    )
