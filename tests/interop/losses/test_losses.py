"""The losses of converted networks."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import jax
import lla_torch
import numpy as np
from torch import nn
from torch.nn import functional

import lla_jax as lla
from lla_jax.curvature import operators, recognition
from tests.helpers import error, few_rows
from tests.interop.conversions import build, real

pytestmark = pytest.mark.usefixtures("x64")

B, C = 9, 3


@pytest.mark.parametrize("criterion", [nn.GaussianNLLLoss(), nn.CTCLoss()], ids=lambda c: type(c).__name__)
def test_criteria_that_do_not_convert(criterion):
    net = lla_torch.convert(build(nn.Linear, 3, 2), (real(6, 3),))
    with pytest.raises(ValueError, match=type(criterion).__name__):
        net.loss(criterion)


def inputs(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def labels(*shape):
    return torch.randint(C, shape, generator=torch.Generator().manual_seed(2))


# --- outputs (B, 1) and labels (B,)

PAIRED = [nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss(), nn.HuberLoss()]


@pytest.mark.parametrize("criterion", PAIRED, ids=lambda c: type(c).__name__)
def test_losses_that_broadcast_are_refused(criterion):
    net = lla_torch.convert(build(nn.Linear, 3, 1), (real(6, 3),))
    data = inputs(B, 3).numpy(), inputs(B).numpy()
    with pytest.raises(ValueError, match=r"\(B, 1\) and labels of shape \(B,\) .* labels\[:, None\]"):
        lla.hessian(net.loss(criterion), net.variables["params"], data)
    right = data[0], data[1][:, None]
    residuals = net.apply(net.variables, data[0]) - right[1]
    expected = criterion(torch.tensor(np.asarray(residuals)), torch.zeros(B, 1, dtype=torch.float64)).item()
    loss = net.loss(criterion)
    found = loss.criterion(loss.apply(net.variables["params"], loss.state, right, False)[0], right).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


class Wrapped(nn.Module):
    """A loss of the user's around torch's."""

    def forward(self, outputs, labels):
        return functional.smooth_l1_loss(outputs, labels)


def test_losses_that_broadcast_are_refused_in_steps_and_modules():
    module = build(nn.Linear, 3, 1)
    net = lla_torch.convert(module, (real(6, 3),))
    batch = inputs(B, 3), inputs(B)
    with pytest.raises(ValueError, match=r"broadcast to \(9, 9\)"):
        lla.hessian(net.loss(Wrapped()), net.variables["params"], tuple(x.numpy() for x in batch))
    with pytest.raises(ValueError, match=r"outputs\.squeeze\(1\)"):
        lla_torch.convert_loss(lambda m, b: functional.mse_loss(m(b[0]), b[1]), module, batch)
    with pytest.raises(ValueError, match="outputs and labels have different shapes"):
        lla_torch.convert_loss(lambda m, b: nn.BCEWithLogitsLoss()(m(b[0]), b[1].sigmoid()), module, batch)
    for target in (torch.zeros(1, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)):  # one label for all
        loss, params = lla_torch.convert_loss(lambda m, b, t=target: functional.mse_loss(m(b[0]), t), module, batch)
        found = loss.apply(params, loss.state, tuple(x.numpy() for x in batch), False)[0]
        np.testing.assert_allclose(found, (module(batch[0]) - target).square().mean().item(), rtol=1e-12)


# --- Gauss-Newton matrices of zeros

ENDS = {
    "LogSoftmax": lambda: nn.LogSoftmax(-1),
    "log_softmax": lambda: _Function(lambda x: functional.log_softmax(x, dim=1)),
    "in another type": lambda: _Function(lambda x: functional.log_softmax(x, dim=1, dtype=torch.float64)),
    "moved": lambda: _Function(lambda x: functional.dropout(x.log_softmax(-1), training=False).contiguous() * 1.0),
    "log of softmax": lambda: _Function(lambda x: x.softmax(-1).log()),
}


class _Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("end", ENDS)
def test_ggn_of_zeros_is_that_of_the_scores_before_a_log_softmax(end):
    linear = build(nn.Linear, 3, C)
    data = inputs(B, 3).numpy(), labels(B).numpy()
    whole = lla_torch.convert(nn.Sequential(linear, ENDS[end]()), (real(6, 3),))
    scores = lla_torch.convert(linear, (real(6, 3),))
    G = operators.dense(lla.ggn(scores.loss(nn.CrossEntropyLoss()), scores.variables["params"], data))
    loss = whole.loss(nn.NLLLoss())
    assert error(operators.dense(lla.ggn(loss, whole.variables["params"], data)), G) < 1e-12
    np.testing.assert_allclose(  # the outputs, which metrics see, stay what they are
        np.exp(loss.apply(whole.variables["params"], loss.state, data, False)[0]).sum(1), np.ones(B)
    )


def test_ggn_of_zeros_is_refused_for_steps_and_their_fisher_matrix_is_empirical():
    linear = build(nn.Linear, 3, C)
    batch = inputs(B, 3), labels(B)
    data = tuple(x.numpy() for x in batch)
    each = lambda m, b: functional.cross_entropy(m(b[0]), b[1], reduction="none")  # noqa: E731
    weighted = lambda m, b: (each(m, b), (b[1] != 0).double())  # noqa: E731
    for step in (each, lambda m, b: each(m, b).mean(), weighted):
        loss, params = lla_torch.convert_loss(step, linear, batch)
        with pytest.raises(ValueError, match=r"lla_torch\.convert\(module, inputs\)\.loss"):
            lla.ggn(loss, params, data)
    loss, params = lla_torch.convert_loss(each, linear, batch)
    net = lla_torch.convert(linear, batch[0][:2])
    whole = net.loss(nn.CrossEntropyLoss())
    found, expected = (operators.dense(lla.fisher(x, params, data, kind="empirical")) for x in (loss, whole))
    assert error(found, expected) < 1e-12
    with pytest.raises(ValueError, match='kind="empirical"'):
        lla.fisher(loss, params, data, jax.random.key(0))


# --- targets of the criterion's own likelihood


def test_fisher_likelihood_of_ignored_and_weighted_classes_is_that_of_the_scores():
    net = lla_torch.convert(build(nn.Linear, 3, C), (real(6, 3),))
    params, data = net.variables["params"], (inputs(B, 3).numpy(), labels(B).numpy())
    weight = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
    loss = net.loss(nn.CrossEntropyLoss(weight, ignore_index=1))
    F = lla.fisher(loss, params, data, jax.random.key(0), samples=2000)
    assert F.recipe["likelihood"] == "categorical over axis 1 of scores"
    assert error(operators.dense(F), operators.dense(lla.ggn(loss, params, data))) < 0.1
    with pytest.raises(ValueError, match="smoothed labels"):
        lla.fisher(net.loss(nn.CrossEntropyLoss(label_smoothing=0.1)), params, data, jax.random.key(0))


LIKELIHOODS = {
    "BCEWithLogitsLoss": (nn.BCEWithLogitsLoss(), False, "Bernoulli"),
    "BCELoss": (nn.BCELoss(), True, "Bernoulli"),
    "PoissonNLLLoss": (nn.PoissonNLLLoss(full=True), False, "Poisson"),
    "MSELoss": (nn.MSELoss(), False, "Gaussian"),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_fisher_likelihood_of_torch_losses(name):
    criterion, sigmoid, expected = LIKELIHOODS[name]
    net = lla_torch.convert(nn.Sequential(build(nn.Linear, 3, 1), *[nn.Sigmoid()] * sigmoid), (real(6, 3),))
    data = inputs(B, 3).numpy(), (labels(B, 1) > 0).double().numpy()
    loss, block = net.loss(criterion), few_rows(data)
    assert str(recognition.recognise(loss, net.variables["params"], block, False)) == expected


# --- means over tokens


class Tokens(nn.Module):
    """Scores of tokens."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, C)

    def forward(self, x):
        return self.head(x)


