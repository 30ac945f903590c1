"""Chunks and grids of a store: damage is found, points are held once, and a second grid reuses them."""

from __future__ import annotations

import errno
import os
import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lla_jax as lla
from lla_jax.core import files as _files
from lla_jax.landscape.store import folders, layout
from lla_jax.landscape.store import manifest as _manifest
from tests.helpers import points_computed
from tests.landscape.store.cases import CHUNKS, assert_same, assert_same_to_rounding, files, run


@pytest.mark.parametrize("harm", ["truncated", "flipped", "empty", "foreign"])
def test_a_damaged_chunk_is_found_named_and_computed_again(tmp_path, complete, harm):
    run(tmp_path)
    victim = tmp_path / "grid-000/00003.npz"
    contents = victim.read_bytes()
    middle = len(contents) // 2
    if harm == "foreign":
        shutil.copy(tmp_path / "grid-000/00002.npz", victim)
    else:
        flipped = contents[:middle] + bytes([contents[middle] ^ 1]) + contents[middle + 1 :]
        victim.write_bytes({"truncated": contents[:middle], "flipped": flipped, "empty": b""}[harm])
    assert list(lla.runs.status(tmp_path).damaged) == [str(victim)]
    with pytest.raises(ValueError, match=r"not complete, it lacks .*00003.npz \(damaged"):
        lla.runs.merge(tmp_path)
    with pytest.warns(UserWarning, match=r"00003.npz was damaged .* computed again"):
        again = run(tmp_path)
    assert_same(again, complete)
    assert lla.runs.status(tmp_path).damaged == {}


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.ESTALE])
def test_a_chunk_that_cannot_be_read_now_is_not_thrown_away(tmp_path, complete, monkeypatch, code):
    run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(_files, "read_npz", lambda path: (_ for _ in ()).throw(OSError(code, os.strerror(code))))
        with pytest.raises(OSError, match=re.escape(os.strerror(code))):
            run(tmp_path)
    assert len(files(tmp_path)) == CHUNKS
    assert_same(run(tmp_path), complete)


def test_a_chunk_of_the_same_recipe_and_another_grid_is_none_of_this_store(tmp_path, complete):
    run(tmp_path / "a", lla.grid(extent=0.9, points=(9, 8)))
    run(tmp_path / "b")
    shutil.copy(tmp_path / "a/grid-000/00001.npz", tmp_path / "b/grid-000/00001.npz")
    assert len(lla.runs.status(tmp_path / "b").damaged) == 1
    with pytest.warns(UserWarning, match="computed again"):
        assert_same(run(tmp_path / "b"), complete)


