"""Explains calls that do not fit a signature, and attributes that do not exist, in place of Python's own errors.

The texts come from the docstrings: what an argument is stands in the section "Args" of its function.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType, ModuleType
from typing import Any, NoReturn, TypeVar, cast

from lla_jax._names import LIKE, NoSuchName, explain_module, nearest, no_such_name, place_of
from lla_jax.core.arguments import Misuse, show_value

Function = TypeVar("Function", bound=Callable[..., Any])
Explained = TypeVar("Explained", bound=Callable[..., Any] | ModuleType)
Options = TypeVar("Options", bound=Mapping[str, Any])
"""A TypedDict of options that several functions share."""

ALIKE = 0.9  # of names so alike that one is the other misspelt, even if other functions have it

EXAMPLES = {"key": "jax.random.key(0)", "grid": "lla.grid(points=41)"}
"""Values of arguments for messages, where one value serves every function."""

_SAME = {
    "axes": ("directions",),
    "directions": ("axes",),
    "coords": ("grid",),
    "rng": ("key",),
    "rngs": ("key",),
    "seed": ("key", "seeds"),
    "dataset": ("data",),
    "weights": ("params",),
    "num": ("points",),
    "n": ("points", "num"),
    "coordinator_address": ("coordinator",),
    "num_processes": ("num",),
    "process_id": ("process",),
    "heartbeat_timeout_seconds": ("heartbeat",),
}
"""What an argument is called elsewhere, and the names that may be meant by it."""

CALLED: list[Callable[..., Any]] = []
"""All explained functions that are imported; a message looks here for the one that has an argument."""


class MisusedCall(Misuse, TypeError):
    """The error for a call with missing, unknown or surplus arguments; it is a TypeError, as Python's own, too."""


def explained(item: Explained) -> Explained:
    """A decorator for public functions and classes: a call that does not fit the signature gets an error that helps.

    It is the innermost decorator of a function. A class gets it for its constructor and public methods; unknown
    attributes of its objects, and assignments to frozen ones, are explained too. A call that fits costs nothing but one
    more Python frame: the arguments are looked at only after Python refused them. A module is passed as it is, and
    explains its unknown names.

    Args:
      item: a function, a class or a module.

    Returns:
      A function with the same name, signature and docstring; of a class or a module, the item itself.
    """
    if isinstance(item, ModuleType):
        explain_module(item)
        return item
    return _explain_class(item) if isinstance(item, type) else _explain_calls(item, item.__qualname__)


def no_such_argument(name: str, function: str, known: Iterable[str]) -> MisusedCall:
    """The error (not raised) for an argument's name that a function does not know, with the nearest one that it does.

    Args:
      name: the name in the call.
      function: the function's name.
      known: the names of its arguments.
    """
    known = list(known)
    elsewhere = _find_elsewhere(name)
    same = next((each for each in _SAME.get(name, ()) if each in known), None)
    near = same or nearest(name, known, ALIKE if elsewhere else LIKE)
    meant = f"; did you mean {near}?" if near else elsewhere or "."
    return MisusedCall(name, f"{function}() has no such argument{meant} It takes {', '.join(known) or 'none'}")


def _find_elsewhere(name: str) -> str:
    """The words for an argument that other public functions have, those of the package itself first; "" if none has."""
    places = {f.__qualname__: place_of(f.__qualname__) or "" for f in CALLED if name in _parameters(f)}
    names = sorted((n for n in places if places[n]), key=lambda n: (n[:1].isupper(), places[n].count(".")))
    return f"; it is one of {' and '.join(f'{n}()' for n in names[:2])}." if names else ""


def _parameters(f: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    given = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: p for name, p in inspect.signature(f).parameters.items() if p.kind not in given}


# --- calls


def _explain_calls(f: Any, name: str, owner: type | None = None) -> Any:
    """A function that calls ``f`` and explains a call that does not fit; ``owner``: the class whose method it is."""

    @functools.wraps(f)
    def call(*args: Any, **options: Any) -> Any:
        try:
            return f(*args, **options)
        except TypeError as error:
            # a local name of the error or of its traceback, which holds this frame, would keep the arguments alive
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise  # from inside of the function, by something else
            slip = _describe_slip(call, name, owner, args, options)
            if slip is None:
                raise
        try:
            raise slip
        finally:
            del slip

    call.__explained__ = f  # type: ignore[attr-defined]
    if owner is None:
        CALLED.append(call)
    return call


