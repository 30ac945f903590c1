"""Trace, diagonal and Frobenius norm from random vectors: exact where they should be, and honest where not."""

from __future__ import annotations

import functools
import signal
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core.standard_errors import standard_error, widening
from lla_jax.curvature import diagonals, estimates, linear_operator, random_probes
from lla_jax.curvature.operators import dense, given, masked
from lla_jax.curvature.symmetry import check_symmetric
from lla_jax.execution import devices
from tests import helpers
from tests.curvature.cases import PROBE, quiet, symmetric
from tests.helpers import ONE, symmetric_matrix, vector_operator

METHODS = ("hutchinson", "hutch++", "xtrace")
EACH = {"hutchinson": 1, "hutch++": 3, "xtrace": 2}
CHECK = 2  # products that the check for symmetry takes
N = 30
KEY = jax.random.key(0)


def on_host(A, calls=None, spoil=None):
    """The same product, counted and called from the host; NaN from the product numbered ``spoil``."""
    calls = [] if calls is None else calls

    def product(v):
        calls.append(1)
        return np.full_like(v, np.nan) if spoil is not None and len(calls) >= spoil else A @ np.asarray(v)

    return given(product, jnp.zeros(len(A), A.dtype), traceable=False)


def all_estimates(H, key, max_products):
    with quiet():
        yield from (lla.trace(H, key, method=m, rtol=0, max_products=max_products) for m in METHODS)
        yield lla.frobenius_norm(H, key, rtol=0, max_products=max_products)
        yield lla.diagonal(H, key, rtol=0, max_products=max_products)


def close(a, b, rtol=2e-5):
    """Two estimates from one key agree to rounding."""
    atol = rtol * max(np.abs(np.asarray(leaf)).max() for leaf in jax.tree.leaves(a.mean))
    for x, y in ((a.mean, b.mean), (a.sem, b.sem)):
        jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=0, atol=atol), x, y)
    assert a.num == b.num


class TestExact:
    def test_hutchinson_of_a_diagonal_operator_takes_one_probe(self):
        d = np.random.default_rng(0).standard_normal(N).astype(np.float32)
        with pytest.warns(UserWarning, match="raise max_products"):
            one = lla.trace(vector_operator(np.diag(d)), KEY, method="hutchinson", max_products=1)
        assert one.mean == pytest.approx(d.sum(), abs=1e-5)
        assert np.isnan(one.sem)
        assert (one.num, one.recipe["products"], one.recipe["converged"]) == (1, 1 + CHECK, False)
        few = lla.trace(vector_operator(np.diag(d)), KEY, method="hutchinson")
        assert few.sem < 1e-6
        assert (few.num, few.recipe["converged"]) == (16, True)

    @pytest.mark.parametrize(
        ("method", "rank", "products"), [("hutch++", 8, 24), ("xtrace", 7, 16), ("xtrace", 15, 32)]
    )
    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    def test_of_a_rank_that_the_basis_spans(self, method, rank, products, dtype):
        values = np.r_[np.linspace(-3, 7, rank), np.zeros(N - rank)]
        with jax.enable_x64(dtype == "float64"):
            found = lla.trace(
                vector_operator(symmetric_matrix(values, dtype=dtype)), KEY, method=method, max_products=products
            )
        assert found.mean == pytest.approx(values.sum(), rel=1e-12 if dtype == "float64" else 2e-6)
        assert found.sem < (1e-12 if dtype == "float64" else 2e-6) * values.sum()
        assert found.recipe["converged"]
        assert found.recipe["products"] == products + CHECK == EACH[method] * found.num + CHECK

    @pytest.mark.parametrize(("method", "products"), [("hutch++", 24), ("xtrace", 16)])
    def test_not_of_a_higher_rank(self, method, products):
        values = np.r_[np.linspace(-3, 7, 9), np.zeros(N - 9)]
        with jax.enable_x64(True), quiet():
            found = lla.trace(
                vector_operator(symmetric_matrix(values, "float64")), KEY, method=method, max_products=products
            )
        assert abs(found.mean - values.sum()) > 1e-4
        assert found.sem > 1e-4

    @pytest.mark.parametrize("method", METHODS)
    def test_zero(self, method):
        found = lla.trace(vector_operator(np.zeros((N, N), np.float32)), KEY, method=method)
        assert found.mean == pytest.approx(0, abs=1e-12)
        assert found.sem == pytest.approx(0, abs=1e-12)
        assert found.recipe["converged"]

    def test_other_numbers_of_zero_and_of_a_diagonal(self):
        zero = vector_operator(np.zeros((N, N), np.float32))
        norm, diagonal = lla.frobenius_norm(zero, KEY), lla.diagonal(zero, KEY)
        assert (norm.mean, norm.sem, norm.recipe["converged"]) == (0, 0, True)
        assert not diagonal.mean.any()
        assert not diagonal.sem.any()
        d = np.arange(N, dtype=np.float32)
        found = lla.diagonal(vector_operator(np.diag(d)), KEY)
        np.testing.assert_array_equal(found.mean, d)
        assert not found.sem.any()


