"""Functions that compare by value, so that one lambda written in a loop compiles once and not every time.

Two functions are the same to a compiler if they have the same code and everything the code can reach is the same and
cannot change: values of immutable types, library modules and functions that qualify in their turn. Where anything else
is in reach (a mutable object, an array, a module of the user's), only the function object itself is the same.
"""

from __future__ import annotations

import enum
import functools
import sys
import sysconfig
import types
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

_LIBRARY = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))


class Static:
    """A callable whose equality is that of what it computes, as far as that can be told from outside.

    As under ``jax.jit``, a function that reads a mutable object sees its value when it is first compiled: build a new
    function (or ``Loss``) after changing it.
    """

    def __init__(self, f: Callable[..., Any]):
        self.f = f
        try:
            self.identity: Hashable = _identity(f, ())
        except TypeError:
            self.identity = id(f)  # unique while this object, which holds f, is alive

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.f(*args, **kwargs)

    def __hash__(self) -> int:
        return hash(self.identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.identity == other.identity

    def __repr__(self) -> str:
        return f"Static({self.f!r})"


def static(f: Any) -> Any:
    """A plain function or partial wrapped as ``Static``; anything else (classes with their own equality) as it is."""
    return Static(f) if isinstance(f, types.FunctionType | functools.partial) else f


def _identity(value: Any, above: tuple[Any, ...]) -> Hashable:
    """A hashable stand-in for a value; ``above`` are the functions it was reached through, to end recursion.

    Raises:
      TypeError: the value is mutable, or not known not to be.
    """
    if value is None or isinstance(value, bool | int | complex | str | bytes | enum.Enum | np.dtype | np.generic):
        return (type(value), repr(value) if isinstance(value, complex | np.generic) else value)
    if isinstance(value, float):
        return (float, value.hex())  # 0.0 and -0.0 are equal, and make different programs
    if isinstance(value, tuple | frozenset):
        return (type(value), tuple(_identity(v, above) for v in value))
    if isinstance(value, functools.partial):
        return (
            functools.partial,
            *(_identity(v, above) for v in (value.func, value.args, tuple(value.keywords.items()))),
        )
    if isinstance(value, types.FunctionType):
        return _identity_of_function(value, above)
    if isinstance(value, types.ModuleType):
        return _library(value, value)
    if isinstance(value, type | types.BuiltinFunctionType):
        return (type, id(value))
    if callable(value) and not hasattr(value, "__array__"):
        return _library(sys.modules.get(type(value).__module__), value)  # a jitted function, jax.nn.relu, a ufunc
    raise TypeError(f"{type(value).__name__} may change")


def _library(module: Any, value: Any) -> Hashable:
    file = getattr(module, "__file__", None)
    if module is None or (file is not None and not file.startswith(_LIBRARY)):
        raise TypeError(f"{module} may change")
    return (types.ModuleType, id(value))


def _identity_of_function(f: types.FunctionType, above: tuple[Any, ...]) -> Hashable:
    if f in above:
        return ("above", above.index(f))
    above = (*above, f)
    reached = [f.__globals__[name] for name in _names(f.__code__) if name in f.__globals__]
    try:
        captured = [cell.cell_contents for cell in f.__closure__ or ()]
    except ValueError as error:  # a cell that is filled later
        raise TypeError("an empty cell will change") from error
    parts = (reached, captured, f.__defaults__ or (), tuple((f.__kwdefaults__ or {}).items()))
    return (f.__code__, id(f.__globals__), *(tuple(_identity(v, above) for v in part) for part in parts))


def _names(code: types.CodeType) -> list[str]:
    """Global names that the code or a function inside it may read, in a fixed order."""
    inner = [name for c in code.co_consts if isinstance(c, types.CodeType) for name in _names(c)]
    return list(dict.fromkeys([*code.co_names, *inner]))
