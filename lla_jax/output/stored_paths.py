"""How the results of ``lla_jax.paths`` are kept in files: projections, barriers, curves and spanning trees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.arguments import is_integer, show_value
from lla_jax.core.types import PyTree, Recipe
from lla_jax.output.stored_arrays import (
    Arrays,
    Form,
    Header,
    are_real,
    check_names,
    leaves_by_path,
    list_arrays,
    nest,
    take_arrays,
)
from lla_jax.paths.bands.saddles import Saddle
from lla_jax.paths.curves import Curve
from lla_jax.paths.losses.barriers import Barrier, Height
from lla_jax.paths.projection.projections import Projection
from lla_jax.paths.spanning import SpanningTree

_SERIES = ("values", "stderr", "curvature", "curvature_error")
_NUMBERS = ("t", "loss", "gradient_norm", "across")
_EDGES, _MINIMA = ("t", "losses", "stderr"), ("minima", "minima_stderr")


def restore(result: Any, like: PyTree) -> Any:
    """A result with the structure of the parameters in its curves, or nested dicts without them.

    Args:
      result: as its form has built it, with flat dicts of paths in place of trees.
      like: the parameters, or None.
    """
    if isinstance(result, Curve):
        return _restore_curve(result, like)
    if isinstance(result, SpanningTree):
        return replace(result, curves=tuple(_restore_curve(each, like) for each in result.curves))
    return result


def _restore_curve(curve: Curve, like: PyTree) -> Curve:
    saddle, states = curve.saddle, None if curve.states is None else nest(curve.states)
    if like is None:
        points = nest(curve.points)
        return replace(
            curve,
            points=points,
            states=states,
            saddle=None if saddle is None else replace(saddle, params=nest(saddle.params)),
        )
    points = _tree.align(curve.points, like, "curve", "like", stacked=True)
    if saddle is not None:
        saddle = replace(saddle, params=_tree.align(saddle.params, like, "saddle", "like"))
    return replace(curve, points=points, states=states, saddle=saddle)


# --- arrays by name


def _list_series(name: str, series: Mapping[str, Any]) -> tuple[list[str], Arrays]:
    return list(series), {f"{name}{i}": np.asarray(each) for i, each in enumerate(series.values())}


def _take_series(name: str, names: Any, arrays: Arrays) -> dict[str, np.ndarray]:
    return {str(each): arrays.pop(f"{name}{i}") for i, each in enumerate(check_names(names))}


def _fault_of_series(name: str, series: Any, shape: tuple[int, ...]) -> str:
    """What is wrong with arrays by name that must be real and of this shape, or ""."""
    if not isinstance(series, Mapping) or not all(isinstance(each, str) for each in series):
        return f"has {name} of type {type(series).__name__}"
    shapes = [np.shape(each) for each in series.values()]
    if any(each != shape for each in shapes) or not are_real(*series.values()):
        return f"has {name} of shapes {shapes}, which must be {shape} and real"
    return ""


def _fault_of_arrays(x: Any, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The first array that has another shape or is not real, or ""."""
    for name, shape in shapes.items():
        each = np.asarray(getattr(x, name))
        if each.shape != shape or not are_real(each):
            return f"has {name} of shape {each.shape} and type {each.dtype}, which must be {shape} and real"
    return ""


def _fault_of_recipe(x: Any) -> str:
    return "" if isinstance(x.recipe, dict) else f"has a recipe of type {type(x.recipe).__name__}"


# --- projections


def _projection_parts(x: Projection) -> tuple[Header, Arrays]:
    header: Header = {"recipe": x.recipe, "names": list(x.names)}
    arrays = {name: np.asarray(getattr(x, name)) for name in ("coords", "distance", "steps", "recorded")}
    for name in _SERIES:
        header[name], more = _list_series(name, getattr(x, name))
        arrays |= more
    return header, arrays


def _projection(header: Header, arrays: Arrays) -> Projection:
    names = header["names"]
    if not isinstance(names, list):
        raise ValueError(f"its checkpoints are named {show_value(names)}")
    fields: dict[str, Any] = {name: _take_series(name, header[name], arrays) for name in _SERIES}
    fields |= {name: arrays.pop(name) for name in ("coords", "distance", "steps", "recorded")}
    return Projection(names=tuple(names), recipe=Recipe(header["recipe"]), **fields)


