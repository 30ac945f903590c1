"""Tells which landscapes a store has, in which folders, and how many of their points are computed."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lla_jax.core import files as _files
from lla_jax.core.arguments import Misuse
from lla_jax.core.signatures import explained
from lla_jax.landscape.store import chunks as _chunks
from lla_jax.landscape.store import folders as _folders
from lla_jax.landscape.store import layout, requests, scattered
from lla_jax.landscape.store import manifest as _manifest
from lla_jax.landscape.store.announcing import Member, folder_of, read_announcements
from lla_jax.landscape.store.chunks import DamagedChunk
from lla_jax.landscape.store.layout import Store
from lla_jax.landscape.store.new_points import Coords

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
    if _folders.exists(folder):
        return {None: folder}
    folders: dict[Member | None, Path] = {member: folder / folder_of(member) for member in read_announcements(folder)}
    if not folders:
        stores = sorted(path for path in folder.glob("*/") if path.is_dir() and _holds_store(path))
        folders = {(0, path.name, None): path for path in stores}
    if not folders:
        kind = "holds no store" if folder.is_dir() else "is no folder" if os.path.lexists(folder) else "does not exist"
        remedy = "pass the folder that was given as store= (or --out to lla-jax landscape)"
        raise Misuse("store", f"{_files.show_path(folder)} {kind}; {remedy}", folder)
    return folders


def _holds_store(folder: Path) -> bool:
    """Whether a folder holds a store, perhaps with a damaged manifest, and not that of another program."""
    return _folders.exists(folder) and _manifest.inspect(folder / _manifest.NAME).kind != "foreign"


@explained
class Status(NamedTuple):
    """The progress of a store.

    Args:
      landscapes: number of landscapes, announced ones included.
      points: number of points of all landscapes, each on its latest grid; of a finished refinement those that were
        evaluated.
      done: number of these points whose chunks are written.
      chunks: number of chunks that the landscapes need, of those that were begun.
      written: number of these chunks that are written and readable.
      damaged: {path: reason} of chunks that cannot be read, which the next writer computes again, and of manifests and
        grids that are missing or damaged, which it restores from the chunks.
      writers: {"host:process": number of chunks that the process wrote in the last ten minutes}.
      last: seconds since the last chunk was written or the last landscape begun; infinite if none was begun.
      rate: points per second in the last ten minutes, 0 if none was computed.
      ahead: seconds by which the newest file is dated in the future, since clocks differ; 0 if none is. Such a file
        counts as written now, or as old if it is dated over ten minutes ahead.
      refining: number of landscapes whose refinement is not finished, which need at most all the points counted.
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
    ahead: float = 0.0
    refining: int = 0

    @property
    def left(self) -> float | None:
        """The expected seconds until the store is complete, at this rate; 0 if it is, None if nobody writes.

        Of a refinement, they are the most that may be needed.
        """
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
    folder = _folders.store_folder(store)
    announced = {folder_of(member): points for member, points in read_announcements(folder).items()}
    folders = members(folder)
    points = chunks = refining = 0
    damaged: dict[str, str] = {}
    written: list[_Written] = []
    dates: list[float] = []
    for path in folders.values():
        one = _folders.read(path)
        if one is None:
            points += announced.get(path.name, 0)
            continue
        damaged |= {str(file): f"it {repair.reason}" for file, repair in one.repairs.items()}
        with contextlib.suppress(FileNotFoundError):
            dates.append((path / _manifest.NAME).stat().st_mtime)
        grid = one.grids[-1]
        there, needed = [], 0
        for number, held in layout.counts(one, grid).items():
            needed += int(np.count_nonzero(held))
            there += _written_chunks(one, number, held, damaged)
        more = _scattered_chunks(one, grid, damaged)
        request = requests.read(one, len(one.grids) - 1) if more else None
        done, total = sum(chunk.points for chunk in (*there, *more)), layout.count(grid)
        if request is not None and done <= (request.points or total - 1):
            total, needed = request.points or total, len(there)
            refining += not request.points
        points += total
        chunks += needed + len(more)
        written += [*there, *more]
        dates += [chunk.date for chunk in (*there, *more)]
    now = time.time()
    ahead = max([0.0, *(date - now for date in dates)])
    now += max([0.0, *(date - now for date in dates if date - now <= WINDOW_S)])  # the clock that is most ahead
    recent = [chunk for chunk in written if 0 <= now - chunk.date < WINDOW_S]
    began = min([now, *(chunk.date - chunk.seconds for chunk in recent)])
    rate = sum(chunk.points for chunk in recent) / max(now - began, 1e-3)
    writers = Counter(chunk.writer for chunk in recent)
    last = min((max(0.0, now - date) for date in dates), default=math.inf)
    done = sum(chunk.points for chunk in written)
    return Status(len(folders), points, done, chunks, len(written), damaged, dict(writers), last, rate, ahead, refining)


class _Written(NamedTuple):
    """A chunk that was written: the number of points that count, its writer, the seconds it took and its date."""

    points: int
    writer: str
    seconds: float
    date: float


def _written_chunks(store: Store, grid: int, held: np.ndarray, damaged: dict[str, str]) -> list[_Written]:
    """The chunks of a grid that hold wanted points, ``held`` each, and are readable; adds others to ``damaged``."""
    found: list[_Written] = []
    for chunk in layout.written(store, grid):
        if chunk.number >= len(held) or not held[chunk.number]:
            continue
        path = layout.path_of(store, chunk)
        try:
            _, header = _chunks.load(store, chunk)
            date = path.stat().st_mtime
        except FileNotFoundError:
            continue
        except DamagedChunk as error:
            damaged[str(path)] = str(error)
            continue
        found.append(_Written(int(held[chunk.number]), header["writer"], header["seconds"], date))
    return found


def _scattered_chunks(store: Store, grid: Coords, damaged: dict[str, str]) -> list[_Written]:
    """The scattered chunks of a store, with the points of a grid that no other has; adds others to ``damaged``."""
    found: list[_Written] = []
    paths = list(scattered.written(store))
    has = np.zeros(layout.count(grid) if paths else 0, bool)
    for part in layout.parts_written(store, grid) if paths else ():
        if str(layout.path_of(store, part.chunk)) not in damaged:
            has[part.at] = True
    for number, path in paths:
        try:
            flat, _, header = scattered.load(store, number, path)
            date = path.stat().st_mtime
        except FileNotFoundError:
            continue
        except DamagedChunk as error:
            damaged[str(path)] = str(error)
            continue
        _, at = layout.find(flat, store.grids[number], grid)
        points = int(np.count_nonzero(~has[at]))
        has[at] = True
        found.append(_Written(points, header["writer"], header["seconds"], date))
    return found
