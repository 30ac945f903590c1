"""Draws where a training went: its path on a plane, its losses, and how much of it the plane shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from lla_jax.core.arguments import check_integer
from lla_jax.core.results import Landscape
from lla_jax.core.signatures import explained
from lla_jax.core.types import Directions
from lla_jax.output.plotting import projections as _projections
from lla_jax.output.plotting import reading, scales, style
from lla_jax.output.plotting.figures import new_figure
from lla_jax.output.plotting.planes import picture
from lla_jax.output.plotting.projections import Run
from lla_jax.output.plotting.reading import Plane
from lla_jax.output.plotting.scales import Levels

START, END = "s", "D"
"""The markers of the first and the last checkpoint."""

_ARROWS = 3
_ARROW: dict[str, Any] = {
    "arrowstyle": "-|>",
    "mutation_scale": 9,
    "edgecolor": "black",
    "linewidth": 0.6,
    "shrinkA": 0,
    "shrinkB": 0,
}
_WIDE = 20.0  # ratio of losses from which on their axis is logarithmic: a linear one shows the start alone
_MOST_DOTS = 300  # checkpoints that have a dot each; of more, evenly spaced ones


@explained
def trajectory(
    plane: Landscape,
    seen: Any,
    value: str = "loss",
    *,
    levels: Levels = 20,
    log: bool = False,
    cap: float | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the path of a training on the contours of a plane, and below it its losses by step.

    The path is that of the projections, with arrows in the direction of time. The colour of a checkpoint is its
    distance off the plane: where it is large, the contours do not show the loss of the network. So both losses are
    drawn: that of the checkpoint itself, and that of its projection, which is the one the contours show.

    Args:
      plane: a landscape of two axes, such as ``lla.evaluate(loss, path[-1], data, axes, lla.paths.grid_around(seen))``.
      seen: what ``lla.paths.project(path, axes, ...)`` returned, with the axes and centre of the plane; or a list of
        several runs, or a dict of them by name.
      value: a name in ``plane.values``, for the contours.
      levels, cap: as in ``contour``.
      log: logarithmic levels and losses.
      title: text above.

    Returns:
      the figure, of one column. Bands are +- 1 standard error. Without losses in ``seen`` the distance is drawn below.

    Raises:
      ValueError: as ``contour``; no projection, one of other axes or another centre than the plane's.

    Warns:
      UserWarning: checkpoints lie outside of the plane.
    """
    content = reading.plane(plane, value, "trajectory", argument="plane")
    runs = _projections.read(plane, seen, "trajectory")
    note = _projections.warn_of_outside(runs, content)
    content = _projections.without_star_at_ends(runs, content)
    fig = new_figure(style.SINGLE, 5.2)
    upper, lower = fig.subplots(2, 1, height_ratios=(2.3, 1))
    options: dict[str, Any] = {"levels": levels, "log": log, "cap": cap, "title": title}
    picture("contour", {"": content}, value, ax=upper, legend=False, **options)
    draw_paths(upper, content, runs)
    if all((run.distance == 0).all() for run in runs):
        note = style.join(note, "all checkpoints lie on the plane", by="\n")
    else:
        distance_bar(fig, upper, runs)
    draw_losses(lower, runs, log)
    style.legend(fig, [upper, lower], outside=True, title=note, columns=2)
    return fig


# --- the path on the plane


