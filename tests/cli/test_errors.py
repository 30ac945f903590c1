"""Mistakes of the user are one message, errors in their code one line."""

from __future__ import annotations

import re

import pytest

from lla_jax.cli import main as cli
from tests.cli.cases import run, tiny_run


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--problem", "tiny_problem"], "--problem: 'tiny_problem' given; it must be MODULE:FUNCTION"),
        (["--problem", "no_such_module:make"], "no module 'no_such_module'"),
        (["--problem", "tiny_problem.part:make"], "no module 'tiny_problem.part'"),
        (["--problem", "absent.py:make"], "there is no file absent.py"),
        (["--problem", "needs_missing.py:make"], r"importing it failed: ModuleNotFoundError.*needs_missing.py:1\)"),
        (
            ["--problem", "tiny_problem:needs"],
            r"but needs needs data, size; the factory must take no arguments: give them defaults",
        ),
        (["--problem", "tiny_problem:deep"], r"JSONDecodeError: .*tiny_problem.py:\d+\)\n\(--debug shows"),
        (["--problem", "tiny_problem:leaves"], "the factory failed: SystemExit: usage: train.py"),
        (["--problem", "tiny_problem:nothing"], "has no function 'nothing'"),
        (
            ["--problem", "tiny_problem:number"],
            "--problem: .* given, but the factory returned int; it must return lla_jax.Problem",
        ),
        (["--problem", "tiny_problem:broken"], r"the factory failed: KeyError: 'missing' \(.*tiny_problem.py:\d+\)"),
        (["--problem", "needs_missing:make"], r"importing it failed: ModuleNotFoundError.*needs_missing.py:1\)"),
        (["--problem", "tiny_problem:diverged"], "params"),
        (["--problem", "tiny_problem:make", "--select", "nothing/*"], "layer/kernel"),
        (["--problem", "tiny_problem:make", "--axes", "adam"], "needs Problem.opt_state"),
        (
            ["--problem", "tiny_problem:make", "--axes", "checkpoints"],
            "needs 2 entries in Problem.checkpoints for --dims 2, and there are 1",
        ),
        (["--problem", "tiny_problem:make", "--axes", "checkpoints", "--normalize", "filter"], "leave --normalize out"),
        (["--problem", "tiny_problem:make", "--axes", "adam", "--rule", "adam", "--normalize", "layer"], "as they"),
        (["--problem", "tiny_problem:make", "--rule", "adam"], "needs --axes adam --dims 2"),
        (
            ["--problem", "tiny_problem:make", "--points", "1", "2", "3"],
            "--points: 3 numbers given; it must be one, or one for each of the 2 axes",
        ),
        (["--problem", "tiny_problem:make", "--points", "0"], "--points: 0 given; it must be at least 1"),
        (
            ["--problem", "tiny_problem:make", "--range", "0", "1"],
            "--range: 1 pairs given; it must be one pair for each of the 2 axes",
        ),
        (["--problem", "tiny_problem:make", "--range", "0", "1", "0", "1", "--extent", "2"], "give one of them"),
        (["--problem", "tiny_problem:make", "--extent", "-1"], "--extent: -1.0 given; it must be a positive number"),
        (["--problem", "tiny_problem:make", "--batch-stats", "reestimate"], "--batch-stats: 'reestimate' given;"),
        (
            ["--problem", "tiny_problem:make", "--devices", "99"],
            r"--devices: 99 given; it must be from 1 to \d+, the number of CPU",
        ),
        (["--problem", "tiny_problem:make", "--devices", "0"], "--devices: 0 given; it must be from 1 to"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(arguments, says, capsys):
    assert run("landscape", *arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "lla-jax: error: " in said
    assert re.search(says, said, re.DOTALL), said


def test_errors_of_the_users_loss_are_one_message(capsys):
    assert tiny_run("--points", 3, factory="wrong_shapes") == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    wanted = r"^lla-jax: error: loss: the function failed with TypeError: .*tiny_problem.py:\d+\)\n\(--debug"
    assert re.search(wanted, said, re.DOTALL | re.MULTILINE)
    with pytest.raises(ValueError, match="failed with TypeError"):
        tiny_run("--points", 3, "--debug", factory="wrong_shapes")


def test_debug_shows_the_traceback_and_unknown_options_are_refused():
    with pytest.raises(cli.Mistake):
        tiny_run("--debug", factory="nothing")
    with pytest.raises(SystemExit) as refused:
        tiny_run("--rule", "multiply")
    assert refused.value.code == 2
