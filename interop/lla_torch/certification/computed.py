"""Computes JAX's outputs, loss, gradient and Hessian product: in a given precision, and as the user runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_torch.certification.differences import is_inexact, median_difference, rounding_of
from lla_torch.certification.reference import Case, named_arrays, output_weights
from lla_torch.conversion.function import Function, arguments
from lla_torch.losses.selection import selection
from lla_torch.net import Net
from lla_torch.program.instructions import DType
from lla_torch.program.program import leaf_at
from lla_torch.weights.names import is_float, to_array


def numbers_as_run(case: Case, net: Net, theirs: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """(quantities, note): outputs, loss and gradient of the compiled network with its own variables."""
    loss, function, names = _make_loss(case, net), net.function, net.tree_map
    leaves, structure = jax.tree.flatten(cast_batch(case, case.types[0]))
    arrays = {i: x for i, x in enumerate(leaves) if isinstance(x, np.ndarray)}
    state = {name: tree for name, tree in net.variables.items() if name != "params"}

    def outputs_of(params: Any, state: Any, arrays: Any, draws: Any) -> tuple[Any, Any]:
        data = jax.tree.unflatten(structure, [arrays.get(i, x) for i, x in enumerate(leaves)])
        args, kwargs = arguments(case.inputs, data)
        return function({"params": params, **state}, args, kwargs, draws=draws)[0], data

    def value(*args: Any) -> tuple[Any, Any]:
        outputs, data = outputs_of(*args)
        return loss(outputs, data), named_arrays(outputs)

    has_gradient = "gradient" in theirs
    run = jax.value_and_grad(value, has_aux=True, allow_int=True) if has_gradient else lambda *a: (value(*a), None)
    (found, outputs), gradient = jax.jit(run)(net.variables["params"], state, arrays, theirs["draws"])
    numbers = {"outputs": jax.tree.map(np.asarray, outputs)}
    if has_gradient:
        leaf_of = {name: names.by_name(name) for name in case.vector}
        numbers["gradient"] = {n: names.to_torch(x, np.asarray(leaf_at(gradient, x.path))) for n, x in leaf_of.items()}
        numbers["loss"] = {"": np.asarray(found)}
    apart = lambda part: named_arrays(outputs_of(net.variables["params"], state, part, None)[0])  # noqa: E731
    note = (
        _find_coupling(apart, arrays, numbers["outputs"])
        if case.criterion is None and not (case.samples or case.whole)
        else ""
    )
    return numbers, note


def _find_coupling(outputs_of: Callable[[Any], Any], arrays: dict[int, Any], outputs: dict[str, Any]) -> str:
    """A note if outputs of the batch differ from those of its halves, where both have the axis of examples.

    For a module that takes no other number of examples the batch is compared with itself in another order.
    """
    rows = {x.shape[:1] for x in (*arrays.values(), *outputs.values())}
    half = next(iter(rows))[0] // 2 if len(rows) == 1 and () not in rows else 0
    if half == 0:
        return ""
    run = jax.jit(outputs_of)
    try:
        parts = [run({i: x[cut] for i, x in arrays.items()}) for cut in (np.s_[:half], np.s_[half:])]
        others, what = {n: np.concatenate([np.asarray(part[n]) for part in parts]) for n in outputs}, "of its halves"
    except (ValueError, TypeError):  # other lengths are refused
        rolled = run({i: np.roll(x, 1, 0) for i, x in arrays.items()})
        others, what = {n: np.roll(np.asarray(x), -1, 0) for n, x in rolled.items()}, "in another order"
    whole = {name: x for name, x in outputs.items() if is_inexact(x)}
    others = {name: others[name] for name in whole}
    if not whole or {n: x.shape for n, x in others.items()} != {n: x.shape for n, x in whole.items()}:
        return ""
    if median_difference(others, whole) <= 10 * rounding_of(next(iter(whole.values())).dtype.name):
        return ""
    return (
        f"the outputs of the batch differ from those {what}: axis 0 must be the examples (not time), and no "
        "example may depend on the others"
    )


def jax_numbers(case: Case, net: Net, dtype: str, theirs: dict[str, Any]) -> dict[str, Any]:
    """The quantities of ``torch_numbers``, computed by the converted network with torch's draws."""
    names, function = net.tree_map, _in_precision(net.function, dtype)
    loss = _make_loss(case, net)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        stored = {leaf: leaf_at(net.variables[leaf.collection], leaf.path) for leaf in names.leaves}
        arrays_of = {x.name: jnp.asarray(array, case.type_of(x.stored_dtype, dtype)) for x, array in stored.items()}
        params = {name: arrays_of.pop(name) for name in case.vector}
        vector = {n: jnp.asarray(names.to_jax(names.by_name(n), v), params[n].dtype) for n, v in case.vector.items()}
        leaves, structure = jax.tree.flatten(cast_batch(case, dtype))
        arrays = {i: x for i, x in enumerate(leaves) if isinstance(x, np.ndarray)}

        def run(params: Any, vector: Any, others: Any, arrays: Any, draws: Any, train_draws: Any) -> dict[str, Any]:
            data = jax.tree.unflatten(structure, [arrays.get(i, x) for i, x in enumerate(leaves)])
            args, kwargs = arguments(case.inputs, data)

            def value(params: Any) -> tuple[Any, Any]:
                outputs, _ = function(names.tree({**others, **params}), args, kwargs, draws=draws)
                return loss(outputs, data), named_arrays(outputs)

            numbers: dict[str, Any] = {}
            if "gradient" in theirs:
                value_and_gradient = jax.value_and_grad(value, has_aux=True)

                def gradient_and_value(params: Any) -> tuple[Any, Any]:
                    values, gradient = value_and_gradient(params)
                    return gradient, values

                gradient, product, (numbers["loss"], numbers["outputs"]) = jax.jvp(
                    gradient_and_value, (params,), (vector,), has_aux=True
                )
                numbers |= {"gradient": gradient, "Hessian product": product}
            else:
                numbers["loss"], numbers["outputs"] = value(params)
            if case.trains:
                outputs, state = function(names.tree({**others, **params}), args, kwargs, train=True, draws=train_draws)
                numbers |= {"train": named_arrays(outputs), "state": state}
            return numbers

        numbers = jax.jit(run)(params, vector, arrays_of, arrays, theirs["draws"], theirs.get("train draws"))
        numbers = jax.tree.map(np.asarray, numbers)
    for quantity in {"gradient", "Hessian product"} & numbers.keys():
        numbers[quantity] = {n: names.to_torch(names.by_name(n), x) for n, x in numbers[quantity].items()}
    if "state" in numbers:
        buffers = [leaf for leaf in names.leaves if leaf.collection in ("batch_stats", "buffers")]
        numbers["state"] = {
            f"state {x.name}": names.to_torch(x, leaf_at(numbers["state"][x.collection], x.path)) for x in buffers
        }
    numbers["loss"] = {"": numbers["loss"]}
    return numbers


