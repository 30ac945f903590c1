"""torch.cond becomes a choice with the derivatives of the branch that is taken."""

from __future__ import annotations

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lla_torch
from torch import nn

from tests.interop.conversions import build, check, real, refused

pytestmark = [
    pytest.mark.usefixtures("x64"),
    pytest.mark.filterwarnings("ignore:The .grad attribute"),  # torch.cond of torch itself
]


class Choice(nn.Module):
    """The logarithm of a branch that is not taken would be NaN."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda y: y.sin() * y.detach(), lambda y: y.abs().log(), (self.fc(x),))


def test_a_choice_by_values():
    module = build(Choice)
    for sign in (1, -1):  # torch has no second derivative of torch.cond
        net = check(module, sign * real(7, 4).abs(), second=False)
    zero = jax.tree.map(np.zeros_like, net.variables["params"])
    gradient = jax.grad(lambda p: net.apply({"params": p}, np.ones((2, 4))).sum())(zero)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_equal_choices_are_equal_programs():
    class Other(Choice):
        def forward(self, x):
            layer = self.fc
            return torch.cond(x.sum() > 0, lambda y: y.sin() * y.detach(), lambda y: y.abs().log(), (layer(x),))

    one, other = (lla_torch.convert(build(kind), real(3, 4)) for kind in (Choice, Other))
    assert one.function == other.function
    assert hash(one.function) == hash(other.function)


def test_second_derivatives_are_those_of_the_branch():
    class Plain(Choice):
        def forward(self, x):
            return self.fc(x).abs().log()

    x = -real(3, 4).abs().numpy()
    nets = [lla_torch.convert(build(kind), torch.tensor(x)) for kind in (Choice, Plain)]
    grads = [jax.grad(lambda p, net=net: net.apply({"params": p}, x).sum()) for net in nets]
    p = nets[0].variables["params"]
    found, expected = (jax.jvp(f, (p,), (p,))[1] for f in grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)


def test_no_grad_inside_of_a_branch_is_refused():
    class Silent(Choice):
        def forward(self, x):
            def branch(y):
                with torch.no_grad():
                    z = y.sin()
                return z * y

            return torch.cond(x.sum() > 0, branch, lambda y: y.cos(), (self.fc(x),))

    assert "detach()" in refused(build(Silent), real(3, 4))


def test_loops_that_take_functions_are_refused():
    from torch._higher_order_ops.while_loop import while_loop

    class Loop(Choice):
        def forward(self, x):
            return while_loop(lambda y: y.abs().sum() < 100, lambda y: (y * 2,), (self.fc(x),))[0]

    assert "loop of a fixed number of steps in Python" in refused(build(Loop), real(3, 4))
