"""Operators as objects: selection, masks, plans, streams, transformations, what is compiled, and what is refused."""

from __future__ import annotations

import copy
import functools
import json
import logging
import operator
import re
import weakref
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lla_jax as lla
from lla_jax.core import tree as _tree
from lla_jax.curvature import assembly, operators, space
from lla_jax.execution import devices as _devices
from tests import helpers
from tests.helpers import ANEW, KEPT, ONE

DATA = helpers.dataset(11)
LOSS = helpers.mlp_loss()
KEY = jax.random.key(0)
ones = jax.tree.map(np.ones_like, helpers.params())
MAKERS = {
    "hessian": lla.hessian,
    "ggn": lla.ggn,
    "fisher": lambda *args, **options: lla.fisher(*args, jax.random.key(1), **options),
}


def flat(tree: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0])


def error(found: Any, expected: Any) -> float:
    return float(np.abs(flat(found) - flat(expected)).max() / np.abs(flat(expected)).max())


def make(devices: Any = 1, linearize: Any = "auto", **options: Any) -> Any:
    how = lla.Execution(devices=devices, linearize=linearize)
    return lla.hessian(LOSS, helpers.params(), DATA, execution=how, **options)


@pytest.fixture(scope="module")
def hessian() -> Any:
    return make()


@pytest.fixture(scope="module")
def matrix(hessian) -> np.ndarray:
    return operators.dense(hessian)


# --- compiled and traced once


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("linearize", [True, False])
@pytest.mark.parametrize("kind", MAKERS)
def test_new_weights_compile_and_trace_nothing(kind, linearize, devices):
    traced = []

    def criterion(outputs, batch):
        traced.append(1)
        return helpers.cross_entropy(outputs, batch)

    apply_hessian = jax.jit(lambda H, v: H.mv(v))

    def product(seed: int) -> Any:
        loss = lla.Loss(helpers.apply, criterion)
        how = lla.Execution(devices=devices, linearize=linearize)
        H = MAKERS[kind](loss, helpers.params(seed), DATA, execution=how)
        v = H.random(KEY)
        return H.product(v), apply_hessian(H, v)

    product(0)
    first = len(traced)
    with helpers.compilations() as seen:
        found = product(1)
    assert seen.count == 0
    assert len(traced) == first
    assert error(*found) < 1e-6
    assert error(product(0), product(1)) > 0.01


def test_another_mask_compiles_nothing(hessian):
    masks = [
        jax.tree.map(lambda x, i=i: (np.arange(x.size) % 3 == i).reshape(x.shape), helpers.params()) for i in (0, 1)
    ]
    operators.masked(hessian, masks[0]).product(hessian.random(KEY))
    with helpers.compilations() as seen:
        operators.masked(hessian, masks[1]).product(hessian.random(KEY))
    assert seen.count == 0


def test_products_are_at_full_matmul_precision():
    loss = helpers.mlp_loss(penalty=lambda p: jnp.sum((p["Dense_0"]["kernel"].T @ p["Dense_0"]["kernel"]) ** 2))
    for kind, maker in MAKERS.items():
        for how in (KEPT, ANEW):
            H = maker(loss, helpers.params(), DATA, execution=how, batch_size=4)
            text = str(jax.make_jaxpr(lambda H, v: H.mv(v))(H, H.random(KEY)))
            assert text.count("dot_general[") > 0
            assert text.count("HIGHEST") == 2 * text.count("dot_general["), kind  # one for each operand
    given = operators.given(lambda v, A: A @ v, np.zeros(3, np.float32), np.eye(3, dtype=np.float32))
    assert str(jax.make_jaxpr(given.mv)(np.zeros(3, np.float32))).count("HIGHEST") == 2


# --- around other parameters


def _coupled(outputs, batch):
    return helpers.cross_entropy(outputs, batch).mean()


COUPLED = lla.Loss(helpers.apply, _coupled, per_example=False)
PENALIZED = helpers.mlp_loss(penalty=lambda p: jnp.sum(p["Dense_0"]["kernel"] ** 4))
BATCHES = lla.stream([tuple(x[i : i + 4] for x in DATA) for i in range(0, 11, 4)])
HALF = jax.tree.map(lambda x: (np.arange(x.size) % 2 == 0).reshape(x.shape), helpers.params())


