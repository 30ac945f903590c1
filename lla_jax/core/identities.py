"""Finds all that a function can reach, as a hashable stand-in by which functions compare: the identity of a value.

Two values have equal identities if code that reads them surely does the same: equal code, equal numbers, and equal
content of all objects, classes, modules and arrays on the way. Content is looked at when the identity is made, so an
object that was changed in place gets another one. What cannot be looked into, or changes outside of the program (files,
clocks, random generators), has no identity.

Installed libraries are trusted to keep no state; their functions count as objects, so that it is noticed if one is
replaced. Of Python's own library ``libraries.PURE`` is trusted: ``os.getenv`` and ``time.time`` are not.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import fractions
import functools
import hashlib
import logging
import pathlib
import re
import sys
import threading
import types
import weakref
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from lla_jax.core.code_names import BY_NAME, Named, modules_of, names_of
from lla_jax.core.libraries import OURS, is_installed, is_standard, is_trusted, is_trusted_module, top
from lla_jax.core.remembering import remember

MOST = 10_000  # values that are looked at, for some 50 ms; a function that reaches more has no identity

_OUTSIDE = frozenset({"open", "input", "exec", "eval", "globals", "locals", "vars", "__import__", "breakpoint"})
_FILES = ("read_text", "read_bytes", "open", "exists", "is_file", "is_dir", "stat")
_LOADING = ("load", "loadtxt", "genfromtxt", "fromfile", "memmap")  # of numpy and others
_READING = frozenset({*_FILES, *_LOADING, "now", "today", "utcnow"})  # methods, and functions of libraries
_PLAIN = frozenset({int, bool, str, bytes, type(None)})
_SIMPLE: Any = (str, bytes, int, float, complex)
_SEQUENCES = (list, tuple, set, frozenset, dict, np.ndarray, collections.deque)
_SEEN_WHOLE = (object, types.SimpleNamespace, collections.OrderedDict, collections.defaultdict)
_VALUES: tuple[type, ...] = (
    np.dtype,
    range,
    slice,
    re.Pattern,
    pathlib.PurePath,
    decimal.Decimal,
    fractions.Fraction,
    types.CodeType,
)
_VALUES += (datetime.date, datetime.time, datetime.timedelta)
_CONSTANTS: tuple[type, ...] = (enum.Enum, np.ufunc, types.GenericAlias, types.EllipsisType, types.NotImplementedType)
_CONSTANTS += (logging.Logger, type(threading.Lock()), type(threading.RLock()))  # nothing is read from these
_CONSTANTS += (types.WrapperDescriptorType, types.MethodDescriptorType, types.ClassMethodDescriptorType)
_SLOTS = (types.MemberDescriptorType, types.GetSetDescriptorType, type(Named.loaded))
_OF_CLASSES = frozenset(  # entries of a class that say nothing of what its objects do
    [
        "__dict__",
        "__weakref__",
        "__doc__",
        "__module__",
        "__annotations__",
        "__abstractmethods__",
        "_abc_impl",
        "__dataclass_fields__",
        "__dataclass_params__",
        "__match_args__",
        "__parameters__",
        "__orig_bases__",
        "__static_attributes__",
        "__firstlineno__",
        "__annotate__",
        "__annotate_func__",
        "__annotations_cache__",
        "__qualname__",
        "__slots__",
        "__type_params__",
    ]
)
_BOOKKEEPING = frozenset({"_id", "_state"})  # attributes of linen modules that differ between equal ones
_MISSING = object()
Written = dict[Hashable, set[Hashable]]
"""By the name of an entry all values that it had before or after it was written."""

_WRITTEN: dict[Hashable, tuple[Any, Written]] = {}  # objects, by id, and what functions wrote in them


class ByIdentity:
    """An object that equals only itself; it is held here, so that no other object can get its id."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByIdentity) and self.value is other.value


class Held:
    """An object that may change, and its entries when it was looked at; equal to another that held the same.

    In one and the same object, values that a function found or left in an entry while it was traced, such as those of
    a counter, count as one.
    """

    def __init__(self, value: Any, *kind: Hashable):
        self.value = value
        self.kind = kind
        self.entries: dict[Hashable, Hashable] = {}

    def __hash__(self) -> int:
        return hash(self.kind)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Held) or self.kind != other.kind:
            return False
        written = _WRITTEN.get(id(self.value), (None, {}))[1] if self.value is other.value else {}
        return all(values <= written.get(name, set()) for name, values in self.differences(other).items())

    def differences(self, other: Held) -> Written:
        """By name the two values of the entries in which two looks differ."""
        one, two = self.entries, other.entries
        pairs = {name: (one.get(name, _MISSING), two.get(name, _MISSING)) for name in one | two}
        return {name: set(pair) for name, pair in pairs.items() if pair[0] != pair[1]}


