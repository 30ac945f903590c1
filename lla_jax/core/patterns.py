"""Tells which files a list or a pattern stands for, in the order of the numbers in their names."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lla_jax.core.arguments import Misuse, misuse
from lla_jax.core.files import check_path, show_path


def expand(name: str, files: Any, example: str = "ckpt/*.npz") -> list[Path]:
    """The paths that a list, a path or a pattern stands for; those of a pattern in their natural order.

    Args:
      name: the argument's name.
      files: the value given: a path or a pattern, or a list of these.
      example: a pattern for the message.

    Raises:
      Misuse: a value of another type, or a pattern that matches no file.
    """
    if isinstance(files, str | bytes | os.PathLike):
        path = check_path(name, files, example)
        if path.exists() or not glob.has_magic(str(path)):
            return [path]
        matches = [Path(each) for each in glob.glob(str(path), recursive=True)]
        if not matches:
            raise Misuse(name, f"{show_path(path)} matches no file; see the folder and the ending", path)
        return sorted(matches, key=natural)
    if not isinstance(files, Sequence):
        raise misuse(name, files, f"a list of paths, or a pattern such as {example!r}")
    for each in files:
        if not isinstance(each, str | bytes | os.PathLike):
            raise misuse(name, each, "paths of checkpoints; trees in memory are a path as they are")
    return [path for each in files for path in expand(name, each, example)]


def natural(path: Path) -> list[tuple[int, int, str]]:
    """The key of the order of names with numbers, in which 2 stands before 10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", str(path)) if part]


def number_in(file: Path) -> int | None:
    """The last number in the name of a file, without its ending, or of a folder; None if there is none."""
    numbers = re.findall(r"\d{1,18}", file.name if file.is_dir() else file.stem)
    return int(numbers[-1]) if numbers else None
