"""How ``plotting`` reads a landscape, scales it and draws it: everything that is not a user's to call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from lla_jax._types import Landscape

Kind = Literal["surface", "contour", "heatmap"]
Origin = Literal["point", "line"] | None
Levels = int | Sequence[float] | np.ndarray

_CMAP = "viridis"  # perceptually uniform and readable with every colour vision deficiency
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
_DASHES = ("-", "--", "-.", ":")
_SIZE, _SMALL = 8, 7  # points, in a figure printed at its own size
_SINGLE, _DOUBLE, _DPI = 3.5, 7.0, 300
_MOST = 121  # vertices per axis of a surface; odd, so that a centre cell stays
_NICE = (1, 2, 2.5, 5, 10)
_HATCH: dict[str, Any] = {"facecolor": "0.88", "edgecolor": "0.55", "hatch": "/////", "linewidth": 0.0}
_POINT: dict[str, Any] = {"color": "white", "markeredgecolor": "black", "markeredgewidth": 0.6, "linestyle": "none"}
_ROW: dict[str, Any] = {
    "color": "white",
    "linestyle": "--",
    "linewidth": 1.0,
    "path_effects": [withStroke(linewidth=2.2, foreground="black")],
}
_NAME: dict[str, Any] = {"fontsize": _SMALL, "path_effects": [withStroke(linewidth=1.6, foreground="white")]}
_LETTERS = "abc"
_KINDS = {
    "adam_moments": "Adam moment",
    "between": "difference of checkpoints",
    "pca": "principal component",
    "orthogonal": "orthogonal pair",
}
_ORIGIN = "trained network"


class _Plane(NamedTuple):
    """One 2-axis picture's content: increasing coordinates, values (NaN where not finite), and what to mark."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    names: tuple[str, str]  # "a (units of d1)"
    kind: str  # "random, filter-normalized"
    marks: list[tuple[str, float, float]]
    origin: Origin  # where the rule gives the network itself: (0, 0), or all of a = 0 (adam)
    complete: bool


class _Scale(NamedTuple):
    """How values become heights and colours; ``lo``, ``hi`` and ``levels`` are log10 of the values if ``log``."""

    lo: float
    hi: float
    levels: np.ndarray
    extend: Literal["neither", "min", "max", "both"]
    log: bool
    cap: float | None
    label: str


# ------------------------------------------------------------------------------------------- reading a landscape


