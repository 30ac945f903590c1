"""Tangents of a band at its pivots, and gradients taken apart along and across them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lla_jax.core.types import PyTree
from lla_jax.paths.bands.polylines import dots, scale, segments


def tangent_weights(losses: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How much the segments before and behind each inner pivot count in its tangent.

    With V the losses, a pivot on a slope has the direction of the segment to its higher neighbour. At a maximum or a
    minimum both count: the one to the higher neighbour by the larger, the other by the smaller of |V_i+1 - V_i| and
    |V_i-1 - V_i|. Where all three are equal, or one is no number, both count alike.

    Args:
      losses: (K,) of the pivots.

    Returns:
      (before, behind), each of shape (K - 2,).
    """
    before, here, behind = losses[:-2], losses[1:-1], losses[2:]
    up, down = (behind > here) & (here > before), (behind < here) & (here < before)
    one, other = jnp.abs(behind - here), jnp.abs(before - here)
    more, less = jnp.maximum(one, other), jnp.minimum(one, other)
    rises = behind > before
    of_behind = jnp.where(up, 1.0, jnp.where(down, 0.0, jnp.where(rises, more, less)))
    of_before = jnp.where(down, 1.0, jnp.where(up, 0.0, jnp.where(rises, less, more)))
    flat = ~(jnp.isfinite(more) & (more > 0))
    return jnp.where(flat, 1.0, of_before), jnp.where(flat, 1.0, of_behind)


def units(rows: PyTree) -> PyTree:
    """The rows of a stacked tree divided by their norms; a row of zeros stays one."""
    sizes = jnp.sqrt(dots(rows, rows))
    return scale(rows, jnp.where(sizes > 0, 1 / jnp.where(sizes > 0, sizes, 1), 0))


def tangents(points: PyTree, losses: jax.Array) -> PyTree:
    """The improved tangents at the inner pivots of a band.

    Segments count by their directions and not by their lengths, since pivots need not be equally spaced.

    Args:
      points: K stacked pivots.
      losses: (K,).

    Returns:
      A stacked tree of K - 2 vectors of norm 1 (0 where two opposite segments cancel), in float32 at least.

    References: Henkelman and Jonsson, Journal of Chemical Physics 113 (2000), 9978.
    """
    steps = units(segments(points))
    of_before, of_behind = tangent_weights(losses)

    def add(x: Any) -> Any:
        shape = (-1, *[1] * (x.ndim - 1))
        return of_before.reshape(shape) * x[:-1] + of_behind.reshape(shape) * x[1:]

    return units(jax.tree.map(add, steps))


def along_and_across(gradients: PyTree, directions: PyTree) -> tuple[jax.Array, PyTree]:
    """Take gradients apart: (their components along unit vectors (M,), what is left across them, M stacked vectors)."""
    along = dots(gradients, directions)
    return along, jax.tree.map(lambda g, t: g - t, gradients, scale(directions, along))
