"""The look of all figures: colours, sizes, pages, colour bars, legends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from lla_jax.output.plotting.reading import _broken
from lla_jax.output.plotting.scales import _Scale, _ticks

Kind = Literal["surface", "contour", "heatmap"]

_CMAP = "viridis"  # perceptually uniform and readable with every colour vision deficiency
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
_DASHES = ("-", "--", "-.", ":")
_SIZE, _SMALL = 8, 7  # points, in a figure printed at its own size
_SINGLE, _DOUBLE, _DPI = 3.5, 7.0, 300
_HATCH: dict[str, Any] = {"facecolor": "0.88", "edgecolor": "0.55", "hatch": "/////", "linewidth": 0.0}
_POINT: dict[str, Any] = {"color": "white", "markeredgecolor": "black", "markeredgewidth": 0.6, "linestyle": "none"}
_ROW: dict[str, Any] = {
    "color": "white",
    "linewidth": 1.0,
    "solid_capstyle": "round",
    "path_effects": [withStroke(linewidth=2.2, foreground="black")],
}
_NAME: dict[str, Any] = {"fontsize": _SMALL, "path_effects": [withStroke(linewidth=1.6, foreground="white")]}
_ORIGIN = "trained network"


def _edges(c: np.ndarray) -> np.ndarray:
    """Cell borders half way between coordinates; positive coordinates keep positive cells."""
    if len(c) == 1:
        return np.array([c[0] - 0.5, c[0] + 0.5])
    middle = (c[1:] + c[:-1]) / 2
    first = 2 * c[0] - middle[0]
    return np.concatenate([[max(first, 0.0) if c[0] > 0 else first], middle, [2 * c[-1] - middle[-1]]])


def _holes(missing: str) -> str:
    return "not finite or not computed" if missing else "not finite"


def _page(n: int, kind: Kind) -> tuple[Any, list[Any], int]:
    """A single-column figure for one panel, else rows of up to four on a double column; a title's characters."""
    columns = {1: 1, 2: 2, 3: 3, 4: 2, 5: 3, 6: 3, 9: 3}.get(n, 4)
    rows = -(-n // columns)
    size = (_SINGLE, 2.9) if n == 1 else (_DOUBLE, rows * 0.86 * _DOUBLE / columns + 0.4)
    fig = Figure(figsize=size, dpi=_DPI, layout="constrained")
    projection = "3d" if kind == "surface" else None
    return (
        fig,
        [fig.add_subplot(rows, columns, k + 1, projection=projection) for k in range(n)],
        42 if n == 1 else 108 // columns,
    )


def _colour_bar(fig: Any, drawn: Any, axes: Sequence[Any], scale: _Scale, kind: Kind, *, label: bool) -> None:
    lo, hi = (scale.levels[0], scale.levels[-1]) if kind == "contour" else (scale.lo, scale.hi)
    size: dict[str, Any] = {"fraction": 0.05, "pad": 0.1 if kind == "surface" else 0.03, "aspect": 25}
    if kind != "contour":
        size["extend"] = "max" if "clipped" in scale.label else "neither"
    bar = fig.colorbar(drawn, ax=list(axes), shrink=0.7 if kind == "surface" else 1.0, **size)
    ticks, names = _ticks(lo, hi, scale.log, 5)
    bar.set_ticks(ticks, labels=names)
    bar.minorticks_off()
    bar.ax.tick_params(labelsize=_SMALL)
    if label:
        bar.set_label(scale.label, fontsize=_SIZE)


def _legend(fig: Any, axes: Sequence[Any], *, outside: bool, title: str = "", columns: int | None = None) -> None:
    """One entry per label over all axes; below the figure where it would hide a picture."""
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels())}
    if not (entries or title):
        return
    text: dict[str, Any] = {"fontsize": _SMALL, "title": title or None, "title_fontsize": _SMALL, "handlelength": 2.4}
    if outside:
        longest = max(map(len, entries), default=0)
        columns = columns or (4 if len(axes) > 2 else 3 if longest <= 20 else 2)
        legend = fig.legend(entries.values(), entries, loc="outside lower center", ncols=columns, frameon=False, **text)
    else:
        legend = axes[-1].legend(entries.values(), entries, framealpha=0.8, **text)
    legend.get_title().set_multialignment("center")


def _joined(*parts: str | None) -> str:
    return " ".join(filter(None, parts))


def _set_title(ax: Any, text: str, width: int, size: float) -> None:
    if text:
        ax.set_title(_broken(text, width), fontsize=size, pad=5)
