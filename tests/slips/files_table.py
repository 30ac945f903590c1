"""Slips with files: damaged, foreign and hostile ones, stores, and paths that are none."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lla_jax as lla
from lla_jax.landscape.store import manifest as _manifest
from tests.slips.slip import table

SLIPS, slip = table()

PLANE = lla.Landscape((np.linspace(-1, 1, 3),), {"loss": np.ones(3)}, {}, {"kind": "test"})
PARAMS = {"w": np.ones(3, np.float32)}
HEADER = {"format": "lla_jax", "version": 1, "type": "Landscape", "dims": 1, "values": ["loss"], "stderr": []}
HEADER |= {"recipe": {}}
ARRAYS = {"coord0": np.linspace(-1, 1, 3), "value0": np.ones(3)}


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def described(shape: str, descr: str = "'<f8'", data: bytes = b"abc") -> bytes:
    """A .npy whose header says what it likes."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def load(
    header: Any = None, changes: dict[str, Any] | None = None, arrays: dict[str, Any] | None = None, like: Any = None
) -> Any:
    """Load a file of a header, or of the usual one with changes, and of arrays, or of their bytes."""
    text = header if isinstance(header, str) else json.dumps((HEADER if header is None else header) | (changes or {}))
    members = {"header": np.array(text), **ARRAYS, **(arrays or {})} if arrays != {} else {"header": np.array(text)}
    with folder() as inside:
        path = inside / "result.npz"
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in members.items():
                archive.writestr(f"{name}.npy", array if isinstance(array, bytes) else npy(array))
        return lla.load(path, like=like)


def load_bytes(content: bytes, name: str = "result.npz") -> Any:
    with folder() as inside:
        (inside / name).write_bytes(content)
        return lla.load(inside / name)


@cache
def random_recipe() -> dict[str, Any]:
    return json.loads(json.dumps(lla.directions.random(jax.random.key(0), PARAMS).recipe))


def load_random(**changes: Any) -> Any:
    header = {"format": "lla_jax", "version": 1, "type": "Directions", "leaves": None}
    return load(header, {"recipe": random_recipe() | changes}, {}, like=PARAMS)


# --- contents of a result


@slip("path: ", "result.npz", "version", "update lla_jax")
def a_version_of_many_digits() -> None:
    load(changes={"version": 10**400})


@slip("path: ", "result.npz is not a readable lla_jax result", "its version is -1", "Compute it again")
def a_version_below_one() -> None:
    load(changes={"version": -1})


@slip("more than 200 levels", "result.npz")
def json_of_very_many_levels() -> None:
    load('{"recipe": ' + "[" * 100_000 + "]" * 100_000 + "}")


@slip("thousands of digits", "result.npz")
def a_number_of_very_many_digits() -> None:
    load('{"format": "lla_jax", "version": ' + "9" * 10_000 + "}")


@slip("coordinates that are not finite real numbers", "nan")
def nan_coordinates() -> None:
    load(arrays={"coord0": np.array([0, np.nan, 1])})


@slip("coordinates that are not finite real numbers", "inf")
def infinite_coordinates() -> None:
    load(arrays={"coord0": np.array([0, np.inf, 1])})


@slip("coordinates that are not finite real numbers")
def saving_nan_coordinates() -> None:
    lla.save(lla.Landscape((np.array([0, np.nan, 1]),), PLANE.values, {}, {}), "plane.npz")


@slip("values that are no real numbers")
def complex_values() -> None:
    load(arrays={"value0": 1j * np.ones(3)})


@slip("values that are no real numbers")
def void_values() -> None:
    load(arrays={"value0": np.zeros(3, "V8")})


@slip("'value0.npy' holds", "no numbers")
def values_of_records() -> None:
    load(arrays={"value0": np.zeros(3, [("a", "f8")])})


@slip("'value0.npy' holds", "no numbers")
def values_of_objects() -> None:
    load(arrays={"value0": described("(3,)", "'|O'", b"\x80\x04cposix\nsystem\n")})


