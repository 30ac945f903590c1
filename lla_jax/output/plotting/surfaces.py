"""Draws a landscape of two axes as a surface, with marks that no wall of it hides."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from mpl_toolkits.mplot3d.art3d import Line3D, Poly3DCollection

from lla_jax.output.plotting import scales, style
from lla_jax.output.plotting.reading import Plane
from lla_jax.output.plotting.scales import Scale

_BEHIND = "0.72"  # the face of a mark behind the surface


def draw_surface(ax: Any, plane: Plane, scale: Scale, size: float) -> Any:
    """Draw the quadrilaterals that have four finite corners; a vertex that is not finite leaves a clean hole."""
    z = scales.heights(plane.z, scale.log, scale.cap)
    rows, cols = choose_vertices(z, plane.mesh)
    points = np.stack([*np.meshgrid(plane.x[rows], plane.y[cols], indexing="ij"), z[np.ix_(rows, cols)]], axis=-1)
    corners = np.stack([points[:-1, :-1], points[1:, :-1], points[1:, 1:], points[:-1, 1:]], axis=2).reshape(-1, 4, 3)
    corners = corners[np.isfinite(corners).all(axis=(1, 2))]
    drawn = Poly3DCollection(corners, cmap=style.CMAP, linewidths=0.2)
    drawn.set_array(corners[..., 2].mean(axis=1))
    drawn.set_clim(scale.lo, scale.hi)
    ax.computed_zorder = False  # marks stay visible behind the walls of a bowl
    ax.add_collection3d(drawn)
    drawn.set_edgecolor((0, 0, 0, 0.35) if len(corners) < 4000 else "face")  # "face" needs the axes
    _mark_surface(ax, plane, z, size)
    return drawn


def choose_vertices(z: np.ndarray, most: int) -> list[np.ndarray]:
    """Indices (rows, columns) of the values that a mesh of at most ``most`` vertices per axis shows.

    They are evenly spaced from end to end, so that every vertex is a computed value, and neither a mean nor a bound;
    those nearest to the lowest value are moved to it, so that a narrow minimum is not lost.
    """
    lowest = np.unravel_index(np.nanargmin(z), z.shape) if np.isfinite(z).any() else (None,) * z.ndim
    return [_choose_indices(n, most, at) for n, at in zip(z.shape, lowest)]


def _choose_indices(n: int, most: int, lowest: Any) -> np.ndarray:
    chosen = np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))
    if lowest is not None and lowest not in chosen:  # which is an inner one, since the ends are chosen
        chosen[1 + int(np.argmin(abs(chosen[1:-1] - lowest)))] = lowest
    return chosen


class _Mark(Line3D):
    """A mark that is drawn on top of the surface: white, or grey while the surface lies between it and the eye.

    Args:
      at: the coordinates (a, b, height).
      hides: ``hides(points (n, 3)) -> (n,)``: whether the surface lies before a point, from where the eye is now.
      **shape: marker and its size.
    """

    def __init__(self, at: tuple[float, float, float], hides: Callable[[np.ndarray], np.ndarray], **shape: Any):
        super().__init__(*([x] for x in at), zorder=10, **(style.POINT | shape))
        self._at, self._hides = np.array([at]), hides

    def is_hidden(self) -> bool:
        """Whether the surface hides the mark, at the present angle."""
        return bool(self._hides(self._at)[0])

    def draw(self, renderer: Any) -> None:
        """Draw the mark; the axes may have been turned since it was made."""
        self.set_markerfacecolor(_BEHIND if self.is_hidden() else style.POINT["color"])
        super().draw(renderer)


def _mark_surface(ax: Any, plane: Plane, z: np.ndarray, size: float) -> None:
    """Draw marks on stems from the floor, so that their (a, b) can be read; grey where the surface hides them."""
    if not np.isfinite(plane.z).all():
        square = {"marker": "s", "color": "white", "markeredgecolor": "0.6", "linestyle": "none"}
        ax.plot([], [], [], label=f"hole: {style.hole_label(plane.incomplete)}", **square)
    points = [(name, a, b, "o", 0.55 * size) for name, a, b in plane.marks]
    if plane.origin == "point":
        name_at_origin = "".join(name for name, a, b in plane.marks if (a, b) == (0, 0))
        points = [(name_at_origin, 0.0, 0.0, "*", size), *(point for point in points if point[1:3] != (0, 0))]
    elif plane.origin == "line":
        at = np.stack([0 * plane.y, plane.y, heights_at(plane, z, 0 * plane.y, plane.y)], axis=-1)
        hidden = is_hidden_at(ax, plane, z, at)[:, None]
        ax.plot(*np.where(hidden, np.nan, at).T, label=f"{style.ORIGIN} (a = 0)", zorder=10, **style.ROW)
        ax.plot(*at.T, color="white", linewidth=0.8, linestyle=":", zorder=9)
    floor = ax.get_zlim()[0]
    if plane.evaluated is not None:  # on the floor, where they hide nothing of the surface
        label, dots = style.refined_label(plane.interpolated), style.dots(len(plane.evaluated)) | {"zorder": 0.5}
        ax.plot(*plane.evaluated.T, np.full(len(plane.evaluated), floor), label=label, **dots)
    for name, a, b, marker, points_size in points:
        (height,) = heights_at(plane, z, np.array([a]), np.array([b]))
        if not np.isfinite(height):
            continue
        mark = _Mark((a, b, height), partial(is_hidden_at, ax, plane, z), marker=marker, markersize=points_size)
        ax.plot([a, a], [b, b], [floor, height], color="0.15", linewidth=0.7, linestyle=(0, (2, 1.5)), zorder=9)
        ax.plot([a], [b], [floor], color="0.15", marker="x", markersize=3, markeredgewidth=0.7, zorder=9)
        ax.add_line(mark)
        if marker == "*":
            ax.plot([], [], [], marker=marker, markersize=points_size, label=style.ORIGIN, **style.POINT)
        if mark.is_hidden():
            grey = style.POINT | {"markerfacecolor": _BEHIND}
            ax.plot([], [], [], marker="o", markersize=0.55 * size, label="grey: behind the surface", **grey)
        if name:
            x, _, _, w = ax.get_proj() @ (a, b, height, 1)  # names lean towards the middle
            ax.text(a, b, height, f" {name} ", ha="right" if x / w > 0 else "left", zorder=11, **style.NAME)


def heights_at(plane: Plane, z: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
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


def is_hidden_at(ax: Any, plane: Plane, z: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Whether the surface lies between the eye and points ``(n, 3)`` on it: the line of sight crosses it."""
    eye = np.linalg.svd(ax.get_proj()[[0, 1, 3]])[2][-1]  # the point without a projection; orthographic: at infinity
    towards = np.sign(eye[3]) if abs(eye[3]) > 1e-12 else np.sign(eye[2] * ax.elev) or 1.0
    sight = towards * (eye[:3] - points * eye[3])
    low, high = np.array([ax.get_xlim(), ax.get_ylim(), ax.get_zlim()]).T
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # axes may differ by powers of ten
        leaves = np.nanmin((np.where(sight > 0, high, low) - points) / sight, axis=1)
        a, b, c = np.moveaxis(
            points[:, None] + np.linspace(0, 1, 300)[:, None] * (leaves[:, None] * sight)[:, None], -1, 0
        )
        above = (c - heights_at(plane, z, a, b)) / (high[2] - low[2])
    hidden: np.ndarray = (above > 0.01).any(axis=1) & (above < -0.01).any(axis=1)
    return hidden
