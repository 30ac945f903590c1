"""Reads the values at a few finished points of a store, by which a changed function is noticed."""

from __future__ import annotations

import contextlib

import numpy as np

from lla_jax.landscape.grids import points_at
from lla_jax.landscape.probes import Kept
from lla_jax.landscape.store import layout, scattered
from lla_jax.landscape.store.chunks import DamagedChunk, load
from lla_jax.landscape.store.layout import Store


def ends(store: Store) -> Kept | None:
    """The values at the ends of the first and of the last finished chunk; None if none is finished or can be read."""
    chunks = [chunk for grid in range(len(store.grids)) for chunk in layout.written(store, grid)]
    coords, values = [], []
    for chunk in dict.fromkeys((*chunks[:1], *chunks[-1:])):
        with contextlib.suppress(OSError, DamagedChunk):  # which is reported where all chunks are read
            means, _ = load(store, chunk)
            coords.append(layout.points(store, chunk)[[0, -1]])
            values.append({name: x[[0, -1]] for name, x in means.values.items()})
    paths = list(scattered.written(store)) if not values else []
    for grid, path in dict.fromkeys((*paths[:1], *paths[-1:])):
        with contextlib.suppress(OSError, DamagedChunk):
            flat, means, _ = scattered.load(store, grid, path)
            coords.append(points_at(store.grids[grid], flat[[0, -1]]))
            values.append({name: x[[0, -1]] for name, x in means.values.items()})
    if not values:
        return None
    return Kept(np.concatenate(coords), {name: np.concatenate([x[name] for x in values]) for name in values[0]})
