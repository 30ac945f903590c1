"""Points to compare are ends, middle and corners; values agree up to rounding, and metrics up to few examples."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.execution.plans import Plan
from lla_jax.landscape import probes
from tests.helpers import FIXED, accuracy, compilations, mlp_loss, params
from tests.landscape.cases import DATA

GRID = lla.grid(points=(5, 4))
PLANE = {"execution": FIXED, "metrics": {"accuracy": accuracy}}


@pytest.mark.parametrize(("num", "most"), [(20, 2), (20, 4), (20, 16), (20, 99), (7, 4), (1, 2), (2, 2)])
def test_points_are_in_order_and_have_both_ends(num, most):
    flat = probes.spread(GRID, num, most)
    assert len(flat) == min(num, most)
    assert list(flat) == sorted(set(flat))
    assert {0, num - 1} <= set(flat)
    if num == 20 and most >= 6:
        assert {3, 16} <= set(flat)  # the other corners


def test_a_volume_has_both_signs_of_every_axis():
    grid = lla.grid(points=3, dims=4)
    flat = probes.spread(grid, 81, 2)
    at = np.stack(np.unravel_index(flat, (3, 3, 3, 3)))
    assert (at == 0).any(1).all()
    assert (at == 2).any(1).all()


def store(folder, axes, **options):
    return lla.evaluate(mlp_loss(), params(), DATA, axes[:2], GRID, store=folder, **{**PLANE, **options})


def test_corners_are_the_means_over_all_rows_and_compile_nothing(axes, tmp_path):
    whole = lla.evaluate(mlp_loss(), params(), DATA, axes[:2], GRID, **PLANE)
    with compilations() as seen:
        corners = store(tmp_path, axes).recipe["corners"]
    assert seen.count == 0
    assert corners["rows"] == {"": 23}
    flat = probes.spread(GRID, 20, 4)
    np.testing.assert_allclose(corners["points"], np.array(np.meshgrid(*GRID, indexing="ij")).reshape(2, -1).T[flat])
    for name in ("loss", "accuracy"):
        np.testing.assert_array_equal(corners["values"][name], whole[name].reshape(-1)[flat])


@pytest.mark.parametrize(
    ("num", "room", "seconds", "chosen"),
    [
        (16, 16, 0.01, 16),
        (16, 16, None, 16),
        (16, 16, 60.0, 2),  # of the 16 minutes of this landscape two more
        (40, 16, 60.0, 4),
        (400, 16, 60.0, 16),
        (400, 1, 60.0, 2),
        (2000, 1, 0.01, 10),
        (1, 16, 60.0, 1),
    ],
)
def test_points_that_take_long_are_a_small_part_of_a_landscape(num, room, seconds, chosen):
    grid = (np.linspace(-1, 1, num),)
    flat, coords = probes.choose(grid, num, room, seconds)
    assert (flat[0], flat[-1], len(flat)) == (0, num - 1, chosen)
    np.testing.assert_array_equal(coords[:, 0], grid[0][flat])


def a_job(**precision):
    """As much of a job as values are compared by."""
    return SimpleNamespace(task=SimpleNamespace(sets={"": DATA}), recipe={"precision": precision})


def test_long_chunks_have_a_program_for_few_points(axes, monkeypatch):
    called = []
    monkeypatch.setattr(probes, "compute_means", lambda job, plan, coords: called.append(plan.chunk) or (None, plan))
    job = SimpleNamespace(point_shards=2, has_stream=False)
    plan = Plan(64, 8, "map", False)
    for seconds in (None, 0.001, 1.0):
        probes._compute(job, plan, np.zeros((7, 2)), seconds)
    assert called == [64, 64, 4]


@pytest.mark.parametrize(
    ("new", "agrees"),
    [
        ([1.0, 10.0, np.nan], True),
        ([1.0 + 1e-6, 10.0 - 1e-6, np.nan], True),
        ([1.0 + 1e-4, 10.0, np.nan], False),
        ([1.0, 10.0, 3.0], False),
        ([1.0, np.inf, np.nan], False),
    ],
)
def test_values_agree_up_to_rounding_and_holes_are_the_same(new, agrees):
    assert probes._agree(np.array([1.0, 10.0, np.nan]), np.array(new), 1e-5).all() == agrees


def test_a_metric_may_differ_by_a_small_part_of_its_error():
    """Of 60,000 examples two lie on the other side of a decision on another machine."""
    old, error = {"accuracy": np.array([0.9])}, {"accuracy": np.array([0.3 / np.sqrt(60_000)])}

    def compare(name, differs_by):
        before, now = probes.Kept(np.zeros((1, 2)), {name: old["accuracy"]}), old["accuracy"] + differs_by / 60_000
        errors = {name: error["accuracy"]}
        probes._compare("store", before, probes.Means({name: now}, errors), {name: 0.0}, a_job(), None)

    compare("accuracy", 2)
    with pytest.raises(ValueError, match="store: 'accuracy' at the point"):
        compare("accuracy", 20)
    with pytest.raises(ValueError, match="store: 'loss' at the point"):
        compare("loss", 2)


def test_a_value_near_zero_has_the_rounding_of_the_others():
    """The loss at a minimum is a difference of larger numbers, and rounded as these are."""
    before = probes.Kept(np.zeros((1, 2)), {"loss": np.array([1e-6])})
    now = probes.Means({"loss": np.array([1.4e-6])}, {})
    probes._compare("store", before, now, {"loss": 0.5}, a_job(), None)
    with pytest.raises(ValueError, match="store: 'loss' at the point"):
        probes._compare("store", before, now, {"loss": 0.0}, a_job(), None)


def test_half_precision_is_compared_by_its_own_rounding(axes, tmp_path):
    def half(factor):
        def criterion(outputs, batch):
            return factor * mlp_loss().criterion(outputs.astype("bfloat16"), batch)

        return lla.Loss(mlp_loss().apply, criterion)

    line = (params(), DATA, lla.directions.random(jax.random.key(0), params(), 1), lla.grid(0.9, 3, dims=1))
    begun = lla.evaluate(half(1.0), *line, execution=FIXED, store=tmp_path / "half")
    assert begun.recipe["precision"]["lowest"] == "bfloat16"
    rounded = {k: [x * (1 + 2e-3) for x in xs] for k, xs in begun.recipe["corners"]["values"].items()}
    kept = probes.Kept(np.array(begun.recipe["corners"]["points"]), {k: np.array(x) for k, x in rounded.items()})
    now = probes.Means({k: np.array(x) for k, x in begun.recipe["corners"]["values"].items()}, {})
    probes._compare("store", kept, now, {"loss": 0.0}, a_job(**begun.recipe["precision"]), None)
    with pytest.raises(ValueError, match="store: 'loss' at the"):
        lla.evaluate(half(1.1), *line, execution=FIXED, store=tmp_path / "half")


@pytest.mark.parametrize(
    "corners",
    [
        3,
        {"rows": {"": 23}},
        {"rows": {"": 23}, "points": [[0.0]], "values": {"loss": [1.0]}},
        {"rows": {"": 23}, "points": [[0.0, 0.0]] * 17, "values": {"loss": [1.0] * 17}},
        {"rows": {"": 23}, "points": [[0.0, 0.0]], "values": {"loss": [1.0, 2.0]}},
        {"rows": {"": 23}, "points": [["a", 0.0]], "values": {"loss": [1.0]}},
        {"rows": {"": 23}, "points": [[0.0, 0.0]], "values": [1.0]},
    ],
)
def test_damaged_corners_are_refused(corners):
    job = SimpleNamespace(has_stream=False, counts={"": 23}, coords=GRID)
    with pytest.raises(ValueError, match=r"store: the corners in its recipe are damaged"):
        probes._corners_of("store", {"corners": corners}, job, None)


def test_corners_over_other_rows_of_a_stream_are_not_compared(axes, tmp_path):
    for size in (23, 9, 5):
        batches = [tuple(x[i : i + size] for x in DATA) for i in range(0, 23, size)]
        found = lla.evaluate(mlp_loss(), params(), lla.stream(batches), axes[:2], GRID, store=tmp_path, **PLANE)
        assert found.recipe["corners"]["rows"] == {"": 23}
