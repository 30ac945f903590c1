"""Reads a recording as a trajectory; what is damaged is left out, with a warning."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np

from lla_jax.core import files as _files
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, warn_caller
from lla_jax.core.signatures import explained
from lla_jax.core.text import first_line
from lla_jax.core.types import PyTree, Recipe
from lla_jax.paths.files import step_files
from lla_jax.paths.files.step_files import Record
from lla_jax.paths.host_trees import shapes_of
from lla_jax.paths.trajectories import Checkpoint, Trajectory


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
        step_files.check_same(
            first.trees, each.trees, f"those of {first.file.name}, of one network: take this file away", each.file.name
        )
    shapes = {name: step_files.shapes(first, name) for name in ("params", "state")}
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
            partial(step_files.read_tree, each, "params"),
            partial(step_files.read_tree, each, "state") if has_state else None,
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
        recipe["differences"] = {"dtype": step_files.HALF, "largest_rounding": rounding}
    return recipe


def is_recording(folder: Path) -> bool:
    """Whether a folder is a recording."""
    return (folder / step_files.MANIFEST).exists() or bool(step_files.list_steps(folder))


def _read_records(folder: Path) -> list[Record]:
    """The records of a folder in the order of their steps; a warning names those that are damaged."""
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        rule = "pass the folder that lla.paths.record wrote, or read files by lla.paths.from_checkpoints"
        raise Misuse("folder", f"{_files.show_path(folder)} {kind}; {rule}", folder)
    files = step_files.list_steps(folder)
    if not files:
        others = sorted(each.name for each in folder.iterdir())[:5]
        text = f"{_files.show_path(folder)} holds no recorded steps"
        rule = "pass the folder that lla.paths.record wrote; other files are read by lla.paths.from_checkpoints"
        raise Misuse("folder", f"{text}{f', but {others}' if others else ''}; {rule}", folder)
    found: dict[int, Record] = {}
    faults: dict[str, str] = {}
    for step, file in files.items():
        try:
            found[step] = step_files.read(file)
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
