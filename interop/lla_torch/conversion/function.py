"""The pure functions of a converted module, without its weights, and the arguments of its call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as torch_pytree

from lla_torch.program.errors import misuse
from lla_torch.program.program import Program
from lla_torch.tracing.exporting import Call
from lla_torch.weights.names import to_array


@dataclass(frozen=True)
class Slot:
    """The place of tensor ``index`` among a call's arguments."""

    index: int


@dataclass(frozen=True)
class Function:
    """The pure functions of a module, without its weights; compares by value.

    Args:
      eval: the program in eval mode.
      train: the one in train mode, or None.
      call: (positional, by name): the arguments of the module's call, nested, with ``Slot`` for tensors.
    """

    eval: Program
    train: Program | None
    call: tuple[Any, Any]

    @property
    def draws(self) -> bool:
        """Whether any mode draws random numbers."""
        return bool(self.eval.random) or (self.train is not None and bool(self.train.random))

    @property
    def noisy_in_train(self) -> bool:
        """Whether train mode draws more random numbers than eval mode does: those of dropout."""
        return self.train is not None and len(self.train.random) > len(self.eval.random)

    def __call__(
        self,
        variables: Mapping[str, Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        train: bool = False,
        key: Any = None,
        draws: Sequence[Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """(outputs, new state) of one call."""
        program = self.train if train else self.eval
        if program is None:
            raise misuse("train", train, "False for a network converted in eval mode; or use convert(..., train=True)")
        state = {name: tree for name, tree in variables.items() if name != "params"}
        return program(variables.get("params", {}), state, self.tensors(args, kwargs), key=key, draws=draws)

    def tensors(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The tensors among the arguments, in the program's order.

        Raises:
          ValueError: arguments nested otherwise than at conversion; another value of an argument that is no tensor.
        """
        tensors: dict[int, Any] = {}
        _collect_tensors(self.call[0], tuple(args), "inputs", tensors)
        _collect_tensors(self.call[1], dict(kwargs), "inputs", tensors)
        return [tensors[i] for i in range(len(tensors))]


def _collect_tensors(pattern: Any, value: Any, name: str, tensors: dict[int, Any]) -> None:
    if isinstance(pattern, Slot):
        if isinstance(value, torch.Tensor):
            value = to_array(value)
        if not _is_numeric(value):
            raise misuse(name, value, "an array, since it was a tensor at conversion; pass numpy.asarray of it")
        tensors[pattern.index] = value
    elif isinstance(pattern, Mapping):
        if not isinstance(value, Mapping) or set(value) != set(pattern):
            raise _nesting_error(name, value, f"a dict with the names {sorted(pattern)}")
        for key, each in pattern.items():
            _collect_tensors(each, value[key], f"{name}[{key!r}]", tensors)
    elif isinstance(pattern, tuple):
        if not isinstance(value, tuple | list) or len(value) != len(pattern):
            raise _nesting_error(name, value, f"{len(pattern)} values")
        for i, (each, v) in enumerate(zip(pattern, value, strict=True)):
            _collect_tensors(each, v, f"{name}[{i}]", tensors)
    elif type(value) is not type(pattern) or value != pattern:
        raise misuse(name, value, f"{pattern!r}, its value at conversion; convert the module again for another one")


def _is_numeric(value: Any) -> bool:
    return hasattr(value, "shape") or isinstance(value, int | float)


def _nesting_error(name: str, value: Any, rule: str) -> ValueError:
    return ValueError(f"{name}: {_kind(value)} given; it must be {rule}, as at conversion; nest it as example_inputs")


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"names {sorted(map(str, value))}"
    return f"{len(value)} values" if isinstance(value, tuple | list) else type(value).__name__


def call_pattern(call: Call) -> tuple[Any, Any]:
    """The call's arguments with slots for tensors; sequences as tuples, as JAX data have them."""
    count = iter(range(len(call.tensors)))
    leaves, spec = torch_pytree.tree_flatten((call.args, call.kwargs))
    slots = [Slot(next(count)) if isinstance(x, torch.Tensor) else x for x in leaves]

    def describe(x: Any) -> Any:
        if isinstance(x, dict):
            return _FrozenDict({name: describe(v) for name, v in x.items()})
        return tuple(describe(v) for v in x) if isinstance(x, list | tuple) else x

    return describe(torch_pytree.tree_unflatten(slots, spec))


class _FrozenDict(dict[str, Any]):
    """A dict that is never written to."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self))


def arguments(inputs: Callable[[Any], Any] | None, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(positional, by name): the arguments of the module's call that are in a batch; see ``Net.loss``."""
    if inputs is not None:
        values = inputs(batch)
    elif isinstance(batch, Mapping):
        raise ValueError(
            f"inputs: None given, but the batches are dicts with {sorted(map(str, batch))}; pass inputs=lambda batch: "
            "... and labels=lambda batch: ..."
        )
    else:
        values = batch[0] if isinstance(batch, tuple | list) else batch
    if isinstance(values, Mapping):
        return (), dict(values)
    return (tuple(values) if isinstance(values, tuple | list) else (values,)), {}
