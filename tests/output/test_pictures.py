"""Which pictures a result gets as files, for users of the library; and curvature in words."""

from __future__ import annotations

import logging

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.output import pictures, plotting, words
from tests.helpers import dataset, mlp_loss, params

T = np.linspace(-1, 1, 5)


def landscape(dims=2, low=0.1, high=1.0, **more):
    values = np.linspace(low, high, 5**dims).reshape((5,) * dims)
    return lla.Landscape((T,) * dims, {"loss": values, **more}, {}, {"rule": "add"})


def twin():
    return landscape(1, test_loss=np.full(5, 2000.0), accuracy=np.full(5, 0.9), test_accuracy=np.full(5, 0.8))


@pytest.mark.parametrize(
    ("result", "value", "names"),
    [
        (landscape(1), "loss", ["x-line.pdf"]),
        (twin(), "loss", ["x-line.pdf", "x-train-test.pdf"]),
        (twin(), "accuracy", ["x-accuracy-line.pdf"]),
        (landscape(2), "loss", ["x-surface.pdf", "x-contour.pdf"]),
        (lla.Landscape((T, T[:1]), {"loss": np.ones((5, 1))}, {}, {}), "loss", ["x-heatmap.pdf"]),
        (landscape(3), "loss", ["x-slices.pdf"]),
    ],
)
def test_a_landscape_gets_the_pictures_of_its_axes(result, value, names, tmp_path):
    paths = pictures.draw_landscape(result, tmp_path, "x", value, suffix="pdf")
    assert [path.name for path in paths] == names
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("result", "options", "logarithmic"),
    [
        (landscape(high=100.1), {}, True),
        (landscape(high=99.9), {}, False),
        (landscape(high=100.1), {"cap": 50.0}, False),
        (landscape(high=100.1), {"log": False}, False),
        (landscape(high=2.0), {"log": True}, True),
        (landscape(low=-1.0), {"log": True}, False),
        (landscape(low=np.nan, high=np.nan), {"log": True}, False),
        (twin(), {}, True),  # by the test loss, which is drawn beside it
    ],
)
def test_the_scale_follows_the_span_unless_it_is_asked_for(result, options, logarithmic):
    assert pictures.choose_scale(result, **options)[0] is logarithmic


def test_what_is_decided_is_logged(tmp_path, caplog, monkeypatch):
    with caplog.at_level(logging.INFO, "lla_jax"):
        pictures.draw_landscape(landscape(high=1000.0), tmp_path)
        pictures.draw_landscape(landscape(low=-1.0), tmp_path, log=True)
        pictures.draw_landscape(landscape(high=1000.0), tmp_path, log=True)
        assert caplog.messages == [
            "the pictures are logarithmic (loss: 0.1 to 1000); log=False draws them linearly",
            "log: True given, but a logarithm needs values above 0 (loss: -1 to 1); the pictures are linear",
        ]

    def broken(*arguments, **options):
        raise ValueError("no ink")

    said = []
    monkeypatch.setattr(plotting, "surface", broken)
    paths = pictures.draw_landscape(landscape(), tmp_path, "y", report=said.append)
    assert [path.name for path in paths] == ["y-contour.png"]
    assert said == ["no picture y-surface.png: no ink"]


def test_curvature_is_told_in_words_numbers_and_pictures(tmp_path):
    H, keys = lla.hessian(mlp_loss(), params(), dataset()), jax.random.split(jax.random.key(0), 4)
    found = words.CurvatureResults(
        lla.eigenpairs(H, keys[0], 2), lla.spectrum(H, keys[1], steps=9, probes=2), lla.trace(H, keys[2])
    )
    text = words.describe(found)
    assert text.startswith("Curvature: Hessian of 58 parameters, mean over 23 examples\nEigenvalues, largest magnitude")
    assert "Layers" not in text
    assert words.plain_data(found)["eigenvalues"] == found.pairs.values.tolist()
    assert [path.name for path in pictures.draw_curvature(found, tmp_path)] == ["spectrum.png", "eigenvalues.png"]
    rows = tuple(lla.per_layer(mlp_loss(), params(), dataset(), keys[3]))
    paths = pictures.draw_curvature(found._replace(layers=rows), tmp_path, "svg")
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == sorted(path.name for path in paths)
    assert "Layers:" in words.describe(found._replace(layers=rows))


def test_a_given_operator_is_told_without_data():
    H = lla.operators.given(lambda v: 2 * v, np.zeros(7, np.float32))
    key = jax.random.key(0)
    found = words.CurvatureResults(
        lla.eigenpairs(H, key, 1), lla.spectrum(H, key, steps=1, probes=1), lla.trace(H, key)
    )
    assert words.describe(found).startswith("Curvature: matrix of 7 parameters\n")