class TestDefinitions:
    def test_variance_of_hutchinson(self):
        A = symmetric(shift=0.0)
        with quiet():
            found = lla.trace(vector_operator(A), KEY, method="hutchinson", rtol=0, max_products=4096)
        variance = 2 * ((A**2).sum() - (np.diag(A) ** 2).sum())
        assert found.sem**2 * found.num == pytest.approx(variance, rel=0.1)  # its own error is 2 % or so
        assert abs(found.mean - np.trace(A)) < 4 * np.sqrt(variance / found.num)

    def test_several_at_once_are_as_one_after_another(self, monkeypatch):
        H, signs = vector_operator(symmetric()), random_probes.draw_probes(vector_operator(symmetric()), KEY, 0, 8)
        loop = H.products(signs)
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        batch = jax.jit(lambda H, signs: linear_operator.products_step.__wrapped__(H, signs))
        assert "scan" not in str(jax.make_jaxpr(batch)(H, signs))
        np.testing.assert_allclose(batch(H, signs), loop, rtol=1e-5, atol=1e-5)

    def test_frobenius_norm(self):
        A = symmetric()
        found = lla.frobenius_norm(vector_operator(A), KEY)
        assert abs(found.mean - np.linalg.norm(A)) < 4 * found.sem
        assert found.sem <= 0.02 * found.mean
        with quiet():
            many = lla.frobenius_norm(vector_operator(A), KEY, rtol=0, max_products=2048)
        z = np.random.default_rng(1).choice([-1.0, 1.0], (20000, N))
        spread = ((z @ A) ** 2).sum(1).std() / (2 * np.linalg.norm(A))
        assert many.sem * np.sqrt(many.num) == pytest.approx(spread, rel=0.1)


class TestHonest:
    @pytest.mark.parametrize("method", [*METHODS, "frobenius_norm"])
    def test_standard_errors_cover(self, method):
        """Over keys: the truth within 4 standard errors, and the spread of the means what they say it is."""
        H, A = vector_operator(symmetric()), symmetric().astype(float)
        if method == "frobenius_norm":
            runs, truth = [lla.frobenius_norm(H, jax.random.key(i), rtol=0.5) for i in range(40)], np.linalg.norm(A)
        else:
            runs = [lla.trace(H, jax.random.key(i), method=method, rtol=0.5) for i in range(40)]
            truth = np.trace(A)
        means, sems = np.array([(r.mean, r.sem) for r in runs]).T
        assert {r.num for r in runs} == {16}
        assert all(r.recipe["converged"] for r in runs)
        assert (np.abs(means - truth) < 4 * sems).all()
        assert 0.5 < means.std(ddof=1) / sems.mean() < 2
        assert abs(means.mean() - truth) < 4 * means.std() / np.sqrt(40)

    def test_where_few_eigenvalues_make_the_trace_fewer_products_do(self):
        H = vector_operator(symmetric_matrix(10.0 * 0.5 ** np.arange(N), dtype=np.float32))
        products = {
            m: lla.trace(H, KEY, method=m, rtol=1e-3, max_products=100_000).recipe["products"] for m in METHODS[1:]
        }
        with pytest.warns(UserWarning, match=r"about .* products would do"):
            lla.trace(H, KEY, method="hutchinson", rtol=1e-3, max_products=400)
        assert max(products.values()) <= 50