def _fault_of_projection(x: Projection) -> str:
    coords = np.asarray(x.coords)
    if coords.ndim != 2 or not are_real(coords) or not np.isfinite(coords).all():
        return f"has coords of shape {coords.shape}, which must be (checkpoints, axes), real and finite"
    num = len(coords)
    if np.asarray(x.steps).dtype.kind not in "iu":
        return f"has steps of type {np.asarray(x.steps).dtype}, which must be integers"
    if len(x.names) != num or not all(isinstance(name, str) for name in x.names):
        return f"has {len(x.names)} names, which must be a text for each of {num} checkpoints"
    faults = [_fault_of_arrays(x, dict.fromkeys(("distance", "steps", "recorded"), (num,)))]
    faults += [_fault_of_series(name, getattr(x, name), (num,)) for name in _SERIES]
    return next(filter(None, [_fault_of_recipe(x), *faults]), "")


# --- barriers


def _barrier_parts(x: Barrier) -> tuple[Header, Arrays]:
    header: Header = {"recipe": x.recipe}
    arrays = {"coords": np.asarray(x.coords)}
    heights = {name: np.array(height, np.float64) for name, height in x.heights.items()}
    for name, series in (("values", x.values), ("errors", x.errors), ("heights", heights), ("ends", x.ends)):
        header[name], more = _list_series(name, series)
        arrays |= more
    return header, arrays


def _barrier(header: Header, arrays: Arrays) -> Barrier:
    series = {name: _take_series(name, header[name], arrays) for name in ("values", "errors", "heights", "ends")}
    if fault := _fault_of_series("heights", series["heights"], (len(Height._fields),)):
        raise ValueError(f"a Barrier that {fault}")
    heights = {name: Height(*map(float, each)) for name, each in series.pop("heights").items()}
    return Barrier(arrays.pop("coords"), heights=heights, recipe=Recipe(header["recipe"]), **series)


def _fault_of_barrier(x: Barrier) -> str:
    coords = np.asarray(x.coords)
    if coords.ndim != 1 or not are_real(coords) or not np.isfinite(coords).all():
        return f"has coords of shape {coords.shape}, which must be one finite number for each point"
    if "loss" not in x.values or not set(x.values) >= {*x.errors} or set(x.values) != {*x.heights}:
        return f"has values {list(x.values)}, errors {list(x.errors)} and heights {list(x.heights)}"
    faults = [_fault_of_series(name, getattr(x, name), coords.shape) for name in ("values", "errors")]
    return next(filter(None, [_fault_of_recipe(x), *faults, _fault_of_series("ends", x.ends, (2,))]), "")


# --- curves


def _curve_parts(x: Curve) -> tuple[Header, Arrays]:
    header: Header = {"recipe": x.recipe, "kind": x.kind}
    header["points"], arrays = list_arrays(leaves_by_path(x.points), "point")
    states = None if x.states is None else leaves_by_path(x.states)
    header["states"], more = list_arrays(states, "state")
    header["history"], series = _list_series("history", {name: np.asarray(z) for name, z in x.history.items()})
    arrays |= more | series | ({} if x.knots is None else {"knots": np.asarray(x.knots)})
    if x.saddle is not None:
        header["saddle"], more = _saddle_parts(x.saddle)
        arrays |= more
    return header, arrays


def _curve(header: Header, arrays: Arrays) -> Curve:
    return Curve(
        header["kind"],
        take_arrays(header["points"], arrays, "point"),
        arrays.pop("knots", None),
        take_arrays(header["states"], arrays, "state"),
        _take_series("history", header["history"], arrays),
        Recipe(header["recipe"]),
        _saddle(header["saddle"], arrays) if header.get("saddle") is not None else None,
    )


def _saddle_parts(x: Saddle) -> tuple[Header, Arrays]:
    names, arrays = list_arrays(leaves_by_path(x.params), "saddle")
    header = {name: float(getattr(x, name)) for name in _NUMBERS} | {"leaves": names, "converged": bool(x.converged)}
    header["negative"] = None if x.negative is None else int(x.negative)
    return header, arrays | ({} if x.eigenvalues is None else {"eigenvalues": np.asarray(x.eigenvalues)})


def _saddle(header: Header, arrays: Arrays) -> Saddle:
    params = take_arrays(header["leaves"], arrays, "saddle")
    t, loss, gradient_norm, across = (header[name] for name in _NUMBERS)
    flags = header["converged"], header["negative"]
    return Saddle(t, params, loss, gradient_norm, across, *flags, arrays.pop("eigenvalues", None))


