"""The embedded problem: its data, its accuracy, and the tour through its landscapes."""

from __future__ import annotations

import contextlib

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax import demo
from lla_jax.demo import tour


def test_digits_are_split_by_the_seed_and_all_there():
    split = (x, y), (x_test, y_test) = demo.load_digits(3)
    assert x.shape == (1437, 8, 8, 1)
    assert x_test.shape == (360, 8, 8, 1)
    assert x.dtype == x_test.dtype == np.float32
    assert y.dtype == y_test.dtype == np.int32
    assert (x.min(), x.max()) == (0, 1)
    np.testing.assert_array_equal(demo.load_digits(3)[0][0], x)
    other = demo.load_digits(4)
    assert not np.array_equal(other[0][0], x)

    def marks(sets):
        return np.sort([image.ravel() @ np.arange(64.0) for images, _ in sets for image in images])

    np.testing.assert_array_equal(marks(split), marks(other))
    counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # of each digit, as its source states them
    np.testing.assert_array_equal(np.bincount(np.concatenate([y, y_test])), counts)


def test_shifts_move_whole_images_by_at_most_a_pixel():
    images = demo.load_digits()[0][0][:200]
    moved = demo.shift(images, np.random.default_rng(0))
    padded = np.pad(images[..., 0], ((0, 0), (1, 1), (1, 1)))
    candidates = np.stack([padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)], 1)
    assert (candidates == moved[:, None, :, :, 0]).all((2, 3)).any(1).all()
    assert 0.2 < (moved == images).all((1, 2, 3)).mean() < 0.8


@pytest.mark.parametrize("seed", range(5))
def test_test_accuracy_is_at_least_97_percent(seed):
    seen = []
    trained = demo.train(seed, progress=lambda done, total: seen.append((done, total)))
    outputs = jax.jit(trained.module.apply)(trained.variables, trained.test[0])
    assert float(demo.accuracy(outputs, trained.test).mean()) >= 0.97
    assert seen == [(i + 1, 528) for i in range(528)]


def test_training_is_reproducible_and_refuses_no_epochs():
    first, second = demo.train(1, epochs=2), demo.train(1, epochs=2)
    jax.tree.map(np.testing.assert_array_equal, first.variables, second.variables)
    with pytest.raises(ValueError, match="epochs: 0 given; it must be an integer of at least 1"):
        demo.train(epochs=0)


def test_problem_is_complete():
    problem = demo.problem(epochs=2)
    assert isinstance(problem, lla.Problem)
    assert set(problem.metrics) == {"accuracy"}
    assert set(problem.extra_data) == {"test"}
    point = lla.evaluate(
        problem.loss,
        problem.params,
        problem.data,
        lla.directions.adam_moments(problem.opt_state, problem.params),
        lla.grid(points=1),
        metrics=problem.metrics,
        extra_data=problem.extra_data,
    )
    for prefix, (images, labels) in {"": problem.data, "test_": problem.extra_data["test"]}.items():
        variables = {"params": problem.params, **problem.loss.state}
        outputs = jax.jit(demo.CNN().apply)(variables, images)
        logs = np.asarray(jax.nn.log_softmax(outputs), np.float64)
        expected = -logs[np.arange(len(labels)), labels].mean()
        np.testing.assert_allclose(point.values[f"{prefix}loss"].item(), expected, rtol=1e-5)
        right = (outputs.argmax(1) == labels).mean()
        np.testing.assert_allclose(point.values[f"{prefix}accuracy"].item(), right, rtol=1e-6)
    assert len(problem.checkpoints) == 2
    assert lla.directions.between(problem.params, *problem.checkpoints).num == 2


@pytest.mark.slow
def test_tour_saves_results_pictures_and_a_summary(tmp_path):
    labels, products = [], set()

    @contextlib.contextmanager
    def bar(label, unit="points"):
        labels.append(label)
        products.update({label} if unit == "products" else ())
        yield lambda done, total: None

    paths = tour.run(tmp_path, points=5, epochs=5, bar=bar)
    assert labels == [
        "training",
        "line",
        "plane",
        "spectrum at initialization",
        "spectrum after training",
        "eigenpairs",
        "trace",
        "layers",
        "Hessian axes",
        "convexity",
        "all modes",
        "path",
        "plane of the path",
        "film",
    ]
    assert products == {*labels[3:8], "convexity"}
    assert sorted(paths) == sorted(path for path in tmp_path.iterdir() if path.is_file())
    names = {path.name for path in paths}
    pictures = ("line", "surface", "contour", "accuracy", "modes", "spectrum", "eigenvalues", "layers", "hessian-plane")
    assert {f"{n}.png" for n in (*pictures, "convexity", "trajectory", "explained-variance")} < names
    path, seen = lla.paths.load(tmp_path / "training"), lla.load(tmp_path / "seen.npz")
    np.testing.assert_array_equal(path.steps, seen.steps)
    assert path.steps.tolist() == list(range(0, 5 * 22 + 1, 11))
    assert (tmp_path / "descent.gif").read_bytes().startswith(b"GIF8")
    summary = (tmp_path / "summary.txt").read_text()
    line, plane = lla.load(tmp_path / "line.npz"), lla.load(tmp_path / "plane.npz")
    assert (line.shape, plane.shape) == ((5,), (5, 5))
    # the line is the plane's row b = 0
    np.testing.assert_allclose(line.values["loss"], plane.values["loss"][:, 2], rtol=1e-5)
    assert f"test loss     {line.values['test_loss'][2]:.4g} +- {line.stderr['test_loss'][2]:.2g}" in summary
    before, after = (lla.load(tmp_path / f"{name}.npz") for name in ("spectrum-initial", "spectrum"))
    # training leaves less negative curvature: 2 errors cover
    for criterion in (lla.r_e, lambda spec: lla.k_hn(spec, 1)):
        high, low = criterion(before), criterion(after)
        assert high.mean - 2 * high.sem > 2 * (low.mean + 2 * low.sem)
        assert np.isfinite([high.sem, low.sem]).all()
    assert "Plane report" in summary
    assert lla.load(tmp_path / "eigenpairs.npz").recipe["verified"]
    modes = [name for name in names if name.startswith("mode-")]
    assert len(modes) >= 4
    assert all(lla.load(tmp_path / name).shape == (3, 3) for name in modes)
