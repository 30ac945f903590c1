"""``Instruction``: one application of an operator in a program, and how it is computed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_torch.program.bits import in_64_bits, is_wide
from lla_torch.program.noise import Noise
from lla_torch.program.operators import TorchOperator
from lla_torch.program.views import View, aligned, as_view


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
    where: str = field(default="", compare=False, repr=False)
    wide: bool = False
    kept: bool = False


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
    """A value with arrays in torch's order of axes in place of views."""
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
