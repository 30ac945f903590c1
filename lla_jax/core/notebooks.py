"""Tells whether a notebook shows what is printed and drawn."""

from __future__ import annotations

import sys


def in_notebook() -> bool:
    """Whether this runs in a kernel of Jupyter, which shows pictures, and bars that are drawn over themselves."""
    ipython = sys.modules.get("IPython")  # never imported only to ask
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None
