"""Sweeps over checkpoints, axes and seeds: one compilation, one copy of the data, a store that grows; merge, status."""

import csv
import functools
import os

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax import landscape as runs
from lla_jax.landscape.store import reading
from tests.helpers import FIXED, Interrupt, accuracy, compilations, dataset, mlp_loss, params, points_computed

GRID = lla.grid(extent=0.5, points=(3, 4))
KINDS = {
    "filter": lambda key, p: lla.directions.normalize(lla.directions.random(key, p, num=2), p),
    "raw, L2": lambda key, p: lla.directions.random(key, p, num=2),
}


def sweep(checkpoints=2, **options):
    options = {"axes": KINDS, "grid": GRID, "seeds": range(2), "execution": FIXED} | options
    return lla.sweep(mlp_loss(), [params(i) for i in range(checkpoints)], dataset(), **options)


def alone(checkpoint, kind, seed, **options):
    axes = KINDS[kind](jax.random.key(seed), params(checkpoint))
    return lla.evaluate(mlp_loss(), params(checkpoint), dataset(), axes, GRID, execution=FIXED, **options)


def assert_same(found, expected):
    for name, z in expected.values.items():
        np.testing.assert_array_equal(found.values[name], z, strict=True)


def test_a_sweep_is_its_landscapes_one_by_one():
    table = sweep(metrics={"accuracy": accuracy})
    assert list(table) == [(c, k, s) for c in range(2) for k in KINDS for s in range(2)]
    for cell in table:
        expected = alone(*cell, metrics={"accuracy": accuracy})
        assert_same(table[cell], expected)
        assert table[cell].recipe == expected.recipe


def test_a_sweep_lets_go_of_the_axes_in_use_before_it_draws_others():
    held = []

    def drawn(key, p):
        held.append(sum(x.shape == (2, 5, 6) for x in jax.live_arrays()))
        return KINDS["raw, L2"](key, p)

    sweep(checkpoints=1, axes=drawn, seeds=jax.numpy.arange(4))
    assert np.ptp(held[1:]) == 0
    assert held[1] <= held[0] + 1  # those that were drawn last, and not their copy on the devices


def test_a_sweep_compiles_what_one_landscape_compiles_and_holds_the_data_once():
    data = (np.arange(37 * 5, dtype=np.float32).reshape(37, 5) / 99, np.arange(37) % 3)
    call = {"axes": KINDS, "grid": GRID, "execution": FIXED}
    with compilations() as first:
        lla.sweep(mlp_loss(), [params(0)], data, seeds=[0], **call)
    held = []

    def count(done, total):
        held.append(sum(x.shape == (37, 5) for x in jax.live_arrays()))

    with compilations() as rest:
        lla.sweep(mlp_loss(), [params(i) for i in range(4)], data, seeds=range(3), progress=count, **call)
    assert first.count > 0
    assert rest.count == 0
    assert set(held) == {1}
    assert len(held) >= 24


def test_given_axes_states_and_defaults(tmp_path):
    given = lla.directions.random(jax.random.key(5), params(), num=2)
    table = lla.sweep(
        mlp_loss(), [params(0), params(1)], dataset(), axes={"given": given}, grid=GRID, seeds=range(9), execution=FIXED
    )
    assert list(table) == [(0, "given", None), (1, "given", None)]
    default = lla.sweep(mlp_loss(), [params(0)], dataset(), grid=lla.grid(points=3, dims=1), execution=FIXED)
    ((cell, line),) = default.landscapes.items()
    assert cell == (0, "filter-normalized", 0)
    assert line.recipe["directions"]["normalize"][0]["by"] == "filter"

    def apply(p, state, batch, train):
        outputs, _ = mlp_loss().apply(p, None, batch, train)
        return state["gain"] * outputs, state

    loss = lla.Loss(apply, mlp_loss().criterion, state={"gain": np.float32(1)})
    states = [{"gain": np.float32(1)}, {"gain": np.float32(2)}]
    scaled = lla.sweep(loss, [params(0)] * 2, dataset(), axes=given, grid=GRID, execution=FIXED, states=states)
    one, two = scaled.landscapes.values()
    np.testing.assert_allclose(one.values["loss"], table[0, "given", None].values["loss"], rtol=1e-6)
    assert (two.values["loss"] != one.values["loss"]).all()
    assert one.recipe["state"] != two.recipe["state"]


