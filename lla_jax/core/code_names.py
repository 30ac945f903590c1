"""Reads in the code of a function what it can reach by name: global values, attributes, and modules that it imports."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterator
from typing import NamedTuple

BY_NAME = frozenset({"getattr", "hasattr", "attrgetter"})  # read attributes whose names are strings


class Named(NamedTuple):
    """The names that code and the functions inside it use, each once, in a fixed order."""

    attributes: tuple[str, ...]  # of modules: all names
    loaded: tuple[str, ...]  # global values and built-in functions
    assigned: frozenset[str]  # global and captured values
    imported: tuple[tuple[int, str], ...]  # modules, with the number of dots before


@functools.lru_cache(4096)
def names_of(code: types.CodeType) -> Named:
    """The names in code."""
    inner = [names_of(each) for each in code.co_consts if isinstance(each, types.CodeType)]
    attributes = [*code.co_names, *(name for each in inner for name in each.attributes)]
    if BY_NAME & set(attributes):
        attributes += [each for each in code.co_consts if isinstance(each, str) and each.isidentifier()]
    loaded = [name for each in inner for name in each.loaded]
    assigned = [name for each in inner for name in each.assigned]
    imported = [name for each in inner for name in each.imported]
    level = 0
    for each in dis.get_instructions(code):
        if each.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            loaded.append(each.argval)
        elif each.opname in ("STORE_GLOBAL", "DELETE_GLOBAL", "STORE_DEREF"):
            assigned.append(each.argval)
        elif each.opname == "IMPORT_NAME":
            imported.append((level, each.argval))
        level = each.argval if isinstance(each.argval, int) else level  # the constant before an import
    once = dict.fromkeys
    return Named(tuple(once(attributes)), tuple(once(loaded)), frozenset(assigned), tuple(once(imported)))


def modules_of(imported: tuple[tuple[int, str], ...], package: str) -> Iterator[str]:
    """The full names of imported modules, and of the packages that ``import a.b`` makes known as a."""
    for level, name in imported:
        parent = package.rsplit(".", level - 1)[0] if level else ""
        yield ".".join(filter(None, (parent, name)))
        if not level and "." in name:
            yield name.partition(".")[0]
