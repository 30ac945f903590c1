"""Options that contradict each other are refused before anything is built."""

from __future__ import annotations

import sys

import pytest

from tests.cli.cases import tiny_run


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--cap", "nan"], "--cap: nan given; it must be a finite number"),
        (["--cap", "0", "--log"], "--cap: 0 given; it must be a finite number above 0, with --log"),
        (["--cap", "3", "--dims", "1"], "--cap: 3 given, but it caps planes"),
        (["--log", "--no-log"], "--log: given with --no-log, which contradicts it"),
        (["--normalize", "none", "--order", "2"], "--order: 2 given, but --normalize none takes no norm"),
        (["--normalize", "weight", "--order", "1"], "--order: 1 given, but --normalize"),
        (["--axes", "checkpoints", "--dims", "1", "--order", "1"], "--order: 1 given, but --normalize"),
        (
            ["--normalize", "none", "--one-dim", "zero"],
            "--one-dim: zero given, which has no effect with --normalize none",
        ),
        (
            ["--normalize", "model", "--one-dim", "entry"],
            "--one-dim: entry given, which has no effect with --normalize model",
        ),
        (["--axes", "checkpoints", "--dims", "1", "--seed", "3"], "--seed: 3 given, but none of these axes is random"),
        (["--range", "0", "0", "0", "1"], "--range: 0 0 given; it must be two finite numbers, the lower one first"),
        (["--axes", "adam", "--rule", "adam", "--range", "0", "1", "0", "1"], "b, given; it must be above 0"),
        (["--batch-size", "0"], "--batch-size: 0 given; it must be at least 1"),
    ],
)
def test_options_without_sense_are_refused_before_anything_is_built(arguments, says, capsys):
    assert tiny_run("--out", "r", *arguments) == 2
    assert says in capsys.readouterr().err
    assert "tiny_problem" not in sys.modules


@pytest.mark.parametrize("wrong", ["3", "0/3", "4/3", "a/b"])
def test_a_shard_that_is_none_is_refused(wrong, tiny, capsys):
    assert tiny_run("--shard", wrong) == 2
    assert f"--shard: {wrong} given; it must be I/N" in capsys.readouterr().err
