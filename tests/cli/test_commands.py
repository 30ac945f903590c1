"""The words of a command line are understood as they are typed; the rules follow from the types of the options."""

from __future__ import annotations

import pytest

from lla_jax.cli import commands
from lla_jax.cli.options import Mistake


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ([], ["--help"]),
        (["help"], ["--help"]),
        (["help", "plot"], ["plot", "--help"]),
        (["version"], ["--version"]),
        (["-V"], ["--version"]),
        (["plot", "help"], ["plot", "help"]),
    ],
)
def test_help_and_version_are_words_too(words, meaning):
    assert commands.complete(words) == meaning


ON = ["landscape", "--problem", "a:b"]


@pytest.mark.parametrize(
    "words",
    [
        ["--version"],
        ["landscape", "--points", "--help"],
        [*ON, "--points", "3", "5", "--range", "-1", "1", "-.5", "-1e-3", "--extent=2"],
        ["hessian", "--problem=a:b", "--batch_size", "8", "--layers", "--select", "a", "b/*", "--which", "smallest"],
        [*ON, "--batch-size", "None", "--seed", "-1", "--range", "-inf", "nan", "--out", "a b"],
        ["plot", "a.npz", "--value", "x"],
        ["plot", "--log", "a.npz"],
        ["merge", "--partial", "run"],
        ["demo"],
    ],
)
def test_good_commands_pass(words):
    commands.check(words)


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_every_option_has_a_rule(command):
    rules = commands.rules_of(commands.COMMANDS[command])
    assert all(rule.text for rule in rules.values())
    assert rules["debug"].most == 0
    for rule in rules.values():
        if rule.most != 0 and not rule.option.isupper():
            with pytest.raises(Mistake, match=f"--{rule.option}: no value given; it must be"):
                commands.check([command, f"--{rule.option}"])
