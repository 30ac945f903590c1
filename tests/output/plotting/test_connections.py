"""Between two solutions: barriers with their ends and errors, curves in their plane, and bands with their saddle."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from lla_jax.core import recipes
from lla_jax.core.arguments import Misuse
from lla_jax.core.results import Landscape
from lla_jax.output import plotting
from lla_jax.paths.bands.saddles import Saddle
from lla_jax.paths.curves import Curve, bezier
from lla_jax.paths.losses.barriers import Barrier, Height
from tests.output.plotting.cases import PLANE_OF_PATH, line, plane_of_path, png, seen, texts

T = np.linspace(0, 1, 13)
HILL = 0.2 + 0.1 * T + 0.8 * np.sin(np.pi * T) ** 2  # ends of 0.2 and 0.3; 0.8 above their line at t = 0.5


def losses(test=True):
    values = {"loss": HILL} | ({"test_loss": HILL + 0.1 * T**2} if test else {})
    return values, {name: np.full(13, 0.01) for name in values}


def made(**options):
    values, errors = losses(**options)
    heights = {name: Height(0.8, 0.0123, 0.5, 0.8, 0.01, 0.5) for name in values}
    return Barrier(T, values, errors, heights, {}, {"kind": "barrier"})


def along(**options):
    return Landscape((T,), *losses(**options), {"rule": "curve"})


def named(ax, start):
    return next(line for line in ax.lines if str(line.get_label()).startswith(start))


@pytest.mark.parametrize("given", [made(), along()], ids=["barrier", "landscape"])
def test_a_barrier_shows_losses_errors_and_the_line_between_the_ends(given):
    fig = plotting.barrier(given, title="two seeds")
    (ax,) = fig.axes
    for name, z, dash in (("loss", HILL, "-"), ("test loss", HILL + 0.1 * T**2, "--")):
        np.testing.assert_array_equal(named(ax, name).get_data(), (T, z))
        assert named(ax, name).get_linestyle() == dash
    np.testing.assert_allclose(named(ax, "line between").get_data(), (T, 0.2 + 0.1 * T))
    (arrow,) = (text for text in ax.texts if text.arrow_patch is not None)
    np.testing.assert_allclose(sorted([arrow.xy[1], arrow.xyann[1]]), [0.25, 1.05])
    assert arrow.xy[0] == 0.5
    vertices = ax.collections[0].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([vertices.min(), vertices.max()], [HILL.min() - 0.01, HILL.max() + 0.01])
    error = " ± 0.012" if isinstance(given, Barrier) else ""
    assert f"loss (barrier 0.8{error}) |" in texts(fig)
    png(fig)


def test_several_curves_are_compared_on_one_axis():
    flat = Landscape((T,), {"loss": np.full(13, 0.2)}, {}, {})
    fig = plotting.barrier({"line": made(test=False), "Bezier": flat}, log=True)
    for said in ("line: loss (barrier 0.8 ± 0.012)", "Bezier: loss (barrier 0)"):
        assert said in texts(fig)
    assert len([text for text in fig.axes[0].texts if text.arrow_patch is not None]) == 1  # none for a barrier of 0
    assert fig.axes[0].get_yscale() == "log"
    colours = [named(fig.axes[0], name).get_color() for name in ("line: ", "Bezier: ")]
    assert colours[0] != colours[1]


def test_a_loss_that_is_not_finite_makes_a_gap_and_no_barrier_from_nothing():
    holed = HILL.copy()
    holed[6] = np.inf
    fig = plotting.barrier(Landscape((T,), {"loss": holed}, {}, {}))
    assert np.isnan(named(fig.axes[0], "loss").get_ydata()[6])
    ended = HILL.copy()
    ended[0] = np.nan
    assert "barrier not finite" in texts(plotting.barrier(Landscape((T,), {"loss": ended}, {}, {})))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (plane_of_path(), r"^b: .*a landscape of 2 axes"),
        (line(), r"^b: .*do not reach from t = 0 to 1"),
        (seen(), r"^b: .*a projection"),
        ({}, r"^b: "),
        ({"one": 3}, r"^b\['one'\]: "),
        (np.ones(3), r"^b: "),
    ],
)
def test_what_is_no_barrier_is_refused(given, words):
    with pytest.raises(Misuse, match=words):
        plotting.barrier(given)
    with pytest.raises(Misuse, match=r"^value: .*'loss', 'test_loss'"):
        plotting.barrier(made(), "accuracy")


MARKS = {"marks": [["A", [-0.9, 0.0]], ["P1", [0.0, 1.4]], ["B", [0.9, 0.0]]]}


def arc():
    t = np.linspace(0, np.pi, 6)
    return np.stack([-0.9 * np.cos(t), 0.7 * np.sin(t)], -1)


def test_a_curve_lies_in_its_plane_beside_the_straight_line():
    fig = plotting.curve(plane_of_path(), seen(arc(), recipe=PLANE_OF_PATH | MARKS, far=0.0))
    ax = fig.axes[0]
    np.testing.assert_array_equal(np.stack(named(ax, "curve").get_data(), -1), arc())
    np.testing.assert_array_equal(np.stack(named(ax, "straight line").get_data(), -1), arc()[[0, -1]])
    assert {text.get_text(): tuple(text.xy) for text in ax.texts} == {name: tuple(at) for name, at in MARKS["marks"]}
    assert "off the plane" not in texts(fig)
    assert "(up to 0.095 off the plane)" in texts(plotting.curve(plane_of_path(), seen(arc())))
    png(fig)


def test_a_control_point_outside_of_the_plane_is_told():
    far = {"marks": [["A", [-0.9, 0.0]], ["P1", [0.0, 3.0]], ["B", [0.9, 0.0]]]}
    assert "P1 outside of the plane" in texts(plotting.curve(plane_of_path(), seen(arc(), recipe=PLANE_OF_PATH | far)))
    with pytest.raises(Misuse, match=r"marks"):
        plotting.curve(plane_of_path(), seen(arc(), recipe=PLANE_OF_PATH | {"marks": [["A", 3]]}))


KNOTS = np.array([0.0, 0.25, 0.5, 1.0])
POINTS = {"w": np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [4.0, 0.0]], np.float32)}


def a_band(saddle=True, **history):
    history = {"pivot_t": KNOTS, "pivot_loss": np.array([0.1, 0.4, 0.9, 0.2])} | history
    top = Saddle(0.5, {"w": POINTS["w"][2]}, 0.9, 2e-4, 1e-4, True, 1, np.array([-1.0, 0.5])) if saddle else None
    return Curve("band", POINTS, KNOTS, history=history, saddle=top)


def of_band(points=POINTS):
    marks = [recipes.fingerprint(jax.tree.map(lambda x, k=k: x[k], points)) for k in range(4)]
    recipe = {"rule": "curve", "directions": {"kind": "curve", "points": marks}}
    return Landscape((T,), {"loss": HILL}, {"loss": np.full(13, 0.01)}, recipe)


def test_a_band_is_drawn_by_arc_length_with_its_saddle():
    fig = plotting.band(a_band(), of_band())
    (ax,) = fig.axes
    np.testing.assert_allclose(named(ax, "loss").get_data(), (4 * T, HILL))
    np.testing.assert_allclose(named(ax, "pivots").get_data(), (4 * KNOTS, [0.1, 0.4, 0.9, 0.2]))
    np.testing.assert_allclose(np.ravel(named(ax, "saddle").get_data()), (2.0, 0.9))
    assert "saddle: loss 0.9, |gradient| 2.0e-04,\n1 negative eigenvalue" in texts(fig)
    png(fig)
    assert "saddle" not in texts(plotting.band(a_band(saddle=False)))


def test_what_is_no_band_is_refused():
    with pytest.raises(Misuse, match=r"^curve: .*this is a bezier: draw lla\.paths\.evaluate"):
        plotting.band(bezier([{"w": np.zeros(2)}, {"w": np.ones(2)}, {"w": np.zeros(2)}]))
    with pytest.raises(Misuse, match=r"^curve: .*a landscape of 1 axis"):
        plotting.band(of_band())
    with pytest.raises(Misuse, match=r"^landscape: .*not along this band"):
        plotting.band(a_band(), of_band({"w": 2 * POINTS["w"]}))
    with pytest.raises(Misuse, match=r"^landscape: None given"):
        plotting.band(a_band(pivot_loss=np.zeros(0)))
