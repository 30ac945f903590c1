"""Frozen, batch and re-estimated normalization statistics, against a network whose statistics are computed by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lla_jax as lla
from tests.helpers import FIXED, compilations

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((22, 4)).astype(np.float32), RNG.integers(0, 3, 22)
EPS = 1e-5
LINE = lla.grid(extent=0.8, points=3, dims=1)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(5)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=EPS)(x))
        return nn.Dense(3)(x)


def criterion(outputs, batch):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1])


@pytest.fixture(scope="module")
def trained():
    variables = Net().init(jax.random.key(0), X)
    state = {"BatchNorm_0": {"mean": 0.3 * jnp.ones(5), "var": 1.7 * jnp.ones(5)}}
    return {"params": variables["params"], "batch_stats": state}


@pytest.fixture(scope="module")
def axis(trained):
    return lla.directions.random(jax.random.key(1), trained["params"], num=1)


def hand(params, x, y, statistics=None):
    """(mean loss, hidden mean, hidden variance) in numpy float64; statistics of the batch itself if not given."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    h = x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    mean, var = (h.mean(0), h.var(0)) if statistics is None else statistics
    norm = p["BatchNorm_0"]
    h = np.maximum((h - mean) / np.sqrt(var + EPS) * norm["scale"] + norm["bias"], 0)
    z = h @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]
    z -= z.max(1, keepdims=True)
    return (np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]).mean(), mean, var


def at(params, axis, c):
    return jax.tree.map(lambda p, d: np.asarray(p, np.float64) + c * np.asarray(d[0], np.float64), params, axis.tree)


def run(trained, axis, policy, data=(X, Y), **options):
    loss = lla.from_linen(Net(), trained, criterion)
    options = {"execution": FIXED, "batch_size": 8} | options
    return lla.evaluate(loss, trained["params"], data, axis, LINE, batch_stats=policy, **options)


def test_other_state_is_left_as_it_is_when_statistics_are_recomputed(trained, axis):
    """A buffer that the network multiplies its input with, beside the running averages."""
    scale = np.float32([0.5, 2, 1, 3])

    def apply(params, state, batch, train):
        averages, x = {"batch_stats": state["batch_stats"]}, batch[0] * state["scale"]
        if not train:
            return Net().apply({"params": params, **averages}, x), state
        outputs, new = Net().apply({"params": params, **averages}, x, train=True, mutable=["batch_stats"])
        return outputs, state | new

    loss = lla.Loss(apply, criterion, {"batch_stats": trained["batch_stats"], "scale": jnp.asarray(scale)})
    options = {"execution": FIXED, "batch_size": 8, "batch_stats": "reestimate"}
    found = lla.evaluate(loss, trained["params"], (X, Y), axis, LINE, **options)
    expected = run(trained, axis, "reestimate", (X * scale, Y))
    np.testing.assert_allclose(found.values["loss"], expected.values["loss"], rtol=1e-5)


def batches(size=8):
    return [(X[s : s + size], Y[s : s + size]) for s in range(0, len(X), size)]


def test_frozen_statistics_are_those_of_training(trained, axis):
    found = run(trained, axis, "frozen")
    expected = [hand(at(trained["params"], axis, c), X, Y, (0.3, 1.7))[0] for c in LINE[0]]
    np.testing.assert_allclose(found.values["loss"], expected, rtol=1e-5)
    assert found.recipe["batch_stats"] == "frozen"


