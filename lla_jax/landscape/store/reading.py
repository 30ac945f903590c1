"""What there is in a store: its landscapes, how far they are, and their values put together."""

from __future__ import annotations

import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lla_jax.core import files as _files
from lla_jax.core import recipes
from lla_jax.core.arguments import Misuse
from lla_jax.landscape.store import chunks as _chunks
from lla_jax.landscape.store import manifest as _manifest
from lla_jax.landscape.store.chunks import Damaged, Store

WINDOW_S = 600.0  # writers that wrote nothing for so long count as gone
SWEEP = "lla_jax sweep"
Cell = tuple[int, str, int | None]


class Incomplete(Misuse):
    """A store lacks chunks.

    Args:
      path: its folder.
      lacks: the chunks, in words.
    """

    def __init__(self, path: Path, lacks: str):
        text = f"{path} is not complete, it lacks {lacks}. Run what computes it again, which goes on from here, or take"
        super().__init__("store", f"{text} what there is with partial=True", path)
        self.lacks = lacks
        self.args = path, lacks


def folder_of(cell: Cell) -> str:
    """The folder of a landscape in the store of a sweep."""
    checkpoint, kind, seed = cell
    name = re.sub(r"\W+", "-", kind).strip("-")
    return f"{checkpoint:03d}-{name}" + ("" if seed is None else f"-seed-{seed}")


def _announced_now(folder: Path, cells: Sequence[Cell], points: int) -> Path | None:
    """Say in the folder what is going to be there, for ``status`` and ``merge``; the file, if it is new."""
    if _chunks.exists(folder):
        raise ValueError(f"store: {folder} holds a single landscape; the rule for a sweep is a folder of its own")
    _chunks.check_writable(folder)
    said = {"format": SWEEP, "version": 1, "points": points, "cells": [list(cell) for cell in cells]}
    path = folder / f"sweep-{recipes.digest(said)[:12]}.json"
    return path if not path.exists() and _files.write_first(path, said) else None


def _announced(folder: Path) -> dict[Cell, int]:
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


def _stores(folder: Path, cells: Iterable[Cell]) -> Iterator[Store]:
    for cell in cells:
        store = _chunks.read(folder / folder_of(cell))
        if store is not None:
            yield store


# --- what there is in a store


def members(folder: Path) -> dict[Cell | None, Path]:
    """The folders of the landscapes in a store: one alone under None, those of a sweep or of a list of directions by
    their cells.

    Raises:
      ValueError: there is none.
    """
    if _chunks.exists(folder):
        return {None: folder}
    found: dict[Cell | None, Path] = {cell: folder / folder_of(cell) for cell in _announced(folder)}
    if not found:
        parts = sorted(path.parent for path in folder.glob(f"*/{_manifest.NAME}") if _manifest.is_ours(path))
        found = {(0, path.name, None): path for path in parts}
    if not found:
        text = f"{folder} holds no store; pass the folder that was given as store= (or --out to lla-jax landscape)"
        raise Misuse("store", text, folder)
    return found


class Status(NamedTuple):
    """How far a store is.

    Args:
      landscapes: how many.
      points: of all their grids.
      done: points whose chunks are there.
      chunks: as far as their number is known: those of landscapes that were begun.
      written: chunks that are there.
      damaged: those that cannot be read, by path and reason; the next writer computes them again.
      writers: {"host:process": chunks it wrote in the last ten minutes}.
      last: seconds since the last chunk was written, or since the store was begun.
      rate: points per second in the last ten minutes; 0 if none.
    """

    landscapes: int
    points: int
    done: int
    chunks: int
    written: int
    damaged: dict[str, str]
    writers: dict[str, int]
    last: float
    rate: float

    @property
    def left(self) -> float | None:
        """Seconds that the rest takes at this rate; None if nobody writes."""
        if self.done == self.points:
            return 0.0
        return (self.points - self.done) / self.rate if self.rate else None


def status(store: str | os.PathLike[str]) -> Status:
    """How far a store is: every chunk is read, nothing is computed or changed.

    Args:
      store: the folder given as ``store=`` to ``evaluate`` or ``sweep``.

    Returns:
      A ``Status``.

    Raises:
      ValueError: no store.
    """
    folder, now = Path(store), time.time()
    planned = {folder_of(cell): points for cell, points in _announced(folder).items()}
    every = members(folder)
    points = done = chunks = written = recent = 0
    damaged: dict[str, str] = {}
    writers: Counter[str] = Counter()
    last, began = math.inf, now
    for path in every.values():
        one = _chunks.read(path)
        if one is None:
            points += planned[path.name]
            continue
        points += math.prod(len(axis) for axis in one.grids[-1])
        last = min(last, now - (path / _manifest.NAME).stat().st_mtime)
        for part in _chunks.parts(one, one.grids[-1]):
            chunks += 1
            file = _chunks.path_of(one, part.chunk)
            try:
                _, header = _chunks.load(one, part.chunk)
                age = now - file.stat().st_mtime
            except FileNotFoundError:
                continue
            except Damaged as error:
                damaged[str(file)] = str(error)
                continue
            written, done = written + 1, done + len(part.at)
            last = min(last, age)
            if age < WINDOW_S:
                recent += len(part.at)
                writers[header["writer"]] += 1
                began = min(began, now - age - header["seconds"])
    rate = recent / max(now - began, 1e-3) if recent else 0.0
    return Status(len(every), points, done, chunks, written, damaged, dict(writers), last, rate)
