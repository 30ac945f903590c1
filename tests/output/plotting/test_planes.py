"""Minima are drawn at their (a, b), in surfaces, contours, heat maps, panels and volumes; holes, marks, page."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lla_jax.output import plotting
from tests.output.plotting.cases import (
    KINDS,
    MIN,
    RANDOM,
    X,
    Y,
    Z,
    bowl,
    colour_at,
    draw,
    drawn,
    make,
    png,
    text_of,
    texts,
    with_holes,
)


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
    named = [ax.get_title() for ax in axes if "B" in map(text_of, ax.texts)]
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


def faces(fig):
    """The faces of the marks, as the picture is drawn now."""
    png(fig)
    marks = [line for line in fig.axes[0].lines if np.size(line.get_data_3d()[2]) == 1]
    return {line.get_marker(): line.get_markerfacecolor() for line in marks if line.get_marker() in "*o"}


def test_marks_behind_the_surface_are_grey_while_they_are():
    recipe = {"kind": "between", "names": ["B - A", "C - A"], "marks": [["A", [0, 0]], ["B", [0.9, 0.9]]]}
    axis = np.linspace(-1, 1, 31)
    hill = make(lambda a, b: np.exp(-8 * ((a - 0.15) ** 2 + (b + 0.25) ** 2)), (axis, axis), directions=recipe)
    fig = plotting.surface(hill)
    assert faces(fig) == {"*": "0.72", "o": "white"}
    fig.axes[0].view_init(80, -60)  # turned: the star is in view
    assert faces(fig) == {"*": "white", "o": "white"}
    fig.axes[0].view_init(10, 150)
    assert faces(fig)["*"] == "white"
    fig.axes[0].view_init(30, -60)
    assert faces(fig)["*"] == "0.72"
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
    with pytest.raises(ValueError, match="ax: given with 2 landscapes, but it takes one"):
        plotting.contour({"one": make(), "two": make()}, ax=left)


def test_one_row_heatmap_and_no_pyplot_state():
    png(plotting.heatmap(make(coords=(X, [0.0]))))
    import matplotlib.pyplot as plt

    assert not plt.get_fignums()
