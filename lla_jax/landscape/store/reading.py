"""What there is in a store: the folders of its landscapes, and how far they are."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from lla_jax.core.arguments import Misuse
from lla_jax.landscape.store import chunks as _chunks
from lla_jax.landscape.store import manifest as _manifest
from lla_jax.landscape.store.announcing import Cell, announced, folder_of
from lla_jax.landscape.store.chunks import Damaged

WINDOW_S = 600.0  # writers that wrote nothing for so long count as gone


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


def members(folder: Path) -> dict[Cell | None, Path]:
    """The folders of the landscapes in a store: one alone under None, those of a sweep or of a list of directions by
    their cells.

    Raises:
      ValueError: there is none.
    """
    if _chunks.exists(folder):
        return {None: folder}
    found: dict[Cell | None, Path] = {cell: folder / folder_of(cell) for cell in announced(folder)}
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
    planned = {folder_of(cell): points for cell, points in announced(folder).items()}
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
