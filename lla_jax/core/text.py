"""Writes durations, numbers with their errors and tables as text."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

SIGN = " +- "


def pm(value: float, error: float, digits: int = 4) -> str:
    """A number with its standard error or residual, such as ``0.1234 +- 0.0056``.

    Args:
      value: the number.
      error: its standard error or residual; NaN, if it is unknown, is not shown.
      digits: significant digits of the value; the error has two.
    """
    text = f"{value:.{digits}g}"
    return text if math.isnan(error) else f"{text}{SIGN}{error:.2g}"


def name_of(f: Any) -> str:
    """A function, or another object that is called, in one short piece of text: its name, its repr or its type."""
    if isinstance(f, functools.partial):
        return f"partial({name_of(f.func)})"
    if name := getattr(f, "__qualname__", None):
        return str(name).rpartition("<locals>.")[2]
    return short_repr(f) or type(f).__name__


def stable_repr(value: Any) -> str:
    """The repr of a value without addresses, which differ between processes: an object is shown as its type."""
    text = re.sub(r"<(?:[\w<>]+\.)*(\w+) object at 0x[0-9a-fA-F]+>", r"<\1>", repr(value))
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def short_repr(value: Any) -> str:
    """The repr of a value if it is a short line without an address, and else an empty string."""
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text and " at 0x" not in text else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def duration(seconds: float) -> str:
    """A number of seconds as text in a readable unit: ``0.83 s``, ``3 min``, ``1.5 h``, ``12 days``."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 5 * 86400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:,.0f} days" if seconds < 5 * 31557600 else f"{seconds / 31557600:,.0f} years"


def table(rows: Iterable[Sequence[str]], left: Collection[int] = (0,), indent: int = 0) -> str:
    """Rows of cells as lines of text with aligned columns, two spaces apart.

    Args:
      rows: the cells of each row, of equal number; a head is a row like the others.
      left: the columns of words, which are aligned on the left. All others are aligned on the right, and numbers with
        errors so that the signs ``+-`` stand below each other.
      indent: spaces before each row.
    """
    columns = [
        _align_left(column) if i in left else _align_right(column) for i, column in enumerate(zip(*rows, strict=True))
    ]
    return "\n".join(" " * indent + "  ".join(row).rstrip() for row in zip(*columns))


def _align_left(column: Sequence[str]) -> list[str]:
    width = max(map(len, column))
    return [cell.ljust(width) for cell in column]


def _align_right(column: Sequence[str]) -> list[str]:
    errors = [cell.partition(SIGN)[2] for cell in column]
    width = max(map(len, errors))
    cells = [cell + " " * (width - len(error)) if error else cell for cell, error in zip(column, errors)]
    return [cell.rjust(max(map(len, cells))) for cell in cells]
