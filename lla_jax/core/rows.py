"""Evaluates a loss and its metrics on a few rows of data, traced once and compiled fast, for checks of a model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import jaxprs
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse
from lla_jax.core.called import CallFailed, call, unexplained
from lla_jax.core.data import num_examples
from lla_jax.core.losses import (
    Block,
    block_of_rows,
    check_real,
    check_scalar,
    entries_of,
    outputs_of,
    split_result,
)
from lla_jax.core.operands import at_highest
from lla_jax.core.types import Batch, Loss, PyTree
from lla_jax.core.wholes import Whole

ROWS = 16  # rows of a block, so that a comparison with its halves costs the losses of 48 examples
ASLEEP = 0.1  # in place of parameters that are zero, behind which nothing could be seen

Metrics = tuple[tuple[str, Any], ...]
Values = dict[str, tuple[Any, Any]]
"""{name: (values, weights or None)} of the loss and the metrics for some rows."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Model:
    """What is evaluated on rows of data: a pytree whose static part compares by value."""

    loss: Loss
    params: PyTree
    metrics: Metrics = field(metadata={"static": True})
    train: bool = field(metadata={"static": True})


def like(data: Batch, size: int) -> Batch:
    """The shapes and types of ``size`` rows, for tracing; of a ``Whole`` its own."""
    return jax.tree.map(lambda x: _tree.struct_of(x, None if isinstance(data, Whole) else (size, *x.shape[1:])), data)


def take(data: Batch, index: np.ndarray) -> Batch:
    """Rows of the data as numpy arrays, but for keys; of arrays on other devices than a CPU only these rows are moved.

    A ``Whole`` stays as it is.
    """
    if isinstance(data, Whole):
        return data

    def take(x: Any) -> Any:
        if jnp.issubdtype(x.dtype, jax.dtypes.extended):  # keys, of which numpy makes no array
            return x[index]
        on_host = not isinstance(x, jax.Array) or [d.platform for d in x.devices()] == ["cpu"]
        return np.asarray(x)[index] if on_host else np.asarray(x[index])

    return jax.tree.map(take, data)


def spread(data: Batch, size: int) -> tuple[Batch, np.ndarray]:
    """(rows that lie apart in the data, as numpy arrays; their numbers (``size``,))."""
    index = np.linspace(0, num_examples(data) - 1, size).astype(np.int32)
    return take(data, index), index


def takes(model: Model, data: Batch, *sizes: int) -> bool:
    """Whether the model can be called with these numbers of rows; a ``Misuse`` passes on.

    Any other error says that it cannot, as a model of a fixed number of rows; of a true mistake the computation itself,
    which follows, tells more.
    """
    try:
        with unexplained():
            for size in sizes:
                trace(model, data, size)
    except CallFailed:
        return False
    except Misuse:
        raise
    except Exception:
        return False
    return True


def _values_of(model: Model, rows: Batch, index: Any, shake: Any, noise: Any) -> Values:
    """{name: (values, weights or None)} of the loss and the metrics, as the functions return them for some rows.

    Args:
      model: the loss, parameters and metrics.
      rows: (B, ...), examples.
      index: (B,), their numbers in the data set.
      shake: relative changes of the parameters; parameters that are zero are changed always.
      noise: relative changes of parameters and data, as of rounding.
    """
    loss, params, rows = model.loss, _disturb(model.params, shake + noise, ASLEEP), _disturb(rows, noise, 0.0)
    block = block_of_rows(rows, index)
    outputs, _ = outputs_of(loss, params, loss.state, block, model.train)
    results = {}
    for name, f in (("loss", loss.criterion), *model.metrics):
        result = call(f, outputs, block.batch, "" if name == "loss" else name)
        if loss.per_example or isinstance(rows, Whole) or name != "loss":
            results[name] = entries_of(name, result, len(index))
        else:
            values, weight = split_result(name, result)
            values = check_real(name, values)
            check_scalar(values.shape)
            results[name] = values, None if weight is None else jnp.asarray(weight)
    return results


values_of = jax.jit(_values_of)


def _disturb(tree: PyTree, noise: Any, asleep: float) -> PyTree:
    """Floating leaves times 1 + noise u with fixed u between -1 and 1; entries of zero become ``asleep`` u."""

    def disturb(x: Any) -> Any:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        u = jnp.sin(1.0 + jnp.arange(x.size)).reshape(x.shape)
        moved = x * (1 + noise * u)
        return (jnp.where(x != 0, moved, asleep * u) if asleep else moved).astype(x.dtype)

    return jax.tree.map(lambda x: disturb(jnp.asarray(x)), tree)


def sizes(model: Model, size: int) -> tuple[int, ...]:
    """The numbers of rows for which the model is traced: a block, and half a block if there are losses per example."""
    return (size, size // 2 or 2) if model.loss.per_example else (size,)


def trace(model: Model, data: Batch, size: int) -> Any:
    """The program that computes the values of ``size`` rows; the same one that runs for as many rows later."""
    return values_of.trace(model, *_shapes(data, size))


def trace_again(model: Model, data: Batch, size: int) -> Any:
    """The jaxpr of ``trace``, traced anew."""
    return trace_anew(_values_of, model, *_shapes(data, size))


def _shapes(data: Batch, size: int) -> tuple[Any, ...]:
    """The arguments of ``_values_of`` besides the model, for tracing."""
    return like(data, size), jax.ShapeDtypeStruct((size,), np.int32), np.float32(0), np.float32(0)


def trace_anew(f: Callable[..., Any], *args: Any) -> Any:
    """The jaxpr of a function, traced anew together with the jitted functions that it calls.

    jax keeps the jaxpr of functions, shapes and settings that it has seen; the precision is set by its other name.
    """
    with jax.default_matmul_precision("float32"):  # where checks are made with "highest"
        return jax.make_jaxpr(lambda *args: f(*args))(*args)


@functools.partial(jax.jit, static_argnames="train")
@at_highest
def outputs_of_rows(loss: Loss, params: PyTree, block: Block, *, train: bool) -> Any:
    """The outputs of the model for the rows of a block."""
    return outputs_of(loss, params, loss.state, block, train)[0]


class Run:
    """The compiled values of a number of rows, which are run a few times: compiling fast matters more than running."""

    def __init__(self, model: Model, data: Batch, size: int):
        traced = trace(model, data, size)
        fast = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        self.model, self.compiled = model, traced.lower().compile(fast)
        self.eps = max((float(jnp.finfo(name).eps) for name in jaxprs.float_types(traced.jaxpr)), default=0.0)

    def __call__(self, rows: Batch, index: np.ndarray, shake: float, noise: float = 0.0) -> Values:
        """The values as numpy arrays: two programs with collectives that run at once can deadlock on a CPU."""
        typed = jax.tree.map(
            lambda x, to: x if x.dtype == to.dtype else x.astype(to.dtype), rows, like(rows, len(index))
        )
        return jax.tree.map(np.asarray, self.compiled(self.model, typed, index, np.float32(shake), np.float32(noise)))
