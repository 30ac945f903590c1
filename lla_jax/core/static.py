"""Makes functions compare by value, so that a lambda written in a loop compiles once and not every time.

Two functions are equal if they have the same code, and if everything that the code can reach is the same and cannot
change: values of immutable types, library modules, and functions that reach nothing else. A function that can reach
anything else (a mutable object, an array, a module of the user's) is equal only to itself.
"""

from __future__ import annotations

import enum
import functools
import inspect
import sys
import sysconfig
import types
from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from lla_jax.core.text import name_of

_LIBRARY = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))


class Static:
    """A wrapper of a function; two wrappers are equal if their functions are, by the rules of this module.

    As under ``jax.jit``, a function that reads a mutable object sees the object's value at the first compilation: build
    a new function (or ``Loss``) after changing the object.
    """

    def __init__(self, f: Callable[..., Any]):
        self.f = f
        try:
            self.identity: Hashable = identity(f, ())
        except (TypeError, RecursionError):
            self.identity = _ByIdentity(f)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.f(*args, **kwargs)

    def __hash__(self) -> int:
        return hash(self.identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.identity == other.identity

    def __reduce__(self) -> Any:
        return (Static, (self.f,))  # identities hold for this process only

    def __repr__(self) -> str:
        return name_of(self.f)


def static(f: Any) -> Any:
    """Wrap a plain function or partial as ``Static``; return anything else (with an equality of its own) as it is."""
    return Static(f) if isinstance(f, types.FunctionType | functools.partial) else f


def function_of(f: Any) -> Any:
    """The function that ``static`` wrapped; anything else as it is."""
    return f.f if isinstance(f, Static) else f


def takes_exactly(f: Any, count: int) -> bool:
    """Whether a plain function, perhaps wrapped, takes this number of positional arguments and no other."""
    f = function_of(f)
    if not isinstance(f, types.FunctionType):
        return False
    code, no_defaults = f.__code__, not f.__defaults__
    return no_defaults and code.co_argcount == count and not code.co_flags & inspect.CO_VARARGS


class _ByIdentity:
    """An object that equals only itself; it is held here, so that no other object can get its id."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and self.value is other.value


def identity(value: Any, outer: tuple[Any, ...] = (), names: Sequence[str] = ()) -> Hashable:
    """A hashable stand-in for a value.

    Args:
      value: a value that a function can reach.
      outer: the functions through which the value was reached; meeting one of them again ends the recursion.
      names: the attributes of the value that the function may read, if the value is a module.

    Raises:
      TypeError: the value is mutable, or may be.
    """
    if value is None or isinstance(value, bool | int | complex | str | bytes | enum.Enum | np.dtype | np.generic):
        return (type(value), repr(value) if isinstance(value, complex | np.generic) else value)
    if isinstance(value, float):
        return (float, value.hex())  # 0.0 and -0.0 are equal, and make different programs
    if isinstance(value, tuple | frozenset):
        return (type(value), tuple(identity(v, outer) for v in value))
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, tuple(value.keywords.items()))
        return (functools.partial, *(identity(part, outer) for part in parts))
    if isinstance(value, types.ModuleType):
        return _identity_of_module(value, names)
    if isinstance(value, types.FunctionType) and hasattr(value, "__explained__"):
        return identity(value.__explained__, outer)
    if isinstance(value, types.FunctionType) and not _is_library(value.__module__):
        return _identity_of_function(value, outer)
    if isinstance(value, types.FunctionType | type) and _is_library(value.__module__):
        return _ByIdentity(value)
    if isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, types.ModuleType | None):
        return _ByIdentity(value)
    # objects that jax caches by identity, and compiled code without state
    if isinstance(value, np.ufunc) or type(value).__name__ == "PjitFunction":
        return _ByIdentity(value)
    if type(value).__name__ in ("custom_jvp", "custom_vjp") and _is_library(getattr(value, "__module__", "")):
        return _ByIdentity(value)
    raise TypeError(f"{type(value).__name__} may change")


def _is_library(name: str | None) -> bool:
    """Whether a module is installed, and not the user's own."""
    file = getattr(sys.modules.get(name or ""), "__file__", None)
    return name in sys.builtin_module_names or (file is not None and file.startswith(_LIBRARY))


def _identity_of_module(module: types.ModuleType, names: Sequence[str]) -> Hashable:
    """The identity of a library module and of those of its attributes that are read (somebody may replace them)."""
    if not _is_library(module.__name__):
        raise TypeError(f"{module.__name__} may change")
    attributes = [(name, getattr(module, name)) for name in names if hasattr(module, name)]
    inner = [
        (name, _identity_of_module(value, [n for n in names if n != name]))
        if isinstance(value, types.ModuleType)
        else (name, _ByIdentity(value))
        for name, value in attributes
    ]
    return (_ByIdentity(module), *inner)


def _identity_of_function(f: types.FunctionType, outer: tuple[Any, ...]) -> Hashable:
    if f in outer:
        return ("outer", outer.index(f))
    outer, names = (*outer, f), _names(f.__code__)
    reached = [f.__globals__[name] for name in names if name in f.__globals__]
    try:
        captured = [cell.cell_contents for cell in f.__closure__ or ()]
    except ValueError as error:  # a cell that is filled later
        raise TypeError("a cell that is still empty will change") from error
    defaults = (f.__defaults__, tuple((f.__kwdefaults__ or {}).items()), tuple(f.__dict__.items()))
    parts = (*(identity(v, outer, names) for v in (*reached, *captured)), *(identity(v, outer) for v in defaults))
    return (f.__code__, _ByIdentity(f.__globals__), len(reached), parts)


def _names(code: types.CodeType) -> list[str]:
    """The global and attribute names that the code or a function inside it may read, in a fixed order."""
    inner = [name for c in code.co_consts if isinstance(c, types.CodeType) for name in _names(c)]
    return list(dict.fromkeys([*code.co_names, *inner]))


class ByValue:
    """A base of dataclasses (``eq=False``) that compare by their fields.

    An object with a field that has no hash equals only itself, which costs one more compilation.
    """

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
