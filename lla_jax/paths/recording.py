"""Records the parameters of a training run on disk, one file per recorded step, and reads them as a trajectory.

The run is not held up by what was recorded before: neither the device nor the host keeps any of it. A file is written
in one step or not at all, so that a kill loses at most the step in hand.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Mapping
from functools import partial
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
from lla_jax.core.text import first_line
from lla_jax.core.types import PyTree, Recipe
from lla_jax.paths import outlines, records
from lla_jax.paths.records import Differences, Record
from lla_jax.paths.trajectories import Checkpoint, Trajectory, is_key, shapes_of

MANIFEST = "recording.json"
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
        about = {name: outlines.describe(tree) for name, tree in trees.items()}
        try:
            if self._about is None:
                self._begin(about, step)
            else:
                _check_same(self._about, about, "those recorded before")
                self._check_own()
            records.write(self._folder, step, loss, trees, about, self._subtract(params, step))
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
            _check_same(before, about, other)
        _remove_torn(self._folder)
        later = [file for number, file in records.list_steps(self._folder).items() if number >= step]
        if later:
            aside = _move_aside(self._folder, later)
            warn_caller(
                f"folder: {_files.show_path(self._folder)} is recorded anew from step {step} on, so {len(later)} later "
                f"steps, of an earlier run, were moved to its folder {aside.name!r}; delete it if nobody needs them"
            )
        self._about = about
        self._write_manifest()

    def _write_manifest(self) -> None:
        content = {"format": records.FORMAT, "version": records.VERSION, "run": self._run, "every": self._every}
        content |= {"differences": self._differences, "trees": self._about}
        _files.write_text(self._folder / MANIFEST, _files.to_json(content))

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
        leaves = [outlines.to_array(leaf) for leaf in jax.tree.leaves(params)]
        if self._full is not None:
            base, starts, since = self._full
            found = None
            if since + 1 < self._full_every and base != step:
                found = records.subtract(leaves, starts, base)
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


@explained
def load(folder: str | os.PathLike[str], like: PyTree = None, *, state_like: PyTree = None) -> Trajectory:
    """Read a recording of ``record`` as a trajectory, of which one checkpoint at a time is in memory.

    Args:
      folder: the folder.
      like: parameters whose structure the trees get, such as an ``nnx.State`` or an Equinox module. None: dicts, lists
        and tuples as they were recorded, other containers as dicts of the same paths.
      state_like: the same for states.

    Returns:
      The trajectory, with steps, losses and states as recorded, and the arrays to the bit. Its recipe tells of
      differences, if the recording has some.

    Raises:
      ValueError: no recording; steps of several networks; a structure or shapes other than those of ``like``.

    Warns:
      UserWarning: files that are damaged, which are left out.
    """
    path = _files.check_path("folder", folder, "runs/traj")
    found = _read_records(path)
    first = found[0]
    for each in found[1:]:
        _check_same(
            first.trees, each.trees, f"those of {first.file.name}, of one network: take this file away", each.file.name
        )
    shapes = {name: records.shapes(first, name) for name in ("params", "state")}
    if like is not None:
        shapes["params"] = _tree.align(shapes["params"], like, "folder", "like")
    if state_like is not None:
        if shapes["state"] is None:
            raise Misuse("state_like", f"given, and {_files.show_path(path)} has no states; leave it out")
        shapes["state"] = _tree.align(shapes["state"], state_like, "folder", "state_like")
    has_state = shapes["state"] is not None
    checkpoints = (
        Checkpoint(
            f"step {each.step}",
            partial(records.read_tree, each, "params"),
            partial(records.read_tree, each, "state") if has_state else None,
        )
        for each in found
    )
    steps, losses = np.array([each.step for each in found]), np.array([each.loss for each in found])
    return Trajectory(
        tuple(checkpoints),
        steps.astype(np.int64),
        losses.astype(np.float64),
        shapes_of(shapes["params"]),
        shapes["state"],
        _recipe(path, found),
    )


def _recipe(folder: Path, found: list[Record]) -> Recipe:
    recipe = Recipe(kind="trajectory", source="recording", folder=str(folder), num=len(found))
    if any(each.base is not None for each in found):
        rounding = max(each.rounding for each in found)
        recipe["differences"] = {"dtype": records.HALF, "largest_rounding": rounding}
    return recipe


# --- the folder


def _manifest(folder: Path) -> Any:
    """What the folder says of its run.

    Raises:
      Exception: of any type where it says nothing that can be read.
    """
    if not (folder / MANIFEST).is_file():  # a pipe would be waited for
        raise FileNotFoundError(MANIFEST)
    return _files.parse_json((folder / MANIFEST).read_text())


def is_recording(folder: Path) -> bool:
    """Whether a folder is a recording."""
    return (folder / MANIFEST).exists() or bool(records.list_steps(folder))


def _read_records(folder: Path) -> list[Record]:
    """The records of a folder in the order of their steps; a warning names those that are damaged."""
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        rule = "pass the folder that lla.paths.record wrote, or read files by lla.paths.from_checkpoints"
        raise Misuse("folder", f"{_files.show_path(folder)} {kind}; {rule}", folder)
    files = records.list_steps(folder)
    if not files:
        others = sorted(each.name for each in folder.iterdir())[:5]
        text = f"{_files.show_path(folder)} holds no recorded steps"
        rule = "pass the folder that lla.paths.record wrote; other files are read by lla.paths.from_checkpoints"
        raise Misuse("folder", f"{text}{f', but {others}' if others else ''}; {rule}", folder)
    found: dict[int, Record] = {}
    faults: dict[str, str] = {}
    for step, file in files.items():
        try:
            found[step] = records.read(file)
        except Exception as error:
            faults[file.name] = f"{type(error).__name__}: {first_line(error)}"[:200]
    full = {step for step, each in found.items() if each.base is None}
    for step, each in list(found.items()):
        if each.base is not None and each.base not in full:
            faults[each.file.name] = f"it holds differences from step {each.base}, which cannot be read"
            del found[step]
    told = "; ".join(f"{name} ({reason})" for name, reason in list(faults.items())[:5])
    if not found:
        text = f"{_files.show_path(folder)} has no file that can be read: {told}"
        raise Misuse("folder", f"{text}; record the run again", folder)
    if faults:
        warn_caller(
            f"folder: {_files.show_path(folder)} has {len(faults)} of {len(files)} files that cannot be read, and are "
            f"left out: {told}"
        )
    return list(found.values())


def _described(folder: Path) -> Mapping[str, Any] | None:
    """The descriptions of the trees that a folder holds; None if it holds none that can be read."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        trees = _manifest(folder)["trees"]
        if isinstance(trees, Mapping) and isinstance(trees["params"]["leaves"], list):
            return trees
    for file in records.list_steps(folder).values():
        with contextlib.suppress(Exception):
            return records.read(file).trees
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


def _remove_torn(folder: Path) -> None:
    """Remove what kills left of files that were being written."""
    for file in folder.glob(".step-*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > _files.OLD_S:
                file.unlink()


# --- checks


def _check_same(then: Mapping[str, Any], now: Mapping[str, Any], others: str, name: str = "") -> None:
    """Raise an error unless parameters and state have the same leaves in both descriptions."""
    for tree in ("params", "state"):
        if text := outlines.difference(then, now, tree):
            raise Misuse(f"{name} {tree}".strip(), f"{text}; the leaves must be {others}")


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
