"""The progress of a store, and the folders of its landscapes."""

from __future__ import annotations

import pytest

import lla_jax as lla
from lla_jax.landscape.store import reading
from tests.helpers import Interrupt
from tests.landscape.store.cases import CHUNKS, GRID, run


def test_the_status_of_an_interrupted_store_counts_its_chunks_and_points(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=Interrupt(24))
    there = lla.runs.status(tmp_path)
    assert (there.landscapes, there.points, there.done) == (1, len(GRID[0]) * len(GRID[1]), 24)
    assert (there.chunks, there.written, there.damaged) == (CHUNKS, 2, {})
    assert list(there.writers.values()) == [2]
    assert there.left > 0
    run(tmp_path)
    assert lla.runs.status(tmp_path).left == 0


def test_a_single_landscape_has_no_member_and_a_folder_without_a_store_is_refused(tmp_path):
    run(tmp_path / "one")
    assert reading.members(tmp_path / "one") == {None: tmp_path / "one"}
    (tmp_path / "other").mkdir()
    for call in (reading.members, lla.runs.status, lla.runs.merge):
        with pytest.raises(ValueError, match=r"store: .*other holds no store; pass the folder"):
            call(tmp_path / "other")
