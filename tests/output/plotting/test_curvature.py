"""Pictures of curvature: what is drawn are the numbers, with their errors, and the words say what they are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from lla_jax import curvature as spectral
from lla_jax import directions
from lla_jax.core.results import Eigenpairs, Estimate, Landscape, Spectrum
from lla_jax.core.types import Directions
from lla_jax.output import plotting
from tests.output.plotting.cases import drawn, png, texts

HESSIAN = {"which": "magnitude", "operator": {"kind": "hessian"}}
VALUES = np.array([30.0, 12.0, 5.5, -4.0, 3.0, -0.5])


def pairs(values=VALUES, residuals=None, recipe=None, state=None, vectors=None):
    values = np.asarray(values, float)
    residuals = 0.01 * (1 + np.arange(len(values))) if residuals is None else np.asarray(residuals)
    return Eigenpairs(values, vectors, residuals, 50, HESSIAN if recipe is None else recipe, state)


def marks(ax):
    """{marker: points} of what is drawn with markers."""
    return {line.get_marker(): line.get_xydata() for line in ax.lines if line.get_marker() not in ("None", "_", "|")}


def bars(ax, k=0):
    """Ends of the k-th set of error bars (n, 2, 2): (low, high) points."""
    container = [c for c in ax.containers if hasattr(c, "has_yerr")][k]
    return np.array(container.lines[2][0].get_segments())


def tick_labels(axis):
    """Labels of the ticks that are in view, as artists."""
    low, high = sorted(axis.get_view_interval())
    room = 1e-9 * (high - low)
    return [tick.label1 for tick in axis.get_major_ticks() if low - room <= tick.get_loc() <= high + room]


def check_words_apart(fig):
    """No word leaves the page or touches another."""
    fig.set_dpi(100)  # a layout does not depend on it
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    words = [t for ax in fig.axes for t in (*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label)]
    words += [t for ax in fig.axes for axis in (ax.xaxis, ax.yaxis) for t in tick_labels(axis)]
    words += [t for legend in fig.legends for t in (legend.get_title(), *legend.get_texts())]
    words = [t for t in (*words, fig._suptitle) if t is not None and t.get_text() and t.get_visible()]
    boxes = [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in words]
    for k, (text, box) in enumerate(boxes):
        assert -1 <= box.x0 <= box.x1 <= fig.bbox.x1 + 1, text
        assert -1 <= box.y0 <= box.y1 <= fig.bbox.y1 + 1, text
        for other, its in boxes[k + 1 :]:
            assert not its.padded(-1).overlaps(box), (text, other)


WEIGHTS = np.array([[0.01, 0.6, 0.38, 0.006, 0.004], [0.02, 0.5, 0.47, 0.008, 0.002], [0.01, 0.55, 0.43, 0.007, 0.003]])
NODES = np.array([[-1.5, -0.01, 0.2, 12.0, 30.0], [-1.2, 0.0, 0.3, 11.0, 29.9], [-1.4, -0.02, 0.1, 12.5, 30.0]])


def spectrum(nodes=NODES, weights=WEIGHTS, state=None, **recipe):
    about = {"operator": {"kind": "hessian"}, "steps": 100, "n": 500, "complete": True}
    return Spectrum(np.asarray(nodes, float), np.asarray(weights, float), about | recipe, state)


def curve(ax, k=0):
    return [line for line in ax.lines if len(line.get_xdata()) > 10][k].get_xydata().T


def rugs(ax):
    """Positions of the ticks below each curve."""
    groups = [c for c in ax.collections if isinstance(c, LineCollection)]
    return [np.array([segment[0, 0] for segment in c.get_segments()]) for c in groups]


@pytest.mark.parametrize("scale", ["linear", "symlog"])
@pytest.mark.parametrize("width", [0.01, 0.002])
def test_the_density_is_whole_and_has_mass_one(scale, width):
    spec = spectrum()
    fig = plotting.spectral_density(spec, scale=scale, width=width, title="Digits CNN")
    ax = fig.axes[0]
    x, y = curve(ax)
    knee = 0.3  # 0.01 of the largest node
    t = x if scale == "linear" else np.sign(x) * np.log10(1 + abs(x) / knee)
    np.testing.assert_allclose(np.diff(t), t[1] - t[0], rtol=1e-6)
    assert y.sum() * (t[1] - t[0]) == pytest.approx(1, rel=1e-9)
    options = {} if scale == "linear" else {"threshold": knee}
    wanted = spectral.density(spec, width=width, scale=scale, points=len(x), **options)
    np.testing.assert_array_equal(y, wanted.density)
    assert y[[0, -1]].max() < 1e-4 * y.max()  # nothing is left outside
    np.testing.assert_allclose(ax.get_xlim(), x[[0, -1]])
    assert wanted.sigma > 5 * (t[1] - t[0])  # a Gaussian has many points
    assert ax.get_yscale() == "log"
    mapped = ax.transScale.transform(np.stack([x, y], axis=1))[:, 0]
    np.testing.assert_allclose(mapped, t, atol=1e-9)  # the axis is the coordinate of the mass
    band = ax.collections[0].get_paths()[0].vertices
    for border in (wanted.density - wanted.sem, wanted.density + wanted.sem):
        pairs = np.stack([x, border], axis=1)[:: len(x) // 50]
        assert all((abs(band - p) < 1e-12 * (1 + abs(p))).all(axis=1).any() for p in pairs)
    unit = "per decade" if scale == "symlog" else r"per unit of $\lambda$"
    for said in ("Digits CNN", "Hessian eigenvalue", unit, "3 probes of 100 Lanczos steps", "± 1 standard error"):
        assert said in texts(fig)
    assert f"Gaussians of {100 * width:g}% of the range" in texts(fig)
    assert ("linear below 0.3" in texts(fig)) == (scale == "symlog")
    check_words_apart(fig)


def test_bulk_and_outliers_are_both_in_view():
    spec = spectrum()
    ax = plotting.spectral_density(spec).axes[0]
    low, high = ax.get_ylim()
    x, y = curve(ax)
    assert high > y.max()
    for node in (-1.5, 0.0, 12.0, 30.0):
        assert np.interp(node, x, y) > 4 * low
    one = 1 / (500 * 0.01 * 31.5 * np.sqrt(2 * np.pi))  # what a single eigenvalue of 500 makes
    assert one / 100 < low < one
    tiny = WEIGHTS * [1, 1, 1, 1, 1e-20]
    assert plotting.spectral_density(spectrum(weights=tiny)).axes[0].get_ylim()[0] > one / 1000


def test_ticks_are_eigenvalues_or_the_ends_of_the_probes():
    np.testing.assert_array_equal(rugs(plotting.spectral_density(spectrum()).axes[0])[0], NODES[:, [0, -1]].ravel())
    fig = plotting.spectral_density(spectrum(), pairs=pairs([30.1, 12.2, np.nan, -1.6]))
    np.testing.assert_array_equal(rugs(fig.axes[0])[0], [30.1, 12.2, -1.6])
    assert "| eigenvalues |" in texts(fig)
    assert "Ritz" not in texts(fig)
    assert "extreme Ritz values" in texts(plotting.spectral_density(spectrum()))


def test_several_spectra_share_an_axis_and_a_legend():
    later = spectrum(NODES / 10, WEIGHTS, probes=3)
    both = {"at initialization": spectrum(), "after training": later}
    fig = plotting.spectral_density(both, scale="symlog", pairs={"after training": pairs([3.0])})
    ax = fig.axes[0]
    least = spectral.density(later, scale="symlog", threshold=0.3).sigma
    for k, spec in enumerate(both.values()):
        wanted = spectral.density(spec, scale="symlog", threshold=0.3, points=1200)
        width = 0.01 * least / wanted.sigma  # Gaussians as narrow as those of the spectrum with the least range
        wanted = spectral.density(spec, scale="symlog", threshold=0.3, points=int(12 / width), width=width)
        assert wanted.sigma == pytest.approx(least, rel=1e-12)
        np.testing.assert_allclose(curve(ax, k), [wanted.x, wanted.density], rtol=1e-12)
    assert f"Gaussians of width {least:.2g} decades, the same for all" in texts(fig)
    np.testing.assert_array_equal(rugs(ax)[0], NODES[:, [0, -1]].ravel())
    np.testing.assert_array_equal(rugs(ax)[1], [3.0])
    lines = [line for line in ax.lines if len(line.get_xdata()) > 10]
    assert len({line.get_color() for line in lines}) == len({line.get_linestyle() for line in lines}) == 2
    said = [t.get_text() for t in fig.legends[0].get_texts()]
    assert said == [*both, "extreme Ritz values or eigenvalues", "± 1 standard error"]
    assert texts(fig).count("3 probes of 100 Lanczos steps") == 1
    check_words_apart(plotting.spectral_density(both, title="Digits CNN"))
    other = {"few": spectrum(steps=20, complete=False), "many": spectrum()}
    assert "3 probes of 20 Lanczos steps; 3 probes of 100" in texts(plotting.spectral_density(other))
    assert "few (incomplete)" in texts(plotting.spectral_density(other))


def test_odd_spectra():
    single = plotting.spectral_density(spectrum(NODES[:1], WEIGHTS[:1], state={}), title="first")
    assert "first (incomplete)" in texts(single)
    assert "1 probe of" in texts(single)
    assert "standard error" not in texts(single)
    for scale in ("linear", "symlog"):
        zero = plotting.spectral_density(spectrum(np.zeros((2, 1)), np.ones((2, 1))), scale=scale)
        assert zero.axes[0].get_xlim()[0] < 0 < zero.axes[0].get_xlim()[1]
        png(zero)
    for threshold in (1e-6, 1.0, 100.0):
        check_words_apart(plotting.spectral_density(spectrum(), scale="symlog", threshold=threshold))
    canvas = Figure().add_subplot()
    assert plotting.spectral_density(spectrum(), ax=canvas) is canvas.figure
    png(canvas.figure)


def test_scree_draws_values_and_residuals():
    found = pairs()
    fig = plotting.scree(found, title="a title")
    ax = fig.axes[0]
    shown = marks(ax)
    np.testing.assert_array_equal(shown["o"], np.stack([[1, 2, 3, 5], VALUES[VALUES > 0]], axis=1))
    np.testing.assert_array_equal(shown["v"], np.stack([[4, 6], VALUES[VALUES < 0]], axis=1))
    ends = bars(ax)
    np.testing.assert_array_equal(ends[:, :, 0], np.stack([np.arange(1, 7)] * 2, axis=1))
    np.testing.assert_allclose(ends[:, :, 1], np.stack([VALUES - found.residuals, VALUES + found.residuals], axis=1))
    for said in ("Hessian eigenvalue", "rank, by magnitude", "a title", "± residual (≤ 0.06)", "> 0", "< 0"):
        assert said in texts(fig)
    assert "not finite" not in texts(fig)
    assert "incomplete" not in texts(fig)
    colours = {line.get_marker(): line.get_color() for line in ax.lines}
    assert colours["o"] != colours["v"]
    assert fig.get_figwidth() == 3.5
    check_words_apart(fig)


def test_scree_of_a_convex_problem_has_one_sign_and_takes_logarithms():
    found = pairs([100.0, 10.0, 1.0], recipe={"which": "largest", "operator": {"kind": "ggn"}})
    fig = plotting.scree(found, log=True)
    ax = fig.axes[0]
    assert ax.get_yscale() == "log"
    assert set(marks(ax)) == {"o"}
    assert "< 0" not in texts(fig)
    assert "GGN eigenvalue" in ax.get_ylabel()
    assert ax.get_xlabel() == "rank, largest first"
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert {"1", "10", "100"} <= set(labels)
    check_words_apart(fig)


def test_scree_of_what_is_unfinished_zero_or_not_finite():
    fig = plotting.scree(pairs([3.0, np.nan, 0.0], [0.1, np.nan, np.inf], recipe={}, state={}))
    ax = fig.axes[0]
    hatched = [patch.get_extents().transformed(ax.transData.inverted()).intervalx for patch in ax.patches]
    np.testing.assert_allclose(hatched, [(1.5, 2.5)])
    assert marks(ax)["s"].tolist() == [[3, 0]]
    for said in ("incomplete", "not finite", "= 0", "rank"):
        assert said in texts(fig)
    assert ax.get_ylabel() == r"eigenvalue $\lambda$"
    one = plotting.scree(pairs([2.0]))
    png(one)
    assert [t.get_text() for t in tick_labels(one.axes[0].xaxis)] == ["1"]
    canvas = Figure().add_subplot()
    assert plotting.scree(pairs(), ax=canvas) is canvas.figure
    assert canvas.get_legend() is not None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: plotting.spectral_density(NODES),
            r"spec: ndarray of shape \(3, 5\) given; it must be what lla.spectrum returned",
        ),
        (lambda: plotting.spectral_density({}), r"spec: \{\} given; it must be what lla.spectrum returned"),
        (lambda: plotting.spectral_density({"a": 1}), r"spec\['a'\]: 1 given; it must be"),
        (lambda: plotting.spectral_density(spectrum(NODES * np.nan)), r"spec: Spectrum.* given; .*finite nodes"),
        (lambda: plotting.spectral_density({"a": spectrum()}, pairs=pairs()), r"pairs: given for '', but .* are 'a'"),
        (lambda: plotting.spectral_density(spectrum(), pairs=VALUES), r"pairs: array\(.*\) given"),
        (lambda: plotting.spectral_density(spectrum(), scale="log"), r"scale: 'log' given"),
        (lambda: plotting.spectral_density(spectrum(), width=0), r"width: 0 given"),
        (lambda: plotting.spectral_density(spectrum(), threshold=1.0), r"threshold: 1.0 given with scale=.linear"),
        (lambda: plotting.scree(VALUES), r"pairs: array\(.*\) given; it must be Eigenpairs"),
        (
            lambda: plotting.scree(pairs(), log=True),
            r"log: True given, but 2 of 6 eigenvalues are at or below 0.*smallest -4",
        ),
        (lambda: plotting.scree(pairs([np.nan])), r"pairs: .* given; none of 1 values is finite"),
        (lambda: plotting.scree(pairs([])), r"pairs: .* given; none of 0 values is finite"),
        (lambda: plotting.scree(pairs(), ax=Figure().add_subplot(projection="3d")), r"plain 2-D axes"),
        (lambda: plotting.layers([]), r"rows: \[\] given; it must be one row or more, as lla.per_layer returns them"),
        (lambda: plotting.layers([1, 2]), r"as lla.per_layer returns them"),
        (lambda: plotting.layers("rows"), r"as lla.per_layer returns them"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class Row(NamedTuple):
    module: str
    size: int
    trace: Estimate
    share: float
    lambda_max: float
    lambda_min: float
    residual: float


def layer_rows(num, stem="block"):
    traces = 10.0 * 0.8 ** np.arange(num)
    return [
        Row(
            f"{stem}_{i}/kernel",
            10**i % 999_983,
            Estimate(t, 0.1 * t, 9),
            t / traces.sum(),
            0.4 * t,
            -0.1 * t,
            0.02 * t,
        )
        for i, t in enumerate(traces)
    ]


def widths(ax, k):
    return [bar.get_width() for bar in [c for c in ax.containers if not hasattr(c, "has_yerr")][k]]


def test_layers_draw_traces_eigenvalues_and_their_errors():
    rows = layer_rows(3)
    rows[1] = rows[1]._replace(share=np.nan, trace=Estimate(-2.0, np.nan, 1))
    rows[2] = rows[2]._replace(share=0.004)
    fig = plotting.layers(rows, title="LeNet")
    left, right = fig.axes
    assert widths(left, 0) == [row.trace.mean for row in rows]
    assert widths(right, 0) == [row.lambda_max for row in rows]
    assert widths(right, 1) == [row.lambda_min for row in rows]
    ends = bars(left)[:, :, 0]
    np.testing.assert_allclose(ends, [[9, 11], [-2, -2], [6.4 * 0.9, 6.4 * 1.1]])
    for k, name in enumerate(("lambda_max", "lambda_min")):
        for (low, high), row in zip(bars(right, k)[:, :, 0], rows):
            np.testing.assert_allclose([low, high], getattr(row, name) + row.residual * np.array([-1, 1]))
    assert [t.get_text() for t in left.texts] == [f"{rows[0].share:.0%}", "", "0.4%"]
    assert [t.get_text() for t in left.get_yticklabels()] == [f"block_{i}/kernel ({10**i:,})" for i in range(3)]
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first layer on top
    for said in ("LeNet", "trace and share", "eigenvalues", "± standard error, residual"):
        assert said in texts(fig)
    check_words_apart(fig)


def test_many_layers_with_long_names_stay_legible():
    for num, stem in ((30, "encoder/layer_with_a_long_name/attention"), (1, "x"), (12, "Conv")):
        fig = plotting.layers(layer_rows(num, stem))
        assert 3.5 <= fig.get_figwidth() <= 7
        check_words_apart(fig)


def test_a_layer_that_is_not_finite_says_so():
    rows = layer_rows(2)
    rows[0] = rows[0]._replace(trace=Estimate(np.nan, np.nan, 3), lambda_max=np.nan, lambda_min=np.nan, residual=np.nan)
    fig = plotting.layers(rows)
    assert "not finite" in texts(fig)
    png(fig)


A, B = np.linspace(-1, 1, 9), np.linspace(-0.5, 1, 7)


def ratio_map(low=lambda a, b: -0.2 - a**2 - 2 * b**2 + a / 2, coords=(A, B), complete=True):
    grid = np.meshgrid(*coords, indexing="ij")
    high = 10 + grid[0]
    low = low(*grid) + 0 * high
    values = {"lambda_min": low, "lambda_max": high, "convexity": abs(low / high), "loss": high}
    recipe = {"directions": {"kind": "random"}, "rule": "add", "complete": complete}
    return Landscape(coords, values, {}, recipe)


def test_convexity_draws_every_cell_from_zero():
    landscape = ratio_map()
    fig = plotting.convexity(landscape, title="LeNet")
    ax, bar = fig.axes
    mesh = drawn(ax)
    np.testing.assert_array_equal(mesh.get_array(), landscape.values["convexity"].T)
    assert mesh.get_clim() == (0, landscape.values["convexity"].max())
    np.testing.assert_allclose(mesh.get_coordinates()[0, :, 0], np.r_[-1.125, (A[1:] + A[:-1]) / 2, 1.125])
    lines = [c for c in ax.collections if hasattr(c, "levels")]
    levels = np.concatenate([c.levels for c in lines])
    assert len(levels) >= 2
    assert {t.get_text() for t in ax.texts} <= {f"{level:.3g}" for level in levels}
    assert ax.texts
    for line, level in zip(lines[0].get_paths(), lines[0].levels):
        a, b = line.vertices.T  # between the cells, so that the values there are interpolated
        exact = abs(-0.2 - a**2 - 2 * b**2 + a / 2) / (10 + a)
        np.testing.assert_allclose(exact, level, atol=0.02)
    for said in (r"\lambda_{\min} / \lambda_{\max}", "trained network", "LeNet", "units of d1: random"):
        assert said in texts(fig) + bar.get_ylabel()
    assert "convex" not in texts(fig)
    check_words_apart(fig)


def test_convexity_marks_where_the_ratio_means_another_thing():
    landscape = ratio_map(lambda a, b: 0.5 - a**2)
    ax = plotting.convexity(landscape).axes[0]
    plus = next(line for line in ax.lines if line.get_marker() == "P").get_xydata()
    i, j = np.nonzero(landscape.values["lambda_min"] > 0)
    np.testing.assert_array_equal(plus, np.stack([A[i], B[j]], axis=1))
    assert "convex" in texts(ax.figure)
    only = Landscape(landscape.coords, {"convexity": landscape.values["convexity"]}, {}, {})
    assert "convex" not in texts(plotting.convexity(only))


def test_convexity_at_rounding_is_flat_and_caps_and_holes_are_said():
    flat = plotting.convexity(ratio_map(lambda a, b: 1e-9 * np.sin(40 * a * b)))
    assert drawn(flat.axes[0]).get_clim() == (0, 1e-5)
    assert "convex" not in texts(flat)
    landscape = ratio_map(complete=False)
    landscape.values["convexity"][2, 3] = np.nan
    fig = plotting.convexity(landscape, cap=0.1)
    assert np.ma.getmaskarray(drawn(fig.axes[0]).get_array())[3, 2]
    assert drawn(fig.axes[0]).get_clim() == (0, 0.1)
    for said in ("clipped at 0.1", "not finite or not computed", "incomplete"):
        assert said in texts(fig)
    png(fig)


def test_convexity_of_one_axis_is_a_curve_from_zero():
    t = np.linspace(-1, 1, 11)
    landscape = Landscape((t,), {"convexity": 0.1 + t**2}, {}, {"rule": "add"})
    fig = plotting.convexity(landscape, title="along a line")
    ax = fig.axes[0]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), 0.1 + t**2)
    assert ax.get_ylim()[0] == 0
    assert r"\lambda_{\min}" in ax.get_ylabel()
    second = Figure().add_subplot()
    plotting.convexity(landscape, ax=second)
    assert second.get_ylim()[0] == 0
    with pytest.raises(ValueError, match=r"cap: 1 given, but it is for maps"):
        plotting.convexity(landscape, cap=1)
    with pytest.raises(ValueError, match=r"landscape: .* without values 'convexity'; pass what lla.convexity returned"):
        plotting.convexity(Landscape((A, B), {"loss": np.zeros((9, 7))}, {}, {}))
    png(plotting.convexity(Landscape((A, np.zeros(1)), {"convexity": np.ones((9, 1))}, {}, {})))


def test_axes_are_called_by_their_eigenvalues():
    vectors = Directions({"w": np.eye(6, dtype="f4")}, {"kind": "eigenpairs"})
    axes = directions.eigenvectors(pairs(vectors=vectors), (0, 3))

    def plane(recipe):
        values = {"loss": 0.1 + A[:, None] ** 2 + B**2}
        return Landscape((A, B), values, {}, {"directions": recipe, "rule": "add"})

    fig = plotting.contour(plane(dict(axes.recipe)))
    assert fig.axes[0].get_xlabel() == "a (units of eigenvector 1, λ\xa0=\xa030)"
    assert fig.axes[0].get_ylabel() == "b (units of eigenvector 4, λ\xa0=\xa0−4)"
    check_words_apart(fig)
    both = directions.join(axes[1], directions.given({"w": np.ones(6, "f4")}, names=["mine"]))
    surface = plotting.surface(plane(dict(both.recipe)))
    assert "a: eigenvector 4, λ\xa0=\xa0−4; b: mine" in texts(surface)


MODES = ["not normalized", "weight-normalized", "filter-normalized (L1)", "filter-normalized (L2)"]
HEADS = [f"{kind}, {mode}" for kind in ("random", "Hessian eigenvectors", "Adam moments") for mode in MODES]
HEADS += ["Adam moments, adam rule", "Adam moments, adam rule, a/10"]


SETS = [("contour", 4), ("contour", 8), ("contour", 10), ("contour", 14)]


@pytest.mark.parametrize(("kind", "num"), SETS)
def test_panels_of_all_modes(kind, num):
    names = HEADS[:4] + HEADS[8:] if num == 10 else HEADS[:num]
    planes = {}
    for name in names:
        kinds = {"random": [], "Hessian": ["eigenvector 1 (lambda = 3)"], "Adam": ["m", "v"]}
        recipe = {"kind": name.split()[0], "names": kinds[name.split()[0].strip(",")]}
        planes[name] = Landscape((A, B), {"loss": 0.1 + A[:, None] ** 2 + B**2}, {}, {"directions": recipe})
    fig = plotting.panels(planes, kind=kind, log=True, title="Digits CNN")
    check_words_apart(fig)
    axes = fig.axes[:num]
    assert [ax.get_title().replace("\n", " ") for ax in axes] == names
    columns = len({round(ax.get_position().x0, 3) for ax in axes})
    assert columns == (2 if num == 4 else 4)  # a column for each normalization