def draw_paths(ax: Axes, plane: Plane, runs: Sequence[Run]) -> None:
    """Draw paths on a plane: lines with arrows, dots whose colour is the distance, and the two ends."""
    norm = distances(runs)
    for k, run in enumerate(runs):
        colour = "white" if len(runs) == 1 else style.RUNS[k % 6]
        inside = run.is_inside(plane)
        ax.plot(*run.coords.T, zorder=4, label=run.name or None, **(style.ROW | {"color": colour}))
        for tail, head in arrows(run.coords[inside], ax):
            ax.annotate("", head, tail, zorder=4.5, arrowprops=_ARROW | {"facecolor": colour})
        dots = np.unique(np.linspace(0, len(inside) - 1, min(len(inside), _MOST_DOTS)).round().astype(int))
        dots = dots[inside[dots]]
        size = float(np.clip(500 / max(len(dots), 1), 4, 14))
        look: dict[str, Any] = {"cmap": style.FAR, "norm": norm, "edgecolors": "black", "linewidths": 0.4}
        (a, b), far = run.coords.T, run.distance
        ax.scatter(a[dots], b[dots], s=size, c=far[dots], zorder=4.2, **look)
        for i, marker, name in ((0, START, "start"), (-1, END, "end")):
            if inside[i]:
                label = f"{name}: step {run.steps[i]:,.0f}" if len(runs) == 1 else name
                face = {"markerfacecolor": ScalarMappable(norm, style.FAR).to_rgba(far[i])}
                ax.plot(a[i], b[i], marker=marker, markersize=5, zorder=4.6, label=label, **(style.POINT | face))


def distances(runs: Sequence[Run]) -> Normalize:
    """The scale of the colours of distances off the plane, from 0 to the largest of all runs."""
    known = np.concatenate([run.distance for run in runs])
    known = known[np.isfinite(known)]
    return Normalize(0, float(known.max()) if known.size and known.max() > 0 else 1.0)


def distance_bar(fig: Any, ax: Axes, runs: Sequence[Run]) -> None:
    """Draw the colour bar of the distances below a plane."""
    bar = fig.colorbar(
        ScalarMappable(distances(runs), style.FAR), ax=ax, location="bottom", fraction=0.05, pad=0.02, aspect=35
    )
    bar.set_label("distance off the plane (norm over all parameters)", fontsize=style.SMALL)
    bar.ax.tick_params(labelsize=style.SMALL)
    bar.ax.xaxis.get_offset_text().set_fontsize(style.SMALL)
    bar.locator = MaxNLocator(5, steps=scales.NICE)


def arrows(
    coords: np.ndarray, ax: Axes, number: int = _ARROWS
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """(tail, head) of arrows at equal lengths along a path (n, 2), each over a stretch of it; none on a short one.

    Lengths are those on the page, and the stretch evens out the zigzag of noise.
    """
    if len(coords) < 2:
        return []
    low, high = np.array([ax.get_xlim(), ax.get_ylim()]).T
    lengths = np.r_[0, np.cumsum(np.linalg.norm(np.diff((coords - low) / (high - low), axis=0), axis=1))]
    if lengths[-1] < 0.05:
        return []
    centres = (np.arange(number) + 0.7) / (number + 0.4) * lengths[-1]
    half = min(0.03, 0.04 * lengths[-1])

    def at(length: float) -> tuple[float, float]:
        return float(np.interp(length, lengths, coords[:, 0])), float(np.interp(length, lengths, coords[:, 1]))

    return [(at(c - half), at(c + half)) for c in centres]


# --- the losses by step


def draw_losses(ax: Axes, runs: Sequence[Run], log: bool) -> None:
    """Draw the losses of checkpoints and of their projections by step, with their errors; or the distances."""
    known = any(np.isfinite(z).any() for run in runs for z in (run.loss, run.projected))
    for k, run in enumerate(runs):
        pair = style.COLOURS[:2] if len(runs) == 1 else [style.RUNS[k % 6]] * 2
        if not known:
            ax.plot(run.steps, run.distance, color=pair[0], linewidth=1.2)
            continue
        if np.isfinite(run.recorded).any():
            ax.plot(run.steps, run.recorded, color="0.55", linewidth=0.7, label="recorded in training", zorder=1)
        draw_curve(ax, run.steps, run.loss, run.error, pair[0], "-")
        draw_curve(ax, run.steps, run.projected, run.projected_error, pair[1], "--")
    if known:
        pair = style.COLOURS[:2] if len(runs) == 1 else ["0.4"] * 2
        for label, colour, dash in zip(("loss of the checkpoint", "loss of its projection"), pair, ["-", "--"]):
            ax.plot([], [], color=colour, linestyle=dash, linewidth=1.2, label=label)
        if any(np.isfinite(z).any() for run in runs for z in (run.error, run.projected_error)):
            style.explain_errors(ax)
        arrays = [z for run in runs for z in (run.loss, run.projected)]
        values = scales.finite(arrays, "loss", log)
        if log or (values.min() > 0 and values.max() > _WIDE * values.min()):
            scales.set_log(ax)
    ax.set_xlabel("training step", fontsize=style.SIZE)
    ax.set_ylabel("loss" if known else "distance off the plane", fontsize=style.SIZE)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=scales.NICE, integer=True))
    ax.tick_params(labelsize=style.SMALL)
    ax.yaxis.get_offset_text().set_fontsize(style.SMALL)


