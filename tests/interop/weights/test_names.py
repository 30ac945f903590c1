"""Names and leaves: tied parameters are one leaf, and every tensor of a module keeps its torch name."""

from __future__ import annotations

import jax
import pytest

torch = pytest.importorskip("torch")

import lla_torch
import torch.nn.functional as F
from torch import nn

import lla_jax as lla
from tests.interop.conversions import TiedEmbedding, build, check, real

pytestmark = pytest.mark.usefixtures("x64")


class TwoNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 3)
        self.again = self.encoder
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.again(torch.sin(self.encoder(x)))))


class TiedList(nn.Module):
    def __init__(self):
        super().__init__()
        shared = nn.Parameter(torch.randn(3, 3))
        self.matrices = nn.ParameterList([shared, nn.Parameter(torch.randn(3, 3)), shared])

    def forward(self, x):
        for matrix in self.matrices:
            x = torch.tanh(x @ matrix)
        return x


class TiedTransposed(nn.Module):
    """Encoder and decoder of an autoencoder with one matrix."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(3, 5)
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, x):
        return F.linear(torch.tanh(self.encode(x)), self.encode.weight.t(), self.bias)


def test_tied_embedding_is_one_leaf():
    module = build(TiedEmbedding)
    net = check(module, torch.randint(0, 6, (7, 5), generator=torch.Generator().manual_seed(0)))
    assert len(jax.tree.leaves(net.variables["params"])) == 1
    back = lla_torch.to_state_dict(net)
    assert list(back) == ["embedding.weight", "out.weight"]
    assert torch.equal(back["out.weight"], module.out.weight)


@pytest.mark.parametrize(("kind", "leaves"), [(TwoNames, 4), (TiedList, 2), (TiedTransposed, 3)])
def test_tied_parameters_are_one_leaf(kind, leaves):
    module = build(kind)
    net = check(module, real(7, 3))
    assert len(jax.tree.leaves(net.variables["params"])) == leaves
    assert list(lla_torch.to_state_dict(net)) == list(module.state_dict())


def test_non_persistent_buffers_are_used_and_not_in_the_state_dict():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 4)
            self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0, 4.0]), persistent=False)
            self.register_buffer("shift", torch.tensor([0.5]))

        def forward(self, x):
            return self.fc(x) * self.scale + self.shift

    net = check(build(Scaled), real(7, 3))
    assert list(lla_torch.to_state_dict(net)) == ["shift", "fc.weight", "fc.bias"]


class KernelBesideWeight(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)
        self.kernel = nn.Linear(3, 2)

    def forward(self, x):
        return self.kernel(torch.tanh(super().forward(x)))


class ScaleBesideWeight(nn.BatchNorm1d):
    def __init__(self):
        super().__init__(3)
        self.scale, self.mean = nn.Linear(3, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.scale(self.mean(super().forward(x)))


class EmbeddingBesideWeight(nn.GRUCell):
    def __init__(self):
        super().__init__(3, 3)
        self.kernel_ih, self.weight = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.weight(self.kernel_ih(super().forward(x, x)))


class Slashes(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.ModuleDict({"b/c": nn.Linear(3, 3), "b": nn.ModuleDict({"c": nn.Linear(3, 3)})})
        self.p = nn.ParameterDict({"x/kernel": torch.randn(3)})

    def forward(self, x):
        return self.a["b/c"](x) * self.p["x/kernel"] + self.a["b"]["c"](x)


@pytest.mark.parametrize("kind", [KernelBesideWeight, ScaleBesideWeight, EmbeddingBesideWeight, Slashes])
def test_names_that_collide_have_paths_of_their_own(kind, tmp_path):
    module = build(kind)
    net = check(module, real(7, 3), second=False)
    assert len(set(net.names.values())) == len(net.names)
    torch.save(module.state_dict(), tmp_path / "net.pth")
    loaded = lla_torch.to_state_dict(lla_torch.load_checkpoint(tmp_path / "net.pth", net))
    assert loaded.keys() == module.state_dict().keys()
    assert all(torch.equal(loaded[name], x) for name, x in module.state_dict().items())
    params = net.variables["params"]
    lla.directions.normalize(lla.directions.random(jax.random.key(0), params), params, filter_axis=net.filter_axis)


def test_filter_axes_of_another_network_are_refused():
    net, other = (lla_torch.convert(build(nn.Linear, 3, 2, *bias), real(2, 3)) for bias in ((), (False,)))
    params = net.variables["params"]
    axes = lla.directions.random(jax.random.key(0), params)
    with pytest.raises(ValueError, match="filter_axis: that of a network without the parameter 'bias'"):
        lla.directions.normalize(axes, params, filter_axis=other.loss(lambda o, y: o.sum(1)))


def test_what_torch_trains_is_a_selection():
    module = build(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    module[0].requires_grad_(False)
    x, y = real(5, 3), torch.tensor([0, 1, 1, 0, 1])
    net, data = lla_torch.convert(module, x), (x.numpy(), y.numpy())
    assert net.trainable == lla_torch.trainable(module) == ("params/2/kernel", "params/2/bias")
    assert "16 of them frozen" in repr(net)
    loss, params = net.loss(nn.CrossEntropyLoss()), net.variables["params"]
    for matrix in (lla.hessian, lla.ggn, lla.fisher):
        assert matrix(loss, params, data, select=net.trainable, **KEY.get(matrix, {})).shape == (10, 10)
    assert lla.hessian(loss, params, data, select=net.names["2.weight"]).shape == (8, 8)
    axes = lla.directions.random(jax.random.key(0), params, select=net.trainable)
    assert not axes.tree["0"]["kernel"].any()
    assert axes.tree["2"]["kernel"].any()
    (row,) = lla.per_layer(loss, params, data, jax.random.key(0), select=net.trainable)
    assert (row.module, row.size) == ("2", 10)

    step = lambda module, batch: F.cross_entropy(module(batch[0]), batch[1], reduction="none")  # noqa: E731
    loss, params = lla_torch.convert_loss(step, module, (x, y), net=net)
    assert lla.hessian(loss, params, data, select=lla_torch.trainable(module)).shape == (10, 10)


KEY = {lla.fisher: {"key": jax.random.key(0)}}
