"""Plans are timed once, memory that runs out halves the chunk, and what was computed before an interrupt is kept."""

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.execution import plans as execution
from lla_jax.landscape import grids, kernels
from tests.helpers import FIXED, Interrupt, dataset, mlp_loss, params

DATA = dataset()
GRID = lla.grid(extent=0.5, points=(4, 5))


@pytest.fixture(scope="module")
def axes():
    return lla.directions.random(jax.random.key(2), params())


@pytest.fixture(scope="module")
def finished(axes):
    return lla.evaluate(mlp_loss(), params(), DATA, axes, GRID, execution=FIXED)


def test_progress_reaches_the_total_and_never_goes_back(axes):
    seen = []
    lla.evaluate(
        mlp_loss(), params(), DATA, axes, GRID, execution=FIXED, progress=lambda done, total: seen.append((done, total))
    )
    done = [d for d, _ in seen]
    assert done == sorted(done) == [4, 8, 12, 16, 20]
    assert {total for _, total in seen} == {20}


def test_progress_over_a_list_and_over_streams(axes):
    seen = []
    batches = [DATA, DATA, DATA]
    for source in (lla.stream(batches), lla.stream(lambda: iter(batches))):
        seen.clear()
        lla.evaluate(
            mlp_loss(), params(), source, [axes, axes], GRID, execution=FIXED, progress=lambda *at: seen.append(at)
        )
        done = [d for d, _ in seen]
        assert done == sorted(done)
        assert seen[-1] == (40, 40)
        assert len(seen) >= 6


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
    whole = lla.evaluate(*arguments, execution=FIXED, resume=partial, progress=lambda d, t: seen.append(d))
    assert seen[0] == after + 4  # nothing is computed twice
    for name in ("values", "stderr"):
        np.testing.assert_array_equal(getattr(whole, name)["loss"], getattr(finished, name)["loss"])
    assert whole.recipe["complete"] is True
    again = lla.evaluate(*arguments, execution=FIXED, resume=whole)
    np.testing.assert_array_equal(again.values["loss"], finished.values["loss"])


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
    real, ninth = kernels.sums_step, grids.grid_points(GRID, 8, 9)[0]

    def interrupted(loss, points, blocks, **static):
        if np.array_equal(points.coords[0], ninth):
            raise KeyboardInterrupt
        return real(loss, points, blocks, **static)

    monkeypatch.setattr(kernels, "sums_step", interrupted)
    kept = []
    for source in (lla.stream([DATA]), DATA):
        with pytest.raises(KeyboardInterrupt):
            lla.evaluate(mlp_loss(), params(), source, axes, GRID, execution=FIXED, on_partial=kept.append)
    for partial, done in zip(kept, (0, 8), strict=True):
        assert partial.recipe["points_done"] == done
        for kind in ("values", "stderr"):
            flat, whole = (getattr(plane, kind)["loss"].reshape(-1) for plane in (partial, finished))
            np.testing.assert_array_equal(np.isnan(flat), np.arange(20) >= 8)
            np.testing.assert_allclose(flat[:8], whole[:8], rtol=1e-6)


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
    whole = lla.evaluate(*arguments, execution=other, resume=kept[0])
    np.testing.assert_array_equal(whole.values["loss"], finished.values["loss"])
    assert whole.recipe["plan"] == finished.recipe["plan"]


