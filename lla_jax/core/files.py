"""Writes and reads files of arrays and JSON; pickled objects are neither written nor read.

Any number of processes may write one file at once: a file is written under another name and renamed, so that no reader
sees half of it. A file that is read may be damaged, of another program, or hostile: no claim in it is believed before
it is compared with the size of the file, so that reading takes a small multiple of that size.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import platform
import stat
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from lla_jax.core.arguments import Misuse, misuse

MOST_LEVELS = 200  # of nested lists and dicts in JSON; far more of them exhaust the stack
LONGEST_DESCRIPTION = 1000  # bytes that describe the dtype and shape of an array; numpy needs long for a long one
LONGEST_PATH, LONGEST_NAME = 4096, 255  # bytes, of file systems
PATIENCE_S = 5.0  # how long a file may be empty while another process is making it
OLD_S = 60.0  # an empty file of this age was left by a process that was killed
SIGNATURES = {
    b"\x89PNG": "a picture (PNG)",
    b"\xff\xd8\xff": "a picture (JPEG)",
    b"%PDF": "a PDF",
    b"\x93NUMPY": "a single array (.npy), which numpy.load reads",
    b"\x89HDF": "an HDF5 file",
    b"\x80": "a pickle, which is never opened because it can run any code",
    b"\x1f\x8b": "a file packed by gzip",
}


# --- paths


def check_path(name: str, path: Any, example: str = "runs/exp1.npz") -> Path:
    """Return a path given as text, bytes or a Path-like object as a ``Path``; "~" is the user's home folder.

    Args:
      name: the argument's name.
      path: the value given.
      example: a path for the message.

    Raises:
      Misuse: another type, an empty text, or characters that no path has.
    """
    if not isinstance(path, str | bytes | os.PathLike):
        raise misuse(name, path, f"a path, such as {example!r}")
    text = os.fsdecode(path)
    if not text.strip():
        raise misuse(name, path, f"the path of a file or folder, such as {example!r}")
    try:
        names = os.fsencode(text).split(os.sep.encode())
    except UnicodeEncodeError:
        raise misuse(name, path, f"a path of characters that have an encoding, such as {example!r}") from None
    if b"\0" in os.fsencode(text):
        raise misuse(name, path, f"a path without NUL characters, such as {example!r}")
    if max(map(len, names)) > LONGEST_NAME or len(os.fsencode(text)) > LONGEST_PATH:
        rule = f"of at most {LONGEST_PATH:,} bytes, with names of at most {LONGEST_NAME}"
        raise Misuse(name, f"{show_path(Path(text))} given; it must be a path {rule}, such as {example!r}")
    with contextlib.suppress(RuntimeError):  # "~name" of no user is a file of that name
        return Path(text).expanduser()
    return Path(text)


def explain(name: str, path: Path, action: str, error: OSError, remedy: str) -> OSError:
    """Make (not raise) an OSError of the same kind that names the argument and the path, and says what to do."""
    return type(error)(f"{name}: {show_path(path)} {action} ({error.strerror or error}); {remedy}")


def show_path(path: Path) -> str:
    """The text of a path in messages; the middle of a very long one is left out."""
    text = str(path)
    return text if len(text) <= 300 else f"{text[:100]}...{text[-100:]} ({len(text)} characters)"


# --- writing


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


def _settle(name: str) -> None:
    """Force a file that was written to disk, and give it the permissions of any new file."""
    with open(name, "rb+") as file:
        os.fsync(file.fileno())
    os.chmod(name, 0o666 & ~_umask())


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[str]:
    """Yield the name of an empty file, which takes the place of ``target`` at the end of the block.

    After an error or an interrupt in the block it is removed, and ``target`` is as it was.
    """
    with _temporary_file(target) as name:
        yield name
        _settle(name)
        os.replace(name, target)


def write_npz(
    target: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]]
) -> None:
    """Write arrays by name, with a JSON header, into an .npz file, and replace an old one; the last writer wins.

    Args:
      target: the file.
      header: plain data.
      arrays: the arrays by name; pairs of names and arrays are asked for one at a time, as they are written.
    """
    first = ("header", np.array(to_json(header)))
    items = arrays.items() if isinstance(arrays, Mapping) else arrays
    with replacing(target) as name, open(name, "wb") as file:
        _write_members(file, itertools.chain([first], items))


def _write_members(file: IO[bytes], arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write an .npz file as ``numpy.savez`` does, which wants all arrays at once."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def write_text(target: Path, text: str) -> None:
    """Write text (UTF-8) into a file, and replace an old one; the last writer wins."""
    with replacing(target) as name, open(name, "wb") as file:
        file.write(text.encode())


def write_new(target: Path, value: Any) -> bool:
    """Write JSON into a new file; return True if this call made it, and False if it was there already.

    On a file system without links, a reader may find the file empty for a moment; an empty file that was left by a
    process that was killed in this moment counts as none.
    """
    text = to_json(value)
    with _temporary_file(target) as name:
        with open(name, "wb") as file:
            file.write(text.encode())
        _settle(name)
        try:
            os.link(name, target)
        except FileExistsError:
            return _replace_abandoned(name, target)
        except OSError:  # a file system without links: whoever makes the empty file may replace it
            try:
                os.close(os.open(target, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return _replace_abandoned(name, target)
            os.replace(name, target)
    return True


def _replace_abandoned(name: str, target: Path) -> bool:
    """Put the file ``name`` in the place of ``target`` if that was abandoned; return whether it was."""
    abandoned = is_abandoned(target)
    if abandoned:
        os.replace(name, target)
    return abandoned


def remove_torn(folder: Path, stem: str) -> None:
    """Remove what kills left of files that were being written.

    Args:
      folder: their folder.
      stem: what the names of the files begin with.
    """
    for file in folder.glob(f".{stem}-*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > OLD_S:
                file.unlink()


def is_abandoned(path: Path) -> bool:
    """Whether a file is empty and will stay so: its maker was killed. Of a new one this is known after some seconds."""
    end = time.monotonic() + PATIENCE_S
    with contextlib.suppress(FileNotFoundError):
        while not (status := path.stat()).st_size:
            if abs(time.time() - status.st_mtime) > OLD_S or time.monotonic() > end:
                return True
            time.sleep(0.05)
    return False


# --- reading


def read_npz(path: Path, wanted: Callable[[str], bool] | None = None) -> tuple[Any, dict[str, np.ndarray]]:
    """Read a file that ``write_npz`` wrote: (header, arrays by name).

    Args:
      path: the file.
      wanted: tells by its name whether an array is read; None for all.

    Raises:
      OSError: the file cannot be opened.
      ValueError: it is of another program; the message says of what kind.
      Exception: of any type for a truncated or corrupt file.
    """
    if kind := _foreign_kind(path):
        raise ValueError(f"it is {kind}")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename.removesuffix(".npy") for member in members]
        if len(set(names)) < len(names):
            raise ValueError("it has an entry twice")
        whole = sum(member.file_size for member in members)
        if whole > path.stat().st_size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed, and lla_jax never writes compressed files; save the result again")
        arrays = {
            name: read_array(archive, member)
            for name, member in zip(names, members, strict=True)
            if wanted is None or name == "header" or wanted(name)
        }
    return _parse_header(arrays.pop("header")), arrays


def read_header(path: Path) -> Any:
    """Read the header alone of a file that ``write_npz`` wrote; errors as those of ``read_npz``."""
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for a writer
        raise ValueError("it is no regular file")
    with zipfile.ZipFile(path) as archive:
        return _parse_header(read_array(archive, archive.getinfo("header.npy")))


def _parse_header(header: np.ndarray) -> Any:
    if header.dtype.kind != "U" or header.shape:
        raise ValueError("its header is no text")
    return parse_json(str(header[()]))


def describe_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype]:
    """(shape, dtype) of an array of an .npz file, after a check that the file holds as many bytes as these claim.

    Raises:
      ValueError: the description cannot be read, is not that of numbers, or claims another number of bytes.
    """
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"its entry {member.filename!r} is of an unknown version")
        try:
            read = np.lib.format.read_array_header_1_0
            shape, _, dtype = read(file, max_header_size=LONGEST_DESCRIPTION)
        except Exception as error:  # numpy's own advice is to allow pickles
            raise ValueError(f"its entry {member.filename!r} has no readable description") from error
        if dtype.kind not in "biufcVU" or dtype.names or dtype.subdtype or not dtype.itemsize:
            raise ValueError(f"its entry {member.filename!r} holds {dtype}, which are no numbers")
        held, claimed = member.file_size - file.tell(), _product(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or held != claimed:
            raise ValueError(f"its entry {member.filename!r} claims {claimed:,} bytes and has {held:,}")
    return tuple(shape), dtype


def read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Read an array of an .npz file; errors as those of ``describe_array``."""
    describe_array(archive, member)
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False, max_header_size=LONGEST_DESCRIPTION)


