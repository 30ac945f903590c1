"""Data that are one example and stay whole: sets of points, graphs, lists of boxes, no data; each against jax alone."""

import collections
import dataclasses
import functools
import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse
from jax.flatten_util import ravel_pytree

import lla_jax as lla
from lla_jax.core import recipes
from tests.helpers import ANEW, KEPT, compilations

ROOT = pathlib.Path(__file__).parents[2]
RNG = np.random.default_rng(0)
LINE, PLANE = lla.grid(extent=0.5, points=3, dims=1), lla.grid(extent=0.5, points=3, dims=2)
FIXED = lla.Execution(chunk=3, microbatch=8, loop="map", share=False, devices=1)


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


# --- cases


POINTS = {
    "interior": RNG.uniform(size=(64, 2)),
    "boundary": RNG.uniform(size=(16, 2)),
    "initial": (RNG.uniform(size=(12, 2)), RNG.normal(size=12)),
    "order": 1,
    "nothing": None,
    "viscosity": 0.1,
}
FIELD = {"hidden": RNG.normal(size=(2, 4)), "out": RNG.normal(size=4)}


def physics(p, data):
    """A scalar loss with derivatives by the inputs, which needs the leaves that are no arrays as they were given."""
    assert type(data["viscosity"]) is float
    assert data["nothing"] is None

    def u(x):
        return jnp.tanh(x @ p["hidden"]) @ p["out"]

    def residual(x):
        slope, second = jax.jvp(jax.grad(u), (x,), (jnp.eye(2)[data["order"]],))
        return slope[0] - data["viscosity"] * second[data["order"]]

    x, y = data["initial"]
    terms = jax.vmap(residual)(data["interior"]), jax.vmap(u)(data["boundary"]), jax.vmap(u)(x) - y
    return sum((t**2).mean() for t in terms)


@functools.cache
def at_centre():
    return float(jax.jit(lambda p: physics(p, POINTS))(FIELD))


class Graph(NamedTuple):
    """A graph as jraph holds it, with a None and a number of nodes."""

    nodes: Any
    edges: Any
    senders: Any
    receivers: Any
    globals: Any
    number: int


NODES, CLASSES = 9, 3
ADJACENCY = (RNG.uniform(size=(NODES, NODES)) < 0.3) + np.eye(NODES)
ADJACENCY /= ADJACENCY.sum(1, keepdims=True)
RECEIVERS, SENDERS = np.nonzero(ADJACENCY)
X, Y, MASK = RNG.normal(size=(NODES, 4)), RNG.integers(0, CLASSES, NODES), np.arange(NODES) % 3 > 0
GRAPH = Graph(X, ADJACENCY[RECEIVERS, SENDERS], SENDERS, RECEIVERS, None, NODES)
WEIGHTS = {"first": RNG.normal(size=(4, 5)), "second": RNG.normal(size=(5, CLASSES))}


def convolve(p, spread, x):
    return spread(jnp.tanh(spread(x @ p["first"])) @ p["second"])


def cross_entropy(outputs, y):
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), y[:, None], 1)[:, 0]


def by_segments(p, state, data, train):
    g = data["graph"]

    def spread(h):
        return jax.ops.segment_sum(g.edges[:, None] * h[g.senders], g.receivers, num_segments=g.number)

    return convolve(p, spread, g.nodes), state


def by_sparse_matrix(p, state, data, train):
    return convolve(p, lambda h: data["matrix"] @ h, data["x"]), state


def by_dense_matrix(p, state, data, train):  # whose arrays share a leading axis
    return convolve(p, lambda h: data["matrix"] @ h, data["x"]), state


LABELS = {"y": Y, "train": MASK}
GRAPHS = {
    "a NamedTuple of edges": (by_segments, {"graph": GRAPH, **LABELS}),
    "a sparse matrix": (by_sparse_matrix, {"matrix": None, "x": X, **LABELS}),
    "a dense matrix": (by_dense_matrix, {"matrix": ADJACENCY, "x": X, **LABELS}),
}
GRAPH_DATA = GRAPHS["a NamedTuple of edges"][1]


def on_nodes(outputs, data):
    return cross_entropy(outputs, data["y"]), data["train"]


def accuracy(outputs, data):
    return outputs.argmax(1) == data["y"], data["train"]


