"""Interrupted landscapes keep and resume what is finished, and memory that runs out halves the chunk."""

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.landscape import grids, kernels, planning, probes
from tests.helpers import FIXED, Interrupt, dataset, mlp_loss, params

DATA = dataset()
GRID = lla.grid(extent=0.5, points=(4, 5))


@pytest.fixture(scope="module")
def axes():
    return lla.directions.random(jax.random.key(2), params())


@pytest.fixture(scope="module")
def finished(axes):
    return lla.evaluate(mlp_loss(), params(), DATA, axes, GRID, execution=FIXED)


def test_out_of_device_memory_halves_the_chunk_and_goes_on(axes, finished, monkeypatch):
    real, chunks = kernels.block_sums, []

    def limited(loss, points, blocks, **static):
        chunks.append(len(points.coords))
        if len(points.coords) > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")
        return real(loss, points, blocks, **static)

    monkeypatch.setattr(kernels, "block_sums", limited)
    small = lla.Execution(chunk=8, microbatch=8, loop="map", share=False, devices=1)
    result = lla.evaluate(mlp_loss(), params(), DATA, axes, GRID, execution=small)
    np.testing.assert_allclose(result.values["loss"], finished.values["loss"], rtol=1e-6)
    assert result.recipe["plan"]["chunk"] == 2
    assert chunks[:3] == [8, 4, 2]  # found when the first block is probed

    def never(*arguments, **static):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(kernels, "block_sums", never)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        lla.evaluate(mlp_loss(), params(), DATA, axes, GRID, execution=small)


@pytest.mark.parametrize("after", [4, 12])
def test_an_interrupted_run_keeps_what_is_finished_and_resumes_bit_for_bit(axes, finished, after, tmp_path):
    kept = []
    arguments = (mlp_loss(), params(), DATA, axes, GRID)
    with pytest.raises(KeyboardInterrupt):
        lla.evaluate(*arguments, execution=FIXED, progress=Interrupt(after), on_partial=kept.append)
    (partial,) = kept
    flat = partial.values["loss"].reshape(-1)
    assert partial.recipe["complete"] is False
    np.testing.assert_array_equal(np.isnan(flat), np.arange(20) >= after)
    np.testing.assert_array_equal(flat[:after], finished.values["loss"].reshape(-1)[:after])
    partial = lla.load(lla.save(partial, tmp_path / "partial.npz"))
    seen = []
    uninterrupted = lla.evaluate(*arguments, execution=FIXED, resume=partial, progress=lambda d, t: seen.append(d))
    assert seen[0] == after + 4  # nothing is computed twice
    for name in ("values", "stderr"):
        np.testing.assert_array_equal(getattr(uninterrupted, name)["loss"], getattr(finished, name)["loss"])
    assert uninterrupted.recipe["complete"] is True
    again = lla.evaluate(*arguments, execution=FIXED, resume=uninterrupted)
    np.testing.assert_array_equal(again.values["loss"], finished.values["loss"])


