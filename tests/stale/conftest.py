"""The command line, called in a working folder of its own on a problem that changes."""

from __future__ import annotations

import sys

import pytest

from lla_jax.cli import main as cli


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """``command(text, *words)`` calls the command line where stale_problem.py has this text: (exit code, messages)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(cli, "prepare_jax", lambda devices: None)

    def forget():
        for module in ("stale_problem", "problem_stale_problem"):
            sys.modules.pop(module, None)

    def call(text, *words):
        forget()
        (tmp_path / "stale_problem.py").write_text(text)
        code = cli.main([str(word) for word in words])
        return code, capsys.readouterr().err

    yield call
    forget()
