"""Combines directions: takes the user's own trees, joins several directions, and restricts them to selected leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, misuse
from lla_jax.core.signatures import explained
from lla_jax.core.types import Directions, PyTree, Recipe, Select
from lla_jax.directions.checks import check_axes, check_directions


@explained
def select(axes: Directions, pattern: Select) -> Directions:
    """Keep the selected leaves of every direction, and set all others to exactly 0.

    This freezes layers, and makes head-only, per-block or LoRA-only landscapes.

    Args:
      axes: the directions.
      pattern: the leaves that still move, as ``select`` of ``random``; a predicate is given the shape and dtype of a
        leaf of the parameters, not its values.

    Returns:
      Directions of the same shapes; ``recipe["restrict"]`` records the paths, and ``recipe["marks"]`` is dropped.

    Raises:
      ValueError: the pattern matches no leaf (the paths are listed), or a direction moves none of the leaves kept.
    """
    check_axes("axes", axes, "lla.directions.select(axes, pattern)")
    leaves, structure = jax.tree.flatten(axes.tree)
    shapes = [jax.ShapeDtypeStruct(shape[1:], dtype) for shape, dtype in map(_tree.shape_dtype, leaves)]
    like = jax.tree.unflatten(structure, shapes)
    chosen = _tree.select_leaves(pattern, like, "pattern")
    after = len(axes.recipe.get("normalize", []))
    step = {**_tree.describe(pattern, like, chosen), "after": after}
    recipe = Recipe(axes.recipe, restrict=[*axes.recipe.get("restrict", []), step])
    recipe.pop("marks", None)  # a checkpoint is not in the plane of some of its leaves
    hint = f"the selection {pattern!r} keeps none of the leaves that it moves: select some of these"
    return check_directions(jax.tree.unflatten(structure, _keep(leaves, tuple(chosen))), recipe, hint)


@partial(jax.jit, static_argnums=1)
def _keep(leaves: list[Any], chosen: tuple[bool, ...]) -> list[jax.Array]:
    return [jnp.asarray(leaf) if moves else jnp.zeros_like(leaf) for leaf, moves in zip(leaves, chosen)]


@explained
def given(*trees: PyTree, names: Sequence[str] | None = None) -> Directions:
    """Make directions of the user's own trees: eigenvectors, LoRA updates, steps of an optimizer, anything.

    Args:
      *trees: one tree per direction, of the parameters' structure and shapes. A single list of several like trees
        counts as these, unless ``names`` has one name.
      names: one name per direction, for the axes of pictures.

    Returns:
      One direction per tree, in their order.

    Raises:
      ValueError: no tree; trees of different structure or shape; entries that are not real, floating and finite; a zero
        direction; more or fewer names than trees.
    """
    if not trees:
        raise Misuse("trees", "none given; pass at least one tree like the parameters")
    trees = _unpack(trees, names)
    if names is not None and (isinstance(names, str) or len(names) != len(trees)):
        raise misuse("names", names, f"one name per tree, a list of {len(trees)}")
    for i, tree in enumerate(trees):
        _tree.check_real(tree, f"trees[{i}]")
    aligned = [_tree.align(tree, trees[0], f"trees[{i}]", "trees[0]") for i, tree in enumerate(trees)]
    recipe = Recipe(kind="given", **({} if names is None else {"names": [str(name) for name in names]}))
    return check_directions(_tree.stack(aligned), recipe, "pass a tree with entries other than 0")


def _unpack(trees: tuple[PyTree, ...], names: Sequence[str] | None) -> tuple[PyTree, ...]:
    """The trees in a list that was given in their place; other trees, a list of unlike layers too, as they are."""
    if len(trees) != 1 or (names is not None and not isinstance(names, str) and len(names) == 1):
        return trees
    entries = list(trees[0]) if isinstance(trees[0], Iterator) else trees[0]
    if type(entries) not in (list, tuple) or len(entries) < 2:  # one may be the list of a single layer
        return trees
    containers = all(not isinstance(e, list | tuple) and not jax.tree_util.all_leaves([e]) for e in entries)
    forms = {str((jax.tree.structure(e), [np.shape(x) for x in jax.tree.leaves(e)])) for e in entries}
    return tuple(entries) if containers and len(forms) == 1 else trees


@explained
def join(*axes: Directions) -> Directions:
    """Join several ``Directions`` into one, in their order: a gradient and a random axis, eigenvectors and moments, ...

    Args:
      *axes: directions of one structure; a list of them counts as these.

    Returns:
      All of them as one ``Directions``; ``recipe["parts"]`` has the recipes.

    Raises:
      ValueError: nothing to join, or directions of different structure or leaf shapes.
    """
    if not axes:
        raise Misuse("axes", "none given; pass at least one lla.Directions")
    first: Any = axes[0]
    axes = tuple(first) if len(axes) == 1 and type(first) in (list, tuple) and first else axes
    for i, each in enumerate(axes):
        check_axes(f"axes[{i}]", each, "lla.directions.join(axes, others)")
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf)[1:], leaf.dtype), axes[0].tree)
    trees = [_tree.align(a.tree, like, f"axes[{i}]", "axes[0]", stacked=True) for i, a in enumerate(axes)]
    names = [name for a in axes for name in names_of(a)]
    return Directions(_concatenate(trees), Recipe(kind="join", names=names, parts=[a.recipe for a in axes]))


@jax.jit
def _concatenate(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)


def names_of(axes: Directions) -> list[str]:
    """One name per direction: the names in the recipe, or else their kind and a number, such as "random 1".

    A single direction without a name is named by its kind alone.
    """
    names = axes.recipe.get("names") or []
    if len(names) == axes.num:
        return list(names)
    kind = str(axes.recipe.get("kind", "direction"))
    return [kind if axes.num == 1 else f"{kind} {i + 1}" for i in range(axes.num)]
