"""A loss that samples: a small VAE in PyTorch, its ELBO, and the moments of the Adam that trained it.

    python examples/torch_vae.py

The loss is not a function of outputs and labels but a training step written in torch, which lla_torch.convert_loss
converts as it is. Results, pictures and a summary.txt are written to --out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

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


class VAE(nn.Module):
    """Images of 64 pixels in [0, 1], a Gaussian code of 8 numbers, Bernoulli pixels."""

    def __init__(self, hidden: int = 64, code: int = 8):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, hidden), nn.SiLU(), nn.Linear(hidden, 2 * code))
        self.decoder = nn.Sequential(nn.Linear(code, hidden), nn.SiLU(), nn.Linear(hidden, 64))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean, log_var = self.encoder(images).chunk(2, dim=-1)
        code = mean + torch.exp(log_var / 2) * torch.randn_like(mean)
        return self.decoder(code), mean, log_var


def negative_elbo(vae: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """One loss per image (B,), in nats: reconstruction + KL divergence from the prior. Training minimizes its mean."""
    logits, mean, log_var = vae(images)
    reconstruction = F.binary_cross_entropy_with_logits(logits, images, reduction="none").sum(-1)
    divergence = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(-1)
    return reconstruction + divergence


def train(vae: nn.Module, images: torch.Tensor, epochs: int) -> torch.optim.Optimizer:
    """Adam on batches of 64; returns the optimizer with its moments."""
    adam = torch.optim.Adam(vae.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in images[torch.randperm(len(images))].split(64):
            adam.zero_grad()
            negative_elbo(vae, batch).mean().backward()
            adam.step()
    return adam


# --- lla_torch and lla_jax


@contextlib.contextmanager
def bar(label: str) -> Iterator[Callable[[float, float | None], None]]:
    """A progress bar: lla_jax calls ``progress(done, total)`` from time to time."""
    with tqdm(desc=label, dynamic_ncols=True) as shown:

        def progress(done: float, total: float | None) -> None:
            shown.total = total
            shown.update(round(done) - shown.n)

        yield progress


def main(argv: list[str] | None = None) -> Path:
    """Runs the example; returns the folder with its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("torch-vae"))
    parser.add_argument("--points", type=int, default=31, help="points along each axis of the planes")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--steps", type=int, default=80, help="Lanczos steps of the spectrum")
    parser.add_argument("--quick", action="store_true", help="tiny settings, to see that it runs")
    args = parser.parse_args(argv)
    if args.quick:
        args.points, args.epochs, args.steps = 5, 1, 8
    args.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    (images, _), (test, _) = demo.load_digits()
    images, test = torch.tensor(images).flatten(1), torch.tensor(test).flatten(1)
    vae = VAE()
    adam = train(vae, images, args.epochs)
    with torch.no_grad():
        by_torch = float(torch.stack([negative_elbo(vae, images).mean() for _ in range(20)]).mean())

    # The loss draws by a key: the same noise at every point of a plane, other noise for each example.
    key = jax.random.key(0)
    loss, params = lla_torch.convert_loss(negative_elbo, vae, images[:2], key=key)
    data, more = images.numpy(), {"test": test.numpy()}

    # The axes: random ones, and Adam's two moments, read from the optimizer by the parameters of the converted module.
    net = lla_torch.convert(vae, images[:2])
    axes = {"random": lla.directions.random(key, params, 2), "Adam's moments": lla_torch.adam_moments(adam, net)}
    extents = {"random": 1.0, "Adam's moments": 0.1}  # v has no negative entry: all weights grow together along it
    planes = {}
    for name, each in axes.items():
        each = lla.directions.normalize(each, params, by="filter", filter_axis=loss)
        grid = lla.grid(extent=extents[name], points=args.points)
        with bar(f"plane, {name}") as progress:
            planes[name] = lla.evaluate(loss, params, data, each, grid, extra_data=more, progress=progress)

    H = lla.hessian(loss, params, data)
    with bar("eigenpairs") as progress:
        pairs = lla.eigenpairs(H, key, k=3, progress=progress)
    with bar("spectrum") as progress:
        spec = lla.spectrum(H, key, steps=args.steps, probes=4, progress=progress)
    with bar("trace") as progress:
        trace = lla.trace(H, key, rtol=0.05, progress=progress)

    plane, adam_plane = planes.values()
    for name, result in {"plane": plane, "adam-plane": adam_plane, "eigenpairs": pairs, "spectrum": spec}.items():
        lla.save(result, args.out / f"{name}.npz")
    figures = {
        "plane": lla.plotting.surface(plane, log=True, title="VAE: negative ELBO (nats)"),
        "planes": lla.plotting.panels(planes, kind="contour", log=True, title="VAE, negative ELBO (nats)"),
        "spectrum": lla.plotting.spectral_density(spec, pairs=pairs, title="VAE: Hessian of the negative ELBO"),
    }
    for name, figure in figures.items():
        figure.savefig(args.out / f"{name}.png")

    middle = (args.points // 2, args.points // 2)
    here = {name: f"{v[middle]:.3f} +- {plane.stderr[name][middle]:.3f}" for name, v in plane.values.items()}
    numbers = {
        "negative ELBO": f"{here['loss']} (torch, mean of 20 draws: {by_torch:.3f}), test {here['test_loss']}",
        "eigenvalues": pairs,
        "r_e": lla.r_e(spec),
        "K_H0.5": lla.k_hn(spec, 0.5),
        "K_H1": lla.k_hn(spec, 1.0),
        "trace": trace,
    } | planes
    text = "\n".join(f"{name:<24} {value}" for name, value in numbers.items())
    (args.out / "summary.txt").write_text(f"{text}\n", encoding="utf-8")
    print(f"{net}\n{text}\nin {args.out}")
    return args.out


if __name__ == "__main__":
    main()
