"""The manifest of a chunk store: the recipe, plan and layout that all writers of a folder share."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lla_jax.core.arguments import Misuse
from lla_jax.core.recipes import digest

FORMAT = "lla_jax chunk store"
VERSION = 1
NAME = "manifest.json"
PATIENCE_S = 5.0  # for a file that another writer is just making
MOST_POINTS = 2**40
LOOPS = ("vmap", "map")


def made(
    recipe: Mapping[str, Any],
    identity: Sequence[str],
    coords: Sequence[Sequence[float]],
    names: Sequence[str],
    size: int,
) -> dict[str, Any]:
    """A manifest.

    Args:
      recipe: of the landscape, with the plan.
      identity: its entries that decide the values.
      coords: of the first grid.
      names: of the values in every chunk.
      size: points a chunk.
    """
    manifest = {
        "format": FORMAT, "version": VERSION, "identity": list(identity), "names": list(names), "points": size,
        "coords": [list(axis) for axis in coords], "recipe": dict(recipe),
    }  # fmt: skip
    return manifest | {"hash": _hash(manifest)}


def _hash(manifest: Mapping[str, Any]) -> str:
    """Of what decides what a chunk holds; 32 hex digits."""
    identity = {k: manifest["recipe"].get(k) for k in manifest["identity"]}
    return digest([identity, manifest["names"], manifest["points"], manifest["coords"]])


# --- reading: a file may be half made, of another program, or hostile


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that another writer may be just making."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(value, dict):
                return value
            reason = "no JSON object"
        except (ValueError, OSError) as error:
            reason = str(error)
        if time.monotonic() > end:
            text = f"{path} is not readable ({reason}); restore it, or start anew in another folder"
            raise Misuse("store", text, path)
        time.sleep(0.05)


def is_ours(path: Path) -> bool:
    """Whether a file is a manifest of this program, of any version."""
    try:
        return read_json(path).get("format") == FORMAT
    except ValueError:
        return False


def read(path: Path) -> dict[str, Any]:
    """A manifest, every entry of which is what it should be.

    Raises:
      ValueError: it is not readable, of another program or a newer version, or was changed.
    """
    manifest = read_json(path)
    version = manifest.get("version")
    if manifest.get("format") != FORMAT or not isinstance(version, int) or version > VERSION:
        raise Misuse(
            "store",
            f"{path} is of format {manifest.get('format')!r}, version {version!r}; the rule is {FORMAT!r}, at most "
            f"{VERSION}. Pass another folder, or update lla_jax",
            path,
        )
    try:
        wrong = _wrong(manifest)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        wrong = f"{type(error).__name__}: {error}"
    if wrong:
        text = f"{path} was changed or damaged ({wrong}); restore it, or start anew in another folder"
        raise Misuse("store", text, path)
    return manifest


def _wrong(manifest: Mapping[str, Any]) -> str:
    coords_of(manifest)
    recipe, plan = manifest["recipe"], manifest["recipe"]["plan"]
    counts = [manifest["points"], plan["chunk"], plan["microbatch"], plan["devices"], plan["data_shards"]]
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 < n < MOST_POINTS for n in counts):
        return f"points, chunk, microbatch, devices and data_shards are {counts}, not positive integers"
    if plan["loop"] not in LOOPS or not all(isinstance(plan[name], bool) for name in ("share", "scan")):
        return "its plan is none"
    names = [*manifest["names"], *manifest["identity"]]
    if not manifest["names"] or not all(isinstance(name, str) for name in names):
        return "names and identity are not lists of strings"
    if not isinstance(recipe.get("probe"), dict):
        return "its recipe has no probe"
    return "" if manifest["hash"] == _hash(manifest) else "its hash is that of another one"


def coords_of(record: Mapping[str, Any]) -> list[list[float]]:
    """Coordinates in a manifest or a further grid, checked."""
    coords = record["coords"]
    numbers = isinstance(coords, list) and all(isinstance(axis, list) and axis for axis in coords)
    if not numbers or not coords or not all(isinstance(c, float | int) and math.isfinite(c) for x in coords for c in x):
        raise ValueError("its coordinates are not lists of finite numbers")
    if math.prod(map(len, coords)) > MOST_POINTS:
        raise ValueError("it has too many points")
    return coords
