"""Reads and writes the chunks of a store: files that each hold the values at some points of a landscape.

Each chunk says in its header of which store it is, with the manifest and the grids, so that a store whose manifest is
lost or damaged can be continued.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from lla_jax.core import files as _files
from lla_jax.core.recipes import digest
from lla_jax.core.results import Landscape
from lla_jax.landscape.means import Means
from lla_jax.landscape.store import layout
from lla_jax.landscape.store.layout import Chunk, Store
from lla_jax.landscape.store.new_points import Coords

MOST_COPIED = 2048  # coordinates of grids that a chunk repeats at most
MOST_HEADER = 2**24  # bytes that a file may have beside its values


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
    place = {"chunk": list(chunk), "points": layout.points_hash(store, chunk)}
    write_file(store, layout.path_of(store, chunk), chunk.grid, place, means, about)


def write_file(
    store: Store,
    target: Path,
    grid: int,
    place: Mapping[str, Any],
    means: Means,
    about: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write means at points of a grid into a file.

    Args:
      store: the store.
      target: the file.
      grid: index of the grid.
      place: the entries of the header by which the points are recognized.
      means: the means at the points.
      about: as for ``write``.
      arrays: further arrays of the file, by name.

    Raises:
      OSError: as for ``write``.
    """
    header = {"hash": store.manifest["hash"], **place} | copies(store, grid)
    header |= {"values": list(means.values), "stderr": list(means.stderr)}
    header |= {"writer": f"{platform.node()}:{os.getpid()}", **about}
    numbers = {f"value{i}": x for i, x in enumerate(means.values.values())}
    numbers |= {f"stderr{i}": x for i, x in enumerate(means.stderr.values())}
    with explain_failure(target, "every chunk written before is kept"):
        target.parent.mkdir(exist_ok=True)
        _files.write_npz(target, header, numbers | dict(arrays or {}))


def copies(store: Store, grid: int) -> dict[str, Any]:
    """The entries of the header of each chunk of a grid by which a store without a sound manifest is restored.

    They are the manifest without its coordinates, and the coordinates of this grid and those before it, or None if
    these are many.
    """
    grids = [[axis.tolist() for axis in coords] for coords in store.grids[: grid + 1]]
    few = sum(len(axis) for axes in grids for axis in axes) <= MOST_COPIED
    return {"manifest": _without_coords(store.manifest), "grids": grids if few else None}


def _without_coords(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in manifest.items() if name != "coords"}


def header_bytes(store: Store) -> int:
    """The bytes that the header of a chunk takes, about: four for each of its characters."""
    return 4 * len(_files.to_json(copies(store, len(store.grids) - 1)))


@contextlib.contextmanager
def explain_failure(path: Path, progress: str) -> Iterator[None]:
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

    def fault(header: Any, arrays: Mapping[str, np.ndarray]) -> str:
        identity = (header["hash"], header["chunk"], header["points"])
        if identity != (store.manifest["hash"], list(chunk), layout.points_hash(store, chunk)):
            return "it is of another landscape, grid or place"
        return contents_fault(store, header, arrays, len(layout.flat_indices(store, chunk)))

    means, header, _ = load_file(store, layout.path_of(store, chunk), layout.size(store), fault)
    return means, header


def load_file(
    store: Store, path: Path, most: int, fault: Callable[[Any, Mapping[str, np.ndarray]], str]
) -> tuple[Means, dict[str, Any], dict[str, np.ndarray]]:
    """Read a file that ``write_file`` wrote.

    Args:
      store: the store.
      path: the file.
      most: number of points that it may have.
      fault: ``fault(header, arrays)`` says in words why the contents are not those of this file; "" if they are.

    Returns:
      (means, header, all arrays by name).

    Raises:
      FileNotFoundError, OSError, DamagedChunk: as for ``load``.
    """
    bytes_most = (32 * len(store.manifest["names"]) + 8) * most + MOST_HEADER
    try:
        if (nbytes := path.stat().st_size) > bytes_most:  # a sparse file may claim any size
            raise ValueError(f"it has {nbytes:,} bytes, and can have {bytes_most:,} at most")
        header, arrays = _files.read_npz(path)
        if wrong := fault(header, arrays):
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
    return Means(values, stderr), header, arrays


def contents_fault(store: Store, header: Any, arrays: Mapping[str, np.ndarray], length: int) -> str:
    """The reason why the contents of a file are not means at ``length`` points of this store; "" if they are."""
    names = store.manifest["names"]
    knows_less = store.manifest["version"] == 1  # the hash, than the whole manifest
    if knows_less and "manifest" in header and digest(header["manifest"]) != digest(_without_coords(store.manifest)):
        return "it is of another landscape"
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
      evaluated: (n,) bool, the points with means, where scattered chunks hold some; None if none do.
      spoiled: {path: error} of the scattered chunks that cannot be read; see ``scattered``.
    """

    means: Means
    done: int
    missing: list[Chunk]
    damaged: dict[Chunk, DamagedChunk]
    evaluated: np.ndarray | None = None
    spoiled: Mapping[Path, DamagedChunk] = MappingProxyType({})


def read_chunks(store: Store, coords: Coords) -> Contents:
    """Read every chunk that the grid ``coords`` of the store needs; missing and damaged chunks are listed."""
    num = layout.count(coords)
    contents = Contents(Means({}, {}), 0, [], {})
    for part in layout.parts(store, coords):
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
    complete = contents.done == layout.count(coords)
    recipe = store.manifest["recipe"] | {"complete": complete, "points_done": contents.done}
    return contents.means.landscape(coords, recipe, None if complete else contents.evaluated)


def remove_chunk(path: Path) -> None:
    """Remove the file of a damaged chunk; a folder in its place, which nobody of this library makes, is refused."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _files.explain("store", path, "cannot be removed", error, "remove it yourself") from error
