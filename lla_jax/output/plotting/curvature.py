"""Draws curvature: spectral density, eigenvalues, layers, convexity over a plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from lla_jax.core.arguments import Misuse, check_flag, check_number, misuse, show_value
from lla_jax.core.results import Eigenpairs, Landscape, Spectrum
from lla_jax.core.signatures import explained
from lla_jax.curvature import densities
from lla_jax.curvature.densities import Density
from lla_jax.output.plotting import reading, scales, style
from lla_jax.output.plotting.figures import new_figure
from lla_jax.output.plotting.lines import line
from lla_jax.output.plotting.planes import picture
from lla_jax.output.plotting.reading import Plane
from lla_jax.output.plotting.scales import Scale

if TYPE_CHECKING:
    from lla_jax.measures.layers import Layer


_MATRICES = {"hessian": "Hessian", "ggn": "GGN", "fisher (mc)": "Fisher", "fisher (empirical)": "empirical Fisher"}
_FINEST = 0.2  # of the widest spectrum's own width: narrower Gaussians could not be seen
_MOST_POINTS = 50_000  # of a curve; narrower Gaussians keep their mass in a cell
_ROUNDING = 1e-5  # of lambda_max: a smaller lambda_min is zero in float32
_KNEE = 0.01  # of the largest |node|: below it a logarithmic axis would show the gaps between nodes of 100 steps
_POSITIVE, _NEGATIVE, _TRACE, _ERROR = style.COLOURS[0], style.COLOURS[1], style.COLOURS[2], "0.25"


def _matrix(recipe: Mapping[str, Any]) -> str:
    """The matrix as the start of a label, such as "Hessian "; empty where the recipe does not name the matrix."""
    operator = recipe.get("operator")
    about = operator if isinstance(operator, Mapping) else {}
    name = _MATRICES.get(str(about.get("kind")), "")
    return f"{'preconditioned ' * ('preconditioned' in about)}{name} " if name else ""


# --- density


class _Curve(NamedTuple):
    """One spectrum of a picture: its density, its ticks, and how they are labelled and coloured."""

    spec: Spectrum
    density: Density
    ticks: np.ndarray
    tick_label: str  # "eigenvalues" or "extreme Ritz values"
    label: str
    colour: str


@explained
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
    """Draw the density of all eigenvalues on a logarithmic y axis, which shows bulk and outliers, with ticks below.

    The curve has mass 1 in the coordinate of the x axis and is drawn from end to end; the band is +- 1 standard error
    over the probes. All curves of a figure are smoothed by Gaussians of one width, so that the widths of their bulks
    can be compared; the legend states it.

    Args:
      spec: what ``lla.spectrum`` returned, or several to compare: ``{"at initialization": ..., "trained": ...}``.
      pairs: eigenpairs whose values are the ticks below the curve; for several spectra, ``{name: eigenpairs}`` with
        some of their names. By default the ticks are the smallest and the largest node of every probe.
      scale: of the x axis, "linear" or "symlog", which shows the bulk if 100 steps or more resolve it.
      threshold: below it "symlog" is about linear; by default 0.01 of the largest |node| of all spectra.
      width: standard deviation of the Gaussian around a node, relative to the range of its spectrum, at most 1. Of
        several spectra, the one with the least range sets it for all, down to a fifth of what the widest one would.
      title: text above.
      ax: axes to draw into; by default a new figure.

    Returns:
      the figure. The lower limit of its density is below what a single eigenvalue makes.

    Raises:
      ValueError: no spectrum, or one with nodes that are not finite; pairs of other names; as ``lla.density``.
    """
    curves = _curves(spec, pairs, scale, threshold, width)
    fig, canvas = style.canvas(ax, 2.9)
    log_x = curves[0].density.scale == "symlog"
    if log_x:
        _symlog_axis(canvas, curves)
    strip = 0.05
    for row, curve in enumerate(curves):
        x, y, sem = curve.density.x, curve.density.density, curve.density.sem
        canvas.plot(x, y, color=curve.colour, linestyle=style.DASHES[row % 4], linewidth=1.1, label=curve.label)
        if curve.spec.probes > 1:
            canvas.fill_between(x, y - sem, y + sem, color=curve.colour, alpha=0.25, linewidth=0)
        low, high = strip * row, strip * (row + 0.8)
        at = canvas.get_xaxis_transform()
        canvas.vlines(curve.ticks, low, high, color=curve.colour, linewidth=1, transform=at, zorder=3)
    bottom, top = min(map(_floor, curves)), 2 * max(float(curve.density.density.max()) for curve in curves)
    canvas.set_yscale("log", nonpositive="clip")
    canvas.set_ylim(bottom * (bottom / top) ** (strip * len(curves)), top)  # the ticks have a strip of their own
    canvas.yaxis.set_major_locator(LogLocator(numticks=7))
    canvas.yaxis.set_minor_formatter(NullFormatter())
    left, right = min(c.density.x[0] for c in curves), max(c.density.x[-1] for c in curves)
    room = 0.03 * (right - left) if len(curves) > 1 and not log_x else 0.0  # narrow curves end close to their ticks
    canvas.set_xlim(left - room, right + room)
    below = f" (linear below {curves[0].density.threshold:.2g})" if log_x else ""
    canvas.set_xlabel(rf"{_matrix(curves[0].spec.recipe)}eigenvalue $\lambda$" + below, fontsize=style.SIZE)
    canvas.set_ylabel(
        "spectral density per decade" if log_x else r"spectral density per unit of $\lambda$", fontsize=style.SIZE
    )
    canvas.tick_params(labelsize=style.SMALL)
    tick_label = " or ".join(dict.fromkeys(curve.tick_label for curve in curves))
    neutral = curves[0].colour if len(curves) == 1 else "0.4"
    canvas.plot([], [], marker="|", color=neutral, linestyle="none", label=tick_label)
    if any(curve.spec.probes > 1 for curve in curves):
        style.explain_errors(canvas, neutral)
    style.legend(fig, [canvas], outside=ax is None, title=_describe_probes(curves, width), columns=2)
    note = "" if curves[0].label else _incomplete_note(curves[0].spec)
    style.set_title(canvas, style.join(title, note), 42, style.SIZE + 1)
    return fig


def _curves(spec: Any, pairs: Any, scale: Any, threshold: float | None, width: float) -> list[_Curve]:
    """Check the arguments of ``spectral_density``, and make a curve of every spectrum, all with one threshold."""
    spectra = dict(spec) if isinstance(spec, Mapping) else {"": spec}
    if not spectra:
        raise misuse("spec", spec, "what lla.spectrum returned, or {name: spectrum}")
    check_number("width", width, remedy="relative to the range of the nodes, such as 0.01")
    if width > 1:
        raise misuse("width", width, "at most 1, relative to the range of the nodes, such as 0.01")
    pairs_of = dict(pairs) if isinstance(pairs, Mapping) else {} if pairs is None else {"": pairs}
    if unknown := [name for name in pairs_of if name not in spectra]:
        raise Misuse(
            "pairs",
            f"given for {reading.quote(unknown)}, but the spectra are {reading.quote(spectra)}; pass Eigenpairs for "
            "one spectrum, and {name: Eigenpairs} with the names of the spectra for several",
        )
    for name, spectrum in spectra.items():
        argument = f"spec[{name!r}]" if name else "spec"
        if not isinstance(spectrum, Spectrum) or not spectrum.nodes.size or not np.isfinite(spectrum.nodes).all():
            rule = "what lla.spectrum returned, with one probe at least and finite nodes"
            raise reading.wrong_object(argument, spectrum, rule)
        if spectrum.weights.shape != spectrum.nodes.shape or not np.isfinite(spectrum.weights).all():
            raise misuse(argument, spectrum, f"with finite weights of the nodes' shape, {spectrum.nodes.shape}")
    if scale == "symlog" and threshold is None:
        threshold = _KNEE * max(float(np.abs(spectrum.nodes).max()) for spectrum in spectra.values()) or None
    curves = []
    for k, ((name, spectrum), relative) in enumerate(zip(spectra.items(), _widths(spectra, width, scale, threshold))):
        points = int(np.clip(12 / relative, 1000, _MOST_POINTS))
        density = densities.density(spectrum, points=points, width=relative, scale=scale, threshold=threshold)
        ticks, tick_label = spectrum.nodes[:, [0, -1]].ravel(), "extreme Ritz values"
        if name in pairs_of:
            ticks, tick_label = _values_and_residuals(pairs_of[name])[0], "eigenvalues"
        label = style.join(str(name), _incomplete_note(spectrum)) if name else ""
        curves.append(_Curve(spectrum, density, ticks[np.isfinite(ticks)], tick_label, label, style.COLOURS[k % 7]))
    return curves


def _widths(spectra: Mapping[str, Spectrum], width: float, scale: Any, threshold: float | None) -> list[float]:
    """The width of each spectrum's Gaussians, relative to its own range, so that they are the same for all."""
    own = [
        densities.density(spectrum, points=2, width=width, scale=scale, threshold=threshold).sigma
        for spectrum in spectra.values()
    ]
    common = max(min(own), _FINEST * max(own))
    return [width * (common / sigma) for sigma in own]


