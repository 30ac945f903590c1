"""Files of ``torch.save``, read as data: sizes and checksums before anything is unpacked, harmless types only."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch

from lla_torch.weights.harmless import harmless_types

_SHOWN = 20  # names in a message
_PIECE = 2**20  # bytes that are checked at once
_FOLDER = 0x10  # an attribute of entries for which torch reads nothing
_OLD_PICKLES = 5  # of the format before torch 1.6: a number, a version, the machine, the content, names of storages
_DEEPEST = 200  # levels of tuples
_MOST_NESTED = 10**7  # entries of all levels of a tuple
_LONGEST_CODEC = 99  # characters of a codec's name
_ENCODE = "_codecs encode"
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
    _check_pickles(path, zipped)
    try:
        with warnings.catch_warnings(), harmless_types():
            warnings.simplefilter("ignore")  # about pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a reader of damaged files raises
        raise _explain(path, error) from error


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
    except Exception:
        names = []  # the old format, or a damaged file
    return sorted(names) or sorted(set(re.findall(r"GLOBAL ([A-Za-z_][\w.]*)", str(error))))


# --- pickles that take long or much


def _check_pickles(path: Path, zipped: bool) -> None:
    """Raise a ValueError if a pickle names what torch's reader calls and a few bytes can make huge or slow.

    These are bytearrays of a length, codecs that take a time quadratic in the text, and nests of tuples as keys. No
    checkpoint needs them.
    """
    if zipped:
        with zipfile.ZipFile(path) as archive:
            entry = next(each for each in archive.infolist() if each.filename.split("/")[-1] == "data.pkl")
            entry.CRC = None  # type: ignore[assignment]  # checked before, and torch may be told to write none
            found = _find_costly(io.BytesIO(archive.read(entry)), 1)
    else:
        with path.open("rb") as file:
            found = _find_costly(file, _OLD_PICKLES)
    if found is not None:
        raise ValueError(
            f"path: {str(path)!r} is refused, because it holds a {found}, which no weights need and which may take all "
            f"memory or time. Where the file comes from, save the weights alone: {_SAVE}"
        )


def _find_costly(file: BinaryIO, pickles: int) -> str | None:
    """The first such thing among the opcodes of pickles, one after the other; None if there is none to be read.

    A bytearray is written with its content: text, or encoded text, or nothing.
    """
    encodes, slow = False, None
    try:
        for _ in range(pickles):
            memo: dict[Any, str] = {}  # the names at its places
            top = ""  # the name on top of the stack
            nests = Nests()
            for opcode, argument, _ in pickletools.genops(file):
                nests.step(opcode, argument)
                if nests.tallest > _DEEPEST or nests.largest > _MOST_NESTED:
                    return "nest of tuples"
                if "PUT" in opcode.name:
                    memo[argument] = top
                    continue
                name = str(argument) if opcode.name == "GLOBAL" else ""
                name = memo.get(argument, "") if "GET" in opcode.name else name
                if top.endswith(" bytearray") and name != _ENCODE and opcode.name not in ("BINUNICODE", "EMPTY_TUPLE"):
                    return "bytearray of a given length"
                top = name
                encodes |= top == _ENCODE or top.endswith(" bytearray")
                if isinstance(argument, str) and len(argument) <= _LONGEST_CODEC and _is_slow_codec(argument):
                    slow = f"text in the encoding {argument!r}"
    except Exception:  # damaged, which the reader says
        pass
    return slow if encodes else None


class Nests:
    """The nests of tuples that a pickle builds: as a key, each is hashed through all levels, by recursion in C."""

    def __init__(self) -> None:
        self.stack: list[tuple[int, int] | None] = []  # (levels, entries of all levels) of each object; None: a mark
        self.memo: dict[Any, tuple[int, int]] = {}
        self.tallest = self.largest = 0

    def step(self, opcode: Any, argument: Any) -> None:
        """Follow one opcode of a pickle."""
        if "PUT" in opcode.name or opcode.name == "MEMOIZE":
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1] or (0, 1)
            return
        taken: list[tuple[int, int]] = []
        for kind in reversed(opcode.stack_before):
            if kind is pickletools.stackslice:
                while self.stack[-1] is not None:
                    taken.append(self.stack.pop() or (0, 1))
            else:
                taken.append(self.stack.pop() or (0, 0))
        for kind in opcode.stack_after:
            self.stack.append(self._made(opcode, argument, kind, taken))

    def _made(self, opcode: Any, argument: Any, kind: Any, taken: list[tuple[int, int]]) -> tuple[int, int] | None:
        if kind is pickletools.markobject:
            return None
        if "GET" in opcode.name:
            return self.memo[argument]
        if opcode.name == "DUP":
            return taken[0]
        if "TUPLE" not in opcode.name:
            return 0, 1
        levels, entries = 1 + max((x[0] for x in taken), default=0), 1 + sum(x[1] for x in taken)
        self.tallest, self.largest = max(self.tallest, levels), max(self.largest, entries)
        return levels, entries


def _is_slow_codec(name: str) -> bool:
    return re.sub(r"[\W_]", "", name).lower() in ("punycode", "idna")


# --- the zip archive around a pickle


def _check_archive(path: Path, limit: int) -> None:
    """Raise a ValueError unless an archive is one of torch.save, of a size that fits its file, with right checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            fits = _fits_sizes(path, entries, limit)
            damaged = _find_damage(archive, entries) if fits else None
    except Exception as error:
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
