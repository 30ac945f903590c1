"""A converted graph and its interpreter: a pure function of arrays that compares by value. Knows nothing of torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_torch.program.operators import Lowering
from lla_torch.program.views import View, aligned, as_view, plain


@dataclass(frozen=True)
class Ref:
    """An argument that is the value in slot ``index``."""

    index: int


@dataclass(frozen=True)
class DType:
    """An argument that is a type of entries. ``own`` marks the one that the module's weights had when exported (and its
    complex one): it follows the weights, so that the same program runs in float32 and float64."""

    name: str
    own: bool = False

    def resolve(self, own: Any) -> np.dtype:
        """The numpy dtype, of which jax has no more bits than its configuration allows."""
        if not self.own:
            return jax.dtypes.canonicalize_dtype(jnp.dtype(self.name))
        return np.result_type(own, np.complex64) if self.name.startswith("complex") else np.dtype(own)


@dataclass(frozen=True)
class Instruction:
    """One operator applied: values of ``args`` into slot ``out``; ``dtypes`` of its result or results (None: no
    tensor). ``where`` (module and source line) is for messages and is no part of the value."""

    lowering: Lowering
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    out: int
    dtypes: tuple[DType | None, ...]
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Input:
    """What fills a slot before the run: ``kind`` "params", "state" or "input", and the path or number within. An input
    has the ``shape`` of the export, with None for axes of any length."""

    kind: str
    path: tuple[str, ...] | int
    order: tuple[int, ...] | None = None
    split: tuple[int, ...] | None = None
    merged: tuple[int, ...] | None = None
    dtype: DType | None = None
    shape: tuple[int | None, ...] | None = None


@dataclass(frozen=True, eq=False)
class Program:
    """A graph as a value: two conversions of one architecture are equal, so the second one compiles nothing.

    Args:
      inputs: what fills the first slots.
      instructions: in order of execution.
      outputs: what the module returned, nested as ``structure`` says.
      updates: (path of the state, slot) of every buffer that the module writes.
      own: the dtype of the weights at export.
      structure: a function-free description of the output's nesting, see ``unflatten``.
      num_slots: slots in all.
      guards: what the inputs' shapes ``s`` must fulfil, as Python expressions such as "s[0][0] > 3": the module takes
        another path where they do not.
    """

    inputs: tuple[Input, ...]
    instructions: tuple[Instruction, ...]
    outputs: tuple[Any, ...]
    updates: tuple[tuple[tuple[str, ...], Ref], ...]
    structure: Any
    own: DType
    num_slots: int
    guards: tuple[str, ...] = ()

    @functools.cached_property
    def _content(self) -> tuple[Any, ...]:
        # by repr, because 1, 1.0 and True are equal in Python and make different programs
        steps = tuple((i.lowering, repr((i.args, i.kwargs)), i.out, i.dtypes) for i in self.instructions)
        return (
            steps,
            self.inputs,
            repr((self.outputs, self.updates, self.structure)),
            self.own,
            self.num_slots,
            self.guards,
        )

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self._content)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Program) and self._content == other._content)

    def __call__(
        self,
        params: Mapping[str, Any],
        state: Mapping[str, Any],
        inputs: Sequence[Any],
        *,
        key: Any = None,
        draws: Sequence[Any] | None = None,
        observe: Callable[[Instruction, list[Any]], None] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """(outputs, new state). See ``Net.apply`` for ``key`` and ``draws``; ``observe`` sees every instruction."""
        own = self._own(params)
        noise = Noise(key, draws)
        slots: list[Any] = [None] * self.num_slots
        for slot, spec in enumerate(self.inputs):
            slots[slot] = _fill(spec, {"params": params, "state": state}, inputs, own)
        self._check_guards(inputs)
        for instruction in self.instructions:
            args = [_read(a, slots, own) for a in instruction.args]
            if observe is not None:
                observe(instruction, args)
            kwargs = {name: _read(a, slots, own) for name, a in instruction.kwargs}
            slots[instruction.out] = _run(instruction, args, kwargs, noise, own)
        noise.finish()
        outputs = unflatten(self.structure, [_logical(_read(o, slots, own)) for o in self.outputs])
        updates = {path: _logical(slots[ref.index]) for path, ref in self.updates}
        return outputs, _updated(state, updates, ())

    @property
    def mutates(self) -> bool:
        """Whether a run changes the state."""
        return bool(self.updates)

    @property
    def random(self) -> tuple[Instruction, ...]:
        """The instructions that draw random numbers, in order."""
        return tuple(i for i in self.instructions if i.lowering.random)

    def _check_guards(self, inputs: Sequence[Any]) -> None:
        shapes = [np.shape(x) for x in inputs]
        for guard in self.guards:
            if not eval(
                guard, {"__builtins__": {}, "math": math, "max": max, "min": min}, {"s": shapes}
            ):  # written by torch.export
                raise ValueError(
                    f"inputs: of shapes {shapes}, for which the module takes another path than at conversion (it needs "
                    f"{guard}, with s the shapes); convert it with example inputs of this batch size"
                )

    def _own(self, params: Mapping[str, Any]) -> np.dtype:
        found = [
            at(params, spec.path).dtype  # type: ignore[arg-type]
            for spec in self.inputs
            if spec.kind == "params" and spec.dtype is not None and spec.dtype.own
        ]
        return (
            np.dtype(jnp.result_type(*map(jax.dtypes.canonicalize_dtype, found)))
            if found
            else DType(self.own.name).resolve(None)
        )


class Noise:
    """Where random numbers come from: a key, or draws recorded before, in the order of the instructions."""

    def __init__(self, key: Any, draws: Sequence[Any] | None):
        if key is not None and draws is not None:
            raise ValueError("key and draws are both given; pass a key for new random numbers or draws to replay")
        self.key, self.draws, self.used = key, draws, 0

    def draw(self, sampler: Callable[[Any], Any], *, optional: bool = False) -> Any:
        """A draw of ``sampler``, which takes a key; None if it is optional and there is nothing to draw from."""
        number, self.used = self.used, self.used + 1
        if self.draws is not None:
            if number >= len(self.draws):
                raise ValueError(f"draws: {len(self.draws)} are given, but the module draws more; record them anew")
            expected, recorded = jax.eval_shape(sampler, jax.random.key(0)), jnp.asarray(self.draws[number])
            if recorded.shape != expected.shape:
                raise ValueError(
                    f"draws[{number}] has shape {recorded.shape}, but the module draws {expected.shape} here; record "
                    "them with inputs of the same shape"
                )
            return recorded.astype(expected.dtype)
        if self.key is not None:
            return sampler(jax.random.fold_in(self.key, number))
        if optional:
            return None
        raise ValueError(
            "the module draws random numbers (sampling or noise in its forward), but neither key nor draws is given. "
            "Pass key=jax.random.key(0), or draws=lla_torch.record(module, *inputs)[1] to replay torch's."
        )

    def finish(self) -> None:
        """Raises if draws are left over."""
        if self.draws is not None and self.used != len(self.draws):
            raise ValueError(f"draws: {len(self.draws)} are given, but the module draws {self.used}; record them anew")


def _fill(spec: Input, trees: Mapping[str, Any], inputs: Sequence[Any], own: np.dtype) -> Any:
    if spec.kind == "input":
        assert isinstance(spec.path, int)
        value = inputs[spec.path]
        if spec.dtype is None:  # not a tensor
            return value
        array = jnp.asarray(value)
        _check_shape(spec, array.shape)
        return plain(_of_kind(array, spec, own))
    assert isinstance(spec.path, tuple)
    array = jnp.asarray(at(trees[spec.kind], spec.path))
    if array.shape != spec.shape:
        raise ValueError(
            f"variables: {'/'.join(spec.path)} has shape {array.shape}; the rule is {spec.shape}, as in net.variables"
        )
    return plain(array) if spec.order is None else View(array, spec.order, spec.split, spec.merged)


def _of_kind(array: Any, spec: Input, own: np.dtype) -> Any:
    """The array in the module's own precision; integers where it takes floats are cast, other kinds are refused."""
    assert spec.dtype is not None
    wanted = spec.dtype.resolve(own)
    kinds = [next(k for k in KINDS if jnp.issubdtype(d, KINDS[k])) for d in (array.dtype, wanted)]
    if kinds[0] != kinds[1] and kinds != ["integer", "floating"]:
        raise ValueError(
            f"inputs: tensor number {spec.path} is {array.dtype}; the module was converted for {wanted}. Pass it so"
        )
    return array.astype(wanted) if kinds[1] == "floating" and (spec.dtype.own or kinds[0] == "integer") else array


