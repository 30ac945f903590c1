"""What all directions have to be, whoever makes them: finite, and none of them zero."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core.types import Directions, PyTree, Recipe

SAMPLES = 8  # entries kept of a draw or of the weights, to notice another one


def checked(tree: PyTree, recipe: Recipe, hint: str) -> Directions:
    """Directions, after making sure that each of them moves and is finite."""
    moving, finite = (np.asarray(flags) for flags in _health(jax.tree.leaves(tree)))
    if not finite.all():
        raise ValueError(f"direction {int(np.argmin(finite))} has NaN or infinite entries; every entry must be finite")
    if not moving.all():
        raise ValueError(f"direction {int(np.argmin(moving))} is zero everywhere: {hint}")
    return Directions(tree, recipe)


@jax.jit
def _health(leaves: list[Any]) -> tuple[jax.Array, jax.Array]:
    flat = [jnp.reshape(leaf, (leaf.shape[0], -1)) for leaf in leaves]
    moving = jnp.any(jnp.stack([jnp.any(x != 0, axis=1) for x in flat]), axis=0)
    return moving, jnp.all(jnp.stack([jnp.all(jnp.isfinite(x), axis=1) for x in flat]), axis=0)
