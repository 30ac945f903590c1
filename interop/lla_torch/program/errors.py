"""The error for an argument that breaks a rule, worded alike in all of ``lla_torch``."""

from __future__ import annotations

from typing import Any


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