KINDS = {
    "bool": jnp.bool_, "integer": jnp.integer, "floating": jnp.floating, "complex": jnp.complexfloating
}  # fmt: skip


def _check_shape(spec: Input, shape: tuple[int, ...]) -> None:
    wanted = spec.shape
    if wanted is None or (len(shape) == len(wanted) and all(w in (None, n) for n, w in zip(shape, wanted))):
        return
    rule = ", ".join("any" if w is None else str(w) for w in wanted)
    raise ValueError(
        f"inputs: tensor number {spec.path} has shape {shape}; the module was converted for ({rule}), in torch's order "
        "of axes (N, C, H, W for images). Pass it so, or convert the module for this shape. A leading axis is fixed "
        "where the forward pass takes its length as a number, by len(x) or int(x.shape[0]); x.shape[0] leaves it open"
    )


def at(tree: Any, path: tuple[str, ...]) -> Any:
    """The leaf of nested dicts at a path."""
    for name in path:
        if not isinstance(tree, Mapping) or name not in tree:
            raise ValueError(f"variables: {'/'.join(path)} is missing; pass all collections, as in net.variables")
        tree = tree[name]
    return tree


def _updated(tree: Any, updates: Mapping[tuple[str, ...], Any], path: tuple[str, ...]) -> Any:
    if not isinstance(tree, Mapping):
        return updates[path].astype(jnp.result_type(tree)) if path in updates else tree
    return {name: _updated(child, updates, (*path, name)) for name, child in tree.items()}


