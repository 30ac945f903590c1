"""The two trained networks of the curvature benchmark, equal in torch and in Flax, and a judge of eigenpairs.

``prepare`` reads a checkpoint and its data once and writes them as plain arrays under torch's names; each process then
builds its own side from that file, so that the memory of one framework is not counted with the other's. Vectors travel
as lists of arrays in the order and layout of torch's parameters.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

NAMES = ("lenet", "resnet")
BATCH = {"lenet": 2048, "resnet": 512}
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
EMBEDDINGS = ("token", "position")  # a row for each entry, in torch and in Flax alike
Arrays = list[np.ndarray]


# -- checkpoints and data ----------------------------------------------------------------------------------------------


def prepare(name: str, source: pathlib.Path, batch: int, path: pathlib.Path) -> str:
    """Write weights and data of one network to an .npz; returns what the data are."""
    import torch

    file = source / {"lenet": "lenet_mnist.pth", "resnet": "resnet20_cifar10.th"}[name]
    weights = torch.load(file, weights_only=True, map_location="cpu")
    weights = {key.removeprefix("module."): w.numpy() for key, w in weights.get("state_dict", weights).items()}
    images, labels, about = enlarged_digits() if name == "lenet" else cifar(source)
    np.savez(path, images=images[:batch], labels=labels[:batch].astype(np.int32), **weights)
    return about


def enlarged_digits() -> tuple[np.ndarray, np.ndarray, str]:
    """lla_jax's 1,797 digits of 8 x 8 pixels made like MNIST's, and the first 251 of them again, one pixel aside."""
    import torch
    from torch.nn import functional

    from lla_jax import demo

    (x, y), (xt, yt) = demo.load_digits(0)
    small = torch.tensor(np.concatenate([x, xt]).reshape(-1, 1, 8, 8))
    strokes = functional.interpolate(small, size=(20, 16), mode="bicubic", align_corners=False)
    framed = functional.pad((3 * strokes - 1).clamp(0, 1), (6, 6, 4, 4)).numpy()[:, 0]
    place = np.arange(28) - 13.5
    ink = framed.sum((1, 2))
    shifts = [-np.rint((framed.sum(axis) @ place) / ink).astype(int) for axis in (2, 1)]
    images = np.stack([np.roll(image, shift, (0, 1)) for image, *shift in zip(framed, *shifts, strict=True)])
    again = np.roll(images[: 2048 - len(images)], 1, axis=2)
    labels = np.concatenate([y, yt])
    about = (
        "1,797 digits of 8 x 8 pixels, enlarged (bicubic) to 20 x 16, contrast 3x - 1, centred by mass in 28 x 28; "
        "the first 251 again, one pixel aside"
    )
    return np.concatenate([images, again])[..., None], np.concatenate([labels, labels[: len(again)]]), about


def cifar(source: pathlib.Path) -> tuple[np.ndarray, np.ndarray, str]:
    with np.load(source / "cifar10_train_2048.npz") as file:
        return (file["images"] / np.float32(255) - MEAN) / STD, file["labels"], "CIFAR-10 training images"


def load(path: pathlib.Path) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """(weights by torch's names, images NHWC, labels)."""
    with np.load(path) as file:
        weights = {key: file[key] for key in file.files if key not in ("images", "labels")}
        return weights, file["images"], file["labels"]


# -- torch -------------------------------------------------------------------------------------------------------------


def torch_problem(path: pathlib.Path) -> tuple[Any, Any, Any]:
    """(net in eval mode, images NCHW, labels)."""
    import torch

    weights, images, labels = load(path)
    net = torch_lenet() if "fc1.weight" in weights else torch_resnet()
    state = {key: torch.tensor(w) for key, w in weights.items()}
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    x = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    return net.eval(), x, torch.tensor(labels.astype(np.int64))


def torch_lenet() -> Any:
    from collections import OrderedDict

    from torch import nn

    layers = [
        ("conv1", nn.Conv2d(1, 6, 5, padding=2)),
        ("relu1", nn.ReLU()),
        ("pool1", nn.MaxPool2d(2)),
        ("conv2", nn.Conv2d(6, 16, 5)),
        ("relu2", nn.ReLU()),
        ("pool2", nn.MaxPool2d(2)),
        ("flat", nn.Flatten()),
        ("fc1", nn.Linear(400, 120)),
        ("relu3", nn.ReLU()),
        ("fc2", nn.Linear(120, 84)),
        ("relu4", nn.ReLU()),
        ("fc3", nn.Linear(84, 10)),
    ]
    return nn.Sequential(OrderedDict(layers))


def torch_resnet() -> Any:
    """ResNet-20 for CIFAR with option A shortcuts (He et al. 2016, section 4.2)."""
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self, inside: int, outside: int):
            super().__init__()
            self.stride, self.more = (2, outside - inside) if outside > inside else (1, 0)
            self.conv1 = nn.Conv2d(inside, outside, 3, self.stride, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(outside)
            self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(outside)

        def forward(self, x):
            inner = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
            half = self.more // 2
            shortcut = x[:, :, :: self.stride, :: self.stride]
            return functional.relu(inner + functional.pad(shortcut, (0, 0, 0, 0, half, half)))

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
            self.layer1 = nn.Sequential(Block(16, 16), Block(16, 16), Block(16, 16))
            self.layer2 = nn.Sequential(Block(16, 32), Block(32, 32), Block(32, 32))
            self.layer3 = nn.Sequential(Block(32, 64), Block(64, 64), Block(64, 64))
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            x = functional.relu(self.bn1(self.conv1(x)))
            return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))

    return ResNet()


