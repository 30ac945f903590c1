"""Checkpoint files and folders, read as data: which kind a file is, the files in a folder, shards and their index."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from lla_torch.weights.pickles import read_pickle

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".th", ".tar")
"""Ends of the names that checkpoint files have."""
_INDEX_BYTES = 2**26  # no index of a real model has more
_SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)(\.\w+)")
_OTHERS = re.compile(r"(optimizer|scheduler|scaler|rng_state.*|training_args|random_states.*)\.\w+")
"""Files of a trainer beside the weights."""
_KINDS = (  # what other files begin with, and what to do
    (rb"version https://git-lfs", "a pointer of Git LFS to it", "fetch the file itself with `git lfs pull`"),
    (rb"\s*<(!doctype|html|\?xml|head|body)", "a web page", "download the file itself, not the page that shows it"),
    (rb".{257}ustar|\x1f\x8b|\x28\xb5\x2f\xfd|BZh|\xfd7zXZ|7z\xbc\xaf", "an archive or a compressed file", "unpack it"),
    (rb"\x89HDF", "an HDF5 file, as Keras has", "pass a file of the PyTorch model"),
    (rb"GGUF", "a GGUF file, which holds quantized weights", "pass the .safetensors file of the model"),
    (rb"\x93NUMPY", "a .npy file of numpy", "pass a dict of arrays with the names of the module's tensors"),
)


def read_file(path: Path, limit: int) -> Any:
    """Read a checkpoint file, the one in a folder, or the shards of an index. Nothing of a file is executed.

    Args:
      path: a file of ``torch.save``, a .safetensors file, an .index.json with its shards beside it, or a folder.
      limit: bytes that compressed entries may unpack to.

    Returns:
      The content: a state_dict of tensors on the CPU, or what ``torch.save`` was given.

    Raises:
      FileNotFoundError: no such file or shard.
      ValueError: another kind of file, a damaged one, one with Python objects that are not harmless, or a folder with
        no checkpoint or with several.
    """
    try:
        there = path.exists()
    except (OSError, ValueError) as error:  # names that no file can have
        name = f"{str(path)[:40]!r} ... of {len(str(path))} characters" if len(str(path)) > 80 else repr(str(path))
        raise ValueError(f"path: {name} can name no file ({error.args[-1]}); pass a checkpoint file") from error
    if not there:
        link = ", but the file that this link leads to is missing; download it" if path.is_symlink() else None
        where = "" if path.is_absolute() else f" in {str(Path.cwd())!r}"
        remote = "; nothing is fetched from the net, so download it first" if re.match(r"\w+:/", str(path)) else ""
        none = f", but there is no such file{where}; pass a checkpoint file{remote}"
        raise FileNotFoundError(f"path: {str(path)!r} given{link or none}")
    if path.is_dir():
        return _read_folder(path, limit)
    if not path.is_file():
        raise ValueError(f"path: {str(path)!r} is neither a file nor a folder; pass a checkpoint file")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise ValueError(f"path: {str(path)!r} cannot be read ({error.strerror}); pass a file that can") from error
    if not head:
        raise ValueError(f"path: {str(path)!r} is empty; save or download the checkpoint again")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:  # the length of the header
        return _read_safetensors(path)
    for start, kind, remedy in _KINDS:
        if re.match(start, head, re.IGNORECASE | re.DOTALL):
            raise ValueError(
                f"path: {str(path)!r} is not a checkpoint of torch.save or safetensors but {kind}; {remedy}"
            )
    if path.suffix == ".json":
        return _read_shards(path, _read_index(path), limit)
    if path.suffix == ".safetensors" and head[:2] != b"PK":
        return _read_safetensors(path)
    return read_pickle(path, limit)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, whose header is checked against its size; the format has no checksum."""
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:
        raise ValueError(
            f"path: {str(path)!r} is not a complete safetensors file ({error}); save or download it again"
        ) from error


# --- folders and shards


def _read_folder(folder: Path, limit: int) -> Any:
    files = sorted(each for each in folder.iterdir() if each.is_file() and not _OTHERS.fullmatch(each.name))
    weights = [each for each in files if each.suffix in SUFFIXES]
    indexes = {each.name.removesuffix(".index.json"): each for each in files if each.name.endswith(".index.json")}
    named = {name: index for name, index in indexes.items() if Path(name).suffix in SUFFIXES}
    sets: dict[str, dict[str, str]] = {}  # shards without an index
    for file in list(weights):
        if parts := _SHARD.fullmatch(file.name):
            whole = parts[1] + parts[4]
            weights.remove(file)
            if whole not in named:
                sets.setdefault(whole, {})[file.name] = file.name
    choices = {**{file.name: file for file in weights}, **named, **{whole: folder / whole for whole in sets}}
    choice = _choose(folder, {name: file.name for name, file in choices.items()})
    if choice in sets:
        return _read_set(folder, list(sets[choice]), limit)
    return read_file(choices[choice], limit)


