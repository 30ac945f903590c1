"""The tiny problem in the working folder of every test."""

from __future__ import annotations

import sys

import pytest

from lla_jax.cli import main as cli
from tests.cli.cases import TINY


@pytest.fixture(autouse=True)
def tiny(tmp_path, monkeypatch):
    """A module in the working folder, as a user would have it; gives the module's calls and the folder."""
    (tmp_path / "tiny_problem.py").write_text(TINY)
    (tmp_path / "needs_missing.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(cli, "prepare_jax", lambda devices: None)
    yield tmp_path
    for name in ("tiny_problem", "problem_tiny_problem"):
        sys.modules.pop(name, None)
