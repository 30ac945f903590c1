"""Two small convolutional networks in torch, trained from different seeds on the digits: the ends of a curve.

``prepare`` trains them once; each process then builds its own side from the file, ours by converting the torch module.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

BATCH, EPOCHS, RATE, MOMENTUM, DECAY = 128, 30, 0.05, 0.9, 5e-4
SETTINGS = {"plain": False, "BatchNorm": True}


def digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(train, test), each images (N, 1, 8, 8) and labels; the training images fill whole batches."""
    from lla_jax import demo

    (x, y), (xt, yt) = demo.load_digits(0)
    whole = len(y) // BATCH * BATCH
    return (x[:whole].transpose(0, 3, 1, 2), y[:whole]), (xt.transpose(0, 3, 1, 2), yt)


def network(normalized: bool) -> Any:
    """Two convolutions, with BatchNorm or without, and a linear layer."""
    from torch import nn

    layers: list[Any] = []
    for inside, outside, stride in ((1, 8, 1), (8, 16, 2)):
        layers.append(nn.Conv2d(inside, outside, 3, stride=stride, padding=1))
        layers += [nn.BatchNorm2d(outside)] if normalized else []
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10))


def factor(share: float) -> float:
    """Of the learning rate after a share of the epochs, as dnn-mode-connectivity's training has it."""
    return float(np.interp(share, [0.5, 0.9], [1.0, 0.01]))


def tensors(arrays: tuple[np.ndarray, np.ndarray]) -> tuple[Any, Any]:
    import torch

    return torch.tensor(np.ascontiguousarray(arrays[0])), torch.tensor(arrays[1].astype(np.int64))


def train(normalized: bool, seed: int, epochs: int = EPOCHS) -> Any:
    """A trained network, in eval mode."""
    import torch

    torch.manual_seed(seed)
    net, (x, y) = network(normalized), tensors(digits()[0])
    optimizer = torch.optim.SGD(net.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = RATE * factor(epoch / epochs)
        for rows in torch.randperm(len(y)).split(BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net.eval()


def prepare(folder: pathlib.Path, epochs: int = EPOCHS) -> None:
    """Write the weights of both networks of each setting."""
    import torch

    for name, normalized in SETTINGS.items():
        for seed in (0, 1):
            torch.save(train(normalized, seed, epochs).state_dict(), folder / f"{name}-{seed}.pt")


def load(folder: pathlib.Path, name: str, seed: int | str) -> Any:
    """One of them, in eval mode."""
    import torch

    net = network(SETTINGS[name])
    net.load_state_dict(torch.load(folder / f"{name}-{seed}.pt", weights_only=True))
    return net.eval()
