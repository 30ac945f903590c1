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
from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields
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
        except (TypeError, RecursionError):
            self.identity = _Same(f)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.f(*args, **kwargs)

    def __hash__(self) -> int:
        return hash(self.identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.identity == other.identity

    def __reduce__(self) -> Any:
        return (Static, (self.f,))  # identities are of this process

    def __repr__(self) -> str:
        return f"Static({self.f!r})"


def static(f: Any) -> Any:
    """A plain function or partial wrapped as ``Static``; anything else (classes with their own equality) as it is."""
    return Static(f) if isinstance(f, types.FunctionType | functools.partial) else f


class _Same:
    """An object that only it equals; held, so that no other can come by its id."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value


def _identity(value: Any, above: tuple[Any, ...], names: Sequence[str] = ()) -> Hashable:
    """A hashable stand-in for a value.

    Args:
      value: what a function reaches.
      above: the functions it was reached through, to end recursion.
      names: what the function may ask of it, if it is a module.

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
        parts = (value.func, value.args, tuple(value.keywords.items()))
        return (functools.partial, *(_identity(part, above) for part in parts))
    if isinstance(value, types.ModuleType):
        return _identity_of_module(value, names)
    if isinstance(value, types.FunctionType) and not _is_library(value.__module__):
        return _identity_of_function(value, above)
    if isinstance(value, types.FunctionType | type) and _is_library(value.__module__):
        return _Same(value)
    if isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, types.ModuleType | None):
        return _Same(value)
    # what jax caches by the object itself, and compiled code without state
    if isinstance(value, np.ufunc) or type(value).__name__ == "PjitFunction":
        return _Same(value)
    if type(value).__name__ in ("custom_jvp", "custom_vjp") and _is_library(getattr(value, "__module__", "")):
        return _Same(value)
    raise TypeError(f"{type(value).__name__} may change")


def _is_library(name: str | None) -> bool:
    """Whether a module is installed, and not the user's own."""
    file = getattr(sys.modules.get(name or ""), "__file__", None)
    return name in sys.builtin_module_names or (file is not None and file.startswith(_LIBRARY))


def _identity_of_module(module: types.ModuleType, names: Sequence[str]) -> Hashable:
    """The module and what is asked of it, which somebody may have replaced."""
    if not _is_library(module.__name__):
        raise TypeError(f"{module.__name__} may change")
    found = [(name, getattr(module, name)) for name in names if hasattr(module, name)]
    inner = [
        (name, _identity_of_module(value, [n for n in names if n != name]))
        if isinstance(value, types.ModuleType)
        else (name, _Same(value))
        for name, value in found
    ]
    return (_Same(module), *inner)


def _identity_of_function(f: types.FunctionType, above: tuple[Any, ...]) -> Hashable:
    if f in above:
        return ("above", above.index(f))
    above, names = (*above, f), _names(f.__code__)
    reached = [f.__globals__[name] for name in names if name in f.__globals__]
    try:
        captured = [cell.cell_contents for cell in f.__closure__ or ()]
    except ValueError as error:  # a cell that is filled later
        raise TypeError("an empty cell will change") from error
    defaults = (f.__defaults__, tuple((f.__kwdefaults__ or {}).items()), tuple(f.__dict__.items()))
    parts = (*(_identity(v, above, names) for v in (*reached, *captured)), *(_identity(v, above) for v in defaults))
    return (f.__code__, _Same(f.__globals__), len(reached), parts)


def _names(code: types.CodeType) -> list[str]:
    """Global and attribute names that the code or a function inside it may read, in a fixed order."""
    inner = [name for c in code.co_consts if isinstance(c, types.CodeType) for name in _names(c)]
    return list(dict.fromkeys([*code.co_names, *inner]))


class ByValue:
    """Compares and hashes by its fields; by identity where a field cannot be hashed (costs a compilation, no more)."""

    def _content(self) -> tuple[Any, ...]:
        return tuple(getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]

    def __hash__(self) -> int:
        try:
            return hash((type(self), self._content()))
        except TypeError:
            return id(self)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other):
            return False
        try:
            hash(self._content()), hash(other._content())
            return bool(self._content() == other._content())
        except (TypeError, ValueError):
            return False
