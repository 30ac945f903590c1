"""Draws landscapes of two axes, and of three as slices: surfaces, contours, heat maps."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from lla_jax.core.arguments import Misuse, check_choice, check_integer, misuse
from lla_jax.core.signatures import explained
from lla_jax.core.types import Landscape
from lla_jax.output.plotting import reading, scales, style
from lla_jax.output.plotting.reading import Plane
from lla_jax.output.plotting.scales import Levels, Scale

Kind = Literal["surface", "contour", "heatmap"]

_CMAP = "viridis"  # perceptually uniform and readable with every colour vision deficiency
_ROW: dict[str, Any] = {
    "color": "white",
    "linewidth": 1.0,
    "solid_capstyle": "round",
    "path_effects": [withStroke(linewidth=2.2, foreground="black")],
}
_MOST = 121  # vertices per axis of a surface; odd, so that a centre cell stays


@explained
def surface(
    landscape: Landscape,
    value: str = "loss",
    *,
    cap: float | None = None,
    log: bool = False,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw a landscape of two axes as a 3-D surface, with the trained network and the recipe's marks (checkpoints).

    Quadrilaterals with a non-finite corner are holes. More than 121 points along an axis are thinned evenly.

    Args:
      landscape: a landscape of two axes, values ``(n1, n2)``.
      value: a name in ``landscape.values``.
      cap: values above are drawn at ``cap``; the colour bar says so if there are any.
      log: heights are logarithmic, the ticks show the values themselves.
      title: text above.
      ax: 3-D axes to draw into, ``fig.add_subplot(projection="3d")``; by default a new figure.

    Returns:
      the figure.

    Raises:
      ValueError: another number of axes, an unknown ``value``, no finite cell, a cap that is not a finite number, or
        ``log`` with values <= 0.
    """
    return picture(
        "surface", {"": reading.plane(landscape, value, "surface")}, value, cap=cap, log=log, title=title, ax=ax
    )


