"""Proof that a conversion is exact: torch and JAX side by side, on the user's own weights and data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lla_torch.conversion import unwrapped
from lla_torch.exporting import untouched
from lla_torch.function import arguments
from lla_torch.net import Net
from lla_torch.recording import Recorder
from lla_torch.trees import to_array

TOLERANCES = {"outputs": 1e-12, "loss": 1e-12, "gradient": 1e-10, "Hessian product": 1e-9, "statistics": 1e-12}
"""Allowed in float64."""
SLACK = 10.0
"""In lower precision, times as much as torch itself is away from its float64 numbers: at the kink of a ReLU, a rounding
error decides a sign, and two correct programs differ by more than rounding."""
STEP = 1e-5  # of the central differences
CENTRAL = 1e-6  # allowed against them


@dataclass(frozen=True)
class Row:
    """One comparison: ``error`` is the largest difference over the largest entry of torch's."""

    quantity: str
    dtype: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance; NaN is not."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Certificate:
    """What was compared and how far it agrees; print it.

    Args:
      rows: one per quantity and precision.
      examples: rows of the batch.
    """

    rows: tuple[Row, ...]
    examples: int

    @property
    def ok(self) -> bool:
        """Whether every row is within its tolerance."""
        return all(row.ok for row in self.rows)

    def __str__(self) -> str:
        head = f"{'':28}{'precision':>10}{'error':>10}{'allowed':>10}"
        lines = [
            f"{r.quantity:28}{r.dtype:>10}{r.error:>10.1e}{r.tolerance:>10.0e}{'' if r.ok else '  FAILS'}"
            f"{'  ' + r.note if r.note else ''}"
            for r in self.rows
        ]
        verdict = "torch and JAX agree to rounding" if self.ok else "torch and JAX DIFFER"
        return "\n".join(
            [head, *lines, f"{verdict} on {self.examples} examples (errors relative to the largest entry)"]
        )

    def __repr__(self) -> str:
        return str(self)


def certify(
    module: nn.Module,
    net: Net,
    batch: Any,
    criterion: nn.Module | None = None,
    *,
    inputs: Callable[[Any], Any] | None = None,
    seed: int = 0,
) -> Certificate:
    """Compare a torch module with its converted network: outputs, loss, gradient, a Hessian product, statistics.

    In the module's own precision, and, since rounding hides small mistakes there, in float64 as well: the same program
    and the same weights, cast. Neither the module nor torch's global state nor jax's configuration changes.

    Args:
      module: the torch module, with the weights that the network is to have.
      net: what ``convert`` (or ``load_checkpoint``) gave.
      batch: (inputs, labels), torch tensors or arrays; without a criterion the inputs alone will do.
      criterion: a torch loss module with reduction="mean"; None: half the mean square of the outputs.
      inputs: function of the batch that gives the inputs; None: the first entry.
      seed: of the vector that the Hessian is applied to.

    Returns:
      A ``Certificate``; ``print`` shows the table, ``.ok`` says whether all errors are within rounding.

    Raises:
      ValueError: a network of another module; batches that the module does not take.

    Modules that sample in eval mode are compared with torch's draws replayed (their statistics are not compared).
    Where torch has no or a wrong second derivative (EmbeddingBag, weight_norm), the Hessian product is compared with
    central differences of torch's gradients, and the row says so.
    """
    module = unwrapped(module)
    missing = set(net.tree_map.aliases) ^ {*net.tree_map.aliases, *dict(module.named_parameters())}
    if missing:
        raise ValueError(f"net: lacks the module's parameters {sorted(missing)}; convert this very module")
    own = net.function.eval.own.name
    setting = _Setting(module, net, batch, criterion, inputs, _vector(net, seed))
    exact = _torch_side(setting, "float64")
    rows = _rows(setting, "float64", exact, exact)
    if own != "float64":
        rows = [*_rows(setting, own, _torch_side(setting, own), exact), *rows]
    first = jax.tree_util.tree_leaves(_as_arrays(batch, None))[0]
    return Certificate(tuple(rows), int(first.shape[0]))


class _Setting(NamedTuple):
    """What is compared: ``vector`` has the entries, by name, of what the Hessian is applied to."""

    module: nn.Module
    net: Net
    batch: Any
    criterion: nn.Module | None
    inputs: Any
    vector: dict[str, np.ndarray]


