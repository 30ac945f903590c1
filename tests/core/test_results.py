"""Results as people use them: as numbers, arrays and sequences, and as text."""

import copy
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core.arguments import Misuse
from tests import helpers

NUMBER = lla.Estimate(12.3456, 0.0123, 16, {})
TREE = lla.Estimate({"w": np.ones(3)}, {"w": np.ones(3)}, 16, {"norm": 1.7, "norm_sem": 0.1})
AXES = lla.Directions({"w": np.arange(8.0).reshape(4, 2)}, {"kind": "given"})
PAIRS = lla.Eigenpairs(np.arange(4.0), AXES, np.full(4, 0.5), 9, {"which": "largest"})


def test_estimates_are_compared_hashed_and_added_in_place():
    again = lla.Estimate({"w": np.ones(3)}, {"w": np.ones(3)}, 16, {"norm": 1.7, "norm_sem": 0.1})
    other = lla.Estimate({"w": np.zeros(3)}, {"w": np.ones(3)}, 16, {"norm": 1.7, "norm_sem": 0.1})
    assert again == TREE != other
    assert TREE in [1, TREE]
    assert {NUMBER: 1}[lla.Estimate(12.3456, 0.0123, 16, {})] == 1
    assert len({TREE, again, other}) == 2
    total = NUMBER
    total += 1
    assert total == 13.3456


def test_device_get_leaves_results_as_they_are():
    results = {"tree": lla.Spectrum(np.ones((1, 2)), np.full((1, 2), 0.5), {}), "loss": jnp.ones(2)}
    got = jax.device_get(results)
    assert got["tree"] is results["tree"]
    assert isinstance(got["loss"], np.ndarray)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (f"{NUMBER:.3f}", "12.346 +- 0.012"),
        (f"{NUMBER:10.2e}", "  1.23e+01 +- 0.012"),
        (f"{NUMBER}", "Estimate(12.3456 +- 0.012, num=16)"),
        ("%.2f" % NUMBER, "12.35"),  # noqa: UP031
        (f"{lla.Estimate(1.5, math.nan, 1, {}):.2f}", "1.50"),
        (f"{TREE}", "Estimate(of 1 arrays, norm 1.7 +- 0.1, num=16)"),
    ],
)
def test_an_estimate_as_text(shown, text):
    assert shown == text


def test_an_estimate_where_a_number_is_needed_is_its_mean():
    assert float(NUMBER) == np.asarray(NUMBER) == 12.3456
    assert (int(NUMBER), round(NUMBER), round(NUMBER, 1)) == (12, 12, 12.3)
    assert NUMBER / 2 == 6.1728
    assert 2 * NUMBER == np.float32(2) * NUMBER == NUMBER + NUMBER == 24.6912
    assert NUMBER > 12 and NUMBER == 12.3456 and NUMBER != 3  # noqa: PT018
    assert NUMBER == copy.deepcopy(NUMBER) == pickle.loads(pickle.dumps(NUMBER))
    assert math.sqrt(NUMBER) == np.sqrt(NUMBER)
    np.testing.assert_array_equal(np.array([NUMBER, NUMBER]), [12.3456, 12.3456])
    for x in (NUMBER * jnp.ones(2), jnp.ones(2) * NUMBER, jax.jit(lambda x: NUMBER * x)(jnp.ones(2))):
        np.testing.assert_allclose(x, [12.3456, 12.3456], rtol=1e-6)
        assert isinstance(x, jax.Array)
    on_arrays = lla.Estimate(np.ones(3), np.ones(3), 4, {})
    np.testing.assert_array_equal(np.asarray(on_arrays), np.ones(3))


def test_an_estimate_that_is_changed_in_place_becomes_a_number():
    name = NUMBER
    name /= 2
    assert (name, NUMBER.mean) == (6.1728, 12.3456)
    name = NUMBER
    name *= np.ones(2)
    np.testing.assert_array_equal(name, [12.3456, 12.3456])
    total = np.zeros(2)
    total += NUMBER
    np.testing.assert_array_equal(total, [12.3456, 12.3456])


def test_estimates_compare_with_arrays_and_with_each_other():
    whole, arrays = lla.Estimate(12.0, 0.1, 16, {}), lla.Estimate(np.ones(3), np.ones(3), 4, {})
    assert whole == jnp.float32(12) and jnp.float32(12) == whole and not whole != jnp.float32(12)  # noqa: PT018, SIM202
    np.testing.assert_array_equal(arrays == np.array([1, 2, 1]), [True, False, True])
    np.testing.assert_array_equal(arrays != np.array([1, 2, 1]), [False, True, False])
    for one in (whole, arrays, TREE):
        assert one == copy.deepcopy(one)
        assert hash(one) == hash(copy.deepcopy(one))
        assert one not in ("text", None)
    assert TREE != 1.0
    assert lla.Estimate({"w": np.zeros(3)}, TREE.sem, 16, TREE.recipe) != TREE


