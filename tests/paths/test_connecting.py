import os
import shutil
import signal
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lla_jax as lla
from lla_jax.core import files
from lla_jax.paths.training.control_points import draw_ts
from tests.helpers import compilations, cross_entropy, dataset, mlp_loss, params

KEY = jax.random.key(0)
DATA = dataset(20)
SGD = optax.sgd(0.1, momentum=0.9)
LEFT, RIGHT = {"x": np.float32(-1), "y": np.float32(0)}, {"x": np.float32(1), "y": np.float32(0)}


def ring(p):
    return (p["x"] ** 2 + p["y"] ** 2 - 1) ** 2


def highest(curve):
    points = [curve(t) for t in np.linspace(0, 1, 2001)]
    return max(float(ring({k: np.float64(v) for k, v in p.items()})) for p in points)


def connect(**options):
    given = {"key": KEY, "steps": 6, "batch_size": 8, "optimizer": SGD} | options
    return lla.paths.connect(mlp_loss(), params(0), params(1), DATA, **given)


def assert_same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one.points, two.points)
    for name in ("loss", "t"):
        np.testing.assert_array_equal(one.history[name], two.history[name])
    assert one.recipe == two.recipe


@pytest.fixture(scope="module")
def complete():
    return connect()


# --- what comes out


def test_a_bezier_around_the_ring_is_the_best_one_and_more_points_are_better():
    for seed in (0, 1):
        curve = lla.paths.connect(ring, LEFT, RIGHT, None, key=jax.random.key(seed))
        assert highest(curve) == pytest.approx(0.049, abs=0.002)
    more = lla.paths.connect(ring, LEFT, RIGHT, None, key=KEY, points=4)
    assert highest(more) < 0.01
    chain = lla.paths.connect(ring, LEFT, RIGHT, None, key=KEY, kind="polygon", points=5)
    assert highest(chain) < 0.04


@pytest.mark.parametrize("optimizer", [optax.sgd(0.02, momentum=0.9), optax.adam(0.02)], ids=["sgd", "adam"])
def test_a_constant_learning_rate_leaves_no_scatter_in_the_curve(optimizer):
    """The control points of the last step alone give maxima between .046 and .065."""
    for seed in (1, 2):
        curve = lla.paths.connect(ring, LEFT, RIGHT, None, key=jax.random.key(seed), steps=2000, optimizer=optimizer)
        assert highest(curve) == pytest.approx(0.0494, abs=0.002)


def test_without_a_displacement_the_straight_line_is_stationary():
    curve = lla.paths.connect(ring, LEFT, RIGHT, None, key=KEY, displacement=0)
    np.testing.assert_array_equal(curve.points["y"], 0)
    assert highest(curve) == pytest.approx(1, abs=1e-5)


def test_the_ends_are_kept_to_the_bit_and_the_history_has_every_step(complete):
    for end, given in zip(complete.ends, (params(0), params(1)), strict=True):
        jax.tree.map(np.testing.assert_array_equal, end, given)
    assert complete.history["loss"].shape == complete.history["t"].shape == (6,)
    assert complete.recipe["complete"]
    assert complete.recipe["displacement"] == 0.05


def test_every_t_is_uniform_and_of_thirty_two_one_lies_in_each_part():
    ts = np.concatenate([draw_ts(KEY, start, 256) for start in range(0, 2560, 256)])
    np.testing.assert_array_equal(draw_ts(KEY, 33, 256), ts[33 : 33 + 256])
    np.testing.assert_array_equal(np.sort((ts.reshape(-1, 32) * 32).astype(int), 1), np.arange(32)[None].repeat(80, 0))
    firsts = ts[::32]  # of each group the first: uniform too
    assert np.abs(np.sort(firsts) - (np.arange(80) + 0.5) / 80).max() < 0.182  # Kolmogorov-Smirnov at 1 %


