"""Curves are the values, with bands of one standard error, holes, marks and ticks."""

from __future__ import annotations

import numpy as np

from lla_jax.output import plotting
from tests.output.plotting.cases import line, png, texts


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
