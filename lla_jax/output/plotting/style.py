"""Sets the look of all figures: colours, sizes, titles, legends."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from lla_jax.core.arguments import misuse
from lla_jax.output.plotting.figures import new_figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
DASHES = ("-", "--", "-.", ":")
SIZE, SMALL = 8, 7  # points, in a figure printed at its own size
SINGLE, DOUBLE = 3.5, 7.0  # inches: one column, two columns
HATCH: dict[str, Any] = {"facecolor": "0.88", "edgecolor": "0.55", "hatch": "/////", "linewidth": 0.0}
POINT: dict[str, Any] = {"color": "white", "markeredgecolor": "black", "markeredgewidth": 0.6, "linestyle": "none"}
NAME: dict[str, Any] = {"fontsize": SMALL, "path_effects": [withStroke(linewidth=1.6, foreground="white")]}
CMAP = "viridis"  # perceptually uniform and readable with every colour vision deficiency
RUNS = ("#E69F00", "#56B4E9", "#CC79A7", "#D55E00", "#000000", "#009E73")  # seen on CMAP and on white
FAR = "OrRd"  # distances off a plane: light to dark, and no colour of CMAP
ROW: dict[str, Any] = {
    "color": "white",
    "linewidth": 1.0,
    "solid_capstyle": "round",
    "path_effects": [withStroke(linewidth=2.2, foreground="black")],
}
ORIGIN = "trained network"


def canvas(ax: Axes | None, height: float) -> tuple[Any, Any]:
    """(figure, axes) to draw curves into: ``ax`` and its figure, else a new figure of one column, ``height`` inches."""
    check_axes(ax, "a curve")
    if ax is not None:
        return ax.figure, ax
    fig = new_figure(SINGLE, height)
    return fig, fig.add_subplot()


def check_axes(ax: Any, picture: str) -> None:
    """Refuse an ``ax`` that cannot take a picture: no axes, axes without a figure, 3-D where 2-D are needed.

    Args:
      ax: the user's argument; None is a new figure.
      picture: "a surface", which needs 3-D axes, or another one, for the message.
    """
    if ax is None:
        return
    solid = picture == "a surface"
    kind, make = ("3-D", 'fig.add_subplot(projection="3d")') if solid else ("plain 2-D", "fig.add_subplot()")
    rule = f"{kind} axes for {picture}, such as {make}"
    if not isinstance(ax, Axes):
        if hasattr(ax, "add_subplot"):
            rule += ", and this is a whole figure"
        elif hasattr(ax, "shape"):
            rule += "; pass one entry of the array, such as axes[0]"
        raise misuse("ax", ax, rule)
    if ax.figure is None or ax.name == "polar" or solid != hasattr(ax, "plot_surface"):
        raise misuse("ax", ax, rule + (", and these were removed from their figure" if ax.figure is None else ""))


def dots(num: int) -> dict[str, Any]:
    """The look of ``num`` dots that mark evaluated points: many are small, so that the picture is seen."""
    size = float(np.clip(36 / np.sqrt(max(num, 1)), 0.4, 2.0))
    look: dict[str, Any] = {"color": "white", "markeredgecolor": "black", "markeredgewidth": 0.22 * size}
    return look | {"linestyle": "none", "marker": "o", "markersize": size, "zorder": 4, "rasterized": num > 4000}


def refined_label(interpolated: str) -> str:
    """The legend's label of the dots: what is interpolated and how far off that is, in two lines."""
    return interpolated.replace("evaluated, ", "evaluated (dots),\n", 1)


def hole_label(incomplete: str) -> str:
    """The legend's label of hatched places; ``incomplete`` is ``Plane.incomplete``, empty for a finished landscape."""
    return "not finite or not computed" if incomplete else "not finite"


def explain_errors(ax: Axes, colour: str = "0.5") -> None:
    """Add one entry to the legend for the bands of all curves."""
    ax.plot([], [], color=colour, alpha=0.4, linewidth=6, label="± 1 standard error")


def legend(fig: Figure, axes: Sequence[Axes], *, outside: bool, title: str = "", columns: int | None = None) -> None:
    """Draw one legend for all axes, with an entry per label; without entries and title, none.

    Args:
      fig: the figure.
      axes: the axes whose labels are listed.
      outside: below the figure, where it hides no picture; else inside the last axes.
      title: text above the entries.
      columns: number of columns outside; by default as many as fit.
    """
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels())}
    if not (entries or title):
        return
    text: dict[str, Any] = {"fontsize": SMALL, "title": title or None, "title_fontsize": SMALL, "handlelength": 2.4}
    if outside:
        longest = max((len(line) for entry in entries for line in entry.split("\n")), default=0)
        columns = columns or (4 if len(axes) > 2 else 3 if longest <= 20 else 2 if longest <= 34 else 1)
        drawn = fig.legend(entries.values(), entries, loc="outside lower center", ncols=columns, frameon=False, **text)
    else:
        drawn = axes[-1].legend(entries.values(), entries, framealpha=0.8, **text)
    drawn.get_title().set_multialignment("center")


def join(*parts: str | None, by: str = " ") -> str:
    """The parts that are not empty or None, joined by spaces or by another text."""
    return by.join(str(part) for part in parts if part is not None and part != "")


def wrap(text: str, width: int) -> str:
    """Break a text into lines of at most ``width`` characters; a line with a formula ($) stays as it is."""
    return "\n".join(line if "$" in line else fill(line, width, break_on_hyphens=False) for line in text.split("\n"))


def set_title(ax: Axes, text: str, width: int, size: float) -> None:
    """Set a title of lines of at most ``width`` characters above axes; an empty one sets nothing."""
    if text:
        ax.set_title(_break_title(text, width), fontsize=size, pad=5)


def _break_title(title: str, width: int) -> str:
    """Wrap a title like ``wrap``, but break a long line at its last comma if both parts are short enough."""
    lines = []
    for line in title.split("\n"):
        head, comma, tail = line.rpartition(", ")
        fits = comma and len(line) > width >= max(len(head) + 1, len(tail))
        lines.append(f"{head},\n{tail}" if fits else line)
    return wrap("\n".join(lines), width)
