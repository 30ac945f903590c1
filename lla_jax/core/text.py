"""Writes durations, numbers with their errors and tables as text."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence


def pm(value: float, error: float, digits: int = 4) -> str:
    """A number with its standard error or residual, such as ``0.1234 +- 0.0056``.

    Args:
      value: the number.
      error: its standard error or residual; NaN, if it is unknown, is not shown.
      digits: significant digits of the value; the error has two.
    """
    text = f"{value:.{digits}g}"
    return text if math.isnan(error) else f"{text} +- {error:.2g}"


def duration(seconds: float) -> str:
    """A number of seconds as text in a readable unit, such as ``0.83 s``, ``12 s``, ``3 min`` or ``1.5 h``."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def table(rows: Iterable[Sequence[str]], left: Collection[int] = (0,), indent: int = 0) -> str:
    """Rows of cells as one text with a line per row, and aligned columns two spaces apart.

    Args:
      rows: the cells of each row, equally many in all rows; a head is a row like the others.
      left: indices of the columns that are aligned on the left (words); all others are aligned on the right (numbers).
      indent: spaces before each row.
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [text.ljust(w) if i in left else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths))]
        lines.append(" " * indent + "  ".join(cells).rstrip())
    return "\n".join(lines)
