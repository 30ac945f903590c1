"""Densities have mass one, the right coordinates, and errors that cover."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

import lla_jax as lla
from lla_jax.core.standard_errors import widening
from lla_jax.curvature import operators


def spectrum_of(nodes, weights):
    return lla.Spectrum(np.atleast_2d(np.asarray(nodes, float)), np.atleast_2d(np.asarray(weights, float)), {})


@pytest.mark.parametrize("scale", ["linear", "symlog"])
def test_density_has_mass_one_and_keeps_the_tails(scale):
    spec = spectrum_of([[-3.0, 0.0, 5.0], [-1.0, 0.01, 90.0]], [[0.2, 0.7, 0.1], [0.3, 0.69, 0.01]])
    for points, width in ((2000, 1e-3), (60, 1e-5)):  # the second: Gaussians far narrower than a cell
        found = lla.density(spec, points=points, width=width, scale=scale)
        cell = found.t[1] - found.t[0]
        assert np.isclose(found.density.sum() * cell, 1, atol=1e-12)
        assert np.isclose(found.density[found.x > 50].sum() * cell, 0.005, atol=1e-6)
        assert np.isclose(found.density[found.x < -2].sum() * cell, 0.1, atol=1e-6)
        assert (np.diff(found.x) > 0).all()
        ends = np.array([-3.0, 90.0])
        ends = ends if scale == "linear" else np.sign(ends) * np.log10(1 + np.abs(ends) / found.threshold)
        assert found.t[0] - cell / 2 < ends[0] < ends[1] < found.t[-1] + cell / 2
        assert (found.density >= 0).all()
    one = lla.density(spectrum_of([0.0, 1.0], [0.5, 0.5]), points=4001, width=0.02)
    gaussians = 0.5 * (np.exp(-(one.t**2) / 8e-4) + np.exp(-((one.t - 1) ** 2) / 8e-4)) / np.sqrt(2 * np.pi * 4e-4)
    assert np.allclose(one.density, gaussians, atol=1e-3)
    assert np.isnan(one.sem).all()
    half = lla.density(spectrum_of([[0.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [0.6, 0.4]]), points=500)
    scatter = np.where(half.x < 0.5, 0.25, 1)  # 1 and 0.6, 0 and 0.4
    assert np.allclose(half.sem, widening(1) * scatter * half.density)


def test_density_on_a_symlog_axis_is_a_change_of_coordinates():
    spec = spectrum_of([-10.0, 0.0, 10.0], [0.25, 0.5, 0.25])
    found = lla.density(spec, scale="symlog", threshold=0.1, width=0.05)
    assert found.threshold == 0.1
    assert np.allclose(found.x, np.sign(found.t) * 0.1 * (10 ** np.abs(found.t) - 1))
    peak = found.t[np.argmax(np.where(found.t > 1, found.density, 0))]
    assert np.isclose(peak, np.log10(101), atol=0.01)
    assert np.allclose(found.density, found.density[::-1], atol=1e-9)
    assert lla.density(spec, scale="symlog").threshold == pytest.approx(1e-3)


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
@pytest.mark.parametrize("scale", ["linear", "symlog"])
def test_density_of_a_single_value(value, scale):
    found = lla.density(spectrum_of([value] * 3, [1, 0, 0]), scale=scale)
    assert np.isclose(found.density.sum() * (found.t[1] - found.t[0]), 1)
    assert abs(found.x[found.density.argmax()] - value) <= 0.02 * max(1, abs(value))
    assert np.isfinite(found.density).all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"points": 1}, "points: 1 given"),
        ({"width": 0}, "width: 0 given"),
        ({"scale": "log"}, "scale: 'log' given"),
        ({"threshold": 1.0}, 'threshold: 1.0 given with scale="linear"'),
        ({"threshold": -1.0, "scale": "symlog"}, "threshold: -1.0 given"),
        ({"spec": spectrum_of(np.zeros((0, 3)), np.zeros((0, 3)))}, "spec: Spectrum"),
    ],
)
def test_density_refuses(change, match):
    with pytest.raises(ValueError, match=match):
        lla.density(**{"spec": spectrum_of([0.0, 1.0], [0.5, 0.5]), **change})


@pytest.mark.parametrize("steps", [40, 96])
def test_error_bars_of_the_density_cover_whether_or_not_the_steps_resolve_its_width(steps):
    values = np.random.default_rng(0).uniform(-1, 2, 300)
    H = operators.given(lambda v, d: v * d, jnp.zeros(300), jnp.asarray(values, jnp.float32))
    away, raw = [], []
    for seed in range(12):
        spec = lla.spectrum(H, jax.random.key(seed), steps=steps, probes=2, start="normal")
        found = lla.density(spec, points=200)
        cell = found.t[1] - found.t[0]
        edges = np.append(found.t - cell / 2, found.t[-1] + cell / 2)
        error = np.abs(found.density - np.diff(ndtr((edges[:, None] - values) / found.sigma), axis=0).mean(1) / cell)
        there = (found.t > -0.9) & (found.t < 1.9)
        away.append(error[there] / found.sem[there])
        raw.append(error[there] / lla.density(replace(spec, recipe={}), points=200).sem[there])
    assert (np.concatenate(away) <= 2).mean() > 0.93
    assert (np.concatenate(away) <= 3).mean() > 0.98
    assert np.max(raw) > 10  # the scatter of two probes says nothing