@slip("the arrays ['value0'] do not hold numbers")
def values_of_text() -> None:
    load(arrays={"value0": np.array(["a"] * 3)})


@slip("claims 8,000,000,000,000 bytes and has 3")
def an_array_of_a_claimed_size() -> None:
    load(arrays={"value0": described("(1000000000000,)")})


@slip("'value0.npy'", "bytes and has")
def an_array_of_a_negative_length() -> None:
    load(arrays={"value0": described("(-1,)")})


@slip("'value0.npy' has no readable description")
def code_in_the_description_of_an_array() -> None:
    load(arrays={"value0": described("(3,)", "__import__('os').getcwd()")})


@slip("'value0.npy' has no readable description")
def a_description_that_is_nested() -> None:
    load(arrays={"value0": b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000})


@slip("shape (4,), and the coords (3,)")
def shapes_that_disagree() -> None:
    load(arrays={"value0": np.ones(4)})


@slip("its values are named ['loss', 'loss']")
def a_name_that_comes_twice() -> None:
    load(changes={"values": ["loss", "loss"]})


@slip("truncated or corrupt", "value1")
def an_array_that_is_missing() -> None:
    load(changes={"values": ["loss", "accuracy"]})


@slip("does not name the arrays ['value7']")
def an_array_too_many() -> None:
    load(arrays={"value7": np.ones(3)})


@slip("recipe of type list")
def a_recipe_that_is_a_list() -> None:
    load(changes={"recipe": []})


@slip("compressed", "save the result again")
def a_zip_bomb() -> None:
    with folder() as inside:
        np.savez_compressed(inside / "bomb.npz", header=np.array(json.dumps(HEADER)), value0=np.zeros(10**5))
        lla.load(inside / "bomb.npz")


@slip("is not a readable lla_jax result: it is empty")
def an_empty_file() -> None:
    load_bytes(b"")


@slip("truncated or corrupt", "Compute it again")
def half_a_file() -> None:
    with folder() as inside:
        whole = lla.save(PLANE, inside / "plane.npz").read_bytes()
    load_bytes(whole[: len(whole) // 2])


# --- files of other programs, and paths


@slip("it is text")
def a_json_file() -> None:
    load_bytes(b'{"loss": 1}', "result.json")


@slip("it is a picture (PNG)")
def a_picture() -> None:
    load_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50), "plane.png")


@slip("it is a single array (.npy), which numpy.load reads")
def an_array_of_numpy() -> None:
    load_bytes(npy(np.ones(3)), "plane.npy")


@slip("of another program (entries: loss)", "numpy.load")
def arrays_of_numpy() -> None:
    with folder() as inside:
        np.savez(inside / "plane.npz", loss=np.ones(3))
        lla.load(inside / "plane.npz")


@slip("a torch checkpoint", "lla_torch.load_checkpoint")
def a_torch_checkpoint() -> None:
    with folder() as inside:
        with zipfile.ZipFile(inside / "net.pth", "w") as archive:
            archive.writestr("net/data.pkl", pickle.dumps({}))
        lla.load(inside / "net.pth")


@slip("a pickle, which is never opened")
def a_pickle() -> None:
    load_bytes(pickle.dumps({"loss": 1}), "plane.pkl")


@slip("it is a folder; pass a file in it, such as plane.npz")
def a_folder_to_load() -> None:
    with folder() as inside:
        lla.save(PLANE, inside / "plane.npz")
        lla.load(inside)


@slip("path: absent.npz does not exist", "lla_jax.save")
def a_file_that_is_absent() -> None:
    lla.load("absent.npz")


@slip("path: None given", "such as 'plane.npz'")
def no_path_to_load() -> None:
    lla.load(None)  # type: ignore[arg-type]


@slip("path: '' given", "such as 'plane.npz'")
def an_empty_path() -> None:
    lla.load("")