def test_grids_that_are_none_are_refused_and_files_of_others_stay(tmp_path):
    run(tmp_path)
    for wrong in ("{}", '{"coords": [[1]]}', '{"coords": "abc"}'):
        (tmp_path / "grid-001.json").write_text(wrong)
        with pytest.raises(ValueError, match=r"grid-001.json is no grid of this store"):
            run(tmp_path)
    theirs = tmp_path / "mine" / ".precious.tmp"
    theirs.parent.mkdir()
    theirs.write_text("")
    left = tmp_path / "grid-000" / ".00001-abc.tmp"
    left.write_text("")
    for path in (theirs, left):
        os.utime(path, (1, 1))
    (tmp_path / "grid-001.json").unlink()
    run(tmp_path)
    assert theirs.exists()
    assert not left.exists()
    folders.remove(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_a_wider_or_denser_grid_reuses_the_points_there_are(tmp_path, monkeypatch):
    counted = points_computed(monkeypatch)
    for grid, fresh in (
        (lla.grid(0.3, 4), 16),
        (lla.grid(0.3, 7), 49 - 16),  # denser
        (lla.grid(0.7, 15), 225 - 49),  # wider, where coordinates differ by rounding
        (lla.grid(0.3, 4), 0),
        (lla.grid(ranges=[(-0.3, 0.3), (0.0, 0.1)], points=(7, 2)), 0),  # a part
        (lla.grid(ranges=[(-0.3, 0.3), (0.0, 0.05)], points=(7, 2)), 7),
    ):
        counted.clear()
        found = run(tmp_path, grid)
        assert sum(counted) == fresh
        assert_same_to_rounding(found, run(grid=grid))
        if fresh:  # of several grids, the one that came last
            assert_same(lla.runs.merge(tmp_path), found)


@pytest.mark.parametrize("seed", range(3))
def test_the_chunks_of_any_grids_hold_every_point_once(tmp_path, seed):
    rng = np.random.default_rng(seed)
    plan = {"chunk": 1, "microbatch": 1, "loop": "map", "share": True, "scan": True, "devices": 1, "data_shards": 1}
    coords = [axis.tolist() for axis in lla.grid(points=(3, 4, 2), dims=3)]
    manifest = _manifest.make({"plan": plan, "probe": {}}, [], coords, ["loss"], 5)
    store, first = folders.create(tmp_path, manifest)
    assert first
    assert not folders.create(tmp_path, manifest)[1]
    for _ in range(4):
        grid = tuple(np.sort(rng.choice(np.linspace(-1, 1, 7), rng.integers(1, 6), replace=False)) for _ in range(3))
        store, coords = folders.add_grid(store, grid)
        seen = np.zeros(int(np.prod([len(c) for c in coords])), int)
        mesh = np.stack([c.ravel() for c in np.meshgrid(*coords, indexing="ij")], -1)
        for part in layout.parts(store, coords):
            np.testing.assert_array_equal(layout.points(store, part.chunk)[part.wanted], mesh[part.at])
            seen[part.at] += 1
        np.testing.assert_array_equal(seen, 1)
        held = {part.chunk: len(part.at) for part in layout.parts(store, coords)}
        assert held == layout.needed(store, coords)
    new_points = []
    for grid, new in zip(store.grids, store.new):
        indices = np.unravel_index(np.asarray(new[:]), [len(axis) for axis in grid])
        new_points.append(np.stack([axis[i] for axis, i in zip(grid, indices)], -1))
    every = np.concatenate(new_points)
    assert len(np.unique(every, axis=0)) == len(every)


def test_a_coordinate_that_comes_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="axis 0 has a coordinate twice"):
        run(tmp_path, ([0.0, 0.0, 0.3], [0.1, 0.5]))
    run(tmp_path)
    with pytest.raises(ValueError, match="axis 1 has a coordinate twice"):
        run(tmp_path, ([0.0, 0.3], [0.5, 0.1, 0.5]))


@settings(deadline=None, max_examples=25, derandomize=True)
@given(extent=st.floats(1e-3, 1e3), half=st.integers(1, 4), factor=st.integers(2, 3), wider=st.booleans())
def test_a_denser_or_wider_grid_needs_only_new_points(tmp_path_factory, extent, half, factor, wider):
    plan = {"chunk": 1, "microbatch": 1, "loop": "map", "share": True, "scan": True, "devices": 1, "data_shards": 1}
    grid = lla.grid(extent, 2 * half + 1)
    coords = [axis.tolist() for axis in grid]
    manifest = _manifest.make({"plan": plan, "probe": {}}, [], coords, ["loss"], 5)
    store, _ = folders.create(tmp_path_factory.mktemp("store"), manifest)
    size = 2 * factor * half + 1
    store, coords = folders.add_grid(store, lla.grid(extent * (factor if wider else 1), size))
    assert set(grid[0]) <= set(coords[0])  # to the bit: coordinates that differ by rounding are those of the first grid
    assert len(store.new[1]) == size**2 - (2 * half + 1) ** 2
    same, again = folders.add_grid(store, lla.grid(extent, 2 * half + 1))
    assert len(same.grids) == 2
    assert all(map(np.array_equal, again, grid))


def test_a_file_that_is_far_larger_than_its_chunk_is_not_read(tmp_path, complete):
    run(tmp_path)
    with open(tmp_path / "grid-000/00002.npz", "r+b") as file:
        file.truncate(10**12)  # sparse
    assert "it has 1,000,000,000,000 bytes" in lla.runs.status(tmp_path).damaged[str(tmp_path / "grid-000/00002.npz")]
    with pytest.warns(UserWarning, match="computed again"):
        assert_same(run(tmp_path), complete)
