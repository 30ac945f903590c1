"""Tells which landscapes a store has, in which folders, and how many of their points are computed."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from lla_jax.core import files as _files
from lla_jax.core.arguments import Misuse
from lla_jax.core.signatures import explained
from lla_jax.landscape.store import chunks as _chunks
from lla_jax.landscape.store import manifest as _manifest
from lla_jax.landscape.store.announcing import Member, folder_of, read_announcements
from lla_jax.landscape.store.chunks import DamagedChunk

WINDOW_S = 600.0  # a writer that wrote nothing in this time counts as gone


class Incomplete(Misuse):
    """The error for a store that lacks chunks.

    Args:
      path: the folder of the store.
      lacks: the missing and damaged chunks, in words.
    """

    def __init__(self, path: Path, lacks: str):
        text = f"{path} is not complete, it lacks {lacks}. Repeat the call that computes it, which continues from here,"
        super().__init__("store", f"{text} or read the chunks that are there with partial=True", path)
        self.lacks = lacks
        self.args = path, lacks


def members(folder: Path) -> dict[Member | None, Path]:
    """{member: folder} of the landscapes in a store, begun or only announced.

    A single landscape has None in place of a member; those of a list of directions have (0, name of the folder, None).

    Raises:
      ValueError: the folder holds no store.
    """
    if _chunks.exists(folder):
        return {None: folder}
    folders: dict[Member | None, Path] = {member: folder / folder_of(member) for member in read_announcements(folder)}
    if not folders:
        stores = sorted(path.parent for path in folder.glob(f"*/{_manifest.NAME}") if _manifest.is_ours(path))
        folders = {(0, path.name, None): path for path in stores}
    if not folders:
        kind = "holds no store" if folder.is_dir() else "is no folder" if os.path.lexists(folder) else "does not exist"
        remedy = "pass the folder that was given as store= (or --out to lla-jax landscape)"
        raise Misuse("store", f"{_files.show_path(folder)} {kind}; {remedy}", folder)
    return folders


@explained
class Status(NamedTuple):
    """The progress of a store.

    Args:
      landscapes: number of landscapes, announced ones included.
      points: number of points of all landscapes, each on its latest grid.
      done: number of these points whose chunks are written.
      chunks: number of chunks that the landscapes need, of those that were begun.
      written: number of these chunks that are written and readable.
      damaged: {path: reason} of chunks that cannot be read; the next writer computes them again.
      writers: {"host:process": number of chunks that the process wrote in the last ten minutes}.
      last: seconds since the last chunk was written or the last landscape begun; infinite if none was begun.
      rate: points per second in the last ten minutes, 0 if none was computed.
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
        """The expected seconds until the store is complete, at this rate; 0 if it is, None if nobody writes."""
        if self.done == self.points:
            return 0.0
        return (self.points - self.done) / self.rate if self.rate else None


@explained
def status(store: str | os.PathLike[str]) -> Status:
    """Tell the progress of a store; every chunk is read, and nothing is computed or changed.

    Args:
      store: the folder given as ``store=`` to ``evaluate`` or ``sweep``.

    Returns:
      A ``Status``.

    Raises:
      ValueError: the folder holds no store, or a damaged manifest.
    """
    folder, now = _chunks.store_folder(store), time.time()
    announced = {folder_of(member): points for member, points in read_announcements(folder).items()}
    folders = members(folder)
    points = done = chunks = written = recent = 0
    damaged: dict[str, str] = {}
    writers: Counter[str] = Counter()
    last, began = math.inf, now
    for path in folders.values():
        one = _chunks.read(path)
        if one is None:
            points += announced[path.name]
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
            except DamagedChunk as error:
                damaged[str(file)] = str(error)
                continue
            written, done = written + 1, done + len(part.at)
            last = min(last, age)
            if age < WINDOW_S:
                recent += len(part.at)
                writers[header["writer"]] += 1
                began = min(began, now - age - header["seconds"])
    rate = recent / max(now - began, 1e-3) if recent else 0.0
    return Status(len(folders), points, done, chunks, written, damaged, dict(writers), last, rate)
