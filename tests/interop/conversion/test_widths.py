"""Values that need 64 bits have them where jax has 32: large integers, and float64 between float32 layers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lla_torch
from torch import nn

import lla_jax as lla

IDS = torch.tensor([[1, 5, 999], [31234, 2147483, 2**31 - 1], [7, 8, 2**30], [0, 3, 17]])
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))


class Hashed(nn.Module):
    """An embedding and a linear layer around a function of the module and its input."""

    def __init__(self, function, buffer=None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.table, self.linear = nn.Embedding(1000, 3), nn.Linear(3, 4)
        self.function = function
        self.register_buffer("buffer", buffer)

    def forward(self, x):
        return self.function(self, x)


def look_up(indices):
    """The module whose embedding is asked for the rows ``indices(ids)``."""
    return Hashed(lambda module, ids: module.linear(module.table(indices(ids))))


def converted(module, example=IDS):
    with jax.enable_x64(False):
        return lla_torch.convert(module, example)


def outputs_of(net, x, compiled=True):
    """The outputs in jax's default mode."""
    with jax.enable_x64(False):
        apply = jax.jit(net.apply) if compiled else net.apply
        return np.asarray(apply(net.variables, x.numpy()))


def wide_steps(net):
    return [i.operator.name.split(".")[1] for i in net.function.eval.instructions if i.wide]


ARITHMETIC = {
    "product and remainder": lambda ids: (ids * 1000003 + 12345) % 1000,
    "shifts": lambda ids: ((ids ^ (ids >> 16)) * 0x45D9F3B ^ (ids << 13)) % 1000,
    "a factor beyond 32 bits": lambda ids: (ids * 2654435761) % 1000,
    "a factor beyond 63 bits": lambda ids: ((ids * 0x9E3779B97F4A7C15) >> 54) % 1000 + (ids + (2**64 - 1)) % 7 * 0,
    "a product of 64 bits": lambda ids: ((ids * 6364136223846793005 + 1442695040888963407) >> 33) % 1000,
    "power": lambda ids: ids**3 % 1000,
    "sums": lambda ids: torch.stack([ids.sum(1) % 1000, ids.cumsum(1)[:, -1] % 1000, ids.int().sum(1) % 1000], 1),
    "products": lambda ids: (ids + 1).prod(1).remainder(1000),
    "quotients": lambda ids: (ids * 1000003) // 2**22 % 1000 + torch.div(ids * 7, 2**24, rounding_mode="trunc") % 10,
    "constants beyond 32 bits": lambda ids: (ids % 10 * torch.tensor([2**40 + 1, 3, 2654435761])) % 1000,
    "moved and selected": lambda ids: torch.where(ids > 9, ids * 1000003, ids).flip(0).gather(1, ids % 3) % 1000,
    "order": lambda ids: (ids * 1000003).sort(1)[0] % 1000 + (ids * 1000003).max(1, keepdim=True)[0] % 7 * 0,
    "steps of a range": lambda ids: (torch.arange(3) * 2000000011 + ids % 10) % 1000,
    "matrix product": lambda ids: (ids @ torch.tensor([[1000003], [17], [31]])) % 1000,
    "negative": lambda ids: torch.fmod(-ids * 1000003, 1000).abs(),
    "comparison": lambda ids: ((ids + ids) > 2**31).long() + (ids < 2**40).long(),
}


def test_integers_beyond_63_bits_are_large_floats_beside_floats():
    net = converted(module := Hashed(lambda module, x: module.linear(x * (2**64 - 1) / 2**60)), X)
    np.testing.assert_allclose(outputs_of(net, X), module(X).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ARITHMETIC)
def test_64_bits_of_integer_arithmetic(name):
    module = look_up(ARITHMETIC[name])
    net = converted(module)
    assert wide_steps(net)
    np.testing.assert_allclose(outputs_of(net, IDS), module(IDS).detach(), rtol=1e-5, atol=1e-6)


def test_64_bits_of_integers_made_of_floats_and_made_to_floats():
    module = Hashed(
        lambda m, x: m.linear(m.table((x * 1e12).long() % 1000).sum(1) + (x.long() * 5000000000).float() / 1e10)
    )
    np.testing.assert_allclose(outputs_of(converted(module, X), X), module(X).detach(), rtol=1e-5, atol=1e-6)


def test_64_bits_of_integers_that_are_returned():
    module = Hashed(lambda module, ids: (module.linear(module.table(ids % 1000)), ids * 1000003, ids % 1000))
    net = converted(module)
    with jax.enable_x64(False):
        _, product, remainder = jax.jit(net.apply)(net.variables, IDS.numpy())
    np.testing.assert_array_equal(product, IDS * 1000003)
    assert (product.dtype, remainder.dtype) == (np.int64, np.int32)