def _floor(curve: _Curve) -> float:
    """The lower limit of the density axis: some way below the density that a single eigenvalue makes."""
    at, ends = curve.density, curve.spec.nodes[:, [0, -1]]
    heights = np.interp([ends.min(), ends.max()], at.x, at.density)
    single = 1 / (np.sqrt(2 * np.pi) * at.sigma * curve.spec.recipe.get("n", np.inf))
    return float(max(0.2 * heights.min(), 0.02 * single, 1e-12 * at.density.max()))


def _symlog_axis(ax: Any, curves: Sequence[_Curve]) -> None:
    """Give the x axis the symlog coordinate of ``lla.density``, with decades as ticks."""
    knee = curves[0].density.threshold

    def coordinate(x: np.ndarray) -> np.ndarray:
        return np.asarray(np.sign(x) * np.log10(1 + np.abs(x) / knee))

    def back(t: np.ndarray) -> np.ndarray:
        return np.asarray(np.sign(t) * knee * (10 ** np.abs(t) - 1))

    ax.set_xscale("function", functions=(coordinate, back))
    ends = min(c.density.x[0] for c in curves), max(c.density.x[-1] for c in curves)
    low, high = coordinate(np.array(ends))
    decades = 10.0 ** np.arange(np.floor(np.log10(max(map(abs, ends)))), np.log10(knee) - 1e-9, -1)
    decades = decades[:: int(np.ceil(0.12 * (high - low)))]
    decades = decades[coordinate(decades) > 0.1 * (high - low)]
    at = np.r_[-decades, 0, decades[::-1]]
    at = at[(at >= ends[0]) & (at <= ends[1])]
    ax.set_xticks(at, [f"{x:g}".replace("-", "\N{MINUS SIGN}") for x in at])


