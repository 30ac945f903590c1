"""Keeps results in files: a finished result is loaded, an interrupted one continued, any other computed and saved.

Of several processes that compute one result together, one writes, into a folder that all of them see.
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
from typing import Any, NamedTuple, TypeVar

import jax

from lla_jax.core import files as _files
from lla_jax.core import recipes
from lla_jax.core.arguments import Misuse
from lla_jax.core.interrupts import deferred_interrupts
from lla_jax.core.recipes import Differs
from lla_jax.core.results import Eigenpairs, Estimate, Spectrum
from lla_jax.core.text import stable_repr
from lla_jax.core.types import PyTree
from lla_jax.curvature import probe
from lla_jax.curvature.linear_operator import Operator
from lla_jax.execution import processes
from lla_jax.execution.progress import Progress
from lla_jax.output.storage import load, save

SAVE_EVERY_S = 60.0  # at most this much work is lost by a kill
SETTINGS = "command"  # the entry of a recipe that holds the settings a result was made with
ANEW = "compute it anew with overwrite=True, or pass another path"

Bar = Callable[[str], AbstractContextManager[Progress]]
Report = Callable[[str], None]
Result = TypeVar("Result", Eigenpairs, Spectrum, Estimate)

log = logging.getLogger("lla_jax")


def result(
    path: str | os.PathLike[str],
    operator: Operator | Mapping[str, Any],
    compute: Callable[..., Result],
    settings: Mapping[str, str],
    *,
    unfinished: Mapping[str, str] | None = None,
    accept: Callable[[Result], bool] | None = None,
    like: PyTree = None,
    overwrite: bool = False,
    repeat: str = "",
    bar: Bar | None = None,
    report: Report = log.info,
) -> Result:
    """Load eigenpairs or a spectrum from a file if they were made with the same settings; else compute and save them.

    Until the result is finished, its state is kept in ``name.partial.npz`` beside ``name.npz``. It is saved every
    minute and when the computation ends early; the next call continues from it.

    Args:
      path: the file, such as ``folder / "eigenpairs.npz"``.
      operator: the operator H. Its recipe must be that in the file, and its function, which its probe shows: a product
        more, once for each operator. Of a recipe, ``H.recipe``, only the entries are compared.
      compute: ``compute(progress=..., on_partial=..., save_every=..., resume=...)``, such as
        ``partial(lla.eigenpairs, H, key, 5)``.
      settings: {option: its text}: what decides the result beside the operator. An option that the file does not have
        is not compared.
      unfinished: further settings that must be the same for an interrupted computation to be continued.
      accept: says whether a finished result in the file is what is asked for; by default any is.
      like: the parameters; loaded eigenvectors get their structure.
      overwrite: compute anew, even if there is a result.
      repeat: how the user repeats this call, in words; for the message after an interruption.
      bar: ``bar(name)`` is a context manager that gives a callback ``progress(done, total)``.
      report: is called with each message; by default messages are logged.

    Returns:
      The result. The entry ``"command"`` of the file's recipe holds the settings.

    Raises:
      Differs: the file was made with other settings (argument "settings"), or from another operator ("operator").
      Misuse: the file has another ending, cannot be read, or is not the same file to all processes (argument "path").
    """
    path = _files.check_path("path", path, "eigenpairs.npz")
    if path.suffix != ".npz":
        raise Misuse("path", f"{path} given; it must be a file that ends in .npz, such as eigenpairs.npz")
    partial = _Partial(path.with_suffix(".partial.npz"), {**settings, **(unfinished or {})}, report, repeat, overwrite)
    existing = partial.find(path)
    loaded = None if existing is None else _load(existing, like)
    if loaded is not None and existing is not None:
        _check_same(existing, loaded.recipe, operator, settings if existing == path else partial.settings)
        if existing == path and (accept is None or accept(loaded)):
            report(f"{path.stem}: taken from {path}")
            return loaded
    resume = loaded if existing == partial.path else None
    with deferred_interrupts():  # what is finished is saved first
        with _bar(bar, path.stem) as progress:
            finished = compute(progress=progress, **partial.options(resume))
        if is_writer():
            save(_with_settings(finished, partial.settings), path)
        partial.remove()
    return finished


class _Partial(NamedTuple):
    """The file that keeps a result until it is finished.

    Args:
      path: the file.
      settings: what decides the unfinished result beside the operator.
      report: is told what is kept after an interruption.
      repeat: how the user repeats the call, in words; "" for "the same call".
      overwrite: whether what is there is left aside.
    """

    path: Path
    settings: Mapping[str, str]
    report: Report
    repeat: str
    overwrite: bool

    def find(self, finished: Path) -> Path | None:
        """The file to take or to continue: this one, else the finished one, else None. Overwriting removes this one."""
        if self.overwrite:
            self.remove()
            existing = None
        else:
            existing = next((file for file in (self.path, finished) if file.exists()), None)
            _agree(finished, existing)
        return existing

    def options(self, resume: Any) -> dict[str, Any]:
        """The arguments with which a computation keeps and continues its unfinished result."""
        return {"on_partial": self.keep, "save_every": SAVE_EVERY_S if is_writer() else None, "resume": resume}

    def keep(self, result: Any) -> None:
        """Save an unfinished result, and say so unless it goes on."""
        if not is_writer():
            return
        save(_with_settings(result, self.settings), self.path)
        if result.recipe["stopped"] != "running":
            call = self.repeat or ("the same call without overwrite" if self.overwrite else "the same call")
            self.report(f"what is finished is kept in {self.path}; {call} continues it")

    def remove(self) -> None:
        """Remove the file, if there is one."""
        if is_writer():
            _remove(self.path)


def _with_settings(result: Any, settings: Mapping[str, str]) -> Any:
    return replace(result, recipe={**result.recipe, SETTINGS: dict(settings)})


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _files.explain("path", path, "cannot be removed", error, "mend that and repeat the call") from error


def numbers(
    path: str | os.PathLike[str],
    operator: Operator | Mapping[str, Any],
    compute: Callable[..., Any],
    settings: Mapping[str, str],
    *,
    continues: bool = False,
    overwrite: bool = False,
    repeat: str = "",
    bar: Bar | None = None,
    report: Report = log.info,
) -> Any:
    """Load numbers, such as a trace, from a file if they were made with the same settings; else compute and save them.

    An interrupted computation leaves no file, unless it ``continues``: then its state is kept in ``name.partial.npz``
    beside ``name.json``, as ``result`` does.

    Args:
      path: the file, such as ``folder / "trace.json"``.
      operator: as for ``result``.
      compute: ``compute(progress)`` returns lists, dicts and numbers; if it continues, ``compute(progress=...,
        on_partial=..., save_every=..., resume=...)``, with an ``Estimate`` for ``on_partial`` and ``resume``.
      settings: as for ``result``.
      continues: whether an interrupted computation can be continued.
      overwrite, repeat, bar, report: as for ``result``.

    Returns:
      The numbers that ``compute`` returned, or those in the file.

    Raises:
      Differs, Misuse: as ``result``.
    """
    path = _files.check_path("path", path, "trace.json")
    partial = _Partial(path.with_suffix(".partial.npz"), settings, report, repeat, overwrite)
    existing, loaded = partial.find(path) if continues else _existing(path, overwrite), None
    if existing == path:
        content = _read_numbers(path)
        _check_same(path, content, operator, settings)
        report(f"{path.stem}: taken from {path}")
        return content["result"]
    if existing is not None:
        loaded = _load(existing, None)
        _check_same(existing, loaded.recipe, operator, settings)
    made_of = probe.describe(operator)
    with deferred_interrupts():  # what is finished is saved first
        with _bar(bar, path.stem) as progress:
            computed = compute(progress=progress, **partial.options(loaded)) if continues else compute(progress)
        if is_writer():
            _write_numbers(path, {SETTINGS: dict(settings), "operator": made_of, "result": computed})
        if continues:
            partial.remove()
    return computed


def _existing(path: Path, overwrite: bool) -> Path | None:
    """The file of numbers, if it is there and not to be overwritten."""
    existing = path if path.exists() and not overwrite else None
    _agree(path, existing)
    return existing


def _write_numbers(path: Path, content: dict[str, Any]) -> None:
    """Write a file of numbers with its seal."""
    content = json.loads(json.dumps(content, default=_to_json))  # as it will be read
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _files.write_text(path, json.dumps(recipes.sealed(content), indent=1) + "\n")
    except OSError as error:
        remedy = "mend that and repeat the call"
        raise _files.explain("path", path, "could not be written", error, remedy) from error


def _load(path: Path, like: PyTree) -> Any:
    """The result in a file that was kept; the error for a damaged one says to remove it."""
    try:
        return load(path, like)
    except Misuse as error:
        if error.argument == "path":
            reason = error.text.partition(". Compute it again")[0]  # which is not what to do with a file that is kept
            raise Misuse("path", f"{reason}. Remove it and repeat the call, which computes it anew", path) from error
        raise


def _read_numbers(path: Path) -> dict[str, Any]:
    """The content of a file of numbers, whose seal must be that of the other entries; files of before have none."""
    try:
        content = recipes.unsealed(_files.parse_json(path.read_text(encoding="utf-8")))
        content["result"]  # which must be there
    except OSError as error:
        raise _files.explain("path", path, "cannot be read", error, "mend that and repeat the call") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"[:300]
        raise Misuse(
            "path", f"{path} is not what lla_jax wrote ({reason}). Remove it and repeat the call", path
        ) from error
    return content


def check_settings(path: Path, then: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise ``Differs`` unless a file or folder was made with the settings given now.

    Args:
      path: the file or folder.
      then: the settings it was made with, as texts; those that it does not have are not compared.
      now: the settings now.
    """
    changed = {name: f"{then[name]} -> {value}" for name, value in now.items() if then.get(name, value) != value}
    if changed:
        changes = ", ".join(f"{name} {text}" for name, text in changed.items())
        text = f"{path} was made with other options: {changes}; they must be the same. Repeat them, or {ANEW}"
        raise Differs("settings", changed, text, path)


