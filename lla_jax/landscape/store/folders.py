"""Finds, makes and removes chunk stores, each the folder of one landscape, which any number of processes may fill.

    manifest.json       recipe, hash, plan, points per chunk, first grid; the first writer makes it, all others obey it
    grid-001.json       the coordinates of a second grid, wider or denser
    grid-000/00012.npz  a chunk: the values at some points, written completely or not at all
    grid-000/points-4b1c....npz, refine-000.json   the points of a refinement (see ``scattered``), and how it was asked

A manifest or a grid that is missing or damaged is restored from the copies in the chunks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lla_jax.core import files as _files
from lla_jax.core import recipes
from lla_jax.core.arguments import Misuse, warn_caller
from lla_jax.landscape.grids import SNAP
from lla_jax.landscape.store import chunks as _chunks
from lla_jax.landscape.store import layout
from lla_jax.landscape.store import manifest as _manifest
from lla_jax.landscape.store.layout import Repair, Store
from lla_jax.landscape.store.manifest import DamagedFile
from lla_jax.landscape.store.new_points import Coords

LEFTOVER_S = 60.0  # a temporary file of this age was left by a writer that was killed
CLOCKS_S = 600.0  # a file dated this far in the future is not new: its date is wrong
LEFTOVERS = (".manifest-*.tmp", ".grid-[0-9][0-9][0-9]-*.tmp", "grid-[0-9][0-9][0-9]/.[0-9]*-*.tmp")
LEFTOVERS += (".refine-*.tmp", "grid-[0-9][0-9][0-9]/.points-*.tmp")
GRIDS = "grid-[0-9][0-9][0-9]"  # the folders of chunks


class Copy(NamedTuple):
    """The manifest and the grids of a store as its chunks repeat them; no grids if these are many."""

    manifest: dict[str, Any]
    grids: list[Coords]


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
    """Whether a folder holds a store, perhaps one whose manifest is missing."""
    path = folder / _manifest.NAME
    if path.exists() and not _files.is_abandoned(path):
        return True
    return _has_copies(folder)


def read(folder: Path, coords: Coords | None = None) -> Store | None:
    """Read the manifest and the grids of the store in a folder; None if there is no store.

    Of a manifest and grids that are missing or damaged the copies in the chunks are taken; ``Store.repairs`` has them.

    Args:
      folder: the folder.
      coords: the coordinates of the grid that is wanted, for chunks that repeat none because they are many.

    Raises:
      ValueError: a store that cannot be read, or was written by a newer version or another program.
      OSError: a file that cannot be read now.
    """
    if (found := _read_manifest(folder, coords)) is None:
        return None
    manifest, copy, reason = found
    repairs = {folder / _manifest.NAME: Repair(reason, manifest)} if reason else {}
    grids = [layout.arrays(manifest)]
    while True:
        path, defect = layout.grid_path(folder, len(grids)), None
        try:
            grids.append(_read_grid(path, len(grids[0])))
            continue
        except FileNotFoundError:
            if not layout.chunks_folder(folder, len(grids)).is_dir():
                break
        except Misuse as error:
            defect = error
        copy = copy or _copy(folder, coords) or Copy(manifest, [])
        if len(copy.grids) <= len(grids) or copy.manifest["hash"] != manifest["hash"]:
            if defect is None:
                break
            raise defect
        grid = copy.grids[len(grids)]
        repairs[path] = Repair("is missing" if defect is None else _reason(defect), _grid_record(grid))
        grids.append(grid)
    return layout.make(folder, manifest, grids, repairs)


def _read_manifest(folder: Path, coords: Coords | None) -> tuple[dict[str, Any], Copy | None, str] | None:
    """(manifest, the copy that it was taken from, why it was, in words); None if there is no store.

    Of a sound manifest there is no copy and no reason.
    """
    path = folder / _manifest.NAME
    manifest, defect, kind = _manifest.inspect(path)
    if defect is None:
        copy = _contradiction(folder, manifest, coords)
        return (
            (manifest, None, "") if copy is None else (copy.manifest, copy, "is of another landscape than the chunks")
        )
    copy = None if kind == "foreign" else _copy(folder, coords)
    if copy is not None:
        return copy.manifest, copy, _reason(defect)
    if kind != "missing":
        raise defect
    if _has_copies(folder):
        remedy = "repeat the call with the grid that the store was begun with, which restores it, or remove its chunks"
        raise DamagedFile(path, "is missing, and its copies in the chunks lack the grid", remedy)
    return None


def _reason(defect: Misuse) -> str:
    return defect.reason if isinstance(defect, DamagedFile) else "was changed or damaged"


def _grid_record(coords: Coords) -> dict[str, Any]:
    """The content of the file of a further grid."""
    axes = [axis.tolist() for axis in coords]
    return {"coords": axes, "hash": recipes.digest(axes)}


def _read_grid(path: Path, dims: int) -> Coords:
    """The coordinates in the file of a further grid, which must have ``dims`` axes."""
    record = _manifest.read_json(path)
    try:
        grid = layout.arrays(record)
        digest = recipes.digest(record["coords"])
        if record.get("hash", digest) != digest:  # those of before have none
            raise ValueError("its hash is that of other contents")
        if len(grid) != dims:
            raise ValueError(f"it has {len(grid)} axes, and the first grid has {dims}")
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise DamagedFile(path, f"is no grid of this store ({error})", _manifest.REMOVE) from error
    return grid


# --- the copies of the manifest and the grids in the chunks


def _headers(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the header of every chunk in a folder that can be read."""
    for inside in sorted(path for path in folder.glob(GRIDS) if path.is_dir()):
        with os.scandir(inside) as entries:
            for entry in entries:
                if entry.name.endswith(".npz"):
                    with contextlib.suppress(Exception):  # a broken file makes the readers raise anything
                        header = _files.read_header(Path(entry.path))
                        if isinstance(header, dict):
                            yield header


