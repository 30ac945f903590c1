"""The chunk store: one landscape as a folder that any number of processes write into, and that outlives all of them.

    manifest.json       recipe, hash, plan, points a chunk, first grid: by the first writer, obeyed by all later ones
    grid-001.json       the coordinates of a second grid, wider or denser
    grid-000/00012.npz  values at a chunk of points, written whole or not at all

A chunk holds points of one grid, in row-major order, that no earlier grid has. Which points these are follows from the
folder alone, so that it does not matter who computes a chunk, when, or how often.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lla_jax.core import files as _files
from lla_jax.core import recipes
from lla_jax.core.arguments import Misuse
from lla_jax.core.types import Landscape
from lla_jax.landscape.grids import SNAP
from lla_jax.landscape.means import Means
from lla_jax.landscape.store import manifest as _manifest

LEFTOVER_S = 60.0  # a temporary file that old was left by a writer that was killed
LEFT = (".manifest-*.tmp", ".grid-[0-9][0-9][0-9]-*.tmp", "grid-[0-9][0-9][0-9]/.[0-9]*-*.tmp")

Coords = tuple[np.ndarray, ...]


class Store(NamedTuple):
    """What a folder says before any chunk is read."""

    folder: Path
    manifest: dict[str, Any]
    grids: tuple[Coords, ...]
    fresh: tuple[Any, ...]  # for each grid the flat indices of its points that no earlier grid has, in order


class Chunk(NamedTuple):
    """A chunk: number of its grid, its own number there."""

    grid: int
    number: int


class Damaged(ValueError):
    """A chunk file that cannot be read, or is of another run."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path

    def __str__(self) -> str:
        return str(self.args[1])


# --- the folder


def check_writable(folder: Path, nbytes: int = 0) -> None:
    """Make the folder, and raise an OSError unless files of ``nbytes`` in all can be written into it."""
    try:
        _files.try_writing(folder)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise type(error)(
            error.errno, f"store: {folder} is not a folder that can be written to ({error.strerror}); pass another one"
        ) from error
    if free < nbytes:
        raise OSError(
            errno.ENOSPC,
            f"store: the results need about {nbytes / 2**20:.0f} MiB, and the disk of {folder} has "
            f"{free / 2**20:.0f} MiB left; free some, or pass a folder on another disk",
        )


def exists(folder: Path) -> bool:
    """Whether a folder holds a store."""
    return (folder / _manifest.NAME).exists()


def read(folder: Path) -> Store | None:
    """The store in a folder; None if there is none.

    Raises:
      ValueError: what is there is no readable store, or that of a newer version.
    """
    if not exists(folder):
        return None
    manifest = _manifest.read(folder / _manifest.NAME)
    grids = [_coords(manifest)]
    while (path := folder / f"grid-{len(grids):03d}.json").exists():
        try:
            grid = _coords(_manifest.read_json(path))
            if len(grid) != len(grids[0]):
                raise ValueError(f"it has {len(grid)} axes, the first grid {len(grids[0])}")
        except (KeyError, ValueError) as error:
            text = f"{path} is no grid of this store ({error}); remove it, or start anew"
            raise Misuse("store", text, path) from error
        grids.append(grid)
    return Store(folder, manifest, tuple(grids), tuple(_fresh(grid, grids[:i]) for i, grid in enumerate(grids)))


def _coords(record: Mapping[str, Any]) -> Coords:
    return tuple(np.array(axis, np.float64) for axis in _manifest.coords_of(record))


def create(folder: Path, manifest: Mapping[str, Any]) -> tuple[Store, bool]:
    """(the store of a manifest, True); or, if another writer was first, that writer's store, and False."""
    with _reported(folder / _manifest.NAME, "nothing is computed yet"):
        first = _files.write_first(folder / _manifest.NAME, manifest)
    store = read(folder)
    assert store is not None
    return store, first


def check_same(store: Store, recipe: Mapping[str, Any]) -> None:
    """Raise a ValueError that says what changed unless ``recipe`` is the store's, as far as a recipe tells."""
    what = f"{store.folder} holds a landscape that"
    then, names = store.manifest["recipe"], store.manifest["identity"]
    recipes.check_same("store", what, then, recipe, names, "pass another folder", store.folder)


# --- grids: which chunks there are, and which a grid needs


def extended(store: Store, coords: Coords) -> tuple[Store, Coords]:
    """The store with a grid added, unless it is there already, and the grid's coordinates as the store has them.

    Coordinates that differ from known ones by rounding alone are taken for these, so that their values are reused.

    Raises:
      ValueError: a coordinate that an axis has twice.
    """
    while True:
        coords = tuple(_snapped(axis, [grid[k] for grid in store.grids]) for k, axis in enumerate(coords))
        check_distinct(coords)
        if any(_same(grid, coords) for grid in store.grids):
            return store, coords
        path = store.folder / f"grid-{len(store.grids):03d}.json"
        with _reported(path, "nothing is computed yet"):
            _files.write_first(path, {"coords": [axis.tolist() for axis in coords]})
        again = read(store.folder)  # of several writers the first one decides, and the others come after it
        assert again is not None
        store = again


