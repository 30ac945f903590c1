"""Saves and loads results, each as one .npz file of plain arrays with a JSON header: versioned, atomic, never pickled.

Random directions are stored as their recipe and drawn again on loading (``like=params``), where a changed generator and
other weights are detected. All other results are stored as arrays, with the state that continues an interrupted one.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import numpy as np

from lla_jax.core import files as _files
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, is_integer, show_value
from lla_jax.core.results import Eigenpairs, Estimate, Landscape, Spectrum
from lla_jax.core.signatures import explained
from lla_jax.core.types import Directions, PyTree, Recipe
from lla_jax.directions import draws
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

if TYPE_CHECKING:
    from lla_jax.paths.curves import Curve
    from lla_jax.paths.losses.barriers import Barrier
    from lla_jax.paths.projection.projections import Projection
    from lla_jax.paths.spanning import SpanningTree

    PathResult = Projection | Barrier | Curve | SpanningTree

FORMAT = "lla_jax"
VERSION = 1
OTHER_KINDS = re.compile(
    r"\.(csv|feather|gz|h5|hdf5|html|jpe?g|json|mat|msgpack|npy|onnx|parquet|pdf|pickle|pkl|png|pth?|safetensors|svg|tar"
    r"|tiff?|tsv|txt|xlsx|xml|ya?ml|zip)"
)
"""Endings of files of other kinds, which a name does not end in by chance."""

PATHS = ("Projection", "Barrier", "Curve", "SpanningTree")
"""Results of ``lla_jax.paths``, whose forms are loaded when one is saved or read."""


@explained
def save(
    x: Landscape | Directions | Eigenpairs | Spectrum | Estimate | PathResult, path: str | os.PathLike[str]
) -> Path:
    """Write a result as .npz with a JSON header; an existing file is replaced in one step or left as it was.

    Args:
      x: a ``Landscape``, ``Directions``, ``Eigenpairs``, ``Spectrum`` or ``Estimate``, with the state that continues an
        interrupted computation, or a ``Projection``, ``Barrier``, ``Curve`` or ``SpanningTree``. Random directions are
        stored as their recipe.
      path: the file; ".npz" is appended to a name without an ending, such as "plane", "run0.5" or "v1.2". The folder is
        made if it is missing.

    Returns:
      The path written.

    Raises:
      ValueError: another type, arrays that do not fit together, a recipe that is not JSON, a folder as path, or an
        ending of another kind of file, such as ".csv".
      OSError: the folder cannot be written.
    """
    first, second = cast(Any, x), cast(Any, path)
    if isinstance(first, str | os.PathLike) and _kind_of(second):
        raise Misuse("x", f"{x!r} given, and a {type(path).__name__} as path; swap them, lla.save(result, {str(x)!r})")
    kind = _kind_of(x)
    if not kind:
        known = ", ".join([*_FORMS, *PATHS])
        raise Misuse("x", f"{type(x).__name__} given; it must be one of {known}{_how_to_keep(x)}")
    target, form = _target(path), _form_of(kind)
    fault = form.contradiction(x)
    header, arrays = ({}, {}) if fault else form.parts(x)
    if objects := [name for name, array in arrays.items() if array.dtype == object]:
        raise Misuse("x", f"{objects} hold objects, which only pickle could save; convert them to arrays of numbers")
    if fault:
        raise Misuse("x", f"a {kind} that {fault}; load would refuse it, so mend it first")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _files.write_npz(target, {"format": FORMAT, "version": VERSION, "type": kind, **header}, arrays)
    except OSError as error:
        remedy = "mend that, or pass a file in a folder that can be written to"
        raise _files.explain("path", target, "could not be written", error, remedy) from error
    return target


def _target(path: Any) -> Path:
    """The file to write for a path that a user gave; an ending that names another kind of file is refused."""
    given = _files.check_path("path", path, "plane.npz")
    if os.path.isdir(given) or os.fsdecode(path).endswith(("/", os.sep)):
        raise Misuse("path", f"{given} is a folder; pass a file in it, such as {given / 'plane.npz'}", given)
    if given.suffix.lower() == ".npz":
        return given
    if OTHER_KINDS.fullmatch(given.suffix.lower()):  # but not "run0.5", "model.best"
        raise Misuse(
            "path",
            f"{given} given; results are saved as .npz, so pass {given.with_suffix('.npz').name!r}, or "
            f"{given.name + '.npz'!r} if {given.suffix!r} belongs to the name",
            given,
        )
    return given.with_name(given.name + ".npz")


@explained
def load(path: str | os.PathLike[str], like: PyTree = None) -> Any:
    """Read a result that ``save`` wrote.

    Args:
      path: the file; ".npz" may be left out.
      like: the parameters that directions, eigenvectors or curves belong to, for their structure; random directions
        cannot be drawn again without them.

    Returns:
      The result that was saved, its arrays the same to the bit. Directions, eigenvectors, estimates of trees and curves
      come without ``like`` as nested dicts named by their paths; so do the states of a curve in any case.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is truncated, corrupt, of another program or of a newer version, or random directions cannot
        be drawn again as they were.
    """
    path = _files.check_path("path", path, "plane.npz")
    if not os.path.lexists(path) and os.path.isfile(f"{path}.npz"):  # the name that ``save`` was given
        path = path.with_name(f"{path.name}.npz")
    result = _read(path)
    if type(result).__name__ in PATHS:
        from lla_jax.output import stored_paths

        return stored_paths.restore(result, like)
    if isinstance(result, Eigenpairs) and result.vectors is not None:
        return Eigenpairs(**{**vars(result), "vectors": _restore_structure(result.vectors, like)})
    if isinstance(result, Estimate) and isinstance(result.mean, dict):
        mean, sem = (_restore_estimate(tree, like) for tree in (result.mean, result.sem))
        return Estimate(mean, sem, result.num, result.recipe, result.state)
    if not isinstance(result, Directions):
        return result
    if result.tree is not None:
        return _restore_structure(result, like)
    if like is None:
        raise Misuse(
            "like", f"None given, but {path} stores random directions as a recipe; pass the parameters, like=params"
        )
    try:
        return draws.rebuild(result.recipe, like)
    except Misuse as error:
        if error.argument == "recipe":
            raise Misuse("path", f"{path} holds random directions that cannot be drawn again: {error}", path) from error
        raise


def _restore_structure(x: Directions, like: PyTree) -> Directions:
    """Directions with the structure of ``like`` in place of a flat dict of paths; without it, as nested dicts."""
    tree = nest(x.tree) if like is None else _tree.align(x.tree, like, "directions", "like", stacked=True)
    return Directions(tree, x.recipe)


def _restore_estimate(leaves: Mapping[str, np.ndarray], like: PyTree) -> PyTree:
    """A flat dict of paths as a tree like the parameters, None in leaves that it lacks; without ``like``, nested."""
    if like is None:
        return nest(leaves)
    named = zip(_tree.paths(like), jax.tree.leaves(like), strict=True)
    selected = jax.tree.unflatten(jax.tree.structure(like), [leaf if path in leaves else None for path, leaf in named])
    return _tree.align(dict(leaves), selected, "estimate", "like")


# --- a pair of functions for each type: one writes a header and arrays, one reads them and removes what it read


def _landscape_parts(x: Landscape) -> tuple[Header, Arrays]:
    header = {"dims": x.dims, "values": list(x.values), "stderr": list(x.stderr), "recipe": x.recipe}
    named = (("coord", x.coords), ("value", x.values.values()), ("stderr", x.stderr.values()))
    arrays = {f"{kind}{i}": np.asarray(array) for kind, group in named for i, array in enumerate(group)}
    if x.evaluated is None:
        return header, arrays
    return header | {"evaluated": True}, arrays | {"evaluated": np.asarray(x.evaluated)}


def _landscape(header: Header, arrays: Arrays) -> Landscape:
    coords = tuple(arrays.pop(f"coord{i}") for i in range(header["dims"]))
    values = {name: arrays.pop(f"value{i}") for i, name in enumerate(check_names(header["values"]))}
    stderr = {name: arrays.pop(f"stderr{i}") for i, name in enumerate(check_names(header["stderr"]))}
    evaluated = arrays.pop("evaluated") if header.get("evaluated") else None  # files of before have no such entry
    return Landscape(coords, values, stderr, header["recipe"], evaluated)


def _directions_parts(x: Directions) -> tuple[Header, Arrays]:
    if x.recipe.get("kind") == "random" and not x.recipe.get("transformed") and x.num <= x.recipe["num"]:
        return {"recipe": dict(x.recipe), "leaves": None}, {}
    names, arrays = list_arrays(leaves_by_path(x.tree), "leaf")
    return {"recipe": dict(x.recipe), "leaves": names}, arrays


def _by_path(header: Header, arrays: Arrays) -> Directions:
    """Directions whose tree is a flat dict {path: leaf}, or None for random ones that are stored as a recipe."""
    return Directions(take_arrays(header["leaves"], arrays, "leaf"), Recipe(header["recipe"]))


def _eigenpairs_parts(x: Eigenpairs) -> tuple[Header, Arrays]:
    given = x.vectors
    leaves, vectors = list_arrays(None if given is None else leaves_by_path(given.tree), "leaf")
    state, rest = list_arrays(x.state, "state")
    directions = None if given is None else {"recipe": dict(given.recipe), "leaves": leaves}
    header = {"recipe": x.recipe, "products": int(x.products), "directions": directions, "state": state}
    return header, {"values": np.asarray(x.values), "residuals": np.asarray(x.residuals)} | vectors | rest


def _eigenpairs(header: Header, arrays: Arrays) -> Eigenpairs:
    vectors = None if header["directions"] is None else _by_path(header["directions"], arrays)
    state = take_arrays(header["state"], arrays, "state")
    values, residuals = arrays.pop("values"), arrays.pop("residuals")
    return Eigenpairs(values, vectors, residuals, header["products"], header["recipe"], state)


def _spectrum_parts(x: Spectrum) -> tuple[Header, Arrays]:
    state, rest = list_arrays(x.state, "state")
    arrays = {"nodes": np.asarray(x.nodes), "weights": np.asarray(x.weights)}
    return {"recipe": x.recipe, "state": state}, arrays | rest


def _spectrum(header: Header, arrays: Arrays) -> Spectrum:
    state = take_arrays(header["state"], arrays, "state")
    return Spectrum(arrays.pop("nodes"), arrays.pop("weights"), header["recipe"], state)


def _estimate_parts(x: Estimate) -> tuple[Header, Arrays]:
    if isinstance(x.mean, float | int | np.number):
        leaves, arrays = None, {"mean": np.asarray(float(x.mean)), "sem": np.asarray(float(x.sem))}
    else:
        leaves, arrays = list_arrays(leaves_by_path(x.mean), "mean")
        arrays |= list_arrays(leaves_by_path(x.sem), "sem")[1]
    state, rest = list_arrays(x.state, "state")
    return {"recipe": x.recipe, "num": int(x.num), "leaves": leaves, "state": state}, arrays | rest


def _estimate(header: Header, arrays: Arrays) -> Estimate:
    names, state = header["leaves"], take_arrays(header.get("state"), arrays, "state")  # files of before have none
    if names is None:
        return Estimate(float(arrays.pop("mean")), float(arrays.pop("sem")), header["num"], header["recipe"], state)
    errors = [[name, arrays[f"sem{i}"].dtype.name] for i, (name, _) in enumerate(names)]  # the errors may be wider
    errors = [own if not own[1].startswith("void") else named for own, named in zip(errors, names, strict=True)]
    mean, sem = take_arrays(names, arrays, "mean"), take_arrays(errors, arrays, "sem")
    return Estimate(mean, sem, header["num"], header["recipe"], state)


def _kind_of(x: Any) -> str:
    """The name of a result's type, or "" for what cannot be saved."""
    kinds = (Landscape, Directions, Eigenpairs, Spectrum, Estimate)
    name = next((kind.__name__ for kind in kinds if isinstance(x, kind)), "")
    is_path = type(x).__name__ in PATHS and type(x).__module__.startswith("lla_jax.paths.")
    return type(x).__name__ if is_path else name