def _vector(net: Net, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    params = [leaf for leaf in net.tree_map.leaves if leaf.collection == "params" and _is_float(leaf.dtype)]
    return {leaf.name: rng.standard_normal(leaf.shape) for leaf in params}


def _rows(setting: _Setting, dtype: str, theirs: dict[str, Any], exact: dict[str, Any]) -> list[Row]:
    ours = _jax_side(setting, dtype, theirs["draws"])
    rows = []
    for quantity, least in TOLERANCES.items():
        if quantity not in ours or (theirs[quantity] is None and dtype != "float64"):
            continue
        error, note = difference(ours[quantity], theirs[quantity]), ""
        allowed = least if dtype == "float64" else max(
            _eps(dtype) * 100, SLACK * difference(theirs[quantity], exact[quantity])
        )  # fmt: skip
        if quantity == "Hessian product" and dtype == "float64" and not error <= allowed:
            by_differences = difference(ours[quantity], _central(setting))
            if by_differences < CENTRAL:
                error, allowed = by_differences, CENTRAL
                note = "against central differences; torch's own second derivative is missing or wrong"
        rows.append(Row(quantity, dtype, error, allowed, note))
    return rows


def _eps(dtype: str) -> float:
    return float(jax.numpy.finfo(dtype).eps)


def difference(ours: Any, theirs: Any) -> float:
    """Largest difference over the largest entry, over all arrays; NaN where there is nothing to compare with."""
    if theirs is None:
        return float("nan")
    pairs = list(zip(jax.tree_util.tree_leaves(ours), jax.tree_util.tree_leaves(theirs), strict=True))
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs if np.size(b)]
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    scale = max([float(np.abs(b).max()) for _, b in pairs], default=0.0)
    worst = max([float(np.abs(a - b).max()) for a, b in pairs], default=0.0)
    return worst / scale if scale else worst


@contextlib.contextmanager
def torch_reference(module: nn.Module) -> Iterator[None]:
    """torch in eval mode with exact second derivatives: no fused attention, no oneDNN."""
    with untouched(module, train=False), sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False):
        yield


def _is_float(dtype: str) -> bool:
    return bool(jax.numpy.issubdtype(jax.numpy.dtype(dtype), jax.numpy.floating))


def _half_mean_square(outputs: Any, _: Any) -> Any:
    leaves = [x for x in jax.tree_util.tree_leaves(outputs) if jax.numpy.issubdtype(x.dtype, jax.numpy.floating)]
    rows = leaves[0].shape[0]
    return sum((x.reshape(rows, -1) ** 2).mean(1) for x in leaves) / 2


def _label_of(criterion: nn.Module | None) -> Callable[[Any], Any] | None:
    return _nothing if criterion is None else None


def _nothing(batch: Any) -> None:
    return None


def _cast(x: torch.Tensor, dtype: str) -> torch.Tensor:
    return x.detach().to(getattr(torch, dtype)) if x.is_floating_point() else x.detach().clone()


def _torch_loss(setting: _Setting, tensors: Mapping[str, Any], dtype: str) -> tuple[Any, Any]:
    """(loss, outputs) of the module with the given tensors in place of its own."""
    module, _, batch, criterion, inputs, _ = setting
    batch = torch.utils._pytree.tree_map(lambda x: _cast(torch.as_tensor(x), dtype), batch)
    args, kwargs = arguments(inputs, batch)
    outputs = torch.func.functional_call(module, dict(tensors), args, kwargs)
    if criterion is not None:
        held = {n: _cast(x, dtype) for n, x in (*criterion.named_parameters(), *criterion.named_buffers())}
        return torch.func.functional_call(criterion, held, (outputs, batch[1])), outputs
    leaves = [x for x in torch.utils._pytree.tree_leaves(outputs) if torch.is_tensor(x) and x.is_floating_point()]
    return sum((x.flatten(1) ** 2).mean() if x.ndim > 1 else (x**2).mean() for x in leaves) / 2, outputs


def _held(module: nn.Module, dtype: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    parameters = {name: _cast(p, dtype).requires_grad_(p.is_floating_point()) for name, p in module.named_parameters()}
    return parameters, {name: _cast(b, dtype).clone() for name, b in module.named_buffers()}


class _Slope(NamedTuple):
    loss: Any
    outputs: Any
    parameters: list[torch.Tensor]
    gradient: list[torch.Tensor]
    draws: tuple[np.ndarray, ...] | None


def _torch_gradient(setting: _Setting, dtype: str, step: float) -> _Slope:
    """torch's loss and gradient at the weights moved by ``step`` times the vector, with the draws of what samples."""
    samples, recorder = bool(setting.net.function.eval.random), Recorder()
    parameters, buffers = _held(setting.module, dtype)
    with torch.no_grad():
        for name, v in setting.vector.items():
            parameters[name] += step * torch.as_tensor(v, dtype=parameters[name].dtype)
    torch.manual_seed(0)  # within untouched: the user's generator is put back
    with recorder if samples else contextlib.nullcontext():
        loss, outputs = _torch_loss(setting, {**parameters, **buffers}, dtype)
    wanted = [parameters[name] for name in setting.vector]
    found = torch.autograd.grad(loss, wanted, create_graph=True, allow_unused=True)
    gradient = [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found)]
    return _Slope(loss, outputs, wanted, gradient, tuple(recorder.draws) if samples else None)


