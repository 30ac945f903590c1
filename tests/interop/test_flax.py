"""Converted trees are true Flax trees: networks written natively in Flax take them and give torch's numbers."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla

torch = pytest.importorskip("torch")
lla_torch = pytest.importorskip("lla_torch")


class LeNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3), padding=1, name="conv1")(x)), (2, 2), (2, 2))
        x = nn.max_pool(nn.relu(nn.Conv(6, (3, 3), padding=0, name="conv2")(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(10, name="fc1")(x.reshape(x.shape[0], -1)))
        return nn.Dense(5, name="fc2")(x)


class TorchLeNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(4, 6, 3)
        self.fc1, self.fc2 = torch.nn.Linear(6 * 2 * 3, 10), torch.nn.Linear(10, 5)

    def forward(self, x):
        x = torch.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = torch.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.fc2(torch.relu(self.fc1(torch.flatten(x, 1))))


class Block(nn.Module):
    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x, train=False):
        def normed(x, stride, number):
            x = nn.Conv(self.features, (3, 3), strides=stride, padding=1, use_bias=False, name=f"conv{number}")(x)
            return nn.BatchNorm(use_running_average=not train, epsilon=1e-5, name=f"bn{number}")(x)

        inner = normed(nn.relu(normed(x, self.stride, 1)), 1, 2)
        more = (self.features - x.shape[-1]) // 2
        return nn.relu(inner + jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), (more, more))))


class Stage(nn.Module):
    features: int
    stride: int

    @nn.compact
    def __call__(self, x, train=False):
        for number in range(3):
            x = Block(self.features, self.stride if number == 0 else 1, name=str(number))(x, train)
        return x


class ResNet20(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(16, (3, 3), padding=1, use_bias=False, name="conv1")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, epsilon=1e-5, name="bn1")(x))
        for number, features in enumerate((16, 32, 64), 1):
            x = Stage(features, 1 if number == 1 else 2, name=f"layer{number}")(x, train)
        return nn.Dense(10, name="linear")(x.mean((1, 2)))


class TorchBlock(torch.nn.Module):
    def __init__(self, inside, outside):
        super().__init__()
        self.stride, self.more = (2, outside - inside) if outside > inside else (1, 0)
        self.conv1 = torch.nn.Conv2d(inside, outside, 3, self.stride, padding=1, bias=False)
        self.conv2 = torch.nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn1, self.bn2 = torch.nn.BatchNorm2d(outside), torch.nn.BatchNorm2d(outside)

    def forward(self, x):
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        half = self.more // 2
        shortcut = torch.nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return torch.relu(inner + shortcut)


class TorchResNet20(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(3, 16, 3, padding=1, bias=False), torch.nn.BatchNorm2d(16)
        self.layer1 = torch.nn.Sequential(TorchBlock(16, 16), TorchBlock(16, 16), TorchBlock(16, 16))
        self.layer2 = torch.nn.Sequential(TorchBlock(16, 32), TorchBlock(32, 32), TorchBlock(32, 32))
        self.layer3 = torch.nn.Sequential(TorchBlock(32, 64), TorchBlock(64, 64), TorchBlock(64, 64))
        self.linear = torch.nn.Linear(64, 10)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def trained(module):
    """The module with statistics that are not those of the beginning."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for m in module.modules():
            if isinstance(m, torch.nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.1)
                m.running_var.uniform_(0.5, 2)
                torch.nn.init.uniform_(m.weight, 0.5, 1.5)
                torch.nn.init.normal_(m.bias, 0, 0.1)
    return module.eval()


@pytest.mark.parametrize(
    ("module", "native", "shape"),
    [(TorchLeNet, LeNet, (1, 14, 18)), (TorchResNet20, ResNet20, (3, 8, 8))],
    ids=["LeNet", "ResNet-20"],
)
def test_a_native_network_takes_the_converted_tree(module, native, shape):
    net_torch = trained(module())
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    net = lla_torch.convert(net_torch, x)
    images = jnp.asarray(x.numpy().transpose(0, 2, 3, 1))
    variables = {name: net.variables[name] for name in ("params", "batch_stats") if name in net.variables}
    wanted = jax.tree.map(jnp.shape, jax.eval_shape(native().init, jax.random.key(0), images))
    assert jax.tree.map(jnp.shape, variables) == wanted  # names and shapes
    found = jax.jit(native().apply)(variables, images)
    expected = net_torch(x).detach().numpy()
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() < 1e-5 * scale
    assert np.abs(jax.jit(net.apply)(net.variables, x.numpy()) - expected).max() < 1e-5 * scale


def test_filter_normalized_directions_are_the_same_in_both_layouts():
    net_torch = trained(TorchLeNet())
    net = lla_torch.convert(net_torch, torch.zeros(2, 1, 14, 18))
    loss = net.loss(torch.nn.CrossEntropyLoss())
    params = net.variables["params"]
    raw = lla.directions.random(jax.random.key(0), params)
    scaled = lla.directions.normalize(raw, params, by="filter", filter_axis=loss)
    single = lambda axes: lla_torch.to_state_dict(net, jax.tree.map(lambda leaf: leaf[0], axes.tree))  # noqa: E731
    d_raw, d_scaled = single(raw), single(scaled)
    for name, w in net_torch.named_parameters():
        d = d_raw[name]
        if w.ndim == 1:
            expected = d * w.norm() / d.norm()
        else:  # as in torch: a filter is an entry of axis 0
            flat = lambda t: t.reshape(len(t), -1).norm(dim=1).reshape(-1, *[1] * (t.ndim - 1))  # noqa: E731
            expected = d * flat(w) / flat(d)
        np.testing.assert_allclose(d_scaled[name].numpy(), expected.detach().numpy(), rtol=2e-6, atol=1e-7)
    # and given no rule, the tree is recognised as Flax's
    assumed = lla.directions.normalize(raw, params, by="filter")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), assumed.tree, scaled.tree)
