"""Checkpoints that exist already: which files are read, how names are matched, and what is refused."""

import os
import shutil
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core.arguments import Misuse

LIKE = {"Dense_0": {"kernel": np.zeros((2, 3), np.float32), "bias": jnp.zeros(3, jnp.bfloat16)}, "out": [np.zeros(4)]}
STATE = {"batch_stats": {"BN_0": {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}}}


def params(i):
    return jax.tree.map(lambda x: np.full_like(x, i), LIKE)


def state(i):
    return jax.tree.map(lambda x: np.full_like(x, i), STATE)


def flat(tree, divider="/", prefix=""):
    names = [jax.tree_util.keystr(keys, simple=True, separator=divider) for keys, _ in jax.tree.leaves_with_path(tree)]
    return {prefix + name: np.asarray(leaf) for name, leaf in zip(names, jax.tree.leaves(tree), strict=True)}


def npz(file, *dicts):
    np.savez(file, **{name: array for each in dicts for name, array in each.items()})
    return file


@pytest.fixture(scope="module")
def orbax_folders(tmp_path_factory):
    """Checkpoints of orbax: with a training state, bare, and two steps of a manager with and without named trees."""
    ocp = pytest.importorskip("orbax.checkpoint")
    root = tmp_path_factory.mktemp("orbax")
    whole = {"params": params(1), **state(1), "opt_state": [{"mu": params(7), "nu": params(8)}], "step": 3}
    ocp.PyTreeCheckpointer().save(root / "whole", whole)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(root / "bare", params(2))
    for name, args in (
        ("manager", lambda i: ocp.args.StandardSave({"params": params(i), **state(i)})),
        (
            "named",
            lambda i: ocp.args.Composite(params=ocp.args.StandardSave(params(i)), opt=ocp.args.StandardSave(params(9))),
        ),
    ):
        with ocp.CheckpointManager(root / name) as manager:
            for i in (2, 10):
                manager.save(i, args=args(i))
            manager.wait_until_finished()
    return root


def check(path, numbers, with_state=False):
    assert len(path) == len(numbers)
    for i, number in enumerate(numbers):
        found, wanted = path[i], params(number)
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)
        if with_state:
            jax.tree.map(np.testing.assert_array_equal, path.state(i), state(number))
    assert path.has_states == with_state


@pytest.mark.parametrize(
    "names", [("/", ""), (".", ""), (".", "params."), ("/", "model/params/"), ("']['", "params['")], ids=str
)
def test_names_are_matched_whatever_divides_their_parts(tmp_path, names):
    file = npz(tmp_path / "a.npz", flat(params(3), *names), {"step": np.int64(3), "losses": np.arange(4.0)})
    check(lla.paths.from_checkpoints([file], LIKE), [3])


def test_batch_statistics_beside_the_parameters_are_the_state(tmp_path):
    for i in (1, 2):
        npz(tmp_path / f"{i}.npz", flat(params(i), "/", "params/"), flat(state(i)))
    check(lla.paths.from_checkpoints(str(tmp_path / "*.npz"), like=LIKE), [1, 2], with_state=True)
    flat_state = {"mean": STATE["batch_stats"]["BN_0"]["mean"]}
    npz(tmp_path / "3.npz", flat(params(3)), {"mean": np.full(3, 5.0)})
    path = lla.paths.from_checkpoints([tmp_path / "3.npz"], LIKE, state_like=flat_state)
    np.testing.assert_array_equal(path.state(0)["mean"], 5)
    with pytest.raises(Misuse, match=r"1.npz has a state.*3.npz has none|3.npz has \['mean'\] besides"):
        lla.paths.from_checkpoints([tmp_path / "1.npz", tmp_path / "3.npz"], LIKE, strict=False)


def test_files_of_all_kinds_make_one_trajectory(tmp_path, orbax_folders):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    save_file(flat(params(2), "."), tmp_path / "b.safetensors")
    track = lla.paths.record(tmp_path / "traj", every=1)
    for i in (3, 4):
        track(params(i), i, loss=i)
    files = [npz(tmp_path / "a.npz", flat(params(1))), tmp_path / "b.safetensors", tmp_path / "traj"]
    files += [tmp_path / "traj/step-0000000004.npz", orbax_folders / "bare"]
    path = lla.paths.from_checkpoints(files, LIKE)
    check(path, [1, 2, 3, 4, 4, 2])
    np.testing.assert_array_equal(path.losses, [np.nan, np.nan, 3, 4, 4, np.nan])
    np.testing.assert_array_equal(path.steps, np.arange(6))  # since not all names have numbers that increase
    assert path.names[0] == "a.npz"