def _read(arg: Any, slots: list[Any], own: np.dtype) -> Any:
    if isinstance(arg, Ref):
        return slots[arg.index]
    if isinstance(arg, DType):
        return arg.resolve(own)
    if isinstance(arg, tuple):
        return tuple(_read(a, slots, own) for a in arg)
    return arg


def _logical(value: Any) -> Any:
    if isinstance(value, View):
        return value.logical()
    if isinstance(value, tuple):
        return tuple(_logical(v) for v in value)
    return value


def _run(instruction: Instruction, args: list[Any], kwargs: dict[str, Any], noise: Noise, own: np.dtype) -> Any:
    lowering = instruction.lowering
    if lowering.random:
        kwargs["draw"] = noise.draw
    try:
        if lowering.layout == "views":
            result = lowering.function(*args, **kwargs)
        elif lowering.layout == "pointwise":
            arrays, lead = aligned(args)
            named, kwargs_lead = aligned(list(kwargs.values()))
            if kwargs_lead is not None:  # tensors by name are rare: no common order is looked for
                arrays, lead = [_logical(a) for a in args], None
                named = [_logical(v) for v in kwargs.values()]
            result = lowering.function(*arrays, **dict(zip(kwargs, named, strict=True)))
            if lead is not None:
                result = _wrapped(result, lead)
        else:
            result = lowering.function(
                *(_logical(a) for a in args), **{name: _logical(v) for name, v in kwargs.items()}
            )
    except Exception as error:
        error.add_note(f"in {lowering.name}{', ' + instruction.where if instruction.where else ''}")
        raise
    return _typed(result, instruction.dtypes, own)


def _wrapped(result: Any, lead: View) -> Any:
    if isinstance(result, tuple):
        return tuple(_wrapped(r, lead) for r in result)
    if not lead.is_merged:
        return View(result, lead.order)
    return lead.with_array(result)


def _typed(result: Any, dtypes: tuple[DType | None, ...], own: np.dtype) -> Any:
    """The result as views, in the types that torch has: Python scalars promote otherwise here and there."""
    if isinstance(result, tuple | list):
        return tuple(_typed(r, (d,), own) for r, d in zip(result, (*dtypes, *[None] * len(result))))
    if dtypes[:1] in ((), (None,)) or result is None:
        return as_view(result) if isinstance(result, jax.Array | np.ndarray) else result
    view = as_view(result)
    dtype = dtypes[0].resolve(own)  # type: ignore[union-attr]
    return view if view.dtype == dtype else view.with_array(view.array.astype(dtype))


def unflatten(structure: Any, leaves: Sequence[Any]) -> Any:
    """Outputs in torch's nesting: ``structure`` is an index of ``leaves``, or ("tuple" | "list", ...) or ("dict",
    (name, ...), ...) or ("namedtuple", type, ...), nested, or None."""
    if structure is None or isinstance(structure, int):
        return None if structure is None else leaves[structure]
    kind, *rest = structure
    if kind == "dict":
        names, *children = rest
        return {name: unflatten(child, leaves) for name, child in zip(names, children, strict=True)}
    if kind == "namedtuple":
        return rest[0](*(unflatten(child, leaves) for child in rest[1:]))
    children = [unflatten(child, leaves) for child in rest]
    return tuple(children) if kind == "tuple" else children
