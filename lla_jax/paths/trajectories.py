"""Trajectories: sequences of parameter trees, in memory or read from disk one at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, is_integer, misuse, show_value
from lla_jax.core.copies import own
from lla_jax.core.refusals import AS_ARRAY, no_array
from lla_jax.core.signatures import explained
from lla_jax.core.types import PyTree, Recipe, pick
from lla_jax.paths.host_trees import shapes_of, size_of, to_host


@explained
class Checkpoint(NamedTuple):
    """One checkpoint of a trajectory, which is read when it is asked for.

    Args:
      name: in messages and pictures: "step 30", or the name of a file.
      params: reads its parameters.
      state: reads its state, such as BatchNorm statistics; None where it has none.
    """

    name: str
    params: Callable[[], PyTree]
    state: Callable[[], PyTree] | None = None


@explained
@no_array("is a sequence of parameter trees; take path[i], whose leaves are arrays", (*AS_ARRAY, "__contains__"))
@dataclass(frozen=True, eq=False, repr=False)
class Trajectory:
    """A path through parameter space: T parameter trees of one structure, each perhaps with its state.

    ``path[i]`` are the parameters of checkpoint i as numpy arrays, in the types in which they were kept; of files it
    reads them anew each time, so that one checkpoint at a time is in memory. ``path[10:20]`` and ``path[[0, 5]]`` are
    trajectories. Each tree is checked when it is read: it must have the structure and shapes of the first one, and be
    finite.

    Args:
      checkpoints: the checkpoints in their order.
      steps: (T,) int64, the training step of each; where none are known, their numbers 0, 1, ...
      losses: (T,) float64, the loss that was recorded with each; NaN where none was.
      like: the structure, shapes and types of the parameters.
      state_like: those of the state, or None.
      recipe: how it was made, as plain data.
    """

    _meant: ClassVar[dict[str, str]] = {
        "params": "path[i], the parameters of checkpoint i",
        "states": "path.state(i)",
        "coords": "lla.paths.project(path, axes, ...).coords",
    }

    checkpoints: tuple[Checkpoint, ...]
    steps: np.ndarray
    losses: np.ndarray
    like: PyTree
    state_like: PyTree
    recipe: Recipe

    def __repr__(self) -> str:
        steps = f", steps {self.steps[0]} to {self.steps[-1]}" if len(self) else ""
        states = ", with states" if self.has_states else ""
        return f"Trajectory({len(self)} x {size_of(self.like):,} parameters{steps}{states})"

    def __len__(self) -> int:
        return len(self.checkpoints)

    def __bool__(self) -> bool:
        return True

    @property
    def names(self) -> tuple[str, ...]:
        """(T,) a short text for each checkpoint, for messages and pictures."""
        return tuple(checkpoint.name for checkpoint in self.checkpoints)

    @property
    def has_states(self) -> bool:
        """Whether every checkpoint has a state."""
        return all(checkpoint.state is not None for checkpoint in self.checkpoints)

    def __getitem__(self, index: Any) -> Any:
        """The parameters of a checkpoint; of a slice or a list of integers, a shorter trajectory.

        Raises:
          IndexError: there is no such checkpoint.
          ValueError: the checkpoint has another structure than the first, or is not finite; it is named.
        """
        picked = pick(index, len(self), "checkpoints")
        if is_integer(index):
            return self._read(int(picked[0]))
        recipe = Recipe(self.recipe)
        recipe["chosen"] = [int(i) for i in np.asarray(recipe.get("chosen", range(len(self))))[picked]]
        chosen = tuple(self.checkpoints[i] for i in picked)
        return Trajectory(chosen, self.steps[picked], self.losses[picked], self.like, self.state_like, recipe)

    def __iter__(self) -> Iterator[PyTree]:
        return map(self._read, range(len(self)))

    def state(self, index: int) -> PyTree:
        """The state of a checkpoint as numpy arrays; None where it has none.

        Args:
          index: the number of the checkpoint; -1 is the last one.
        """
        if not is_integer(index):
            raise misuse("index", index, "an integer, such as -1 for the last checkpoint")
        i = int(pick(index, len(self), "checkpoints")[0])
        read = self.checkpoints[i].state
        if read is None:
            return None
        return to_host(_tree.align(read(), self.state_like, f"the state of {self._name(i)}", "the first state"))

    def _read(self, i: int) -> PyTree:
        name, read = self._name(i), self.checkpoints[i].params
        return check_checkpoint(read(), self.like, name)

    def _name(self, i: int) -> str:
        return describe(i, self.checkpoints[i].name)


def describe(i: int, name: str) -> str:
    """A checkpoint in messages: its number, and its name where it says more."""
    return f"path[{i}]" if name in ("", str(i)) else f"path[{i}] ({name})"


def check_checkpoint(params: PyTree, like: PyTree, name: str) -> PyTree:
    """The parameters as numpy arrays in the structure of ``like``.

    Args:
      params: the parameters.
      like: a tree of arrays, or of shapes.
      name: the checkpoint in messages.

    Raises:
      ValueError: another structure or shapes, or leaves that are not floating or not finite.
    """
    _tree.check_real(params, name)
    return to_host(_tree.align(params, like, name, "the first checkpoint"))


@explained
def given(
    trees: Iterable[PyTree],
    states: Iterable[PyTree] | None = None,
    losses: Any = None,
    steps: Any = None,
) -> Trajectory:
    """A trajectory of parameter trees in memory.

    Args:
      trees: T parameter trees of one structure, in the order of training. Arrays of numpy that can be written to are
        copied.
      states: the state of each, such as BatchNorm statistics, or None.
      losses: (T,) the loss of each, or None.
      steps: (T,) the training step of each, integers that increase; None: 0, 1, ...

    Returns:
      The trajectory.

    Raises:
      ValueError: no trees; trees of different structure or shapes, or with entries that are not finite (it names the
        tree); states, losses or steps that are not as many as the trees.
    """
    made = from_trees(_as_list("trees", trees), "trees")
    num = len(made)
    states = None if states is None else _as_list("states", states)
    if states is not None:
        _check_count("states", len(states), num)
        for i, state in enumerate(states):
            if state is None:
                raise Misuse("states", f"entry {i} is None; give a state for each of the {num} trees, or none at all")
    first = None if states is None else states[0]
    numbers = check_steps("steps", steps, num)
    checkpoints = [
        Checkpoint(
            f"{i}" if steps is None else f"step {numbers[i]}",
            _hold(own(each.params())),
            None if states is None else _hold(own(states[i])),
        )
        for i, each in enumerate(made.checkpoints)
    ]
    path = Trajectory(
        tuple(checkpoints),
        numbers,
        check_losses("losses", losses, num),
        made.like,
        shapes_of(first),
        made.recipe,
    )
    if states is not None:
        for i in range(num):
            path.state(i)  # checks its structure
    return path


@explained
def as_trajectory(path: Any, name: str = "path", least: int = 1) -> Trajectory:
    """A trajectory of what stands for one: a trajectory itself, or a sequence of parameter trees, which are not copied.

    Args:
      path: a ``Trajectory``, or a list or tuple of T parameter trees.
      name: the argument's name, for the error.
      least: the number of checkpoints that are needed.

    Raises:
      ValueError: no sequence; fewer checkpoints than needed; trees of different structure or shapes, or with entries
        that are not finite (it names the tree). A trajectory on disk is checked when it is read.
    """
    made = path if isinstance(path, Trajectory) else from_trees(_as_list(name, path), name)
    if len(made) < least:
        raise Misuse(name, f"has {_count(len(made))}; at least {least} are needed: record more often, or join several")
    return made


def from_trees(trees: Sequence[PyTree], name: str) -> Trajectory:
    """A trajectory of trees in memory, each of which is checked at once.

    Raises:
      Misuse: no trees, or one that is not finite or has another structure than the first; it is named.
    """
    if not trees:
        raise Misuse(name, "has no checkpoints; give at least one tree of parameters")
    first = trees[0]
    for i, tree in enumerate(trees):
        entry = f"{name}[{i}]"
        _tree.check_real(tree, entry)
        _tree.align(tree, first, entry, f"{name}[0]")
    checkpoints = tuple(Checkpoint(str(i), _hold(tree)) for i, tree in enumerate(trees))
    num = len(trees)
    recipe = Recipe(kind="trajectory", source="trees", num=num)
    return Trajectory(checkpoints, np.arange(num), np.full(num, np.nan), shapes_of(first), None, recipe)


def _hold(tree: PyTree) -> Callable[[], PyTree]:
    return lambda: tree


def _as_list(name: str, value: Any) -> list[PyTree]:
    """The trees of a sequence; an error with the likely slip for what is none."""
    rule = "a trajectory, or a list of parameter trees, such as [params_0, params_1]"
    if isinstance(value, str | bytes | os.PathLike):
        raise misuse(name, value, f"{rule}; lla.paths.load(folder) reads a recording, lla.paths.from_checkpoints files")
    if isinstance(value, Mapping) or hasattr(value, "shape") or not isinstance(value, Iterable):
        hint = ""
        if isinstance(value, Mapping):
            hint = "; of one tree of parameters make [params]"
        elif hasattr(value, "shape"):
            hint = "; of an array with one checkpoint per row make list(array)"
        raise Misuse(name, f"{show_value(value)} given; it must be {rule}{hint}")
    return list(value)


def _count(num: int) -> str:
    return f"{num} checkpoint{'' if num == 1 else 's'}"


def _check_count(name: str, found: int, num: int) -> None:
    if found != num:
        raise Misuse(name, f"{found} given for {_count(num)}; there must be one for each")


def check_steps(name: str, steps: Any, num: int) -> np.ndarray:
    """(T,) int64: the steps given, or 0, 1, ... for None.

    Raises:
      ValueError: they are no integers, not as many as checkpoints, or do not increase.
    """
    if steps is None:
        return np.arange(num, dtype=np.int64)
    try:
        array = np.asarray(steps)
    except ValueError:  # lists of unequal lengths
        array = np.zeros(())
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise misuse(name, steps, "a list of integers, one for each checkpoint, such as [0, 10, 20]")
    _check_count(name, len(array), num)
    if (np.diff(array.astype(np.int64)) <= 0).any():
        i = int(np.argmax(np.diff(array.astype(np.int64)) <= 0))
        raise Misuse(name, f"{array[i]} is followed by {array[i + 1]}; they must increase: sort the checkpoints")
    return array.astype(np.int64)


def check_losses(name: str, losses: Any, num: int) -> np.ndarray:
    """(T,) float64: the losses given, or NaN for None.

    Raises:
      ValueError: they are no numbers, or not as many as checkpoints.
    """
    if losses is None:
        return np.full(num, np.nan)
    try:
        array = np.asarray(losses, np.float64)
    except (TypeError, ValueError):
        array = None
    if array is None or array.ndim != 1:
        raise misuse(name, losses, "a list of numbers, one for each checkpoint; NaN where none is known")
    _check_count(name, len(array), num)
    return array
