"""Points and examples over several devices: the same values however they are split, and what is refused."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.execution import devices as _devices
from tests.helpers import FIXED, accuracy, apply, cross_entropy, dataset, mlp_loss, params

GRID = lla.grid(extent=0.5, points=(3, 4))
RTOL = 2e-6
NUM = 23  # examples: no multiple of any number of shares


@pytest.fixture(scope="module")
def axes():
    return lla.directions.random(jax.random.key(0), params(), num=2)


def run(axes, loss=None, data=None, **how):
    return lla.evaluate(
        mlp_loss() if loss is None else loss,
        params(),
        dataset(NUM) if data is None else data,
        axes,
        GRID,
        metrics={"accuracy": accuracy},
        execution=lla.Execution(**how) if how else FIXED,
    )


def assert_equal_to_rounding(found, expected):
    for name, z in expected.values.items():
        np.testing.assert_allclose(found.values[name], z, rtol=RTOL, err_msg=name)
        np.testing.assert_allclose(found.stderr[name], expected.stderr[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("devices", "shards"), [(2, 2), (4, 2), (4, 4)])
@pytest.mark.parametrize(
    ("chunk", "microbatch", "loop", "share", "scan"),
    [(1, 100, "map", False, False), (5, 3, "vmap", True, True), (2, 4, "map", True, False)],
)
def test_examples_are_split_over_devices_beside_points(axes, devices, shards, chunk, microbatch, loop, share, scan):
    how = {"chunk": chunk, "microbatch": microbatch, "loop": loop, "share": share, "scan": scan}
    found = run(axes, devices=devices, data_shards=shards, **how)
    assert_equal_to_rounding(found, run(axes))
    plan = found.recipe["plan"]
    assert (plan["devices"], plan["data_shards"], plan["scan"]) == (devices, shards, scan)


def test_each_device_holds_its_share_of_the_examples_only():
    mesh = _devices.mesh_of(jax.local_devices()[:4], 2)
    x = _devices.split_rows(dataset(NUM), mesh)[0]
    assert {shard.data.shape[0] for shard in x.addressable_shards} == {12}


def test_streams_noise_weights_and_further_data_are_split_alike(axes):
    def noisy(p, state, batch, train, keys):
        outputs, state = apply(p, state, batch, train)
        return outputs + 0.1 * jax.vmap(lambda k: jax.random.normal(k, (3,)))(keys), state

    def weighted(outputs, batch):
        return cross_entropy(outputs, batch), 1.0 + batch[1]

    loss = lla.Loss(noisy, weighted, key=jax.random.key(3))
    x, y = dataset(NUM)
    batches = [(x[:9], y[:9]), (x[9:], y[9:])]
    expected = run(axes, loss)
    how = {"chunk": 4, "microbatch": 3, "loop": "map", "share": False, "devices": 4, "data_shards": 2}
    assert_equal_to_rounding(run(axes, loss, **how), expected)
    assert_equal_to_rounding(run(axes, loss, lla.stream(batches), **how), expected)


def test_fewer_points_than_devices_split_the_examples():
    pair = lla.directions.random(jax.random.key(0), params(), num=1)
    for points, shards in ((1, 4), (2, 2), (3, 2), (4, 1)):
        line = lla.evaluate(mlp_loss(), params(), dataset(NUM), pair, lla.grid(points=points, dims=1))
        assert line.recipe["plan"]["data_shards"] == shards
        alone = lla.evaluate(mlp_loss(), params(), dataset(NUM), pair, lla.grid(points=points, dims=1), execution=FIXED)
        np.testing.assert_allclose(line.values["loss"], alone.values["loss"], rtol=RTOL)


def test_data_that_a_device_does_not_hold_are_split(monkeypatch):
    class Accelerator:
        platform = "gpu"

    monkeypatch.setattr(_devices, "free_bytes", lambda device: 100)
    shards = [_devices.data_shards(lla.Execution(), [Accelerator()] * 8, 99, n, "") for n in (50, 51, 100, 200, 9999)]
    assert shards == [1, 2, 2, 4, 8]


def test_what_cannot_be_split_is_refused(axes):
    for wrong in (3, 8, 0, True):
        with pytest.raises(
            ValueError, match=r"execution.data_shards: .* given; it must be one of 'auto', 1, 2, 4, a divisor"
        ):
            run(axes, devices=4, data_shards=wrong)
    with pytest.raises(ValueError, match=r"execution.scan: 2 given; it must be one of 'auto', True, False"):
        run(axes, scan=2)
    coupled = lla.Loss(apply, lambda o, b: jnp.mean(cross_entropy(o, b)), per_example=False)
    with pytest.raises(ValueError, match="data_shards: 2 given, but the loss couples the examples of a batch"):
        lla.evaluate(coupled, params(), dataset(NUM), axes, GRID, execution=lla.Execution(devices=4, data_shards=2))
    split = lla.Execution(devices=2, data_shards=2)
    with pytest.raises(ValueError, match="data_shards: 2 given, but batch_stats='batch' needs whole batches"):
        lla.evaluate(mlp_loss(), params(), dataset(NUM), axes, GRID, batch_stats="batch", execution=split)
    point = lla.evaluate(coupled, params(), dataset(NUM), axes, lla.grid(points=(1, 1)))
    assert point.recipe["plan"]["data_shards"] == 1


EIGHT = """
import jax, numpy as np, lla_jax as lla
from tests.helpers import accuracy, dataset, mlp_loss, params
axes = lla.directions.random(jax.random.key(0), params(), num=2)
assert len(jax.local_devices()) == 8
found = []
for devices, shards in ((1, 1), (2, 1), (4, 2), (8, 1), (8, 4), (8, 8)):
    how = lla.Execution(chunk=2, microbatch=4, loop="map", share=True, devices=devices, data_shards=shards)
    plane = lla.evaluate(mlp_loss(), params(), dataset(23), axes, lla.grid(0.5, 5), execution=how)
    H = lla.hessian(mlp_loss(), params(), dataset(23), execution=lla.Execution(devices=devices))
    product = H.product(jax.tree.map(np.ones_like, params()))
    found.append([plane.values["loss"], *map(np.asarray, jax.tree.leaves(product))])
for one in found[1:]:
    for a, b in zip(one, found[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6 * abs(b).max())
"""


def test_eight_devices_give_the_values_of_one():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    subprocess.run([sys.executable, "-c", EIGHT], check=True, env=environment, timeout=300)
