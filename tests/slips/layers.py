"""Parameters of two dense layers, and two directions for them, for tables of slips."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

import lla_jax as lla


def tree(width: int = 3, fill: float = 0.1) -> Any:
    first = {"kernel": np.full((2, width), fill, np.float32), "bias": np.full(width, fill, np.float32)}
    return {"Dense_0": first, "Dense_1": {"kernel": np.full((width, 2), fill, np.float32), "bias": np.zeros(2, "f4")}}


KEY = jax.random.key(0)
PARAMS = tree()
AXES = lla.Directions(jax.tree.map(lambda a: np.stack([a + 1, a - 2]), PARAMS), {"kind": "given"})
