"""Files of ``torch.save``, read as data: sizes and checksums before anything is unpacked, harmless types only."""

from __future__ import annotations

import mmap
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lla_torch.weights.harmless import harmless_types

READ_ERRORS = (
    RuntimeError,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    OSError,
    AssertionError,
    RecursionError,
    MemoryError,
    OverflowError,
)
"""What readers raise for damaged files."""
_SHOWN = 20  # names in a message
_PIECE = 2**20  # bytes that are checked at once
_FILLED = (b"cbuiltins\nbytearray\n", b"c__builtin__\nbytearray\n")
_FOLDER = 0x10  # an attribute of entries for which torch reads nothing
_PICKLED = "torch.storage._load_from_bytes"
_SAVE = "torch.save(module.state_dict(), 'weights.pth')"


def read_pickle(path: Path, limit: int) -> Any:
    """Read a file of ``torch.save``, of the zip format or the one before it, without running code.

    Args:
      path: the file.
      limit: bytes that compressed entries may unpack to. torch does not compress them.

    Raises:
      ValueError: a damaged file, another kind of archive, or a file with other Python objects than harmless ones.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    if zipped:
        _check_archive(path, limit)
    _refuse_filled(path, zipped)
    try:
        with warnings.catch_warnings(), harmless_types():
            warnings.simplefilter("ignore")  # about pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except (*READ_ERRORS, pickle.UnpicklingError) as error:
        raise _explain(path, error) from error


def _refuse_filled(path: Path, zipped: bool) -> None:
    """Refuse ``bytearray(n)``, which torch's reader allows: a few bytes would fill any amount of memory.

    The name of a function is plain text in the pickles that torch reads.
    """
    if any(text.find(name) >= 0 for text in _pickles(path, zipped) for name in _FILLED):
        raise ValueError(
            f"path: {str(path)!r} is refused, because it holds a bytearray, which may fill the memory. Where the file "
            f"comes from, save the weights alone: {_SAVE}"
        )


def _pickles(path: Path, zipped: bool) -> Iterator[Any]:
    """The pickles in a file: of an archive its entries of this kind, without their checksums; else all of it."""
    if not zipped:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content
        return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith(".pkl"):
                with archive.open(entry) as part:
                    part._expected_crc = None  # type: ignore[attr-defined]  # torch may have been told to write none
                    yield part.read()


def _explain(path: Path, error: Exception) -> ValueError:
    """The error for a file that torch's reader refused."""
    objects = _foreign_objects(path, error) if isinstance(error, pickle.UnpicklingError) else []
    if objects == [_PICKLED]:
        return ValueError(
            f"path: {str(path)!r} is refused, because it was written by pickle.dump, whose tensors cannot be read "
            f"without running code. Where the file comes from, save the weights alone: {_SAVE}"
        )
    if objects:
        return ValueError(
            f"path: {str(path)!r} is refused, because it holds Python objects besides tensors, {objects[:_SHOWN]}, and "
            f"loading these can run any code. Where the file comes from, save the weights alone: {_SAVE}"
        )
    said = re.search(r"WeightsUnpickler error:\s*(.*)", str(error))  # torch's own text goes on with advice
    reason = (said[1] if said else str(error)).strip().split("\n")[0].split(". ")[0] or type(error).__name__
    if "Unsupported operand" in reason:
        reason = "it is no pickle of protocol 2, torch.save's default"
    return ValueError(
        f"path: {str(path)!r} is not a checkpoint of torch.save, or a damaged one ({reason}; nothing of it was "
        f"executed); save it again, {_SAVE}, or download it again"
    )


def _foreign_objects(path: Path, error: Exception) -> list[str]:
    """Names of the types and functions that the reader refused, for the message."""
    try:
        with harmless_types():
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (*READ_ERRORS, pickle.UnpicklingError):
        names = []  # the old format, or a damaged file
    return sorted(names) or sorted(set(re.findall(r"GLOBAL ([A-Za-z_][\w.]*)", str(error))))


# --- the zip archive around a pickle


def _check_archive(path: Path, limit: int) -> None:
    """Raise a ValueError unless an archive is one of torch.save, of a size that fits its file, with right checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            fits = _fits_sizes(path, entries, limit)
            damaged = _find_damage(archive, entries) if fits else None
    except (zipfile.BadZipFile, zlib.error, *READ_ERRORS) as error:
        raise ValueError(
            f"path: {str(path)!r} is not a checkpoint of torch.save, or a damaged one ({error}); save or download it "
            "again"
        ) from error
    if not fits:
        raise ValueError(
            f"path: {str(path)!r} has {path.stat().st_size} bytes but would unpack to "
            f"{sum(entry.file_size for entry in entries)}, far more than the network has; torch.save does not "
            f"compress: save the weights again, {_SAVE}"
        )
    _check_kind(path, {entry.filename for entry in entries})
    if damaged:
        raise ValueError(
            f"path: {str(path)!r} is damaged: the checksum of its entry {damaged!r} is wrong, so that weights differ "
            "from those that were saved; save or download it again"
        )


def _check_kind(path: Path, names: set[str]) -> None:
    ends = {name.split("/")[-1] for name in names}
    if "constants.pkl" in ends:
        raise ValueError(
            f"path: {str(path)!r} is a TorchScript archive, which holds a program and is not read; if you trust the "
            "file, save its weights alone: torch.save(torch.jit.load(path).state_dict(), 'weights.pth')"
        )
    if "data.pkl" in ends and len({name for name in names if name.split("/")[-1] == "data.pkl"}) == 1:
        return
    kind, remedy = "a zip archive", "unpack it, and pass the checkpoint file inside"
    if ends and all(name.endswith(".npy") for name in ends):
        kind = "a .npz file of numpy"
        remedy = "pass its arrays as a dict: load_checkpoint(dict(numpy.load(path)), net)"
    elif "archive_format" in ends or any(name.endswith(".json") and "model" in name for name in names):
        kind, remedy = "a program of torch.export", f"save the weights of its module alone: {_SAVE}"
    raise ValueError(f"path: {str(path)!r} is not a checkpoint of torch.save but {kind}; {remedy}")


def _fits_sizes(path: Path, entries: list[zipfile.ZipInfo], limit: int) -> bool:
    """Whether stored entries hold no more than the file, and compressed ones no more than the network may need."""
    stored = sum(entry.file_size for entry in entries if entry.compress_type == zipfile.ZIP_STORED)
    packed = sum(entry.file_size for entry in entries if entry.compress_type != zipfile.ZIP_STORED)
    return stored <= path.stat().st_size and packed <= limit


def _find_damage(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> str | None:
    """The first entry whose checksum is wrong; None if all agree, or if torch was told to write none."""
    checked = any(entry.CRC for entry in entries)
    for entry in entries:
        if entry.external_attr & _FOLDER:
            return entry.filename
        with archive.open(entry) as file:
            try:
                while checked and file.read(_PIECE):
                    pass
            except (zipfile.BadZipFile, zlib.error):
                return entry.filename
    return None