def test_a_step_of_sgd_is_the_weighted_gradient_with_the_decay_at_the_point_of_the_curve():
    options = {"steps": 1, "batch_size": None, "optimizer": optax.sgd(1.0), "kind": "polygon", "points": 4}
    one = connect(**options, displacement=0, weight_decay=0.3)
    line, t = lla.paths.line(params(0), params(1)), one.history["t"][0]
    start, theta = line.trajectory(4, by="t"), line(t)

    def objective(p):
        outputs = mlp_loss().apply(p, None, DATA, True)[0]
        return cross_entropy(outputs, DATA).mean() + 0.15 * sum(jnp.sum(x**2) for x in jax.tree.leaves(p))

    gradient = jax.jit(jax.grad(objective))(theta)
    for k, weight in enumerate(one.weights(t)):
        moves = jax.tree.map(lambda x, y, k=k: x - y[k], start[k], one.points)
        expected = jax.tree.map(lambda g, w=weight * (k in (1, 2)): w * g, gradient)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-6), moves, expected)
    without = connect(**options, displacement=0)
    assert one.history["loss"] == without.history["loss"]  # which is without the decay


def test_parameters_that_are_not_selected_stay_on_the_straight_line(complete):
    curve = connect(select="**/kernel", steps=2)
    line = lla.paths.line(params(0), params(1))(0.5)
    for layer in ("Dense_0", "Dense_1"):
        np.testing.assert_allclose(curve.points[layer]["bias"][1], line[layer]["bias"], atol=1e-7)
        assert np.abs(curve.points[layer]["kernel"][1] - line[layer]["kernel"]).min() > 0
    np.testing.assert_array_equal(curve.points["gain"], 1.5)
    assert curve.recipe["select"]["paths"] == ["Dense_0/kernel", "Dense_1/kernel"]
    assert complete.recipe["select"] is None


def test_keys_steps_and_equal_optimizers_compile_nothing(complete):
    connect(steps=3, optimizer=None)
    with compilations() as count:
        connect(key=jax.random.key(5), steps=4, optimizer=optax.sgd(0.1, momentum=0.9))
        connect(key=jax.random.key(5), steps=5, optimizer=None)
        lla.paths.connect(mlp_loss(), params(2), params(3), DATA, key=KEY, steps=7, batch_size=8)
    assert count.count == 0


# --- losses and data of every kind


def normed(p, state, batch, train):
    h = batch[0] @ p["w"]
    mean = h.mean(0) if train else state["mean"]
    return h - mean, {"mean": 0.9 * state["mean"] + 0.1 * h.mean(0)}


def spread(outputs, batch):
    return (outputs**2).sum(-1)


def test_batch_statistics_are_those_of_each_end_and_the_second_is_asked_for():
    loss = lla.Loss(normed, spread, state={"mean": np.zeros(3, np.float32)})
    a, b = ({"w": np.full((5, 3), w, np.float32)} for w in (1, 2))
    given = {"key": KEY, "steps": 2, "batch_size": 8}
    curve = lla.paths.connect(loss, a, b, DATA, state_b={"mean": np.ones(3, np.float32)}, **given)
    np.testing.assert_array_equal(curve.states["mean"], [[0] * 3, [1] * 3])
    with pytest.raises(ValueError, match=r"state_b: none given, and the loss has a state of floats \(mean, ..."):
        lla.paths.connect(loss, a, b, DATA, **given)
    with pytest.raises(ValueError, match=r"state_b: .* the loss has no state"):
        connect(state_b={"mean": np.ones(3)})


def test_a_stream_gives_the_same_batches_as_a_list_of_them_and_is_resumed(tmp_path):
    batches = [dataset(n, seed) for seed, n in enumerate((5, 3, 4))]
    loss, given = mlp_loss(), {"key": KEY, "optimizer": SGD}
    curve = lla.paths.connect(loss, params(0), params(1), lla.stream(batches), steps=5, **given)
    first = lla.paths.connect(loss, params(0), params(1), lla.stream(batches), steps=2, store=tmp_path, **given)
    again = lla.paths.connect(loss, params(0), params(1), lla.stream(batches), steps=5, store=tmp_path, **given)
    assert first.history["loss"].tolist() == curve.history["loss"][:2].tolist()
    assert_same(again, curve)
    with pytest.raises(ValueError, match="batch_size: 2 given, but a stream has its own batches"):
        lla.paths.connect(loss, params(0), params(1), lla.stream(batches), batch_size=2, **given)


def noisy(p, state, batch, train, keys):
    return jax.vmap(jax.random.normal)(keys) + p["w"], state


def as_it_is(outputs, batch):
    return outputs**2


