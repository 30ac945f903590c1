"""Results as files: one .npz of plain arrays with a JSON header, versioned, written atomically, never pickled.

Random directions are stored as their recipe and drawn again on loading (``like=params``); a changed generator or other
weights are detected there. Everything else is stored as arrays.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lla_jax import _tree
from lla_jax import directions as _directions
from lla_jax._types import Directions, Landscape, PyTree, Recipe

FORMAT = "lla_jax"
VERSION = 1


def save(x: Landscape | Directions, path: str | os.PathLike[str]) -> Path:
    """Write a result as .npz with a JSON header; an existing file is replaced in one step or left as it was.

    Args:
      x: a ``Landscape`` or ``Directions``. Random directions are stored as their recipe.
      path: the file; ".npz" is appended if it has another ending. The folder is made if it is missing.

    Returns:
      The path written.

    Raises:
      ValueError: another type, or a recipe that is not JSON.
      OSError: the folder cannot be written.
    """
    if isinstance(x, Landscape):
        header, arrays = _landscape_parts(x)
    elif isinstance(x, Directions):
        header, arrays = _directions_parts(x)
    else:
        raise ValueError(f"x: cannot save a {type(x).__name__}; the rule is a Landscape or Directions")
    target = Path(path)
    target = target if target.suffix == ".npz" else target.with_name(target.name + ".npz")
    text = json.dumps({"format": FORMAT, "version": VERSION, "type": type(x).__name__, **header}, default=_plain)
    target.parent.mkdir(parents=True, exist_ok=True)
    _write(target, {"header": np.array(text)} | arrays)
    return target


def load(path: str | os.PathLike[str], like: PyTree = None) -> Any:
    """Read what ``save`` wrote.

    Args:
      path: the file.
      like: the parameters that directions belong to; gives them their structure, and is needed to draw random ones
        again.

    Returns:
      The ``Landscape`` or ``Directions``. Directions without ``like`` come as nested dicts named by their paths.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is truncated, of another program or of a newer version, or random directions cannot be drawn
        again as they were.
    """
    header, arrays = _read(Path(path))
    if header["type"] == "Landscape":
        coords = tuple(arrays[f"coord{i}"] for i in range(header["dims"]))
        values = {name: arrays[f"value{i}"] for i, name in enumerate(header["values"])}
        stderr = {name: arrays[f"stderr{i}"] for i, name in enumerate(header["stderr"])}
        return Landscape(coords, values, stderr, header["recipe"])
    if header["type"] != "Directions":
        raise ValueError(
            f"path: {path} holds a {header['type']!r}, which this version of lla_jax does not know; update lla_jax"
        )
    if header["leaves"] is None:
        if like is None:
            raise ValueError(
                f"like: needed, {path} stores random directions as a recipe; pass the parameters, load(path, "
                "like=params)"
            )
        return _directions.rebuild(header["recipe"], like)
    leaves = {
        name: arrays[f"leaf{i}"].view(np.dtype(dtype)) for i, (name, dtype) in enumerate(header["leaves"])
    }  # bfloat16 comes back as raw bytes
    tree = _nested(leaves) if like is None else _tree.align(leaves, like, "directions", "like", stacked=True)
    return Directions(tree, Recipe(header["recipe"]))


def _landscape_parts(x: Landscape) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    header = {"dims": x.dims, "values": list(x.values), "stderr": list(x.stderr), "recipe": x.recipe}
    named = (("coord", x.coords), ("value", x.values.values()), ("stderr", x.stderr.values()))
    return header, {f"{kind}{i}": np.asarray(array) for kind, group in named for i, array in enumerate(group)}


def _directions_parts(x: Directions) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if x.recipe.get("kind") == "random" and not x.recipe.get("transformed"):
        return {"recipe": dict(x.recipe), "leaves": None}, {}
    leaves = [np.asarray(leaf) for leaf in jax.tree_util.tree_leaves(x.tree)]
    names = [[path, leaf.dtype.name] for path, leaf in zip(_tree.paths(x.tree), leaves, strict=True)]
    return {"recipe": dict(x.recipe), "leaves": names}, {f"leaf{i}": leaf for i, leaf in enumerate(leaves)}


def _plain(value: Any) -> Any:
    """Numpy numbers and arrays as JSON."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise ValueError(
        f"recipe: holds a {type(value).__name__}, which is not JSON; keep recipes to numbers, strings, lists and dicts"
    )


def _write(target: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Into a temporary file of the same folder, forced to disk, then renamed: no reader ever sees half a file."""
    if objects := [name for name, array in arrays.items() if array.dtype == object]:
        raise ValueError(f"x: {objects} hold objects, which only pickle could save; the rule is arrays of numbers")
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if not path.exists():
        raise FileNotFoundError(f"path: {path} does not exist")
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(str(arrays.pop("header")[()]))
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError, AttributeError, TypeError) as error:
        raise ValueError(
            f"path: {path} is not a readable lla_jax result ({type(error).__name__}: {error}); it is truncated, "
            "corrupt or of another program. Compute it again, or pass a file written by lla_jax.save"
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"path: {path} was not written by lla_jax.save; pass a file that was")
    if header.get("version", 0) > VERSION:
        raise ValueError(
            f"path: {path} has format version {header['version']}, this lla_jax reads up to {VERSION}; update lla_jax "
            "to read it"
        )
    return header, arrays


def _nested(leaves: Mapping[str, np.ndarray]) -> PyTree:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree
