"""Directions from given trees, joined, or restricted to selected leaves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.types import Directions, PyTree, Recipe, Select
from lla_jax.directions.checks import checked


def select(axes: Directions, pattern: Select) -> Directions:
    """Keep the selected leaves of every direction, and set all others to exactly 0.

    This freezes layers, and makes head-only, per-block or LoRA-only landscapes.

    Args:
      axes: the directions.
      pattern: which leaves still move, as ``select`` of ``random``; a predicate sees shape and dtype of the leaf, not
        its values.

    Returns:
      Directions of the same shapes; ``recipe["restrict"]`` records the paths.

    Raises:
      ValueError: the pattern matches no leaf (the paths are listed), or leaves a direction without any motion.
    """
    leaves, structure = jax.tree.flatten(axes.tree)
    shapes = [jax.ShapeDtypeStruct(shape[1:], dtype) for shape, dtype in map(_tree.shape_dtype, leaves)]
    like = jax.tree.unflatten(structure, shapes)
    chosen = _tree.selected(pattern, like)
    after = len(axes.recipe.get("normalize", []))
    step = {**_tree.describe(pattern, like, chosen), "after": after}
    recipe = Recipe(axes.recipe, restrict=[*axes.recipe.get("restrict", []), step])
    recipe.pop("marks", None)  # a checkpoint is not in the plane of some of its leaves
    hint = f"the selection {pattern!r} keeps none of the leaves it moves"
    return checked(jax.tree.unflatten(structure, _keep(leaves, tuple(chosen))), recipe, hint)


@partial(jax.jit, static_argnums=1)
def _keep(leaves: list[Any], chosen: tuple[bool, ...]) -> list[jax.Array]:
    return [jnp.asarray(leaf) if moves else jnp.zeros_like(leaf) for leaf, moves in zip(leaves, chosen)]


def given(*trees: PyTree, names: Sequence[str] | None = None) -> Directions:
    """The user's own trees as directions: eigenvectors, LoRA updates, steps of an optimizer, anything.

    Args:
      *trees: one tree per direction, of the parameters' structure and shapes.
      names: one name per direction, for the axes of pictures.

    Returns:
      The directions, stacked in this order.

    Raises:
      ValueError: no tree; trees of different structure or shape; entries that are not real, floating and finite; a zero
        direction; as many names as trees are needed.
    """
    if not trees:
        raise ValueError("given() needs at least one tree")
    if names is not None and (isinstance(names, str) or len(names) != len(trees)):
        raise ValueError(f"names={names!r} must have one name per tree, {len(trees)}")
    for i, tree in enumerate(trees):
        _tree.check_real(tree, f"trees[{i}]")
    aligned = [_tree.align(tree, trees[0], f"trees[{i}]", "trees[0]") for i, tree in enumerate(trees)]
    recipe = Recipe(kind="given", **({} if names is None else {"names": [str(name) for name in names]}))
    return checked(_tree.stack(aligned), recipe, "pass a tree that moves some parameter")


def join(*axes: Directions) -> Directions:
    """Several ``Directions`` side by side, in this order: a gradient and a random axis, eigenvectors and moments, ...

    Args:
      *axes: directions of one structure.

    Returns:
      All of them as one ``Directions``; ``recipe["parts"]`` has the recipes.

    Raises:
      ValueError: nothing to join, or directions of different structure or leaf shapes.
    """
    if not axes:
        raise ValueError("join() needs at least one Directions")
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf)[1:], leaf.dtype), axes[0].tree)
    trees = [_tree.align(a.tree, like, f"axes[{i}]", "axes[0]", stacked=True) for i, a in enumerate(axes)]
    names = [name for a in axes for name in names_of(a)]
    return Directions(_concatenate(trees), Recipe(kind="join", names=names, parts=[a.recipe for a in axes]))


@jax.jit
def _concatenate(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)


def names_of(axes: Directions) -> list[str]:
    """One name per direction: the recipe's, or the kind and a number."""
    names = axes.recipe.get("names") or []
    if len(names) == axes.num:
        return list(names)
    kind = str(axes.recipe.get("kind", "direction"))
    return [kind if axes.num == 1 else f"{kind} {i + 1}" for i in range(axes.num)]