@pytest.mark.parametrize("place", ["choose_plan", "check"])
def test_an_interrupt_before_a_resumed_run_goes_on_hands_over_nothing(axes, finished, place, monkeypatch):
    kept, overwritten = [], []
    arguments = (mlp_loss(), params(), DATA, axes, GRID)
    with pytest.raises(KeyboardInterrupt):
        lla.evaluate(*arguments, execution=FIXED, progress=Interrupt(4), on_partial=kept.append)

    def interrupted(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(planning if place == "choose_plan" else probes, place, interrupted)
        with pytest.raises(KeyboardInterrupt):
            lla.evaluate(*arguments, execution=FIXED, resume=kept[0], on_partial=overwritten.append)
    assert not overwritten  # what the caller has kept is whole, and this would lack the plan
    result = lla.evaluate(*arguments, execution=FIXED, resume=kept[0])
    np.testing.assert_array_equal(result.values["loss"], finished.values["loss"])


def test_an_error_in_the_middle_keeps_what_is_finished_too(axes):
    kept = []

    def fails(done, total):
        if done >= 8:
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        lla.evaluate(mlp_loss(), params(), DATA, axes, GRID, execution=FIXED, progress=fails, on_partial=kept.append)
    assert np.isfinite(kept[0].values["loss"]).sum() == 8


def test_an_interrupted_stream_keeps_the_means_over_the_batches_it_read(axes):
    def batches():
        yield tuple(x[:9] for x in DATA)
        yield tuple(x[9:15] for x in DATA)
        if len(reads) > 1:
            raise KeyboardInterrupt
        yield tuple(x[15:] for x in DATA)

    reads, kept = [], []

    def source():
        reads.append(None)
        return batches()

    with pytest.raises(KeyboardInterrupt):
        lla.evaluate(mlp_loss(), params(), lla.stream(source), axes, GRID, execution=FIXED, on_partial=kept.append)
    part = lla.evaluate(mlp_loss(), params(), tuple(x[:15] for x in DATA), axes, GRID, execution=FIXED)
    np.testing.assert_allclose(kept[0].values["loss"], part.values["loss"], rtol=1e-6)
    assert kept[0].recipe["complete"] is False


def test_a_stream_interrupted_within_its_first_batch_keeps_the_points_it_came_to(axes, finished, monkeypatch):
    real, ninth = kernels.block_sums, grids.grid_points(GRID, 8, 9)[0]

    def interrupted(loss, points, blocks, **static):
        if np.array_equal(points.coords[0], ninth):
            raise KeyboardInterrupt
        return real(loss, points, blocks, **static)

    monkeypatch.setattr(kernels, "block_sums", interrupted)
    kept = []
    for source in (lla.stream([DATA]), DATA):
        with pytest.raises(KeyboardInterrupt):
            lla.evaluate(mlp_loss(), params(), source, axes, GRID, execution=FIXED, on_partial=kept.append)
    for partial, done in zip(kept, (0, 8), strict=True):
        assert partial.recipe["points_done"] == done
        for kind in ("values", "stderr"):
            flat, uninterrupted = (getattr(plane, kind)["loss"].reshape(-1) for plane in (partial, finished))
            np.testing.assert_array_equal(np.isnan(flat), np.arange(20) >= 8)
            np.testing.assert_allclose(flat[:8], uninterrupted[:8], rtol=1e-6)


def test_an_interrupt_at_the_end_of_a_stream_keeps_it_whole(axes, finished):
    kept, stream, progress = [], lla.stream([DATA]), Interrupt(20, times=2)
    with pytest.raises(KeyboardInterrupt):
        lla.evaluate(
            mlp_loss(), params(), stream, axes, GRID, execution=FIXED, progress=progress, on_partial=kept.append
        )
    np.testing.assert_allclose(kept[0].values["loss"], finished.values["loss"], rtol=1e-6)
    assert kept[0].recipe["complete"] is True


def test_a_resumed_run_obeys_the_plan_it_was_begun_with(axes, finished):
    kept = []
    arguments = (mlp_loss(), params(), DATA, axes, GRID)
    with pytest.raises(KeyboardInterrupt):
        lla.evaluate(*arguments, execution=FIXED, progress=Interrupt(8), on_partial=kept.append)
    other = lla.Execution(chunk=3, microbatch=23, loop="vmap", share=True, devices=1)
    uninterrupted = lla.evaluate(*arguments, execution=other, resume=kept[0])
    np.testing.assert_array_equal(uninterrupted.values["loss"], finished.values["loss"])
    assert uninterrupted.recipe["plan"] == finished.recipe["plan"]


@pytest.mark.parametrize("what", ["state", "noise", "key", "criterion", "penalty", "rule", "point metric"])
def test_resuming_with_other_functions_or_noise_is_refused(axes, what):
    def arguments(k):
        loss = mlp_loss(penalty=lambda p: p["gain"] * 2.0**k)
        loss = {
            "state": lla.Loss(loss.apply, loss.criterion, state={"s": np.full(2, k, np.float32)}),
            "noise": lla.Loss(
                lambda p, s, b, t, keys: (p["gain"] * b[0], s), lambda o, b: o[:, 0], key=jax.random.key(k)
            ),
            "criterion": lla.Loss(loss.apply, lambda o, b: o[:, 0] * (k + 1.0)),
            "penalty": loss,
        }.get(what, mlp_loss())
        metric = {"m": lambda p, key: p["gain"] + 1.0 * k * (what == "point metric")}
        rule = (lambda p, d, c: lla.landscape.add(p, d, c * (k + 1.0))) if what == "rule" else "add"
        seed = jax.random.key(k if what == "key" else 0)
        return {"loss": loss, "point_metrics": metric, "rule": rule, "key": seed}

    common = {"params": params(), "data": DATA, "directions": axes, "grid": GRID, "execution": FIXED}
    kept = []
    with pytest.raises(KeyboardInterrupt):
        lla.evaluate(**common, **arguments(0), progress=Interrupt(4), on_partial=kept.append)
    lla.evaluate(**common, **arguments(0), resume=kept[0])
    with pytest.raises(ValueError, match="resume: "):
        lla.evaluate(**common, **arguments(1), resume=kept[0])


@pytest.mark.parametrize("what", ["params", "grid", "rule", "data", "directions"])
def test_resuming_another_recipe_is_refused_and_says_what_changed(axes, finished, what):
    changed = {
        "params": {"params": params(5)},
        "grid": {"grid": lla.grid(points=(4, 5))},
        "rule": {"rule": lambda p, d, c: p},
        "data": {"data": dataset(seed=8)},
        "directions": {"directions": lla.directions.random(jax.random.key(9), params())},
    }[what]
    arguments = {"loss": mlp_loss(), "params": params(), "data": DATA, "directions": axes, "grid": GRID}
    with pytest.raises(ValueError, match=f"differs in .*{what}"):
        lla.evaluate(**(arguments | changed), execution=FIXED, resume=finished)
