"""The example of two solutions: it runs, writes what it says, and its curves are as low as their ends."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import lla_jax as lla

FILE = Path(__file__).parents[2] / "examples" / "two_solutions.py"


def largest_ratio(barrier: lla.paths.Barrier) -> float:
    """The highest loss on a curve, relative to that of the higher end."""
    losses = barrier.losses
    return float(losses.max() / max(losses[0], losses[-1]))


@pytest.mark.slow
def test_two_digits_networks_are_connected_by_a_curve_though_not_by_a_line(tmp_path: Path, monkeypatch: Any):
    for name in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.setenv(name, "")  # set already: the example leaves them alone
    spec = importlib.util.spec_from_file_location("two_solutions", FILE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    out = example.main(["--out", str(tmp_path / "out"), "--steps", "600", "--points", "13"])
    barriers = {name: lla.load(out / f"barrier-{name}.npz") for name in ("line", *example.KINDS)}
    assert largest_ratio(barriers["line"]) > 10
    curves = {name: lla.load(out / f"{name}.npz") for name in example.KINDS}
    for name, curve in curves.items():
        assert curve.kind == name
        assert largest_ratio(barriers[name]) <= 1.05
        assert barriers[name].recipe["batch_stats"] == "reestimate"
    for t in (0.0, 1.0):
        jax.tree.map(np.testing.assert_array_equal, curves["bezier"](t), curves["polygon"](t))
    # the same ends, each under its own re-estimated statistics
    assert barriers["line"].losses[-1] == pytest.approx(barriers["bezier"].losses[-1], rel=1e-5)
    assert {path.stem for path in out.glob("*.png")} == {"barrier", "test", "error", "plane"}
    assert (
        f"bezier\n  train loss at most {barriers['bezier'].losses.max():.4g} +- " in (out / "summary.txt").read_text()
    )
