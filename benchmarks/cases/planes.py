"""The networks of the sweeps, in jax and, with equal weights, in torch: MLP, LeNet, ResNet-20, ViT, GPT.

jax's side imports no torch where it can do without, so that a process whose memory or start is measured has no more in
it than a user's.
"""

from __future__ import annotations

import gzip
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

NAMES = ("mlp", "lenet", "resnet", "vit", "gpt")
LABELS = {"mlp": "MLP", "lenet": "LeNet", "resnet": "ResNet-20", "vit": "ViT", "gpt": "GPT"}
BATCH = {"mlp": 1797, "lenet": 2048, "resnet": 512, "vit": 128, "gpt": 128}
FASHION = pathlib.Path("/usr/share/datasets/fashion-mnist")


class Case(NamedTuple):
    """One network on both sides: what ``lla.evaluate`` takes, and torch's network, inputs and labels."""

    problem: tuple[Any, Any, Any]  # loss, params, data
    about: str
    net: Any
    x: Any
    y: Any
    to_torch: Callable[[Any], list[np.ndarray]]  # a tree like the parameters, in torch's order and layout


def case(name: str, data: pathlib.Path, batch: int | None = None) -> Case:
    """A network by its name; ``data`` is the folder with the checkpoints."""
    import torch

    batch = batch or BATCH[name]
    if name in ("mlp", "lenet"):
        loss, params, arrays, about = (mlp if name == "mlp" else lenet)(batch)
        net = torch_mlp() if name == "mlp" else torch_lenet()
        with torch.no_grad():
            for p, value in zip(net.parameters(), plain_to_torch(params), strict=True):
                p.copy_(torch.tensor(value))
        x, y = torch_inputs(*arrays)
        return Case((loss, params, arrays), about, net.eval(), x, y, plain_to_torch)
    from cases import attention, curvature

    if name == "resnet":
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "resnet.npz"
            about = curvature.prepare("resnet", data, batch, path)
            problem, (net, x, y) = curvature.jax_problem(path), curvature.torch_problem(path)
    else:
        images = curvature.cifar(data) if name == "vit" else attention.letters(batch)
        inputs, labels, about = images[0][:batch], images[1][:batch].astype(np.int32), images[2]
        net = attention.torch_transformer(name)
        problem = attention.problem(name, net, inputs, labels)
        x, y = torch_inputs(inputs, labels)
    keys = [key for key, _ in net.named_parameters()]
    return Case(problem, about, net, x, y, lambda tree: curvature.to_torch(tree, keys))


def torch_inputs(x: np.ndarray, y: np.ndarray) -> tuple[Any, Any]:
    import torch

    x = np.array(x.transpose(0, 3, 1, 2) if x.ndim == 4 else x)
    return torch.tensor(x.astype(np.int64) if x.dtype.kind == "i" else x), torch.tensor(y.astype(np.int64))


def cross_entropy(outputs: Any, batch: Any) -> Any:
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1])


# -- MLP ---------------------------------------------------------------------------------------------------------------


def mlp(batch: int = 1797, width: int = 32, seed: int = 0) -> tuple[Any, Any, Any, str]:
    """(loss, params, data, what the data are): 64 - 32 - 10 on the 1,797 digits, again from the first where there are
    more."""
    import flax.linen as nn
    import jax

    import lla_jax as lla
    from lla_jax import demo

    (x, y), (xt, yt) = demo.load_digits(0)
    x, y = np.concatenate([x, xt]).reshape(-1, 64), np.concatenate([y, yt])
    rows = np.arange(batch) % len(y)
    module = nn.Sequential([nn.Dense(width), nn.relu, nn.Dense(10)])
    variables = module.init(jax.random.key(seed), x[:1])
    return lla.from_linen(module, variables, cross_entropy), variables["params"], (x[rows], y[rows]), "digits"


def torch_mlp() -> Any:
    import torch

    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))


# -- LeNet -------------------------------------------------------------------------------------------------------------


def lenet(batch: int = 2048, seed: int = 0) -> tuple[Any, Any, Any, str]:
    """(loss, params, data, what the data are): LeNet-5 on Fashion-MNIST (Debian's), or on random images without it."""
    import flax.linen as nn
    import jax

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

    images, labels, about = fashion(batch) if FASHION.exists() else random_images(batch)
    module = LeNet()
    variables = module.init(jax.random.key(seed), images[:1])
    return lla.from_linen(module, variables, cross_entropy), variables["params"], (images, labels), about


def fashion(batch: int) -> tuple[np.ndarray, np.ndarray, str]:
    with gzip.open(FASHION / "train-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(16 + batch * 784), np.uint8)[16:].reshape(batch, 28, 28, 1)
    with gzip.open(FASHION / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + batch), np.uint8)[8:]
    return images.astype(np.float32) / 255, labels.astype(np.int32), "Fashion-MNIST"


def random_images(batch: int) -> tuple[np.ndarray, np.ndarray, str]:
    rng = np.random.default_rng(0)
    return rng.random((batch, 28, 28, 1), np.float32), rng.integers(0, 10, batch).astype(np.int32), "random images"


def torch_lenet() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def plain_to_torch(tree: dict) -> list[np.ndarray]:
    """A Flax tree as torch's parameters in order: kernels transposed, the row order after the flatten CHW."""
    convolutional, arrays = "Conv_0" in tree, []
    for name in sorted(tree, key=lambda n: (n.startswith("Dense"), n.startswith("layers"), n)):
        kernel = np.asarray(tree[name]["kernel"])
        if kernel.ndim == 4:
            kernel = kernel.transpose(3, 2, 0, 1)
        elif convolutional and name == "Dense_0":
            kernel = kernel.reshape(5, 5, 16, -1).transpose(2, 0, 1, 3).reshape(400, -1).T
        else:
            kernel = kernel.T
        arrays += [np.ascontiguousarray(kernel), np.asarray(tree[name]["bias"])]
    return arrays


# -- planes ------------------------------------------------------------------------------------------------------------


def axes_of(params: Any, seed: int = 1) -> Any:
    """Two random directions, normalized by filter."""
    import jax

    import lla_jax as lla

    return lla.directions.normalize(lla.directions.random(jax.random.key(seed), params), params)
