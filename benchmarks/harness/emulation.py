"""Emulates on a CPU how a TPU or a GPU multiplies matrices, by a pass over jaxprs.

Before every matrix product and convolution of float32 numbers the operands are rounded to the format that the platform
has for the product's precision (``lla_jax.core.operands``); three passes of bfloat16 are three products. The sums of a
product stay in float32, as they do there. The pass goes through calls, loops, branches, custom derivatives and
rematerialisation. What it emulates is the rounding, and not the order in which a device adds up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax

from lla_jax.core import jaxprs, operands
from lla_jax.landscape import batch_stats, kernels

STATIC = {
    "block_sums": ("formula", "plan", "mesh"),
    "point_values": ("formula", "loop", "mesh", "point_metrics"),
    "batch_statistics": ("formula", "size", "loop", "mesh", "is_average"),
}
"""The programs of a landscape, and their static arguments."""


def emulate(f: Callable[..., Any], platform: str) -> Callable[..., Any]:
    """``f`` as a platform ("tpu", "gpu" or "cpu") would compute it, a function that jax can trace."""
    device = SimpleNamespace(platform=platform)

    def rule(eqn: Any, values: list[Any]) -> Sequence[Any]:
        found = operands.format_in(eqn, device)
        if found is not None:
            return _product(eqn, values, found)
        params = {name: _inside(value) for name, value in eqn.params.items()}
        return jaxprs.bind(eqn.replace(params=params), values)

    def _inside(value: Any) -> Any:
        if isinstance(value, tuple) and any(hasattr(x, "jaxpr") for x in value):  # branches
            return tuple(map(_inside, value))
        if hasattr(value, "jaxpr") and hasattr(value, "consts"):
            return jax.make_jaxpr(lambda *args: jaxprs.interpret(value, args, rule))(*value.in_avals)
        if hasattr(value, "eqns") and operands.format_inside(value, device) != operands.EXACT:
            raise NotImplementedError("products in a jaxpr without constants, as of shard_map; use one device")
        return value

    def run(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)
        return jax.tree.unflatten(jax.tree.structure(shape), jaxprs.interpret(closed, jax.tree.leaves(args), rule))

    return run


def _product(eqn: Any, values: list[Any], name: str) -> Sequence[Any]:
    """A matrix product whose operands are rounded to a format."""
    if name != "bfloat16_3x":
        return jaxprs.bind(eqn, [operands.rounded(x, name) for x in values])
    high = [operands.rounded(x, "bfloat16") for x in values]
    low = [operands.rounded(x - h, "bfloat16") for x, h in zip(values, high, strict=True)]
    pairs = (high[0], high[1]), (high[0], low[1]), (low[0], high[1])
    parts = [jaxprs.bind(eqn, list(pair)) for pair in pairs]
    return [sum(each[1:], each[0]) for each in zip(*parts, strict=True)]


@contextlib.contextmanager
def landscapes_on(platform: str) -> Iterator[None]:
    """Landscapes of one device are computed as on a platform while this context is open."""
    with contextlib.ExitStack() as stack:
        for name, static in STATIC.items():
            room = batch_stats if name == "batch_statistics" else kernels
            stack.enter_context(mock.patch.object(room, name, _emulated(getattr(room, name), static, platform)))
        yield


def _emulated(program: Any, static: tuple[str, ...], platform: str) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:
        return emulate(lambda *arrays: program.__wrapped__(*arrays, **options), platform)(*args)

    return jax.jit(run, static_argnames=static)