def _has_copies(folder: Path) -> bool:
    return any("manifest" in header for header in _headers(folder))


def _contradiction(folder: Path, manifest: Mapping[str, Any], coords: Coords | None) -> Copy | None:
    """The copy that at least two chunks have, if no chunk agrees with this manifest; else None.

    Usually the first chunk agrees, and no other is read.
    """
    if next((header.get("hash") for header in _headers(folder)), manifest["hash"]) == manifest["hash"]:
        return None
    hashes = Counter(str(header.get("hash")) for header in _headers(folder))
    copy = None if hashes[manifest["hash"]] else _copy(folder, coords)
    return None if copy is None or hashes[copy.manifest["hash"]] < 2 else copy


def _copy(folder: Path, coords: Coords | None) -> Copy | None:
    """The copy that most of the chunks in a folder have; None if none has a sound one."""
    votes: Counter[str] = Counter()
    found: dict[str, Copy] = {}
    for header in _headers(folder):
        with contextlib.suppress(Misuse, LookupError, TypeError, ValueError, AttributeError, OverflowError):
            manifest, lists = header["manifest"], header["grids"]
            key = f"{header['hash']} {recipes.digest(manifest)}"
            votes[key] += 1
            if key in found and len(found[key].grids) >= len(lists or ()):
                continue
            grids = [layout.arrays({"coords": axes}) for axes in lists or ()]
            first = grids[0] if grids else coords
            if first is not None:
                manifest = manifest | {"coords": [axis.tolist() for axis in first]}
                if _manifest.check(manifest, folder / _manifest.NAME) is None and manifest["hash"] == header["hash"]:
                    found[key] = Copy(manifest, grids)
    return max(found.items(), key=lambda item: votes[item[0]])[1] if found else None


# --- making a store, and adding grids


