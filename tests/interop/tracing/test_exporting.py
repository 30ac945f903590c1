"""Exports keep stop-gradients and writes in place, and refuse untraceable code with module and line."""

from __future__ import annotations

import pathlib
import warnings

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lla_torch
import torch.nn.functional as F
from torch import nn

from tests.interop.conversions import Outer, build, check, line_of, numpy_dict, real, refused

FILE = pathlib.Path(__file__).name

pytestmark = pytest.mark.usefixtures("x64")


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.b(h.detach()) * h


class DetachedInPlace(Detached):
    def forward(self, x):
        h = torch.tanh(self.a(x))
        held = h * 2.0
        held.detach_()
        return self.b(held) * h


class WithoutGrad(Detached):
    def forward(self, x):
        h = torch.tanh(self.a(x))
        with torch.no_grad():
            scale = h.abs().mean(1, keepdim=True) + self.b(h).pow(2).sum(1, keepdim=True)
        return self.b(h) / (1.0 + scale)


class Decorated(Detached):
    @torch.no_grad()
    def gain(self, h):
        return torch.sigmoid(self.b(h))

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return h * self.gain(h) + self.b(h)


class GradInsideNoGrad(Detached):
    def forward(self, x):
        h = torch.tanh(self.a(x))
        with torch.no_grad():
            stopped = self.b(h)
            with torch.enable_grad():
                kept = torch.sin(self.b(h))
        return stopped * h + kept


class TargetNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.online = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
        self.target = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).requires_grad_(False)
        self.predictor = nn.Linear(4, 4)

    def forward(self, x):
        online = self.online(x)
        with torch.no_grad():
            target = self.target(x)
            same = self.online(2 * x)
        return F.mse_loss(self.predictor(online), target, reduction="none") + online * same


STOPPED = [Detached, DetachedInPlace, WithoutGrad, Decorated, GradInsideNoGrad, TargetNetwork]


@pytest.mark.parametrize("kind", STOPPED, ids=lambda kind: kind.__name__)
def test_a_stopped_gradient_stays_stopped(kind):
    check(build(kind), real(7, 3))


def test_a_detached_module_has_no_gradient_at_all():
    class Frozen(Detached):
        def forward(self, x):
            return self.b(torch.tanh(self.a(x)).detach())

    net = lla_torch.convert(build(Frozen), (real(7, 3),))
    grads = jax.grad(lambda p: net.apply({**net.variables, "params": p}, np.ones((2, 3))).sum())(
        net.variables["params"]
    )
    grads = numpy_dict(net, grads)
    assert not grads["a.weight"].any()
    assert grads["b.weight"].any()


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 6)

    def forward(self, x):
        h = self.fc(x)
        h += 0.1
        h.mul_(1.5).relu_()
        h = h * 1.0
        h[:, 0] = 0.0
        h[:, 1:3] = h[:, 3:5] * 2
        h[:, 5] += h[:, 4]
        view = h.view(-1, 2, 3)
        view[:, 1].add_(1.0)
        rows = h.t()
        rows[2] *= 3.0
        h.masked_fill_(h > 4.0, 0.5)
        return h, view.sum(1)


class Slots(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x):
        out = torch.zeros(x.shape[0], 6, dtype=x.dtype)
        out[:, ::2] = self.fc(x)[:, :3]
        out[:, torch.tensor([1, 5])] = x[:, :2]
        out.index_fill_(1, torch.tensor([3]), 0.25)
        out.clamp_(min=-0.5)
        return out.square_().cumsum(1)


@pytest.mark.parametrize("kind", [InPlace, Slots], ids=lambda kind: kind.__name__)
def test_in_place_operations(kind):
    check(build(kind), real(7, 3))


def test_writing_to_an_input_is_refused():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            x += 1.0
            return self.fc(x)

    x = real(7, 3)
    given = x.clone()
    assert "input" in refused(build(Writes), x).lower()
    assert torch.equal(x, given)


