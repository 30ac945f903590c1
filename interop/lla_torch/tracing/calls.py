"""The arguments of a module's call, and what is wrong with those that it does not take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as torch_pytree
from torch.utils import data as torch_data

from lla_jax.models.adapters import first_line, misuse, show_shapes
from lla_torch.weights.names import to_array, to_tensor


@dataclass(frozen=True)
class Call:
    """The arguments of a module's call, by position and by name; they may be nested."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def leaves(self) -> list[Any]:
        """All leaves of the nested arguments, tensors and others, in order."""
        return torch_pytree.tree_flatten((self.args, self.kwargs))[0]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors among the leaves, in order."""
        return [x for x in self.leaves if isinstance(x, torch.Tensor)]


def as_tensors(x: Any, keep: bool = False) -> Any:
    """Nested arguments with numpy and jax arrays copied to tensors, and mappings as dicts (or kept); others stay."""
    is_array = lambda leaf: isinstance(leaf, np.ndarray | jax.Array)  # noqa: E731

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, Mapping) and not keep:  # unknown to torch, such as a tokenizer's BatchEncoding
            return {name: as_tensors(value) for name, value in leaf.items()}
        return to_tensor(leaf) if is_array(leaf) else leaf

    return torch_pytree.tree_map(convert, x, is_leaf=is_array)


def as_arrays(x: Any) -> Any:
    """Nested arguments with tensors and jax arrays copied to numpy arrays; other values stay."""
    return torch_pytree.tree_map(lambda leaf: to_array(leaf) if isinstance(leaf, torch.Tensor) else leaf, as_tensors(x))


def refuse_loaders(name: str, value: Any) -> None:
    """Raise a ValueError for a loader, a data set or an iterator where one batch of tensors is expected."""
    if isinstance(value, torch_data.TensorDataset):
        raise misuse(name, value, "tensors of one batch: of this data set dataset.tensors, or its first entry")
    if isinstance(value, torch_data.Dataset | torch_data.DataLoader | Iterator):
        raise misuse(name, value, "tensors of one batch: next(iter(loader)), of which [0] are usually the inputs")


def why_call_fails(error: Exception, module: nn.Module, args: Any, kwargs: Mapping[str, Any], place: str = "") -> str:
    """The message for a module's call that fails in torch: what it got, what is wrong with it, and torch's own words.

    Args:
      error: torch's error.
      module: the module.
      args: the arguments by position.
      kwargs: the arguments by name.
      place: the module and the line that fail, for the message; "": the module's type.
    """
    given = ", ".join(show_shapes(x) for x in (tuple(args), dict(kwargs)) if x) or "no inputs"
    remedy = _remedy(error, module, args, kwargs)
    return (
        f"{place or f'module {type(module).__name__}'}: the call fails in torch as well, on {given}; {remedy}. torch "
        f"says: {first_line(error)}"
    )


def _remedy(error: Exception, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> str:
    if type(module).forward is nn.Module.forward:
        children = [name for name, _ in module.named_children()]
        return f"this module has no forward pass; take one inside that has, of {children}, or nn.Sequential of several"
    entries = _way_to_entries(module.forward, args)
    if misfit := _misfit(module.forward, args, kwargs):
        of_batch = len(args) == 2 and not kwargs and not _misfit(module.forward, args[:1], {})
        inputs_alone = "of a batch (inputs, labels) give the inputs alone, batch[0]" if of_batch else ""
        by_kind = "give arguments by position as a tuple, (x, y), and others by name, example_kwargs"
        return f"forward takes {misfit}; {entries or inputs_alone or by_kind}"
    if entries:
        return entries
    text = str(error)
    if not Call(tuple(args), dict(kwargs)).tensors:
        return "give tensors or arrays, such as torch.tensor(...) of a list"
    if "scalar types: Long, Int" in text:
        return "indices, such as those of an embedding, are integers: x.long()"
    if "dtype" in text or "scalar type" in text:
        return "cast the inputs to the module's type, such as x.float(); in a batch the inputs come before the labels"
    if "channels" in text and "expected input" in text:
        return "images have their channels on axis 1, (N, C, H, W): of (N, H, W, C) give x.permute(0, 3, 1, 2)"
    return "give inputs (their number, shapes and types) with which module(*inputs) works"


def _misfit(function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> str:
    """The signature of a function that arguments do not fit, with Python's words for it; "" if they do."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some callables have none
        return ""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return f"{signature} ({error})"
    return ""


def _way_to_entries(function: Callable[..., Any], args: Any) -> str:
    """How to pass a dict or a tuple whose entries are the arguments of a function; "" if none is given."""
    if args and isinstance(args[-1], Mapping):
        return "pass the entries of a dict by name, example_kwargs={...}"
    if len(args) == 1 and isinstance(args[0], tuple | list) and not _misfit(function, args[0], {}):
        return "give the entries of a tuple one by one"
    return ""


def why_step_fails(error: Exception, step: Any, module: nn.Module, batch: Any, place: str) -> str:
    """The message for a step that fails in torch, as ``why_call_fails``."""
    remedy = "give a batch with which step(module, batch) works"
    if _is_loss(step):
        remedy = (
            "this is a loss of (outputs, labels); pass it to lla_torch.convert(module, inputs).loss, or write "
            "step = lambda module, batch: loss(module(batch[0]), batch[1])"
        )
    elif misfit := _misfit(step, (module, batch), {}):
        remedy = f"a step takes two arguments, step(module, batch): it takes {misfit}"
    elif callable(step) and "is not callable" in str(error):
        remedy += "; the module is its first argument and the batch its second"
    return (
        f"step: {place}: it fails in torch as well, on {show_shapes(batch)}; {remedy}. torch says: {first_line(error)}"
    )


def _is_loss(step: Any) -> bool:
    names = (getattr(step, "__module__", ""), type(step).__module__)
    return any(name in ("torch.nn.functional", "torch.nn.modules.loss") for name in names)


def check_step(step: Any, module: Any) -> None:
    """Raise a ValueError unless the value can be a step, ``step(module, batch)``, and comes before the module."""
    if isinstance(step, nn.Module) and callable(module) and not isinstance(module, nn.Module | type):
        raise misuse("step", step, "the function, before its module: convert_loss(step, module, batch)")
    if not callable(step) or isinstance(step, type):
        raise misuse("step", step, "a function step(module, batch) that returns the loss, before the module")
