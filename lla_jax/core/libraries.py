"""Tells libraries, which are trusted to keep no state and to read nothing from outside, from the user's own code."""

from __future__ import annotations

import re
import sys
import sysconfig
from typing import Any

OURS = frozenset({"lla_jax", "lla_torch"})
_PURE = """
    abc argparse array base64 binascii bisect builtins cmath codecs collections configparser contextlib copy
    copyreg dataclasses datetime decimal enum fractions functools hashlib heapq inspect itertools json keyword
    logging math numbers operator pathlib pprint re sre statistics string struct textwrap traceback types typing
    unicodedata warnings weakref zlib
"""
PURE = frozenset(_PURE.split())  # modules of Python's own library
_PLACES = tuple({sysconfig.get_paths()[name] for name in ("purelib", "platlib")})
_PLACE = re.compile(r"[\\/](?:site|dist)-packages[\\/]")  # also the user's own, and the system's in an environment


def top(module: Any) -> str:
    """The first part of a module's name."""
    return str(module or "").partition(".")[0]


def is_standard(module: Any) -> bool:
    """Whether a module is of Python's own library."""
    return top(module) in sys.stdlib_module_names


def is_installed(module: Any) -> bool:
    """Whether a module is of an installed library, or of this one."""
    file = getattr(sys.modules.get(str(module)), "__file__", None)
    if top(module) in OURS or file is None:
        return top(module) in OURS
    return file.startswith(_PLACES) or _PLACE.search(file) is not None


def is_trusted_module(module: Any) -> bool:
    """Whether the functions of a module keep no state and read nothing from outside."""
    if is_standard(module):
        return top(module).lstrip("_") in PURE
    return is_installed(module) and not str(module).startswith("numpy.random")


def is_trusted(kind: type) -> bool:
    """Whether a class is of a module that is trusted."""
    return is_trusted_module(kind.__module__)
