"""Caps, logarithms, levels and ticks act on the picture alone, and are said in it."""

from __future__ import annotations

import numpy as np
import pytest

from lla_jax.output import plotting
from tests.output.plotting.cases import KINDS, X, draw, drawn, make, png, texts


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


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_constant_landscape(kind, log):
    for constant in (0.7, 0.0) if not log else (0.7,):
        png(draw(kind, make(lambda a, b, c=constant: 0 * a * b + c), log=log))


def test_nearly_constant_ticks_stay_distinct():
    fig = plotting.heatmap(make(lambda a, b: 2.302585 + 1e-7 * a + 0 * b))
    labels = [t.get_text() for t in fig.axes[1].get_yticklabels()]
    assert len(set(labels)) == len(labels) >= 3


def test_start_of_a_positive_axis_is_labelled():
    fig = plotting.contour(make(coords=(X, np.linspace(0.05, 2, 9)), rule="adam"))
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["0.05", "0.5", "1", "1.5", "2"]


def test_given_levels_colour_what_lies_beyond():
    fig = plotting.contour(make(), levels=[0.5, 1.0, 2.0])
    filled = drawn(fig.axes[0])
    assert filled.extend == "both"
    np.testing.assert_array_equal(filled.levels, [0.5, 1.0, 2.0])
