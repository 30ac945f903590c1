"""Slips with sweeps, modes, layers and reports."""

from __future__ import annotations

from typing import Any

import numpy as np

import lla_jax as lla
from tests.slips.landscape_table import AXES, DATA, GRID, KEY, PARAMS, evaluate, loss
from tests.slips.slip import table

SLIPS, slip = table()


def sweep(checkpoints: Any, **options: Any) -> Any:
    return lla.sweep(loss, checkpoints, DATA, grid=GRID, **options)


@slip("store", "runs/exp1")
def a_number_as_store_of_a_sweep() -> None:
    sweep([PARAMS], store=3)


@slip("checkpoints", "[params]")
def a_tree_as_checkpoints() -> None:
    sweep(PARAMS)


@slip("checkpoints", "[params]")
def no_checkpoints() -> None:
    sweep([])


@slip("seeds", "range(16)")
def a_number_of_seeds() -> None:
    sweep([PARAMS], seeds=16)


@slip("seeds", "range(16)")
def a_seed_beyond_64_bits() -> None:
    sweep([PARAMS], seeds=[2**70])


@slip("axes", "axes(key, params) -> lla.Directions")
def axes_of_one_argument() -> None:
    sweep([PARAMS], axes=lambda key: AXES)


@slip("axes", "lla.directions.random")
def axes_that_give_nothing() -> None:
    sweep([PARAMS], axes=lambda key, params: None)


@slip("grid", "2 axes given for 3 directions")
def axes_of_another_number() -> None:
    sweep([PARAMS], axes=lambda key, params: lla.Directions({"w": np.ones((3, 2), np.float32)}, {}))


@slip("axes", "(key, params) -> lla.Directions")
def a_word_as_axes() -> None:
    sweep([PARAMS], axes="random")


@slip("checkpoints[1]", "load the file first")
def a_path_among_checkpoints() -> None:
    sweep([PARAMS, "late.msgpack"])


@slip("partial", "True or False")
def a_word_for_partial() -> None:
    lla.runs.merge("runs", partial="yes")


@slip("states", "1 checkpoints")
def states_of_other_checkpoints() -> None:
    sweep([PARAMS], states=[{}, {}])


@slip("grid", "two")
def modes_on_a_line() -> None:
    lla.all_modes(loss, PARAMS, DATA, KEY, grid=lla.grid(dims=1))


@slip("pairs", "Eigenpairs")
def modes_of_directions() -> None:
    lla.all_modes(loss, PARAMS, DATA, KEY, grid=GRID, pairs=AXES)


@slip("axes", "lla.Directions")
def convexity_along_a_tree() -> None:
    lla.convexity(loss, PARAMS, DATA, PARAMS, GRID, KEY)


@slip("groups", "called as groups(path)")
def groups_of_two_arguments() -> None:
    lla.per_layer(loss, PARAMS, DATA, KEY, groups=lambda path, leaf: path)


@slip("rows", "lla.per_layer")
def a_table_of_params() -> None:
    lla.layers.table(PARAMS)


@slip("plane", "lla.evaluate")
def a_report_of_an_array() -> None:
    lla.plane_report(np.zeros((2, 2)), AXES, None)


@slip("coords", "array of numbers")
def words_as_coords() -> None:
    lla.landscape.losses(loss, PARAMS, AXES.tree, "abc", DATA)


@slip("coords", "meshgrid")
def a_grid_for_landscape_losses() -> None:
    lla.landscape.losses(loss, PARAMS, AXES.tree, GRID, DATA)


@slip("rule", "'add', 'adam'")
def an_unknown_rule_for_landscape_losses() -> None:
    lla.landscape.losses(loss, PARAMS, AXES.tree, np.zeros((1, 2)), DATA, rule="sgd")


@slip("loss", "the directions and the data")
def directions_of_nan() -> None:
    evaluate(axes=lla.Directions({"w": np.full((2, 2), np.nan, np.float32)}, {}))
