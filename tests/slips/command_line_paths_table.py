"""Slips on the command line with ``lla-jax path`` and ``lla-jax connect``."""

from __future__ import annotations

from typing import Any
from unittest import mock

from lla_jax.output.plotting import film_files
from tests.cli.path_cases import MODULE
from tests.slips.slip import command, table

SLIPS, slip = table()


def row(*words: Any, says: tuple[str, ...], name: str, **files: str) -> None:
    """Add a row to the table: a command line, and what must stand in its message."""

    def call() -> None:
        with mock.patch.object(film_files, "_ffmpeg", return_value=None):
            command(*words, files={"history.py": MODULE} | {n.replace("__", "."): text for n, text in files.items()})

    call.__name__ = name
    slip(*says)(call)


def path(factory: str) -> tuple[str, ...]:
    return ("path", "--problem", f"history:{factory}", "--points", "5")


def connect(factory: str) -> tuple[str, ...]:
    return ("connect", "--problem", f"history:{factory}", "--steps", "2")


row("path", says=("--problem: not given", "lla-jax path --problem"), name="a_path_without_a_problem")
row("paths", says=("no command 'paths'", "did you mean path?"), name="a_command_misspelt")
row(*path("make"), "--film", "avi", says=("--film: 'avi' given", "gif, mp4, html"), name="a_film_of_another_kind")
row(*path("make"), "--film", "mp4", says=("--film: mp4 given", "no ffmpeg", "GIF"), name="a_film_without_ffmpeg")
row(*path("make"), "--checkpoints", says=("--checkpoints: no value given",), name="no_checkpoints_named")
row(*path("make"), "--checkpoints", "x*", says=("--checkpoints: x* matches no file",), name="a_pattern_of_nothing")
row(
    *path("make"),
    "--checkpoints",
    "a.npz",
    says=("--checkpoints: a.npz", "is empty"),
    name="a_damaged_checkpoint",
    a__npz="",
)
row(*path("make"), "--checkpoints", "a.pth", says=("torch",), name="a_checkpoint_of_torch", a__pth="x")
row(
    *path("make"), "--curvature", "hessian", says=("--curvature: 'hessian' given", "trace"), name="an_unknown_curvature"
)
row(*path("make"), "--every", "2", says=("--every: 2 given", "--curvature"), name="a_distance_of_no_curvature")
row(*path("make"), "--frames", "9", says=("--frames: 9 given", "--film"), name="frames_of_no_film")
row(*path("make"), "--margin", "nan", says=("--margin: nan given", "0.2"), name="a_margin_of_nan")
row(*path("make"), "--kind", "band", says=("an option of lla-jax connect, not of path",), name="an_option_of_connect")
row(*path("alone"), says=("--checkpoints: not given", "Problem.checkpoints is empty"), name="no_checkpoints_at_all")
row(*path("straight"), says=("rank 1", "a plane needs"), name="a_path_on_a_straight_line")
row(*path("same"), says=("has 1 checkpoint", "at least 2"), name="a_path_that_stands_still")
row(*path("spoilt"), says=("Problem.checkpoints[1]['w'] has 3 NaN",), name="a_checkpoint_of_nan")
row(*path("other"), says=("Problem.checkpoints[0]['w'] has shape (4,)",), name="a_checkpoint_of_another_network")
row(*path("lacking"), says=("Problem.states is empty", "--batch-stats reestimate"), name="a_path_without_states")
row(*connect("two"), "--kind", "spline", says=("--kind: 'spline' given", "bezier, polygon, band"), name="a_kind")
row(
    *connect("two"), "--control-points", "2", says=("--control-points: 2 given", "such as 3"), name="two_control_points"
)
row(*connect("two"), "--learning-rate", "-1", says=("--learning-rate: -1.0 given",), name="a_negative_rate")
row(*connect("two"), "--checkpoint", "b.npz", says=("--checkpoint: there is no file b.npz",), name="an_absent_end")
row(*connect("alone"), says=("--checkpoint: not given",), name="no_second_solution")
row(*connect("same"), says=("the second solution: equals a",), name="the_same_solution_twice")
row(*connect("lacking"), says=("Problem.states is empty", "set states=["), name="a_second_state_that_is_missing")
row("plot", "a.npz", says=("a.npz", "it is empty"), name="a_plot_of_an_empty_path", a__npz="")