def judge(path: pathlib.Path) -> Callable[[Arrays], Arrays]:
    """One Hessian product by torch's double backward over the whole batch: what every rival's pairs are checked by."""
    import torch

    net, x, y = torch_problem(path)
    params = list(net.parameters())
    slope = torch.autograd.grad(torch.nn.functional.cross_entropy(net(x), y), params, create_graph=True)

    def product(v: Arrays) -> Arrays:
        vector = [torch.tensor(np.array(part)) for part in v]
        return [p.numpy() for p in torch.autograd.grad(slope, params, vector, retain_graph=True)]

    return product


def judged(product: Callable[[Arrays], Arrays], vectors: list[Arrays]) -> tuple[list[float], list[float]]:
    """Rayleigh quotients of the vectors, largest magnitude first, and residuals |Hv - lambda v| / |lambda| of each."""
    rows = []
    for vector in vectors:
        v = np.concatenate([np.asarray(part, np.float64).ravel() for part in vector])
        v /= np.linalg.norm(v)
        unit = np.split(v.astype(np.float32), np.cumsum([np.size(part) for part in vector])[:-1])
        moved = product([u.reshape(np.shape(part)) for u, part in zip(unit, vector, strict=True)])
        hv = np.concatenate([part.astype(np.float64).ravel() for part in moved])
        value = v @ hv
        rows.append((float(value), float(np.linalg.norm(hv - value * v) / abs(value))))
    rows.sort(key=lambda row: -abs(row[0]))
    return [value for value, _ in rows], [residual for _, residual in rows]


# -- jax ---------------------------------------------------------------------------------------------------------------


def jax_problem(path: pathlib.Path, pool: str = "max_pool") -> tuple[Any, Any, Any]:
    """(lla_jax's loss, parameters, data)."""
    import optax

    import lla_jax as lla

    weights, images, labels = load(path)
    module = flax_lenet(pool) if "fc1.weight" in weights else flax_resnet()
    variables = to_flax(weights)
    loss = lla.from_linen(module, variables, lambda o, b: optax.softmax_cross_entropy_with_integer_labels(o, b[1]))
    return loss, variables["params"], (images, labels)


