"""README's blocks run as a newcomer pastes them: one after the other, into one fresh process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)

FIRST = """
import flax.linen as nn, jax, numpy as np
module = nn.Dense(3)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(64, 4)).astype("float32"), rng.integers(0, 3, 64)
variables = module.init(jax.random.key(0), x)
early_params, late_params = variables["params"], jax.tree.map(lambda w: 2 * w, variables["params"])
first_params, second_params = (module.init(jax.random.key(k), x)["params"] for k in (1, 2))
"""
"""What README takes as given: a network, its data, its checkpoints."""

FIRST_OF_TORCH = """
import torch
torch.manual_seed(0)
torch_module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
torch.save(torch_module.state_dict(), "net.pth")
torch_module[0].reset_parameters()  # the checkpoint has other weights
images, labels = torch.randn(32, 4), torch.randint(3, (32,))
example_inputs = images[:2]
"""


def test_readme_runs_pasted_in_order_and_the_torch_block_before_curvature(tmp_path):
    pytest.importorskip("torch")
    toy, network, curvature, torch_block, store, paths = BLOCKS
    cells = [toy, FIRST, FIRST_OF_TORCH, network, curvature, torch_block, curvature, store, paths]
    code = (
        f"space = {{}}\nfor k, cell in enumerate({cells!r}):\n    exec(compile(cell, f'cell {{k}}', 'exec'), space)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for said in ("Landscape(21 x 21", "Eigenpairs(", "torch and JAX agree to rounding"):
        assert said in done.stdout
    for name in ("toy.png", "plane.png", "spectrum.png", "trajectory.png", "descent.gif", "barrier.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    assert (tmp_path / "runs/exp2").is_dir()
