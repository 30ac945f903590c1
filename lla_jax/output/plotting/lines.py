"""Draws landscapes of one axis as curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lla_jax.core.arguments import Misuse, check_choice, check_flag, misuse
from lla_jax.core.results import Landscape
from lla_jax.core.signatures import explained
from lla_jax.output.plotting import reading, scales, style


@explained
def line(
    landscape: Landscape,
    value: str | Sequence[str] = "loss",
    *,
    log: bool = False,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw values of a landscape of one axis as curves, with bands of +- 1 standard error where it has errors.

    Args:
      landscape: a landscape of one axis, values ``(n,)``.
      value: a name in ``landscape.values``, or several, which are drawn on one axis.
      log: logarithmic axis.
      title: text above.
      ax: axes to draw into; by default a new figure.

    Returns:
      the figure. Coordinates where a value is not finite are hatched.

    Raises:
      ValueError: as ``surface``.
    """
    reading.check_landscape(landscape)
    names = [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
    if not names:
        raise misuse("value", value, f"one name or several of {reading.quote(landscape.values)}")
    fig, canvas = _canvas(ax, names, landscape, log, "line")
    for k, name in enumerate(names):
        _curve(canvas, landscape, name, reading.label(name), style.COLOURS[k % 7], style.DASHES[k // 7 % 4])
    canvas.set_ylabel(_common_label(names), fontsize=style.SIZE)
    _finish_line(fig, [canvas], landscape, names, log, title, outside=ax is None)
    return fig


@explained
def train_test(
    landscape: Landscape,
    *,
    loss: str = "loss",
    accuracy: str | None = "accuracy",
    other: str = "test",
    log: bool = False,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw train (solid) and test (dashed) along one axis: loss on the left y axis, accuracy on the right one.

    It is the figure of Li et al. 2018 (arXiv 1712.09913), with bands of +- 1 standard error where there are errors.

    Args:
      landscape: a landscape of one axis with ``values`` of the names ``loss``, ``f"{other}_{loss}"``, ``accuracy`` and
        ``f"{other}_{accuracy}"``.
      loss: the name of the values on the left axis.
      accuracy: the name of the metric on the right axis; None leaves it out.
      other: the name of the second data set, as in ``evaluate(extra_data={other: ...})``.
      log: logarithmic loss axis.
      title: text above.
      ax: axes to draw into; by default a new figure.

    Returns:
      the figure; its axes are the left one and, with an accuracy, the right one.

    Raises:
      ValueError: as ``surface``; values of these names that the landscape lacks.
    """
    check_flag("log", log)
    reading.check_landscape(landscape)
    check_choice("loss", loss, landscape.values, "the names of this landscape's values")
    if accuracy is not None:
        check_choice("accuracy", accuracy, landscape.values, "or None, which leaves it out")
    pairs = [(metric, f"{other}_{metric}") for metric in (loss, accuracy) if metric is not None]
    if lacking := [name for _, name in pairs if name not in landscape.values]:
        raise Misuse(
            "other",
            f"{other!r} given, but this landscape lacks {lacking[0]!r}; it has {reading.quote(landscape.values)}. "
            f"Call evaluate with extra_data={{{other!r}: ...}}",
        )
    fig, left = _canvas(ax, pairs[0], landscape, log, "train_test")
    axes = [left]
    if accuracy is not None:
        for name in pairs[1]:
            scales.finite([reading.read(landscape, name, 1, "train_test")[1]], name, False)
        axes.append(left.twinx())
    for axis, (train, test), colour in zip(axes, pairs, style.COLOURS):
        _curve(axis, landscape, train, f"train {reading.label(train)}", colour, "-")
        _curve(axis, landscape, test, reading.label(test), colour, "--")
        axis.set_ylabel(reading.label(train), fontsize=style.SIZE, color=colour)
        axis.tick_params(axis="y", which="both", colors=colour, labelsize=style.SMALL)
    _finish_line(fig, axes, landscape, [name for pair in pairs for name in pair], log, title, outside=ax is None)
    return fig


def _common_label(names: list[str]) -> str:
    """One label for several values: the words they all end in ("loss"), else all names if short, else "value"."""
    if len(names) == 1:
        return reading.label(names[0])
    words = [name.split("_")[::-1] for name in names]
    same = [group[0] for group in zip(*words)]
    count = next((i for i, group in enumerate(zip(*words)) if len(set(group)) > 1), len(same))
    labels = ", ".join(map(reading.label, names))
    return " ".join(same[:count][::-1]) or (labels if len(labels) <= 36 else "value")


def _canvas(ax: Any, names: Sequence[str], landscape: Landscape, log: bool, function: str) -> tuple[Any, Any]:
    """(figure, axes) to draw into, after a check that all named values can be drawn."""
    for name in names:
        scales.finite([reading.read(landscape, name, 1, function)[1]], name, log)
    return style.canvas(ax, 2.7)


def _curve(ax: Any, landscape: Landscape, name: str, label: str, colour: str, dash: str) -> None:
    """Draw a line and, where there are standard errors, the band around it."""
    (x,), y = reading.read(landscape, name, 1, "line")
    # a finite point between others that are not makes no line: dots show it on short or broken curves
    marker = "." if np.isnan(y).any() or len(x) < 12 else ""
    ax.plot(x, y, color=colour, linestyle=dash, linewidth=1.2, marker=marker, markersize=3, label=label)
    if (mask := reading.evaluated(landscape)) is not None:
        ax.plot(x[mask], y[mask], **(style.dots(int(mask.sum())) | {"markerfacecolor": colour, "markersize": 2.4}))
    if name in landscape.stderr:
        band = np.asarray(landscape.stderr[name], float)[np.argsort(landscape.coords[0])]
        ax.fill_between(x, y - band, y + band, color=colour, alpha=0.25, linewidth=0)


def _finish_line(
    fig: Any, axes: list[Any], landscape: Landscape, names: Sequence[str], log: bool, title: str | None, outside: bool
) -> None:
    """Draw what all curves share: axis label, trained network, the recipe's marks, hatching, legend and title."""
    ax = axes[0]
    columns = [reading.read(landscape, name, 1, "line") for name in names]
    x, bad = columns[0][0][0], np.isnan(np.stack([y for _, y in columns])).any(axis=0)
    if log:
        scales.set_log(ax)
    ax.set_xlim(*(x if len(x) > 1 else scales.edges(x))[[0, -1]])
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=scales.NICE))
    ax.set_xlabel(reading.axis_label(landscape, 0, 44), fontsize=style.SIZE)
    ax.tick_params(labelsize=style.SMALL)
    for axis in axes:
        axis.yaxis.get_offset_text().set_fontsize(style.SMALL)
    thin: dict[str, Any] = {"color": "0.4", "linestyle": ":", "linewidth": 1}
    if x[0] <= 0 <= x[-1] and reading.origin(landscape):
        ax.axvline(0, label=style.ORIGIN, **thin)
    if any(name in landscape.stderr for name in names):  # one neutral entry for the bands of all curves
        style.explain_errors(ax)
    if reading.evaluated(landscape) is not None:
        label = style.refined_label(landscape.describe_refinement(names[0]))
        ax.plot([], [], label=label, **(style.dots(1) | {"markerfacecolor": "0.5"}))
    incomplete = reading.incomplete_note(landscape)
    for start, end in np.flatnonzero(np.diff(np.r_[0, bad, 0])).reshape(-1, 2):  # consecutive cells
        ax.axvspan(*scales.edges(x)[[start, end]], zorder=0, label=style.hole_label(incomplete), **style.HATCH)
    for name, a in reading.marks(landscape, 1):
        if x[0] <= a <= x[-1]:
            ax.axvline(a, **thin)
            right = a > (x[0] + x[-1]) / 2
            side: dict[str, Any] = {"xytext": (-2 if right else 2, -2), "ha": "right" if right else "left", "va": "top"}
            side |= {"xycoords": ax.get_xaxis_transform(), "textcoords": "offset points"}
            ax.annotate(name, (a, 1), **side, **style.NAME)
    style.legend(fig, axes, outside=outside)
    style.set_title(ax, style.join(title, incomplete), 42, style.SIZE + 1)
