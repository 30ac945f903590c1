"""Files of arrays by name: .npz, .safetensors and folders of orbax. Nothing of a file is executed or unpickled.

A file is first asked for the names, shapes and types of its arrays, and then for those that are wanted, so that neither
an optimizer's state beside the parameters nor a false claim costs memory.
"""

from __future__ import annotations

import contextlib
import logging
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lla_jax.core import files as _files
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse
from lla_jax.core.text import first_line

TORCH = (".pt", ".pth", ".ckpt", ".bin", ".th", ".tar")
PICKLES = (".pkl", ".pickle", ".joblib", ".dill")
KINDS = ".npz, .safetensors, a folder of orbax, or a folder of lla.paths.record"
_ORBAX = ("_METADATA", "_CHECKPOINT_METADATA")
_STEP = re.compile(r"(\D*)(\d+)")  # the name of a step's folder


class Source(NamedTuple):
    """A file of arrays by name.

    Args:
      file: the file or folder.
      shapes: the shape of each array by name; None for what is no array of numbers.
      read: ``read(names)`` gives the arrays of these names.
    """

    file: Path
    shapes: Mapping[str, tuple[int, ...] | None]
    read: Callable[[Collection[str]], dict[str, np.ndarray]]


def open_source(file: Path) -> Source:
    """The arrays of a file; it is read so far as to know their names and shapes.

    Raises:
      Misuse: no such file, or one of another kind; a damaged one; it is named in each case.
    """
    with explained_faults(file):
        if file.is_dir():
            return _open_orbax(file)
        if not file.exists():
            raise Misuse("files", f"there is no file {_files.show_path(file)}; pass the paths of checkpoints", file)
        if not file.is_file():  # a pipe would be waited for
            raise Misuse("files", f"{_files.show_path(file)} is no regular file; pass the paths of checkpoints", file)
        refuse_others(file)
        return _open_safetensors(file) if file.suffix == ".safetensors" else _open_npz(file)


@contextlib.contextmanager
def explained_faults(file: Path) -> Iterator[None]:
    """A context in which an error of reading names the file."""
    try:
        yield
    except Misuse:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"[:300]
        raise Misuse(
            "files", f"{_files.show_path(file)} cannot be read ({reason}); save it again, or leave it out", file
        ) from error


def refuse_others(file: Path) -> None:
    """Raise an error for a file of a kind that is not read here."""
    with open(file, "rb") as opened:
        start = opened.read(8)
    shown = _files.show_path(file)
    if file.suffix == ".safetensors":
        return
    torch = file.suffix in TORCH or (start.startswith(b"PK") and _is_torch(file))
    if torch:
        raise Misuse("files", f"{shown} is a checkpoint of torch; read it with lla_torch.load_path(files, net)", file)
    if file.suffix in PICKLES or start.startswith(b"\x80"):
        text = "is a pickle, which is never opened because it can run any code; save the arrays by numpy.savez"
        raise Misuse("files", f"{shown} {text}", file)
    if not start.startswith(b"PK"):
        kind = "empty" if not start else "of another kind, or damaged"
        raise Misuse("files", f"{shown} is {kind}; checkpoints are {KINDS}", file)


def _is_torch(file: Path) -> bool:
    with contextlib.suppress(zipfile.BadZipFile, OSError, ValueError), zipfile.ZipFile(file) as archive:
        return any(name.endswith("data.pkl") for name in archive.namelist())
    return False


# --- .npz


def _open_npz(file: Path) -> Source:
    shapes: dict[str, tuple[int, ...] | None] = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name in shapes:
                raise ValueError(f"it has the entry {name!r} twice")
            try:
                shapes[name] = _files.describe_array(archive, member)[0]
            except ValueError:  # of objects, text and the like, which are no parameters
                shapes[name] = None
    return Source(file, shapes, lambda names: _read_npz(file, names))


