"""Derivatives inside of a forward pass or a step are torch's, and so are the gradients and products through them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lla_torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, grad_and_value, hessian, jacfwd, jacrev, jvp, vjp, vmap

import lla_jax as lla
from tests.interop.conversions import build, check, real, refused

pytestmark = pytest.mark.usefixtures("x64")


class Stepped(nn.Module):
    """A module whose forward pass is a step, ``step(net, *batch)``."""

    def __init__(self, net, step):
        super().__init__()
        self.net, self.step = net, step

    def forward(self, *batch):
        return self.step(self.net, *batch)


def mlp(inputs=2, outputs=1):
    return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, outputs))


def slope(y: Any, x: Any) -> Any:
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


# --- torch.autograd.grad


def heat_equation(net, points):
    points = points.requires_grad_()
    first = slope(net(points), points)
    second = slope(first[:, 0], points)
    return (first[:, 1] - 0.1 * second[:, 0]).square()


def burgers_by_columns(net, points):
    x, t = points[:, :1], points[:, 1:]
    x.requires_grad = True
    t.requires_grad_(True)
    u = net(torch.cat([x, t], 1))
    u_x, u_t = torch.autograd.grad(u, [x, t], torch.ones_like(u), create_graph=True)
    (u_xx,) = torch.autograd.grad(u_x, x, grad_outputs=torch.ones_like(u_x), retain_graph=True, create_graph=True)
    return (u_t + u * u_x - 0.01 * u_xx).square().mean()


def flow_with_boundary(net, points, wall):
    points = points.clone().detach().requires_grad_(True)
    u, v, pressure = net(points).unbind(1)
    du, dv, dp = slope(u, points), slope(v, points), slope(pressure, points)
    inside = (du[:, 0] + dv[:, 1]).square() + (u * du[:, 0] + v * du[:, 1] + dp[:, 0]).square()
    return inside.mean() + 3.0 * net(wall)[:, :2].square().mean()


def third_derivative(net, x):
    x.requires_grad_()
    u = net(x)
    for _ in range(3):
        u = slope(u, x)[:, :1]
    return u


def wasserstein_penalty(net, true, made, share):
    between = (share * true + (1 - share) * made).requires_grad_(True)
    scores = net(between)
    (gradient,) = torch.autograd.grad(
        outputs=scores,
        inputs=between,
        grad_outputs=torch.ones(scores.size(), dtype=scores.dtype),
        create_graph=True,
        retain_graph=True,
        only_inputs=True,
    )
    penalty = (gradient.view(gradient.size(0), -1).norm(2, dim=1) - 1).square().mean()
    return net(made).mean() - net(true).mean() + 10 * penalty


def r1_penalty_of_images(net, images):
    images = torch.autograd.Variable(images, requires_grad=True)
    return slope(net(images), images).square().flatten(1).sum(1)


def hamiltonian(net, x):
    with torch.enable_grad():
        x = x.requires_grad_(True)
        gradient = slope(net(x), x)
    q, p = gradient.chunk(2, -1)
    return torch.cat([p, -q], -1)


def forces(net, positions):
    positions = positions.requires_grad_()
    distances = (positions[:, :, None] - positions[:, None]).square().sum(-1, keepdim=True)
    energy = net(torch.exp(-distances)).sum((1, 2, 3))
    (gradient,) = torch.autograd.grad([energy], [positions], [torch.ones_like(energy)], create_graph=True)
    return {"energy": energy, "forces": -gradient}


def adapted(net, x):
    weights = dict(net.named_parameters())
    gradients = torch.autograd.grad(net(x).square().mean(), list(weights.values()), create_graph=True)
    stepped = {name: w - 0.1 * g for (name, w), g in zip(weights.items(), gradients)}
    return functional_call(net, stepped, (x,))


def of_inner_values(net, x):
    x.requires_grad_()
    inner = net[:2](x)
    outputs = net[2:](inner) + inner.sum(1, keepdim=True) * x[:, :1]
    by_x, by_inner = torch.autograd.grad(outputs.sum(), [x, inner], create_graph=True)
    return by_x.square().sum(1) + by_inner.sum(1)


def without_graph(net, x):
    x.requires_grad_()
    u = net(x)
    return u * torch.autograd.grad(u.sum(), x, retain_graph=True)[0]


def unused_inputs(net, x):
    other = torch.ones_like(x).requires_grad_()
    x.requires_grad_()
    u = net(x)
    by_x, nothing = torch.autograd.grad(u.sum(), [x, other], create_graph=True, allow_unused=True)
    zeros = torch.autograd.grad(u.sum(), [other], create_graph=True, materialize_grads=True)[0]
    (twice,) = torch.autograd.grad(slope(net[0](x), x).sum(), x, create_graph=True, allow_unused=True)
    return by_x + zeros + (1 if nothing is None else 2) + (4 if twice is None else 8)


def stopped(net, x):
    x.requires_grad_()
    inner = net[:2](x)
    with torch.no_grad():
        weight = net(x)
        with torch.enable_grad():
            free = net[2:](weight * inner)
    return slope(net[2:](inner.detach() * inner) * weight + free, x)


def written_in_place(net, x):
    x.requires_grad_()
    doubled = x * 2
    doubled.add_(1)
    u = net(doubled)
    u.mul_(u.detach().clone())
    u += x[:, :1]
    gradient = slope(u * u, x)
    return gradient * u.add_(5)


def same_tensor_by_other_names(net, x):
    x.requires_grad_()
    same, dropped = x.double().contiguous().to(torch.float64), F.dropout(x, 0.5, False)
    return slope(net(x) + net(same) + net(dropped), x) + slope(net(dropped) + dropped.sum(), dropped)


def batched_cotangents(net, x):
    x.requires_grad_()
    inner = net[:3](x)
    rows = torch.eye(4, dtype=x.dtype)[:, None].expand(4, x.shape[0], 4)
    (jacobian,) = torch.autograd.grad(inner, x, rows, is_grads_batched=True, create_graph=True)
    return jacobian.square().sum((0, 2))


def functional_jacobian(net, x):
    return torch.autograd.functional.jacobian(lambda z: net(z).sum(0), x, create_graph=True).square()


QUICK = [
    (wasserstein_penalty, mlp, [(7, 2), (7, 2), (7, 1)]),
    (hamiltonian, mlp, [(7, 2)]),
    (stopped, mlp, [(7, 2)]),
    (without_graph, mlp, [(7, 2)]),
    (unused_inputs, mlp, [(7, 2)]),
]
THOROUGH = [
    (flow_with_boundary, lambda: mlp(2, 3), [(7, 2), (7, 2)]),
    (written_in_place, mlp, [(7, 2)]),
    (burgers_by_columns, mlp, [(7, 2)]),
    (third_derivative, mlp, [(7, 2)]),
    (forces, lambda: mlp(1, 1), [(7, 3, 2)]),
    (adapted, mlp, [(7, 2)]),
    (of_inner_values, mlp, [(7, 2)]),
    (same_tensor_by_other_names, mlp, [(7, 2)]),
    (batched_cotangents, mlp, [(7, 2)]),
    (functional_jacobian, mlp, [(7, 2)]),
]


def check_step(step: Any, net: Any, shapes: Any, **options: Any) -> None:
    inputs = [real(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    check(build(lambda: Stepped(net(), step)), *inputs, **options)


@pytest.mark.parametrize(("step", "net", "shapes"), QUICK, ids=lambda x: getattr(x, "__name__", ""))
def test_gradients_by_autograd(step, net, shapes):
    check_step(step, net, shapes)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "net", "shapes"), THOROUGH, ids=lambda x: getattr(x, "__name__", ""))
def test_more_gradients_by_autograd(step, net, shapes):
    check_step(step, net, shapes)


def discriminator():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 1)
    )


def normed():
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))


@pytest.mark.slow
def test_a_gradient_penalty_of_a_convolutional_network():
    check_step(r1_penalty_of_images, discriminator, [(7, 2, 6, 6)], double=False)


@pytest.mark.slow
def test_a_gradient_penalty_with_batch_statistics():
    check_step(r1_penalty_of_images, normed, [(7, 2)], train=True, double=False)


# --- torch.func


def per_point(net):
    return lambda point: net(point).sum()


def laplacian(net, x):
    return vmap(lambda point: hessian(per_point(net))(point).diagonal().sum())(x)


def by_parameters(net, x):
    one = lambda weights, point: functional_call(net, weights, (point,)).sum()  # noqa: E731
    gradients = vmap(grad(one), in_dims=(None, 0))(dict(net.named_parameters()), x)
    return sum(g.flatten(1).square().sum(1) for g in gradients.values())


def by_one_argument(net, x):
    u = lambda a, b: net(torch.stack([a, b]))[0]  # noqa: E731
    return vmap(grad(u, 1))(*x.unbind(1)) - vmap(grad(grad(u)))(*x.unbind(1))


def with_value(net, x):
    gradient, (value, double) = vmap(grad_and_value(lambda z: (net(z).sum(), 2 * z), has_aux=True))(x)
    return gradient * value[:, None] + double


def products(net, x):
    forward = jvp(net, (x,), (torch.ones_like(x),))[1]
    return forward + vjp(net, x)[1](forward)[0]


def jacobians(net, x):
    return vmap(jacrev(net))(x) * vmap(jacfwd(net))(x)


def both_ways(net, x):
    x.requires_grad_()
    return slope(vmap(grad(per_point(net)))(x)[:, 0], x)


def nested_maps(net, x):
    energy = lambda rows: vmap(per_point(net))(rows).square().sum()  # noqa: E731
    return vmap(grad(energy))(x) + vmap(vmap(grad(per_point(net))))(x)


def one_in_another(net, x):
    inner = lambda z: grad(lambda w: (w * z).sum() + net(w).sum())(z).sum()  # noqa: E731
    return vmap(grad(lambda z: z[0] * inner(z)))(x)


def held_inside(net, x):
    return vmap(grad(lambda z: (net(z) * net(z).detach()).sum()))(x)


FUNCTIONS = [(laplacian, [(7, 2)]), (by_parameters, [(7, 2)])]
MORE_FUNCTIONS = [
    (products, [(7, 2)]),
    (one_in_another, [(7, 2)]),
    (by_one_argument, [(7, 2)]),
    (with_value, [(7, 2)]),
    (jacobians, [(7, 2)]),
    (both_ways, [(7, 2)]),
    (nested_maps, [(7, 3, 2)]),
    (held_inside, [(7, 2)]),
]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by torch's own forward mode
@pytest.mark.parametrize(("step", "shapes"), FUNCTIONS, ids=lambda x: getattr(x, "__name__", ""))
def test_transformed_functions(step, shapes):
    check_step(step, mlp, shapes)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize(("step", "shapes"), MORE_FUNCTIONS, ids=lambda x: getattr(x, "__name__", ""))
def test_more_transformed_functions(step, shapes):
    check_step(step, mlp, shapes)


# --- in use


def test_the_loss_of_a_physics_informed_network():
    net, points = build(mlp), real(12, 2)
    loss, params = lla_torch.convert_loss(lambda module, batch: heat_equation(module, batch), net, points)
    assert loss.per_example
    H = lla.hessian(loss, params, points, batch_size=5)
    v = H.random(jax.random.key(0))
    tree = lla_torch.convert(net, points)
    names, weights = zip(*net.named_parameters(), strict=True)
    value = heat_equation(net, points.clone()).mean()
    gradient = torch.autograd.grad(value, weights, create_graph=True, allow_unused=True)
    along = lla_torch.to_state_dict(tree, v)
    dot = sum((g * along[n]).sum() for n, g in zip(names, gradient) if g is not None)
    expected = torch.autograd.grad(dot, weights, allow_unused=True)
    found = lla_torch.to_state_dict(tree, H.product(v))
    for name, e in zip(names, expected):
        np.testing.assert_allclose(found[name].numpy(), 0 if e is None else e.numpy(), rtol=1e-9, atol=1e-12)


def test_noise_between_outputs_and_inputs_is_drawn_once():
    class Penalized(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 9), nn.Tanh(), nn.Dropout(0.5), nn.Linear(9, 1))

        def forward(self, true, made):
            return wasserstein_penalty(self.net, true, made, torch.rand(true.shape[0], 1, dtype=true.dtype))

    module, batch = build(Penalized).train(), (real(6, 2), real(6, 2, seed=1))
    net = lla_torch.convert(module, batch, train=True)
    outputs, draws = lla_torch.record(module, *batch)
    found, _ = net.apply(net.variables, *(x.numpy() for x in batch), train=True, draws=draws)
    np.testing.assert_allclose(found, outputs, rtol=1e-12)


def test_two_networks_share_one_program():
    programs = [lla_torch.convert(build(lambda: Stepped(mlp(), heat_equation), seed=i), real(7, 2)) for i in (0, 1)]
    assert programs[0].function == programs[1].function


@pytest.mark.slow
def test_a_certificate_of_a_network_that_differentiates():
    module = build(lambda: Stepped(mlp(), hamiltonian)).float()
    x, y = real(6, 2).float(), real(6, 2, seed=1).float()
    assert lla_torch.certify(module, lla_torch.convert(module, x), (x, y), nn.MSELoss()).ok


def no_requirement(net, x):
    return slope(net(x), x)


def another_tensor(net, x):
    x.requires_grad_()
    return slope(net(x[:, :2]), x[:, 0])


def mapped_autograd(net, x):
    return vmap(lambda z: slope(net(z), z))(x)


def several_outputs(net, x):
    return grad(net)(x)


def hooked(net, x):
    x.requires_grad_()
    u = net(x)
    u.register_hook(lambda g: 2 * g)
    return slope(u, x)


def accumulated(net, x):
    x.requires_grad_()
    torch.autograd.backward(net(x).sum())
    return x.grad


REFUSED = [
    (no_requirement, "requires_grad_"),
    (another_tensor, "do not depend on input number 0"),
    (mapped_autograd, "torch.func.grad"),
    (several_outputs, "jacrev"),
    (hooked, "hook"),
    (accumulated, "backward is called"),
]


@pytest.mark.parametrize(("step", "words"), REFUSED, ids=lambda x: getattr(x, "__name__", ""))
def test_what_has_no_derivative_is_refused(step, words):
    text = refused(build(lambda: Stepped(mlp(), step)), real(7, 2))
    assert words in text
    assert __file__.rsplit("/", 1)[-1] in text