def draw_curve(
    ax: Axes, x: np.ndarray, y: np.ndarray, error: np.ndarray, colour: str, dash: str, label: str = ""
) -> None:
    """Draw a curve with the band of +- 1 standard error, where it has errors; nothing where no value is known."""
    if not np.isfinite(y).any():
        return
    ax.plot(
        x, y, color=colour, linestyle=dash, linewidth=1.2, label=label or None, marker="." * (len(x) < 12), markersize=3
    )
    if np.isfinite(error).any():
        ax.fill_between(x, y - error, y + error, color=colour, alpha=0.25, linewidth=0)


# --- how much of a path its components show


@explained
def explained_variance(
    axes: Directions, *, components: int = 10, title: str | None = None, ax: Axes | None = None
) -> Figure:
    """Draw how much of a path each principal component explains, beside the shares that a random walk would have.

    A random walk of many steps in many dimensions has the shares 6 / (pi^2 k^2): about 61, 15 and 7 %. So a few large
    shares alone say nothing about training.

    Args:
      axes: what ``lla.paths.pca`` returned as directions.
      components: the most components to draw.
      title: text above.
      ax: axes to draw into; by default a new figure.

    Returns:
      the figure: bars of the shares, and lines of their sums.

    Raises:
      ValueError: other directions than those of ``lla.paths.pca``.

    References: Antognini and Sohl-Dickstein 2018, arXiv 1806.08805.
    """
    check_integer("components", components, remedy="the most components to draw, such as 10")
    recipe = axes.recipe if isinstance(axes, Directions) else {}
    shares, walk = (_shares(axes, recipe, name) for name in ("explained_variance", "random_walk"))
    fig, canvas = style.canvas(ax, 2.5)
    k = min(components, len(shares))
    rank = 1 + np.arange(k)
    for z, name, colour, shift, dash in (
        (shares, "this path", style.COLOURS[0], -0.2, "-"),
        (walk, "random walk", "0.65", 0.2, "--"),
    ):
        top = np.r_[z[:k], np.zeros(max(0, k - len(z)))]
        canvas.bar(rank + shift, 100 * top, 0.4, color=colour, label=name)
        canvas.plot(
            rank,
            100 * np.cumsum(top),
            dash,
            color=colour,
            marker=".",
            markersize=4,
            linewidth=1.1,
            label=f"{name}, sum",
        )
    canvas.set_ylim(0, 105)
    canvas.set_xlim(0.4, k + 0.6)
    canvas.xaxis.set_major_locator(FixedLocator([float(r) for r in rank]) if k <= 12 else MaxNLocator(10, integer=True))
    canvas.set_xlabel("principal component", fontsize=style.SIZE)
    canvas.set_ylabel("explained variance (%)", fontsize=style.SIZE)
    canvas.tick_params(labelsize=style.SMALL)
    style.legend(fig, [canvas], outside=ax is None, columns=2)
    style.set_title(canvas, title or "", 42, style.SIZE + 1)
    return fig


def _shares(axes: Any, recipe: Mapping[str, Any], name: str) -> np.ndarray:
    """The shares of an entry of the recipe of principal components."""
    try:
        shares = np.asarray(recipe[name], float)
        if shares.ndim != 1 or not shares.size or not np.isfinite(shares).all():
            raise ValueError
    except (LookupError, TypeError, ValueError):
        rule = f"principal components of a path, whose recipe has {name!r}: axes, coords = lla.paths.pca(path)"
        raise reading.wrong_object("axes", axes, rule) from None
    return shares