@slip("path: ", "at most 4,096 bytes")
def a_path_of_very_many_characters() -> None:
    lla.load("a" * 5000)


@slip("path: ", "without NUL characters")
def a_nul_character_in_a_path() -> None:
    lla.load("a\0b.npz")


@slip("path: ", "have an encoding")
def a_path_without_an_encoding() -> None:
    lla.save(PLANE, "a\ud800.npz")


@slip("cannot be read", "symbolic links")
def a_link_to_itself() -> None:
    with folder() as inside:
        (inside / "loop.npz").symlink_to("loop.npz")
        lla.load(inside / "loop.npz")


@slip("it is no regular file")
def a_pipe() -> None:
    with folder() as inside:
        os.mkfifo(inside / "pipe.npz")
        lla.load(inside / "pipe.npz")


@slip("path: ", "x.csv given; results are saved as .npz", "'x.npz'")
def saving_as_another_kind_of_file() -> None:
    lla.save(PLANE, "x.csv")


@slip("is a folder; pass a file in it, such as", "plane.npz")
def saving_as_a_folder() -> None:
    with folder() as inside:
        lla.save(PLANE, inside)


@slip("is a folder; pass a file in it")
def saving_into_a_folder_by_its_slash() -> None:
    lla.save(PLANE, "absent/")


@slip("path: ", "could not be written", "pass a file in a folder that can be written to")
def saving_into_a_file() -> None:
    with folder() as inside:
        (inside / "file").write_text("")
        lla.save(PLANE, inside / "file" / "plane.npz")


@slip("a Landscape as path; swap them")
def path_and_result_swapped() -> None:
    lla.save("plane.npz", PLANE)  # type: ignore[arg-type]


@slip("recipe: ", "more than 200 levels")
def saving_a_recipe_that_holds_itself() -> None:
    recipe: dict[str, Any] = {}
    recipe["again"] = recipe
    with folder() as inside:
        lla.save(lla.Landscape(PLANE.coords, PLANE.values, {}, recipe), inside / "plane.npz")


# --- random directions, which are stored as a recipe


@slip("cannot be drawn again", "it chooses list of 100000 entries of 2 directions", "directions.random")
def very_many_chosen_directions() -> None:
    load_random(chosen=[0] * 100_000)


@slip("cannot be drawn again", "it chooses [-1] of 2 directions")
def a_chosen_direction_that_is_none() -> None:
    load_random(chosen=[-1])


@slip("cannot be drawn again", "it has 1000000000 directions, which its fingerprint does not have")
def very_many_directions() -> None:
    load_random(num=10**9)


@slip("cannot be drawn again", "mersenne")
def a_generator_of_another_program() -> None:
    load_random(impl="mersenne")


@slip("cannot be drawn again", "its draw is 'by leaf'", "knows 'flat'")
def a_draw_of_another_version() -> None:
    load_random(draw="by leaf")


@slip("cannot be drawn again", "its key is [1000000000000000000000000000000, 0]")
def a_key_out_of_bounds() -> None:
    load_random(key=[10**30, 0])


@slip("cannot be drawn again", "damaged", "paths")
def a_selection_that_is_none() -> None:
    load_random(restrict=[{"after": 0}])


@slip("its kind is 'zebra'")
def an_unknown_kind_of_recipe() -> None:
    load_random(kind="zebra")


@slip("like: None given", "like=params")
def random_directions_without_parameters() -> None:
    with folder() as inside:
        lla.load(lla.save(lla.directions.random(jax.random.key(0), PARAMS), inside / "axes.npz"))


# --- stores


PLAN = {"chunk": 2, "microbatch": 3, "loop": "map", "share": True, "scan": True, "devices": 1, "data_shards": 1}