def _torch_side(setting: _Setting, dtype: str) -> dict[str, Any]:
    with torch_reference(setting.module):
        return _torch_numbers(setting, dtype)


def _torch_numbers(setting: _Setting, dtype: str) -> dict[str, Any]:
    loss, outputs, wanted, gradient, draws = _torch_gradient(setting, dtype, 0.0)
    vector = setting.vector
    try:
        parts = [(g * torch.as_tensor(v, dtype=g.dtype)).sum() for g, v in zip(gradient, vector.values())]
        dot = torch.stack(parts).sum() if parts else torch.zeros(())
        found = torch.autograd.grad(dot, wanted, allow_unused=True) if dot.requires_grad else [None] * len(wanted)
        product = [to_array(torch.zeros_like(p) if h is None else h) for p, h in zip(wanted, found)]
    except (RuntimeError, NotImplementedError):  # no second derivative in torch
        product = None
    return {
        "outputs": [to_array(x) for x in torch.utils._pytree.tree_leaves(outputs) if torch.is_tensor(x)],
        "loss": to_array(loss),
        "gradient": [to_array(g) for g in gradient],
        "Hessian product": product,
        "statistics": _torch_statistics(setting, dtype),
        "draws": draws,
    }


def _central(setting: _Setting) -> list[np.ndarray]:
    with torch_reference(setting.module):
        up, down = (_torch_gradient(setting, "float64", step).gradient for step in (STEP, -STEP))
    return [to_array((a - b) / (2 * STEP)) for a, b in zip(up, down)]


def _torch_statistics(setting: _Setting, dtype: str) -> dict[str, np.ndarray]:
    """Buffers after one call with the normalization layers in train mode."""
    norms = [m for m in setting.module.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    for m in norms:
        m.training = True
    parameters, buffers = _held(setting.module, dtype)
    with torch.no_grad():
        _torch_loss(setting._replace(criterion=None), {**parameters, **buffers}, dtype)
    for m in norms:
        m.training = False
    return {name: to_array(x) for name, x in buffers.items()}


def _as_arrays(batch: Any, dtype: str | None) -> Any:
    def convert(x: Any) -> np.ndarray:
        array = to_array(x) if isinstance(x, torch.Tensor) else np.asarray(x)
        return array.astype(jax.numpy.dtype(dtype)) if dtype is not None and _is_float(array.dtype.name) else array

    return jax.tree_util.tree_map(convert, batch)


def _jax_side(setting: _Setting, dtype: str, draws: tuple[np.ndarray, ...] | None) -> dict[str, Any]:
    _, net, batch, criterion, inputs, vector = setting
    loss = net.loss(_half_mean_square if criterion is None else criterion, inputs=inputs, labels=_label_of(criterion))
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        cast = lambda x: x.astype(dtype) if _is_float(x.dtype.name) else x  # noqa: E731
        variables = jax.tree_util.tree_map(cast, net.variables)
        params, state = variables["params"], {n: t for n, t in variables.items() if n != "params"}
        data = _as_arrays(batch, dtype)
        names = net.tree_map
        v = names.tree({n: jax.numpy.asarray(names.to_jax(names.by_name(n), x), dtype) for n, x in vector.items()},
                       ("params",))["params"] if vector else {}  # fmt: skip

        def value(params: Any, state: Any, data: Any) -> tuple[Any, Any]:
            outputs = net.function({"params": params, **state}, *arguments(inputs, data), draws=draws)[0]
            per_example = loss.criterion(outputs, data)
            if isinstance(per_example, tuple):
                losses, weights = per_example
                return (losses * weights).sum() / weights.sum(), outputs
            return per_example.mean(), outputs

        def all_of(params: Any, v: Any, state: Any, data: Any) -> tuple[Any, ...]:
            gradient = jax.grad(lambda p: value(p, state, data)[0])
            g, product = jax.jvp(gradient, (params,), (v,))
            return (*value(params, state, data), g, product)

        result, outputs, gradient, product = jax.jit(all_of)(params, v, state, data)
        by_name = lambda tree: [  # noqa: E731
            names.to_torch(names.by_name(n), _at(tree, names.by_name(n).path)) for n in vector
        ]
        found = {
            "outputs": [np.asarray(x) for x in jax.tree_util.tree_leaves(outputs)],
            "loss": np.asarray(result),
            "gradient": by_name(gradient),
            "Hessian product": by_name(product),
        }
        if net.function.train is not None and net.function.train.mutates and draws is None:
            args, kwargs = arguments(inputs, data)
            new = jax.jit(lambda v, a, k: net.function(v, a, k, train=True)[1])(variables, args, kwargs)
            held = [leaf for leaf in names.leaves if leaf.collection in ("batch_stats", "buffers")]
            found["statistics"] = {x.name: names.to_torch(x, _at(new[x.collection], x.path)) for x in held}
        return jax.tree_util.tree_map(np.asarray, found)


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree
