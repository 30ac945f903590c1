"""Converted graphs and their interpreter: pure functions of arrays that compare by value and use no torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.models.adapters import warn_caller
from lla_torch.program.bits import bits_of, has_64_bits, in_64_bits, is_beyond_32_bits, is_wide
from lla_torch.program.decided import Decided, nan_unless, why_fixed
from lla_torch.program.instructions import DType, Instruction, Ref, read_argument, run_instruction, to_logical
from lla_torch.program.noise import Noise
from lla_torch.program.sizes import holds
from lla_torch.program.views import View, plain


@dataclass(frozen=True)
class Input:
    """The content of a slot before the first instruction.

    Args:
      kind: "params", "state" or "input".
      path: path in the tree of parameters or of the state; number of the input.
      order: see ``views.View``; None: the array's own order.
      split: see ``views.View``.
      merged: see ``views.View``.
      dtype: type of the entries; None for an input that is no tensor.
      shape: the shape at conversion, with None for axes of any length.
      in_parts: whether it is a complex weight, given as real and imaginary parts (..., 2).
      where: the source line that fixes the length of the leading axis, for messages; no part of the value.
    """

    kind: str
    path: tuple[str, ...] | int
    order: tuple[int, ...] | None = None
    split: tuple[int, ...] | None = None
    merged: tuple[int, ...] | None = None
    dtype: DType | None = None
    shape: tuple[int | None, ...] | None = None
    in_parts: bool = False
    where: str = field(default="", compare=False)


@dataclass(frozen=True, eq=False)
class Program:
    """A converted graph, called with (params, state, inputs).

    Programs compare by value: two conversions of one architecture are equal, so that jax compiles only the first.

    Args:
      inputs: the content of the first slots.
      instructions: in order of execution.
      outputs: the values that the module returned, nested as ``structure`` says.
      updates: (path of the state, slot) of every buffer that the module writes.
      own: the dtype of the weights at export.
      structure: the nesting of the outputs as plain data, see ``unflatten``.
      num_slots: number of slots.
      guards: conditions on the inputs' shapes ``s``, as Python expressions such as "s[0][0] > 3": the module takes
        another path where they do not hold.
      decided: the values of buffers that decided a size or a branch; the program holds for these.
      dropped: (path, type) of the module's outputs that are no arrays, and that the program does not return.
    """

    inputs: tuple[Input, ...]
    instructions: tuple[Instruction, ...]
    outputs: tuple[Any, ...]
    updates: tuple[tuple[tuple[str, ...], Ref], ...]
    structure: Any
    own: DType
    num_slots: int
    guards: tuple[str, ...] = ()
    decided: tuple[Decided, ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()

    @functools.cached_property
    def _content(self) -> tuple[Any, ...]:
        # by repr, because 1, 1.0 and True are equal in Python and make different programs
        steps = tuple(
            (i.operator, repr((i.args, i.kwargs)), i.out, i.dtypes, i.wide, i.kept) for i in self.instructions
        )
        return (
            steps,
            self.inputs,
            repr((self.outputs, self.updates, self.structure)),
            self.own,
            self.num_slots,
            self.guards,
            self.decided,
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
        """Run the program: (outputs, new state).

        Args:
          params: the tree of parameters.
          state: the other collections of the variables.
          inputs: arrays in torch's layout, in the order of the module's tensors.
          key: see ``Net.apply``.
          draws: see ``Net.apply``.
          observe: called with every instruction and its arguments before it runs.

        Raises:
          ValueError: variables or inputs that do not fit the program, also because jax's default mode has cut 64-bit
            floats to 32 bits; random numbers missing, or given twice.

        Values that need 64 bits have them, also where jax's default has 32, and so has all of the program where its
        inputs hold integers beyond 32 bits. Floats among the outputs have the types of jax's present mode.
        """
        own = self._own(params)
        beyond = not has_64_bits() and any(map(is_beyond_32_bits, inputs))
        with bits_of(beyond):
            outputs, state = self._run(own, params, state, inputs, Noise(key, draws), observe)
        return _leave(outputs, own), state

    def _run(
        self, own: np.dtype, params: Any, state: Any, inputs: Sequence[Any], noise: Noise, observe: Any
    ) -> tuple[Any, dict[str, Any]]:
        slots: list[Any] = [None] * self.num_slots
        for slot, spec in enumerate(self.inputs):
            slots[slot] = _fill_slot(spec, {"params": params, "state": state}, inputs, own)
        self._check_guards(inputs)
        unseen = [x for x in (each.check(leaf_at(state, each.path)) for each in self.decided) if x is not None]
        starts: dict[int, int] = {}
        for instruction in self.instructions:
            starts[instruction.out] = noise.used
            slots[instruction.out] = self._step(instruction, slots, starts, noise, own, observe)
        noise.finish()
        results = [to_logical(read_argument(o, slots, own)) for o in self.outputs]
        outputs = unflatten(self.structure, nan_unless(unseen, results) if unseen else results)
        updates = {path: to_logical(slots[ref.index]) for path, ref in self.updates}
        with bits_of(self.wide):
            return outputs, _update(state, updates, ())

    def _step(
        self, step: Instruction, slots: list[Any], starts: Mapping[int, int], noise: Noise, own: np.dtype, observe: Any
    ) -> Any:
        """The result of an instruction; ``starts``: the number of draws before each instruction that has run."""
        if step.operator.layout == "graph":
            return self._differentiate(step, slots, starts, noise, own)
        args = [read_argument(a, slots, own) for a in step.args]
        if observe is not None:
            observe(step, args)
        kwargs = {name: read_argument(a, slots, own) for name, a in step.kwargs}
        return run_instruction(step, args, kwargs, noise, own)

    def _differentiate(
        self, step: Instruction, slots: list[Any], starts: Mapping[int, int], noise: Noise, own: np.dtype
    ) -> Any:
        """The result of an operator that differentiates the instructions between two of the program's values."""
        targets, sources, given, batched, path = step.args
        steps = [self.instructions[number] for number in path]
        computed = {each.out for each in steps}

        def between(*arrays: Any) -> tuple[Any, ...]:
            values = list(slots)
            moved = {ref.index: array for ref, array in zip(sources, arrays, strict=True)}
            for slot in moved.keys() - computed:
                values[slot] = plain(moved[slot])
            for each in steps:
                result = self._step(each, values, starts, noise.at(starts[each.out]), own, None)
                shift = moved.get(each.out)
                values[each.out] = result if shift is None else plain(result.logical() + shift)
            return tuple(values[ref.index].logical() for ref in targets)

        def compute(arrays: Any, vectors: Any) -> Any:
            return step.operator.function(between, arrays, vectors, batched)

        # an input that depends on another one is recomputed, so it is moved by a shift from zero
        arrays = [slots[ref.index].logical() for ref in sources]
        arrays = [jnp.zeros_like(x) if ref.index in computed else x for ref, x in zip(sources, arrays, strict=True)]
        vectors = [slots[ref.index].logical() for ref in given]
        results = in_64_bits(compute, arrays, vectors) if step.wide else compute(arrays, vectors)
        return tuple(map(plain, results))

    @property
    def mutates(self) -> bool:
        """Whether a call changes the state."""
        return bool(self.updates)

    @functools.cached_property
    def wide(self) -> bool:
        """Whether some instruction is computed in 64 bits."""
        return any(i.wide for i in self.instructions)

    @property
    def random(self) -> tuple[Instruction, ...]:
        """The instructions that draw random numbers, in order."""
        return tuple(i for i in self.instructions if i.operator.random)

    def _check_guards(self, inputs: Sequence[Any]) -> None:
        shapes = [np.shape(x) for x in inputs]
        for guard in self.guards:
            if not holds(guard, shapes):
                raise ValueError(
                    f"inputs: shapes {shapes} given, for which the module takes another path than at conversion; they "
                    f"must fulfil {guard}, with s the shapes, or convert it with example inputs of this batch size"
                )

    def _own(self, params: Mapping[str, Any]) -> np.dtype:
        """The type of the given weights; without weights, the type at export."""
        dtypes = [
            leaf_at(params, spec.path).dtype  # type: ignore[arg-type]
            for spec in self.inputs
            if spec.kind == "params" and spec.dtype is not None and spec.dtype.own
        ]
        if not dtypes:
            return DType(self.own.name).resolve(None)
        return np.dtype(jnp.result_type(*map(jax.dtypes.canonicalize_dtype, dtypes)))


