"""``lla-jax compile``: options, output and file; the chips are CPU devices here."""

import json

import jax
import pytest

from lla_jax.cli.main import main
from lla_jax.execution import topologies

FACTORY = """
import numpy as np, lla_jax as lla

def make():
    x = np.ones((8, 3), "float32")
    return lla.Problem(lambda p, b: ((b @ p["w"]) ** 2).mean(), {"w": np.ones(3, "float32")}, x)
"""


@pytest.fixture
def problem(tmp_path):
    path = tmp_path / "costly.py"
    path.write_text(FACTORY)
    return f"{path}:make"


def test_costs_are_printed_and_saved(problem, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(topologies, "devices_of", lambda on, one_host=False: tuple(jax.devices()[: on.chips]))
    out = tmp_path / "made" / "costs.json"
    argv = ["compile", "--problem", problem, "--for", "tpu-v5e-1", "--points", "5", "--steps", "8", "--out", str(out)]
    assert main(argv) == 0
    printed = capsys.readouterr()
    assert "estimated time of the job, 25 points" in printed.out
    assert str(out) in printed.out
    assert "compiling for tpu-v5e-1: landscape" in printed.err
    saved = json.loads(out.read_text())
    assert [part["name"] for part in saved["parts"]] == ["landscape", "Hessian product", "Lanczos"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--for", "tpu-v5e-2"], "--for: 'tpu-v5e-2' given; it must be one of tpu-v5e-N"),
        (["--for", "cuda"], "compiles for a GPU only where one is"),
        (["--for", "tpu-v5e-1", "--points", "5", "5", "5"], "--points: 3 numbers given"),
        (["--for", "tpu-v5e-1", "--steps", "0"], "--steps: 0 given"),
        (["--for", "tpu-v5e-1", "--out", "costs.txt"], "--out: costs.txt given"),
    ],
)
def test_mistakes_are_told_before_the_problem_is_built(options, message, capsys):
    assert main(["compile", "--problem", "nowhere:make", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_slice_is_needed(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["compile", "--problem", "nowhere:make"])
    assert "--for: not given" in capsys.readouterr().err
