"""An operator compared with torch in float64: values, gradients, and Hessian-vector products."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lla_torch.program.ops  # noqa: F401  (fills the table)
from lla_torch.conversion.ties import tie_arguments
from lla_torch.program.operators import TABLE, full_name
from lla_torch.program.program import DType, Instruction, Noise, run_instruction
from lla_torch.program.views import plain
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
FIRST = slice(1)
"""Picks the first result of an operator."""
MASK = torch.tensor([[1, 0, 1, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0]], dtype=torch.bool)
"""The keys that each query sees; the second one sees none."""


class Recorder(TorchDispatchMode):
    """Keeps the masks that torch draws."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[np.ndarray] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if "bernoulli" in str(func):
            self.draws.append(result.detach().numpy() != 0)
        elif func is aten.native_dropout.default and args[2] is not False:
            self.draws.append(result[1].numpy())
        return result


def to_jax(x: Any) -> Any:
    """The argument as the interpreter has it: tensors as views, lists as tuples."""
    if isinstance(x, torch.Tensor):
        return plain(jnp.asarray(x.detach().numpy()))
    return tuple(map(to_jax, x)) if isinstance(x, list | tuple) else x


def run_operator(op: Any, args: Any, kwargs: Any, outputs: Any, draws: Any = None) -> tuple[Any, ...]:
    """Our result, as logical arrays; ``args`` with views."""
    name = full_name(op)
    dtypes = tuple(DType(str(o.dtype).split(".")[1]) for o in outputs)
    instruction = Instruction(TABLE[name], (), (), 0, dtypes)
    noise = Noise(None, draws)
    named = dict(kwargs) | tie_arguments(TABLE[name].function, op)
    result = run_instruction(instruction, list(args), named, noise, np.dtype("float64"))
    noise.finish()
    return tuple(r.logical() for r in (result if isinstance(result, tuple) else (result,)))


def as_constant(x: Any) -> Any:
    """The tensor, marked as one that torch does not differentiate by."""
    x.fixed = True
    return x


def is_variable(x: Any) -> bool:
    """Whether to differentiate by a tensor."""
    return x.is_floating_point() and not getattr(x, "fixed", False)


def variables_of(args: Any) -> list[Any]:
    """The tensors to differentiate by among nested arguments."""
    if isinstance(args, torch.Tensor):
        return [args] if is_variable(args) else []
    return [leaf for a in args for leaf in variables_of(a)] if isinstance(args, list | tuple) else []


def fill(args: Any, values: Any) -> Any:
    """Nested arguments with the tensors to differentiate by taken from ``values``, the others converted."""
    if isinstance(args, torch.Tensor):
        return plain(next(values)) if is_variable(args) else to_jax(args)
    return tuple(fill(a, values) for a in args) if isinstance(args, list | tuple) else args


def assert_close(ours: Any, theirs: Any, tolerance: float) -> None:
    """Equal within ``tolerance`` of the largest entry."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    scale = np.abs(theirs[np.isfinite(theirs)]).max(initial=1e-30)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(scale, 1e-3))


def compare(op: Any, args: tuple, kwargs: dict | None = None, picks: slice = slice(None), second: bool = False) -> None:
    """Values of the results ``picks``, gradients with a random cotangent, and a Hessian-vector product."""
    kwargs = kwargs or {}
    leaves = [x.requires_grad_() for x in variables_of(args)]
    with Recorder() as recorder, sdpa_kernel(SDPBackend.MATH):
        result = op(*args, **kwargs)
    outputs = result if isinstance(result, tuple) else (result,)
    picked = range(len(outputs))[picks]
    wanted = [i for i in picked if outputs[i].requires_grad]
    cotangents = [torch.randn_like(outputs[i]) for i in wanted]
    draws = recorder.draws or None

    def run(values: list[jax.Array]) -> tuple[Any, ...]:
        return run_operator(op, fill(args, iter(values)), kwargs, outputs, draws)

    def value(values: list[jax.Array]) -> jax.Array:
        ours = run(values)
        return sum(jnp.vdot(jnp.asarray(c.numpy()), ours[i]) for i, c in zip(wanted, cotangents, strict=True))

    at = [jnp.asarray(x.detach().numpy()) for x in leaves]
    ours = jax.jit(run)(at)
    for i in picked:
        assert_close(ours[i], outputs[i].detach(), 1e-12)
    if not wanted:
        return
    scalar = sum((c * outputs[i]).sum() for i, c in zip(wanted, cotangents, strict=True))
    grads = torch.autograd.grad(scalar, leaves, create_graph=second, allow_unused=True, materialize_grads=True)
    for ours, theirs in zip(jax.jit(jax.grad(value))(at), grads, strict=True):
        assert_close(ours, theirs.detach(), 1e-10)
    if second:
        vectors = [torch.randn_like(x) for x in leaves]
        inner = sum((g * v).sum() for g, v in zip(grads, vectors, strict=True))
        products = torch.autograd.grad(inner, leaves, allow_unused=True, materialize_grads=True)
        tangents = [jnp.asarray(v.numpy()) for v in vectors]
        ours = jax.jit(lambda p, v: jax.jvp(jax.grad(value), (p,), (v,))[1])(at, tangents)
        for mine, theirs in zip(ours, products, strict=True):
            assert_close(mine, theirs, 1e-10)


def r(*shape: int) -> Any:
    """Random normal numbers."""
    return torch.randn(*shape, dtype=torch.float64)


def prob(*shape: int) -> Any:
    """Probabilities that sum to 1 along the second axis."""
    return torch.softmax(r(*shape), 1)


def qkv(heads: int = 2, served: int = 2) -> tuple:
    """Queries, keys and values of attention."""
    return r(2, heads, 3, 4), r(2, served, 5, 4), r(2, served, 5, 3)


def layer(gates: int, **options: Any) -> tuple:
    """Arguments of a recurrent layer."""
    o = {"biases": True, "layers": 1, "dropout": 0.0, "both": False, "first": False, "proj": 0, "flat": False} | options
    inputs, hidden, steps, batch = 3, 4, 5, 2
    size = o["proj"] or hidden
    directions = 1 + o["both"]
    params = []
    for depth in range(o["layers"]):
        for _ in range(directions):
            params += [r(gates * hidden, inputs if depth == 0 else size * directions), r(gates * hidden, size)]
            params += [r(gates * hidden), r(gates * hidden)] if o["biases"] else []
            params += [r(size, hidden)] if o["proj"] else []
    k = o["layers"] * directions
    x = r(batch, steps, inputs) if o["first"] else r(steps, batch, inputs)
    h = r(k, batch, size)
    states = [h, r(k, batch, hidden)] if gates == 4 else h
    train = o["dropout"] > 0
    return x, states, params, o["biases"], o["layers"], o["dropout"], train, o["both"], o["first"]
