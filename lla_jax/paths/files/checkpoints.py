"""Reads checkpoints that exist already as a trajectory, one at a time: .npz, .safetensors, orbax, recordings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lla_jax.core import files as _files
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, check_flag, misuse
from lla_jax.core.patterns import expand, number_in
from lla_jax.core.signatures import explained
from lla_jax.core.types import PyTree, Recipe
from lla_jax.paths.files import array_files, leaf_names, loading, step_files
from lla_jax.paths.files.array_files import Source
from lla_jax.paths.host_trees import shapes_of, size_of
from lla_jax.paths.trajectories import Checkpoint, Trajectory

_SPARE = 2**26  # bytes of a state that is larger than the parameters


class Entry(NamedTuple):
    """A checkpoint that was found.

    Args:
      file: the file, or the folder of its step.
      step: its training step, by its name; None where that has no number.
      checkpoint: how it is read.
      state: the shapes of its state, or None.
      loss: the loss that was recorded with it; NaN where none was.
    """

    file: Path
    step: int | None
    checkpoint: Checkpoint
    state: PyTree
    loss: float = float("nan")


@explained
def from_checkpoints(
    files: Any,
    like: PyTree,
    *,
    state_like: PyTree = None,
    key: str | None = None,
    strict: bool = True,
) -> Trajectory:
    """Read checkpoints that exist already as a trajectory, of which one at a time is in memory.

    The names of arrays are compared part by part, whatever divides the parts, and may begin with something else, such
    as "params/". Of torch's files use ``lla_torch.load_path``.

    Args:
      files: a list of paths in the order of training, or a pattern such as "ckpt/*.npz", whose files are put in the
        order of the numbers in their names, 2 before 10. A path is an .npz or .safetensors file with arrays by name, a
        folder of orbax, of its CheckpointManager (all steps), or of ``lla.paths.record`` (all steps).
      like: parameters of the network: their structure and shapes are those of every checkpoint.
      state_like: the same for the state, as ``loss.state``. None: the collections "batch_stats", "state",
        "model_state", "buffers" and "constants" beside the parameters, where the files have some.
      key: what the names of the parameters begin with, where several trees in a file fit, such as "ema".
      strict: whether further arrays among the parameters are refused, since they tell of another network; False leaves
        them out.

    Returns:
      The trajectory. Its steps are the last numbers in the names, if these increase, and otherwise 0, 1, ...

    Raises:
      ValueError: no file matches; a file that is damaged, pickled or of another kind; a leaf of ``like`` that a file
        lacks or has in another shape; several trees that fit. The message names the file and the leaf. A file that is
        damaged inside of an array, or not finite, is named when it is read; .npz files have checksums, safetensors
        and orbax have none.
    """
    if not jax.tree.leaves(like):
        raise Misuse("like", "has no array leaves; pass the parameters of the network that was saved")
    check_flag("strict", strict)
    if not (key is None or isinstance(key, str)):
        raise misuse("key", key, "None, or what the names of the parameters begin with, such as 'ema'")
    found = [entry for path in expand("files", files) for entry in _entries(path, like, state_like, key, strict)]
    if not found:
        raise Misuse("files", "none given; pass a list of checkpoints, or a pattern such as 'ckpt/*.npz'")
    return make_trajectory(found, shapes_of(like), "checkpoints")


def make_trajectory(found: Sequence[Entry], like: PyTree, source: str) -> Trajectory:
    """The trajectory of checkpoints that were found, all with a state or none.

    Args:
      found: the checkpoints.
      like: the shapes of the parameters.
      source: the word for the recipe.

    Raises:
      Misuse: some have a state and others none, or one of another structure; the file is named.
    """
    first = found[0]
    for each in found:
        if (each.state is None) != (first.state is None):
            with_state, without = (each, first) if first.state is None else (first, each)
            text = f"{with_state.file.name} has a state, such as batch statistics, and {without.file.name} has none"
            raise Misuse("files", f"{text}; pass files that all have one", without.file)
        if first.state is not None:
            _tree.align(each.state, first.state, f"the state in {each.file.name}", f"that in {first.file.name}")
    steps = [each.step for each in found]
    increase = None not in steps and bool((np.diff(np.array(steps, float)) > 0).all())
    numbers = np.array(steps if increase else np.arange(len(found)), np.int64)
    losses = np.array([each.loss for each in found], np.float64)
    names = _unique([each.file for each in found])
    checkpoints = tuple(each.checkpoint._replace(name=name) for name, each in zip(names, found))
    recipe = Recipe(kind="trajectory", source=source, files=list(names), num=len(found))
    return Trajectory(checkpoints, numbers, losses, like, first.state, recipe)


def _unique(files: Sequence[Path]) -> list[str]:
    """The names of files, with their folders where several have one name."""
    names = [file.name for file in files]
    return [f"{file.parent.name}/{file.name}" if names.count(file.name) > 1 else file.name for file in files]


# --- one path


def _entries(path: Path, like: PyTree, state_like: PyTree, key: str | None, strict: bool) -> list[Entry]:
    """The checkpoints of a path: one, or those of the steps of a folder."""
    if path.is_dir():
        if loading.is_recording(path):
            return _of_recording(loading.load(path, like, state_like=state_like))
        if not array_files.is_orbax(path) and (steps := array_files.orbax_steps(path)):
            return [_of_source(array_files.open_source(step), like, state_like, key, strict) for step in steps]
    elif step_files.is_step(path):
        with array_files.explained_faults(path):
            return [_of_record(step_files.read(path), like, state_like)]
    return [_of_source(array_files.open_source(path), like, state_like, key, strict)]


def _of_recording(path: Trajectory) -> list[Entry]:
    state = path.state_like if path.has_states else None
    folder = Path(path.recipe["folder"])
    return [
        Entry(step_files.file_of(folder, int(step)), int(step), checkpoint, state, float(loss))
        for step, checkpoint, loss in zip(path.steps, path.checkpoints, path.losses)
    ]


def _of_record(record: step_files.Record, like: PyTree, state_like: PyTree) -> Entry:
    """The checkpoint of one file of a recording."""
    _tree.align(step_files.shapes(record, "params"), like, f"files: {record.file.name}", "like")
    state = step_files.shapes(record, "state")
    if state_like is not None:
        if state is None:
            raise Misuse("state_like", f"given, and {record.file.name} has no state; leave it out", record.file)
        state = _tree.align(state, state_like, f"files: the state in {record.file.name}", "state_like")
    read_state = None if state is None else partial(step_files.read_tree, record, "state")
    checkpoint = Checkpoint(record.file.name, partial(step_files.read_tree, record, "params"), read_state)
    return Entry(record.file, record.step, checkpoint, state, record.loss)


def _of_source(source: Source, like: PyTree, state_like: PyTree, key: str | None, strict: bool) -> Entry:
    match = leaf_names.find(source, like, key)
    above = match.prefix.rpartition("/")[0]
    read_state: Callable[[], PyTree] | None = None
    state: PyTree = None
    if state_like is not None:
        own = leaf_names.find(source, state_like, None, "state_like", (above, match.prefix))
        taken, state = own.names, shapes_of(state_like)
        read_state = partial(_read_like, source, own.names, state_like)
    else:
        found = leaf_names.find_state(source, match)
        taken = tuple(found.values())
        if found:
            state = leaf_names.nest({path: _struct(source, name, like) for path, name in found.items()})
            read_state = partial(_read_nested, source, found)
    extra = leaf_names.surplus(source, match, (*match.names, *taken))
    if extra and strict:
        text = f"{source.file.name} has {extra[:5]} besides the leaves of like, so it is perhaps of another network"
        remedy = "pass its parameters as like, pass what is its state as state_like, or strict=False to leave it out"
        raise Misuse("files", f"{text}; {remedy}", source.file)
    checkpoint = Checkpoint(source.file.name, partial(_read_like, source, match.names, like), read_state)
    return Entry(source.file, number_in(source.file), checkpoint, state)


def _struct(source: Source, name: str, like: PyTree) -> jax.ShapeDtypeStruct:
    """The shape of an array of a state; without ``state_like`` a false claim is refused here."""
    shape = source.shapes[name]
    most = 16 * size_of(like) + _SPARE
    if shape is None or np.prod(shape, dtype=float) > most:
        kind = "holds no numbers" if shape is None else f"has shape {shape}, far more than the parameters"
        raise Misuse("files", f"{source.file.name}: {name!r} {kind}; pass the state as state_like", source.file)
    return jax.ShapeDtypeStruct(shape, np.float32)


def _read_like(source: Source, names: Sequence[str], like: PyTree) -> PyTree:
    """A tree of the structure of ``like``, from the arrays of these names."""
    with array_files.explained_faults(source.file):
        arrays = source.read(names)
        leaves = [_as_type_of(arrays[name], leaf) for name, leaf in zip(names, jax.tree.leaves(like), strict=True)]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _as_type_of(array: np.ndarray, leaf: Any) -> np.ndarray:
    """An array that numpy read as raw bytes, in the type of a leaf: numpy's files do not name bfloat16."""
    if array.dtype.kind != "V" or not hasattr(leaf, "dtype"):
        return array
    return _files.restore_dtype(array, leaf.dtype.name)


def _read_nested(source: Source, names: Mapping[str, str]) -> PyTree:
    with array_files.explained_faults(source.file):
        arrays = source.read(tuple(names.values()))
        if raw := [name for name, array in arrays.items() if array.dtype.kind == "V"]:
            raise ValueError(f"{raw[0]!r} has a type that the file does not name; pass state_like")
        return leaf_names.nest({path: arrays[name] for path, name in names.items()})
