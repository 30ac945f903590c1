"""The files of a recording: one for each recorded step, which says itself what it holds.

A file has the arrays of the parameters and of the state, and a header with the step, the loss, and the containers,
shapes and types of both trees. Of a lossy recording, most files hold differences from the last full one before them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import files as _files
from lla_jax.core.arguments import Misuse
from lla_jax.core.text import first_line
from lla_jax.core.types import PyTree
from lla_jax.paths.files import containers

FORMAT, VERSION = "lla_jax recording", 1
MANIFEST = "recording.json"  # of the folder
HALF = "bfloat16"  # the type of differences

_NAME = re.compile(r"step-(\d{1,19})\.npz")


class Record(NamedTuple):
    """One recorded step, as its file's header tells.

    Args:
      file: the file.
      step: the training step.
      loss: the loss; NaN where none was recorded.
      trees: {"params": description, "state": description or None}, see ``containers.describe``.
      base: the step of the full file from which this one holds differences; None for a full one.
      rounding: the largest error of an entry that the differences make.
    """

    file: Path
    step: int
    loss: float
    trees: Mapping[str, Any]
    base: int | None
    rounding: float


class Differences(NamedTuple):
    """Parameters as differences from those of an earlier step.

    Args:
      base: the earlier step.
      arrays: one array per leaf: its difference in half precision, or the leaf itself where it has few bits.
      rounding: the largest error of an entry.
    """

    base: int
    arrays: Sequence[np.ndarray]
    rounding: float


def file_of(folder: Path, step: int) -> Path:
    """The file of a step."""
    return folder / f"step-{step:010d}.npz"


def list_steps(folder: Path) -> dict[int, Path]:
    """The files of a folder by their steps, in ascending order."""
    found = ((_NAME.fullmatch(file.name), file) for file in folder.glob("step-*.npz"))
    return dict(sorted((int(match[1]), file) for match, file in found if match))


def check_same(then: Mapping[str, Any], now: Mapping[str, Any], others: str, name: str = "") -> None:
    """Raise an error unless parameters and state have the same leaves in both descriptions.

    Args:
      then, now: {"params": description, "state": description or None}.
      others: what the leaves must be, in words.
      name: of what holds them, for the error.

    Raises:
      Misuse: they differ; the first difference is named.
    """
    for tree in ("params", "state"):
        if text := containers.difference(then, now, tree):
            raise Misuse(f"{name} {tree}".strip(), f"{text}; the leaves must be {others}")


# --- writing


def write(
    folder: Path,
    step: int,
    loss: float,
    trees: Mapping[str, PyTree],
    about: Mapping[str, Any],
    differences: Differences | None = None,
) -> None:
    """Write the file of a step; leaf after leaf comes to the host.

    Args:
      folder: the folder.
      step: the step.
      loss: the loss; NaN for none.
      trees: {"params": tree, "state": tree or None}.
      about: their descriptions.
      differences: what is kept in place of the parameters, or None.
    """
    header = {
        "format": FORMAT,
        "version": VERSION,
        "step": step,
        "loss": None if np.isnan(loss) else loss,
        **about,
        "base": differences and differences.base,
        "rounding": differences.rounding if differences else 0.0,
    }
    _files.write_npz(file_of(folder, step), header, _arrays(trees, differences))


def _arrays(trees: Mapping[str, PyTree], differences: Differences | None) -> Iterator[tuple[str, np.ndarray]]:
    for name, tree in trees.items():
        leaves = differences.arrays if name == "params" and differences else jax.tree.leaves(tree)
        for i, leaf in enumerate(leaves):
            yield f"{name}{i}", containers.to_array(leaf)


def subtract(leaves: Sequence[np.ndarray], base: Sequence[np.ndarray], step: int) -> Differences | None:
    """The differences of parameters from those of an earlier step, in half precision; None if some are not finite.

    Args:
      leaves: the parameters.
      base: the earlier ones.
      step: the step of the earlier ones.
    """
    arrays, rounding = [], 0.0
    for leaf, start in zip(leaves, base, strict=True):
        if not _is_reduced(leaf.dtype):
            arrays.append(leaf)
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            arrays.append((leaf - start).astype(jnp.bfloat16))
            error = np.abs(_add(arrays[-1], start) - leaf).max(initial=0)
        if not np.isfinite(error):
            return None
        rounding = max(rounding, float(error))
    return Differences(step, arrays, rounding)


def _is_reduced(dtype: np.dtype) -> bool:
    """Whether differences of a type take less room in half precision."""
    return dtype.itemsize >= 4


def _add(difference: np.ndarray, start: np.ndarray) -> np.ndarray:
    return start + difference.astype(start.dtype)


# --- reading


def is_step(file: Path) -> bool:
    """Whether a file is, by its name and its header, one of a recording."""
    if not _NAME.fullmatch(file.name):
        return False
    with contextlib.suppress(Exception):
        return bool(_files.read_header(file)["format"] == FORMAT)
    return False


def shapes(record: Record, name: str) -> PyTree:
    """The tree "params" or "state" of a record, with shapes and types in place of arrays; None if it has none."""
    about = record.trees[name]
    return (
        None
        if about is None
        else containers.rebuild(about["outline"], [containers.shape_of(r) for r in about["leaves"]])
    )


def read(file: Path) -> Record:
    """The record of a file, of which the header alone is read.

    Raises:
      Exception: of any type for a damaged file, or one of another program.
    """
    header = _files.read_header(file)
    if header["format"] != FORMAT or header["version"] != VERSION:
        raise ValueError(f"it is of format {header['format']!r}, version {header['version']!r}")
    step, match = header["step"], _NAME.fullmatch(file.name)
    if not isinstance(step, int) or match is None or step != int(match[1]):
        raise ValueError(f"it is of step {step!r}, and has another name")
    loss = np.nan if header["loss"] is None else float(header["loss"])
    trees = {name: header[name] for name in ("params", "state")}
    for each in trees.values():
        if each is not None:
            containers.rebuild(each["outline"], [containers.shape_of(row) for row in each["leaves"]])
    return Record(file, step, loss, trees, header["base"], float(header["rounding"]))


def read_tree(record: Record, name: str) -> PyTree:
    """The parameters or the state of a step, in the containers of the recording.

    Args:
      record: the record.
      name: "params" or "state".

    Raises:
      ValueError: the file is damaged, or was replaced since; the message names it.
    """
    try:
        leaves = _read_leaves(record, name)
        if name == "params" and record.base is not None:
            base = read(file_of(record.file.parent, record.base))
            if base.base is not None or containers.difference(base.trees, record.trees, name):
                raise ValueError(f"step {record.base}, from which it holds differences, was replaced")
            starts = _read_leaves(base, name)
            leaves = [_add(x, y) if _is_reduced(y.dtype) else x for x, y in zip(leaves, starts, strict=True)]
        return containers.rebuild(record.trees[name]["outline"], leaves)
    except Exception as error:
        raise damaged(record.file, error) from error


def _read_leaves(record: Record, name: str) -> list[Any]:
    header, arrays = _files.read_npz(record.file, lambda each: each.startswith(name))
    if header["step"] != record.step or header[name] != record.trees[name] or header["base"] != record.base:
        raise ValueError("it was replaced since the recording was loaded")
    rows = record.trees[name]["leaves"]
    if name == "params" and record.base is not None:
        rows = [[p, HALF if _is_reduced(jnp.dtype(kind)) else kind, shape] for p, kind, shape in rows]
    return [containers.from_array(arrays[f"{name}{i}"], row) for i, row in enumerate(rows)]


def damaged(file: Path, error: Exception) -> Misuse:
    """The error (not raised) for a file of a recording that cannot be read."""
    reason = f"{type(error).__name__}: {first_line(error)}"[:300]
    remedy = "leave this step out, such as by path[:-1], or take the file away and load the folder again"
    return Misuse("path", f"{_files.show_path(file)} cannot be read ({reason}); {remedy}", file)