def status(change: Callable[[dict[str, Any]], Any] | str, name: str = _manifest.NAME) -> None:
    """The status of a store of which one file is changed, or has another text."""
    recipe = {"plan": PLAN, "probe": {"loss": 1.0}, "batch_size": None}
    manifest = _manifest.make(recipe, ["batch_size"], [[0.0, 1.0]] * 2, ["loss"], 12)
    with folder() as inside:
        (inside / _manifest.NAME).write_text(json.dumps(manifest))
        if not isinstance(change, str):
            change(manifest)
            change = json.dumps(manifest)
        (inside / name).write_text(change)
        lla.runs.status(inside)


@slip("store: ", "manifest.json was changed or damaged", "int too large", "start anew in another folder")
def a_coordinate_of_many_digits() -> None:
    status(lambda manifest: manifest.update(coords=[[10**400, 0.0], [0.0]]))


@slip("store: ", "manifest.json", "more than 200 levels")
def a_manifest_of_very_many_levels() -> None:
    status('{"a":' * 100_000)


@slip("store: ", "manifest.json is of format", "version int")
def a_manifest_of_a_version_of_many_digits() -> None:
    status(lambda manifest: manifest.update(version=10**400))


@slip("store: ", "manifest.json is not readable", "no JSON object")
def a_manifest_that_is_a_list() -> None:
    status("[]")


@slip("store: ", "not positive integers")
def chunks_of_a_negative_size() -> None:
    status(lambda manifest: manifest.update(points=-3))


@slip("store: ", "grid-001.json is no grid of this store", "too many points, 1,073,741,824", "remove it")
def a_grid_of_very_many_points() -> None:
    status(json.dumps({"coords": [list(range(2**15))] * 2}), "grid-001.json")


@slip("store: ", "grid-001.json is no grid of this store", "finite numbers")
def a_grid_of_nan() -> None:
    status('{"coords": [[NaN], [0]]}', "grid-001.json")


@slip("grid: has 1,000,000,000 points", "a store holds at most", "pass fewer")
def a_grid_too_large_for_a_store() -> None:
    from lla_jax.landscape.store import folders

    folders.check_storable(tuple(np.linspace(-1, 1, 1000) for _ in range(3)))


@slip("sweep-1.json was changed or damaged", "repeat the sweep")
def a_sweep_of_huge_numbers() -> None:
    with folder() as inside:
        cells = {"format": "lla_jax sweep", "version": 1, "points": 10**400, "cells": [[0, "a", 0]]}
        (inside / "sweep-1.json").write_text(json.dumps(cells))
        lla.runs.status(inside)


@slip("sweep-1.json was changed or damaged", "repeat the sweep")
def a_sweep_of_a_long_name() -> None:
    with folder() as inside:
        cells = {"format": "lla_jax sweep", "version": 1, "points": 5, "cells": [[0, "a" * 1000, 0]]}
        (inside / "sweep-1.json").write_text(json.dumps(cells))
        lla.runs.merge(inside)


@slip("store: ", "holds no store; pass the folder that was given as store=")
def the_status_of_an_empty_folder() -> None:
    with folder() as inside:
        lla.runs.status(inside)


@slip("store: absent does not exist", "store=")
def the_status_of_an_absent_folder() -> None:
    lla.runs.status("absent")


@slip("is no folder", "store=")
def merging_a_file() -> None:
    lla.runs.merge(__file__)


@slip("store: 3 given; it must be a path", "'runs/exp1'")
def merging_a_number() -> None:
    lla.runs.merge(3)  # type: ignore[arg-type]


@slip("store: '' given", "'runs/exp1'")
def a_store_without_a_name() -> None:
    lla.evaluate(
        lambda p, b: (p["w"] * b).sum(),
        PARAMS,
        np.ones((2, 3), np.float32),
        lla.directions.given(PARAMS),
        lla.grid(points=2, dims=1),
        store="",
    )


@slip("path", "lla.runs.merge(path)")
def a_store_that_is_loaded() -> None:
    folder = Path(tempfile.mkdtemp())
    (folder / "manifest.json").write_text("{}")
    lla.load(folder)