def check_distinct(coords: Coords) -> None:
    """Raise a ValueError unless all coordinates of an axis are different: points are known by them."""
    for i, axis in enumerate(coords):
        if len(np.unique(axis)) < len(axis):
            raise ValueError(f"grid: axis {i} has a coordinate twice; the rule with a store is different ones")


def _snapped(axis: np.ndarray, known: list[np.ndarray]) -> np.ndarray:
    if not known:
        return axis
    there = np.unique(np.concatenate(known))
    right = np.clip(np.searchsorted(there, axis), 0, len(there) - 1)
    left = np.maximum(right - 1, 0)
    nearest = np.where(abs(there[left] - axis) < abs(there[right] - axis), there[left], there[right])
    return np.where(abs(nearest - axis) <= SNAP * abs(axis).max(), nearest, axis)


def _same(one: Coords, two: Coords) -> bool:
    return len(one) == len(two) and all(map(np.array_equal, one, two))


def _shape(grid: Coords) -> tuple[int, ...]:
    return tuple(map(len, grid))


def _fresh(grid: Coords, earlier: Sequence[Coords]) -> np.ndarray | range:
    if not earlier:
        return range(math.prod(_shape(grid)))
    new = np.ones(_shape(grid), bool)
    for other in earlier:
        new &= ~_product([np.isin(a, b) for a, b in zip(grid, other)])
    return np.flatnonzero(new)


def _product(masks: Sequence[np.ndarray]) -> np.ndarray:
    """The outer product of one mask per axis."""
    found = masks[0]
    for mask in masks[1:]:
        found = found[..., None] & mask
    return found


def _indices(store: Store, chunk: Chunk) -> tuple[np.ndarray, ...]:
    """Where the points of a chunk are in its grid, one index array (C,) per axis."""
    size = int(store.manifest["points"])
    flat = np.asarray(store.fresh[chunk.grid][chunk.number * size : (chunk.number + 1) * size])
    return np.unravel_index(flat, _shape(store.grids[chunk.grid]))


def points(store: Store, chunk: Chunk) -> np.ndarray:
    """Coordinates (C, k) of the points of a chunk."""
    return np.stack([axis[i] for axis, i in zip(store.grids[chunk.grid], _indices(store, chunk))], -1)


class Part(NamedTuple):
    """What a chunk holds of a grid: which of its points the grid has (C,), and their flat indices in the grid."""

    chunk: Chunk
    shared: np.ndarray
    at: np.ndarray


