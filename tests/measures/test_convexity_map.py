"""The convexity map has the extreme eigenvalues at every point, and is continued to the same bits."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from tests.helpers import ONE, compilations, dataset, mlp_loss, params
from tests.measures.cases import NO_DATA, N, axes_of, flat, tree

KEY = jax.random.key(0)


def quartic(p, batch):
    """Hessian at w: diag(12 c w^2 - 2), with c = 1, 2, ..."""
    w = flat(p)
    return (jnp.arange(1, N + 1) * w**4 - w**2).sum() + 0 * batch.sum()


def known(coords, axes):
    """(lambda_min, lambda_max) of the quartic at every point of a grid around the origin."""
    d = np.concatenate([np.asarray(x).reshape(axes.num, -1) for x in jax.tree.leaves(axes.tree)], 1)
    found = []
    for point in itertools.product(*coords):
        diagonal = 12 * np.arange(1, N + 1) * (np.array(point) @ d) ** 2 - 2
        found.append((diagonal.min(), diagonal.max()))
    return np.array(found).T.reshape(2, *map(len, coords))


@pytest.mark.parametrize("points", [(5,), (3, 4), (2, 3, 2)])
def test_the_map_has_the_extremes_at_every_point(points, tmp_path):
    with jax.enable_x64(True):
        axes = axes_of(np.random.default_rng(5).standard_normal((len(points), N)))
        coords = lla.grid(points=points)
        seen = []
        found = lla.convexity(
            quartic,
            tree(np.zeros(N)),
            NO_DATA,
            axes,
            coords,
            KEY,
            steps=N,
            execution=ONE,
            progress=lambda done, total: seen.append((done, total)),
        )
    low, high = known(coords, axes)
    residual = found.values["residual"]
    assert np.all(residual <= 1e-3 * np.maximum(abs(low), abs(high)) + 1e-9)
    assert np.all(np.abs(found.values["lambda_min"] - low) <= residual + 1e-9)
    assert np.all(np.abs(found.values["lambda_max"] - high) <= residual + 1e-9)
    np.testing.assert_allclose(found.values["convexity"], np.abs(low / high), rtol=2e-3)
    num = int(np.prod(points))
    assert seen == [(N * (i + 1), N * num) for i in range(num)]
    assert found.recipe["complete"]
    assert found.recipe["curvature"]["products"] <= num * (N + 1)
    again = lla.load(lla.save(found, tmp_path / "map"))
    assert again.recipe == json.loads(json.dumps(found.recipe))
    for name, values in found.values.items():
        np.testing.assert_array_equal(again.values[name], values)
    lla.plane_report(found, axes, lla.hessian(quartic, tree(np.zeros(N)), NO_DATA, execution=ONE))


def same(one, two):
    assert one.recipe["points_done"] == two.recipe["points_done"]
    for name, values in one.values.items():
        np.testing.assert_array_equal(values, two.values[name], err_msg=name)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_interrupted_map_is_continued_to_the_same_bits(streamed, tmp_path):
    p, data = params(), dataset()
    axes = lla.directions.normalize(lla.directions.random(jax.random.key(3), p), p)
    batches = [(data[0][i : i + 8], data[1][i : i + 8]) for i in range(0, 23, 8)]

    def run(**options):
        source = lla.stream(batches) if streamed else data
        return lla.convexity(
            mlp_loss(), p, source, axes, lla.grid(points=(3, 2)), KEY, steps=6, execution=ONE, **options
        )

    def stop(done, total):
        if done == 4 * 6:
            raise KeyboardInterrupt

    whole, kept = run(), []
    with pytest.raises(KeyboardInterrupt):
        run(progress=stop, on_partial=kept.append)
    (part,) = kept
    assert part.recipe["complete"] is False
    assert part.recipe["points_done"] == 4
    for name in ("lambda_min", "lambda_max", "residual", "convexity"):
        np.testing.assert_array_equal(np.isfinite(part.values[name].ravel()), [True] * 4 + [False] * 2)
    part = lla.load(lla.save(part, tmp_path / "part"))
    done = []
    again = run(resume=part, progress=lambda *at: done.append(at))
    same(again, whole)
    assert done == [(30, 36), (36, 36)]
    assert again.recipe["complete"]
    assert again.recipe["curvature"]["products"] == whole.recipe["curvature"]["products"]
    same(run(resume=again), whole)  # nothing left to do


def test_what_a_map_is_not_continued_from():
    p = tree(np.zeros(N, np.float32))
    axes = axes_of(np.eye(N, dtype=np.float32)[:1])

    def run(f=quartic, key=KEY, steps=3, **options):
        return lla.convexity(
            f, p, NO_DATA, axes, lla.grid(points=3, dims=1), key, steps=steps, execution=ONE, **options
        )

    found = run()
    with pytest.raises(ValueError, match="steps=3, and 4 are asked for"):
        run(steps=4, resume=found)
    with pytest.raises(ValueError, match="resume: the partial landscape differs in key"):
        run(key=jax.random.key(1), resume=found)
    with pytest.raises(ValueError, match="'loss' at the first point"):
        run(lambda p, batch: 1 + quartic(p, batch), resume=found)
    for wrong in (lla.Landscape(found.coords, {"loss": found.values["loss"]}, {}, {}), 3):
        with pytest.raises(
            ValueError, match=r"resume: .* given; it must be a landscape that convexity gave to on_partial"
        ):
            run(resume=wrong)


def test_a_point_without_curvature_is_nan_and_the_run_goes_on():
    def loss(p, batch):
        w = flat(p)
        broken = jnp.where(w[0] > 0.3, jnp.nan, 0.0)  # of the loss
        kinked = jnp.sqrt(jnp.maximum(w[1] - 0.3, 0.0)) * (w[1] > 0.3)  # finite, with an infinite slope inside
        return (w**2).sum() + broken + kinked

    p = tree(np.zeros(N, np.float32))
    axes = axes_of(np.eye(N, dtype=np.float32)[:2])
    with pytest.warns(UserWarning, match="not finite") as warned:
        found = lla.convexity(loss, p, NO_DATA, axes, lla.grid(points=3), KEY, steps=3, execution=ONE)
    said = [str(w.message) for w in warned]
    assert [w.filename for w in warned if "Hessian" in str(w.message)] == [__file__]
    assert any("values['loss']: 33.3%" in text for text in said)
    assert any("the Hessian is not finite at" in text for text in said)
    good = np.isfinite(found.values["lambda_max"])
    np.testing.assert_array_equal(good[2], False)
    np.testing.assert_array_equal(np.isfinite(found.values["convexity"]), good)
    assert good[:2, 2].all()
    np.testing.assert_allclose(found.values["lambda_min"][:2, 2], [2 - 0.25 / 0.7**1.5] * 2, rtol=1e-4)


def test_no_point_compiles_anew(monkeypatch):
    p, data, made = params(), dataset(), []
    real = lla.LinearOperator.at
    monkeypatch.setattr(lla.LinearOperator, "at", lambda H, params: made.append(1) or real(H, params))
    axes = lla.directions.normalize(lla.directions.random(jax.random.key(3), p), p)

    def compiled(points, steps, **options):
        jax.clear_caches()
        with compilations() as seen:
            lla.convexity(mlp_loss(), p, data, axes, lla.grid(points=points), KEY, steps=steps, **options)
        return seen.count

    assert compiled(3, 4, execution=ONE) == compiled(5, 4, execution=ONE) > 0
    assert len(made) == 3**2 + 5**2
    other = lla.directions.random(jax.random.key(4), p)
    with compilations() as seen:  # nor do other weights, axes, grids and data
        lla.convexity(
            mlp_loss(), params(seed=5), dataset(seed=6), other, lla.grid(points=3), KEY, steps=4, execution=ONE
        )
    assert seen.count == 0


@pytest.mark.parametrize("batch_size", [None, 5])
def test_a_map_over_devices_and_blocks_is_the_same(batch_size):
    p, data = params(), dataset()
    axes = lla.directions.normalize(lla.directions.random(jax.random.key(3), p, 1), p)

    def run(**options):
        return lla.convexity(mlp_loss(), p, data, axes, lla.grid(points=3, dims=1), KEY, steps=8, **options)

    one, many = run(execution=ONE), run(execution=lla.Execution(devices=4), batch_size=batch_size)
    for name in ("lambda_min", "lambda_max", "loss"):
        np.testing.assert_allclose(many.values[name], one.values[name], rtol=1e-4, err_msg=name)


def test_the_old_keyword_of_the_map_works_and_says_the_new_spelling():
    p, axes = tree(np.zeros(N, np.float32)), axes_of(np.eye(N, dtype=np.float32)[:1])

    def run(**how):
        return lla.convexity(quartic, p, NO_DATA, axes, lla.grid(points=3, dims=1), KEY, steps=3, **how)

    with pytest.warns(DeprecationWarning, match=r"^devices: use execution=lla\.Execution\(devices=1\)$") as seen:
        old = run(devices=1)
    assert [w.filename for w in seen] == [__file__]
    same(old, run(execution=ONE))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: 0 given"),
        ({"steps": True}, "steps: True given"),
        ({"grid": lla.grid(dims=2)}, "grid: 2 axes given for 1 directions"),
        ({"axes": [1, 2]}, "axes: \\[1, 2\\] given; it must be lla.Directions"),
        ({"data": np.zeros((0, 1))}, "data: empty"),
        ({"params": {"a": np.array([np.nan])}}, "params.* NaN"),
    ],
)
def test_bad_input_to_the_map_is_refused(options, message):
    p = tree(np.zeros(N, np.float32))
    axes = axes_of(np.eye(N, dtype=np.float32)[:1])
    given = {"params": p, "data": NO_DATA, "axes": axes, "grid": lla.grid(points=3, dims=1), "steps": 2} | options
    with pytest.raises(ValueError, match=message):
        lla.convexity(quartic, key=KEY, execution=ONE, **given)


def test_a_loss_without_curvature():
    p = tree(np.zeros(N, np.float32))
    axes = axes_of(np.eye(N, dtype=np.float32)[:1])
    found = lla.convexity(
        lambda p, batch: flat(p).sum() + 1, p, NO_DATA, axes, lla.grid(points=3, dims=1), KEY, steps=3, execution=ONE
    )
    np.testing.assert_array_equal(found.values["lambda_max"], 0)
    assert np.isnan(found.values["convexity"]).all()  # 0 / 0