def _spread(p: Any) -> Any:
    over = Mesh(np.array(jax.devices()[:2]), ("model",))
    kernel = jax.device_put(p["Dense_0"]["kernel"], NamedSharding(over, PartitionSpec(None, "model")))
    return p | {"Dense_0": p["Dense_0"] | {"kernel": kernel}}


MADE: dict[str, Any] = {
    "recomputed": lambda p: lla.hessian(PENALIZED, p, DATA, execution=ANEW, batch_size=4),
    "kept": lambda p: lla.hessian(PENALIZED, p, DATA, execution=KEPT),
    "kept in blocks on two devices": lambda p: lla.ggn(
        LOSS, p, DATA, execution=lla.Execution(devices=2, linearize=True), batch_size=2
    ),
    "recomputed on two devices": lambda p: lla.ggn(LOSS, p, DATA, execution=lla.Execution(devices=2, linearize=False)),
    "drawn targets": lambda p: lla.fisher(LOSS, p, DATA, KEY, samples=2, execution=ONE),
    "streamed": lambda p: lla.hessian(PENALIZED, p, BATCHES, execution=ONE),
    "streamed over two devices": lambda p: lla.hessian(LOSS, p, BATCHES, execution=lla.Execution(devices=2)),
    "selected": lambda p: lla.hessian(LOSS, p, DATA, select="**/kernel", execution=ONE),
    "selected and streamed": lambda p: lla.hessian(LOSS, p, BATCHES, select="**/kernel", execution=ONE),
    "coupled": lambda p: lla.hessian(COUPLED, p, DATA, batch_size=4),
    "coupled and streamed": lambda p: lla.hessian(COUPLED, p, BATCHES),
    "masked": lambda p: operators.masked(lla.hessian(LOSS, p, DATA, execution=ONE), HALF),
    "masked and streamed": lambda p: operators.masked(lla.hessian(LOSS, p, BATCHES, execution=ONE), HALF),
    "preconditioned": lambda p: operators.preconditioned(lla.hessian(LOSS, p, DATA, execution=ONE), ones),
    "spread over devices": lambda p: lla.hessian(LOSS, _spread(p), DATA),
}


@pytest.mark.parametrize("name", MADE)
def test_around_other_parameters_it_is_the_operator_made_there_and_compiles_nothing(name):
    first, there = helpers.params(), helpers.params(7)
    H = MADE[name](first)
    v = H.random(KEY)
    at_first = H.product(v)
    with helpers.compilations() as seen:
        moved = H.at(there)
        found = moved.product(v)
    assert seen.count == 0
    anew = MADE[name](there)
    np.testing.assert_array_equal(flat(found), flat(anew.product(v)))
    assert error(found, at_first) > 0.01
    assert moved.recipe == anew.recipe != H.recipe
    assert repr(moved) == repr(H)
    np.testing.assert_array_equal(flat(moved.at(first).product(v)), flat(at_first))
    np.testing.assert_array_equal(flat(H.product(v)), flat(at_first))
    assert [x.sharding for x in jax.tree.leaves(moved.centre())] == [x.sharding for x in jax.tree.leaves(H.centre())]


def test_around_other_parameters_the_data_stay_where_they_are(monkeypatch):
    H = make(linearize=False)

    def refuse(*args):
        raise AssertionError("the data are moved")

    monkeypatch.setattr(assembly, "_split", refuse)
    monkeypatch.setattr(assembly, "_profile", refuse)
    assert H.at(helpers.params(1)).recipe["plan"] == H.recipe["plan"]
    there, here = (jax.tree.leaves(op.common.data) for op in (H.at(helpers.params(1)), H))
    assert all(map(operator.is_, there, here))
    held = weakref.ref(here[0])
    del H, there, here
    assert held() is None  # at once: an operator that holds itself would wait for the garbage collector


def test_where_primal_values_are_kept_the_data_are_not_here_or_elsewhere(monkeypatch):
    placed, split = [], assembly._split

    def watched(*args):
        found = split(*args)
        placed.extend(map(weakref.ref, jax.tree.leaves(found)))
        return found

    monkeypatch.setattr(assembly, "_split", watched)
    H = make(linearize=True)
    there = H.at(helpers.params(1))
    assert there.recipe["plan"] == H.recipe["plan"]
    assert len(placed) == 4  # inputs and labels, for each of the two
    assert not [array for array in placed if array() is not None]


