"""Checks arguments that many functions share, and makes their errors, which all have one form.

Every message names the argument, its value, what the argument must be, and a remedy.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core.text import short_repr

MOST_TEXT = 4000  # characters of a message; the middle of a longer one, such as a list of names, is left out


class Misuse(ValueError):
    """The error for a misused argument; it keeps the argument's name, for which the command line puts an option.

    Args:
      argument: the argument's name.
      text: the message without the name: the value, the rule that it breaks, a remedy.
      path: the file or folder that is wrong, or None.
    """

    def __init__(self, argument: str, text: str, path: Path | None = None):
        if len(text) > MOST_TEXT:
            text = f"{text[: MOST_TEXT // 2]} ... {text[-MOST_TEXT // 2 :]}"
        super().__init__(argument, text, path)
        self.argument, self.text, self.path = argument, text, path

    def __str__(self) -> str:
        return f"{self.argument}: {self.text}"


class MisusedLeaf(Misuse):
    """The error for one leaf of a tree, whose text begins with its path: "['w'] has dtype ..."."""

    def __str__(self) -> str:
        return f"{self.argument}{self.text}"


class MissingEntry(Misuse, KeyError, IndexError):
    """The error for an entry that a result does not have; it is a KeyError and an IndexError, as Python's own, too."""


@contextlib.contextmanager
def renamed(name: str, new: str) -> Iterator[None]:
    """Give errors about the argument ``name`` that are raised in this block the name that the caller's argument has."""
    try:
        yield
    except Misuse as error:
        if error.argument == name:
            error.argument = new
        raise


def misuse(name: str, value: Any, rule: str) -> Misuse:
    """Make (not raise) the error for a misused argument: ``name: VALUE given; it must be RULE``.

    Args:
      name: the argument's name.
      value: the value given; a long one is shown by its type and shape.
      rule: what the argument must be, with an example or another remedy: ``"an integer of at least 1, such as 10"``.
    """
    return Misuse(name, f"{show_value(value)} given; it must be {rule}")


def show_value(value: Any) -> str:
    """The text of a value in messages: its repr if short and readable, and otherwise its type and shape."""
    if isinstance(value, list | tuple) and len(value) > 40:  # whose repr may take long
        return f"{type(value).__name__} of {len(value)} entries"
    if text := short_repr(value):
        return text
    kind, shape = type(value).__name__, getattr(value, "shape", None)
    if shape is None:
        return kind
    return f"{kind} of shape {tuple(shape) if isinstance(shape, tuple) else shape}"  # of torch it is a torch.Size


def is_integer(value: Any) -> bool:
    """Whether a value is an integer of Python or numpy; True and False are not integers."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_integer(name: str, value: Any, least: int = 1, most: int | None = None, remedy: str = "") -> int:
    """Return the value as an int, after a check that it is an integer within bounds.

    Args:
      name: the argument's name.
      value: the value given.
      least: the smallest allowed value.
      most: the largest allowed value, or None.
      remedy: words added to the rule, such as ``"the number of directions"``.

    Raises:
      Misuse: the value has another type, or is out of bounds.
    """
    if not is_integer(value) or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise misuse(name, value, f"an integer {bounds}{remedy and f', {remedy}'}")
    return int(value)


def check_number(name: str, value: Any, above: float = 0.0, least: float | None = None, remedy: str = "") -> float:
    """Return the value as a float, after a check that it is a finite real number within its bound.

    Args:
      name: the argument's name.
      value: the value given.
      above: a bound that the value must exceed; ignored if ``least`` is given.
      least: the smallest allowed value, or None.
      remedy: words added to the rule, such as ``"such as 0.05"``.

    Raises:
      Misuse: the value has another type, is not finite, or is out of bounds.
    """
    if isinstance(value, np.ndarray | jax.Array) and value.ndim == 0 and not isinstance(value, jax.core.Tracer):
        value = value.item() if jnp.issubdtype(value.dtype, jnp.number) else value
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not real or not np.isfinite(value) or (value <= above if least is None else value < least):
        bound = f"above {above:g}" if least is None else f"of at least {least:g}"
        raise misuse(name, value, f"a finite number {bound}{remedy and f', {remedy}'}")
    return float(value)


def check_choice(name: str, value: Any, choices: Iterable[Any], remedy: str = "") -> None:
    """Raise an error unless the value is one of the choices.

    Args:
      name: the argument's name.
      value: the value given; 1 does not pass for True.
      choices: the allowed values.
      remedy: words added to the rule, such as ``"or a function"``.

    Raises:
      Misuse: the value is none of the choices.
    """
    known = list(choices)
    is_bool = isinstance(value, bool | np.bool_)
    comparable = [choice for choice in known if getattr(value, "ndim", 0) == 0 and is_bool == isinstance(choice, bool)]
    if not any(value == choice for choice in comparable):
        raise misuse(name, value, f"one of {', '.join(map(repr, known))}{remedy and f', {remedy}'}")


def check_flag(name: str, value: Any) -> bool:
    """Return the value as a bool, after a check that it is True or False.

    Raises:
      Misuse: the value has another type: strings, even "no", would count as True, and None as False.
    """
    if not isinstance(value, bool | np.bool_):
        raise misuse(name, value, "True or False")
    return bool(value)


def check_functions(argument: str, functions: Any) -> dict[str, Callable[..., Any]]:
    """Return functions by name as a dict, {} for None, after a check of the names and of the functions.

    Raises:
      Misuse: no dict, a name that may not be used, or a value that cannot be called.
    """
    if functions is not None and not isinstance(functions, Mapping):
        raise misuse(argument, functions, "a dict, {name: function}, such as {'accuracy': accuracy}")
    for name, f in (functions or {}).items():
        if not isinstance(name, str) or not name or name == "loss" or not callable(f):
            raise Misuse(
                argument,
                f"entry {name!r}: {show_value(f)} given; it must be a function under a name other than 'loss', "
                "such as {'accuracy': accuracy}",
            )
    return dict(functions or {})


def clamp_count(name: str, value: Any, n: int) -> int:
    """Return the smaller of the value and the number n of parameters, with a warning if the value is larger.

    Raises:
      Misuse: the value is not a positive integer.
    """
    count = check_integer(name, value, remedy=f"and there are {n} parameters")
    if count > n:
        warn_caller(f"{name}: {count} asked for, but there are only {n} parameters; {n} are done")
    return min(count, n)


def single_key(key: Any) -> jax.Array:
    """Return a single ``jax.random`` key; a key of jax's old kind (uint32) becomes one of the new kind.

    Raises:
      Misuse: the value is not one key.
    """
    if isinstance(key, np.ndarray | jax.Array) and key.dtype == np.uint32 and key.ndim == 1:  # a key of the old kind
        with contextlib.suppress(TypeError):  # of another length
            key = jax.random.wrap_key_data(jnp.asarray(key))
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise misuse("key", key, "one jax.random key, such as jax.random.key(0)")
    if key.shape:
        raise misuse(
            "key", key, "one jax.random key, such as jax.random.key(0), and not an array of them: take keys[0]"
        )
    return key


def parameters(call: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters of a callable by name; an empty dict if it has no signature."""
    try:
        return inspect.signature(call).parameters
    except (TypeError, ValueError):  # some callables have none
        return {}


def warn_caller(text: str) -> None:
    """Give a warning that names the line where the user called the library, not a line of lla_jax or lla_torch."""
    level, frame = 2, sys._getframe(1)
    ours = ("lla_jax", "lla_torch", "contextlib")  # which calls functions whose decorator is a context
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ours:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)