class TestDiagonal:
    def test_within_its_errors_and_they_are_right(self):
        A = symmetric()
        with quiet():
            found = lla.diagonal(vector_operator(A), KEY, rtol=0, max_products=1024)
        off = np.sqrt(((A**2).sum(1) - np.diag(A) ** 2) / 1024)
        np.testing.assert_allclose(found.sem, off, rtol=0.15)
        assert (np.abs(found.mean - np.diag(A)) < 4 * found.sem).all()
        assert np.linalg.norm(found.sem) == pytest.approx(found.recipe["norm_sem"], rel=1e-5)

    def test_is_a_tree_and_stops_on_the_norms(self):
        H = lla.hessian(helpers.mlp_loss(), helpers.params(), helpers.dataset(), select="**/kernel", execution=ONE)
        found = lla.diagonal(H, KEY, rtol=0.2, max_products=3000)
        assert found.mean["gain"] is None
        assert found.mean["Dense_0"]["bias"] is None
        assert isinstance(found.mean["Dense_0"]["kernel"], np.ndarray)
        assert jax.tree.structure(found.sem) == jax.tree.structure(found.mean)
        mean, sem = (np.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (found.mean, found.sem))
        truth = np.diag(dense(H))
        assert np.linalg.norm(sem) <= 0.2 * np.linalg.norm(mean)
        assert np.linalg.norm(mean - truth) < 2 * np.linalg.norm(sem)
        assert found.recipe["converged"]
        assert found.recipe["operator"]["kind"] == "hessian"

    def test_masked_entries_are_zero(self):
        keep = np.arange(N) < 10
        with quiet():
            found = lla.diagonal(masked(vector_operator(symmetric()), keep), KEY, max_products=64)
        assert not found.mean[~keep].any()
        assert not found.sem[~keep].any()
        assert (np.abs(found.mean - np.diag(symmetric()))[keep] < 5 * found.sem[keep]).all()