@jax.jit
def total(p, train=MASK):
    """The mean over the training nodes, from the dense matrix."""
    losses = cross_entropy(convolve(p, lambda h: ADJACENCY @ h, X), Y)
    return (losses * train).sum() / train.sum()


def dense(f, p):
    flat, unravel = ravel_pytree(p)
    return np.asarray(jax.jit(jax.hessian(lambda v: f(unravel(v))))(flat))


def matrix(operator, p):
    flat, unravel = ravel_pytree(p)
    columns = jax.jit(lambda H: jax.vmap(lambda v: ravel_pytree(H.mv(unravel(v)))[0])(jnp.eye(len(flat))))
    return np.asarray(columns(operator))


def axes_of(p, num=2):
    return lla.directions.random(jax.random.key(0), p, num)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


# --- sets of points


def test_the_landscape_of_sets_of_points_is_that_of_direct_calls():
    axes = axes_of(FIELD)
    plane = lla.evaluate(physics, FIELD, lla.whole(POINTS), axes, PLANE, execution=FIXED)

    def at(a, b):
        return physics(jax.tree.map(lambda x, d: x + a * d[0] + b * d[1], FIELD, axes.tree), POINTS)

    a, b = jnp.meshgrid(*map(jnp.asarray, plane.coords), indexing="ij")
    expected = jax.jit(lambda c: jax.lax.map(lambda each: at(*each), c))(jnp.stack([a.ravel(), b.ravel()], 1))
    close(plane.values["loss"].ravel(), expected)
    assert plane.stderr == {}  # one example has no standard error
    assert plane.recipe["data"]["examples"] == 1
    assert plane.recipe["data"]["whole"] is True


def test_matrices_gradient_and_losses_of_sets_of_points_are_those_of_jax():
    data, expected = lla.whole(POINTS), dense(lambda p: physics(p, POINTS), FIELD)
    close(matrix(lla.hessian(physics, FIELD, data, execution=KEPT), FIELD), expected)
    gradient = lla.directions.gradient(physics, FIELD, data).tree
    slope = jax.jit(jax.grad(lambda p: physics(p, POINTS)))(FIELD)
    close(ravel_pytree(jax.tree.map(lambda g: g[0], gradient))[0], ravel_pytree(slope)[0])
    axes = axes_of(FIELD)
    found = jax.jit(lambda d: lla.landscape.losses(physics, FIELD, axes.tree, jnp.zeros((2, 2)), d))(data)
    close(found, [at_centre()] * 2)


@pytest.mark.slow
def test_the_spectral_functions_take_sets_of_points():
    H, expected = lla.hessian(physics, FIELD, lla.whole(POINTS)), dense(lambda p: physics(p, POINTS), FIELD)
    values = np.linalg.eigvalsh(expected)
    close(lla.eigenpairs(H, jax.random.key(0), k=2, which="largest").values, values[::-1][:2])
    spectrum = lla.spectrum(H, jax.random.key(0), probes=2, steps=12)
    close([spectrum.nodes.min(), spectrum.nodes.max()], values[[0, -1]])
    trace = lla.trace(H, jax.random.key(0), max_products=60)
    assert abs(trace.mean - values.sum()) <= max(6 * trace.sem, 1e-9)
    layers = lla.per_layer(physics, FIELD, lla.whole(POINTS), jax.random.key(0), steps=12, rtol=10)
    assert {layer.module for layer in layers} == {"hidden", "out"}


# --- graphs


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "dense" in name else ()) for name in GRAPHS]
)
def test_a_graph_has_the_matrices_of_its_training_nodes(name):
    apply, data = GRAPHS[name]
    data = {**data, "matrix": sparse.BCOO.fromdense(ADJACENCY)} if "sparse" in name else data
    loss, whole = lla.Loss(apply, on_nodes), lla.whole(data)
    close(matrix(lla.hessian(loss, WEIGHTS, whole), WEIGHTS), dense(total, WEIGHTS))
    jacobian, _, p = outputs_of_nodes()
    counted = MASK / MASK.sum()
    curvature = np.eye(CLASSES) * p[:, None] - p[:, :, None] * p[:, None]
    expected = np.einsum("n,nci,ncd,ndj->ij", counted, jacobian, curvature, jacobian)
    close(matrix(lla.ggn(loss, WEIGHTS, whole), WEIGHTS), expected)


