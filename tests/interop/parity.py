"""One scalar functional, its gradient and its Hessian-vector product, in torch and in JAX, by torch's names."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lla_torch.tracing.outputs import split_outputs


class Reference(NamedTuple):
    """What torch computes; gradients by parameter name, zeros where torch has None."""

    outputs: Any
    grads: dict[str, np.ndarray]
    hvp: dict[str, np.ndarray]
    state: dict[str, np.ndarray]


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Kernels that differentiate twice: attention by matrix products, no oneDNN."""
    math_only = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TF32 acceleration")  # of the switch itself, on machines without one
        with torch.backends.mkldnn.flags(enabled=False), math_only:
            yield


@contextlib.contextmanager
def unchanged(module: Any) -> Iterator[None]:
    """Restores parameters and buffers; a deep copy does not do, since the old weight_norm forbids it."""
    tensors = [*module.parameters(), *module.buffers()]
    before = [t.detach().clone() for t in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, old in zip(tensors, before):
                tensor.copy_(old)


def leaves(outputs: Any) -> list[Any]:
    """The tensors or arrays of nested outputs, dictionaries by sorted name."""
    if outputs is None:
        return []
    if isinstance(outputs, dict):
        outputs = [outputs[name] for name in sorted(outputs)]
    if isinstance(outputs, tuple | list):
        return [leaf for child in outputs for leaf in leaves(child)]
    return [outputs]


def nesting(outputs: Any) -> Any:
    """The structure of outputs without the arrays."""
    if isinstance(outputs, dict):
        return {name: nesting(child) for name, child in outputs.items()}
    if isinstance(outputs, tuple | list):
        return type(outputs)(nesting(child) for child in outputs)
    return None if outputs is None else "leaf"


def mixing(outputs: Any, seed: int = 3) -> list[np.ndarray]:
    """Fixed random weights of the shapes of the outputs."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(tuple(leaf.shape)) for leaf in leaves(outputs)]


def functional(outputs: Any, weights: list[Any]) -> Any:
    """sum(w * o) + mean(o^2) / 2 over the outputs that are real; for tensors and arrays alike."""
    total = 0.0
    for leaf, weight in zip(leaves(outputs), weights):
        if "float" in str(leaf.dtype):
            total = total + (leaf * weight).sum() + 0.5 * (leaf * leaf).mean()
    return total


def reference(
    module: Any,
    args: tuple,
    kwargs: dict | None = None,
    *,
    tangent: dict[str, Any] | None = None,
    double: bool = True,
    seed: int = 0,
) -> Reference:
    """torch's outputs, gradient, Hessian-vector product along ``tangent`` and the state after.

    Args:
      module: taken in the mode it is in; restored after.
      args: inputs by position.
      kwargs: inputs by name.
      tangent: direction by parameter name; None: no product.
      double: whether torch's double backward is right; otherwise central differences of its gradient.
      seed: of torch's generator during the run.
    """
    params = {name: p for name, p in module.named_parameters() if p.requires_grad}

    def gradient(create_graph: bool) -> tuple[Any, dict[str, Any]]:
        torch.manual_seed(seed)
        outputs, _ = split_outputs(module(*args, **(kwargs or {})))
        weights = [torch.from_numpy(w) for w in mixing(outputs)]
        found = torch.autograd.grad(
            functional(outputs, weights), list(params.values()), create_graph=create_graph, allow_unused=True
        )
        return outputs, {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(params.items(), found)}

    with plain_torch(), unchanged(module), torch.random.fork_rng():
        outputs, grads = gradient(create_graph=double and tangent is not None)
        state = {name: t.detach().numpy().copy() for name, t in module.state_dict().items()}
        hvp = {}
        if tangent is not None:
            tangent = {name: tangent[name] for name in params}
            hvp = _product(params, grads, tangent) if double else _differences(params, gradient, tangent)
    numpy = functools.partial(_mapped, lambda t: t.detach().numpy())
    return Reference(numpy(outputs), numpy(grads), numpy(hvp), state)


def _product(params: dict, grads: dict, tangent: dict) -> dict:
    dot = sum((g * tangent[name]).sum() for name, g in grads.items())
    if not dot.requires_grad:
        return {name: torch.zeros_like(p) for name, p in params.items()}
    found = torch.autograd.grad(dot, list(params.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if h is None else h for (name, p), h in zip(params.items(), found)}


def _differences(params: dict, gradient: Any, tangent: dict, step: float = 1e-5) -> dict:
    def moved(sign: float) -> dict:
        with torch.no_grad():
            for name, p in params.items():
                p.add_(tangent[name], alpha=sign * step)
        result = gradient(create_graph=False)[1]
        with torch.no_grad():
            for name, p in params.items():
                p.sub_(tangent[name], alpha=sign * step)
        return result

    plus, minus = moved(1.0), moved(-1.0)
    return {name: (plus[name] - minus[name]) / (2 * step) for name in params}


def _mapped(function: Any, tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _mapped(function, child) for name, child in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(_mapped(function, child) for child in tree)
    return None if tree is None else function(tree)


@functools.partial(jax.jit, static_argnames=("apply", "train", "second"))
def computed(apply, variables, args, kwargs, weights, tangent, draws, *, train=False, second=True):
    """(outputs, gradient, Hessian-vector product or None, new state or None) in JAX, in one compilation."""
    rest = {name: tree for name, tree in variables.items() if name != "params"}

    def scalar(params):
        result = apply({"params": params, **rest}, *args, train=train, draws=draws, **kwargs)
        outputs, state = result if train else (result, None)
        return functional(outputs, weights), (outputs, state)

    gradient = jax.grad(scalar, has_aux=True)
    if not second:
        grads, (outputs, state) = gradient(variables["params"])
        return outputs, grads, None, state
    grads, hvp, (outputs, state) = jax.jvp(gradient, (variables["params"],), (tangent,), has_aux=True)
    return outputs, grads, hvp, state


def direction(params: Any, seed: int = 5) -> Any:
    """A random tree like ``params``."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.standard_normal(leaf.shape)), params)


def arrays(tree: Any) -> Any:
    """Tensors as numpy arrays, nested."""
    return _mapped(lambda t: t.detach().numpy() if isinstance(t, torch.Tensor) else t, tree)


def assert_close(actual: Any, expected: Any, rtol: float, what: str) -> None:
    """max|actual - expected| <= rtol * max(1e-3, max|expected|), shapes and kinds of type equal."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, torch has {expected.shape}"
    assert actual.dtype.kind == expected.dtype.kind, f"{what}: {actual.dtype}, torch has {expected.dtype}"
    if actual.dtype.kind != "f":
        assert np.array_equal(actual, expected), what
        return
    if actual.size:
        error = np.max(np.abs(actual - expected)) / max(1e-3, np.max(np.abs(expected)))
        assert error <= rtol, f"{what}: relative error {error:.2e} > {rtol:.0e}"


def assert_outputs(actual: Any, expected: Any, rtol: float, what: str) -> None:
    """The same nesting and entries."""
    assert nesting(actual) == nesting(expected), f"{what}: {nesting(actual)}, torch has {nesting(expected)}"
    for i, (a, e) in enumerate(zip(leaves(actual), leaves(expected))):
        assert_close(a, e, rtol, f"{what}[{i}]")


def assert_named(actual: dict[str, Any], expected: dict[str, Any], rtol: float, what: str) -> None:
    """Equal to ``rtol`` of the largest entry of all, for each name that torch has."""
    scale = max((float(np.max(np.abs(e))) for e in expected.values() if e.size and e.dtype.kind == "f"), default=1.0)
    for name, e in expected.items():
        assert name in actual, f"{what}: {name} is missing among {sorted(actual)}"
        a = np.asarray(actual[name])
        assert a.shape == e.shape, f"{what} of {name}: shape {a.shape}, torch has {e.shape}"
        if e.dtype.kind == "f":
            error = np.max(np.abs(a - e), initial=0.0) / max(scale, 1e-3)
            assert error <= rtol, f"{what} of {name}: error {error:.2e} of the largest entry > {rtol:.0e}"
        else:
            assert np.array_equal(a, e), f"{what} of {name}"