def create(folder: Path, manifest: Mapping[str, Any]) -> tuple[Store, bool]:
    """Make a store by writing its manifest, unless another writer was sooner.

    Returns:
      (store, whether this call made it); the store is that of the other writer if one was sooner.

    Raises:
      OSError: the manifest cannot be written.
    """
    with _chunks.explain_failure(folder / _manifest.NAME, "nothing is computed yet"):
        ours = _files.write_new(folder / _manifest.NAME, manifest)
    store = read(folder)
    assert store is not None
    return store, ours and store.manifest["hash"] == manifest["hash"]


def restore(store: Store) -> None:
    """Write a manifest and grids that are missing or damaged again, and say so, or why that is impossible."""
    for path, repair in store.repairs.items():
        done = "is restored from the chunks"
        try:
            _files.write_text(path, _files.to_json(repair.content))
        except OSError as error:  # of a disk that cannot be written to, or a folder in the place of the file
            done = f"cannot be restored from the chunks ({error.strerror or error}), whose copies are read; mend that"
        warn_caller(f"store: {path} {repair.reason} and {done}")


def check_same(store: Store, recipe: Mapping[str, Any]) -> None:
    """Raise a ValueError that lists the changes, unless ``recipe`` agrees with that of the store.

    Only the entries named in the manifest's "identity" are compared, which decide the values.
    """
    subject = f"{store.folder} holds a landscape that"
    then, names = store.manifest["recipe"], store.manifest["identity"]
    recipes.check_same("store", subject, then, recipe, names, "pass another folder", store.folder)


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
        check_storable(coords, layout.size(store))
        if any(layout.same(grid, coords) for grid in store.grids):
            return store, coords
        path = layout.grid_path(store.folder, len(store.grids))
        with _chunks.explain_failure(path, "nothing is computed yet"):
            _files.write_new(path, _grid_record(coords))
        # another writer may have added its grid first, and ours is tried again after it
        current = read(store.folder, coords)
        assert current is not None
        store = current


def check_storable(coords: Coords, size: int = _manifest.MOST_POINTS) -> None:
    """Refuse a grid of too many points or chunks, or with a coordinate twice: a store knows points by coordinates."""
    if (num := layout.count(coords)) > _manifest.MOST_POINTS:
        most = f"a store holds at most {_manifest.MOST_POINTS:,}"
        raise Misuse("grid", f"has {num:,} points, and {most}; pass fewer, or parts of it, each with a store")
    if (num := _manifest.count_chunks(num, size)) > _manifest.MOST_CHUNKS:
        most = f"a store holds at most {_manifest.MOST_CHUNKS:,} of a grid"
        raise Misuse("grid", f"has {num:,} chunks of {size} points, and {most}; pass another store, or fewer points")
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


# --- removing


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that are older than a minute, or dated in the future, which killed writers left."""
    for path in (path for pattern in LEFTOVERS for path in folder.glob(pattern)):
        with contextlib.suppress(OSError):
            if not -CLOCKS_S < time.time() - path.stat().st_mtime < LEFTOVER_S:
                path.unlink()


def check_removable(folder: Path) -> None:
    """Raise a ValueError if the manifest in a folder is that of another program, or so damaged that it may be."""
    manifest = folder / _manifest.NAME
    kind = _manifest.inspect(manifest).kind
    if kind == "foreign" or (kind == "unknown" and not _has_copies(folder)):
        raise Misuse(
            "store",
            f"{manifest} is of another program, or damaged; remove it yourself, or pass another folder",
            manifest,
        )


def remove(folder: Path) -> None:
    """Remove the store in a folder, and leave all other files there; do nothing if there is none.

    The chunks are removed before the manifest: if this is interrupted, what is left is a store with fewer chunks.

    Raises:
      ValueError: the manifest is that of another program, or damaged.
    """
    check_removable(folder)
    manifest = folder / _manifest.NAME
    if not exists(folder):
        manifest.unlink(missing_ok=True)  # an empty one
        return
    for path in sorted(folder.glob(GRIDS), reverse=True):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    others = [*folder.glob("refine-[0-9][0-9][0-9].json"), *folder.glob("grid-[0-9][0-9][0-9].json")]
    for path in [*sorted(others, reverse=True), manifest]:
        path.unlink(missing_ok=True)
