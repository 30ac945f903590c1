"""Recording a training run: what is kept, read again, continued and left after a kill."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core.arguments import Misuse


def network(i, extra=0):
    """A tree of all floating types and containers, with a NaN, an infinity and a negative zero."""
    draw = np.random.default_rng(i).normal
    special = np.array([np.nan, np.inf, -0.0], np.float32)
    return {
        "mlp/~/linear": {"w": jnp.asarray(draw(size=(2, 3 + extra)), jnp.float32)},
        "layers": [draw(size=3), (jnp.asarray(draw(size=2), jnp.bfloat16), np.float16(draw(size=(2, 2))))],
        "small": jnp.asarray(draw(size=3), jnp.float8_e4m3fn),
        "empty": np.zeros((0, 2)),
        "scalar": np.float64(i),
        "none": None,
        "special": special,
    }


def state_of(i):
    return {"key": jax.random.key(i), "count": np.int64(2**40 + i), "on": np.array([True, False]), "mean": jnp.ones(2)}


def same_bits(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two)):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            assert x.dtype == y.dtype
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def read_back(path, i):
    """The parameters of a checkpoint without the check that they are finite."""
    return path.checkpoints[i].params()


def simple(i, shape=(3,)):
    return {"w": np.full(shape, float(i), np.float32)}


def test_every_array_comes_back_to_the_bit(tmp_path):
    track = lla.paths.record(tmp_path / "traj", every=2)
    kept = [track(network(i), i, loss=jnp.float32(i) / 3, state=state_of(i)) for i in range(5)]
    assert kept == [True, False, True, False, True]
    path = lla.paths.load(tmp_path / "traj")
    np.testing.assert_array_equal(path.steps, [0, 2, 4])
    np.testing.assert_array_equal(path.losses, np.float32([0, 2, 4]) / np.float32(3))
    assert path.names == ("step 0", "step 2", "step 4")
    for i in range(3):
        same_bits(read_back(path, i), network(2 * i))
        same_bits(path.state(i), state_of(2 * i))


def test_nnx_and_equinox_trees_come_back_in_their_own_structure(tmp_path):
    eqx = pytest.importorskip("equinox")
    from flax import nnx

    model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    mlp = eqx.filter(eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(0)), eqx.is_inexact_array)
    for name, params, state in (
        ("nnx", nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)),
        ("equinox", mlp, None),
    ):
        lla.paths.record(tmp_path / name)(params, 0, state=state)
        path = lla.paths.load(tmp_path / name, like=params, state_like=state)
        same_bits(path[0], params)
        if state is not None:
            same_bits(path.state(0), state)
    bare = lla.paths.load(tmp_path / "nnx")[0]
    assert bare["layers"][0]["kernel"].shape == (2, 3)  # dicts of the same paths


def test_keep_overrules_and_a_loss_is_waited_for_only_when_it_is_recorded(tmp_path):
    class Waiting:
        asked = 0

        def __array__(self, dtype=None, copy=None):
            Waiting.asked += 1
            return np.asarray(0.5, dtype)

    track = lla.paths.record(tmp_path, every=3)
    assert not track(simple(0), 1, Waiting())
    assert not track(simple(0), 3, Waiting(), keep=False)
    assert Waiting.asked == 0
    assert track(simple(0), 4, Waiting(), keep=True)
    assert Waiting.asked == 1
    assert track(simple(9), 4, keep=True)  # the same step again takes its place
    path = lla.paths.load(tmp_path)
    np.testing.assert_array_equal(path.steps, [4])
    np.testing.assert_array_equal(path[0]["w"], 9)
    assert np.isnan(path.losses[0])


def test_neither_device_nor_host_keeps_what_was_recorded(tmp_path):
    track = lla.paths.record(tmp_path, every=1)
    size = 2**16

    def step(i):
        track({"w": jnp.full(size, float(i), jnp.float32)}, i)

    step(0)
    before = len(jax.live_arrays())
    tracemalloc.start()
    for i in range(1, 21):
        step(i)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(jax.live_arrays()) == before
    assert held < size  # a quarter of one checkpoint of twenty


def test_a_continued_run_goes_on_and_an_abandoned_one_is_moved_aside(tmp_path):
    first = lla.paths.record(tmp_path, every=1)
    for i in range(6):
        first(simple(i), i)
    second = lla.paths.record(tmp_path, every=1)
    second(simple(6), 6)  # no warning
    third = lla.paths.record(tmp_path, every=1)
    with pytest.warns(UserWarning, match=r"recorded anew from step 4 on, so 3 later steps.*'abandoned-1'"):
        third(simple(40), 4)
    path = lla.paths.load(tmp_path)
    np.testing.assert_array_equal(path.steps, [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(path[-1]["w"], 40)
    np.testing.assert_array_equal(lla.paths.load(tmp_path / "abandoned-1").steps, [4, 5, 6])
    with pytest.raises(Misuse, match="recorded by another run, which began later"):
        first(simple(6), 6)


def test_another_architecture_in_the_folder_is_named(tmp_path):
    lla.paths.record(tmp_path)(network(0), 0)
    track = lla.paths.record(tmp_path)
    with pytest.raises(
        Misuse, match=r"params: its leaf 'mlp/~/linear/w' is float32 \(2, 4\), and was float32 \(2, 3\)"
    ):
        track(network(0, extra=1), 10)
    with pytest.raises(Misuse, match=r"params: lacks .*of another network; record this one in another folder"):
        track(simple(0), 10)
    with pytest.raises(Misuse, match="state: given now, and not then"):
        track(network(0), 10, state=state_of(0))
    assert len(lla.paths.load(tmp_path)) == 1


def test_files_of_two_networks_are_refused(tmp_path):
    for name, shape in (("a", (3,)), ("b", (4,))):
        lla.paths.record(tmp_path / name)(simple(0, shape), 0 if name == "a" else 10)
    shutil.copy(tmp_path / "b/step-0000000010.npz", tmp_path / "a")
    with pytest.raises(
        Misuse, match=r"step-0000000010.npz params: its leaf 'w' is float32 \(4,\), and was float32 \(3,"
    ):
        lla.paths.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda track: jax.jit(lambda p: track(p, 10))(simple(0)), "track: called inside of jax.jit"),
        (lambda track: jax.jit(lambda s: track(simple(0), s))(1), "track: called inside of jax.jit"),
        (lambda track: track({"w": np.ones(3, int)}, 0), r"params\['w'\] has dtype"),
        (lambda track: track({}, 0), "params: has no array leaves"),
        (lambda track: track(simple(0), 0, state={"name": "x"}), r"state\['name'\] is 'x'; it must be an array of num"),
        (lambda track: track(simple(0), -10), "step: -10 given; it must be an integer from 0"),
        (lambda track: track(simple(0), 0.5), "step: 0.5 given"),
        (lambda track: track(simple(0), 0, loss=np.ones(3)), "loss: .* a number"),
        (lambda track: track(simple(0), 0, keep="no"), "keep: 'no' given; it must be True or False"),
        (lambda track: (track(simple(0), 20), track(simple(0), 10)), "step: 10 given; it must be at least 20"),
    ],
)
def test_misuse_of_track_is_explained(tmp_path, call, message):
    with pytest.raises(Misuse, match=message):
        call(lla.paths.record(tmp_path))


def test_misuse_of_record_and_load_is_explained(tmp_path):
    file = tmp_path / "file"
    file.write_text("text")
    for call, message in (
        (lambda: lla.paths.record(file), "folder: .*is a file"),
        (lambda: lla.paths.record(tmp_path, every=0), "every: 0 given"),
        (lambda: lla.paths.record(tmp_path, differences="float16"), "differences: 'float16' given"),
        (lambda: lla.paths.load(file), "folder: .*is a file"),
        (lambda: lla.paths.load(tmp_path / "none"), "folder: .*does not exist"),
        (lambda: lla.paths.load(tmp_path), r"holds no recorded steps, but \['file'\]"),
    ):
        with pytest.raises(Misuse, match=message):
            call()
    lla.paths.record(tmp_path / "traj")(simple(0), 0)
    with pytest.raises(Misuse, match=r"folder\['w'\] has shape \(3,\); it must be \(4,\), as in like"):
        lla.paths.load(tmp_path / "traj", like=simple(0, (4,)))


def test_damaged_files_are_named_and_the_others_are_read(tmp_path):
    track = lla.paths.record(tmp_path, every=1)
    for i in range(6):
        track(simple(i, (400,)), i)
    (tmp_path / ".step-0000000006-abc.tmp").write_bytes(b"half")  # what a kill leaves
    with open(tmp_path / "step-0000000002.npz", "r+b") as file:
        file.truncate(900)
    (tmp_path / "step-0000000003.npz").write_bytes(b"")
    os.rename(tmp_path / "step-0000000004.npz", tmp_path / "step-0000000007.npz")
    with pytest.warns(UserWarning, match=r"3 of 6 files.*step-0000000002.npz.*03.npz.*07.npz.*of step 4") as seen:
        path = lla.paths.load(tmp_path)
    assert seen[0].filename == __file__
    np.testing.assert_array_equal(path.steps, [0, 1, 5])
    content = bytearray((tmp_path / "step-0000000005.npz").read_bytes())
    content[content.index(np.float32(5).tobytes() * 300) + 600] ^= 1  # a bit of the array: found when it is read
    (tmp_path / "step-0000000005.npz").write_bytes(content)
    with pytest.raises(Misuse, match=r"path: .*step-0000000005\.npz cannot be read"):
        path[-1]
    np.testing.assert_array_equal(path[1]["w"], 1)


def test_differences_are_smaller_and_their_largest_rounding_is_told(tmp_path):
    draw = np.random.default_rng(0).normal
    walk = np.cumsum(0.01 * draw(size=(9, 5000)).astype(np.float32), axis=0)
    walk[6, 3] = np.inf
    track = lla.paths.record(tmp_path, every=1, differences="bfloat16", full_every=4)
    for i, w in enumerate(walk):
        track({"w": w.copy(), "half": jnp.asarray(w[:5], jnp.bfloat16)}, i)
    path = lla.paths.load(tmp_path)
    told = path.recipe["differences"]
    errors = []
    for i, w in enumerate(walk):
        params = read_back(path, i)
        same_bits(params["half"], jnp.asarray(w[:5], jnp.bfloat16))
        with np.errstate(invalid="ignore"):
            errors.append(np.abs(params["w"] - w).max() if i != 6 else np.nanmax(np.abs(params["w"] - w)))
    full = [each.params.args[0].base is None for each in path.checkpoints]
    assert full == [True, False, False, False, True, False, True, True, False]  # 6 is not finite
    assert told == {"dtype": "bfloat16", "largest_rounding": pytest.approx(max(errors))}
    assert 0 < told["largest_rounding"] < 2**-8 * 0.2
    assert all(errors[i] == 0 for i, yes in enumerate(full) if yes)
    sizes = [each.params.args[0].file.stat().st_size for each in path.checkpoints]
    assert sizes[1] < 0.6 * sizes[0]
    assert "differences" not in lla.paths.given([simple(0)]).recipe
    (tmp_path / "step-0000000004.npz").unlink()
    with pytest.warns(UserWarning, match="step-0000000005.npz .it holds differences from step 4"):
        assert list(lla.paths.load(tmp_path).steps) == [0, 1, 2, 3, 6, 7, 8]


def test_a_kill_loses_at_most_the_step_in_hand(tmp_path):
    folder = tmp_path / "traj"
    code = f"""
    import numpy as np, lla_jax as lla
    track = lla.paths.record({str(folder)!r}, every=1)
    for i in range(10**6):
        track({{"w": np.full(2**18, i, np.float32)}}, i, loss=i)
        print(i, flush=True)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE) as process:
        for _ in range(12):
            last = int(process.stdout.readline())
        time.sleep(0.003)  # into a later step
        process.send_signal(signal.SIGKILL)
        last = int((process.stdout.read().split() or [last])[-1])
    path = lla.paths.load(folder)
    assert len(path) in (last + 1, last + 2)
    np.testing.assert_array_equal(path.steps, np.arange(len(path)))
    for i, params in enumerate(path):
        np.testing.assert_array_equal(params["w"], i)
    assert path.losses[last] == last
