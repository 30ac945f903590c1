"""Slips with curves between solutions: made, evaluated and trained; barriers and trees of minima."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lla_jax as lla
from lla_jax import paths
from tests.slips.slip import table
from tests.slips.small import PARAMS
from tests.slips.walks import CENTRED, DATA, KEY, LINE, LOSS, NAN, OTHER, PATH, STATE, B, rows

SLIPS, slip = table()
row = rows(slip)

# --- curves
row("a_line_to_another_network", lambda: paths.line(PARAMS, OTHER), "b['w'] has shape (4, 2)", "as in a")
row("a_line_to_nan", lambda: paths.line(PARAMS, NAN), "b['w'] has 6 NaN")
row("a_line_of_two_types", lambda: paths.line(PARAMS, {"w": B["w"].astype(np.float16)}), "float16", "convert one")
row("a_line_with_one_state", lambda: paths.line(PARAMS, B, state_b=STATE), "state_a: none given", "give both")
row("a_bezier_of_one_point", lambda: paths.bezier([PARAMS]), "points: ", "[a, middle, b]")
row("a_bezier_of_separate_points", lambda: paths.bezier(PARAMS, B), "points: dict given", "[a, middle, b]")
row("a_bezier_of_two_networks", lambda: paths.bezier([PARAMS, OTHER, B]), "points[1]['w'] has shape (4, 2)")
row(
    "knots_that_end_early",
    lambda: paths.polygon([PARAMS, B], [0, 0.5]),
    "knots: [0, 0.5] given",
    "np.linspace(0, 1, 2)",
)
row("a_curve_beyond_its_end", lambda: LINE(2), "t: 2 given", "from 0 (the end a) to 1")
row("a_curve_at_several_t", lambda: LINE([0, 1]), "t: ", "curve.trajectory(points)")
row("a_curve_as_array", lambda: np.asarray(LINE), "curve.points")
row("a_barrier_of_a_curve", lambda: LINE.barrier, "lla.paths.barrier(loss, a, b, data, curve=curve)")
row("an_unknown_kind_of_curve", lambda: paths.Curve("spline", LINE.points), "kind: 'spline' given", "'bezier'")

# --- the loss along a curve


def evaluate(curve: Any = LINE, loss: Any = LOSS, data: Any = DATA, **options: Any) -> Any:
    return paths.evaluate(curve, loss, data, **options)


row("curve_and_loss_swapped", lambda: evaluate(LOSS, LINE), "curve: Loss", "lla.paths.line(a, b)")
row("ends_in_place_of_a_curve", lambda: evaluate([PARAMS, B]), "curve: list given", "lla.paths.line(a, b)")
row("one_point_of_a_curve", lambda: evaluate(points=1), "points: 1 given", "at least 2")
row("points_beyond_a_curve", lambda: evaluate(points=[0, 2]), "points: [0, 2] given", "t from 0 to 1")
row("points_as_text", lambda: evaluate(points="all"), "points: 'all' given", "such as 61")
row("points_in_another_unit", lambda: evaluate(by="arc"), "by: 'arc' given", "'length'")
row("a_line_without_states", lambda: evaluate(loss=CENTRED, batch_stats="frozen"), "holds no states of its ends")

# --- barriers


def barrier(a: Any = PARAMS, b: Any = B, loss: Any = LOSS, data: Any = DATA, **options: Any) -> Any:
    return paths.barrier(loss, a, b, data, **options)


row("ends_before_the_loss", lambda: paths.barrier(PARAMS, B, LOSS, DATA), "loss: dict given", "lla.Loss")
row("a_barrier_between_equals", lambda: barrier(PARAMS, PARAMS), "b: equals a")
row("a_barrier_between_two_networks", lambda: barrier(b=OTHER), "b['w'] has shape (4, 2)", "as in a")
row("a_barrier_to_nan", lambda: barrier(b=NAN), "b['w'] has 6 NaN")
row("a_second_state_that_is_missing", lambda: barrier(loss=CENTRED), "state_b: none given", "b was trained with")
row("a_second_state_of_nan", lambda: barrier(loss=CENTRED, state_b={"mean": np.full(2, np.nan)}), "state_b", "finite")
row("a_second_state_of_another_shape", lambda: barrier(loss=CENTRED, state_b={"mean": np.ones(3)}), "state_b['mean']")
row("a_state_for_a_loss_without", lambda: barrier(state_b=STATE), "state_b: given", "no state")
row("a_curve_by_its_kind", lambda: barrier(curve="bezier"), "curve: 'bezier' given", "lla.paths.connect")
row("a_curve_between_others", lambda: barrier(B, PARAMS, curve=LINE), "curve: its end a has other parameters than a")
row("a_barrier_of_no_points", lambda: barrier(points=0), "points: 0 given")
row(
    "a_loss_that_is_nowhere_finite",
    lambda: barrier(loss=lambda p, x: jnp.nan * p["w"].sum()),
    "loss: not finite at any",
)

# --- training


def connect(a: Any = PARAMS, b: Any = B, loss: Any = LOSS, data: Any = DATA, **options: Any) -> Any:
    return paths.connect(loss, a, b, data, **{"key": KEY, **options})


row("a_curve_without_a_key", lambda: paths.connect(LOSS, PARAMS, B, DATA), "key: missing")
row("a_seed_as_key", lambda: connect(key=0), "key: 0 given", "jax.random.key(0)")
row("a_kind_that_is_not_trained", lambda: connect(kind="line"), "kind: 'line' given", "'bezier'")
row("no_steps", lambda: connect(steps=0), "steps: 0 given")
row("steps_as_a_fraction", lambda: connect(steps=1e3), "steps: 1000.0 given")
row("a_rate_as_optimizer", lambda: connect(optimizer=0.1), "optimizer: 0.1 given", "optax.adam(0.1)")
row("an_optimizer_by_name", lambda: connect(optimizer="sgd"), "optimizer: 'sgd' given", "optax.sgd(")
row("a_state_of_an_optimizer", lambda: connect(optimizer=optax.adam(1).init(PARAMS)), "not its state")
row("two_control_points", lambda: connect(points=2), "points: 2 given", "points=3")
row("a_negative_displacement", lambda: connect(displacement=-1), "displacement: -1 given")
row("an_empty_batch", lambda: connect(batch_size=0), "batch_size: 0 given")
row("a_curve_between_equals", lambda: connect(PARAMS, PARAMS), "b: equals a")
row("a_curve_to_another_network", lambda: connect(b=OTHER), "b['w'] has shape (4, 2)")
row("a_curve_to_nan", lambda: connect(b=NAN), "b['w'] has 6 NaN")
row("a_curve_without_the_second_state", lambda: connect(loss=CENTRED), "state_b: none given", "b was trained with")
row("the_loss_after_the_ends", lambda: paths.connect(PARAMS, B, LOSS, DATA, key=KEY), "loss: dict given")
row("an_option_of_a_band", lambda: connect(cycles=3), "cycles: 3 given", 'kind="band"')
row("an_option_that_no_band_has", lambda: connect(kind="band", cycle=3), "cycle", "did you mean cycles")
row("a_band_of_no_pivots", lambda: connect(kind="band", points=0), "points: 0 given", "pivots")
row("devices_of_a_training", lambda: connect(execution=lla.Execution(devices=1)), "execution.devices: 1 given")
row("a_training_within_jit", lambda: jax.jit(lambda p: connect(p))(PARAMS), "a['w'] is traced", "outside of jax.jit")
row("a_store_that_is_a_file", lambda: connect(store="text"), "store: text cannot be written", in_folder=True)


# --- trees of minima, and losses of any parameters


def tree(minima: Any, loss: Any = LOSS, **options: Any) -> Any:
    return paths.spanning_tree(loss, minima, DATA, KEY, **options)


row("a_tree_of_one_minimum", lambda: tree([PARAMS]), "minima: 1 given", "[a, b, c]")
row("a_tree_with_a_minimum_twice", lambda: tree([PARAMS, B, PARAMS]), "minima[2]: equals minima[0]")
row("a_tree_of_a_tree", lambda: tree(PARAMS), "minima: ", "a list")
row("a_tree_with_nan", lambda: tree([PARAMS, NAN]), "minima[1]['w'] has 6 NaN")
row("a_tree_of_two_networks", lambda: tree([PARAMS, OTHER]), "minima[1]['w'] has shape (4, 2)")
row("a_tree_without_states", lambda: tree([PARAMS, B], CENTRED), "states: none given", "each minimum")
row("a_tree_with_too_few_names", lambda: tree([PARAMS, B], names=["a"]), "names: ['a'] given")
row("losses_at_one_tree", lambda: paths.losses_at(LOSS, PARAMS, DATA), "trees: dict given", "[early, late]")
row("losses_at_nothing", lambda: paths.losses_at(LOSS, [], DATA), "trees: no trees given")
row("losses_without_states", lambda: paths.losses_at(CENTRED, PATH, DATA), "states: none given", "states=[...]")
row("loss_and_trees_swapped", lambda: paths.losses_at(PATH, LOSS, DATA), "trees: Loss", "[early, late]")
row("a_film_of_paths", lambda: paths.film, "did you mean lla.plotting.film?")
