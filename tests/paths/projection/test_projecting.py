"""Paths along axes: coordinates and distances by least squares, losses of checkpoints and of their projections."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax import directions
from lla_jax.paths.losses import at_trees as at_trees
from lla_jax.paths.projection import checkpoint_values, curvatures
from tests.helpers import (
    FIXED,
    accuracy,
    apply,
    compilations,
    cross_entropy,
    dataset,
    mlp_loss,
    moved,
    params,
    reference_losses,
)

DATA, CENTRE = dataset(), params(0)
OPTIONS = {"loss": mlp_loss(), "data": DATA, "execution": FIXED}
RANDOM = directions.random(jax.random.key(0), CENTRE, 3)
SKEW = directions.given(
    jax.tree.map(lambda x: np.asarray(x[0]), RANDOM.tree),
    jax.tree.map(lambda x: 0.01 * np.asarray(0.9 * x[0] + 0.2 * x[1]), RANDOM.tree),
)
"""Two axes at an angle of 12 degrees, whose norms differ by a factor of 100."""

COORDS = np.array([[0.3, -20.0], [-0.2, 5.0], [0.1, 40.0], [0.0, 0.0]])
PLANAR = [moved(CENTRE, SKEW, c) for c in COORDS]  # in float64
PATH = [params(4), params(3), params(2), params(1), CENTRE]


def scaled(p, state, batch, train):
    """The network with its outputs divided by a running average, in train mode by their own size."""
    outputs, _ = apply(p, None, batch, train)
    size = abs(outputs).mean()
    return outputs / (size if train else state["size"]), {"size": 0.9 * state["size"] + 0.1 * size}


STATES = [{"size": np.float32(1 + t)} for t in range(len(PATH))]
SCALED = lla.Loss(scaled, cross_entropy, state=STATES[-1])


@pytest.fixture(scope="module")
def seen():
    axes, _ = lla.paths.pca(PATH)
    options = OPTIONS | {"metrics": {"acc": accuracy}, "extra_data": {"test": dataset(9, 3)}}
    return axes, lla.paths.project(PATH, axes, **options)


def test_a_path_in_the_plane_of_skew_axes_is_recovered_and_its_losses_are_those_of_the_plane():
    found = lla.paths.project(PLANAR, SKEW, params=CENTRE, **OPTIONS)
    np.testing.assert_allclose(found.coords, COORDS, rtol=1e-10, atol=1e-10)
    assert found.distance.max() < 1e-10
    np.testing.assert_allclose(found.projected_loss, found.loss, rtol=1e-6)
    np.testing.assert_allclose(found.loss, [reference_losses(p, DATA).mean() for p in PLANAR], rtol=1e-6)


def test_the_recipe_tells_how_far_rounding_moves_a_checkpoint():
    rounded = [jax.tree.map(np.float32, p) for p in PLANAR]
    found = lla.paths.project(rounded, SKEW, params=CENTRE)
    assert 0 < found.distance.max() < 2 * found.recipe["rounding"]
    norm = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(CENTRE)))
    np.testing.assert_allclose(found.recipe["rounding"], np.finfo(np.float32).eps / 2 * norm, rtol=1e-6)


def test_off_the_plane_least_squares_are_those_of_numpy():
    found = lla.paths.project(PATH, SKEW, params=CENTRE)
    flat = [np.concatenate([np.ravel(x).astype(float) for x in jax.tree.leaves(p)]) for p in PATH]
    axes = np.concatenate([np.reshape(x, (2, -1)).astype(float) for x in jax.tree.leaves(SKEW.tree)], axis=1)
    rows = np.stack(flat) - flat[-1]
    best = np.linalg.lstsq(axes.T, rows.T, rcond=None)[0].T
    np.testing.assert_allclose(found.coords, best, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.distance, np.linalg.norm(rows - best @ axes, axis=1), atol=1e-9)
    assert found.loss is found.projected_loss is found.loss_stderr is None


def test_projected_losses_are_those_of_the_plane_at_these_coordinates(seen):
    axes, found = seen
    order = [np.argsort(column) for column in found.coords.T]
    grid = tuple(column[i] for column, i in zip(found.coords.T, order, strict=True))
    options = {"metrics": {"acc": accuracy}, "extra_data": {"test": dataset(9, 3)}, "execution": FIXED}
    plane = lla.evaluate(mlp_loss(), CENTRE, DATA, axes, grid, **options)
    cells = tuple(np.argsort(i) for i in order)
    assert set(found.values) == {f"{on}{name}" for on in ("", "projected_") for name in plane.values}
    for name, values in plane.values.items():
        np.testing.assert_allclose(found.values[f"projected_{name}"], values[cells], rtol=1e-6)
        np.testing.assert_allclose(found.stderr[f"projected_{name}"], plane.stderr[name][cells], rtol=1e-5, atol=1e-8)
    each = np.stack([reference_losses(p, DATA) for p in PATH])
    np.testing.assert_allclose(found.loss, each.mean(1), rtol=2e-6)
    np.testing.assert_allclose(found.loss_stderr, each.std(1, ddof=1) / np.sqrt(each.shape[1]), rtol=2e-6)
    for entry, key in (("directions", "contents"), ("params", "fingerprint")):
        assert found.recipe[entry][key] == plane.recipe[entry][key]
    assert found.recipe["complete"]


def test_a_second_path_compiles_nothing(seen):
    axes, _ = seen
    lla.paths.project(PATH, axes, **OPTIONS)
    others, _ = lla.paths.pca(PATH[::-1])
    with compilations() as compiled:
        lla.paths.project(PATH[::-1], others, **OPTIONS)
    assert compiled.count == 0


def test_several_runs_give_several_projections(seen):
    axes, found = seen
    runs = [lla.paths.given(PATH[2:], steps=[10, 20, 30], losses=[3, 2, 1]), lla.paths.given(PATH[:3])]
    told = []
    each = lla.paths.project(runs, axes, params=CENTRE, progress=lambda *now: told.append(now), **OPTIONS)
    np.testing.assert_allclose(each[0].coords, found.coords[2:], atol=1e-12)
    np.testing.assert_allclose(each[0].projected_loss, found.projected_loss[2:], rtol=1e-6)
    np.testing.assert_allclose(each[1].loss, found.loss[:3], rtol=1e-6)
    assert each[0].steps.tolist() == [10, 20, 30]
    assert each[0].recorded.tolist() == [3, 2, 1]
    assert told == sorted(told)
    assert told[-1] == (12, 12)
    assert "unfinished" not in repr(each[0])


def test_a_projection_shows_a_table(seen):
    lines = repr(seen[1]).splitlines()
    assert lines[0] == "Projection of 5 checkpoints on 2 axes"
    assert lines[1].split() == ["step", "c1", "c2", "distance", "loss", "projected"]
    assert lines[-1].split()[:4] == ["4", "0", "0", "0"]
    with pytest.raises(TypeError, match=r"take seen\.coords"):
        np.asarray(seen[1])


def test_every_checkpoint_has_its_own_state_and_the_plane_the_centres():
    axes, _ = lla.paths.pca(PATH)
    path = lla.paths.given(PATH, states=STATES)
    options = OPTIONS | {"loss": SCALED}
    found = lla.paths.project(path, axes, **options)
    for t, (p, state) in enumerate(zip(PATH, STATES, strict=True)):
        outputs = np.asarray(scaled(p, state, DATA, False)[0])
        assert found.loss[t] == pytest.approx(float(np.mean(cross_entropy(outputs, DATA))), rel=1e-5)
    assert found.projected_loss[-1] == pytest.approx(found.loss[-1], rel=1e-6)
    for policy in ("batch", "reestimate"):
        free = lla.paths.project(PATH, axes, batch_stats=policy, **options)
        assert free.projected_loss[-1] == pytest.approx(free.loss[-1], rel=1e-6)
        assert free.loss[0] != pytest.approx(found.loss[0], rel=1e-2)
    with pytest.warns(UserWarning, match=r"^loss: its state is not that of path\[4\], which is the centre"):
        lla.paths.project(path, axes, **options | {"loss": dataclasses.replace(SCALED, state=STATES[0])})
    with pytest.raises(ValueError, match=r"^path: holds no states, and the loss has running averages"):
        lla.paths.project(PATH, axes, **options)
    with pytest.raises(ValueError, match=r"^batch_stats: 'frozen' given for a curve"):
        lla.paths.project(lla.paths.line(*PATH[-2:], *STATES[:2]), axes, params=CENTRE, **options)


def test_curvature_along_the_path_is_that_of_each_operator():
    axes, _ = lla.paths.pca(PATH, num=1)
    options = OPTIONS | {"curvature": ("trace", "lambda_max"), "key": jax.random.key(1)}
    found = lla.paths.project(PATH, axes, curvature_every=2, **options)
    for name in ("trace", "lambda_max"):
        assert np.isfinite(found.curvature[name]).tolist() == [True, False, True, False, True]
        assert np.isfinite(found.curvature_error[name]).tolist() == [True, False, True, False, True]
    for t in (0, 2, 4):
        values = np.linalg.eigvalsh(np.asarray(lla.operators.dense(lla.hessian(mlp_loss(), PATH[t], DATA))))
        error = found.curvature_error["lambda_max"][t]
        assert abs(found.curvature["lambda_max"][t] - values[-1]) <= error + 1e-4
        assert abs(found.curvature["trace"][t] - values.sum()) <= 5 * found.curvature_error["trace"][t] + 1e-4


def test_curvature_is_taken_under_the_state_of_each_checkpoint(monkeypatch):
    axes, _ = lla.paths.pca(PATH, num=1)
    monkeypatch.setattr(curvatures, "_compute", lambda name, H, key: (float(H.common[0].state["size"]), 0.0))
    path = lla.paths.given(PATH, states=STATES)
    options = OPTIONS | {"loss": SCALED, "curvature": "trace", "key": jax.random.key(1)}
    found = lla.paths.project(path, axes, curvature_every=2, **options)
    np.testing.assert_array_equal(found.curvature["trace"], [1, np.nan, 3, np.nan, 5])


def test_a_curve_has_marks_where_its_control_points_lie():
    axes = directions.between(PATH[0], PATH[1], PATH[2])
    curve = lla.paths.bezier([PATH[0], PATH[2], PATH[1]])
    found = lla.paths.project(curve, axes, params=PATH[0])
    np.testing.assert_allclose([at for _, at in found.recipe["marks"]], [[0, 0], [0, 1], [1, 0]], atol=1e-6)
    assert [name for name, _ in found.recipe["marks"]] == ["A", "P1", "B"]
    t = curve.spaced(61)
    np.testing.assert_allclose(found.coords, np.stack([t**2, 2 * t * (1 - t)], 1), atol=1e-5)
    assert found.distance.max() < 1e-5


@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("the plane of a path", lambda p: lla.paths.pca([PATH[0], PATH[1], p])[0]),
        ("gradient", lambda p: directions.gradient(mlp_loss(), p, DATA)),
        ("normalization", lambda p: directions.normalize(directions.random(jax.random.key(1), p), p)),
        ("differences from A", lambda p: directions.between(p, PATH[0], PATH[1])),
    ],
)
def test_another_centre_than_the_axes_own_is_refused(what, make):
    axes = make(PATH[2])
    with pytest.raises(ValueError, match=rf"^params: path\[-1\], the default, is not the centre .*\({what}\)"):
        lla.paths.project(PATH, axes)
    with pytest.raises(ValueError, match=r"^params: the parameters given are not the centre"):
        lla.paths.project(PATH, axes, params=PATH[1])
    found = lla.paths.project(PATH, axes, params=PATH[2])
    assert not found.coords[2].any()
    assert found.distance[2] == 0


def test_slips_are_told():
    double = directions.given(*[jax.tree.map(lambda x, c=c: c * x[0], RANDOM.tree) for c in (1.0, 3.0)])
    broken = [*PATH[:2], jax.tree.map(lambda x: x * np.float32(np.nan), PATH[2])]
    other = [*PATH[:1], {"w": np.ones(3, np.float32)}]
    curvature = {**OPTIONS, "curvature": "trace"}
    for arguments, options, text in (
        ((PATH, double), {}, r"^axes: its 2 directions are linearly dependent up to rounding"),
        ((broken, RANDOM), {}, r"^path\[2\]\['Dense_0/bias'\] has 6 NaN or infinite entries"),
        ((other, RANDOM), {}, r"^path\[1\]: has another structure than path\[0\]"),
        ((PATH, PATH[0]), {}, "^axes: "),
        ((PATH, RANDOM), {"data": DATA}, "^data: given without a loss"),
        ((PATH, RANDOM), {"loss": 3, "data": DATA}, "^loss: 3 given"),
        ((PATH, RANDOM), {**OPTIONS, "extra_data": {"projected": DATA}}, "^extra_data: entry 'projected'"),
        ((PATH, RANDOM), {**OPTIONS, "curvature": "sharpness"}, "^curvature: 'sharpness' given; it must be some of"),
        ((PATH, RANDOM), curvature, "^key: None given, and curvature draws vectors"),
        ((PATH, RANDOM), {"curvature": "trace", "key": jax.random.key(0)}, "^curvature: 'trace' given without a loss"),
        ((PATH, RANDOM), {**curvature, "curvature_every": 0}, "^curvature_every: 0 given"),
        ((PATH, RANDOM), {"on_partial": 3}, "^on_partial: 3 given"),
        ((PATH, RANDOM), {"resume": 3}, "^resume: 3 given"),
    ):
        with pytest.raises(ValueError, match=text):
            lla.paths.project(*arguments, **options)


def test_losses_that_are_not_finite_are_in_the_result_and_told():
    huge = jax.tree.map(lambda x: x * np.float32(1e30), PATH[1])
    with pytest.warns(UserWarning, match=r"^loss: not finite at 1 of 3 checkpoints \(path\[1\]\)"):
        found = lla.paths.project([PATH[0], huge, CENTRE], RANDOM, **OPTIONS)
    assert np.isfinite(found.loss).tolist() == [True, False, True]


def test_an_interrupted_projection_is_handed_over_and_continued(monkeypatch):
    axes, _ = lla.paths.pca(PATH)
    options = OPTIONS | {"curvature": "lambda_max", "key": jax.random.key(1)}
    whole = lla.paths.project(PATH, axes, **options)
    monkeypatch.setattr(at_trees, "GROUP_TREES", 2)
    for stop in (2, 4, 10, 12):  # in the middle of the losses, and of the curvatures
        partial = []

        def interrupt(done, total, stop=stop):
            if done >= stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            lla.paths.project(PATH, axes, progress=interrupt, on_partial=partial.append, **options)
        (early,) = partial
        assert not early.recipe["complete"]
        assert np.isfinite(early.loss).sum() == min(stop, 5)
        assert early.curvature == {} or np.isfinite(early.curvature["lambda_max"]).sum() == stop - 10
        assert "unfinished" in repr(early)
        computed = []
        real = checkpoint_values.losses_at
        monkeypatch.setattr(checkpoint_values, "losses_at", lambda *a, **k: computed.append(len(a[1])) or real(*a, **k))  # noqa: B023
        late = lla.paths.project(PATH, axes, resume=early, **options)
        monkeypatch.setattr(checkpoint_values, "losses_at", real)
        assert computed == [1 + 5 - min(stop, 5)]  # one is computed again
        np.testing.assert_allclose(late.loss, whole.loss, rtol=1e-6)
        np.testing.assert_allclose(late.projected_loss, whole.projected_loss, rtol=1e-6)
        np.testing.assert_array_equal(late.curvature["lambda_max"], whole.curvature["lambda_max"])
        assert late.recipe["complete"]
    with pytest.raises(ValueError, match=r"^resume: .*data"):
        lla.paths.project(PATH, axes, resume=early, **options | {"data": dataset(8, 5)})
    with pytest.raises(ValueError, match=r"^resume: belongs to another path"):
        lla.paths.project(PATH[1:], axes, resume=early, **options)
    doubled = lla.Loss(apply, lambda outputs, batch: 2 * cross_entropy(outputs, batch))
    with pytest.raises(ValueError, match=r"^resume: belongs to another loss: at path\[0\] it was"):
        lla.paths.project(PATH, axes, resume=early, **options | {"loss": doubled})