class Decides(nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # decides
            return x * 2
        return x


class Loops(nn.Module):
    def forward(self, x):
        for _ in range(int(x.abs().max().item())):  # loops
            x = x * 0.5
        return x


class Differentiates(nn.Module):
    def __init__(self):
        super().__init__()
        self.energy = nn.Linear(4, 1)

    def forward(self, x):
        x = x.detach().requires_grad_()
        self.energy(x).sin().sum().backward()  # differentiates
        return x.grad


class ReadsData(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        h = self.fc(x)
        return h * h.data  # reads


class WritesData(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        h = self.fc(x) * 1.0
        h.data = x  # writes
        return h


class UsesNumpy(nn.Module):
    def forward(self, x):
        return x * torch.from_numpy(np.tanh(x.detach().numpy()))  # numpy


REFUSED = [
    (Decides, "# decides"),
    (Loops, "# loops"),
    (Differentiates, "# differentiates"),
    (ReadsData, "# reads"),
    (WritesData, "# writes"),
    (UsesNumpy, "# numpy"),
]


@pytest.mark.parametrize(("kind", "marker"), REFUSED, ids=lambda x: getattr(x, "__name__", ""))
def test_refused_with_module_and_line(kind, marker):
    text = refused(build(lambda: Outer(kind())), real(7, 3))
    assert "body.gate" in text
    assert f"{FILE}:{line_of(kind, marker)}" in text or f"line {line_of(kind, marker)}" in text


def test_a_refusal_leaves_the_module_as_it_was():
    module = build(lambda: Outer(Decides())).train()
    module.first.eval()
    rng = torch.get_rng_state()
    refused(module, real(7, 3))
    assert [m.training for m in module.modules()] == [True, False, True, True]
    assert torch.equal(rng, torch.get_rng_state())
    assert torch.is_grad_enabled()


def test_batch_norm_without_momentum():
    module = build(lambda: Outer(nn.BatchNorm1d(4, momentum=None)))
    assert "body.gate" in refused(module, real(7, 3), train=True)
    check(module.eval(), real(7, 3))  # its statistics are as good as any


def test_torchscript_modules():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
        scripted = torch.jit.script(nn.Linear(4, 4).double())
        traced = torch.jit.trace(nn.Linear(4, 4).double(), real(2, 4))
    assert "TorchScript" in refused(scripted, real(7, 4))
    text = refused(build(lambda: Outer(traced)), real(7, 3))
    assert "TorchScript" in text
    assert "body.gate" in text


def test_modules_without_values():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, device="meta"))
    with pytest.raises(lla_torch.ConversionError, match=r"its tensor '1.weight' is on the meta device") as error:
        lla_torch.convert(module, torch.ones(2, 2))
    assert "to_empty(device='cpu')" in str(error.value)
    module.to_empty(device="cpu")  # the remedy
    module.load_state_dict(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).state_dict())
    net = lla_torch.convert(module.double(), torch.ones(2, 2, dtype=torch.float64))
    assert net.variables["params"]["1"]["scale"].shape == (2,)
    with pytest.raises(
        lla_torch.ConversionError, match="inputs: tensor number 0 is on the meta device and holds no values"
    ):
        lla_torch.convert(module, torch.ones(2, 2, device="meta"))


@pytest.mark.parametrize("take", [lambda x: int(x.sum().item()), lambda x: 2 if x.sum() > 0 else 3], ids=["item", "if"])
def test_torch_writes_nothing_beside_our_error(take, capfd):
    class Branches(nn.Module):
        def forward(self, x):
            return x * take(x)

    assert "depends on the values of a tensor" in refused(Branches(), torch.ones(3, 4))
    assert capfd.readouterr() == ("", "")


def test_numbers_taken_of_a_tensor_are_refused_with_what_to_do():
    class Sizes(nn.Module):
        def forward(self, x):
            return x[: x.sum(1).long().tolist()[0]]

    assert "as numbers (.item(), .tolist())" in refused(Sizes(), torch.ones(3, 4))


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (lambda: torch.randn(2, 8, 8, 3), "to have 3 channels"),
        (lambda: torch.ones(2, 3, 8, 8, dtype=torch.long), "Float"),
        (lambda: (torch.randn(2, 3, 8, 8), torch.randn(2, 1)), "received an invalid combination"),
    ],
)
def test_inputs_that_the_module_cannot_take(inputs, says, capfd):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    text = refused(module, inputs())
    assert "the call fails in torch as well" in text
    assert says.lower() in text.lower()
    assert capfd.readouterr() == ("", "")


