"""A store is continued to the bit after any interruption, by one writer or by several at once."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.landscape.store import chunks as chunk_store
from lla_jax.landscape.store import folders
from lla_jax.landscape.store import writing as stored
from tests.helpers import FIXED, Interrupt, accuracy, compilations, dataset, mlp_loss, params
from tests.landscape.store.cases import (
    CHUNKS,
    GRID,
    GRIDS,
    PLAN,
    WRITER,
    assert_same,
    assert_same_to_rounding,
    axes,
    files,
    run,
)


def test_a_stored_landscape_is_that_in_memory_and_a_second_call_computes_no_point(tmp_path, complete, monkeypatch):
    assert_same(run(tmp_path), complete)
    assert files(tmp_path) == [f"grid-000/{i:05d}.npz" for i in range(CHUNKS)]
    monkeypatch.setattr(stored, "compute_means", None)  # would raise if a point were computed
    with compilations() as compiled:
        again = run(tmp_path)
    assert compiled.count == 0
    assert_same(again, complete)
    assert again.recipe["plan"] == complete.recipe["plan"]


@pytest.mark.parametrize("times", [1, 3])
def test_interrupted_at_any_chunk_it_is_the_same_to_the_bit(tmp_path, complete, times):
    kept = []
    for i in range(times):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, progress=Interrupt(24 * (i + 1) - 12), on_partial=kept.append)
        assert not list(tmp_path.rglob("*.tmp"))
        assert np.isfinite(kept[-1].values["loss"]).sum() == 12 * len(files(tmp_path))
        assert not kept[-1].recipe["complete"]
    assert 0 < len(files(tmp_path)) < CHUNKS
    assert_same(run(tmp_path), complete)


def test_a_later_writer_obeys_the_plan_of_the_first_one(tmp_path, complete):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=Interrupt(12))
    found = run(tmp_path, execution=lla.Execution(chunk=7, microbatch=5, loop="vmap", devices=1))
    assert_same(found, complete)
    assert (found.recipe["plan"]["chunk"], found.recipe["plan"]["microbatch"]) == (4, 8)


def test_a_changed_recipe_is_refused_and_the_message_says_what_changed(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match=r"store: .* differs in directions \(key: \[0, 0\] -> \[0, 1\]"):
        run(tmp_path, seed=1)
    with pytest.raises(ValueError, match=r"differs in metrics \(\[\"accuracy\"\] -> \[\]\)"):
        run(tmp_path, metrics=None)
    with pytest.raises(ValueError, match=r"differs in batch_size \(null -> 5\)"):
        run(tmp_path, batch_size=5)
    with pytest.raises(ValueError, match=r"differs in data \(examples: 23 -> 22, fingerprint: "):
        lla.evaluate(mlp_loss(), params(), dataset(22), axes(), GRID, store=tmp_path, metrics={"accuracy": accuracy})
    with pytest.raises(ValueError, match=r"differs in params \(fingerprint: .* -> "):
        lla.evaluate(mlp_loss(), params(3), dataset(), axes(), GRID, store=tmp_path, metrics={"accuracy": accuracy})
    doubled = lla.Loss(mlp_loss().apply, lambda outputs, batch: 2 * mlp_loss().criterion(outputs, batch))
    with pytest.raises(ValueError, match=r"store: 'loss' at the first point is .*, and was .* same loss and functions"):
        lla.evaluate(doubled, params(), dataset(), axes(), GRID, store=tmp_path, metrics={"accuracy": accuracy})


def test_directions_drawn_a_rounding_apart_are_the_same(tmp_path, complete, monkeypatch):
    run(tmp_path)
    drawn = axes()
    moved = jax.tree.map(lambda d: np.nextafter(np.asarray(d), np.inf, dtype=d.dtype), drawn.tree)
    near = lla.Directions(moved, drawn.recipe | {"fingerprint": np.nextafter(drawn.recipe["fingerprint"], 9).tolist()})
    again = lla.evaluate(
        mlp_loss(), params(), dataset(), near, GRID, store=tmp_path, execution=FIXED, metrics={"accuracy": accuracy}
    )
    assert_same(again, complete)


def test_a_full_disk_keeps_what_is_finished_and_says_so(tmp_path, complete, monkeypatch):
    left, real = itertools.count(4, -1), os.fsync

    def fsync(handle):
        if next(left) <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match=r"store: .*npz could not be written \(No space left on device\); every") as e:
            run(tmp_path)
    assert e.value.errno == errno.ENOSPC
    assert len(files(tmp_path)) == 3  # the manifest was the fourth
    assert not list(tmp_path.rglob("*.tmp"))
    assert_same(run(tmp_path), complete)


def test_a_disk_too_small_and_a_folder_that_is_none_are_reported_before_computing(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "_compute", None)  # would raise if it came so far
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"store: .*file is not a folder that can be written to"):
        run(tmp_path / "file")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(OSError, match=r"store: the results need about 0 MiB, and the disk of"):
        run(tmp_path / "new")


def test_a_finished_store_is_returned_from_a_disk_that_is_full(tmp_path, complete, monkeypatch):
    run(tmp_path)
    monkeypatch.setattr(folders, "check_writable", None)  # would raise if it were asked
    assert_same(run(tmp_path), complete)


def test_shards_make_up_the_whole_and_a_shard_is_checked(tmp_path, complete):
    parts = [run(tmp_path, shard=(i, 3)) for i in (3, 1)]
    assert [part.recipe["complete"] for part in parts] == [False, False]
    assert [part.recipe["points_done"] for part in parts] == [24, 48]
    with pytest.raises(ValueError, match=r"lacks 2 chunks of .* \(24 points\)"):
        lla.runs.merge(tmp_path)
    assert np.isnan(lla.runs.merge(tmp_path, partial=True).values["loss"]).sum() == 24
    assert_same(run(tmp_path, shard=(2, 3)), complete)
    assert_same(lla.runs.merge(tmp_path), complete)
    for wrong in (3, (0, 3), (4, 3), (1.0, 2), (1, 2, 3)):
        with pytest.raises(ValueError, match=r"shard: .* given; it must be \(i, n\) with 1 <= i <= n"):
            run(tmp_path, shard=wrong)
    with pytest.raises(ValueError, match=r"without a store"):
        run(shard=(1, 2))
    with pytest.raises(ValueError, match=r"resume: continues one landscape held in memory"):
        run(tmp_path, resume=complete)


def test_two_writers_of_one_chunk_leave_one_good_chunk(tmp_path, complete, monkeypatch):
    real, once = stored.compute_means, []

    def overtaken(*arguments):
        if not once:  # another process begins the same chunk and is sooner
            once.append(True)
            assert_same(run(tmp_path), complete)
        return real(*arguments)

    monkeypatch.setattr(stored, "compute_means", overtaken)
    assert_same(run(tmp_path), complete)
    assert files(tmp_path) == [f"grid-000/{i:05d}.npz" for i in range(CHUNKS)]


@pytest.mark.parametrize("other", [GRID, lla.grid(ranges=[(-0.5, 0.5), (0.0, 0.3)], points=(9, 3)), lla.grid(0.7, 5)])
def test_of_two_first_writers_one_decides(tmp_path, complete, monkeypatch, other):
    real = folders.create

    def slower(*arguments):
        monkeypatch.setattr(folders, "create", real)
        assert_same(run(tmp_path), complete)
        return real(*arguments)

    monkeypatch.setattr(folders, "create", slower)
    late = run(tmp_path, other, execution=lla.Execution(chunk=3, microbatch=5, loop="vmap", devices=1))
    assert_same_to_rounding(late, run(grid=other))
    assert late.recipe["plan"]["chunk"] == 4


def test_a_first_writer_that_was_too_late_and_has_another_loss_is_refused(tmp_path, monkeypatch):
    real = folders.create

    def slower(*arguments):
        monkeypatch.setattr(folders, "create", real)
        run(tmp_path, lla.grid(0.7, 5))
        return real(*arguments)

    monkeypatch.setattr(folders, "create", lambda *a: monkeypatch.setattr(folders, "create", real) or slower(*a))
    doubled = lla.Loss(mlp_loss().apply, lambda outputs, batch: 2 * mlp_loss().criterion(outputs, batch))
    with pytest.raises(ValueError, match=r"store: 'loss' at the first point"):
        lla.evaluate(
            doubled, params(), dataset(), axes(), GRID, store=tmp_path, execution=FIXED, metrics={"accuracy": accuracy}
        )


def test_another_split_of_the_data_continues_a_store(tmp_path, complete):
    split = {"chunk": 2, "microbatch": 4, "loop": "map", "share": False, "scan": False}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=Interrupt(12), execution=lla.Execution(devices=1, **split))
    found = run(tmp_path, execution=lla.Execution(devices=4, data_shards=2, **split))
    assert_same_to_rounding(found, complete)


def test_a_chunk_that_another_writer_restores_in_between_is_not_missed(tmp_path, complete, monkeypatch):
    run(tmp_path)
    victim, real, kept = tmp_path / "grid-000/00003.npz", chunk_store.read_chunks, []
    kept.append(victim.read_bytes())
    victim.write_bytes(b"")

    def read_and_restore(*arguments):
        found = real(*arguments)
        if kept:
            victim.write_bytes(kept.pop())
        return found

    monkeypatch.setattr(chunk_store, "read_chunks", read_and_restore)
    with pytest.warns(UserWarning, match="damaged"):
        assert_same(run(tmp_path), complete)


def test_a_shard_leaves_the_damage_of_others_and_says_so(tmp_path, complete):
    run(tmp_path)
    for number in (0, 1):
        (tmp_path / f"grid-000/{number:05d}.npz").write_bytes(b"")
    with pytest.warns(UserWarning, match="was damaged") as said:
        part = run(tmp_path, shard=(1, 2))
    assert sorted("left to the process to whose shard it belongs" in str(w.message) for w in said) == [False, True]
    assert not part.recipe["complete"]
    with pytest.warns(UserWarning, match="removed and computed again"):
        assert_same(run(tmp_path, shard=(2, 2)), complete)


@contextlib.contextmanager
def writing(folder, log):
    """A process that writes into a store; ended at the end."""
    with (
        open(log, "w") as file,
        subprocess.Popen([sys.executable, "-u", "-c", WRITER, str(folder)], stdout=file, stderr=file) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_twelve_kills_over_three_writers_lose_at_most_a_chunk_each_and_change_no_bit(tmp_path):
    rng, store, logs, kills = random.Random(0), tmp_path / "store", [], 0
    with contextlib.ExitStack() as stack:

        def start():
            logs.append(tmp_path / f"log{len(logs)}")
            return logs[-1], stack.enter_context(writing(store, logs[-1]))

        writers, end = [start() for _ in range(3)], time.monotonic() + 120
        while kills < 12:
            time.sleep(rng.uniform(0, 0.5))
            at_work = [i for i, (log, _) in enumerate(writers) if " begun" in log.read_text()]
            assert time.monotonic() < end
            if not at_work:
                continue
            log, victim = writers[at := rng.choice(at_work)]
            before = files(store)
            assert victim.poll() is None, log.read_text()
            victim.kill()
            victim.wait()
            assert set(before) <= set(files(store))  # what was finished stays
            kills, writers[at] = kills + 1, start()
        assert [writer.wait(timeout=120) for _, writer in writers] == [0, 0, 0]
    for log in logs:
        said = log.read_text().splitlines()
        begun, written = (sum(line.endswith(word) for line in said) for word in ("begun", "written"))
        assert 0 <= begun - written <= 1  # a kill costs the chunk in hand, and no other
    assert_same(lla.runs.merge(store), run(tmp_path / "alone", GRIDS, execution=PLAN))


def test_ctrl_c_leaves_a_clean_store(tmp_path):
    log, store, end = tmp_path / "log", tmp_path / "store", time.monotonic() + 60
    with writing(store, log) as writer:
        while " written" not in log.read_text() and time.monotonic() < end:
            time.sleep(0.02)
        writer.send_signal(signal.SIGINT)
        assert writer.wait(timeout=60) != 0
    assert "KeyboardInterrupt" in log.read_text()
    there = lla.runs.status(store)
    assert 0 < there.written < there.chunks == 120
    assert there.damaged == {}
    assert there.left > 0
    assert not list(tmp_path.rglob("*.tmp"))
