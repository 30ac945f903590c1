"""Reads and writes a chunk store: the folder of one landscape, which any number of processes may fill.

    manifest.json       recipe, hash, plan, points per chunk, first grid; the first writer makes it, all others obey it
    grid-001.json       the coordinates of a second grid, wider or denser
    grid-000/00012.npz  a chunk: the values at some points, written completely or not at all

A chunk holds points of one grid, in row-major order, that no earlier grid has. The points of a chunk follow from the
files of the folder alone, so it does not matter who computes a chunk, when, or how often.
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
from lla_jax.core.results import Landscape
from lla_jax.landscape.grids import SNAP
from lla_jax.landscape.means import Means
from lla_jax.landscape.store import manifest as _manifest
from lla_jax.landscape.store.new_points import Coords, NewPoints

LEFTOVER_S = 60.0  # a temporary file of this age was left by a writer that was killed
LEFTOVERS = (".manifest-*.tmp", ".grid-[0-9][0-9][0-9]-*.tmp", "grid-[0-9][0-9][0-9]/.[0-9]*-*.tmp")


class Store(NamedTuple):
    """A chunk store: its folder, its manifest and its grids, without the contents of its chunks.

    Args:
      folder: the folder.
      manifest: the description of the store; see ``manifest.make``.
      grids: the coordinates of each grid, in the order in which they were added.
      new: for each grid, the flat indices of its points that no earlier grid has, in order.
    """

    folder: Path
    manifest: dict[str, Any]
    grids: tuple[Coords, ...]
    new: tuple[Any, ...]


class Chunk(NamedTuple):
    """The place of a chunk in a store.

    Args:
      grid: index of its grid.
      number: index of the chunk among the chunks of its grid.
    """

    grid: int
    number: int


class DamagedChunk(ValueError):
    """The error for the file of a chunk that cannot be read, or belongs to another landscape.

    Args:
      path: the file.
      reason: why, in words.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path

    def __str__(self) -> str:
        return str(self.args[1])


# --- the folder of a store


def store_folder(store: Any) -> Path:
    """The folder that the argument ``store`` names.

    Raises:
      Misuse: the value is no path, or one that no file system has.
    """
    return _files.check_path("store", store, "runs/exp1")


def check_writable(folder: Path, nbytes: int = 0) -> None:
    """Make the folder if it is not there, and check that ``nbytes`` can be written into it.

    Raises:
      OSError: the folder cannot be made or written to, or its disk is too full.
    """
    try:
        _files.try_to_write(folder)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise type(error)(
            error.errno, f"store: {folder} is not a folder that can be written to ({error.strerror}); pass another one"
        ) from error
    if free < nbytes:
        raise OSError(
            errno.ENOSPC,
            f"store: the results need about {nbytes / 2**20:.0f} MiB, and the disk of {folder} has "
            f"{free / 2**20:.0f} MiB left; free some space, or pass a folder on another disk",
        )


def exists(folder: Path) -> bool:
    """Whether a folder holds a store."""
    return (folder / _manifest.NAME).exists()


def read(folder: Path) -> Store | None:
    """Read the manifest and the grids of the store in a folder; None if there is no store.

    Raises:
      ValueError: a store that cannot be read, or was written by a newer version.
    """
    if not exists(folder):
        return None
    manifest = _manifest.read(folder / _manifest.NAME)
    grids = [_coords(manifest)]
    while (path := folder / f"grid-{len(grids):03d}.json").exists():
        try:
            grid = _coords(_manifest.read_json(path))
            if len(grid) != len(grids[0]):
                raise ValueError(f"it has {len(grid)} axes, and the first grid has {len(grids[0])}")
        except Misuse:
            raise
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise Misuse(
                "store", f"{path} is no grid of this store ({error}); remove it, or start anew in another folder", path
            ) from error
        grids.append(grid)
    return Store(folder, manifest, tuple(grids), tuple(_new_points(grid, grids[:i]) for i, grid in enumerate(grids)))


def _coords(record: Mapping[str, Any]) -> Coords:
    return tuple(np.array(axis, np.float64) for axis in _manifest.coords_of(record))