def test_orbax_gives_parameters_and_state_without_the_optimizer(orbax_folders):
    check(lla.paths.from_checkpoints(orbax_folders / "whole", LIKE, state_like=STATE), [1], with_state=True)
    check(lla.paths.from_checkpoints(orbax_folders / "whole", LIKE), [1], with_state=True)
    check(lla.paths.from_checkpoints(orbax_folders / "whole", LIKE, key="opt_state/0/nu", strict=False), [8])
    for name, with_state in (("manager", True), ("named", False)):
        path = lla.paths.from_checkpoints(orbax_folders / name, LIKE)
        check(path, [2, 10], with_state)
        np.testing.assert_array_equal(path.steps, [2, 10])
    check(lla.paths.from_checkpoints(orbax_folders / "manager" / "10", LIKE), [10], with_state=True)


def test_an_orbax_checkpoint_that_is_damaged_is_named(orbax_folders, tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    shutil.copytree(orbax_folders / "bare", tmp_path / "torn")
    (tmp_path / "torn/_METADATA").write_text("{")
    with pytest.raises(Misuse, match="torn cannot be read"):
        lla.paths.from_checkpoints([tmp_path / "torn"], LIKE)
    large = {"w": np.random.default_rng(0).normal(size=30_000)}  # its numbers are a file of their own
    ocp.PyTreeCheckpointer().save(tmp_path / "large", large)
    path = lla.paths.from_checkpoints([tmp_path / "large"], large)
    np.testing.assert_array_equal(path[0]["w"], large["w"])
    for file in (tmp_path / "large").glob("ocdbt*/d/*"):
        file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(Misuse, match=r"large cannot be read .*Error"):
        path[0]


def test_a_pattern_is_put_in_the_order_of_its_numbers(tmp_path):
    for i in (2, 10, 1):
        npz(tmp_path / f"step{i}.npz", flat(params(i)))
    path = lla.paths.from_checkpoints(str(tmp_path / "step*.npz"), LIKE)
    check(path, [1, 2, 10])
    np.testing.assert_array_equal(path.steps, [1, 2, 10])
    check(lla.paths.from_checkpoints([tmp_path / "step10.npz", str(tmp_path / "step?.npz")], LIKE), [10, 1, 2])


def test_several_trees_in_a_file_need_a_key(tmp_path):
    file = npz(tmp_path / "a.npz", flat(params(1), "/", "online/"), flat(params(2), "/", "ema/"))
    with pytest.raises(Misuse, match=r"key: none given, and a.npz has the leaves of like under \['ema', 'online'\]"):
        lla.paths.from_checkpoints([file], LIKE)
    check(lla.paths.from_checkpoints([file], LIKE, key="ema"), [2])
    moments = flat(params(3), "/", "opt_state/0/mu/params/")  # are no second choice
    file = npz(tmp_path / "a.npz", flat(params(1), "/", "params/params/"), moments)
    check(lla.paths.from_checkpoints([file], LIKE), [1])
    with pytest.raises(Misuse, match="key: 'average' given"):
        lla.paths.from_checkpoints([file], LIKE, key="average")


def without(tree, name):
    return {key: array for key, array in tree.items() if key != name}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            without(flat(params(1)), "Dense_0/kernel") | {"Dense_1/kernel": np.ones((2, 4))},
            r"bad.npz lacks 'Dense_0/kernel', \(2, 3\), of like; the nearest is 'Dense_1/kernel', \(2, 4\)",
        ),
        (
            flat(params(1), ".", "params.") | {"params.Dense_0.kernel": np.ones((3, 3))},
            r"bad.npz: 'params.Dense_0.kernel' has shape \(3, 3\); it must have shape \(2, 3\)",
        ),
        ({"weights": np.ones(3)}, "bad.npz lacks 'Dense_0/bias'"),
        (flat(params(1)) | {"Dense_3/kernel": np.ones((3, 3))}, r"has \['Dense_3/kernel'\] besides"),
        (flat(params(1), "/", "params/") | {"params/more": np.ones(2)}, r"has \['params/more'\] besides"),
        (flat(params(1)) | {"Dense_0.kernel": np.ones((2, 3))}, "differ in dividers only"),
        (flat(params(1)) | {"Dense_0/kernel": np.array([{}], object)}, "'Dense_0/kernel' has no numbers, or Python"),
        (flat(params(1)) | {"Dense_0/kernel": np.array("text")}, r"'Dense_0/kernel' has shape \(\)"),
    ],
)
def test_a_checkpoint_of_another_network_is_named(tmp_path, content, message):
    good = npz(tmp_path / "good.npz", flat(params(1)))
    bad = tmp_path / "bad.npz"
    np.savez(bad, allow_pickle=True, **content)
    with pytest.raises(Misuse, match=message):
        lla.paths.from_checkpoints([good, bad], LIKE)


