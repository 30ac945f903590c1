"""How ``plotting`` reads a landscape and draws it: everything that is not a user's to call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, NullFormatter
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from lla_jax.core.types import Landscape
from lla_jax.output.plotting.reading import (
    Origin,
    _axis_label,
    _broken,
    _caption,
    _lines,
    _listed,
    _marks,
    _origin,
    _told,
    _unfinished,
    _wrapped,
)
from lla_jax.output.plotting.scales import _NICE, Levels, _coordinate_ticks, _finite, _Scale, _scale, _shown, _ticks

Kind = Literal["surface", "contour", "heatmap"]

_CMAP = "viridis"  # perceptually uniform and readable with every colour vision deficiency
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
_DASHES = ("-", "--", "-.", ":")
_SIZE, _SMALL = 8, 7  # points, in a figure printed at its own size
_SINGLE, _DOUBLE, _DPI = 3.5, 7.0, 300
_MOST = 121  # vertices per axis of a surface; odd, so that a centre cell stays
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


class _Plane(NamedTuple):
    """One 2-axis picture's content: increasing coordinates, values (NaN where not finite), and what to mark."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    labels: tuple[str, str]  # "a (units of d1: random)"
    caption: str  # "a, b: units of random directions"
    marks: list[tuple[str, float, float]]
    origin: Origin  # where the rule gives the network itself: (0, 0), or all of a = 0 (adam)
    missing: str  # "(incomplete: 3 of 9 points)"


# ------------------------------------------------------------------------------------------- reading a landscape