def create(folder: Path, manifest: Mapping[str, Any]) -> tuple[Store, bool]:
    """Make a store by writing its manifest, unless another writer was sooner.

    Returns:
      (store, whether this call made it); the store is that of the other writer if one was sooner.

    Raises:
      OSError: the manifest cannot be written.
    """
    with _explain_failure(folder / _manifest.NAME, "nothing is computed yet"):
        ours = _files.write_new(folder / _manifest.NAME, manifest)
    store = read(folder)
    assert store is not None
    return store, ours


def check_same(store: Store, recipe: Mapping[str, Any]) -> None:
    """Raise a ValueError that lists the changes, unless ``recipe`` agrees with that of the store.

    Only the entries named in the manifest's "identity" are compared, which decide the values.
    """
    subject = f"{store.folder} holds a landscape that"
    then, names = store.manifest["recipe"], store.manifest["identity"]
    recipes.check_same("store", subject, then, recipe, names, "pass another folder", store.folder)


# --- the grids of a store, and the chunks that a grid needs


def add_grid(store: Store, coords: Coords) -> tuple[Store, Coords]:
    """Add a grid to a store, in a new file, unless the store has this grid.

    A coordinate that differs only by rounding from one of an earlier grid is replaced by it, so that the values there
    are reused. If another writer adds a grid first, this one is added after it.

    Returns:
      (store with the grid, coordinates of the grid as the store has them).

    Raises:
      ValueError: an axis has a coordinate twice, too many points, or the store has become unreadable.
      OSError: the file cannot be written.
    """
    while True:
        coords = tuple(_snap(axis, [grid[k] for grid in store.grids]) for k, axis in enumerate(coords))
        check_storable(coords)
        if any(_same(grid, coords) for grid in store.grids):
            return store, coords
        path = store.folder / f"grid-{len(store.grids):03d}.json"
        with _explain_failure(path, "nothing is computed yet"):
            _files.write_new(path, {"coords": [axis.tolist() for axis in coords]})
        current = read(store.folder)  # another writer may have added its grid first, and ours is tried again after it
        assert current is not None
        store = current


def check_storable(coords: Coords) -> None:
    """Refuse a grid of too many points, or with a coordinate twice: a store knows points by their coordinates."""
    if (num := math.prod(_shape(coords))) > _manifest.MOST_POINTS:
        most = f"a store holds at most {_manifest.MOST_POINTS:,}"
        raise Misuse("grid", f"has {num:,} points, and {most}; pass fewer, or parts of it, each with a store")
    for i, axis in enumerate(coords):
        if len(np.unique(axis)) < len(axis):
            raise Misuse(
                "grid", f"axis {i} has a coordinate twice; with a store they must differ, so pass np.unique(axis)"
            )


