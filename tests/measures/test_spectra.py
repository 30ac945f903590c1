"""What spectra say: the criteria on problems with known answers, their standard errors, and ways down from a saddle."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core.standard_errors import standard_error
from lla_jax.curvature.operators import dense, given
from tests import helpers
from tests.helpers import ONE, OPERATORS, flat

KEY = jax.random.key(0)


def spectrum(nodes, weights=None, **recipe):
    nodes = np.atleast_2d(np.asarray(nodes, float))
    weights = np.full(nodes.shape, 1 / nodes.shape[1]) if weights is None else np.atleast_2d(weights)
    return lla.Spectrum(nodes, weights, {"scheme": "full", "dtype": "float64"} | recipe)


def exact(A):
    """The spectrum of a small matrix, each eigenvalue with the same weight."""
    return spectrum(np.linalg.eigvalsh(np.asarray(A, np.float64)))


def probed(values, probes, rng):
    """As quadrature with all steps gives it: a random vector's own weights."""
    squares = rng.standard_normal((probes, len(values))) ** 2
    return spectrum(np.tile(values, (probes, 1)), squares / squares.sum(1, keepdims=True))


def jackknife(whole, without):
    """The jackknife's standard error, from the value of all probes and those without one."""
    return standard_error(len(without) * whole - (len(without) - 1) * np.array(without))


def ratio(nodes, weights, n):
    parts = np.abs(nodes * weights) ** n
    return parts[nodes < 0].sum() / parts[nodes > 0].sum()


VALUES = np.r_[-1.0, -0.3, -0.1, np.linspace(0.2, 6, 17)]


def times(v, A):
    return A @ v


def rotated(values, seed=0):
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    A = (q * values) @ q.T
    return (A + A.T) / 2


class TestDeepLinearNet:
    """1/2 |W2 W1 - Y|^2, Y = diag(3, 2, 1), 4 hidden units, at the balanced point that keeps the first k modes."""

    MODES = np.array([3.0, 2.0, 1.0])

    def point(self, k):
        root = np.zeros((4, 3))
        root[range(k), range(k)] = np.sqrt(self.MODES[:k])
        return {"W1": root, "W2": root.T.copy()}

    def loss(self, p, batch):
        return 0.5 * jnp.sum((p["W2"] @ p["W1"] - jnp.diag(batch[0])) ** 2)

    def hessian(self, k):
        with jax.enable_x64(True):
            return dense(lla.hessian(self.loss, self.point(k), self.MODES[None], execution=ONE))

    @pytest.mark.parametrize(("k", "loss", "index"), [(0, 7, 12), (1, 2.5, 6), (2, 0.5, 2), (3, 0, 0)])
    def test_loss_and_index(self, k, loss, index):
        with jax.enable_x64(True):
            assert float(self.loss(self.point(k), self.MODES[None])) == pytest.approx(loss, abs=1e-12)
            slope = jax.grad(self.loss)(self.point(k), self.MODES[None])
        assert all(np.abs(g).max() < 1e-12 for g in slope.values())
        found = lla.saddle_index(exact(self.hessian(k)))
        assert found.mean * 24 == pytest.approx(index, abs=1e-9)
        assert math.isnan(found.sem)
        assert found.num == 1

    def test_at_the_origin_both_criteria_are_one(self):
        spec = exact(self.hessian(0))
        assert lla.r_e(spec).mean == pytest.approx(1, rel=1e-12)
        for n in (0.5, 1.0, 2.0):
            assert lla.k_hn(spec, n).mean == pytest.approx(1, rel=1e-12)
        assert lla.spectrum_type(spec) == pytest.approx(("mainly positive", 0.5, 0, 0.5))

    def test_directions_out_of_the_saddle(self):
        """At k = 1 the modes of 2 and 1 are missing: their directions go down with curvature -2 and -1."""
        A = self.hessian(1)
        values, vectors = np.linalg.eigh(A)
        order = np.argsort(-np.abs(values), kind="stable")
        stacked = vectors[:, order].T
        tree = {"W1": stacked[:, :12].reshape(-1, 4, 3), "W2": stacked[:, 12:].reshape(-1, 3, 4)}
        pairs = lla.Eigenpairs(
            values[order],
            lla.Directions(tree, {"kind": "eigenvectors"}),
            np.full(24, 1e-10),
            24,
            {"which": "magnitude"},
        )
        axes, found = lla.escape_directions(pairs)
        np.testing.assert_allclose(found, [-2, -2, -2, -1, -1, -1], atol=1e-12)
        assert axes.num == 6
        with jax.enable_x64(True):
            plane = lla.evaluate(self.loss, self.point(1), self.MODES[None], axes[0], ([-1e-2, 0, 1e-2],))
        step = plane.values["loss"] - plane.values["loss"][1]
        np.testing.assert_allclose(step, [-1e-4, 0, -1e-4], rtol=1e-2, atol=1e-12)


