"""Draws random directions, draws them again from a recipe, and draws one orthogonal to a given direction.

One flat vector is drawn and cut into leaves, in jitted functions with static shapes, so a new seed compiles nothing.
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
from lla_jax.core.interrupts import prompt_interrupts
from lla_jax.core.memory import check_memory
from lla_jax.core.signatures import explained
from lla_jax.core.types import Directions, Path, PyTree, Recipe, Select
from lla_jax.directions import combining
from lla_jax.directions.checks import SAMPLES, check_directions
from lla_jax.directions.normalization import equinox_filter_axis, flax_filter_axis, normalize


@prompt_interrupts()
@explained
def random(key: jax.Array, params: PyTree, num: int = 2, *, select: Select | None = None) -> Directions:
    """Draw Gaussian directions d_i ~ N(0, I), every entry independent.

    One flat vector is drawn per direction, with the key folded with the direction's index, and cut into leaves: the
    i-th direction does not depend on ``num``. Directions of half-precision leaves are in float32.

    Args:
      key: a ``jax.random`` key.
      params: the parameters, a pytree of real floating arrays.
      num: number of directions k.
      select: the leaves that move, by path; all others are exactly 0. A glob such as "**/kernel" (``*`` and ``?`` stay
        within a level, ``**`` spans levels), a compiled regular expression, a predicate ``(path, leaf) -> bool``, or a
        sequence of these, which selects a leaf that matches one of them. None moves all leaves.

    Returns:
      Directions of the shapes ``(k, *leaf.shape)``, in the dtypes of ``params`` and float32 at least. The recipe keeps
      the key and a few entries of the draw, which is enough for ``rebuild``.

    Raises:
      ValueError: ``num < 1``; a leaf that is not real, floating and finite; a selection that matches no leaf; a ``key``
        that is not one key.

    References:
      Li et al. 2018, arXiv:1712.09913. Difference from LLA (arXiv:2412.10146): (1) its directions are uniform on
      [0, 1], so that any two of them are strongly correlated, and each moves the mean of the weights; these are
      Gaussian.
    """
    key = arguments.single_key(key)
    _tree.check_real(params)
    num = arguments.check_integer("num", num, remedy="the number of directions, such as 2")
    leaves = jax.tree.leaves(params)
    size = sum(map(np.size, leaves))
    if all(device.platform == "cpu" for leaf in leaves if isinstance(leaf, jax.Array) for device in leaf.devices()):
        check_memory("num", f"{num:,} directions of {size:,} parameters", 4.0 * num * size)
    chosen = _tree.select_leaves(select, params)
    tree, fingerprint, dtype = _draw(key, params, num, chosen)
    recipe = Recipe(
        kind="random",
        key=np.asarray(jax.random.key_data(key)).ravel().tolist(),
        impl=str(jax.random.key_impl(key)),
        draw="flat",
        dtype=dtype,
        num=num,
        select=None if select is None else _tree.describe(select, params, chosen),
        fingerprint=fingerprint,
    )
    return Directions(tree, recipe)


@explained
def rebuild(recipe: Mapping[str, Any], params: PyTree) -> Directions:
    """Draw random directions again from their recipe, and repeat their selections and normalizations.

    Args:
      recipe: the recipe of ``random`` directions, which may be normalized, restricted by ``select`` or indexed.
      params: the parameters for which they were made.

    Returns:
      The same directions, with the same recipe.

    Raises:
      ValueError: the recipe is not that of ``random`` directions; or the draw, or the weights by which it was
        normalized, differ from those of the recipe by more than 1e-5 relative (another generator, key implementation,
        x64 setting, or network).
    """
    if not isinstance(recipe, Mapping):
        raise arguments.misuse("recipe", recipe, "the recipe of random directions, such as axes.recipe, then params")
    if recipe.get("kind") != "random":
        inner = "; of a landscape pass recipe['directions']" if "directions" in recipe else ""
        raise arguments.Misuse(
            "recipe",
            f"its kind is {recipe.get('kind')!r}: only 'random' directions can be drawn again; keep the arrays{inner}",
        )
    if missing := [name for name in ("key", "impl", "num", "select", "fingerprint", "dtype") if name not in recipe]:
        raise arguments.Misuse("recipe", f"lacks the entries {missing}; pass the whole recipe, axes.recipe")
    _check_recipe(recipe)
    _tree.check_real(params)
    try:
        return _draw_again(recipe, params)
    except arguments.Misuse:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _damaged(f"{type(error).__name__}: {error}") from error


def _check_recipe(recipe: Mapping[str, Any]) -> None:
    """Refuse a recipe of random directions that asks for more than it could have been made with."""
    num, key, fingerprint = recipe.get("num"), recipe.get("key"), recipe.get("fingerprint")
    if recipe.get("draw") != "flat":
        raise _damaged(f"its draw is {arguments.show_value(recipe.get('draw'))}, and this version knows 'flat'")
    if not isinstance(key, list) or len(key) > 8 or not all(arguments.is_integer(k) and 0 <= k < 2**32 for k in key):
        raise _damaged(f"its key is {arguments.show_value(key)}")
    if not arguments.is_integer(num) or not isinstance(fingerprint, list) or len(fingerprint) != num or num < 1:
        raise _damaged(f"it has {arguments.show_value(num)} directions, which its fingerprint does not have")
    chosen = recipe.get("chosen", [0])
    few = isinstance(chosen, list) and 0 < len(chosen) <= num
    if not few or not all(arguments.is_integer(i) and 0 <= i < num for i in chosen):
        raise _damaged(f"it chooses {arguments.show_value(chosen)} of {num} directions")


def _damaged(reason: str) -> arguments.Misuse:
    return arguments.Misuse(
        "recipe", f"is damaged, or of another version of lla_jax ({reason[:300]}); draw new ones with directions.random"
    )


def _draw_again(recipe: Mapping[str, Any], params: PyTree) -> Directions:
    """Draw the directions of a recipe, and repeat its selections and normalizations."""
    key = jax.random.wrap_key_data(jnp.asarray(np.asarray(recipe["key"], np.uint32)), impl=recipe["impl"])
    tree, fingerprint, _ = _draw(key, params, recipe["num"], _selection_again(recipe["select"], params))
    _check_fingerprint(
        "the random draw",
        fingerprint,
        recipe["fingerprint"],
        f"the generator changed (recipe: impl {recipe['impl']!r}, dtype {recipe['dtype']}), or params are of another "
        "network; use the jax version and x64 setting of the recipe, or keep the arrays",
    )
    axes = Directions(tree, Recipe(kind="random"))
    restrictions = list(recipe.get("restrict", []))
    for normalizations, step in enumerate([*recipe.get("normalize", []), None]):
        for restriction in [r for r in restrictions if r["after"] == normalizations]:
            axes = combining.select(axes, _select_paths(restriction["paths"]))
        if step is not None:
            axes = _normalize_again(axes, params, step)
    indices = recipe.get("chosen", range(recipe["num"]))
    return Directions(axes[list(indices)].tree, Recipe(recipe))


def _normalize_again(axes: Directions, params: PyTree, step: Mapping[str, Any]) -> Directions:
    """Repeat a normalization, as an entry of ``recipe["normalize"]`` describes it."""
    filter_axis = step["filter_axis"]
    if isinstance(filter_axis, str):
        filter_axis = {"flax": flax_filter_axis, "equinox": equinox_filter_axis}[filter_axis]
    elif isinstance(filter_axis, Mapping):
        table = filter_axis
        filter_axis = lambda path, leaf: None if table[path] is None else tuple(table[path])  # noqa: E731
    options = {name: step[name] for name in ("by", "order", "one_dim", "unit")}
    exclude = None if step["exclude"] is None else _select_paths(step["exclude"]["paths"])
    stacks = step.get("stacked", {})
    axes = normalize(
        axes, params, **options, filter_axis=filter_axis, exclude=exclude, stacked=lambda path, leaf: stacks.get(path)
    )
    _check_fingerprint(
        "the weights",
        axes.recipe["normalize"][-1]["weights"],
        step["weights"],
        "the directions were normalized by other weights; pass the params they were made for, or keep the arrays",
    )
    return axes


def _draw(key: jax.Array, params: PyTree, num: int, chosen: list[bool]) -> tuple[PyTree, list[list[float]], str]:
    """Draw Gaussian directions: (stacked tree, a few entries of each flat vector, dtype of the draw)."""
    leaves, structure = jax.tree.flatten(params)
    shapes = map(_tree.shape_dtype, leaves)
    layout = tuple((shape, _tree.wide(dtype), moves) for (shape, dtype), moves in zip(shapes, chosen))
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
    if isinstance(x, jax.core.Tracer):
        raise arguments.Misuse("directions", "drawn within jax.jit; draw them outside, and pass axes.tree into it")
    return np.asarray(x, np.float64).tolist()


def _check_fingerprint(subject: str, now: Any, then: Any, remedy: str) -> None:
    if not recipes.same(now, then):
        raise arguments.Misuse(
            "recipe", f"{subject} does not agree with the recipe's fingerprint {arguments.show_value(then)}: {remedy}"
        )


def _selection_again(description: Mapping[str, Any] | None, params: PyTree) -> list[bool]:
    return _tree.select_leaves(None if description is None else _select_paths(description["paths"]), params)


def _select_paths(names: Sequence[Path]) -> Select:
    chosen = frozenset(names)
    return lambda path, leaf: path in chosen


@prompt_interrupts()
@explained
def orthogonal(
    key: jax.Array, params: PyTree, given: PyTree | Directions, *, select: Select | None = None
) -> Directions:
    """A given direction, and a random direction that is orthogonal to it and of the same norm.

    The second is a Gaussian direction minus its projection on the first in the flat inner product sum_i x_i y_i. It is
    scaled to the norm of the first, so that one unit is the same distance on both axes. Normalizing the directions
    afterwards changes their angle.

    Args:
      key: a ``jax.random`` key.
      params: the parameters.
      given: the first direction: a tree like ``params``, or ``Directions`` with k = 1.
      select: the leaves that the random direction moves, by default all; see ``random``.

    Returns:
      Two directions: the given one, unchanged, and the random one.

    Raises:
      ValueError: ``given`` of another structure or shape, zero, or with k > 1; a random direction of which nothing is
        left (a single parameter moves); and as for ``random``.
    """
    drawn = random(key, params, 1, select=select)
    if not isinstance(given, Directions):
        _tree.check_real(given, "given")
    fixed = given if isinstance(given, Directions) else combining.given(given, names=["given"])
    if fixed.num != 1:
        raise arguments.Misuse("given", f"has {fixed.num} directions; pass one of them, such as axes[0]")
    fixed_tree = _tree.align(fixed.tree, params, "given", stacked=True)
    pair = _orthogonal_pair(jax.tree.leaves(fixed_tree), jax.tree.leaves(drawn.tree))
    names = [combining.names_of(fixed)[0], "orthogonal"]
    recipe = Recipe(kind="orthogonal", names=names, parts=[fixed.recipe, drawn.recipe])
    tree = jax.tree.unflatten(jax.tree.structure(params), pair)
    return check_directions(
        tree,
        recipe,
        "the selected leaves leave no room for an orthogonal direction, or the given one is zero: select more leaves",
    )


@jax.jit
def _orthogonal_pair(fixed: list[Any], drawn: list[Any]) -> list[jax.Array]:
    along = [_tree.widen(x) for x in fixed]
    rest = [_tree.widen(x) for x in drawn]
    before = _tree.norm(rest)
    square = _tree.dot(along, along)
    for _ in range(2):
        rest = _tree.axpy(-_tree.dot(along, rest) / square, along, rest)
    size = _tree.norm(rest)
    factor = jnp.where(size > 1e-5 * before, jnp.sqrt(square) / size, 0)
    return [jnp.concatenate([x, factor * y]) for x, y in zip(along, rest)]
