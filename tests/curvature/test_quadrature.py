"""Spectra by stochastic Lanczos quadrature and their densities: exact moments, no ghosts, resumed to the bit."""

import functools
import os
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

import lla_jax as lla
from lla_jax.core.standard_errors import widening
from lla_jax.curvature import eigen, eigensearch, operators
from lla_jax.execution import devices
from tests.curvature.cases import COPIES, PROBE, interrupted
from tests.helpers import OPERATORS, breaking_operator, flat, symmetric_matrix, tree_operator, vector_operator

KEY = jax.random.key(1)
N = len(COPIES)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_ghosts_and_each_distinct_value_once(dtype):
    with jax.enable_x64(dtype == "float64"):
        spec = lla.spectrum(vector_operator(symmetric_matrix(COPIES, dtype)), KEY, steps=100, probes=2)
    distinct = [10.0, 7.03, 7.02, 7.01, 7.0, -4.0]
    for nodes, weights in zip(spec.nodes, spec.weights, strict=True):
        shown = nodes[weights > 0]
        assert (np.diff(shown) > 0).all()
        outside = shown[(shown > 1.01) | (shown < -0.51)]
        assert np.allclose(np.sort(outside), np.sort(distinct), atol=2e-4)
    assert np.allclose(spec.weights.sum(1), 1)
    # the threefold value has the weight of three: v'P v for the probe's part in its eigenspace, 3 / n in the mean
    assert 0.2 < (spec.weights * (spec.nodes > 9)).sum(1).mean() * N / 3 < 5


@pytest.mark.parametrize("traceable", [True, False], ids=["device", "host"])
def test_moments_are_exact_up_to_twice_the_steps(traceable):
    with jax.enable_x64(True):
        a = symmetric_matrix(COPIES / 10, "float64")
        H = vector_operator(a, traceable)
        steps = 6
        spec = lla.spectrum(H, KEY, steps=steps, probes=2)
        starts = [np.asarray(lla.lanczos.random(H, KEY, p, "rademacher")) for p in range(2)]
    for nodes, weights, v in zip(spec.nodes, spec.weights, starts, strict=True):
        v = v / np.linalg.norm(v)
        exact, power = [], v
        for _ in range(2 * steps + 1):
            exact.append(v @ power)
            power = a @ power
        found = [(weights * nodes**j).sum() for j in range(2 * steps + 1)]
        assert np.allclose(found[:-1], exact[:-1], rtol=0, atol=1e-13)
        assert abs(found[-1] - exact[-1]) > 1e-10  # and no further


def test_products_that_are_not_finite_end_a_spectrum():
    H, product = breaking_operator(PROBE + 2 + 10 + 5)
    whole = lla.spectrum(tree_operator(product.a, False), KEY, steps=10)
    with pytest.warns(UserWarning, match="product 5 of probe 2 is not finite; the 2 of 4 probes"):
        spec = lla.spectrum(H, KEY, steps=10)
    assert spec.nodes.shape == (2, 10)
    assert np.array_equal(spec.nodes[0], whole.nodes[0])
    assert spec.recipe["steps_done"] == [10, 4]
    assert (spec.weights[1] > 0).sum() == 4
    H, _ = breaking_operator(PROBE + 3)
    with pytest.raises(ValueError, match="nothing to keep"):
        lla.spectrum(H, KEY, steps=10)
    found = eigen.extremes(breaking_operator(1)[0], KEY, 10)
    assert np.isnan([found.smallest, found.largest, found.residual]).all()
    assert found.products == 1


def test_a_spectrum_that_memory_cannot_hold_is_refused(monkeypatch):
    monkeypatch.setattr(devices, "free_bytes", lambda device: 20 * 4 * 15)
    H = vector_operator(symmetric_matrix(np.arange(20.0)))
    with pytest.raises(ValueError, match=r"steps: 16 given, .*; it must be at most 15: take fewer"):
        lla.spectrum(H, KEY, steps=16, probes=1)
    assert lla.spectrum(H, KEY, steps=16, probes=1, scheme="lla").nodes.shape == (1, 16)
    assert lla.spectrum(H, KEY, steps=4, probes=4).nodes.shape == (4, 4)  # one at a time