@functools.cache
def outputs_of_nodes():
    """(Jacobian of the scores (N, C, P), gradients of the losses (N, P), probabilities (N, C)), in float64."""
    flat, unravel = ravel_pytree(WEIGHTS)

    def scores(v):
        return convolve(unravel(v), lambda h: ADJACENCY @ h, X)

    def all_three(v):
        slopes = jax.jacobian(lambda v: cross_entropy(scores(v), Y))(v)
        return jax.jacobian(scores)(v), slopes, jax.nn.softmax(scores(v))

    return jax.tree.map(np.asarray, jax.jit(all_three)(flat))


@pytest.mark.slow
@pytest.mark.parametrize("sample", [None, functools.partial(lla.operators.categorical, target="y")])
def test_in_the_fisher_matrix_of_a_graph_each_node_is_an_observation(sample):
    loss, whole = lla.Loss(by_segments, on_nodes), lla.whole(GRAPH_DATA)
    _, gradients, _ = outputs_of_nodes()
    if sample is None:
        empirical = lla.fisher(loss, WEIGHTS, whole, kind="empirical")
        close(matrix(empirical, WEIGHTS), np.einsum("n,ni,nj->ij", MASK / MASK.sum(), gradients, gradients))
    drawn = lla.fisher(loss, WEIGHTS, whole, jax.random.key(0), samples=2000, sample=sample)
    expected = matrix(lla.ggn(loss, WEIGHTS, whole), WEIGHTS)
    assert abs(matrix(drawn, WEIGHTS) - expected).max() < 0.1 * abs(expected).max()


def test_losses_and_metrics_of_a_graph_are_means_over_its_nodes():
    data = {"train": lla.whole(GRAPH_DATA), "test": lla.whole({**GRAPH_DATA, "train": ~MASK})}
    plane = lla.evaluate(
        lla.Loss(by_segments, on_nodes),
        WEIGHTS,
        data["train"],
        axes_of(WEIGHTS, 1),
        LINE,
        metrics={"accuracy": accuracy, "one": lambda outputs, data: 1.0},
        extra_data={"test": data["test"]},
        execution=FIXED,
    )
    hits = np.asarray(convolve(WEIGHTS, lambda h: ADJACENCY @ h, X)).argmax(1) == Y
    expected = {"loss": total(WEIGHTS), "accuracy": hits[MASK].mean(), "test_loss": total(WEIGHTS, ~MASK)}
    expected |= {"test_accuracy": hits[~MASK].mean(), "one": 1, "test_one": 1}
    close([plane.values[name][1] for name in expected], list(expected.values()))
    assert plane.stderr == {}


@pytest.mark.parametrize("per_example", [True, False])
def test_a_scalar_criterion_is_the_loss_of_the_graph(per_example):
    def mean(outputs, data):
        losses, weights = on_nodes(outputs, data)
        value = (losses * weights).sum() / weights.sum()
        return value if per_example else (value, weights.sum())

    loss, whole = lla.Loss(by_segments, mean, per_example=per_example), lla.whole(GRAPH_DATA)
    close(matrix(lla.hessian(loss, WEIGHTS, whole), WEIGHTS), dense(total, WEIGHTS))
    with pytest.raises(ValueError, match=r"kind: 'empirical' given.*one number|loss: couples the examples"):
        lla.fisher(loss, WEIGHTS, whole, kind="empirical")


def test_in_a_stream_each_graph_is_an_example():
    graphs = [GRAPH_DATA, {**GRAPH_DATA, "train": ~MASK}]
    stream = lla.stream(lambda: (lla.whole(graph) for graph in graphs))
    entries = lla.Loss(by_segments, on_nodes)
    line = lla.evaluate(entries, WEIGHTS, stream, axes_of(WEIGHTS, 1), LINE, execution=FIXED)
    close(line.values["loss"][1], total(WEIGHTS, np.ones(NODES)))  # every node counts
    assert line.stderr["loss"][1] > 0
    means = [total(WEIGHTS, MASK), total(WEIGHTS, ~MASK)]

    def mean(p, data):
        losses, weights = on_nodes(by_segments(p, None, data, False)[0], data)
        return (losses * weights).sum() / weights.sum()

    line = lla.evaluate(mean, WEIGHTS, stream, axes_of(WEIGHTS, 1), LINE, execution=FIXED)
    close(line.values["loss"][1], np.mean(means))  # every graph counts
    close(line.stderr["loss"][1], np.std(means, ddof=1) / np.sqrt(2))
    product = lla.hessian(mean, WEIGHTS, stream).mv(WEIGHTS)
    expected = sum(dense(lambda p, t=t: total(p, t), WEIGHTS) / 2 for t in (MASK, ~MASK))
    close(ravel_pytree(product)[0], expected @ ravel_pytree(WEIGHTS)[0])


