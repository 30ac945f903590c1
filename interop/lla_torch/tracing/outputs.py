"""Takes apart what a module returns: tensors and numbers in tuples, lists and dicts stay, other objects are dropped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

NUMBERS = bool | int | float | complex | torch.SymInt | torch.SymFloat | torch.SymBool


def split_outputs(outputs: Any) -> tuple[Any, dict[str, str]]:
    """Split the outputs of a module into those that a graph returns, and those that it does not.

    Tensors, numbers and None stay, nested in tuples, named tuples, lists and dicts. Other containers become such: a
    mapping of any class (a ``ModelOutput``) and an object with declared fields (a dataclass, a class of attrs) a dict.
    Whatever else is among them, such as the cache of a language model, a distribution or a string, is dropped: None
    takes its place in a sequence, and a dict goes without its name.

    Args:
      outputs: what the module returned.

    Returns:
      (outputs that stay, {path: type of an object that is dropped}), paths as "past_key_values" or "0.scale".
    """
    dropped: dict[str, str] = {}
    return _keep(outputs, "", dropped), dropped


def _keep(x: Any, path: str, dropped: dict[str, str]) -> Any:
    if x is None or isinstance(x, torch.Tensor | NUMBERS):
        return x
    if isinstance(x, np.ndarray | np.generic) and x.dtype.kind in "biufc":
        return torch.as_tensor(x)
    fields = _fields(x)
    if fields is not None:
        kept = {name: _keep(value, _join(path, name), dropped) for name, value in fields.items()}
        return {name: value for name, value in kept.items() if _join(path, name) not in dropped}
    if isinstance(x, tuple | list):
        names = getattr(x, "_fields", range(len(x)))
        values = [_keep(value, _join(path, name), dropped) for name, value in zip(names, x, strict=True)]
        if isinstance(x, list):
            return values
        return type(x)(*values) if hasattr(x, "_fields") else tuple(values)
    dropped[path] = type(x).__name__
    return None


def _join(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)


def _fields(x: Any) -> dict[Any, Any] | None:
    """The entries of a mapping, or the declared fields of an object, by name; None of anything else."""
    if isinstance(x, Mapping):
        return dict(x)
    if isinstance(x, type):
        return None
    if dataclasses.is_dataclass(x):
        return {f.name: getattr(x, f.name) for f in dataclasses.fields(x) if hasattr(x, f.name)}
    if hasattr(type(x), "__attrs_attrs__"):
        return {a.name: getattr(x, a.name) for a in type(x).__attrs_attrs__}
    return None
