"""Derivatives of a part of the program: what ``torch.autograd.grad`` and ``torch.func`` leave in the graph.

Functions of the layout "graph" are called with ``(function, inputs, vectors, batched)``: the part of the program
between the inputs and the outputs as a function of arrays that returns a tuple, the inputs, the vectors of the product,
and the number of axes in front of the vectors over which it is mapped. Arrays have torch's order of axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lla_torch.program.operators import lowering


@lowering("lla_torch.vjp.default", layout="graph")
def vjp(function: Callable[..., Any], inputs: Sequence[Any], cotangents: Sequence[Any], batched: int) -> Any:
    """Cotangents times the derivative; torch's gradient by a complex number is the conjugate of jax's."""
    outputs, product = jax.vjp(function, *inputs)

    def multiply(*vectors: Any) -> Any:
        pairs = zip(vectors, outputs, strict=True)
        return tuple(map(jnp.conj, product(tuple(jnp.conj(v).astype(y.dtype) for v, y in pairs))))

    return _mapped(multiply, batched)(*cotangents)


@lowering("lla_torch.jvp.default", layout="graph")
def jvp(function: Callable[..., Any], inputs: Sequence[Any], tangents: Sequence[Any], batched: int) -> Any:
    """The derivative times tangents."""

    def multiply(*vectors: Any) -> Any:
        moved = tuple(v.astype(x.dtype) for v, x in zip(vectors, inputs, strict=True))
        return jax.jvp(function, tuple(inputs), moved)[1]

    return _mapped(multiply, batched)(*tangents)


def _mapped(function: Callable[..., Any], batched: int) -> Callable[..., Any]:
    for _ in range(batched):
        function = jax.vmap(function)
    return function


@lowering("lla_torch.variable.default", layout="views")
def variable(x: Any, tokens: Any) -> Any:
    """x itself, by which the program differentiates."""
    return x
