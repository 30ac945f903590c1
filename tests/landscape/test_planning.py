"""Plans change no value, are recorded, compile once, and find a loss that is not deterministic."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.execution import plans
from tests.helpers import FIXED, accuracy, compilations, dataset, mlp_loss, params
from tests.landscape.cases import DATA, RTOL, reference


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize(
    ("chunk", "microbatch", "loop", "share"),
    [(1, 23, "map", False), (3, 8, "vmap", False), (5, 23, "vmap", True), (2, 7, "map", True), (16, 100, "vmap", True)],
)
def test_values_do_not_depend_on_the_plan(axes, chunk, microbatch, loop, share, devices):
    coords = lla.grid(points=(4, 5))
    how = lla.Execution(chunk=chunk, microbatch=microbatch, loop=loop, share=share, devices=devices)
    plane = lla.evaluate(mlp_loss(), params(), DATA, axes[:2], coords, execution=how, metrics={"accuracy": accuracy})
    mean, error = reference(params(), axes[:2], coords, DATA)
    np.testing.assert_allclose(plane.values["loss"], mean, rtol=RTOL)
    np.testing.assert_allclose(plane.stderr["loss"], error, rtol=1e-5, atol=1e-7)
    assert plane.recipe["plan"]["devices"] == devices


def test_the_timed_plan_gives_the_same_values_and_is_recorded(axes):
    coords = lla.grid(points=(4, 5))
    plane = lla.evaluate(mlp_loss(), params(), DATA, axes[:2], coords)
    np.testing.assert_allclose(plane.values["loss"], reference(params(), axes[:2], coords, DATA)[0], rtol=RTOL)
    assert set(plane.recipe["plan"]) >= {"chunk", "microbatch", "loop", "share", "devices"}


@pytest.mark.parametrize("rule", ["add", "adam"])
@pytest.mark.parametrize(("chunk", "microbatch", "loop"), [(1, 23, "map"), (3, 7, "vmap"), (5, 10, "map")])
@pytest.mark.parametrize("by", ["none", "weight", "layer", "filter", "model"])
def test_every_rule_and_normalization_under_every_plan(by, chunk, microbatch, loop, rule, moments):
    how = lla.Execution(chunk=chunk, microbatch=microbatch, loop=loop, share="auto")
    coords = lla.grid(ranges=[(-0.02, 0.02), (0.1, 1)], points=(3, 4))
    pair = lla.directions.random(jax.random.key(0), params())
    pair = moments if rule == "adam" else lla.directions.normalize(pair, params(), by=by)
    found, usual = (
        lla.evaluate(mlp_loss(), params(), DATA, pair, coords, rule=rule, execution=e).values["loss"]
        for e in (how, FIXED)
    )
    np.testing.assert_allclose(found, usual, rtol=RTOL)


def test_a_batch_coupled_loss_is_only_ever_traced_on_whole_batches():
    matrix = np.random.default_rng(0).standard_normal((300, 300)).astype(np.float32)
    x = np.ones((300, 4), np.float32)
    line = lla.directions.given(np.ones(4, np.float32))
    found = lla.evaluate(lambda w, b: ((matrix @ b @ w) ** 2).mean(), np.ones(4, np.float32), x, line, lla.grid(dims=1))
    assert found.values["loss"][20] == pytest.approx(((matrix @ x @ np.ones(4)) ** 2).mean(), rel=1e-5)


def test_compilations_first_the_timed_candidates_then_none():
    def fresh_adapter():
        def apply(p, state, batch, train):
            return batch[0] @ p["Dense_0"]["kernel"], state

        return lla.Loss(apply, lambda outputs, batch: (outputs**2).sum(1))

    def run(seed, coords):
        p = {"Dense_0": {"kernel": params(seed)["Dense_0"]["kernel"]}}
        pair = lla.directions.random(jax.random.key(seed), p)
        return lla.evaluate(fresh_adapter(), p, dataset(19, seed), pair, coords)

    run(7, lla.grid(points=2))  # the draw of directions is not what is counted
    plans._REMEMBERED.clear()
    jax.clear_caches()
    lla.directions.random(jax.random.key(0), {"Dense_0": {"kernel": params()["Dense_0"]["kernel"]}})
    jax.random.key(0)
    with compilations() as first:
        run(0, lla.grid(points=(4, 3)))
    assert 1 <= first.count <= 3
    with compilations() as second:  # new weights, seed, data, coordinates, and an equal adapter built anew
        run(1, lla.grid(extent=2, points=(3, 4)))
    assert second.count == 0


def test_a_second_convolutional_network_compiles_nothing():
    from lla_jax import demo

    def run(seed):
        rng = np.random.default_rng(seed)
        images, labels = rng.standard_normal((12, 8, 8, 1)).astype(np.float32), rng.integers(0, 10, 12)
        variables = demo.CNN().init(jax.random.key(seed), images)
        loss = lla.from_linen(demo.CNN(), variables, lambda o, b: (o**2).sum(1))
        before = jax.tree.map(np.array, variables)
        pair = lla.directions.normalize(
            lla.directions.random(jax.random.key(seed), variables["params"]), variables["params"]
        )
        with compilations() as seen:
            lla.evaluate(loss, variables["params"], (images, labels), pair, lla.grid(points=3))
        jax.tree.map(np.testing.assert_array_equal, variables, before)
        return seen.count

    assert run(0) <= 3
    assert run(1) == 0


def test_a_loss_that_is_not_deterministic_is_warned_of_and_recorded(axes):
    rng = np.random.default_rng(0)

    def noisy(p, batch):
        shape = jax.ShapeDtypeStruct((), np.float32)
        noise = jax.experimental.io_callback(lambda: np.float32(rng.standard_normal()), shape)
        return (p["gain"] ** 2) + noise

    with pytest.warns(UserWarning, match="two evaluations of the same batch"):
        result = lla.evaluate(noisy, params(), DATA, axes[:1], lla.grid(points=3, dims=1), execution=FIXED)
    assert result.recipe["deterministic"] is False
    again = lla.evaluate(mlp_loss(), params(), DATA, axes[:1], lla.grid(points=3, dims=1), execution=FIXED)
    assert again.recipe["deterministic"] is True


def test_a_chunk_far_above_the_number_of_points_is_cut():
    how = lla.Execution(chunk=10**9, microbatch=1, loop="map")
    options = {"row_bytes": 4, "param_bytes": 4, "uncut": False, "sharable": False, "scannable": True, "on_cpu": True}
    assert [plan.chunk for plan in plans.candidates(how, points=9, rows=4, **options)] == [plans.MOST_PADDED]
