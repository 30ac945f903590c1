"""What the command line does with a chunk store: begin or continue it, put it together, say how far it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lla_jax.cli.errors import ELSEWHERE
from lla_jax.cli.options import Mistake
from lla_jax.cli.terminal import say
from lla_jax.core.text import duration

if TYPE_CHECKING:
    from lla_jax.core.types import Landscape
    from lla_jax.landscape.sweeps import Table


COMMAND = "command.json"  # the options that the store in this folder was begun with
GRID = ("points", "range")  # of these a store may have several


def begin(out: Path, made: Mapping[str, str], overwrite: bool) -> None:
    """Clear the folder, or check that what is there was made with the same options, as far as they decide values.

    Raises:
      Differs: other options.
      Misuse: another program's store.
      Mistake: a result that is not that of a store.
    """
    from lla_jax.landscape.store import chunks
    from lla_jax.output import kept

    result = out / "landscape.npz"
    if overwrite:
        chunks.remove(out)
        for path in (result, out / COMMAND):
            path.unlink(missing_ok=True)
    if not chunks.exists(out):
        if result.exists():
            raise Mistake(f"{result} is there without the chunks it was made of\n{ELSEWHERE}")
        (out / COMMAND).unlink(missing_ok=True)
        return
    try:
        before = json.loads((out / COMMAND).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # made by the library, or killed before it was written: ``evaluate`` compares
        before = {}
    kept.check_made(out, before, {name: now for name, now in made.items() if name not in GRID})


def note(out: Path, made: Mapping[str, str], problem: str) -> None:
    """Keep the options beside a store that was begun with them."""
    from lla_jax.core import files

    files.write_first(out / COMMAND, {**made, "problem": problem})


def tell_kept(out: Path, made: Mapping[str, str], problem: str) -> None:
    """Say what an interrupted run leaves."""
    from lla_jax.landscape.store import reading

    try:
        there = reading.status(out)
    except ValueError:
        return
    note(out, made, problem)
    say(f"{there.done:,} of {there.points:,} points are kept in {out}; the same command continues it")


def merge(folder: Path, partial: bool) -> tuple[Landscape | Table, list[Path]]:
    """The result of a store, and the files it was written to."""
    from lla_jax.core.types import Landscape
    from lla_jax.landscape import sweeps
    from lla_jax.landscape.store import reading
    from lla_jax.output.storage import save

    if not folder.is_dir():
        raise Mistake(f"{folder} is no folder")
    found = sweeps.merge(folder, partial=partial)
    name = "landscape.partial.npz" if partial else "landscape.npz"
    if isinstance(found, Landscape):
        return found, [save(found, folder / name)]
    members = reading.members(folder)
    paths = [save(plane, members[cell] / name) for cell, plane in found.landscapes.items()]
    return found, [*paths, found.to_csv(folder / "table.csv")]


def status(folder: Path) -> str:
    """How far a store is, in a few lines."""
    from lla_jax.landscape.store import reading

    found = reading.status(folder)
    many = f"{found.landscapes} landscapes, " if found.landscapes > 1 else ""
    lines = [
        f"{folder}: {many}{found.done:,} of {found.points:,} points ({found.done / max(1, found.points):.0%}) in "
        f"{found.written:,} of {found.chunks:,} chunks"
    ]
    lines += [f"  damaged, will be computed again: {path} ({reason})" for path, reason in found.damaged.items()]
    what = "last chunk written" if found.written else "no chunk yet; begun"
    lines.append(f"  {what} {duration(found.last)} ago" if found.chunks else "  not begun")
    lines += [f"  writer {name}: {count} chunks in the last 10 min" for name, count in sorted(found.writers.items())]
    if found.done == found.points:
        lines.append(f"  finished; lla-jax merge {folder} writes the result")
    elif found.left is None and found.last > reading.WINDOW_S:
        lines.append("  nobody has written for 10 min; repeat the command that computes it to go on")
    elif found.left is None:
        lines.append("  nothing to tell the time left by")
    else:
        lines.append(f"  {found.rate:.3g} points/s, about {duration(found.left)} left if writers go on")
    return "\n".join(lines)
