"""Tells which chunks of a store hold which points: a store's folder, its manifest and its grids.

A chunk holds points of one grid, in row-major order, that no earlier grid has. The points of a chunk follow from the
files of the folder alone, so it does not matter who computes a chunk, when, or how often.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lla_jax.landscape.store import manifest as _manifest
from lla_jax.landscape.store.new_points import Coords, NewPoints

BLOCK = 2**20  # points whose places are looked up at a time


class Repair(NamedTuple):
    """A file of a store that is missing or damaged, and what the chunks say that it held.

    Args:
      reason: why it is, in words.
      content: the JSON object that it held.
    """

    reason: str
    content: Mapping[str, Any]


class Store(NamedTuple):
    """A chunk store: its folder, its manifest and its grids, without the contents of its chunks.

    Args:
      folder: the folder.
      manifest: the description of the store; see ``manifest.make``.
      grids: the coordinates of each grid, in the order in which they were added.
      new: for each grid, the flat indices of its points that no earlier grid has, in order.
      repairs: {path: Repair} of the manifest and the files of grids that are missing or damaged.
    """

    folder: Path
    manifest: dict[str, Any]
    grids: tuple[Coords, ...]
    new: tuple[Any, ...]
    repairs: Mapping[Path, Repair]


class Chunk(NamedTuple):
    """The place of a chunk in a store.

    Args:
      grid: index of its grid.
      number: index of the chunk among the chunks of its grid.
    """

    grid: int
    number: int


class Part(NamedTuple):
    """The points that a chunk and a grid have in common; the grid may be another than that of the chunk.

    Args:
      chunk: the chunk.
      wanted: (C,), for each point of the chunk whether the grid has it.
      at: the flat indices in the grid of the points that it has.
    """

    chunk: Chunk
    wanted: np.ndarray
    at: np.ndarray


def make(
    folder: Path, manifest: dict[str, Any], grids: Sequence[Coords], repairs: Mapping[Path, Repair] | None = None
) -> Store:
    """Make the ``Store`` of a manifest and its grids."""
    new = tuple(_new_points(grid, grids[:i]) for i, grid in enumerate(grids))
    return Store(folder, manifest, tuple(grids), new, repairs or {})


def _new_points(grid: Coords, earlier: Sequence[Coords]) -> NewPoints | range:
    """The flat indices of the points of a grid that no earlier grid has, in order."""
    return NewPoints(grid, earlier) if earlier else range(count(grid))


def arrays(record: Mapping[str, Any]) -> Coords:
    """The coordinates in a manifest or in the JSON of a further grid as arrays; errors as ``manifest.coords_of``."""
    return tuple(np.array(axis, np.float64) for axis in _manifest.coords_of(record))


def count(grid: Coords) -> int:
    """Number of points of a grid."""
    return math.prod(shape(grid))


def shape(grid: Coords) -> tuple[int, ...]:
    """Number of coordinates along each axis of a grid."""
    return tuple(map(len, grid))


def same(one: Coords, two: Coords) -> bool:
    """Whether two grids have the same coordinates, to the bit."""
    return len(one) == len(two) and all(map(np.array_equal, one, two))


def grid_path(folder: Path, number: int) -> Path:
    """The path of the coordinates of a further grid; those of the first are in the manifest."""
    return folder / f"grid-{number:03d}.json"


def chunks_folder(folder: Path, number: int) -> Path:
    """The folder of the chunks of a grid."""
    return folder / f"grid-{number:03d}"


def path_of(store: Store, chunk: Chunk) -> Path:
    """The path of the file of a chunk, which may not be there yet."""
    return chunks_folder(store.folder, chunk.grid) / f"{chunk.number:05d}.npz"


def written(store: Store, grid: int) -> list[Chunk]:
    """The chunks of a grid whose files are there, in order; they may be damaged, or beyond the last chunk."""
    names = (path.stem for path in chunks_folder(store.folder, grid).glob("[0-9]*.npz"))
    numbers = sorted(int(name) for name in names if name.isdecimal() and name == f"{int(name):05d}")
    return [Chunk(grid, number) for number in numbers]


def size(store: Store) -> int:
    """Number of points of a chunk; the last one of a grid may have fewer."""
    return int(store.manifest["points"])


def indices(store: Store, chunk: Chunk) -> tuple[np.ndarray, ...]:
    """The indices of the points of a chunk along the axes of its grid, one array (C,) per axis."""
    return _indices(store, chunk.grid, chunk.number, chunk.number + 1)


def _indices(store: Store, grid: int, first: int, last: int) -> tuple[np.ndarray, ...]:
    """``indices`` of the chunks first, ..., last - 1 of a grid."""
    flat = np.asarray(store.new[grid][first * size(store) : last * size(store)])
    return np.unravel_index(flat, shape(store.grids[grid]))


def points(store: Store, chunk: Chunk) -> np.ndarray:
    """The coordinates (C, k) of the C points of a chunk."""
    return np.stack([axis[i] for axis, i in zip(store.grids[chunk.grid], indices(store, chunk))], -1)


def points_hash(store: Store, chunk: Chunk) -> str:
    """A hash of the coordinates of a chunk, by which a chunk of another grid is recognized."""
    return hash_of(points(store, chunk))


def hash_of(coords: np.ndarray) -> str:
    """A hash of the coordinates (C, k) of points, 32 hex digits."""
    return hashlib.blake2b(np.ascontiguousarray(coords).tobytes(), digest_size=16).hexdigest()


def _relevant(store: Store, coords: Coords) -> Iterator[tuple[int, list[np.ndarray] | None]]:
    """Yield (number, places of its coordinates in ``coords``) of the grids that have points of the grid ``coords``.

    The places are None for the grid itself, all of whose points are wanted.
    """
    for number, grid in enumerate(store.grids):
        if same(grid, coords):
            yield number, None
            return  # later grids hold none of its points
        places = [_places(axis, wanted) for axis, wanted in zip(grid, coords)]
        if all((place >= 0).any() for place in places):
            yield number, places


def counts(store: Store, coords: Coords) -> dict[int, np.ndarray]:
    """{number of a grid: how many points of the grid ``coords`` each of its chunks holds}.

    This takes no time for the chunks of the grid itself, and some nanoseconds for each point of earlier grids.
    """
    found: dict[int, np.ndarray] = {}
    for number, places in _relevant(store, coords):
        total = len(store.new[number])
        found[number] = np.full(_manifest.count_chunks(total, size(store)), size(store), np.int64)
        if places is None:
            if total:
                found[number][-1] = total - size(store) * (len(found[number]) - 1)
            continue
        step = max(1, BLOCK // size(store))
        for first in range(0, len(found[number]), step):
            block = _indices(store, number, first, first + step)
            wanted = np.logical_and.reduce([place[i] >= 0 for place, i in zip(places, block)])
            starts = np.arange(0, len(wanted), size(store))
            found[number][first : first + step] = np.add.reduceat(wanted, starts, dtype=np.int64)
    return found


def needed(store: Store, coords: Coords) -> dict[Chunk, int]:
    """{chunk: how many points of the grid ``coords`` it holds}, of the chunks that hold any, in order."""
    return {
        Chunk(grid, int(number)): int(held[number])
        for grid, held in counts(store, coords).items()
        for number in np.flatnonzero(held)
    }


def parts(store: Store, coords: Coords) -> Iterator[Part]:
    """Yield a ``Part`` for each chunk, in order, that holds points of the grid ``coords``, which the store has."""
    places = dict(_relevant(store, coords))
    for chunk in needed(store, coords):
        yield _part(store, coords, chunk, places[chunk.grid])


def parts_written(store: Store, coords: Coords) -> Iterator[Part]:
    """Yield a ``Part`` for each chunk whose file is there, in order, if it holds points of the grid ``coords``."""
    for number, places in _relevant(store, coords):
        last = _manifest.count_chunks(len(store.new[number]), size(store))
        for chunk in written(store, number):
            if chunk.number < last and len((part := _part(store, coords, chunk, places)).at):
                yield part


def _part(store: Store, coords: Coords, chunk: Chunk, places: list[np.ndarray] | None) -> Part:
    flat = flat_indices(store, chunk)
    return Part(chunk, *_find(flat, store.grids[chunk.grid], coords, places))


def flat_indices(store: Store, chunk: Chunk) -> np.ndarray:
    """The flat indices (C,) in its grid of the points of a chunk."""
    return np.asarray(store.new[chunk.grid][chunk.number * size(store) : (chunk.number + 1) * size(store)])


def find(flat: np.ndarray, grid: Coords, coords: Coords) -> tuple[np.ndarray, np.ndarray]:
    """Find points of one grid in another.

    Args:
      flat: (C,), the flat indices of the points in the grid ``grid``.
      grid: the one grid.
      coords: the other one.

    Returns:
      ((C,) whether the other grid has the point, the flat indices there of those that it has).
    """
    places = None if same(grid, coords) else [_places(axis, wanted) for axis, wanted in zip(grid, coords)]
    return _find(flat, grid, coords, places)


def _find(
    flat: np.ndarray, grid: Coords, coords: Coords, places: list[np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    if places is None:
        return np.ones(len(flat), bool), flat
    at = np.stack([place[i] for place, i in zip(places, np.unravel_index(flat, shape(grid)))])
    wanted = np.asarray((at >= 0).all(0))
    return wanted, np.ravel_multi_index(tuple(at[:, wanted]), shape(coords))


def _places(axis: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """For each coordinate of an axis, its index among the ``wanted`` coordinates; -1 if it is none of them."""
    order = np.argsort(wanted, kind="stable")
    nearest = np.clip(np.searchsorted(wanted[order], axis), 0, len(wanted) - 1)
    return np.where(wanted[order][nearest] == axis, order[nearest], -1)