class Look:
    """The identity of a value, and the objects on the way that may change, those inside of others first.

    Raises:
      TypeError: there is no identity.
    """

    def __init__(self, value: Any):
        self.held: list[Held] = []
        self._met: dict[int, tuple[int, Any]] = {}  # by id: number and object, which keeps its id while it is held
        self._left = MOST
        self.size = 0  # bytes of the arrays on the way
        try:
            self.identity = self._of(value)
        except TypeError:
            raise
        except Exception as error:  # of the user's own containers and attributes
            raise TypeError(f"{type(value).__name__} cannot be read") from error

    def _of(self, value: Any, names: Sequence[str] = ()) -> Hashable:
        """The identity of a value; ``names`` are the attributes that code may read of it, if it is a module."""
        kind = type(value)
        if kind in _PLAIN:
            return (kind, value)
        self._left -= 1
        if self._left < 0:
            raise TypeError("too much is reached")
        if kind is float:
            return (float, value.hex())  # 0.0 and -0.0 are equal, and make different programs
        if kind is complex or isinstance(value, np.generic):
            return (kind, repr(value))
        if kind is tuple:
            return (tuple, *(self._of(each, names) for each in value))
        if kind is frozenset:
            return (frozenset, frozenset(map(self._of, value)))
        if isinstance(value, types.ModuleType):
            return self._of_module(value, names)
        if isinstance(value, _VALUES) and is_trusted(kind):
            return (kind, repr(value) if kind is slice else value)
        if kind is jax.tree_util.PyTreeDef and _is_hashable(value):
            return (kind, value)
        if kind is object or isinstance(value, _CONSTANTS) or _is_of_jax(value):
            return ByIdentity(value)
        if id(value) in self._met:
            return ("again", self._met[id(value)][0])
        self._met[id(value)] = (len(self._met), value)
        return self._of_object(value)

    def _of_object(self, value: Any) -> Hashable:
        """The identity of what is met for the first time, and may hold other things."""
        kind = type(value)
        if isinstance(value, types.FunctionType):
            return self._of_function(value)
        if isinstance(value, type):
            return self._of_class(value)
        if isinstance(value, types.BuiltinFunctionType):
            return self._of_builtin(value)
        if kind.__name__ == "_lru_cache_wrapper":  # the values that it keeps are not ours
            return (kind, ByIdentity(value), self._of(value.__wrapped__))
        if isinstance(value, types.MethodType):
            parts: tuple[Any, ...] = (value.__func__, value.__self__)
        elif isinstance(value, staticmethod | classmethod):
            parts = (value.__func__,)
        elif isinstance(value, property):
            parts = (value.fget, value.fset)
        elif isinstance(value, functools.cached_property):
            parts = (value.func,)
        elif isinstance(value, functools.partial):
            parts = (value.func, value.args, tuple(value.keywords.items()), tuple(vars(value).items()))
        elif kind is weakref.ref:
            parts = (value(),)
        elif kind is types.MappingProxyType:
            parts = (dict(value),)
        elif value is jax.config:
            parts = tuple(sorted(value.values.items()))
        else:
            return self._of_content(value)
        return (kind, *map(self._of, parts))

    def _hold(self, value: Any, entries: Iterator[tuple[Hashable, Hashable]], *kind: Hashable) -> Held:
        held = Held(value, *kind)
        held.entries.update(entries)
        self.held.append(held)
        return held

    # --- functions

    def _of_function(self, f: types.FunctionType) -> Hashable:
        if hasattr(f, "__explained__"):
            return self._of(f.__explained__)
        library = is_trusted_module(f.__globals__.get("__name__"))
        if library and not f.__closure__ and not hasattr(f, "__wrapped__"):
            return ByIdentity(f)
        names, scope = names_of(f.__code__), f.__globals__
        reached: list[Hashable] = [ByIdentity(f if library else scope)]
        for cell, name in zip(f.__closure__ or (), f.__code__.co_freevars, strict=True):
            try:
                content = cell.cell_contents
            except ValueError as error:
                raise TypeError("a cell that is still empty will be filled") from error
            if library:
                reached.append(self._of_part(content))
            else:
                reached.append(self._of_variable(name, content, cell, names))
        if not library:
            reached += [(name, self._of_variable(name, x, scope, names)) for name, x in _named(f, names)]
        parts = (f.__defaults__, tuple((f.__kwdefaults__ or {}).items()), tuple(vars(f).items()))
        return (f.__code__, *reached, *((self._of_part if library else self._of)(part) for part in parts))

    def _of_variable(self, name: str, value: Any, scope: Any, names: Named) -> Hashable:
        """The identity of a captured or global value; where the code assigns it, as an entry of its scope."""
        found = self._of(value, names.attributes)
        return self._hold(scope, iter([(name, found)]), "variable", name) if name in names.assigned else found

    def _of_part(self, value: Any) -> Hashable:
        """The identity of what a library's function holds, such as a lock, or a function of the user's."""
        held = callable(value) or isinstance(value, _SEQUENCES) or not is_standard(type(value).__module__)
        return self._of(value) if held else ByIdentity(value)

    def _of_builtin(self, f: types.BuiltinFunctionType) -> Hashable:
        """A function written in C, or such a method of an object."""
        owner: Any = f.__self__
        if owner is not None and not isinstance(owner, types.ModuleType | type):
            return ("method", f.__name__, self._of(owner))
        module = f.__module__ or getattr(owner, "__module__", None) or getattr(owner, "__name__", None)
        if not is_trusted_module(module):
            raise TypeError(f"{f.__name__} may return something else each time")
        return ByIdentity(f)

    # --- modules and classes

    def _of_module(self, module: types.ModuleType, names: Sequence[str]) -> Hashable:
        """A module and those of its attributes that are read: somebody may replace them, or change what they hold."""
        library = is_installed(module.__name__) or is_standard(module.__name__)
        if not library and id(module) in self._met:
            return ("again", self._met[id(module)][0])
        if not library and (not names or BY_NAME & set(names)):
            self._met[id(module)] = (len(self._met), module)
            names = [name for name in vars(module) if not name.startswith("__")]
        found: list[Hashable] = [ByIdentity(module)]
        for name in names:
            if hasattr(module, name):
                found.append((name, self._of(getattr(module, name), [n for n in names if n != name])))
        return tuple(found)

    def _of_class(self, kind: type) -> Hashable:
        """A class of the user's with its methods and attributes; one of a library as an object."""
        if is_trusted(kind):
            return ByIdentity(kind)
        if is_standard(kind.__module__) or is_installed(kind.__module__):
            raise TypeError(f"{kind.__name__} may depend on what is outside of the program")
        bases = tuple(self._of(base) for base in kind.__bases__)
        entries = (
            (name, self._of(value))
            for name, value in vars(kind).items()
            if name not in _OF_CLASSES and not isinstance(value, _SLOTS)
        )
        return ("class", self._hold(kind, entries, ByIdentity(kind)), self._of(type(kind)), *bases)

    # --- objects that may change

    def _of_content(self, value: Any) -> Hashable:
        kind = type(value)
        if is_ours(value):
            if hasattr(kind, "look_at"):  # our functions and adapters say what counts
                return (kind, self._of(value.look_at()))
            if kind.__hash__ is not object.__hash__ and _is_hashable(value):
                return (kind, value)
        own = self._of(kind)
        if hasattr(value, "detach") and hasattr(value, "resolve_conj"):  # of torch
            return (own, self._hold(value, iter([("", _digest_of_tensor(value))]), "tensor"))
        attributes = _attributes(value)
        if attributes is None:
            if is_installed(kind.__module__):
                return (own, ByIdentity(value))
            raise TypeError(f"{kind.__name__} may change")
        return (own, self._hold(value, self._entries(value, attributes), "object"))

    def _entries(self, value: Any, attributes: dict[str, Any]) -> Iterator[tuple[Hashable, Hashable]]:
        """What an object holds: by key the values of a dict, by name its attributes, and under "" all else."""
        for name, each in attributes.items():
            yield ("attribute", name), self._of(each)
        if isinstance(value, np.ndarray) and value.dtype != object:
            self.size += value.nbytes
            yield "", (value.shape, str(value.dtype), _digest(value))
        elif isinstance(value, np.ndarray):
            yield "", (value.shape, self._of(tuple(value.ravel().tolist())))
        elif isinstance(value, dict):
            keys = tuple(map(self._of, value))
            yield "", (keys, self._of(getattr(value, "default_factory", None)))  # keys in their order
            for key, each in zip(keys, value.values(), strict=True):
                yield ("key", key), self._of(each)
        elif isinstance(value, set | frozenset):
            yield "", frozenset(map(self._of, value))
        elif isinstance(value, list | tuple | collections.deque):
            plain = all(type(each) in _PLAIN for each in value)
            yield "", (tuple(map(type, value)), tuple(value)) if plain else self._of(tuple(value))
        elif isinstance(value, _SIMPLE):
            base = next(each for each in _SIMPLE if isinstance(value, each))
            yield "", self._of(base(value))


