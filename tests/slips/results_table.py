"""Slips with landscapes and their tables, and with problems that users make themselves."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

import lla_jax as lla
from tests.slips.slip import table
from tests.slips.small import PARAMS, X, Y, plain

SLIPS, slip = table()

DATA = (X, Y)
PLANE = lla.Landscape(lla.grid(points=2), {"loss": np.zeros((2, 2))}, {}, {})
TABLE = lla.landscape.Table({(0, "filter-normalized", 0): PLANE})


@slip("table", "'filter-normalized'", "[0]")
def a_landscape_that_a_sweep_lacks() -> None:
    TABLE[0, "filter", 0]


@slip("table", "table[checkpoint, name of the axes, seed]")
def a_landscape_by_its_number() -> None:
    TABLE[0]


@slip("name", "'acc'", "loss")
def rows_of_a_value_that_a_sweep_lacks() -> None:
    TABLE.rows("acc")


@slip("path", "table.csv")
def a_table_into_a_number() -> None:
    TABLE.to_csv(3)


@slip("path", "folder that exists")
def a_table_into_a_folder_that_does_not_exist() -> None:
    TABLE.to_csv(Path(tempfile.mkdtemp()) / "none" / "table.csv")


@slip("name", "'acc'", "loss")
def a_value_that_a_landscape_lacks() -> None:
    PLANE["acc"]


@slip("name", "plane['loss']")
def a_point_of_a_landscape() -> None:
    PLANE[0, 0]


@slip("values", "(4,)", "(3,)")
def a_landscape_with_values_of_another_shape() -> None:
    lla.Landscape((np.arange(3.0),), {"loss": np.zeros(4)}, {}, {})


@slip("values", "by name")
def a_landscape_of_an_array() -> None:
    lla.Landscape((np.arange(3.0),), np.zeros(3), {}, {})


@slip("coords", "1-D")
def a_landscape_of_a_meshgrid() -> None:
    lla.Landscape(np.meshgrid([0, 1], [0, 1]), {}, {}, {})


@slip("loss", "Problem(loss, params, data)")
def a_problem_with_its_arguments_swapped() -> None:
    lla.Problem(PARAMS, plain, DATA)


@slip("params", "a tree of arrays")
def a_problem_without_params() -> None:
    lla.Problem(plain, None, DATA)


@slip("checkpoints", "[early, late]")
def a_problem_with_one_checkpoint() -> None:
    lla.Problem(plain, PARAMS, DATA, checkpoints=PARAMS)


@slip("extra_data", "by name")
def a_problem_with_data_in_place_of_extra_data() -> None:
    lla.Problem(plain, PARAMS, DATA, extra_data=DATA)


@slip("landscapes", "(checkpoint, name of the axes, seed)")
def a_table_of_a_list() -> None:
    lla.landscape.Table([PLANE])


@slip("landscapes", "{(0, 'filter', 0): plane}")
def a_table_with_numbers_as_keys() -> None:
    lla.landscape.Table({0: PLANE})


@slip("'save'", 'lla.save(result, "result.npz")')
def a_method_that_saves() -> None:
    PLANE.save("plane.npz")


@slip("'min'", 'values["loss"]')
def the_least_value_of_a_landscape() -> None:
    PLANE.min()