def _fault_of_curve(x: Curve) -> str:
    if not isinstance(x.history, Mapping) or not are_real(*x.history.values()):
        return "has a history that is no dict of real numbers"
    if x.states is not None and not are_real(*jax.tree.leaves(x.states)):
        kinds = {np.asarray(leaf).dtype.name for leaf in jax.tree.leaves(x.states)}
        if kinds - {"bfloat16"} - {np.dtype(kind).name for kind in kinds if np.dtype(kind).kind in "biuf"}:
            return f"has states of types {sorted(kinds)}, which are no real numbers"
    return _fault_of_recipe(x) or ("" if x.saddle is None else _fault_of_saddle(x.saddle, x.points))


def _fault_of_saddle(x: Any, points: PyTree) -> str:
    if not isinstance(x, Saddle):
        return f"has a saddle of type {type(x).__name__}"
    numbers = [getattr(x, name) for name in _NUMBERS]
    if not all(isinstance(each, float | int | np.number) and not isinstance(each, bool) for each in numbers):
        return f"has a saddle with the numbers {show_value(numbers)}"
    if not 0 <= x.t <= 1 or not isinstance(x.converged, bool | np.bool_):
        return f"has a saddle at t = {show_value(x.t)}, converged {show_value(x.converged)}"
    if x.negative is not None and (not is_integer(x.negative) or not 0 <= x.negative < 2**63):
        return f"has a saddle with {show_value(x.negative)} negative eigenvalues"
    if x.eigenvalues is not None and (np.ndim(x.eigenvalues) != 1 or not are_real(x.eigenvalues)):
        return "has a saddle with eigenvalues that are no real numbers"
    shapes = [[np.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (x.params, points)]
    fits = shapes[0] == [shape[1:] for shape in shapes[1]]
    return "" if fits else f"has a saddle of shapes {shapes[0]} and points of shapes {shapes[1]}"


# --- spanning trees


def _tree_parts(x: SpanningTree) -> tuple[Header, Arrays]:
    arrays = {name: np.asarray(getattr(x, name)) for name in (*_EDGES, *_MINIMA, "barriers")}
    curves = []
    for i, each in enumerate(x.curves):
        header, more = _curve_parts(each)
        curves.append(header)
        arrays |= {f"curve{i}_{name}": array for name, array in more.items()}
    return {"recipe": x.recipe, "names": list(x.names), "edges": [list(e) for e in x.edges], "curves": curves}, arrays


def _spanning_tree(header: Header, arrays: Arrays) -> SpanningTree:
    curves = []
    for i, each in enumerate(header["curves"]):
        prefix = f"curve{i}_"
        own = {name.removeprefix(prefix): arrays.pop(name) for name in list(arrays) if name.startswith(prefix)}
        curves.append(_curve(each, own))
        if own:
            raise ValueError(f"the header does not name the arrays {sorted(own)} of curve {i}")
    own = {name: arrays.pop(name) for name in (*_EDGES, *_MINIMA, "barriers")}
    edges: Any = tuple(tuple(edge) for edge in header["edges"])
    return SpanningTree(
        names=tuple(header["names"]), edges=edges, curves=tuple(curves), recipe=Recipe(header["recipe"]), **own
    )


def _fault_of_tree(x: SpanningTree) -> str:
    num, edges = len(x.names), len(x.edges)
    if not all(isinstance(name, str) for name in x.names):
        return "has names that are no texts"
    fits = all(len(edge) == 2 and all(map(is_integer, edge)) and 0 <= edge[0] < edge[1] < num for edge in x.edges)
    if not fits or len(x.curves) != edges:
        return f"has edges {show_value(x.edges)} and {len(x.curves)} curves between {num} minima"
    shapes = dict.fromkeys(_EDGES, (edges,)) | dict.fromkeys(_MINIMA, (num,)) | {"barriers": (num, num)}
    faults = [f"has a curve that {fault}" for each in x.curves if (fault := _fault_of_curve(each))]
    return next(filter(None, [_fault_of_recipe(x), _fault_of_arrays(x, shapes), *faults]), "")


FORMS = {
    "Projection": Form(_projection_parts, _projection, _fault_of_projection),
    "Barrier": Form(_barrier_parts, _barrier, _fault_of_barrier),
    "Curve": Form(_curve_parts, _curve, _fault_of_curve),
    "SpanningTree": Form(_tree_parts, _spanning_tree, _fault_of_tree),
}
