"""Reads recordings and checkpoints of a torch module as a trajectory of its converted network."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lla_jax
from lla_jax.models.adapters import Misuse, check_flag, expand, explained, number_in
from lla_jax.paths import Checkpoint, Trajectory
from lla_torch.weights.arguments import check_net
from lla_torch.weights.checkpoint import load_checkpoint
from lla_torch.weights.names import to_tensor


@explained
def load_path(
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    net: Any,
    *,
    strict: bool = True,
    dtype: Any = None,
    key: str | None = None,
    prefix: str | None = None,
) -> Trajectory:
    """Read a recording of ``record_training``, or checkpoint files, as a trajectory of the converted network.

        path = lla_torch.load_path("ckpt/epoch*.pth", net)
        axes, coords = lla_jax.paths.pca(path)

    ``path[i]`` has the structure of ``net.variables["params"]``, and ``path.state(i)`` that of the state of
    ``net.loss(criterion)``: statistics and buffers, and what is no part of the files from ``net``. One checkpoint at a
    time is in memory; each is read by ``load_checkpoint``, as data alone.

    Args:
      files: the folder of a recording; or a list of checkpoint files in the order of training, or a pattern such as
        "ckpt/epoch*.pth", whose files are put in the order of the numbers in their names, 2 before 10.
      net: the converted network.
      strict: as for ``load_checkpoint``, and so are the others.
      dtype: of the floating tensors: None keeps the file's, "net" takes the network's, or a name such as "float32".
      key: entry to take of checkpoints that hold several state_dicts, such as "ema".
      prefix: the module to load.

    Returns:
      The trajectory. The steps of files are the last numbers in their names, if these increase, and else 0, 1, ...

    Raises:
      ValueError: no such files; a checkpoint that ``load_checkpoint`` refuses. The first one is read at once, others
        when they are asked for; the message names the file.
    """
    check_net(net)
    check_flag("strict", strict)
    options = {"strict": strict, "dtype": dtype, "key": key, "prefix": prefix}
    sources: list[tuple[str, int | None, float, Callable[[], Any]]] = []
    for path in expand("files", files, "ckpt/*.pth"):
        sources += _recorded(path) if _is_recording(path) else [_file(path)]
    if not sources:
        raise Misuse("files", "none given; pass a list of checkpoints, or a pattern such as 'ckpt/*.pth'")
    steps = [step for _, step, _, _ in sources]
    known = None not in steps and bool((np.diff(np.array(steps, float)) > 0).all())
    numbers = np.array(steps if known else range(len(sources)), np.int64)
    names = [name for name, *_ in sources]
    first = _variables(sources[0][3], names[0], net, options)
    state = {name: tree for name, tree in first.items() if name != "params"}
    checkpoints = tuple(
        Checkpoint(
            name,
            partial(_params, read, name, net, options),
            partial(_state, read, name, net, options) if state else None,
        )
        for name, _, _, read in sources
    )
    recipe = {"kind": "trajectory", "source": "torch", "files": names, "num": len(names)}
    losses = np.array([loss for _, _, loss, _ in sources], np.float64)
    return Trajectory(checkpoints, numbers, losses, _shapes(first["params"]), _shapes(state or None), recipe)


def _is_recording(path: Path) -> bool:
    return path.is_dir() and (path / "recording.json").exists()


def _recorded(folder: Path) -> list[tuple[str, int | None, float, Callable[[], Any]]]:
    """(name, step, loss, what reads it) of each step of a recording."""
    path = lla_jax.paths.load(folder)
    return [
        (name, int(step), float(loss), partial(_state_dict, path, i))
        for i, (name, step, loss) in enumerate(zip(path.names, path.steps, path.losses, strict=True))
    ]


def _state_dict(path: Trajectory, i: int) -> dict[str, Any]:
    """The tensors of a recorded step by their torch names."""
    arrays = {**path[i], **(path.state(i) or {})}
    return {name: to_tensor(array) for name, array in arrays.items()}


def _file(path: Path) -> tuple[str, int | None, float, Callable[[], Any]]:
    return path.name, number_in(path), float("nan"), lambda: path


def _variables(read: Callable[[], Any], name: str, net: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of a network with the weights of a checkpoint, as arrays of numpy."""
    found = read()
    try:
        return dict(jax.tree.map(np.asarray, load_checkpoint(found, net, **options).variables))
    except ValueError as error:
        if not isinstance(found, Mapping):
            raise
        raise Misuse("files", f"{name}: {error}") from error


def _params(read: Callable[[], Any], name: str, net: Any, options: Mapping[str, Any]) -> Any:
    return _variables(read, name, net, options)["params"]


def _state(read: Callable[[], Any], name: str, net: Any, options: Mapping[str, Any]) -> Any:
    return {key: tree for key, tree in _variables(read, name, net, options).items() if key != "params"}


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