def parts(store: Store, coords: Coords) -> Iterator[Part]:
    """The chunks that a grid of the store needs, in order; one that holds none of its points is left out."""
    size = int(store.manifest["points"])
    for number, here in enumerate(store.grids):
        places = [_places(axis, wanted) for axis, wanted in zip(here, coords)]
        if all((place >= 0).any() for place in places):
            for i in range(-(-len(store.fresh[number]) // size)):
                chunk = Chunk(number, i)
                there = np.stack([place[j] for place, j in zip(places, _indices(store, chunk))])
                shared = np.asarray((there >= 0).all(0))
                if shared.any():
                    yield Part(chunk, shared, np.ravel_multi_index(tuple(there[:, shared]), _shape(coords)))
        if _same(here, coords):
            return  # later grids hold none of its points


def _places(axis: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each coordinate of an axis is among the wanted ones; -1 where it is not."""
    order = np.argsort(wanted, kind="stable")
    found = np.clip(np.searchsorted(wanted[order], axis), 0, len(wanted) - 1)
    return np.where(wanted[order][found] == axis, order[found], -1)


# --- chunks


def path_of(store: Store, chunk: Chunk) -> Path:
    """The file of a chunk."""
    return store.folder / f"grid-{chunk.grid:03d}" / f"{chunk.number:05d}.npz"


def _points_hash(store: Store, chunk: Chunk) -> str:
    """Of the coordinates: a chunk of another grid is none of this store."""
    return hashlib.blake2b(points(store, chunk).tobytes(), digest_size=16).hexdigest()


def write(store: Store, chunk: Chunk, found: Means, about: Mapping[str, Any]) -> None:
    """Write what was found at a chunk's points; ``about`` goes into its header.

    Raises:
      OSError: it cannot be written; chunks written before are kept.
    """
    header = {"hash": store.manifest["hash"], "chunk": list(chunk), "points": _points_hash(store, chunk)}
    header |= {"values": list(found.values), "stderr": list(found.stderr)}
    header |= {"writer": f"{platform.node()}:{os.getpid()}", **about}
    arrays = {f"value{i}": x for i, x in enumerate(found.values.values())}
    arrays |= {f"stderr{i}": x for i, x in enumerate(found.stderr.values())}
    target = path_of(store, chunk)
    with _reported(target, "every chunk written before is kept"):
        target.parent.mkdir(exist_ok=True)
        _files.write_npz(target, header, arrays)


@contextlib.contextmanager
def _reported(path: Path, kept: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"store: {path} could not be written ({error.strerror}); {kept}. Mend that (free space on the disk, the "
            "folder's permissions) and repeat the call: it goes on from there",
        ) from error


def load(store: Store, chunk: Chunk) -> tuple[Means, dict[str, Any]]:
    """(what was found at its points, header) of a chunk.

    Raises:
      FileNotFoundError: there is none.
      OSError: it cannot be read now, which says nothing of what it holds.
      Damaged: it is truncated, corrupt or of another run.
    """
    path = path_of(store, chunk)
    try:
        header, arrays = _files.read_npz(path)
        if wrong := _misfit(store, chunk, header, arrays):
            raise ValueError(wrong)
        values = {name: arrays[f"value{i}"] for i, name in enumerate(header["values"])}
        stderr = {name: arrays[f"stderr{i}"] for i, name in enumerate(header["stderr"])}
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # which zipfile meets where lengths are damaged
            raise
        raise Damaged(path, f"{type(error).__name__}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # a broken file makes the readers raise anything
        raise Damaged(path, f"{type(error).__name__}: {error}") from error
    return Means(values, stderr), header


def _misfit(store: Store, chunk: Chunk, header: Any, arrays: Mapping[str, np.ndarray]) -> str:
    """Why a file is not this chunk of this store, or ""."""
    names, length = store.manifest["names"], len(_indices(store, chunk)[0])
    of = (header["hash"], header["chunk"], header["points"])
    if of != (store.manifest["hash"], list(chunk), _points_hash(store, chunk)):
        return "it is of another run, grid or place"
    if sorted(header["values"]) != sorted(names) or not set(header["stderr"]) <= set(names):
        return f"it has values of {header['values']}, not of {names}"
    if odd := [x for x in arrays.values() if x.shape != (length,) or x.dtype != np.float64]:
        return f"it has {odd[0].dtype} of shape {odd[0].shape} for {length} points"
    if not isinstance(header["writer"], str) or not isinstance(header["seconds"], float):
        return "its header is none"
    return ""


class Found(NamedTuple):
    """What the chunks hold of a grid; points that are missing are NaN."""

    table: Means
    done: int  # points there
    missing: list[Chunk]
    damaged: dict[Chunk, Damaged]


def collected(store: Store, coords: Coords) -> Found:
    """Read every chunk that a grid of the store needs."""
    num = math.prod(_shape(coords))
    found = Found(Means({}, {}), 0, [], {})
    for part in parts(store, coords):
        try:
            there, _ = load(store, part.chunk)
        except FileNotFoundError:
            found.missing.append(part.chunk)
            continue
        except Damaged as error:
            found.damaged[part.chunk] = error
            continue
        found = found._replace(done=found.done + len(part.at))
        shared = Means(*({name: x[part.shared] for name, x in kind.items()} for kind in there))
        found.table.put(shared, part.at, num)
    if not found.done:
        found.table.values.update({name: np.full(num, np.nan) for name in store.manifest["names"]})
    return found


def landscape(store: Store, coords: Coords, found: Found) -> Landscape:
    """A landscape of the store's recipe."""
    complete = found.done == math.prod(_shape(coords))
    recipe = store.manifest["recipe"] | {"complete": complete, "points_done": found.done}
    return found.table.landscape(coords, recipe)


def sweep_up(folder: Path) -> None:
    """Remove temporary files that killed writers left."""
    for path in (path for pattern in LEFT for path in folder.glob(pattern)):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFTOVER_S:
                path.unlink()


def remove(folder: Path) -> None:
    """Remove the store in a folder, and nothing else there: first what makes it one.

    Raises:
      ValueError: what looks like one is another program's.
    """
    manifest = folder / _manifest.NAME
    if not manifest.exists():
        return
    if not _manifest.is_ours(manifest):
        text = f"{manifest} is of another program, or damaged; remove it yourself, or pass another folder"
        raise Misuse("store", text, manifest)
    for path in [manifest, *folder.glob("grid-[0-9][0-9][0-9].json")]:
        path.unlink(missing_ok=True)
    for path in folder.glob("grid-[0-9][0-9][0-9]"):
        shutil.rmtree(path)
