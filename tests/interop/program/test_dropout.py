"""Dropout against torch in float64, with derivatives."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lla_torch.program.ops import dropout
from lla_torch.program.program import Noise
from lla_torch.program.views import View, merge_tail
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.interop.program.check_operators import MASK, assert_close, compare, layer, qkv, r, run_operator, to_jax

aten = torch.ops.aten

pytestmark = pytest.mark.usefixtures("double")


DROPOUT: dict[str, Callable[[], tuple]] = {
    "dropout": lambda: (aten.dropout.default, (r(2, 3, 4), 0.4, True)),
    "dropout off": lambda: (aten.dropout.default, (r(2, 3), 0.4, False)),
    "native": lambda: (aten.native_dropout.default, (r(2, 3), 0.4, True)),
    "native off": lambda: (aten.native_dropout.default, (r(2, 3), 0.4, False)),
}
LAYERS: dict[str, Callable[[], tuple]] = {
    "sdpa dropout": lambda: (aten.scaled_dot_product_attention.default, (*qkv(), MASK, 0.4)),
    "gru deep": lambda: (aten.gru.input, layer(3, layers=2, biases=False, dropout=0.4)),
}
"""Layers with dropout inside."""


@pytest.mark.parametrize("name", DROPOUT)
def test_operator(name: str):
    compare(*DROPOUT[name]())


def test_masks_lie_as_the_tensor_does():
    image, mask = r(2, 3, 2, 2), r(2, 3, 2, 2) > 0
    view = View(jnp.asarray(image.permute(0, 2, 3, 1).numpy()), (0, 3, 1, 2))
    kept = torch.where(mask, image / 0.6, 0)
    (ours,) = run_operator("dropout", (view, 0.4, True), {}, (kept,), [mask.numpy()])
    assert_close(ours, kept, 1e-12)
    (ours,) = run_operator("dropout", (merge_tail(view, 1), 0.4, True), {}, (kept,), [mask.flatten(1).numpy()])
    assert_close(ours, kept.flatten(1), 1e-12)


@pytest.mark.parametrize("name", DROPOUT | LAYERS)
def test_without_key_and_draws_dropout_is_off(name: str):
    op, args, *_ = (DROPOUT | LAYERS)[name]()
    quiet = [0.0 if isinstance(a, float) and a == 0.4 else a for a in args]
    with sdpa_kernel(SDPBackend.MATH):
        expected = op(*quiet)
    expected = expected if isinstance(expected, tuple) else (expected,)
    assert_close(run_operator(op, to_jax(args), {}, expected)[0], expected[0], 1e-12)


def test_a_key_draws_masks_with_the_right_share():
    x = jnp.ones((100, 100))
    noise = Noise(jax.random.key(0), None)
    share = float(jnp.mean(dropout.dropout(x, 0.3, True, draw=noise.draw).array == 0))
    assert abs(share - 0.3) < 0.03
    np.testing.assert_array_equal(dropout.dropout(x, 1.0, True, draw=noise.draw).array, 0)
