"""Checks the words of a command line before they are parsed, so that every slip is one message that says what to write.

This module imports no jax. The rules follow from the types of the options, which are dataclasses in ``cli.options``.
"""

from __future__ import annotations

import re
import shlex
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lla_jax._names import nearest
from lla_jax.cli.options import (
    CompileOptions,
    ConnectOptions,
    DemoOptions,
    HessianOptions,
    LandscapeOptions,
    MergeOptions,
    Mistake,
    PathOptions,
    PlotOptions,
    StatusOptions,
)

COMMANDS: dict[str, type] = {
    "demo": DemoOptions,
    "landscape": LandscapeOptions,
    "hessian": HessianOptions,
    "path": PathOptions,
    "connect": ConnectOptions,
    "compile": CompileOptions,
    "merge": MergeOptions,
    "status": StatusOptions,
    "plot": PlotOptions,
}
EXAMPLES = {
    "landscape": "lla-jax landscape --problem MODULE:FUNCTION, such as --problem lla_jax.demo:problem",
    "hessian": "lla-jax hessian --problem MODULE:FUNCTION, such as --problem lla_jax.demo:problem",
    "path": "lla-jax path --problem MODULE:FUNCTION, such as --problem lla_jax.demo:problem",
    "connect": "lla-jax connect --problem MODULE:FUNCTION, such as --problem lla_jax.demo:problem",
    "compile": "lla-jax compile --problem MODULE:FUNCTION --for tpu-v5e-8, such as --problem lla_jax.demo:problem",
    "merge": "lla-jax merge FOLDER, such as lla-jax merge run",
    "status": "lla-jax status FOLDER, such as lla-jax status run",
    "plot": "lla-jax plot FILE, such as lla-jax plot run/landscape.npz",
}
ALONE = {"--film": "gif"}  # options whose value may be left out, with what it is then
ALIKE = 0.7  # from this ratio on, one word may be meant for another
_NUMBER = re.compile(r"-([\d.]|inf|nan)", re.IGNORECASE)
_RULES: dict[Any, tuple[str, Callable[[str], Any]]] = {
    int: ("an integer", int),
    float: ("a number", float),
    Path: ("a path", lambda text: text.strip()[0]),
    str: ("a text", str),
}


class Rule(NamedTuple):
    """What an option takes.

    Args:
      option: its name, such as "batch-size"; that of a positional argument in capitals.
      most: number of its values: 0 for a flag, 1, or None for any number.
      text: what each value must be, in words.
      read: raises a ValueError or an IndexError for another value.
      choices: the allowed values, if they are listed.
      by: the number of values is a multiple of this one.
      required: whether it must be given.
    """

    option: str
    most: int | None
    text: str
    read: Callable[[str], Any]
    choices: tuple[str, ...] = ()
    by: int = 1
    required: bool = False

    @property
    def shown(self) -> str:
        """The option as it is typed."""
        return self.option if self.option.isupper() else f"--{self.option}"


def complete(argv: Sequence[str]) -> list[str]:
    """The arguments of a command with what may be left out: --help for no command, and the value of ``ALONE``.

    The words help and version mean what they say.
    """
    words = list(argv) or ["--help"]
    for i in reversed(range(len(words))):
        if words[i] in ALONE and (i + 1 == len(words) or _is_option(words[i + 1])):
            words.insert(i + 1, ALONE[words[i]])
    if words[0] == "help":
        return [*words[1:2], "--help"]
    return ["--version"] if words[0] in ("version", "-V", "--version") else words


def check(argv: Sequence[str]) -> None:
    """Raise ``Mistake`` unless the arguments are those of a command, with values of the right types.

    Args:
      argv: the arguments after the program's name, from ``complete``.
    """
    command = argv[0]
    if not {"-h", "--help", "--version"}.isdisjoint([command, *(argv if command in COMMANDS else ())]):
        return
    if command not in COMMANDS:
        raise Mistake(_unknown_command(argv))
    try:
        _check_words(command, argv[1:])
    except Mistake as error:
        raise Mistake(f"{error}\n(lla-jax {command} --help lists the options)") from error


def _unknown_command(argv: Sequence[str]) -> str:
    """The message for arguments that do not begin with a command."""
    first = argv[0]
    if ":" in first and not first.startswith("-"):
        return f"{first} given without a command; write lla-jax landscape --problem {shlex.join(argv)}, or hessian"
    if first.endswith(".npz"):
        return f"{first} given without a command; write lla-jax plot {shlex.join(argv)}"
    known = f"the commands are {', '.join(COMMANDS)} (lla-jax --help)"
    if not first.startswith("-"):
        near = nearest(first, COMMANDS, ALIKE)
        return f"there is no command {first!r}{f', did you mean {near}?' if near else ''}; {known}"
    if (inside := next((word for word in argv if word in COMMANDS), None)) is not None:
        others = [word for word in argv if word != inside]
        return f"{first} given before the command; options come after it: lla-jax {shlex.join([inside, *others])}"
    having = _commands_with(first.partition("=")[0])
    if having:
        return f"{first} given without a command; write lla-jax {having[0]} {shlex.join(argv)}; {known}"
    return f"there is no option {first} before a command; {known}"


