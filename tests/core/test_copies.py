"""What was read stays what it was, whatever the user's arrays hold later."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core.copies import own
from tests.helpers import FIXED

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(24, 40)).astype(np.float32), RNG.normal(size=24).astype(np.float32)
PARAMS = {"w": RNG.normal(size=40).astype(np.float32)}
ROWS = 4


def apply(params, state, batch, train):
    return jnp.tanh(batch["x"] @ params["w"]) + (0 if state is None else state["shift"]), state


def criterion(outputs, batch):
    return (outputs - batch["y"]) ** 2


LOSS = lla.Loss(apply, criterion)
AXIS = lla.directions.random(jax.random.key(0), PARAMS, num=1)


def aligned(shape):
    """An array at an address that jax on a CPU takes without a copy."""
    memory = np.empty(4 * int(np.prod(shape)) + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + 4 * int(np.prod(shape))].view(np.float32).reshape(shape)


def buffers_of_numpy():
    return {"x": aligned((ROWS, 40)), "y": aligned((ROWS,))}, lambda buffer, rows: np.copyto(buffer, rows)


def buffers_of_views():
    whole = {"x": aligned((2 * ROWS, 40))[::2], "y": aligned((2 * ROWS,))[::2]}
    views = {name: x[:] for name, x in whole.items()}
    for view in views.values():
        view.flags.writeable = False
    return views, lambda buffer, rows: np.copyto(next(x for x in whole.values() if x.ndim == rows.ndim), rows)


def buffers_of_torch():
    torch = pytest.importorskip("torch")
    return {"x": torch.empty(ROWS, 40), "y": torch.empty(ROWS)}, lambda b, rows: b.copy_(torch.from_numpy(rows))


def buffers_of_bytes():
    memories = {"x": bytearray(4 * ROWS * 40), "y": bytearray(4 * ROWS)}
    shown = {name: np.frombuffer(memoryview(x).toreadonly(), np.float32) for name, x in memories.items()}

    def fill(buffer, rows):
        memories["x" if rows.ndim == 2 else "y"][:] = rows.tobytes()

    return {"x": shown["x"].reshape(ROWS, 40), "y": shown["y"]}, fill


def buffers_of_jax():
    filled, fill = buffers_of_numpy()
    return jax.device_put(filled), lambda shown, rows: fill(filled["x" if rows.ndim == 2 else "y"], rows)


@pytest.mark.parametrize(
    "make", [buffers_of_numpy, buffers_of_views, buffers_of_torch, buffers_of_bytes, buffers_of_jax]
)
def test_a_stream_may_fill_its_buffers_again(make):
    def batches():
        buffer, fill = make()
        for start in range(0, len(X), ROWS):
            fill(buffer["x"], X[start : start + ROWS])
            fill(buffer["y"], Y[start : start + ROWS])
            yield buffer
        for name, rows in (("x", X), ("y", Y)):
            fill(buffer[name], np.full_like(rows[:ROWS], np.nan))

    streamed, held = lla.stream(batches), {"x": X, "y": Y}
    batches_read = list(streamed)
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in batches_read]), X)

    def numbers(data):
        plane = lla.evaluate(LOSS, PARAMS, data, AXIS, lla.grid(points=3, dims=1), execution=FIXED)
        product = lla.hessian(LOSS, PARAMS, data) @ PARAMS
        gradient = lla.directions.gradient(LOSS, PARAMS, data)
        return [plane.values["loss"], product["w"], gradient.tree["w"]]

    for one, two in zip(numbers(streamed), numbers(held), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("linearize", [True, False])
def test_an_operator_keeps_what_it_was_made_of(linearize):
    held = {"x": aligned(X.shape), "y": aligned(Y.shape), "w": aligned((40,)), "shift": aligned((1,))}
    held["x"][:], held["y"][:], held["w"][:], held["shift"][:] = X, Y, PARAMS["w"], 0.5
    loss = lla.Loss(apply, criterion, state={"shift": held["shift"]})
    data, params = {name: held[name] for name in "xy"}, {"w": held["w"]}
    H = lla.hessian(loss, params, data, execution=lla.Execution(linearize=linearize))
    before = np.asarray((H @ PARAMS)["w"])
    moved = {"w": aligned((40,))}
    moved["w"][:] = 2 * PARAMS["w"]
    other = H.at(moved)
    there = np.asarray((other @ PARAMS)["w"])
    for array in (*held.values(), moved["w"]):
        array[:] = 0.1
    np.testing.assert_array_equal((H @ PARAMS)["w"], before)
    np.testing.assert_array_equal((other @ PARAMS)["w"], there)
    np.testing.assert_array_equal((H.at({"w": 2 * PARAMS["w"]}) @ PARAMS)["w"], there)


def test_results_and_given_products_keep_what_they_were_made_of():
    matrix, tree = aligned((3, 3)), {"w": aligned((40,))}
    matrix[:], tree["w"][:] = np.eye(3), PARAMS["w"]
    A = lla.operators.given(lambda v, m: m @ v, jnp.zeros(3), matrix)
    axes = lla.directions.given(tree, tree)
    product = A @ jnp.ones(3)
    matrix[:], tree["w"][:] = 7, 7
    np.testing.assert_array_equal(A @ jnp.ones(3), np.ones(3))
    np.testing.assert_array_equal(product, np.ones(3))
    np.testing.assert_array_equal(axes.tree["w"][0], PARAMS["w"])


def test_only_what_somebody_can_write_to_is_copied():
    array = np.ones(3, np.float32)
    view = array[:]
    view.flags.writeable = False
    frozen = np.frombuffer(bytes(12), np.float32)
    tree = own({"array": array, "view": view, "frozen": frozen, "jax": (held := jnp.ones(3)), "number": 3})
    assert tree["frozen"] is frozen
    assert tree["jax"] is held
    assert tree["number"] == 3
    assert all(a is b for a, b in zip(jax.tree.leaves(own(tree)), jax.tree.leaves(tree), strict=True))
    for name in ("array", "view"):
        assert not np.shares_memory(tree[name], array)
        assert tree[name].ctypes.data % 64 == 0


def test_a_read_only_file_is_not_copied(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert own(mapped) is mapped
    assert own(np.load(tmp_path / "x.npy", mmap_mode="r+")) is not mapped
    [batch] = lla.stream([mapped[:5]])
    assert np.shares_memory(batch, mapped)


@pytest.mark.parametrize("dtype", ["bool", "float16", "int64", "complex64", "U3", "O"])
@pytest.mark.parametrize("shape", [(), (0, 3), (4, 3)])
def test_copies_equal_the_originals(dtype, shape):
    array = np.ones(shape, dtype)[..., None].T
    copy = own(array)
    assert copy.dtype == array.dtype
    np.testing.assert_array_equal(copy, array)