@pytest.mark.slow
def test_batch_statistics_of_a_whole_are_those_of_its_nodes():
    def apply(p, state, data, train):
        h = convolve(p, lambda h: ADJACENCY @ h, data["graph"].nodes)
        mean = h.mean(0) if train else state
        return h - mean, (0.9 * state + 0.1 * h.mean(0) if train else state)

    loss, whole, axis = lla.Loss(apply, on_nodes, np.zeros(CLASSES)), lla.whole(GRAPH_DATA), axes_of(WEIGHTS, 1)
    policies = ("batch", "reestimate")
    batch, anew = (lla.evaluate(loss, WEIGHTS, whole, axis, LINE, batch_stats=s, execution=FIXED) for s in policies)
    close(batch.values["loss"], anew.values["loss"])


# --- adapters, lists, keys


@pytest.mark.slow
def test_a_stochastic_loss_has_one_key_for_the_whole():
    def apply(p, state, data, train, key):
        return p["first"] * jax.random.normal(key), state

    loss = lla.Loss(apply, lambda outputs, data: (outputs**2).sum(), key=jax.random.key(3))
    drawn = jax.random.normal(jax.random.fold_in(jax.random.key(3), 0))
    line = lla.evaluate(loss, WEIGHTS, lla.whole(GRAPH_DATA), axes_of(WEIGHTS, 1), LINE, execution=FIXED)
    close(line.values["loss"][1], ((WEIGHTS["first"] * drawn) ** 2).sum())


def test_a_list_of_boxes_and_numbers_reach_the_loss_as_they_are():
    boxes = [RNG.normal(size=(n, 4)) for n in (2, 5, 1)]

    def loss(p, data):
        assert isinstance(data, list)
        return sum(((b @ p["first"]) ** 2).mean() for b in data)

    line = lla.evaluate(loss, WEIGHTS, lla.whole(boxes), axes_of(WEIGHTS, 1), LINE, execution=FIXED)
    close(line.values["loss"][1], loss(WEIGHTS, boxes))
    for number in (3, 3.0, np.float64(3)):
        scaled = lla.hessian(lambda p, c: c * (p["first"] ** 2).sum(), WEIGHTS, lla.whole(number), select="first")
        close(ravel_pytree(scaled.mv({"first": WEIGHTS["first"]}))[0], 6 * WEIGHTS["first"].ravel())


@pytest.mark.slow
def test_random_keys_may_be_among_the_data():
    data = lla.whole({"key": jax.random.key(0), "points": X})

    def loss(p, data):
        noise = jax.random.normal(data["key"], data["points"].shape)
        return (((data["points"] + noise) @ p["first"]) ** 2).mean()

    H = lla.hessian(loss, WEIGHTS, data, select="first")
    close(matrix(H, {"first": WEIGHTS["first"]}), dense(lambda p: loss(p, data.data), {"first": WEIGHTS["first"]}))
    assert lla.directions.gradient(loss, WEIGHTS, data).num == 1


@pytest.mark.slow
def test_equinox_models_get_the_whole_without_vmap():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        first: jax.Array
        second: jax.Array

        def __call__(self, x, matrix):
            return convolve({"first": self.first, "second": self.second}, lambda h: matrix @ h, x)

    net = Net(*map(jnp.asarray, (WEIGHTS["first"], WEIGHTS["second"])))
    loss = lla.from_equinox(net, on_nodes, inputs=("x", "matrix"))
    params, data = eqx.filter(net, eqx.is_inexact_array), lla.whole(GRAPHS["a dense matrix"][1])
    line = lla.evaluate(loss, params, data, axes_of(params, 1), LINE, execution=FIXED)
    close(line.values["loss"][1], total(WEIGHTS))


