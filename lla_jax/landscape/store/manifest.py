"""Makes, reads and checks the manifest of a chunk store: the recipe, plan and layout that all its writers share."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lla_jax.core import files as _files
from lla_jax.core.arguments import Misuse, is_integer, show_value
from lla_jax.core.recipes import digest

FORMAT = "lla_jax chunk store"
VERSION = 1
NAME = "manifest.json"
PATIENCE_S = 5.0  # how long to wait for a file that another writer is making
MOST_POINTS = 2**27  # whose values take 1 GiB for each name
MOST_COUNT = 2**40
LOOPS = ("vmap", "map")


def make(
    recipe: Mapping[str, Any],
    identity: Sequence[str],
    coords: Sequence[Sequence[float]],
    names: Sequence[str],
    size: int,
) -> dict[str, Any]:
    """Make the manifest of a new store.

    Args:
      recipe: the recipe of the landscape, with the plan.
      identity: names of the entries of the recipe that decide the values.
      coords: the coordinates of the first grid.
      names: the names of the values in every chunk.
      size: number of points of a chunk.
    """
    manifest = {"format": FORMAT, "version": VERSION, "identity": list(identity), "names": list(names), "points": size}
    manifest |= {"coords": [list(axis) for axis in coords], "recipe": dict(recipe)}
    return manifest | {"hash": _hash(manifest)}


def _hash(manifest: Mapping[str, Any]) -> str:
    """A hash of the entries that decide the contents of chunks; 32 hex digits."""
    identity = {k: manifest["recipe"].get(k) for k in manifest["identity"]}
    return digest([identity, manifest["names"], manifest["points"], manifest["coords"]])


# --- reading: a file may be incomplete, written by another program, or hostile


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file; retry for some seconds if it is empty, as another writer may be making it.

    Raises:
      ValueError: the file is missing, or is not readable as a JSON object.
    """
    end = time.monotonic() + PATIENCE_S
    while True:
        made = False
        try:
            text = path.read_text(encoding="utf-8")
            made = bool(text)
            value = _files.parse_json(text)
            if isinstance(value, dict):
                return value
            reason = "it holds no JSON object"
        except (IsADirectoryError, PermissionError, UnicodeDecodeError) as error:
            made, reason = True, str(error)
        except (ValueError, OSError) as error:
            reason = str(error) if made else f"it is empty or missing: {error}"
        if made or time.monotonic() > end:
            raise Misuse(
                "store", f"{path} is not readable ({reason}); restore it, or start anew in another folder", path
            )
        time.sleep(0.05)


def is_ours(path: Path) -> bool:
    """Whether a file is the manifest of a store of this program, of any version."""
    try:
        return read_json(path).get("format") == FORMAT
    except ValueError:
        return False


def read(path: Path) -> dict[str, Any]:
    """Read the manifest in a file, and check every entry.

    Raises:
      ValueError: the file is not readable, was written by another program or a newer version, or was changed.
    """
    manifest = read_json(path)
    version: Any = manifest.get("version")
    if manifest.get("format") != FORMAT or not is_integer(version) or not 0 < version <= VERSION:
        raise Misuse(
            "store",
            f"{path} is of format {show_value(manifest.get('format'))}, version {show_value(version)}; it must be "
            f"{FORMAT!r} of at most version {VERSION}. Pass another folder, or update lla_jax",
            path,
        )
    try:
        defect = _defect(manifest)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        defect = f"{type(error).__name__}: {error}"
    if defect:
        raise Misuse(
            "store", f"{path} was changed or damaged ({defect}); restore it, or start anew in another folder", path
        )
    return manifest


def _defect(manifest: Mapping[str, Any]) -> str:
    """The first entry that is wrong, in words; "" if none is. A missing entry raises an error of some type."""
    coords_of(manifest)
    recipe, plan = manifest["recipe"], manifest["recipe"]["plan"]
    counts = [manifest["points"], plan["chunk"], plan["microbatch"], plan["devices"], plan["data_shards"]]
    if not all(is_integer(n) and 0 < n < MOST_COUNT for n in counts):
        shown = ", ".join(map(show_value, counts))
        return f"points, chunk, microbatch, devices and data_shards are {shown}, not positive integers"
    if plan["loop"] not in LOOPS or not all(isinstance(plan[name], bool) for name in ("share", "scan")):
        return "its plan has an unknown loop, or share and scan are not true or false"
    names, identity = manifest["names"], manifest["identity"]
    lists = isinstance(names, list) and isinstance(identity, list)
    if not lists or not names or not all(isinstance(name, str) for name in [*names, *identity]):
        return "names and identity are not lists of strings"
    if "loss" not in names or len(set(names)) < len(names):
        return "its names lack the loss, or have a name twice"
    if not isinstance(recipe.get("probe"), dict):
        return "its recipe has no probe"
    return "" if manifest["hash"] == _hash(manifest) else "its hash is that of other contents"


def coords_of(record: Mapping[str, Any]) -> list[list[float]]:
    """The coordinates, one list per axis, in a manifest or in the JSON of a further grid, after a check.

    Raises:
      KeyError: there are none.
      ValueError: they are not lists of finite numbers, or give too many points.
    """
    coords = record["coords"]
    numbers = isinstance(coords, list) and all(isinstance(axis, list) and axis for axis in coords)
    if not numbers or not coords or not all(isinstance(c, float | int) and math.isfinite(c) for x in coords for c in x):
        raise ValueError("its coordinates are not lists of finite numbers")
    if (num := math.prod(map(len, coords))) > MOST_POINTS:
        raise ValueError(f"it has too many points, {num:,}; a store has at most {MOST_POINTS:,}")
    return coords