class TestDriving:
    def test_the_kind_of_loop_changes_nothing(self):
        A = symmetric()
        for there, here in zip(
            all_estimates(vector_operator(A), KEY, 48), all_estimates(on_host(A), KEY, 48), strict=True
        ):
            close(there, here)
            assert there.recipe["products"] == here.recipe["products"]

    def test_of_a_network_on_one_device_on_two_and_from_the_host(self):
        loss, params, data = helpers.mlp_loss(), helpers.params(), helpers.dataset(24)
        H = lla.hessian(loss, params, data, execution=ONE)
        truth = np.trace(dense(H))

        def found(H, method):
            with quiet():
                return lla.trace(H, KEY, method=method, rtol=0, max_products=8 * EACH[method])

        xtrace, hutchinson = found(H, "xtrace"), found(H, "hutchinson")
        assert abs(xtrace.mean - truth) < 4 * xtrace.sem
        assert abs(hutchinson.mean - truth) < 4 * hutchinson.sem
        on_two = lla.hessian(loss, params, data, execution=lla.Execution(devices=2))
        close(found(on_two, "xtrace"), xtrace, rtol=1e-4)
        close(found(on_two, "hutchinson"), hutchinson, rtol=1e-4)
        driven = replace(H, multiplier=H.multiplier._replace(on_device=False))
        close(found(driven, "xtrace"), xtrace, rtol=1e-4)
        streamed = lla.hessian(loss, params, lla.stream(lambda: [data]), execution=ONE)
        close(found(streamed, "hutchinson"), hutchinson, rtol=1e-4)

    def test_products_are_counted(self):
        calls = []
        H = on_host(symmetric(), calls)
        for found in all_estimates(H, KEY, 50):
            assert found.recipe["products"] == len(calls) - PROBE <= 50 + CHECK
            calls.clear()
        reported = []
        lla.trace(
            H,
            KEY,
            method="hutchinson",
            rtol=0.1,
            progress=lambda done, total: reported.append((done, total, len(calls))),
        )
        assert reported == sorted(reported)
        assert all(done == made - PROBE and total is None for done, total, made in reported)

    def test_a_second_operator_compiles_nothing(self):
        list(all_estimates(vector_operator(symmetric()), KEY, 48))
        with helpers.compilations() as seen:
            list(all_estimates(vector_operator(symmetric(seed=1)), jax.random.key(3), 48))
        assert seen.count == 0

    def test_masks_give_the_trace_of_a_block(self):
        H, A = vector_operator(symmetric()), symmetric()
        for first, method in ((0, "xtrace"), (7, "hutch++")):
            keep = (np.arange(N) >= first) & (np.arange(N) < first + 16)
            block = np.trace(A[keep][:, keep])
            whole = lla.trace(masked(H, keep), KEY, method=method, rtol=1e-9)  # the basis spans the block: exact
            assert whole.mean == pytest.approx(block, rel=1e-5)
            assert (whole.sem, whole.num, whole.recipe["products"]) == (0, 16, 16 * EACH[method] + CHECK)
            found = lla.trace(masked(H, keep), KEY, method="hutchinson", rtol=0.1)
            assert abs(found.mean - block) < 4 * found.sem

    @pytest.mark.parametrize(
        "scarce", [((linear_operator, "products_step"),), ((estimates, "_forms"), (diagonals, "_times"))]
    )
    def test_out_of_memory_takes_fewer_at_once(self, monkeypatch, scarce):
        expected, sizes = list(all_estimates(vector_operator(symmetric()), KEY, 48)), []
        for module, name in scarce:
            real = getattr(module, name)

            def limited(*args, real=real):
                sizes.append(len(args[-1]))
                if sizes[-1] > 2:
                    raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
                return real(*args)

            limited.lower = real.lower  # by which its memory is known
            monkeypatch.setattr(module, name, limited)
        for one, other in zip(expected, all_estimates(vector_operator(symmetric()), KEY, 48), strict=True):
            close(one, other)
        assert sizes[:7] == [8, 4, 2, 2, 4, 2, 2]

    def test_every_product_of_an_estimate_goes_through_one_method(self, monkeypatch):
        made, real = [], linear_operator.Operator.products

        def counted(H, stacked):
            found = real(H, stacked)
            made.append(len(jax.tree.leaves(found)[0]))
            return found

        monkeypatch.setattr(linear_operator.Operator, "products", counted)
        loss, params, data = helpers.mlp_loss(), helpers.params(), helpers.dataset()
        for source, most in ((data, 8), (lla.stream([data]), 1)):
            H = lla.hessian(loss, params, source, execution=ONE)
            for found in all_estimates(H, KEY, 48):
                assert sum(made) == found.recipe["products"] > 40
                assert max(made) == most
                made.clear()
            rows = lla.per_layer(loss, params, source, KEY, steps=3, rtol=1.0, execution=ONE)
            assert sum(made) == rows[0].trace.num >= 16
            made.clear()

    def test_the_basis_takes_no_more_than_its_share_of_memory(self, monkeypatch, caplog):
        monkeypatch.setattr(devices, "free_bytes", lambda device: 4 * 16 * N * 4)  # for 16 vectors
        with pytest.warns(UserWarning, match="a larger basis takes more than a quarter"):
            found = lla.trace(vector_operator(symmetric()), KEY, method="xtrace", rtol=1e-3, max_products=100)
        assert (found.num, found.recipe["products"]) == (16, 32 + CHECK)
        monkeypatch.setattr(devices, "free_bytes", lambda device: 4 * 8 * N * 4)  # for 8, too few for its error
        found = lla.trace(vector_operator(symmetric()), KEY, rtol=0.1)
        assert (found.recipe["method"], found.recipe["instead_of"]) == ("hutchinson", "xtrace")
        assert "the basis of XTrace has 16 vectors" in caplog.text
        with quiet():
            few = lla.trace(vector_operator(symmetric()), KEY, max_products=16, rtol=9)  # has no more than 8
        assert few.recipe["method"] == "xtrace"
        found = lla.trace(vector_operator(symmetric()), KEY, method="hutch++", rtol=0.03, max_products=1000)
        assert found.num > 16
        assert found.recipe["products"] == 16 + found.num + CHECK
        assert abs(found.mean - np.trace(symmetric())) < 4 * found.sem


