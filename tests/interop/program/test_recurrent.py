"""Recurrent layers against torch in float64, with derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from tests.interop.program.check_operators import assert_close, compare, layer, r, run_operator, to_jax

aten = torch.ops.aten

pytestmark = pytest.mark.usefixtures("double")


RECURRENT: dict[str, Callable[[], tuple]] = {
    "lstm": lambda: (aten.lstm.input, layer(4)),
    "lstm deep": lambda: (aten.lstm.input, layer(4, layers=2, both=True, first=True, dropout=0.4)),
    "lstm projected": lambda: (aten.lstm.input, layer(4, proj=2, layers=2, both=True, biases=False)),
    "gru": lambda: (aten.gru.input, layer(3, both=True, first=True)),
    "gru deep": lambda: (aten.gru.input, layer(3, layers=2, biases=False, dropout=0.4)),
    "tanh": lambda: (aten.rnn_tanh.input, layer(1, layers=2)),
    "relu": lambda: (aten.rnn_relu.input, layer(1, both=True)),
    "lstm_cell": lambda: (aten.lstm_cell.default, (r(2, 3), [r(2, 4), r(2, 4)], r(16, 3), r(16, 4), r(16), r(16))),
    "gru_cell": lambda: (aten.gru_cell.default, (r(2, 3), r(2, 4), r(12, 3), r(12, 4), r(12), r(12))),
    "tanh_cell": lambda: (aten.rnn_tanh_cell.default, (r(2, 3), r(2, 4), r(4, 3), r(4, 4), r(4), r(4))),
}

TWICE = {"lstm", "lstm deep", "gru"}


@pytest.mark.parametrize("name", RECURRENT)
def test_operator(name: str):
    compare(*RECURRENT[name](), second=name in TWICE)


def test_unbatched_sequences():
    x, states, params, *rest = layer(4)
    expected = aten.lstm.input(x[:, :1], [s[:, :1] for s in states], params, *rest)
    ours = run_operator(aten.lstm.input, to_jax((x[:, 0], [s[:, 0] for s in states], params, *rest)), {}, expected)
    for mine, theirs in zip(ours, expected, strict=True):
        assert_close(mine, theirs[:, 0], 1e-12)