def _form_of(kind: str) -> Form:
    """How results of a type are written and read."""
    if kind in PATHS:
        from lla_jax.output import stored_paths

        return stored_paths.FORMS[kind]
    return _FORMS[kind]


def _how_to_keep(x: Any) -> str:
    """How other things than results are kept, in words that end the error for them."""
    if hasattr(x, "has_states"):
        return "; a path is kept by lla.paths.record: track(params, step) of each of its checkpoints"
    if hasattr(x, "savefig"):
        return '; a figure is saved by fig.savefig("picture.png")'
    if hasattr(x, "mv"):
        return "; an operator is made anew from loss, parameters and data: save what is computed from it"
    if hasattr(x, "to_csv"):
        return '; a table is saved by table.to_csv("table.csv")'
    is_several = isinstance(x, list | tuple | Mapping)
    return "; save results one by one, and other arrays by numpy.savez" if is_several or hasattr(x, "dtype") else ""


def _contradiction(x: Any) -> str:
    """How the parts of a result contradict each other, or "". Saving and loading both refuse such a result."""
    if not isinstance(x.recipe, dict):
        return f"has a recipe of type {type(x.recipe).__name__}"
    if isinstance(x, Landscape):
        shape = tuple(np.size(c) for c in x.coords)
        shapes = [np.shape(z) for z in (*x.values.values(), *x.stderr.values())]
        fits = shape and all(np.ndim(c) == 1 for c in x.coords) and all(s == shape for s in shapes)
        if not fits:
            return f"has coordinates for {shape} and values of shapes {shapes}"
        if not are_real(*x.coords) or not all(np.isfinite(c).all() for c in x.coords):
            return f"has coordinates that are not finite real numbers ({', '.join(map(show_value, x.coords))})"
        return "" if are_real(*x.values.values(), *x.stderr.values()) else "has values that are no real numbers"
    if isinstance(x, Directions):
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(x.tree)]
        fits = x.tree is None or (() not in shapes and len({s[0] for s in shapes}) == 1)
        if not fits:
            return f"has leaves of shapes {shapes}, not one number of directions"
        named = [x.recipe.get("kind", ""), *_list_of(x.recipe, "names")]
        named += [step.get("by") if isinstance(step, Mapping) else step for step in _list_of(x.recipe, "normalize")]
        return "" if all(isinstance(name, str) for name in named) else "has a damaged recipe (kind, names, normalize)"
    if isinstance(x, Spectrum):
        shapes = [np.shape(x.nodes), np.shape(x.weights)]
        fits = shapes[0] == shapes[1] and len(shapes[0]) == 2 and are_real(x.nodes, x.weights)
        return "" if fits else f"has nodes and weights of shapes {shapes} that do not fit, or are no real numbers"
    if isinstance(x, Estimate):
        parts = [jax.tree.leaves(part) for part in (x.mean, x.sem)]
        of_mean, of_sem = ([np.shape(leaf) for leaf in part] for part in parts)
        if of_mean != of_sem or not of_mean or not are_real(*parts[0], *parts[1]):
            return (
                f"has a mean and standard errors of shapes {of_mean} and {of_sem} that do not fit, or no real numbers"
            )
        return "" if is_integer(x.num) and 0 <= x.num < 2**63 else f"has {show_value(x.num)} draws"
    if not is_integer(x.products) or not 0 <= x.products < 2**63:
        return f"has used {show_value(x.products)} products"
    shapes = [np.shape(x.values), np.shape(x.residuals)]
    if shapes[0] != shapes[1] or len(shapes[0]) != 1 or not are_real(x.values, x.residuals):
        return f"has values and residuals of shapes {shapes} that do not fit, or are no real numbers"
    if x.vectors is None:
        return ""
    fault = _contradiction(x.vectors)
    return fault if fault or x.vectors.num == x.num else f"has {x.num} values and {x.vectors.num} vectors"


