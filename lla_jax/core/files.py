"""Writes and reads files of arrays and JSON; pickled objects are neither written nor read.

Any number of processes may write one file at once: a file is written under another name and renamed, so that no reader
sees half of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np


def try_to_write(folder: Path) -> None:
    """Make the folder if needed, and make and remove a file in it; raise an OSError if that fails."""
    trial = folder / f".lla-jax-{platform.node()}-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    trial.touch()
    trial.unlink(missing_ok=True)


@contextlib.contextmanager
def _temporary_file(target: Path) -> Iterator[str]:
    """Make a temporary file in the folder of ``target`` and yield its name; remove it at the end if it is there."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=".tmp")
    os.close(handle)
    try:
        yield name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _write_to_disk(name: str, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file by ``write(file)``, force it to disk, and give it the permissions of any new file."""
    with open(name, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(name, 0o666 & ~_umask())


def write_npz(target: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name, with a JSON header, into an .npz file, and replace an old one; the last writer wins."""
    text = json.dumps(header, default=to_plain)
    with _temporary_file(target) as name:
        _write_to_disk(name, lambda file: np.savez(file, header=np.array(text), **arrays))  # type: ignore[arg-type]
        os.replace(name, target)


def write_text(target: Path, text: str) -> None:
    """Write text (UTF-8) into a file, and replace an old one; the last writer wins."""
    with _temporary_file(target) as name:
        _write_to_disk(name, lambda file: file.write(text.encode()))
        os.replace(name, target)


def write_new(target: Path, value: Any) -> bool:
    """Write JSON into a new file; return True if this call made it, and False if it was there already.

    On a file system without links, a reader may find the file empty for a moment.
    """
    text = json.dumps(value, default=to_plain)
    with _temporary_file(target) as name:
        _write_to_disk(name, lambda file: file.write(text.encode()))
        try:
            os.link(name, target)
        except FileExistsError:
            return False
        except OSError:  # a file system without links: whoever makes the empty file may replace it
            try:
                os.close(os.open(target, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return False
            os.replace(name, target)
    return True


def read_npz(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """Read a file that ``write_npz`` wrote: (header, arrays by name).

    A truncated or corrupt file raises an exception of any type, a compressed one a ValueError.
    """
    with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
        if sum(member.file_size for member in file.zip.infolist()) > path.stat().st_size:
            raise ValueError(f"{path}: compressed, and lla_jax never writes compressed files; save the result again")
        arrays = {name: file[name] for name in file.files}
    return json.loads(str(arrays.pop("header")[()])), arrays


def to_plain(value: Any) -> Any:
    """The Python number or list that stands for a numpy value in JSON; a ValueError for a value of another type."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise ValueError(
        f"recipe: holds a {type(value).__name__}, which is not JSON; keep recipes to numbers, strings, lists and dicts"
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