def mark_written(before: Look, after: Look) -> None:
    """Note what a function wrote between two looks at it, so that it does not count; what others write there does."""
    old = {(id(held.value), held.kind): held for held in before.held}
    for held in after.held:
        was = old.get((id(held.value), held.kind))
        if was is not None and was != held:
            written = _written_in(held.value)
            for name, values in was.differences(held).items():
                written.setdefault(name, set()).update(values)


def _written_in(value: Any) -> Written:
    return remember(_WRITTEN, id(value), lambda: (value, {}))[1]


def identity(value: Any) -> Hashable:
    """A hashable stand-in for a value, by which values compare that code can reach.

    Raises:
      TypeError: the value cannot be looked into, or may change outside of the program.
    """
    return Look(value).identity


def is_ours(value: Any) -> bool:
    """Whether an object is of this library, or of ``lla_torch``."""
    return top(type(value).__module__) in OURS


def _named(f: types.FunctionType, names: Named) -> Iterator[tuple[str, Any]]:
    """The global values, built-in functions and imported modules that the code of a function names."""
    if found := _READING & set(names.attributes):
        raise TypeError(f"{min(found)} reads what may change")
    scope: Any = f.__globals__
    built_in: Any = f.__builtins__  # type: ignore[attr-defined]
    for name in names.loaded:
        if name in scope:
            yield name, scope[name]
        elif name in _OUTSIDE:
            raise TypeError(f"{name} reads what may change")
        elif name in built_in and not isinstance(built_in[name], type):
            yield name, built_in[name]
    for name in modules_of(names.imported, scope.get("__package__") or ""):
        if name in sys.modules:
            yield name, sys.modules[name]


