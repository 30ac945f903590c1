"""Keeps how a refinement of a grid was asked for, by which all writers of a store find the same points.

    refine-000.json    accuracy, number of points computed together, and the number of points once it is finished

The scattered chunks repeat it, for a file that is missing or damaged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, get_args

from lla_jax.core import files as _files
from lla_jax.core import recipes
from lla_jax.core.arguments import is_integer
from lla_jax.landscape.refinement import Refine, Scale
from lla_jax.landscape.store import chunks as _chunks
from lla_jax.landscape.store import layout, scattered
from lla_jax.landscape.store import manifest as _manifest
from lla_jax.landscape.store.chunks import DamagedChunk
from lla_jax.landscape.store.layout import Store
from lla_jax.landscape.store.manifest import DamagedFile
from lla_jax.landscape.store.new_points import Coords


class Request(NamedTuple):
    """A refinement that was asked for, by which all its writers find the same points.

    Args:
      refine: its accuracy.
      group: number of points that are computed together.
      points: number of points that were evaluated when it was finished; 0 before.
    """

    refine: Refine
    group: int
    points: int = 0

    def record(self) -> dict[str, Any]:
        """The entries of the JSON file, and of the header of a scattered chunk."""
        return {"rtol": self.refine.rtol, "scale": self.refine.scale, "group": self.group, "points": self.points}


def path_of(folder: Path, number: int) -> Path:
    """The path of the file with the latest refinement of a grid."""
    return folder / f"refine-{number:03d}.json"


def grid_number(store: Store, coords: Coords) -> int:
    """The index of the grid of a store with these coordinates."""
    return next(i for i, grid in enumerate(store.grids) if layout.same(grid, coords))


def read(store: Store, number: int) -> Request | None:
    """The latest refinement of a grid; None if there was none. Without its file, that of any scattered chunk."""
    num = layout.count(store.grids[number])
    try:
        return _request(recipes.unsealed(_manifest.read_json(path_of(store.folder, number))), num)
    except (FileNotFoundError, DamagedFile, LookupError, TypeError, ValueError, OverflowError):
        pass
    for grid, path in scattered.written(store):
        try:
            return _request(scattered.load(store, grid, path)[2]["refine"], num) if grid == number else None
        except (OSError, DamagedChunk, LookupError, TypeError, ValueError, OverflowError):
            continue
    return None


def _request(record: Any, num: int) -> Request:
    """The ``Request`` of a JSON object, after a check; an error of some type for another."""
    rtol, scale, group, points = (record[name] for name in ("rtol", "scale", "group", "points"))
    numbers = is_integer(group) and 0 < group <= num and is_integer(points) and 0 <= points <= num
    if not numbers or not isinstance(rtol, float) or not 0 < rtol < 1 or scale not in get_args(Scale):
        raise ValueError("no refinement")
    return Request(Refine(rtol, scale), int(group), int(points))


def agree(store: Store, number: int, refine: Refine, group: int) -> Request:
    """The refinement that all writers go by: that in the file if it is the same, else this one, which is written."""
    path, ours = path_of(store.folder, number), Request(refine, group)
    with _chunks.explain_failure(path, "nothing is computed yet"):
        if (then := read(store, number)) is None:
            _files.write_new(path, recipes.sealed(ours.record()))
            then = read(store, number)
        if then is None or then.refine != refine:
            then = ours
            _files.write_text(path, _files.to_json(recipes.sealed(ours.record())))
    return then


def finish(store: Store, number: int, request: Request) -> None:
    """Write down how many points a finished refinement has, for ``status``, unless that is written or impossible."""
    if read(store, number) != request:
        path = path_of(store.folder, number)
        with _chunks.explain_failure(path, "every chunk is kept"):
            _files.write_text(path, _files.to_json(recipes.sealed(request.record())))