def test_around_other_parameters_the_recipe_is_that_of_an_operator_made_there():
    """Parameters of a wider type are known by their own bits, as a landscape around them says."""
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), helpers.params(1))
    there, anew = make().at(wide), lla.hessian(LOSS, wide, DATA, execution=ONE)
    assert there.recipe["params"] == anew.recipe["params"]
    axes = lla.directions.random(KEY, wide)
    plane = lla.evaluate(LOSS, wide, DATA, axes, lla.grid(points=3), execution=helpers.FIXED)
    assert lla.plane_report(plane, axes, there).products


def test_a_stream_may_change_between_parameters_but_not_at_them():
    passes = [DATA, DATA, tuple(x[:7] for x in DATA), tuple(x[:7] for x in DATA), DATA]
    reading = iter(passes)
    H = lla.hessian(LOSS, helpers.params(), lla.stream(lambda: [next(reading)]), execution=ONE)  # reads once
    v = H.random(KEY)
    H.product(v)
    there = H.at(helpers.params(1))
    there.product(v)
    there.product(v)
    with pytest.raises(ValueError, match="two readings of the stream give the mean losses"):
        there.product(v)


# --- the plan


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
    most = assembly.BLOCK_BYTES[True] // (4 * width)
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


# --- as a pytree


def test_an_operator_is_a_pytree_and_survives_transformations(hessian):
    v = hessian.random(KEY)
    copied = jax.tree.map(lambda x: x, hessian)
    assert error(copied.product(v), hessian.product(v)) == 0
    assert copied.recipe == {}
    half = jax.tree.map(lambda x: (np.arange(x.size) % 2).reshape(x.shape), helpers.params())
    seen = []

    @jax.jit
    def inside(H, key):
        seen.append(repr(H))
        return H, H.mv(H.random(key))

    for H in (hessian, operators.masked(hessian, half)):
        after, product = inside(H, KEY)
        assert error(product, H.product(H.random(KEY))) < 1e-6
        assert after.shape == H.shape
    assert seen == ["LinearOperator(hessian, 58 x 58)", "LinearOperator(hessian, masked)"]
    host = operators.given(lambda v: v, v, traceable=False)
    assert repr(host) == "HostOperator(given, 58 x 58)"
    assert not host.on_device


def test_structure_random_vectors_and_embedding():
    H = make(select="**/kernel")
    assert H.structure["gain"] is None
    assert H.structure["Dense_0"]["kernel"] == jax.ShapeDtypeStruct((5, 6), np.float32)
    assert H.shape == (48, 48)
    assert H.dtype == np.float32
    signs, normal = (H.random(KEY, kind) for kind in ("rademacher", "normal"))
    assert set(np.unique(flat(signs))) == {-1.0, 1.0}
    assert abs(np.std(flat(normal)) - 1) < 0.3
    assert signs["Dense_1"]["bias"] is None
    full = H.embed(jax.tree.map(lambda x: jnp.stack([x, 2 * x]), signs))
    assert jax.tree.structure(full) == jax.tree.structure(helpers.params())
    assert full["gain"].shape == (2,)
    assert not np.any(full["gain"])
    np.testing.assert_array_equal(full["Dense_0"]["kernel"][1], 2 * signs["Dense_0"]["kernel"])
    with pytest.raises(ValueError, match="distribution: 'uniform' given"):
        H.random(KEY, "uniform")


@pytest.mark.parametrize("name", MADE)
def test_products_are_the_product_row_by_row(name):
    _check_products(MADE[name](helpers.params()))


def test_products_of_given_operators_are_the_product_row_by_row():
    A = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
    _check_products(operators.given(lambda v, A: A @ v, A[0], A))
    _check_products(operators.given(lambda v, A: A @ np.asarray(v), A[0], A, traceable=False))


def _check_products(H: Any) -> None:
    each = [H.random(jax.random.fold_in(KEY, i), "normal") for i in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *each)
    found = H.products(stacked)
    assert jax.tree.structure(found) == jax.tree.structure(stacked)
    for i, v in enumerate(each):
        assert error(jax.tree.map(lambda x, i=i: x[i], found), H.mv(v)) < 1e-6
    alone = H.products(jax.tree.map(lambda x: x[:1], stacked))
    assert [x.shape[0] for x in jax.tree.leaves(alone)] == [1] * len(H.space.shapes)


