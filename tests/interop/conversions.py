"""Conversions of small modules: those that are checked against torch, and those that are refused."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lla_torch
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


def build(kind: Any, *args: Any, seed: int = 0) -> Any:
    """A module with weights by ``seed``, float64, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(*args).double().eval()


def real(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(module: Any, *inputs: Any, second: bool = True, train: bool = False, double: bool = True) -> Any:
    """Outputs, gradient and Hessian product equal torch's, at the inputs and at their first four rows; the net.

    The product is that of central differences unless ``double``: torch's third derivatives of norm layers are wrong.
    """
    net = lla_torch.convert(module, inputs, train=train)
    module.train(train)
    tangent = direction(net.variables["params"])
    named = lla_torch.to_state_dict(net, tangent)
    fewer = tuple(x[:4] for x in inputs)
    expected = reference(module, fewer, tangent=named if second else None, double=double)
    weights = mixing(expected.outputs)
    outputs, grads, hvp, state = computed(
        net.apply, net.variables, arrays(fewer), {}, weights, tangent, None, train=train, second=second
    )
    assert_outputs(outputs, expected.outputs, 1e-12, "outputs")
    assert_named(numpy_dict(net, grads), expected.grads, 1e-10, "gradient")
    if second:
        assert_named(numpy_dict(net, hvp), expected.hvp, 1e-9 if double else 1e-7, "Hessian product")
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


class TiedEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, tokens):
        return self.out(torch.tanh(self.embedding(tokens)))
