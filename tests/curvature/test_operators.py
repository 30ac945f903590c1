"""The public functions: frameworks, kinds of parameters, scaled and given operators, and misuse."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lla_jax as lla
from lla_jax.core import tree as _tree
from lla_jax.curvature import operators
from tests import helpers
from tests.curvature.cases import COUPLED, DATA, LOSS, MAKERS, _coupled, make, ones
from tests.helpers import ANEW, KEPT, ONE, error, ravel

KEY = jax.random.key(0)


def test_another_mask_compiles_nothing(hessian):
    masks = [
        jax.tree.map(lambda x, i=i: (np.arange(x.size) % 3 == i).reshape(x.shape), helpers.params()) for i in (0, 1)
    ]
    operators.masked(hessian, masks[0]).product(hessian.random(KEY))
    with helpers.compilations() as seen:
        operators.masked(hessian, masks[1]).product(hessian.random(KEY))
    assert seen.count == 0


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
    chex.assert_trees_all_equal(params, before)


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


def test_half_precision_weights_are_taken_in_float32():
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), helpers.params())
    single = jax.tree.map(lambda x: x.astype(np.float32), half)
    H, expected = (lla.hessian(LOSS, params, DATA, execution=ONE) for params in (half, single))
    np.testing.assert_array_equal(operators.dense(H), operators.dense(expected))
    bits = {"lowest": "float32", "bits": 24}
    assert H.recipe["precision"] == {"params": ["float32"], "given": ["bfloat16"]} | bits
    assert expected.recipe["precision"] == {"params": ["float32"]} | bits
    assert H.embed(jax.tree.map(lambda x: x[None], H.random(KEY)))["gain"].dtype == np.float32
    there = operators.dense(expected.at(half))  # half precision is widened there too
    np.testing.assert_array_equal(there, operators.dense(H))


@pytest.mark.parametrize("inside", [True, False], ids=["casts inside", "asked for"])
def test_half_precision_products_warn_and_tell_their_bits(matrix, inside):
    def cast(tree):
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)

    apply = (lambda p, state, batch, train: LOSS.apply(cast(p), state, batch, train)) if inside else LOSS.apply
    loss = dataclasses.replace(LOSS, apply=apply, precision="float32" if inside else "params")
    params = helpers.params() if inside else cast(jax.tree.map(jnp.asarray, helpers.params()))
    with pytest.warns(UserWarning, match="the network computes in bfloat16, 8 significant bits") as seen:
        H = lla.hessian(loss, params, DATA, execution=ONE)
    assert seen[0].filename == __file__
    assert (H.recipe["precision"]["lowest"], H.recipe["precision"]["bits"]) == ("bfloat16", 8)
    assert 1e-4 < error(operators.dense(H), matrix) < 0.03


def test_masked_operator_is_zero_outside(hessian, matrix):
    mask = jax.tree.map(lambda x: (np.arange(x.size) % 3 == 0).reshape(x.shape), helpers.params())
    M, m = operators.masked(hessian, mask), ravel(mask)
    assert error(operators.dense(M), m[:, None] * matrix * m) < 1e-6
    assert M.shape == (m.sum(),) * 2
    assert not np.any(ravel(M.random(KEY, "normal"))[~m])
    assert np.all(ravel(M.random(KEY))[m])


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
        root = np.sqrt(np.sqrt(np.asarray(ravel(v), np.float64) / decay) + eps)
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
        assert error(operators.dense(operators.masked(H, mask)), A * np.outer(ravel(mask), ravel(mask))) < 1e-6
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


@pytest.mark.parametrize(("name", "value"), [("devices", 2), ("linearize", False), ("processes", "own")])
@pytest.mark.parametrize("kind", MAKERS)
def test_an_old_keyword_works_and_says_the_new_spelling(kind, name, value):
    with pytest.warns(DeprecationWarning, match=rf"^{name}: use execution=lla\.Execution\({name}={value!r}\)$") as seen:
        old = MAKERS[kind](LOSS, helpers.params(), DATA, **{name: value})
    assert [w.filename for w in seen] == [__file__]
    new = MAKERS[kind](LOSS, helpers.params(), DATA, execution=lla.Execution(**{name: value}))
    assert old.recipe == new.recipe
    with pytest.raises(ValueError, match=rf"^{name}: {value!r} given together with execution; pass only one of them"):
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
        with pytest.raises(ValueError, match=r"execution: .* given; it must be an lla.Execution"):
            lla.hessian(LOSS, helpers.params(), DATA, execution=wrong)


def _plain(p, batch):
    return _coupled(helpers.apply(p, None, batch, False)[0], batch)


MARGINS = lla.Loss(helpers.apply, lambda o, b: jax.nn.relu(1 + o[:, 0] - o[:, 1]) ** 2 + 0 * b[1])
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
    "margins, no likelihood": (lambda p: lla.fisher(MARGINS, p, DATA, KEY), "sample: the criterion is the negative"),
    "targets of another likelihood": (
        lambda p: lla.fisher(LOSS, p, DATA, KEY, sample=functools.partial(operators.categorical, temperature=9.0)),
        "sample: the mean slope .* standard errors from zero",
    ),
    "batch statistics of a function": (lambda p: lla.hessian(_plain, p, DATA, batch_stats="batch"), "batch_stats: 'ba"),
    "another policy": (lambda p: make(batch_stats="reestimate"), "batch_stats: 'reestimate' given"),
    "linearize": (lambda p: make(linearize="yes"), "linearize: 'yes' given"),
    "linearize a stream": (lambda p: lla.hessian(LOSS, p, lla.stream([DATA]), execution=KEPT), "needs the data in"),
    "batch size": (lambda p: make(batch_size=0), "batch_size: 0 given"),
    "devices": (lambda p: make(devices=9), "devices: 9 given; it must be an integer from 1 to"),
    "devices of whole batches": (
        lambda p: lla.hessian(_plain, p, DATA, execution=lla.Execution(devices=2)),
        "devices: 2 given, but batch",
    ),
    "selection": (lambda p: make(select="Conv/*"), "matches no leaf; the leaves are: Dense_0/bias"),
    "integers": (lambda p: lla.hessian(LOSS, p | {"gain": 3}, DATA), "dtype int32"),
    "nan": (lambda p: lla.hessian(LOSS, p | {"gain": np.float32(np.nan)}, DATA), "1 NaN or infinite"),
    "no parameters": (lambda p: lla.hessian(LOSS, {}, DATA), "params: has no array leaves"),
    "no loss": (lambda p: lla.hessian("mlp", p, DATA), "loss: .* given; it must be an lla.Loss"),
    "ragged data": (lambda p: lla.hessian(LOSS, p, (DATA[0], DATA[1][:3])), "leaves of different length"),
    "generator": (lambda p: lla.stream(x for x in [DATA]), "one-shot iterator generator"),
    "empty stream": (lambda p: lla.hessian(LOSS, p, lla.stream([])), "yielded no batch"),
    "vector of another tree": (
        lambda p: H_().product({"a": np.ones(3)}),
        "v: has another structure than the operator's vectors",
    ),
    "vector of another shape": (lambda p: H_().mv(p | {"gain": np.ones(3)}), r"v\['gain'\] has shape \(3,\)"),
    "stacked vectors of another tree": (
        lambda p: H_().products({"a": np.ones((2, 3))}),
        "stacked: has another structure than the operator",
    ),
    "one vector for several": (lambda p: H_().products(p), r"stacked\['Dense_0/bias'\] has shape"),
    "no vectors": (lambda p: H_().products(jax.tree.map(lambda x: x[None][:0], p)), "stacked: has a leading axis of 0"),
    "stacked integers": (
        lambda p: H_().products(jax.tree.map(lambda x: np.ones((2, *x.shape), int), p)),
        "stacked: has entries that",
    ),
    "vector of integers": (lambda p: H_().product(jax.tree.map(lambda x: np.ones(x.shape, int), p)), "not floating"),
    "parameters of another tree": (
        lambda p: H_().at({"w": np.ones(3)}),
        "params: has another structure than the operator's param",
    ),
    "parameters of another shape": (lambda p: H_().at(p | {"gain": np.ones(3)}), r"params\['gain'\] has shape \(3,\)"),
    "parameters not finite": (lambda p: H_().at(p | {"gain": np.float32(np.inf)}), r"params\['gain'\] has 1 NaN"),
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
    "mask of another tree": (
        lambda p: operators.masked(H_(), {"a": np.ones(3)}),
        "mask: has another structure than the operator's vectors",
    ),
    "masked twice": (lambda p: operators.masked(operators.masked(H_(), ones), ones), "already; it must be neither"),
    "negative moment": (lambda p: operators.preconditioned(H_(), p), "second_moment: has negative entries"),
    "moment not finite": (
        lambda p: operators.preconditioned(H_(), ones | {"gain": np.float32(np.inf)}),
        r"second_moment\['gain'\] has 1 NaN or infinite",
    ),
    "moment of another tree": (
        lambda p: operators.preconditioned(H_(), {"a": np.ones(3)}),
        "second_moment: has another structure than",
    ),
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
    with pytest.raises(ValueError, match=r"data: .*wrap it, lla.stream\(batches\)"):
        lla.hessian(LOSS, helpers.params(), [DATA, DATA])