def _fill_slot(spec: Input, trees: Mapping[str, Any], inputs: Sequence[Any], own: np.dtype) -> Any:
    if spec.kind == "input":
        assert isinstance(spec.path, int)
        value = inputs[spec.path]
        if spec.dtype is None:  # not a tensor
            return value
        with bits_of(spec.dtype.wide):
            array = _as_jax(value, spec.path)
            _check_shape(spec, array.shape)
            return plain(_cast_input(array, spec, own))
    assert isinstance(spec.path, tuple)
    leaf = leaf_at(trees[spec.kind], spec.path)
    array = _fill_parts(leaf, spec, own) if spec.in_parts else _fill_stored(leaf, spec, own)
    if array.shape != spec.shape:
        raise ValueError(
            f"variables: {'/'.join(spec.path)} has shape {array.shape}; it must be {spec.shape}; pass a tree like "
            "net.variables"
        )
    if spec.in_parts:
        with bits_of(is_wide(array.dtype)):
            array = jax.lax.complex(array[..., 0], array[..., 1])
    return plain(array) if spec.order is None else View(array, spec.order, spec.split, spec.merged)


def _as_jax(value: Any, number: int) -> Any:
    """An input as a jax array, with a warning of ours where numbers are beyond the range of its type."""
    try:
        with np.errstate(over="raise"):
            return jnp.asarray(value)
    except FloatingPointError:
        warn_caller(
            f"inputs: tensor number {number} has entries beyond the range of float32, which become infinite; scale "
            "them, or call jax.config.update('jax_enable_x64', True) and convert the module in float64"
        )
        with np.errstate(over="ignore"):
            return jnp.asarray(value)


