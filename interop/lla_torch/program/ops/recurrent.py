"""Recurrent layers: one scan over time per layer and direction, inputs projected for all times at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lla_torch.program.operators import lowering
from lla_torch.program.ops.dropout import drop_entries

Array = jax.Array
Carry = tuple[Array, ...]


@dataclass(frozen=True)
class _Cell:
    """A recurrent cell: ``step(projected input, recurrent projection of h, carry)`` is the next carry, h first."""

    step: Callable[[Array, Array, Carry], Carry]
    states: int
    separate_bias: bool = False  # whether the bias of the recurrent projection must be added to it alone


def _lstm_step(inputs: Array, recurrent: Array, carry: Carry) -> Carry:
    i, f, g, o = jnp.split(inputs + recurrent, 4, axis=-1)
    c = jax.nn.sigmoid(f) * carry[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _gru_step(inputs: Array, recurrent: Array, carry: Carry) -> Carry:
    (ir, iz, i_new), (hr, hz, h_new) = jnp.split(inputs, 3, axis=-1), jnp.split(recurrent, 3, axis=-1)
    new, z = jnp.tanh(i_new + jax.nn.sigmoid(ir + hr) * h_new), jax.nn.sigmoid(iz + hz)
    return (new + z * (carry[0] - new),)


_LSTM = _Cell(_lstm_step, 2)
_GRU = _Cell(_gru_step, 1, separate_bias=True)
_TANH = _Cell(lambda inputs, recurrent, carry: (jnp.tanh(inputs + recurrent),), 1)
_RELU = _Cell(lambda inputs, recurrent, carry: (jax.nn.relu(inputs + recurrent),), 1)


def _direction(cell: _Cell, x: Array, start: Carry, weights: Sequence[Array], has_biases: bool, reverse: bool) -> Any:
    """(outputs (T, B, H), last carry) of one layer in one direction; weights in torch's order."""
    w_ih, w_hh, *rest = weights
    b_ih, b_hh = (rest.pop(0), rest.pop(0)) if has_biases else (None, None)
    inputs = x @ w_ih.T
    if b_ih is not None and b_hh is not None:
        inputs = inputs + (b_ih if cell.separate_bias else b_ih + b_hh)
    kernel = w_hh.T  # transposed once, in front of the loop
    offset = b_hh if cell.separate_bias else None

    def step(carry: Carry, now: Array) -> tuple[Carry, Array]:
        recurrent = carry[0] @ kernel
        carry = cell.step(now, recurrent if offset is None else recurrent + offset, carry)
        if rest:  # LSTM with a projection of its output
            carry = (carry[0] @ rest[0].T, *carry[1:])
        return carry, carry[0]

    end, outputs = lax.scan(step, start, inputs, reverse=reverse)
    return outputs, end


def _layers(
    cell: _Cell,
    x: Array,
    states: Sequence[Array],
    params: Sequence[Array],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    draw: Callable[..., Any],
) -> tuple[Array, ...]:
    """(outputs, last states of all layers and directions). The draw between layers is the mask of the entries kept,
    with time first: (T, B, directions * H)."""
    batched = x.ndim == 3
    if not batched:
        x, states = x[:, None], [s[:, None] for s in states]
    elif batch_first:
        x = jnp.swapaxes(x, 0, 1)
    directions = 1 + bidirectional
    size, left = divmod(len(params), num_layers * directions)
    if left or size not in (2 + 2 * has_biases, 3 + 2 * has_biases):
        raise ValueError(
            f"params: {len(params)} arrays given; they must be those of {num_layers} layers in {directions} "
            f"direction(s) {'with' if has_biases else 'without'} biases: {2 + 2 * has_biases} for each, or "
            f"{3 + 2 * has_biases} with a projection"
        )
    ends = []
    for layer in range(num_layers):
        outputs = []
        for reverse in range(directions):
            k = layer * directions + reverse
            out, end = _direction(
                cell, x, tuple(s[k] for s in states), params[k * size : (k + 1) * size], has_biases, bool(reverse)
            )
            outputs.append(out)
            ends.append(end)
        x = outputs[0] if directions == 1 else jnp.concatenate(outputs, axis=-1)
        if layer < num_layers - 1:
            x = drop_entries(x, dropout if train else 0.0, draw)
    last = tuple(jnp.stack(each) for each in zip(*ends, strict=True))
    if not batched:
        return (x[:, 0], *(s[:, 0] for s in last))
    return (jnp.swapaxes(x, 0, 1) if batch_first else x, *last)


@lowering("aten.lstm.input", random=True)
def lstm(
    x: Array,
    hx: Sequence[Array],
    params: Sequence[Array],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    *,
    draw: Callable[..., Any],
) -> tuple[Array, ...]:
    """(outputs, h, c) of torch.nn.LSTM, with or without ``proj_size``; h and c are the last states of all layers."""
    return _layers(_LSTM, x, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first, draw)


def _register_plain(name: str, cell: _Cell) -> None:
    """Register the layer and the single step of a cell whose only state is its output."""

    @lowering(f"aten.{name}.input", random=True)
    def layer(
        x: Array,
        hx: Array,
        params: Sequence[Array],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
        *,
        draw: Callable[..., Any],
    ) -> tuple[Array, ...]:
        return _layers(cell, x, [hx], params, has_biases, num_layers, dropout, train, bidirectional, batch_first, draw)

    @lowering(f"aten.{name}_cell.default")
    def single(
        x: Array, hx: Array, w_ih: Array, w_hh: Array, b_ih: Array | None = None, b_hh: Array | None = None
    ) -> Array:
        return _cell_step(cell, x, (hx,), w_ih, w_hh, b_ih, b_hh)[0]


for _name, _cell in (("gru", _GRU), ("rnn_tanh", _TANH), ("rnn_relu", _RELU)):
    _register_plain(_name, _cell)


@lowering("aten.lstm_cell.default")
def lstm_cell(
    x: Array,
    hx: Sequence[Array],
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None = None,
    b_hh: Array | None = None,
) -> Carry:
    """(h, c) after one step of an LSTM cell from the states ``hx`` = (h, c)."""
    return _cell_step(_LSTM, x, tuple(hx), w_ih, w_hh, b_ih, b_hh)


def _cell_step(
    cell: _Cell, x: Array, carry: Carry, w_ih: Array, w_hh: Array, b_ih: Array | None, b_hh: Array | None
) -> Carry:
    inputs, recurrent = x @ w_ih.T, carry[0] @ w_hh.T
    return cell.step(inputs if b_ih is None else inputs + b_ih, recurrent if b_hh is None else recurrent + b_hh, carry)
