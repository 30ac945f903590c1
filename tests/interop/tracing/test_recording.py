"""Recorded draws of torch modules give torch's own outputs again, and recording changes nothing in the module."""

import collections
from collections import namedtuple

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lla_torch
import torch.nn.functional as F
from lla_torch.tracing.recording import record
from torch import nn

X = torch.linspace(-1, 2, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)


class Call(nn.Module):
    """A function as a module, with a parameter."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, *args, **kwargs):
        return self.function(self.scale, *args, **kwargs)


def grad_inside(function):
    """The same under torch.enable_grad, so that inputs that need gradients meet the operators."""

    def inner(scale, x):
        with torch.enable_grad():
            return function(scale, x * scale).detach()

    return inner


def masked(kind):
    return lambda scale, x: getattr(F, kind)(x, 0.4, training=True)


@pytest.mark.parametrize("with_grad", [False, True])
@pytest.mark.parametrize("kind", ["dropout", "dropout2d", "alpha_dropout", "feature_alpha_dropout"])
def test_dropout_masks(kind, with_grad):
    function = masked(kind)
    module = Call(grad_inside(function) if with_grad else function)
    outputs, (mask,) = record(module, X)
    assert mask.dtype == bool
    assert mask.shape == ((2, 3, 1, 1) if kind in ("dropout2d", "feature_alpha_dropout") else X.shape)
    x = X.numpy() * (1.5 if with_grad else 1)
    if "alpha" in kind:
        low = -1.7580993408473766
        a = (0.6 * (1 + 0.4 * low**2)) ** -0.5
        want = a * np.where(mask, x, low) - a * low * 0.4
    else:
        want = np.where(mask, x / 0.6, 0)
    np.testing.assert_allclose(outputs, want, rtol=1e-5, atol=1e-5)


def test_native_dropout_and_attention():
    outputs, (mask,) = record(Call(lambda s, x: torch.native_dropout(x, 0.3, True)[0]), X)
    np.testing.assert_allclose(outputs, np.where(mask, X / 0.7, 0), rtol=1e-6)

    def attend(scale, x):
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)

    for function in (attend, grad_inside(attend)):
        outputs, (mask,) = record(Call(function), X)
        x = X * 1.5 if function is not attend else X
        weights = torch.softmax(x @ x.mT / 2, -1) * torch.from_numpy(mask) / 0.5
        assert mask.dtype == bool
        np.testing.assert_allclose(outputs, weights @ x, rtol=1e-5, atol=1e-5)


def test_what_draws_nothing():
    module = nn.Sequential(nn.Dropout(0.0), nn.Dropout(1.0), nn.Dropout2d(0.0))
    assert record(module, X)[1] == ()
    assert record(nn.Sequential(nn.Dropout(0.5), nn.RReLU()).eval(), X)[1] == ()
    assert record(Call(lambda s, x: F.scaled_dot_product_attention(x, x, x)), X)[1] == ()
    assert record(nn.LSTM(4, 3, 2, dropout=0.5).eval(), X[0])[1] == ()


DRAWS = {
    "rand": lambda x: torch.rand(3),
    "rand_like": torch.rand_like,
    "randn": lambda x: torch.randn(2, 2),
    "randn_like": torch.randn_like,
    "randint": lambda x: torch.randint(2, 9, (4,)),
    "randint_like": lambda x: torch.randint_like(x, 5),
    "randperm": lambda x: torch.randperm(6),
    "normal": lambda x: torch.normal(x, 2.0),
    "normal_sizes": lambda x: torch.normal(1.0, 2.0, (3,)),
    "normal_tensors": lambda x: torch.normal(x, x.abs()),
    "uniform_": lambda x: torch.empty(3).uniform_(1, 2),
    "normal_": lambda x: torch.empty(3).normal_(1, 2),
    "exponential_": lambda x: torch.empty(3).exponential_(2),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "bernoulli_": lambda x: torch.empty(9).bernoulli_(0.3),
    "bernoulli_tensor": lambda x: x.clone().bernoulli_(x.sigmoid()),
    "random_": lambda x: torch.empty(3).random_(5),
    "reparameterized": lambda x: torch.distributions.Normal(torch.zeros(3), 1.0).rsample(),
}


@pytest.mark.parametrize("name", DRAWS)
def test_values(name):
    outputs, (draw,) = record(Call(lambda s, x: DRAWS[name](x)), X)
    assert np.array_equal(outputs, draw)
    assert draw.dtype == (bool if "bernoulli" in name else outputs.dtype)


def test_order_is_that_of_the_forward_pass():
    def forward(scale, x):
        a = F.dropout(x, 0.5, True)
        b = torch.randn(2)
        b += 1  # the draw is recorded, not what becomes of it
        return {"a": a, "b": [b, (torch.rand(1), None, 3)]}

    outputs, draws = record(Call(forward), X)
    assert [d.shape for d in draws] == [X.shape, (2,), (1,)]
    np.testing.assert_array_equal(outputs["b"][0], draws[1] + 1)
    assert isinstance(outputs["b"], list)
    assert outputs["b"][1][1:] == (None, 3)
    np.testing.assert_array_equal(outputs["a"] != 0, draws[0] & (X.numpy() != 0))


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("multinomial", lambda s, x: torch.multinomial(x[0, 0].abs(), 1)),
        ("poisson", lambda s, x: torch.poisson(x.abs())),
        ("rrelu", lambda s, x: F.rrelu(x, training=True)),
        ("_standard_gamma", lambda s, x: torch.distributions.Gamma(torch.ones(2), 1.0).sample()),
    ],
)
def test_draws_that_cannot_be_replayed(name, function):
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=name):
        record(Call(function), X)
    assert torch.equal(torch.get_rng_state(), state)


class Busy(nn.Module):
    """Changes all there is to change."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("moving", torch.zeros(3))
        self.register_buffer("absent", None)
        self.register_buffer("expanded", torch.ones(1).expand(4), persistent=False)

    def forward(self, x):
        self.count += 1
        self.moving = self.moving + x.mean((0, 2, 3))
        self.register_buffer("late", x)
        self.absent = x
        self.bn.eval()
        self.drop.train()
        torch.set_grad_enabled(True)
        return self.drop(F.batch_norm(x, self.bn.running_mean, self.bn.running_var, training=True)) + torch.rand(1)