def _list_of(recipe: Mapping[str, Any], name: str) -> list[Any]:
    """The entries of a list in a recipe; [None], which is no text, for another value."""
    entries = recipe.get(name) or []
    return list(entries) if isinstance(entries, list | tuple) else [None]


_FORMS = {
    "Landscape": Form(_landscape_parts, _landscape, _contradiction),
    "Directions": Form(_directions_parts, _by_path, _contradiction),
    "Eigenpairs": Form(_eigenpairs_parts, _eigenpairs, _contradiction),
    "Spectrum": Form(_spectrum_parts, _spectrum, _contradiction),
    "Estimate": Form(_estimate_parts, _estimate, _contradiction),
}


# --- files


def _read(path: Path) -> Any:
    """The result in a file; its directions have a flat dict of paths as their tree."""
    try:
        header, arrays = _files.read_npz(path)
        ours = isinstance(header, dict) and header.get("format") == FORMAT
        version, kind = (header["version"], str(header["type"])) if ours else (1, "")
        if not is_integer(version) or version < 1:
            raise ValueError(f"its version is {show_value(version)}")
    except FileNotFoundError as error:
        remedy = "pass a file written by lla_jax.save"
        raise FileNotFoundError(f"path: {_files.show_path(path)} does not exist; {remedy}") from error
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # from zipfile, where lengths are damaged
            raise _unreadable(path, error) from error
        raise _files.explain("path", path, "cannot be read", error, "mend that, or pass another file") from error
    except Exception as error:  # on a broken file the readers raise errors of any kind
        raise _unreadable(path, error) from error
    if not ours:
        raise Misuse("path", f"{path} was not written by lla_jax.save; pass a file that was", path)
    if version > VERSION:
        raise Misuse(
            "path",
            f"{path} has format version {show_value(version)}, but this lla_jax reads up to {VERSION}; update lla_jax",
            path,
        )
    if kind not in _FORMS and kind not in PATHS:
        raise Misuse(
            "path",
            f"{path} holds a {show_value(kind)}, which this version of lla_jax does not know; update lla_jax",
            path,
        )
    try:
        if strange := sorted(name for name, array in arrays.items() if array.dtype.kind not in "biufcV"):
            raise ValueError(f"the arrays {strange} do not hold numbers")
        form = _form_of(kind)
        result = form.build(header, arrays)
        if arrays:
            raise ValueError(f"the header does not name the arrays {sorted(arrays)}")
        if fault := form.contradiction(result):
            raise ValueError(f"a {kind} that {fault}")
    except Exception as error:
        raise _unreadable(path, error) from error
    return result


def _unreadable(path: Path, error: Exception) -> Misuse:
    """The error for a broken file, with what was wrong in it."""
    damage = f"it is truncated or corrupt ({type(error).__name__}: {error}"[:300] + ")"
    reason = str(error)[:300] if isinstance(error, ValueError) else damage
    return Misuse(
        "path",
        f"{path} is not a readable lla_jax result: {reason}. Compute it again, or pass a file written by lla_jax.save",
        path,
    )
