"""Slips with curves, barriers, and losses at the trees of a path."""

from __future__ import annotations

import jax
import numpy as np

import lla_jax as lla
from tests.slips.landscape_table import DATA, PARAMS, loss
from tests.slips.slip import table

SLIPS, slip = table()
OTHER = jax.tree.map(lambda x: np.asarray(x) + 1, PARAMS)


def line() -> lla.paths.Curve:
    return lla.paths.line(PARAMS, OTHER)


@slip("b: missing in the call line(a, b")
def a_list_of_ends() -> None:
    lla.paths.line([PARAMS, OTHER])  # type: ignore[call-arg]


@slip("a: is 'a.npz', not an array", "load the file first")
def files_as_ends() -> None:
    lla.paths.line("a.npz", "b.npz")


@slip("points", "[a, middle, b]")
def control_points_one_by_one() -> None:
    lla.paths.bezier(PARAMS, OTHER)


@slip("t: '0.5'", "a number from 0")
def a_text_as_t() -> None:
    line()("0.5")


@slip("t: ", "curve.trajectory(points)")
def several_t() -> None:
    line()([0.0, 0.5])


@slip("holds control points", "curve(t)")
def a_curve_as_a_sequence() -> None:
    list(line())  # type: ignore[call-overload]


@slip("holds control points", "curve(t)")
def a_point_of_a_curve_by_index() -> None:
    line()[0]  # type: ignore[index]


@slip("did you mean curve.lengths(1.0)")
def the_length_as_an_attribute() -> None:
    line().length  # type: ignore[attr-defined]  # noqa: B018


@slip("curve", "lla.paths.line(a, b)")
def the_loss_first() -> None:
    lla.paths.evaluate(loss, line(), DATA)  # type: ignore[arg-type]


@slip("points: 'many'", "a number of points, such as 61")
def a_word_as_points() -> None:
    lla.paths.evaluate(line(), loss, DATA, points="many")


@slip("points: 2.5", "a number of points, such as 61")
def a_fraction_as_points() -> None:
    lla.paths.evaluate(line(), loss, DATA, points=2.5)  # type: ignore[arg-type]


@slip("points: [1, 0]", "increasing t from 0 to 1")
def points_that_fall() -> None:
    lla.paths.evaluate(line(), loss, DATA, points=[1, 0])


@slip("b: equals a in every parameter", "another solution")
def a_network_with_itself() -> None:
    lla.paths.barrier(loss, PARAMS, PARAMS, DATA)


@slip("a: ", "is no tree of parameters")
def a_barrier_of_a_curve() -> None:
    lla.paths.barrier(loss, line(), OTHER, DATA)


@slip("curve", "None for the straight line")
def control_points_as_the_curve() -> None:
    lla.paths.barrier(loss, PARAMS, OTHER, DATA, curve=line().points)


@slip("its height is barrier.value")
def a_barrier_as_a_number() -> None:
    float(lla.paths.barrier(loss, PARAMS, OTHER, DATA))  # type: ignore[arg-type]


@slip("its height is barrier.value")
def a_barrier_as_a_sequence() -> None:
    list(lla.paths.barrier(loss, PARAMS, OTHER, DATA))  # type: ignore[call-overload]


@slip("trees: ", "[early, late]")
def one_tree_for_a_list() -> None:
    lla.paths.losses_at(loss, PARAMS, DATA)


@slip("states: 3 given", "the state of each tree")
def a_number_as_states() -> None:
    lla.paths.losses_at(loss, [PARAMS, OTHER], DATA, states=3)  # type: ignore[arg-type]