def _read(landscape: object, value: str, dims: int, who: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Increasing coordinates, and ``values[value]`` with NaN for what is not finite: a copy."""
    if not isinstance(landscape, Landscape):
        several = "; contour takes {name: landscape} too" if who == "contour" else "; panels draws several"
        raise ValueError(f"landscape of type {type(landscape).__name__} is not a Landscape, give {who} one{several}")
    if landscape.dims != dims:
        use = {1: "line or train_test", 2: "surface, contour or heatmap", 3: "volume"}.get(landscape.dims, "a slice")
        axes = "1 axis" if dims == 1 else f"{dims} axes"
        raise ValueError(f"{who} draws {axes}, this landscape has {landscape.dims}: {landscape.shape}; use {use}")
    if not isinstance(value, str) or value not in landscape.values:
        raise ValueError(f"value={value!r} is not in this landscape; it has {_listed(landscape.values)}, give one name")
    z = np.asarray(landscape.values[value], dtype=float)
    if z.shape != landscape.shape:
        raise ValueError(f"values[{value!r}] has shape {z.shape}, but the coordinates make {landscape.shape}")
    orders = [np.argsort(c) for c in landscape.coords]
    coords = [np.asarray(c, float)[order] for c, order in zip(landscape.coords, orders)]
    return coords, np.where(np.isfinite(z), z, np.nan)[np.ix_(*orders)]


def _plane(landscape: Landscape, value: str, who: str, least: int = 2) -> _Plane:
    (x, y), z = _read(landscape, value, 2, who)
    return _assemble(landscape, x, y, z, least, who)


def _planes(landscapes: Mapping[str, Landscape], value: str, who: str) -> dict[str, _Plane]:
    if not isinstance(landscapes, Mapping):
        raise ValueError(f"landscapes of type {type(landscapes).__name__} has no names; give {{name: landscape}}")
    if not landscapes:
        raise ValueError("landscapes is empty; give {name: landscape}")
    return {str(name): _plane(landscape, value, who) for name, landscape in landscapes.items()}


def _assemble(landscape: Landscape, x: np.ndarray, y: np.ndarray, z: np.ndarray, least: int, who: str) -> _Plane:
    """A plane with what its landscape's recipe says of it; marks outside are dropped."""
    if min(z.shape) < least:
        raise ValueError(f"{who} needs {least} points or more per axis, this landscape has {z.shape}; use heatmap")
    marks = [(n, a, b) for n, a, b, _ in _marks(landscape, 3) if x[0] <= a <= x[-1] and y[0] <= b <= y[-1]]
    origin = _origin(landscape)
    if not x[0] <= 0 <= x[-1] or (origin == "point" and not y[0] <= 0 <= y[-1]):
        origin = None
    labels = _axis_label(landscape, 0, 44), _axis_label(landscape, 1, 36)
    return _Plane(x, y, z, labels, _caption(landscape), marks, origin, _unfinished(landscape))


# --------------------------------------------------------------------------------------------- 2-axis pictures


def _picture(
    kind: Kind,
    planes: Mapping[str, _Plane],
    value: str,
    *,
    shared: bool = False,
    levels: Levels = 20,
    log: bool = False,
    cap: float | None = None,
    title: str | None = None,
    ax: Any = None,
    least: tuple[float, float] | None = None,
    extra: Callable[[Any, _Plane, _Scale], None] | None = None,
) -> Figure:
    """Draw each plane on its own scale, or all on one; legend, titles and colour bars around them.

    Scales span ``least`` at least; ``extra`` draws on top of each picture.
    """
    common = _scale([plane.z for plane in planes.values()], value, levels, log, cap, least)  # also the checks
    if ax is not None and len(planes) > 1:
        raise ValueError(f"ax takes one landscape, not {len(planes)}; leave ax out")
    if ax is not None and (kind == "surface") != hasattr(ax, "plot_surface"):
        need = 'fig.add_subplot(projection="3d")' if kind == "surface" else "plain 2-D axes"
        raise ValueError(f"ax of type {type(ax).__name__} does not suit a {kind}; use {need}")
    solo, shared = len(planes) == 1, shared or len(planes) == 1
    fig, axes, width = (ax.figure, [ax], 42) if ax is not None else _page(len(planes), kind)
    # what all panels have in common is said once, the rest above each of them
    missing, captions = ({getattr(plane, said) for plane in planes.values()} for said in ("missing", "caption"))
    drawn = None
    for axis, (name, plane) in zip(axes, planes.items()):
        drawable = bool(np.isfinite(plane.z).any())
        scale = common if shared or not drawable else _scale([plane.z], value, levels, log, cap, least)
        _frame(axis, plane, scale, kind, solo)
        picture = _DRAW[kind](axis, plane, scale, 8 if solo else 6)
        if extra is not None:
            extra(axis, plane, scale)
        heading = title if solo else name if drawable else f"{name}: no finite cell"
        heading = _joined(heading, plane.missing if solo or len(missing) > 1 else "")
        below = _lines(plane.caption, width) if len(captions) > 1 and not _told(name, plane.caption) else ""
        _set_title(axis, "\n".join(filter(None, (heading, below))), width, _SIZE + 1 if solo else _SMALL)
        if drawable and not shared and kind != "surface":  # a surface's own z axis is its scale
            _colour_bar(fig, picture, [axis], scale, kind, label=False)
        drawn = picture if drawable else drawn
    if shared:
        _colour_bar(fig, drawn, axes, common, kind, label=True)
    if not solo:
        own = "" if shared else f"{common.label}, each panel on its own scale"
        over = _joined(": ".join(filter(None, (title, own))), *missing if len(missing) == 1 else ())
        if over:
            fig.suptitle(_wrapped(over, 96), fontsize=_SIZE + 1)
    said = "".join(captions) if len(captions) == 1 and (kind == "surface" or not solo) else ""
    _legend(fig, axes, outside=ax is None, title=_lines(said, 56 if solo else 110))
    return fig


def _draw_contour(ax: Any, plane: _Plane, scale: _Scale, size: float) -> Any:
    _hatch(ax, plane)
    if not np.isfinite(plane.z).any():
        return None
    z = np.ma.masked_invalid(_shown(plane.z, scale.log, None)).T  # not clipped: the last level stays where it is
    filled = ax.contourf(plane.x, plane.y, z, levels=scale.levels, extend=scale.extend, cmap=_CMAP)
    lines = scale.levels[(scale.levels > z.min()) & (scale.levels < z.max())]
    if len(lines):
        ax.contour(plane.x, plane.y, z, levels=lines, colors="k", linewidths=0.3, linestyles="-", alpha=0.6)
    _mark_flat(ax, plane, size)
    return filled


def _draw_heatmap(ax: Any, plane: _Plane, scale: _Scale, size: float) -> Any:
    _hatch(ax, plane)
    z = np.ma.masked_invalid(_shown(plane.z, scale.log, scale.cap)).T
    drawn = ax.pcolormesh(
        _edges(plane.x), _edges(plane.y), z, cmap=_CMAP, vmin=scale.lo, vmax=scale.hi, rasterized=True
    )
    _mark_flat(ax, plane, size)
    return drawn


def _draw_surface(ax: Any, plane: _Plane, scale: _Scale, size: float) -> Any:
    """Whole quadrilaterals only, so that a non-finite vertex leaves a clean hole."""
    z = _shown(plane.z, scale.log, scale.cap)
    rows, cols = (np.unique(np.linspace(0, n - 1, min(n, _MOST)).round().astype(int)) for n in z.shape)
    points = np.stack([*np.meshgrid(plane.x[rows], plane.y[cols], indexing="ij"), z[np.ix_(rows, cols)]], axis=-1)
    corners = np.stack([points[:-1, :-1], points[1:, :-1], points[1:, 1:], points[:-1, 1:]], axis=2).reshape(-1, 4, 3)
    corners = corners[np.isfinite(corners).all(axis=(1, 2))]
    drawn = Poly3DCollection(corners, cmap=_CMAP, linewidths=0.2)
    drawn.set_array(corners[..., 2].mean(axis=1))
    drawn.set_clim(scale.lo, scale.hi)
    ax.computed_zorder = False  # marks stay visible in front of the walls of a bowl, faded
    ax.add_collection3d(drawn)
    drawn.set_edgecolor((0, 0, 0, 0.35) if len(corners) < 4000 else "face")  # "face" asks the axes
    _mark_surface(ax, plane, z, size)
    return drawn


_DRAW = {"surface": _draw_surface, "contour": _draw_contour, "heatmap": _draw_heatmap}


def _edges(c: np.ndarray) -> np.ndarray:
    """Cell borders half way between coordinates; positive coordinates keep positive cells."""
    if len(c) == 1:
        return np.array([c[0] - 0.5, c[0] + 0.5])
    middle = (c[1:] + c[:-1]) / 2
    first = 2 * c[0] - middle[0]
    return np.concatenate([[max(first, 0.0) if c[0] > 0 else first], middle, [2 * c[-1] - middle[-1]]])


def _holes(missing: str) -> str:
    return "not finite or not computed" if missing else "not finite"


def _hatch(ax: Any, plane: _Plane) -> None:
    """A hatched ground under the picture: it shows through wherever there is no finite cell."""
    if not np.isfinite(plane.z).all():
        ax.add_patch(Rectangle((0, 0), 1, 1, transform=ax.transAxes, zorder=0, label=_holes(plane.missing), **_HATCH))


def _mark_flat(ax: Any, plane: _Plane, size: float) -> None:
    if plane.origin == "point":
        ax.plot(0, 0, marker="*", markersize=size, label=_ORIGIN, clip_on=False, zorder=5, **_POINT)
    elif plane.origin == "line":
        ax.axvline(0, label=f"{_ORIGIN} (a = 0)", **_ROW)
    sides: list[tuple[float, bool]] = []
    for name, a, b in plane.marks:
        if (a, b) != (0, 0) or plane.origin != "point":
            ax.plot(a, b, marker="o", markersize=0.55 * size, clip_on=False, zorder=5, **_POINT)
        right, top = a > (plane.x[0] + plane.x[-1]) / 2, b > (plane.y[0] + plane.y[-1]) / 2
        if any(top == other and abs(b - at) < 0.12 * (plane.y[-1] - plane.y[0]) for at, other in sides):
            top = not top  # else it may run into the name of a neighbour
        sides.append((b, top))
        side: dict[str, Any] = {"ha": "right" if right else "left", "va": "top" if top else "bottom"}
        shift = (-3 if right else 3, -3 if top else 3)  # names lean towards the middle, inside the picture
        ax.annotate(name, (a, b), xytext=shift, textcoords="offset points", zorder=6, **side, **_NAME)


def _mark_surface(ax: Any, plane: _Plane, z: np.ndarray, size: float) -> None:
    """Points on stems from the floor, so that their (a, b) can be read; faded where the surface hides them."""
    if not np.isfinite(plane.z).all():
        square = {"marker": "s", "color": "white", "markeredgecolor": "0.6", "linestyle": "none"}
        ax.plot([], [], [], label=f"hole: {_holes(plane.missing)}", **square)
    points = [(name, a, b, "o", 0.55 * size) for name, a, b in plane.marks]
    if plane.origin == "point":
        called = "".join(name for name, a, b in plane.marks if (a, b) == (0, 0))
        points = [(called, 0.0, 0.0, "*", size), *(point for point in points if point[1:3] != (0, 0))]
    elif plane.origin == "line":
        at = np.stack([0 * plane.y, plane.y, _heights(plane, z, 0 * plane.y, plane.y)], axis=-1)
        hidden = _hidden(ax, plane, z, at)[:, None]
        ax.plot(*np.where(hidden, np.nan, at).T, label=f"{_ORIGIN} (a = 0)", zorder=10, **_ROW)
        ax.plot(*at.T, color="white", linewidth=0.8, linestyle=":", zorder=9)
    floor, faded = ax.get_zlim()[0], _POINT | {"alpha": 0.55}
    for name, a, b, marker, points_size in points:
        (height,) = _heights(plane, z, np.array([a]), np.array([b]))
        if not np.isfinite(height):
            continue
        (hidden,) = _hidden(ax, plane, z, np.array([[a, b, height]]))
        ax.plot([a, a], [b, b], [floor, height], color="0.15", linewidth=0.7, linestyle=(0, (2, 1.5)), zorder=9)
        ax.plot([a], [b], [floor], color="0.15", marker="x", markersize=3, markeredgewidth=0.7, zorder=9)
        shape = {"marker": marker, "markersize": points_size, "zorder": 10}
        ax.plot([a], [b], [height], **shape, **(faded if hidden else _POINT))
        if marker == "*":
            ax.plot([], [], [], label=_ORIGIN, **shape, **_POINT)
        if hidden:
            ax.plot([], [], [], marker="o", markersize=0.55 * size, label="faded: behind the surface", **faded)
        if name:
            x, _, _, w = ax.get_proj() @ (a, b, height, 1)  # names lean towards the middle
            ax.text(a, b, height, f" {name} ", ha="right" if x / w > 0 else "left", zorder=11, **_NAME)


def _heights(plane: _Plane, z: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The surface over points (a, b), linear between vertices."""
    i, j = (np.clip(np.searchsorted(c, t) - 1, 0, len(c) - 2) for c, t in ((plane.x, a), (plane.y, b)))
    s, t = (a - plane.x[i]) / (plane.x[i + 1] - plane.x[i]), (b - plane.y[j]) / (plane.y[j + 1] - plane.y[j])
    # a corner without weight may be infinite or not a number
    parts = [
        (z[i, j], (1 - s) * (1 - t)),
        (z[i + 1, j], s * (1 - t)),
        (z[i, j + 1], (1 - s) * t),
        (z[i + 1, j + 1], s * t),
    ]
    return np.sum([np.where(abs(weight) < 1e-9, 0, corner * weight) for corner, weight in parts], axis=0)


def _hidden(ax: Any, plane: _Plane, z: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Whether the surface comes between the eye and points ``(n, 3)`` on it: the line of sight changes its side."""
    eye = np.linalg.svd(ax.get_proj()[[0, 1, 3]])[2][-1]  # what is projected nowhere, at infinity if orthographic
    towards = np.sign(eye[3]) if abs(eye[3]) > 1e-12 else np.sign(eye[2] * ax.elev) or 1.0
    sight = towards * (eye[:3] - points * eye[3])
    low, high = np.array([ax.get_xlim(), ax.get_ylim(), ax.get_zlim()]).T
    with np.errstate(divide="ignore", invalid="ignore"):
        leaves = np.nanmin((np.where(sight > 0, high, low) - points) / sight, axis=1)
    a, b, c = np.moveaxis(points[:, None] + np.linspace(0, 1, 300)[:, None] * (leaves[:, None] * sight)[:, None], -1, 0)
    above = (c - _heights(plane, z, a, b)) / (high[2] - low[2])
    hidden: np.ndarray = (above > 0.01).any(axis=1) & (above < -0.01).any(axis=1)
    return hidden


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


def _frame(ax: Any, plane: _Plane, scale: _Scale, kind: Kind, solo: bool) -> None:
    """Limits, ticks and labels; among panels there is room for few ticks and the axes' letters only."""
    flat = kind != "surface"
    x, y = (_edges(plane.x), _edges(plane.y)) if kind == "heatmap" else (plane.x, plane.y)
    ax.set_xlim(x[0], x[-1])
    ax.set_ylim(y[0], y[-1])
    most = 5 if solo and flat else 3
    for axis, c, letter, label in zip((ax.xaxis, ax.yaxis), (plane.x, plane.y), "ab", plane.labels):
        axis.set_ticks(*_coordinate_ticks(c, most))
        axis.set_label_text(label if solo and flat else letter, fontsize=_SIZE if solo else _SMALL)
        axis.labelpad = 2 if flat else -6 if solo else -8
    ax.tick_params(labelsize=_SMALL)
    if flat:
        return
    ax.set_zlim(scale.lo, scale.hi)
    ax.set_zticks(*_ticks(scale.lo, scale.hi, scale.log, 5 if solo else 3))
    for name, pad in zip("xyz", (-1, -1, 1) if solo else (-2, -2, -1)):
        ax.tick_params(axis=name, labelsize=_SMALL, pad=pad)


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