def _choose(folder: Path, names: dict[str, str]) -> str:
    """The checkpoint among those of a folder: the only one, or of two formats of the same weights the safe one.

    Args:
      folder: the folder.
      names: the file to pass for each checkpoint: itself, or the index of its shards.
    """
    stems = {"model" if Path(name).stem == "pytorch_model" else Path(name).stem for name in names}
    if len(stems) == 1:
        return min(names, key=lambda name: (SUFFIXES.index(Path(name).suffix), name))
    if (folder / ".metadata").exists():
        raise ValueError(
            f"path: {str(folder)!r} is a checkpoint of torch.distributed; turn it into one file with "
            "torch.distributed.checkpoint.format_utils.dcp_to_torch_save(folder, 'weights.pth')"
        )
    files = sorted(file for file in names.values() if (folder / file).exists())
    sets = sorted(name for name, file in names.items() if not (folder / file).exists())
    if names:
        shards = f"; for the shards of {sets}, pass a folder with them alone" if sets else ""
        raise ValueError(
            f"path: {str(folder)!r} holds several checkpoints; pass the path of one of {files}{shards}"
            if files
            else f"path: {str(folder)!r} holds several checkpoints in shards, {sets}; pass a folder with those of one"
        )
    inner = sorted({f"{each.parent.name}/" for each in folder.glob("*/*") if each.suffix in SUFFIXES})
    found = f"but its folders {inner[:20]} do; pass one of these" if inner else "such as model.safetensors; pass one"
    raise ValueError(f"path: {str(folder)!r} holds no checkpoint file, {found}")


def _read_index(path: Path) -> dict[str, str]:
    """The names of tensors and the files beside the index that hold them."""
    if path.stat().st_size > _INDEX_BYTES:
        raise ValueError(
            f"path: {str(path)!r} has {path.stat().st_size} bytes, too many for an index; pass a checkpoint"
        )
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"path: {str(path)!r} is no complete JSON file ({error}); download it again") from error
    table = content.get("weight_map") if isinstance(content, Mapping) else None
    if not isinstance(table, Mapping) or not table or not all(isinstance(file, str) for file in table.values()):
        raise ValueError(
            f"path: {str(path)!r} is a JSON file without a 'weight_map' of names and files; pass the file or folder "
            "with the weights"
        )
    for file in table.values():
        if file in ("", ".", "..") or re.search(r"[/\\:\0]", file) or Path(file).suffix not in SUFFIXES:
            raise ValueError(
                f"path: {str(path)!r} lists the file {file!r}; shards must be checkpoint files beside their index, "
                "such as 'model-00001-of-00002.safetensors'"
            )
    return dict(table)


def _read_set(folder: Path, names: list[str], limit: int) -> dict[str, Any]:
    """All shards of a set without an index."""
    matches = [match for match in map(_SHARD.fullmatch, names) if match]
    count, numbers = int(matches[0][3]), {int(match[2]) for match in matches}
    if any(int(match[3]) != count for match in matches) or len(numbers) != count or len(names) != count:
        raise ValueError(
            f"path: {str(folder)!r} holds {len(names)} of {count} shards, {names[:20]}; download the set again"
        )
    return _merge((_read_shard(folder / name, limit // count) for name in names), folder)


def is_shard(path: Path) -> bool:
    """Whether a file is, by its name, one of several shards."""
    parts = _SHARD.fullmatch(path.name)
    return parts is not None and int(parts[3]) > 1


def _merge(shards: Iterable[Mapping[str, Any]], place: Path) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for shard in shards:
        if double := sorted(set(shard) & set(result)):
            raise ValueError(f"path: {str(place)!r} has {double[:20]} in several shards; save the checkpoint again")
        result.update(shard)
    return result


def _read_shards(index: Path, table: Mapping[str, str], limit: int) -> dict[str, Any]:
    """The tensors that an index lists, from the files beside it."""
    names = sorted(set(table.values()))
    if absent := [name for name in names if not (index.parent / name).is_file()]:
        raise FileNotFoundError(
            f"path: {str(index)!r} lists {absent[:20]}, but there are no such files beside it; download them"
        )
    shards = {name: _read_shard(index.parent / name, limit // len(names)) for name in names}
    if lost := [name for name, file in table.items() if name not in shards[file]]:
        raise ValueError(
            f"path: {str(index)!r} lists {lost[:20]}, which their shards do not hold; download the checkpoint again"
        )
    return {name: shards[file][name] for name, file in table.items()}


def _read_shard(path: Path, limit: int) -> Mapping[str, Any]:
    content = read_file(path, limit)
    if not isinstance(content, Mapping):
        raise ValueError(f"path: {str(path)!r} is no shard: it holds a {type(content).__name__}; download it again")
    return content
