"""Parameters sharded over devices: products, bases and eigenvectors are too, with the numbers of one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import lla_jax as lla
from lla_jax.curvature import flat_rows, lanczos, operators
from tests import helpers
from tests.helpers import ONE

KEY = jax.random.key(4)
SHAPES = {"b1": (8,), "b2": (3,), "w1": (5, 8), "w2": (8, 3)}
SPECS = {"b1": ("model",), "b2": (), "w1": (None, "model"), "w2": ("model", None)}
DATA = helpers.dataset(22)


def apply(p, state, batch, train):
    return jnp.tanh(batch[0] @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"], state


LOSS = lla.Loss(apply, helpers.cross_entropy, penalty=lambda p: 0.1 * jnp.sum(p["w1"] ** 2))


def mesh(devices: int, kind: AxisType = AxisType.Auto) -> Mesh:
    return Mesh(np.array(jax.devices()[:devices]), ("model",), axis_types=(kind,))


def plain() -> dict:
    """An MLP 5 -> 8 -> 3."""
    rng = np.random.default_rng(0)
    return {name: (0.5 * rng.standard_normal(shape)).astype(np.float32) for name, shape in SHAPES.items()}


def sharded(devices: int, kind: AxisType = AxisType.Auto) -> dict:
    """The same MLP, with its hidden units sharded over the devices."""
    over = mesh(devices, kind)
    return {k: jax.device_put(x, NamedSharding(over, PartitionSpec(*SPECS[k]))) for k, x in plain().items()}


@functools.cache
def matrix() -> np.ndarray:
    """The Hessian of one device."""
    return operators.dense(lla.hessian(LOSS, plain(), DATA, execution=ONE))


def check_sharded(tree: dict, devices: int, *lead: int) -> None:
    """Assert that every leaf has the sharding of its parameter, and no device more of it than its shard."""
    for name, x in tree.items():
        parts = [devices if entry else 1 for entry in SPECS[name]] or [1]
        shape = (*lead, *(size // part for size, part in zip(SHAPES[name], parts)))
        assert x.shape == (*lead, *SHAPES[name])
        assert len(x.addressable_shards) == devices, name
        assert all(shard.data.shape == shape for shard in x.addressable_shards), (name, x.sharding)


def flat(tree, lead=0):
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.reshape(*x.shape[:lead], -1) for x in leaves], -1)


def error(a, b) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.abs(a - b).max() / np.abs(b).max()


@functools.cache
def hessian(devices: int):
    return lla.hessian(LOSS, sharded(devices), DATA, batch_size=6)


@pytest.mark.parametrize("devices", [2, 4])
def test_values_of_one_device_and_no_leaf_gathered(devices):
    H, A = hessian(devices), matrix()
    assert f"sharded over {devices} devices" in repr(H)
    assert (H.recipe["draw"], H.recipe["plan"]["devices"]) == ("per leaf", devices)
    v = H.random(KEY)
    product = H.product(v)
    for tree in (H.centre(), v, product):
        check_sharded(tree, devices)
    assert error(flat(product), A @ flat(v)) < 1e-5

    run = lanczos.lanczos(H, KEY, 7)
    check_sharded(run.basis, devices, 7)
    check_sharded(run.remainder, devices)
    q, T = flat(run.basis, 1), lanczos.tridiagonal(run.alphas, run.betas)
    assert np.abs(A @ q.T - q.T @ T - np.outer(flat(run.remainder), np.eye(7)[-1])).max() < 1e-5 * np.abs(A).max()

    pairs = lla.eigenpairs(H, KEY, 2, tol=1e-4, max_vectors=8)  # with restarts
    check_sharded(pairs.vectors.tree, devices, 2)
    exact = np.linalg.eigvalsh(A)
    assert pairs.recipe["converged"]
    assert error(pairs.values, exact[np.argsort(-np.abs(exact))][:2]) < 1e-5
    assert error(A @ flat(pairs.vectors.tree, 1).T, flat(pairs.vectors.tree, 1).T * pairs.values) < 1e-3

    z = flat_rows.draw_rows(H, KEY, np.arange(16, dtype=np.uint32), "rademacher")[0]
    check_sharded(z, devices, 16)
    trace = lla.trace(H, KEY, method="hutchinson", rtol=9.0, max_products=16)
    z = flat(z, 1)
    assert trace.mean == pytest.approx(np.mean(np.sum(z * (z @ A), 1)), rel=1e-4)


def test_sketch_diagonal_and_spectrum_where_parameters_are():
    H, A = hessian(4), matrix()
    trace = lla.trace(H, KEY, rtol=9.0, max_products=48)
    assert abs(trace.mean - np.trace(A)) < 5 * trace.sem
    assert trace.sem < 0.3 * np.linalg.norm(A)
    diagonal = lla.diagonal(H, KEY, rtol=9.0, max_products=16)
    z = flat(flat_rows.draw_rows(H, KEY, np.arange(16, dtype=np.uint32), "rademacher"), 1)
    assert error(flat(diagonal.mean), np.mean(z * (z @ A), 0)) < 1e-4
    spec = lla.spectrum(H, KEY, steps=6, probes=2)
    z = flat(H.random(jax.random.fold_in(KEY, 0)))
    moments = [z @ np.linalg.matrix_power(A, p) @ z / (z @ z) for p in (1, 2, 3)]
    assert error([np.sum(spec.weights[0] * spec.nodes[0] ** p) for p in (1, 2, 3)], moments) < 1e-4


def test_interrupted_and_continued_where_parameters_are():
    H, kept = hessian(4), []

    def stop(products, total):
        if products == 9:
            raise KeyboardInterrupt

    options = {"tol": 1e-4, "max_vectors": 8}
    with pytest.raises(KeyboardInterrupt):
        lla.eigenpairs(H, KEY, 2, **options, progress=stop, on_partial=kept.append)
    uninterrupted = lla.eigenpairs(H, KEY, 2, **options)
    again = lla.eigenpairs(H, KEY, 2, **options, resume=kept[0])
    check_sharded(again.vectors.tree, 4, 2)
    assert np.array_equal(again.values, uninterrupted.values)
    assert np.array_equal(flat(again.vectors.tree, 1), flat(uninterrupted.vectors.tree, 1))


def test_selection_spread_data_and_explicit_meshes():
    p, over = sharded(4, AxisType.Explicit), mesh(4)
    data = (np.concatenate([DATA[0], DATA[0][:2]]), np.concatenate([DATA[1], DATA[1][:2]]))
    split = tuple(jax.device_put(x, NamedSharding(over, PartitionSpec("model"))) for x in data)
    H = lla.ggn(LOSS, p, split, select="w*")
    v = H.random(KEY)
    reference = lla.ggn(LOSS, plain(), data, select="w*", execution=ONE)
    product = H.product(v)
    assert error(flat(product), flat(reference.product(jax.tree.map(np.asarray, v)))) < 1e-5
    stacked = H.embed(jax.tree.map(lambda x: x[None], product))
    check_sharded(stacked, 4, 1)
    assert np.abs(np.asarray(stacked["b1"])).max() == 0
    assert H.recipe["plan"]["blocks"] == 1  # sharded rows are not cut
    mask = {"b1": None, "b2": None, "w1": np.ones((5, 8)), "w2": np.zeros((8, 3))}
    masked = operators.masked(H, mask)
    assert np.abs(np.asarray(masked.product(v)["w2"])).max() == 0
    stream = lla.hessian(LOSS, p, lla.stream([DATA]))
    assert error(flat(stream.product(hessian(4).random(KEY))), matrix() @ flat(hessian(4).random(KEY))) < 1e-5


def test_a_given_operator_on_arrays_that_are_spread():
    scale = jnp.arange(1.0, 41.0)
    like = jax.device_put(jnp.zeros(40), NamedSharding(mesh(4), PartitionSpec("model")))
    H = operators.given(lambda v, scale: scale * v, like, scale)
    pairs = lla.eigenpairs(H, KEY, 1)
    assert pairs.values[0] == pytest.approx(40, rel=1e-5)
    assert {shard.data.shape for shard in pairs.vectors.tree.addressable_shards} == {(1, 10)}


def test_what_parameters_that_are_spread_do_not_go_with():
    with pytest.raises(ValueError, match="devices: 2 given, but the parameters are sharded over 4 devices"):
        lla.hessian(LOSS, sharded(4), DATA, execution=lla.Execution(devices=2))
    mixed = sharded(4) | {"w1": sharded(2)["w1"]}
    with pytest.raises(ValueError, match="params: sharded over 2 meshes"):
        lla.hessian(LOSS, mixed, DATA)
    elsewhere = jax.device_put(DATA[0], NamedSharding(mesh(2), PartitionSpec("model")))
    with pytest.raises(ValueError, match=r"data: has a leaf sharded as .* use one mesh for parameters and data"):
        lla.hessian(LOSS, sharded(4), (elsewhere, DATA[1]))