def _fill_parts(leaf: Any, spec: Input, own: np.dtype) -> Any:
    """The real and imaginary parts (..., 2) of a complex weight; complex numbers have no less than 32 bits a part."""
    assert spec.dtype is not None
    dtype = np.zeros((), spec.dtype.resolve(own)).real.dtype
    with bits_of(is_wide(dtype)):
        return jnp.asarray(leaf).astype(dtype)


def _fill_stored(leaf: Any, spec: Input, own: np.dtype) -> Any:
    """A stored array, in 64 bits where the program needs them, and with the low bits of 64 where it does not."""
    own_type = spec.dtype is not None and spec.dtype.own
    dtype = None if spec.dtype is None else spec.dtype.resolve(own)
    wide = is_wide(getattr(leaf, "dtype", None)) or (not own_type and is_wide(dtype))
    with bits_of(wide):
        array = jnp.asarray(leaf)
        return array.astype(dtype) if wide and dtype is not None else array


def _cast_input(array: Any, spec: Input, own: np.dtype) -> Any:
    """The input in the module's precision; integers in place of floats are cast, other kinds are refused."""
    assert spec.dtype is not None
    expected = spec.dtype.resolve(own)
    given_kind, kind = (next(k for k in KINDS if jnp.issubdtype(d, KINDS[k])) for d in (array.dtype, expected))
    if given_kind != kind and (given_kind, kind) != ("integer", "floating"):
        raise ValueError(
            f"inputs: tensor number {spec.path} is {array.dtype}, but the module was converted for {expected}; cast it "
            "by .astype"
        )
    if spec.dtype.wide and kind == given_kind != "integer" and array.dtype.itemsize < expected.itemsize:
        raise ValueError(
            f"inputs: tensor number {spec.path} is {array.dtype}, but the module computes with its {expected} entries, "
            "and jax's default mode cuts these to 32 bits; call jax.config.update('jax_enable_x64', True) first, or "
            "convert the module with float32 example inputs"
        )
    return array.astype(expected) if kind == "floating" and (spec.dtype.own or given_kind == "integer") else array


