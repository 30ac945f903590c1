"""Objects beside tensors that a checkpoint may hold: numbers, containers and records, read as data and never called.

torch's reader calls what a pickle names, so every name here stands for a function or class that can do nothing but hold
what the file holds. Dicts of other packages become dicts; numpy's own constructors are not called with a file's bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import decimal
import math
import pathlib
import pickle
import re
import threading
import types
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch


class Dtype:
    """numpy's type of entries, as a pickle describes it: numbers, booleans, text, dates and objects, no records.

    Args:
      text: such as "f8". Dates and durations ("M8", "m8") are read as the integers that hold them.
    """

    def __init__(self, text: Any = "", *_: Any):
        if not isinstance(text, str) or not re.fullmatch(r"\?|b1|[mM]8|[iufcSUO]\d{0,8}", text):
            shown = text[:20] if isinstance(text, str) else type(text).__name__
            raise pickle.UnpicklingError(f"it holds numpy entries of type {shown!r}, which are no numbers")
        kind = {"O": "O", "M": "i8", "m": "i8"}.get(text[0], text)
        self.dtype: np.dtype[Any] = np.dtype(kind)

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class Array(np.ndarray[Any, Any]):
    """A numpy array of a pickle. It is made empty and filled by ``__setstate__``, after a check of its size."""

    def __new__(cls, *_: Any) -> Array:
        """An empty array, whatever a file asks for."""
        return np.ndarray.__new__(cls, (0,), np.uint8)

    def __setstate__(self, state: Any) -> None:
        shape, dtype, fortran, content = state[-4:]
        count = math.prod(int(n) for n in shape)
        objects = dtype.dtype.hasobject
        size = count if objects else count * dtype.dtype.itemsize
        kind = list if objects else bytes
        if min(shape, default=0) < 0 or not isinstance(content, kind) or len(content) != size:
            raise pickle.UnpicklingError("it holds a numpy array whose shape and content disagree")
        whole: Any = (1, tuple(map(int, shape)), dtype.dtype, bool(fortran), content)
        super().__setstate__(whole)


class Text(str):
    """A string of another class, such as torch's version."""

    def __new__(cls, text: Any = "", *_: Any) -> Text:
        """The string; nothing else is written out, which could be long."""
        return str.__new__(cls, text if isinstance(text, str) else "")


def _scalar(dtype: Dtype, content: bytes) -> Any:
    if dtype.dtype.hasobject or len(content) != dtype.dtype.itemsize:
        raise pickle.UnpicklingError("it holds a numpy number whose type and content disagree")
    return np.frombuffer(content, dtype.dtype)[0]


def _array(*_: Any) -> Array:
    return Array()


def _default_dict(*_: Any) -> dict[Any, Any]:
    return {}  # the factory is for entries that are missing


def _items(items: Iterable[Any] = (), *_: Any) -> list[Any]:
    return list(items) if isinstance(items, list | tuple | set | frozenset) else []


def _path(*parts: Any) -> str:
    return str(pathlib.PurePosixPath(*(part for part in parts if isinstance(part, str))))


def _arguments(*values: Any) -> tuple[Any, ...]:
    return values


def _bytes(*_: Any) -> bytes:
    return b""  # protocol 2 names the type for empty bytes alone


def _name(*_: Any) -> None:
    return None  # a type that a file only names, such as the factory of a defaultdict


_RECORDS = (  # dicts with attributes
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "easydict.EasyDict",
    "addict.addict.Dict",
    "yacs.config.CfgNode",
)
_SETTINGS = (  # objects of omegaconf, as Hydra's and fairseq's, which become records of what the file holds
    *("dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata", "base.Metadata", "base.UnionNode"),
    *(f"nodes.{kind}Node" for kind in ("Any", "String", "Integer", "Float", "Boolean", "Bytes", "Path", "Enum")),
)
_NUMBERS = (
    *("bool", "bool_", "float16", "float32", "float64", "longdouble", "complex64", "complex128", "str_", "bytes_"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "datetime64", "timedelta64"),
)
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath")
_FACTORIES = ("int", "float", "bool", "str", "list", "dict", "tuple")
HARMLESS: list[Any] = [
    (_default_dict, "collections.defaultdict"),
    (_items, "collections.deque"),
    (frozenset, "builtins.frozenset"),
    (_arguments, "builtins.range"),
    (_arguments, "builtins.slice"),
    (argparse.Namespace, "argparse.Namespace"),
    (types.SimpleNamespace, "types.SimpleNamespace"),
    (decimal.Decimal, "decimal.Decimal"),
    (_bytes, "builtins.bytes"),
    (Text, "torch.torch_version.TorchVersion"),
    (Dtype, "numpy.dtype"),
    (Array, "numpy.ndarray"),
    *((kind, f"datetime.{kind.__name__}") for kind in (datetime.datetime, datetime.date, datetime.time)),
    *((kind, f"datetime.{kind.__name__}") for kind in (datetime.timedelta, datetime.timezone)),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_path, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name in _PATHS),
    *((_name, f"builtins.{name}") for name in _FACTORIES),
    *((_name, f"numpy.{name}") for name in _NUMBERS),
    (_name, "typing.Any"),
    *((OrderedDict, name) for name in _RECORDS),
    *((types.SimpleNamespace, f"omegaconf.{name}") for name in _SETTINGS),
]
"""What torch's reader takes for the names in a file: pairs (function or class, name)."""


_LOCK = threading.RLock()  # torch has one list for all threads


@contextlib.contextmanager
def harmless_types() -> Iterator[None]:
    """Allow torch's reader the names in ``HARMLESS`` besides those that the caller allowed it."""
    with _LOCK:
        own, names = torch.serialization.get_safe_globals(), {name for _, name in HARMLESS}
        others = [each for each in own if _full_name(each) not in names]  # of two entries of a name either is taken
        try:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals([*others, *HARMLESS])
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(own)


def _full_name(entry: Any) -> str:
    return entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"
