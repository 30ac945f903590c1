"""A cell of a landscape is the loss at its point: for every rule, grid, normalization and way of running."""

import functools
import itertools

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.execution import plans
from lla_jax.landscape import grids, rules, tasks
from lla_jax.landscape.means import Means
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

DATA = dataset()
RTOL = 2e-6


@pytest.fixture(scope="module")
def axes():
    return lla.directions.normalize(lla.directions.random(jax.random.key(3), params(), num=3), params())


def reference(p, axes, coords, data):
    """(mean, standard error) at every point, one by one, in numpy float64."""
    shape = tuple(map(len, coords))
    mean, error = np.zeros(shape), np.zeros(shape)
    for index in itertools.product(*map(range, shape)):
        losses = reference_losses(moved(p, axes, [c[i] for c, i in zip(coords, index, strict=True)]), data)
        mean[index], error[index] = losses.mean(), losses.std(ddof=1) / np.sqrt(len(losses))
    return mean, error


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


@pytest.fixture(scope="module")
def moments():
    import optax

    tx = optax.adam(1e-2)
    state = tx.init(params())
    for seed in range(3):
        grads = jax.tree.map(lambda x, s=seed: 0.1 * np.cos(np.asarray(x) + s), params())
        _, state = tx.update(grads, state)
    return lla.directions.adam_moments(state, params())


def test_the_adam_rule_against_its_formula_and_its_row_zero(moments):
    coords = lla.grid(ranges=[(-0.02, 0.02), (0.1, 2)], points=(3, 4))
    plane = lla.evaluate(mlp_loss(), params(), DATA, moments, coords, rule="adam", execution=FIXED)
    for (i, a), (j, b) in itertools.product(enumerate(coords[0]), enumerate(coords[1])):

        def step(p, d, a=a, b=b):
            m, v = np.asarray(d, np.float64)
            return p + a / np.sqrt(b) * m / (np.sqrt(v) + 1e-8)

        at = jax.tree.map(step, params(), moments.tree)
        assert plane.values["loss"][i, j] == pytest.approx(reference_losses(at, DATA).mean(), rel=1e-5)
    assert plane.values["loss"][1] == pytest.approx(reference_losses(params(), DATA).mean(), rel=1e-6)


def test_the_adam_rule_is_constant_on_a_over_root_b_and_takes_its_eps(moments):
    adam, tree, p = lla.landscape.adam, moments.tree, params()
    one, other = (adam(p, tree, np.array(c, np.float32)) for c in ((0.1, 1.0), (0.2, 4.0)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), one, other)
    coords = lla.grid(ranges=[(-0.02, 0.02), (0.1, 2)], points=3)
    large = functools.partial(adam, eps=1e6)
    plane = lla.evaluate(mlp_loss(), params(), DATA, moments, coords, rule=large, execution=FIXED)
    np.testing.assert_allclose(plane.values["loss"], plane.values["loss"][1, 1], rtol=1e-5)
    assert "eps" in plane.recipe["rule"]


def test_the_adam_rule_refuses_b_at_zero_and_other_or_normalized_directions(moments, axes):
    call = functools.partial(lla.evaluate, mlp_loss(), params(), DATA, rule="adam", execution=FIXED)
    with pytest.raises(ValueError, match="b > 0"):
        call(moments, lla.grid(points=3))
    positive = lla.grid(ranges=[(-1, 1), (0.1, 1)], points=3)
    with pytest.raises(ValueError, match="raw moments"):
        call(axes[:2], positive)
    with pytest.raises(ValueError, match="raw moments"):
        call(lla.directions.normalize(moments, params()), positive)


def test_frozen_leaves_never_move_and_a_selection_is_a_landscape_of_its_own():
    pair = lla.directions.random(jax.random.key(0), params(), select="Dense_1/**")
    for coord in itertools.product((-3.0, 0.0, 2.5), repeat=2):
        at = lla.landscape.add(params(), pair.tree, np.array(coord, np.float32))
        np.testing.assert_array_equal(at["Dense_0"]["kernel"], params()["Dense_0"]["kernel"])
        np.testing.assert_array_equal(at["gain"], params()["gain"])
    coords = lla.grid(points=3)
    plane = lla.evaluate(mlp_loss(), params(), DATA, pair, coords, execution=FIXED)
    np.testing.assert_allclose(plane.values["loss"], reference(params(), pair, coords, DATA)[0], rtol=RTOL)


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


