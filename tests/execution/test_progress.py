"""Progress is reported in order up to the total, and results are saved on the way."""

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.execution import progress
from tests.helpers import FIXED, dataset, mlp_loss, params

DATA = dataset()
GRID = lla.grid(extent=0.5, points=(4, 5))


@pytest.fixture(scope="module")
def axes():
    return lla.directions.random(jax.random.key(2), params())


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


def test_a_part_reports_its_points_within_all():
    seen = []
    report = progress.report_part(lambda *at: seen.append(at), 4, 6, 20)
    report(3, 6)
    report(2, None)
    assert seen == [(7, 20), (6, None)]
    assert progress.report_part(None, 4, 6, 20) is None


def test_results_are_saved_no_more_often_than_asked(monkeypatch):
    clock, seen, saved = [0.0], [], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    both = progress.save_regularly(lambda *at: seen.append(at), 60, print, lambda: saved.append(clock[0]))
    for clock[0] in (10.0, 59.0, 60.0, 100.0, 125.0):
        both(1, 2)
    assert saved == [60.0, 125.0]
    assert len(seen) == 5
    assert progress.save_regularly(print, None, None, print) is print


@pytest.mark.parametrize("every", [0, -1.0, True, "60", float("nan")])
def test_seconds_that_are_none_are_refused(every):
    with pytest.raises(
        ValueError, match=r"save_every: .* given; it must be a finite number above 0, in seconds, such as"
    ):
        progress.save_regularly(None, every, print, print)
    with pytest.raises(ValueError, match=r"save_every: 5 given without on_partial, which it would call; pass"):
        progress.save_regularly(None, 5, None, print)


def test_true_is_a_bar_and_false_is_none(axes, capsys):
    def line(asked):
        lla.evaluate(mlp_loss(), params(), DATA, axes[:1], lla.grid(points=3, dims=1), execution=FIXED, progress=asked)

    line(True)
    assert "evaluate: 100%" in capsys.readouterr().err.split("\r")[-1]
    line(False)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("asked", [1, "bar", [], lambda done: None, dict])
def test_what_is_no_progress(asked):
    called = progress.takes_progress("points")(lambda *, progress=None: progress)
    with pytest.raises(
        ValueError, match=r"progress: .* given; it must be True for a bar, None, or a function progress"
    ):
        called(progress=asked)
    assert called(progress=print) is print
    assert called(progress=None) is called() is called(progress=np.False_) is None


def test_a_bar_says_that_a_total_is_estimated_and_ends_with_the_true_one(capsys):
    with progress.bar("work", "products") as show:
        progress.expect_total(show, float("inf"))
        progress.expect_total(show, 12.4)
        assert "work: ~0% " in capsys.readouterr().err
        show(3, None)
        show(15, None)
    assert "15/15 products" in capsys.readouterr().err.split("\r")[-1]
    progress.expect_total(print, 3)
    progress.expect_total(None, 3)
    assert not capsys.readouterr().out
