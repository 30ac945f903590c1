"""Remembers, for this process, what was found of a model, so that each check is made once per architecture."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import jax
import numpy as np

MOST = 256  # entries; their keys keep the functions that they compare alive

T = TypeVar("T")


def remember(store: dict[Hashable, T], key: Hashable, make: Callable[[], T]) -> T:
    """The entry of ``store`` under ``key``; if there is none, it is made; the oldest of more than 256 goes."""
    if key not in store:
        store[key] = make()
        if len(store) > MOST:
            del store[next(iter(store))]
    return store[key]


def shapes_of(tree: Any) -> Hashable:
    """The structure of a tree, static parts included, shapes and types of its arrays, and whether jax has 64 bits."""
    leaves, structure = jax.tree.flatten(tree)
    types = tuple((np.shape(x), str(getattr(x, "dtype", type(x)))) for x in leaves)
    return structure, types, bool(jax.config.values["jax_enable_x64"])