def _read_npz(file: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        return {name: _native(_files.read_array(archive, members[name])) for name in names}


def _native(array: np.ndarray) -> np.ndarray:
    """The array in the byte order of this machine."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


# --- .safetensors


def _open_safetensors(file: Path) -> Source:
    try:
        from safetensors import safe_open
    except ImportError as error:
        text = f"{_files.show_path(file)} needs the package safetensors, which is not installed"
        raise Misuse("files", f"{text}: pip install 'lla-jax[checkpoints]'", file) from error

    def read(names: Collection[str]) -> dict[str, np.ndarray]:
        with safe_open(file, "numpy") as opened:
            return {name: opened.get_tensor(name) for name in names}

    with safe_open(file, "numpy") as opened:
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return Source(file, shapes, read)


# --- orbax


def is_orbax(folder: Path) -> bool:
    """Whether a folder is a checkpoint of orbax, or a step of its CheckpointManager."""
    return bool(_items(folder)) or (folder / _ORBAX[1]).exists()


def orbax_steps(folder: Path) -> list[Path]:
    """The steps of a folder of orbax's CheckpointManager, in their order; unfinished ones have other names."""
    found = [(match, each) for each in folder.iterdir() if (match := _STEP.fullmatch(each.name)) and each.is_dir()]
    return [each for match, each in sorted(found, key=lambda pair: int(pair[0][2])) if is_orbax(each)]


def _items(folder: Path) -> dict[str, Path]:
    """The trees of a checkpoint of orbax by their names; the only one of a checkpoint without names has none."""
    if (folder / _ORBAX[0]).exists():
        return {"": folder}
    return {each.name: each for each in sorted(folder.iterdir()) if (each / _ORBAX[0]).exists()}


def _open_orbax(folder: Path) -> Source:
    items = _items(folder)
    if not items:
        inside = sorted(each.name for each in folder.iterdir())[:5]
        text = f"{_files.show_path(folder)} is a folder with {inside or 'nothing in it'}, and no checkpoint of orbax"
        raise Misuse("files", f"{text}; of files pass a pattern, such as '{folder.name}/*.npz'", folder)
    with _quiet():
        shapes = {
            _join(item, path): tuple(leaf.shape)
            for item, place in items.items()
            for path, leaf in _named(_orbax_metadata(place))
        }
    if not shapes:  # orbax returns nothing for a damaged one
        raise ValueError("orbax finds no arrays in it")
    return Source(folder, shapes, lambda names: _read_orbax(items, names))


def _join(item: str, path: str) -> str:
    return f"{item}/{path}" if item else path


def _named(tree: Any) -> list[tuple[str, Any]]:
    return list(zip(_tree.paths(tree), jax.tree.leaves(tree), strict=True))


def _orbax_metadata(place: Path) -> Any:
    """The tree of a checkpoint with what orbax tells of each array in its place."""
    import orbax.checkpoint as ocp

    found = ocp.PyTreeCheckpointer().metadata(place.resolve())
    found = getattr(found, "item_metadata", found)
    return getattr(found, "tree", found)


def _read_orbax(items: Mapping[str, Path], names: Collection[str]) -> dict[str, np.ndarray]:
    """The arrays of these names; others, such as an optimizer's, are not read."""
    import orbax.checkpoint as ocp

    result: dict[str, np.ndarray] = {}
    with _quiet():
        for item, place in items.items():
            metadata = _orbax_metadata(place)
            paths = [_join(item, path) for path, _ in _named(metadata)]
            if not set(paths) & set(names):
                continue
            structure = jax.tree.structure(metadata)
            wanted = [path if path in names else ocp.PLACEHOLDER for path in paths]
            kinds = [ocp.RestoreArgs(restore_type=np.ndarray) for _ in paths]
            arguments = ocp.args.PyTreeRestore(
                item=jax.tree.unflatten(structure, wanted), restore_args=jax.tree.unflatten(structure, kinds)
            )
            restored = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(place.resolve(), args=arguments)
            leaves = jax.tree.leaves(restored)
            result |= {path: np.asarray(x) for path, x in zip(paths, leaves, strict=True) if path in names}
    return result


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without orbax's log of steps, and its remarks on files that not all checkpoints have."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