def test_everything_is_as_before():
    module = Busy().train()
    module.drop.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    objects = dict(module.named_buffers())
    state = torch.get_rng_state()
    outputs, draws = record(module, X)
    assert len(draws) == 2
    assert isinstance(outputs, np.ndarray)
    assert torch.is_grad_enabled()
    assert module.absent is None
    assert module.bn.training
    assert not module.drop.training
    assert torch.equal(torch.get_rng_state(), state)
    assert list(before) == list(module.state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert all(objects[name] is tensor for name, tensor in module.named_buffers())
    again, _ = record(module, X)  # the generator stands where it stood
    assert np.array_equal(outputs, again)


def test_generators_that_are_passed():
    generator = torch.Generator().manual_seed(3)
    module = Call(lambda s, x: torch.rand(3, generator=generator))
    first, second = record(module, X)[0], record(module, X)[0]
    assert np.array_equal(first, second)
    assert np.array_equal(first, torch.rand(3, generator=torch.Generator().manual_seed(3)))


def test_arguments_and_outputs():
    Pair = namedtuple("Pair", ["a", "b"])
    outputs, draws = record(Call(lambda s, x, *, shift: Pair(x.bfloat16() + shift, s)), X, shift=2)
    assert draws == ()
    assert isinstance(outputs, Pair)
    assert outputs.a.dtype == "bfloat16"
    assert outputs.b == 1.5
    with pytest.raises(ValueError, match=r"module: function given; it must be a torch.nn.Module"):
        record(lambda x: x, X)


def test_replayed_by_the_converted_module():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout2d(0.3), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 5))
    module = module.double().train()
    with jax.enable_x64(True):
        net = lla_torch.convert(module, X.double(), train=True)
        outputs, draws = record(module, X.double())
        replayed, _ = net.apply(net.variables, X.double().numpy(), train=True, draws=draws)
        np.testing.assert_allclose(replayed, outputs, rtol=1e-12, atol=1e-12)


def test_arrays_are_taken_as_tensors():
    module, x = nn.Linear(3, 2), torch.ones(4, 3)
    outputs, draws = record(module, x.numpy())
    np.testing.assert_array_equal(outputs, module(x).detach())
    assert draws == ()


def test_a_mapping_stays_what_it_is():
    class Batch(collections.UserDict):
        @property
        def x(self):
            return self["x"]

    class Doubles(nn.Module):
        def forward(self, batch):
            return 2 * batch.x

    outputs, draws = lla_torch.record(Doubles(), Batch(x=torch.ones(2)))
    np.testing.assert_array_equal(outputs, [2.0, 2.0])
    assert draws == ()