def _is_of_jax(value: Any) -> bool:
    """Whether jax made it and it cannot change: an array, a device, a jitted function, which jax itself keeps."""
    kind = type(value)
    if kind.__name__ in ("custom_jvp", "custom_vjp", "Config", "Partial", "ShapeDtypeStruct"):
        return False
    return isinstance(value, jax.Array) or top(kind.__module__) in ("jax", "jaxlib") or kind.__name__ == "PjitFunction"


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _attributes(value: Any) -> dict[str, Any] | None:
    """The attributes of an object; None if it holds something that cannot be seen."""
    kind = type(value)
    for base in kind.__mro__:
        in_c = isinstance(vars(base).get("__new__"), types.BuiltinFunctionType)
        if in_c and base not in (*_SEEN_WHOLE, *_SEQUENCES, *_SIMPLE):
            return None
    own = getattr(value, "__dict__", None)
    slots = [name for base in kind.__mro__ for name in _slots(base)]
    if own is None and not slots and not isinstance(value, (*_SEQUENCES, *_SIMPLE)):
        return None
    linen = any(base.__module__ == "flax.linen.module" for base in kind.__mro__)
    found = {name: getattr(value, name) for name in slots if hasattr(value, name)} | dict(own or {})
    return {name: each for name, each in found.items() if not (linen and name in _BOOKKEEPING)}


def _slots(kind: type) -> list[str]:
    own = vars(kind).items() if "__slots__" in vars(kind) else ()  # types in C have members that are no slots
    return [name for name, value in own if isinstance(value, types.MemberDescriptorType)]


def _digest(array: np.ndarray) -> bytes:
    return hashlib.sha1(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, usedforsecurity=False).digest()


def _digest_of_tensor(tensor: Any) -> Hashable:
    array = tensor.detach().cpu().resolve_conj().resolve_neg()
    array = array.float() if str(array.dtype) == "torch.bfloat16" else array
    return (tuple(tensor.shape), str(tensor.dtype), _digest(array.numpy()))
