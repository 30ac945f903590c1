"""Checks that directions are finite, and that none of them is zero."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core.arguments import misuse
from lla_jax.core.types import Directions, PyTree, Recipe

SAMPLES = 8  # entries of a draw or of the weights that a recipe keeps, to notice if they change


def check_axes(name: str, value: Any, how: str) -> None:
    """Raise an error unless the value is ``Directions``.

    Args:
      name: the argument's name.
      value: the value given.
      how: the call, such as "lla.directions.normalize(axes, params)".
    """
    if not isinstance(value, Directions):
        raise misuse(name, value, f"lla.Directions, as in {how}; of trees make them, lla.directions.given(*trees)")


def check_directions(tree: PyTree, recipe: Recipe, hint: str) -> Directions:
    """Make ``Directions`` of a stacked tree, after a check that each is finite and moves some parameter.

    Args:
      tree: the directions, with a leading axis k on every leaf.
      recipe: the recipe of the directions.
      hint: the end of the message about a direction that is zero: the likely cause, and a remedy.

    Raises:
      ValueError: a direction that is zero, or has entries that are NaN or infinite.
    """
    moving, finite = (np.asarray(flags) for flags in _health(jax.tree.leaves(tree)))
    if not finite.all():
        raise ValueError(
            f"directions: direction {int(np.argmin(finite))} has NaN or infinite entries; every entry must be finite, "
            "so check what it was made from"
        )
    if not moving.all():
        raise ValueError(f"directions: direction {int(np.argmin(moving))} is zero everywhere; {hint}")
    return Directions(tree, recipe)


@jax.jit
def _health(leaves: list[Any]) -> tuple[jax.Array, jax.Array]:
    flat = [jnp.reshape(leaf, (leaf.shape[0], -1)) for leaf in leaves]
    moving = jnp.any(jnp.stack([jnp.any(x != 0, axis=1) for x in flat]), axis=0)
    return moving, jnp.all(jnp.stack([jnp.all(jnp.isfinite(x), axis=1) for x in flat]), axis=0)