@pytest.mark.slow
def test_linen_modules_get_the_whole_by_names():
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, matrix, train=False):
            x = nn.Dropout(0.5, deterministic=not train)(x)
            return matrix @ nn.Dense(CLASSES, param_dtype=float)(x)

    module, data = Net(), GRAPHS["a dense matrix"][1]
    variables = module.init(jax.random.key(0), X, ADJACENCY)
    for key in (None, jax.random.key(4)):
        loss = lla.from_linen(module, variables, on_nodes, inputs=("x", "matrix"), key=key)
        rngs = None if key is None else jax.random.fold_in(key, 0)
        losses, weights = on_nodes(module.apply(variables, X, ADJACENCY, key is not None, rngs=rngs), data)
        p = variables["params"]
        line = lla.evaluate(loss, p, lla.whole(data), axes_of(p, 1), LINE, execution=FIXED)
        close(line.values["loss"][1], (losses * weights).sum() / weights.sum())


# --- no data


def rosenbrock(p):
    return (1 - p["x"]) ** 2 + 100 * (p["y"] - p["x"] ** 2) ** 2


CENTRE = {"x": np.float64(0.5), "y": np.float64(-0.3)}


class Closed:
    """A callable that takes the parameters alone."""

    def __call__(self, p):
        return rosenbrock(p)


def test_a_loss_without_data():
    for data, execution in ((None, KEPT), (lla.whole(), ANEW)):
        H = lla.hessian(rosenbrock, CENTRE, data, execution=execution)
        close(matrix(H, CENTRE), dense(rosenbrock, CENTRE))
    line = lla.evaluate(rosenbrock, CENTRE, None, axes_of(CENTRE, 1), LINE, execution=FIXED)
    close(line.values["loss"][1], rosenbrock(CENTRE))
    assert lla.directions.gradient(rosenbrock, CENTRE, None).num == 1
    lla.check_examples(rosenbrock, CENTRE, None)


@pytest.mark.parametrize(
    "loss",
    [
        jax.jit(rosenbrock),
        Closed(),
        Closed().__call__,
        functools.partial(lambda a, p: rosenbrock(p), 1),
        lambda p, _: rosenbrock(p),
        lambda p, data=None: rosenbrock(p),
        lambda *args: rosenbrock(args[0]),
        lambda p, *, option=1: rosenbrock(p),
    ],
    ids=["jit", "object", "method", "partial", "two arguments", "default", "any arguments", "keyword"],
)
def test_without_data_a_loss_is_called_as_its_signature_allows(loss):
    found = lla.landscape.losses(loss, CENTRE, axes_of(CENTRE).tree, np.zeros((1, 2)), None)
    close(found, [rosenbrock(CENTRE)])


def test_an_operator_of_a_loss_with_outputs_and_no_data():
    loss = lla.Loss(lambda p, state, data, train: (p["x"] * p["y"], state), lambda outputs, data: outputs**2)
    slope = np.array([CENTRE["y"], CENTRE["x"]])
    close(matrix(lla.ggn(loss, CENTRE, None), CENTRE), 2 * np.outer(slope, slope))


# --- recipes, stores, devices, programs


def test_a_store_and_a_resumed_landscape_know_their_data(tmp_path):
    def compute(data, **options):
        return lla.evaluate(physics, FIELD, lla.whole(data), axes_of(FIELD), PLANE, execution=FIXED, **options)

    first = compute(POINTS, store=tmp_path / "store")
    np.testing.assert_array_equal(compute(POINTS, store=tmp_path / "store").values["loss"], first.values["loss"])
    other = {**POINTS, "boundary": POINTS["boundary"] + 1}
    for changed in (other, {**POINTS, "viscosity": 0.2}):
        with pytest.raises(ValueError, match=r"store: .*differs in data \(fingerprint"):
            compute(changed, store=tmp_path / "store")
    with pytest.raises(ValueError, match=r"resume: .*differs in data \(fingerprint"):
        compute(other, resume=first)
    lla.save(first, tmp_path / "plane.npz")
    assert lla.load(tmp_path / "plane.npz").recipe["data"] == first.recipe["data"]


@pytest.mark.slow
def test_sweeps_modes_and_convexity_take_a_whole():
    data = lla.whole(POINTS)
    table = lla.sweep(physics, [FIELD], data, grid=LINE, seeds=[0], execution=FIXED)
    assert len(table) == 1
    found = lla.convexity(physics, FIELD, data, axes_of(FIELD), PLANE, key=jax.random.key(0))
    centre = np.linalg.eigvalsh(dense(lambda p: physics(p, POINTS), FIELD))
    np.testing.assert_allclose(found.values["lambda_max"][1, 1], centre[-1], rtol=1e-6)


