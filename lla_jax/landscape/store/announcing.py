"""Writes the list of a sweep's landscapes into its store before they are computed, each in a folder of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lla_jax.core import files as _files
from lla_jax.core import recipes
from lla_jax.core.arguments import Misuse, is_integer
from lla_jax.landscape.store import folders
from lla_jax.landscape.store import manifest as _manifest
from lla_jax.landscape.store.chunks import explain_failure
from lla_jax.landscape.store.layout import Store
from lla_jax.landscape.store.manifest import DamagedFile

SWEEP = "lla_jax sweep"
MOST = 2**64
Member = tuple[int, str, int | None]
"""A landscape of a sweep: (index of the checkpoint, name of the axes, seed)."""


def folder_of(member: Member) -> str:
    """The name of a landscape's folder in the store of a sweep, such as "000-filter-normalized-seed-0"."""
    checkpoint, name, seed = member
    letters = re.sub(r"\W+", "-", name).strip("-")
    return f"{checkpoint:03d}-{letters}" + ("" if seed is None else f"-seed-{seed}")


def announce(folder: Path, members: Sequence[Member], points: int) -> Path | None:
    """Write the list of the members of a sweep into the folder of its store, for ``status`` and ``merge``.

    Args:
      folder: the folder of the store, which is made if needed.
      members: the members of the sweep.
      points: number of points of each landscape.

    Returns:
      The path of the file; None if the same sweep was announced before.

    Raises:
      ValueError: the folder holds a single landscape.
      OSError: the folder cannot be written to.
    """
    if folders.exists(folder):
        raise Misuse("store", f"{folder} holds a single landscape; pass another folder for a sweep", folder)
    announcement = {"format": SWEEP, "version": 1, "points": points, "cells": [list(member) for member in members]}
    path = folder / f"sweep-{recipes.digest(announcement)[:12]}.json"
    if _is_sound(path, announcement):
        return None
    folders.check_writable(folder)
    is_new = not path.exists()
    with explain_failure(path, "nothing is computed yet"):
        _files.write_text(path, _files.to_json(announcement))
    return path if is_new else None


def _is_sound(path: Path, announcement: Mapping[str, Any]) -> bool:
    """Whether a file is there that has this announcement, as its name says."""
    try:
        return _manifest.read_json(path) == announcement
    except (FileNotFoundError, DamagedFile):
        return False


def read_announcements(folder: Path) -> dict[Member, int]:
    """{member: number of its points} of all sweeps that were announced in a folder; a later sweep's number counts.

    Raises:
      ValueError: the file of a sweep was changed or damaged.
    """
    points: dict[Member, int] = {}
    for path in sorted(folder.glob("sweep-*.json"), key=lambda path: (path.stat().st_mtime, path.name)):
        try:
            announcement = _manifest.read_json(path)
        except FileNotFoundError:
            continue  # an empty one
        if announcement.get("format") != SWEEP:
            continue
        try:
            if path.stem != f"sweep-{recipes.digest(announcement)[:12]}":
                raise ValueError("other contents than its name says")
            number = _count(announcement["points"])
            for checkpoint, name, seed in announcement["cells"]:
                index, number_of_seed = _count(checkpoint), None if seed is None else _count(seed, least=-MOST)
                member = index, str(name), number_of_seed
                if len(folder_of(member)) > _files.LONGEST_NAME:
                    raise ValueError("a name that is too long")
                points[member] = number
        except (KeyError, TypeError, ValueError) as error:
            raise Misuse("store", f"{path} was changed or damaged; remove it, and repeat the sweep", path) from error
    return dict(sorted(points.items(), key=lambda item: (item[0][0], item[0][1], item[0][2] or 0)))


def _count(value: Any, least: int = 0) -> int:
    if not is_integer(value) or not least <= value < MOST:
        raise ValueError("a number out of bounds")
    return int(value)


def existing_stores(folder: Path, members: Iterable[Member]) -> Iterator[Store]:
    """Yield the stores of the members whose landscapes were begun; ``folder`` is that of the sweep."""
    for member in members:
        store = folders.read(folder / folder_of(member))
        if store is not None:
            yield store
