"""A small network of torch, with its conversion, its data and its files, for the tables of slips with torch."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import lla_jax as lla
from tests.slips import slip

try:
    import lla_torch
    import torch
    from torch import nn
    from torch.nn import functional as F
except ImportError:  # the tables are empty
    lla_torch = torch = nn = F = None


def table() -> tuple[list[slip.Slip], Callable[..., Callable]]:
    """``slip.table``, whose list stays empty without torch: then there is nothing to try."""
    slips, add = slip.table()
    return [] if torch is None else slips, add


class Case(NamedTuple):
    """A small network with its conversion and data."""

    module: Any
    net: Any
    x: Any
    y: Any

    @property
    def params(self) -> Any:
        return self.net.variables["params"]

    @property
    def data(self) -> tuple[np.ndarray, np.ndarray]:
        return self.x.numpy(), self.y.numpy()

    @property
    def loader(self) -> Any:
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(self.x, self.y), 4)


@functools.cache
def case() -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        x, y = torch.randn(8, 3), torch.randint(2, (8,))
    return Case(module, lla_torch.convert(module, x[:2]), x, y)


FOLDER = tempfile.TemporaryDirectory()


@functools.cache
def folder() -> Path:
    """A folder with a checkpoint, the state of an optimizer and a text."""
    path = Path(FOLDER.name)
    torch.save(case().module.state_dict(), path / "net.pth")
    torch.save(torch.optim.Adam(case().module.parameters()).state_dict(), path / "adam.pth")
    (path / "text.pth").write_text("no checkpoint")
    return path


def hessian(criterion: Any, data: Any = None, params: Any = None, **options: Any) -> None:
    loss = case().net.loss(criterion, **options)
    lla.hessian(loss, case().params if params is None else params, case().data if data is None else data)
