"""Comparison of recipes: one definition and one message for all that is continued or compared."""

from __future__ import annotations

import copy
import pathlib
import pickle

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core import recipes
from lla_jax.core.arguments import Misuse
from lla_jax.landscape.store import reading
from tests.helpers import FIXED, Interrupt, dataset, mlp_loss, params

DATA, GRID = dataset(), lla.grid(points=3)


def axes(seed=0):
    return lla.directions.random(jax.random.key(seed), params())


def from_another_machine(drawn):
    """The same draw with every entry off by rounding, and with it the fingerprint in the recipe."""
    tree = jax.tree.map(lambda x: np.nextafter(np.asarray(x), np.float32(np.inf)), drawn.tree)
    recipe = copy.deepcopy(drawn.recipe)
    recipe["fingerprint"] = [[x * (1 + 1e-7) for x in row] for row in recipe["fingerprint"]]
    return lla.Directions(tree, recipe)


def continued(through, folder, begun, now, **options):
    """A landscape interrupted after four points and continued with other directions or options."""
    arguments = {"loss": mlp_loss(), "params": params(), "data": DATA, "grid": GRID, "execution": FIXED}
    kept = []
    store = {"store": folder} if through == "store" else {}
    with pytest.raises(KeyboardInterrupt):
        lla.evaluate(**arguments, directions=begun, progress=Interrupt(4), on_partial=kept.append, **store)
    rest = store or {"resume": kept[0]}
    return lla.evaluate(**(arguments | options), directions=now, **rest)


@pytest.mark.parametrize("through", ["store", "resume"])
def test_axes_that_differ_by_rounding_continue_a_landscape_through_store_and_resume(tmp_path, through, monkeypatch):
    monkeypatch.setattr("lla_jax.landscape.store.writing.CHUNK_S", 0)  # a chunk as small as can be
    drawn = axes()
    found = continued(through, tmp_path, drawn, from_another_machine(drawn))
    uninterrupted = lla.evaluate(mlp_loss(), params(), DATA, drawn, GRID, execution=FIXED)
    assert found.recipe["complete"]
    np.testing.assert_allclose(found.values["loss"], uninterrupted.values["loss"], rtol=2e-6)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"params": params(5)}, r"differs in params \(fingerprint: "),
        ({"batch_size": 5}, r"differs in batch_size \(null -> 5\)"),
        ({"directions": axes(1)}, r"differs in directions \(key: \[0, 0\] -> \[0, 1\]"),
        ({"data": dataset(seed=8)}, r"differs in data \(fingerprint: "),
    ],
)
def test_what_changed_is_said_in_the_same_words_through_store_and_resume(tmp_path, changed, said, monkeypatch):
    monkeypatch.setattr("lla_jax.landscape.store.writing.CHUNK_S", 0)
    options, errors = dict(changed), {}
    now = options.pop("directions", axes())
    for through in ("store", "resume"):
        with pytest.raises(recipes.Differs, match=said) as refused:
            continued(through, tmp_path, axes(), now, **options)
        errors[through] = refused.value
    one, two = errors["store"], errors["resume"]
    assert one.changed == two.changed
    assert (one.argument, two.argument, one.path, two.path) == ("store", "resume", tmp_path, None)
    words = [str(e).partition(" differs in ")[2].partition(", or ")[0] for e in (one, two)]
    assert words[0] == words[1]
    assert words[0].endswith("; both recipes must be the same: repeat the arguments it was made with")


def interrupted(grid, drawn):
    """A landscape of which four points are computed."""
    kept = []
    with pytest.raises(KeyboardInterrupt):
        lla.evaluate(
            mlp_loss(), params(), DATA, drawn, grid, execution=FIXED, progress=Interrupt(4), on_partial=kept.append
        )
    return kept[0]