def test_noise_is_fresh_at_each_step_and_half_precision_moves_in_float32():
    loss = lla.Loss(noisy, as_it_is, key=jax.random.key(1))
    a, b = ({"w": jnp.asarray(w, jnp.bfloat16)} for w in (0, 2**-10))
    curve = lla.paths.connect(loss, a, b, DATA, key=KEY, steps=3)
    assert len(set(curve.history["loss"])) == 3
    assert curve.points["w"].dtype == np.float32


# --- the store


def test_a_shorter_training_goes_on_to_the_same_bits_and_a_finished_one_is_returned(tmp_path, complete):
    connect(steps=4, store=tmp_path)
    assert_same(connect(store=tmp_path), complete)
    before = (tmp_path / "training.npz").stat()
    assert_same(connect(store=tmp_path), complete)
    assert (tmp_path / "training.npz").stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(ValueError, match="holds 6 steps, and 3 are asked for"):
        connect(steps=3, store=tmp_path)


def test_ctrl_c_keeps_what_is_finished(tmp_path, complete):
    def press(done, total):
        if done == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        connect(store=tmp_path, save_every=5, progress=press)
    assert files.read_header(tmp_path / "training.npz")["step"] == 1
    assert_same(connect(store=tmp_path, save_every=2), complete)


KILLED = """
import os, signal, sys
from paths import test_connecting
from lla_jax.core import files

left, replace = [4], os.replace

def kill_at_the_fourth(source, target):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

files.os.replace = kill_at_the_fourth
test_connecting.connect(store=sys.argv[1])
"""


def test_a_kill_while_a_step_is_written_loses_this_step_alone(tmp_path, complete):
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.pathsep.join([folder, *sys.path])
    code = [sys.executable, "-c", KILLED, str(tmp_path)]
    run = subprocess.run(code, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert files.read_header(tmp_path / "training.npz")["step"] == 3
    assert_same(connect(store=tmp_path), complete)


CHANGES = {
    "kind": {"kind": "polygon"},
    "points": {"points": 4},
    "displacement": {"displacement": 0.1},
    "key": {"key": jax.random.key(1)},
    "select": {"select": "**/kernel"},
    "weight_decay": {"weight_decay": 0.1},
    "batch_size": {"batch_size": 5},
    "optimizer": {"optimizer": optax.sgd(0.2, momentum=0.9)},
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    connect(steps=2, store=folder)
    return folder


@pytest.mark.parametrize("name", CHANGES)
def test_another_recipe_is_refused_by_name(name, kept):
    with pytest.raises(ValueError, match=rf"store: the training in .* differs in {name} \(.*->"):
        connect(store=kept, **CHANGES[name])


def doubled(outputs, batch):
    return 2 * cross_entropy(outputs, batch)


def test_another_loss_and_another_way_of_the_optimizer_are_refused_by_the_first_step(kept):
    with pytest.raises(ValueError, match=r"store: .* is another one, since its first step differs \(its loss:"):
        lla.paths.connect(
            lla.Loss(mlp_loss().apply, doubled),
            params(0),
            params(1),
            DATA,
            key=KEY,
            batch_size=8,
            optimizer=SGD,
            store=kept,
        )
    with pytest.raises(ValueError, match="differs in params"):
        lla.paths.connect(mlp_loss(), params(0), params(2), DATA, key=KEY, batch_size=8, optimizer=SGD, store=kept)


def test_the_steps_belong_to_the_recipe_where_the_schedule_follows_from_them(tmp_path):
    connect(steps=2, optimizer=None, store=tmp_path)
    with pytest.raises(ValueError, match=r"differs in steps \(2 -> 3\)"):
        connect(steps=3, optimizer=None, store=tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"PK" + data[9:]]
)
def test_a_damaged_file_is_named(damage, kept, tmp_path):
    shutil.copytree(kept, tmp_path / "store")
    file = tmp_path / "store" / "training.npz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"store: .*training.npz is damaged, .*; remove it and repeat the call"):
        connect(store=tmp_path / "store")


def test_a_store_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"store: .*file cannot be written to"):
        connect(store=tmp_path / "file")


# --- trouble and misuse


def steep(p):
    return jnp.exp(40 * p["x"] ** 2) - 1 + p["y"] ** 2


