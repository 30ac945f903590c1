"""Bases, lengths and spacing of curves, and the loss along them, which is a landscape of one axis."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.paths.curves import Curve, bernstein
from tests.helpers import (
    FIXED,
    accuracy,
    apply,
    compilations,
    cross_entropy,
    dataset,
    flat,
    mlp_loss,
    params,
    reference_losses,
)

DATA = dataset()
A, MIDDLE, B = (params(seed) for seed in range(3))
CURVES = {
    "line": lla.paths.line(A, B),
    "bezier": lla.paths.bezier([A, MIDDLE, B]),
    "bezier of degree 4": lla.paths.bezier([A, MIDDLE, params(3), params(4), B]),
    "polygon": lla.paths.polygon([A, MIDDLE, B], [0, 0.3, 1]),
}
T = np.array([0.0, 0.13, 0.3, 0.5, 0.77, 1.0])


def at(curve, t):
    return np.stack([flat(curve(x)) for x in t])


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_the_ends_are_reached_to_the_bit_and_weights_sum_to_one(curve):
    for t, end in ((0, A), (1, B)):
        for leaf, own in zip(jax.tree.leaves(curve(t)), jax.tree.leaves(end), strict=True):
            assert leaf.tobytes() == own.tobytes()
            assert leaf.dtype == own.dtype
    weights = curve.weights(T)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-14)
    np.testing.assert_array_equal(weights[[0, -1]], np.eye(curve.num)[[0, -1]])


def test_ends_keep_the_sign_of_zero():
    a, b = ({"w": np.array([x, 1], np.float32)} for x in (-0.0, 0.0))
    assert np.signbit(lla.paths.line(a, b)(0)["w"][0])
    assert not np.signbit(lla.paths.line(a, b)(1)["w"][0])


def test_half_precision_becomes_float32_between_the_ends():
    a, b = params(0, "float16"), params(1, "float16")
    assert lla.paths.line(a, b)(0.5)["gain"].dtype == np.float32
    np.testing.assert_array_equal(flat(lla.paths.line(a, b)(1)), flat(b))


def test_a_bezier_curve_whose_middle_point_is_half_way_is_the_line():
    half = jax.tree.map(lambda x, y: (x.astype("f8") + y) / 2, *CURVES["line"].ends)
    wide = lla.paths.bezier(
        [jax.tree.map(lambda x: x.astype("f8"), A), half, jax.tree.map(lambda x: x.astype("f8"), B)]
    )
    np.testing.assert_allclose(at(wide, T), at(CURVES["line"], T), atol=1e-7)
    np.testing.assert_allclose(wide.lengths(T), CURVES["line"].lengths(T), rtol=1e-7, atol=1e-7)


def test_raising_the_degree_gives_the_same_curve():
    points, degree = [jax.tree.map(lambda x: x.astype("f8"), p) for p in (A, MIDDLE, B)], 2
    parts = [i / (degree + 1) for i in range(degree + 2)]
    raised = [
        jax.tree.map(lambda x, y, s=s: s * x + (1 - s) * y, points[max(i - 1, 0)], points[min(i, degree)])
        for i, s in enumerate(parts)
    ]
    one, two = lla.paths.bezier(points), lla.paths.bezier(raised)
    np.testing.assert_allclose(at(two, T), at(one, T), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(two.lengths(T), one.lengths(T), rtol=1e-10)


def test_a_polygon_passes_its_points_at_the_knots():
    curve = CURVES["polygon"]
    np.testing.assert_array_equal(at(curve, [0, 0.3, 1]), [flat(p) for p in (A, MIDDLE, B)])
    np.testing.assert_allclose(flat(curve(0.15)), (flat(A) + flat(MIDDLE)) / 2, rtol=1e-6, atol=1e-7)
    sides = [np.linalg.norm(flat(MIDDLE) - flat(A)), np.linalg.norm(flat(B) - flat(MIDDLE))]
    np.testing.assert_allclose(curve.lengths([0.3, 1]), np.cumsum(sides), rtol=1e-12)


def test_lengths_are_distances_on_a_line_and_those_of_a_fine_chain_on_a_curve():
    assert CURVES["line"].lengths(1.0) == pytest.approx(np.linalg.norm(flat(B) - flat(A)), rel=1e-12)
    curve = CURVES["bezier of degree 4"]
    fine = np.linspace(0, 1, 20001)
    points = bernstein(4, fine) @ np.stack([flat(p) for p in (A, MIDDLE, params(3), params(4), B)])
    chain = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    np.testing.assert_allclose(curve.lengths(fine[::500]), chain[::500], rtol=1e-7)


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_points_are_evenly_spaced_along_the_curve(curve):
    t = curve.spaced(9)
    np.testing.assert_allclose(curve.lengths(t), np.linspace(0, curve.lengths(1.0), 9), rtol=1e-5)
    np.testing.assert_array_equal(curve.spaced(5, "t"), np.linspace(0, 1, 5))
    path = curve.trajectory(9)
    assert len(path) == 9
    np.testing.assert_array_equal(flat(path[4]), flat(curve(t[4])))


def test_a_curve_that_turns_back_has_the_length_of_both_ways():
    points = [{"w": np.array([x])} for x in (0.0, 2.0, 0.0)]
    assert lla.paths.polygon(points).lengths(1.0) == 4
    assert lla.paths.bezier(points).lengths(1.0) == pytest.approx(2)  # it turns at 1
    still = lla.paths.bezier([points[0]] * 3)
    assert still.lengths(1.0) == 0
    assert list(still.spaced(3)) == [0, 0.5, 1]


# --- the loss along a curve


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_losses_and_errors_along_a_curve_are_those_of_its_points(curve):
    plane = lla.paths.evaluate(
        curve,
        mlp_loss(),
        DATA,
        points=T,
        metrics={"acc": accuracy},
        extra_data={"test": dataset(9, 3)},
        execution=FIXED,
    )
    each = np.stack([reference_losses(curve(t), DATA) for t in T])
    np.testing.assert_allclose(plane.values["loss"], each.mean(1), rtol=2e-6)
    np.testing.assert_allclose(plane.stderr["loss"], each.std(1, ddof=1) / np.sqrt(each.shape[1]), rtol=5e-6)
    np.testing.assert_array_equal(plane.coords[0], T)
    assert {"loss", "acc", "test_loss", "test_acc"} == set(plane.values)


def test_statistics_are_reestimated_where_there_are_some():
    asked = {name: lla.paths.evaluate(CURVES["line"], mlp_loss(), DATA, points=T, batch_stats=name, execution=FIXED)
             for name in ("reestimate", "frozen")}  # fmt: skip
    np.testing.assert_array_equal(*(each.values["loss"] for each in asked.values()))
    assert asked["reestimate"].recipe["batch_stats"] == "frozen"


def test_curves_of_one_number_of_points_share_one_program():
    lla.paths.evaluate(CURVES["bezier"], mlp_loss(), DATA, points=5, execution=FIXED)
    other = lla.paths.polygon([B, MIDDLE, A], [0, 0.6, 1])
    with compilations() as seen:
        lla.paths.evaluate(other, mlp_loss(), DATA, points=7, by="length", execution=FIXED)
    assert seen.count == 0


def test_the_recipe_tells_the_curve_and_a_store_refuses_another(tmp_path):
    store = tmp_path / "run"
    plane = lla.paths.evaluate(CURVES["polygon"], mlp_loss(), DATA, points=5, execution=FIXED, store=store)
    described = plane.recipe["directions"]
    assert (described["kind"], described["curve"], described["knots"]) == ("curve", "polygon", [0, 0.3, 1])
    assert len(set(described["points"])) == 3
    again = lla.paths.evaluate(CURVES["polygon"], mlp_loss(), DATA, points=5, execution=FIXED, store=store)
    np.testing.assert_array_equal(again.values["loss"], plane.values["loss"])
    for other in (lla.paths.polygon([A, MIDDLE, B]), CURVES["bezier"], lla.paths.polygon([A, B, MIDDLE], [0, 0.3, 1])):
        with pytest.raises(ValueError, match=r"another|differ"):
            lla.paths.evaluate(other, mlp_loss(), DATA, points=5, execution=FIXED, store=store)


def test_an_interrupted_evaluation_is_continued():
    whole = lla.paths.evaluate(CURVES["bezier"], mlp_loss(), DATA, points=9, execution=FIXED)
    parts = []

    def stop(done, total):
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lla.paths.evaluate(
            CURVES["bezier"], mlp_loss(), DATA, points=9, execution=FIXED, progress=stop, on_partial=parts.append
        )
    assert parts[0].recipe["points_done"] == 4
    found = lla.paths.evaluate(CURVES["bezier"], mlp_loss(), DATA, points=9, execution=FIXED, resume=parts[0])
    np.testing.assert_array_equal(found.values["loss"], whole.values["loss"])


def shifted(p, state, batch, train):
    outputs, _ = apply(p, None, batch, train)
    return outputs + state["shift"], state


def test_frozen_states_are_interpolated_and_must_be_given():
    one, two = ({"shift": np.float32([x, 0, 0])} for x in (1, -3))
    loss = lla.Loss(shifted, cross_entropy, state=two)  # not that of the end a, whose own counts
    curve = lla.paths.bezier([A, MIDDLE, B], one, two)
    plane = lla.paths.evaluate(curve, loss, DATA, points=T, batch_stats="frozen", execution=FIXED)
    for t, found in zip(T, plane.values["loss"], strict=True):
        outputs = shifted(curve(t), {"shift": np.float32([1 - 4 * t, 0, 0])}, DATA, False)[0]
        assert found == pytest.approx(float(cross_entropy(outputs, DATA).mean()), rel=2e-6)
    np.testing.assert_allclose(curve.state(0.25)["shift"], [0, 0, 0])
    np.testing.assert_allclose(curve.trajectory(3, "t").state(1)["shift"], [-1, 0, 0])
    with pytest.raises(ValueError, match="curve: holds no states of its ends"):
        lla.paths.evaluate(CURVES["bezier"], loss, DATA, points=3, batch_stats="frozen")


def test_a_line_of_plain_function_and_of_a_stream():
    stream = lla.stream([tuple(x[lo : lo + 9] for x in DATA) for lo in range(0, 23, 9)])
    one, two = (
        lla.paths.evaluate(CURVES["line"], mlp_loss(), data, points=5, execution=FIXED) for data in (DATA, stream)
    )
    np.testing.assert_allclose(two.values["loss"], one.values["loss"], rtol=2e-6)
    np.testing.assert_allclose(two.stderr["loss"], one.stderr["loss"], rtol=2e-6)
    ends = [{"w": np.float32(x)} for x in (-1, 1)]
    plane = lla.paths.evaluate(lla.paths.line(*ends), lambda p: p["w"] ** 2, None, points=5, execution=FIXED)
    np.testing.assert_allclose(plane.values["loss"], [1, 0.25, 0, 0.25, 1])


def test_the_second_state_may_be_all_variables_or_one_collection():
    one, two = ({"batch_stats": {"mean": np.float32([x])}} for x in (1, 2))
    for given in (two, two["batch_stats"], two | {"params": B}):
        curve = lla.paths.line(A, B, one, given)
        np.testing.assert_array_equal(curve.states["batch_stats"]["mean"], [[1], [2]])


NAN = jax.tree.map(np.copy, B) | {"gain": np.float32(np.inf)}
REFUSED = {
    "a curve of one point": (lambda: lla.paths.bezier([A]), "points: .*two or more"),
    "a tree": (lambda: lla.paths.polygon(A), "points: .*two or more"),
    "another structure": (lambda: lla.paths.line(A, {"w": np.zeros(2)}), "b: has another structure than a"),
    "NaN": (lambda: lla.paths.bezier([A, MIDDLE, NAN]), r"points\[2\]\['gain'\] has 1 NaN"),
    "another type": (lambda: lla.paths.line(A, params(1, "float16")), "b: .*dtype float16, and in a it is float32"),
    "one state": (lambda: lla.paths.line(A, B, {"m": np.ones(2)}), "state_b: none given, and state_a is"),
    "a state with NaN": (
        lambda: lla.paths.line(A, B, {"m": np.ones(2)}, {"m": np.array([1, np.nan])}),
        r"state_b: \['m'\] has NaN",
    ),
    "knots that fall": (lambda: lla.paths.polygon([A, MIDDLE, B], [0, 1.2, 1]), "knots: .*increasing"),
    "too few knots": (lambda: lla.paths.polygon([A, MIDDLE, B], [0, 1]), "knots: .*3 increasing"),
    "knots of a Bezier curve": (lambda: Curve("bezier", CURVES["line"].points, [0, 1]), "knots: .*None for a bezier"),
    "another kind": (lambda: Curve("spline", CURVES["line"].points), "kind: 'spline'"),
    "outside": (lambda: CURVES["line"](1.1), "t: 1.1 given; it must be a number from 0"),
    "no number": (lambda: CURVES["line"]("half"), "t: 'half' given"),
    "several": (lambda: CURVES["line"]([0.1, 0.2]), "t: .*one number"),
    "one point": (lambda: CURVES["line"].spaced(1), "points: 1 given"),
    "spacing": (lambda: CURVES["line"].spaced(3, "loss"), "by: 'loss'"),
    "as an array": (lambda: np.asarray(CURVES["line"]), "holds control points"),
    "evaluated beyond": (
        lambda: lla.paths.evaluate(CURVES["line"], mlp_loss(), DATA, points=[0, 1.5]),
        "points: .*1.5",
    ),
    "no curve": (lambda: lla.paths.evaluate(A, mlp_loss(), DATA), "curve: .*lla.paths.line"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    make, text = REFUSED[case]
    with pytest.raises(ValueError, match=text):
        make()
