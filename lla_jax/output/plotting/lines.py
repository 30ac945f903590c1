"""Figures of landscapes and of curvature, drawn with matplotlib's ``Figure`` alone: no pyplot, no global state.

Every function returns a ``Figure`` (``fig.savefig("plane.png")``), sized for one column (3.5 in) or two (7 in). The x
axis is ``coords[0]`` and the y axis ``coords[1]``, in units of the directions: ``values[i, j]`` is drawn at
``(coords[0][i], coords[1][j])``. ``cap`` and ``log`` act on the picture only, and its label says so. Non-finite cells
are hatched, or holes in a surface. A result that was interrupted is titled "incomplete". What a, b (and c)
are is said on the axes or, of surfaces and panels, below the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from lla_jax.core.types import Landscape
from lla_jax.output.plotting.reading import _axis_label, _common, _listed, _marks, _origin, _pretty, _read, _unfinished
from lla_jax.output.plotting.scales import _NICE, _finite, _ticks
from lla_jax.output.plotting.style import (
    _COLOURS,
    _DASHES,
    _DPI,
    _HATCH,
    _NAME,
    _ORIGIN,
    _SINGLE,
    _SIZE,
    _SMALL,
    _edges,
    _holes,
    _joined,
    _legend,
    _set_title,
)


def line(
    landscape: Landscape,
    value: str | Sequence[str] = "loss",
    *,
    log: bool = False,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Values along a landscape of one axis, with a band of +- 1 standard error over the examples where there is one.

    Args:
      landscape: a landscape of one axis, values ``(n,)``.
      value: a name in ``landscape.values``, or several to be drawn on one axis.
      log: logarithmic axis.
      title: text above.
      ax: axes to draw into; by default a new figure.

    Returns:
      the figure. Coordinates where a value is not finite are hatched.

    Raises:
      ValueError: as ``surface``.
    """
    names = [value] if isinstance(value, str) else list(value)
    if not names:
        raise ValueError(f"value={value!r} names nothing to draw; this landscape has {_listed(landscape.values)}")
    fig, canvas = _canvas(ax, names, landscape, log, "line")
    for k, name in enumerate(names):
        _curve(canvas, landscape, name, _pretty(name), _COLOURS[k % 7], _DASHES[k // 7 % 4])
    canvas.set_ylabel(_common(names), fontsize=_SIZE)
    _finish_line(fig, [canvas], landscape, names, log, title, outside=ax is None)
    return fig


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
    """Train (solid) and test (dashed) along one axis: loss on the left axis, accuracy on the right, a colour for each.

    The figure of Li et al. 2018 (arXiv 1712.09913), with bands of +- 1 standard error where there are any.

    Args:
      landscape: a landscape of one axis with ``values`` of the names ``loss``, ``f"{other}_{loss}"``, ``accuracy`` and
        ``f"{other}_{accuracy}"``.
      accuracy: the metric on the right axis; None leaves it out.
      other: the name of the second data set, as in ``evaluate(extra_data={other: ...})``.
      log: logarithmic loss axis.
      title: text above.
      ax: axes to draw into; by default a new figure.

    Returns:
      the figure; its axes are the left and the right one.

    Raises:
      ValueError: as ``surface``.
    """
    for argument, metric in (("loss", loss), ("accuracy", accuracy)):
        if metric is not None and metric not in landscape.values:
            hint = "; None leaves it out" if argument == "accuracy" else ""
            raise ValueError(
                f"{argument}={metric!r} is not in this landscape; it has {_listed(landscape.values)}{hint}"
            )
    pairs = [(metric, f"{other}_{metric}") for metric in (loss, accuracy) if metric is not None]
    fig, left = _canvas(ax, pairs[0], landscape, log, "train_test")
    axes = [left]
    if accuracy is not None:
        for name in pairs[1]:
            _finite([_read(landscape, name, 1, "train_test")[1]], name, False)
        axes.append(left.twinx())
    for axis, (train, test), colour in zip(axes, pairs, _COLOURS):
        _curve(axis, landscape, train, f"train {_pretty(train)}", colour, "-")
        _curve(axis, landscape, test, _pretty(test), colour, "--")
        axis.set_ylabel(_pretty(train), fontsize=_SIZE, color=colour)
        axis.tick_params(axis="y", which="both", colors=colour, labelsize=_SMALL)
    _finish_line(fig, axes, landscape, [name for pair in pairs for name in pair], log, title, outside=ax is None)
    return fig


# --------------------------------------------------------------------------------------------- lines and pages


def _canvas(ax: Any, names: Sequence[str], landscape: Landscape, log: bool, who: str) -> tuple[Any, Any]:
    """A figure for curves, made once they are known to be drawable."""
    for name in names:
        _finite([_read(landscape, name, 1, who)[1]], name, log)
    if ax is not None:
        return ax.figure, ax
    fig = Figure(figsize=(_SINGLE, 2.7), dpi=_DPI, layout="constrained")
    return fig, fig.add_subplot()


def _curve(ax: Any, landscape: Landscape, name: str, label: str, colour: str, dash: str) -> None:
    """A line and, where there are standard errors, the band around it."""
    (x,), y = _read(landscape, name, 1, "line")
    # a point between non-finite ones makes no line, hence dots on short or broken curves
    marker = "." if np.isnan(y).any() or len(x) < 12 else ""
    ax.plot(x, y, color=colour, linestyle=dash, linewidth=1.2, marker=marker, markersize=3, label=label)
    if name in landscape.stderr:
        band = np.asarray(landscape.stderr[name], float)[np.argsort(landscape.coords[0])]
        ax.fill_between(x, y - band, y + band, color=colour, alpha=0.25, linewidth=0)


def _finish_line(
    fig: Any, axes: list[Any], landscape: Landscape, names: Sequence[str], log: bool, title: str | None, outside: bool
) -> None:
    """Axis label, the trained network, the recipe's marks, and hatching where a curve is not finite."""
    ax = axes[0]
    columns = [_read(landscape, name, 1, "line") for name in names]
    x, bad = columns[0][0][0], np.isnan(np.stack([y for _, y in columns])).any(axis=0)
    if log:
        ax.set_yscale("log")
        low, high = np.log10(ax.get_ylim())
        at, labels = _ticks(low, high, True, 6)
        ax.set_yticks(10**at, labels)
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(*(x if len(x) > 1 else _edges(x))[[0, -1]])
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=_NICE))
    ax.set_xlabel(_axis_label(landscape, 0, 44), fontsize=_SIZE)
    ax.tick_params(labelsize=_SMALL)
    for axis in axes:
        axis.yaxis.get_offset_text().set_fontsize(_SMALL)
    thin: dict[str, Any] = {"color": "0.4", "linestyle": ":", "linewidth": 1}
    if x[0] <= 0 <= x[-1] and _origin(landscape):
        ax.axvline(0, label=_ORIGIN, **thin)
    if any(name in landscape.stderr for name in names):  # one neutral entry for the bands of all curves
        ax.plot([], [], color="0.5", alpha=0.4, linewidth=6, label="± 1 standard error")
    for first, end in np.flatnonzero(np.diff(np.r_[0, bad, 0])).reshape(-1, 2):  # runs of cells
        ax.axvspan(*_edges(x)[[first, end]], zorder=0, label=_holes(_unfinished(landscape)), **_HATCH)
    for name, a in _marks(landscape, 1):
        if x[0] <= a <= x[-1]:
            ax.axvline(a, **thin)
            right = a > (x[0] + x[-1]) / 2
            side: dict[str, Any] = {"xytext": (-2 if right else 2, -2), "ha": "right" if right else "left", "va": "top"}
            side |= {"xycoords": ax.get_xaxis_transform(), "textcoords": "offset points"}
            ax.annotate(name, (a, 1), **side, **_NAME)
    _legend(fig, axes, outside=outside)
    _set_title(ax, _joined(title, _unfinished(landscape)), 42, _SIZE + 1)
