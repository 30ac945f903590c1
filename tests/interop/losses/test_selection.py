"""What a criterion gets of the outputs of a network that returns several."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lla_torch
from torch import nn

import lla_jax as lla

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])
ENTROPY = nn.CrossEntropyLoss()


@dataclasses.dataclass
class Output:
    logits: Any
    cache: Any = None


class Returns(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.linear, self.outputs = nn.Linear(4, 3), outputs

    def forward(self, x):
        return self.outputs(self.linear(x))


def loss_of(net, criterion=ENTROPY, data=(X, Y), **options):
    loss = net.loss(criterion, **options)
    batch = jax.tree.map(lambda t: t.numpy(), data)
    found = loss.criterion(loss.apply(net.variables["params"], None, batch, False)[0], batch)
    losses, weights = found if isinstance(found, tuple) else (found, np.ones_like(found))
    return float((losses * weights).sum() / weights.sum())


FOUND = {
    "logits": (lambda y: {"logits": y, "hidden": 2 * y, "inner": (y, y)}, None),
    "logits of a dataclass": (lambda y: Output(y, object()), None),
    "the only array of floats": (lambda y: {"scores": y, "best": y.argmax(1)}, None),
    "a tuple without the rest": (lambda y: (y, object(), None), None),
    "by name": (lambda y: {"logits": 2 * y, "second": y}, "second"),
    "by number": (lambda y: (2 * y, y), 1),
    "by number from the end": (lambda y: [2 * y, y], -1),
    "by a function": (lambda y: {"halves": (y / 2, y / 2)}, lambda out: out["halves"][0] + out["halves"][1]),
}


@pytest.mark.parametrize("kind", FOUND)
def test_torch_loss_of_one_among_several_outputs(kind):
    outputs, choice = FOUND[kind]
    module = Returns(outputs)
    net = lla_torch.convert(module, X)
    expected = float(ENTROPY(module.linear(X), Y).detach())
    np.testing.assert_allclose(loss_of(net, outputs=choice), expected, rtol=1e-6)


def test_curvature_likelihood_and_certificate_of_selected_outputs():
    module = Returns(lambda y: {"first": 2 * y, "second": y})
    net = lla_torch.convert(module, X)
    loss, params = net.loss(ENTROPY, outputs="second"), net.variables["params"]
    plain = lla_torch.convert(module.linear, X)
    expected = lla.ggn(plain.loss(ENTROPY), plain.variables["params"], (X, Y)).mv(plain.variables["params"])
    found = lla.ggn(loss, params, (X, Y)).mv(params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert lla.fisher(loss, params, (X, Y), jax.random.key(0)).shape == (15, 15)
    assert lla_torch.certify(module, net, (X, Y), ENTROPY, outputs="second").ok


@pytest.mark.parametrize(
    ("outputs", "choice", "says"),
    [
        (lambda y: {"start": y, "end": 2 * y}, None, r"'end' \(6, 3\), 'start' \(6, 3\).*pass outputs="),
        (lambda y: (y, 2 * y), None, r"tuple with 0 \(6, 3\), 1 .*pass outputs="),
        (lambda y: {"logits": y}, "logit", r"outputs: 'logit' given; the network returns a dict with 'logits'"),
        (lambda y: (y, y), 2, r"outputs: 2 given; the network returns a tuple with 0"),
        (lambda y: y, "logits", r"outputs: 'logits' given; the network returns one array of shape \(6, 3\)"),
        (lambda y: {"logits": y[:, None].expand(-1, 6, -1)}, None, r"classes on axis 1.*swapaxes"),
    ],
)
def test_torch_loss_that_fits_no_output_is_refused_with_their_names(outputs, choice, says):
    net = lla_torch.convert(Returns(outputs), X)
    labels = Y if "axis 1" not in says else Y[None].expand(6, -1)
    with pytest.raises(ValueError, match=says):
        loss_of(net, data=(X, labels), outputs=choice)


def test_outputs_of_another_type_are_refused():
    with pytest.raises(ValueError, match=r"outputs: 1\.5 given; it must be a function"):
        lla_torch.convert(nn.Linear(4, 3), X).loss(ENTROPY, outputs=1.5)


def test_loss_module_of_the_users_gets_all_outputs_as_before():
    class Both(nn.Module):
        reduction = "none"

        def forward(self, outputs, labels):
            return nn.functional.cross_entropy(outputs["logits"] + outputs["other"], labels, reduction="none")

    class ByAttribute(Both):
        def forward(self, outputs, labels):
            return nn.functional.cross_entropy(outputs.logits, labels, reduction="none")

    module = Returns(lambda y: {"logits": y, "other": 2 * y})
    net = lla_torch.convert(module, X)
    np.testing.assert_allclose(loss_of(net, Both()), float(ENTROPY(3 * module.linear(X), Y).detach()), rtol=1e-6)
    with pytest.raises(ValueError, match=r"ByAttribute failed .*outputs\['name'\]"):
        loss_of(net, ByAttribute())


def test_a_whole_with_a_key_has_the_outputs_that_are_selected():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return {"noise": torch.randn_like(x), "logits": self.linear(x + torch.randn_like(x))}

    net = lla_torch.convert(Noisy(), X)
    loss = net.loss(ENTROPY, outputs="logits", key=jax.random.key(0))
    line = lla.directions.random(jax.random.key(1), net.variables["params"], 1)
    values = lla.evaluate(loss, net.variables["params"], lla.whole((X, Y)), line, lla.grid(points=3, dims=1)).values
    assert np.isfinite(values["loss"]).all()