def test_the_kernel_is_jittable_and_differentiable(axes):
    coords = np.array([[0.0, 0.0], [0.3, -0.2]], np.float32)
    kernel = jax.jit(lambda p, c: lla.landscape.losses(mlp_loss(), p, axes[:2].tree, c, DATA))
    expected = [reference_losses(moved(params(), axes[:2], c), DATA).mean() for c in coords]
    np.testing.assert_allclose(kernel(params(), coords), expected, rtol=RTOL)
    slope = jax.grad(lambda c: kernel(params(), c).sum())(coords)
    eps = 1e-3
    up, down = (
        reference_losses(moved(params(), axes[:2], coords[1] + s * np.array([eps, 0])), DATA).mean() for s in (1, -1)
    )
    assert slope[1, 0] == pytest.approx((up - down) / (2 * eps), rel=1e-3)


def test_nothing_of_the_users_is_changed(axes):
    mine, data = params(), dataset()
    before = jax.tree.map(np.copy, (mine, data))
    lla.evaluate(mlp_loss(), mine, data, axes[:2], lla.grid(points=3), execution=FIXED)
    jax.tree.map(np.testing.assert_array_equal, (mine, data), before)


# -- what can go wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": {**params(), "gain": np.float32("nan")}}, r"has 1 NaN or infinite"),
        ({"params": {**params(), "gain": np.int32(1)}}, "'gain'. has dtype int32"),
        ({"params": {}}, "params has no array leaves"),
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
        ({"execution": lla.Execution(devices=99)}, "devices: 99 asked for"),
        ({"directions": params()}, "directions: dict given; it must be lla.Directions"),
        ({"directions": []}, r"directions: \[\] given; it must be .* a list with at least one of them"),
        ({"loss": lla.Loss(lambda p, s, b, t: (0.0, s), lambda o, b: o)}, "loss: returned shape"),
        ({"loss": lambda p, b: b[0]}, "rule for a batch-coupled or plain loss is a scalar"),
        ({"loss": 3}, "loss: expected lla.Loss"),
        ({"extra_data": {"": DATA}}, "extra_data: name ''"),
    ],
)
def test_bad_input_is_named_with_its_rule(axes, change, message):
    arguments = {
        "loss": mlp_loss(),
        "params": params(),
        "data": DATA,
        "directions": axes[:2],
        "grid": lla.grid(points=3),
        "execution": FIXED,
    }
    with pytest.raises(ValueError, match=message):
        lla.evaluate(**(arguments | change))


def test_directions_of_another_structure_or_shape(axes):
    other = lla.directions.given({"Dense_0": params()["Dense_0"]})
    with pytest.raises(ValueError, match="different structures"):
        lla.evaluate(mlp_loss(), params(), DATA, other, lla.grid(dims=1), execution=FIXED)
    wrong = {**params(), "gain": np.zeros(2, np.float32)}
    with pytest.raises(ValueError, match="gain"):
        lla.evaluate(mlp_loss(), params(), DATA, lla.directions.given(wrong), lla.grid(dims=1), execution=FIXED)


def test_nonfinite_cells_are_kept_and_their_share_is_warned_of():
    call = functools.partial(lla.evaluate, hole, *HOLE, ALONG)
    with pytest.warns(UserWarning, match=r"60.0% of the cells are not finite"):
        result = call(lla.grid(points=5, dims=1), execution=FIXED)
    np.testing.assert_array_equal(np.isfinite(result.values["loss"]), [False, False, False, True, True])
    assert result.values["loss"][2] == -np.inf
    with pytest.raises(ValueError, match="not finite at any point"):
        call((np.array([-2.0, -1.0]),), execution=FIXED)


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"extent": 0.0}, "extent: 0.0 given"),
        ({"points": 0}, "at least one point"),
        ({"ranges": [(1, -1)]}, "finite lo < hi"),
        ({"ranges": [(0, np.inf)]}, "finite lo < hi"),
        ({"ranges": [(0, 1)], "points": (3, 4)}, "2 numbers of points for 1 ranges"),
    ],
)
def test_bad_grids(arguments, message):
    with pytest.raises(ValueError, match=message):
        lla.grid(**arguments)