def _read(landscape: Landscape, value: str, dims: int, who: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Increasing coordinates, and ``values[value]`` with NaN for what is not finite: a copy."""
    if landscape.dims != dims:
        use = {1: "line or train_test", 2: "surface, contour or heatmap", 3: "volume"}.get(landscape.dims, "a slice")
        raise ValueError(f"{who} draws {dims} axes, this landscape has {landscape.dims}: {landscape.shape}; use {use}")
    if value not in landscape.values:
        raise ValueError(f"value={value!r} is not in this landscape; it has {_listed(landscape.values)}")
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
    names = _axis_name(landscape, 0), _axis_name(landscape, 1)
    return _Plane(x, y, z, names, _kind(landscape), marks, origin, _complete(landscape))


def _finite(arrays: Iterable[np.ndarray], value: str, log: bool) -> np.ndarray:
    """All finite entries; there must be one, and none <= 0 under a logarithm."""
    everything = np.concatenate([np.ravel(z) for z in arrays])
    finite = everything[np.isfinite(everything)]
    if not finite.size:
        raise ValueError(f"value={value!r} has no finite cell among {everything.size}: there is nothing to draw")
    if log and finite.min() <= 0:
        raise ValueError(
            f"log=True needs values above 0, but {value!r} has {int((finite <= 0).sum())} at or below it "
            f"(smallest {finite.min():.4g}); use log=False"
        )
    return finite


def _complete(landscape: Landscape) -> bool:
    return landscape.recipe.get("complete", True) is not False


def _origin(landscape: Landscape) -> Origin:
    """Where the trained network is: all of a = 0 under the adam rule; nobody knows under a rule of the user's."""
    rule = str(landscape.recipe.get("rule", "add"))
    return "point" if rule == "add" else "line" if rule.startswith("adam") else None


def _directions(landscape: Landscape) -> Mapping[str, Any]:
    recipe = landscape.recipe.get("directions")
    return recipe if isinstance(recipe, Mapping) else {}


def _marks(landscape: Landscape, dims: int) -> list[tuple[Any, ...]]:
    """The recipe's named points ``(name, a, b, ...)`` that lie in the plane; ``dims`` coordinates, filled up with 0."""
    marks = []
    for name, at in _directions(landscape).get("marks") or ():
        if not np.any(at[landscape.dims :]):  # else it is off the plane
            marks.append((str(name), *[float(t) for t in [*at, 0, 0, 0][:dims]]))
    return marks


def _names(landscape: Landscape) -> list[str]:
    return [str(name) for name in _directions(landscape).get("names") or []]


def _axis_name(landscape: Landscape, k: int) -> str:
    """E.g. "a (units of d1)", with the recipe's name of the direction where it has one."""
    names = _names(landscape)
    return f"{_LETTERS[k]} (units of {names[k] if k < len(names) else f'd{k + 1}'})"


def _kind(landscape: Landscape) -> str:
    """E.g. "random, filter-normalized"; empty where the recipe does not say."""
    recipe = _directions(landscape)
    kind, steps = recipe.get("kind"), recipe.get("normalize") or []
    by = [str(step.get("by")) for step in steps if isinstance(step, Mapping)]
    says = [] if not kind or kind in {"join", *_names(landscape)} else [_KINDS.get(kind, kind.replace("_", " "))]
    return ", ".join(says + [f"{name}-normalized" for name in by if name.lower() != "none"])


def _long(name: str, kind: str) -> str:
    text = f"{name[:-1]}: {kind})" if kind else name
    return text if len(text) <= 44 else f"{name[:-1]}:\n{fill(f'{kind})', 44)}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _pretty(name: str) -> str:
    return name.replace("_", " ")


# ----------------------------------------------------------------------------------------------------- the scale


def _scale(planes: Iterable[_Plane], value: str, levels: Levels, log: bool, cap: float | None) -> _Scale:
    """One scale for all of ``planes``: limits, contour levels, and the label that says what was done to the values."""
    finite = _finite([plane.z for plane in planes], value, log)
    if cap is not None and not (np.isfinite(cap) and (cap > 0 or not log)):
        raise ValueError(f"cap={cap!r} must be a finite number{' above 0, for log=True' if log else ''}")
    clipped = cap is not None and bool(finite.max() > cap)
    notes = (["log scale"] if log else []) + ([f"clipped at {cap:g}"] if clipped else [])
    shown = _shown(finite, log, cap)
    lo, hi = _apart(float(shown.min()), float(shown.max()))
    steps = _levels(levels, lo, hi, log, clipped)
    full = _shown(finite, log, None)  # contours are not clipped: what lies beyond the levels is coloured like the last
    below, above = full.min() < steps[0], full.max() > steps[-1]
    extend: Any = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[int(below), int(above)]
    return _Scale(lo, hi, steps, extend, log, cap, _pretty(value) + (f" ({', '.join(notes)})" if notes else ""))


def _shown(z: np.ndarray, log: bool, cap: float | None) -> np.ndarray:
    """Heights of the picture: ``min(z, cap)``, and its log10 if ``log``. A new array; values are never touched."""
    z = z if cap is None else np.minimum(z, cap)
    return np.log10(z) if log else z


def _apart(lo: float, hi: float) -> tuple[float, float]:
    """The limits, moved apart for a constant: its rounding noise is not magnified into a landscape."""
    pad = 0.0 if hi - lo > 1e-12 * max(abs(lo), abs(hi)) else 0.05 * max(abs(lo), 1e-6)
    return lo - pad, hi + pad


def _levels(levels: Levels, lo: float, hi: float, log: bool, clipped: bool) -> np.ndarray:
    """Contour levels on the picture's scale: the caller's, or about ``levels`` of them over [lo, hi]."""
    if np.ndim(levels):
        given = np.asarray(levels, float)
        if given.ndim != 1 or len(given) < 2 or not (np.diff(given) > 0).all() or (log and given[0] <= 0):
            need = "2 or more increasing numbers" + (" above 0, for log=True" if log else "")
            raise ValueError(f"levels={levels!r} must be {need}, or how many")
        return np.log10(given) if log else given
    if not levels >= 1:  # type: ignore[operator]
        raise ValueError(f"levels={levels!r} must be 1 or more, or an increasing array")
    if log:
        return np.linspace(lo, hi, int(levels) + 1)  # type: ignore[arg-type]
    steps: np.ndarray = np.asarray(MaxNLocator(int(levels), steps=_NICE).tick_values(lo, hi))  # type: ignore[arg-type]
    return np.append(steps[steps < hi], hi) if clipped else steps


def _ticks(lo: float, hi: float, log: bool, most: int) -> tuple[np.ndarray, list[str]]:
    """Round values in [lo, hi] with their labels; on a log10 scale the positions are logarithms of round values."""
    near = 1e-9 * (hi - lo)
    if log:
        decades = np.arange(np.floor(lo), np.ceil(hi) + 1)
        step = max(1, len(decades) // most)
        for subs in ((1,), (1, 3), (1, 2, 5)):
            at = np.ravel(np.add.outer(decades[::step], np.log10(subs)))
            at = at[(at >= lo - near) & (at <= hi + near)]
            if len(at) >= 4 or step > 1:
                return at, [f"{10**t:.6g}" for t in at]
    values = np.asarray(MaxNLocator(most, steps=_NICE).tick_values(*((10**lo, 10**hi) if log else (lo, hi))))
    at = np.log10(values[values > 0]) if log else values
    at = at[(at >= lo - near) & (at <= hi + near)]
    return at, _labels(10**at if log else np.where(abs(at) > near, at, 0.0))


def _labels(values: np.ndarray) -> list[str]:
    """As many decimals as tell the values apart, the same for all; exponents for the very large and small."""
    if not len(values) or not 1e-4 <= abs(values).max() < 1e5:
        return [f"{v:.6g}" for v in values]
    wrong = (1e-3 * np.ptp(values) / len(values)) or 1e-9
    digits = next((d for d in range(12) if (abs(values.round(d) - values) < wrong).all()), 12)
    return [f"{v:.{digits}f}" for v in values]


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
) -> Figure:
    """Draw each plane on its own scale, or all on one; legend, titles and colour bars around them."""
    common = _scale(planes.values(), value, levels, log, cap)  # also the checks
    if ax is not None and len(planes) > 1:
        raise ValueError(f"ax takes one landscape, not {len(planes)}; leave ax out")
    if ax is not None and (kind == "surface") != hasattr(ax, "plot_surface"):
        need = 'fig.add_subplot(projection="3d")' if kind == "surface" else "plain 2-D axes"
        raise ValueError(f"ax of type {type(ax).__name__} does not suit a {kind}; use {need}")
    solo, shared = len(planes) == 1, shared or len(planes) == 1
    fig, axes = (ax.figure, [ax]) if ax is not None else _page(len(planes), kind)
    drawn = None
    for axis, (name, plane) in zip(axes, planes.items()):
        drawable = bool(np.isfinite(plane.z).any())
        scale = common if shared or not drawable else _scale([plane], value, levels, log, cap)
        picture = _DRAW[kind](axis, plane, scale, 8 if solo else 6)
        _frame(axis, plane, scale, kind, solo)
        heading = title if solo else name if drawable else f"{name}: no finite cell"
        _set_title(axis, heading, plane.complete, _SIZE + 1 if solo else _SMALL)
        if drawable and not shared and kind != "surface":  # a surface's own z axis is its scale
            _colour_bar(fig, picture, [axis], scale, kind, label=False)
        drawn = picture if drawable else drawn
    if shared:
        _colour_bar(fig, drawn, axes, common, kind, label=True)
    if not solo and (title or not shared):
        own = "" if shared else f"{common.label}, each panel on its own scale"
        fig.suptitle(": ".join(part for part in (title, own) if part), fontsize=_SIZE + 1)
    kinds = {plane.kind for plane in planes.values()} if kind == "surface" and solo else set()
    _legend(fig, axes, outside=ax is None, title="".join(kinds))
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
    ax.computed_zorder = False  # marks stay visible in front of the walls of a bowl
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


def _holes(complete: bool) -> str:
    return "not finite" if complete else "not finite or not computed"


def _hatch(ax: Any, plane: _Plane) -> None:
    """A hatched ground under the picture: it shows through wherever there is no finite cell."""
    if not np.isfinite(plane.z).all():
        ax.add_patch(Rectangle((0, 0), 1, 1, transform=ax.transAxes, zorder=0, label=_holes(plane.complete), **_HATCH))


def _mark_flat(ax: Any, plane: _Plane, size: float) -> None:
    if plane.origin == "point":
        ax.plot(0, 0, marker="*", markersize=size, label=_ORIGIN, clip_on=False, zorder=5, **_POINT)
    elif plane.origin == "line":
        ax.axvline(0, label=f"{_ORIGIN} (a = 0)", **_ROW)
    for name, a, b in plane.marks:
        if (a, b) != (0, 0) or plane.origin != "point":
            ax.plot(a, b, marker="o", markersize=0.55 * size, clip_on=False, zorder=5, **_POINT)
        right, top = a > (plane.x[0] + plane.x[-1]) / 2, b > (plane.y[0] + plane.y[-1]) / 2
        side: dict[str, Any] = {"ha": "right" if right else "left", "va": "top" if top else "bottom"}
        shift = (-3 if right else 3, -3 if top else 3)  # names lean towards the middle, inside the picture
        ax.annotate(name, (a, b), xytext=shift, textcoords="offset points", zorder=6, **side, **_NAME)


def _mark_surface(ax: Any, plane: _Plane, z: np.ndarray, size: float) -> None:
    def height(a: float, b: float) -> float:
        return float(np.interp(b, plane.y, [np.interp(a, plane.x, column) for column in z.T]))

    if not np.isfinite(plane.z).all():
        square = {"marker": "s", "color": "white", "markeredgecolor": "0.6", "linestyle": "none"}
        ax.plot([], [], [], label=f"hole: {_holes(plane.complete)}", **square)
    if plane.origin == "point" and np.isfinite(height(0, 0)):
        ax.plot([0], [0], [height(0, 0)], marker="*", markersize=size, label=_ORIGIN, zorder=10, **_POINT)
    elif plane.origin == "line":
        heights = [height(0, b) for b in plane.y]
        ax.plot(np.zeros_like(plane.y), plane.y, heights, label=f"{_ORIGIN} (a = 0)", zorder=10, **_ROW)
    for name, a, b in plane.marks:
        if np.isfinite(height(a, b)):
            if (a, b) != (0, 0) or plane.origin != "point":
                ax.plot([a], [b], [height(a, b)], marker="o", markersize=0.55 * size, zorder=10, **_POINT)
            ax.text(a, b, height(a, b), f" {name}", zorder=11, **_NAME)


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
    ax.set_xlim(*(x if len(x) > 1 else _edges(x))[[0, -1]])
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=_NICE))
    ax.set_xlabel(_long(_axis_name(landscape, 0), _kind(landscape)), fontsize=_SIZE)
    ax.tick_params(labelsize=_SMALL)
    for axis in axes:
        axis.yaxis.get_offset_text().set_fontsize(_SMALL)
    thin: dict[str, Any] = {"color": "0.4", "linestyle": ":", "linewidth": 1}
    if x[0] <= 0 <= x[-1] and _origin(landscape):
        ax.axvline(0, label=_ORIGIN, **thin)
    if any(name in landscape.stderr for name in names):  # one neutral entry for the bands of all curves
        ax.plot([], [], color="0.5", alpha=0.4, linewidth=6, label="± 1 standard error")
    for first, end in np.flatnonzero(np.diff(np.r_[0, bad, 0])).reshape(-1, 2):  # runs of cells
        ax.axvspan(*_edges(x)[[first, end]], zorder=0, label=_holes(_complete(landscape)), **_HATCH)
    for name, a in _marks(landscape, 1):
        if x[0] <= a <= x[-1]:
            ax.axvline(a, **thin)
            right = a > (x[0] + x[-1]) / 2
            side: dict[str, Any] = {"xytext": (-2 if right else 2, -2), "ha": "right" if right else "left", "va": "top"}
            side |= {"xycoords": ax.get_xaxis_transform(), "textcoords": "offset points"}
            ax.annotate(name, (a, 1), **side, **_NAME)
    _legend(fig, axes, outside=outside)
    _set_title(ax, title, _complete(landscape), _SIZE + 1)