def restore_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
    """An array of the dtype it was saved with: numpy reads bfloat16 as raw bytes.

    Raises:
      ValueError: the array is of another type than the header says.
    """
    if array.dtype.name == dtype and array.dtype.kind != "V":
        return array
    wanted = np.dtype(dtype)
    if wanted.type is np.void:
        raise ValueError(f"an array is of {dtype}, which are no numbers")
    if array.dtype.kind != "V" or wanted.itemsize != array.dtype.itemsize or wanted.hasobject or wanted.fields:
        raise ValueError(f"an array is of {array.dtype.name}, but of {dtype} by the header")
    return array.view(wanted)


def _product(shape: tuple[int, ...]) -> int:
    """The number of entries of an array; axes beyond numpy's limit make an array of no use, even if it is empty."""
    return math.prod(shape) or (0 if all(n < 2**40 for n in shape) else -1)


def _foreign_kind(path: Path) -> str:
    """What a file of another program is, in words; "" for what may be a file of ``write_npz``."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        if (path / "recording.json").exists():
            return "the recording of a training, which lla.paths.load reads"
        inside = sorted(child.name for child in path.glob("*.npz"))[:3]
        if not inside and any(next(path.glob(name), None) for name in ("manifest.json", "sweep-*.json")):
            return "a folder; if it is a store, lla.runs.merge(path) reads it"
        return f"a folder; pass a file in it{', such as ' + ', '.join(inside) if inside else ''}"
    if not stat.S_ISREG(status.st_mode):
        return "no regular file"
    if not status.st_size:
        return "empty: the disk was full, or whoever wrote it was stopped"
    with open(path, "rb") as file:
        start = file.read(64)
    if kind := next((kind for signature, kind in SIGNATURES.items() if start.startswith(signature)), ""):
        return kind
    if not start.startswith(b"PK"):
        return "text" if start.isascii() and b"\0" not in start else ""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return ""  # truncated
    if any(name.endswith("data.pkl") for name in names):
        return "a torch checkpoint, which lla_torch.load_checkpoint reads"
    if "header.npy" not in names:
        shown = ", ".join(name.removesuffix(".npy") for name in names[:5]) or "none"
        return f"of another program (entries: {shown[:200]}); numpy.load reads it"
    return ""


def parse_json(text: str) -> Any:
    """The value of a JSON text; a ValueError for one that is no JSON, or of too many levels."""
    try:
        value = json.loads(text)
        deep = _has_many_levels(value)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        deep = True
    except ValueError as error:  # Python's advice is to raise its limit
        raise ValueError("its JSON has a number of thousands of digits") from error
    if deep:
        raise ValueError(f"its JSON has more than {MOST_LEVELS} levels")
    return value


def to_json(value: Any) -> str:
    """JSON of a value that may hold numpy's numbers and arrays; what ``parse_json`` would refuse is a ValueError."""
    if _has_many_levels(value):  # which would end in a RecursionError, here or in whoever reads it
        raise Misuse(
            "recipe", f"has more than {MOST_LEVELS} levels of lists and dicts, or holds itself; keep it flatter"
        )
    return json.dumps(value, default=to_plain)


def _has_many_levels(value: Any) -> bool:
    level, count = [value], 0
    while level := list({id(x): x for x in level if isinstance(x, dict | list | tuple)}.values()):
        if (count := count + 1) > MOST_LEVELS:
            return True
        level = [x for inner in level for x in (inner.values() if isinstance(inner, dict) else inner)]
    return False


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