ORDINARY = {
    "ids": lambda ids: ids % 1000,
    "flattened indices": lambda ids: (ids % 100) * 10 + torch.arange(3) * 2 + (ids != 5).cumsum(1),
    "offsets": lambda ids: ids * 0 + torch.tensor([0, 100, 500]),
    "low bits": lambda ids: (ids * 1000003 + 12345) & 0xFF,
    "last": lambda ids: (ids != 0).sum(1, keepdim=True) - 1,
    "positions": lambda ids: torch.arange(3).expand(ids.shape) * 3 // 2,
}


@pytest.mark.parametrize("name", ORDINARY)
def test_64_bits_are_not_used_where_32_do(name):
    module = look_up(ORDINARY[name])
    net = converted(module)
    assert wide_steps(net) == []
    np.testing.assert_allclose(outputs_of(net, IDS), module(IDS).detach(), rtol=1e-5, atol=1e-6)


def test_64_bits_of_ids_beyond_32():
    ids = torch.tensor([[2**31, 5, 2**40], [3, 2**62, -(2**35)]])
    module = look_up(lambda ids: (ids * 31 + 7) % 1000)
    net = converted(module)
    np.testing.assert_allclose(outputs_of(net, ids, compiled=False), module(ids).detach(), rtol=1e-5, atol=1e-6)
    with jax.enable_x64(True):
        whole = jnp.asarray(ids.numpy())
    with jax.enable_x64(False):  # an array of 64 bits keeps them
        outputs = jax.jit(net.apply)(net.variables, whole)
        assert outputs.dtype == np.float32
        np.testing.assert_allclose(outputs, module(ids).detach(), rtol=1e-5, atol=1e-6)
        assert not lla_torch.certify(module, net, (ids,)).ok  # since a compiled call has cut the numpy array


def test_64_bits_of_a_buffer_of_integers(tmp_path):
    module = Hashed(lambda m, ids: m.linear(m.table((ids % 10 * m.buffer) % 1000)), torch.tensor([2**40 + 1, 3, 5]))
    net = converted(module)
    np.testing.assert_allclose(outputs_of(net, IDS), module(IDS).detach(), rtol=1e-5, atol=1e-6)
    with jax.enable_x64(False):
        back = lla_torch.to_state_dict(net)
        again = lla_torch.load_checkpoint(module.state_dict(), net)
    assert torch.equal(back["buffer"], module.buffer)
    np.testing.assert_array_equal(again.variables["buffers"]["buffer"], module.buffer)


DOUBLES = {
    "square": lambda m, x: (m.linear(x).double() + 1e4).square() - 1e8,
    "back in float32": lambda m, x: ((m.linear(x).double() + 1e4).square() - 1e8).float(),
    "overflow": lambda m, x: m.linear(x).double() * 1e30 * 1e30 / 1e60,
    "a constant": lambda m, x: m.linear(x) * (torch.linspace(0, 1, 4, dtype=torch.float64) + 1e8 - 1e8),
    "a type of a sum": lambda m, x: (m.linear(x) + 1e4).sum(1, dtype=torch.float64) - 4e4,
    "a type of a softmax": lambda m, x: torch.softmax(m.linear(x), 1, dtype=torch.float64)[:, 1:] + 1e7 - 1e7,
    "matrix products": lambda m, x: torch.einsum("bi,ij->bj", m.linear(x).double() + 1e6, torch.eye(4).double()) - 1e6,
    "complex numbers": lambda m, x: ((m.linear(x).to(torch.complex128) + 1e8j) * 1j + 1e8).real,
    "determinant": lambda m, x: torch.logdet(m.linear(x).double().T @ m.linear(x).double() + torch.eye(4).double()),
    "the largest": lambda m, x: (m.linear(x).double() + 1e8).max(1)[0] - 1e8,
}


def torch_numbers(module, x):
    """Outputs, and gradient and Hessian product of sum(outputs + sin(outputs)) in the weight of the linear layer."""
    outputs = module(x)
    weight = module.linear.weight
    (gradient,) = torch.autograd.grad((outputs + outputs.sin()).sum(), weight, create_graph=True)
    (product,) = torch.autograd.grad((gradient * torch.arange(4)[:, None]).sum(), weight)
    return [t.detach().double().numpy() for t in (outputs, gradient, product)]


