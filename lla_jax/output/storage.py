"""Results as files: one .npz of plain arrays with a JSON header, versioned, written atomically, never pickled.

Random directions are stored as their recipe and drawn again on loading (``like=params``); a changed generator or other
weights are detected there. Everything else is stored as arrays, and what continues an interrupted run with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lla_jax.core import files as _files
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse
from lla_jax.core.types import Directions, Eigenpairs, Landscape, PyTree, Recipe, Spectrum
from lla_jax.directions import draws

FORMAT = "lla_jax"
VERSION = 1

Header = dict[str, Any]
Arrays = dict[str, np.ndarray]


def save(x: Landscape | Directions | Eigenpairs | Spectrum, path: str | os.PathLike[str]) -> Path:
    """Write a result as .npz with a JSON header; an existing file is replaced in one step or left as it was.

    Args:
      x: a ``Landscape``, ``Directions``, ``Eigenpairs`` or ``Spectrum``, with the state that continues an interrupted
        run. Random directions are stored as their recipe.
      path: the file; ".npz" is appended if it has another ending. The folder is made if it is missing.

    Returns:
      The path written.

    Raises:
      ValueError: another type, arrays that do not fit together, or a recipe that is not JSON.
      OSError: the folder cannot be written.
    """
    kind = next((kind for kind in _FORMS if isinstance(x, kind)), None)
    if kind is None:
        known = ", ".join(known.__name__ for known in _FORMS)
        raise ValueError(f"x: cannot save a {type(x).__name__}; the rule is one of {known}")
    header, arrays = _FORMS[kind][0](x)
    if objects := [name for name, array in arrays.items() if array.dtype == object]:
        raise ValueError(f"x: {objects} hold objects, which only pickle could save; the rule is arrays of numbers")
    if wrong := _misfit(x):
        raise ValueError(f"x: a {kind.__name__} that {wrong}; load would refuse it, so mend it first")
    target = Path(path)
    target = target if target.suffix == ".npz" else target.with_name(target.name + ".npz")
    target.parent.mkdir(parents=True, exist_ok=True)
    _files.write_npz(target, {"format": FORMAT, "version": VERSION, "type": kind.__name__, **header}, arrays)
    return target


def load(path: str | os.PathLike[str], like: PyTree = None) -> Any:
    """Read what ``save`` wrote.

    Args:
      path: the file.
      like: the parameters that directions or eigenvectors belong to; gives them their structure, and is needed to draw
        random directions again.

    Returns:
      The ``Landscape``, ``Directions``, ``Eigenpairs`` or ``Spectrum``, its arrays the same to the bit. Directions and
      eigenvectors without ``like`` come as nested dicts named by their paths.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is truncated, corrupt, of another program or of a newer version, or random directions cannot
        be drawn again as they were.
    """
    result = _read(Path(path))
    if isinstance(result, Eigenpairs) and result.vectors is not None:
        return Eigenpairs(**{**vars(result), "vectors": _structured(result.vectors, like)})
    if not isinstance(result, Directions):
        return result
    if result.tree is not None:
        return _structured(result, like)
    if like is None:
        raise ValueError(
            f"like: needed, {path} stores random directions as a recipe; pass the parameters, load(path, like=params)"
        )
    return draws.rebuild(result.recipe, like)


def _structured(x: Directions, like: PyTree) -> Directions:
    tree = _nested(x.tree) if like is None else _tree.align(x.tree, like, "directions", "like", stacked=True)
    return Directions(tree, x.recipe)


def _nested(leaves: Mapping[str, np.ndarray]) -> PyTree:
    if list(leaves) == [""]:  # the tree is a single array
        return leaves[""]
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
            if not isinstance(node, dict):
                raise ValueError(f"like: needed, the path {path!r} passes through another leaf; pass the parameters")
        node[name] = leaf
    return tree


# --- one pair of functions for each type: into a header and arrays, and back, taking every array away


def _landscape_parts(x: Landscape) -> tuple[Header, Arrays]:
    header = {"dims": x.dims, "values": list(x.values), "stderr": list(x.stderr), "recipe": x.recipe}
    named = (("coord", x.coords), ("value", x.values.values()), ("stderr", x.stderr.values()))
    return header, {f"{kind}{i}": np.asarray(array) for kind, group in named for i, array in enumerate(group)}


def _landscape(header: Header, arrays: Arrays) -> Landscape:
    coords = tuple(arrays.pop(f"coord{i}") for i in range(header["dims"]))
    values = {name: arrays.pop(f"value{i}") for i, name in enumerate(header["values"])}
    stderr = {name: arrays.pop(f"stderr{i}") for i, name in enumerate(header["stderr"])}
    return Landscape(coords, values, stderr, header["recipe"])


def _directions_parts(x: Directions) -> tuple[Header, Arrays]:
    if x.recipe.get("kind") == "random" and not x.recipe.get("transformed"):
        return {"recipe": dict(x.recipe), "leaves": None}, {}
    names, arrays = _listed(_leaves(x), "leaf")
    return {"recipe": dict(x.recipe), "leaves": names}, arrays


def _by_path(header: Header, arrays: Arrays) -> Directions:
    """Directions whose tree is a flat dict of paths, or None where the recipe is all."""
    return Directions(_unlisted(header["leaves"], arrays, "leaf"), Recipe(header["recipe"]))


def _eigenpairs_parts(x: Eigenpairs) -> tuple[Header, Arrays]:
    given = x.vectors
    leaves, vectors = _listed(None if given is None else _leaves(given), "leaf")
    state, rest = _listed(x.state, "state")
    directions = None if given is None else {"recipe": dict(given.recipe), "leaves": leaves}
    header = {"recipe": x.recipe, "products": int(x.products), "directions": directions, "state": state}
    return header, {"values": np.asarray(x.values), "residuals": np.asarray(x.residuals)} | vectors | rest


def _eigenpairs(header: Header, arrays: Arrays) -> Eigenpairs:
    vectors = None if header["directions"] is None else _by_path(header["directions"], arrays)
    state = _unlisted(header["state"], arrays, "state")
    values, residuals = arrays.pop("values"), arrays.pop("residuals")
    return Eigenpairs(values, vectors, residuals, header["products"], header["recipe"], state)


def _spectrum_parts(x: Spectrum) -> tuple[Header, Arrays]:
    state, rest = _listed(x.state, "state")
    arrays = {"nodes": np.asarray(x.nodes), "weights": np.asarray(x.weights)}
    return {"recipe": x.recipe, "state": state}, arrays | rest


def _spectrum(header: Header, arrays: Arrays) -> Spectrum:
    state = _unlisted(header["state"], arrays, "state")
    return Spectrum(arrays.pop("nodes"), arrays.pop("weights"), header["recipe"], state)


_FORMS: dict[type, tuple[Callable[[Any], tuple[Header, Arrays]], Callable[[Header, Arrays], Any]]] = {
    Landscape: (_landscape_parts, _landscape),
    Directions: (_directions_parts, _by_path),
    Eigenpairs: (_eigenpairs_parts, _eigenpairs),
    Spectrum: (_spectrum_parts, _spectrum),
}


def _leaves(x: Directions) -> dict[str, Any]:
    names, leaves = _tree.paths(x.tree), jax.tree.leaves(x.tree)
    if len(set(names)) < len(names):
        raise ValueError(f"x: two of its leaves have one path among {names}; rename one of their keys")
    return dict(zip(names, leaves, strict=True))


def _listed(named: Mapping[str, Any] | None, prefix: str) -> tuple[list[list[str]] | None, Arrays]:
    """The header's list of names with their dtypes, and the arrays."""
    if named is None:
        return None, {}
    arrays = [np.asarray(array) for array in named.values()]
    names = [[name, array.dtype.name] for name, array in zip(named, arrays, strict=True)]
    return names, {f"{prefix}{i}": array for i, array in enumerate(arrays)}


