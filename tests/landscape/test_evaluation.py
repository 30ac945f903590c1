"""A cell of a landscape is the loss at its point, for every grid and normalization; and arguments are checked."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import lla_jax as lla
from tests.helpers import (
    FIXED,
    accuracy,
    compilations,
    cross_entropy,
    dataset,
    mlp_loss,
    moved,
    params,
    reference_losses,
)
from tests.landscape.cases import DATA, RTOL, reference


def evaluate_small(axes, **change):
    """A plane of 3 x 3 points, with some arguments changed."""
    arguments = {
        "loss": mlp_loss(),
        "params": params(),
        "data": DATA,
        "directions": axes[:2],
        "grid": lla.grid(points=3),
        "execution": FIXED,
    }
    return lla.evaluate(**(arguments | change))


def test_cell_i_j_is_the_loss_at_coordinates_i_j(axes):
    coords = lla.grid(ranges=[(-1, 0.5), (-0.25, 2)], points=(4, 7))
    plane = lla.evaluate(mlp_loss(), params(), DATA, axes[:2], coords, execution=FIXED)
    assert plane.values["loss"].shape == (4, 7)
    for i, j in ((0, 0), (3, 0), (0, 6), (1, 5)):
        expected = reference_losses(moved(params(), axes[:2], (coords[0][i], coords[1][j])), DATA).mean()
        assert plane.values["loss"][i, j] == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize("points", [(5,), (6,), (4, 5), (3, 3), (2, 3, 4)])
def test_every_cell_and_standard_error_on_lines_planes_and_volumes(axes, points):
    coords = lla.grid(extent=0.7, points=points)
    chosen = axes[: len(points)]
    result = lla.evaluate(mlp_loss(), params(), DATA, chosen, coords, execution=FIXED)
    mean, error = reference(params(), chosen, coords, DATA)
    np.testing.assert_allclose(result.values["loss"], mean, rtol=RTOL)
    np.testing.assert_allclose(result.stderr["loss"], error, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("by", ["none", "weight", "layer", "filter", "model"])
def test_every_normalization(by):
    pair = lla.directions.normalize(lla.directions.random(jax.random.key(0), params()), params(), by=by)
    coords = lla.grid(extent=0.5, points=(3, 4))
    plane = lla.evaluate(mlp_loss(), params(), DATA, pair, coords, execution=FIXED)
    np.testing.assert_allclose(plane.values["loss"], reference(params(), pair, coords, DATA)[0], rtol=RTOL)


def test_the_centre_is_the_loss_and_the_add_rule_returns_the_weights_exactly(axes):
    plane = lla.evaluate(mlp_loss(), params(), DATA, axes[:2], lla.grid(points=5), execution=FIXED)
    assert plane.coords[0][2] == plane.coords[1][2] == 0
    assert plane.values["loss"][2, 2] == pytest.approx(reference_losses(params(), DATA).mean(), rel=1e-6)
    same = lla.landscape.add(params(), axes.tree, np.zeros(3, np.float32))
    jax.tree.map(np.testing.assert_array_equal, same, params())


def test_a_quadratic_in_float64_along_its_eigenvectors_is_exact():
    values = np.array([3.0, 1.0, -2.0])
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    matrix = basis @ np.diag(values) @ basis.T
    with jax.enable_x64(True):
        pair = lla.directions.given(basis[:, 0], basis[:, 2])
        coords = lla.grid(extent=2.0, points=5)
        plane = lla.evaluate(
            lambda w, batch: 0.5 * w @ matrix @ w + 0 * batch.sum(),
            np.zeros(3),
            np.zeros((4, 1)),
            pair,
            coords,
            execution=FIXED,
        )
    a, b = np.meshgrid(*coords, indexing="ij")
    np.testing.assert_allclose(plane.values["loss"], (3 * a**2 - 2 * b**2) / 2, atol=1e-12)
    assert plane.values["loss"].dtype == np.float64
    assert "loss" not in plane.stderr


def test_a_line_between_checkpoints_and_the_plane_through_three():
    a, b, c = params(0), params(1), params(2)
    line = lla.evaluate(
        mlp_loss(), a, DATA, lla.directions.between(a, b), lla.grid(ranges=[(0, 1)], points=3), execution=FIXED
    )
    ends = [reference_losses(p, DATA).mean() for p in (a, b)]
    np.testing.assert_allclose(line.values["loss"][[0, 2]], ends, rtol=RTOL)
    three = lla.directions.between(a, b, c, orthogonal=True)
    marks = dict(three.recipe["marks"])
    for name, p in zip(marks, (a, b, c), strict=True):
        at = tuple(np.array([x]) for x in marks[name])
        value = lla.evaluate(mlp_loss(), a, DATA, three, at, execution=FIXED).values["loss"]
        assert value.item() == pytest.approx(reference_losses(p, DATA).mean(), rel=1e-5)


def test_metrics_point_metrics_penalty_and_test_data_in_one_pass(axes):
    test = dataset(11, seed=9)
    plane = lla.evaluate(
        mlp_loss(penalty=lambda p: 0.1 * (p["Dense_0"]["kernel"] ** 2).sum()),
        params(),
        DATA,
        axes[:2],
        lla.grid(points=(3, 4)),
        metrics={"accuracy": accuracy},
        point_metrics={"draw": lambda p, key: p["gain"] + jax.random.normal(key)},
        extra_data={"test": test},
        key=jax.random.key(5),
        execution=FIXED,
    )
    assert set(plane.values) == {"loss", "accuracy", "test_loss", "test_accuracy", "draw"}
    at = moved(params(), axes[:2], (plane.coords[0][2], plane.coords[1][1]))
    penalty = 0.1 * (at["Dense_0"]["kernel"] ** 2).sum()
    assert plane.values["loss"][2, 1] == pytest.approx(reference_losses(at, DATA).mean() + penalty, rel=RTOL)
    assert plane.values["test_loss"][2, 1] == pytest.approx(reference_losses(at, test).mean() + penalty, rel=RTOL)
    assert plane.values["draw"][2, 1] == pytest.approx(
        at["gain"] + float(jax.random.normal(jax.random.key(5))), rel=1e-5
    )
    hits = plane.values["test_accuracy"] * 11
    np.testing.assert_allclose(hits, np.round(hits), atol=1e-5)
    share = plane.values["accuracy"]
    np.testing.assert_allclose(plane.stderr["accuracy"], np.sqrt(share * (1 - share) / 22), rtol=1e-5, atol=1e-7)


def test_a_list_of_directions_compiles_once(axes):
    pairs = [lla.directions.random(jax.random.key(i), params()) for i in range(3)]
    coords = lla.grid(points=(3, 5))
    lla.evaluate(mlp_loss(), params(), DATA, pairs[0], coords, execution=FIXED)
    with compilations() as seen:
        planes = lla.evaluate(mlp_loss(), params(), DATA, pairs, coords, execution=FIXED)
    assert seen.count == 0
    for pair, plane in zip(pairs, planes, strict=True):
        np.testing.assert_allclose(plane.values["loss"], reference(params(), pair, coords, DATA)[0], rtol=RTOL)


def test_nothing_of_the_users_is_changed(axes):
    mine, data = params(), dataset()
    before = jax.tree.map(np.copy, (mine, data))
    lla.evaluate(mlp_loss(), mine, data, axes[:2], lla.grid(points=3), execution=FIXED)
    jax.tree.map(np.testing.assert_array_equal, (mine, data), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": {**params(), "gain": np.float32("nan")}}, r"has 1 NaN or infinite"),
        ({"params": {**params(), "gain": np.int32(1)}}, "'gain'. has dtype int32"),
        ({"params": {}}, "params: has no array leaves"),
        ({"data": (np.zeros((0, 5), np.float32), np.zeros(0, int))}, "data: empty"),
        ({"data": (np.zeros((3, 5), np.float32), np.zeros(4, int))}, "data: leaves of different length"),
        ({"data": ()}, "data: holds no array"),
        ({"rule": "multiply"}, "rule: 'multiply' given; it must be one of 'add', 'adam', or a function"),
        ({"batch_stats": "eval"}, "batch_stats: 'eval' given"),
        ({"batch_stats": "reestimate"}, "no state to re-estimate"),
        ({"grid": lla.grid(dims=3)}, "3 axes given for 2 directions; there must be one axis per direction"),
        ({"grid": (np.array([0.0, np.nan]),) * 2}, "finite coordinates"),
        ({"grid": ()}, "grid: has no axis"),
        ({"batch_size": 0}, "batch_size: 0 given"),
        ({"metrics": {"loss": accuracy}}, "metrics: entry 'loss'"),
        ({"metrics": {"bad": lambda o, b: o.sum()}}, r"bad: returned shape \(\)"),
        ({"point_metrics": {"bad": lambda p, k: p["Dense_0"]["bias"]}}, "scalar per point"),
        ({"execution": lla.Execution(chunk=0)}, "execution.chunk: 0 given"),
        ({"execution": lla.Execution(devices=99)}, "devices: 99 given; it must be an integer from 1 to"),
        ({"directions": params()}, "directions: dict given; it must be lla.Directions"),
        ({"directions": []}, r"directions: \[\] given; it must be .* a list with at least one of them"),
        ({"loss": lla.Loss(lambda p, s, b, t: (0.0, s), lambda o, b: o)}, "loss: returned shape"),
        ({"loss": lambda p, b: b[0]}, "loss: returned shape .*; a batch-coupled or plain loss must return a scalar"),
        ({"loss": 3}, "loss: .* given; it must be an lla.Loss"),
        ({"extra_data": {"": DATA}}, "extra_data: name ''"),
    ],
)
def test_bad_input_is_named_with_its_rule(axes, change, message):
    with pytest.raises(ValueError, match=message):
        evaluate_small(axes, **change)


def test_directions_of_another_structure_or_shape(axes):
    other = lla.directions.given({"Dense_0": params()["Dense_0"]})
    with pytest.raises(ValueError, match="has another structure than"):
        lla.evaluate(mlp_loss(), params(), DATA, other, lla.grid(dims=1), execution=FIXED)
    wrong = {**params(), "gain": np.zeros(2, np.float32)}
    with pytest.raises(ValueError, match="gain"):
        lla.evaluate(mlp_loss(), params(), DATA, lla.directions.given(wrong), lla.grid(dims=1), execution=FIXED)


def test_the_cross_entropy_reference_itself():
    from tests.helpers import apply

    outputs, _ = apply(params(), None, DATA, False)
    np.testing.assert_allclose(cross_entropy(outputs, DATA), reference_losses(params(), DATA), rtol=1e-5)


def test_torch_tensors_are_data_in_memory(axes):
    torch = pytest.importorskip("torch")
    tensors = tuple(torch.tensor(x) for x in DATA)
    line = (mlp_loss(), params()), (axes[:1], lla.grid(points=3, dims=1))
    found = [lla.evaluate(*line[0], data, *line[1], execution=FIXED).values["loss"] for data in (DATA, tensors)]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": accuracy}, "metrics: function given; it must be a dict"),
        ({"execution": "auto"}, "execution: 'auto' given"),
        ({"resume": "plane.npz"}, "resume: 'plane.npz' given; it must be a Landscape"),
        ({"loss": lla.Loss(lambda p, s, b, t: b[0], cross_entropy)}, "apply returned a"),
        ({"loss": lambda p, b: b[0].mean() * 1j}, "loss: is complex"),
    ],
)
def test_arguments_of_the_wrong_kind(axes, change, message):
    with pytest.raises(ValueError, match=message):
        evaluate_small(axes, **change)


def test_an_error_in_the_users_function_says_how_it_was_called(axes):
    loss = lla.Loss(lambda p, s, b, t: (b[0], s), lambda outputs: outputs)
    with pytest.raises(
        ValueError, match=r"called as criterion\(outputs, batch\).*It takes the outputs alone"
    ) as caught:
        lla.evaluate(loss, params(), DATA, axes[:1], lla.grid(points=3, dims=1), execution=FIXED)
    assert isinstance(caught.value.__cause__, TypeError)


def test_reprs_are_one_short_line(axes):
    plane = lla.evaluate(mlp_loss(), params(), DATA, axes[:2], lla.grid(points=3), execution=FIXED)
    assert repr(plane).startswith("Landscape(3 x 3 random, loss ")
    assert repr(axes) == "Directions(3 x 58 parameters, random, filter-normalized)"
    assert all(len(repr(x)) < 200 for x in (plane, axes, mlp_loss()))


def test_a_network_in_float64_agrees_to_1e_12(axes):
    with jax.enable_x64(True):
        p, data = params(dtype="float64"), dataset(dtype="float64")
        pair = lla.directions.random(jax.random.key(0), p)
        coords = lla.grid(points=(3, 4))
        for share in (False, True):
            how = lla.Execution(chunk=4, microbatch=8, loop="map", share=share, devices=1)
            found = lla.evaluate(mlp_loss(), p, data, pair, coords, execution=how)
            mean, error = reference(p, pair, coords, data)
            np.testing.assert_allclose(found.values["loss"], mean, rtol=1e-12)
            np.testing.assert_allclose(found.stderr["loss"], error, rtol=1e-12)


def test_memory_grows_with_the_points_by_no_more_than_the_result():
    import tracemalloc

    line = lla.directions.random(jax.random.key(0), {"w": np.ones(3, np.float32)})
    how = lla.Execution(chunk=4096, microbatch=4, loop="vmap", share=False, devices=1)

    def peak(points):
        tracemalloc.start()
        x = np.ones((4, 3), np.float32)
        loss = lla.Loss(lambda p, s, b, t: (b @ p["w"], s), lambda o, b: o**2)
        found = lla.evaluate(loss, {"w": np.ones(3, np.float32)}, x, line, lla.grid(points=points), execution=how)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most, found.values["loss"].nbytes + found.stderr["loss"].nbytes

    peak(70)  # compiles
    (small, result), (large, larger) = peak(70), peak(600)
    assert large - small < 1.5 * (larger - result)