def test_grids_are_symmetric_reach_their_ends_and_hit_the_centre():
    (axis,) = lla.grid(extent=0.3, points=41, dims=1)
    np.testing.assert_array_equal(axis, -axis[::-1])
    assert axis[20] == 0
    assert axis[-1] == 0.3
    (even,) = lla.grid(points=4, dims=1)
    np.testing.assert_allclose(even, [-1, -1 / 3, 1 / 3, 1])
    assert [len(c) for c in lla.grid(points=(3, 5, 7))] == [3, 5, 7]
    (single,) = lla.grid(ranges=[(1, 3)], points=1)
    assert single == [2.0]


def test_the_cross_entropy_reference_itself():
    from tests.helpers import apply

    outputs, _ = apply(params(), None, DATA, False)
    np.testing.assert_allclose(cross_entropy(outputs, DATA), reference_losses(params(), DATA), rtol=1e-5)


# -- found in review ---------------------------------------------------------------------------------------------------


def test_names_that_would_collide_are_refused(axes):
    arguments = (mlp_loss(), params(), DATA, axes[:1], lla.grid(points=3, dims=1))
    for options in (
        {"metrics": {"test_loss": accuracy}, "extra_data": {"test": DATA}},
        {"point_metrics": {"test_loss": lambda p, k: 0.0}, "extra_data": {"test": DATA}},
        {"metrics": {"b_c": accuracy, "c": accuracy}, "extra_data": {"a": DATA, "a_b": DATA}},
    ):
        with pytest.raises(ValueError, match="would name two values"):
            lla.evaluate(*arguments, execution=FIXED, **options)


def test_sharing_is_for_the_add_rule_only(axes):
    with pytest.raises(ValueError, match="only the add rule is affine"):
        lla.landscape.losses(
            mlp_loss(), params(), axes[:2].tree, np.ones((1, 2)), DATA, rule=lla.landscape.adam, share=True
        )


def test_a_batch_coupled_loss_is_only_ever_traced_on_whole_batches():
    matrix = np.random.default_rng(0).standard_normal((300, 300)).astype(np.float32)
    x = np.ones((300, 4), np.float32)
    line = lla.directions.given(np.ones(4, np.float32))
    found = lla.evaluate(lambda w, b: ((matrix @ b @ w) ** 2).mean(), np.ones(4, np.float32), x, line, lla.grid(dims=1))
    assert found.values["loss"][20] == pytest.approx(((matrix @ x @ np.ones(4)) ** 2).mean(), rel=1e-5)


def test_a_rule_of_the_users_may_have_any_name(axes):
    def adamw_like(p, directions, coord):
        return lla.landscape.add(p, directions, coord)

    coords = lla.grid(points=3)
    found = lla.evaluate(mlp_loss(), params(), DATA, axes[:2], coords, rule=adamw_like, execution=FIXED)
    np.testing.assert_allclose(found.values["loss"], reference(params(), axes[:2], coords, DATA)[0], rtol=RTOL)


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
    arguments = {
        "loss": mlp_loss(),
        "params": params(),
        "data": DATA,
        "directions": axes[:2],
        "grid": lla.grid(points=3),
    }
    with pytest.raises(ValueError, match=message):
        lla.evaluate(**(arguments | {"execution": FIXED} | change))


def test_an_error_in_the_users_function_says_how_it_was_called(axes):
    loss = lla.Loss(lambda p, s, b, t: (b[0], s), lambda outputs: outputs)
    with pytest.raises(TypeError) as caught:
        lla.evaluate(loss, params(), DATA, axes[:1], lla.grid(points=3, dims=1), execution=FIXED)
    assert "criterion(outputs, batch)" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("arguments", [{"points": 2.5}, {"dims": "2"}, {"ranges": (-1, 1)}, {"extent": "1"}])
def test_grids_of_the_wrong_kind(arguments):
    with pytest.raises(ValueError, match="grid: extent="):
        lla.grid(**arguments)