def test_a_training_that_blows_up_ends_with_a_warning_and_the_steps_before(tmp_path):
    given = {"key": KEY, "steps": 50, "optimizer": optax.sgd(1.0), "store": tmp_path}
    for _ in range(2):  # the second call finds it in the store
        with pytest.warns(UserWarning, match=r"steps: .* not finite at step \d+ .*: lower") as w:
            curve = lla.paths.connect(steep, LEFT, RIGHT, None, **given)
        assert len(w) == 1
        stopped = curve.recipe["stopped"]
        assert not curve.recipe["complete"]
        assert len(curve.history["loss"]) == stopped + 1 < 50
        assert all(np.isfinite(x).all() for x in curve.points.values())


class SGDOfTorch:
    __module__ = "torch.optim.sgd"


WRONG = (
    (SGDOfTorch(), "those of PyTorch train torch modules alone"),
    (optax.adam(1e-3).init({"w": np.ones(2)}), "and not its state"),
    (optax.adam, "call what makes one"),
    (optax.cosine_decay_schedule(0.1, 10), "put a schedule into it"),
    (0.01, r"such as optax.adam\(0.01\)"),
    ("adam", "such as optax.adam"),
)


def test_what_is_no_optimizer_is_refused_with_what_to_pass():
    for given, advice in WRONG:
        with pytest.raises(ValueError, match=rf"optimizer: .* given; it must be an optax optimizer, .*{advice}"):
            connect(optimizer=given)
    with pytest.raises(ValueError, match=r"optimizer: the optimizer's update .*lbfgs"):
        connect(optimizer=optax.lbfgs())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "spline"}, "kind: 'spline' given"),
        ({"steps": 0}, "steps: 0 given"),
        ({"steps": 2.5}, "steps: 2.5 given"),
        ({"points": 2}, "points: 2 given, which are the ends alone"),
        ({"points": 1}, "points: 1 given"),
        ({"displacement": -1}, "displacement: -1 given"),
        ({"weight_decay": -1}, "weight_decay: -1 given"),
        ({"batch_size": 0}, "batch_size: 0 given"),
        ({"save_every": 0}, "save_every: 0 given"),
        ({"key": 0}, "key: 0 given"),
        ({"cycles": 3}, 'cycles: 3 given; it must be left out for kind="bezier"'),
        ({"execution": lla.Execution(chunk=2)}, "execution.chunk: 2 given"),
        ({"store": 3}, "store: 3 given"),
        ({"select": "**/karnel"}, "select: .*matches no leaf"),
        ({"select": "**/kernel", "kind": "band"}, 'select: .* left out for kind="band"'),
    ],
)
def test_misuse_names_the_argument(options, message):
    with pytest.raises(ValueError, match=message):
        connect(**options)


def test_ends_that_do_not_fit_are_named():
    given = {"key": KEY, "steps": 1}
    bad = params(1) | {"gain": np.float32("nan")}
    with pytest.raises(ValueError, match=r"b\['gain'\] .*not finite|b\['gain'\].*NaN"):
        lla.paths.connect(mlp_loss(), params(0), bad, DATA, **given)
    with pytest.raises(ValueError, match="b: equals a"):
        lla.paths.connect(mlp_loss(), params(0), params(0), DATA, **given)
    with pytest.raises(ValueError, match=r"b: has another structure than a"):
        lla.paths.connect(mlp_loss(), params(0), {"w": np.ones(2)}, DATA, **given)


def scheduled(count):
    return 0.1 * 0.5**count


def matrices(p):
    return jax.tree.map(lambda x: jnp.ndim(x) > 1, p)


OPTIMIZERS = {
    "many": optax.chain(
        optax.add_noise(0.01, 0.5, jax.random.key(0)),
        optax.masked(
            optax.adam(scheduled, mu_dtype=jnp.bfloat16), lambda p: jax.tree.map(lambda x: jnp.ndim(x) > 1, p)
        ),
        optax.contrib.reduce_on_plateau(),
    ),
    "injected": optax.inject_hyperparams(optax.adamw)(learning_rate=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_of_all_kinds_go_on_from_a_store_to_the_bit(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        options = {"optimizer": OPTIMIZERS[name], "points": 4, "steps": 3}
        alone = connect(**options)
        connect(**options | {"steps": 2}, store=tmp_path)
        assert_same(connect(**options, store=tmp_path), alone)
