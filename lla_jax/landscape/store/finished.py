"""Reads the values at a few finished points of a store, by which a changed function is noticed."""

from __future__ import annotations

import contextlib
import re

import numpy as np

from lla_jax.landscape.probes import Kept
from lla_jax.landscape.store.chunks import DamagedChunk, load
from lla_jax.landscape.store.layout import Chunk, Store, points

FILE = re.compile(r"grid-(\d{3})/(\d{5,12})\.npz$")


def ends(store: Store) -> Kept | None:
    """The values at the ends of the first and of the last finished chunk; None if none is finished or can be read."""
    found = [FILE.search(path.as_posix()) for path in store.folder.glob("grid-[0-9][0-9][0-9]/[0-9]*.npz")]
    chunks = sorted(Chunk(int(name[1]), int(name[2])) for name in found if name and int(name[1]) < len(store.grids))
    coords, values = [], []
    for chunk in dict.fromkeys((*chunks[:1], *chunks[-1:])):
        with contextlib.suppress(OSError, DamagedChunk):  # which is reported where all chunks are read
            means, _ = load(store, chunk)
            coords.append(points(store, chunk)[[0, -1]])
            values.append({name: x[[0, -1]] for name, x in means.values.items()})
    if not values:
        return None
    return Kept(np.concatenate(coords), {name: np.concatenate([x[name] for x in values]) for name in values[0]})
