"""The progress of a store, and the folders of its landscapes."""

from __future__ import annotations

import json
import os
import time

import pytest

import lla_jax as lla
from lla_jax.cli import stores
from lla_jax.core import files as _files
from lla_jax.landscape.store import manifest as _manifest
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


@pytest.mark.parametrize(("ahead", "writes"), [(300.0, True), (1e6, False)])
def test_files_dated_in_the_future_give_no_negative_times(tmp_path, ahead, writes):
    """As by a machine whose clock is ahead; a file that is dated days ahead is not taken for new."""
    run(tmp_path)
    date = time.time() + ahead
    for path in [*tmp_path.rglob("*.npz"), tmp_path / "manifest.json"]:
        os.utime(path, (date, date))
    there = lla.runs.status(tmp_path)
    assert there.last == 0
    assert there.ahead == pytest.approx(ahead, abs=60)
    assert (list(there.writers.values()), there.rate > 0) == (([CHUNKS], True) if writes else ([], False))
    text = stores.status(tmp_path)
    assert "in the future: clocks differ" in text
    assert "-" not in text.replace(str(tmp_path), "").replace("grid-", "").replace("lla-jax", "")


def test_the_status_of_very_many_points_does_not_look_at_each_chunk(tmp_path):
    plan = {"chunk": 1, "microbatch": 1, "loop": "map", "share": True, "scan": True, "devices": 1, "data_shards": 1}
    axes = [list(map(float, range(2**n))) for n in (14, 13)]
    manifest = _manifest.make({"plan": plan, "probe": {}}, [], [axes[0][:64]] * 2, ["loss"], 64)
    _files.write_new(tmp_path / "manifest.json", manifest)
    _files.write_new(tmp_path / "grid-001.json", {"coords": axes})
    there = lla.runs.status(tmp_path)
    assert (there.points, there.done, there.chunks) == (2**27, 0, 2**27 // 64)
    manifest = _manifest.make({"plan": plan, "probe": {}}, [], axes, ["loss"], 1)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="more than 4,194,304 chunks"):
        lla.runs.status(tmp_path)