def test_a_copy_of_an_estimate_is_one():
    arrays = lla.Estimate(np.ones(3), np.ones(3), 4, {})
    np.array(arrays)[0] = 9
    np.testing.assert_array_equal(arrays.mean, np.ones(3))
    assert jnp.asarray(NUMBER) == jnp.float32(12.3456)


@pytest.mark.parametrize("use", [float, int, np.asarray, "{:.2f}".format, lambda x: 2 * x, lambda x: x > 1])
def test_an_estimate_of_a_tree_is_no_number(use):
    with pytest.raises(Misuse, match=r'take their tree, estimate.mean, or its norm, estimate.recipe\["norm"\]'):
        use(TREE)


def test_some_of_the_pairs():
    assert len(PAIRS) == 4
    some = PAIRS[[3, 0]]
    np.testing.assert_array_equal(some.values, [3, 0])
    np.testing.assert_array_equal(some.vectors.tree["w"], AXES.tree["w"][[3, 0]])
    assert (some.recipe["chosen"], some[1].recipe["chosen"], PAIRS[1:].num) == ([3, 0], [0], 3)
    assert len(list(zip(PAIRS.values, PAIRS.vectors, strict=True))) == len(AXES) == 4
    assert PAIRS and AXES  # noqa: PT018


@pytest.mark.parametrize("index", [4, "w", (0, 1), None, 1.5, [0, 7], slice(5, None)])
def test_directions_and_pairs_that_there_are_not(index):
    for items in (AXES, PAIRS):
        with pytest.raises(
            IndexError, match=r"index: .* given, and there are 4 .*; it must be an integer from -4 to 3"
        ):
            items[index]


LANDSCAPE = lla.Landscape((np.arange(3.0),), {"loss": np.ones(3)}, {}, {})
SPECTRUM = lla.Spectrum(np.ones((1, 2)), np.full((1, 2), 0.5), {})
PROBLEM = lla.Problem(helpers.mlp_loss(), helpers.params(), helpers.dataset())


@pytest.mark.parametrize("result", [LANDSCAPE, SPECTRUM, PAIRS, PROBLEM], ids=lambda result: type(result).__name__)
@pytest.mark.parametrize("use", [np.asarray, list, float, lambda x: x + x, lambda x: 2 * x, lambda x: x > 1, np.exp])
def test_results_that_are_no_arrays_say_what_to_take(result, use):
    with pytest.raises(Misuse, match=r"take|lla\.density") as raised:
        use(result)
    assert isinstance(raised.value, TypeError)
    assert result


def test_a_landscape_knows_its_values_by_name():
    assert "loss" in LANDSCAPE
    assert "accuracy" not in LANDSCAPE


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (helpers.mlp_loss(), "Loss(apply, cross_entropy, per example)"),
        (
            helpers.mlp_loss(penalty=lambda p: 0.0, state={"n": 1}),
            "Loss(apply, cross_entropy, per example, 1 state arrays, penalty)",
        ),
        (
            PROBLEM,
            "Problem(Loss(apply, cross_entropy, per example); params: 58 numbers in 5 arrays; data: (23, 5) (23,))",
        ),
        (
            lla.Problem(lambda p, b: 0.0, np.ones(2), lla.stream([1, 2]), metrics={"f1": len}),
            "Problem(<lambda>; params: (2,); data: Stream(list of 2 batches); metrics: f1)",
        ),
        (lla.Problem(len, np.ones(2), extra_data=None, checkpoints=None), "Problem(len; params: (2,); data: None)"),
        (LANDSCAPE, "Landscape(3, loss 1 .. 1)"),
        (lla.Landscape((np.arange(2),), {"loss": np.array(["a", "b"])}, {}, None), "Landscape(2, loss of <U1)"),
        (lla.Directions({"w": np.ones((2, 3))}, {}), "Directions(2 x 3 parameters)"),
        (lla.Directions({"w": 3.0}, {"normalize": "filter", "kind": 3}), "Directions(? x 1 parameters, 3)"),
    ],
)
def test_reprs_are_short(item, text):
    assert repr(item) == text


def test_a_refined_landscape_says_what_is_interpolated():
    mask = np.array([True, False, True])
    about = {"errors": {"loss": 0.008}, "scale": "log", "level": 0.95}

    def note(recipe):
        return repr(lla.Landscape(LANDSCAPE.coords, LANDSCAPE.values, {}, recipe, mask)).partition("; ")[2]

    assert (
        note({"refinement": about}) == "2 of 3 points evaluated, the rest within 0.8 % of the logarithmic range (95 %))"
    )
    assert "for 90 % of them (95 %)" in note({"refinement": about | {"percentile": 90.4}})
    assert note({"refinement": about, "complete": False}) == "2 of 3 points evaluated so far)"
    assert note({}) == "2 of 3 points evaluated, the rest interpolated, with an unknown error)"
    with pytest.raises(ValueError, match=r"evaluated: .* must be a bool array of the shape"):
        lla.Landscape(LANDSCAPE.coords, LANDSCAPE.values, {}, {}, mask[:2])
