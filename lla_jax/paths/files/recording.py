"""Records the parameters of a training run on disk, one file per recorded step.

The run is not held up by what was recorded before: neither the device nor the host keeps any of it. A file is written
in one step or not at all, so that a kill loses at most the step in hand.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import files as _files
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import (
    Misuse,
    MisusedLeaf,
    check_choice,
    check_flag,
    check_integer,
    misuse,
    show_value,
    warn_caller,
)
from lla_jax.core.signatures import explained
from lla_jax.core.types import PyTree
from lla_jax.paths.files import containers, step_files
from lla_jax.paths.files.step_files import Differences
from lla_jax.paths.host_trees import is_key

ABANDONED = "abandoned"  # folders of steps that another run took the place of
MOST_STEP = 2**63 - 1


@explained
class Recorder:
    """Records a training run in a folder, see ``record``.

    Args:
      folder: the folder.
      every: the distance of recorded steps.
      differences: the type of differences, or None.
      full_every: every how many recorded steps are full where differences are kept.
    """

    def __init__(self, folder: Path, every: int, differences: str | None, full_every: int):
        self._folder, self._every = folder, every
        self._differences, self._full_every = differences, full_every
        self._about: Mapping[str, Any] | None = None  # descriptions of the trees, once a step is recorded
        self._run = uuid.uuid4().hex
        self._last = -1
        self._full: tuple[int, list[np.ndarray], int] | None = None  # step and parameters, and how many follow it

    def __repr__(self) -> str:
        last = f", last step {self._last}" if self._last >= 0 else ""
        return f"Recorder({_files.show_path(self._folder)}, every={self._every}{last})"

    def __call__(self, params: PyTree, step: Any, loss: Any = None, state: PyTree = None, keep: Any = None) -> bool:
        """Record the parameters if their step is a multiple of ``every``.

        Args:
          params: the parameters, a tree of floating arrays.
          step: the number of the training step, an integer that counts through all epochs.
          loss: the loss at this step, or None; it is waited for only if the step is recorded.
          state: other variables such as BatchNorm statistics, any tree of arrays, or None; given always or never.
          keep: True records this step, False does not; None decides by ``every``.

        Returns:
          Whether the step was recorded.

        Raises:
          ValueError: under ``jax.jit``; a step before the last recorded one; leaves that are not floating; other
            leaves, shapes or types than those recorded before; another recording that began in the folder meanwhile.
          OSError: the file cannot be written.
        """
        if not self.is_due(step, keep):  # which looks at no array: most steps end here
            return False
        if _tree.is_traced((params, loss, state)):
            raise _traced()
        self._record(params, _check_step(step), _check_loss(loss), state)
        return True

    def is_due(self, step: Any, keep: Any = None) -> bool:
        """Whether a step would be recorded.

        Args:
          step: the number of the training step.
          keep: as for the recorder itself.
        """
        number = _check_step(step)
        return number % self._every == 0 if keep is None else check_flag("keep", keep)

    def _record(self, params: PyTree, step: int, loss: float, state: PyTree) -> None:
        _check_trees(params, state)
        if step < self._last:
            rule = f"at least {self._last}, the last one recorded: count through all epochs, or record another run "
            raise misuse("step", step, f"{rule}in another folder")
        trees = {"params": params, "state": state if jax.tree.leaves(state) else None}
        about = {name: containers.describe(tree) for name, tree in trees.items()}
        try:
            if self._about is None:
                self._begin(about, step)
            else:
                step_files.check_same(self._about, about, "those recorded before")
                self._check_own()
            step_files.write(self._folder, step, loss, trees, about, self._subtract(params, step))
        except OSError as error:
            action = f"cannot be written at step {step}"
            raise _files.explain(
                "folder", self._folder, action, error, "see that it has room and may be written"
            ) from (error)
        self._last = step

    def _begin(self, about: Mapping[str, Any], step: int) -> None:
        """Prepare the folder: it must hold the same network; later steps, of an abandoned run, are moved away."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if (before := _described(self._folder)) is not None:
            other = f"those in {_files.show_path(self._folder)}, of another network; record this one in another folder"
            step_files.check_same(before, about, other)
        _files.remove_torn(self._folder, "step")
        later = [file for number, file in step_files.list_steps(self._folder).items() if number >= step]
        if later:
            aside = _move_aside(self._folder, later)
            warn_caller(
                f"folder: {_files.show_path(self._folder)} is recorded anew from step {step} on, so {len(later)} later "
                f"steps, of an earlier run, were moved to its folder {aside.name!r}; delete it if nobody needs them"
            )
        self._about = about
        self._write_manifest()

    def _write_manifest(self) -> None:
        content = {"format": step_files.FORMAT, "version": step_files.VERSION, "run": self._run, "every": self._every}
        content |= {"differences": self._differences, "trees": self._about}
        _files.write_text(self._folder / step_files.MANIFEST, _files.to_json(content))

    def _check_own(self) -> None:
        """Raise an error if another recording began in the folder: two would make one path of two runs."""
        try:
            run = _manifest(self._folder).get("run")
        except FileNotFoundError:  # somebody removed the folder
            self._folder.mkdir(parents=True, exist_ok=True)
            self._full = None
            self._write_manifest()
            return
        except (ValueError, AttributeError):
            run = None
        if run != self._run:
            raise Misuse(
                "folder",
                f"{_files.show_path(self._folder)} is being recorded by another run, which began later; give each "
                "run a folder of its own, and of several processes record in one: if jax.process_index() == 0",
                self._folder,
            )

    def _subtract(self, params: PyTree, step: int) -> Differences | None:
        """The differences from the last full step; None if this step is to be full, which is then kept for the next."""
        if self._differences is None:
            return None
        leaves = [containers.to_array(leaf) for leaf in jax.tree.leaves(params)]
        if self._full is not None:
            base, starts, since = self._full
            found = None
            if since + 1 < self._full_every and base != step:
                found = step_files.subtract(leaves, starts, base)
            if found is not None:
                self._full = base, starts, since + 1
                return found
        self._full = step, [np.array(leaf) for leaf in leaves], 0
        return None


