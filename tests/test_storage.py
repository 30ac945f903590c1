"""Results come back as they were saved; files that are broken, foreign, newer or hostile are refused."""

import json
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from tests.helpers import FIXED, dataset, mlp_loss, params


@pytest.fixture(scope="module")
def plane():
    axes = lla.directions.normalize(lla.directions.random(jax.random.key(0), params()), params())
    return lla.evaluate(mlp_loss(), params(), dataset(), axes, lla.grid(points=(3, 4)), execution=FIXED)


def same(a, b):
    jax.tree_util.tree_map(np.testing.assert_array_equal, a, b)


def test_a_landscape_comes_back_as_it_was(plane, tmp_path):
    path = lla.save(plane, tmp_path / "new folder" / "plane")
    assert path.name == "plane.npz"
    again = lla.load(path)
    same(
        (again.coords, again.values, again.stderr),
        (plane.coords, plane.values, plane.stderr),
    )
    assert again.recipe == json.loads(json.dumps(plane.recipe))
    assert os.listdir(path.parent) == ["plane.npz"]


def test_nonfinite_cells_survive(plane, tmp_path):
    values = {"loss": np.array([[np.nan, np.inf, -np.inf, 1.0]] * 3)}
    broken = lla.Landscape(plane.coords, values, {}, plane.recipe)
    same(lla.load(lla.save(broken, tmp_path / "x.npz")).values, values)


def test_random_directions_are_stored_as_a_recipe_and_drawn_again(tmp_path):
    big = {"Dense_0": {"kernel": np.ones((300, 300), np.float32)}}
    axes = lla.directions.normalize(lla.directions.random(jax.random.key(7), big), big, by="layer")
    path = lla.save(axes, tmp_path / "axes.npz")
    assert path.stat().st_size < 5000
    same(lla.load(path, like=big).tree, axes.tree)
    with pytest.raises(ValueError, match="like: needed"):
        lla.load(path)
    with pytest.raises(ValueError, match="fingerprint"):
        lla.load(path, like={"Dense_0": {"kernel": 2 + big["Dense_0"]["kernel"]}})


def test_directions_that_were_transformed_are_stored_as_arrays(tmp_path):
    axes = lla.directions.random(jax.random.key(7), params())
    doubled = jax.tree_util.tree_map(lambda x: 2 * x, axes)
    same(lla.load(lla.save(doubled, tmp_path / "doubled.npz"), like=params()).tree, doubled.tree)
    identity = jax.jit(lambda d: d)
    other = lla.directions.random(jax.random.key(8), params())
    assert identity(axes).recipe["key"] == axes.recipe["key"]
    assert identity(other).recipe["key"] == other.recipe["key"]


def test_a_changed_generator_is_detected(tmp_path):
    axes = lla.directions.random(jax.random.key(7), params())
    recipe = axes.recipe | {"fingerprint": (1.01 * np.array(axes.recipe["fingerprint"])).tolist()}
    path = lla.save(lla.Directions(axes.tree, type(axes.recipe)(recipe)), tmp_path / "axes.npz")
    with pytest.raises(ValueError, match="generator changed"):
        lla.load(path, like=params())


def test_other_directions_are_stored_as_arrays(tmp_path):
    tree = {"a": {"kernel": jnp.ones((2, 3), jnp.bfloat16)}, "b": np.arange(3.0, dtype=np.float32)}
    path = lla.save(lla.directions.given(tree, names=["mine"]), tmp_path / "given.npz")
    for again in (lla.load(path), lla.load(path, like=tree)):
        assert again.tree["a"]["kernel"].dtype == jnp.bfloat16
        same(again.tree, jax.tree_util.tree_map(lambda x: x[None], tree))
        assert again.recipe["names"] == ["mine"]
    with pytest.raises(ValueError, match="different structures"):
        lla.load(path, like={"other": np.zeros(3)})


# -- bad files ---------------------------------------------------------------------------------------------------------


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("pwned",))


def header_file(path, **changes):
    header = {"format": "lla_jax", "version": 1, "type": "Landscape"} | changes
    np.savez(path, header=np.array(json.dumps(header)))


def test_broken_foreign_and_newer_files_are_refused(plane, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = lla.save(plane, "whole.npz").read_bytes()
    with pytest.raises(FileNotFoundError, match=r"nothing.npz does not exist"):
        lla.load("nothing.npz")
    for name, content in (("half", whole[: len(whole) // 2]), ("empty", b""), ("text", b"hello, world")):
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a readable lla_jax result"):
            lla.load(path)
    np.savez("foreign.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="another program"):
        lla.load("foreign.npz")
    header_file("other.npz", format="other")
    with pytest.raises(ValueError, match="not written by lla_jax"):
        lla.load("other.npz")
    header_file("newer.npz", version=2)
    with pytest.raises(ValueError, match="update lla_jax"):
        lla.load("newer.npz")
    header_file("kind.npz", type="Hologram")
    with pytest.raises(ValueError, match="Hologram"):
        lla.load("kind.npz")


def test_a_flipped_byte_is_noticed(plane, tmp_path):
    path = lla.save(plane, tmp_path / "plane.npz")
    raw = bytearray(path.read_bytes())
    at = raw.find(np.asarray(plane.values["loss"]).tobytes()[:16])
    raw[at] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="corrupt"):
        lla.load(path)


def test_no_pickle_is_ever_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("hostile.npz", header=np.array(Payload(), dtype=object))
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(Payload()))
    for name in ("hostile.npz", "bare.npz"):
        with pytest.raises(ValueError, match="not a readable lla_jax result"):
            lla.load(name)
    assert not (tmp_path / "pwned").exists()


def test_what_cannot_be_saved_leaves_the_old_file(plane, tmp_path):
    path = lla.save(plane, tmp_path / "plane.npz")
    before = path.read_bytes()
    bad = lla.Landscape(plane.coords, plane.values, plane.stderr, {"function": print})
    with pytest.raises(ValueError, match="not JSON"):
        lla.save(bad, path)
    with pytest.raises(ValueError, match="cannot save a dict"):
        lla.save({}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["plane.npz"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        lla.save(plane, tmp_path / "file" / "plane.npz")
