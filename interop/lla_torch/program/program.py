"""Converted graphs and their interpreter: pure functions of arrays that compare by value and use no torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_torch.program.bits import bits_of, has_64_bits, in_64_bits, is_beyond_32_bits, is_wide
from lla_torch.program.decided import Decided, why_fixed
from lla_torch.program.noise import Noise
from lla_torch.program.operators import TorchOperator
from lla_torch.program.sizes import holds
from lla_torch.program.views import View, aligned, as_view, plain


@dataclass(frozen=True)
class Ref:
    """An argument that is the value in slot ``index``."""

    index: int


@dataclass(frozen=True)
class DType:
    """An argument that is a type of entries.

    Args:
      name: its name at export, such as "float32".
      own: whether it was the type of the weights, or the complex one of this. It then follows the weights that a call
        gets, so that one program runs in float32 and in float64.
      wide: whether it has its 64 bits where jax's default has 32.
    """

    name: str
    own: bool = False
    wide: bool = False

    def resolve(self, own: Any) -> np.dtype:
        """The numpy dtype in a call whose weights have the type ``own``, of 32 bits where jax has no 64."""
        if not self.own:
            return jnp.dtype(self.name) if self.wide else jax.dtypes.canonicalize_dtype(jnp.dtype(self.name))
        return np.result_type(own, np.complex64) if self.name.startswith("complex") else np.dtype(own)


@dataclass(frozen=True)
class Instruction:
    """One application of an operator.

    Args:
      operator: the operator and the function that computes it.
      args: its arguments: values, or a ``Ref`` or ``DType`` in their place.
      kwargs: its arguments by name, likewise.
      out: the slot of its result.
      dtypes: the type of its result, or of each of its results; None where that is no tensor.
      where: module and source line, for messages; no part of the value.
      wide: whether it is computed in 64 bits, also where jax's default has 32.
      kept: whether its result is rounded as it stands: XLA must not merge it with the next operation.
    """

    operator: TorchOperator
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    out: int
    dtypes: tuple[DType | None, ...]
    where: str = field(default="", compare=False)
    wide: bool = False
    kept: bool = False


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
      where: the source line that fixes the length of the leading axis, for messages; no part of the value.
    """

    kind: str
    path: tuple[str, ...] | int
    order: tuple[int, ...] | None = None
    split: tuple[int, ...] | None = None
    merged: tuple[int, ...] | None = None
    dtype: DType | None = None
    shape: tuple[int | None, ...] | None = None
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
        for each in self.decided:
            each.check(leaf_at(state, each.path))
        for instruction in self.instructions:
            args = [read_argument(a, slots, own) for a in instruction.args]
            if observe is not None:
                observe(instruction, args)
            kwargs = {name: read_argument(a, slots, own) for name, a in instruction.kwargs}
            slots[instruction.out] = run_instruction(instruction, args, kwargs, noise, own)
        noise.finish()
        outputs = unflatten(self.structure, [to_logical(read_argument(o, slots, own)) for o in self.outputs])
        updates = {path: to_logical(slots[ref.index]) for path, ref in self.updates}
        with bits_of(self.wide):
            return outputs, _update(state, updates, ())

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
            array = jnp.asarray(value)
            _check_shape(spec, array.shape)
            return plain(_cast_input(array, spec, own))
    assert isinstance(spec.path, tuple)
    array = _fill_stored(leaf_at(trees[spec.kind], spec.path), spec, own)
    if array.shape != spec.shape:
        raise ValueError(
            f"variables: {'/'.join(spec.path)} has shape {array.shape}; it must be {spec.shape}; pass a tree like "
            "net.variables"
        )
    return plain(array) if spec.order is None else View(array, spec.order, spec.split, spec.merged)


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
    for name in path:
        if not isinstance(tree, Mapping) or name not in tree:
            raise ValueError(f"variables: {'/'.join(path)} is missing; pass all collections, as in net.variables")
        tree = tree[name]
    return tree


def _update(tree: Any, updates: Mapping[tuple[str, ...], Any], path: tuple[str, ...]) -> Any:
    if not isinstance(tree, Mapping):
        return (
            updates[path].astype(np.asarray(tree).dtype if np.isscalar(tree) else tree.dtype)
            if path in updates
            else tree
        )
    return {name: _update(child, updates, (*path, name)) for name, child in tree.items()}


def read_argument(arg: Any, slots: list[Any], own: np.dtype) -> Any:
    """An argument of an instruction, with the values of slots and the types of a call in place of their names."""
    if isinstance(arg, Ref):
        return slots[arg.index]
    if isinstance(arg, DType):
        return arg.resolve(own)
    if hasattr(arg, "run"):  # a ``branches.Block``
        return functools.partial(arg.run, own)
    if isinstance(arg, tuple):
        return tuple(read_argument(a, slots, own) for a in arg)
    return arg


def to_logical(value: Any) -> Any:
    """A value, or each of several, in torch's order of axes."""
    if isinstance(value, View):
        return value.logical()
    if isinstance(value, tuple):
        return tuple(to_logical(v) for v in value)
    return value