@pytest.mark.slow
def test_points_are_split_over_devices_and_the_whole_is_not():
    data, axis = lla.whole(POINTS), axes_of(FIELD)
    one, two = (
        lla.evaluate(physics, FIELD, data, axis, PLANE, execution=lla.Execution(chunk=3, loop="map", devices=n))
        for n in (1, 2)
    )
    close(one.values["loss"], two.values["loss"])
    few = lla.evaluate(physics, FIELD, data, axis[:1], [np.zeros(1)], execution=lla.Execution(devices=2))
    close(few.values["loss"], [at_centre()])
    with pytest.raises(ValueError, match=r"execution.data_shards: 2 given.*one example"):
        lla.evaluate(physics, FIELD, data, axis, PLANE, execution=lla.Execution(devices=2, data_shards=2))
    with pytest.raises(ValueError, match=r"execution.devices: 2 given.*lla.whole"):
        lla.hessian(physics, FIELD, data, execution=lla.Execution(devices=2))


def test_other_data_of_the_same_shapes_compile_nothing_and_arrays_are_not_copied():
    axis, held = axes_of(FIELD), jax.tree.map(lambda x: jnp.asarray(x) if np.ndim(x) else x, POINTS)
    assert all(a is b for a, b in zip(lla.whole(held).arrays, jax.tree.leaves(lla.whole(held)), strict=True))
    assert lla.whole(held).data["interior"] is held["interior"]
    assert np.shares_memory(lla.whole(POINTS).data["interior"], POINTS["interior"])
    lla.evaluate(physics, FIELD, lla.whole(POINTS), axis, PLANE, execution=FIXED)
    moved = {**POINTS, "boundary": POINTS["boundary"] + 1}
    with compilations() as count:
        lla.evaluate(physics, FIELD, lla.whole(moved), axis, PLANE, execution=FIXED)
    assert count.count == 0


# --- refusals, each with its remedy


def test_unequal_leading_axes_point_to_whole():
    for data in (POINTS["initial"] + (POINTS["boundary"],), {"x": X, "edges": np.zeros((2, 5), int)}):
        with pytest.raises(ValueError, match=r"data: leaves of different length .*lla.whole\(data\)"):
            lla.hessian(physics, FIELD, data)
    with pytest.raises(ValueError, match=r"data: leaf 'nodes' is a int.*lla.whole\(data\)"):
        lla.hessian(physics, FIELD, {"x": X, "nodes": NODES})
    with pytest.raises(ValueError, match=r"data: leaf 'c' is a scalar.*lla.whole\(data\)"):
        lla.hessian(physics, FIELD, {"x": X, "c": np.float64(2)})
    for nothing in ((), {}, []):
        with pytest.raises(ValueError, match=r"data: holds no array.*None for a loss without data"):
            lla.hessian(rosenbrock, CENTRE, nothing)


def test_a_batch_size_for_a_whole_is_refused():
    data, stream = lla.whole(POINTS), lla.stream([lla.whole(POINTS)])
    for each in (data, stream):
        calls = (
            lambda d: lla.evaluate(physics, FIELD, d, axes_of(FIELD), PLANE, batch_size=4),
            lambda d: lla.hessian(physics, FIELD, d, batch_size=4),
            lambda d: lla.directions.gradient(physics, FIELD, d, batch_size=4),
        )
        for call in calls:
            with pytest.raises(ValueError, match=r"batch_size: 4 given.*one example"):
                call(each)


def test_what_is_no_array_is_refused_by_name():
    class Data:  # as PyTorch Geometric's
        x = X

    for wrong in ({"graph": Data()}, [None, object()]):
        with pytest.raises(ValueError, match=r"data: leaf '\S+' is a \w+, neither an array nor a number; give"):
            lla.whole(wrong)
    with pytest.raises(ValueError, match=r"data: a stream given; mark its batches"):
        lla.whole(lla.stream([X]))
    with pytest.raises(ValueError, match=r"data: an array of shape \(2,\) and dtype object"):
        lla.whole({"x": np.array([None, 1], object)})


def test_a_plain_function_of_a_whole_returns_a_scalar():
    with pytest.raises(ValueError, match=r"loss: returned shape \(9,\); a batch-coupled or plain loss must"):
        lla.hessian(lambda p, x: ((x @ p["first"]) ** 2).sum(1), WEIGHTS, lla.whole(X))


