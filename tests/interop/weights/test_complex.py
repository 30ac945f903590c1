"""Complex weights are real leaves of real and imaginary parts, with torch's values, gradients and products."""

from __future__ import annotations

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lla_torch
from torch import nn

import lla_jax as lla


def spectral(kind, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind().eval()


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class FourierLayer(nn.Module):
    def __init__(self, inputs=2, outputs=3, modes=2):
        super().__init__()
        self.modes, shape = modes, (inputs, outputs, modes, modes)
        self.low = nn.Parameter(torch.rand(*shape, dtype=torch.cfloat) / 4)
        self.high = nn.Parameter(torch.rand(*shape, dtype=torch.cfloat) / 4)

    def forward(self, x):
        m, spectrum = self.modes, torch.fft.rfft2(x)
        mixed = torch.zeros(x.shape[0], 3, x.shape[2], x.shape[3] // 2 + 1, dtype=torch.cfloat)
        mixed[:, :, :m, :m] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, :m, :m], self.low)
        mixed[:, :, -m:, :m] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, -m:, :m], self.high)
        return torch.fft.irfft2(mixed, s=x.shape[-2:])


class FourierOperator(nn.Module):
    def __init__(self):
        super().__init__()
        self.lift, self.fourier, self.local = nn.Conv2d(1, 2, 1), FourierLayer(), nn.Conv2d(2, 3, 1)
        self.project = nn.Linear(3, 1)

    def forward(self, x):
        x = self.lift(x)
        x = nn.functional.gelu(self.fourier(x) + self.local(x))
        return self.project(x.permute(0, 2, 3, 1))


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.spectrum = nn.Parameter(torch.randn(3, dtype=torch.cfloat))
        self.scale = nn.Parameter(torch.randn(3))

    def forward(self, x):
        return (x * self.spectrum).abs() * self.scale


class ComplexLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 2, 3, dtype=torch.cfloat), nn.Linear(8, 2, dtype=torch.cfloat)
        self.turn = nn.Parameter(torch.tensor(1 + 2j))
        self.register_buffer("phase", torch.polar(torch.ones(2), torch.rand(2)))

    def forward(self, x):
        return torch.view_as_real(self.linear(self.conv(x.to(torch.cfloat)).flatten(1)) * self.phase * self.turn)


class StateSpace(nn.Module):
    def __init__(self):
        super().__init__()
        self.rates = nn.Parameter(torch.complex(-torch.rand(4), torch.randn(4)))
        self.weights = nn.Parameter(torch.randn(4, dtype=torch.cfloat))

    def forward(self, x):
        n = x.shape[-1]
        kernel = (self.weights[:, None] * torch.exp(self.rates[:, None] * torch.arange(n))).sum(0).real
        product = torch.fft.rfft(x, n=2 * n) * torch.fft.rfft(kernel, n=2 * n)
        return torch.fft.irfft(product, n=2 * n)[..., :n]


MODULES = [
    (FourierOperator, (5, 1, 6, 6)),
    (Mixed, (5, 3)),
    pytest.param(ComplexLayers, (5, 1, 4, 4), marks=pytest.mark.slow),
    pytest.param(StateSpace, (5, 6), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "shape"), MODULES, ids=lambda x: getattr(x, "__name__", ""))
def test_outputs_gradients_and_products_are_those_of_torch(kind, shape):
    module, x = spectral(kind), random(*shape)
    net = lla_torch.convert(module, x)
    assert not any(np.iscomplexobj(leaf) for leaf in jax.tree.leaves(net.variables["params"]))
    certificate = lla_torch.certify(module, net, x)
    assert certificate.ok, str(certificate)
    back = lla_torch.to_state_dict(net)
    for name, tensor in module.state_dict().items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_layouts_and_filters():
    net = lla_torch.convert(spectral(ComplexLayers), random(2, 1, 4, 4))
    params = net.variables["params"]
    assert params["conv"]["kernel"].shape == (3, 3, 1, 2, 2)
    assert net.names["linear.weight"] == "params/linear/kernel"
    assert params["linear"]["kernel"].shape == (8, 2, 2)
    assert net.filter_axis("linear/kernel", params["linear"]["kernel"]) == 1
    assert net.filter_axis("conv/kernel", params["conv"]["kernel"]) == 3
    assert np.iscomplexobj(net.variables["buffers"]["phase"])


def test_a_gradient_goes_back_to_torch_as_complex_numbers():
    module, x = spectral(Mixed), random(4, 3)
    net = lla_torch.convert(module, x)
    value = lambda params: net.apply({**net.variables, "params": params}, x.numpy()).sum()  # noqa: E731
    found = lla_torch.to_state_dict(net, jax.grad(value)(net.variables["params"]))
    module(x).sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_a_landscape_and_a_curvature_over_complex_weights():
    module, x, y = spectral(Mixed), random(6, 3), random(6, 3, seed=1)
    net = lla_torch.convert(module, x)
    loss, params = net.loss(nn.MSELoss()), net.variables["params"]
    axes = lla.directions.normalize(lla.directions.random(jax.random.key(0), params), params, filter_axis=loss)
    plane = lla.evaluate(loss, params, (x.numpy(), y.numpy()), axes, lla.grid(points=3))
    np.testing.assert_allclose(plane.values["loss"][1, 1], nn.functional.mse_loss(module(x), y).item(), rtol=1e-5)
    assert lla.hessian(loss, params, (x.numpy(), y.numpy())).shape == (9, 9)


def test_checkpoints_and_moments(tmp_path):
    module, other = spectral(Mixed), spectral(Mixed, seed=1)
    net = lla_torch.convert(module, random(4, 3))
    torch.save(other.state_dict(), tmp_path / "other.pth")
    loaded = lla_torch.to_state_dict(lla_torch.load_checkpoint(tmp_path / "other.pth", net))
    assert torch.equal(loaded["spectrum"], other.spectrum)
    half = lla_torch.load_checkpoint(tmp_path / "other.pth", net, dtype="bfloat16")
    assert half.variables["params"]["spectrum"].dtype == "bfloat16"
    torch.save({**other.state_dict(), "spectrum": other.spectrum.detach().real}, tmp_path / "real.pth")
    with pytest.raises(ValueError, match="spectrum is float32, but the network's is complex64"):
        lla_torch.load_checkpoint(tmp_path / "real.pth", net)

    optimizer = torch.optim.Adam(module.parameters())
    module(random(4, 3)).sum().backward()
    optimizer.step()
    axes = lla_torch.adam_moments(optimizer, net)
    for i, part in enumerate(("exp_avg", "exp_avg_sq")):
        moment = torch.view_as_real(optimizer.state[module.spectrum][part])
        np.testing.assert_array_equal(np.asarray(axes.tree["spectrum"])[i], moment)


@pytest.mark.slow
def test_half_precision_rounds_the_parts():
    module, x = spectral(FourierOperator), random(5, 1, 6, 6)
    net = lla_torch.convert(module, x, dtype="bfloat16")
    outputs = np.asarray(net.apply(net.variables, x.numpy()), np.float32)
    np.testing.assert_allclose(outputs, module(x).detach(), atol=0.03)