def _padded():
    """(module, batches of 4 examples whose tokens beyond their lengths are ignored)."""
    x, y = inputs(12, 5, 3), labels(12, 5)
    lengths = torch.arange(12) // 3 + 1
    return build(Tokens), [
        (x[i : i + 4], y[i : i + 4].masked_fill(torch.arange(5) >= lengths[i : i + 4, None], -100)) for i in (0, 4, 8)
    ]


def _entropy(module, batch, **options):
    return functional.cross_entropy(module(batch[0]).flatten(0, 1), batch[1].flatten(), **options)


TOKEN_STEPS = {
    "(sum, weight)": lambda m, b: (_entropy(m, b, reduction="sum"), (b[1] != -100).sum()),
    "(losses, weights)": lambda m, b: (
        functional.cross_entropy(m(b[0]).transpose(1, 2), b[1], reduction="none"),
        (b[1] != -100).double(),
    ),
}


@pytest.mark.parametrize("step", TOKEN_STEPS)
def test_token_means_over_a_loader_are_those_over_all_tokens(step):
    module, batches = _padded()
    loss, params = lla_torch.convert_loss(TOKEN_STEPS[step], module, batches[0])
    axes, grid = lla.directions.random(jax.random.key(0), params, 1), lla.grid(points=1, dims=1)
    value = lla.evaluate(loss, params, lla_torch.stream(batches), axes, grid).values["loss"].item()
    together = tuple(torch.cat(x) for x in zip(*batches, strict=True))
    assert value == pytest.approx(_entropy(module, together).item(), rel=1e-6)
    H = lla.hessian(loss, params, lla_torch.stream(batches))
    exact, exact_params = lla_torch.convert_loss(_entropy, module, together)
    expected = operators.dense(lla.hessian(exact, exact_params, tuple(x.numpy() for x in together)))
    assert error(operators.dense(H), expected) < 1e-10