def test_out_of_memory_halves_the_probes_at_once(monkeypatch):
    H = vector_operator(symmetric_matrix(np.arange(20.0)))
    whole = lla.spectrum(H, KEY, steps=4, probes=4)
    advance = eigensearch._lanczos.advance

    def scarce(H, basis, *args, **options):
        if jax.tree.leaves(basis)[0].shape[0] > 2 and options["batched"]:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return advance(H, basis, *args, **options)

    monkeypatch.setattr(eigensearch._lanczos, "advance", scarce)
    spec = lla.spectrum(H, KEY, steps=4, probes=4)
    assert np.allclose(spec.nodes, whole.nodes, atol=1e-4)
    assert spec.recipe["products"] == whole.recipe["products"] == 18


NEEDED = """
import gc, pathlib, time, jax, lla_jax as lla
from lla_jax.curvature import operators

def now(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(x for x in lines if x.startswith(name)).split()[1])

def settle():
    # the vectors of the first product are given back late, up to 250 MiB
    gc.collect()
    time.sleep(0.1)
    return now("VmRSS")

like = jax.numpy.linspace(-1, 2, 16_000_000)
H = operators.given(lambda v: like * v, like, traceable=False)
H.product(H.random(jax.random.key(0)))
before = min(settle() for _ in range(20))
pathlib.Path("/proc/self/clear_refs").write_text("5")
found = lla.spectrum(H, jax.random.key(0), steps=17, probes=1)
print(found.recipe["memory"]["bytes"] / (now("VmHWM") - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the kernel does not count")
def test_memory_is_what_is_said():
    """Within 15 %, for 17 vectors of 61 MiB and as much again beside them, 1.4 GiB in all."""
    command = [sys.executable, "-c", NEEDED]
    ratio = float(subprocess.run(command, check=True, capture_output=True, text=True, timeout=400).stdout)
    assert abs(ratio - 1) < 0.15


@pytest.mark.parametrize("scheme", ["full", "lla"])
@pytest.mark.parametrize("traceable", [True, False], ids=["device", "host"])
def test_resumed_spectra_are_the_same_to_the_bit(traceable, scheme, tmp_path):
    H = vector_operator(symmetric_matrix(COPIES), traceable)

    def call(**more):
        return lla.spectrum(H, KEY, **{"steps": 20, "probes": 2, "scheme": scheme, **more})

    whole = call()
    for at in (9, 22, 40):
        part = interrupted(call, at)
        lla.save(part, tmp_path / "part")
        again = call(resume=lla.load(tmp_path / "part.npz"))
        assert np.array_equal(again.nodes, whole.nodes)
        assert np.array_equal(again.weights, whole.weights)
        assert again.recipe == whole.recipe
    assert call(resume=whole) is whole
    with pytest.raises(ValueError, match=r"the partial result of spectrum differs in steps \("):
        call(resume=part, steps=21)


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


@pytest.mark.parametrize("name", OPERATORS)
def test_moments_of_every_operator_are_those_of_its_matrix(name):
    H, a = OPERATORS[name]()
    spec = lla.spectrum(H, KEY, steps=5, probes=2)
    starts = [flat(lla.lanczos.random(H, KEY, p, "rademacher")) for p in range(2)]
    scale = np.linalg.norm(a, 2)
    for nodes, weights, v in zip(spec.nodes, spec.weights, starts, strict=True):
        moments = [(weights * (nodes / scale) ** j).sum() for j in range(4)]
        exact = [v @ np.linalg.matrix_power(a / scale, j) @ v / (v @ v) for j in range(4)]
        assert np.allclose(moments, exact, rtol=0, atol=3e-6)


def test_after_an_interrupt_while_a_step_is_stored_the_present_probes_begin_anew(monkeypatch):
    H, parts, store = vector_operator(symmetric_matrix(COPIES), False), [], eigensearch._lanczos.store
    call = functools.partial(lla.spectrum, H, KEY, steps=12, probes=2)
    whole, seen = call(), []

    def interrupting(basis, steps, into, **options):
        seen.append(into)
        if len(seen) == 18:
            raise KeyboardInterrupt
        return store(basis, steps, into, **options)

    monkeypatch.setattr(eigensearch._lanczos, "store", interrupting)
    with pytest.raises(KeyboardInterrupt):
        call(on_partial=parts.append)
    monkeypatch.undo()
    (part,) = parts
    assert part.recipe["steps_done"] == [12, 5]
    again = call(resume=part)
    assert np.array_equal(again.nodes, whole.nodes)
    assert np.array_equal(again.weights, whole.weights)


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
