"""The pure kernel: jitted and differentiated by the user, and what it refuses."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core import losses
from lla_jax.execution import plans
from lla_jax.landscape import kernels, rules
from tests.helpers import mlp_loss, moved, params, reference_losses
from tests.landscape.cases import DATA, RTOL


def test_the_kernel_is_jittable_and_differentiable(axes):
    coords = np.array([[0.0, 0.0], [0.3, -0.2]], np.float32)
    kernel = jax.jit(lambda p, c: lla.landscape.losses(mlp_loss(), p, axes[:2].tree, c, DATA))
    expected = [reference_losses(moved(params(), axes[:2], c), DATA).mean() for c in coords]
    np.testing.assert_allclose(kernel(params(), coords), expected, rtol=RTOL)
    slope = jax.grad(lambda c: kernel(params(), c).sum())(coords)
    eps = 1e-3
    up, down = (
        reference_losses(moved(params(), axes[:2], coords[1] + s * np.array([eps, 0])), DATA).mean() for s in (1, -1)
    )
    assert slope[1, 0] == pytest.approx((up - down) / (2 * eps), rel=1e-3)


def test_directions_and_lists_of_coordinates_are_taken():
    centre, line = {"w": np.ones(2, np.float32)}, {"w": np.array([1, 3], np.float32)}
    found = lla.landscape.losses(
        lambda p, batch: p["w"].sum(), centre, lla.directions.given(line), [[0.0], [0.5]], np.zeros((1, 1), np.float32)
    )
    np.testing.assert_allclose(found, [2, 4])


def test_sharing_is_for_the_add_rule_only(axes):
    with pytest.raises(ValueError, match="only the add rule is affine"):
        lla.landscape.losses(
            mlp_loss(), params(), axes[:2].tree, np.ones((1, 2)), DATA, rule=lla.landscape.adam, share=True
        )


@pytest.mark.parametrize("coords", [np.zeros(2, np.float32), np.zeros((4, 3), np.float32)])
def test_coordinates_of_another_shape_are_refused(axes, coords):
    with pytest.raises(ValueError, match=r"coords: .* given; it must be an array of shape \(C, 2\)"):
        lla.landscape.losses(mlp_loss(), params(), axes[:2].tree, coords, DATA)


@pytest.mark.parametrize(
    "change",
    [
        {"coords": np.zeros(2, np.float32)},
        {"coords": np.zeros((4, 3), np.float32)},
        {"states": {"mean": np.zeros((3, 5), np.float32)}},
    ],
)
def test_points_whose_parts_do_not_fit_are_found_while_tracing(axes, change):
    points = kernels.Points(params(), axes[:2].tree, np.zeros((4, 2), np.float32))
    block = losses.block_at(DATA, 0, len(DATA[1]), len(DATA[1]), 0)
    formula, plan = kernels.Formula(rules.add, False, ()), plans.Plan(4, len(DATA[1]), "map", False)

    def sums(points):
        return kernels.sums_at_points(mlp_loss(), points, block, formula, plan)

    assert jax.eval_shape(sums, points)["loss"].shape == (4, 7)
    with pytest.raises(AssertionError):
        jax.eval_shape(sums, points._replace(**change))
