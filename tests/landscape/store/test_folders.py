"""A store whose manifest or grid is lost or damaged is restored from its chunks, and never takes those of another."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil

import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core import files as _files
from lla_jax.landscape.store import chunks as chunk_store
from lla_jax.landscape.store import folders
from lla_jax.landscape.store import manifest as _manifest
from lla_jax.landscape.store import writing as stored
from tests.helpers import FIXED, Interrupt, accuracy, dataset, mlp_loss, params
from tests.landscape.store.cases import CHUNKS, GRID, assert_same, axes, files, run

WIDER = lla.grid(extent=0.5, points=(17, 8))


def run_doubled(folder, grid=GRID):
    """The landscape of twice the loss, which no entry of the recipe but the values of the functions tells apart."""
    doubled = lla.Loss(mlp_loss().apply, lambda outputs, batch: 2 * mlp_loss().criterion(outputs, batch))
    options = {"execution": FIXED, "metrics": {"accuracy": accuracy}, "store": folder}
    return lla.evaluate(doubled, params(), dataset(), axes(), grid, **options)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


HARMS = {
    "removed": lambda path: path.unlink(),
    "empty": lambda path: (path.write_bytes(b""), os.utime(path, (1, 1))),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "flipped": lambda path: flip(path, -3),
    "of other contents": lambda path: path.write_text(re.sub(r"0\.5", "0.6", path.read_text())),
}


@pytest.mark.parametrize("name", ["manifest.json", "grid-001.json"])
@pytest.mark.parametrize("harm", HARMS)
def test_a_lost_or_damaged_manifest_or_grid_is_restored_and_no_point_is_computed(tmp_path, monkeypatch, name, harm):
    run(tmp_path)
    wider = run(tmp_path, WIDER)
    before = (tmp_path / name).read_text()
    HARMS[harm](tmp_path / name)
    there = lla.runs.status(tmp_path)  # which changes nothing
    assert (there.done, list(there.damaged)) == (wider.values["loss"].size, [str(tmp_path / name)])
    assert_same(lla.runs.merge(tmp_path), wider)
    monkeypatch.setattr(stored, "compute_means", None)  # would raise if a point were computed
    with pytest.warns(UserWarning, match=rf"store: .*{name} .* and is restored from the chunks"):
        assert_same(run(tmp_path, WIDER), wider)
    assert json.loads((tmp_path / name).read_text()) == json.loads(before)
    assert lla.runs.status(tmp_path).damaged == {}


def test_a_folder_in_the_place_of_a_manifest_stays_and_its_copies_are_read(tmp_path, complete):
    run(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").mkdir()
    said = r"manifest.json is not readable \(it is a folder\) and cannot be restored from the chunks \(Is a directory\)"
    for _ in range(2):
        with pytest.warns(UserWarning, match=said):
            assert_same(run(tmp_path), complete)
    (tmp_path / "manifest.json").rmdir()
    with pytest.warns(UserWarning, match="manifest.json is missing and is restored from the chunks"):
        assert_same(run(tmp_path), complete)


@pytest.mark.parametrize("at", range(0, 1500, 53))
def test_any_flipped_byte_of_a_manifest_is_found_and_mended(tmp_path, complete, at):
    """Where the byte belongs to no entry, nothing is damaged."""
    run(tmp_path)
    flip(tmp_path / "manifest.json", at)
    store = folders.read(tmp_path)
    assert len(store.repairs) == 1
    assert_same(lla.runs.merge(tmp_path), complete)


@pytest.mark.parametrize("lost", [True, False])
def test_chunks_of_another_loss_are_never_taken(tmp_path, lost):
    run(tmp_path)
    if lost:
        (tmp_path / "manifest.json").unlink()
    refused = pytest.raises(ValueError, match=r"store: 'loss' at the first point is .* same loss and functions")
    warned = pytest.warns(UserWarning, match="restored from the chunks") if lost else contextlib.nullcontext()
    with refused, warned:
        run_doubled(tmp_path)


def test_a_chunk_or_manifest_that_is_exchanged_with_that_of_another_loss_is_found(tmp_path, complete):
    run(tmp_path / "a")
    run_doubled(tmp_path / "b")
    shutil.copy(tmp_path / "b/grid-000/00001.npz", tmp_path / "a/grid-000/00001.npz")
    with pytest.warns(UserWarning, match=r"00001.npz was damaged .*of another landscape.* computed again"):
        assert_same(run(tmp_path / "a"), complete)
    shutil.copy(tmp_path / "b/manifest.json", tmp_path / "a/manifest.json")
    assert_same(lla.runs.merge(tmp_path / "a"), complete)
    with pytest.warns(UserWarning, match=r"manifest.json is of another landscape than the chunks and is restored"):
        assert_same(run(tmp_path / "a"), complete)


def test_a_store_without_sound_copies_is_begun_anew_and_only_then(tmp_path, complete, monkeypatch):
    with monkeypatch.context() as patch:  # as stores were written before
        patch.setattr(_manifest, "VERSION", 1)
        patch.setattr(chunk_store, "copies", lambda store, grid: {})
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, progress=Interrupt(36))
    assert_same(run(tmp_path), complete)
    assert json.loads((tmp_path / "manifest.json").read_text())["version"] == 1
    flip(tmp_path / "manifest.json", -3)  # the chunks that were written since tell what it held
    with pytest.warns(UserWarning, match="restored from the chunks"):
        assert_same(run(tmp_path), complete)
    for path in files(tmp_path):
        header, arrays = _files.read_npz(tmp_path / path)
        header.pop("manifest", None)
        _files.write_npz(tmp_path / path, header, arrays)
    flip(tmp_path / "manifest.json", -3)
    with pytest.raises(ValueError, match=r"manifest.json .*; remove it and repeat the call that wrote it"):
        run(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ValueError, match="holds no store"):
        lla.runs.status(tmp_path)
    with pytest.warns(UserWarning, match="of another landscape") as said:
        assert_same(run(tmp_path), complete)
    assert len(said) == CHUNKS


def test_removing_that_is_interrupted_leaves_no_chunk_without_a_manifest(tmp_path, complete, monkeypatch):
    run(tmp_path / "whole")
    run(tmp_path / "whole", WIDER)
    real, calls = os.unlink, []

    def unlink(path, **options):
        if not calls:
            raise KeyboardInterrupt
        calls.pop()
        real(path, **options)

    number = len(files(tmp_path / "whole")) + 2  # the chunks, the second grid, the manifest
    for done in range(number):
        folder = tmp_path / str(done)
        shutil.copytree(tmp_path / "whole", folder)
        calls[:] = [None] * done
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", unlink)
            with pytest.raises(KeyboardInterrupt):
                folders.remove(folder)
        assert (folder / "manifest.json").exists()
        assert lla.runs.status(folder).damaged == {}
    assert_same(run(folder), complete)
    folders.remove(folder)
    assert not any(folder.iterdir())


def test_an_empty_file_of_a_killed_writer_blocks_nobody(tmp_path, monkeypatch):
    """A writer on a file system without links may be killed while a manifest or the file of a grid is empty."""
    monkeypatch.setattr(_files, "PATIENCE_S", 0.0)

    def refuse(*_, **__):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "manifest.json").write_bytes(b"")
    first = run(tmp_path)
    (tmp_path / "grid-001.json").write_bytes(b"")
    assert lla.runs.status(tmp_path).done == first.values["loss"].size
    assert_same(run(tmp_path, WIDER), run(tmp_path / "other", WIDER))
    assert len(json.loads((tmp_path / "grid-001.json").read_text())["coords"][0]) == 17


def test_a_file_that_is_being_made_is_waited_for(tmp_path, monkeypatch):
    path, waits = tmp_path / "manifest.json", []
    path.write_bytes(b"")

    def sleep(_):
        waits.append(None)
        path.write_text("{}")

    monkeypatch.setattr(_files.time, "sleep", sleep)
    assert not _files.write_new(path, [1])
    assert (path.read_text(), len(waits)) == ("{}", 1)


def test_on_a_disk_that_cannot_be_written_to_damage_is_named_and_the_rest_is_read(tmp_path, complete, monkeypatch):
    run(tmp_path)
    victim = tmp_path / "grid-000/00003.npz"
    victim.write_bytes(b"PK")
    (tmp_path / "manifest.json").write_text("{")

    def refuse(folder):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(_files, "try_to_write", refuse)
        patch.setattr(_files, "write_text", lambda path, text: refuse(path))
        said = r"00003.npz was damaged .*computed again in a folder .*\(Read-only file system\); .*partial=True"
        warned = pytest.warns(UserWarning, match="restored from the chunks")
        with pytest.raises(OSError, match=said) as error, warned:
            run(tmp_path)
        assert error.value.errno == errno.EROFS
        assert np.isnan(lla.runs.merge(tmp_path, partial=True).values["loss"]).sum() == 12
        assert lla.runs.status(tmp_path).written == CHUNKS - 1
    assert victim.exists()
    with pytest.warns(UserWarning, match="restored|computed again"):
        assert_same(run(tmp_path), complete)


def test_leftovers_of_any_wrong_date_are_removed_and_those_of_now_stay(tmp_path, complete):
    run(tmp_path)
    now = os.stat(tmp_path).st_mtime
    for name, date in (("old", 1), ("future", now + 1e6), ("new", now), ("a little ahead", now + 100)):
        left = tmp_path / f"grid-000/.00001-{name}.tmp"
        left.write_bytes(b"")
        os.utime(left, (date, date))
    run(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*.tmp")) == [".00001-a little ahead.tmp", ".00001-new.tmp"]


def test_a_grid_of_too_many_chunks_is_refused(tmp_path, monkeypatch):
    run(tmp_path)
    monkeypatch.setattr(_manifest, "MOST_CHUNKS", CHUNKS)
    with pytest.raises(ValueError, match=r"grid: has 12 chunks of 12 points, and a store holds at most 6"):
        run(tmp_path, WIDER)


def test_copies_without_coordinates_are_completed_by_the_call_with_the_first_grid(tmp_path, complete, monkeypatch):
    monkeypatch.setattr(chunk_store, "MOST_COPIED", 16)
    run(tmp_path)
    (tmp_path / "manifest.json").unlink()
    for call in (lambda: lla.runs.status(tmp_path), lambda: run(tmp_path, WIDER)):
        with pytest.raises(ValueError, match=r"manifest.json is missing, .* lack the grid; repeat the call"):
            call()
    monkeypatch.setattr(stored, "compute_means", None)  # would raise if a point were computed
    with pytest.warns(UserWarning, match="restored from the chunks"):
        assert_same(run(tmp_path), complete)