def test_the_table_has_rows_a_text_and_a_file(tmp_path):
    table = sweep()
    rows = table.rows()
    for row, plane in zip(rows, table.landscapes.values(), strict=True):
        z = plane.values["loss"]
        assert plane["loss"] is z
        assert (row["least"], row["largest"], row["finite"]) == (z.min(), z.max(), 1.0)
        assert row["centre"] in z[1, 1:3]  # four points: two are nearest to 0
    with open(table.to_csv(tmp_path / "t.csv"), newline="") as file:
        read = list(csv.DictReader(file))
    assert [(int(r["checkpoint"]), r["axes"], int(r["seed"])) for r in read] == list(table)
    assert float(read[3]["mean"]) == rows[3]["mean"]
    assert str(table).count("\n") == len(table) == 8


def test_a_stored_sweep_survives_and_grows(tmp_path, monkeypatch):
    counted = points_computed(monkeypatch)

    def interrupt(done, total):
        if done >= 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(store=tmp_path, progress=interrupt)
    assert 0 < sum(counted) < 96
    there = runs.status(tmp_path)
    assert (there.landscapes, there.points, there.done) == (8, 96, sum(counted))
    with pytest.raises(ValueError, match=r"lacks .* all of 001-filter-seed-0"):
        runs.merge(tmp_path)
    table = sweep(store=tmp_path)
    assert sum(counted) == 96
    for cell in table:
        assert_same(table[cell], alone(*cell))
    counted.clear()
    more = sweep(checkpoints=3, seeds=range(3), store=tmp_path)
    assert sum(counted) == (18 - 8) * 12
    assert runs.status(tmp_path).left == 0
    merged = runs.merge(tmp_path)
    assert set(merged) == set(more)
    for cell in merged:
        assert_same(merged[cell], more[cell])
    with pytest.raises(ValueError, match=r"store: .*000-filter-seed-0 holds a landscape that differs in params"):
        lla.sweep(
            mlp_loss(),
            [params(7)] * 9,
            dataset(),
            axes=KINDS,
            grid=GRID,
            seeds=range(9),
            execution=FIXED,
            store=tmp_path,
        )
    assert set(runs.merge(tmp_path)) == set(more)  # what was refused is not waited for
    sweep(seeds=[0], grid=lla.grid(extent=0.5, points=(3, 2)), store=tmp_path)  # another grid of some of them
    assert runs.status(tmp_path).left == 0
    with pytest.raises(ValueError, match="holds a sweep"):
        alone(0, "filter", 0, store=tmp_path)
    (tmp_path / "sweep-config.json").write_text('{"of": "another program"}')
    assert set(runs.merge(tmp_path)) == set(more)


def test_shards_of_a_sweep_make_up_the_whole(tmp_path):
    seen = []
    for i in (1, 2, 3):
        part = sweep(store=tmp_path, shard=(i, 3))
        seen.append(sum(plane.recipe["complete"] for plane in part.landscapes.values()))
    assert seen == [3, 6, 8]
    merged = runs.merge(tmp_path)
    for cell, plane in sweep().landscapes.items():
        np.testing.assert_allclose(merged[cell].values["loss"], plane.values["loss"], rtol=1e-6)


