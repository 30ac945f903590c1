"""Operators of every size: results are right relative to the operator's own size."""

from __future__ import annotations

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.curvature import eigen, lanczos, operators, units
from lla_jax.curvature.units import Unit
from tests import helpers
from tests.curvature.cases import interrupted
from tests.helpers import symmetric_matrix

KEY = jax.random.key(0)
VALUES = np.array([9.0, 4.0, 2.5, 1.0, 0.5, -0.25, -1.0, -6.0])
SCALES = [1e-37, 1e-30, 1e-20, 1e20, 1e30, 1e37]


def matrix(dtype="float32"):
    return symmetric_matrix(VALUES, dtype)


def on_host(a, scale):
    a = (a.astype(np.float64) * scale).astype(a.dtype)
    return operators.given(lambda v: a @ np.asarray(v), jnp.zeros(len(a), a.dtype), traceable=False)


def close(found, wanted, scale, tol=1e-4):
    found = np.asarray(found, np.float64) / scale
    np.testing.assert_allclose(found, np.broadcast_to(wanted, found.shape), atol=tol * 9)


def check_everything(H, a, scale):
    """Every number of an operator with these eigenvalues, from as many products as make it exact."""
    for which, wanted in {"magnitude": [9, -6], "largest": [9, 4], "smallest": [-6, -1]}.items():
        pairs = lla.eigenpairs(H, KEY, 2, which=which)
        close(pairs.values, wanted, scale)
        assert pairs.recipe["converged"]
        assert (pairs.residuals <= 1.1e-3 * 9 * scale).all()
    spec = lla.spectrum(H, KEY, steps=8, probes=2)
    close(spec.nodes, np.sort(VALUES), scale)
    assert lla.r_e(spec).mean == pytest.approx(6 / 9, rel=1e-4)
    assert lla.saddle_index(spec).mean == pytest.approx(3 / 8, abs=0.4)
    d = lla.density(spec)
    assert d.density.sum() * (d.t[1] - d.t[0]) == pytest.approx(1)
    for method in ("hutch++", "xtrace"):
        trace = lla.trace(H, KEY, method=method)
        close(trace.mean, VALUES.sum(), scale)
        assert trace.sem == 0
    for found, truth in (
        (lla.trace(H, KEY, method="hutchinson", rtol=0.3), VALUES.sum()),
        (lla.frobenius_norm(H, KEY, rtol=0.1), np.linalg.norm(VALUES)),
    ):
        assert abs(found.mean / scale - truth) <= 4 * found.sem / scale
    found = lla.diagonal(H, KEY, rtol=0.2)
    away = np.linalg.norm(np.asarray(found.mean, np.float64) / scale - np.diag(a))
    assert away <= 4 * found.recipe["norm_sem"] / scale
    ends = eigen.extremes(H, KEY)
    close([ends.smallest, ends.largest], [-6, 9], scale)
    tridiagonal = lanczos.lanczos(H, KEY, 8)
    close(np.linalg.eigvalsh(lanczos.tridiagonal(tridiagonal.alphas, tridiagonal.betas)), np.sort(VALUES), scale)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 3e37])
def test_all_numbers_of_a_matrix_of_any_size(scale):
    check_everything(on_host(matrix(), scale), matrix(), scale)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("scale", [1e-38, 1e38])
def test_in_double_precision(scale):
    check_everything(on_host(matrix("float64"), scale), matrix("float64"), scale)


@pytest.mark.parametrize("scale", [1e-30, 1e37])
def test_of_a_loss_of_any_size(scale):
    a = jnp.asarray(matrix())
    H = lla.hessian(lambda p, _: 0.5 * jnp.float32(scale) * (p @ (a @ p)), jnp.full(8, 1e-3), None)
    pairs = lla.eigenpairs(H, KEY, 1)
    close(pairs.values, [9], scale)
    close(lla.spectrum(H, KEY, steps=8, probes=2).nodes, np.sort(VALUES), scale)
    close(lla.trace(H, KEY).mean, VALUES.sum(), scale)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_layers_and_planes_of_any_size(scale):
    diagonal = {"a": jnp.asarray([3.0, 1.0]), "b": jnp.asarray([-2.0, 1.0])}

    def loss(p, _):
        return 0.5 * jnp.float32(scale) * sum(jnp.sum(diagonal[name] * p[name] ** 2) for name in ("a", "b"))

    params = jax.tree.map(lambda x: jnp.full(2, 1e-3), diagonal)
    first, second = lla.per_layer(loss, params, None, KEY)
    close([first.trace.mean, first.lambda_max, first.lambda_min], [4, 3, 1], scale)
    close([second.trace.mean, second.lambda_max, second.lambda_min], [-1, 1, -2], scale)
    axes = lla.directions.given(*(jax.tree.map(lambda x, i=i: jnp.eye(2)[i], diagonal) for i in (0, 1)))
    plane = lla.evaluate(loss, params, None, axes, lla.grid(extent=1e-3, points=3, dims=2))
    report = lla.plane_report(plane, axes, lla.hessian(loss, params, None))
    close(report.curvature, [1, 2], scale)


