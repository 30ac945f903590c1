"""Figures of landscapes and of curvature, drawn with matplotlib's ``Figure`` alone: no pyplot, no global state.

Every function returns a ``Figure`` (``fig.savefig("plane.png")``), sized for one column (3.5 in) or two (7 in). The x
axis is ``coords[0]`` and the y axis ``coords[1]``, in units of the directions: ``values[i, j]`` is drawn at
``(coords[0][i], coords[1][j])``. ``cap`` and ``log`` act on the picture only, and its label says so. Non-finite cells
are hatched, or holes in a surface. A result that was interrupted is titled "incomplete". What a, b (and c)
are is said on the axes or, of surfaces and panels, below the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lla_jax.core.types import Eigenpairs, Landscape, Spectrum
from lla_jax.output.plotting.curvature import _ROUNDING, _draw_density, _draw_layers, _draw_scree, _over_convexity
from lla_jax.output.plotting.planes import (
    _COLOURS,
    _DASHES,
    _DRAW,
    _SIZE,
    _SMALL,
    Kind,
    _assemble,
    _canvas,
    _curve,
    _finish_line,
    _picture,
    _plane,
    _planes,
    _read,
)
from lla_jax.output.plotting.reading import _common, _listed, _marks, _pretty
from lla_jax.output.plotting.scales import Levels, _finite

if TYPE_CHECKING:
    from lla_jax.measures.layers import Layer


def surface(
    landscape: Landscape,
    value: str = "loss",
    *,
    cap: float | None = None,
    log: bool = False,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """A 3-D surface of a landscape of two axes, the trained network and the recipe's marks (checkpoints) on it.

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
    return _picture("surface", {"": _plane(landscape, value, "surface")}, value, cap=cap, log=log, title=title, ax=ax)


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
    """Filled contours with lines, the trained network and the recipe's marks (checkpoints) on top.

    Args:
      landscape: a landscape of two axes, or ``{name: landscape}`` for a panel each with the same levels and colours.
      value: a name in ``landscape.values``.
      levels: about how many, at round values (evenly spaced in the logarithm if ``log``); or the levels, increasing.
      log: logarithmic levels.
      cap: no level lies above it; everything beyond has the last colour, and the colour bar says so.
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
        planes = {"": _plane(landscape, value, "contour")}
    return _picture("contour", planes, value, shared=True, levels=levels, cap=cap, log=log, title=title, ax=ax)


def heatmap(
    landscape: Landscape,
    value: str = "loss",
    *,
    cap: float | None = None,
    log: bool = False,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Every cell as it was computed: a rectangle around its coordinates, reaching half way to its neighbours.

    Args, Returns, Raises: as ``surface``; ``ax`` are plain axes.
    """
    planes = {"": _plane(landscape, value, "heatmap", least=1)}
    return _picture("heatmap", planes, value, cap=cap, log=log, title=title, ax=ax)


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
    """Landscapes side by side, e.g. the comparison of all modes: 4, 8, 10 or 14 panels on a page's width.

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
    if kind not in _DRAW:
        raise ValueError(f"kind={kind!r} is unknown; use one of {_listed(_DRAW)}")
    return _picture(kind, _planes(landscapes, value, kind), value, shared=shared, cap=cap, log=log, title=title)


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
    """A landscape of three axes as slices across the third: contour panels with the same levels.

    Args:
      landscape: a landscape of three axes, values ``(n1, n2, n3)``.
      slices: how many panels (all coordinates if there are fewer), evenly spread with both ends; the coordinate nearest
        0 is among them if the number is odd.
      value, levels, log, cap, title: as in ``contour``.

    Returns:
      the figure. The trained network is marked on the slice at 0, a checkpoint on the slice nearest to it.

    Raises:
      ValueError: as ``contour``; fewer than one slice.
    """
    if not isinstance(slices, int | np.integer) or slices < 1:
        raise ValueError(f"slices={slices!r} must be a whole number of 1 or more; give the most panels to draw")
    (x, y, cut), z = _read(landscape, value, 3, "volume")
    kept = _slices(cut, slices)
    heads = _heads(cut[kept])
    planes = {head: _assemble(landscape, x, y, z[:, :, k], 2, "volume") for head, k in zip(heads, kept)}
    for k, (name, plane) in zip(kept, planes.items()):
        near = [at for at in _marks(landscape, 3) if k == min(kept, key=lambda j: abs(cut[j] - at[3]))]
        here = [mark for mark in plane.marks if mark in [at[:3] for at in near]]
        planes[name] = plane._replace(marks=here, origin=plane.origin if np.isclose(cut[k], 0, atol=1e-9) else None)
    if len(planes) == 1:  # has no title of its own
        title = ": ".join(filter(None, (title, *planes)))
    return _picture("contour", planes, value, shared=True, levels=levels, cap=cap, log=log, title=title)


def _slices(cut: np.ndarray, number: int) -> list[int]:
    """Indices of ``number`` evenly spread coordinates, or all."""
    zero = int(np.argmin(abs(cut)))
    if number == 1:
        return [zero]
    kept = np.linspace(0, len(cut) - 1, min(number, len(cut))).round().astype(int)
    if number % 2 and number > 2 and zero not in kept:  # the ends stay
        kept[1 + int(np.argmin(abs(kept[1:-1] - zero)))] = zero
    return [int(k) for k in kept]


def _heads(cut: np.ndarray) -> list[str]:
    """Titles with 3 significant digits, or as many as tell the slices apart; no -0, no 1e-17."""
    for digits in range(3, 18):
        heads = [f"c = {round(c, 12) + 0.0:.{digits}g}" for c in cut]
        if len(set(heads)) == len(heads):
            break
    return heads


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


def spectral_density(
    spec: Spectrum | Mapping[str, Spectrum],
    *,
    pairs: Eigenpairs | Mapping[str, Eigenpairs] | None = None,
    scale: Literal["linear", "symlog"] = "linear",
    threshold: float | None = None,
    width: float = 0.01,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """The density of all eigenvalues on a logarithmic axis, bulk and outliers alike, with ticks where the ends are.

    The curve has mass 1 in the coordinate of the x axis, and all of it is on the page; the band is +- 1 standard error
    over the probes.

    Args:
      spec: what ``lla.spectrum`` returned, or several to compare: ``{"at initialization": ..., "trained": ...}``.
      pairs: eigenpairs (for several spectra: some under the same names) whose values are the ticks below the curve; by
        default these are the smallest and the largest node of every probe.
      scale: "linear", or "symlog", which shows the bulk, where 100 steps or more resolve it.
      threshold: below it "symlog" is about linear; by default 0.01 of the largest |node| of all.
      width: standard deviation of the Gaussian around a node, relative to the range of its spectrum.
      title: text above.
      ax: axes to draw into; by default a new figure.

    Returns:
      the figure. The lower limit of its density is below what a single eigenvalue makes.

    Raises:
      ValueError: no spectrum, or one with nodes that are not finite; pairs of other names; as ``lla.density``.
    """
    return _draw_density(spec, pairs, scale, threshold, width, title, ax)


def scree(pairs: Eigenpairs, *, log: bool = False, title: str | None = None, ax: Axes | None = None) -> Figure:
    """Eigenvalues by rank with bars of +- their residuals; colour and marker say the sign.

    Args:
      pairs: k eigenpairs, drawn in their order; an exact eigenvalue lies within each bar.
      log: logarithmic axis, for positive values.
      title: text above.
      ax: axes to draw into; by default a new figure.

    Returns:
      the figure. Ranks whose value is not finite are hatched.

    Raises:
      ValueError: not ``Eigenpairs``, no finite value, or ``log`` with values <= 0.
    """
    return _draw_scree(pairs, log, title, ax)


def layers(rows: Sequence[Layer], *, title: str | None = None) -> Figure:
    """Where in the network the curvature is: trace and extreme eigenvalues of every module side by side.

    Args:
      rows: what ``lla.per_layer`` returned. Bars of traces have +- 1 standard error, those of eigenvalues their
        residual. In brackets is the number of parameters.
      title: text above.

    Returns:
      the figure, one line per row: one column wide, or more for long names. A trace that is not finite says so.

    Raises:
      ValueError: no rows, or something else than rows of ``per_layer``.
    """
    return _draw_layers(rows, title)


def convexity(
    landscape: Landscape, *, cap: float | None = None, title: str | None = None, ax: Axes | None = None
) -> Figure:
    """How much negative curvature there is over a plane: |lambda_min / lambda_max|, the colours starting at 0.

    Every point that was computed is a cell; lines of equal ratio are between them. Where the smallest eigenvalue is
    positive, the loss is convex and the ratio an inverse condition number: a plus in the cell says so.

    Args:
      landscape: what ``lla.convexity`` returned, of two axes (a map), or one (a curve).
      cap: values above are drawn at ``cap``; the colour bar says so if there are any. For maps.
      title: text above.
      ax: axes to draw into; by default a new figure.

    Returns:
      the figure.

    Raises:
      ValueError: as ``heatmap``; ``cap`` with one axis.

    References: Li et al. 2018, arXiv 1712.09913, section 6.
    """
    if isinstance(landscape, Landscape) and landscape.dims == 1:
        if cap is not None:
            raise ValueError(f"cap={cap!r} is for maps, and this landscape has one axis; leave it out")
        fig = line(landscape, "convexity", title=title, ax=ax)
        (fig.axes[0] if ax is None else ax).set_ylim(bottom=0)
        return fig
    plane = _plane(landscape, "convexity", "convexity", least=1)
    extra = partial(_over_convexity, landscape=landscape)
    return _picture("heatmap", {"": plane}, "convexity", cap=cap, title=title, ax=ax, least=(0, _ROUNDING), extra=extra)
