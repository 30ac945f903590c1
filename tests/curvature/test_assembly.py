"""How operators are put together: bytes, blocks and devices as the plan says, and losses that change refused."""

from __future__ import annotations

import copy
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.curvature import blocks, operators
from lla_jax.execution import devices as _devices
from tests import helpers
from tests.curvature.cases import DATA, LOSS, make
from tests.helpers import ANEW, ONE, error, ravel

KEY = jax.random.key(0)


@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"devices": 2}, {"devices": 4, "batch_size": 2}], ids=str)
def test_bytes_said_are_the_bytes_kept(options):
    H = make(linearize=True, **options)
    plan = H.recipe["plan"]
    assert plan["bytes"] == sum(x.nbytes for x in jax.tree.leaves(H.blocks)) > 0
    assert plan["linearized"]
    assert plan["devices"] == options.get("devices", 1)


def test_primal_values_are_kept_where_memory_allows_and_the_plan_says_so(monkeypatch, caplog):
    with caplog.at_level(logging.INFO, "lla_jax"):
        kept = make()
    assert caplog.messages == ["hessian: 11 examples in 1 block, primal values kept (0.0 MiB)"]
    assert kept.recipe["plan"]["text"] in repr(kept)
    monkeypatch.setattr(_devices, "free_bytes", lambda device: 4 * kept.recipe["plan"]["bytes"] - 1)
    recomputed = make()
    assert not recomputed.recipe["plan"]["linearized"]
    assert recomputed.recipe["plan"]["bytes"] == 0
    assert "computed at every product (kept, they would take" in recomputed.recipe["plan"]["text"]
    assert make(linearize=True).recipe["plan"]["linearized"]
    v = kept.random(KEY)
    assert error(kept.product(v), recomputed.product(v)) < 1e-6
    assert make(linearize=False).recipe["plan"]["text"].endswith("primal values computed at every product")


def test_blocks_suit_the_caches_also_where_the_weights_are_large():
    """A hidden layer of 1024: 4 KiB an example, 1 MiB of weights."""
    width, n = 1024, 3000
    shapes = {"in": (4, width), "hidden": (width, 256), "out": (256, 3)}
    params = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}

    def wide(p, state, batch, train):
        return jnp.tanh(jnp.tanh(batch[0] @ p["in"]) @ p["hidden"]) @ p["out"], state

    data = np.zeros((n, 4), np.float32), np.zeros(n, np.int32)
    H = lla.hessian(lla.Loss(wide, helpers.cross_entropy), params, data, execution=ANEW)
    most = blocks.BLOCK_BYTES[True] // (4 * width)
    assert H.recipe["plan"]["rows"] == n // -(-n // most)
    few = lla.hessian(LOSS, helpers.params(), helpers.dataset(900), execution=ANEW)
    assert few.recipe["plan"]["blocks"] == 1


def test_recipe_is_json_and_tells_operators_apart():
    loss = helpers.mlp_loss(key=None)
    draws = lla.fisher(loss, helpers.params(), DATA, KEY, samples=2, execution=ONE, select="Dense_0/*")
    recipe = json.loads(json.dumps(draws.recipe))
    assert recipe["kind"] == "fisher (mc)"
    assert recipe["samples"] == 2
    assert recipe["select"]["paths"] == ["Dense_0/bias", "Dense_0/kernel"]
    again = lla.fisher(loss, helpers.params(), DATA, KEY, samples=2, execution=ONE, select="Dense_0/*")
    assert json.dumps(again.recipe) == json.dumps(draws.recipe)
    base = make().recipe
    assert base["params"]["size"] == 58
    assert base == json.loads(json.dumps(base))
    for changed in (
        lla.hessian(LOSS, helpers.params(1), DATA, execution=ONE),
        lla.hessian(LOSS, helpers.params(), helpers.dataset(11, seed=3), execution=ONE),
        make(select="Dense_1/*"),
        operators.masked(make(), jax.tree.map(np.ones_like, helpers.params())),
    ):
        assert {k: v for k, v in changed.recipe.items() if k != "plan"} != {
            k: v for k, v in base.items() if k != "plan"
        }


def test_devices_are_one_on_a_cpu_unless_named_and_blocks_loop_on_each():
    assert lla.hessian(LOSS, helpers.params(), DATA).recipe["plan"]["devices"] == 1
    H = make(devices=jax.devices()[1:3], batch_size=2)
    assert [(block.sums[0].shape, x.devices()) for block in H.blocks for x in jax.tree.leaves(block)[:1]] == [
        ((2, 3), set(jax.devices()[1:3]))
    ]
    assert error(H.product(H.random(KEY)), make().product(H.random(KEY))) < 1e-6