def test_masks_and_moments_keep_their_scale():
    H, keep = on_host(matrix(), 1e-30), np.arange(8) < 3
    block = np.linalg.eigvalsh(matrix()[:3, :3].astype(np.float64))
    masked = lla.operators.masked(H, keep)
    close(lla.spectrum(masked, KEY, steps=3, probes=1).nodes[0], block, 1e-30)
    adam = lla.operators.preconditioned(H, np.full(8, 16.0, np.float32))
    close(lla.eigenpairs(adam, KEY).values, [9 / 4], 1e-30)


def zero(n=5):
    return {
        "given": operators.given(lambda v: 0 * v, jnp.zeros(n)),
        "on the host": operators.given(lambda v: 0 * np.asarray(v), jnp.zeros(n), traceable=False),
        "hessian": lla.hessian(lambda p, _: 1 + 0 * jnp.sum(p**2), jnp.ones(n), None),
    }


@pytest.mark.parametrize("kind", ["given", "on the host", "hessian"])
def test_the_zero_operator_is_zero_without_error(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        H = zero()[kind]
        for which in ("magnitude", "largest", "smallest"):
            pairs = lla.eigenpairs(H, KEY, 2, which=which)
            assert not pairs.values.any()
            assert not pairs.residuals.any()
        spec = lla.spectrum(H, KEY, steps=3, probes=2)
        assert not spec.nodes.any()
        for method in ("hutchinson", "hutch++", "xtrace"):
            trace = lla.trace(H, KEY, method=method)
            assert (trace.mean, trace.sem) == (0, 0)
        norm, diagonal = lla.frobenius_norm(H, KEY), lla.diagonal(H, KEY)
        assert (norm.mean, norm.sem) == (0, 0)
        assert not np.any(diagonal.mean)
        assert not np.any(diagonal.sem)
        assert lla.spectrum_type(spec).kind == "quasi-singular"
        assert lla.saddle_index(spec).mean == 0
    for criterion in (lla.r_e, lla.k_hn):
        with pytest.warns(UserWarning, match="the spectrum is zero"):
            assert math.isnan(criterion(spec).mean)


def test_an_operator_of_ordinary_size_stays_as_it_is():
    H, product = operators.given(lambda v: v, jnp.zeros(3)), []
    unit = Unit(H)
    unit.check(1e-8, 1)
    unit.check(1e8, 1)
    for size in (0.0, 1e-12, 1e12, np.inf, np.nan):
        with pytest.raises(units.OutOfRange):
            unit.check(size, 1)
        unit._replace(settled=True).check(size, 1)
    assert units.adapt(unit, KEY, lambda unit: product.append(unit) or 3) == 3
    assert product == [unit]


@pytest.mark.parametrize("scale", SCALES)
def test_the_unit_is_a_power_of_four_near_the_size(scale):
    found = units.find(Unit(on_host(matrix(), scale)), 0.0 if scale < 1 else np.nan, 1, KEY)
    assert found.settled
    assert 1 / 64 < scale / found.size < 64
    assert math.log2(found.size) % 2 == 0
    assert found.products == 2
    product = np.asarray(found.H.product(jnp.ones(8)), np.float64)
    np.testing.assert_allclose(product * found.size, matrix() @ np.ones(8) * scale, atol=1e-5 * scale)


def test_what_is_never_finite_stays_as_it_is():
    H = operators.given(lambda v: np.nan * np.asarray(v), jnp.zeros(3), traceable=False)
    found = units.find(Unit(H), np.nan, 1, KEY)
    assert found.H is H
    assert (found.size, found.products, found.settled) == (1, 0, True)


@pytest.mark.parametrize("call", [lla.eigenpairs, lla.spectrum])
def test_continued_in_the_same_unit(call):
    H = on_host(symmetric_matrix(helpers.VALUES), 1e-30)
    options = {"k": 2, "tol": 1e-6} if call is lla.eigenpairs else {"steps": 20, "probes": 2}
    whole = call(H, KEY, **options)
    part = interrupted(lambda **more: call(H, KEY, **options, **more), 15)
    rest = call(H, KEY, **options, resume=part)
    values = (lambda x: x.values) if call is lla.eigenpairs else (lambda x: x.nodes)
    np.testing.assert_array_equal(values(rest), values(whole))


def test_a_damaged_unit_is_refused():
    for unit in (0.0, np.nan, -1.0, [1.0, 2.0]):
        with pytest.raises(ValueError, match=r"^resume: its unit is .*; it must be a number above 0.*: st"):
            units.again(operators.given(lambda v: v, jnp.zeros(3)), {"unit": np.array(unit)})


def test_a_block_of_zeros_beside_others_takes_no_products_more():
    ends = eigen.extremes(zero()["given"], KEY)
    assert ends == (0, 0, 0, 1)