class TestModelsWithKnownCurvature:
    X = np.random.default_rng(0).standard_normal((40, 6))

    def test_linear_regression(self):
        y = self.X @ np.arange(6.0) + 0.1

        def loss(w, batch):
            return jnp.mean((batch[0] @ w - batch[1]) ** 2)

        with jax.enable_x64(True):
            A = dense(lla.hessian(loss, np.zeros(6), (self.X, y), execution=ONE))
        np.testing.assert_allclose(A, 2 * self.X.T @ self.X / 40, rtol=1e-12, atol=1e-12)
        spec = exact(A)
        values = np.linalg.eigvalsh(2 * self.X.T @ self.X / 40)
        assert lla.r_e(spec).mean == pytest.approx(values[0] / values[-1], rel=1e-10)  # all positive: 1 / condition
        assert lla.k_hn(spec).mean == 0

    def test_logistic_regression(self):
        y = np.sign(np.random.default_rng(1).standard_normal(40))

        def loss(w, batch):
            return jnp.mean(jax.nn.softplus(-batch[1] * (batch[0] @ w)))

        w = np.random.default_rng(2).standard_normal(6)
        with jax.enable_x64(True):
            A, flipped = (dense(lla.hessian(loss, w, (self.X, sign * y), execution=ONE)) for sign in (1, -1))
        np.testing.assert_allclose(A, flipped, rtol=1e-12, atol=1e-13)
        assert lla.k_hn(exact(A)).mean == 0
        assert lla.saddle_index(exact(A)).mean == 0
        assert lla.spectrum_type(exact(A)).kind == "mainly positive"

    def test_softmax_regression(self):
        params = {"W": np.random.default_rng(3).standard_normal((6, 3))}
        labels = np.random.default_rng(4).integers(0, 3, 40)
        loss = lla.Loss(lambda p, state, batch, train: (batch[0] @ p["W"], state), helpers.cross_entropy)
        with jax.enable_x64(True):
            A, G = (dense(f(loss, params, (self.X, labels), execution=ONE)) for f in (lla.hessian, lla.ggn))
        np.testing.assert_allclose(A, G, rtol=1e-11, atol=1e-13)
        values = np.linalg.eigvalsh(A)
        assert (np.abs(values) < 1e-13 * values[-1]).sum() >= 6  # a vector added to all classes changes nothing
        found = lla.saddle_index(exact(A))
        assert found.mean == 0
        assert found.recipe["zero"] >= 6 / 18
        assert lla.k_hn(exact(A)).mean == 0
        assert lla.k_hn(exact(A)).recipe["dropped"] >= 6 / 18

    def test_rounding_of_a_convex_problem_in_float32_counts_as_zero(self):
        X = np.random.default_rng(5).standard_normal((40, 60)).astype(np.float32)  # more weights than examples

        def loss(w, batch):
            return jnp.mean(jax.nn.softplus(batch @ w))

        spec = lla.spectrum(lla.hessian(loss, np.zeros(60, np.float32), X, execution=ONE), KEY, steps=60, probes=2)
        rounded = lla.Spectrum(spec.nodes.copy(), spec.weights.copy(), spec.recipe)
        rounded.nodes[:, 0], rounded.weights[:, 0] = -2e-7 * spec.nodes.max(), 0.1
        for each in (spec, rounded):
            found = lla.k_hn(each)
            assert (found.mean, found.sem) == (0, 0)
            assert found.recipe["dropped"] > 0.05
        with pytest.warns(UserWarning, match="scheme='lla'"):
            assert lla.k_hn(rounded, definition="lla").mean > 1e-5  # as LLA counts them
        # of the same nodes in float64 they are no rounding errors
        assert lla.k_hn(spectrum(rounded.nodes, rounded.weights)).mean > 1e-5

    def test_the_precision_of_the_parameters_says_what_rounding_is(self):
        nodes = [[-1e-3, 1.0, 2.0]]
        half = {"operator": {"precision": {"params": ["bfloat16", "float32"]}}, "dtype": "float32"}
        assert lla.k_hn(spectrum(nodes, **half)).mean == 0
        assert lla.k_hn(spectrum(nodes, dtype="float32")).mean > 0.01
        assert lla.k_hn(spectrum([[-0.03, 1.0, 2.0]], **half)).mean > 0.05