def test_a_failed_call_leaves_statistics_as_they_were():
    class Fails(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x) + torch.ones(5)

    module = Fails(3)
    with pytest.raises(lla_torch.ConversionError, match="in torch as well"):
        lla_torch.convert(module, torch.randn(4, 3), train=True)
    assert module.num_batches_tracked == 0


class Suppresses(nn.Module):
    """A detection model: boxes are selected by their scores, one after the other or all at once."""

    def __init__(self, at_once):
        super().__init__()
        self.fc, self.at_once = nn.Linear(4, 5), at_once

    def forward(self, x):
        boxes = self.fc(x)
        if self.at_once:
            return boxes[torch.where(boxes[:, 4] > 0)[0]]
        order = boxes[boxes[:, 4] > 0].argsort(0)[:, 0]
        return boxes[order] if order.numel() > 0 else boxes


@pytest.mark.parametrize("at_once", [True, False])
def test_boxes_selected_by_scores_are_refused_with_what_to_do(at_once):
    text = refused(Suppresses(at_once), torch.randn(8, 4))
    assert "convert the part of the module before it" in text
    assert "of a detection model the raw boxes and scores" in text


def test_tensors_without_values_or_a_dense_layout_are_refused():
    linear, x = nn.Linear(3, 2).double(), real(4, 3)
    buffered = nn.Linear(3, 2).double()
    buffered.register_buffer("adjacency", torch.eye(3).to_sparse())
    assert "'weight' is on the meta device" in refused(nn.Linear(3, 2, device="meta"), x)
    assert "'adjacency' has the layout torch.sparse_coo; make it dense" in refused(buffered, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls these kinds unfinished
        given = {
            "number 0 is on the meta device": x.to("meta"),
            "layout torch.sparse_coo": x.to_sparse(),
            "layout torch.sparse_csr": x.to_sparse_csr(),
            "quantized": torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
            "nested": torch.nested.nested_tensor([x, x[:2]]),
            "fake": torch._subclasses.FakeTensorMode().from_tensor(x),
        }
    for text, tensor in given.items():
        assert text in refused(linear, tensor)


def test_inputs_that_need_gradients_or_were_made_in_inference_mode():
    linear, x = nn.Linear(3, 2).double(), real(4, 3)
    check(linear, x.clone().requires_grad_(), second=False)
    with torch.inference_mode():
        net = lla_torch.convert(linear, real(4, 3))
    np.testing.assert_allclose(net.apply(net.variables, x.numpy()), linear(x).detach().numpy(), rtol=1e-12)


def test_a_module_without_inputs():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.arange(3.0))

        def forward(self):
            return self.w * 2

    net = lla_torch.convert(Constant(), ())
    np.testing.assert_array_equal(net.apply(net.variables), [0, 2, 4])


class ReadsStrides(nn.Module):
    """Decides by how its input lies in memory."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        order = self.fc(x) if x.is_contiguous() else self.fc(x.contiguous())
        return order + x.reshape(-1).view(x.shape[0], 4) + x.stride(1)


@pytest.mark.parametrize("take", [lambda x: x[:, :4], lambda x: x[::2, 1:5], lambda x: x[:4, :6].T[:, :4]])
def test_inputs_that_are_slices_of_others(take):
    module, x = ReadsStrides().double(), take(real(8, 6))
    net = lla_torch.convert(module, x)
    expected = module(x.contiguous()).detach().numpy()
    np.testing.assert_allclose(net.apply(net.variables, x.numpy()), expected, rtol=1e-12)
    np.testing.assert_allclose(net.apply(net.variables, x[:3].numpy()), expected[:3], rtol=1e-12)
