"""Draws what lies between two solutions: the barrier, the curve that connects them, and a band with its saddle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lla_jax.core.arguments import Misuse, misuse, show_value
from lla_jax.core.results import Landscape
from lla_jax.core.signatures import explained
from lla_jax.core.text import SIGN, pm
from lla_jax.output.plotting import projections as _projections
from lla_jax.output.plotting import reading, scales, style
from lla_jax.output.plotting.planes import picture
from lla_jax.output.plotting.reading import Plane
from lla_jax.output.plotting.scales import Levels
from lla_jax.output.plotting.trajectories import draw_curve
from lla_jax.paths.curves import Curve, fingerprints
from lla_jax.paths.losses.barriers import Barrier

_SHORTEST = 0.1  # of the range of all losses: the shortest barrier with an arrow
_ENDS = 1e-9  # how far the first and last t may be from 0 and 1


class _Losses(NamedTuple):
    """The losses along a curve as the picture shows them, one data set each."""

    name: str  # of the curve, "" for the only one
    t: np.ndarray
    values: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]
    heights: dict[str, tuple[float, float, float]]  # barrier, its error (NaN where unknown), its t


@explained
def barrier(
    b: Barrier | Landscape | Mapping[str, Barrier | Landscape],
    value: str = "loss",
    *,
    log: bool = False,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw the loss between two solutions, and the barrier: how far it rises above the line between the ends' losses.

    Several curves between the same ends, such as the straight line and a trained Bezier curve, are compared on one
    axis. Data sets given as ``extra_data`` are drawn dashed, with their own barriers in the legend.

    Args:
      b: what ``lla.paths.barrier`` returned; or the landscape of ``lla.paths.evaluate(curve, ...)``, whose barrier is
        that of its points and has no error; or several of these, ``{name: ...}``.
      value: a name in ``b.values``; of several data sets those whose names end in it, such as "test_loss".
      log: logarithmic axis.
      title: text above.
      ax: axes to draw into; by default a new figure.

    Returns:
      the figure. Bands are +- 1 standard error.

    Raises:
      ValueError: something else than a barrier or a landscape of one axis from t = 0 to 1; an unknown ``value``, or one
        without finite values.

    References: Entezari et al. 2021, arXiv 2110.06296; Garipov et al. 2018, arXiv 1802.10026.
    """
    if isinstance(b, Mapping):
        if not b:
            raise misuse("b", b, "one barrier or more, {name: lla.paths.barrier(...)}")
        curves = [_read_losses(f"b[{name!r}]", str(name), each, value) for name, each in b.items()]
    else:
        curves = [_read_losses("b", "", b, value)]
    drawn = scales.finite([z for each in curves for z in each.values.values()], value, log)
    fig, canvas = style.canvas(ax, 2.9)
    for k, each in enumerate(curves):
        _draw_losses_between(canvas, each, value, style.COLOURS[k % 7], least=_SHORTEST * float(np.ptp(drawn)))
    canvas.set_xlim(0, 1)
    if log:
        scales.set_log(canvas)
    if any(np.isfinite(error).any() for each in curves for error in each.errors.values()):
        style.explain_errors(canvas)
    canvas.set_xlabel("t, from one solution (0) to the other (1)", fontsize=style.SIZE)
    _finish(fig, canvas, reading.label(value), title, outside=ax is None)
    return fig


def _read_losses(argument: str, name: str, given: Any, value: str) -> _Losses:
    """The losses of a barrier, or of a landscape along a curve."""
    if isinstance(given, Barrier):
        t, values, errors = np.asarray(given.coords, float), given.values, given.errors
    elif isinstance(given, Landscape) and given.dims == 1:
        t, values, errors = np.asarray(given.coords[0], float), given.values, given.stderr
    else:
        rule = "what lla.paths.barrier returned, or a landscape of one axis from lla.paths.evaluate(curve, ...)"
        raise reading.wrong_object(argument, given, rule)
    if not isinstance(value, str) or value not in values:
        raise misuse("value", value, f"a name of {argument}.values: {reading.quote(values)}")
    order = np.argsort(t)
    t = t[order]
    if len(t) < 2 or abs(t[0]) > _ENDS or abs(t[-1] - 1) > _ENDS:
        raise Misuse(
            argument,
            f"{show_value(given)} given, whose points do not reach from t = 0 to 1, where the ends are; evaluate it on "
            "these, or draw it by line",
        )
    chosen = [value, *sorted(each for each in values if each.endswith(f"_{value}"))]
    found = {each: np.where(np.isfinite(z := np.asarray(values[each], float)[order]), z, np.nan) for each in chosen}
    wrong = {each: np.asarray(errors[each], float)[order] for each in chosen if each in errors}
    return _Losses(name, t, found, wrong, {each: _height(given, each, t, z) for each, z in found.items()})


