"""Calls small functions of the user, such as predicates and rules, and checks what would not fit into memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax

from lla_jax.core.arguments import Misuse


@contextlib.contextmanager
def explain_call(name: str, how: str, given: str = "") -> Iterator[None]:
    """Turn an error that the user's function raises in this block into one that says how the function is called.

    Args:
      name: the argument that the function is.
      how: its signature and result, such as "(path, leaf) -> bool".
      given: what it was called with, in words.

    Raises:
      Misuse: with the user's error as its cause; a ``Misuse`` passes on.
    """
    try:
        yield
    except Misuse:
        raise
    except Exception as error:
        traced = isinstance(error, jax.errors.ConcretizationTypeError | jax.errors.TracerArrayConversionError)
        remedy = "use jax.numpy in it, without float(), if or numpy on traced values" if traced else "correct it"
        text = next((line for line in str(error).splitlines() if line), "no message").rstrip(".")
        where = f" for {given}" if given else ""
        raise Misuse(
            name, f"the function failed{where} with {type(error).__name__}: {text}; it is called as {how}: {remedy}"
        ) from error


def ask(name: str, f: Callable[[str, Any], Any], how: str, path: str, leaf: Any) -> Any:
    """What a user's function says of a leaf, ``f(path, leaf)``.

    Raises:
      Misuse: the function failed.
    """
    with explain_call(name, how, f"the leaf {path!r}"):
        return f(path, leaf)


def check_memory(name: str, text: str, nbytes: float) -> None:
    """Raise an error, before anything is allocated, if arrays would take more than the memory of the machine.

    Args:
      name: the argument's name.
      text: what would take the memory, such as "10^14 points".
      nbytes: the bytes of the arrays.
    """
    try:
        memory = float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # the system does not tell
        memory = 2.0**40
    if nbytes > memory:
        raise Misuse(
            name,
            f"{text} given, which take {_size(nbytes)} of memory, and this machine has {_size(memory)}; give fewer",
        )


def _size(nbytes: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if nbytes < 1024:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.3g} EiB"
