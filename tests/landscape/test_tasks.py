"""Tasks have one form, and names that collide are refused."""

from __future__ import annotations

import numpy as np
import pytest

import lla_jax as lla
from lla_jax.landscape import rules, tasks
from tests.helpers import FIXED, accuracy, mlp_loss, params
from tests.landscape.cases import DATA


def test_a_checked_task_has_one_form(axes):
    add = rules.check_rule("add", lla.grid(points=3))

    def task(**changed):
        options = {"loss": mlp_loss(), "data": DATA, "batch_size": None, "batch_stats": "frozen", "metrics": None}
        rest = {"point_metrics": None, "extra_data": None, "key": None, "execution": FIXED}
        return tasks.check(tasks.Task(rule=add, **(options | rest | changed)))

    full = task(metrics={"hits": accuracy}, extra_data={"test": DATA}, point_metrics={"gain": lambda p, key: p["gain"]})
    assert list(full.sets) == ["", "test_"]
    assert full.names == ["loss", "hits", "test_loss", "test_hits", "gain"]
    assert full.formula == task(metrics={"hits": accuracy}).formula
    assert full.formula != task().formula
    assert task(loss=lambda p, b: 0.0).couples_examples
    assert type(task(batch_size=np.int64(4)).batch_size) is int  # numpy's own has no bit_length in older versions
    assert (task().couples_examples, task(batch_stats="batch").couples_examples) == (False, True)


def test_names_that_would_collide_are_refused(axes):
    arguments = (mlp_loss(), params(), DATA, axes[:1], lla.grid(points=3, dims=1))
    for options in (
        {"metrics": {"test_loss": accuracy}, "extra_data": {"test": DATA}},
        {"point_metrics": {"test_loss": lambda p, k: 0.0}, "extra_data": {"test": DATA}},
        {"metrics": {"b_c": accuracy, "c": accuracy}, "extra_data": {"a": DATA, "a_b": DATA}},
    ):
        with pytest.raises(ValueError, match="would name two values"):
            lla.evaluate(*arguments, execution=FIXED, **options)
