"""Results kept in files: taken from there if they were made alike, continued if interrupted, else computed and kept.

Of several processes that compute one thing together, one writes, into a folder that all of them see.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import jax

from lla_jax.core import files as _files
from lla_jax.core import recipes
from lla_jax.core.arguments import Misuse
from lla_jax.core.recipes import Differs
from lla_jax.core.types import Eigenpairs, PyTree, Spectrum
from lla_jax.execution import processes
from lla_jax.execution.progress import Progress
from lla_jax.output.storage import load, save

SAVE_EVERY_S = 60.0  # what a kill may cost
MADE = "command"  # the entry of a recipe that says with which options a result was made
OTHERWISE = "compute it anew with overwrite=True, or pass another path"

Bar = Callable[[str], AbstractContextManager[Progress]]
Say = Callable[[str], None]
Result = TypeVar("Result", Eigenpairs, Spectrum)

log = logging.getLogger("lla_jax")


def result(
    path: str | os.PathLike[str],
    operator: Mapping[str, Any],
    compute: Callable[..., Result],
    made: Mapping[str, str],
    *,
    unfinished: Mapping[str, str] | None = None,
    enough: Callable[[Result], bool] | None = None,
    like: PyTree = None,
    overwrite: bool = False,
    again: str = "",
    bar: Bar | None = None,
    say: Say = log.info,
) -> Result:
    """Eigenpairs or a spectrum: those of a file if they are finished and made alike, else computed and kept there.

    Until it is finished, what there is of a result is in ``name.partial.npz`` beside ``name.npz``; it is saved every
    minute and when the computation ends early, and the next call goes on from there.

    Args:
      path: the file, such as ``folder / "eigenpairs.npz"``.
      operator: recipe of the operator, ``H.recipe``.
      compute: ``compute(progress=..., on_partial=..., save_every=..., resume=...)``, such as
        ``partial(lla.eigenpairs, H, key, 5)``.
      made: {option: its text}: what else decides the result. An option that the file does not know is not compared.
      unfinished: further options that an interrupted run has to share to be continued.
      enough: whether a finished result will do; by default any does.
      like: the parameters, for eigenvectors of their structure.
      overwrite: compute anew, whatever there is.
      again: how the user repeats this call; for the message that says where an interrupted one left what it had.
      bar: ``bar(name)`` is a context manager that gives a callback ``progress(done, total)``.
      say: takes messages; by default they are logged.

    Returns:
      The result. The file's recipe says in ``"command"`` how it was made.

    Raises:
      Differs: what is there was made with other options (argument "made"), or of another operator ("operator").
      Misuse: the file has another ending, cannot be read, or is another one to each process (argument "path").
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise Misuse("path", f"{path} given; the rule is a file that ends in .npz")
    name, partial = path.stem, path.with_suffix(".partial.npz")
    whole = {**made, **(unfinished or {})}
    resume, writes = None, is_writer()
    if overwrite:
        if writes:
            partial.unlink(missing_ok=True)
    else:
        found = next((file for file in (partial, path) if file.exists()), None)
        _agree(path, found)
        if found is not None:
            before = load(found, like)
            _check_same(found, before.recipe, operator, made if found == path else whole)
            if found == path and (enough is None or enough(before)):
                say(f"{name}: taken from {path}")
                return before
            resume = before if found == partial else None

    def keep(one: Result, file: Path) -> None:
        if writes:
            save(replace(one, recipe={**one.recipe, MADE: whole}), file)

    def keep_unfinished(begun: Result) -> None:
        keep(begun, partial)
        if writes and begun.recipe["stopped"] != "running":
            same = again or ("the same call without overwrite" if overwrite else "the same call")
            say(f"what is finished is kept in {partial}; {same} continues it")

    with _bar(bar, name) as progress:
        every = SAVE_EVERY_S if writes else None
        done = compute(progress=progress, on_partial=keep_unfinished, save_every=every, resume=resume)
    keep(done, path)
    if writes:
        partial.unlink(missing_ok=True)
    return done


def numbers(
    path: str | os.PathLike[str],
    operator: Mapping[str, Any],
    compute: Callable[[Progress | None], Any],
    made: Mapping[str, str],
    *,
    overwrite: bool = False,
    bar: Bar | None = None,
    say: Say = log.info,
) -> Any:
    """Numbers of a file, such as a trace, if they were made alike, else computed and kept there; only whole ones are.

    Args:
      path: the file, such as ``folder / "trace.json"``.
      operator: recipe of the operator.
      compute: ``compute(progress)`` gives lists, dicts and numbers.
      made, overwrite, bar, say: as for ``result``.

    Returns:
      What ``compute`` gave, or what the file has of it.

    Raises:
      Differs, Misuse: as ``result``.
    """
    path = Path(path)
    there = path.exists() and not overwrite
    _agree(path, path if there else None)
    if there:
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            found = kept["result"]
        except (ValueError, LookupError, TypeError) as error:
            text = f"{path} is not what lla_jax wrote: {error!r}. Remove it, or pass another path"
            raise Misuse("path", text, path) from error
        _check_same(path, kept, operator, made)
        say(f"{path.stem}: taken from {path}")
        return found
    with _bar(bar, path.stem) as progress:
        found = compute(progress)
    if is_writer():
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {MADE: dict(made), "operator": operator, "result": found}
        _files.write_text(path, json.dumps(kept, indent=1, default=_plain) + "\n")
    return found


def check_made(path: Path, then: Mapping[str, str], made: Mapping[str, str]) -> None:
    """Raise ``Differs`` unless what ``path`` keeps was made with the same options, as far as it knows them.

    Args:
      path: the file or folder.
      then: the options it was made with, as texts.
      made: the options now.
    """
    changed = {name: f"{then[name]} -> {now}" for name, now in made.items() if then.get(name, now) != now}
    if changed:
        said = ", ".join(f"{name} {text}" for name, text in changed.items())
        text = f"{path} was made with other options: {said}; the rule is the same ones. Repeat them, or {OTHERWISE}"
        raise Differs("made", changed, text, path)


def is_writer() -> bool:
    """Whether this is the process that writes, where several compute one thing."""
    return jax.process_index() == 0


def _check_same(path: Path, then: Mapping[str, Any], operator: Mapping[str, Any], made: Mapping[str, str]) -> None:
    check_made(path, then.get(MADE, {}), made)
    before = then.get("operator", {})
    recipes.check_same("operator", f"that of {path}", before, operator, operator, OTHERWISE, path)


def _agree(path: Path, found: Path | None) -> None:
    """Processes that found different files would wait for each other forever."""
    try:
        processes.agree(**{str(path): found.name if found else "nothing"})
    except ValueError as error:
        text = (
            f"{path} is not the same to all processes; the rule is one folder that all of them see. Pass a path there"
        )
        raise Misuse("path", text, path) from error


def _bar(bar: Bar | None, name: str) -> AbstractContextManager[Progress | None]:
    return contextlib.nullcontext() if bar is None else bar(name)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else repr(value)