def _height(given: Barrier | Landscape, value: str, t: np.ndarray, z: np.ndarray) -> tuple[float, float, float]:
    """(the barrier of a value, its error or NaN, its t)."""
    if isinstance(given, Barrier):
        height = given.heights[value]
        return height.value, height.stderr, height.t
    above = z - ((1 - t) * z[0] + t * z[-1])
    if not np.isfinite(above).any():
        return (np.nan,) * 3
    k = int(np.nanargmax(above))
    return max(float(above[k]), 0.0), np.nan, float(t[k])


def _draw_losses_between(ax: Any, curve: _Losses, value: str, colour: str, least: float) -> None:
    """Draw the losses of a curve; for its first data set the line between the ends, and an arrow of the barrier.

    A barrier below ``least`` has no arrow, whose heads would hide it.
    """
    for name, z in curve.values.items():
        dash = "-" if name == value else "--"
        height, error, _ = curve.heights[name]
        words = pm(height, error, 3).replace(SIGN, " ± ") if np.isfinite(height) else "not finite"
        label = f"{style.join(curve.name, reading.label(name), by=': ')} (barrier {words})"
        draw_curve(ax, curve.t, z, curve.errors.get(name, np.full(len(z), np.nan)), colour, dash, label)
    z, (height, _, at) = curve.values[value], curve.heights[value]
    if not np.isfinite([z[0], z[-1]]).all():
        return
    chord = (1 - curve.t) * z[0] + curve.t * z[-1]
    ax.plot(curve.t, chord, color="0.4", linewidth=0.9, linestyle=":", label="line between the ends' losses")
    if np.isfinite(height) and height > least:
        foot = (1 - at) * z[0] + at * z[-1]
        arrow: dict[str, Any] = {"arrowstyle": "<->", "linewidth": 0.9, "color": colour, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", (at, foot), (at, foot + height), arrowprops=arrow)


@explained
def curve(
    plane: Landscape,
    seen: Any,
    value: str = "loss",
    *,
    levels: Levels = 20,
    log: bool = False,
    cap: float | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw a curve between two solutions, and the straight line, on the plane through three of its control points.

    Such a plane, after Garipov et al. 2018, comes from ``axes = lla.directions.between(a, b, p)`` with the middle
    control point p; a curve of three control points lies in it, and others are drawn as their projections.

    Args:
      plane: a landscape of two axes, such as ``lla.evaluate(loss, a, data, axes, grid)``. A grid that holds the control
        points is ``lla.paths.grid_around([seen, np.array([at for name, at in seen.recipe["marks"]])])``.
      seen: what ``lla.paths.project(curve, axes, params=a)`` returned, with the axes and centre of the plane; several
        curves between the same ends are ``{name: projection}``.
      value, levels, log, cap, title: as in ``contour``.
      ax: axes to draw into; by default a new figure.

    Returns:
      the figure.

    Raises:
      ValueError: as ``trajectory``.

    Warns:
      UserWarning: parts of the curve lie outside of the plane.

    References: Garipov et al. 2018, arXiv 1802.10026.
    """
    content = reading.plane(plane, value, "curve", argument="plane")
    runs = _projections.read(plane, seen, "curve")
    points = [_control_points(each) for _, _, each in _projections.named(seen)]
    note = _projections.warn_of_outside(runs, content, "points of the curve")
    fig, canvas = style.canvas(ax, 3.5)
    options: dict[str, Any] = {"levels": levels, "log": log, "cap": cap, "title": title}
    names = [entry for each in points for entry in each]
    picture("contour", {"": _without_marks(content, names)}, value, ax=canvas, legend=False, **options)
    for k, run in enumerate(runs):
        colour = "white" if len(runs) == 1 else style.RUNS[k % 6]
        far = float(np.nanmax(run.distance, initial=0))
        off = f" (up to {far:.2g} off the plane)" if far > 0 else ""
        canvas.plot(*run.coords.T, zorder=4, label=f"{run.name or 'curve'}{off}", **(style.ROW | {"color": colour}))
    ends = runs[0].coords[[0, -1]]
    canvas.plot(*ends.T, zorder=3.9, linestyle="--", label="straight line", **(style.ROW | {"linewidth": 0.9}))
    if left_out := _mark_points(canvas, content, names):
        note = style.join(note, f"{', '.join(left_out)} outside of the plane", by="\n")
    style.legend(fig, [canvas], outside=ax is None, title=note)
    return fig


def _control_points(projection: Any) -> list[tuple[str, float, float]]:
    """(name, a, b) of a curve's control points, or of the ends alone where the recipe does not tell them."""
    recorded = projection.recipe.get("marks") or [["A", projection.coords[0]], ["B", projection.coords[-1]]]
    try:
        return [(str(name), float(a), float(b)) for name, (a, b) in recorded]
    except (TypeError, ValueError) as error:
        raise misuse('seen.recipe["marks"]', recorded, "[[name, [a, b]], ...], or leave it out") from error


def _without_marks(plane: Plane, points: list[tuple[str, float, float]]) -> Plane:
    """The plane without marks of its own where the curve's are, and without a star for what is no single network."""
    room = 1e-6 * (np.ptp(plane.x) + np.ptp(plane.y))
    kept = [m for m in plane.marks if not any(np.hypot(m[1] - a, m[2] - b) < room for _, a, b in points)]
    return plane._replace(marks=kept, origin=None)


def _mark_points(ax: Axes, plane: Plane, points: list[tuple[str, float, float]]) -> list[str]:
    """Mark the control points that lie on the plane, each once, with its name; the names of the others."""
    seen: set[tuple[float, float]] = set()
    left_out = []
    for name, a, b in points:
        place = round(a, 9), round(b, 9)
        inside = plane.holds(a, b)
        if not inside:
            left_out.append(name)
        if place in seen or not inside:
            continue
        seen.add(place)
        is_end = not name.startswith("P")
        label = "ends" if is_end else "control points"
        marker = {"marker": "o", "markersize": 5} if is_end else {"marker": "^", "markersize": 5}
        ax.plot(a, b, label=label, zorder=5, clip_on=False, **(style.POINT | marker))
        right, top = a > (plane.x[0] + plane.x[-1]) / 2, b > (plane.y[0] + plane.y[-1]) / 2
        side: dict[str, Any] = {"ha": "right" if right else "left", "va": "top" if top else "bottom"}
        shift = (-4 if right else 4, -4 if top else 4)
        ax.annotate(name, (a, b), xytext=shift, textcoords="offset points", zorder=6, **side, **style.NAME)
    return left_out


@explained
def band(
    curve: Curve,
    landscape: Landscape | None = None,
    value: str = "loss",
    *,
    log: bool = False,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw the losses along a nudged elastic band by arc length, with its pivots and its saddle.

    Args:
      curve: a band, from ``lla.paths.connect(..., kind="band")``. The losses of its pivots and saddle are those of its
        training.
      landscape: what ``lla.paths.evaluate(curve, loss, data)`` returned, for the losses between the pivots.
      value: a name in ``landscape.values``.
      log: logarithmic axis.
      title: text above.
      ax: axes to draw into; by default a new figure.

    Returns:
      the figure.

    Raises:
      ValueError: a curve of another kind, a landscape of another curve, or neither that nor losses of the pivots.

    References: Draxler et al. 2018, arXiv 1803.00885.
    """
    if not isinstance(curve, Curve):
        raise reading.wrong_object("curve", curve, 'a band, from lla.paths.connect(..., kind="band")')
    if curve.kind != "band":
        rest = "draw lla.paths.evaluate(curve, loss, data) by barrier, or its plane by curve"
        raise Misuse("curve", f"{curve!r} given; band draws curves of kind 'band', and this is a {curve.kind}: {rest}")
    knots, losses = _pivots(curve)
    if landscape is None and losses is None:
        raise Misuse(
            "landscape",
            "None given, and the band keeps no losses of its pivots; pass lla.paths.evaluate(curve, loss, data)",
        )
    fig, canvas = style.canvas(ax, 2.9)
    drawn = [] if landscape is None else [_draw_between_pivots(canvas, curve, landscape, value)]
    if losses is not None:
        _draw_pivots(canvas, curve, knots, losses, joined=landscape is None)
        drawn.append(losses)
    if curve.saddle is not None and np.isfinite(curve.saddle.loss):
        look: dict[str, Any] = {"marker": "*", "markersize": 10, "zorder": 4, "clip_on": False, **style.POINT}
        canvas.plot(curve.lengths(curve.saddle.t), curve.saddle.loss, label=_describe(curve.saddle), **look)
    scales.finite(drawn, value, log)
    if log:
        scales.set_log(canvas)
    canvas.set_xlim(0, float(curve.lengths(1.0)))
    canvas.set_xlabel("arc length from a to b (norm over all parameters)", fontsize=style.SIZE)
    _finish(fig, canvas, reading.label(value), title, outside=ax is None)
    return fig


def _draw_between_pivots(ax: Axes, curve: Curve, landscape: Landscape, value: str) -> np.ndarray:
    """Draw the losses of a landscape along a band by arc length, with their errors; the losses."""
    (t,), z = reading.read(landscape, value, 1, "band", "landscape")
    _check_of_curve(landscape, curve, t)
    errors = landscape.stderr.get(value)
    order = np.argsort(landscape.coords[0])
    error = np.full(len(t), np.nan) if errors is None else np.asarray(errors, float)[order]
    draw_curve(ax, np.asarray(curve.lengths(t)), z, error, style.COLOURS[0], "-", reading.label(value))
    if np.isfinite(error).any():
        style.explain_errors(ax)
    return z


def _draw_pivots(ax: Axes, curve: Curve, knots: np.ndarray, losses: np.ndarray, joined: bool) -> None:
    """Draw the pivots of a band as dots, joined by lines where nothing else shows the losses between them."""
    look: dict[str, Any] = {"marker": "o", "markersize": 3.5, "color": style.COLOURS[1], "zorder": 3, "linewidth": 1.0}
    dash = "-" if joined else "none"
    ax.plot(curve.lengths(knots), losses, linestyle=dash, label="pivots (loss in training)", clip_on=False, **look)


def _pivots(curve: Curve) -> tuple[np.ndarray, np.ndarray | None]:
    """(t, losses) of a band's pivots; None where it does not keep their losses."""
    knots = np.asarray(curve.knots, float)
    losses = curve.history.get("pivot_loss")
    if losses is None or np.shape(losses) != knots.shape:
        return knots, None
    return knots, np.asarray(losses, float)


def _check_of_curve(landscape: Landscape, curve: Curve, t: np.ndarray) -> None:
    """Refuse a landscape that belongs to another curve, as far as its recipe tells."""
    directions = landscape.recipe.get("directions")
    points = directions.get("points") if isinstance(directions, Mapping) else None
    if (t < 0).any() or (t > 1).any() or (points is not None and list(points) != fingerprints(curve)):
        raise Misuse(
            "landscape",
            f"{show_value(landscape)} given, which is not along this band; pass "
            "lla.paths.evaluate(curve, loss, data) of the same curve",
        )


def _describe(saddle: Any) -> str:
    """What is known of the highest point of a band."""
    name = "saddle" if saddle.converged else "highest point"
    words = f"{name}: loss {saddle.loss:.4g}, |gradient| {saddle.gradient_norm:.1e}"
    return words if saddle.negative is None else f"{words},\n{saddle.negative} negative eigenvalues"


def _finish(fig: Any, ax: Axes, label: str, title: str | None, outside: bool) -> None:
    """Set labels, legend and title of a picture of losses along a curve."""
    ax.set_ylabel(label, fontsize=style.SIZE)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=scales.NICE))
    ax.tick_params(labelsize=style.SMALL)
    ax.yaxis.get_offset_text().set_fontsize(style.SMALL)
    style.legend(fig, [ax], outside=outside, columns=1)
    style.set_title(ax, title or "", 42, style.SIZE + 1)