def _page(n: int, kind: Kind) -> tuple[Any, list[Any]]:
    """A single-column figure for one panel, else rows of up to four on a double column."""
    columns = {1: 1, 2: 2, 3: 3, 4: 2, 5: 3, 6: 3, 9: 3}.get(n, 4)
    rows = -(-n // columns)
    size = (_SINGLE, 2.9) if n == 1 else (_DOUBLE, rows * 0.86 * _DOUBLE / columns + 0.4)
    fig = Figure(figsize=size, dpi=_DPI, layout="constrained")
    projection = "3d" if kind == "surface" else None
    return fig, [fig.add_subplot(rows, columns, k + 1, projection=projection) for k in range(n)]


def _frame(ax: Any, plane: _Plane, scale: _Scale, kind: Kind, solo: bool) -> None:
    """Limits, ticks and labels; among panels there is room for few ticks and the axes' letters only."""
    flat = kind != "surface"
    x, y = (_edges(plane.x), _edges(plane.y)) if kind == "heatmap" else (plane.x, plane.y)
    ax.set_xlim(x[0], x[-1])
    ax.set_ylim(y[0], y[-1])
    for axis, name in zip((ax.xaxis, ax.yaxis), plane.names):
        axis.set_major_locator(MaxNLocator(5 if solo and flat else 3, steps=_NICE))
        said = (_long(name, plane.kind) if flat else name) if solo else name[0]
        axis.set_label_text(said, fontsize=_SIZE if solo else _SMALL)
        axis.labelpad = 2 if flat else -6 if solo else -11
    ax.tick_params(labelsize=_SMALL)
    if flat:
        return
    ax.set_zlim(scale.lo, scale.hi)
    ax.set_zticks(*_ticks(scale.lo, scale.hi, scale.log, 5 if solo else 4))
    for name, pad in zip("xyz", (-2, -2, 1) if solo else (-4, -4, -1)):
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


def _legend(fig: Any, axes: Sequence[Any], *, outside: bool, title: str = "") -> None:
    """One entry per label over all axes; below the figure where it would hide a picture."""
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels())}
    if not (entries or title):
        return
    text: dict[str, Any] = {"fontsize": _SMALL, "title": title or None, "title_fontsize": _SMALL, "handlelength": 2.4}
    if outside:
        longest = max(map(len, entries), default=0)
        columns = 4 if len(axes) > 2 else 3 if longest <= 20 else 2
        fig.legend(entries.values(), entries, loc="outside lower center", ncols=columns, frameon=False, **text)
    else:
        axes[-1].legend(entries.values(), entries, framealpha=0.8, **text)


def _set_title(ax: Any, title: str | None, complete: bool, size: float) -> None:
    text = " ".join(part for part in (title, "" if complete else "(incomplete)") if part)
    if text:
        ax.set_title(text, fontsize=size, pad=4)