def run_instruction(
    instruction: Instruction, args: list[Any], kwargs: dict[str, Any], noise: Noise, own: np.dtype
) -> Any:
    """Compute the result of an instruction: views or plain values. An error names the operator and the source line."""
    operator = instruction.operator
    dtypes = tuple(None if d is None else d.resolve(own) for d in instruction.dtypes)
    if operator.random:
        kwargs["draw"] = noise.draw
    change = keep_rounding if instruction.kept else None
    try:
        if not instruction.wide:
            return _cast_result(_apply(operator, args, kwargs), dtypes, change)
        return _in_64_bits(
            lambda a, k: _cast_result(_apply(operator, *_widen_arguments(operator, a, k)), dtypes, change), args, kwargs
        )
    except Exception as error:
        error.add_note(f"in {operator.name}{', ' + instruction.where if instruction.where else ''}")
        raise


def _in_64_bits(f: Callable[[Any, Any], Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    """``in_64_bits`` for views among other arguments; the results have the layouts that f gives them."""
    leaves, structure = jax.tree.flatten((args, kwargs), is_leaf=_is_view)
    views = [i for i, x in enumerate(leaves) if isinstance(x, View)]
    layouts: list[Any] = []

    def of_arrays(*arrays: Any) -> list[Any]:
        values = list(leaves)
        for i, array in zip(views, arrays, strict=True):
            values[i] = leaves[i].with_array(array)
        results, form = jax.tree.flatten(f(*jax.tree.unflatten(structure, values)), is_leaf=_is_view)
        layouts[:] = [form, results]
        return [x.array for x in results if isinstance(x, View)]

    found = iter(in_64_bits(of_arrays, *(leaves[i].array for i in views)))
    form, results = layouts
    return jax.tree.unflatten(form, [x.with_array(next(found)) if isinstance(x, View) else x for x in results])


def _is_view(x: Any) -> bool:
    return isinstance(x, View)


def _apply(operator: TorchOperator, args: list[Any], kwargs: dict[str, Any]) -> Any:
    if operator.layout == "views":
        return operator.function(*args, **kwargs)
    if operator.layout == "pointwise":
        arrays, layout = aligned(args)
        named, layout_of_named = aligned(list(kwargs.values()))
        if layout_of_named is not None:  # tensors by name are rare, so torch's own order will do
            arrays, layout = [to_logical(a) for a in args], None
            named = [to_logical(v) for v in kwargs.values()]
        result = operator.function(*arrays, **dict(zip(kwargs, named, strict=True)))
        return result if layout is None else _wrap(result, layout)
    return operator.function(*(to_logical(a) for a in args), **{name: to_logical(v) for name, v in kwargs.items()})


def _widen_arguments(operator: TorchOperator, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], Any]:
    """The arguments with integers in 64 bits; float64 numbers beside tensors of a lower type get that, as in torch."""
    floats = [x for x in (*args, *kwargs.values()) if isinstance(x, View) and jnp.issubdtype(x.dtype, jnp.inexact)]
    axes = [x.dtype for x in floats if x.ndim]
    lower = axes[0] if operator.layout == "pointwise" and axes and not any(map(is_wide, axes)) else None

    def widen(x: Any) -> Any:
        if isinstance(x, tuple | list):
            return tuple(map(widen, x))
        if not isinstance(x, View):
            return x
        if x.dtype == np.int32:
            return x.with_array(x.array.astype(np.int64))
        return x.with_array(x.array.astype(lower)) if lower is not None and x.ndim == 0 and x.dtype == np.float64 else x

    return [widen(x) for x in args], {name: widen(x) for name, x in kwargs.items()}


@jax.custom_jvp
def keep_rounding(x: Any) -> Any:
    """x, computed and rounded as it stands; the derivative is 1.

    XLA would turn (x + a) + b into x + (a + b), and (x + 12582912) - 12582912, which rounds x, into x.
    """
    return jax.lax.optimization_barrier(x)


keep_rounding.defjvp(lambda primals, tangents: (keep_rounding(primals[0]), tangents[0]))


def _wrap(result: Any, layout: View) -> Any:
    if isinstance(result, tuple):
        return tuple(_wrap(r, layout) for r in result)
    if not layout.is_merged:
        return View(result, layout.order)
    return layout.with_array(result)


def _cast_result(result: Any, dtypes: tuple[np.dtype | None, ...], change: Callable[[Any], Any] | None = None) -> Any:
    """The result as views, in the types that torch has: jax promotes Python scalars otherwise in places."""
    if isinstance(result, tuple | list):
        return tuple(_cast_result(r, (d,), change) for r, d in zip(result, (*dtypes, *[None] * len(result))))
    if not dtypes or dtypes[0] is None or result is None:  # by "is", since numpy holds float64 equal to None
        return as_view(result) if isinstance(result, jax.Array | np.ndarray) else result
    view = as_view(result)
    if view.dtype != dtypes[0]:
        view = view.with_array(view.array.astype(dtypes[0]))
    return view if change is None else view.with_array(change(view.array))


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
