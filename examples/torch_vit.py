"""A loss over an inner layer: a small vision transformer in PyTorch, its curvature, and the landscape of its head.

    python examples/torch_vit.py

The loss is cross-entropy plus a penalty on the activations behind the first block, which a forward hook records, as
usual in torch; lla_torch.convert_loss converts it as it is. Results, pictures and a summary.txt are written to --out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before jax starts: every core is a device, over which points are split, and a second run compiles nothing anew.
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={os.cpu_count()}")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "lla_jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import lla_torch
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import lla_jax as lla
from lla_jax import demo

# --- torch: the model and its training


class ViT(nn.Module):
    """Images of 8 x 8 pixels as 16 patches and a class token; blocks of attention with 4 heads."""

    def __init__(self, width: int = 32, depth: int = 2):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(
            width, nhead=4, dim_feedforward=2 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, num_layers=depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        # x.shape[0] and not len(x), which would fix the batch size at conversion
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.head(self.norm(self.blocks(x)[:, 0]))


def step(vit: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """One loss per image (B,): cross-entropy + 0.01 times the mean square of the first block's outputs."""
    images, labels = batch
    inner = []
    hook = vit.blocks.layers[0].register_forward_hook(lambda module, args, output: inner.append(output))
    try:
        scores = vit(images)
    finally:
        hook.remove()
    return F.cross_entropy(scores, labels, reduction="none") + 0.01 * inner[0].square().mean((1, 2))


def train(vit: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> None:
    """AdamW on batches of 64 with a cosine schedule, dropout on; the module is in eval mode afterwards."""
    adam = torch.optim.AdamW(vit.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, epochs)
    vit.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(64):
            adam.zero_grad()
            step(vit, (images[rows], labels[rows])).mean().backward()
            adam.step()
        schedule.step()
    vit.eval()


# --- lla_torch and lla_jax


@contextlib.contextmanager
def bar(label: str) -> Iterator[Callable[[float, float | None], None]]:
    """A progress bar: lla_jax calls ``progress(done, total)`` from time to time."""
    with tqdm(desc=label, dynamic_ncols=True) as shown:

        def progress(done: float, total: float | None) -> None:
            shown.total = total
            shown.update(round(done) - shown.n)

        yield progress


def plane_of(loss: lla.Loss, params: Any, data: Any, axes: lla.Directions, points: int, label: str) -> lla.Landscape:
    """The landscape in units of each filter's own norm."""
    axes = lla.directions.normalize(axes, params, by="filter", filter_axis=loss)
    with bar(label) as progress:
        return lla.evaluate(loss, params, data, axes, lla.grid(points=points), progress=progress)


def main(argv: list[str] | None = None) -> Path:
    """Runs the example; returns the folder with its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("torch-vit"))
    parser.add_argument("--points", type=int, default=21, help="points along each axis of the planes")
    parser.add_argument("--examples", type=int, default=512, help="examples for planes and curvature")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=40, help="Lanczos steps of the spectrum")
    parser.add_argument("--quick", action="store_true", help="tiny settings, to see that it runs")
    args = parser.parse_args(argv)
    if args.quick:
        args.points, args.examples, args.epochs, args.steps = 3, 32, 1, 6
    args.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    (images, labels), (test, test_labels) = demo.load_digits()
    x, y = torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(labels).long()
    xt, yt = torch.tensor(test).permute(0, 3, 1, 2), torch.tensor(test_labels).long()
    vit = ViT(width=8, depth=1) if args.quick else ViT()
    train(vit, x, y, args.epochs)
    with torch.no_grad():
        accuracy = [float((vit(a).argmax(1) == b).double().mean()) for a, b in ((x, y), (xt, yt))]
        by_torch = float(step(vit, (x[: args.examples], y[: args.examples])).mean())

    # The module itself, with a certificate that compares it with torch, gradients and Hessian products included.
    net = lla_torch.convert(vit, x[:2])
    certificate = lla_torch.certify(vit, net, (x[:16], y[:16]), nn.CrossEntropyLoss())
    print(f"{net}\n{certificate}")

    # The step with its inner layer, over the same parameters.
    loss, params = lla_torch.convert_loss(step, vit, (x[:2], y[:2]))
    data = x[: args.examples].numpy(), y[: args.examples].numpy()
    key = jax.random.key(0)
    plane = plane_of(loss, params, data, lla.directions.random(key, params, 2), args.points, "random plane")
    # only the classifier's parameters change; paths are those of net.names, such as "params/head/kernel"
    head = lla.directions.random(key, params, 2, select="head/*")
    head_plane = plane_of(loss, params, data, head, args.points, "plane of the head")

    H = lla.hessian(loss, params, data)
    with bar("eigenpairs") as progress:
        pairs = lla.eigenpairs(H, key, k=3, tol=1e-2, progress=progress)
    with bar("Hessian plane") as progress:
        top = lla.directions.eigenvectors(pairs, (0, 1))
        sharp = lla.evaluate(loss, params, data, top, lla.grid(extent=0.2, points=args.points), progress=progress)
    with bar("spectrum") as progress:
        spec = lla.spectrum(H, key, steps=args.steps, probes=4, progress=progress)

    results = {"plane": plane, "head-plane": head_plane, "hessian-plane": sharp, "eigenpairs": pairs, "spectrum": spec}
    for name, result in results.items():
        lla.save(result, args.out / f"{name}.npz")
    both = {"all parameters": plane, "the head only": head_plane}
    figures = {
        "plane": lla.plotting.surface(plane, log=True, title="ViT on digits: loss"),
        "planes": lla.plotting.panels(both, kind="contour", log=True, title="ViT on digits"),
        "hessian-plane": lla.plotting.contour(sharp, log=True, title="ViT: plane of two top eigenvectors"),
        "spectrum": lla.plotting.spectral_density(spec, pairs=pairs, title="ViT on digits: Hessian spectrum"),
    }
    for name, figure in figures.items():
        figure.savefig(args.out / f"{name}.png")

    middle = (args.points // 2, args.points // 2)
    numbers = {
        "accuracy": f"{accuracy[0]:.4f}, test {accuracy[1]:.4f} (torch)",
        "loss": f"{plane.values['loss'][middle]:.6f} +- {plane.stderr['loss'][middle]:.4f} (torch: {by_torch:.6f})",
        "eigenvalues": pairs,
        "r_e": lla.r_e(spec),
        "K_H0.5": lla.k_hn(spec, 0.5),
        "K_H1": lla.k_hn(spec, 1.0),
        "random plane": plane,
        "plane of the head": head_plane,
        "Hessian plane": sharp,
    }
    text = "\n".join(f"{name:<18} {value}" for name, value in numbers.items())
    (args.out / "summary.txt").write_text(f"{net}\n{certificate}\n{text}\n", encoding="utf-8")
    print(f"{text}\nin {args.out}")
    return args.out


if __name__ == "__main__":
    main()
