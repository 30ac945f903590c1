"""Reads the checkpoints of a user's problem, and those in the files that --checkpoints and --checkpoint name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lla_jax import paths
from lla_jax.cli.options import Mistake, PathOptions
from lla_jax.cli.terminal import print_note
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse
from lla_jax.core.types import Problem, is_path
from lla_jax.paths.host_trees import are_equal, has_floats
from lla_jax.paths.trajectories import Trajectory, given


def read_path(problem: Problem, options: PathOptions) -> Trajectory:
    """The path: the files of --checkpoints, or the checkpoints of the problem with its parameters as the last one."""
    _tree.check_real(problem.params, "Problem.params")
    if options.checkpoints:
        remedy = "use --batch-stats reestimate or batch"
        return _read_files(problem, options.checkpoints, options.batch_stats == "frozen", remedy)
    if is_path(problem.checkpoints):
        return paths.as_trajectory(problem.checkpoints)
    if not problem.checkpoints:
        raise Mistake(
            "--checkpoints: not given, and Problem.checkpoints is empty; name the files of the training, such as "
            "--checkpoints 'ckpt/*.npz', or set checkpoints in the factory"
        )
    check_checkpoints(problem)
    trees = [*problem.checkpoints, problem.params]
    states = [*problem.states, getattr(problem.loss, "state", None)] if problem.states else None
    if are_equal(*trees[-2:]):
        print_note("the last of Problem.checkpoints and Problem.params are the same network, which is shown once")
        del trees[-2], (states or [None, None])[-2]
    return given(trees, states)


def check_checkpoints(problem: Problem) -> None:
    """Refuse checkpoints of another network than the parameters, and states that the loss does not have."""
    state = getattr(problem.loss, "state", None)
    for i, tree in enumerate(problem.checkpoints):
        name = f"Problem.checkpoints[{i}]"
        _tree.check_real(tree, name)
        _tree.align(tree, problem.params, name, "Problem.params")
    for i, each in enumerate(problem.states):
        _tree.align(each, state, f"Problem.states[{i}]", "the state of the loss")


def _read_files(problem: Problem, files: Sequence[str], with_state: bool, remedy: str) -> Trajectory:
    """The checkpoints in files, by the problem's own reader if it has one.

    Args:
      problem: the user's.
      files: paths and patterns.
      with_state: whether they must hold the state of the loss, if that has floats.
      remedy: what to do where they do not.
    """
    if problem.read is not None:
        try:
            return paths.as_trajectory(problem.read(list(files)), "files")
        except ValueError as error:
            folder = next((file for file in files if Path(file).is_dir()), None)
            hint = f"; to name all files in a folder, pass a pattern such as '{folder}/*.pth'" if folder else ""
            raise Misuse("files", f"{str(error).removeprefix('files: ')}{hint}") from error
    state = getattr(problem.loss, "state", None)
    if not (with_state and has_floats(state)):
        return paths.from_checkpoints(list(files), problem.params)
    try:
        return paths.from_checkpoints(list(files), problem.params, state_like=state)
    except Misuse as error:
        try:
            paths.from_checkpoints(list(files), problem.params)
        except Misuse:
            raise error from None  # it is not the state that is wrong
        raise Misuse("files", f"the state of the loss (BatchNorm) is not in them: {error.text}; {remedy}") from error


def read_one(problem: Problem, file: Path) -> tuple[Any, Any]:
    """(parameters, state or None) of the only checkpoint in a file or folder."""
    path = _read_files(problem, [str(file)], True, "name a file that has it, as the loss needs that of both ends")
    if len(path) != 1:
        raise Mistake(f"--checkpoint: {file} given, which holds {len(path)} checkpoints; name the file of one of them")
    return path[0], path.state(0)