def _snap(axis: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    """The coordinates of an axis; one that differs only by rounding from one in ``others`` is replaced by it."""
    if not others:
        return axis
    known = np.unique(np.concatenate(others))
    right = np.clip(np.searchsorted(known, axis), 0, len(known) - 1)
    left = np.maximum(right - 1, 0)
    nearest = np.where(abs(known[left] - axis) < abs(known[right] - axis), known[left], known[right])
    return np.where(abs(nearest - axis) <= SNAP * abs(axis).max(), nearest, axis)


def _same(one: Coords, two: Coords) -> bool:
    return len(one) == len(two) and all(map(np.array_equal, one, two))


def _shape(grid: Coords) -> tuple[int, ...]:
    return tuple(map(len, grid))


def _new_points(grid: Coords, earlier: Sequence[Coords]) -> NewPoints | range:
    """The flat indices of the points of a grid that no earlier grid has, in order."""
    return NewPoints(grid, earlier) if earlier else range(math.prod(_shape(grid)))


def _indices(store: Store, chunk: Chunk) -> tuple[np.ndarray, ...]:
    """The indices of the points of a chunk along the axes of its grid, one array (C,) per axis."""
    size = int(store.manifest["points"])
    flat = np.asarray(store.new[chunk.grid][chunk.number * size : (chunk.number + 1) * size])
    return np.unravel_index(flat, _shape(store.grids[chunk.grid]))


def points(store: Store, chunk: Chunk) -> np.ndarray:
    """The coordinates (C, k) of the C points of a chunk."""
    return np.stack([axis[i] for axis, i in zip(store.grids[chunk.grid], _indices(store, chunk))], -1)


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


def parts(store: Store, coords: Coords) -> Iterator[Part]:
    """Yield a ``Part`` for each chunk, in order, that holds points of the grid ``coords``, which the store has."""
    size = int(store.manifest["points"])
    for number, grid in enumerate(store.grids):
        places = [_places(axis, wanted) for axis, wanted in zip(grid, coords)]
        if all((place >= 0).any() for place in places):
            for i in range(-(-len(store.new[number]) // size)):
                chunk = Chunk(number, i)
                at = np.stack([place[j] for place, j in zip(places, _indices(store, chunk))])
                wanted = np.asarray((at >= 0).all(0))
                if wanted.any():
                    yield Part(chunk, wanted, np.ravel_multi_index(tuple(at[:, wanted]), _shape(coords)))
        if _same(grid, coords):
            return  # later grids hold none of its points


def _places(axis: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """For each coordinate of an axis, its index among the ``wanted`` coordinates; -1 if it is none of them."""
    order = np.argsort(wanted, kind="stable")
    nearest = np.clip(np.searchsorted(wanted[order], axis), 0, len(wanted) - 1)
    return np.where(wanted[order][nearest] == axis, order[nearest], -1)


# --- the chunks of a store


def path_of(store: Store, chunk: Chunk) -> Path:
    """The path of the file of a chunk, which may not be there yet."""
    return store.folder / f"grid-{chunk.grid:03d}" / f"{chunk.number:05d}.npz"


def _points_hash(store: Store, chunk: Chunk) -> str:
    """A hash of the coordinates of a chunk, by which a chunk of another grid is recognized."""
    return hashlib.blake2b(points(store, chunk).tobytes(), digest_size=16).hexdigest()


def write(store: Store, chunk: Chunk, means: Means, about: Mapping[str, Any]) -> None:
    """Write the means at the points of a chunk into its file.

    Args:
      store: the store.
      chunk: the chunk.
      means: the means, in the order of ``points(store, chunk)``.
      about: further entries of the header: "seconds" (a float, needed by ``load``), plan, versions.

    Raises:
      OSError: the file cannot be written; chunks written before are kept.
    """
    header = {"hash": store.manifest["hash"], "chunk": list(chunk), "points": _points_hash(store, chunk)}
    header |= {"values": list(means.values), "stderr": list(means.stderr)}
    header |= {"writer": f"{platform.node()}:{os.getpid()}", **about}
    arrays = {f"value{i}": x for i, x in enumerate(means.values.values())}
    arrays |= {f"stderr{i}": x for i, x in enumerate(means.stderr.values())}
    target = path_of(store, chunk)
    with _explain_failure(target, "every chunk written before is kept"):
        target.parent.mkdir(exist_ok=True)
        _files.write_npz(target, header, arrays)


@contextlib.contextmanager
def _explain_failure(path: Path, progress: str) -> Iterator[None]:
    """Turn an OSError in the ``with`` block into one whose message names the file, ``progress`` and a remedy."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"store: {path} could not be written ({error.strerror}); {progress}. Mend that (free space on the disk, "
            "the folder's permissions) and repeat the call, which continues from there",
        ) from error


def load(store: Store, chunk: Chunk) -> tuple[Means, dict[str, Any]]:
    """Read the file of a chunk: (means at its points, header).

    Raises:
      FileNotFoundError: the chunk was not written.
      OSError: its file cannot be read now, which does not mean that it is damaged.
      DamagedChunk: its file is truncated, corrupt or of another landscape.
    """
    path = path_of(store, chunk)
    try:
        header, arrays = _files.read_npz(path)
        if wrong := _mismatch(store, chunk, header, arrays):
            raise ValueError(wrong)
        values = {name: arrays[f"value{i}"] for i, name in enumerate(header["values"])}
        stderr = {name: arrays[f"stderr{i}"] for i, name in enumerate(header["stderr"])}
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # EINVAL comes from zipfile, where lengths are damaged
            remedy = "mend that and repeat the call, which continues"
            raise _files.explain("store", path, "cannot be read", error, remedy) from error
        raise DamagedChunk(path, f"{type(error).__name__}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # a broken file makes the readers raise anything
        raise DamagedChunk(path, f"{type(error).__name__}: {error}") from error
    return Means(values, stderr), header


def _mismatch(store: Store, chunk: Chunk, header: Any, arrays: Mapping[str, np.ndarray]) -> str:
    """The reason why the contents of a file are not this chunk of this store, in words; "" if they are."""
    names, length = store.manifest["names"], len(_indices(store, chunk)[0])
    identity = (header["hash"], header["chunk"], header["points"])
    if identity != (store.manifest["hash"], list(chunk), _points_hash(store, chunk)):
        return "it is of another landscape, grid or place"
    if sorted(header["values"]) != sorted(names) or not set(header["stderr"]) <= set(names):
        return f"it has values of {header['values']}, not of {names}"
    if odd := [x for x in arrays.values() if x.shape != (length,) or x.dtype != np.float64]:
        return f"it has {odd[0].dtype} of shape {odd[0].shape} for {length} points"
    writer, seconds = header["writer"], header["seconds"]
    if not isinstance(writer, str) or not writer.isprintable() or not isinstance(seconds, float) or not seconds >= 0:
        return "its header lacks the writer or the seconds"
    return ""


class Contents(NamedTuple):
    """The contents of the chunks that a grid needs.

    Args:
      means: the means at all points of the grid; NaN at points of missing and damaged chunks.
      done: number of points of the grid in all other chunks, which were read.
      missing: the chunks that were not written.
      damaged: the chunks that cannot be read, with their errors.
    """

    means: Means
    done: int
    missing: list[Chunk]
    damaged: dict[Chunk, DamagedChunk]


def read_chunks(store: Store, coords: Coords) -> Contents:
    """Read every chunk that the grid ``coords`` of the store needs; missing and damaged chunks are listed."""
    num = math.prod(_shape(coords))
    contents = Contents(Means({}, {}), 0, [], {})
    for part in parts(store, coords):
        try:
            means, _ = load(store, part.chunk)
        except FileNotFoundError:
            contents.missing.append(part.chunk)
            continue
        except DamagedChunk as error:
            contents.damaged[part.chunk] = error
            continue
        contents = contents._replace(done=contents.done + len(part.at))
        found = Means(*({name: x[part.wanted] for name, x in numbers.items()} for numbers in means))
        contents.means.put(found, part.at, num)
    if not contents.done:
        contents.means.values.update({name: np.full(num, np.nan) for name in store.manifest["names"]})
    return contents


def landscape(store: Store, coords: Coords, contents: Contents) -> Landscape:
    """Make the landscape on the grid ``coords`` of the contents of its chunks, with the recipe of the store."""
    complete = contents.done == math.prod(_shape(coords))
    recipe = store.manifest["recipe"] | {"complete": complete, "points_done": contents.done}
    return contents.means.landscape(coords, recipe)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that are older than a minute, which killed writers left."""
    for path in (path for pattern in LEFTOVERS for path in folder.glob(pattern)):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFTOVER_S:
                path.unlink()


def remove_chunk(path: Path) -> None:
    """Remove the file of a damaged chunk; a folder in its place, which nobody of this library makes, is refused."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _files.explain("store", path, "cannot be removed", error, "remove it yourself") from error


def remove(folder: Path) -> None:
    """Remove the store in a folder, its manifest first, and leave all other files there; do nothing if there is none.

    Raises:
      ValueError: the manifest is that of another program, or damaged.
    """
    manifest = folder / _manifest.NAME
    if not manifest.exists():
        return
    if not _manifest.is_ours(manifest):
        raise Misuse(
            "store",
            f"{manifest} is of another program, or damaged; remove it yourself, or pass another folder",
            manifest,
        )
    for path in [manifest, *folder.glob("grid-[0-9][0-9][0-9].json")]:
        path.unlink(missing_ok=True)
    for path in folder.glob("grid-[0-9][0-9][0-9]"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