def test_a_failing_function_says_what_it_was_called_with():
    with pytest.raises(ValueError, match=r"KeyError: 'labels'.*the data that lla.whole holds") as error:
        lla.hessian(lambda p, data: data["labels"], FIELD, lla.whole(POINTS))
    assert isinstance(error.value.__cause__, KeyError)


# --- words, command line, docs


def test_the_report_names_the_whole():
    from lla_jax.output.words import _describe_matrix

    H = lla.hessian(rosenbrock, CENTRE, None)
    spectrum = lla.spectrum(H, jax.random.key(0), probes=1, steps=2)
    assert _describe_matrix(spectrum) == "Hessian of 2 parameters, of one example, always whole"


@pytest.mark.slow
def test_the_page_of_docs_runs():
    space: dict = {}
    with jax.enable_x64(False):
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), re.S):
            exec(block, space)
        assert space["plane"].shape == (5, 5)
        assert set(space["profile"].values) == {"loss", "accuracy", "test_loss", "test_accuracy"}
        product = space["H"].mv({"x": np.float32(1), "y": np.float32(0)})
    np.testing.assert_allclose([product["x"], product["y"]], [422, -200], rtol=1e-5)


def test_a_stream_of_batches_and_wholes_is_refused():
    """A whole behind a batch of rows would be padded to their number, on axes that are none of examples."""
    batch, one = np.ones((4, 3)), lla.whole(np.ones((2, 3)))
    loss = lla.Loss(lambda p, state, x, train: (x @ p, state), lambda outputs, x: outputs**2)
    for batches in ([batch, one], [one, batch]):
        with pytest.raises(ValueError, match=r"yields batches of rows and lla\.whole"):
            lla.directions.gradient(loss, np.ones(3), lla.stream(batches))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Medium:
    x: Any
    viscosity: float = dataclasses.field(metadata={"static": True})


def test_what_a_class_holds_beside_its_arrays_is_part_of_the_data():
    one, other = (lla.whole(Medium(np.ones(2), viscosity)) for viscosity in (0.1, 0.2))
    assert recipes.fingerprint(one) != recipes.fingerprint(other)
    assert recipes.fingerprint(one) == recipes.fingerprint(lla.whole(Medium(np.ones(2), 0.1)))
    assert one.form != other.form
    assert lla.whole(0.0).form != lla.whole(-0.0).form


def test_mappings_of_other_classes_are_wholes():
    data = lla.whole(collections.UserDict(x=np.ones(3), n=2))
    assert data.data["n"] == 2
    assert lla.landscape.losses(lambda p, d: p * d["x"].sum(), np.ones(()), np.ones(1), np.ones((1, 1)), data)[0] == 6


def test_a_criterion_may_return_a_list_with_weights():
    apply = lambda p, state, data, train: (data * p, state)  # noqa: E731
    listed = lla.Loss(apply, lambda outputs, data: ([outputs[0] ** 2, outputs[1] ** 2], np.array([1.0, 3.0])))
    arrays = lla.Loss(apply, lambda outputs, data: (outputs**2, np.array([1.0, 3.0])))
    data, p = lla.whole(np.array([1.0, 2.0])), np.float64(0.5)
    for make in (lla.hessian, lla.ggn):
        assert make(listed, p, data).mv(np.float64(1)) == make(arrays, p, data).mv(np.float64(1))


def test_an_old_key_is_the_key_of_the_whole():
    def apply(p, state, data, train, key):
        return p * jax.random.normal(key, data.shape), state

    losses = [lla.Loss(apply, lambda o, d: o**2, key=key) for key in (jax.random.PRNGKey(1), jax.random.key(1))]
    data = lla.whole(np.ones(2))
    assert len({float(lla.hessian(loss, np.float64(1), data).mv(np.float64(1))) for loss in losses}) == 1


@pytest.mark.slow
def test_a_sampler_draws_the_whole_where_it_is_one_array():
    loss = lla.Loss(lambda p, state, y, train: (p * jnp.ones(4), state), lambda outputs, y: (outputs - y) ** 2 / 2)
    draw = lambda key, outputs, y: outputs + jax.random.normal(key, outputs.shape)  # noqa: E731
    F = lla.fisher(loss, np.float64(1), lla.whole(np.arange(4.0)), jax.random.key(0), samples=200, sample=draw)
    assert F.mv(np.float64(1)) == pytest.approx(1, rel=0.3)