def _describe_slip(
    f: Any, name: str, owner: type | None, args: tuple[Any, ...], options: Mapping[str, Any]
) -> MisusedCall | None:
    """The error for the first fault of a call: an unknown name, a surplus argument, one given twice, a missing one."""
    parameters = _parameters(f)
    if owner is not None:  # without self
        parameters, args = dict(list(parameters.items())[1:]), args[1:]
    known = [n for n, p in parameters.items() if p.kind is not p.POSITIONAL_ONLY]
    places = [n for n, p in parameters.items() if p.kind is not p.KEYWORD_ONLY]
    kinds = {p.kind for p in inspect.signature(f).parameters.values()}
    unknown = [n for n in options if n not in known]
    if unknown and (inspect.Parameter.VAR_KEYWORD not in kinds):
        return no_such_argument(unknown[0], name, known)
    if len(args) > len(places) and inspect.Parameter.VAR_POSITIONAL not in kinds:
        return _surplus(name, places, [n for n in known if n not in (*places, *options)], args)
    if twice := [n for n in places[: len(args)] if n in options]:
        both = f"{show_value(args[places.index(twice[0])])} and {show_value(options[twice[0]])}"
        return MisusedCall(twice[0], f"{both} given to {name}(), by position and by name; give it once")
    given = {*places[: len(args)], *options}
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in given]
    return _missing(f, name, owner, missing, list(parameters)) if missing else None


def _surplus(name: str, places: list[str], by_name: list[str], args: tuple[Any, ...]) -> MisusedCall:
    """The error for more arguments by position than a function takes."""
    extra = ", ".join(map(show_value, args[len(places) :]))
    takes = f"takes {len(places)} by position ({', '.join(places)})" if places else "takes none by position"
    text = f"{extra} given as argument {len(places) + 1} of {name}(), which {takes}"
    if _are_data_split(places, args):
        return MisusedCall("data", f"{text}; a data set is one argument: pass a tuple, (x, y)")
    if not by_name:
        return MisusedCall("arguments", f"{text} and no other; leave the rest out")
    names = ", ".join(f"{n}=..." for n in by_name)
    return MisusedCall("arguments", f"{text}; give the others by name: {names}")


def _are_data_split(places: list[str], args: tuple[Any, ...]) -> bool:
    """Whether two arrays stand where one data set belongs, such as inputs and labels."""
    at = places.index("data") if "data" in places else len(args)
    lengths = [shape[0] if (shape := getattr(x, "shape", ())) else None for x in args[at : at + 2]]
    return len(lengths) == 2 and None not in lengths and lengths[0] == lengths[1]


def _missing(f: Any, name: str, owner: type | None, missing: list[str], known: list[str]) -> MisusedCall:
    """The error for arguments that a function needs."""
    first, *others = missing
    doc = owner.__doc__ if owner is not None and f.__name__ in ("__init__", "__new__") else f.__doc__
    about = describe_arguments(doc).get(first, "")
    is_what = f" ({first}: {about})" if about and not about.startswith("as for") else ""
    also = f"; {', '.join(others)} {'is' if len(others) == 1 else 'are'} missing too" if others else ""
    example = EXAMPLES.get(first, "...")
    return MisusedCall(
        first,
        f"missing in the call {name}({', '.join(known)}){is_what}{also}; pass it: {first}={example}",
    )


def describe_arguments(doc: str | None) -> dict[str, str]:
    """{name: first sentence} of the entries of a docstring's sections "Args" and "Attributes"."""
    entries: dict[str, str] = {}
    for section in re.findall(r"^(?:Args|Attributes):\n((?:[ ]+.*\n|\n)*)", inspect.cleandoc(doc or "") + "\n", re.M):
        for name, text in re.findall(r"^  (\w+): ((?:.*\n)(?:    .*\n)*)", section, re.M):
            words = " ".join(text.split())
            entries[name] = re.split(r"(?<=[^.])\. |; ", words)[0].rstrip(".")
    return entries


