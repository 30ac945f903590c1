"""Random directions: drawn, drawn again from a recipe, or orthogonal to a given one.

One flat vector is drawn and cut into leaves, in jitted functions with static shapes: a new seed compiles nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import arguments, recipes
from lla_jax.core import tree as _tree
from lla_jax.core.types import Directions, Path, PyTree, Recipe, Select
from lla_jax.directions import combining
from lla_jax.directions.checks import SAMPLES, checked
from lla_jax.directions.normalization import equinox_filter_axis, flax_filter_axis, normalize


def random(key: jax.Array, params: PyTree, num: int = 2, *, select: Select | None = None) -> Directions:
    """Gaussian directions: d_i ~ N(0, I), every entry independent.

    One flat vector is drawn per direction, with the key folded by the direction's index, and cut into leaves: the i-th
    direction does not depend on ``num``. Half-precision leaves are drawn in float32 and cast.

    Args:
      key: a ``jax.random`` key.
      params: the parameters, a pytree of real floating arrays.
      num: number of directions k.
      select: the leaves that move, by path; all others are exactly 0. A glob such as "**/kernel" (``*`` and ``?`` stay
        within a level, ``**`` spans levels), a compiled regular expression, a predicate ``(path, leaf) -> bool``, or a
        sequence of these, of which any may match. None moves all.

    Returns:
      Directions of the shapes ``(k, *leaf.shape)`` and the dtypes of ``params``. The recipe keeps the key and a few
      entries of the draw, enough for ``rebuild``.

    Raises:
      ValueError: ``num < 1``; a leaf that is not real, floating and finite; a selection without match; not one key.

    References:
      Li et al. 2018, arXiv:1712.09913. Difference from LLA (arXiv:2412.10146): (1) its directions are uniform on
      [0, 1], so that every two of them, and the weights' mean, are strongly correlated; these are Gaussian.
    """
    key = arguments.single_key(key)
    _tree.check_real(params)
    if isinstance(num, bool) or not isinstance(num, int | np.integer) or num < 1:
        raise ValueError(f"num={num!r} must be a positive integer: the number of directions")
    chosen = _tree.selected(select, params)
    tree, fingerprint, dtype = _draw(key, params, int(num), chosen)
    recipe = Recipe(
        kind="random",
        key=np.asarray(jax.random.key_data(key)).ravel().tolist(),
        impl=str(jax.random.key_impl(key)),
        draw="flat",
        dtype=dtype,
        num=int(num),
        select=None if select is None else _tree.describe(select, params, chosen),
        fingerprint=fingerprint,
    )
    return Directions(tree, recipe)


def rebuild(recipe: Mapping[str, Any], params: PyTree) -> Directions:
    """Draw random directions again from their recipe, and repeat their selections and normalizations.

    Args:
      recipe: of ``random`` directions, possibly normalized, restricted by ``select`` or indexed.
      params: the parameters for which they were made.

    Returns:
      The same directions, with the same recipe.

    Raises:
      ValueError: another kind of directions; or the draw, or the weights that normalized it, differ from the recipe's
        by more than 1e-5 relative (another generator, key implementation, x64 setting, or network).
    """
    if recipe.get("kind") != "random":
        raise ValueError(
            f"recipe['kind'] is {recipe.get('kind')!r}: only 'random' directions can be drawn again; keep the arrays"
        )
    key = jax.random.wrap_key_data(jnp.asarray(np.asarray(recipe["key"], np.uint32)), impl=recipe["impl"])
    _tree.check_real(params)
    tree, fingerprint, _ = _draw(key, params, recipe["num"], _chosen_again(recipe["select"], params))
    _compare(
        "the random draw",
        fingerprint,
        recipe["fingerprint"],
        f"the generator changed (recipe: impl {recipe['impl']!r}, dtype {recipe['dtype']}), or params are of another "
        "network; use the jax version and x64 setting of the recipe, or keep the arrays",
    )
    axes = Directions(tree, Recipe(kind="random"))
    restrictions = list(recipe.get("restrict", []))
    for done, step in enumerate([*recipe.get("normalize", []), None]):
        for restriction in [r for r in restrictions if r["after"] == done]:
            axes = combining.select(axes, _exactly(restriction["paths"]))
        if step is not None:
            axes = _normalize_again(axes, params, step)
    rows = recipe.get("chosen", range(recipe["num"]))
    return Directions(axes[list(rows)].tree, Recipe(recipe))


def _normalize_again(axes: Directions, params: PyTree, step: Mapping[str, Any]) -> Directions:
    rule = step["filter_axis"]
    if isinstance(rule, str):
        rule = {"flax": flax_filter_axis, "equinox": equinox_filter_axis}[rule]
    elif isinstance(rule, Mapping):
        table = rule
        rule = lambda path, leaf: None if table[path] is None else tuple(table[path])  # noqa: E731
    options = {name: step[name] for name in ("by", "order", "one_dim", "unit")}
    exclude = None if step["exclude"] is None else _exactly(step["exclude"]["paths"])
    axes = normalize(axes, params, **options, filter_axis=rule, exclude=exclude)
    _compare(
        "the weights",
        axes.recipe["normalize"][-1]["weights"],
        step["weights"],
        "the directions were normalized by other weights; pass the params they were made for, or keep the arrays",
    )
    return axes


def _draw(key: jax.Array, params: PyTree, num: int, chosen: list[bool]) -> tuple[PyTree, list[list[float]], str]:
    leaves, structure = jax.tree.flatten(params)
    layout = tuple((*_tree.shape_dtype(leaf), moves) for leaf, moves in zip(leaves, chosen))
    dtype = jnp.result_type(jnp.float32, *(leaf_dtype for _, leaf_dtype, _ in layout))
    drawn, samples = _draw_leaves(key, num, layout, np.dtype(dtype))
    return jax.tree.unflatten(structure, drawn), _floats(samples), np.dtype(dtype).name


@partial(jax.jit, static_argnums=(1, 2, 3))
def _draw_leaves(key: jax.Array, num: int, layout: tuple, dtype: np.dtype) -> tuple[list[jax.Array], jax.Array]:
    size = sum(int(np.prod(shape)) for shape, _, moves in layout if moves)
    # map, not vmap: with the rbg generator a batched draw differs from the single one
    flat = jax.lax.map(lambda i: jax.random.normal(jax.random.fold_in(key, i), (size,), dtype), jnp.arange(num))
    leaves, start = [], 0
    for shape, leaf_dtype, moves in layout:
        if not moves:
            leaves.append(jnp.zeros((num, *shape), leaf_dtype))
            continue
        stop = start + int(np.prod(shape))
        leaves.append(flat[:, start:stop].reshape(num, *shape).astype(leaf_dtype))
        start = stop
    return leaves, flat[:, _sample_positions(size)]


def _sample_positions(size: int) -> np.ndarray:
    return np.linspace(0, max(size - 1, 0), min(SAMPLES, size)).astype(np.int64)


def _floats(x: Any) -> Any:
    return np.asarray(x, np.float64).tolist()


def _compare(what: str, now: Any, then: Any, why: str) -> None:
    if not recipes.same(now, then):
        raise ValueError(f"{what} does not agree with the recipe's fingerprint {then}: {why}")


def _chosen_again(described: Mapping[str, Any] | None, params: PyTree) -> list[bool]:
    return _tree.selected(None if described is None else _exactly(described["paths"]), params)


def _exactly(names: Sequence[Path]) -> Select:
    return lambda path, leaf: path in names


def orthogonal(
    key: jax.Array, params: PyTree, given: PyTree | Directions, *, select: Select | None = None
) -> Directions:
    """A given direction, and a random one orthogonal to it and as long.

    The second is Gaussian minus its projection on the first in the flat inner product sum_i x_i y_i, scaled to the norm
    of the first so that one unit is the same distance on both axes. Normalizing afterwards changes the angle.

    Args:
      key: a ``jax.random`` key.
      params: the parameters.
      given: the first direction: a tree like ``params``, or ``Directions`` with k = 1.
      select: the leaves that the random direction moves, all by default; see ``random``.

    Returns:
      Two directions, the given one unchanged and first.

    Raises:
      ValueError: ``given`` of another structure or shape, zero, or with k > 1; and those of ``random``. Also if nothing
        is left of the random direction (a single parameter moves).
    """
    first = given if isinstance(given, Directions) else combining.given(given, names=["given"])
    if first.num != 1:
        raise ValueError(f"given has {first.num} directions; pass one of them, such as axes[0]")
    first_tree = _tree.align(first.tree, params, "given", stacked=True)
    second = random(key, params, 1, select=select)
    pair = _orthogonal_pair(jax.tree.leaves(first_tree), jax.tree.leaves(second.tree))
    names = [combining.names_of(first)[0], "orthogonal"]
    recipe = Recipe(kind="orthogonal", names=names, parts=[first.recipe, second.recipe])
    tree = jax.tree.unflatten(jax.tree.structure(params), pair)
    return checked(
        tree, recipe, "the selected leaves leave no room for an orthogonal direction, or the given one is zero"
    )


@jax.jit
def _orthogonal_pair(first: list[Any], second: list[Any]) -> list[jax.Array]:
    along = [_tree.wide(x) for x in first]
    rest = [_tree.wide(x) for x in second]
    before = _tree.norm(rest)
    square = _tree.dot(along, along)
    for _ in range(2):
        rest = _tree.axpy(-_tree.dot(along, rest) / square, along, rest)
    size = _tree.norm(rest)
    factor = jnp.where(size > 1e-5 * before, jnp.sqrt(square) / size, 0)
    return [jnp.concatenate([x, (factor * y).astype(x.dtype)]) for x, y in zip(first, rest)]