def _check_words(command: str, words: Sequence[str]) -> None:
    """Check options and values of a command one after the other."""
    rules = rules_of(COMMANDS[command])
    positional = [rule for rule in rules.values() if rule.option.isupper()]
    given: set[str] = set()
    last: Rule | None = None
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if _is_option(word):
            name, equals, value = word.partition("=")
            key = name.lstrip("-").replace("-", "_")
            if key not in rules or rules[key].option.isupper() or not name.startswith("--"):
                raise Mistake(_unknown_option(command, name))
            last = rules[key]
            values = [value] if equals else _take(last, rest)
            _check_values(last, values, bool(equals))
        elif positional:
            last = positional.pop(0)
            _check_values(last, [word], False)
        else:
            raise Mistake(_left_over(command, word, last, "problem" in rules and "problem" not in given))
        given.add(last.option)
    for rule in rules.values():
        if rule.required and rule.option not in given:
            raise Mistake(f"{rule.shown}: not given, and lla-jax {command} needs it; write {EXAMPLES[command]}")


def _is_option(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and not _NUMBER.match(word)


def _take(rule: Rule, rest: list[str]) -> list[str]:
    """Remove the values of an option from the words that follow it, and return them."""
    values: list[str] = []
    while rest and not _is_option(rest[0]) and (rule.most is None or len(values) < rule.most):
        values.append(rest.pop(0))
    return values


def _check_values(rule: Rule, values: Sequence[str], equals: bool) -> None:
    if rule.most == 0:
        if equals:
            raise Mistake(f"{rule.shown}: {values[0]!r} given, but it takes no value; write {rule.shown} alone")
        return
    if not values:
        raise Mistake(f"{rule.shown}: no value given; it must be {rule.text}, or leave {rule.shown} out")
    for value in values:
        if rule.choices and value not in rule.choices:
            near = nearest(value, rule.choices, ALIKE)
            meant = f"; did you mean {near}?" if near else ""
            raise Mistake(f"{rule.shown}: {value!r} given; it must be {rule.text}{meant}")
        try:
            rule.read(value)
        except (ValueError, IndexError):
            several = " (several are separated by spaces)" if rule.most is None else ""
            raise Mistake(f"{rule.shown}: {value!r} given; it must be {rule.text}{several}") from None
    if len(values) % rule.by:
        example = "LOW HIGH for each axis, such as --range -1 1 -1 1, without ="
        raise Mistake(f"{rule.shown}: {' '.join(values)} given; it must be pairs, {example}")


def _unknown_option(command: str, name: str) -> str:
    """The message for an option that the command does not have."""
    key = name.lstrip("-").replace("_", "-")
    options = {rule.option for rule in rules_of(COMMANDS[command]).values() if not rule.option.isupper()}
    if key in options:
        return f"{name}: options have two dashes; write --{key}"
    if others := _commands_with(name):
        return f"{name}: given, but it is an option of lla-jax {' and '.join(others)}, not of {command}; leave it out"
    if key.removeprefix("no-") in options:
        return f"{name}: there is no such option; leave --{key.removeprefix('no-')} out instead"
    near = nearest(key, options, ALIKE)
    return f"{name}: lla-jax {command} has no such option" + (f"; did you mean --{near}?" if near else "")


def _commands_with(name: str) -> list[str]:
    """The commands that have an option."""
    key = name.lstrip("-").replace("-", "_")
    return [command for command in COMMANDS if key in {_name_of(field) for field in fields(COMMANDS[command])}]


def _left_over(command: str, word: str, last: Rule | None, lacks_problem: bool) -> str:
    """The message for a word that belongs to no option."""
    if last is not None and last.most is not None and not last.option.isupper():
        takes = "takes no value" if last.most == 0 else "takes one value"
        remedy = "write it as I/N, such as 3/16" if last.option == "shard" else "leave it out"
        return f"{word!r} is left over after {last.shown}, which {takes}; {remedy}"
    if lacks_problem:
        return f"{word!r} given without an option; write lla-jax {command} --problem {shlex.quote(word)}"
    return f"{word!r} is left over; leave it out, or name the option that it belongs to"


# --- the rules of the options


def rules_of(kind: type) -> dict[str, Rule]:
    """{name of a field: its rule} of the options of a command."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {_name_of(field): _rule(_name_of(field), hints[field.name], field.default) for field in fields(kind)}


def _name_of(field: Any) -> str:
    """The name of an option; that of a field which would be a word of Python ends in an underscore."""
    return field.name.rstrip("_")


def _rule(name: str, hint: Any, default: Any) -> Rule:
    is_positional = "Positional" in str(hint) or "positional" in str(hint)
    option = name.upper() if is_positional else name.replace("_", "-")
    required = default is MISSING
    while typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    kinds = [part for part in typing.get_args(hint) if part is not type(None)]
    is_optional = type(None) in typing.get_args(hint)
    if is_optional:
        hint = kinds[0]
    most: int | None = 1
    by = 1
    if typing.get_origin(hint) is tuple:
        hint, most = typing.get_args(hint)[0], None
        if typing.get_origin(hint) is tuple:
            by, hint = len(typing.get_args(hint)), typing.get_args(hint)[0]
    if hint is bool:
        return Rule(option, 0, "no value", str)
    if typing.get_origin(hint) is Literal:
        choices = tuple(map(str, typing.get_args(hint)))
        allowed = (*choices, "None") if is_optional else choices
        return Rule(option, most, f"one of {', '.join(choices)}", str, allowed, by, required)
    text, read = _RULES[hint]
    example = default[0] if isinstance(default, tuple) and default else default
    if hint is not str and example not in (MISSING, None, ()):
        text = f"{text}, such as {example}"
    accept: Callable[[str], Any] = (lambda value: value == "None" or read(value)) if is_optional else read
    return Rule(option, most, text, accept, by=by, required=required)