def test_a_vector_of_a_number_is_the_same_alone_and_among_others():
    for H in (
        make(),
        make(select="**/kernel"),
        operators.masked(make(), HALF),
        MADE["spread over devices"](helpers.params()),
    ):
        numbers = np.array([5, 0, 7], np.uint32)
        for kind in ("rademacher", "normal"):
            drawn = space.draw(H.space, KEY, numbers, distribution=kind)
            for i, number in enumerate(numbers):
                alone = H.random(jax.random.fold_in(KEY, number), kind)
                np.testing.assert_array_equal(flat(jax.tree.map(lambda x, i=i: x[i], drawn)), flat(alone))


def test_one_program_draws_for_all_operators_of_a_shape():
    numbers = np.arange(3, dtype=np.uint32)
    masks = [operators.masked(make(), mask).space for mask in (HALF, ones)]
    for first, *others in (
        [
            make().space,
            make(devices=2).space,
            MADE["streamed"](helpers.params(1)).space,
            MADE["kept"](helpers.params()).space,
        ],
        masks,
    ):
        space.draw(first, KEY, numbers, distribution="normal")
        with helpers.compilations() as seen:
            for other in others:
                space.draw(other, KEY, numbers, distribution="normal")
        assert seen.count == 0


def test_a_space_knows_its_vectors():
    H = make(select="Dense_0/*")
    masked = operators.masked(H, jax.tree.map(lambda x: np.arange(x.size).reshape(x.shape) < 2, H.random(KEY)))
    assert (H.space.size, H.space.dim, H.space.nbytes, H.space.dtype) == (36, 36, 144, np.float32)
    assert (masked.space.size, masked.space.dim, masked.shape) == (36, 4, (4, 4))
    assert repr(H.space) == "Space(36 entries in 2 leaves)"
    assert H.memory()[0] == 144
    assert H.leaf_mask == (True, True, False, False, False)
    spread = MADE["spread over devices"](helpers.params())
    assert spread.space.nbytes == 2 * 4 * 43  # devices that are cores share their memory: what all hold
    v = H.random(KEY)
    assert H.space.check(v) is v
    assert H.space.tree(jax.tree.leaves(v))["gain"] is None


# --- frameworks and kinds of parameters


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.tanh(nn.Dense(4)(x)))


class Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(5, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)])

    def __call__(self, x):
        return self.layers[1](nnx.tanh(self.layers[0](x)))


def linen() -> tuple[Any, Any, str]:
    variables = jax.jit(Linen().init)(KEY, DATA[0])
    return lla.from_linen(Linen(), variables, helpers.cross_entropy), variables["params"], "kernel"


def nnx_model() -> tuple[Any, Any, str]:
    model = Nnx(nnx.Rngs(0))
    return lla.from_nnx(model, helpers.cross_entropy), nnx.state(model, nnx.Param), "kernel"


def equinox() -> tuple[Any, Any, str]:
    model = eqx.nn.MLP(5, 3, 4, 1, activation=jnp.tanh, key=KEY)
    return lla.from_equinox(model, helpers.cross_entropy), eqx.filter(model, eqx.is_inexact_array), "weight"


@pytest.mark.parametrize("framework", [linen, nnx_model, equinox])
def test_models_of_every_framework_and_their_blocks(framework):
    loss, params, name = framework()
    before = jax.tree.map(np.array, params)
    whole = operators.dense(lla.hessian(loss, params, DATA, execution=ONE))
    names = _tree.paths(params)
    sizes = [x.size for x in jax.tree.leaves(params)]
    ends = np.cumsum(sizes)
    for select in (f"**/{name}", re.compile(f"{name}$"), lambda path, leaf: leaf.ndim == 2, ["nothing", f"**/{name}"]):
        H = lla.hessian(loss, params, DATA, execution=ONE, select=select)
        chosen = [path.endswith(name) for path in names]
        at = np.concatenate([np.arange(e - s, e) for e, s, yes in zip(ends, sizes, chosen, strict=True) if yes])
        assert error(operators.dense(H), whole[np.ix_(at, at)]) < 1e-6
        vector = H.product(H.random(KEY))
        assert jax.tree.structure(vector) == jax.tree.structure(H.structure)
        full = H.embed(jax.tree.map(lambda x: x[None], vector))
        assert jax.tree.structure(full) == jax.tree.structure(params)
        lla.directions.given(jax.tree.map(lambda x: x[0], full))
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_parameters_may_be_numpy_jax_numbers_and_single_arrays(hessian):
    params, v = helpers.params(), hessian.random(KEY)
    for other in (jax.tree.map(jnp.asarray, params), jax.tree.map(np.float64, params), params | {"gain": 1.5}):
        H = lla.hessian(LOSS, other, DATA, execution=ONE)
        assert H.dtype == np.float32
        assert error(H.product(v), hessian.product(v)) < 1e-6

    def square(w, batch):
        return 0.5 * jnp.mean((batch @ w) ** 2)

    x = DATA[0]
    found = operators.dense(lla.hessian(square, np.ones(5, np.float32), x))
    assert error(found, x.T @ x / len(x)) < 1e-6
    assert operators.dense(lla.hessian(lambda w, b: jnp.mean(b) * w**2, 2.0, np.ones(3, np.float32))) == [[2.0]]
    for how in (KEPT, ANEW):
        flat_loss = lla.hessian(lambda w, b: jnp.mean(b @ w), np.ones(5, np.float32), x, execution=how)
        assert not np.any(operators.dense(flat_loss))


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


