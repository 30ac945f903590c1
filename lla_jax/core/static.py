"""Makes functions compare by value, so that a lambda written in a loop compiles once and not every time.

Two functions are equal if all that they can reach is equal, by the rules of ``identities``; a function that reaches
what cannot be looked into is equal only to itself. Content is looked at when a function is wrapped, and again when it
is traced or comes with a loss (``renew``), so that no call is served with what was compiled before an object changed.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Hashable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import jax

from lla_jax.core.identities import ByIdentity, Look, is_ours, mark_written
from lla_jax.core.text import name_of

LARGE = 2**24  # bytes of arrays; a function that reaches more is looked at in calls, not in every trace

T = TypeVar("T")


class Compared:
    """A base of what compares by the identity of ``look_at()``.

    It is found when the object is made, since jax compares static arguments but does not hash them, and so might ask
    for it only after a change.
    """

    look_at: Callable[[], Any]  # what counts in a comparison
    _found: tuple[Look | None, Hashable, int] | None = None  # None after unpickling

    def look(self) -> Look | None:
        """A look at what counts, as it is now; None if that has no identity."""
        try:
            return Look(self.look_at())
        except TypeError:
            return None

    def compare_by(self, look: Look | None) -> None:
        """Take the identity of a look; if there is none, this object equals only itself."""
        identity = ByIdentity(self) if look is None else look.identity
        object.__setattr__(self, "_found", (look, identity, hash((type(self), identity))))

    def _look_once(self) -> tuple[Look | None, Hashable, int]:
        if self._found is None:
            self.compare_by(self.look())
        assert self._found is not None
        return self._found

    def __hash__(self) -> int:
        return self._look_once()[2]

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other) or not isinstance(other, Compared):
            return False
        (_, one, number), (_, two, other_number) = self._look_once(), other._look_once()
        return number == other_number and one == two

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_found"}  # it holds for this process


class Static(Compared):
    """A wrapper of a function; two wrappers are equal if their functions are, by the rules of this module.

    As under ``jax.jit``, what was traced keeps the values that the function read then; a wrapper that is made after an
    object changed is another one. What a function writes while it is traced, such as a counter, does not count.
    """

    def __init__(self, f: Callable[..., Any]):
        self.f = f
        self.compare_by(self.look())

    def look_at(self) -> Any:
        """The function."""
        return self.f

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        known, identity, _ = self._look_once()
        looks = known is not None and known.size <= LARGE
        traced = looks and any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((args, kwargs)))
        before = self.look() if traced else None
        if before is None:
            return self.f(*args, **kwargs)
        if identity != before.identity:
            self.compare_by(before)  # what is compiled now belongs to what the function reads now
        result = self.f(*args, **kwargs)
        if (after := self.look()) is not None and before.identity != after.identity:
            mark_written(before, after)
        return result

    def __getattr__(self, name: str) -> Any:
        """What else an object offers that is called, such as ``on_example``."""
        if name.startswith("_") or name == "f":
            raise AttributeError(name)
        return getattr(self.f, name)

    def __reduce__(self) -> Any:
        return (Static, (self.f,))

    def __repr__(self) -> str:
        return name_of(self.f)


def static(f: Any) -> Any:
    """Wrap a function, method or callable object of the user's as ``Static``; return anything else as it is."""
    kinds = (type, types.BuiltinFunctionType, Compared)
    return f if not callable(f) or isinstance(f, kinds) or is_ours(f) else Static(f)


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


class ByValue(Compared):
    """A base of dataclasses (``eq=False``) that compare by all that their fields reach."""

    def __post_init__(self) -> None:
        self.compare_by(self.look())

    def look_at(self) -> tuple[Any, ...]:
        """The fields."""
        return tuple(getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]


def renew(value: T) -> T:
    """The same function, model or dataclass of these, compared by what it reaches now, if that changed.

    What has no identity stays as it is.
    """
    changed = _has_changed(value)
    if changed is False:  # nor has any part, which the look reached too
        return value
    made: Any = value
    if is_dataclass(value) and not isinstance(value, type):
        old = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        new = {name: renew(each) for name, each in old.items() if isinstance(each, Compared) or is_ours(each)}
        if changed or any(new[name] is not old[name] for name in new):
            made = replace(value, **new)
    elif changed and isinstance(value, Static):
        made = Static(value.f)
    return made


def _has_changed(value: Any) -> bool | None:
    """Whether a look finds another identity than before; None if there is none."""
    if not isinstance(value, Compared) or value._found is None or value._found[0] is None:
        return None
    look = value.look()
    return None if look is None else look.identity != value._found[1]