class TestTrouble:
    @pytest.mark.parametrize("kind", [*METHODS, "frobenius_norm", "diagonal"])
    def test_products_that_are_not_finite_end_it(self, kind):
        def estimate(H):
            if kind in METHODS:
                return lla.trace(H, KEY, method=kind, rtol=1e-3)
            return getattr(lla, kind)(H, KEY, rtol=1e-3)

        with pytest.warns(UserWarning, match=r"ends there, because product 29 is not finite"):
            found = estimate(on_host(symmetric(), spoil=PROBE + 29))
        assert found.recipe["stopped"] == "product 29 is not finite"
        assert found.recipe["products"] >= 29
        assert not found.recipe["converged"]
        assert all(np.isfinite(x).all() for x in (found.mean, found.sem))
        assert found.num == {"hutch++": 8, "xtrace": 8}.get(kind, 26)
        with pytest.raises(ValueError, match="product 3 is not finite, and there is nothing to keep"):
            estimate(on_host(symmetric(), spoil=PROBE + 3))

    def test_on_the_device_what_came_before_is_kept(self):
        def spoilt(v, A, bad):
            return jnp.where(jnp.vdot(v, bad) == N, jnp.nan, A @ v)

        A = symmetric()
        H = vector_operator(A)
        signs = np.concatenate([random_probes.draw_probes(H, KEY, lo, lo + 8) for lo in (0, 8, 16)])
        H, kept = given(spoilt, jnp.zeros(N), jnp.asarray(A), signs[19]), signs[:19]
        hutchinson = functools.partial(lla.trace, method="hutchinson")
        forms, entries = np.sum(kept * (kept @ A), 1), kept * (kept @ A)
        plain = widening(18) * entries.std(0, ddof=1) / np.sqrt(19)  # of entries no skewness is kept
        for call, draws, sem in ((hutchinson, forms, standard_error(forms)), (lla.diagonal, entries, plain)):
            with pytest.warns(UserWarning, match=f"product {20 + CHECK} is not finite"):
                found = call(H, KEY, rtol=1e-3)
            np.testing.assert_allclose(found.mean, draws.mean(0), rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(found.sem, sem, rtol=1e-4, atol=1e-5)
            assert (found.num, found.recipe["products"]) == (19, 24 + CHECK)

    def test_what_is_not_symmetric(self):
        skew = symmetric()
        skew[0, 1:] += 3
        for call in (lla.trace, lla.frobenius_norm, lla.diagonal):
            with pytest.raises(ValueError, match=r"not symmetric .*it must be A = A'"):
                call(vector_operator(skew), KEY)
        assert check_symmetric(vector_operator(symmetric()), KEY).products == CHECK
        assert check_symmetric(vector_operator(np.zeros((N, N), np.float32)), KEY).products == CHECK

    def test_products_that_are_no_vectors(self):
        with pytest.raises(ValueError, match=r"shape"):
            lla.trace(given(lambda v: np.asarray(v)[:-1], jnp.zeros(N), traceable=False), KEY, method="hutchinson")
        with pytest.raises(ValueError, match="product 1 is not finite"):
            lla.trace(on_host(symmetric(), spoil=1), KEY, method="hutchinson")

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"method": "hutch"}, "method: 'hutch' given; it must be"),
            ({"rtol": -0.1}, "rtol: -0.1 given"),
            ({"rtol": float("nan")}, "rtol: nan given"),
            ({"max_products": 0}, "max_products: 0 given; it must be an integer of at least 1"),
            ({"max_products": 2, "method": "hutch++"}, "at least 3"),
            ({"max_products": 1, "method": "xtrace"}, "at least 2"),
            ({"max_products": 10.0}, "max_products: 10.0 given"),
        ],
    )
    def test_arguments(self, options, words):
        with pytest.raises(ValueError, match=words):
            lla.trace(vector_operator(symmetric()), KEY, **({"method": "hutchinson"} | options))

    def test_no_operator(self):
        for call in (lla.trace, lla.frobenius_norm, lla.diagonal):
            with pytest.raises(ValueError, match=r"H: ndarray of shape \(.*\) given; it must be an operator"):
                call(symmetric(), KEY)


