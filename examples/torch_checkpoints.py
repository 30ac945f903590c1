"""Real PyTorch checkpoints: the landscape and the curvature of LeNet on digits, or of ResNet-20 on CIFAR-10.

    python examples/torch_checkpoints.py --data PATH [--network resnet20]

PATH holds lenet_mnist.pth (a LeNet trained on MNIST; the digits of this example are others), or resnet20_cifar10.th
with cifar10_train_2048.npz. The checkpoint is read without running any code of it, and a certificate compares the
converted network with torch's. The rest is lla_jax as with any other network. Results, pictures and a summary.txt are
written to --out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# Before jax starts: every core is a device, over which points are split, and a second run compiles nothing anew.
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={os.cpu_count()}")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "lla_jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import lla_torch
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import lla_jax as lla
from lla_jax import demo

# --- the two networks in torch, with the names of their checkpoints


def lenet() -> nn.Module:
    """LeNet for 1 x 28 x 28 images in [0, 1]."""
    layers = {
        "conv1": nn.Conv2d(1, 6, 5, padding=2),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(6, 16, 5),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(400, 120),
        "relu3": nn.ReLU(),
        "fc2": nn.Linear(120, 84),
        "relu4": nn.ReLU(),
        "fc3": nn.Linear(84, 10),
    }
    return nn.Sequential(OrderedDict(layers))


class Block(nn.Module):
    """Two convolutions with BatchNorm, plus a shortcut that drops every other pixel and adds empty channels."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.stride, self.new = (2, after - before) if after > before else (1, 0)
        self.conv1 = nn.Conv2d(before, after, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return F.relu(y + F.pad(shortcut, (0, 0, 0, 0, self.new // 2, self.new // 2)))


class ResNet20(nn.Module):
    """ResNet-20 for 3 x 32 x 32 images (He et al. 2016, section 4.2, shortcuts of option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16), Block(16, 16), Block(16, 16))
        self.layer2 = nn.Sequential(Block(16, 32), Block(32, 32), Block(32, 32))
        self.layer3 = nn.Sequential(Block(32, 64), Block(64, 64), Block(64, 64))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


# --- their data, in torch's layout (N, C, H, W)


def enlarged_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The 1,797 digits of lla_jax, of 8 x 8 pixels, made like MNIST's: 20 x 16, more contrast, centred in 28 x 28."""
    (x, y), (more, labels) = demo.load_digits()
    small = torch.tensor(np.concatenate([x, more])).permute(0, 3, 1, 2)
    strokes = (3 * F.interpolate(small, size=(20, 16), mode="bicubic", align_corners=False) - 1).clamp(0, 1)
    framed = F.pad(strokes, (6, 6, 4, 4))
    position = torch.arange(28) - 13.5
    shifts = [(framed.sum((1, axis)) @ position / framed.sum((1, 2, 3))).round().int().tolist() for axis in (3, 2)]
    centred = [image.roll((-down, -right), (1, 2)) for image, down, right in zip(framed, *shifts)]
    return torch.stack(centred), torch.tensor(np.concatenate([y, labels])).long()


def cifar(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """2,048 training images of CIFAR-10, normalized by channel."""
    with np.load(folder / "cifar10_train_2048.npz") as file:
        images, labels = torch.tensor(file["images"]), torch.tensor(file["labels"]).long()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((images / 255 - mean) / std).permute(0, 3, 1, 2).contiguous(), labels


class Case(NamedTuple):
    """A module with its checkpoint, its data, and the settings of the analysis."""

    title: str
    module: Callable[[], nn.Module]
    file: str
    data: Callable[[Path], tuple[torch.Tensor, torch.Tensor]]
    points: int
    examples: int
    steps: int
    extents: tuple[float, float]  # of the random plane, in norms of the filters; of the Hessian plane, in lengths


CASES = {
    "lenet": Case("LeNet", lenet, "lenet_mnist.pth", lambda _: enlarged_digits(), 21, 512, 40, (1.0, 0.4)),
    "resnet20": Case("ResNet-20", ResNet20, "resnet20_cifar10.th", cifar, 11, 64, 20, (0.25, 0.2)),
}


# --- the analysis


def accuracy(outputs: jax.Array, batch: Any) -> jax.Array:
    """1 where the largest score is at the label, 0 elsewhere: a metric is a JAX function with one value per example."""
    return (outputs.argmax(-1) == batch[1]).astype(outputs.dtype)


@contextlib.contextmanager
def bar(label: str) -> Iterator[Callable[[float, float | None], None]]:
    """A progress bar: lla_jax calls ``progress(done, total)`` from time to time."""
    with tqdm(desc=label, dynamic_ncols=True) as shown:

        def progress(done: float, total: float | None) -> None:
            shown.total = total
            shown.update(round(done) - shown.n)

        yield progress


def compare_with_torch(module: nn.Module, loss: lla.Loss, params: Any, x: torch.Tensor, y: torch.Tensor) -> str:
    """Loss and accuracy over all examples by torch and by lla_jax."""
    with torch.no_grad():
        scores = torch.cat([module(rows) for rows in x.split(256)])
    theirs = float(F.cross_entropy(scores, y)), float((scores.argmax(1) == y).double().mean())
    # a landscape of one point, the centre: the network itself, over all data, with standard errors
    axes = lla.directions.random(jax.random.key(0), params, 1)
    centre = lla.evaluate(
        loss, params, (x.numpy(), y.numpy()), axes, lla.grid(points=1, dims=1), metrics={"accuracy": accuracy}
    )
    rows = [f"{len(y):,} examples   torch      lla_jax"]
    for name, value in zip(("loss", "accuracy"), theirs):
        rows.append(f"  {name:<12} {value:.6f}   {centre.values[name][0]:.6f} +- {centre.stderr[name][0]:.4f}")
    return "\n".join(rows)


def analyse(loss: lla.Loss, params: Any, data: Any, case: Case, points: int, out: Path) -> str:
    """Compute planes, eigenpairs, spectrum, criteria and trace, and save each in ``out``; returns a summary."""
    key = jax.random.key(0)
    title = f"{case.title}, {len(data[1]):,} examples"
    metrics = {"accuracy": accuracy}
    # filter_axis=loss: the converted loss knows the filters of every layer of torch
    axes = lla.directions.random(key, params, 2)
    axes = lla.directions.normalize(axes, params, by="filter", filter_axis=loss)
    with bar("random plane") as progress:
        grid = lla.grid(extent=case.extents[0], points=points)
        plane = lla.evaluate(loss, params, data, axes, grid, metrics=metrics, progress=progress)
    lla.save(plane, out / "plane.npz")
    lla.plotting.surface(plane, log=True, title=title).savefig(out / "plane.png")
    lla.plotting.contour(plane, log=True, title=title).savefig(out / "contour.png")
    lla.plotting.contour(plane, "accuracy", title=title).savefig(out / "accuracy.png")

    H = lla.hessian(loss, params, data)
    with bar("eigenpairs") as progress:
        pairs = lla.eigenpairs(H, key, k=3, tol=1e-2, progress=progress)
    lla.save(pairs, out / "eigenpairs.npz")
    top = lla.directions.eigenvectors(pairs, (0, 1))
    with bar("Hessian plane") as progress:
        grid = lla.grid(extent=case.extents[1], points=points)
        sharp = lla.evaluate(loss, params, data, top, grid, metrics=metrics, progress=progress)
    lla.save(sharp, out / "hessian-plane.npz")
    lla.plotting.contour(sharp, log=True, title=title).savefig(out / "hessian-plane.png")

    with bar("spectrum") as progress:
        spec = lla.spectrum(H, key, steps=case.steps, probes=2, progress=progress)
    lla.save(spec, out / "spectrum.npz")
    lla.plotting.spectral_density(spec, pairs=pairs, title=title).savefig(out / "spectrum.png")
    with bar("trace") as progress:
        trace = lla.trace(H, key, rtol=0.05, max_products=100, progress=progress)

    numbers = {
        "eigenvalues": pairs,
        "r_e": lla.r_e(spec),
        "K_H0.5": lla.k_hn(spec, 0.5),
        "K_H1": lla.k_hn(spec, 1.0),
        "type": lla.spectrum_type(spec).kind,
        "trace": trace,
        "random plane": plane,
        "Hessian plane": sharp,
    }
    rows = [f"  {name:<14} {value}" for name, value in numbers.items()]
    return "\n".join([f"{title}:", *rows])


def main(argv: list[str] | None = None) -> Path:
    """Runs the example; returns the folder with its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the checkpoints")
    parser.add_argument("--network", choices=CASES, default="lenet")
    parser.add_argument("--out", type=Path, help="folder for the results (./torch-NETWORK)")
    parser.add_argument("--points", type=int, help="points along each axis of the planes (21, ResNet-20 11)")
    parser.add_argument("--examples", type=int, help="examples for planes and curvature (512, ResNet-20 64)")
    args = parser.parse_args(argv)
    case = CASES[args.network]
    out = args.out or Path(f"torch-{args.network}")
    out.mkdir(parents=True, exist_ok=True)

    module = case.module().eval()
    x, y = case.data(args.data)
    net = lla_torch.convert(module, x[:2])  # the architecture; two examples show the shapes
    net = lla_torch.load_checkpoint(args.data / case.file, net)  # the weights, from any checkpoint of this module
    module.load_state_dict(lla_torch.to_state_dict(net))  # back to torch, for the comparison
    criterion = nn.CrossEntropyLoss()
    certificate = lla_torch.certify(module, net, (x[:32], y[:32]), criterion)
    print(f"{net}\n{certificate}")

    loss, params = net.loss(criterion), net.variables["params"]
    comparison = compare_with_torch(module, loss, params, x, y)
    print(comparison)
    n = args.examples or case.examples
    summary = analyse(loss, params, (x[:n].numpy(), y[:n].numpy()), case, args.points or case.points, out)
    (out / "summary.txt").write_text(f"{net}\n{certificate}\n{comparison}\n{summary}\n", encoding="utf-8")
    print(f"{summary}\nin {out}")
    return out


if __name__ == "__main__":
    main()
