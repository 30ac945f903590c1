"""Progress bars announce long computations and end at 100 percent."""

from __future__ import annotations

import contextlib
import sys
import types

import numpy as np

from lla_jax.cli import main as cli
from lla_jax.cli import terminal as _terminal


def test_progress_announces_a_long_run(capsys, monkeypatch):
    clock = iter(np.arange(0.0, 1000.0, 2.0))
    monkeypatch.setattr(_terminal, "time", types.SimpleNamespace(monotonic=lambda: float(next(clock))))
    with _terminal.bar("landscape", estimate=True) as progress:
        for done in range(0, 101, 10):
            progress(done, 100)
    said = capsys.readouterr().err
    assert said.count("expected time: about 18 s for the other 90 points") == 1


def test_closed_streams_take_what_is_printed(monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    assert cli.main(["--version"]) == 0
    sys.stdout.close()
    sys.stderr.close()


def test_a_part_that_needed_less_than_announced_ends_at_100_percent(capsys):
    with _terminal.bar("layers", unit="products") as progress:
        progress(0, 188)
        progress(164, 188)
    assert capsys.readouterr().err.rstrip().split("\r")[-1].startswith("layers: 100% |")
    with contextlib.suppress(KeyboardInterrupt), _terminal.bar("layers", unit="products") as progress:
        progress(94, 188)
        raise KeyboardInterrupt
    assert "layers:  50% |" in capsys.readouterr().err.split("\r")[-1]
