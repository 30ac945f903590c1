"""Begins, continues and merges the chunk store of a command, and says how far it is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lla_jax.cli.errors import REMEDY
from lla_jax.cli.options import Mistake
from lla_jax.cli.terminal import print_message
from lla_jax.core.text import duration

if TYPE_CHECKING:
    from lla_jax.core.results import Landscape
    from lla_jax.landscape.sweeps import Table


DEFAULT = Path("run")
COMMAND = "command.json"  # the options that the store in this folder was begun with
APART_S = 2.0  # by which clocks of machines may differ without being mentioned
GRID = ("points", "range", "margin", "plane-points")  # a store may have several grids


def choose_folder(settings: Mapping[str, str], problem: str) -> Path:
    """The folder of a landscape without --out: run, or the first of run-2, run-3, ... that is free or has the same.

    The same command finds its folder again, and continues there; with --overwrite it begins anew there, and never in
    the folder of another one.

    Args:
      settings: {option: its text}, from ``options.settings``.
      problem: the name of the problem.
    """
    from lla_jax.landscape.store import folders

    wanted = {**{name: text for name, text in settings.items() if name not in GRID}, "problem": problem}
    for number in itertools.count(1):
        folder = DEFAULT if number == 1 else Path(f"{DEFAULT}-{number}")
        is_free = not folders.exists(folder) and not (folder / "landscape.npz").exists()
        before = _settings_of(folder)
        # without settings it was made by the library, or killed early: ``evaluate`` compares
        if is_free or all(before.get(name, text) == text for name, text in wanted.items()):
            break
    if number > 1:
        print_message(f"{DEFAULT} was made with other options; this landscape is kept in {folder} (see --out)")
    return folder


def _settings_of(folder: Path) -> dict[str, str]:
    """The settings in command.json of a folder; an empty dict if it cannot be read, or was changed."""
    from lla_jax.core import files, recipes

    try:
        return recipes.unsealed(files.parse_json((folder / COMMAND).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def begin(
    out: Path, settings: Mapping[str, str], overwrite: bool, name: str = "landscape.npz", others: Sequence[str] = ()
) -> None:
    """Check that a store in the folder was begun with the same settings, its grid aside; or remove it first.

    Args:
      out: the folder.
      settings: {option: its text}, from ``options.settings``.
      overwrite: remove the store in the folder, its result and its settings, and check nothing.
      name: of the file of the result.
      others: names of the files beside it, which overwriting removes too.

    Raises:
      Differs: the store was begun with other settings.
      Misuse: the store is another program's.
      Mistake: there is a result without a store.
    """
    from lla_jax.landscape.store import folders
    from lla_jax.output import kept

    result = out / name
    if overwrite:
        folders.check_removable(out)
        result.unlink(missing_ok=True)  # first: it is never without the chunks it was made of
        folders.remove(out)
        for each in (COMMAND, *others):
            (out / each).unlink(missing_ok=True)
    if not folders.exists(out):
        if result.exists():
            raise Mistake(f"{result} exists without the chunks it was made of; remove it, or {REMEDY}")
        (out / COMMAND).unlink(missing_ok=True)
        return
    before = _settings_of(out)  # empty if made by the library, or killed before it was written: ``evaluate`` compares
    kept.check_settings(out, before, {name: now for name, now in settings.items() if name not in GRID})


def write_settings(out: Path, settings: Mapping[str, str], problem: str) -> None:
    """Write the settings and the problem's name into command.json of a store, unless it has settings already."""
    from lla_jax.core import files, recipes

    if not _settings_of(out):  # the first writer's count: a later one may have another grid
        files.write_text(out / COMMAND, files.to_json(recipes.sealed({**settings, "problem": problem})))


def report_interruption(out: Path, settings: Mapping[str, str], problem: str) -> None:
    """Tell the user how many points an interrupted command leaves in the store, and write its settings there.

    Without a store nothing is done.
    """
    from lla_jax.landscape.store import reading

    try:
        kept = reading.status(out)
    except ValueError:
        return
    write_settings(out, settings, problem)
    most = "at most " if kept.refining else ""
    print_message(f"{kept.done:,} of {most}{kept.points:,} points are kept in {out}; the same command continues it")


def merge(folder: Path, partial: bool, out: Path) -> tuple[Landscape | Table, list[Path]]:
    """Merge the chunks of a store into its landscape, or into the landscapes and the table of a sweep, and save them.

    Args:
      folder: of the store.
      partial: merge the chunks there are, even if some are missing, into landscape.partial.npz.
      out: the folder of the files that are written; usually that of the store.

    Returns:
      (the landscape, or the table of a sweep; the files written).
    """
    from lla_jax.core.results import Landscape
    from lla_jax.landscape import sweeps
    from lla_jax.landscape.store import reading
    from lla_jax.output.storage import save

    result = sweeps.merge(folder, partial=partial)
    name = "landscape.partial.npz" if partial else "landscape.npz"
    if isinstance(result, Landscape):
        return result, [save(result, out / name)]
    places = reading.members(folder)
    paths = [save(plane, out / places[member].name / name) for member, plane in result.landscapes.items()]
    return result, [*paths, result.to_csv(out / "table.csv")]


def status(folder: Path) -> str:
    """A text of a few lines that says how far a store is: chunks, writers, damage, time left."""
    from lla_jax.landscape.store import reading

    now = reading.status(folder)
    many = f"{now.landscapes} landscapes, " if now.landscapes > 1 else ""
    most = "at most " if now.refining else ""  # a refinement ends when it needs no more
    lines = [
        f"{folder}: {many}{now.done:,} of {most}{now.points:,} points ({now.done / max(1, now.points):.0%}) in "
        f"{now.written:,} of {now.chunks:,} chunks"
    ]
    lines += [f"  damaged, will be {_remedy(path)}: {path} ({reason})" for path, reason in now.damaged.items()]
    event = "last chunk written" if now.written else "no chunk yet; begun"
    lines.append(f"  {event} {duration(now.last)} ago" if now.chunks else "  not begun")
    if now.ahead > APART_S:
        lines.append(f"  files are dated up to {duration(now.ahead)} in the future: clocks differ, and times are rough")
    lines += [f"  writer {name}: {count} chunks in the last 10 min" for name, count in sorted(now.writers.items())]
    if now.done == now.points:
        lines.append(f"  finished; lla-jax merge {folder} writes the result")
    elif now.left is None and now.last > reading.WINDOW_S:
        lines.append("  nobody has written for 10 min; repeat the command that computes it to continue")
    elif now.left is None:
        lines.append("  too little was written to tell the time left")
    else:
        lines.append(f"  {now.rate:.3g} points/s, {most or 'about '}{duration(now.left)} left if the writers continue")
    return "\n".join(lines)


def _remedy(path: str) -> str:
    return "computed again" if path.endswith(".npz") else "restored from the chunks"
