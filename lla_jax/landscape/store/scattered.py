"""Reads and writes scattered chunks: files of points anywhere in a grid, which the file itself lists.

    grid-000/points-4b1c....npz    named by the hash of the coordinates of its points

A refinement writes them. Any landscape of the store takes their values where it needs these points.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lla_jax.landscape.grids import points_at
from lla_jax.landscape.means import Means
from lla_jax.landscape.store import chunks as _chunks
from lla_jax.landscape.store import layout
from lla_jax.landscape.store.chunks import Contents, DamagedChunk
from lla_jax.landscape.store.layout import Chunk, Store
from lla_jax.landscape.store.new_points import Coords

_NAME = re.compile(r"points-[0-9a-f]{32}\.npz")


def path_of(store: Store, grid: int, flat: np.ndarray) -> Path:
    """The path of the scattered chunk of the points of a grid with these flat indices."""
    digest = layout.hash_of(points_at(store.grids[grid], flat))
    return layout.chunks_folder(store.folder, grid) / f"points-{digest}.npz"


def written(store: Store) -> Iterator[tuple[int, Path]]:
    """Yield (number of its grid, path) of each scattered chunk that is there, perhaps damaged."""
    for grid in range(len(store.grids)):
        for path in sorted(layout.chunks_folder(store.folder, grid).glob("points-*.npz")):
            if _NAME.fullmatch(path.name):
                yield grid, path


def write(store: Store, grid: int, flat: np.ndarray, means: Means, about: Mapping[str, Any]) -> None:
    """Write the means at the points of a grid with the flat indices (C,), which are in order, into a scattered chunk.

    Args, Raises: as for ``chunks.write``.
    """
    target = path_of(store, grid, flat)
    place = {"grid": grid, "points": target.stem.removeprefix("points-")}
    _chunks.write_file(store, target, grid, place, means, about, {"at": np.asarray(flat, np.int64)})


def load(store: Store, grid: int, path: Path) -> tuple[np.ndarray, Means, dict[str, Any]]:
    """Read a scattered chunk: (flat indices of its points in its grid, means there, header).

    Raises:
      FileNotFoundError, OSError, DamagedChunk: as for ``chunks.load``.
    """
    num = layout.count(store.grids[grid])

    def fault(header: Any, arrays: Mapping[str, np.ndarray]) -> str:
        at = arrays["at"]
        if at.dtype != np.int64 or at.ndim != 1 or not len(at) or (np.diff(at) <= 0).any():
            return "it lists no points in order"
        if at[0] < 0 or at[-1] >= num:
            return f"it lists points beyond the {num:,} of its grid"
        digest = layout.hash_of(points_at(store.grids[grid], at))
        if (header["hash"], header["grid"], f"points-{header['points']}") != (store.manifest["hash"], grid, path.stem):
            return "it is of another landscape, grid or place"
        if header["points"] != digest:
            return "its points are not those of its name"
        numbers = {name: x for name, x in arrays.items() if name != "at"}
        return _chunks.contents_fault(store, header, numbers, len(at))

    means, header, arrays = _chunks.load_file(store, path, num, fault)
    return arrays["at"], means, header


def read_new(
    store: Store, coords: Coords, table: Means, evaluated: np.ndarray, seen: set[Path]
) -> dict[Path, DamagedChunk]:
    """Read the scattered chunks that are not in ``seen`` into a table of the grid ``coords``.

    Args:
      store: the store.
      coords: the grid.
      table: the means at its points, in place.
      evaluated: (n,) bool, the points with means, in place.
      seen: the paths that were read, to which those read now are added.

    Returns:
      {path: error} of the scattered chunks that cannot be read.
    """
    damaged: dict[Path, DamagedChunk] = {}
    for grid, path in written(store):
        if path in seen:
            continue
        try:
            flat, means, _ = load(store, grid, path)
        except FileNotFoundError:
            continue
        except DamagedChunk as error:
            damaged[path] = error
            continue
        seen.add(path)
        wanted, at = layout.find(flat, store.grids[grid], coords)
        table.put(Means(*({name: x[wanted] for name, x in numbers.items()} for numbers in means)), at, len(evaluated))
        evaluated[at] = True
    return damaged


def read_all(store: Store, coords: Coords, seen: set[Path] | None = None) -> Contents:
    """Read every chunk that the grid ``coords`` needs, and all scattered chunks: see ``chunks.read_chunks``.

    A chunk is not missing if scattered chunks hold all its points of the grid.

    Args:
      store: the store.
      coords: the grid.
      seen: gets the paths of the scattered chunks that were read, for ``read_new``.
    """
    contents = _chunks.read_chunks(store, coords)
    if next(written(store), None) is None:
        return contents
    num = layout.count(coords)
    absent = {*contents.missing, *contents.damaged}
    places = {part.chunk: part.at for part in layout.parts(store, coords)}
    evaluated = np.zeros(num, bool)
    for chunk, at in places.items():
        evaluated[at] = chunk not in absent
    spoiled = read_new(store, coords, contents.means, evaluated, set() if seen is None else seen)
    return contents._replace(
        done=int(np.count_nonzero(evaluated)),
        missing=[chunk for chunk in contents.missing if not evaluated[places[chunk]].all()],
        evaluated=evaluated,
        spoiled=spoiled,
    )


class Tables:
    """The means of the scattered chunks of a store at the points of its grids, each read when it is asked for.

    Args:
      store: the store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tables: dict[int, tuple[Means, np.ndarray]] = {}
        self.is_empty = next(written(store), None) is None

    def hold(self, chunk: Chunk) -> bool:
        """Whether all points of a chunk are in scattered chunks."""
        return not self.is_empty and bool(self.at(chunk)[1].all())

    def at(self, chunk: Chunk) -> tuple[Means, np.ndarray]:
        """(means (C,) at the points of a chunk, NaN where there are none; (C,) bool, where there are some)."""
        flat = layout.flat_indices(self._store, chunk)
        if self.is_empty:
            return Means({}, {}), np.zeros(len(flat), bool)
        if chunk.grid not in self._tables:
            coords = self._store.grids[chunk.grid]
            self._tables[chunk.grid] = Means({}, {}), np.zeros(layout.count(coords), bool)
            read_new(self._store, coords, *self._tables[chunk.grid], set())
        table, evaluated = self._tables[chunk.grid]
        return Means(*({name: x[flat] for name, x in numbers.items()} for numbers in table)), evaluated[flat]
