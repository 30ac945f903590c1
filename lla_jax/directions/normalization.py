"""Scales directions to the weights they move, by weight, layer, filter or model; knows the filters of each layout.

A landscape along directions that were drawn without regard to the weights shows mostly the scale of the weights. Which
axes of a tensor index its filters depends on the framework's layout; Flax, Haiku and Equinox are known here, and a user
or a ``Loss`` may bring another function.

References: Li et al. 2018, arXiv 1712.09913, section 4.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, check_choice, check_flag, is_integer, misuse, warn_caller
from lla_jax.core.called import ask
from lla_jax.core.interrupts import prompt_interrupts
from lla_jax.core.signatures import explained
from lla_jax.core.static import Static
from lla_jax.core.types import Directions, FilterAxis, Loss, Path, PyTree, Recipe, Select
from lla_jax.directions import centres
from lla_jax.directions.checks import SAMPLES, check_axes, check_directions
from lla_jax.directions.stacks import EMBEDDINGS, KERNELS, SCALES, Stacked, stacked_axes

_BY = ("none", "weight", "layer", "filter", "model")
_UNITS = {"filter": "filters", "layer": "layers", "weight": "leaves"}
_ONE_DIM = ("vector", "entry", "zero")


@prompt_interrupts()
@explained
def normalize(
    axes: Directions,
    params: PyTree,
    by: Literal["none", "weight", "layer", "filter", "model"] = "filter",
    order: int = 2,
    *,
    one_dim: Literal["vector", "entry", "zero"] = "vector",
    unit: bool = False,
    filter_axis: FilterAxis | Loss | None = None,
    stacked: Stacked | None = None,
    exclude: Select | None = None,
) -> Directions:
    """Scale directions to the size of the weights they move.

        weight   d * w                   entry by entry
        filter   d_f |w_f| / |d_f|       for each filter f of each tensor
        layer    d_l |w_l| / |d_l|       for each tensor l
        model    d |w| / |d|             one factor over all leaves that move
        none     d

    Where the norm of the weights or of the direction is 0, the result is 0 (with "none", and of the weights with
    ``unit``, only where the direction is). One-dimensional tensors (biases, norm
    layers, scalars) have no filters: ``one_dim`` treats each as one vector, treats it entry by entry (d becomes
    sign(d) |w|), or sets it to 0, for every ``by`` (then it never moves, and is no part of the norm of the model).
    Norms are computed in float32 at least, and so are the results. A leaf may hold several layers along a stacked axis
    (``nn.scan``, ``nnx.vmap``, ``eqx.filter_vmap``): each is normalized as a layer of its own.

    Biases that are 0, as in a fresh network, do not move by design. Weights that are 0 do not move either, and are
    warned of: such as the B of a fresh LoRA, a last layer that starts at 0, pruned filters.

    Args:
      axes: the directions.
      params: the weights, of the same structure and leaf shapes.
      by: "none", "weight", "layer", "filter" or "model".
      order: norm order, 1 (sum of absolute values) or 2 (Euclidean).
      one_dim: "vector", "entry" or "zero" for one-dimensional tensors; "vector" and "entry" differ only for "filter"
        and "layer".
      unit: divide by |d| only, without the factor |w| (Li's dfilter and dlayer); for "filter", "layer" and "model".
      filter_axis: which axes of a tensor index its filters: an int for all tensors that are not one-dimensional (a
        tensor is if at most one of its axes is longer than 1, unless it is a kernel or weight of two or more axes); a
        function ``(path, leaf) -> axes`` where None means one-dimensional; a ``Loss``, whose ``filter_axis`` is taken;
        or None to decide by the tree: ``equinox_filter_axis`` for Equinox modules, ``flax_filter_axis`` for all others.
      stacked: the axes along which leaves hold several layers: a dict {glob: axis}, such as {"layers/**": 0} (an axis
        may be a tuple), or a function ``(path, leaf) -> axes``, None for none; ``filter_axis`` then gets one layer of
        the leaf, and its axes are those of the layer. None to find them: in Equinox layers, in Flax and Haiku trees by
        biases and norms with more than one axis and by names, unless ``filter_axis`` is a function of
        the user or of a ``Loss``, or an int above 0. ``{}`` for no stacks.
      exclude: leaves that stay exactly as they are, and are no part of any norm.

    Returns:
      The scaled directions; the settings are appended to ``recipe["normalize"]``, and ``recipe["marks"]`` is dropped.

    Raises:
      ValueError: an unknown option; directions of another structure or shape (the leaf is named); a filter axis out of
        range; a direction that is zero, before or after the scaling; entries that are not finite.

    Warns:
      UserWarning: weights, filters or layers of norm 0 that the directions would move.

    References:
      Li et al. 2018, arXiv:1712.09913 (filter, layer, weight; one_dim="zero" is its "biasbn"). Differences from LLA
      (arXiv:2412.10146): (1) order 1 sums absolute values, LLA the signed values; (2) "model" uses one factor for all
      tensors, LLA recomputes it for each. Difference from Li's code: (3) no 1e-10 is added to |d|.
    """
    check_axes("axes", axes, "lla.directions.normalize(axes, params), the directions first, then the parameters")
    check_choice("by", by, _BY)
    check_choice("order", order, (1, 2))
    check_choice("one_dim", one_dim, _ONE_DIM)
    check_flag("unit", unit)
    if unit and by in ("none", "weight"):
        raise misuse(
            "unit", unit, f"False, since by={by!r} has no norm to divide by; use by='filter', 'layer' or 'model'"
        )
    _tree.check_real(params)
    tree = _tree.align(axes.tree, params, "axes", stacked=True)
    weights, structure = jax.tree.flatten(params)
    axes_of, axes_name = _filter_function(filter_axis, params)
    names = _tree.paths(params)
    told = axes_name is None or (
        not isinstance(axes_name, str) and axes_name > 0
    )  # axes of whole leaves, stacked ones too
    stacks = {} if stacked is None and told else stacked_axes(stacked, params, _layer_ndims(filter_axis))
    layers = [_one_layer(leaf, stacks.get(path, ())) for path, leaf in zip(names, weights)]
    filters = [_filter_axes(axes_of, path, layer) for path, layer in zip(names, layers)]
    excluded = [False] * len(names) if exclude is None else _tree.select_leaves(exclude, params, "exclude")
    treatments = tuple(
        _treatment(by, one_dim, leaf_axes, np.ndim(leaf), stacks.get(path, ()), keep)
        for leaf_axes, leaf, path, keep in zip(filters, weights, names, excluded)
    )
    scaled, still = _scale(jax.tree.leaves(tree), weights, treatments, int(order), bool(unit))
    _warn_of_zeros(names, filters, [np.asarray(x) for x in still], by)
    sample = _sample_weights(weights)
    step = {
        "by": by,
        "order": int(order),
        "one_dim": one_dim,
        "unit": bool(unit),
        "filter_axis": _axes_table(names, filters) if axes_name is None else axes_name,
        "exclude": None if exclude is None else _tree.describe(exclude, params, excluded),
        "weights": sample,
    }
    if stacks:
        step["stacked"] = {path: list(leaf_axes) for path, leaf_axes in stacks.items()}
    recipe = Recipe(axes.recipe, normalize=[*axes.recipe.get("normalize", []), step])
    if by != "none" and not unit:
        recipe = centres.add(recipe, "normalization", params, norm=sample[0])
    recipe.pop("marks", None)  # checkpoints have other coordinates on scaled axes, or are not in their plane
    hint = f"the normalization by {by!r} (one_dim={one_dim!r}) leaves nothing of it: use another one"
    return check_directions(jax.tree.unflatten(structure, scaled), recipe, hint)


def _layer_ndims(filter_axis: Any) -> dict[Path, int]:
    """The number of axes that leaves have in one layer, where the model of a ``Loss`` tells; else nothing."""
    return dict(getattr(getattr(filter_axis, "apply", None), "layer_ndims", ()))


def _one_layer(leaf: Any, stack: tuple[int, ...]) -> Any:
    """The leaf, or the shape of one of the layers that it holds."""
    if not stack:
        return leaf
    shape, dtype = _tree.shape_dtype(leaf)
    return jax.ShapeDtypeStruct([n for a, n in enumerate(shape) if a not in stack], dtype)


def _warn_of_zeros(names: Sequence[Path], filters: Sequence[Any], still: Sequence[Any], by: str) -> None:
    """Warn of the filters, layers and weights of norm 0 among those that the directions would move.

    Args:
      names: the paths of the leaves.
      filters: the axes that index the filters of each leaf; None for one-dimensional tensors.
      still: for each leaf, 1 for each of its norms that is 0 where the direction is not; empty where there is none.
      by: as for ``normalize``.
    """
    found = []
    for name, axes, zero in zip(names, filters, still, strict=True):
        last = name.split("/")[-1]
        padding = last in EMBEDDINGS and zero.sum() == 1 < zero.size
        if not zero.any() or padding or (axes is None and not (last in (*SCALES, *KERNELS) and zero.all())):
            continue
        found.append(name if zero.all() else f"{name} ({zero.sum():,} of {zero.size:,} {_UNITS[by]})")
    if found:
        text = ", ".join(found[:5]) + (f" and {len(found) - 5} other leaves" if len(found) > 5 else "")
        warn_caller(
            f"params: weights of norm 0 in {text}; normalized to them by {by!r} the directions are 0 there, and these "
            'weights do not move. To move them use by="model", or unit=True; or leave them out with exclude='
        )


@explained
def flax_filter_axis(path: Path, leaf: Any) -> int | tuple[int, ...] | None:
    """The axes that index the filters of a tensor in Flax (linen, nnx) and Haiku layouts; None if one-dimensional.

    For a ``kernel``, ``w`` or ``weight`` of two or more axes this is the last axis, the output channels (the last but
    one for Haiku's transposed convolutions); for ``embedding`` and ``embeddings`` the first; for the (d, heads, k)
    kernels of an attention's query, key and value the axes of (heads, k), and their (heads, k) biases are
    one-dimensional. Any other tensor is one-dimensional if at most one of its axes is longer than 1, as Haiku's
    (1, 1, 1, C) scales; otherwise its filters are on the last axis.

    Args:
      path: the leaf's path, such as ``"Conv_0/kernel"``.
      leaf: the array (only its shape is read).

    Returns:
      An axis, a tuple of axes, or None.
    """
    *parents, name = path.split("/")
    parent, ndim = parents[-1] if parents else "", np.ndim(leaf)
    if parent in ("query", "key", "value") and (name, ndim) in (("kernel", 3), ("bias", 2)):
        return (1, 2) if name == "kernel" else None
    if name == "w" and "transpose" in parent and ndim > 2:
        return -2
    if name in ("embedding", "embeddings") and ndim > 1:
        return 0
    return None if _is_one_dimensional(name, leaf) else -1


@explained
def equinox_filter_axis(path: Path, leaf: Any) -> int | None:
    """The axis that indexes the filters of a tensor in Equinox (and torch) layouts: 0, or None if one-dimensional.

    A tensor is one-dimensional if at most one of its axes is longer than 1, as Equinox's (C, 1, 1) convolution biases;
    a ``weight``, ``kernel`` or ``w`` of two or more axes never is.

    Args:
      path: the leaf's path, such as ``"layers/0/weight"``.
      leaf: the array (only its shape is read).

    Returns:
      0 or None.
    """
    return None if _is_one_dimensional(path.split("/")[-1], leaf) else 0


def _is_one_dimensional(name: str, leaf: Any) -> bool:
    shape = np.shape(leaf)
    matrix = name in ("kernel", "weight", "w") and len(shape) > 1
    return not matrix and sum(n != 1 for n in shape) <= 1


def _filter_function(filter_axis: Any, params: PyTree) -> tuple[Any, str | int | None]:
    """(function ``(path, leaf) -> axes``, its name in the recipe); the name is None for a function of the user."""
    if isinstance(filter_axis, Loss):
        filter_axis = filter_axis.filter_axis
    if isinstance(filter_axis, Static):  # as a Loss keeps plain functions
        filter_axis = filter_axis.f
    if filter_axis is None:
        filter_axis = equinox_filter_axis if _is_equinox(params) else flax_filter_axis
    if is_integer(filter_axis):
        axis = int(filter_axis)
        return (lambda path, leaf: None if _is_one_dimensional(path.split("/")[-1], leaf) else axis), axis
    if not callable(filter_axis):
        raise misuse("filter_axis", filter_axis, "an int, a function (path, leaf) -> axes, an lla.Loss, or None")
    names = {"flax": flax_filter_axis, "equinox": equinox_filter_axis}
    return filter_axis, next((name for name, known in names.items() if known is filter_axis), None)


def _is_equinox(params: PyTree) -> bool:
    equinox = sys.modules.get("equinox")  # a tree of its modules exists only after it was imported
    if equinox is None:
        return False
    is_module = lambda node: isinstance(node, equinox.Module)  # noqa: E731
    return any(map(is_module, jax.tree.leaves(params, is_leaf=is_module)))


def _axes_table(names: Sequence[Path], filters: Sequence[tuple[int, ...] | None]) -> dict[Path, list[int] | None]:
    return {name: None if axes is None else list(axes) for name, axes in zip(names, filters)}


def _filter_axes(axes_of: Any, path: Path, leaf: Any) -> tuple[int, ...] | None:
    """The axes that index the filters of a leaf, counted from 0 and sorted; None for a one-dimensional tensor."""
    axes, ndim = ask("filter_axis", axes_of, "f(path, leaf) -> axes", {"path": path, "leaf": leaf}), np.ndim(leaf)
    if axes is None:
        return None
    axes = tuple(axes) if isinstance(axes, tuple | list) else (axes,)
    if not all(is_integer(a) and -ndim <= a < ndim for a in axes):
        raise Misuse(
            "filter_axis",
            f"gives {axes!r} for {path!r} of shape {np.shape(leaf)}; it must give integers from {-ndim} to {ndim - 1}, "
            "or None for a one-dimensional tensor",
        )
    return tuple(sorted({int(a) % ndim for a in axes}))


def _treatment(
    by: str,
    one_dim: str,
    filters: tuple[int, ...] | None,
    ndim: int,
    stack: tuple[int, ...],
    excluded: bool,
) -> str | tuple[int, ...]:
    """The treatment of one tensor by ``_scale``: a word, or the axes over which norms are taken (() is entry by entry).

    Args:
      by: as for ``normalize``.
      one_dim: as for ``normalize``.
      filters: the axes of one layer that index its filters; None for a one-dimensional tensor.
      ndim: number of axes of the tensor.
      stack: the axes along which it holds several layers.
      excluded: whether the tensor stays as it is.
    """
    if excluded:
        return "keep"
    if filters is None and one_dim == "zero":
        return "zero"
    if by in ("none", "weight", "model"):
        return by
    everything = tuple(a for a in range(ndim) if a not in stack)  # of one layer
    if filters is None:
        return () if one_dim == "entry" else everything
    return everything if by == "layer" else tuple(a for i, a in enumerate(everything) if i not in filters)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _scale(
    d: list[Any], w: list[Any], treatments: tuple, order: int, unit: bool
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Scale the leaves d of directions to the weights w, each by its treatment.

    Returns:
      The scaled leaves; and for each leaf a flat array of bools, whether a norm of its weights is 0 where that of a
      direction is not.
    """
    wide_d, wide_w = [_tree.widen(x) for x in d], [_tree.widen(x) for x in w]
    factor = _model_factor(wide_d, wide_w, treatments, order, unit) if "model" in treatments else jnp.ones(())
    scaled, still = [], []
    for x, weight, treatment in zip(wide_d, wide_w, treatments):
        zero = jnp.zeros(0, bool)
        if treatment == "zero":
            x = jnp.zeros_like(x)
        elif treatment == "weight":
            zero = jnp.atleast_1d(jnp.any(x != 0) & jnp.all(weight == 0))
            x = x * weight
        elif treatment == "model":
            x = x * factor.reshape(-1, *[1] * weight.ndim)
        elif not isinstance(treatment, str):
            size = jnp.ones(()) if unit else _norms(weight, treatment, order)
            length = _norms(x, tuple(a + 1 for a in treatment), order)
            zero = zero if unit else jnp.ravel((size == 0) & jnp.any(length > 0, 0))
            x = x * _ratio(size, length)
        scaled.append(x)
        still.append(zero)
    return [x.astype(wide.dtype) for x, wide in zip(scaled, wide_d)], still


def _sample_weights(weights: Sequence[Any]) -> list[float]:
    """The norm of the weights and the middle entries of the first leaves, by which changed weights are noticed."""
    first = [x for x in weights if np.size(x)][:SAMPLES]
    return [centres.norm_of(weights), *(float(np.asarray(x).ravel()[np.size(x) // 2]) for x in first)]


def _norms(x: jax.Array, axes: tuple[int, ...], order: int) -> jax.Array:
    if order == 1 or not axes:
        return jnp.sum(jnp.abs(x), axis=axes, keepdims=True)
    # relative to the largest entry, since squares of small second moments would be 0
    top = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0)
    return top * jnp.sqrt(jnp.sum(jnp.square(x / jnp.where(top > 0, top, 1)), axis=axes, keepdims=True))


def _ratio(size: jax.Array, length: jax.Array) -> jax.Array:
    return jnp.where(length > 0, size / jnp.where(length > 0, length, 1), 0)


def _model_factor(d: list[jax.Array], w: list[jax.Array], treatments: tuple, order: int, unit: bool) -> jax.Array:
    """(k,): |w| / |d| of each direction (1 / |d| with ``unit``).

    Norms are over the leaves of treatment "model" on which the direction is not zero.
    """
    parts_d, parts_w = [], []
    for x, weight in ((x, weight) for x, weight, treatment in zip(d, w, treatments) if treatment == "model"):
        length = _norms(x, tuple(range(1, x.ndim)), order).reshape(-1)
        parts_d.append(length)
        parts_w.append(jnp.where(length > 0, _norms(weight, tuple(range(weight.ndim)), order).reshape(()), 0))
    length, size = (_norms(jnp.stack(parts), (0,), order)[0] for parts in (parts_d, parts_w))
    return _ratio(jnp.ones_like(size) if unit else size, length)
