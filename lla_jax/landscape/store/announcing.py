"""The landscapes of a sweep in a store: announced before they are there, each in a folder of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lla_jax.core import files as _files
from lla_jax.core import recipes
from lla_jax.core.arguments import Misuse
from lla_jax.landscape.store import chunks as _chunks
from lla_jax.landscape.store import manifest as _manifest
from lla_jax.landscape.store.chunks import Store

SWEEP = "lla_jax sweep"
Cell = tuple[int, str, int | None]
"""A landscape of a sweep: number of the checkpoint, name of the axes, seed."""


def folder_of(cell: Cell) -> str:
    """The folder of a landscape in the store of a sweep."""
    checkpoint, kind, seed = cell
    name = re.sub(r"\W+", "-", kind).strip("-")
    return f"{checkpoint:03d}-{name}" + ("" if seed is None else f"-seed-{seed}")


def announce(folder: Path, cells: Sequence[Cell], points: int) -> Path | None:
    """Say in the folder what is going to be there, for ``status`` and ``merge``; the file, if it is new."""
    if _chunks.exists(folder):
        raise ValueError(f"store: {folder} holds a single landscape; the rule for a sweep is a folder of its own")
    _chunks.check_writable(folder)
    said = {"format": SWEEP, "version": 1, "points": points, "cells": [list(cell) for cell in cells]}
    path = folder / f"sweep-{recipes.digest(said)[:12]}.json"
    return path if not path.exists() and _files.write_first(path, said) else None


def announced(folder: Path) -> dict[Cell, int]:
    """The cells of all sweeps over a folder, and their points."""
    found: dict[Cell, int] = {}
    for path in sorted(folder.glob("sweep-*.json"), key=lambda path: (path.stat().st_mtime, path.name)):
        said = _manifest.read_json(path)
        if said.get("format") != SWEEP:
            continue
        try:
            for checkpoint, kind, seed in said["cells"]:
                found[int(checkpoint), str(kind), None if seed is None else int(seed)] = int(said["points"])
        except (KeyError, TypeError, ValueError) as error:
            text = f"{path} was changed or damaged; remove it, and repeat the sweep"
            raise Misuse("store", text, path) from error
    return dict(sorted(found.items(), key=lambda item: (item[0][0], item[0][1], item[0][2] or 0)))


def stores_of(folder: Path, cells: Iterable[Cell]) -> Iterator[Store]:
    """The stores that are there of these landscapes."""
    for cell in cells:
        store = _chunks.read(folder / folder_of(cell))
        if store is not None:
            yield store
