"""Turns values into heights, colours, contour levels and ticks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter

from lla_jax.core.arguments import Misuse, check_flag, check_integer, misuse
from lla_jax.output.plotting import reading

Levels = int | Sequence[float] | np.ndarray

_MOST_LEVELS = 1000

NICE = (1, 2, 2.5, 5, 10)
"""The steps between round numbers."""


class Scale(NamedTuple):
    """Limits, levels and label of heights and colours; if ``log``, ``lo``, ``hi`` and ``levels`` are logarithms."""

    lo: float
    hi: float
    levels: np.ndarray
    extend: Literal["neither", "min", "max", "both"]
    log: bool
    cap: float | None
    clipped: bool  # whether values are above the cap
    label: str


def finite(arrays: Iterable[np.ndarray], value: str, log: bool) -> np.ndarray:
    """All finite entries of the arrays, (n,).

    Raises:
      ValueError: there is none, or one is <= 0 with ``log``; ``value`` is their name for the message.
    """
    check_flag("log", log)
    entries = np.concatenate([np.ravel(z) for z in arrays])
    known = entries[np.isfinite(entries)]
    if not known.size:
        raise Misuse(
            "value",
            f"{value!r} has no finite cell among {entries.size}, so there is nothing to draw; try a smaller extent",
        )
    if log:
        check_positive(known, f"values of {value!r}")
    return known


def check_positive(values: np.ndarray, name: str) -> None:
    """Refuse ``log=True`` for values that have no logarithm.

    Args:
      values: finite ones.
      name: what they are, for the message, such as "eigenvalues".
    """
    if values.min() <= 0:
        count = f"{int((values <= 0).sum())} of {len(values)}"
        raise Misuse(
            "log", f"True given, but {count} {name} are at or below 0 (smallest {values.min():.4g}); use log=False"
        )


def scale(
    arrays: Sequence[np.ndarray],
    value: str,
    levels: Levels,
    log: bool,
    cap: float | None,
    least: tuple[float, float] | None = None,
) -> Scale:
    """One scale for all arrays: limits, contour levels, and a label that names the logarithm and the cap.

    Args:
      arrays: of values, NaN where there is none.
      value: their name.
      levels: about how many intervals between contour levels, or the levels themselves.
      log: whether heights and colours are logarithmic.
      cap: larger values are drawn as this one.
      least: the interval that the limits span at least; by default they are those of the values.

    Returns:
      The scale.

    Raises:
      ValueError: no finite value, values <= 0 with ``log``, a cap that is no finite number, levels that do not rise.
    """
    known = finite(arrays, value, log)
    number = isinstance(cap, int | float | np.number) and not isinstance(cap, bool) and np.isfinite(cap)
    if cap is not None and not (number and (cap > 0 or not log)):
        need = "a finite number" + (" above 0, for log=True" if log else "")
        raise misuse("cap", cap, f"{need}, or None to draw every value as it is")
    clipped = cap is not None and bool(known.max() > cap)
    notes = (["log scale"] if log else []) + ([f"clipped at {cap:g}"] if clipped else [])
    drawn = heights(known, log, cap)
    lo, hi = _widen(float(drawn.min()), float(drawn.max()))
    if least is not None:
        lo, hi = min(lo, least[0]), max(hi, least[1])
    chosen = _levels(levels, lo, hi, log, clipped)
    full = heights(known, log, None)  # contours are not clipped: values beyond the levels have the last colour
    below, above = full.min() < chosen[0], full.max() > chosen[-1]
    extend: Any = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[int(below), int(above)]
    label = reading.label(value) + (f" ({', '.join(notes)})" if notes else "")
    return Scale(lo, hi, chosen, extend, log, cap, clipped, label)


def heights(z: np.ndarray, log: bool, cap: float | None) -> np.ndarray:
    """Heights of the picture: ``min(z, cap)``, or its logarithm to base 10 if ``log``; ``z`` is not changed."""
    z = z if cap is None else np.minimum(z, cap)
    return np.log10(z) if log else z


def _widen(lo: float, hi: float) -> tuple[float, float]:
    """The limits, moved apart by 5% each if they are equal up to rounding: noise is not magnified into a landscape."""
    pad = 0.0 if hi - lo > 1e-12 * max(abs(lo), abs(hi)) else 0.05 * max(abs(lo), 1e-6)
    return lo - pad, hi + pad


def _levels(levels: Levels, lo: float, hi: float, log: bool, clipped: bool) -> np.ndarray:
    """Contour levels on the picture's scale: those given (their logarithms if ``log``), else chosen from a number.

    With ``log`` the number is exactly that of the intervals, equal from lo to hi. Else it is about that: the levels are
    round numbers, the first and last at lo and hi or beyond; on a clipped scale the last is hi itself.
    """
    need = "2 or more increasing numbers" + (" above 0, for log=True" if log else "") + ", or their number, such as 20"
    try:
        given = np.asarray(levels, float)
    except (TypeError, ValueError) as error:
        raise misuse("levels", levels, need) from error
    if given.ndim:
        if given.ndim != 1 or len(given) < 2 or not (np.diff(given) > 0).all() or (log and given[0] <= 0):
            raise misuse("levels", levels, need)
        return np.log10(given) if log else given
    whole: Any = int(given) if isinstance(levels, float) and np.isfinite(given) and given == int(given) else levels
    number = check_integer("levels", whole, most=_MOST_LEVELS, remedy="or an increasing array")
    if log:
        return np.linspace(lo, hi, number + 1)
    found: np.ndarray = np.asarray(MaxNLocator(number, steps=NICE).tick_values(lo, hi))
    return np.append(found[found < hi], hi) if clipped else found


def ticks(lo: float, hi: float, log: bool, most: int) -> tuple[np.ndarray, list[str]]:
    """(positions, labels) of at most ``most`` round values in [lo, hi]; with ``log``, lo, hi, positions are log10."""
    near = 1e-9 * (hi - lo)

    def inside(at: np.ndarray) -> np.ndarray:
        return at[(at >= lo - near) & (at <= hi + near)]

    if log:
        decades = np.arange(np.floor(lo), np.ceil(hi) + 1)
        for step in range(1, len(decades)):
            for subs in ((1, 2, 5), (1, 3), (1,), (2,), (5,)) if step == 1 else ((1,),):
                at = inside(np.ravel(np.add.outer(decades[::step], np.log10(subs))))
                if 3 <= len(at) <= most or (len(at) == 2 and len(subs) == 1):
                    return at, [f"{10**t:.6g}" for t in at]
    for bins in range(most, 0, -1):
        values = np.asarray(MaxNLocator(bins, steps=NICE).tick_values(*((10**lo, 10**hi) if log else (lo, hi))))
        at = inside(np.log10(values[values > 0]) if log else values)
        if len(at) <= most:
            break
    return at, _labels(10**at if log else np.where(abs(at) > near, at, 0.0))


def set_log(ax: Axes) -> None:
    """Make the y axis logarithmic, with ticks like those of a colour bar."""
    ax.set_yscale("log")
    low, high = np.log10(ax.get_ylim())
    at, names = ticks(low, high, True, 6)
    ax.set_yticks(10**at, names)
    ax.yaxis.set_minor_formatter(NullFormatter())


def edges(c: np.ndarray) -> np.ndarray:
    """Borders ``(n + 1,)`` of the cells around increasing coordinates ``(n,)``, half way between them.

    A single coordinate has a cell of width 1. A cell of a positive coordinate does not reach below 0.
    """
    if len(c) == 1:
        return np.array([c[0] - 0.5, c[0] + 0.5])
    middle = (c[1:] + c[:-1]) / 2
    first = 2 * c[0] - middle[0]
    return np.concatenate([[max(first, 0.0) if c[0] > 0 else first], middle, [2 * c[-1] - middle[-1]]])


def _labels(values: np.ndarray) -> list[str]:
    """Labels of numbers: all with as many decimals as tell them apart; exponents for the very large and small."""
    if not len(values) or not 1e-4 <= abs(values).max() < 1e5:
        return [f"{v:.6g}" for v in values]
    wrong = (1e-3 * np.ptp(values) / len(values)) or 1e-9
    digits = next((d for d in range(12) if (abs(values.round(d) - values) < wrong).all()), 12)
    return [f"{v:.{digits}f}".replace("-", "\N{MINUS SIGN}") for v in values]