class TestEveryOperator:
    @pytest.mark.parametrize("name", helpers.OPERATORS)
    def test_estimates_are_those_of_the_matrix(self, name):
        H, a = helpers.OPERATORS[name]()
        with quiet():
            exact = lla.trace(H, KEY, rtol=0, max_products=200)
            some = lla.trace(H, KEY, method="hutchinson", rtol=0, max_products=32)
            norm = lla.frobenius_norm(H, KEY, rtol=0, max_products=32)
            diagonal = lla.diagonal(H, KEY, rtol=0, max_products=32)
        assert exact.mean == pytest.approx(np.trace(a), abs=2e-6 * np.abs(np.linalg.eigvalsh(a)).sum())
        assert exact.sem == 0  # the basis spans the space
        assert abs(some.mean - np.trace(a)) <= 4 * some.sem + 1e-5 * np.linalg.norm(a)
        assert abs(norm.mean - np.linalg.norm(a)) <= 4 * norm.sem + 1e-5 * np.linalg.norm(a)
        distance = np.linalg.norm(helpers.flat(diagonal.mean) - np.diag(a))
        assert distance <= 2 * diagonal.recipe["norm_sem"] + 1e-5 * np.linalg.norm(a)


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupt_waits_for_the_end_of_a_product(method):
    begun, ended = [], []

    def product(v):
        begun.append(1)
        if len(begun) == 9:
            signal.raise_signal(signal.SIGINT)
        ended.append(1)
        return symmetric() @ np.asarray(v)

    H = given(product, jnp.zeros(N), traceable=False)
    with pytest.raises(KeyboardInterrupt):
        lla.trace(H, KEY, method=method, max_products=60)
    assert len(begun) == len(ended) == 9


class TestErrorBarsCover:
    """The kind of wrong numbers "error bars that do not cover": few draws, and draws that stop on their own error."""

    VALUES = np.arange(1.0, 201) ** -1.2  # a few eigenvalues make the trace, so that draws are skewed

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("trace", {"method": "hutchinson", "rtol": 0, "max_products": 4}),
            ("trace", {"method": "hutchinson", "rtol": 0.1}),
            ("trace", {"method": "hutch++", "rtol": 0, "max_products": 12}),
            ("trace", {"method": "hutch++", "rtol": 0.02}),
            ("trace", {"rtol": 0, "max_products": 16}),
            ("trace", {"rtol": 0.02}),
            ("frobenius_norm", {"rtol": 0.1}),
            ("diagonal", {"rtol": 0, "max_products": 4}),
            ("diagonal", {"rtol": 0.3}),
        ],
    )
    def test_error_bars_of_estimates_cover_over_200_keys(self, name, options):
        A = symmetric_matrix(self.VALUES)
        H, away = vector_operator(A), []
        truth = {"trace": np.trace(A), "frobenius_norm": np.linalg.norm(A), "diagonal": np.diag(A)}[name]
        for seed in range(200):
            with quiet():
                found = getattr(lla, name)(H, jax.random.key(seed), **options)
            away.append(np.abs(found.mean - truth) / found.sem)
        assert (np.array(away) <= 2).mean() >= 0.92
        assert (np.array(away) <= 3).mean() >= 0.965
        assert 0.4 < np.sqrt(np.mean(np.minimum(away, 5) ** 2)) < 1.2