def test_half_precision_parameters_warn_and_work(matrix):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), helpers.params())
    with pytest.warns(UserWarning, match="params: bfloat16 given, and curvature is computed in it") as seen:
        H = lla.hessian(LOSS, params, DATA, execution=ONE)
    assert seen[0].filename == __file__
    assert H.dtype == np.float32
    assert H.recipe["precision"] == {"params": ["bfloat16"]}
    assert error(operators.dense(H), matrix) < 0.03
    assert H.embed(jax.tree.map(lambda x: x[None], H.random(KEY)))["gain"].dtype == jnp.bfloat16


# --- scaled and given operators


def test_masked_operator_is_zero_outside(hessian, matrix):
    mask = jax.tree.map(lambda x: (np.arange(x.size) % 3 == 0).reshape(x.shape), helpers.params())
    M, m = operators.masked(hessian, mask), flat(mask)
    assert error(operators.dense(M), m[:, None] * matrix * m) < 1e-6
    assert M.shape == (m.sum(),) * 2
    assert not np.any(flat(M.random(KEY, "normal"))[~m])
    assert np.all(flat(M.random(KEY))[m])


def _moments(steps: int = 5) -> tuple[Any, Any]:
    params, optimizer = helpers.params(), optax.adam(1e-2)
    state = optimizer.init(params)
    for _ in range(steps):
        _, state = optimizer.update(lla.data.mean_gradient(LOSS, params, DATA), state)
    return lla.directions.adam_moments(state, params), state[0].nu


def test_preconditioned_operator_is_the_curvature_that_adam_sees(hessian, matrix):
    moments, v = _moments()
    for given, eps, decay in ((moments, 1e-8, 1.0), (v, 1e-3, 1 - 0.999**5)):
        P = operators.preconditioned(hessian, given, eps=eps, decay=decay)
        root = np.sqrt(np.sqrt(np.asarray(flat(v), np.float64) / decay) + eps)
        expected = matrix / root[:, None] / root
        found = operators.dense(P)
        assert error(found, expected) < 1e-6
        np.testing.assert_allclose(
            np.linalg.eigvalsh(found), np.linalg.eigvalsh(expected), rtol=0, atol=2e-6 * np.abs(expected).max()
        )
        generalized = np.linalg.eigvals(matrix / root[:, None] ** 2)  # P^-1 H has the same eigenvalues
        np.testing.assert_allclose(
            np.sort(generalized.real), np.linalg.eigvalsh(expected), atol=1e-4 * np.abs(found).max()
        )
    block = operators.preconditioned(make(select="Dense_1/*"), moments)
    whole = operators.dense(operators.preconditioned(hessian, moments))
    at = slice(36, 57)
    assert error(operators.dense(block), whole[at, at]) < 1e-6
    stream = lla.hessian(LOSS, helpers.params(), lla.stream([DATA]), execution=ONE)
    assert error(operators.dense(operators.preconditioned(stream, moments)), whole) < 1e-6


