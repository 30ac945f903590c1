"""Plans are timed once, and every row is in exactly one block."""

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.execution import plans as execution
from tests.helpers import dataset, mlp_loss, params


def test_the_fastest_plan_is_chosen_once_and_one_that_does_not_fit_is_passed_over():
    plans = [execution.Plan(c, 8, "map", False) for c in (64, 16, 4)]
    timed = []

    def seconds(plan):
        timed.append(plan.chunk)
        if plan.chunk == 64:
            raise MemoryError
        return {16: 2.0, 4: 1.0}[plan.chunk]

    for _ in range(2):
        assert execution.choose_fastest(("a test",), lambda: plans, seconds, 100.0).chunk == 4
    assert timed == [64, 16, 4]
    del execution._REMEMBERED[("a test",)]
    # nearly equal
    assert execution.choose_fastest(("a test",), lambda: plans, lambda p: 1 + p.chunk / 1000, 100.0).chunk == 64
    del execution._REMEMBERED[("a test",)]
    # quick enough: no more timing
    assert execution.choose_fastest(("a test",), lambda: plans[1:], seconds, 0.1).chunk == 16
    del execution._REMEMBERED[("a test",)]


def test_a_long_call_is_timed_once_and_a_short_one_often(monkeypatch):
    for lasts, calls in ((1e-4, 11), (0.02, 4), (0.1, 3), (2.0, 2)):  # the first one compiles
        clock, made = [0.0], []

        def call(lasts=lasts, clock=clock, made=made):
            made.append(None)
            clock[0] += lasts

        monkeypatch.setattr(execution.time, "perf_counter", lambda clock=clock: clock[0])
        assert execution.time_call(call) == pytest.approx(lasts)
        assert len(made) == calls


def test_candidates_obey_what_the_user_fixed_and_the_batch_that_must_stay_whole():
    job = {"points": 200, "rows": 500, "row_bytes": 1000, "param_bytes": 1000, "sharable": True, "scannable": False}
    for on_cpu in (True, False):
        free = execution.candidates(lla.Execution(), **job, uncut=False, on_cpu=on_cpu)
        assert 1 <= len(free) <= 4
        fixed = execution.candidates(
            lla.Execution(chunk=5, microbatch=7, loop="map", share=False), **job, uncut=False, on_cpu=on_cpu
        )
        assert [(p.chunk, p.microbatch, p.loop, p.share) for p in fixed] == [(5, 7, "map", False)]
        assert {p.microbatch for p in execution.candidates(lla.Execution(), **job, uncut=True, on_cpu=on_cpu)} == {500}


def test_candidates_for_convolutions_loop_over_points_and_chunk_by_the_cost_of_a_row():
    job = {"points": 5000, "rows": 500, "param_bytes": 1000, "sharable": True, "scannable": False, "uncut": False}
    for row_bytes, chunk in ((10, 250), (2**15, 128), (2**20, 64)):
        plans = execution.candidates(lla.Execution(), **job, row_bytes=row_bytes, on_cpu=True)
        assert {p.loop for p in plans} == {"map"}
        assert abs(plans[0].chunk - chunk) <= 4
        asked = execution.candidates(lla.Execution(loop="vmap"), **job, row_bytes=row_bytes, on_cpu=True)
        assert all(p.chunk == 1 or (p.loop == "vmap" and p.chunk * p.microbatch * row_bytes <= 2**23) for p in asked)


def test_candidates_for_accelerators_are_loops_and_batches_with_the_likely_ones_first():
    """What the TPU's compiler says of such plans is in benchmarks/results/tpu.json."""
    job = {"points": 1681, "param_bytes": 1000, "uncut": False, "on_cpu": False}
    for row_bytes, rows, chunks in ((256, 1797, (256, 256)), (18816, 2048, (222, 13)), (65536, 512, (64, 15))):
        many, few = (-(-1681 // -(-1681 // chunk)) for chunk in chunks)
        for convolves in (True, False):
            found = execution.candidates(
                lla.Execution(), **job, rows=rows, row_bytes=row_bytes, sharable=True, scannable=not convolves
            )
            loops = [execution.Plan(many, rows, "map", share, True) for share in (True, False)]
            batches = [plan for plan in found if plan.loop == "vmap"]
            assert found == (loops + batches if convolves else batches + loops)
            assert batches[0] == execution.Plan(few, rows, "vmap", True, True)
            assert [plan.microbatch for plan in batches[1:]] == [512] * (rows > 512)
        # where nothing can be shared, there is one loop
        alone = execution.candidates(
            lla.Execution(), **job, rows=rows, row_bytes=row_bytes, sharable=False, scannable=False
        )
        assert [(plan.loop, plan.share) for plan in alone[:2]] == [("map", False), ("vmap", False)]
    # of a network whose examples are large, a block is as large as the budget
    (loop,) = execution.candidates(lla.Execution(), **job, rows=4096, row_bytes=2**27, sharable=False, scannable=True)
    assert loop.microbatch == 4


def test_every_row_is_in_exactly_one_block():
    for rows, size, scan in ((23, 8, False), (23, 8, True), (7, 100, True), (5000, 3, True)):
        plan = execution.Plan(1, size, "map", False, scan)
        calls = list(execution.split_calls(plan, rows, rows, None, False))
        starts = np.concatenate([s for _, s in calls])
        covered = np.zeros(rows, int)
        for start in starts:
            covered[start : start + min(size, rows)] += 1
        np.testing.assert_array_equal(covered, 1)
        assert len({len(s) for _, s in calls}) == 1  # one shape
    whole = list(execution.split_calls(execution.Plan(1, 4, "map", False), 10, 10, 4, True))
    assert [(p.microbatch, s.tolist()) for p, s in whole] == [(4, [0]), (4, [4]), (2, [8])]


@pytest.mark.parametrize(("name", "value"), [("linearize", True), ("linearize", False), ("processes", "own")])
def test_what_a_landscape_does_not_read_is_refused(name, value):
    axes, grid, data = lla.directions.random(jax.random.key(2), params()), lla.grid(points=3), dataset()
    chosen = lla.Execution(**{name: value})
    message = f"execution.{name}: {value!r} given, and a landscape does not read it; it must be 'a"
    for call in (
        lambda: lla.evaluate(mlp_loss(), params(), data, axes, grid, execution=chosen),
        lambda: lla.sweep(mlp_loss(), [params()], data, axes=axes, grid=grid, execution=chosen),
    ):
        with pytest.raises(ValueError, match=message):
            call()