def is_writer() -> bool:
    """Whether this process writes the files: of several that compute together, only the first does."""
    return jax.process_index() == 0


def _check_same(
    path: Path, then: Mapping[str, Any], operator: Operator | Mapping[str, Any], settings: Mapping[str, str]
) -> None:
    """Raise ``Differs`` unless the recipe ``then`` of a kept result has the given operator and settings."""
    before, made_of = then.get(SETTINGS, {}), then.get("operator", {})
    if not isinstance(before, Mapping) or not isinstance(made_of, Mapping):
        raise Misuse("path", f"{path} is not what lla_jax wrote: its settings are damaged. Remove it", path)
    check_settings(path, before, settings)
    now = operator if isinstance(operator, Mapping) else operator.recipe
    names = {**now, "product": None}  # exact products have no such entry, and finite differences are not taken for them
    recipes.check_same("operator", f"that of {path}", made_of, now, names, ANEW, path)
    probe.check("operator", f"that of {path}", made_of, operator, ANEW, path)


def _agree(path: Path, existing: Path | None) -> None:
    """Check that all processes found the same file: with different ones they would wait for each other forever."""
    try:
        processes.agree(**{str(path): existing.name if existing else "nothing"})
    except ValueError as error:
        raise Misuse(
            "path",
            f"{path} is not the same to all processes; it must be in a folder that all of them see. Pass such a path",
            path,
        ) from error


def _bar(bar: Bar | None, name: str) -> AbstractContextManager[Progress | None]:
    """The progress bar of a result, or a context that gives None."""
    return contextlib.nullcontext() if bar is None else bar(name)


def _to_json(value: Any) -> Any:
    """Arrays and numpy numbers as lists and numbers, anything else as its repr."""
    return value.tolist() if hasattr(value, "tolist") else stable_repr(value)