@pytest.mark.parametrize("change", [1e-5, 5e-3])
def test_another_grid_is_refused_however_long_the_other_axis_is(change):
    a, b = np.array([-1.0, 0.0, 1.0]), np.array([1e-4, 1e-3, 2e-3])
    begun = interrupted((a, b), axes())
    with pytest.raises(recipes.Differs, match=r"differs in grid \(") as refused:
        lla.evaluate(mlp_loss(), params(), DATA, axes(), (a, b * (1 + change)), execution=FIXED, resume=begun)
    assert list(refused.value.changed) == ["grid"]
    again = lla.evaluate(mlp_loss(), params(), DATA, axes(), (a, b * (1 + 1e-15)), execution=FIXED, resume=begun)
    assert again.recipe["complete"]


def test_of_directions_that_jax_transformed_the_recipe_says_too_little():
    grid = lla.grid(ranges=[(0, 1)] * 2, points=3)  # begins at the centre, where all directions look alike
    doubled, trebled = (jax.tree.map(lambda x, c=c: c * x, axes()) for c in (2, 3))
    begun = interrupted(grid, doubled)
    with pytest.raises(recipes.Differs, match=r"differs in directions \(contents: "):
        lla.evaluate(mlp_loss(), params(), DATA, trebled, grid, execution=FIXED, resume=begun)
    assert lla.evaluate(mlp_loss(), params(), DATA, doubled, grid, execution=FIXED, resume=begun).recipe["complete"]


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (1.0, 1.0 + 1e-7, True),
        (1e-8, 2e-8, False),
        (float("nan"), float("nan"), True),
        (1, 1.0, False),
        (True, 1, False),
        ("a", "a", True),
        (None, 0, False),
        ((1, 2), [1, 2], True),
        ([1.0, 1e-9], [1.0, 2e-9], True),  # rounding of the largest
        ([1.0, 2.0], [1.0, 2.1], False),
        ([float("inf"), 1.0], [float("inf"), 1.0], True),
        ([1.0, [2.0, 3.0]], [1.0, [2.0, 3.0]], True),
        ({"a": 1, "plan": 2}, {"a": 1, "plan": 3}, True),
        ({"operator": {"plan": 1}}, {"operator": {}}, True),
        ({"kind": "random", "contents": "x"}, {"kind": "random", "contents": "y"}, True),
        ({"kind": "given", "contents": "x"}, {"kind": "given", "contents": "y"}, False),
        ({"a": np.float32(0.1)}, {"a": 0.1}, True),
        ([], [1], False),
    ],
)
def test_entries_are_the_same_up_to_rounding_plans_and_bits_of_draws(one, two, same):
    assert recipes.same(one, two) is same
    assert recipes.same(two, one) is same


def test_the_difference_of_nested_entries_is_said_entry_by_entry():
    then = {"data": {"examples": 3, "fingerprint": "x"}, "rule": "add", "plan": 1}
    now = {"data": {"examples": 4, "fingerprint": "x"}, "rule": "add", "plan": 2}
    assert recipes.differences(then, now, now) == {"data": "examples: 3 -> 4"}


@pytest.mark.parametrize(
    "error",
    [
        Misuse("shard", "(3, 2) given; it must be (i, n) with 1 <= i <= n", pathlib.Path("folder")),
        recipes.Differs("store", {"params": "a -> b"}, "differs in params", pathlib.Path("folder")),
        reading.Incomplete(pathlib.Path("folder"), "2 chunks of folder (8 points)"),
    ],
)
def test_errors_are_value_errors_whose_data_survive_the_way_from_another_process(error):
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, ValueError)
    assert str(again) == str(error) == f"{error.argument}: {error.text}"
    assert vars(again) == vars(error)


def test_a_state_that_cannot_be_restored_is_said_to_be_damaged():
    said = r"resume: its state is damaged.*'done'.*start anew"
    with pytest.raises(Misuse, match=said) as refused, recipes.reading_state():
        {}["done"]
    assert isinstance(refused.value.__cause__, KeyError)


def test_a_state_that_was_refused_in_words_keeps_them():
    with pytest.raises(Misuse, match=r"^resume: its unit is 0"), recipes.reading_state():
        raise Misuse("resume", "its unit is 0")
    with pytest.raises(Misuse, match=r"^resume: its state is damaged.*Misuse: v: too short"), recipes.reading_state():
        raise Misuse("v", "too short")


