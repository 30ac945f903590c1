"""``lla-jax path`` on a tiny problem: numbers, words, pictures and film; files of checkpoints; what is refused."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

import lla_jax as lla
from lla_jax.cli import drawing, paths, planes
from lla_jax.output.plotting import film_files
from tests.cli.cases import run
from tests.cli.path_cases import MODULE, W, history, losses, stopping


@pytest.fixture(autouse=True)
def module(tiny):
    (tiny / "history.py").write_text(MODULE)
    yield tiny
    sys.modules.pop("history", None)


def weights():
    import history as module

    return [np.asarray(module.at(t)["w"], np.float64) for t in range(5)] + [W]


QUICK = ("--points", 5)


def test_a_path_in_numbers_words_pictures_and_a_film(module, capsys):
    assert history("path", *QUICK, "--out", "r", "--film", "--frames", 2) == 0
    out = capsys.readouterr().out
    seen, plane, axes = (lla.load(f"r/{name}.npz") for name in ("seen", "plane", "axes"))
    np.testing.assert_allclose(seen.loss, losses(*weights()), rtol=1e-4, atol=1e-10)
    np.testing.assert_allclose(seen.coords[-1], 0, atol=1e-12)
    assert plane.shape == (5, 5)
    text = (module / "r/path.txt").read_text()
    assert text.strip() in out
    for words in ("Path of 6 checkpoints, steps 0 to 5", "random walk of 6 checkpoints", "test_loss of projection"):
        assert words in text
    numbers = json.loads((module / "r/path.json").read_text())
    assert numbers["explained_variance"] == axes.recipe["explained_variance"]
    np.testing.assert_array_equal(numbers["values"]["projected_loss"], seen.projected_loss)
    made = {"trajectory.png", "explained-variance.png", "descent.gif"}
    assert made <= {path.name for path in (module / "r").iterdir()}

    for name in made - {"descent.gif"}:
        (module / "r" / name).unlink()
    assert run("plot", "r") == 0
    assert made <= {path.name for path in (module / "r").iterdir()}
    assert run("plot", "r/seen.npz", "--value", "error", "--out", "p") == 0
    assert run("plot", "r/seen.npz", "--value", "nothing") == 2
    assert "--value: 'nothing' given; it must be in r/plane.npz" in capsys.readouterr().err
    assert run("plot", "r/axes.npz", "--cap", 3) == 2
    assert "--cap: given, but it is for landscapes" in capsys.readouterr().err
    (module / "r/plane.npz").rename(module / "r/elsewhere.npz")
    assert run("plot", "r/seen.npz") == 2
    assert "is drawn on the plane in r/plane.npz, which does not exist" in capsys.readouterr().err


def test_an_interrupted_path_goes_on_with_the_same_command(module, capsys, monkeypatch):
    command = ("path", *QUICK, "--batch-stats", "batch", "--out", "r")
    with monkeypatch.context() as patch:
        patch.setattr(paths, "bar", stopping("checkpoints", 6))
        assert history(*command, factory="normed") == 130
    assert "the losses so far are kept in r/seen.partial.npz" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(planes, "bar", stopping("plane", 1))
        assert history(*command, factory="normed") == 130
    assert "points are kept in r; the same command continues it" in capsys.readouterr().err
    assert not (module / "r/seen.partial.npz").exists()
    assert history(*command, factory="normed") == 0
    assert history(*command[:-1], "whole", factory="normed") == 0
    for name in ("seen", "plane"):
        resumed, whole = (lla.load(f"{folder}/{name}.npz") for folder in ("r", "whole"))
        for value in whole.values:
            np.testing.assert_allclose(resumed.values[value], whole.values[value], rtol=1e-6)
    capsys.readouterr()
    assert history("path", *QUICK, "--out", "r", factory="normed") == 2
    assert "made with other options: batch-stats batch -> frozen" in capsys.readouterr().err
    assert run("landscape", "--problem", "history:normed", "--out", "r") == 2
    assert "made with other options: axes path -> random" in capsys.readouterr().err


def test_files_and_recordings_are_paths_around_their_last_checkpoint(module, monkeypatch):
    seen = []
    monkeypatch.setattr(paths, "_project", lambda problem, loss, path, *_: seen.append((loss, path)) or 1 / 0)
    track = lla.paths.record("rec", every=1)
    (module / "ckpt").mkdir()
    for step, t in enumerate((0.0, 1.0, 2.5, 4.0)):
        params = {"w": np.array([np.sin(t), np.cos(t), t], np.float32)}
        state = {"mean": np.float32(t)}
        track(params, 3 * step, state=state)
        np.savez(module / f"ckpt/net{10 * step}.npz", **{"params/w": params["w"], "state/mean": state["mean"]})
    for files in (["ckpt/*.npz"], ["rec"], [f"ckpt/net{10 * step}.npz" for step in range(4)]):
        assert history("path", *QUICK, "--out", "r", "--checkpoints", *files, factory="normed") == 1
        loss, path = seen.pop()
        assert len(path) == 4
        np.testing.assert_array_equal(path[2]["w"], np.array([np.sin(2.5), np.cos(2.5), 2.5], np.float32))
        assert loss.state["mean"] == 4  # of the centre, not that of Problem.params


@pytest.mark.parametrize(
    ("arguments", "factory", "says"),
    [
        ([], "alone", "--checkpoints: not given, and Problem.checkpoints is empty"),
        ([], "straight", "--checkpoints: its 3 checkpoints have rank 1 (they lie on a straight line"),
        ([], "same", "--checkpoints: has 1 checkpoint; at least 2 are needed"),
        ([], "spoilt", "Problem.checkpoints[1]['w'] has 3 NaN"),
        ([], "other", "Problem.checkpoints[0]['w'] has shape (4,); it must be (3,), as in Problem.params"),
        ([], "lacking", "Problem.states is empty"),
        (["--checkpoints", "none/*.npz"], "make", "--checkpoints: none/*.npz matches no file"),
        (["--checkpoints", "history.py"], "make", "--checkpoints: history.py"),
        (["--film", "mp4"], "make", "--film: mp4 given; there is no ffmpeg, which writes .mp4; install it"),
        (["--frames", "3"], "make", "--frames: 3 given, but there is no --film"),
        (["--every", "3"], "make", "--every: 3 given, but it spaces --curvature"),
        (["--seed", "3"], "make", "--seed: 3 given, but only --curvature draws vectors"),
        (["--curvature", "trace", "trace"], "make", "--curvature: trace trace given; it must be each name once"),
        (["--curvature", "trace", "--batch-stats", "reestimate"], "make", "--curvature: given with --batch-stats"),
        (["--points", "2"], "make", "--points: 2 given; it must be at least 3"),
        (["--margin", "-1"], "make", "--margin: -1.0 given; it must be a number of at least 0"),
    ],
)
def test_mistakes_are_one_message(arguments, factory, says, capsys, monkeypatch):
    monkeypatch.setattr(film_files, "_ffmpeg", lambda: None)
    assert history("path", "--out", "r", *arguments, factory=factory) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said


def test_the_state_of_files_without_one_is_asked_for(module, capsys):
    for i, t in enumerate((0.0, 1.0, 2.0)):
        np.savez(module / f"net{i}.npz", w=np.array([np.sin(t), np.cos(t), t], np.float32))
    command = ("path", *QUICK, "--out", "r", "--checkpoints", "net*.npz")
    assert history(*command, factory="normed") == 2
    assert "the state of the loss (BatchNorm) is not in them" in (said := capsys.readouterr().err)
    assert "use --batch-stats reestimate or batch" in said


def test_a_bare_film_is_a_gif():
    from lla_jax.cli import commands

    assert commands.complete(["path", "--film", "--log"]) == ["path", "--film", "gif", "--log"]
    assert commands.complete(["path", "--film"])[-1] == "gif"
    assert commands.complete(["path", "--film", "html"])[-1] == "html"
    assert drawing.film_of(paths.Path("r"), "gif").name == "descent.gif"