@pytest.mark.parametrize("what", ["state", "noise", "key", "criterion", "penalty", "rule", "point metric"])
def test_resuming_with_other_functions_or_noise_is_refused(axes, what):
    def arguments(k):
        loss = mlp_loss(penalty=lambda p: p["gain"] * 2.0**k)
        loss = {
            "state": lla.Loss(loss.apply, loss.criterion, state={"s": np.full(2, k, np.float32)}),
            "noise": lla.Loss(lambda p, s, b, t, keys: (b[0], s), lambda o, b: o[:, 0], key=jax.random.key(k)),
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


def test_out_of_device_memory_halves_the_chunk_and_goes_on(axes, finished, monkeypatch):
    real, chunks = kernels.sums_step, []

    def limited(loss, points, blocks, **static):
        chunks.append(len(points.coords))
        if len(points.coords) > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")
        return real(loss, points, blocks, **static)

    monkeypatch.setattr(kernels, "sums_step", limited)
    small = lla.Execution(chunk=8, microbatch=8, loop="map", share=False, devices=1)
    result = lla.evaluate(mlp_loss(), params(), DATA, axes, GRID, execution=small)
    np.testing.assert_allclose(result.values["loss"], finished.values["loss"], rtol=1e-6)
    assert result.recipe["plan"]["chunk"] == 2
    assert chunks[:3] == [8, 4, 2]  # found when the first block is probed

    def never(*arguments, **static):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(kernels, "sums_step", never)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        lla.evaluate(mlp_loss(), params(), DATA, axes, GRID, execution=small)


def test_the_fastest_plan_is_chosen_once_and_one_that_does_not_fit_is_passed_over():
    plans = [execution.Plan(c, 8, "map", False) for c in (64, 16, 4)]
    timed = []

    def seconds(plan):
        timed.append(plan.chunk)
        if plan.chunk == 64:
            raise MemoryError
        return {16: 2.0, 4: 1.0}[plan.chunk]

    for _ in range(2):
        assert execution.choose(("a test",), lambda: plans, seconds, 100.0).chunk == 4
    assert timed == [64, 16, 4]
    del execution._REMEMBERED[("a test",)]
    assert execution.choose(("a test",), lambda: plans, lambda p: 1 + p.chunk / 1000, 100.0).chunk == 64  # nearly equal
    del execution._REMEMBERED[("a test",)]
    assert execution.choose(("a test",), lambda: plans[1:], seconds, 0.1).chunk == 16  # quick enough: no more timing
    del execution._REMEMBERED[("a test",)]


def test_a_long_call_is_timed_once_and_a_short_one_often(monkeypatch):
    for lasts, calls in ((1e-4, 11), (0.02, 4), (0.1, 3), (2.0, 2)):  # the first one compiles
        clock, made = [0.0], []

        def call(lasts=lasts, clock=clock, made=made):
            made.append(None)
            clock[0] += lasts

        monkeypatch.setattr(execution.time, "perf_counter", lambda clock=clock: clock[0])
        assert execution.timed(call) == pytest.approx(lasts)
        assert len(made) == calls


def test_candidates_obey_what_the_user_fixed_and_the_batch_that_must_stay_whole():
    job = {"points": 200, "rows": 500, "row_bytes": 1000, "param_bytes": 1000, "sharable": True, "scannable": False}
    for on_cpu in (True, False):
        free = execution.candidates(lla.Execution(), **job, whole=False, on_cpu=on_cpu)
        assert 1 <= len(free) <= 3
        fixed = execution.candidates(
            lla.Execution(chunk=5, microbatch=7, loop="map", share=False), **job, whole=False, on_cpu=on_cpu
        )
        assert [(p.chunk, p.microbatch, p.loop, p.share) for p in fixed] == [(5, 7, "map", False)]
        assert {p.microbatch for p in execution.candidates(lla.Execution(), **job, whole=True, on_cpu=on_cpu)} == {500}


def test_candidates_for_convolutions_loop_over_points_and_chunk_by_the_cost_of_a_row():
    job = {"points": 5000, "rows": 500, "param_bytes": 1000, "sharable": True, "scannable": False, "whole": False}
    for row_bytes, chunk in ((10, 250), (2**15, 128), (2**20, 64)):
        plans = execution.candidates(lla.Execution(), **job, row_bytes=row_bytes, on_cpu=True)
        assert {p.loop for p in plans} == {"map"}
        assert abs(plans[0].chunk - chunk) <= 4
        asked = execution.candidates(lla.Execution(loop="vmap"), **job, row_bytes=row_bytes, on_cpu=True)
        assert all(p.chunk == 1 or (p.loop == "vmap" and p.chunk * p.microbatch * row_bytes <= 2**23) for p in asked)


def test_every_row_is_in_exactly_one_block():
    for rows, size, scan in ((23, 8, False), (23, 8, True), (7, 100, True), (5000, 3, True)):
        plan = execution.Plan(1, size, "map", False, scan)
        calls = list(execution.calls(plan, rows, rows, None, False))
        starts = np.concatenate([s for _, s in calls])
        covered = np.zeros(rows, int)
        for start in starts:
            covered[start : start + min(size, rows)] += 1
        np.testing.assert_array_equal(covered, 1)
        assert len({len(s) for _, s in calls}) == 1  # one shape
    whole = list(execution.calls(execution.Plan(1, 4, "map", False), 10, 10, 4, True))
    assert [(p.microbatch, s.tolist()) for p, s in whole] == [(4, [0]), (4, [4]), (2, [8])]


@pytest.mark.parametrize(("name", "value"), [("linearize", True), ("linearize", False), ("processes", "own")])
def test_what_a_landscape_does_not_read_is_refused(axes, name, value):
    chosen = lla.Execution(**{name: value})
    message = f"execution.{name}: {value!r} given, and a landscape does not read it; it must be 'a"
    for call in (
        lambda: lla.evaluate(mlp_loss(), params(), DATA, axes, GRID, execution=chosen),
        lambda: lla.sweep(mlp_loss(), [params()], DATA, axes=axes, grid=GRID, execution=chosen),
    ):
        with pytest.raises(ValueError, match=message):
            call()
