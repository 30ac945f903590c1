"""Arguments that break a rule: the error that says so in data, and the checks that many functions share.

Every error names the argument, its value, the rule and a remedy.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])
Options = TypeVar("Options", bound=Mapping[str, Any])
"""A TypedDict of options that several functions share."""


class Misuse(ValueError):
    """An argument breaks a rule, for callers that call it otherwise: the command line has options in their place.

    Args:
      argument: its name.
      text: the message without that name: the value, the rule, a remedy.
      path: the file or folder that is wrong, where it is one.
    """

    def __init__(self, argument: str, text: str, path: Path | None = None):
        super().__init__(argument, text, path)
        self.argument, self.text, self.path = argument, text, path

    def __str__(self) -> str:
        return f"{self.argument}: {self.text}"


def misuse(name: str, value: Any, rule: str) -> Misuse:
    """The error for an argument that breaks a rule: ``name: VALUE given; it must be RULE``.

    Args:
      name: of the argument.
      value: what was given; long ones are shown by type and shape.
      rule: what the argument must be, with an example or another remedy, such as ``"a positive integer, such as 10"``.
    """
    return Misuse(name, f"{show_value(value)} given; it must be {rule}")


def show_value(value: Any) -> str:
    """A value in a message: its repr where that is short and says something, and its type and shape otherwise."""
    text = repr(value)
    if len(text) <= 80 and "\n" not in text and " at 0x" not in text:
        return text
    kind, shape = type(value).__name__, getattr(value, "shape", None)
    return kind if shape is None else f"{kind} of shape {shape}"


def is_integer(value: Any) -> bool:
    """Whether a value is an integer of Python or numpy; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_integer(name: str, value: Any, least: int = 1, most: int | None = None, remedy: str = "") -> int:
    """An integer argument within its bounds.

    Args:
      name: of the argument.
      value: what was given.
      least: the smallest value allowed.
      most: the largest one, or None.
      remedy: added to the rule, such as ``"the number of directions"``.

    Raises:
      Misuse: another type, or out of bounds.
    """
    if not is_integer(value) or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise misuse(name, value, f"an integer {bounds}{remedy and f', {remedy}'}")
    return int(value)


def check_number(name: str, value: Any, above: float = 0.0, least: float | None = None, remedy: str = "") -> float:
    """A finite real argument within its bound.

    Args:
      name: of the argument.
      value: what was given.
      above: the value must be larger; not read where ``least`` is given.
      least: the smallest value allowed, or None.
      remedy: added to the rule, such as ``"such as 0.05"``.

    Raises:
      Misuse: another type, not finite, or out of bounds.
    """
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not real or not np.isfinite(value) or (value <= above if least is None else value < least):
        bound = f"above {above:g}" if least is None else f"of at least {least:g}"
        raise misuse(name, value, f"a finite number {bound}{remedy and f', {remedy}'}")
    return float(value)


def check_choice(name: str, value: Any, choices: Iterable[Any], remedy: str = "") -> None:
    """Refuse a value that is none of the known ones.

    Args:
      name: of the argument.
      value: what was given; 1 is not True here.
      choices: the known values.
      remedy: added to the rule, such as ``"or a function"``.

    Raises:
      Misuse: another value.
    """
    known = list(choices)
    alike = [each for each in known if np.ndim(value) == 0 and isinstance(value, bool) == isinstance(each, bool)]
    if not any(value == each for each in alike):
        raise misuse(name, value, f"one of {', '.join(map(repr, known))}{remedy and f', {remedy}'}")


def clamp_count(name: str, value: Any, n: int) -> int:
    """A positive integer, and at most the number n of parameters: with a warning where it is more."""
    if check_integer(name, value, remedy=f"and there are {n} parameters") > n:
        warn_caller(f"{name}: {value} asked for, but there are only {n} parameters; {n} are done")
    return min(int(value), n)


def single_key(key: Any) -> jax.Array:
    """The key, if it is one ``jax.random`` key; of the new kind, if it is of the old."""
    dtype = getattr(key, "dtype", None)
    if dtype is not None and not jnp.issubdtype(dtype, jax.dtypes.prng_key) and dtype == np.uint32 and key.ndim == 1:
        key, dtype = (wrapped := jax.random.wrap_key_data(key)), wrapped.dtype  # a key of the old kind
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key) or key.shape != ():
        raise misuse("key", key, "one jax.random key, such as jax.random.key(0)")
    return key


def show_options(kind: type, defaults: Mapping[str, Any]) -> Callable[[Function], Function]:
    """A decorator that shows shared options, taken as ``**options``, in a function's signature with their defaults.

    Args:
      kind: the TypedDict of the options.
      defaults: of each of them.
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
    """The options of a function, with the defaults of those not given.

    Raises:
      TypeError: a name that is none of them, as Python says it of a keyword.
    """
    if unknown := sorted(set(options) - set(defaults)):
        said = f"{function}() got an unexpected keyword argument {unknown[0]!r}"
        raise TypeError(f"{said}; it takes {', '.join(defaults)}")
    return cast(Options, {**defaults, **options})


def warn_caller(text: str) -> None:
    """Warn at the line that called the library, through however many of its own functions."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "lla_jax":
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)