class TestCriteria:
    def test_what_a_scale_and_a_sign_do(self):
        with jax.enable_x64(True):
            A = jnp.asarray(rotated(VALUES))
            one, scaled, turned = (
                lla.spectrum(given(times, jnp.zeros(20), c * A), KEY, steps=12, probes=3) for c in (1.0, 2.7, -1.0)
            )
        with pytest.warns(UserWarning, match="r_e: the spectrum is mainly negative .* has no meaning") as seen:
            turned_r = lla.r_e(turned)
        assert seen[0].filename == __file__
        assert turned_r.recipe["applies"] is False
        assert lla.r_e(one).recipe["applies"] is True
        assert turned_r.mean == pytest.approx(1 / lla.r_e(one).mean, rel=1e-9)
        assert lla.r_e(scaled).mean == pytest.approx(lla.r_e(one).mean, rel=1e-9)
        for n in (0.5, 1.0):
            found = lla.k_hn(one, n)
            assert lla.k_hn(scaled, n).mean == pytest.approx(found.mean, rel=1e-8)
            assert lla.k_hn(scaled, n).sem == pytest.approx(found.sem, rel=1e-6)
            with pytest.warns(UserWarning, match="k_hn: the spectrum is mainly negative"):
                assert lla.k_hn(turned, n).mean == pytest.approx(1 / found.mean, rel=1e-8)

    def test_with_exact_weights(self):
        spec = exact(np.diag(VALUES))
        assert lla.r_e(spec).mean == pytest.approx(1 / 6)
        assert lla.k_hn(spec, 1).mean == pytest.approx(1.4 / VALUES[3:].sum())  # tr |H-| / tr H+
        found = lla.k_hn(spec)
        assert found.mean == pytest.approx(np.sqrt(-VALUES[:3]).sum() / np.sqrt(VALUES[3:]).sum())
        assert found.recipe["k_h1"][0] == pytest.approx(1.4 / VALUES[3:].sum())
        assert math.isnan(found.sem)
        assert math.isnan(found.recipe["k_h1"][1])
        assert (found.recipe["n"], found.recipe["definition"], found.recipe["dropped"]) == (0.5, "pooled", 0)
        assert (found.recipe["steps"], found.recipe["probes"], found.recipe["scheme"]) == (20, 1, "full")
        json.dumps(found.recipe)

    def test_of_a_spectrum(self):
        H = given(times, jnp.zeros(20), jnp.asarray(rotated(VALUES), jnp.float32))
        spec = lla.spectrum(H, KEY, steps=20, probes=8)
        found = lla.k_hn(spec, 1)
        assert abs(found.mean - 1.4 / VALUES[3:].sum()) < 4 * found.sem
        assert lla.r_e(spec).mean == pytest.approx(1 / 6, rel=1e-4)
        share = lla.saddle_index(spec)
        assert abs(share.mean - 3 / 20) < 4 * share.sem
        assert (found.num, found.recipe["size"], found.recipe["start"]) == (8, 20, "rademacher")
        assert lla.spectrum_type(spec).kind == "mainly positive"

    def test_pooled_and_its_jackknife(self):
        rng = np.random.default_rng(0)
        nodes = np.sort(rng.standard_normal((5, 7)) + 1, 1)
        weights = rng.dirichlet(np.ones(7), 5)
        spec = spectrum(nodes, weights)
        cases = (
            (lla.r_e(spec), lambda t, w: abs(t.min() / t.max())),
            (lla.k_hn(spec), lambda t, w: ratio(t, w, 0.5)),
            (lla.k_hn(spec, 1.5), lambda t, w: ratio(t, w, 1.5)),
        )
        for found, of in cases:
            without = [of(np.delete(nodes, i, 0), np.delete(weights, i, 0)) for i in range(5)]
            assert found.mean == pytest.approx(of(nodes, weights), rel=1e-12)
            assert found.sem == pytest.approx(jackknife(found.mean, without), rel=1e-12)
            assert found.sem > np.sqrt(4 / 5 * np.sum((without - np.mean(without)) ** 2))
            assert found.num == 5

    def test_the_definitions_of_lla(self):
        rng = np.random.default_rng(1)
        nodes, weights = rng.standard_normal((4, 9)) + 1, rng.dirichlet(np.ones(9), 4)
        nodes[0, 0] = -1e-20  # LLA counts it
        spec = spectrum(nodes, weights, scheme="lla")
        each = [ratio(t, w, 0.5) for t, w in zip(nodes, weights, strict=True)]
        found = lla.k_hn(spec, definition="lla")
        assert found.mean == pytest.approx(np.mean(each), rel=1e-12)
        assert found.sem == pytest.approx(standard_error(np.array(each)), rel=1e-12)
        assert found.recipe["dropped"] == 0
        extremes = np.abs(nodes.min(1) / nodes.max(1))
        assert lla.r_e(spec, definition="lla").mean == pytest.approx(extremes.mean(), rel=1e-12)
        assert lla.r_e(spec, definition="lla").sem == pytest.approx(standard_error(extremes), rel=1e-12)
        assert math.isnan(lla.k_hn(spectrum(nodes[0], weights[0], scheme="lla"), definition="lla").sem)

    def test_the_standard_error_covers(self):
        values = VALUES[::2]
        squares = np.random.default_rng(0).standard_normal((40_000, len(values))) ** 2
        parts = np.sqrt(np.abs(values) * squares / squares.sum(1, keepdims=True)).mean(0)
        truth = parts[values < 0].sum() / parts[values > 0].sum()
        rng = np.random.default_rng(1)
        means, sems = np.array([(e.mean, e.sem) for e in (lla.k_hn(probed(values, 8, rng)) for _ in range(200))]).T
        assert (np.abs(means - truth) < 2 * sems).mean() > 0.93
        assert 0.5 < means.std() / sems.mean() < 1.4

    def test_pooling_is_less_biased_than_the_mean_of_ratios(self):
        values = np.array([-1.0, 0.5, 1.0, 2.0, 3.0, 4.0])
        rng = np.random.default_rng(2)
        specs = [probed(values, 4, rng) for _ in range(800)]
        pooled = np.array([lla.k_hn(s, 1).mean for s in specs])
        with pytest.warns(UserWarning, match="scheme='lla'"):
            ratios = np.array([lla.k_hn(s, 1, definition="lla").mean for s in specs])
        truth = 1 / 10.5
        assert abs(pooled.mean() - truth) < 0.5 * abs(ratios.mean() - truth)
        assert ratios.mean() - truth > 4 * ratios.std() / np.sqrt(800)  # that bias is no chance

    def test_where_nothing_is_above_zero(self):
        spec = spectrum([[-2.0, -1.0, 0.0]])
        with pytest.warns(UserWarning, match=r"mainly negative \(100% of its curvature\)"):
            assert lla.k_hn(spec).mean == math.inf
        with pytest.warns(UserWarning, match="mainly negative"):
            assert lla.r_e(spec).mean == math.inf

    def test_zero(self):
        spec = spectrum(np.zeros((3, 4)))
        for call in (lla.r_e, lla.k_hn):
            with pytest.warns(UserWarning, match="the spectrum is zero"):
                found = call(spec)
            assert math.isnan(found.mean)
            assert math.isnan(found.sem)
            assert found.recipe["applies"] is False
        assert lla.spectrum_type(spec) == ("quasi-singular", 0, 1, 0)
        assert (lla.saddle_index(spec).mean, lla.saddle_index(spec).sem) == (0, 0)

    @pytest.mark.parametrize("n", [0, -0.5, float("nan"), float("inf"), "half"])
    def test_exponents(self, n):
        with pytest.raises(ValueError, match=r"n: .* given; it must be a finite number above 0"):
            lla.k_hn(spectrum([[1.0, 2.0]]), n)

    def test_arguments(self):
        spec = spectrum([[1.0, 2.0]])
        for call in (lla.r_e, lla.k_hn):
            with pytest.raises(ValueError, match="definition: 'mean' given"):
                call(spec, definition="mean")
        for call in (lla.r_e, lla.k_hn, lla.spectrum_type, lla.saddle_index):
            with pytest.raises(ValueError, match="1 of its 2 nodes are not finite"):
                call(spectrum([[1.0, np.nan]]))
            with pytest.raises(ValueError, match=r"spec: array.* given; it must be the result of lla.spectrum"):
                call(np.ones((1, 2)))


