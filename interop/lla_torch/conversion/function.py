"""The pure functions of a converted module, without its weights, and how a call's arguments become their inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as torch_pytree

from lla_torch.program.program import Program
from lla_torch.tracing.exporting import Call
from lla_torch.weights.names import to_array


@dataclass(frozen=True)
class Slot:
    """Where tensor ``index`` stands among a call's arguments."""

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
        """Whether train mode draws what eval mode does not: dropout."""
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
            raise ValueError("train=True asks for train mode, which was not converted; use convert(..., train=True)")
        state = {name: tree for name, tree in variables.items() if name != "params"}
        return program(variables.get("params", {}), state, self.tensors(args, kwargs), key=key, draws=draws)

    def tensors(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The tensors among the arguments, in the program's order.

        Raises:
          ValueError: arguments that are nested otherwise than at conversion, or another value of what was no tensor.
        """
        found: dict[int, Any] = {}
        _match(self.call[0], tuple(args), "inputs", found)
        _match(self.call[1], dict(kwargs), "inputs", found)
        return [found[i] for i in range(len(found))]


def _match(pattern: Any, value: Any, name: str, found: dict[int, Any]) -> None:
    if isinstance(pattern, Slot):
        if isinstance(value, torch.Tensor):
            value = to_array(value)
        if not hasattr(value, "shape") and not isinstance(value, int | float):
            raise ValueError(f"{name}: {type(value).__name__} given; at conversion it was a tensor: pass an array")
        found[pattern.index] = value
    elif isinstance(pattern, Mapping):
        if not isinstance(value, Mapping) or set(value) != set(pattern):
            raise ValueError(f"{name}: {_kind(value)} given; at conversion there were the names {sorted(pattern)}")
        for key, each in pattern.items():
            _match(each, value[key], f"{name}[{key!r}]", found)
    elif isinstance(pattern, tuple):
        if not isinstance(value, tuple | list) or len(value) != len(pattern):
            raise ValueError(f"{name}: {_kind(value)} given; at conversion there were {len(pattern)}")
        for i, (each, v) in enumerate(zip(pattern, value, strict=True)):
            _match(each, v, f"{name}[{i}]", found)
    elif type(value) is not type(pattern) or value != pattern:
        raise ValueError(f"{name}: {value!r} given; the module was converted for {pattern!r}: convert it again")


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"names {sorted(map(str, value))}"
    return f"{len(value)} values" if isinstance(value, tuple | list) else type(value).__name__


def pattern(call: Call) -> tuple[Any, Any]:
    """The call's arguments with slots for tensors; sequences as tuples, as JAX data have them."""
    count = iter(range(len(call.tensors)))
    leaves, spec = torch_pytree.tree_flatten((call.args, call.kwargs))
    slots = [Slot(next(count)) if isinstance(x, torch.Tensor) else x for x in leaves]

    def described(x: Any) -> Any:
        if isinstance(x, dict):
            return _Names({name: described(v) for name, v in x.items()})
        return tuple(described(v) for v in x) if isinstance(x, list | tuple) else x

    return described(torch_pytree.tree_unflatten(slots, spec))


class _Names(dict[str, Any]):
    """A dict that is never written to."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self))


def arguments(inputs: Callable[[Any], Any] | None, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(positional, by name): the arguments of the module's call that a batch holds, see ``Net.loss``."""
    if inputs is not None:
        found = inputs(batch)
    elif isinstance(batch, Mapping):
        raise ValueError(
            f"inputs=None, but the batches are dicts with {sorted(map(str, batch))}; pass inputs=lambda batch: ... and "
            "labels=lambda batch: ..."
        )
    else:
        found = batch[0] if isinstance(batch, tuple | list) else batch
    if isinstance(found, Mapping):
        return (), dict(found)
    return (tuple(found) if isinstance(found, tuple | list) else (found,)), {}
