"""Arguments that break a rule: the error that says so in data, and the checks that many functions share.

Every error names the argument, its value, the rule and a remedy.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
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


def clamped(name: str, value: Any, n: int) -> int:
    """A positive integer, and at most n: with a warning where it is more."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: {value!r} given; the rule is an integer from 1 to the number of parameters, {n}")
    if value > n:
        warn_caller(f"{name}: {value} asked for, but there are only {n} parameters; {n} are done")
    return min(int(value), n)


def single_key(key: Any) -> jax.Array:
    """The key, if it is one ``jax.random`` key; of the new kind, if it is of the old."""
    dtype = getattr(key, "dtype", None)
    if dtype is not None and not jnp.issubdtype(dtype, jax.dtypes.prng_key) and dtype == np.uint32 and key.ndim == 1:
        key, dtype = (wrapped := jax.random.wrap_key_data(key)), wrapped.dtype  # a key of the old kind
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key) or key.shape != ():
        got = repr(key) if np.ndim(key) == 0 else type(key).__name__
        raise ValueError(f"key: got {got}; the rule is one jax.random key first, such as jax.random.key(0)")
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