def _unlisted(names: list[list[str]] | None, arrays: Arrays, prefix: str) -> dict[str, np.ndarray] | None:
    if names is None:
        return None
    return {name: _typed(arrays.pop(f"{prefix}{i}"), dtype) for i, (name, dtype) in enumerate(names)}


def _typed(array: np.ndarray, dtype: str) -> np.ndarray:
    if array.dtype.name == dtype:
        return array
    wanted = np.dtype(dtype)  # bfloat16 comes back as raw bytes
    if array.dtype.kind != "V" or wanted.itemsize != array.dtype.itemsize or wanted.hasobject or wanted.fields:
        raise ValueError(f"an array of {array.dtype.name} is said to be of {dtype}")
    return array.view(wanted)


def _misfit(x: Any) -> str:
    """What in a result contradicts itself, or "": the same for saving and loading."""
    if not isinstance(x.recipe, dict):
        return f"has a recipe of type {type(x.recipe).__name__}"
    if isinstance(x, Landscape):
        shape = tuple(np.size(c) for c in x.coords)
        shapes = [np.shape(z) for z in (*x.values.values(), *x.stderr.values())]
        fits = all(np.ndim(c) == 1 for c in x.coords) and all(s == shape for s in shapes)
        return "" if fits else f"has coordinates for {shape} and values of shapes {shapes}"
    if isinstance(x, Directions):
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(x.tree)]
        fits = x.tree is None or (() not in shapes and len({s[0] for s in shapes}) == 1)
        return "" if fits else f"has leaves of shapes {shapes}, not one number of directions"
    if isinstance(x, Spectrum):
        shapes = [np.shape(x.nodes), np.shape(x.weights)]
        return "" if shapes[0] == shapes[1] and len(shapes[0]) == 2 else f"has nodes and weights of shapes {shapes}"
    if isinstance(x.products, bool) or not isinstance(x.products, int | np.integer):
        return f"has used {x.products!r} products"
    shapes = [np.shape(x.values), np.shape(x.residuals)]
    if shapes[0] != shapes[1] or len(shapes[0]) != 1:
        return f"has values and residuals of shapes {shapes}"
    if x.vectors is None:
        return ""
    found = _misfit(x.vectors)
    return found if found or x.vectors.num == x.num else f"has {x.num} values and {x.vectors.num} vectors"