def test_a_checked_rule_says_what_it_needs_and_allows():
    plane, positive = lla.grid(points=3), lla.grid(ranges=[(-1, 1), (0.1, 1)], points=3)
    half = functools.partial(lla.landscape.adam, eps=0.5)

    def mine(p, directions, coord):
        return lla.landscape.add(p, directions, coord)

    found = [
        (rule.name, rule.affine, rule.moments)
        for rule in (
            rules.check_rule("add", plane),
            rules.check_rule(lla.landscape.add, plane),
            rules.check_rule("adam", positive),
            rules.check_rule(half, positive),
            rules.check_rule(mine, plane),
        )
    ]
    assert found[:2] == [("add", True, False)] * 2
    assert found[2] == ("adam", False, True)
    assert found[3] == ("adam((), {'eps': 0.5})", False, True)
    assert found[4][0].endswith("mine")
    assert found[4][1:] == (False, False)
    again = functools.partial(lla.landscape.adam, eps=0.5)
    assert rules.check_rule(half, positive) == rules.check_rule(again, positive)  # by value: nothing compiles anew
    assert rules.check_rule(half, positive) != rules.check_rule("adam", positive)
    for rule, message in ((3, "rule: 3 given; it must be one of"), (mine, "has no axis")):
        with pytest.raises(ValueError, match=message):
            rules.check_rule(rule, grids.check_grid(() if rule is mine else plane))


def test_a_checked_task_has_one_form(axes):
    add = rules.check_rule("add", lla.grid(points=3))

    def task(**changed):
        options = {"loss": mlp_loss(), "data": DATA, "batch_size": None, "batch_stats": "frozen", "metrics": None}
        rest = {"point_metrics": None, "extra_data": None, "key": None, "execution": FIXED}
        return tasks.check(tasks.Task(rule=add, **(options | rest | changed)))

    full = task(metrics={"hits": accuracy}, extra_data={"test": DATA}, point_metrics={"gain": lambda p, key: p["gain"]})
    assert list(full.sets) == ["", "test_"]
    assert full.names == ["loss", "hits", "test_loss", "test_hits", "gain"]
    assert full.formula == task(metrics={"hits": accuracy}).formula
    assert full.formula != task().formula
    assert task(loss=lambda p, b: 0.0).couples_examples
    assert (task().couples_examples, task(batch_stats="batch").couples_examples) == (False, True)


def test_means_are_put_together_from_parts_and_what_lacks_is_nan():
    table = Means({}, {})
    table.put(Means({"loss": np.array([1.0, 2.0])}, {"loss": np.array([0.1, 0.2])}), slice(0, 2), 6)
    table.put(Means({"loss": np.array([5.0, 4.0]), "hits": np.ones(2)}, {}), np.array([4, 3]), 6)
    plane = table.landscape((np.arange(2.0), np.arange(3.0)), {"rule": "add"})
    np.testing.assert_array_equal(plane.values["loss"], [[1, 2, np.nan], [4, 5, np.nan]])
    np.testing.assert_array_equal(plane.values["hits"], [[np.nan] * 3, [1, 1, np.nan]])
    np.testing.assert_array_equal(plane.stderr["loss"], [[0.1, 0.2, np.nan], [np.nan] * 3])
    assert plane.recipe == {"rule": "add"}


def hole(w, batch):
    return jax.numpy.log(w[0]) + 0 * batch.sum()


HOLE = (np.array([0.0], np.float32), np.zeros((2, 1), np.float32))
ALONG = lla.directions.given(np.array([1.0], np.float32))
LINE = {"grid": lla.grid(points=5, dims=1), "execution": FIXED}


@pytest.mark.parametrize(
    "call",
    [
        lambda folder: lla.evaluate(hole, *HOLE, ALONG, **LINE),
        lambda folder: lla.evaluate(hole, *HOLE, [ALONG], **LINE),
        lambda folder: lla.evaluate(hole, *HOLE, ALONG, **LINE, store=folder),
        lambda folder: lla.evaluate(hole, *HOLE, [ALONG], **LINE, store=folder),
        lambda folder: lla.sweep(hole, [HOLE[0]], HOLE[1], axes=ALONG, **LINE),
        lambda folder: lla.sweep(hole, [HOLE[0]], HOLE[1], axes=ALONG, **LINE, store=folder),
    ],
)
def test_a_warning_names_the_line_that_called_the_library(call, tmp_path):
    with pytest.warns(UserWarning, match="are not finite") as seen:
        call(tmp_path)
    assert [(w.filename, w.lineno) for w in seen] == [(__file__, call.__code__.co_firstlineno)]


def test_reprs_are_one_short_line(axes):
    plane = lla.evaluate(mlp_loss(), params(), DATA, axes[:2], lla.grid(points=3), execution=FIXED)
    assert repr(plane).startswith("Landscape(3 x 3 random, loss ")
    assert repr(axes) == "Directions(3 x 58 parameters, random, filter-normalized)"
    assert all(len(repr(x)) < 200 for x in (plane, axes, mlp_loss()))


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