def test_given_operator_traceable_or_not():
    A = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
    A = A + A.T
    like = {"a": np.zeros((2, 2), np.float32), "b": np.zeros(2)}  # float64, which jax makes float32

    def product(v, A):
        moved = A @ jnp.concatenate([v["a"].ravel(), v["b"]])
        return {"a": moved[:4].reshape(2, 2), "b": moved[4:]}

    def numpy_product(v, A):
        moved = A.astype(np.float64) @ np.concatenate([np.ravel(v["a"]), np.asarray(v["b"])])
        return {"a": moved[:4].reshape(2, 2), "b": moved[4:]}

    mask = {"a": np.eye(2), "b": np.array([1, 0])}
    for H in (operators.given(product, like, A), operators.given(numpy_product, like, A, traceable=False)):
        assert H.is_given
        assert H.shape == (6, 6)
        assert H.dtype == np.float32
        assert error(operators.dense(H), A) < 1e-6
        assert error(operators.dense(operators.masked(H, mask)), A * np.outer(flat(mask), flat(mask))) < 1e-6
        stacked = jax.tree.map(lambda x: x[None], H.random(KEY))
        assert H.embed(stacked) is stacked
        assert H.recipe == {"kind": "given"}
    traced = operators.given(product, like, A)
    assert error(jax.jit(lambda H, v: H.mv(v))(traced, traced.random(KEY)), traced.product(traced.random(KEY))) < 1e-6
    with helpers.compilations() as seen:  # another matrix is other data, not another program
        operators.given(product, like, 2 * A).product(traced.random(KEY))
    assert seen.count == 0
    struct = operators.given(lambda v: 2 * v, jax.ShapeDtypeStruct((2,), np.float32))
    np.testing.assert_array_equal(operators.dense(struct), 2 * np.eye(2))
    with pytest.raises(TypeError) as raised:
        operators.given(lambda v: np.asarray(v), np.zeros(2))
    assert any("needs traceable=False" in note for note in raised.value.__notes__)


def test_a_large_operator_is_not_made_dense():
    with pytest.raises(
        ValueError, match=r"operator: 30,000 x 30,000 is too large to be held; it must be at most 20,000"
    ):
        operators.dense(operators.given(lambda v: v, np.zeros(30_000, np.float32)))


# --- losses that change


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
    assert np.array_equal(flat(H.mv(v)), flat(H.mv(v)), equal_nan=True)


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
    assert error(steady.product(v), 2 * flat(make().product(v))) < 1e-6


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
    assert assembly._difference(np.array(one), np.array(two)) == pytest.approx(expected)


# --- how it runs


@pytest.mark.parametrize(("name", "value"), [("devices", 2), ("linearize", False), ("processes", "own")])
@pytest.mark.parametrize("kind", MAKERS)
def test_an_old_keyword_works_and_says_the_new_spelling(kind, name, value):
    with pytest.warns(DeprecationWarning, match=rf"^{name}: use execution=lla\.Execution\({name}={value!r}\)$") as seen:
        old = MAKERS[kind](LOSS, helpers.params(), DATA, **{name: value})
    assert [w.filename for w in seen] == [__file__]
    new = MAKERS[kind](LOSS, helpers.params(), DATA, execution=lla.Execution(**{name: value}))
    assert old.recipe == new.recipe
    with pytest.raises(ValueError, match=rf"^{name}: {value!r} given beside execution; the rule is one of them"):
        MAKERS[kind](LOSS, helpers.params(), DATA, **{name: value}, execution=lla.Execution())


def test_old_keywords_warn_each_for_itself():
    with pytest.warns(DeprecationWarning, match="use execution=") as seen:
        H = lla.hessian(LOSS, helpers.params(), DATA, devices=2, linearize=True)
    assert [str(w.message) for w in seen] == [
        "devices: use execution=lla.Execution(devices=2)",
        "linearize: use execution=lla.Execution(linearize=True)",
    ]
    assert (H.recipe["plan"]["devices"], H.recipe["plan"]["linearized"]) == (2, True)


OF_LANDSCAPES = {"chunk": 4, "microbatch": 8, "loop": "map", "share": False, "scan": True, "data_shards": 1}


@pytest.mark.parametrize("name", OF_LANDSCAPES)
def test_what_an_operator_does_not_read_is_refused(name):
    p, how = helpers.params(), lla.Execution(**{name: OF_LANDSCAPES[name]})
    axes = lla.directions.random(KEY, p, 1)
    for call in (
        lambda: lla.hessian(LOSS, p, DATA, execution=how),
        lambda: lla.fisher(LOSS, p, lla.stream([DATA]), KEY, execution=how),
        lambda: lla.per_layer(LOSS, p, DATA, KEY, execution=how),
        lambda: lla.convexity(LOSS, p, DATA, axes, lla.grid(points=3, dims=1), KEY, execution=how),
    ):
        with pytest.raises(ValueError, match=rf"execution\.{name}: .* given, and an operator does not read it"):
            call()


