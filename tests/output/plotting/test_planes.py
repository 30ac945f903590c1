"""What is on the page: minima at their (a, b), clipped pictures of untouched values, holes, bands, labels, errors."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import proj3d

from lla_jax.core.types import Directions, Landscape, Recipe
from lla_jax.output import plotting

X, Y, Z = np.linspace(-1, 1, 17), np.linspace(-0.5, 2.5, 13), np.linspace(-1, 2, 7)
MIN = (0.5, -0.25)  # on the grid; its mirror image (-0.25, 0.5) is on the page too
RANDOM = {"kind": "random", "normalize": [{"by": "filter", "order": 2}]}
KINDS = ["surface", "contour", "heatmap"]


def bowl(a, b):
    return 0.1 + 2 * (a - MIN[0]) ** 2 + (b - MIN[1]) ** 2 * (1.5 + 0.5 * a)


def make(f=bowl, coords=(X, Y), directions=RANDOM, rule="add", complete=True, stderr=None, **more):
    values = {"loss": f(*np.meshgrid(*coords, indexing="ij")).astype(float), **more}
    recipe = {"directions": directions, "rule": rule, "complete": complete}
    return Landscape(tuple(np.asarray(c, float) for c in coords), values, stderr or {}, recipe)


def with_holes(*cells):
    plane = make()
    for cell, value in zip(cells, (np.nan, np.inf, -np.inf)):
        plane.values["loss"][cell] = value
    return plane


def line(**kwargs):
    """A landscape of one axis, with test data and accuracies."""
    t = np.linspace(-1, 1, 21)
    values = {"test_loss": 0.3 + t**2, "accuracy": np.exp(-(t**2)), "test_accuracy": 0.9 * np.exp(-(t**2))}
    return make(lambda a: 0.1 + 2 * (a - 0.2) ** 2, (t,), **{**values, **kwargs})


def draw(kind, landscape, **kwargs):
    return getattr(plotting, kind)(landscape, **kwargs)


def png(fig: Figure) -> bytes:
    file = io.BytesIO()
    fig.savefig(file, format="png", dpi=60)
    return file.getvalue()


def texts(fig: Figure) -> str:
    fig.canvas.draw_idle()
    legends = [
        t for legend in (*fig.legends, *(ax.get_legend() for ax in fig.axes)) if legend for t in _entries(legend)
    ]
    axes = [t for ax in fig.axes for t in (ax.get_title(), ax.get_xlabel(), ax.get_ylabel(), *map(_text, ax.texts))]
    return " | ".join([fig.get_suptitle(), *legends, *axes])


def _text(artist):
    return artist.get_text()


def _entries(legend):
    return [legend.get_title().get_text(), *map(_text, legend.get_texts())]


def drawn(ax):
    """The coloured artist: contourf, pcolormesh or the surface."""
    return next(artist for artist in ax.collections if artist.get_array() is not None and len(artist.get_array()))


def colour_at(fig, a, b, height=0.0):
    """The rendered colour at plane coordinates (a, b); a surface is looked at from straight above."""
    ax = fig.axes[0]
    canvas = FigureCanvasAgg(fig)
    where = (a, b)
    if hasattr(ax, "plot_surface"):
        ax.set_proj_type("ortho")
        ax.view_init(90, -90)
        canvas.draw()
        where = proj3d.proj_transform(a, b, height, ax.get_proj())[:2]
    canvas.draw()
    x, y = ax.transData.transform(where)
    pixels = np.asarray(canvas.buffer_rgba())[..., :3] / 255
    return pixels[round(pixels.shape[0] - y) - 3 : round(pixels.shape[0] - y) + 4, round(x) - 3 : round(x) + 4]


# ------------------------------------------------------------------------------------ the minimum is where it is


def lowest_heatmap(ax):
    mesh = drawn(ax)
    j, i = np.unravel_index(np.argmin(mesh.get_array()), mesh.get_array().shape)
    return mesh.get_coordinates()[j : j + 2, i : i + 2].mean(axis=(0, 1))


def lowest_contour(ax):
    band = next(path for path in drawn(ax).get_paths() if len(path.vertices))
    box = band.get_extents()
    assert box.width < 0.5
    assert box.height < 0.6
    return np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])


def lowest_surface(ax):
    vertices = np.asarray(drawn(ax)._faces).reshape(-1, 3)
    return vertices[np.argmin(vertices[:, 2]), :2]


LOWEST = {"surface": lowest_surface, "contour": lowest_contour, "heatmap": lowest_heatmap}


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_minimum_is_drawn_at_its_place(kind, log):
    # the minimum inside the plane on both axes, so that the contour's lowest band closes around it
    plane = make(coords=(X, Y - 0.5))
    fig = draw(kind, plane, log=log, **({"levels": 60} if kind == "contour" else {}))
    np.testing.assert_allclose(LOWEST[kind](fig.axes[0]), MIN, atol=0.05 if kind == "contour" else 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_minimum_is_rendered_at_its_place(kind):
    fig = draw(kind, make())
    dark = np.array(colormaps["viridis"](0.0)[:3])
    here = abs(colour_at(fig, *MIN, height=0.1) - dark).max(axis=-1).min()
    mirrored = abs(colour_at(fig, *MIN[::-1], height=bowl(*MIN[::-1])) - dark).max(axis=-1).min()
    assert here < 0.06
    assert mirrored > 0.08


@pytest.mark.parametrize("kind", KINDS)
def test_minimum_in_panels(kind):
    plane = make(coords=(X, Y - 0.5))
    fig = plotting.panels({"one": plane, "two": plane}, kind=kind, shared=True, log=True)
    for ax in fig.axes[:2]:
        np.testing.assert_allclose(LOWEST[kind](ax), MIN, atol=0.05 if kind == "contour" else 1e-12)


def test_minimum_in_volume():
    fig = plotting.volume(make(lambda a, b, c: bowl(a, b) + 4 * (c - 0.5) ** 2, (X, Y - 0.5, Z)), log=True)
    depths = [next(k for k, path in enumerate(drawn(ax).get_paths()) if len(path.vertices)) for ax in fig.axes[:-1]]
    ax = fig.axes[int(np.argmin(depths))]
    assert ax.get_title() == "c = 0.5"
    np.testing.assert_allclose(lowest_contour(ax), MIN, atol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_unsorted_coordinates_and_adam_axes(kind):
    a, b = np.array([0.5, -0.3, 0.0, 0.2, 0.9]), np.geomspace(2, 0.01, 5)

    def f(a, b):
        return (a - 0.5) ** 2 + np.log(b / b.min()) ** 2 * 0.1 + 0.2

    fig = draw(kind, make(f, (a, b), rule="adam", directions={"kind": "adam_moments", "names": ["m", "v"]}))
    ax = fig.axes[0]
    if kind != "contour":
        low = LOWEST[kind](ax)
        expected = (0.5, 0.01) if kind == "surface" else ((0.35 + 0.7) / 2, (0 + (0.01 + b[-2]) / 2) / 2)
        np.testing.assert_allclose(low, expected, atol=1e-9)
    assert ax.get_ylim()[0] >= 0  # cells stay where the rule is defined
    assert "trained network (a = 0)" in texts(fig)
    png(fig)


@pytest.mark.parametrize("n", [121, 300, 301])
def test_thinned_surface_keeps_borders(n):
    fig = plotting.surface(make(coords=(np.linspace(-1, 1, n), Y)))
    vertices = np.asarray(drawn(fig.axes[0])._faces).reshape(-1, 3)
    assert len(np.unique(vertices[:, 0])) == 121
    assert (vertices[:, 0].min(), vertices[:, 0].max()) == (-1, 1)
    np.testing.assert_allclose(vertices[:, 2], bowl(vertices[:, 0], vertices[:, 1]))


# --------------------------------------------------------------------------------------- caps, logarithms, holes


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_cap_is_only_in_the_picture_and_is_said(kind, log):
    plane = make()
    before = plane.values["loss"].copy()
    fig = draw(kind, plane, cap=3.0, log=log)
    np.testing.assert_array_equal(plane.values["loss"], before)
    assert "clipped at 3" in texts(fig)
    top = np.log10(3) if log else 3
    if kind == "contour":
        assert drawn(fig.axes[0]).levels[-1] == pytest.approx(top)
        assert drawn(fig.axes[0]).extend == "max"
    else:
        assert drawn(fig.axes[0]).get_array().max() == pytest.approx(top)
        assert drawn(fig.axes[0]).get_clim()[1] == pytest.approx(top)
    assert "clipped" not in texts(draw(kind, plane, cap=1e9))


def test_log_positions_and_labels():
    fig = plotting.heatmap(make(lambda a, b: 10 ** (2 * a + 0 * b)), log=True)
    np.testing.assert_allclose(drawn(fig.axes[0]).get_array()[0], 2 * X, atol=1e-12)
    bar = fig.axes[1]
    labels = [t.get_text() for t in bar.get_yticklabels()]
    assert labels == ["0.01", "0.1", "1", "10", "100"]
    np.testing.assert_allclose(bar.get_yticks(), [-2, -1, 0, 1, 2], atol=1e-12)
    assert "loss (log scale)" in texts(fig)


@pytest.mark.parametrize("kind", KINDS)
def test_not_finite_cells_are_holes(kind):
    holes = [(3, 4), (8, 0), (16, 12)]
    fig = draw(kind, with_holes(*holes))
    ax = fig.axes[0]
    for i, j in holes:
        if kind == "heatmap":
            assert np.ma.getmaskarray(drawn(ax).get_array())[j, i]
        elif kind == "contour":
            assert not any(path.contains_point((X[i], Y[j])) for path in drawn(ax).get_paths() if len(path.vertices))
        else:
            corners = np.asarray(drawn(ax)._faces)[..., :2]
            assert not (abs(corners - (X[i], Y[j])).max(axis=-1) < 1e-9).any()
    if kind == "heatmap":
        assert np.ma.getmaskarray(drawn(ax).get_array()).sum() == 3
    if kind == "surface":
        assert len(drawn(ax)._faces) == 16 * 12 - 4 - 2 - 1
    else:
        assert any(patch.get_hatch() for patch in ax.patches)
    assert "not finite" in texts(fig)
    whole = draw(kind, make())
    assert "not finite" not in texts(whole)
    assert not any(patch.get_hatch() for patch in whole.axes[0].patches)


def test_hole_is_hatched_grey_on_the_page():
    pixels = colour_at(plotting.heatmap(with_holes((3, 4))), X[3], Y[4])
    assert np.ptp(pixels, axis=-1).max() < 0.03
    assert pixels.mean() > 0.6


@pytest.mark.parametrize("kind", KINDS)
def test_fine_plane(kind):
    fine = np.linspace(-1, 1, 150)
    png(draw(kind, make(coords=(fine, fine))))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_constant_landscape(kind, log):
    for constant in (0.7, 0.0) if not log else (0.7,):
        png(draw(kind, make(lambda a, b, c=constant: 0 * a * b + c), log=log))


def test_nearly_constant_ticks_stay_distinct():
    fig = plotting.heatmap(make(lambda a, b: 2.302585 + 1e-7 * a + 0 * b))
    labels = [t.get_text() for t in fig.axes[1].get_yticklabels()]
    assert len(set(labels)) == len(labels) >= 3


def test_incomplete_is_said():
    for kind in KINDS:
        fig = draw(kind, make(complete=False), title="LeNet")
        assert fig.axes[0].get_title() == "LeNet (incomplete)"
    assert plotting.line(line(complete=False)).axes[0].get_title() == "(incomplete)"
    partial = make(complete=False)
    partial.recipe["points_done"] = 1200
    for kind in KINDS:
        assert draw(kind, partial).axes[0].get_title() == "(incomplete: 1,200 of 221 points)"
    assert "two (incomplete)" in texts(plotting.contour({"one": make(), "two": make(complete=False)}))


# ---------------------------------------------------------------------------------------------- several panels


def test_contour_of_a_mapping_shares_levels():
    models = {"SGD": make(), "Adam": make(lambda a, b: 5 * bowl(a, b)), "none": make(lambda a, b: 0 * a * b + 1.0)}
    fig = plotting.contour(models)
    *axes, bar = fig.axes
    assert [ax.get_title() for ax in axes] == list(models)
    levels = [drawn(ax).levels for ax in axes]
    np.testing.assert_array_equal(levels[0], levels[1])
    np.testing.assert_array_equal(levels[0], levels[2])
    assert len({drawn(ax).get_clim() for ax in axes}) == 1
    assert levels[0][0] <= 0.1
    assert levels[0][-1] >= models["Adam"].values["loss"].max()
    assert bar.get_ylabel() == "loss"
    png(fig)


@pytest.mark.parametrize("kind", KINDS)
def test_ten_panels(kind):
    modes = {f"mode {k}": make(lambda a, b, k=k: (k + 1) * bowl(a, b)) for k in range(10)}
    own = plotting.panels(modes, kind=kind)
    assert "loss, each panel on its own scale" in own.get_suptitle()
    tops = [drawn(ax).get_clim()[1] for ax in own.axes[:10]]
    assert len(set(tops)) == 10
    assert own.axes[0].get_xlabel() == "a"
    assert own.get_figwidth() == 7.0
    shared = plotting.panels(modes, kind=kind, shared=True)
    assert len(shared.axes) == 11
    assert len({drawn(ax).get_clim() for ax in shared.axes[:10]}) == 1


def test_panel_without_finite_cells_does_not_stop_the_others():
    dead = make(lambda a, b: np.full_like(a, np.nan))
    for kind in KINDS:
        for shared in (False, True):
            fig = plotting.panels({"good": make(), "dead": dead}, kind=kind, shared=shared)
            assert "dead: no finite cell" in texts(fig)
            png(fig)


def test_volume_slices():
    space = make(
        lambda a, b, c: bowl(a, b) + c**2,
        (X, Y, np.linspace(-1, 1, 11)),
        directions={"kind": "random", "marks": [["B", [0.5, 1.0, 0.45]]]},
    )
    fig = plotting.volume(space, slices=5)
    *axes, _ = fig.axes
    assert [ax.get_title() for ax in axes] == ["c = -1", "c = -0.6", "c = 0", "c = 0.6", "c = 1"]
    assert len({tuple(drawn(ax).levels) for ax in axes}) == 1
    stars = [ax.get_title() for ax in axes if any(artist.get_marker() == "*" for artist in ax.lines)]
    named = [ax.get_title() for ax in axes if "B" in map(_text, ax.texts)]
    assert stars == ["c = 0"]
    assert named == ["c = 0.6"]
    png(plotting.volume(space, slices=1, log=True, cap=3))


@pytest.mark.parametrize("slices", range(1, 14))
def test_as_many_slices_as_asked_for(slices):
    cut = np.linspace(-6 / 7, 1.5, 12)
    fig = plotting.volume(make(lambda a, b, c: a + b + c, (X[:3], Y[:3], cut)), slices=slices)
    heads = [ax.get_title() for ax in fig.axes[:-1]]
    assert len(heads) == min(slices, 12)
    if slices > 1:
        assert (heads[0], heads[-1]) == ("c = -0.857", "c = 1.5")
    if slices % 2:
        assert "c = 0" in heads
    near = plotting.volume(make(lambda a, b, c: a + b + c, (X[:3], Y[:3], [1, 1.0001, 2])))
    assert [ax.get_title() for ax in near.axes[:-1]] == ["c = 1", "c = 1.0001", "c = 2"]


# --------------------------------------------------------------------------------------------- marks and labels


@pytest.mark.parametrize("kind", KINDS)
def test_labels(kind):
    fig = draw(kind, make(), title="a title")
    ax = fig.axes[0]
    surface = kind == "surface"
    assert ax.get_xlabel() == ("a" if surface else "a (units of d1: random, filter-normalized)")
    assert ax.get_ylabel().startswith("b" if surface else "b (units of d2")
    assert ("a, b: units of random, filter-normalized directions" in texts(fig)) == surface
    for said in ("random, filter-normalized", "trained network", "a title"):
        assert said in texts(fig)
    assert fig.axes[1].get_ylabel() == "loss"
    assert (ax.get_xlim()[0] <= -1, ax.get_xlim()[1] >= 1, ax.get_ylim()[1] >= 2.5) == (True, True, True)
    bare = draw(kind, Landscape((X, Y), make().values, {}, {}))
    assert bare.axes[0].get_xlabel() == ("a" if surface else "a (units of d1)")


@pytest.mark.parametrize("kind", KINDS)
def test_marks_are_named_and_placed(kind):
    marks = [["A", [0, 0]], ["B", [1, 0]], ["far", [9, 9]]]
    fig = draw(kind, make(directions={"kind": "between", "names": ["B - A", "C - A"], "marks": marks}))
    said = [t.get_text().strip() for t in fig.axes[0].texts]
    assert said == ["A", "B"]
    assert ("a: B - A; b: C - A" if kind == "surface" else "units of B - A") in texts(fig)
    points = [np.ravel(line.get_data_3d() if kind == "surface" else line.get_data()) for line in fig.axes[0].lines]
    assert any(np.allclose(point[:2], (1, 0)) for point in points if len(point) in (2, 3))
    if kind == "surface":
        heights = [point[2] for point in points if len(point) == 3 and point[0] == 1]
        np.testing.assert_allclose(sorted(heights), [plotting_floor(fig), bowl(1, 0)], rtol=0.05)
        stems = [line.get_data_3d() for line in fig.axes[0].lines if len(line.get_data_3d()[0]) == 2]
        assert [[a[0], b[0]] for a, b, _ in stems] == [[0, 0], [1, 0]]


def plotting_floor(fig):
    return fig.axes[0].get_zlim()[0]


def test_marks_behind_the_surface_are_faded():
    recipe = {"kind": "between", "names": ["B - A", "C - A"], "marks": [["A", [0, 0]], ["B", [0.9, 0.9]]]}
    axis = np.linspace(-1, 1, 31)
    hill = make(lambda a, b: np.exp(-8 * ((a - 0.15) ** 2 + (b + 0.25) ** 2)), (axis, axis), directions=recipe)
    fig = plotting.surface(hill)
    alphas = {line.get_marker(): line.get_alpha() for line in fig.axes[0].lines if np.size(line.get_data_3d()[2]) == 1}
    assert alphas == {"*": 0.55, "o": None, "x": None}
    assert "behind the surface" in texts(fig)
    hill.values["loss"][:] = axis  # a slope facing the eye
    assert "behind the surface" not in texts(plotting.surface(hill))
    ax = Figure().add_subplot(projection="3d", proj_type="ortho")
    hill.values["loss"][:] = np.exp(-8 * ((axis[:, None] - 0.15) ** 2 + (axis + 0.25) ** 2))
    assert "behind the surface" in texts(plotting.surface(hill, ax=ax))
    adam = make(lambda a, b: a**2 / b, (axis, np.linspace(0.1, 2, 20)), rule="adam")
    (row, ghost) = plotting.surface(adam).axes[0].lines
    assert 0 < np.isnan(row.get_data_3d()[2]).sum() < 20
    assert np.isfinite(ghost.get_data_3d()[2]).all()


LONG = ["checkpoint 1 after 120 epochs - trained", "checkpoint 2 after 120 epochs - trained"]
BETWEEN = {"kind": "between", "names": LONG, "marks": [["trained", [0, 0]], ["checkpoint 2", [0, 1]]]}


def boxes(fig):
    """Where the words are: (text, bounding box) of all but mark names, whose place is in the picture."""
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    found = []
    for ax in fig.axes:
        axes = [ax.xaxis, ax.yaxis, *([ax.zaxis] if hasattr(ax, "zaxis") else [])]
        ticks = [tick.label1 for axis in axes for tick in axis.get_major_ticks()]
        ticks += [tick.label2 for axis in axes for tick in axis.get_major_ticks()]
        found += [*ticks, *(axis.label for axis in axes), ax.title]
    for legend in fig.legends:
        found += [legend.get_title(), *legend.get_texts()]
    renderer = canvas.get_renderer()
    words = [t for t in found if t.get_visible() and t.get_text()]
    return [(t.get_text(), t.get_window_extent(renderer)) for t in words]


PAGES = {
    **{kind: lambda kind=kind: draw(kind, make(directions=BETWEEN), title="long " * 20) for kind in KINDS},
    **{f"{kind} log": lambda kind=kind: draw(kind, make(coords=(X, Y - Y[0] + 0.1)), log=True) for kind in KINDS},
    **{
        f"{kind} panels": lambda kind=kind: plotting.panels(
            {f"mode {k}": make(directions=BETWEEN if k % 2 else RANDOM) for k in range(4)}, kind=kind, log=True
        )
        for kind in KINDS
    },
    "eight": lambda: plotting.panels({f"mode {k}": make(coords=(X, X)) for k in range(8)}, log=True, title="eight"),
}


@pytest.mark.parametrize("page", PAGES)
def test_words_do_not_touch(page):
    fig = PAGES[page]()
    words = boxes(fig)
    bars = [("bar", ax.get_window_extent()) for ax in fig.axes if ax.get_label() == "<colorbar>"]
    for k, (text, box) in enumerate(words):
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= fig.bbox.x1 + 1, text
        assert box.y1 <= fig.bbox.y1 + 1, text
        for other, its in words[k + 1 :] + bars:
            inner = its.padded(-1)
            assert not inner.overlaps(box), (text, other)


def test_panels_say_what_their_axes_are():
    same = plotting.panels({"one": make(), "two": make()}, kind="contour")
    assert "a, b: units of random, filter-normalized directions" in texts(same)
    other = make(directions={"kind": "adam_moments", "names": ["m", "v"]})
    mixed = plotting.contour({"one": make(), "two": other})
    assert mixed.axes[1].get_title() == "two\na: m; b: v (Adam moment)"
    joined = {"kind": "join", "names": ["gradient", "random 1", "random 2"]}
    volume = plotting.volume(make(lambda a, b, c: a + b + c, (X, Y, Z), directions=joined))
    assert "a: gradient; b, c: random |" in texts(volume)


def test_start_of_a_positive_axis_is_labelled():
    fig = plotting.contour(make(coords=(X, np.linspace(0.05, 2, 9)), rule="adam"))
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["0.05", "0.5", "1", "1.5", "2"]


def test_chosen_directions_keep_their_names_and_marks():
    recipe = {"kind": "between", "names": ["B - A", "C - A"], "marks": [["A", [0, 0]], ["B", [1, 0]], ["C", [0, 1]]]}
    between = Directions({"w": np.eye(2)}, Recipe(recipe))
    ax = plotting.contour(make(directions=dict(between[[1, 0]].recipe))).axes[0]
    assert "C - A" in ax.get_xlabel()
    assert {t.get_text(): tuple(t.xy) for t in ax.texts} == {"A": (0, 0), "B": (0, 1), "C": (1, 0)}
    ax = plotting.line(line(directions=dict(between[[1, 0]][0].recipe))).axes[0]
    assert "C - A" in ax.get_xlabel()
    assert {t.get_text(): t.xy[0] for t in ax.texts} == {"A": 0, "C": 1}  # B is not on this line


def test_rules_say_where_the_network_is():
    assert "trained" not in texts(plotting.contour(make(rule="mine.curved")))
    assert "trained" not in texts(plotting.line(line(rule="mine.curved")))
    assert "a = 0" in texts(plotting.contour(make(rule="adam(eps=0.001)", coords=(X, Y + 1))))


def test_centre_outside_the_plane_is_not_marked():
    for kind in KINDS:
        assert "trained" not in texts(draw(kind, make(coords=(X + 3, Y))))


def test_draw_into_given_axes():
    fig = Figure(figsize=(7, 3))
    left, right = fig.add_subplot(121), fig.add_subplot(122, projection="3d")
    assert plotting.contour(make(), ax=left) is fig
    assert plotting.surface(make(), ax=right) is fig
    assert drawn(left) is not None
    png(fig)
    with pytest.raises(ValueError, match="projection"):
        plotting.surface(make(), ax=left)
    with pytest.raises(ValueError, match="plain 2-D axes"):
        plotting.heatmap(make(), ax=right)
    with pytest.raises(ValueError, match="ax takes one landscape"):
        plotting.contour({"one": make(), "two": make()}, ax=left)


# ------------------------------------------------------------------------------------------------------- lines


def band(ax, k=0):
    """Lower and upper border of the k-th filled band, by coordinate."""
    vertices = ax.collections[k].get_paths()[0].vertices
    x = np.unique(vertices[:, 0])
    return x, *(np.array([edge(vertices[vertices[:, 0] == t, 1]) for t in x]) for edge in (np.min, np.max))


def test_line_band_is_one_standard_error():
    error = np.linspace(0.01, 0.2, 21)
    landscape = line(stderr={"loss": error})
    fig = plotting.line(landscape)
    ax = fig.axes[0]
    x, low, high = band(ax)
    np.testing.assert_allclose(x, landscape.coords[0])
    np.testing.assert_allclose(low, landscape.values["loss"] - error)
    np.testing.assert_allclose(high, landscape.values["loss"] + error)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), landscape.values["loss"])
    assert "± 1 standard error" in texts(fig)
    assert ax.get_ylabel() == "loss"
    assert plotting.line(landscape, ["loss", "test_loss"]).axes[0].get_ylabel() == "loss"
    assert plotting.line(landscape, ["loss", "accuracy"]).axes[0].get_ylabel() == "loss, accuracy"
    assert ax.get_xlabel() == "a (units of d1: random, filter-normalized)"
    assert "standard error" not in texts(plotting.line(line()))
    png(fig)


def test_line_of_several_values_holes_and_marks():
    landscape = line(directions={"kind": "between", "marks": [["A", [0]], ["B", [1]]]}, complete=False)
    landscape.values["loss"][[4, 6, 7]] = np.inf
    fig = plotting.line(landscape, ["loss", "test_loss"], log=True)
    ax = fig.axes[0]
    assert np.isnan(ax.lines[0].get_ydata()[4])
    assert np.isinf(landscape.values["loss"][4])
    assert ax.lines[0].get_color() != ax.lines[1].get_color()
    hatched = [patch.get_extents().transformed(ax.transData.inverted()).intervalx for patch in ax.patches]
    np.testing.assert_allclose(hatched, [(-0.65, -0.55), (-0.45, -0.25)])
    assert ax.get_yscale() == "log"
    for said in ("loss", "test loss", "not finite or not computed", "A", "B", "incomplete"):
        assert said in texts(fig)
    png(fig)


def test_train_test():
    landscape = line(stderr={"loss": np.full(21, 0.1), "test_accuracy": np.full(21, 0.05)})
    fig = plotting.train_test(landscape)
    left, right = fig.axes
    for ax, metric in ((left, "loss"), (right, "accuracy")):
        train, test = ax.lines[:2]
        assert (train.get_linestyle(), test.get_linestyle()) == ("-", "--")
        np.testing.assert_array_equal(train.get_ydata(), landscape.values[metric])
        np.testing.assert_array_equal(test.get_ydata(), landscape.values[f"test_{metric}"])
        assert train.get_color() == test.get_color() == ax.yaxis.label.get_color()
        assert ax.get_ylabel() == metric
    assert left.lines[0].get_color() != right.lines[0].get_color()
    _, low, high = band(right)
    np.testing.assert_allclose((low, high), landscape.values["test_accuracy"] + np.array([[-0.05], [0.05]]))
    for said in ("train loss", "test loss", "train accuracy", "test accuracy", "± 1 standard error"):
        assert said in texts(fig)
    assert len(plotting.train_test(landscape, accuracy=None, log=True).axes) == 1
    png(fig)


def test_log_ticks_of_lines():
    for fig in (plotting.line(line(), log=True), plotting.train_test(line(), log=True)):
        ax = fig.axes[0]
        png(fig)
        assert [t.get_text() for t in ax.get_yticklabels()] == ["0.1", "0.2", "0.5", "1", "2"]
        assert not any(t.get_text() for t in ax.get_yticklabels(minor=True))
        colours = {tick.tick1line.get_color() for which in (True, False) for tick in minor_or_major(ax.yaxis, which)}
        assert colours == {ax.yaxis.label.get_color()}


def minor_or_major(axis, minor):
    return axis.get_minor_ticks() if minor else axis.get_major_ticks()


# ------------------------------------------------------------------------------------------------------ errors

NAN = make(lambda a, b: np.full_like(a, np.nan))
ERRORS = {
    "line has no plane": (lambda: plotting.surface(line()), r"surface draws 2 axes.*has 1.*use line"),
    "plane is no line": (lambda: plotting.line(make()), r"line draws 1 axis,.*has 2.*use surface"),
    "plane is no volume": (lambda: plotting.volume(make()), r"volume draws 3 axes"),
    "unknown value": (lambda: plotting.heatmap(make(), "acc"), r"value='acc'.*it has 'loss'"),
    "unknown other": (lambda: plotting.train_test(line(), other="dev"), r"'dev_loss'.*it has 'loss', 'test_loss'"),
    "no name": (lambda: plotting.line(line(), []), r"names nothing.*'loss'"),
    "unknown kind": (lambda: plotting.panels({"a": make()}, kind="pie"), r"kind='pie'.*'surface', 'contour'"),
    "nothing": (lambda: plotting.panels({}), r"landscapes is empty"),
    "no finite cell": (lambda: plotting.contour(NAN), r"'loss' has no finite cell among 221"),
    "no finite point": (lambda: plotting.line(line(loss=np.full(21, np.inf))), r"no finite cell among 21"),
    "log of negative": (lambda: plotting.surface(make(lambda a, b: a + b), log=True), r"log=True.*smallest -1.5"),
    "log line": (lambda: plotting.line(line(loss=np.zeros(21)), log=True), r"log=True.*21 at or below"),
    "cap": (lambda: plotting.contour(make(), cap=np.inf), r"cap=inf must be a finite number"),
    "cap text": (lambda: plotting.surface(make(), cap="5"), r"cap='5' must be a finite number; give one"),
    "cap nan": (lambda: plotting.heatmap(make(), cap=np.nan), r"cap=nan must be a finite number"),
    "list": (lambda: plotting.contour([make()]), r"type list is not a Landscape.*\{name: landscape\}"),
    "list of panels": (lambda: plotting.panels([make()]), r"landscapes of type list.*\{name: landscape\}"),
    "list of values": (lambda: plotting.surface(make(), ["loss"]), r"value=\['loss'\].*it has 'loss', give one name"),
    "metric": (lambda: plotting.train_test(line(), accuracy="f1"), r"accuracy='f1'.*it has .*None leaves it out"),
    "metric loss": (lambda: plotting.train_test(line(), loss="nll"), r"loss='nll'.*it has 'loss'"),
    "levels text": (lambda: plotting.contour(make(), levels="20"), r"levels='20'"),
    "log cap": (lambda: plotting.contour(make(), cap=-1, log=True), r"cap=-1 .*above 0"),
    "levels": (lambda: plotting.contour(make(), levels=[2, 1]), r"levels=\[2, 1\].*increasing"),
    "level count": (lambda: plotting.contour(make(), levels=0), r"levels=0"),
    "slices": (lambda: plotting.volume(make(lambda a, b, c: a, (X, Y, Z)), slices=0), r"slices=0"),
    "one row": (lambda: plotting.contour(make(coords=(X, [0.0]))), r"2 points or more.*\(17, 1\).*use heatmap"),
    "shape": (
        lambda: plotting.heatmap(Landscape((X, Y), {"loss": np.zeros((13, 17))}, {}, {})),
        r"\(13, 17\).*\(17, 13\)",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_what_exists(case):
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_given_levels_colour_what_lies_beyond():
    fig = plotting.contour(make(), levels=[0.5, 1.0, 2.0])
    filled = drawn(fig.axes[0])
    assert filled.extend == "both"
    np.testing.assert_array_equal(filled.levels, [0.5, 1.0, 2.0])


def test_one_row_heatmap_and_no_pyplot_state():
    png(plotting.heatmap(make(coords=(X, [0.0]))))
    import matplotlib.pyplot as plt

    assert not plt.get_fignums()


def test_a_panel_whose_name_says_it_all_has_no_caption_beside():
    def of(kind, by):
        return make(directions={"kind": kind, "normalize": [{"by": by}]})

    told = {"random, filter-normalized": of("random", "filter"), "random, weight-normalized": of("random", "weight")}
    assert "units of" not in texts(plotting.panels(told, kind="contour"))
    untold = {"run 1": of("random", "filter"), "run 2": of("random", "weight")}
    assert "units of" in texts(plotting.panels(untold, kind="contour"))