def test_fewer_examples_than_devices():
    data = helpers.dataset(3)
    one, four = (lla.hessian(LOSS, helpers.params(), data, execution=lla.Execution(devices=n)) for n in (1, 4))
    v = one.random(KEY)
    assert error(four.product(v), one.product(v)) < 1e-6


class Changing:
    """A loader whose data drift from pass to pass."""

    def __init__(self) -> None:
        self.passes = 0

    def __call__(self):
        self.passes += 1
        return [(DATA[0] * (1 + 0.01 * self.passes), DATA[1])]


def test_a_stream_that_changes_is_refused_unless_allowed():
    H = lla.hessian(LOSS, helpers.params(), lla.stream(Changing()), execution=ONE)
    v = H.random(KEY)
    H.mv(v)
    with pytest.raises(ValueError, match=r"data: two readings of the stream give the mean losses .* allow_nondetermin"):
        H.mv(v)
    allowed = lla.hessian(LOSS, helpers.params(), lla.stream(Changing()), execution=ONE, allow_nondeterministic=True)
    assert error(allowed.mv(v), allowed.mv(v)) > 1e-3
    shuffled = [copy.deepcopy((DATA[0][order], DATA[1][order])) for order in (np.arange(11), np.arange(11)[::-1])]
    passes = iter(shuffled * 2)
    H = lla.hessian(LOSS, helpers.params(), lla.stream(lambda: [next(passes)]), execution=ONE)
    assert error(H.mv(v), H.mv(v)) < 1e-6  # the same examples in another order are the same data
    assert "streamed" in repr(H)
    infinite = lla.Loss(helpers.apply, lambda o, b: helpers.cross_entropy(o, b) + jnp.inf)
    H = lla.hessian(infinite, helpers.params(), lla.stream([DATA]), execution=ONE)
    assert np.array_equal(ravel(H.mv(v)), ravel(H.mv(v)), equal_nan=True)


def _called(f) -> lla.Loss:
    scalar = jax.ShapeDtypeStruct((), np.float32)
    return lla.Loss(helpers.apply, lambda o, b: helpers.cross_entropy(o, b) * jax.pure_callback(f, scalar))


def test_a_callback_that_draws_noise_is_refused_unless_allowed():
    noise = np.random.default_rng(0)
    loss = _called(lambda: np.float32(1 + noise.random()))
    with pytest.raises(
        ValueError, match=r"loss: two evaluations on the same batch differ by .*callback that draws noise"
    ):
        lla.hessian(loss, helpers.params(), DATA, execution=ANEW)
    lla.hessian(loss, helpers.params(), DATA, execution=ANEW, allow_nondeterministic=True)
    steady = lla.hessian(_called(lambda: np.float32(2)), helpers.params(), DATA, execution=ANEW)
    v = steady.random(KEY)
    assert error(steady.product(v), 2 * ravel(make().product(v))) < 1e-6


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ([1.0, -2.0], [1.0, -2.0], 0.0),
        ([1.0, -2.0], [1.1, -2.0], 0.05),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([np.nan, 4.0], [np.nan, 4.0], 0.0),
        ([np.inf, 4.0], [np.inf, 6.0], 0.5),
        ([np.inf, 4.0], [np.nan, 4.0], np.inf),
        ([1.0, 4.0], [np.nan, 4.0], np.inf),
    ],
)
def test_difference_between_two_runs(one, two, expected):
    assert blocks._difference(np.array(one), np.array(two)) == pytest.approx(expected)


@pytest.mark.parametrize("rows", ["32", "-1, 32"], ids=["of a fixed number", "of multiples"])
def test_models_of_their_own_number_of_rows_have_all_matrices(rows):
    x = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32)
    shape = (-1, 32, 5) if "," in rows else (32, 5)

    def apply(p, state, batch, train):
        return (batch[0].reshape(shape) @ p["w"]).reshape(-1, 3), state

    params = {"w": np.ones((5, 3), np.float32)}
    loss = lla.Loss(apply, lambda o, b: ((o - b[1]) ** 2).sum(1))
    free = lla.Loss(lambda p, state, batch, train: (batch[0] @ p["w"], state), loss.criterion)
    data = (x, x[:, :3])
    expected = operators.dense(lla.ggn(free, params, data, execution=ONE))
    fisher = lla.fisher(loss, params, data, jax.random.key(0), samples=300, batch_size=32, execution=ONE)
    assert error(operators.dense(lla.ggn(loss, params, data, batch_size=32, execution=ONE)), expected) < 1e-5
    assert error(operators.dense(fisher), expected) < 0.1