def known(values, dtype="float32"):
    """A diagonal operator; with normal start vectors a rotation would change nothing."""
    return given(lambda v, d: v * d, jnp.zeros(len(values), dtype), jnp.asarray(values, dtype))


def truths(values):
    """The criteria of all eigenvalues, each with the weight 1 / n."""
    below, above = -values[values < 0], values[values > 0]
    return {
        "r_e": abs(values.min() / values.max()),
        "K_H0.5": np.sqrt(below).sum() / np.sqrt(above).sum(),
        "K_H1": below.sum() / above.sum(),
        "saddle index": len(below) / len(values),
    }


def near_zero(n, rng=np.random.default_rng(0)):  # noqa: B008 (drawn once)
    """A spectrum as of a network: half of it within 0.002 of zero, on either side, and tails over decades."""
    tails = np.exp(rng.normal(-5, 2, n // 4)), -np.exp(rng.normal(-6, 1.5, n // 4))
    return np.concatenate([rng.normal(2e-4, 1e-3, n - 2 * (n // 4)), *tails])


SPECTRA = {
    "spiked": np.r_[np.random.default_rng(0).normal(0.02, 0.05, 290), np.linspace(1, 10, 8), -1.5, -0.7],
    "flat": np.linspace(0.5, 1.5, 300),
    "indefinite": np.random.default_rng(1).uniform(-1, 2, 300),
    "power law": np.arange(1.0, 301) ** -1.5,
    "near zero": near_zero(300),
}


NEAR_ZERO = near_zero(600)


@pytest.fixture(scope="module")
def spectra():
    return {m: lla.spectrum(known(NEAR_ZERO), KEY, steps=m, probes=4, start="normal") for m in (16, 40, 104)}


class TestErrorBarsCover:
    """The kind of wrong numbers "error bars that do not cover": on spectra that are known."""

    def test_error_bars_of_the_saddle_index_cover_at_any_number_of_steps(self, spectra):
        truth = truths(NEAR_ZERO)["saddle index"]
        found = [lla.saddle_index(spec) for spec in spectra.values()]
        for each in found:
            assert abs(each.mean - truth) < 2 * each.sem
            assert each.sem == each.recipe["statistical"] + each.recipe["systematic"]
        # the sum of the weights of negative nodes is what jumps; its scatter over the probes does not show it
        t = found[0].recipe["threshold"]
        raw = np.array([np.where(spec.nodes < -t, spec.weights, 0).sum(1) for spec in spectra.values()])
        assert (np.abs(raw.mean(1) - truth) > 4 * raw.std(1, ddof=1) / 2).any()
        unresolved = [each.recipe["unresolved"] for each in found]
        assert unresolved == sorted(unresolved, reverse=True)
        assert [found[0].recipe["resolved"], found[-1].recipe["resolved"]] == [False, True]
        assert found[-1].sem < 0.1

    @pytest.mark.parametrize("n", [0.5, 1.0])
    def test_error_bars_of_k_hn_cover_at_any_number_of_steps(self, spectra, n):
        truth = truths(NEAR_ZERO)[f"K_H{n:g}"]
        found = [lla.k_hn(spec, n) for spec in spectra.values()]
        for each in found:
            assert abs(each.mean - truth) < 2 * each.sem
        assert found[-1].sem < found[0].sem
        assert found[-1].recipe["limit"] == pytest.approx(truth, rel=0.5)
        if n == 1:
            assert found[-1].recipe["systematic"] < 0.2 * found[-1].recipe["statistical"]
            assert found[-1].recipe["k_h1"] == [found[-1].mean, found[-1].sem]

    def test_error_bars_of_r_e_cover_on_a_power_law(self):
        values = np.arange(1.0, 1501) ** -1.5
        with jax.enable_x64(True):
            spec = lla.spectrum(known(values, "float64"), KEY, steps=100, probes=4, start="normal")
        found = lla.r_e(spec)
        assert found.mean > values[-1]  # Ritz values come from inside
        assert found.mean - values[-1] < 2 * found.sem < 0.5 * found.mean

    def test_error_bars_of_two_probes_cover(self):
        """Their own scatter would give a standard error that may be anything."""
        values = SPECTRA["indefinite"]
        truth = truths(values)
        away = {"K_H1": [], "saddle index": []}
        for seed in range(60):
            spec = lla.spectrum(known(values), jax.random.key(seed), steps=24, probes=2, start="normal")
            for name, found in (("K_H1", lla.k_hn(spec, 1)), ("saddle index", lla.saddle_index(spec))):
                away[name].append(abs(found.mean - truth[name]) / found.sem)
        for each in away.values():
            assert (np.array(each) < 2).mean() > 0.88  # 95 % of 60 keys, less what is left to chance
            assert 0.4 < np.sqrt(np.mean(np.square(each))) < 1.25

    def test_one_probe_has_an_error(self):
        spec = lla.spectrum(known(SPECTRA["indefinite"]), KEY, steps=24, probes=1, start="normal")
        for found in (lla.saddle_index(spec), lla.k_hn(spec), lla.r_e(spec)):
            assert 0 < found.sem < 0.5

    def test_what_all_steps_see_leaves_nothing_open(self):
        values = np.r_[np.full(40, -1.0), np.zeros(100), np.full(60, 2.0), 3.0]
        spec = lla.spectrum(known(values), KEY, steps=30, probes=4, start="normal")
        assert spec.recipe["exhausted"] == [True] * 4
        index = lla.saddle_index(spec)
        assert index.recipe["systematic"] == 0
        assert index.recipe["zero"] == pytest.approx(100 / 201, abs=0.2)
        assert abs(index.mean - 40 / 201) < 3 * index.sem
        assert lla.r_e(spec).sem < 1e-5
        before = spec.recipe | {"steps_done": spec.recipe["steps_done"]}  # as files of earlier versions have it
        del before["exhausted"]
        assert lla.saddle_index(lla.Spectrum(spec.nodes, spec.weights, before)).sem == index.sem

    def test_a_node_at_zero_is_the_eigenvalue_zero(self):
        values = np.r_[np.linspace(-2, -1, 100), np.zeros(200), np.linspace(1, 2, 100)]
        spec = lla.spectrum(known(values), KEY, steps=24, probes=4, start="normal")
        found = lla.saddle_index(spec)
        assert abs(found.mean - 0.25) < 2 * found.sem < 0.1
        assert found.recipe["unresolved"] < 0.01

    def test_of_no_negative_ritz_value(self):
        for name in ("flat", "power law"):
            spec = lla.spectrum(known(SPECTRA[name]), KEY, steps=20, probes=2, start="normal")
            assert lla.saddle_index(spec).mean == 0
            assert lla.k_hn(spec).mean == 0

    @pytest.mark.slow
    @pytest.mark.parametrize("name", SPECTRA)
    @pytest.mark.parametrize(("steps", "probes"), [(16, 4), (56, 2)])
    def test_error_bars_of_criteria_cover_over_200_keys(self, name, steps, probes):
        values = SPECTRA[name]
        wanted, away = truths(values), {criterion: [] for criterion in truths(values)}
        for seed in range(200):
            spec = lla.spectrum(known(values), jax.random.key(seed), steps=steps, probes=probes, start="normal")
            found = lla.r_e(spec), lla.k_hn(spec, 0.5), lla.k_hn(spec, 1.0), lla.saddle_index(spec)
            for (criterion, truth), each in zip(wanted.items(), found, strict=True):
                error = abs(each.mean - truth)
                away[criterion].append(error / each.sem if error else 0.0)
        for criterion, each in away.items():
            assert (np.array(each) <= 2).mean() >= 0.92, criterion
            assert (np.array(each) <= 3).mean() >= 0.97, criterion


class TestTypes:
    @pytest.mark.parametrize(
        ("nodes", "expected"),
        [
            ([-1.0, 2.0, 3.0], ("mainly positive", 1 / 6, 0, 5 / 6)),
            ([-3.0, -2.0, 1.0], ("mainly negative", 5 / 6, 0, 1 / 6)),
            ([-2.0, 2.0], ("mainly positive", 0.5, 0, 0.5)),
            ([-0.02, 1.0, -0.005, 0.005], ("mainly positive", 0.02 / 1.03, 0.01 / 1.03, 1 / 1.03)),
            ([1.0, *[0.01] * 150], ("quasi-singular", 0, 0.6, 0.4)),  # on the threshold: near zero
            ([-1.0, *[0.009] * 300], ("quasi-singular", 1 / 3.7, 2.7 / 3.7, 0)),
            ([1.0, *[0.009] * 100], ("mainly positive", 0, 0.9 / 1.9, 1 / 1.9)),
        ],
    )
    def test_by_the_shares(self, nodes, expected):
        found = lla.spectrum_type(spectrum([nodes]))
        assert found == pytest.approx(expected, abs=1e-12)
        assert found.kind == expected[0]
        assert sum(found[1:]) == pytest.approx(1)

    def test_weights_count(self):
        nodes = [[-1.0, 1.0], [-1.0, 1.0]]
        assert lla.spectrum_type(spectrum(nodes, [[0.9, 0.1], [0.5, 0.5]])).negative == pytest.approx(0.7)
        with pytest.warns(UserWarning, match=r"mainly negative \(70% of its curvature\)"):
            lla.r_e(spectrum(nodes, [[0.9, 0.1], [0.5, 0.5]]))


class TestSaddle:
    def test_the_share_of_negative_directions(self):
        weights = np.array([[0.2, 0.3, 0.5], [0.4, 0.3, 0.3], [0.1, 0.4, 0.5]])
        found = lla.saddle_index(spectrum(np.tile([-1.0, -1e-15, 2.0], (3, 1)), weights))
        each = weights[:, 0]
        assert found.mean == pytest.approx(each.mean())
        assert found.sem == pytest.approx(standard_error(each))
        assert found.recipe["zero"] == pytest.approx(1 / 3)
        assert found.recipe["threshold"] == pytest.approx(200 * np.finfo(float).eps)

    def pairs(self, values, residuals):
        tree = {"w": np.eye(len(values), 4, dtype=np.float32)}
        axes = lla.Directions(tree, {"kind": "eigenvectors"})
        return lla.Eigenpairs(np.array(values), axes, np.array(residuals), 10, {})

    def test_directions_surely_down(self):
        axes, values = lla.escape_directions(self.pairs([3.0, -1.0, -2.0, -0.1], [0.1, 0.1, 0.1, 0.2]))
        np.testing.assert_array_equal(values, [-2.0, -1.0])
        np.testing.assert_array_equal(axes.tree["w"], np.eye(4)[[2, 1]])
        assert axes.recipe["chosen"] == [2, 1]

    def test_none(self):
        with pytest.raises(ValueError, match=r"the lowest is -0.1 \+- 0.2.*which='smallest'"):
            lla.escape_directions(self.pairs([3.0, -0.1], [0.1, 0.2]))
        with pytest.raises(ValueError, match="with its vectors"):
            lla.escape_directions(lla.Eigenpairs(np.array([-1.0]), None, np.zeros(1), 1, {}))


@pytest.mark.parametrize("name", OPERATORS)
def test_the_loss_curves_down_along_the_escape_directions_of_every_operator(name):
    H, a = OPERATORS[name]()
    lowest = np.linalg.eigvalsh(a)[0]
    pairs = lla.eigenpairs(H, jax.random.key(0), 1, which="smallest")
    if lowest > -pairs.residuals[0]:
        with pytest.raises(ValueError, match="pairs: none has an eigenvalue below zero"):
            lla.escape_directions(pairs)
        return
    axes, values = lla.escape_directions(pairs)
    chosen = jax.tree.map(
        lambda x, like: None if like is None else x, axes.tree, H.structure, is_leaf=lambda x: x is None
    )
    v = flat(chosen, 1)[0]
    assert v @ a @ v < 0.99 * lowest
    assert values[0] == pytest.approx(lowest, rel=1e-2)


@pytest.mark.parametrize("power", [-1000, -500, -100, 60, 500, 1020])
def test_criteria_have_no_unit(power):
    rng = np.random.default_rng(0)
    nodes, weights = np.sort(rng.uniform(-1, 3, (3, 6))), rng.dirichlet(np.ones(6), 3)
    recipe = {"n": 100, "steps": 6, "steps_done": [6] * 3, "dtype": "float32", "start": "rademacher", "scheme": "full"}
    spec, scaled = (lla.Spectrum(x, weights, recipe) for x in (nodes, np.ldexp(nodes, power)))
    for criterion in (lla.r_e, lla.k_hn, lambda x: lla.k_hn(x, 9), lla.saddle_index):
        one, other = criterion(spec), criterion(scaled)
        np.testing.assert_allclose([other.mean, other.sem], [one.mean, one.sem], rtol=1e-3)
    np.testing.assert_allclose(lla.spectrum_type(scaled)[1:], lla.spectrum_type(spec)[1:], rtol=1e-3)
    threshold = lla.saddle_index(spec).recipe["threshold"]
    assert math.isclose(lla.saddle_index(scaled).recipe["threshold"], math.ldexp(threshold, power), rel_tol=1e-2)
    linear, there = lla.density(spec), lla.density(scaled)
    np.testing.assert_allclose(there.x, np.ldexp(linear.x, power), rtol=1e-3)
    symlog, there = (lla.density(x, scale="symlog") for x in (spec, scaled))
    np.testing.assert_allclose(there.sem, symlog.sem, rtol=1e-3)
