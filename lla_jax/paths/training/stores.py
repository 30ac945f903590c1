"""Keeps the state of a training in a folder, so that the same call goes on with it, to the bit.

training.npz   the recipe of the training, how far it is, and all its arrays; written completely or not at all
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import files, recipes
from lla_jax.core.arguments import Misuse
from lla_jax.core.recipes import Differs
from lla_jax.core.types import PyTree, Recipe
from lla_jax.paths.files.containers import from_array, rows, to_array

FILE = "training.npz"
ANEW = "pass another folder"


class Kept(NamedTuple):
    """What a store holds.

    Args:
      header: its plain data, with the entries "recipe" and "step".
      arrays: its arrays by name.
    """

    header: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Keeper:
    """The store of one training.

    Args:
      store: the folder, which is made if it is not there; None to keep nothing.

    Raises:
      ValueError, OSError: it is no path, or no folder that can be written to.
    """

    def __init__(self, store: str | os.PathLike[str] | None):
        self.path: Path | None = None
        if store is None:
            return
        folder = files.check_path("store", store, "runs/curve")
        self.path = folder / FILE
        if not self.path.exists():
            try:
                files.try_to_write(folder)
            except OSError as error:
                raise files.explain("store", folder, "cannot be written to", error, "pass a folder that can") from error
        files.remove_torn(folder, self.path.stem)

    def load(self, recipe: Recipe, names: tuple[str, ...]) -> Kept | None:
        """What is in the folder; None if nothing is.

        Args:
          recipe: of the training that is asked for.
          names: the entries that must be the same.

        Raises:
          Differs: the training in the folder is another one.
          Misuse: its file is damaged, or of another program.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            self.path.open("rb").close()
        except OSError as error:
            raise files.explain("store", self.path, "cannot be read", error, "mend that, and call again") from error
        try:
            header, arrays = files.read_npz(self.path)
            kept = Kept(header, arrays)
            then = header["recipe"]
            if not isinstance(then, Mapping) or not isinstance(header["step"], int) or header["step"] < 0:
                raise ValueError("its header is not one of a training")
        except Exception as error:  # of a truncated or changed file, of any type
            raise self.damaged(error) from error
        recipes.check_same("store", f"the training in {self.path.parent}", then, recipe, names, ANEW, self.path.parent)
        return kept

    def damaged(self, error: Exception) -> Misuse:
        """Make (not raise) the error for a file that cannot be continued, from what its reading raised."""
        reason = f"{type(error).__name__}: {error}"[:300]
        text = f"{self.path} is damaged, or not what lla_jax wrote ({reason})"
        return Misuse("store", f"{text}; remove it and repeat the call, which trains anew, or {ANEW}", self.path)

    def other_training(self, text: str, what: str) -> Differs:
        """Make (not raise) the error for a store whose first step, repeated, is another: functions have no names.

        Args:
          text: what differs, then and now.
          what: what may be the cause, in words.
        """
        return Differs(
            "store",
            {"first step": text},
            f"the training in {self.path} is another one, since its first step differs ({text}); {what} and the order "
            "of the data (of a loader: without shuffling of its own) must be the same: repeat those it was made with, "
            f"or {ANEW}",
            self.path,
        )

    def save(self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Replace the file in one step; an OSError says that the file of before is still there."""
        if self.path is None:
            return
        try:
            files.write_npz(self.path, header, arrays)
        except OSError as error:
            remedy = "the steps before are kept: make room, and repeat the call, which goes on from there"
            raise files.explain("store", self.path, "could not be written", error, remedy) from error


def to_arrays(name: str, tree: PyTree) -> dict[str, np.ndarray]:
    """The leaves of a tree as arrays by name and number, "name 0", ...; keys as their data."""
    return {f"{name} {i}": to_array(x) for i, x in enumerate(jax.tree.leaves(tree))}


def from_arrays(name: str, arrays: Mapping[str, np.ndarray], like: PyTree) -> PyTree:
    """The tree of the structure, shapes and types of ``like`` whose leaves ``to_arrays`` made.

    Raises:
      KeyError: a leaf is missing.
      ValueError: one has another shape or type.
    """
    leaves = [from_array(arrays[f"{name} {i}"], row) for i, row in enumerate(rows(like))]
    return jax.tree.unflatten(jax.tree.structure(like), map(jnp.asarray, leaves))
