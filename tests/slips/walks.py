"""Paths of a linear model, files of them, and curves between two of its networks, for tables of slips."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lla_jax as lla
from tests.slips.small import PARAMS, X, Y, by_class, of

KEY = jax.random.key(0)
DATA = (X, Y)
RNG = np.random.default_rng(0)
PATH = [{"w": PARAMS["w"] + np.asarray(RNG.normal(size=(3, 2)) / 10, np.float32)} for _ in range(4)] + [PARAMS]
B = {"w": -PARAMS["w"][::-1]}
STRAIGHT = [{"w": PARAMS["w"] * k} for k in (1, 2, 3)]
OTHER, RENAMED = {"w": np.ones((4, 2), np.float32)}, {"v": PARAMS["w"]}
NAN = {"w": np.full((3, 2), np.nan, np.float32)}
STATE = {"mean": np.zeros(2, np.float32)}
LOSS = of()
CENTRED = lla.Loss(lambda p, s, batch, train: (batch[0] @ p["w"] - s["mean"], s), by_class, STATE)
AXES, COORDS = lla.paths.pca(PATH)
SEEN = lla.paths.project(PATH, AXES)
LINE = lla.paths.line(PARAMS, B)


@contextlib.contextmanager
def folder():
    """A new working folder with checkpoints, a recording, and files of other kinds."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as path:
        os.chdir(path)
        try:
            for name, params in (("good0", PARAMS), ("good1", B), ("other", OTHER), ("spoilt", NAN)):
                np.savez(f"{name}.npz", **params)
            Path("text").write_text("x")
            Path("bad.npz").write_text("x")
            Path("net.pth").write_text("x")
            Path("empty").mkdir()
            track = lla.paths.record("rec", every=1)
            track(PARAMS, 0)
            track(B, 1)
            yield
        finally:
            os.chdir(before)


def rows(slip: Callable[..., Callable]) -> Callable[..., None]:
    """A function that adds a row to a table: ``row(name, call, *words)``, or with the folder: ``in_folder=True``."""

    def row(name: str, call: Callable[[], Any], *words: str, in_folder: bool = False, warns: bool = False) -> None:
        def made() -> None:
            with folder() if in_folder else contextlib.nullcontext():
                call()

        made.__name__ = name
        slip(*words, warns=warns)(made)

    return row
