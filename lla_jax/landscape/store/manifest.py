"""Makes, reads and checks the manifest of a chunk store: the recipe, plan and layout that all its writers share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from lla_jax.core import files as _files
from lla_jax.core.arguments import Misuse, is_integer, show_value
from lla_jax.core.recipes import digest

FORMAT = "lla_jax chunk store"
VERSION = 2  # in 1 the hash was that of the entries in "identity" alone, without the values of the functions
NAME = "manifest.json"
MOST_POINTS = 2**27  # whose values take 1 GiB for each name
MOST_CHUNKS = 2**22  # of a grid: its files have to be counted in reasonable time
MOST_BYTES = 2**32  # of a file of coordinates
MOST_COUNT = 2**40
LOOPS = ("vmap", "map")
ENTRIES = ("format", "version", "identity", "names", "points", "coords", "recipe", "hash")


class DamagedFile(Misuse):
    """The error for a manifest, or another JSON file of a store, that is damaged.

    Args:
      path: the file.
      reason: why, in words.
      remedy: what to do.
    """

    def __init__(self, path: Path, reason: str, remedy: str):
        super().__init__("store", f"{path} {reason}; {remedy}", path)
        self.reason = reason
        self.args = path, reason, remedy


REMOVE = "remove it and repeat the call that wrote it, or start anew in another folder"


def make(
    recipe: Mapping[str, Any],
    identity: Sequence[str],
    coords: Sequence[Sequence[float]],
    names: Sequence[str],
    size: int,
) -> dict[str, Any]:
    """Make the manifest of a new store.

    Args:
      recipe: the recipe of the landscape, with the plan and the values by which its functions are recognized.
      identity: names of the entries of the recipe that decide the values.
      coords: the coordinates of the first grid.
      names: the names of the values in every chunk.
      size: number of points of a chunk.
    """
    manifest = {"format": FORMAT, "version": VERSION, "identity": list(identity), "names": list(names), "points": size}
    manifest |= {"coords": [list(axis) for axis in coords], "recipe": dict(recipe)}
    manifest = _files.parse_json(_files.to_json(manifest))  # as it will be read
    return manifest | {"hash": _hash(manifest)}


def _hash(manifest: Mapping[str, Any]) -> str:
    """A hash of all other entries, so that every chunk is of this very store; 32 hex digits."""
    if manifest["version"] == 1:
        identity = {k: manifest["recipe"].get(k) for k in manifest["identity"]}
        return digest([identity, manifest["names"], manifest["points"], manifest["coords"]])
    return digest({name: value for name, value in manifest.items() if name != "hash"})


# --- reading: a file may be incomplete, written by another program, or hostile


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
      FileNotFoundError: there is none, or an empty one that was left by a process that was killed.
      OSError: the file cannot be read now, which does not mean that it is damaged.
      DamagedFile: the file is not readable as a JSON object.
    """
    try:
        if _files.is_abandoned(path):
            raise FileNotFoundError(f"store: {path} is empty")
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, and can have {MOST_BYTES:,} at most")
        value = _files.parse_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"store: {path} does not exist") from error
    except IsADirectoryError as error:
        raise DamagedFile(path, "is not readable (it is a folder)", REMOVE) from error
    except OSError as error:
        raise _files.explain("store", path, "cannot be read", error, "mend that and repeat the call") from error
    except ValueError as error:
        raise DamagedFile(path, f"is not readable ({error})", REMOVE) from error
    if not isinstance(value, dict):
        raise DamagedFile(path, "is not readable (it holds no JSON object)", REMOVE)
    return value


class Manifest(NamedTuple):
    """The file of a manifest as it was found.

    Args:
      content: its entries; empty if it is missing or damaged.
      defect: why it is damaged, or that it is missing; None if it is sound.
      kind: "ours", "foreign" for that of another program, "missing", or "unknown" if it is no JSON object.
    """

    content: dict[str, Any]
    defect: Misuse | None = None
    kind: Literal["ours", "foreign", "missing", "unknown"] = "ours"


def inspect(path: Path) -> Manifest:
    """Read the manifest in a file, and check every entry.

    Raises:
      OSError: the file cannot be read now.
    """
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        missing = DamagedFile(path, "is missing", "repeat the call that wrote it, which makes it anew")
        return Manifest({}, missing, "missing")
    except DamagedFile as error:
        return Manifest({}, error, "unknown")
    defect = check(manifest, path)
    return Manifest(manifest) if defect is None else Manifest({}, defect, "foreign" if is_foreign(manifest) else "ours")


def is_foreign(record: Mapping[str, Any]) -> bool:
    """Whether a JSON object is that of another program: it has neither a format of ours nor most of the entries."""
    ours = str(record.get("format")).startswith("lla_jax")
    return not ours and sum(name in record for name in ENTRIES) < len(ENTRIES) // 2


def check(manifest: Mapping[str, Any], path: Path) -> Misuse | None:
    """The error (not raised) for a manifest that another program or a newer version wrote, or that was changed."""
    version: Any = manifest.get("version")
    if manifest.get("format") != FORMAT or not is_integer(version) or not 0 < version <= VERSION:
        return Misuse(
            "store",
            f"{path} is of format {show_value(manifest.get('format'))}, version {show_value(version)}; it must be "
            f"{FORMAT!r} of at most version {VERSION}. Pass another folder, or update lla_jax",
            path,
        )
    try:
        defect = _defect(manifest)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        defect = f"{type(error).__name__}: {error}"
    return DamagedFile(path, f"was changed or damaged ({defect})", REMOVE) if defect else None


def _defect(manifest: Mapping[str, Any]) -> str:
    """The first entry that is wrong, in words; "" if none is. A missing entry raises an error of some type."""
    coords = coords_of(manifest)
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
    if count_chunks(math.prod(map(len, coords)), manifest["points"]) > MOST_CHUNKS:
        return f"its grid has more than {MOST_CHUNKS:,} chunks"
    if not isinstance(recipe.get("probe"), dict):
        return "its recipe has no probe"
    return "" if manifest["hash"] == _hash(manifest) else "its hash is that of other contents"


def count_chunks(points: int, size: int) -> int:
    """The number of chunks that hold a number of points, ``size`` points each."""
    return -(-points // size)


def coords_of(record: Mapping[str, Any]) -> list[list[float]]:
    """The coordinates, one list per axis, in a manifest or in the JSON of a further grid, after a check.

    Raises:
      KeyError: there are none.
      ValueError: they are not lists of finite numbers, or give too many points, or one twice.
    """
    coords = record["coords"]
    numbers = isinstance(coords, list) and all(isinstance(axis, list) and axis for axis in coords)
    if not numbers or not coords or not all(isinstance(c, float | int) and math.isfinite(c) for x in coords for c in x):
        raise ValueError("its coordinates are not lists of finite numbers")
    if (num := math.prod(map(len, coords))) > MOST_POINTS:
        raise ValueError(f"it has too many points, {num:,}; a store has at most {MOST_POINTS:,}")
    if any(len(np.unique(np.array(axis, np.float64))) < len(axis) for axis in coords):
        raise ValueError("it has a coordinate twice along an axis")
    return coords