def test_an_option_that_there_is_not_is_named():
    with pytest.raises(TypeError, match=r"ggn\(\) got an unexpected keyword argument 'device'; it takes batch_size"):
        lla.ggn(LOSS, helpers.params(), DATA, device=1)
    for wrong in ({"devices": 2}, None, "all"):
        with pytest.raises(ValueError, match=r"execution: .* given; the rule is an lla.Execution"):
            lla.hessian(LOSS, helpers.params(), DATA, execution=wrong)


# --- what is refused


def _plain(p, batch):
    return _coupled(helpers.apply(p, None, batch, False)[0], batch)


H_ = functools.cache(make)
REFUSED: dict[str, tuple[Any, str]] = {
    "ggn of a function": (lambda p: lla.ggn(_plain, p, DATA), "loss: ggn needs the model's outputs"),
    "fisher of a function": (lambda p: lla.fisher(_plain, p, DATA, KEY), "loss: fisher needs the model's outputs"),
    "fisher of a coupled loss": (lambda p: lla.fisher(COUPLED, p, DATA, KEY), "loss: couples the examples"),
    "another kind": (lambda p: lla.fisher(LOSS, p, DATA, KEY, kind="exact"), "kind: 'exact' given"),
    "no key": (lambda p: lla.fisher(LOSS, p, DATA), 'key: needed for kind="mc"'),
    "no such key": (lambda p: lla.fisher(LOSS, p, DATA, 5), "key: 5 given; it must be one jax.random key"),
    "key for nothing": (lambda p: lla.fisher(LOSS, p, DATA, KEY, kind="empirical"), 'kind: "empirical" draws nothing'),
    "samples for nothing": (lambda p: lla.fisher(LOSS, p, DATA, kind="empirical", samples=2), "draws nothing"),
    "no samples": (lambda p: lla.fisher(LOSS, p, DATA, KEY, samples=0), "samples: 0 given"),
    "labels not classes": (lambda p: lla.fisher(LOSS, p, (DATA[0], DATA[1] * 1.0), KEY), "drawn as classes"),
    "batch statistics of a function": (lambda p: lla.hessian(_plain, p, DATA, batch_stats="batch"), "batch_stats: 'ba"),
    "another policy": (lambda p: make(batch_stats="reestimate"), "batch_stats: 'reestimate' given"),
    "linearize": (lambda p: make(linearize="yes"), "linearize: 'yes' given"),
    "linearize a stream": (lambda p: lla.hessian(LOSS, p, lla.stream([DATA]), execution=KEPT), "needs the data in"),
    "batch size": (lambda p: make(batch_size=0), "batch_size: 0 given"),
    "devices": (lambda p: make(devices=9), "devices: 9 asked for"),
    "devices of whole batches": (
        lambda p: lla.hessian(_plain, p, DATA, execution=lla.Execution(devices=2)),
        "devices: 2 given, but batch",
    ),
    "selection": (lambda p: make(select="Conv/*"), "matches no leaf; the leaves are: Dense_0/bias"),
    "integers": (lambda p: lla.hessian(LOSS, p | {"gain": 3}, DATA), "dtype int32"),
    "nan": (lambda p: lla.hessian(LOSS, p | {"gain": np.float32(np.nan)}, DATA), "1 NaN or infinite"),
    "no parameters": (lambda p: lla.hessian(LOSS, {}, DATA), "params has no array leaves"),
    "no loss": (lambda p: lla.hessian("mlp", p, DATA), "loss: expected lla.Loss"),
    "ragged data": (lambda p: lla.hessian(LOSS, p, (DATA[0], DATA[1][:3])), "leaves of different length"),
    "generator": (lambda p: lla.stream(x for x in [DATA]), "one-shot iterator generator"),
    "empty stream": (lambda p: lla.hessian(LOSS, p, lla.stream([])), "yielded no batch"),
    "vector of another tree": (lambda p: H_().product({"a": np.ones(3)}), "v and the operator's vectors have"),
    "vector of another shape": (lambda p: H_().mv(p | {"gain": np.ones(3)}), r"v\['gain'\] has shape \(3,\)"),
    "stacked vectors of another tree": (lambda p: H_().products({"a": np.ones((2, 3))}), "stacked and the operator"),
    "one vector for several": (lambda p: H_().products(p), r"stacked\['Dense_0/bias'\] has shape"),
    "no vectors": (lambda p: H_().products(jax.tree.map(lambda x: x[None][:0], p)), "stacked: has a leading axis of 0"),
    "stacked integers": (
        lambda p: H_().products(jax.tree.map(lambda x: np.ones((2, *x.shape), int), p)),
        "stacked: has entries that",
    ),
    "vector of integers": (lambda p: H_().product(jax.tree.map(lambda x: np.ones(x.shape, int), p)), "not floating"),
    "parameters of another tree": (lambda p: H_().at({"w": np.ones(3)}), "params and the operator's param"),
    "parameters of another shape": (lambda p: H_().at(p | {"gain": np.ones(3)}), r"params\['gain'\] has shape \(3,\)"),
    "parameters not finite": (lambda p: H_().at(p | {"gain": np.float32(np.inf)}), r"params\['gain'\] has 1 NaN"),
    "parameters of another type": (
        lambda p: H_().at(p | {"gain": jnp.bfloat16(1)}),
        r"params\['gain'\] has dtype bfloat16, and .* float32; it",
    ),
    "parameters of a product": (
        lambda p: operators.given(lambda v: v, np.zeros(3, np.float32)).at(np.ones(3, np.float32)),
        r"H: LinearOperator\(given, 3 x 3\) is a product of your own and has no parameters",
    ),
    "parameters of a product on the host": (
        lambda p: operators.given(lambda v: v, np.zeros(3, np.float32), traceable=False).at(np.ones(3, np.float32)),
        "has no parameters; it must be an operator of lla.hessian",
    ),
    "parameters after a transformation": (
        lambda p: jax.tree.map(lambda x: x, H_()).at(p),
        r"H: LinearOperator\(hessian, 58 x 58\) came out of a transf",
    ),
    "mask of numbers": (lambda p: operators.masked(H_(), p), "mask: .*it must be a tree of 0 and 1"),
    "empty mask": (lambda p: operators.masked(H_(), jax.tree.map(np.zeros_like, p)), "with a 1 somewhere"),
    "mask of another tree": (lambda p: operators.masked(H_(), {"a": np.ones(3)}), "mask and the operator's vectors"),
    "masked twice": (lambda p: operators.masked(operators.masked(H_(), ones), ones), "already; it must be neither"),
    "negative moment": (lambda p: operators.preconditioned(H_(), p), "second_moment: has negative entries"),
    "moment not finite": (
        lambda p: operators.preconditioned(H_(), ones | {"gain": np.float32(np.inf)}),
        r"second_moment\['gain'\] has 1 NaN or infinite",
    ),
    "moment of another tree": (lambda p: operators.preconditioned(H_(), {"a": np.ones(3)}), "second_moment and"),
    "other directions": (
        lambda p: operators.preconditioned(H_(), lla.directions.given(p, p)),
        r"second_moment: .*\(m, v\), raw",
    ),
    "normalized moments": (
        lambda p: operators.preconditioned(H_(), lla.directions.normalize(_moments()[0], p, by="filter")),
        "raw",
    ),
    "swapped moments": (lambda p: operators.preconditioned(H_(), _moments()[0][[1, 0]]), "second_moment: Directions"),
    "decay": (
        lambda p: operators.preconditioned(H_(), ones, decay=0.0),
        "decay: 0.0 given; it must be a finite number above 0, and at most 1",
    ),
    "zeros without eps": (lambda p: operators.preconditioned(H_(), jax.tree.map(np.zeros_like, p), eps=0.0), "eps: 0"),
    "given nothing": (lambda p: operators.given(lambda v: v, {}), "like: has no leaves"),
    "given integers": (lambda p: operators.given(lambda v: v, np.arange(3)), "like: has int64"),
    "given another shape": (lambda p: operators.given(lambda v: v[:2], np.ones(3)), r"product\(v\).* shape \(2,\)"),
    "given another shape, on the host": (
        lambda p: operators.given(lambda v: v[:2], np.ones(3), traceable=False).mv(np.ones(3)),
        r"has shape \(2,\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_misuse_is_refused_with_what_to_do(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call(helpers.params())


def test_a_list_of_batches_is_explained():
    with pytest.raises(TypeError) as raised:
        lla.hessian(LOSS, helpers.params(), [DATA, DATA])
    assert "wrap it, lla.stream(batches)" in raised.value.__notes__[0]
