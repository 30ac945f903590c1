"""What a conversion gets silently wrong if nobody looks, and what cannot be converted and has to say so."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lla_torch
import torch.nn.functional as F
from torch import nn

from tests.interop.parity import (
    arrays,
    assert_named,
    assert_outputs,
    computed,
    direction,
    mixing,
    reference,
)

pytestmark = pytest.mark.usefixtures("x64")


def build(kind: Any, *args: Any, seed: int = 0) -> Any:
    """A module with weights by ``seed``, float64, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(*args).double().eval()


def real(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(module: Any, *inputs: Any, second: bool = True, train: bool = False) -> Any:
    """Outputs, gradient and Hessian product equal torch's, at the inputs and at their first four rows; the net."""
    net = lla_torch.convert(module, inputs, train=train)
    module.train(train)
    tangent = direction(net.variables["params"])
    named = lla_torch.to_state_dict(net, tangent)
    fewer = tuple(x[:4] for x in inputs)
    expected = reference(module, fewer, tangent=named if second else None)
    weights = mixing(expected.outputs)
    outputs, grads, hvp, state = computed(
        net.apply, net.variables, arrays(fewer), {}, weights, tangent, None, train=train, second=second
    )
    assert_outputs(outputs, expected.outputs, 1e-12, "outputs")
    assert_named(numpy_dict(net, grads), expected.grads, 1e-10, "gradient")
    if second:
        assert_named(numpy_dict(net, hvp), expected.hvp, 1e-9, "Hessian product")
    if train:
        after = {name: t.numpy() for name, t in lla_torch.to_state_dict(net, state=state).items()}
        assert_named(after, expected.state, 1e-12, "statistics")
    return net


def numpy_dict(net: Any, tree: Any) -> dict[str, np.ndarray]:
    return {name: t.numpy() for name, t in lla_torch.to_state_dict(net, tree).items()}


def line_of(kind: Any, marker: str) -> int:
    """The number of the first source line of a class that holds ``marker``."""
    lines, start = inspect.getsourcelines(kind)
    return start + next(i for i, line in enumerate(lines) if marker in line)


def refused(module: Any, *inputs: Any, train: bool = False) -> str:
    """The message with which a conversion is refused."""
    assert issubclass(lla_torch.ConversionError, ValueError)
    with pytest.raises(lla_torch.ConversionError) as caught:
        lla_torch.convert(module, inputs, train=train)
    return str(caught.value)


class Outer(nn.Module):
    """A module whose interesting part has the path "body.gate"."""

    def __init__(self, inner):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.body = nn.ModuleDict({"gate": inner})

    def forward(self, x):
        return self.body["gate"](self.first(x))


# --- stopped gradients


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


# --- tied parameters


class TiedEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, tokens):
        return self.out(torch.tanh(self.embedding(tokens)))


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


# --- integers, in-place operations, buffers, constants


def test_int64_targets():
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 5)

        def forward(self, x, target):
            logits = self.fc(x)
            picked = logits.gather(1, target[:, None]).squeeze(1)
            one_hot = F.one_hot(target, 5).to(x.dtype)
            smooth = F.cross_entropy(logits, target, reduction="none", label_smoothing=0.1, ignore_index=2)
            return smooth, picked, (one_hot * logits).sum(1), target + 1

    check(build(Loss), real(7, 3), torch.tensor([0, 4, 2, 1, 3, 0, 2]))


def test_int64_targets_without_64_bits():
    module = build(TiedEmbedding).float()
    tokens = torch.tensor([[0, 5], [3, 1], [2, 2]])
    with jax.enable_x64(False):
        net = lla_torch.convert(module, (tokens,))
        outputs = np.asarray(net.apply(net.variables, tokens.numpy()))
    assert outputs.dtype == np.float32
    with torch.no_grad():
        np.testing.assert_allclose(outputs, module(tokens).numpy(), rtol=1e-5, atol=1e-6)


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


class Constants(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.plain = torch.tensor([0.5, -1.0, 2.0, 3.0], dtype=torch.float64)  # neither parameter nor buffer

    def forward(self, x):
        positions = torch.arange(4, dtype=x.dtype)
        table = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=x.dtype)
        rows = torch.arange(x.shape[0], dtype=x.dtype)[:, None] / x.shape[0]
        noise_free = torch.full((4,), 0.1, dtype=x.dtype) + torch.eye(4, dtype=x.dtype).sum(0)
        grid = torch.linspace(0, 1, 4, dtype=x.dtype)
        return self.fc(x) * table + positions * self.plain + rows + noise_free * torch.ones_like(grid) * grid


def test_constants_made_in_forward():
    module = build(Constants)
    net = check(module, real(7, 3))
    assert list(lla_torch.to_state_dict(net)) == list(module.state_dict())


# --- what is refused, by name


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
        energy = self.energy(x).sin().sum()
        return torch.autograd.grad(energy, x, create_graph=True)[0]  # differentiates


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
    assert f"test_traps.py:{line_of(kind, marker)}" in text or f"line {line_of(kind, marker)}" in text


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


@pytest.mark.parametrize("criterion", [nn.GaussianNLLLoss(), nn.CTCLoss()], ids=lambda c: type(c).__name__)
def test_criteria_that_do_not_convert(criterion):
    net = lla_torch.convert(build(nn.Linear, 3, 2), (real(6, 3),))
    with pytest.raises(ValueError, match=type(criterion).__name__):
        net.loss(criterion)


# --- operators that are not in the table


@pytest.fixture
def bump():
    """A custom operator x^2 sin(x) that no table knows, and the table as it was afterwards."""
    from lla_torch.program.operators import TABLE

    if not hasattr(torch.ops.lla_tests, "bump"):

        @torch.library.custom_op("lla_tests::bump", mutates_args=())
        def op(x: torch.Tensor, power: int) -> torch.Tensor:
            return x**power * torch.sin(x)

        op.register_fake(lambda x, power: torch.empty_like(x))

        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            n = ctx.power
            return grad * (n * x ** (n - 1) * torch.sin(x) + x**n * torch.cos(x)), None

        def keep(ctx, inputs, output):
            ctx.save_for_backward(inputs[0])
            ctx.power = inputs[1]

        op.register_autograd(backward, setup_context=keep)
    before = dict(TABLE)
    yield torch.ops.lla_tests.bump
    TABLE.clear()
    TABLE.update(before)


class Bumped(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return torch.ops.lla_tests.bump(self.fc(x), 2)  # bumps


def test_an_unknown_operator_is_named_and_can_be_added(bump):
    module = build(lambda: Outer(Bumped()))
    text = refused(module, real(7, 3))
    line = line_of(Bumped, "# bumps")
    assert "lla_tests.bump" in text
    assert "body.gate" in text
    assert f"test_traps.py:{line}" in text or f"line {line}" in text
    assert "lla_torch.lowering" in text

    @lla_torch.lowering("lla_tests::bump")
    def lowered(x, power):
        return x**power * jnp.sin(x)

    check(module, real(7, 3), second=False)


def test_an_operator_can_be_registered_by_the_object(bump):
    module = build(lambda: Outer(Bumped()))
    assert "lla_tests.bump" in refused(module, real(7, 3))
    lla_torch.lowering(bump.default, layout="pointwise")(lambda x, power: x**power * jnp.sin(x))
    check(module, real(7, 3))
