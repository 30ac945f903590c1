"""Paths of every kind are understood, and arrays are read as they were written, in memory of the file's size."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lla_jax.core import files as _files


@pytest.mark.parametrize("path", ["runs/a.npz", b"runs/a.npz", Path("runs/a.npz")])
def test_text_bytes_and_paths_are_paths(path):
    assert _files.check_path("path", path) == Path("runs/a.npz")


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/homes/me")
    assert _files.check_path("path", "~/a.npz") == Path("/homes/me/a.npz")
    assert _files.check_path("path", "a~b/~.npz") == Path("a~b/~.npz")


ARRAYS = {
    "big endian": np.arange(6, dtype=">f8").reshape(2, 3),
    "Fortran's order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "every second": np.arange(12.0)[::2],
    "no axes": np.array(3.0),
    "empty": np.zeros((0, 3)),
    "long": np.arange(10**6, dtype=np.float64),
}


def test_arrays_come_back_as_they_were_in_memory_of_their_size(tmp_path):
    path = tmp_path / "a.npz"
    _files.write_npz(path, {"a": [1.0, None]}, ARRAYS)
    tracemalloc.start()
    header, arrays = _files.read_npz(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * path.stat().st_size
    assert header == {"a": [1.0, None]}
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)
        arrays[name][...] = 0  # nothing is read-only


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    for read in (_files.read_header, _files.read_npz):
        with pytest.raises(ValueError, match="no regular file"):
            read(tmp_path / "pipe.npz")