@pytest.mark.parametrize("name", DOUBLES)
def test_64_bits_of_float64_between_float32(name):
    module = Hashed(DOUBLES[name])
    net = converted(module, X)

    def value(params):
        outputs = net.apply({**net.variables, "params": params}, X.numpy())
        return (outputs + jnp.sin(outputs)).sum(), outputs

    def numbers(params):
        tangent = jax.tree.map(jnp.zeros_like, params)
        tangent["linear"]["kernel"] += jnp.arange(4)
        gradient = jax.grad(lambda p: value(p)[0])
        return value(params)[1], *jax.jvp(gradient, (params,), (tangent,))

    with jax.enable_x64(False):
        outputs, gradient, product = jax.jit(numbers)(net.variables["params"])
    assert {x.dtype for x in jax.tree.leaves((outputs, gradient))} == {np.dtype(np.float32)}
    found = [outputs, gradient["linear"]["kernel"].T, product["linear"]["kernel"].T]
    # the loss is taken of outputs that are rounded to float32
    for got, wanted, factor in zip(found, torch_numbers(module, X), (2e-7, 2e-3, 2e-3), strict=True):
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(got, wanted, atol=factor * scale, rtol=0)


def test_64_bits_of_a_batch_of_weights_and_of_a_forward_derivative():
    module = Hashed(lambda m, x: ((m.linear(x).double() + 1e4).square() - 1e8).float())
    net = converted(module, X)
    with jax.enable_x64(False):
        value = lambda p: net.apply({"params": p}, X.numpy()).sum()  # noqa: E731
        params = net.variables["params"]
        tangent = jax.tree.map(jnp.ones_like, params)
        slope = sum(jnp.vdot(g, t) for g, t in zip(*map(jax.tree.leaves, (jax.grad(value)(params), tangent))))
        np.testing.assert_allclose(jax.jvp(value, (params,), (tangent,))[1], slope, rtol=1e-5)
        stacked = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
        one_by_one = [jax.grad(value)(jax.tree.map(lambda p, i=i: p[i], stacked)) for i in range(2)]
        batched = jax.jit(jax.vmap(jax.grad(value)))(stacked)
        for i, expected in enumerate(one_by_one):
            jax.tree.map(lambda b, e, i=i: np.testing.assert_allclose(b[i], e, rtol=1e-5), batched, expected)


def test_64_bits_of_a_float64_number_follow_torchs_promotion():
    tenth = torch.tensor(0.1, dtype=torch.float64)
    module = Hashed(lambda m, x: m.linear(x) * tenth + (torch.full((4,), 0.1) == tenth))
    np.testing.assert_allclose(outputs_of(converted(module, X), X), module(X).detach(), rtol=1e-6)


def test_64_bits_of_a_float64_buffer_in_a_landscape_and_a_hessian():
    times = 1e9 + torch.arange(4, dtype=torch.float64) / 64
    module = Hashed(lambda m, x: m.linear(x) * (m.buffer - 1e9).float() * 64, times)
    net, labels = converted(module, X), torch.tensor([0, 1, 2, 3])
    with jax.enable_x64(False):
        loss, params = net.loss(nn.CrossEntropyLoss()), net.variables["params"]
        axes = lla.directions.random(jax.random.key(0), params, 1)
        line = lla.evaluate(loss, params, (X.numpy(), labels.numpy()), axes, lla.grid(extent=1e-3, points=3, dims=1))
        ones = jax.tree.map(jnp.ones_like, params)
        product = lla.hessian(loss, params, (X.numpy(), labels.numpy())).mv(ones)
    weights = list(module.linear.parameters())
    value = nn.functional.cross_entropy(module(X), labels)
    gradient = torch.autograd.grad(value, weights, create_graph=True)
    expected = torch.autograd.grad(sum(g.sum() for g in gradient), weights)
    np.testing.assert_allclose(line.values["loss"][1], value.item(), rtol=1e-6)
    np.testing.assert_allclose(product["linear"]["kernel"].T, expected[0], rtol=1e-4, atol=1e-6)


def test_float64_inputs_that_were_cut_are_refused():
    module = Hashed(lambda m, x: m.linear((x - 1e9).float()))
    x = 1e9 + X.double()
    net = converted(module, x)
    np.testing.assert_allclose(outputs_of(net, x, compiled=False), module(x).detach(), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="jax_enable_x64"):
        outputs_of(net, x)
    rounded = Hashed(lambda m, x: m.linear(x.float()))  # nothing is lost here
    np.testing.assert_allclose(outputs_of(converted(rounded, x), x), rounded(x).detach(), rtol=1e-5, atol=1e-6)