def _describe_probes(curves: Sequence[_Curve], width: float) -> str:
    """A legend's title such as "4 probes of 100 Lanczos steps, Gaussians of 1% of the range", or of one width."""
    counts = [(c.spec.probes, c.spec.recipe.get("steps", c.spec.nodes.shape[1])) for c in curves]
    each = [f"{probes} probe{'s' * (probes > 1)} of {steps} Lanczos steps" for probes, steps in counts]
    at = curves[0].density
    common = f",\nGaussians of width {at.sigma:.2g}{' decades' * (at.scale == 'symlog')}, the same for all"
    own = f", Gaussians of {100 * width:.3g}% of the range"
    return "; ".join(dict.fromkeys(each)) + (common if len(curves) > 1 else own)


def _incomplete_note(result: Any) -> str:
    """The note "(incomplete)" for a result that was interrupted, else an empty text."""
    return "(incomplete)" if result.state is not None or result.recipe.get("complete") is False else ""


# --- scree


@explained
def scree(pairs: Eigenpairs, *, log: bool = False, title: str | None = None, ax: Axes | None = None) -> Figure:
    """Draw eigenvalues by rank, with bars of +- their residuals; colour and marker show the sign.

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
    check_flag("log", log)
    values, residuals = _values_and_residuals(pairs)
    known = np.isfinite(values)
    if not known.any():
        raise Misuse(
            "pairs",
            f"{show_value(pairs)} given; none of {len(values)} values is finite, so there is nothing to draw: compute "
            "them where the loss is finite",
        )
    if log:
        scales.check_positive(values[known], "eigenvalues")
    fig, canvas = style.canvas(ax, 2.5)
    rank = 1 + np.arange(len(values))
    for inside, name, marker, colour in (
        (values > 0, r"$\lambda > 0$", "o", _POSITIVE),
        (values < 0, r"$\lambda < 0$", "v", _NEGATIVE),
        (values == 0, r"$\lambda = 0$", "s", style.COLOURS[2]),
    ):
        if inside.any():
            canvas.plot(rank[inside], values[inside], marker, markersize=4, color=colour, label=name)
    bar_label = f"± residual (≤ {_round_up(residuals.max())})"
    thin: dict[str, Any] = {"ecolor": _ERROR, "elinewidth": 0.8, "capsize": 2.5, "capthick": 0.8}
    canvas.errorbar(rank, values, residuals, fmt="none", label=bar_label, zorder=1.5, **thin)
    for at in rank[~known]:
        canvas.axvspan(at - 0.5, at + 0.5, zorder=0, label="not finite", **style.HATCH)
    if log:
        scales.set_log(canvas)
    else:
        canvas.axhline(0, color="0.4", linewidth=0.6, zorder=0)
    canvas.set_xlim(0.5, len(values) + 0.5)
    canvas.xaxis.set_major_locator(MaxNLocator(min(len(values), 10), integer=True, min_n_ticks=1))
    order = {"magnitude": ", by magnitude", "largest": ", largest first", "smallest": ", smallest first"}
    canvas.set_xlabel("rank" + order.get(str(pairs.recipe.get("which")), ""), fontsize=style.SIZE)
    canvas.set_ylabel(rf"{_matrix(pairs.recipe)}eigenvalue $\lambda$", fontsize=style.SIZE)
    canvas.tick_params(labelsize=style.SMALL)
    canvas.yaxis.get_offset_text().set_fontsize(style.SMALL)
    style.legend(fig, [canvas], outside=ax is None)
    style.set_title(canvas, style.join(title, _incomplete_note(pairs)), 42, style.SIZE + 1)
    return fig


def _round_up(x: float) -> str:
    """The smallest number of two significant digits that is not below ``x``, as a text; "0" for x <= 0."""
    if x <= 0:
        return "0"
    unit = 10.0 ** (np.floor(np.log10(x)) - 1)
    return f"{np.ceil(x / unit - 1e-9) * unit:.2g}"


def _values_and_residuals(pairs: object) -> tuple[np.ndarray, np.ndarray]:
    """(values, residuals) of eigenpairs; residuals that are not finite become 0, so that they have no bars."""
    if not isinstance(pairs, Eigenpairs):
        raise reading.wrong_object("pairs", pairs, "Eigenpairs, as lla.eigenpairs returns them")
    residuals = np.asarray(pairs.residuals, float)
    return np.asarray(pairs.values, float), np.where(np.isfinite(residuals), abs(residuals), 0)


# --- layers


@explained
def layers(rows: Sequence[Layer], *, title: str | None = None) -> Figure:
    """Draw the curvature by layer: trace and extreme eigenvalues of every module, side by side.

    Traces have bars of +- 1 standard error, eigenvalues of their residual; the number of parameters is in brackets.

    Args:
      rows: what ``lla.per_layer`` returned.
      title: text above.

    Returns:
      the figure, one line per row: one column wide, or more for long names. A trace that is not finite says so.

    Raises:
      ValueError: no rows, or something else than rows of ``per_layer``.
    """
    fields = ("module", "size", "trace", "share", "lambda_max", "lambda_min", "residual")
    given: Any = rows
    rows = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else []
    if not rows or not all(hasattr(row, name) for row in rows for name in fields):
        rule = "one row or more, as lla.per_layer returns them, in a tuple or a list"
        raise reading.wrong_object("rows", given, rule)
    names = [f"{row.module} ({row.size:,})" for row in rows]
    width = float(np.clip(2.3 + 0.055 * max(map(len, names)), style.SINGLE, style.DOUBLE))
    fig = new_figure(width, 1.15 + 0.17 * len(rows))
    left, right = fig.subplots(1, 2, sharey=True)
    thin: dict[str, Any] = {"fmt": "none", "ecolor": _ERROR, "elinewidth": 0.8, "capsize": 1.5, "capthick": 0.8}
    y = np.arange(len(rows))
    means, errors = (np.array([getattr(row.trace, name) for row in rows], float) for name in ("mean", "sem"))
    errors = np.nan_to_num(errors)
    left.barh(y, means, 0.7, color=_TRACE)
    left.errorbar(means, y, xerr=errors, label="± standard error, residual", **thin)
    for at, row, end in zip(y, rows, np.fmax(means + errors, 0)):
        side: dict[str, Any] = {"xytext": (2, 0), "textcoords": "offset points", "va": "center"}
        left.annotate(_fraction_text(row), (np.nan_to_num(end), at), fontsize=style.SMALL - 1, **side)
    for name, colour in (("lambda_max", _POSITIVE), ("lambda_min", _NEGATIVE)):
        values = np.array([getattr(row, name) for row in rows], float)
        right.barh(y, values, 0.7, color=colour, label=reading.label(name))
        right.errorbar(values, y, xerr=np.nan_to_num([row.residual for row in rows]), **thin)
    left.margins(x=0.02)
    for ax, label, room in ((left, "trace and share", 0.3), (right, "eigenvalues", 0.05)):
        low, high = ax.get_xlim()
        ax.set_xlim(low, high + room * (high - low))
        ax.axvline(0, color="0.4", linewidth=0.6)
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=scales.NICE))
        ax.set_xlabel(label, fontsize=style.SIZE)
        ax.tick_params(labelsize=style.SMALL)
        ax.tick_params(axis="y", length=0)
    left.set_yticks(y, names)
    left.set_ylim(len(rows) - 0.5, -0.5)
    style.legend(fig, [right, left], outside=True, columns=3)
    if title:
        fig.suptitle(style.wrap(title, int(12 * width)), fontsize=style.SIZE + 1)
    return fig


def _fraction_text(row: Any) -> str:
    """A layer's share of the trace in percent; empty if it is unknown, "not finite" if the layer's trace is not."""
    if not np.isfinite(row.trace.mean):
        return "not finite"
    if not np.isfinite(row.share):  # the total is zero within its error
        return ""
    text = f"{row.share:.0%}" if abs(row.share) >= 0.01 or row.share == 0 else f"{100 * row.share:.1g}%"
    return text.replace("-", "\N{MINUS SIGN}")


# --- convexity


@explained
def convexity(
    landscape: Landscape, *, cap: float | None = None, title: str | None = None, ax: Axes | None = None
) -> Figure:
    """Draw the ratio |lambda_min / lambda_max| over a plane as a heat map, with colours that start at 0, or on a line.

    Every point that was computed is a cell, and lines of equal ratio are drawn over the cells. Where the smallest
    eigenvalue is positive, the loss is convex and the ratio an inverse condition number: a plus in the cell says so.

    Args:
      landscape: what ``lla.convexity`` returned, of two axes (a map), or one (a curve).
      cap: larger values are drawn as this one; the colour bar says so if there are any. For maps only.
      title: text above.
      ax: axes to draw into; by default a new figure.

    Returns:
      the figure.

    Raises:
      ValueError: as ``heatmap``; ``cap`` with one axis.

    References: Li et al. 2018, arXiv 1712.09913, section 6.
    """
    if not isinstance(landscape, Landscape):
        raise reading.wrong_object("landscape", landscape, "a Landscape, as lla.convexity returns it")
    if "convexity" not in landscape.values:
        rest = "pass what lla.convexity returned, or draw these values by heatmap or line"
        raise Misuse("landscape", f"{show_value(landscape)} given, without values 'convexity'; {rest}")
    if landscape.dims == 1:
        if cap is not None:
            raise Misuse("cap", f"{cap!r} given, but it is for maps, and this landscape has one axis; leave it out")
        fig = line(landscape, "convexity", title=title, ax=ax)
        (fig.axes[0] if ax is None else ax).set_ylim(bottom=0)
        return fig
    plane = reading.plane(landscape, "convexity", "convexity", least=1)
    extra = partial(_draw_over_ratio, landscape=landscape)
    return picture("heatmap", {"": plane}, "convexity", cap=cap, title=title, ax=ax, least=(0, _ROUNDING), extra=extra)


def _draw_over_ratio(ax: Any, plane: Plane, scale: Scale, landscape: Landscape) -> None:
    """Draw lines of equal ratio with their values, and marks where the loss is convex."""
    z = np.ma.masked_invalid(plane.z).T
    steps = np.asarray(MaxNLocator(5, steps=scales.NICE).tick_values(scale.lo, scale.hi))
    steps = steps[(steps > max(scale.lo, z.min())) & (steps < min(scale.hi, z.max()))]
    if len(steps) and min(z.shape) > 1:
        lines = ax.contour(plane.x, plane.y, z, levels=steps, colors="white", linewidths=0.7)
        lines.set_path_effects([withStroke(linewidth=1.5, foreground="0.2")])
        for text in ax.clabel(lines, fontsize=style.SMALL - 1, fmt=lambda level: f"{level:.3g}"):
            text.set_path_effects([withStroke(linewidth=1.2, foreground="0.2")])
    if not {"lambda_min", "lambda_max"} <= set(landscape.values):
        return
    low, high = (reading.read(landscape, name, 2, "convexity")[1] for name in ("lambda_min", "lambda_max"))
    i, j = np.nonzero(low > _ROUNDING * abs(high))
    if len(i):
        label = r"convex: $\lambda_{\min} > 0$"
        ax.plot(plane.x[i], plane.y[j], marker="P", markersize=4, label=label, **style.POINT)
