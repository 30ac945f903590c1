"""torch's functions of losses stand for their modules."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
lla_torch = pytest.importorskip("lla_torch")

from lla_torch.losses.functionals import MODULES, as_criterion
from torch import nn
from torch.nn import functional as F

CLASSES = (F.cross_entropy, F.nll_loss, F.multi_margin_loss, F.multilabel_margin_loss)


@pytest.mark.parametrize("function", MODULES, ids=lambda function: function.__name__)
def test_a_function_is_its_module(function):
    scores = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    outputs = scores.exp() if function is F.binary_cross_entropy else scores
    labels = torch.arange(6) % 3 if function in CLASSES else scores.flip(0).exp()
    labels = torch.stack([labels, labels * 0, labels * 0 - 1], 1) if function is F.multilabel_margin_loss else labels
    module = as_criterion(function)
    assert isinstance(module, nn.Module)
    options = {"reduction": "sum"} if function is F.kl_div else {}  # torch warns of its mean
    module.reduction = options.get("reduction", module.reduction)
    torch.testing.assert_close(module(outputs, labels), function(outputs, labels, **options))


def test_options_are_those_of_the_module():
    module = as_criterion(functools.partial(F.cross_entropy, label_smoothing=0.1, ignore_index=2))
    assert (module.label_smoothing, module.ignore_index) == (0.1, 2)


def test_other_criteria_stay_as_they_are():
    module = nn.CrossEntropyLoss()
    assert as_criterion(module) is module
    assert as_criterion(jnp.subtract) is jnp.subtract


def test_a_loss_by_a_function_is_torchs():
    module = nn.Linear(3, 2)
    x, y = torch.ones(4, 3), torch.tensor([0, 1, 1, 0])
    net = lla_torch.convert(module, x)
    loss = net.loss(F.cross_entropy)
    assert loss.criterion == net.loss(nn.CrossEntropyLoss()).criterion
    outputs, _ = loss.apply(net.variables["params"], loss.state, (x.numpy(), y.numpy()), False)
    losses, _ = loss.criterion(outputs, (x.numpy(), y.numpy()))
    np.testing.assert_allclose(losses.mean(), F.cross_entropy(module(x), y).detach(), rtol=1e-6)