# --- options that several functions share


def show_options(kind: type, defaults: Mapping[str, Any]) -> Callable[[Function], Function]:
    """A decorator for functions that take shared options as ``**options``: it lists the options in their signature.

    Args:
      kind: the TypedDict of the options.
      defaults: the default of each option.
    """

    def decorate(f: Function) -> Function:
        signature = inspect.signature(f)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        types = {name: getattr(each, "__forward_arg__", each) for name, each in kind.__annotations__.items()}
        shared = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=types[name])
            for name, value in defaults.items()
        ]
        f.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
        return f

    return decorate


def complete(function: str, options: Options, defaults: Options) -> Options:
    """Complete the given options of a function by the defaults of the others.

    Args:
      function: the function's name, for the error.
      options: the options that were given.
      defaults: the defaults of all options.

    Raises:
      MisusedCall: an option has an unknown name.
    """
    if unknown := sorted(set(options) - set(defaults)):
        own = (name for f in CALLED if f.__qualname__ == function for name in _parameters(f))
        raise no_such_argument(unknown[0], function, dict.fromkeys([*defaults, *own]))
    return cast(Options, {**defaults, **options})


# --- classes


def _explain_class(cls: Any) -> Any:
    """Explain the constructor, the public methods and the attributes of a class; returns the class."""
    for name, method in list(vars(cls).items()):
        if name == "__new__":  # of a NamedTuple
            cls.__new__ = staticmethod(_explain_calls(getattr(method, "__func__", method), cls.__name__, cls))
        elif isinstance(method, FunctionType) and (name in ("__init__", "__call__") or not name.startswith("_")):
            label = cls.__name__ if name == "__init__" else f"{cls.__name__}.{name}".removesuffix(".__call__")
            setattr(cls, name, _explain_calls(method, label, cls))
    if not hasattr(cls, "__getattr__"):
        cls.__getattr__ = _refuse_attribute
    if getattr(getattr(cls, "__dataclass_params__", None), "frozen", False):
        cls.__setattr__ = _refuse_change
    CALLED.append(cls)
    return cls


def _refuse_attribute(self: Any, name: str) -> Any:
    """The ``__getattr__`` of explained classes: the error for an attribute that does not exist."""
    kind = type(self)
    if name.startswith("_"):  # asked by Python, numpy and jax, of every object
        raise AttributeError(f"{kind.__name__!r} object has no attribute {name!r}")
    if hasattr(kind, name):  # a property, in which an attribute of something else was missing
        return object.__getattribute__(self, name)
    raise NoSuchName(lambda: _explain_attribute(self, name))


def _explain_attribute(item: Any, name: str) -> str:
    """The text for an attribute that an object does not have."""
    kind = type(item)
    told, own = getattr(kind, "_meant", {}), getattr(item, "__dict__", {})  # a NamedTuple has none
    held = (f"{field}[{name!r}]" for field, value in own.items() if isinstance(value, Mapping) and name in value)
    names, about = _public_names(kind), describe_arguments(kind.__doc__)
    meant = told.get(name) or next(held, None) or nearest(name, names)
    shown = names if meant else [f"{n} ({about[n]})" if n in about else n for n in names]
    return no_such_name(kind.__name__, name, shown, meant)


def _public_names(kind: type) -> list[str]:
    """The public names of a class, its fields first."""
    fields: Iterable[str] = getattr(kind, "__dataclass_fields__", getattr(kind, "_fields", ()))
    return list(dict.fromkeys(n for n in (*fields, *dir(kind)) if not n.startswith("_")))


def _refuse_change(self: Any, name: str, value: Any) -> NoReturn:
    """The ``__setattr__`` of explained frozen dataclasses."""
    kind = type(self).__name__
    raise dataclasses.FrozenInstanceError(
        f"{name}: {kind} objects do not change; make another one with dataclasses.replace(x, {name}=...)"
    )
