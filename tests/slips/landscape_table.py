"""Slips with grids, rules, stores and everything else that a landscape takes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lla_jax as lla
from tests.slips.slip import table

SLIPS, slip = table()

KEY = jax.random.key(0)
PARAMS = {"w": np.ones(2, np.float32)}
DATA = np.arange(6, dtype=np.float32).reshape(3, 2)
AXES = lla.directions.given({"w": np.array([1, 0], np.float32)}, {"w": np.array([0, 1], np.float32)})
GRID = lla.grid(points=2)
PLANE = lla.Landscape(GRID, {"loss": np.zeros((2, 2))}, {}, {})


def loss(params: Any, batch: Any) -> Any:
    return ((batch @ params["w"]) ** 2).mean()


def evaluate(grid: Any = GRID, axes: Any = AXES, **options: Any) -> Any:
    return lla.evaluate(loss, PARAMS, DATA, axes, grid, **options)


def file() -> Path:
    path = Path(tempfile.mkdtemp()) / "plane.npz"
    path.write_text("results")
    return path


# --- grids


@slip("extent", "above 0", "ranges=")
def a_negative_extent() -> None:
    lla.grid(-1)


@slip("grid", "at least one point")
def a_grid_of_no_points() -> None:
    lla.grid(points=0)


@slip("extent", "above 0")
def an_extent_of_zero() -> None:
    lla.grid(0.0)


@slip("extent=[1, 2]", "a number")
def two_extents() -> None:
    lla.grid([1, 2])


@slip("extent=True")
def a_flag_as_extent() -> None:
    lla.grid(True)


@slip("grid", "finite lo < hi")
def an_extent_that_overflows() -> None:
    lla.grid(1e308)


@slip("points=41.0", "an int")
def a_float_for_points() -> None:
    lla.grid(points=41.0)


@slip("points", "memory")
def more_points_than_memory() -> None:
    lla.grid(points=10**30)


@slip("points='41'")
def a_word_for_points() -> None:
    lla.grid(points="41")


@slip("dims=2.5")
def a_fraction_of_dims() -> None:
    lla.grid(dims=2.5)


@slip("at least one axis")
def no_dims() -> None:
    lla.grid(dims=0)


@slip("from 1.0 to -1.0", "lo < hi")
def a_reversed_range() -> None:
    lla.grid(ranges=[(1, -1)])


@slip("ranges=(-1, 1)", "one (lo, hi) per axis")
def a_flat_range() -> None:
    lla.grid(ranges=(-1, 1))


@slip("ranges=[(-1, 1, 5)]", "one (lo, hi) per axis")
def a_range_with_its_points() -> None:
    lla.grid(ranges=[(-1, 1, 5)])


@slip("ranges=", "one (lo, hi) per axis")
def ranges_by_name() -> None:
    lla.grid(ranges={"a": (-1, 1)})


@slip("grid", "lla.grid()")
def a_number_as_grid() -> None:
    evaluate(41)


@slip("grid", "np.meshgrid")
def a_meshgrid_as_grid() -> None:
    evaluate(np.meshgrid([-1.0, 1.0], [-1.0, 1.0]))


@slip("grid", "a list of one array")
def a_flat_list_as_grid() -> None:
    evaluate([-1, 0, 1])


@slip("grid", "coordinates per axis")
def a_dict_as_grid() -> None:
    evaluate({"a": [0, 1], "b": [0, 1]})


@slip("grid", "finite coordinates")
def a_grid_with_nan() -> None:
    evaluate([[0, np.nan], [0, 1]])


@slip("grid", "coordinates per axis")
def a_complex_grid() -> None:
    evaluate([[0, 1j], [0, 1]])


@slip("grid", "lla.grid(points=(n1, n2))")
def numbers_of_points_as_grid() -> None:
    evaluate((41, 41))


@slip("grid", "a grid already")
def coordinates_for_extent() -> None:
    lla.grid(np.linspace(-1, 1, 5))


@slip("grid", "float32")
def a_grid_beyond_float32() -> None:
    evaluate([[0, 1e39], [0, 1]])


@slip("grid", "1e+12 points", "years", "TiB")
def a_trillion_points() -> None:
    evaluate((np.linspace(-1, 1, 10**6),) * 2)


@slip("grid", "3 axes given for 2 directions")
def more_axes_than_directions() -> None:
    evaluate(lla.grid(points=2, dims=3))


# --- directions of a landscape


@slip("directions", "lla.directions.given(*trees)")
def a_tree_as_directions() -> None:
    evaluate(axes=PARAMS)


@slip("directions[0]", "lla.directions.given(*trees)")
def trees_as_directions() -> None:
    evaluate(axes=[PARAMS, PARAMS])


@slip("directions", "lla.directions.random")
def a_word_as_directions() -> None:
    evaluate(axes="random")


@slip("directions", "lla.directions.join(*directions)")
def single_directions_as_axes() -> None:
    evaluate(axes=[AXES[0], AXES[1]])


@slip("grid", "coordinates per axis")
def directions_and_grid_swapped() -> None:
    evaluate(AXES, GRID)


@slip("directions", "lla.directions.given(tree)")
def directions_without_their_leading_axis() -> None:
    evaluate(axes=lla.Directions(PARAMS, {}))


# --- rules


@slip("rule", "'add', 'adam'")
def an_unknown_rule() -> None:
    evaluate(rule="sgd")


@slip("rule", "returned None", "lla.landscape.add")
def a_rule_that_returns_nothing() -> None:
    evaluate(rule=lambda params, directions, coord: None)


@slip("rule", "rule(params, directions, coord) -> params")
def a_rule_of_two_arguments() -> None:
    evaluate(rule=lambda params, directions: params)


@slip("rule", "another structure")
def a_rule_that_returns_a_leaf() -> None:
    evaluate(rule=lambda params, directions, coord: params["w"])


@slip("rule", "(2, 2) for 'w'", "(2,)")
def a_rule_that_returns_another_shape() -> None:
    evaluate(rule=lambda params, directions, coord: {"w": params["w"] + directions["w"]})


@slip("rule", "int32 for 'w'", "real floating")
def a_rule_that_returns_integers() -> None:
    evaluate(rule=lambda params, directions, coord: {"w": params["w"].astype(int)})


@slip("rule", "as they are", "lla.landscape.add")
def a_rule_that_moves_nothing() -> None:
    evaluate(rule=lambda params, directions, coord: params)


@slip("rule", "jax.numpy")
def a_rule_in_numpy() -> None:
    evaluate(rule=lambda params, directions, coord: {"w": np.asarray(params["w"]) + float(coord[0])})


@slip("rule", "(params, directions, coord) -> params")
def an_object_as_rule() -> None:
    evaluate(rule=3)


# --- what is computed, and how


@slip("batch_size", "at least 1")
def batches_of_nothing() -> None:
    evaluate(batch_size=0)


@slip("batch_size", "at least 1")
def a_gradient_over_batches_of_nothing() -> None:
    lla.directions.gradient(loss, PARAMS, DATA, batch_size=0)


@slip("batch_stats", "'frozen', 'batch', 'reestimate'")
def an_unknown_policy() -> None:
    evaluate(batch_stats="foo")


@slip("execution", "lla.Execution")
def a_dict_as_execution() -> None:
    evaluate(execution={"chunk": 4})


@slip("execution.chunk", "at least 1")
def a_chunk_of_nothing() -> None:
    evaluate(execution=lla.Execution(chunk=0))


@slip("execution.loop", "'vmap', 'map'")
def an_unknown_loop() -> None:
    evaluate(execution=lla.Execution(loop="scan"))


@slip("execution.devices", "local devices")
def more_devices_than_there_are() -> None:
    evaluate(execution=lla.Execution(devices=99))


@slip("execution.devices", "jax.devices()")
def devices_by_number() -> None:
    evaluate(execution=lla.Execution(devices=[0]))


@slip("execution.linearize", "'auto'")
def an_array_as_flag() -> None:
    evaluate(execution=lla.Execution(linearize=np.array([True, False])))


@slip("extra_data", "a dict of data sets")
def a_data_set_as_extra_data() -> None:
    evaluate(extra_data=(DATA, DATA))


@slip("extra_data", "a dict of data sets")
def a_list_as_extra_data() -> None:
    evaluate(extra_data=[DATA])


@slip("key", "jax.random.key(0)")
def a_seed_as_key() -> None:
    evaluate(key=0)


@slip("point_metrics", "called as f(params, key)")
def a_point_metric_of_one_argument() -> None:
    evaluate(point_metrics={"norm": lambda params: 1.0})


@slip("point_metrics", "NoneType", "scalar")
def a_point_metric_that_returns_nothing() -> None:
    evaluate(point_metrics={"norm": lambda params, key: None})


@slip("point_metrics", "(2,)", "scalar")
def a_point_metric_that_returns_a_vector() -> None:
    evaluate(point_metrics={"norm": lambda params, key: params["w"]})


@slip("on_partial", "a function")
def a_list_as_on_partial() -> None:
    evaluate(on_partial=[])


@slip("on_partial", "an unfinished result")
def an_on_partial_of_no_argument() -> None:
    evaluate(on_partial=lambda: None)


@slip("on_partial", "an unfinished result")
def a_list_as_on_partial_of_convexity() -> None:
    lla.convexity(loss, PARAMS, DATA, AXES, GRID, KEY, on_partial=[])


@slip("extra_data['test']", "lla.stream(loader)")
def a_function_among_extra_data() -> None:
    evaluate(extra_data={"test": loss})


@slip("extra_data['test']", "shape")
def extra_data_of_another_width() -> None:
    evaluate(extra_data={"test": np.ones((3, 5), np.float32)})


# --- stores


@slip("store", "runs/exp1")
def a_number_as_store() -> None:
    evaluate(store=3)


@slip("store", "runs/exp1")
def an_empty_store() -> None:
    evaluate(store="")


@slip("store", "at most 255")
def a_store_of_an_endless_name() -> None:
    evaluate(store="x" * 5000)


@slip("store", "NUL")
def a_store_with_a_null_byte() -> None:
    evaluate(store="a\0b")


@slip("store", "not a folder", "another one")
def a_file_as_store() -> None:
    evaluate(store=file())


@slip("store", "runs/exp1")
def a_landscape_to_be_merged() -> None:
    lla.runs.merge(PLANE)


@slip("store", "does not exist", "store=")
def a_folder_without_a_store() -> None:
    lla.runs.merge(file().parent / "none")


@slip("store", "runs/exp1")
def the_status_of_a_number() -> None:
    lla.runs.status(3)


@slip("shard", "(3, 16)")
def a_shard_as_text() -> None:
    evaluate(store="none", shard="3/16")


@slip("shard", "(3, 16)")
def a_shard_of_one_number() -> None:
    evaluate(store="none", shard=(0,))


@slip("shard", "1 <= i <= n")
def a_shard_beyond_the_last() -> None:
    evaluate(store="none", shard=(17, 16))


@slip("shard", "store=folder")
def a_shard_without_a_store() -> None:
    evaluate(shard=(1, 2))
