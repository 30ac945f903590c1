"""Draws landscapes of two axes, and of three as slices: surfaces, contours, heat maps."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lla_jax.core.arguments import Misuse, check_choice, check_flag, check_integer, misuse
from lla_jax.core.results import Landscape
from lla_jax.core.signatures import explained
from lla_jax.output.plotting import reading, scales, style, surfaces
from lla_jax.output.plotting.figures import new_figure
from lla_jax.output.plotting.reading import Plane
from lla_jax.output.plotting.scales import Levels, Scale

Kind = Literal["surface", "contour", "heatmap"]


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

    Quadrilaterals with a non-finite corner are holes. More than 121 points along an axis are thinned evenly, but the
    lowest point stays.

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
        planes = _planes(landscape, value, "contour", "landscape")
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
    check_flag("shared", shared)
    return picture(
        kind, _planes(landscapes, value, kind, "landscapes"), value, shared=shared, cap=cap, log=log, title=title
    )


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
    (x, y, cut), z = reading.read(landscape, value, 3, "volume")
    check_integer("slices", slices, remedy="the most panels to draw")
    chosen = _choose_slices(cut, slices)
    titles = _slice_titles(cut[chosen])
    planes = {
        name: reading.assemble(landscape, x, y, z[:, :, k], 2, "volume")._replace(
            **reading.refined(landscape, value, x, y, k)
        )
        for name, k in zip(titles, chosen)
    }
    for k, (name, plane) in zip(chosen, planes.items()):
        near = [at for at in reading.marks(landscape, 3) if k == min(chosen, key=lambda j: abs(cut[j] - at[3]))]
        here = [mark for mark in plane.marks if mark in [at[:3] for at in near]]
        planes[name] = plane._replace(marks=here, origin=plane.origin if np.isclose(cut[k], 0, atol=1e-9) else None)
    if len(planes) == 1:  # a single panel has no title of its own
        title = style.join(title, *planes, by=": ")
    return picture("contour", planes, value, shared=True, levels=levels, cap=cap, log=log, title=title)


def _planes(landscapes: Mapping[str, Landscape], value: str, function: str, argument: str) -> dict[str, Plane]:
    """The planes of several landscapes by name."""
    if not isinstance(landscapes, Mapping) or not landscapes:
        raise reading.wrong_object(argument, landscapes, "{name: landscape}, with one landscape at least")
    return {
        str(name): reading.plane(landscape, value, function, argument=f"{argument}[{name!r}]")
        for name, landscape in landscapes.items()
    }


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
    legend: bool = True,
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
      legend: whether to draw the legend; else the caller does.

    Returns:
      the figure.

    Raises:
      ValueError: as ``surface``.
    """
    arrays = [plane.z for plane in planes.values()]
    common = scales.scale(arrays, value, levels, log, cap, least)  # also the checks
    if ax is not None and len(planes) > 1:
        raise Misuse("ax", f"given with {len(planes)} landscapes, but it takes one; leave ax out")
    style.check_axes(ax, f"a {kind}")
    if cap is not None and cap < (lowest := scales.finite(arrays, value, log).min()):
        rule = f"above the smallest value, {lowest:.4g}, or None; below it all values would be drawn as one"
        raise misuse("cap", cap, rule)
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
        heading = style.join(style.join(title, own, by=": "), *notes if len(notes) == 1 else ())
        if heading:
            fig.suptitle(style.wrap(heading, 96), fontsize=style.SIZE + 1)
    common_caption = "".join(captions) if len(captions) == 1 and (kind == "surface" or not solo) else ""
    if legend:
        style.legend(fig, axes, outside=ax is None, title=_caption_lines(common_caption, 56 if solo else 110))
    return fig


def _page(n: int, kind: Kind) -> tuple[Any, list[Any], int]:
    """(a figure of n panels in rows of up to four, its axes, the characters in a line of a panel's title).

    The axes are 3-D if the panels are surfaces.
    """
    columns = {1: 1, 2: 2, 3: 3, 4: 2, 5: 3, 6: 3, 9: 3}.get(n, 4)
    rows = -(-n // columns)
    size = (style.SINGLE, 2.9) if n == 1 else (style.DOUBLE, rows * 0.86 * style.DOUBLE / columns + 0.4)
    fig = new_figure(*size)
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
    filled = ax.contourf(plane.x, plane.y, z, levels=scale.levels, extend=scale.extend, cmap=style.CMAP)
    lines = scale.levels[(scale.levels > z.min()) & (scale.levels < z.max())]
    if len(lines):
        ax.contour(plane.x, plane.y, z, levels=lines, colors="k", linewidths=0.3, linestyles="-", alpha=0.6)
    _mark_evaluated(ax, plane)
    _mark_flat(ax, plane, size)
    return filled


def _draw_heatmap(ax: Any, plane: Plane, scale: Scale, size: float) -> Any:
    _hatch(ax, plane)
    z = np.ma.masked_invalid(scales.heights(plane.z, scale.log, scale.cap)).T
    drawn = ax.pcolormesh(
        scales.edges(plane.x), scales.edges(plane.y), z, cmap=style.CMAP, vmin=scale.lo, vmax=scale.hi, rasterized=True
    )
    _mark_evaluated(ax, plane)
    _mark_flat(ax, plane, size)
    return drawn


_DRAW = {"surface": surfaces.draw_surface, "contour": _draw_contour, "heatmap": _draw_heatmap}


def _hatch(ax: Any, plane: Plane) -> None:
    """Hatch the ground under the picture, which shows wherever a cell is not finite."""
    if not np.isfinite(plane.z).all():
        ax.add_patch(
            Rectangle(
                (0, 0), 1, 1, transform=ax.transAxes, zorder=0, label=style.hole_label(plane.incomplete), **style.HATCH
            )
        )


def _mark_evaluated(ax: Any, plane: Plane) -> None:
    """Draw a small dot at each point whose value is not interpolated; the legend says how far off the others are."""
    if plane.evaluated is not None:
        ax.plot(*plane.evaluated.T, label=style.refined_label(plane.interpolated), **style.dots(len(plane.evaluated)))


def _mark_flat(ax: Any, plane: Plane, size: float) -> None:
    if plane.origin == "point":
        ax.plot(0, 0, marker="*", markersize=size, label=style.ORIGIN, clip_on=False, zorder=5, **style.POINT)
    elif plane.origin == "line":
        ax.axvline(0, label=f"{style.ORIGIN} (a = 0)", **style.ROW)
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
