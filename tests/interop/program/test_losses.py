"""Loss functions against torch in float64, with derivatives."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lla_torch.program.ops.losses import binary_cross_entropy

from tests.interop.program.check_operators import as_constant, compare, prob, r

aten = torch.ops.aten

pytestmark = pytest.mark.usefixtures("double")


T = torch.tensor
SIGNS = T([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
CLASSES = T([1, 0, -100, 3])
LOSSES: dict[str, Callable[[], tuple]] = {
    "nll mean": lambda: (aten.nll_loss_forward.default, (r(4, 5), CLASSES, as_constant(r(5).abs()), 1, -100)),
    "nll none": lambda: (aten.nll_loss_forward.default, (r(4, 5), CLASSES, None, 0, -100)),
    "nll single": lambda: (aten.nll_loss_forward.default, (r(5), T(2), None, 2, 1)),
    "nll2d": lambda: (
        aten.nll_loss2d_forward.default,
        (r(2, 5, 2, 2), CLASSES.reshape(1, 2, 2).repeat(2, 1, 1), None, 1, -100),
    ),
    "nll_nd": lambda: (aten.nll_loss_nd.default, (r(2, 5, 2), T([[1, 0], [2, 4]]), None, 0)),
    "cross entropy": lambda: (aten.cross_entropy_loss.default, (r(4, 5), CLASSES, as_constant(r(5).abs()))),
    "cross entropy smoothed": lambda: (
        aten.cross_entropy_loss.default,
        (r(4, 5), CLASSES, as_constant(r(5).abs()), 1, -100, 0.2),
    ),
    "cross entropy images": lambda: (
        aten.cross_entropy_loss.default,
        (r(2, 5, 2), T([[1, 0], [2, 4]]), as_constant(r(5)), 0, 4, 0.2),
    ),
    "cross entropy soft": lambda: (
        aten.cross_entropy_loss.default,
        (r(4, 5, 2), prob(4, 5, 2), as_constant(r(5)), 1, -100, 0.2),
    ),
    "multi margin": lambda: (aten.multi_margin_loss.default, (r(4, 5), T([0, 4, 1, 1]), 2, 0.7, None, 0)),
    "multi label": lambda: (
        aten.multilabel_margin_loss_forward.default,
        (r(2, 4), T([[3, 0, -1, 1], [-1, 0, 1, 2]]), 0),
    ),
    "multi margin of one number": lambda: (aten.multi_margin_loss.default, (r(1)[0].detach(), T(0), 1, 1.0, None, 0)),
    "multi label of one number": lambda: (
        aten.multilabel_margin_loss_forward.default,
        (r(1)[0].detach().requires_grad_(), T(0), 0),
    ),
    "bce": lambda: (aten.binary_cross_entropy.default, (r(4).sigmoid(), prob(2, 4)[0], as_constant(r(4)), 0)),
    "bce bounds": lambda: (
        aten.binary_cross_entropy.default,
        (T([0.0, 1.0, 0.0, 1.0], dtype=torch.float64), as_constant(T([0.0, 1.0, 1.0, 0.0], dtype=torch.float64))),
    ),
    "bce logits": lambda: (
        aten.binary_cross_entropy_with_logits.default,
        (50 * r(3, 4), prob(3, 4), as_constant(r(4)), as_constant(r(4)), 2),
    ),
    "bce logits 0": lambda: (aten.binary_cross_entropy_with_logits.default, (0 * r(3), r(3).sigmoid())),
    "kl": lambda: (aten.kl_div.default, (r(3, 4), prob(3, 4))),
    "kl log": lambda: (aten.kl_div.default, (r(3, 4), r(3, 4), 0), {"log_target": True}),
    "poisson": lambda: (aten.poisson_nll_loss.default, (r(8), 3 * r(8).abs(), True, True, 1e-8, 1)),
    "poisson rates": lambda: (aten.poisson_nll_loss.default, (r(8).abs(), r(8).abs(), False, False, 1e-8, 0)),
    "mse": lambda: (aten.mse_loss.default, (r(3, 4), r(3, 4), 2)),
    "l1": lambda: (aten.l1_loss.default, (r(3, 4), r(3, 4), 1)),
    "huber": lambda: (aten.huber_loss.default, (r(3, 4), r(3, 4), 1, 0.7)),
    "smooth": lambda: (aten.smooth_l1_loss.default, (r(3, 4), r(3, 4), 0, 0.7)),
    "smooth 0": lambda: (aten.smooth_l1_loss.default, (r(3, 4), r(3, 4), 1, 0.0)),
    "soft margin": lambda: (aten.soft_margin_loss.default, (r(4), as_constant(SIGNS.clone()))),
    "ranking": lambda: (aten.margin_ranking_loss.default, (r(4), r(4), SIGNS.clone(), 0.3)),
    "hinge": lambda: (aten.hinge_embedding_loss.default, (r(4), SIGNS.to(torch.int64), 0.8, 0)),
    "cosine": lambda: (aten.cosine_embedding_loss.default, (r(4, 3), r(4, 3), SIGNS.to(torch.int64), 0.1)),
    "triplet": lambda: (aten.triplet_margin_loss.default, (r(4, 3), r(4, 3), r(4, 3)), {"swap": True}),
    "triplet p": lambda: (aten.triplet_margin_loss.default, (r(4, 3), r(4, 3), r(4, 3), 0.5, 3.0)),
}

LOSSES |= {  # where |x - t| has its kink
    "l1 0": lambda: (aten.l1_loss.default, (0 * r(3), 0 * r(3), 1)),
    "huber 0": lambda: (aten.huber_loss.default, (0 * r(3), 0 * r(3), 2, 0.7)),
}

TWICE = {"bce", "huber", "cross entropy"}


@pytest.mark.parametrize("name", LOSSES)
def test_operator(name: str):
    compare(*LOSSES[name](), second=name in TWICE)


def test_what_is_no_probability_has_no_cross_entropy_and_no_derivatives():
    """torch refuses outputs without a sigmoid; numbers for them would be those of another loss."""
    x, t = jnp.array([0.3, 1.5, 0.3, -0.1]), jnp.array([1.0, 1.0, 2.0, 0.0])
    losses = lambda x: binary_cross_entropy(x, t, reduction=0)  # noqa: E731
    slope = jax.grad(lambda x: losses(x).sum())
    for values in (losses(x), slope(x), jax.jvp(slope, (x,), (jnp.ones(4),))[1]):
        np.testing.assert_array_equal(np.isnan(values), [False, True, True, True])
