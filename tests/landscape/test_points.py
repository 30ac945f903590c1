"""Cells that are not finite: kept, warned of at the line of the user's call, and refused if there are no others."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import lla_jax as lla
from tests.helpers import FIXED
from tests.landscape.cases import ALONG, HOLE, LINE, hole


def test_nonfinite_cells_are_kept_and_their_share_is_warned_of():
    call = functools.partial(lla.evaluate, hole, *HOLE, ALONG)
    with pytest.warns(UserWarning, match=r"60.0% of the cells are not finite"):
        result = call(lla.grid(points=5, dims=1), execution=FIXED)
    np.testing.assert_array_equal(np.isfinite(result.values["loss"]), [False, False, False, True, True])
    assert result.values["loss"][2] == -np.inf
    with pytest.raises(ValueError, match="not finite at any point"):
        call((np.array([-2.0, -1.0]),), execution=FIXED)


@pytest.mark.parametrize(
    "call",
    [
        lambda folder: lla.evaluate(hole, *HOLE, ALONG, **LINE),
        lambda folder: lla.evaluate(hole, *HOLE, [ALONG], **LINE),
        lambda folder: lla.evaluate(hole, *HOLE, ALONG, **LINE, store=folder),
        lambda folder: lla.evaluate(hole, *HOLE, [ALONG], **LINE, store=folder),
        lambda folder: lla.sweep(hole, [HOLE[0]], HOLE[1], axes=ALONG, **LINE),
        lambda folder: lla.sweep(hole, [HOLE[0]], HOLE[1], axes=ALONG, **LINE, store=folder),
    ],
)
def test_a_warning_names_the_line_that_called_the_library(call, tmp_path):
    with pytest.warns(UserWarning, match="are not finite") as seen:
        call(tmp_path)
    assert [(w.filename, w.lineno) for w in seen] == [(__file__, call.__code__.co_firstlineno)]
