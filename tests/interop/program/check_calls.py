"""A call of an ATen operator compared with torch: values and gradients in float64, in both layouts."""

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
from lla_torch.program.views import View, channels_last, inverse

from tests.interop.program.calls import CALLS, LOOSE, NO_GRADIENT


def physical_order(x: np.ndarray, permuted: bool) -> tuple[int, ...]:
    """The order of axes of the array under a view: channels last, or the reverse of a matrix."""
    if not permuted or x.ndim < 2:
        return tuple(range(x.ndim))
    return (1, 0) if x.ndim == 2 else channels_last(x.ndim)


def differentiable(x: Any) -> bool:
    """Whether to differentiate by an argument."""
    return isinstance(x, np.ndarray) and x.dtype == np.float64


def to_torch(x: Any) -> Any:
    """An argument as torch has it, arrays as tensors."""
    if isinstance(x, np.ndarray):
        return torch.tensor(x, requires_grad=differentiable(x))
    return [to_torch(v) for v in x] if isinstance(x, tuple) else x


def leaves(x: Any) -> list[Any]:
    """The values in nested tuples and lists."""
    return [leaf for v in x for leaf in leaves(v)] if isinstance(x, tuple | list) else [x]


def torch_op(name: str) -> Any:
    """torch's operator of a name in the table of calls."""
    packet, overload = full_name(f"aten.{name}").split(".")[1:]
    return getattr(getattr(torch.ops.aten, packet), overload)


def jax_dtype(dtype: Any) -> np.dtype:
    """A type of torch as numpy's."""
    return np.dtype(str(dtype).removeprefix("torch."))


def run_call(
    name: str, args: Any, kwargs: dict[str, Any], dtypes: Any, floats: list[jax.Array], permuted: bool
) -> list[Any]:
    """Our results in torch's order of axes, with the float arrays of the arguments replaced by ``floats``."""
    given = iter(floats)

    def value(x: Any) -> Any:
        if isinstance(x, np.ndarray):
            order = physical_order(x, permuted)
            array = next(given) if differentiable(x) else jnp.asarray(x)
            return View(jnp.transpose(array, inverse(order)), order)
        if isinstance(x, tuple):
            return tuple(value(v) for v in x)
        return jax_dtype(x) if isinstance(x, torch.dtype) else x

    arguments = [value(a) for a in args]
    named = {k: value(v) for k, v in kwargs.items()}
    instruction = Instruction(TABLE[full_name(f"aten.{name}")], (), (), 0, dtypes)
    named |= tie_arguments(instruction.operator.function, torch_op(name))
    result = run_instruction(instruction, arguments, named, Noise(None, None), np.dtype(np.float64))
    return [r.logical() for r in leaves(result)]


def assert_near(got: Any, wanted: Any, tolerance: float) -> None:
    """Equal within ``tolerance`` of the largest entry, or of 1."""
    wanted = wanted.detach().resolve_neg().numpy(force=True) if isinstance(wanted, torch.Tensor) else wanted
    got = np.asarray(got)
    assert got.shape == wanted.shape
    if wanted.dtype.kind != "f":
        np.testing.assert_array_equal(got, wanted)
        return
    finite = np.isfinite(wanted)
    scale = max(np.abs(wanted[finite]).max(initial=0.0), 1.0)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * scale)


def calls_of(module: str) -> list[Any]:
    """The calls of operators of one module, and again with permuted tensors where the function sees their layout."""
    params = []
    for i, (name, args, kwargs) in enumerate(CALLS):
        operator = TABLE[full_name(f"aten.{name}")]
        if operator.subject.rpartition(".")[2] != module:
            continue
        params.append(pytest.param(name, args, kwargs, False, id=f"{i}-{name}"))
        deep = any(isinstance(a, np.ndarray) and a.ndim > 1 for a in leaves(args))
        if deep and (operator.layout == "views" or name in ("add.Tensor", "where.self", "prelu", "index.Tensor")):
            params.append(pytest.param(name, args, kwargs, True, id=f"{i}-{name}-permuted"))
    return params


def check_call(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], permuted: bool) -> None:
    """Values and gradients of a call are torch's."""
    arrays = [a for a in leaves((*args, *kwargs.values())) if isinstance(a, np.ndarray)]
    op = torch_op(name)
    torch_args = [to_torch(a) for a in args]
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        wanted = leaves(op(*torch_args, **kwargs))
    finally:
        torch.set_default_dtype(previous)
    with jax.enable_x64(True):
        dtypes = tuple(DType(str(w.dtype).removeprefix("torch.")) for w in wanted)
        floats = [jnp.asarray(a) for a in arrays if differentiable(a)]
        got, pull = jax.vjp(lambda fs: run_call(name, args, kwargs, dtypes, fs, permuted), floats)
        for g, w in zip(got, wanted, strict=True):
            assert_near(g, w, LOOSE.get(name, 1e-12))
        inputs = [t for t in leaves(torch_args) if isinstance(t, torch.Tensor) and t.requires_grad]
        outputs = [w for w in wanted if w.requires_grad]
        if name in NO_GRADIENT or not outputs:
            return
        rng = np.random.default_rng(1)
        weights = [rng.normal(size=w.shape) for w in outputs]
        expected = torch.autograd.grad(outputs, inputs, [torch.tensor(w) for w in weights], allow_unused=True)
        given = iter(weights)
        seeds = [
            jnp.asarray(next(given))
            if w.requires_grad
            else np.zeros(w.shape, jax.dtypes.float0 if w.dtype != torch.float64 else np.float64)
            for w in wanted
        ]
        for g, e in zip(pull(seeds)[0], expected, strict=True):
            assert_near(g, np.zeros(g.shape) if e is None else e, LOOSE.get(name, 1e-10))