def _leave(outputs: Any, own: np.dtype) -> Any:
    """The outputs with 64-bit floats in the type that jax's present mode has for them; integers stay as they are."""
    if has_64_bits():
        return outputs

    def cast(x: Any) -> Any:
        dtype = getattr(x, "dtype", None)
        if dtype is None or not is_wide(dtype) or dtype == own or not jnp.issubdtype(dtype, jnp.inexact):
            return x
        return in_64_bits(lambda x: x.astype(jnp.complex64 if dtype == np.complex128 else jnp.float32), x)

    return jax.tree.map(cast, outputs)


KINDS = {
    "bool": jnp.bool_,
    "integer": jnp.integer,
    "floating": jnp.floating,
    "complex": jnp.complexfloating,
}


def _check_shape(spec: Input, shape: tuple[int, ...]) -> None:
    expected = spec.shape
    if expected is None or (len(shape) == len(expected) and all(m in (None, n) for n, m in zip(shape, expected))):
        return
    rule = ", ".join("any" if n is None else str(n) for n in expected)
    raise ValueError(
        f"inputs: tensor number {spec.path} has shape {shape}; it must be ({rule}), as at conversion, in torch's order "
        f"of axes (N, C, H, W for images), or convert the module for this shape. {why_fixed(spec.where, expected)}"
    )


def leaf_at(tree: Any, path: tuple[str, ...]) -> Any:
    """The leaf of nested dicts at a path; a ValueError if it is missing."""
    node = tree
    for name in path:
        if not isinstance(node, Mapping) or name not in node:
            raise ValueError(_missing(tree, path))
        node = node[name]
    return node


def _missing(tree: Any, path: tuple[str, ...]) -> str:
    """The message for a leaf that is not in a tree, with what the tree probably is."""
    known = [str(name) for name in tree] if isinstance(tree, Mapping) else []
    remedy = "pass all collections, as in net.variables; params are net.variables['params']"
    if "params" in known:
        remedy = "these are all variables: pass net.variables['params'] as params"
    elif any("." in name for name in known):
        remedy = (
            "these are torch's names: pass net.variables['params'], for other weights that of "
            "lla_torch.load_checkpoint(state_dict, net)"
        )
    elif not known:
        remedy = "pass {**net.variables, 'params': params} as variables"
    has = f", which has {known[:10]}" if known else ""
    return f"variables: {'/'.join(path)} is missing in the tree{has}; {remedy}"


def _update(tree: Any, updates: Mapping[tuple[str, ...], Any], path: tuple[str, ...]) -> Any:
    if not isinstance(tree, Mapping):
        return (
            updates[path].astype(np.asarray(tree).dtype if np.isscalar(tree) else tree.dtype)
            if path in updates
            else tree
        )
    return {name: _update(child, updates, (*path, name)) for name, child in tree.items()}


def unflatten(structure: Any, leaves: Sequence[Any]) -> Any:
    """Nest leaves as ``structure`` says.

    Args:
      structure: the index of a leaf, None, or a tuple: ("tuple", ...), ("list", ...), ("dict", (name, ...), ...) or
        ("namedtuple", type, ...), where each ... stands for structures.
      leaves: the leaves.
    """
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