# --- files


def _read(path: Path) -> Any:
    """The result that a file holds; directions in it have a flat dict of paths as their tree."""
    if not path.exists():
        raise FileNotFoundError(f"path: {path} does not exist")
    try:
        header, arrays = _files.read_npz(path)
        ours = isinstance(header, dict) and header.get("format") == FORMAT
        version, kind = (int(header.get("version", 0)), str(header["type"])) if ours else (0, "")
    except Exception as error:  # a broken file makes the readers raise anything
        raise _unreadable(path, error) from error
    if not ours:
        raise Misuse("path", f"{path} was not written by lla_jax.save; pass a file that was", path)
    if version > VERSION:
        text = f"{path} has format version {version}, this lla_jax reads up to {VERSION}; update lla_jax to read it"
        raise Misuse("path", text, path)
    build = next((build for known, (_, build) in _FORMS.items() if known.__name__ == kind), None)
    if build is None:
        text = f"{path} holds a {kind!r}, which this version of lla_jax does not know; update lla_jax"
        raise Misuse("path", text, path)
    try:
        if odd := sorted(name for name, array in arrays.items() if array.dtype.kind not in "biufcV"):
            raise ValueError(f"the arrays {odd} are no numbers")
        result = build(header, arrays)
        if arrays:
            raise ValueError(f"the header does not know the arrays {sorted(arrays)}")
        if wrong := _misfit(result):
            raise ValueError(f"a {kind} that {wrong}")
    except Exception as error:
        raise _unreadable(path, error) from error
    return result


def _unreadable(path: Path, error: Exception) -> Misuse:
    return Misuse(
        "path",
        f"{path} is not a readable lla_jax result ({type(error).__name__}: {error}); it is truncated, corrupt or of "
        "another program. Compute it again, or pass a file written by lla_jax.save",
        path,
    )
