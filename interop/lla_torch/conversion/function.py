"""``Function``: the programs of a converted module without its weights; and the arguments with which it is called."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as torch_pytree

from lla_jax.models.adapters import ask, misuse
from lla_torch.conversion.widths import names
from lla_torch.program.instructions import Instruction, Ref
from lla_torch.program.program import Program, leaf_at
from lla_torch.tracing.calls import Call
from lla_torch.weights.names import to_array


@dataclass(frozen=True)
class Slot:
    """A placeholder among a call's arguments for its tensor number ``index``."""

    index: int


@dataclass(frozen=True)
class Function:
    """The programs of a converted module, without its weights; compares by value.

    Args:
      eval: the program in eval mode.
      train: the program in train mode; None: not converted.
      call: (positional, by name): the arguments of the module's call, nested, with a ``Slot`` for each tensor.
    """

    eval: Program
    train: Program | None
    call: tuple[Any, Any]

    def __repr__(self) -> str:
        modes = "eval and train" if self.train is not None else "eval"
        return f"torch network ({len(self.eval.instructions)} operators, {modes})"

    @property
    def draws(self) -> bool:
        """Whether any mode draws random numbers."""
        return bool(self.eval.random) or (self.train is not None and bool(self.train.random))

    @property
    def noisy_in_train(self) -> bool:
        """Whether train mode draws more random numbers than eval mode, as it does with dropout."""
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
        """Run the module: (outputs, new state) in eval or train mode; see ``ApplyFunction`` for the arguments.

        The state is ``variables`` without "params".
        """
        program = self.train if train else self.eval
        if program is None:
            raise misuse("train", train, "False for a network converted in eval mode; or use convert(..., train=True)")
        state = {name: tree for name, tree in variables.items() if name != "params"}
        return program(variables.get("params", {}), state, self.tensors(args, kwargs), key=key, draws=draws)

    def check_decided(self, variables: Mapping[str, Any]) -> None:
        """Raise a ValueError where buffers that decided a size or a branch at conversion have other values."""
        for program in filter(None, (self.eval, self.train)):
            for each in program.decided:
                each.check(leaf_at(variables, each.path))

    def before_log_probabilities(self) -> tuple[Function, tuple[Instruction, ...]] | None:
        """(the function without its last operators, these operators), where they make log-probabilities of scores.

        None where the module ends otherwise, such as with several outputs.
        """
        programs = [self.eval, *([] if self.train is None else [self.train])]
        cuts = [_cut_log_probabilities(program) for program in programs]
        first = cuts[0]
        if first is None or any(cut is None or _names(cut[1]) != _names(first[1]) for cut in cuts):
            return None
        bodies = [cut[0] for cut in cuts if cut is not None]
        return Function(bodies[0], bodies[1] if len(bodies) > 1 else None, self.call), first[1]

    def tensors(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The arguments that were tensors at conversion, in the program's order.

        Raises:
          ValueError: arguments nested otherwise than at conversion; another value of an argument that was no tensor.
        """
        tensors: dict[int, Any] = {}
        _collect_tensors(self.call[0], tuple(args), "inputs", tensors)
        _collect_tensors(self.call[1], dict(kwargs), "inputs", tensors)
        return [tensors[i] for i in range(len(tensors))]


OF_SHAPES = names("sym_size sym_numel empty_like full_like ones_like zeros_like new_empty new_full new_ones new_zeros")
"""Operators whose results depend on the shape of their first argument only, as far as this one has parameters."""


def depends_on_params(program: Program, output: int, through_stops: bool = True) -> bool:
    """Whether one of the values that a program returns depends on its parameters.

    Args:
      program: the program.
      output: the number of the value.
      through_stops: whether what depends on them through detached values alone counts.
    """
    reached = {slot for slot, spec in enumerate(program.inputs) if spec.kind == "params"}
    for each in program.instructions:
        name = each.operator.name.split(".")[1]
        if name in OF_SHAPES or (name == "stop_gradient" and not through_stops):
            continue
        if any(ref.index in reached for ref in _refs((each.args, each.kwargs))):
            reached.add(each.out)
    return any(ref.index in reached for ref in _refs(program.outputs[output : output + 1]))


def _refs(x: Any) -> Iterator[Ref]:
    """The values that nested arguments refer to."""
    if isinstance(x, Ref):
        yield x
    elif isinstance(x, tuple):
        for each in x:
            yield from _refs(each)


LOG_PROBABILITIES = (
    ("log_softmax",),
    ("_log_softmax",),
    ("special_log_softmax",),
    ("log_sigmoid",),
    ("softmax", "log"),
    ("_softmax", "log"),
)
"""The names of operators, in order, with which a module may end, and whose result are log-probabilities."""


MOVES = (
    *("alias", "clone", "contiguous", "_to_copy", "to", "view", "_unsafe_view", "reshape", "flatten", "unflatten"),
    *("squeeze", "unsqueeze", "transpose", "permute", "movedim", "swapaxes", "t"),
)
"""The names of operators that move entries and change none, but for their type."""


def _names(instructions: Sequence[Instruction]) -> list[tuple[str, Any]]:
    return [(i.operator.name.split(".")[1], i.args[1:]) for i in instructions]


def _cut_log_probabilities(program: Program) -> tuple[Program, tuple[Instruction, ...]] | None:
    """(the program up to the scores, the operators that make log-probabilities of them); None if it ends otherwise."""
    by_slot = {i.out: i for i in program.instructions}
    tail: list[Instruction] = []
    last = program.outputs[0] if len(program.outputs) == 1 and program.structure == 0 else None
    while isinstance(last, Ref) and last.index in by_slot:
        step = by_slot[last.index]
        if not step.args or any(_refs((step.args[1:], step.kwargs))):
            return None  # it needs more than the result before it
        tail.insert(0, step)
        last = step.args[0]
        names = tuple(name for name, _ in _names([each for each in tail if not _keeps_entries(each)]))
        if names in LOG_PROBABILITIES and isinstance(last, Ref):
            return dataclasses.replace(program, outputs=(last,)), tuple(tail)
        if len(names) >= 2:
            return None
    return None


def _keeps_entries(instruction: Instruction) -> bool:
    """Whether an operator returns the entries of its argument, in some order and type."""
    ((name, options),) = _names([instruction])
    if name == "dropout":
        return not all(options)  # (p, train)
    return name in MOVES or (name in ("mul", "multiply", "div", "divide") and options == (1,))


def _collect_tensors(pattern: Any, value: Any, name: str, tensors: dict[int, Any]) -> None:
    if isinstance(pattern, Slot):
        if isinstance(value, torch.Tensor):
            value = to_array(value)
        if not _is_numeric(value):
            way = "numpy.asarray of it"
            if isinstance(value, tuple | list) and any(hasattr(x, "shape") for x in value):
                way = "its entries one by one, net.apply(variables, *inputs)"
            raise misuse(name, value, f"an array, since it was a tensor at conversion; pass {way}")
        tensors[pattern.index] = value
    elif isinstance(pattern, Mapping):
        if not isinstance(value, Mapping) or set(value) != set(pattern):
            rule = f"inputs by the names {sorted(pattern)}" if pattern else "inputs by position alone"
            raise _nesting_error(name, value, f"{rule}, as at conversion", "pass each name of example_kwargs")
        for key, each in pattern.items():
            _collect_tensors(each, value[key], f"{name}[{key!r}]", tensors)
    elif isinstance(pattern, tuple):
        if not isinstance(value, tuple | list) or len(value) != len(pattern):
            by_name = " (the others were given by name, in example_kwargs)" if not pattern else ""
            count = f"{len(pattern)} value{'s' * (len(pattern) != 1)}, as at conversion{by_name}"
            way = "give inputs by position, nested as example_inputs, and options by name, as train=True"
            raise _nesting_error(name, value, count, way)
        for i, (each, v) in enumerate(zip(pattern, value, strict=True)):
            _collect_tensors(each, v, f"{name}[{i}]", tensors)
    elif type(value) is not type(pattern) or value != pattern:
        raise misuse(name, value, f"{pattern!r}, its value at conversion; convert the module again for another one")


def _is_numeric(value: Any) -> bool:
    return hasattr(value, "shape") or isinstance(value, int | float)


def _nesting_error(name: str, value: Any, rule: str, remedy: str) -> ValueError:
    return ValueError(f"{name}: {_kind(value)} given; it must be {rule}; {remedy}")


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"names {sorted(map(str, value))}"
    return f"{len(value)} values" if isinstance(value, tuple | list) else type(value).__name__


def call_pattern(call: Call) -> tuple[Any, Any]:
    """The ``Function.call`` of a call: its nested arguments with a ``Slot`` for each tensor; lists become tuples."""
    count = iter(range(len(call.tensors)))
    leaves, spec = torch_pytree.tree_flatten((call.args, call.kwargs))
    slots = [Slot(next(count)) if isinstance(x, torch.Tensor) else x for x in leaves]

    def describe(x: Any) -> Any:
        if isinstance(x, dict):
            return _FrozenDict({name: describe(v) for name, v in x.items()})
        return tuple(describe(v) for v in x) if isinstance(x, list | tuple) else x

    return describe(torch_pytree.tree_unflatten(slots, spec))


class _FrozenDict(dict[str, Any]):
    """A dict that is never written to, and can be hashed."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self))


def arguments(inputs: Callable[[Any], Any] | None, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(positional, by name): the arguments of the module's call that a batch holds.

    Args:
      inputs: function of the batch that gives a tuple or list of positional arguments, a dict of named ones, or
        a single argument. None takes the first entry of a tuple or list, else the batch itself, in the same three ways.
      batch: the batch.

    Raises:
      ValueError: ``inputs`` is None and the batch is a dict.
    """
    if inputs is not None:
        remedy = "It gets the batch and returns the network's inputs"
        values = ask("inputs", inputs, "inputs(batch)", {"batch": batch}, remedy)
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