@explained
def record(
    folder: str | os.PathLike[str],
    every: int = 10,
    *,
    differences: Literal["bfloat16"] | None = None,
    full_every: int = 10,
) -> Recorder:
    """Record a training run: ``track = record("runs/traj")``, and in the loop ``track(params, step, loss=loss)``.

    Each recorded step becomes a file of the folder, with every array as it is, to the bit; the memory of the device and
    of the host does not grow with the number of steps. ``lla.paths.load`` reads the folder, also while the run goes on.

    A run that is continued goes on in its folder. Where it begins at an earlier step than the last recorded one, later
    steps belong to an abandoned run: they are moved to a folder ``abandoned-1`` inside, with a warning.

    Args:
      folder: the folder, one for each run; it is made if it is not there.
      every: a step is recorded if it is a multiple of this number.
      differences: "bfloat16" keeps, of parameters of 32 bits and more, differences from the last full step in this
        type: half the size or less, and an error of at most 2^-9 of each difference, of which the recipe of the
        loaded path tells the largest. None keeps all.
      full_every: with ``differences``, every how many recorded steps are kept in full.

    Returns:
      ``track(params, step, loss=None, state=None, keep=None) -> bool``, see ``Recorder``.

    Raises:
      ValueError: an argument of another type or out of bounds, or a path that is a file.
      OSError: the folder cannot be written.
    """
    path = _files.check_path("folder", folder, "runs/traj")
    every = check_integer("every", every, remedy="the distance of recorded steps, such as 10")
    check_choice("differences", differences, (None, "bfloat16"))
    full_every = check_integer("full_every", full_every, remedy="such as 10")
    if path.exists() and not path.is_dir():
        raise Misuse("folder", f"{_files.show_path(path)} is a file; pass a folder, such as 'runs/traj'", path)
    try:
        _files.try_to_write(path)
    except OSError as error:
        remedy = "pass a folder that can be written, such as 'runs/traj'"
        raise _files.explain("folder", path, "cannot be written", error, remedy) from error
    return Recorder(path, every, differences, full_every)


# --- the folder


def _manifest(folder: Path) -> Any:
    """What the folder says of its run.

    Raises:
      Exception: of any type where it says nothing that can be read.
    """
    if not (folder / step_files.MANIFEST).is_file():  # a pipe would be waited for
        raise FileNotFoundError(step_files.MANIFEST)
    return _files.parse_json((folder / step_files.MANIFEST).read_text())


def _described(folder: Path) -> Mapping[str, Any] | None:
    """The descriptions of the trees that a folder holds; None if it holds none that can be read."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        trees = _manifest(folder)["trees"]
        if isinstance(trees, Mapping) and isinstance(trees["params"]["leaves"], list):
            return trees
    for file in step_files.list_steps(folder).values():
        with contextlib.suppress(Exception):
            return step_files.read(file).trees
    return None


def _move_aside(folder: Path, files: list[Path]) -> Path:
    """Move files into a new folder ``abandoned-N`` inside of theirs."""
    number = 1
    while (folder / f"{ABANDONED}-{number}").exists():
        number += 1
    aside = folder / f"{ABANDONED}-{number}"
    aside.mkdir()
    for file in files:
        os.replace(file, aside / file.name)
    return aside


# --- checks


def _traced() -> Misuse:
    text = "called inside of jax.jit, jax.grad or scan, where arrays have no values; call it in the loop around the "
    return Misuse("track", f"{text}jitted step")


def _check_step(step: Any) -> int:
    if isinstance(step, jax.core.Tracer):
        raise _traced()
    if isinstance(step, np.ndarray | jax.Array) and step.ndim == 0 and jnp.issubdtype(step.dtype, jnp.integer):
        step = int(step)
    return check_integer("step", step, least=0, most=MOST_STEP, remedy="the number of the training step")


def _check_loss(loss: Any) -> float:
    """The loss as a float, which waits for the device; NaN for None."""
    if loss is None:
        return float("nan")
    try:
        array = np.asarray(loss, np.float64)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.size != 1:
        raise misuse(
            "loss", loss, "a number, the loss at this step; of several take the mean, or pass the rest as state"
        )
    return float(array.reshape(()))


def _check_trees(params: PyTree, state: PyTree) -> None:
    _tree.check_real(params, "params", finite=False)
    for name, tree in (("params", params), ("state", state)):
        for path, leaf in zip(_tree.paths(tree), jax.tree.leaves(tree)):
            if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
                text = "lies on devices of several processes; gather it, by multihost_utils.process_allgather, and "
                raise MisusedLeaf(name, f"[{path!r}] {text}record in one process")
            try:
                number = is_key(leaf) or jnp.result_type(leaf) is not None
            except (TypeError, ValueError):
                number = False
            if not number:
                raise MisusedLeaf(
                    name, f"[{path!r}] is {show_value(leaf)}; it must be an array of numbers: leave it out"
                )
