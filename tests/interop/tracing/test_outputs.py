"""What of a module's outputs a converted network returns, and what it leaves out."""

import collections
import dataclasses
import logging
import types

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lla_torch
from lla_torch.tracing.outputs import split_outputs
from torch import nn

X = torch.arange(6.0).reshape(2, 3)
Pair = collections.namedtuple("Pair", "first second")


@dataclasses.dataclass
class Answer:
    logits: object
    inner: object = None
    name: str = "answer"


class Declared:
    """As attrs makes it: fields are known by ``__attrs_attrs__``."""

    __attrs_attrs__ = (types.SimpleNamespace(name="scores"), types.SimpleNamespace(name="cache"))

    def __init__(self, scores, cache):
        self.scores, self.cache = scores, cache


class Cache:
    """An object of which torch knows nothing, with tensors inside."""

    def __init__(self, x):
        self.keys = [x]


class Returns(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.linear, self.outputs = nn.Linear(3, 3), outputs

    def forward(self, x):
        return self.outputs(self.linear(x))


KINDS = {
    "a cache in a dict": (lambda y: {"logits": y, "past": Cache(y)}, {"logits": 0}, {"past": "Cache"}),
    "a cache in a mapping of its own": (
        lambda y: collections.UserDict(logits=y, past=Cache(y)),
        {"logits": 0},
        {"past": "Cache"},
    ),
    "a cache in a tuple": (lambda y: (y, Cache(y), 2 * y), (0, None, 1), {"1": "Cache"}),
    "a cache in a named tuple": (lambda y: Pair(Cache(y), y), Pair(None, 0), {"first": "Cache"}),
    "tensors of a cache that is a tuple": (
        lambda y: {"logits": y, "past": ((y, y + 1),)},
        {"logits": 0, "past": ((0, 1),)},
        {},
    ),
    "a dataclass": (lambda y: Answer(y), {"logits": 0, "inner": None}, {"name": "str"}),
    "a dataclass in a list": (
        lambda y: [Answer(y, {"states": [y]})],
        [{"logits": 0, "inner": {"states": [1]}}],
        {"0.name": "str"},
    ),
    "declared fields": (lambda y: Declared(y, Cache(y)), {"scores": 0}, {"cache": "Cache"}),
    "a distribution": (lambda y: (y, torch.distributions.Normal(y, 1.0)), (0, None), {"1": "Normal"}),
    "numbers and names": (lambda y: {"y": y, "scale": 0.5, "kind": "a"}, {"y": 0, "scale": 0.5}, {"kind": "str"}),
}


def same(found, pattern, y):
    """Whether outputs are nested as a pattern, whose whole numbers stand for arrays."""
    if isinstance(pattern, dict):
        return found.keys() == pattern.keys() and all(same(found[name], pattern[name], y) for name in pattern)
    if isinstance(pattern, tuple | list):
        return type(found) is type(pattern) and all(same(a, b, y) for a, b in zip(found, pattern, strict=True))
    return np.shape(found) == y.shape if isinstance(pattern, int) else found == pattern


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_of_every_class_come_as_dicts_and_sequences(kind, caplog):
    outputs, pattern, dropped = KINDS[kind]
    module = Returns(outputs)
    with caplog.at_level(logging.INFO, "lla_torch"):
        net = lla_torch.convert(module, X)
    found = net.apply(net.variables, X.numpy())
    assert same(found, pattern, X)
    assert net.dropped == dropped
    assert all(f"{path} ({name})" in repr(net) for path, name in dropped.items())
    assert ("left out" in caplog.text) == bool(dropped)
    first = next(x for x in jax.tree.leaves(found) if np.shape(x) == X.shape)
    np.testing.assert_allclose(first, module.linear(X).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_outputs_without_a_tensor_are_refused_with_their_class():
    with pytest.raises(lla_torch.ConversionError, match=r"no tensor that can be found: Normal; .*return the tensors"):
        lla_torch.convert(Returns(lambda y: torch.distributions.Normal(y, 1.0)), X)


def test_certificate_and_record_of_dataclass_outputs():
    module = Returns(lambda y: Answer(y, Cache(y)))
    net = lla_torch.convert(module, X)
    assert lla_torch.certify(module, net, (X,)).ok
    outputs, _ = lla_torch.record(module, X)
    np.testing.assert_array_equal(outputs["logits"], module.linear(X).detach().numpy())


def test_classes_themselves_are_no_outputs():
    assert split_outputs((X, Answer)) == ((X, None), {"1": "type"})
