"""The plane report shows the curvature at the centre of a plane, and warns where its picture is not to be trusted."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.curvature import operators
from tests.helpers import FIXED, ONE, cross_entropy, dataset, mlp_loss, params
from tests.measures.cases import NO_DATA, N, axes_of, flat, tree

KEY = jax.random.key(0)


def matrix(seed=0, eigenvalues=(5.0, 3.0, 1.0, 0.5, 0.1, -0.2, -1.0)):
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((N, N)))[0]
    return q @ np.diag(eigenvalues) @ q.T, q


class Quadratic:
    """L0 + (w - w0)' A (w - w0) / 2; hashed by identity, as the loss of a user's would be."""

    def __init__(self, a, at=0.0, height=0.7):
        self.a, self.at, self.height = a, at, height

    def __call__(self, p, batch):
        w = flat(p) - self.at
        return self.height + 0.5 * w @ (jnp.asarray(self.a) @ w)


def report(loss, p, axes, grid, *, data=NO_DATA, select=None, **options):
    plane = lla.evaluate(loss, p, data, axes, grid, execution=FIXED)
    return plane, lla.plane_report(plane, axes, lla.hessian(loss, p, data, select=select, execution=ONE), **options)


def test_along_eigenvectors_every_number_is_exact():
    with jax.enable_x64(True):
        a, q = matrix()
        axes = axes_of(q.T[[0, 6]])
        coords = lla.grid(ranges=[(-1, 1), (-0.5, 0.5)], points=(5, 7))
        plane, found = report(Quadratic(a), tree(np.zeros(N)), axes, coords, trace=lla.Estimate(np.trace(a), 0.1, 5))
        u, v = np.meshgrid(*coords, indexing="ij")
        np.testing.assert_allclose(plane.values["loss"], 0.7 + (5 * u**2 - v**2) / 2, rtol=1e-12)
        np.testing.assert_allclose(found.projected, np.diag([5, -1]), atol=1e-10)
        np.testing.assert_allclose(found.curvature, [5, -1], rtol=1e-10)
        np.testing.assert_allclose(found.per_length, [5, -1], rtol=1e-10)
        np.testing.assert_allclose(found.grid_curvature, [5, -1], rtol=1e-10)
        np.testing.assert_allclose(found.eigenvalues, [5, -1], rtol=1e-10)
        np.testing.assert_allclose(found.slope, 0, atol=1e-10)
        assert found.products == 2
        assert found.share_lambda_max is None
        assert found.share_trace.mean == pytest.approx(4 / np.trace(a), rel=1e-10)
        assert found.share_trace.sem == pytest.approx(4 / np.trace(a) ** 2 * 0.1)
        assert not found.centre_is_lowest  # the second axis goes down
        assert found.lowest == pytest.approx(0.7 - 0.125)
        assert found.distance == pytest.approx(0.5)


@pytest.mark.parametrize("points", [(5,), (5, 6), (5, 3, 7)])
def test_along_random_axes_of_any_number_and_length(points):
    k = len(points)
    with jax.enable_x64(True):
        a, _ = matrix(1)
        d = np.random.default_rng(2).standard_normal((k, N)) * np.arange(1, k + 1)[:, None]
        coords = [np.sort(np.random.default_rng(3).uniform(-1, 1, n)) for n in points]  # uneven spacing
        for c in coords:
            c[len(c) // 2] = 0
        _, found = report(Quadratic(a), tree(np.zeros(N)), axes_of(d), [np.sort(c) for c in coords])
        np.testing.assert_allclose(found.projected, d @ a @ d.T, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(found.grid_curvature, np.diag(d @ a @ d.T), rtol=1e-9)
        np.testing.assert_allclose(found.lengths, np.linalg.norm(d, axis=1), rtol=1e-12)
        q = np.linalg.qr(d.T)[0]
        np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(q.T @ a @ q)[::-1], rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(found.slope, 0, atol=1e-10)
        assert np.nanmax(found.grid_error) < 1e-10
        np.testing.assert_array_equal(np.isnan(found.grid_error), np.array(points) < 5)  # no next points
        assert str(found).count("between") == k * (k - 1) // 2


def test_a_shifted_minimum_is_found_and_the_slope_with_it():
    with jax.enable_x64(True):
        a, q = matrix(eigenvalues=(4.0, 2.0, 1.0, 0.5, 0.1, 0.2, 1.0))
        loss = Quadratic(a, at=0.5 * q[:, 0] + 0.2 * q[:, 1])
        axes = axes_of([2 * q[:, 0], q[:, 1]])
        _, found = report(loss, tree(np.zeros(N)), axes, lla.grid(ranges=[(-0.5, 0.5), (-0.2, 0.2)], points=(5, 3)))
        np.testing.assert_allclose(found.slope, [-2 * 4 * 0.5, -2 * 0.2], rtol=1e-10)
        assert found.lowest_at == pytest.approx((0.25, 0.2))
        assert found.distance == pytest.approx(np.hypot(2 * 0.25, 0.2))
        assert found.centre - found.lowest == pytest.approx(0.5 * (4 * 0.25 + 2 * 0.04))
        said = "\n".join(found.warnings)
        assert "not the lowest cell" in said
        assert "along d1 the centre is no stationary point" in said
        assert "minimum at 0.25" in said
        assert "is lower by" in str(found)


def test_cells_that_are_not_finite_are_counted_and_those_beside_the_centre_missed():
    def loss(p, batch):
        w = flat(p)
        return jnp.where(w[0] > 0.3, jnp.nan, (w**2).sum())

    axes = axes_of(np.eye(N, dtype=np.float32)[:2])
    with pytest.warns(UserWarning, match="not finite"):
        plane = lla.evaluate(loss, tree(np.zeros(N, np.float32)), NO_DATA, axes, lla.grid(points=5), execution=FIXED)
    found = lla.plane_report(plane, axes, lla.hessian(loss, tree(np.zeros(N, np.float32)), NO_DATA, execution=ONE))
    assert found.nonfinite == pytest.approx(2 / 5)
    assert np.isnan(found.grid_curvature[0])
    assert found.grid_curvature[1] == pytest.approx(2)
    assert found.centre_is_lowest
    said = "\n".join(found.warnings)
    assert "40.0% of the cells" in said
    assert "along d1 the cells beside the centre" in said
    plane.values["loss"][2, 2] = np.inf
    found = lla.plane_report(plane, axes, lla.hessian(loss, tree(np.zeros(N, np.float32)), NO_DATA, execution=ONE))
    assert "the loss at the centre is not finite" in found.warnings
    assert not found.centre_is_lowest
    assert found.lowest == pytest.approx(0.25)


def test_a_grid_without_a_cell_at_the_centre():
    a, q = matrix()
    _, found = report(Quadratic(a), tree(np.zeros(N, np.float32)), axes_of(q.T[:2].astype("f")), lla.grid(points=4))
    assert np.isnan(found.centre)
    assert np.isnan(found.grid_curvature).all()
    assert not found.centre_is_lowest
    assert "odd number of points" in found.warnings[0]
    np.testing.assert_allclose(found.curvature, [5, 3], rtol=1e-5)
    assert "no finite cell there" in str(found)


def test_axes_that_depend_on_each_other_span_a_line():
    with jax.enable_x64(True):
        a, q = matrix()
        _, found = report(Quadratic(a), tree(np.zeros(N)), axes_of([q[:, 1], -3 * q[:, 1]]), lla.grid(points=3))
    np.testing.assert_allclose(found.eigenvalues, [3], rtol=1e-8)
    assert "span 1 dimensions only" in found.warnings[0]


def test_shares_of_the_whole_matrix():
    a, q = matrix()
    p, loss = tree(np.zeros(N, np.float32)), Quadratic(a)
    axes = axes_of(q.T[[1, 2]].astype("f"))
    plane = lla.evaluate(loss, p, NO_DATA, axes, lla.grid(points=3), execution=FIXED)
    H = lla.hessian(loss, p, NO_DATA, execution=ONE)

    def pairs(values, **recipe):
        return lla.Eigenpairs(np.array(values), None, np.zeros(len(values)), 9, recipe)

    right = pairs([5.0, -1.0], which="magnitude", operator=H.recipe)
    trace = lla.Estimate(8.4, 0.42, 20, {"operator": json.loads(json.dumps(H.recipe))})
    found = lla.plane_report(plane, axes, H, pairs=right, trace=trace)
    assert found.share_lambda_max == pytest.approx(3 / 5, rel=1e-5)
    assert found.share_trace.mean == pytest.approx(4 / 8.4, rel=1e-5)
    assert found.share_trace.sem == pytest.approx(4 / 8.4 * 0.05, rel=1e-5)
    assert "share of lambda_max: 60%" in str(found)
    nothing = lla.plane_report(plane, axes, H)
    assert nothing.share_lambda_max is nothing.share_trace is None
    assert "for want of eigenpairs" in str(nothing)
    covered = lla.plane_report(plane, axes, H, trace=lla.Estimate(0.1, 0.42, 20))
    assert np.isnan(covered.share_trace.mean)
    assert any("zero within its error" in w for w in covered.warnings)
    negative = lla.plane_report(plane, axes, H, pairs=pairs([-1.0], which="magnitude"))
    assert negative.share_lambda_max is None
    with pytest.raises(ValueError, match=r"pairs: .* which="):
        lla.plane_report(plane, axes, H, pairs=pairs([-1.0], which="smallest"))
    other = pairs([5.0], which="largest", operator=H.recipe | {"params": {"fingerprint": "other"}})
    with pytest.raises(
        ValueError, match=r"pairs: the operator that it belongs to differs in params \(fingerprint: .* -> .*\)"
    ):
        lla.plane_report(plane, axes, H, pairs=other)
    with pytest.raises(ValueError, match=r"trace: 1.0 given"):
        lla.plane_report(plane, axes, H, trace=1.0)


@pytest.fixture(scope="module")
def network():
    """(loss, parameters, data, axes, plane, Hessian) of a smooth MLP away from its minimum."""

    def apply(p, state, batch, train):
        hidden = jnp.tanh(batch[0] @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
        return p["gain"] * (hidden @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]), state

    with jax.enable_x64(True):
        loss, p, data = lla.Loss(apply, cross_entropy), params(dtype="float64"), dataset(dtype="float64")
        axes = lla.directions.normalize(lla.directions.random(jax.random.key(3), p), p)
        plane = lla.evaluate(loss, p, data, axes, lla.grid(extent=0.1, points=9), execution=FIXED)
        return loss, p, data, axes, plane, lla.hessian(loss, p, data, execution=ONE)


def test_the_product_and_the_grid_agree_to_the_grids_own_error(network):
    *_, axes, plane, H = network
    with jax.enable_x64(True):
        found = lla.plane_report(plane, axes, H)
    difference = np.abs(found.curvature - found.grid_curvature)
    assert np.all(difference > 1e-8)  # there is a truncation error
    assert np.all(difference < 2 * found.grid_error)
    assert np.all(found.grid_error < 0.02 * np.abs(found.curvature))
    assert not any("product gives" in w for w in found.warnings)


def test_kinks_are_told(network):
    """ReLU: the curvature of the plane sits in kinks, which the Hessian does not have."""
    p, data = params(), dataset()
    axes = lla.directions.normalize(lla.directions.random(jax.random.key(3), p), p)
    plane = lla.evaluate(mlp_loss(), p, data, axes, lla.grid(extent=1, points=9), execution=FIXED)
    found = lla.plane_report(plane, axes, lla.hessian(mlp_loss(), p, data, execution=ONE))
    assert any("kinks" in w for w in found.warnings)


def test_the_plane_of_the_top_eigenvectors_sees_lambda_max(network):
    loss, p, data, *_, H = network
    with jax.enable_x64(True):
        pairs = lla.eigenpairs(H, KEY, 2, which="largest", tol=1e-6)
        trace = lla.trace(H, KEY, rtol=0.2)
        axes = lla.directions.eigenvectors(pairs)
        plane = lla.evaluate(loss, p, data, axes, lla.grid(extent=0.1, points=5), execution=FIXED)
        found = lla.plane_report(plane, axes, H, pairs=pairs, trace=trace)
    np.testing.assert_allclose(found.curvature, pairs.values, rtol=1e-6)
    np.testing.assert_allclose(found.projected[0, 1], 0, atol=1e-6)
    assert found.share_lambda_max == pytest.approx(1, rel=1e-6)
    assert found.share_trace.mean == pytest.approx(pairs.values.sum() / trace.mean)
    assert found.share_trace.sem == pytest.approx(found.share_trace.mean * trace.sem / trace.mean)


def test_what_does_not_belong_together_is_refused_or_told(network):
    loss, p, data, axes, plane, H = network
    with jax.enable_x64(True):
        moved = jax.tree.map(lambda x: 1.1 * x, p)
        with pytest.raises(ValueError, match=r"H: the operator differs in params \(fingerprint: .* -> .*\)"):
            lla.plane_report(plane, axes, lla.hessian(loss, moved, data, execution=ONE))
        with pytest.raises(ValueError, match=r"axes: .* not what the landscape was evaluated along"):
            lla.plane_report(plane, axes[[1, 0]], H)
        with pytest.raises(ValueError, match=r"axes: .* 2 directions"):
            lla.plane_report(plane, axes[:1], H)
        with pytest.raises(ValueError, match="plane: was made by the rule 'adam'; it must be made by 'add'"):
            lla.plane_report(lla.Landscape(plane.coords, plane.values, {}, plane.recipe | {"rule": "adam"}), axes, H)
        with pytest.raises(ValueError, match=r"plane: .* values\['loss'\]"):
            lla.plane_report(lla.Landscape(plane.coords, {}, {}, plane.recipe), axes, H)
        with pytest.raises(ValueError, match=r"H: .* given; it must be an operator"):
            lla.plane_report(plane, axes, np.eye(3))
        scaled = operators.preconditioned(H, jax.tree.map(np.ones_like, p))
        with pytest.raises(ValueError, match="preconditioned"):
            lla.plane_report(plane, axes, scaled)
        empty = lla.Landscape(plane.coords, {"loss": np.full(plane.shape, np.nan)}, {}, plane.recipe)
        with pytest.raises(ValueError, match="finite at no cell"):
            lla.plane_report(empty, axes, H)
        part = lla.Landscape(plane.coords, plane.values, {}, plane.recipe | {"complete": False})
        assert "the landscape is incomplete" in str(lla.plane_report(part, axes, H))
        half = lla.plane_report(plane, axes, lla.hessian(loss, p, (data[0][:9], data[1][:9]), execution=ONE))
        assert "the operator has other data" in half.warnings
        ggn = lla.plane_report(plane, axes, lla.ggn(loss, p, data, execution=ONE))
        assert any("products are those of the ggn" in w for w in ggn.warnings)
        assert "products of the ggn" in str(ggn)


def test_an_operator_on_some_leaves_takes_axes_that_move_only_these(network):
    loss, p, data, axes, plane, whole = network
    with jax.enable_x64(True):
        H = lla.hessian(loss, p, data, select="**/kernel", execution=ONE)
        with pytest.raises(ValueError, match="axes: move Dense_0/bias, Dense_1/bias, gain"):
            lla.plane_report(plane, axes, H)
        kernels = lla.directions.select(axes, "**/kernel")
        part = lla.evaluate(loss, p, data, kernels, lla.grid(extent=0.1, points=3), execution=FIXED)
        found, same = (lla.plane_report(part, kernels, op) for op in (H, whole))
        np.testing.assert_allclose(found.projected, same.projected, rtol=1e-12)
        mask = jax.tree.map(lambda x: np.ones(x.shape, bool), p)
        mask["gain"] = np.zeros((), bool)
        masked = operators.masked(whole, mask)
        with pytest.raises(ValueError, match="axes: move gain,"):
            lla.plane_report(plane, axes, masked)
        np.testing.assert_allclose(lla.plane_report(part, kernels, masked).projected, same.projected, rtol=1e-12)


def test_a_given_operator_and_a_stream(network):
    loss, p, data, axes, plane, H = network
    with jax.enable_x64(True):
        expected = lla.plane_report(plane, axes, H).projected
        own = operators.given(lambda v, op: op.mv(v), H.structure, H)
        found = lla.plane_report(plane, axes, own)
        np.testing.assert_allclose(found.projected, expected, rtol=1e-12)
        assert "does not say at which parameters" in found.warnings[0]
        lost = lla.plane_report(plane, axes, jax.tree.map(lambda x: x, H))
        assert "does not say at which parameters" in lost.warnings[0]
        batches = [(data[0][i : i + 8], data[1][i : i + 8]) for i in range(0, 23, 8)]
        streamed = lla.plane_report(plane, axes, lla.hessian(loss, p, lla.stream(batches), execution=ONE))
        np.testing.assert_allclose(streamed.projected, expected, rtol=1e-12)


def test_interpolated_values_are_not_used():
    with jax.enable_x64(True):
        a, q = matrix()
        axes = axes_of(q.T[[0, 1]])
        plane, _ = report(Quadratic(a), tree(np.zeros(N)), axes, lla.grid(extent=0.5, points=7))
        mask = np.zeros((7, 7), bool)
        mask[3, 2:5] = mask[1, 3] = True  # along the second axis alone
        values = {"loss": np.where(mask, plane["loss"], -1.0)}
        refined = lla.Landscape(plane.coords, values, {}, plane.recipe, mask)
        H = lla.hessian(Quadratic(a), tree(np.zeros(N)), NO_DATA, execution=ONE)
        found = lla.plane_report(refined, axes, H)
        np.testing.assert_allclose(found.grid_curvature, [np.nan, 3], rtol=1e-10)
        assert found.lowest == found.centre == pytest.approx(0.7)
        assert found.nonfinite == 0
        assert any("interpolated values are not used" in note for note in found.warnings)
