"""loss-landscape-anim, its parts called one by one: its recording model, its PCA, its grid of losses, its animation.

What it needs and this environment lacks (scikit-learn, PyTorch Lightning, torchmetrics) lies in a folder of its own,
``job["packages"]``. The package's front door asks for torchvision as well, and is not opened.
"""

from __future__ import annotations

import importlib
import pathlib
import pickle
import shutil
import sys
import types
from typing import Any

import numpy as np
from harness import measure

FULL = 200  # checkpoints, the most of which all components are worth their time
CONVERT = pathlib.Path("/usr/bin/convert")  # ImageMagick's


def part(job: dict[str, Any], name: str) -> Any:
    """A module of loss-landscape-anim."""
    package = types.ModuleType("loss_landscape_anim")
    package.__path__ = [str(pathlib.Path(job["anim"]) / "loss_landscape_anim")]
    sys.modules.setdefault(package.__name__, package)
    if job["packages"]:
        sys.path.append(job["packages"])
    if (
        "cloudpickle" not in sys.modules and importlib.util.find_spec("cloudpickle") is None
    ):  # joblib's, for processes, of which there are none here
        stub = types.ModuleType("cloudpickle")
        stub.dumps, stub.loads, stub.CloudPickler = pickle.dumps, pickle.loads, pickle.Pickler  # type: ignore[attr-defined]
        sys.modules["cloudpickle"] = stub
    return importlib.import_module(f"loss_landscape_anim.{name}")


def record(job: dict[str, Any]) -> dict[str, Any]:
    """Train its MLP without recording and with it; memory and seconds per step."""
    import torch

    torch.manual_seed(0)
    module = part(job, "model")
    x, y = torch.tensor(np.load(job["x"])), torch.tensor(np.load(job["y"]).astype(np.int64))

    def train(steps: int, recorded: bool) -> Any:
        net = module.MLP(x.shape[1], 10, 0.01, job["layers"], job["width"], optimizer="sgd")
        net.log = lambda *_, **__: None  # without its trainer there is no logger
        optimizer, batches = net.configure_optimizers(), np.random.default_rng(0)
        for step in range(steps):
            rows = batches.integers(0, len(y), job["batch"])
            batch = x[rows], y[rows]
            loss = net.training_step(batch, step)["loss"] if recorded else net.loss_fn(net(batch[0]), batch[1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return net

    for recorded in (False, True):
        train(20, recorded)
    plain = measure.seconds(lambda: train(job["steps"], False))
    found, net = measure.growth_mib(lambda: train(job["steps"], True))
    assert len(net.training_step_outputs) == job["steps"]
    return found | {"plain_s": plain, "held": len(net.training_step_outputs)}


def components(job: dict[str, Any]) -> dict[str, Any]:
    """Its principal components of a path, and scikit-learn's full decomposition in float64 as the truth."""
    import torch

    module = part(job, "loss_landscape")
    path = [torch.tensor(row) for row in np.load(job["flat"])]

    def reduce() -> Any:
        return module.DimReduction(path, "pca", None, seed=0).reduce()

    module.DimReduction(path[:3], "pca", None, seed=0).reduce()  # what every process loads once is not the part's
    found, reduced = measure.growth_mib(reduce)
    again = measure.seconds(reduce)
    shares, found["again_s"] = reduced["pcvariances"].tolist(), again
    if len(path) > FULL:
        return found | {"shares": shares}
    from sklearn.decomposition import PCA

    truth_s, truth = measure.timed(lambda: PCA(svd_solver="full").fit(np.load(job["flat"]).astype(np.float64)))
    return found | {"shares": shares, "truth": truth.explained_variance_ratio_[:-1].tolist(), "truth_s": truth_s}


def grid(job: dict[str, Any]) -> dict[str, Any]:
    """Its grid of losses about the end of a path."""
    import torch

    module, models = part(job, "loss_landscape"), part(job, "model")
    x, y = torch.tensor(np.load(job["x"])), torch.tensor(np.load(job["y"]).astype(np.int64))
    axes, path = np.load(job["axes"]), torch.tensor(np.load(job["flat"])[[0, -1]])
    net = models.MLP(x.shape[1], 10, 0.01, job["layers"], job["width"])
    seen = (path.numpy() - path.numpy()[-1]) @ axes.T

    def compute() -> Any:
        return module.LossGrid(path, net, (x, y), seen, axes, job["side"] // 2, tqdm_disable=True, save_grid=False)

    first, made = measure.timed(compute)
    return {
        "seconds": first,
        "values": np.asarray(made.loss_values_2d).T.tolist(),  # [i, j]: along the first axis i
        "coords": [np.asarray(c, np.float64).tolist() for c in made.coords],
    }


def film(job: dict[str, Any]) -> dict[str, Any]:
    """Its animation over a plane: contours, a point that moves, frames as large as ours."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    module = part(job, "_plot")
    module.plt.switch_backend("agg")
    if not CONVERT.exists():  # matplotlib then takes Pillow
        plt.rcParams["animation.convert_path"] = "/nowhere"
    with np.load(job["plane"]) as file:
        values, coords = file["values"], (file["x"], file["y"])
    seen, losses = np.load(job["seen"]), np.load(job["losses"])
    width, height = job["size"]

    move = matplotlib.lines.Line2D.set_data
    # it moves its point by two numbers, which matplotlib takes no more since 3.7
    matplotlib.lines.Line2D.set_data = lambda line, *args: move(line, *map(np.atleast_1d, args))

    def draw() -> None:
        module.animate_contour(
            seen.tolist(), losses.tolist(), [0.0] * len(seen), np.log(values).T, coords, (0.0, 0.0), float(losses[-1]),
            None, 15, figsize=(width / 100, height / 100), filename="film.gif",
        )  # fmt: skip

    found, _ = measure.growth_mib(draw)
    return found | {"frames": len(seen), "bytes": pathlib.Path("film.gif").stat().st_size, "writer": writer()}


def writer() -> str:
    return "ImageMagick" if CONVERT.exists() and shutil.which("convert") else "Pillow"