def _in_precision(function: Function, dtype: str) -> Function:
    """The function with ``dtype`` as the precision in which it runs where there are no weights to decide it."""
    own = DType(dtype, True)
    train = None if function.train is None else replace(function.train, own=own)
    return replace(function, eval=replace(function.eval, own=own), train=train)


def cast_batch(case: Case, dtype: str) -> Any:
    """The batch with numpy arrays in the tested precision; other values stay."""

    def convert(x: Any) -> Any:
        if not hasattr(x, "shape"):
            return x
        array = to_array(x) if hasattr(x, "detach") else np.asarray(x)
        return array.astype(jnp.dtype(case.type_of_data(array.dtype.name, dtype)))

    return jax.tree.map(convert, case.batch)


def _make_loss(case: Case, net: Net) -> Callable[[Any, Any], Any]:
    if case.criterion is None:
        return lambda outputs, data: _mean_loss(outputs)
    found = net.loss(case.criterion, inputs=case.inputs, labels=case.labels, outputs=case.outputs)
    select = selection(case.outputs, case.criterion) or (lambda outputs: outputs)

    def value(outputs: Any, data: Any) -> Any:
        losses = found.criterion(select(outputs), data)
        if isinstance(losses, tuple):
            losses, weights = losses
            return (losses * weights).sum() / weights.sum()
        return losses.mean()

    return value


def _mean_loss(outputs: Any) -> Any:
    """The counterpart in JAX of ``reference.mean_loss``."""
    terms = []
    for path, x in named_arrays(outputs).items():
        x = jnp.stack([x.real, x.imag], -1) if jnp.issubdtype(x.dtype, jnp.complexfloating) else x
        if is_float(x.dtype) and x.size:
            terms.append((jnp.asarray(output_weights(path, x.shape), x.dtype) * x + x**2 / 2).mean())
    return sum(terms) if terms else jnp.zeros(())