def test_a_list_of_directions_may_be_stored_too(tmp_path):
    axes = [KINDS["filter"](jax.random.key(i), params()) for i in range(2)]
    planes = lla.evaluate(mlp_loss(), params(), dataset(), axes, GRID, execution=FIXED, store=tmp_path)
    merged = runs.merge(tmp_path)
    for plane, found in zip(planes, merged.landscapes.values(), strict=True):
        assert_same(found, plane)
    assert [path.name for path in reading.members(tmp_path).values()] == ["000", "001"]
    alone(0, "filter", 0, store=tmp_path / "one")
    with pytest.raises(ValueError, match="holds a single landscape; pass another folder for a sweep"):
        sweep(store=tmp_path / "one")


def test_a_list_of_directions_is_interrupted_and_shared_like_a_sweep(tmp_path):
    axes = [KINDS["filter"](jax.random.key(i), params()) for i in range(3)]
    call = functools.partial(lla.evaluate, mlp_loss(), params(), dataset(), axes, GRID, execution=FIXED)
    planes, kept = call(), []
    with pytest.raises(KeyboardInterrupt):
        call(progress=Interrupt(16), on_partial=kept.append)
    assert [plane.recipe["points_done"] for plane in kept] == [4]  # of the second one
    for i in (1, 2):
        parts = call(store=tmp_path, shard=(i, 2))
        assert len(parts) == 3
    for found, plane in zip(parts, planes, strict=True):
        assert found.recipe["complete"]
        np.testing.assert_allclose(found.values["loss"], plane.values["loss"], rtol=1e-6)


def test_merge_says_what_evaluate_says_of_values_that_are_not_finite(tmp_path):
    def nowhere(p, batch):
        return p["gain"] * np.nan

    axes = KINDS["filter"](jax.random.key(0), params())
    with pytest.raises(ValueError, match="not finite at any point"):
        lla.evaluate(nowhere, params(), dataset(), axes, GRID, execution=FIXED, store=tmp_path)
    with pytest.raises(ValueError, match="not finite at any point"):
        runs.merge(tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"checkpoints": 0}, r"checkpoints: \[\] given; it must be a list of one or more"),
        ({"seeds": []}, "seeds, axes:"),
        ({"seeds": [1, 1]}, "seeds, axes:"),
        ({"seeds": [1.7]}, r"seeds: \[1.7\] given"),
        ({"seeds": 3}, "seeds: 3 given"),
        ({"axes": lambda key, p: p}, "axes: 'axes' gave a dict"),
        ({"axes": {"a": 3}}, "axes: entry 'a': 3 given; it must be a function"),
        ({"axes": {"a b": KINDS["filter"], "a-b": KINDS["filter"]}}, "seeds, axes:"),
        ({"states": [None]}, "states: 1 given for 2 checkpoints; pass one for each"),
        ({"shard": (1, 2)}, "shard: .* without a store"),
        ({"rule": "multiply"}, "rule: 'multiply'"),
    ],
)
def test_mistakes_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        sweep(**options)
    with pytest.raises(ValueError, match="holds no store"):
        runs.status("tests")
    wider = {**params(), "gain": np.ones(2, np.float32)}
    with pytest.raises(ValueError, match="checkpoints"):
        lla.sweep(mlp_loss(), [params(), wider], dataset(), axes=KINDS, grid=GRID, execution=FIXED)


def test_the_list_of_a_sweep_that_is_damaged_is_written_anew(tmp_path):
    def table():
        options = {"grid": lla.grid(points=3), "execution": FIXED, "seeds": range(2), "store": tmp_path}
        return lla.sweep(mlp_loss(), [params()], dataset(), **options)

    first = table()
    (path,) = tmp_path.glob("sweep-*.json")
    sound = path.read_text()
    for damaged in (sound[:-5], sound.replace("filter", "fitler"), ""):
        path.write_text(damaged)
        if damaged:
            with pytest.raises(ValueError, match=r"store: .*sweep-.*json .*remove it,? and repeat the"):
                lla.runs.merge(tmp_path)
        else:
            os.utime(path, (1, 1))
        assert list(table()) == list(first)
        assert path.read_text() == sound
        assert list(lla.runs.merge(tmp_path)) == list(first)
