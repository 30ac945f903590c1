"""dnn-mode-connectivity, driven on the CPU: its curve modules, its regularizer and its schedule in a loop of ours.

Its own loops do not run: they ask for CUDA with a word that Python keeps for itself since 3.7, and for torchvision.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from cases import solutions
from harness import measure


class Batches:
    """Batches of data in memory, in a new order each time or in their own: the quickest loader that torch allows."""

    def __init__(self, arrays: tuple[np.ndarray, np.ndarray], shuffle: bool):
        self.x, self.y = solutions.tensors(arrays)
        self.shuffle = shuffle

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        import torch

        if not self.shuffle:
            yield from zip(self.x.split(solutions.BATCH), self.y.split(solutions.BATCH), strict=True)
            return
        for rows in torch.randperm(len(self.y)).split(solutions.BATCH):
            yield self.x[rows], self.y[rows]


class Curves:
    """A Bezier curve between two networks of ``cases.solutions``.

    Args:
      checkout: of dnn-mode-connectivity.
      folder: with the ends.
      name: of ``solutions.SETTINGS``.
    """

    def __init__(self, checkout: pathlib.Path, folder: pathlib.Path, name: str):
        sys.path.insert(0, str(checkout))
        import curves
        from torch import nn

        normalized = solutions.SETTINGS[name]

        class Network(nn.Module):  # as its README asks: the network again, of its layers
            def __init__(self, num_classes: int, fix_points: list[bool]):
                super().__init__()
                self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
                for inside, outside, stride in ((1, 8, 1), (8, 16, 2)):
                    self.convs.append(curves.Conv2d(inside, outside, 3, fix_points, stride=stride, padding=1))
                    if normalized:
                        self.norms.append(curves.BatchNorm2d(outside, fix_points))
                self.last = curves.Linear(256, num_classes, fix_points)

            def forward(self, x: Any, coeffs: Any) -> Any:
                for i, conv in enumerate(self.convs):
                    x = conv(x, coeffs)
                    x = nn.functional.relu(self.norms[i](x, coeffs) if normalized else x)
                return self.last(x.flatten(1), coeffs)

        self.module, self.architecture = curves, Network
        self.ends = [solutions.load(folder, name, seed) for seed in (0, 1)]
        self.normalized, self.net = normalized, None

    def begin(self) -> None:
        """The straight line, from which a training begins."""
        self.net = self.module.CurveNet(10, self.module.Bezier, self.architecture, 3)
        # its parameters by layer, and its layers in their order: convolutions, norms, the last one
        for end, index in zip(self.ends, (0, 2), strict=True):
            self.net.import_base_parameters(_Ordered(end), index)
        self.net.init_linear()

    def train(self, seed: int, epochs: int) -> None:
        """Train the control point, anew."""
        import torch

        torch.manual_seed(seed)
        self.begin()
        net, train = self.net, Batches(solutions.digits()[0], shuffle=True)
        penalty = self.module.l2_regularizer(solutions.DECAY)
        free = [p for p in net.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(free, solutions.RATE, momentum=solutions.MOMENTUM)
        net.train()
        for epoch in range(epochs):
            optimizer.param_groups[0]["lr"] = solutions.RATE * solutions.factor(epoch / epochs)
            for x, y in train:
                loss = torch.nn.functional.cross_entropy(net(x), y) + penalty(net)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def evaluate(self, points: int) -> dict[str, list[float]]:
        """The losses of both data sets along the curve, after the statistics of BatchNorm are taken anew."""
        import torch

        sets = {name: Batches(arrays, False) for name, arrays in zip(("loss", "test"), solutions.digits())}
        found: dict[str, list[float]] = {name: [] for name in sets}
        with torch.no_grad():
            for t in torch.linspace(0, 1, points):
                if self.normalized:
                    self.take_statistics(sets["loss"], t)
                self.net.eval()
                for name, batches in sets.items():
                    losses = [torch.nn.functional.cross_entropy(self.net(x, t), y).item() * len(y) for x, y in batches]
                    found[name].append(sum(losses) / len(batches.y))
        return found

    def take_statistics(self, batches: Batches, t: Any) -> None:
        """The mean of each statistic over the batches, each as heavy as its examples."""
        norms, done = list(self.net.net.norms), 0
        self.net.train()
        for norm in norms:
            norm.reset_running_stats()
        for x, _ in batches:
            for norm in norms:
                norm.momentum = len(x) / (done + len(x))
            self.net(x, t)
            done += len(x)

    def middle(self) -> dict[str, Any]:
        """The trained control point, as the weights of a network."""
        base = solutions.network(self.normalized)
        self.net.export_base_parameters(_Ordered(base), 1)
        return base.state_dict()


class _Ordered:
    """A network whose parameters come in the order of the curve's: convolutions, norms, the last layer."""

    def __init__(self, net: Any):
        from torch import nn

        kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
        self.layers = [layer for kind in kinds for layer in net if isinstance(layer, kind)]

    def parameters(self) -> Iterator[Any]:
        return (p for layer in self.layers for p in layer.parameters())


def curve(job: dict[str, Any]) -> dict[str, Any]:
    """A worker's row: seconds of training and evaluation, the first time and again, and the losses along the curve."""
    import torch

    rival = Curves(pathlib.Path(job["connectivity"]), pathlib.Path(job["folder"]), job["name"])
    seconds, losses = [], []
    for seed in range(job["runs"]):
        trained = measure.seconds(lambda seed=seed: rival.train(seed, job["epochs"]))
        evaluated, found = measure.timed(lambda: rival.evaluate(job["points"]))
        seconds.append({"train": trained, "evaluate": evaluated})
        losses.append(found)
    torch.save(rival.middle(), pathlib.Path(job["folder"]) / f"{job['name']}-middle.pt")
    return {"seconds": seconds, "losses": losses}
