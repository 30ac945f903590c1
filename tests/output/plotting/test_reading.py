"""Labels, captions and marks are those of the recipe; what cannot be drawn is refused with what exists."""

from __future__ import annotations

import numpy as np
import pytest

from lla_jax.core.results import Landscape
from lla_jax.core.types import Directions, Recipe
from lla_jax.output import plotting
from lla_jax.output.plotting import style
from tests.output.plotting.cases import KINDS, X, Y, Z, draw, line, make, texts


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


def test_components_of_a_path_are_told_with_their_shares():
    plane = make(directions={"kind": "pca", "names": ["PC 1: 84 %", "PC 2: 7.1 %"]})
    ax = draw("contour", plane).axes[0]
    assert ax.get_xlabel() == "a (along PC\xa01, 84\xa0% of the variance)"
    assert ax.get_ylabel() == "b (along PC\xa02, 7.1\xa0% of the variance)"
    assert "a: PC\xa01, 84\xa0%; b: PC\xa02, 7.1\xa0%" in texts(draw("surface", plane))


def test_panels_say_what_their_axes_are():
    same = plotting.panels({"one": make(), "two": make()}, kind="contour")
    assert "a, b: units of random, filter-normalized directions" in texts(same)
    other = make(directions={"kind": "adam_moments", "names": ["m", "v"]})
    mixed = plotting.contour({"one": make(), "two": other})
    assert mixed.axes[1].get_title() == "two\na: m; b: v (Adam moment)"
    joined = {"kind": "join", "names": ["gradient", "random 1", "random 2"]}
    volume = plotting.volume(make(lambda a, b, c: a + b + c, (X, Y, Z), directions=joined))
    assert "a: gradient; b, c: random |" in texts(volume)


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


def test_a_panel_whose_name_says_it_all_has_no_caption_beside():
    def of(kind, by):
        return make(directions={"kind": kind, "normalize": [{"by": by}]})

    told = {"random, filter-normalized": of("random", "filter"), "random, weight-normalized": of("random", "weight")}
    assert "units of" not in texts(plotting.panels(told, kind="contour"))
    untold = {"run 1": of("random", "filter"), "run 2": of("random", "weight")}
    assert "units of" in texts(plotting.panels(untold, kind="contour"))


