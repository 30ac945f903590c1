"""Claim: planes of small and middle networks are faster here than a lean torch loop, at constant memory.

    python benchmarks/sweep.py [--lla PATH] [--quick]

(a) an MLP of 2,410 parameters on 1,797 digits: steady state over 100,000 points beside a lean torch loop and, given the
path of its checkout, LLA's own loop; then one 1000 x 1000 plane. (b) LeNet at batch 2048 on Fashion-MNIST (Debian's
dataset-fashion-mnist; random images without it) beside torch at batch 2048, as LLA runs it, and at its best microbatch.
Same number of threads on both sides. Peak memory is read in a process of its own for each size of the grid.
"""

from __future__ import annotations

import argparse
import gzip
import json
import pathlib
import subprocess
import sys

import measure
import numpy as np

FASHION = pathlib.Path("/usr/share/datasets/fashion-mnist")
STEP = 0.5


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lla", type=pathlib.Path, help="checkout of LLA, to time its own loop beside")
    parser.add_argument("--quick", action="store_true", help="small grids, to see that it runs; writes no result")
    parser.add_argument("--threads", type=int, default=measure.THREADS)
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)  # in a process of its own: points per side
    return parser.parse_args()


# -- the two problems, in jax and in torch -----------------------------------------------------------------------------


def mlp_problem():
    """(loss, params, data): 64 - 32 - 10 on the 1,797 digits."""
    import flax.linen as nn
    import jax
    import optax

    import lla_jax as lla
    from lla_jax import demo

    (x, y), (xt, yt) = demo.load_digits(0)
    x, y = np.concatenate([x, xt]).reshape(-1, 64), np.concatenate([y, yt])
    module = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(10)])
    variables = module.init(jax.random.key(0), x[:1])
    loss = lla.from_linen(module, variables, lambda o, b: optax.softmax_cross_entropy_with_integer_labels(o, b[1]))
    return loss, variables["params"], (x, y)


def lenet_problem():
    """(loss, params, data, name of the data): LeNet-5 at batch 2048."""
    import flax.linen as nn
    import jax
    import optax

    import lla_jax as lla

    class LeNet(nn.Module):
        @nn.compact
        def __call__(self, x):
            for features, padding in ((6, 2), (16, 0)):
                x = nn.relu(nn.Conv(features, (5, 5), padding=padding)(x))
                x = nn.max_pool(x, (2, 2), (2, 2))
            x = x.reshape(x.shape[0], -1)
            for units in (120, 84):
                x = nn.relu(nn.Dense(units)(x))
            return nn.Dense(10)(x)

    images, labels, name = fashion() if FASHION.exists() else random_images()
    module = LeNet()
    variables = module.init(jax.random.key(0), images[:1])
    loss = lla.from_linen(module, variables, lambda o, b: optax.softmax_cross_entropy_with_integer_labels(o, b[1]))
    return loss, variables["params"], (images, labels), name


def fashion():
    with gzip.open(FASHION / "train-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(16 + 2048 * 784), np.uint8)[16:].reshape(2048, 28, 28, 1)
    with gzip.open(FASHION / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + 2048), np.uint8)[8:]
    return images.astype(np.float32) / 255, labels.astype(np.int32), "Fashion-MNIST"


def random_images():
    rng = np.random.default_rng(0)
    return rng.random((2048, 28, 28, 1), np.float32), rng.integers(0, 10, 2048).astype(np.int32), "random images"


def torch_mlp():
    import torch

    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))