def test_token_means_without_weights_are_pointed_out():
    module, batches = _padded()
    loss, params = lla_torch.convert_loss(_entropy, module, batches[0])
    with pytest.warns(UserWarning, match=r"different numbers of them .* \(sum, weight\) from a step"):
        lla.hessian(loss, params, lla_torch.stream(batches))
    net = lla_torch.convert(module, batches[0][0])

    class Masked(nn.Module):
        def forward(self, outputs, labels):
            return functional.cross_entropy(outputs.flatten(0, 1), labels.flatten())

    with pytest.warns(UserWarning, match="different numbers"):
        lla.hessian(net.loss(Masked()), params, lla_torch.stream(batches))


def test_token_means_of_a_batch_without_tokens_are_zero():
    module, batches = _padded()
    nothing = (batches[0][0], torch.full_like(batches[0][1], -100))
    loss, params = lla_torch.convert_loss(TOKEN_STEPS["(sum, weight)"], module, batches[0])
    H, G = (lla.hessian(loss, params, lla_torch.stream(x)) for x in (batches, [*batches, nothing]))
    np.testing.assert_allclose(operators.dense(G), operators.dense(H), rtol=1e-10)


def test_a_second_value_that_is_no_weight_is_refused():
    module, batches = _padded()
    with pytest.raises(ValueError, match="depends on the parameters, so it is no weight"):
        lla_torch.convert_loss(lambda m, b: (_entropy(m, b), m(b[0]).mean()), module, batches[0])
    with pytest.raises(ValueError, match=r"\(sum of the losses, sum of the weights\)"):
        lla_torch.convert_loss(lambda m, b: (_entropy(m, b), m(b[0])), module, batches[0])


class Margin(nn.Module):
    """A criterion of the user's, with a setting that is no tensor and one in a table."""

    def __init__(self):
        super().__init__()
        self.scale, self.table = 1.0, {"k": [1.0]}

    def forward(self, outputs, labels):
        return ((outputs[:, 0] - labels) ** 2 * self.scale * self.table["k"][0]).mean()


def test_torch_modules_that_changed_in_place_are_converted_as_they_are_now():
    module, criterion = nn.Linear(3, 1), Margin()
    weighted = nn.BCEWithLogitsLoss(pos_weight=torch.ones(1))
    x, y = np.ones((4, 3), np.float32), np.ones(4, np.float32)
    run = jax.jit(lambda loss, p, b: loss.criterion(loss.apply(p, loss.state, b, False)[0], b).mean())

    def values():
        net = lla_torch.convert(module, torch.ones(2, 3))
        params = net.variables["params"]
        outputs = net.apply(net.variables, x)
        found = (
            run(net.loss(criterion, per_example=False), params, (x, y)),
            run(net.loss(weighted), params, (x, y[:, None])),
        )
        logits = torch.from_numpy(np.array(outputs))
        own = criterion(logits, torch.from_numpy(y)), weighted(logits, torch.from_numpy(y[:, None]))
        np.testing.assert_allclose(found, [float(each) for each in own], rtol=1e-5)

    values()
    criterion.scale = 3.0
    values()
    criterion.table["k"][0] = 2.0
    weighted.pos_weight.fill_(5.0)
    with torch.no_grad():
        module.weight.add_(1.0)
    values()


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(weight=torch.ones(2)), Margin()], ids=["weighted", "own"])
def test_a_loss_that_is_used_again_reads_its_torch_criterion_as_it_is_now(criterion):
    net = lla_torch.convert(nn.Linear(3, 2), torch.ones(2, 3))
    loss = net.loss(criterion, per_example=isinstance(criterion, nn.CrossEntropyLoss))
    data = np.arange(12, dtype=np.float32).reshape(4, 3), np.arange(4) % 2

    def gradient():
        axes = lla.directions.gradient(loss, net.variables["params"], data)
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(axes.tree)])

    before = gradient()
    if isinstance(criterion, Margin):
        criterion.table["k"][0] = 3.0
    else:
        criterion.weight.mul_(torch.tensor([1.0, 9.0]))
    changed = gradient()
    assert not np.allclose(before, changed)
    loss = net.loss(criterion, per_example=isinstance(criterion, nn.CrossEntropyLoss))
    np.testing.assert_array_equal(gradient(), changed)
