"""The error for an argument that breaks a rule, worded alike in all of ``lla_torch``, and for a function that fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lla_jax

FOLDERS = (Path(__file__).parents[1], Path(lla_jax.__file__).parent)
"""The folders of this library's own code."""


def misuse(name: str, value: Any, rule: str) -> ValueError:
    """The error for an argument that breaks a rule: ``name: VALUE given; it must be RULE``.

    Args:
      name: of the argument.
      value: what was given; long values are shown by type and shape.
      rule: what the argument must be, with an example or another remedy.
    """
    return ValueError(f"{name}: {show_value(value)} given; it must be {rule}")


def show_value(value: Any) -> str:
    """A value in a message: its repr where that is short and readable, otherwise its type and shape."""
    text = repr(value)
    if len(text) <= 80 and "\n" not in text and " at 0x" not in text:
        return text
    kind, shape = type(value).__name__, getattr(value, "shape", None)
    return kind if shape is None else f"{kind} of shape {tuple(shape)}"


def show_arrays(x: Any) -> str:
    """Nested arrays in a message: the shape and type of each, such as "((8, 3) float32, (8,) int64)"."""
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"
    if isinstance(x, Mapping):
        return "{" + ", ".join(f"{name!r}: {show_arrays(value)}" for name, value in list(x.items())[:20]) + "}"
    if isinstance(x, tuple | list):
        return f"({', '.join(map(show_arrays, x[:20]))}{',' if len(x) == 1 else ''}{' ...' if len(x) > 20 else ''})"
    return show_value(x)


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not empty, or the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def is_own(error: BaseException) -> bool:
    """Whether an error was raised by this library, which has said already what is wrong."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    parents = Path(trace.tb_frame.f_code.co_filename).parents
    return any(folder in parents for folder in FOLDERS)


def call_users(name: str, function: Callable[..., Any], value: Any, remedy: str) -> Any:
    """Call a function of the user's; where it fails, raise an error that shows what it got.

    Args:
      name: of the argument that is the function.
      function: the function.
      value: what it gets.
      remedy: what it must do, for the message.

    Raises:
      ValueError: the function failed; its own error is the cause.
    """
    try:
        return function(value)
    except Exception as error:
        if is_own(error):
            raise
        raise ValueError(
            f"{name}: the function failed on {show_arrays(value)} ({type(error).__name__}: {first_line(error)}); "
            f"{remedy}"
        ) from error