@explained
def contour(
    landscape: Landscape | Mapping[str, Landscape],
    value: str = "loss",
    *,
    levels: Levels = 20,
    log: bool = False,
    cap: float | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw a landscape of two axes as filled contours, with the trained network and the recipe's marks (checkpoints).

    Args:
      landscape: a landscape of two axes, or ``{name: landscape}`` for a panel each with the same levels and colours.
      value: a name in ``landscape.values``.
      levels: about how many intervals between levels, at round values (with ``log`` exactly so many, evenly spaced in
        the logarithm); or the levels themselves, increasing.
      log: logarithmic levels.
      cap: no level that is chosen lies above it; larger values have the last colour, and the colour bar says so.
      title: text above.
      ax: axes to draw into (one landscape only); by default a new figure.

    Returns:
      the figure.

    Raises:
      ValueError: as ``surface``; levels that are not increasing; ``ax`` with several landscapes.
    """
    if isinstance(landscape, Mapping):
        planes = _planes(landscape, value, "contour")
    else:
        planes = {"": reading.plane(landscape, value, "contour")}
    return picture("contour", planes, value, shared=True, levels=levels, cap=cap, log=log, title=title, ax=ax)


@explained
def heatmap(
    landscape: Landscape,
    value: str = "loss",
    *,
    cap: float | None = None,
    log: bool = False,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw a landscape of two axes as a heat map: a cell is a rectangle that reaches half way to its neighbours.

    Args, Returns, Raises: as ``surface``; ``ax`` are plain axes.
    """
    planes = {"": reading.plane(landscape, value, "heatmap", least=1)}
    return picture("heatmap", planes, value, cap=cap, log=log, title=title, ax=ax)


@explained
def panels(
    landscapes: Mapping[str, Landscape],
    value: str = "loss",
    *,
    kind: Kind = "surface",
    shared: bool = False,
    cap: float | None = None,
    log: bool = False,
    title: str | None = None,
) -> Figure:
    """Draw landscapes of two axes side by side, such as the comparison of all modes, on a page's width.

    Args:
      landscapes: ``{name: landscape}``, each of two axes; the names become titles.
      value: a name in every landscape's ``values``.
      kind: "surface", "contour" or "heatmap".
      shared: one scale and one colour bar for all; otherwise each panel has its own, and the title says so.
      cap, log, title: as in ``surface``.

    Returns:
      the figure. A panel without any finite cell says so.

    Raises:
      ValueError: as ``surface`` (no finite cell: in all of them together); no landscapes; an unknown ``kind``.
    """
    check_choice("kind", kind, _DRAW)
    return picture(kind, _planes(landscapes, value, kind), value, shared=shared, cap=cap, log=log, title=title)


@explained
def volume(
    landscape: Landscape,
    value: str = "loss",
    *,
    slices: int = 9,
    levels: Levels = 20,
    log: bool = False,
    cap: float | None = None,
    title: str | None = None,
) -> Figure:
    """Draw a landscape of three axes as slices across the third: contour panels with the same levels.

    Args:
      landscape: a landscape of three axes, values ``(n1, n2, n3)``.
      slices: number of panels (all coordinates if there are fewer), evenly spaced from end to end. An odd number
        includes the coordinate nearest to 0: one slice is moved there.
      value, levels, log, cap, title: as in ``contour``.

    Returns:
      the figure. The trained network is marked on the slice at 0, a checkpoint on the slice nearest to it.

    Raises:
      ValueError: as ``contour``; fewer than one slice.
    """
    check_integer("slices", slices, remedy="the most panels to draw")
    (x, y, cut), z = reading.read(landscape, value, 3, "volume")
    chosen = _choose_slices(cut, slices)
    titles = _slice_titles(cut[chosen])
    planes = {name: reading.assemble(landscape, x, y, z[:, :, k], 2, "volume") for name, k in zip(titles, chosen)}
    for k, (name, plane) in zip(chosen, planes.items()):
        near = [at for at in reading.marks(landscape, 3) if k == min(chosen, key=lambda j: abs(cut[j] - at[3]))]
        here = [mark for mark in plane.marks if mark in [at[:3] for at in near]]
        planes[name] = plane._replace(marks=here, origin=plane.origin if np.isclose(cut[k], 0, atol=1e-9) else None)
    if len(planes) == 1:  # a single panel has no title of its own
        title = ": ".join(filter(None, (title, *planes)))
    return picture("contour", planes, value, shared=True, levels=levels, cap=cap, log=log, title=title)


def _planes(landscapes: Mapping[str, Landscape], value: str, function: str) -> dict[str, Plane]:
    """The planes of several landscapes by name."""
    if not isinstance(landscapes, Mapping) or not landscapes:
        raise misuse("landscapes", landscapes, "{name: landscape}, with one landscape at least")
    return {str(name): reading.plane(landscape, value, function) for name, landscape in landscapes.items()}


def _choose_slices(cut: np.ndarray, number: int) -> list[int]:
    """Indices of ``number`` coordinates, evenly spaced from end to end, or of all if there are fewer.

    If the number is odd, the coordinate nearest to 0 is among them: one inner index is moved there; for 1 it is the
    only one.
    """
    zero = int(np.argmin(abs(cut)))
    if number == 1:
        return [zero]
    chosen = np.linspace(0, len(cut) - 1, min(number, len(cut))).round().astype(int)
    if number % 2 and number > 2 and zero not in chosen:  # the ends stay
        chosen[1 + int(np.argmin(abs(chosen[1:-1] - zero)))] = zero
    return [int(k) for k in chosen]


def _slice_titles(cut: np.ndarray) -> list[str]:
    """Titles "c = 0.5" with 3 significant digits, or as many as tell the slices apart; -0 and 1e-17 become 0."""
    for digits in range(3, 18):
        titles = [f"c = {round(c, 12) + 0.0:.{digits}g}" for c in cut]
        if len(set(titles)) == len(titles):
            break
    return titles


# --- one picture, or several side by side


def picture(
    kind: Kind,
    planes: Mapping[str, Plane],
    value: str,
    *,
    shared: bool = False,
    levels: Levels = 20,
    log: bool = False,
    cap: float | None = None,
    title: str | None = None,
    ax: Any = None,
    least: tuple[float, float] | None = None,
    extra: Callable[[Any, Plane, Scale], None] | None = None,
) -> Figure:
    """Draw each plane on its own scale, or all on one, with legend, titles and colour bars.

    Args:
      kind: of picture.
      planes: {name: plane}; the names are the titles of several planes, and a single plane has ``title`` instead.
      value: the name of the values.
      shared: one scale and one colour bar for all.
      levels, log, cap, title, ax: as in ``contour``.
      least: the interval that the scales span at least.
      extra: ``extra(axes, plane, scale)`` draws on top of each plane.

    Returns:
      the figure.

    Raises:
      ValueError: as ``surface``.
    """
    common = scales.scale([plane.z for plane in planes.values()], value, levels, log, cap, least)  # also the checks
    if ax is not None and len(planes) > 1:
        raise Misuse("ax", f"given with {len(planes)} landscapes, but it takes one; leave ax out")
    if ax is not None and (kind == "surface") != hasattr(ax, "plot_surface"):
        if kind == "surface":
            raise misuse("ax", ax, 'axes for a surface, fig.add_subplot(projection="3d")')
        raise misuse("ax", ax, f"plain 2-D axes for a {kind}, such as fig.add_subplot()")
    solo, shared = len(planes) == 1, shared or len(planes) == 1
    fig, axes, width = (ax.figure, [ax], 42) if ax is not None else _page(len(planes), kind)
    # a note or caption that all panels have in common is written once, others above each panel
    notes, captions = ({getattr(plane, field) for plane in planes.values()} for field in ("incomplete", "caption"))
    last_drawn = None
    for axis, (name, plane) in zip(axes, planes.items()):
        drawable = bool(np.isfinite(plane.z).any())
        scale = common if shared or not drawable else scales.scale([plane.z], value, levels, log, cap, least)
        _frame(axis, plane, scale, kind, solo)
        artist = _DRAW[kind](axis, plane, scale, 8 if solo else 6)
        if extra is not None:
            extra(axis, plane, scale)
        heading = title if solo else name if drawable else f"{name}: no finite cell"
        heading = style.join(heading, plane.incomplete if solo or len(notes) > 1 else "")
        needs_caption = len(captions) > 1 and not _contains(name, plane.caption)
        caption = _caption_lines(plane.caption, width) if needs_caption else ""
        style.set_title(
            axis, "\n".join(filter(None, (heading, caption))), width, style.SIZE + 1 if solo else style.SMALL
        )
        if drawable and not shared and kind != "surface":  # a surface's own z axis is its scale
            _colour_bar(fig, artist, [axis], scale, kind, label=False)
        last_drawn = artist if drawable else last_drawn
    if shared:
        _colour_bar(fig, last_drawn, axes, common, kind, label=True)
    if not solo:
        own = "" if shared else f"{common.label}, each panel on its own scale"
        heading = style.join(": ".join(filter(None, (title, own))), *notes if len(notes) == 1 else ())
        if heading:
            fig.suptitle(style.wrap(heading, 96), fontsize=style.SIZE + 1)
    common_caption = "".join(captions) if len(captions) == 1 and (kind == "surface" or not solo) else ""
    style.legend(fig, axes, outside=ax is None, title=_caption_lines(common_caption, 56 if solo else 110))
    return fig


def _page(n: int, kind: Kind) -> tuple[Any, list[Any], int]:
    """(a figure of n panels in rows of up to four, its axes, the characters in a line of a panel's title).

    The axes are 3-D if the panels are surfaces.
    """
    columns = {1: 1, 2: 2, 3: 3, 4: 2, 5: 3, 6: 3, 9: 3}.get(n, 4)
    rows = -(-n // columns)
    size = (style.SINGLE, 2.9) if n == 1 else (style.DOUBLE, rows * 0.86 * style.DOUBLE / columns + 0.4)
    fig = Figure(figsize=size, dpi=style.DPI, layout="constrained")
    projection = "3d" if kind == "surface" else None
    return (
        fig,
        [fig.add_subplot(rows, columns, k + 1, projection=projection) for k in range(n)],
        42 if n == 1 else 108 // columns,
    )


def _frame(ax: Any, plane: Plane, scale: Scale, kind: Kind, solo: bool) -> None:
    """Set limits, ticks and labels of axes; one of several panels has few ticks and only the letters a and b."""
    flat = kind != "surface"
    x, y = (scales.edges(plane.x), scales.edges(plane.y)) if kind == "heatmap" else (plane.x, plane.y)
    ax.set_xlim(x[0], x[-1])
    ax.set_ylim(y[0], y[-1])
    most = 5 if solo and flat else 3
    for axis, c, letter, label in zip((ax.xaxis, ax.yaxis), (plane.x, plane.y), "ab", plane.labels):
        axis.set_ticks(*_coordinate_ticks(c, most))
        axis.set_label_text(label if solo and flat else letter, fontsize=style.SIZE if solo else style.SMALL)
        axis.labelpad = 2 if flat else -6 if solo else -8
    ax.tick_params(labelsize=style.SMALL)
    if flat:
        return
    ax.set_zlim(scale.lo, scale.hi)
    ax.set_zticks(*scales.ticks(scale.lo, scale.hi, scale.log, 5 if solo else 3))
    for name, pad in zip("xyz", (-1, -1, 1) if solo else (-2, -2, -1)):
        ax.tick_params(axis=name, labelsize=style.SMALL, pad=pad)


def _coordinate_ticks(c: np.ndarray, most: int) -> tuple[np.ndarray, list[str]]:
    """(positions, labels) of ticks, one at the start of a positive axis: the least b of an Adam plane matters."""
    at, labels = scales.ticks(c[0], c[-1], False, most)
    if c[0] <= 0:
        return at, labels
    at = np.r_[c[0], at[at - c[0] > 0.12 * (c[-1] - c[0])]]
    return at, [f"{t:.3g}" for t in at]  # all above 0


def _colour_bar(fig: Any, drawn: Any, axes: Sequence[Any], scale: Scale, kind: Kind, *, label: bool) -> None:
    """Draw the colour bar of ``drawn`` (contours, cells or a surface) beside the axes; ``label`` names the values."""
    lo, hi = (scale.levels[0], scale.levels[-1]) if kind == "contour" else (scale.lo, scale.hi)
    size: dict[str, Any] = {"fraction": 0.05, "pad": 0.1 if kind == "surface" else 0.03, "aspect": 25}
    if kind != "contour":
        size["extend"] = "max" if scale.clipped else "neither"
    bar = fig.colorbar(drawn, ax=list(axes), shrink=0.7 if kind == "surface" else 1.0, **size)
    ticks, names = scales.ticks(lo, hi, scale.log, 5)
    bar.set_ticks(ticks, labels=names)
    bar.minorticks_off()
    bar.ax.tick_params(labelsize=style.SMALL)
    if label:
        bar.set_label(scale.label, fontsize=style.SIZE)


def _caption_lines(caption: str, width: int) -> str:
    """A caption, with a line for each axis if it is too long for one."""
    lines = caption if len(caption) <= width else caption.replace("; ", ";\n").replace(" (", "\n(")
    return style.wrap(lines, width)


def _contains(title: str, caption: str) -> bool:
    """Whether a title has all words of a caption already."""
    words = set(re.findall(r"[a-z-]{4,}", caption.lower())) - {"units", "directions"}
    return bool(words) and all(word in title.lower() for word in words)


# --- the drawing of one picture


def _draw_contour(ax: Any, plane: Plane, scale: Scale, size: float) -> Any:
    _hatch(ax, plane)
    if not np.isfinite(plane.z).any():
        return None
    heights = scales.heights(plane.z, scale.log, None)  # not clipped: the last level stays where it is
    z = np.ma.masked_invalid(heights).T
    filled = ax.contourf(plane.x, plane.y, z, levels=scale.levels, extend=scale.extend, cmap=_CMAP)
    lines = scale.levels[(scale.levels > z.min()) & (scale.levels < z.max())]
    if len(lines):
        ax.contour(plane.x, plane.y, z, levels=lines, colors="k", linewidths=0.3, linestyles="-", alpha=0.6)
    _mark_flat(ax, plane, size)
    return filled


def _draw_heatmap(ax: Any, plane: Plane, scale: Scale, size: float) -> Any:
    _hatch(ax, plane)
    z = np.ma.masked_invalid(scales.heights(plane.z, scale.log, scale.cap)).T
    drawn = ax.pcolormesh(
        scales.edges(plane.x), scales.edges(plane.y), z, cmap=_CMAP, vmin=scale.lo, vmax=scale.hi, rasterized=True
    )
    _mark_flat(ax, plane, size)
    return drawn


def _draw_surface(ax: Any, plane: Plane, scale: Scale, size: float) -> Any:
    """Draw the quadrilaterals that have four finite corners; a vertex that is not finite leaves a clean hole."""
    z = scales.heights(plane.z, scale.log, scale.cap)
    rows, cols = (np.unique(np.linspace(0, n - 1, min(n, _MOST)).round().astype(int)) for n in z.shape)
    points = np.stack([*np.meshgrid(plane.x[rows], plane.y[cols], indexing="ij"), z[np.ix_(rows, cols)]], axis=-1)
    corners = np.stack([points[:-1, :-1], points[1:, :-1], points[1:, 1:], points[:-1, 1:]], axis=2).reshape(-1, 4, 3)
    corners = corners[np.isfinite(corners).all(axis=(1, 2))]
    drawn = Poly3DCollection(corners, cmap=_CMAP, linewidths=0.2)
    drawn.set_array(corners[..., 2].mean(axis=1))
    drawn.set_clim(scale.lo, scale.hi)
    ax.computed_zorder = False  # marks stay visible, faded, behind the walls of a bowl
    ax.add_collection3d(drawn)
    drawn.set_edgecolor((0, 0, 0, 0.35) if len(corners) < 4000 else "face")  # "face" needs the axes
    _mark_surface(ax, plane, z, size)
    return drawn


_DRAW = {"surface": _draw_surface, "contour": _draw_contour, "heatmap": _draw_heatmap}


def _hatch(ax: Any, plane: Plane) -> None:
    """Hatch the ground under the picture, which shows wherever a cell is not finite."""
    if not np.isfinite(plane.z).all():
        ax.add_patch(
            Rectangle(
                (0, 0), 1, 1, transform=ax.transAxes, zorder=0, label=style.hole_label(plane.incomplete), **style.HATCH
            )
        )


def _mark_flat(ax: Any, plane: Plane, size: float) -> None:
    if plane.origin == "point":
        ax.plot(0, 0, marker="*", markersize=size, label=style.ORIGIN, clip_on=False, zorder=5, **style.POINT)
    elif plane.origin == "line":
        ax.axvline(0, label=f"{style.ORIGIN} (a = 0)", **_ROW)
    sides: list[tuple[float, bool]] = []
    for name, a, b in plane.marks:
        if (a, b) != (0, 0) or plane.origin != "point":
            ax.plot(a, b, marker="o", markersize=0.55 * size, clip_on=False, zorder=5, **style.POINT)
        right, top = a > (plane.x[0] + plane.x[-1]) / 2, b > (plane.y[0] + plane.y[-1]) / 2
        if any(top == other and abs(b - at) < 0.12 * (plane.y[-1] - plane.y[0]) for at, other in sides):
            top = not top  # otherwise it may run into the name of a neighbour
        sides.append((b, top))
        side: dict[str, Any] = {"ha": "right" if right else "left", "va": "top" if top else "bottom"}
        shift = (-3 if right else 3, -3 if top else 3)  # names lean towards the middle, inside the picture
        ax.annotate(name, (a, b), xytext=shift, textcoords="offset points", zorder=6, **side, **style.NAME)


def _mark_surface(ax: Any, plane: Plane, z: np.ndarray, size: float) -> None:
    """Draw marks on stems from the floor, so that their (a, b) can be read; faded where the surface hides them."""
    if not np.isfinite(plane.z).all():
        square = {"marker": "s", "color": "white", "markeredgecolor": "0.6", "linestyle": "none"}
        ax.plot([], [], [], label=f"hole: {style.hole_label(plane.incomplete)}", **square)
    points = [(name, a, b, "o", 0.55 * size) for name, a, b in plane.marks]
    if plane.origin == "point":
        name_at_origin = "".join(name for name, a, b in plane.marks if (a, b) == (0, 0))
        points = [(name_at_origin, 0.0, 0.0, "*", size), *(point for point in points if point[1:3] != (0, 0))]
    elif plane.origin == "line":
        at = np.stack([0 * plane.y, plane.y, _heights(plane, z, 0 * plane.y, plane.y)], axis=-1)
        hidden = _is_hidden(ax, plane, z, at)[:, None]
        ax.plot(*np.where(hidden, np.nan, at).T, label=f"{style.ORIGIN} (a = 0)", zorder=10, **_ROW)
        ax.plot(*at.T, color="white", linewidth=0.8, linestyle=":", zorder=9)
    floor, faded = ax.get_zlim()[0], style.POINT | {"alpha": 0.55}
    for name, a, b, marker, points_size in points:
        (height,) = _heights(plane, z, np.array([a]), np.array([b]))
        if not np.isfinite(height):
            continue
        (hidden,) = _is_hidden(ax, plane, z, np.array([[a, b, height]]))
        ax.plot([a, a], [b, b], [floor, height], color="0.15", linewidth=0.7, linestyle=(0, (2, 1.5)), zorder=9)
        ax.plot([a], [b], [floor], color="0.15", marker="x", markersize=3, markeredgewidth=0.7, zorder=9)
        shape = {"marker": marker, "markersize": points_size, "zorder": 10}
        ax.plot([a], [b], [height], **shape, **(faded if hidden else style.POINT))
        if marker == "*":
            ax.plot([], [], [], label=style.ORIGIN, **shape, **style.POINT)
        if hidden:
            ax.plot([], [], [], marker="o", markersize=0.55 * size, label="faded: behind the surface", **faded)
        if name:
            x, _, _, w = ax.get_proj() @ (a, b, height, 1)  # names lean towards the middle
            ax.text(a, b, height, f" {name} ", ha="right" if x / w > 0 else "left", zorder=11, **style.NAME)


def _heights(plane: Plane, z: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Heights ``z`` of the surface over points (a, b), linear between vertices; a and b of shape ``(n,)``."""
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


def _is_hidden(ax: Any, plane: Plane, z: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Whether the surface lies between the eye and points ``(n, 3)`` on it: the line of sight crosses it."""
    eye = np.linalg.svd(ax.get_proj()[[0, 1, 3]])[2][-1]  # the point without a projection; orthographic: at infinity
    towards = np.sign(eye[3]) if abs(eye[3]) > 1e-12 else np.sign(eye[2] * ax.elev) or 1.0
    sight = towards * (eye[:3] - points * eye[3])
    low, high = np.array([ax.get_xlim(), ax.get_ylim(), ax.get_zlim()]).T
    with np.errstate(divide="ignore", invalid="ignore"):
        leaves = np.nanmin((np.where(sight > 0, high, low) - points) / sight, axis=1)
    a, b, c = np.moveaxis(points[:, None] + np.linspace(0, 1, 300)[:, None] * (leaves[:, None] * sight)[:, None], -1, 0)
    above = (c - _heights(plane, z, a, b)) / (high[2] - low[2])
    hidden: np.ndarray = (above > 0.01).any(axis=1) & (above < -0.01).any(axis=1)
    return hidden