@pytest.mark.parametrize("streamed", [False, True])
def test_batch_statistics_are_those_of_each_batch_the_smaller_last_one_included(trained, axis, streamed):
    data = lla.stream(batches()) if streamed else (X, Y)
    found = run(trained, axis, "batch", data)
    expected = [
        sum(len(y) * hand(at(trained["params"], axis, c), x, y)[0] for x, y in batches()) / len(Y) for c in LINE[0]
    ]
    np.testing.assert_allclose(found.values["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("streamed", [False, True])
def test_reestimated_statistics_are_the_mean_over_batches_at_each_point(trained, axis, streamed):
    data = lla.stream(batches()) if streamed else (X, Y)
    found = run(trained, axis, "reestimate", data, extra_data={"test": (X[:5], Y[:5])})
    for i, c in enumerate(LINE[0]):
        params = at(trained["params"], axis, c)
        parts = [hand(params, x, y)[1:] for x, y in batches()]
        weights = np.array([len(y) for _, y in batches()]) / len(Y)
        mean, var = (np.tensordot(weights, np.stack(p), 1) for p in zip(*parts, strict=True))
        assert found.values["loss"][i] == pytest.approx(hand(params, X, Y, (mean, var))[0], rel=1e-5)
        assert found.values["test_loss"][i] == pytest.approx(hand(params, X[:5], Y[:5], (mean, var))[0], rel=1e-5)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("loop", ["map", "vmap"])
def test_policies_do_not_depend_on_the_plan(trained, axis, loop, devices):
    plan = lla.Execution(chunk=2, microbatch=5, loop=loop, share=False, devices=devices)
    for policy in ("batch", "reestimate"):
        usual, other = run(trained, axis, policy), run(trained, axis, policy, execution=plan)
        np.testing.assert_allclose(other.values["loss"], usual.values["loss"], rtol=2e-6)


def test_reestimating_at_new_weights_compiles_nothing(trained, axis):
    run(trained, axis, "reestimate")
    moved = {**trained, "params": jax.tree.map(lambda p: np.asarray(p) * 1.1, trained["params"])}
    with compilations() as seen:
        run(moved, axis, "reestimate")
    assert seen.count == 0


def test_the_users_statistics_are_not_changed(trained, axis):
    before = jax.tree.map(np.array, trained)
    run(trained, axis, "reestimate")
    jax.tree.map(np.testing.assert_array_equal, before, trained)


@pytest.mark.parametrize(("mean", "scale"), [(1000.0, 10.0), (0.0, 1e3), (0.0, 1e-3)])
def test_reestimation_keeps_its_digits_for_inputs_of_any_scale(trained, axis, mean, scale):
    x = (mean + scale * X).astype(np.float32)
    found = run(trained, axis, "reestimate", (x, Y), batch_size=None)
    uncut = run(trained, axis, "batch", (x, Y), batch_size=None)
    np.testing.assert_allclose(found.values["loss"], uncut.values["loss"], rtol=2e-4 if mean else 1e-4)


def test_what_is_no_running_average_is_refused(axis, trained):
    def apply(params, state, batch, train):
        new = {"count": state["count"] + 1.0} if train else state
        return batch[0] @ params["Dense_0"]["kernel"], new

    loss = lla.Loss(apply, lambda o, b: (o**2).sum(1), state={"count": np.float32(3)})
    with pytest.raises(ValueError, match=r"'count' is not updated as m\*old"):
        lla.evaluate(loss, trained["params"], (X, Y), axis, LINE, batch_stats="reestimate", execution=FIXED)
    still = lla.Loss(
        lambda p, s, b, t: apply(p, s, b, False), lambda o, b: (o**2).sum(1), state={"count": np.float32(3)}
    )
    with pytest.raises(ValueError, match=r"no leaf of Loss\.state changes"):
        lla.evaluate(still, trained["params"], (X, Y), axis, LINE, batch_stats="reestimate", execution=FIXED)


def test_averages_that_are_those_of_the_data_already_are_known_as_averages():
    """One more update by the same batch leaves such a leaf as it is, to the bit."""

    def apply(params, state, batch, train):
        z = params["w"] * batch
        mean, square = (z.mean(), (z**2).mean()) if train else (state["mean"], state["square"])
        new = {"mean": 0.5 * (state["mean"] + mean), "square": 0.5 * (state["square"] + square)}
        return (z - mean) / square, new

    data, along = np.float32([1, 3]), lla.directions.given({"w": np.float32(1)})
    assert apply({"w": 1}, {"mean": 2.0, "square": 0.0}, data, True)[1]["mean"] == 2
    one, two = (
        lla.evaluate(
            lla.Loss(apply, lambda outputs, batch: outputs**2, {"mean": np.float32(mean), "square": np.float32(0)}),
            {"w": np.float32(1)},
            data,
            along,
            LINE,
            batch_stats="reestimate",
            execution=FIXED,
        )
        for mean in (0, 2)
    )
    np.testing.assert_array_equal(two.values["loss"], one.values["loss"])