@pytest.fixture
def large(monkeypatch):
    """Arrays of more than 1,000 bytes count as large, and are copied by 100 bytes."""
    monkeypatch.setattr(recipes, "LARGE", 1000)
    monkeypatch.setattr(recipes, "PIECE", 100)


WIDE = np.random.default_rng(0).standard_normal((70, 28)).astype(np.float32)  # of which 8 are a sample


def test_fingerprints_of_small_arrays_are_those_of_before():
    assert recipes.fingerprint(params()) == "d16890cbeb3dc549"
    assert recipes.fingerprint({"x": WIDE, "n": 3, "key": jax.random.key(0)}) == "23281d90ce821edf"


def test_every_byte_of_a_large_array_counts(large):
    whole = recipes.fingerprint({"x": WIDE, "y": np.arange(3)})
    for row, column in ((0, 0), (0, 1), (35, 13), (69, 27)):
        other = WIDE.copy()
        other[row, column] += 1
        assert recipes.fingerprint({"x": other, "y": np.arange(3)}) != whole
        assert not recipes.same(recipes.fingerprint({"x": other, "y": np.arange(3)}), whole)
    assert recipes.fingerprint({"x": WIDE, "y": np.arange(1, 4)}) != whole


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool"])
def test_layouts_and_libraries_of_a_large_array_do_not_count(large, dtype):
    array = np.concatenate([WIDE, WIDE]).astype(jax.numpy.dtype(dtype))
    whole = recipes.fingerprint(array)
    forms = (
        np.asfortranarray(array),
        array[::-1].copy()[::-1],
        np.repeat(array, 2, axis=1)[:, ::2],
        jax.numpy.asarray(array),
    )
    for form in forms:
        assert recipes.fingerprint(form) == whole
    assert recipes.fingerprint(np.ascontiguousarray(array.T)) == recipes.fingerprint(array.T) != whole
    column = array.reshape(-1)
    assert recipes.fingerprint(np.repeat(column, 2)[::2]) == recipes.fingerprint(column)
    assert recipes.fingerprint(np.repeat(column, 2)[None, ::2]) == recipes.fingerprint(column[None])


def test_a_sample_of_a_large_array_in_a_recipe_of_before_agrees(large):
    now = recipes.fingerprint(WIDE)
    before, rest = now.split("-")
    assert len(before) == len(rest) == 16
    assert recipes.same(before, now)
    assert recipes.same(now, before)
    assert not recipes.same("0" * 16, now)
    assert not recipes.same(rest, now)
    assert not recipes.same(now, before + "-" + "0" * 16)
    recipes.check_same(
        "store", "it", {"data": {"fingerprint": before}}, {"data": {"fingerprint": now}}, ["data"], "stop"
    )


@pytest.mark.parametrize("size", [20, 700], ids=["small", "large"])
def test_types_that_jax_narrows_are_those_it_computes_with(large, size):
    wide, also = np.arange(size), np.linspace(0, 1, size)
    narrow = np.arange(size, dtype=np.int32), also.astype(np.float32)
    given, asked = recipes.fingerprint((wide, also)), recipes.fingerprint(narrow)
    assert given == f"{given.split('~')[0]}~{asked}"
    with jax.enable_x64(True):  # as before
        assert recipes.fingerprint((wide, also)) == given.split("~")[0]
    of_before, mixed = given.split("~")[0], recipes.fingerprint((wide, narrow[1]))
    assert all(recipes.same(given, other) and recipes.same(other, given) for other in (asked, of_before, mixed))
    assert recipes.same(of_before[:16], given)  # of a sample
    assert not recipes.same(given, recipes.fingerprint((wide + 1, also)))
    assert not recipes.same(given, recipes.fingerprint((wide.astype(np.uint8), also)))


def test_the_order_of_metrics_says_nothing():
    then, now = {"metrics": ["a", "b"], "names": ["a", "b"]}, {"metrics": ["b", "a"], "names": ["b", "a"]}
    assert list(recipes.differences(then, now, now)) == ["names"]