NAN = make(lambda a, b: np.full_like(a, np.nan))
ERRORS = {
    "line has no plane": (
        lambda: plotting.surface(line()),
        r"landscape: .* given; surface draws 2 axes.*has 1.*use line",
    ),
    "plane is no line": (lambda: plotting.line(make()), r"line draws 1 axis,.*has 2.*use surface"),
    "plane is no volume": (lambda: plotting.volume(make()), r"volume draws 3 axes"),
    "unknown value": (
        lambda: plotting.heatmap(make(), "acc"),
        r"value: 'acc' given; it must be one of 'loss', the names",
    ),
    "unknown other": (
        lambda: plotting.train_test(line(), other="dev"),
        r"other: 'dev' given.*'dev_loss'; it has 'loss', 'test_loss'",
    ),
    "no name": (lambda: plotting.line(line(), []), r"value: \[\] given; it must be one name or several of 'loss'"),
    "unknown kind": (
        lambda: plotting.panels({"a": make()}, kind="pie"),
        r"kind: 'pie' given; it must be one of 'surface', 'contour'",
    ),
    "nothing": (lambda: plotting.panels({}), r"landscapes: \{\} given; .*with one landscape at least"),
    "no finite cell": (lambda: plotting.contour(NAN), r"value: 'loss' has no finite cell among 221"),
    "no finite point": (lambda: plotting.line(line(loss=np.full(21, np.inf))), r"no finite cell among 21"),
    "log of negative": (
        lambda: plotting.surface(make(lambda a, b: a + b), log=True),
        r"log: True given.*smallest -1.5",
    ),
    "log line": (
        lambda: plotting.line(line(loss=np.zeros(21)), log=True),
        r"log: True given, but 21 of 21 values of 'loss' are at or below 0",
    ),
    "cap": (lambda: plotting.contour(make(), cap=np.inf), r"cap: inf given; it must be a finite number"),
    "cap text": (lambda: plotting.surface(make(), cap="5"), r"cap: '5' given; it must be a finite number, or None"),
    "cap nan": (lambda: plotting.heatmap(make(), cap=np.nan), r"cap: nan given; it must be a finite number"),
    "list": (lambda: plotting.contour([make()]), r"landscape: .* given; it must be a Landscape.*\{name: landscape\}"),
    "list of panels": (lambda: plotting.panels([make()]), r"landscapes: .* given; it must be \{name: landscape\}"),
    "list of values": (
        lambda: plotting.surface(make(), ["loss"]),
        r"value: \['loss'\] given; it must be one of 'loss'",
    ),
    "metric": (
        lambda: plotting.train_test(line(), accuracy="f1"),
        r"accuracy: 'f1' given; it must be one of .*or None, which leaves it out",
    ),
    "metric loss": (lambda: plotting.train_test(line(), loss="nll"), r"loss: 'nll' given; it must be one of 'loss'"),
    "levels text": (
        lambda: plotting.contour(make(), levels="20"),
        r"levels: '20' given; it must be an integer from 1 to 1000",
    ),
    "log cap": (lambda: plotting.contour(make(), cap=-1, log=True), r"cap: -1 given; .*above 0"),
    "levels": (lambda: plotting.contour(make(), levels=[2, 1]), r"levels: \[2, 1\] given; .*increasing"),
    "level count": (lambda: plotting.contour(make(), levels=0), r"levels: 0 given"),
    "slices": (lambda: plotting.volume(make(lambda a, b, c: a, (X, Y, Z)), slices=0), r"slices: 0 given"),
    "one row": (
        lambda: plotting.contour(make(coords=(X, [0.0]))),
        r"\(17, 1\) points given.*2 points or more.*use heatmap",
    ),
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


def refined(dims, num):
    """A landscape of which the first points are evaluated."""
    coords = (X, Y, Z)[:dims]
    whole = make(lambda *c: 0.1 + sum(x**2 for x in c), coords)
    mask = np.zeros(whole.shape, bool)
    mask.flat[:num] = True
    about = {"errors": {"loss": 0.0081}, "scale": "linear", "level": 0.95}
    return Landscape(whole.coords, whole.values, {}, whole.recipe | {"refinement": about}, mask)


@pytest.mark.parametrize(("kind", "dims"), [("line", 1), ("surface", 2), ("contour", 2), ("heatmap", 2), ("volume", 3)])
def test_evaluated_points_are_marked_and_the_error_is_in_the_legend(kind, dims):
    landscape = refined(dims, 9)
    fig = draw(kind, landscape)
    said = " ".join(texts(fig).split())
    assert (
        f"9 of {landscape.values['loss'].size:,} points evaluated (dots), the rest within 0.81 % of the range" in said
    )
    marks = {"points evaluated" in str(artist.get_label()): artist for ax in fig.axes for artist in ax.lines}
    assert True in marks
    plain = draw(kind, Landscape(landscape.coords, landscape.values, {}, landscape.recipe))
    assert "evaluated" not in texts(plain)


def test_dots_are_small_where_there_are_many_and_lie_on_their_points():
    fig = draw("contour", refined(2, 30))
    (dots,) = (artist for artist in fig.axes[0].lines if "points evaluated" in str(artist.get_label()))
    np.testing.assert_allclose(dots.get_xydata()[[0, 13, 29]], [(X[0], Y[0]), (X[1], Y[0]), (X[2], Y[3])])
    few, many = (style.dots(num)["markersize"] for num in (400, 20_000))
    assert 0.4 <= many < few / 3