def flax_lenet(pool: str = "max_pool") -> Any:
    """LeNet; ``pool`` says how the maximum of 2 x 2 pixels is written: "max_pool", "reshape", or "none" (one pixel)."""
    import flax.linen as nn

    def pooled(x):
        if pool == "max_pool":
            return nn.max_pool(x, (2, 2), (2, 2))
        if pool == "none":
            return x[:, ::2, ::2]
        batch, height, width, channels = x.shape
        return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))

    class LeNet(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = pooled(nn.relu(nn.Conv(6, (5, 5), padding=2, name="conv1")(x)))
            x = pooled(nn.relu(nn.Conv(16, (5, 5), padding=0, name="conv2")(x)))
            x = nn.relu(nn.Dense(120, name="fc1")(x.reshape(x.shape[0], -1)))
            return nn.Dense(10, name="fc3")(nn.relu(nn.Dense(84, name="fc2")(x)))

    return LeNet()


def flax_resnet() -> Any:
    import flax.linen as nn
    import jax.numpy as jnp

    class ResNet(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            def normed(x, features, stride, conv, norm):
                x = nn.Conv(features, (3, 3), strides=stride, padding=1, use_bias=False, name=conv)(x)
                return nn.BatchNorm(use_running_average=not train, epsilon=1e-5, name=norm)(x)

            x = nn.relu(normed(x, 16, 1, "conv1", "bn1"))
            for stage, features in enumerate((16, 32, 64), 1):
                for number in range(3):
                    at = f"layer{stage}_{number}"
                    more = features - x.shape[-1]
                    stride = 2 if more else 1
                    inner = nn.relu(normed(x, features, stride, f"{at}_conv1", f"{at}_bn1"))
                    inner = normed(inner, features, 1, f"{at}_conv2", f"{at}_bn2")
                    shortcut = x[:, ::stride, ::stride]
                    x = nn.relu(inner + jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (more // 2, more // 2))))
            return nn.Dense(10, name="linear")(x.mean((1, 2)))

    return ResNet()


def to_flax(weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """{"params": ..., "batch_stats": ...} from arrays under torch's names."""
    variables: dict[str, Any] = {"params": {}}
    for key, array in weights.items():
        layer, kind = _layer(key)
        if kind.startswith("running"):
            kept = variables.setdefault("batch_stats", {}).setdefault(layer, {})
            kept[kind.removeprefix("running_")] = array
            continue
        name = "bias" if kind == "bias" else "scale" if array.ndim == 1 else "kernel"
        name = "embedding" if layer in EMBEDDINGS else name
        variables["params"].setdefault(layer, {})[name] = _flax_layout(layer, array)
    return variables


def _layer(key: str) -> tuple[str, str]:
    """Flax's name of the layer and what of it is meant: "layer1.0.bn1.weight" -> ("layer1_0_bn1", "weight")."""
    layer, kind = key.rsplit(".", 1)
    return layer.replace(".", "_"), kind


def _flax_layout(layer: str, array: np.ndarray) -> np.ndarray:
    if layer in EMBEDDINGS:
        return array
    if array.ndim == 4:
        return np.ascontiguousarray(array.transpose(2, 3, 1, 0))
    if layer == "fc1" and array.ndim == 2:  # the rows behind the flatten: channels first in torch, last in Flax
        array = array.reshape(-1, 16, 5, 5).transpose(0, 2, 3, 1).reshape(-1, 400)
    return np.ascontiguousarray(array.T) if array.ndim == 2 else array


def to_torch(tree: Any, keys: list[str]) -> Arrays:
    """A Flax tree like the parameters as a list in torch's order and layout; ``keys`` are torch's names."""
    arrays = []
    for key in keys:
        layer, kind = _layer(key)
        leaves = tree[layer]
        if layer in EMBEDDINGS:
            arrays.append(np.asarray(leaves["embedding"]))
            continue
        array = np.asarray(leaves["bias"] if kind == "bias" else leaves.get("kernel", leaves.get("scale")))
        if array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        elif array.ndim == 2:
            array = array.T
            if layer == "fc1":
                array = array.reshape(-1, 5, 5, 16).transpose(0, 3, 1, 2).reshape(-1, 400)
        arrays.append(np.ascontiguousarray(array))
    return arrays


def trainable(path: pathlib.Path) -> list[str]:
    """Names of torch's parameters in order."""
    return [key for key in load(path)[0] if not key.rsplit(".", 1)[1].startswith(("running", "num_batches"))]


def check(path: pathlib.Path) -> dict[str, Any]:
    """Size, accuracy and loss, and how far the two frameworks' outputs are apart."""
    import torch

    net, x, y = torch_problem(path)
    loss, params, data = jax_problem(path)
    with torch.no_grad():
        scores = net(x)
    found = np.asarray(loss.apply(params, loss.state, data, False)[0])
    apart = float(np.abs(found - scores.numpy()).max() / scores.abs().max())
    assert apart < 1e-5, f"the outputs in torch and in Flax differ by {apart} relative"
    keys = trainable(path)
    assert keys == [name for name, _ in net.named_parameters()]
    back = to_torch(params, keys)
    assert all(np.array_equal(a, p.detach().numpy()) for a, p in zip(back, net.parameters(), strict=True))
    return {
        "parameters": sum(p.numel() for p in net.parameters()),
        "examples": len(y),
        "accuracy": float((scores.argmax(1) == y).float().mean()),
        "loss": float(torch.nn.functional.cross_entropy(scores, y)),
        "outputs_apart": apart,
    }