def test_surplus_arrays_are_left_out_if_asked(tmp_path):
    file = npz(tmp_path / "a.npz", flat(params(1)) | {"Dense_3/kernel": np.ones((3, 3))})
    check(lla.paths.from_checkpoints([file], LIKE, strict=False), [1])


def test_a_checkpoint_that_is_not_finite_is_named(tmp_path):
    files = [npz(tmp_path / f"{i}.npz", flat(params(i))) for i in range(3)]
    npz(files[1], flat(params(1)) | {"Dense_0/kernel": np.full((2, 3), np.nan, np.float32)})
    path = lla.paths.from_checkpoints(files, LIKE)
    with pytest.raises(Misuse, match=r"path\[1\] \(1.npz\)\['Dense_0/kernel'\] has 6 NaN"):
        list(path)
    np.testing.assert_array_equal(path[2]["out"][0], 2)


def test_integers_are_no_parameters(tmp_path):
    file = npz(tmp_path / "a.npz", flat(params(1)) | {"out/0": np.ones(4, int)})
    with pytest.raises(Misuse, match=r"\(a.npz\)\['out/0'\] has dtype"):
        lla.paths.from_checkpoints([file], LIKE)[0]


def test_damaged_and_foreign_files_are_named(tmp_path):
    pytest.importorskip("safetensors")
    good = npz(tmp_path / "good.npz", flat(params(1)))
    content = good.read_bytes()
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "torn.npz").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.npz").write_bytes(b"hello")
    (tmp_path / "torn.safetensors").write_bytes(b"\x80\0\0\0\0\0\0\0{")
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04K\x01.")
    (tmp_path / "a.pth").write_bytes(b"PK")
    (tmp_path / "folder").mkdir()
    if hasattr(os, "mkfifo"):
        for name in ("pipe.npz", "pipe.safetensors"):
            os.mkfifo(tmp_path / name)
            with pytest.raises(Misuse, match=f"files: .*{name} is no regular file"):
                lla.paths.from_checkpoints([good, tmp_path / name], LIKE)
            (tmp_path / name).unlink()
    with zipfile.ZipFile(tmp_path / "torch.npz", "w") as archive:  # a file of torch.save under another name
        archive.writestr("archive/data.pkl", b"\x80\x02.")
    for name, message in (
        ("empty.npz", "empty.npz is empty"),
        ("torn.npz", "torn.npz cannot be read .BadZipFile"),
        ("text.npz", "text.npz is of another kind, or damaged"),
        ("torn.safetensors", "torn.safetensors cannot be read"),
        ("a.pkl", "is a pickle, which is never opened"),
        ("a.pth", "lla_torch.load_path"),
        ("torch.npz", "lla_torch.load_path"),
        ("none.npz", "there is no file .*none.npz"),
        ("*.none", "matches no file"),
        ("folder", "folder with nothing in it, and no checkpoint of orbax"),
    ):
        with pytest.raises(Misuse, match=f"files: .*{message}"):
            lla.paths.from_checkpoints(str(tmp_path / name), LIKE)
    flipped = bytearray(content)
    flipped[content.index(np.full(6, 1, np.float32).tobytes()) + 3] ^= 1
    (tmp_path / "flipped.npz").write_bytes(flipped)
    with pytest.raises(Misuse, match=r"flipped.npz cannot be read \(BadZipFile: Bad CRC"):
        lla.paths.from_checkpoints([good, tmp_path / "flipped.npz"], LIKE)[1]


def test_false_claims_of_size_take_no_memory(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", **flat(params(1)), **{"batch_stats/x": np.zeros(2**27, np.uint8)})
    with pytest.raises(Misuse, match=r"bomb.npz: 'batch_stats/x' has shape \(134217728,\), far more"):
        lla.paths.from_checkpoints([tmp_path / "bomb.npz"], LIKE)
    np.savez_compressed(tmp_path / "small.npz", **flat(params(1)))
    check(lla.paths.from_checkpoints([tmp_path / "small.npz"], LIKE), [1])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "files: none given"),
        (7, "files: 7 given; it must be a list of paths"),
        ([params(1)], "files: .*trees in memory are a path as they are"),
    ],
)
def test_what_is_no_list_of_files_is_refused(files, message):
    with pytest.raises(Misuse, match=message):
        lla.paths.from_checkpoints(files, LIKE)


def test_without_the_package_safetensors_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").write_bytes(b"12345678")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(Misuse, match=r"pip install 'lla-jax\[checkpoints\]'"):
        lla.paths.from_checkpoints([tmp_path / "a.safetensors"], LIKE)