def torch_lenet():
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def torch_arrays(tree: dict) -> list:
    """A Flax tree as torch parameters in order: kernels transposed, the row order after the flatten CHW."""
    import torch

    convolutional, arrays = "Conv_0" in tree, []
    for name in sorted(tree, key=lambda n: (n.startswith("Dense"), n.startswith("layers"), n)):
        kernel = np.asarray(tree[name]["kernel"])
        if kernel.ndim == 4:
            kernel = kernel.transpose(3, 2, 0, 1)
        elif convolutional and name == "Dense_0":
            kernel = kernel.reshape(5, 5, 16, -1).transpose(2, 0, 1, 3).reshape(400, -1).T
        else:
            kernel = kernel.T
        arrays += [torch.tensor(np.ascontiguousarray(kernel)), torch.tensor(np.asarray(tree[name]["bias"]))]
    return arrays


class LeanTorch:
    """The least a torch sweep can do: weights written in place, forward in inference mode, one number out."""

    def __init__(self, net, params, axes, x, y, microbatch):
        import jax

        self.net, self.x, self.y, self.microbatch = net.eval(), x, y, microbatch
        self.start = torch_arrays(params)
        self.axes = [torch_arrays(jax.tree_util.tree_map(lambda d, i=i: d[i], axes.tree)) for i in range(2)]

    def loss(self, a: float, b: float) -> float:
        import torch

        with torch.inference_mode():
            for p, start, d, e in zip(self.net.parameters(), self.start, *self.axes, strict=True):
                torch.add(start, d, alpha=a, out=p.data).add_(e, alpha=b)
            total = 0.0
            for x, y in zip(self.x.split(self.microbatch), self.y.split(self.microbatch), strict=True):
                total += torch.nn.functional.cross_entropy(self.net(x), y, reduction="sum").item()
        return total / len(self.y)

    def sweep(self, points: int) -> None:
        for i in range(points):
            self.loss(STEP * (i / points - 0.5), 0.1)


def lla_loop(path: pathlib.Path, net, x, y, steps: int):
    """LLA's random_plane with given axes, steps x steps points, as LLA ships it (one batch)."""
    sys.path.insert(0, str(path / "src"))
    import torch
    from src_lla import loss_landscapes, metrics

    metric = metrics.Loss(torch.nn.CrossEntropyLoss(), x, y, "cpu")
    return lambda: loss_landscapes.random_plane(net, metric, distance=1, steps=steps, normalization="filter")


# -- measurements ------------------------------------------------------------------------------------------------------


def compare(name, problem, net, options, sides, points, microbatches):
    """Milliseconds per point of each rival and how far our values are from torch's."""
    import torch

    import lla_jax as lla

    loss, params, data = problem
    axes = axes_of(params)
    layout = (0, 3, 1, 2) if data[0].ndim == 4 else (0, 1)
    x, y = torch.tensor(data[0].transpose(layout).copy()), torch.tensor(data[1].astype(np.int64))

    def ours(side):
        return lla.evaluate(loss, params, data, axes, lla.grid(extent=STEP, points=side))

    planes: list = []
    cold = measure.seconds(lambda: planes.append(ours(sides["first"])))
    (plane,) = planes
    whole = LeanTorch(net, params, axes, x, y, len(y))
    best = min(microbatches, key=lambda m: best_of(LeanTorch(net, params, axes, x, y, m), points["search"]))
    calls = {"lla_jax": lambda: ours(sides["steady"]), f"torch, batch {len(y)}": lambda: whole.sweep(points["torch"])}
    units = {"lla_jax": sides["steady"] ** 2, f"torch, batch {len(y)}": points["torch"]}
    if best != len(y):
        lean = LeanTorch(net, params, axes, x, y, best)
        calls[f"torch, microbatch {best}"] = lambda: lean.sweep(points["torch"])
        units[f"torch, microbatch {best}"] = points["torch"]
    if options.lla:
        calls["LLA"] = lla_loop(options.lla, net, x, y, points["lla"])
        units["LLA"] = points["lla"] ** 2
    else:
        print("  LLA: no --lla PATH given, skipped")
    found = measure.alternate(calls, units, repeats=1 if options.quick else 3)
    base = found["lla_jax"]["min_ms"]
    for rival, row in found.items():
        row["times_lla_jax"] = row["min_ms"] / base
        times = f"{row['min_ms']:9.4f} ms a point (median {row['median_ms']:.4f})"
        print(f"  {name}: {rival:24s} {times}, {row['times_lla_jax']:5.2f} x")
    coords = plane.coords
    sample = [(i, j) for i in range(0, len(coords[0]), 5) for j in range(0, len(coords[1]), 7)]
    errors = [abs(plane.values["loss"][i, j] / whole.loss(coords[0][i], coords[1][j]) - 1) for i, j in sample]
    return {
        "parameters": sum(p.numel() for p in torch_arrays(params)),
        "examples": len(y),
        "rivals": found,
        "best_microbatch_of_torch": best,
        "largest_relative_difference_from_torch": max(errors),
        "points_compared": len(errors),
        "first_call_s": cold,
        "first_call_points": sides["first"] ** 2,
        "compile_and_plan_s": cold - sides["first"] ** 2 * base / 1e3,
        "plan": plane.recipe["plan"],
    }


