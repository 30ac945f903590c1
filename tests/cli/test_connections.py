"""``lla-jax connect`` on a tiny problem: curves, barriers with their errors, a band; states; what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

import lla_jax as lla
from lla_jax.cli import connections
from lla_jax.cli.drawing import choose_scale_along
from lla_jax.output import plotting
from tests.cli.cases import run
from tests.cli.path_cases import MODULE, W, history, losses, stopping


@pytest.fixture(autouse=True)
def module(tiny):
    (tiny / "history.py").write_text(MODULE)
    yield tiny
    sys.modules.pop("history", None)


QUICK = ("--steps", 20, "--points", 5, "--plane-points", 5)


def test_a_curve_with_its_barriers_that_goes_on_after_an_interruption(module, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(connections, "bar", stopping("bezier", 1))
        assert history("connect", *QUICK, "--out", "r", factory="two") == 130
    assert "the steps so far are kept in r/training.npz; the same command continues them" in capsys.readouterr().err
    assert history("connect", *QUICK, "--out", "r", "--seed", 1, factory="two") == 2
    assert "r was made with other" in capsys.readouterr().err
    assert history("connect", *QUICK, "--out", "r", factory="two") == 0
    out = capsys.readouterr().out
    curve, line, barrier = (lla.load(f"r/{name}.npz") for name in ("curve", "line", "barrier"))
    np.testing.assert_array_equal(curve(0.0)["w"], W.astype(np.float32))
    np.testing.assert_array_equal(curve(1.0)["w"], -W.astype(np.float32))
    np.testing.assert_allclose(line.value, losses(0 * W)[0], rtol=1e-4)  # the middle of the line
    assert line.t == pytest.approx(0.5, abs=1e-3)
    numbers = json.loads((module / "r/connect.json").read_text())
    assert numbers["barriers"]["bezier"]["heights"]["test_loss"]["value"] == barrier["test_loss"].value
    assert numbers["barriers"]["line"]["heights"]["loss"]["stderr"] == pytest.approx(line.value_stderr)
    text = (module / "r/connect.txt").read_text()
    assert text.strip() in out
    assert "Connection of two solutions: bezier of 3 points, 20 steps of training" in text
    np.testing.assert_allclose(lla.load("r/plane.npz").values["loss"].min(), 0, atol=1e-8)
    assert {0.0, 1.0} <= set(lla.load("r/plane.npz").coords[0])  # both ends are points of the plane
    pictures = {"barrier.png", "curve.png"}
    assert pictures <= {path.name for path in (module / "r").iterdir()}

    assert history("connect", *QUICK, "--out", "whole", factory="two") == 0
    np.testing.assert_array_equal(curve.points["w"], lla.load("whole/curve.npz").points["w"])
    for name in pictures:
        (module / "r" / name).unlink()
    capsys.readouterr()
    assert run("plot", "r") == 0
    assert pictures <= {path.name for path in (module / "r").iterdir()}
    assert "is not drawn" not in capsys.readouterr().err
    assert run("plot", "r/curve.npz") == 2
    assert "its picture is that of seen.npz or barrier.npz" in capsys.readouterr().err
    assert run("plot", "r/barrier.npz", "--value", "test_loss", "--format", "svg") == 0


def test_a_barrier_is_drawn_again_in_the_scale_that_it_had(module, capsys, monkeypatch):
    drawn, draw = [], plotting.barrier
    monkeypatch.setattr(plotting, "barrier", lambda *a, **k: drawn.append(k["log"]) or draw(*a, **k))
    assert history("connect", *QUICK, "--plane-points", 0, "--out", "r", factory="near") == 0
    assert run("plot", "r") == 0
    assert run("plot", "r/barrier.npz") == 0
    assert drawn == [True] * 3
    assert run("plot", "r/barrier.npz", "--no-log") == 0
    assert drawn.pop() is False
    saved = lla.load("r/barrier.npz")
    lla.save(replace(saved, values={name: z - 9 for name, z in saved.values.items()}), "mine.npz")
    capsys.readouterr()
    assert run("plot", "mine.npz", "--log") == 0
    assert drawn.pop() is False
    assert "--log: given, but a logarithm needs losses above 0; the pictures are linear" in capsys.readouterr().err


def test_a_data_set_without_a_logarithm_makes_the_picture_of_its_barrier_linear(module):
    assert history("connect", *QUICK, "--plane-points", 0, "--out", "r", factory="near") == 0
    saved = lla.load("r/barrier.npz")
    values, heights = ({**each, "test_loss": each["loss"]} for each in (saved.values, saved.heights))
    values["test_loss"] = 0 * saved.losses
    assert choose_scale_along({"": saved}, log=None)
    barrier = replace(saved, values=values, heights=heights)
    assert not choose_scale_along({"": barrier}, log=None)
    lla.save(barrier, "mine.npz")
    assert run("plot", "mine.npz") == 0


@pytest.mark.filterwarnings("ignore:tolerance. 0.001 not reached")
def test_a_band_shows_its_saddle(module, capsys, monkeypatch):
    drawn, draw = [], plotting.band
    assert history("connect", "--kind", "band", "--points", 5, "--steps", 10, "--out", "r", factory="near") == 0
    out = capsys.readouterr().out
    assert "band of" in out
    assert "Saddle at t = " in out
    (module / "r/band.png").unlink()
    monkeypatch.setattr(plotting, "band", lambda *a, **k: drawn.append(k.get("log")) or draw(*a, **k))
    assert run("plot", "r/curve.npz") == 0
    assert run("plot", "r/curve.npz", "--no-log") == 0
    assert drawn == [True, False]
    assert run("plot", "r/curve.npz", "--cap", 3) == 2
    assert (module / "r/band.png").exists()


def test_each_end_has_its_own_state(module, capsys, monkeypatch):
    np.savez(module / "b.npz", **{"params/w": np.ones(3, np.float32), "state/mean": np.float32(3)})
    np.savez(module / "bare.npz", w=np.ones(3, np.float32))
    ends = []
    monkeypatch.setattr(connections, "_train", lambda problem, *end: ends.append(end) or 1 / 0)
    assert history("connect", "--out", "r", factory="normed") == 1
    assert ends[-1][1]["mean"] == 0
    assert "Problem.checkpoints has 5 entries, of which the first is the other end" in capsys.readouterr().err
    assert history("connect", "--out", "r", "--checkpoint", "b.npz", factory="normed") == 1
    assert ends[-1][1]["mean"] == 3
    assert history("connect", "--out", "r", "--checkpoint", "bare.npz", factory="normed") == 2
    assert "--checkpoint: the state of the loss (BatchNorm) is not in them" in capsys.readouterr().err
    assert history("connect", "--out", "r", factory="lacking") == 2
    assert "Problem.states is empty; set states=[" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "factory", "says"),
    [
        ([], "alone", "--checkpoint: not given, and Problem.checkpoints is empty"),
        ([], "same", "the second solution: equals a"),
        ([], "other", "Problem.checkpoints[0]['w'] has shape (4,); it must be (3,)"),
        (["--checkpoint", "none.npz"], "two", "--checkpoint: there is no file none.npz"),
        (["--control-points", "2"], "two", "--control-points: 2 given; it must be at least 3, both ends included"),
        (["--learning-rate", "0"], "two", "--learning-rate: 0.0 given; it must be a positive number"),
        (["--weight-decay", "-1"], "two", "--weight-decay: -1.0 given"),
        (["--plane-points", "2"], "two", "--plane-points: 2 given; it must be at least 3, such as 31; or 0"),
        (["--kind", "band", "--cap", "3"], "two", "--cap: 3 given, but a band is drawn as a line"),
        (["--points", "2"], "two", "--points: 2 given; it must be at least 3"),
        (["--save-every", "0"], "two", "--save-every: 0 given; it must be at least 1"),
        (["--steps", "0"], "two", "--steps: 0 given; it must be at least 1"),
    ],
)
def test_mistakes_are_one_message(arguments, factory, says, capsys):
    assert history("connect", "--out", "r", *arguments, factory=factory) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
