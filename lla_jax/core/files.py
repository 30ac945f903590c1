"""Files of plain arrays: written whole or not at all, by any number of writers, and never pickled."""

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


def try_writing(folder: Path) -> None:
    """Make the folder and a file in it, which is removed again; an OSError where that cannot be."""
    probe = folder / f".lla-jax-{platform.node()}-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    probe.touch()
    probe.unlink(missing_ok=True)


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[str]:
    """Name of a temporary file in the folder of ``target``, which is gone afterwards unless it was renamed."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=".tmp")
    os.close(handle)
    try:
        yield name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _fill(name: str, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a temporary file, force it to disk, and give it the rights of any new file."""
    with open(name, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(name, 0o666 & ~_umask())


def write_npz(target: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Arrays with a JSON header, into a temporary file of the same folder, forced to disk, then renamed: no reader ever
    sees half a file, and of several writers the last one wins."""
    text = json.dumps(header, default=plain)
    with _beside(target) as name:
        _fill(name, lambda file: np.savez(file, header=np.array(text), **arrays))  # type: ignore[arg-type]
        os.replace(name, target)


def write_text(target: Path, text: str) -> None:
    """Text, in the same way."""
    with _beside(target) as name:
        _fill(name, lambda file: file.write(text.encode()))
        os.replace(name, target)


def write_first(target: Path, value: Any) -> bool:
    """JSON into a file that must not exist: True for the one writer who was first, whole for every reader."""
    text = json.dumps(value, default=plain)
    with _beside(target) as name:
        _fill(name, lambda file: file.write(text.encode()))
        try:
            os.link(name, target)
        except FileExistsError:
            return False
        except OSError:  # a file system without links: first come by the name, then the contents
            try:
                os.close(os.open(target, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return False
            os.replace(name, target)
    return True


def read_npz(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """(header, arrays) of what ``write_npz`` wrote; raises anything where the file is truncated or corrupt."""
    with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
        if sum(member.file_size for member in file.zip.infolist()) > path.stat().st_size:
            raise ValueError("it is compressed, as lla_jax never writes them")
        arrays = {name: file[name] for name in file.files}
    return json.loads(str(arrays.pop("header")[()])), arrays


def plain(value: Any) -> Any:
    """Numpy numbers and arrays as JSON."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise ValueError(
        f"recipe: holds a {type(value).__name__}, which is not JSON; keep recipes to numbers, strings, lists and dicts"
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