def best_of(rival: LeanTorch, points: int) -> float:
    rival.sweep(2)
    return min(measure.seconds(lambda: rival.sweep(points)) for _ in range(3))


def axes_of(params):
    import jax

    import lla_jax as lla

    return lla.directions.normalize(lla.directions.random(jax.random.key(1), params), params)


def status_mib(field: str) -> float:
    """A memory field of this process in MiB."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith(field)).split()[1]) / 1024


def peak(side: int) -> dict:
    """In a process of its own: a plane of side x side points of the MLP, its seconds and the peak memory."""
    import lla_jax as lla

    loss, params, data = mlp_problem()
    axes = axes_of(params)
    lla.evaluate(loss, params, data, axes, lla.grid(points=50))  # compile before the memory is read
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is in use now
    before = status_mib("VmRSS")
    planes = []
    taken = measure.seconds(
        lambda: planes.append(lla.evaluate(loss, params, data, axes, lla.grid(extent=STEP, points=side)))
    )
    after = status_mib("VmHWM")
    arrays = [*planes[0].values.values(), *planes[0].stderr.values()]
    return {
        "points": side**2,
        "seconds": taken,
        "ms_per_point": 1e3 * taken / side**2,
        "peak_mib": after,
        "growth_mib": after - before,
        "result_mib": sum(a.nbytes for a in arrays) / 2**20,
    }


def main() -> None:
    options = arguments()
    measure.start_jax(options.threads)
    if options.peak:
        print(json.dumps(peak(options.peak)))
        return
    import torch

    torch.set_num_threads(options.threads)
    result = {"claim": __doc__.splitlines()[0], "environment": measure.environment(options.threads)}
    quick = options.quick
    print("(a) MLP, 1,797 digits")
    sides = {"first": 21, "steady": 40 if quick else 317}
    points = {"search": 50, "torch": 100 if quick else 20_000, "lla": 5 if quick else 40}
    result["mlp"] = compare("MLP", mlp_problem(), torch_mlp(), options, sides, points, [1797, 512, 256])
    print("(b) LeNet, batch 2048")
    loss, params, data, name = lenet_problem()
    sides = {"first": 5 if quick else 41, "steady": 5 if quick else 25}
    points = {"search": 5, "torch": 3 if quick else 100, "lla": 3 if quick else 7}
    blocks = [2048, 1024, 512, 256, 128, 64, 32, 16]
    result["lenet"] = compare("LeNet", (loss, params, data), torch_lenet(), options, sides, points, blocks) | {
        "data": name
    }
    print("memory and one million points, each in a process of its own")
    result["planes"] = []
    for side in (50, 100) if quick else (100, 316, 1000):
        command = [sys.executable, __file__, "--peak", str(side), "--threads", str(options.threads)]
        result["planes"].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(f"  {result['planes'][-1]}")
    if not quick:
        print(f"written: {measure.write('sweep', result)}")


if __name__ == "__main__":
    main()
