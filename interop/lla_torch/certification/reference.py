"""Computes torch's outputs, loss, gradient and Hessian product of a module in a given precision, for a certificate."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as torch_pytree

from lla_jax.models.adapters import passes
from lla_torch.conversion.function import arguments
from lla_torch.losses.losses import default_labels
from lla_torch.losses.selection import Choice, failure, selection
from lla_torch.tracing.calls import as_tensors, why_call_fails
from lla_torch.tracing.guards import preserve_module
from lla_torch.tracing.outputs import split_outputs
from lla_torch.tracing.recording import Recorder
from lla_torch.weights.names import to_array

STEP = 1e-5
"""The step of the central differences."""
_CASTS: dict[torch.dtype, Any] = {
    torch.float16: torch.Tensor.half,
    torch.bfloat16: torch.Tensor.bfloat16,
    torch.float32: torch.Tensor.float,
    torch.float64: torch.Tensor.double,
    torch.complex64: torch.Tensor.cfloat,  # type: ignore[attr-defined]
    torch.complex128: torch.Tensor.cdouble,  # type: ignore[attr-defined]
}


class Case(NamedTuple):
    """The module, data and options of one certificate.

    Args:
      module: the torch module.
      batch: (inputs, labels), or the inputs.
      criterion: a torch loss module; None: ``mean_loss``.
      inputs: function of the batch that gives the inputs, or None.
      labels: function of the batch that gives the labels, or None.
      outputs: what the criterion gets of the outputs, see ``Net.loss``, or None.
      vector: the vector that the Hessian is applied to, by parameter name.
      types: names of the floating types of the module's parameters, the type of most of them first.
      samples: whether the module draws random numbers in eval mode, or may do so as long as it was not run.
      trains: whether train mode is compared.
      whole: whether the batch is one example, so that nothing is said of its rows.
    """

    module: nn.Module
    batch: Any
    criterion: nn.Module | None
    inputs: Callable[[Any], Any] | None
    labels: Callable[[Any], Any] | None
    outputs: Choice | None
    vector: dict[str, np.ndarray]
    types: tuple[str, ...]
    samples: bool
    trains: bool
    whole: bool = False

    def type_of(self, name: str, dtype: str) -> str:
        """The type in which a comparison in ``dtype`` takes a tensor that has the type ``name`` in the module.

        It is ``name`` in the module's own precision. In another one it is float64 for floats, complex128 for complex
        types and ``name`` for the rest.
        """
        if dtype == self.types[0]:
            return name
        kind = jax.numpy.dtype(name)
        if jax.numpy.issubdtype(kind, jax.numpy.complexfloating):
            return "complex128"
        return "float64" if jax.numpy.issubdtype(kind, jax.numpy.floating) else name

    def type_of_data(self, name: str, dtype: str) -> str:
        """``type_of`` for a tensor of the batch, whose floats are cast to the module's type if it has only one."""
        if dtype == self.types[0] and len(self.types) == 1 and jax.numpy.issubdtype(name, jax.numpy.floating):
            return dtype
        return self.type_of(name, dtype)


class CastTypes(TorchFunctionMode):
    """A torch mode that replaces types that a module names by ``types[...]``, as the converted program does.

    Such types are those in ``.float()`` or ``zeros(dtype=torch.float32)``.
    """

    def __init__(self, types: Mapping[torch.dtype, torch.dtype]):
        super().__init__()
        self.types = types
        self.casts = {_CASTS[a]: _CASTS[b] for a, b in types.items()}
        if hasattr(torch, "_grouped_mm"):
            self.casts[torch._grouped_mm] = _grouped_mm

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        cast = lambda x: self.types.get(x, x) if isinstance(x, torch.dtype) else x  # noqa: E731
        named = {name: cast(x) for name, x in (kwargs or {}).items()}
        return self.casts.get(func, func)(*map(cast, args), **named)


def _grouped_mm(x: torch.Tensor, other: torch.Tensor, *, offs: torch.Tensor, **_: Any) -> torch.Tensor:
    """The products of groups of rows of x (S, k) with other (G, k, n); torch's own operator has no float64."""
    ends = offs.tolist()
    products = [x[a:b] @ w for a, b, w in zip([0, *ends], ends, other, strict=False)]
    return torch.cat([*products, x.new_zeros(x.shape[0] - ends[-1], other.shape[-1])])


SPARSE = {functional.embedding: 6, functional.embedding_bag: 7, torch.embedding: 4, torch.embedding_bag: 5}
"""Functions with an argument ``sparse``, and its place."""


class DenseGradients(TorchFunctionMode):
    """A torch mode in which embeddings and ``gather`` have dense gradients, the same numbers as their sparse ones."""

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = {name: x for name, x in (kwargs or {}).items() if name != "sparse_grad"}
        if func in SPARSE:
            place = SPARSE[func]
            named.pop("sparse", None)
            args = (*args[:place], False, *args[place + 1 :]) if len(args) > place else args
        return func(*args, **named)


class _Runner(nn.Module):
    """A module whose forward pass calls a function, so that ``functional_call`` gives the inner module other tensors,
    also while gradients are computed: activation checkpoints run the forward pass again."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, run: Callable[[], Any]) -> Any:
        return run()


def named_arrays(outputs: Any, path: str = "") -> dict[str, Any]:
    """{path: tensor or array} of nested outputs, such as {"['logits'][0]": x} or {"": x}; other values are left out."""
    if hasattr(outputs, "shape") and hasattr(outputs, "dtype"):
        return {path: outputs}
    if isinstance(outputs, Mapping):
        items: Any = outputs.items()
    elif isinstance(outputs, tuple | list):
        items = enumerate(outputs)
    else:
        return {}
    return {place: x for key, value in items for place, x in named_arrays(value, f"{path}[{key!r}]").items()}


def output_weights(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weights w of ``mean_loss`` for outputs of a path and shape (B, ...): fixed numbers of shape (...)."""
    return np.random.default_rng(zlib.crc32(path.encode())).standard_normal(shape[1:])


def mean_loss(outputs: Any) -> torch.Tensor | None:
    """The sum over the arrays of outputs o of mean(w o + o^2 / 2), with weights w that are the same for every example.

    The square alone would be constant for normalized outputs. The result is None if no outputs are floating or complex.
    """
    terms = []
    for path, x in named_arrays(outputs).items():
        x = torch.view_as_real(x) if x.is_complex() else x
        if x.is_floating_point() and x.numel():
            w = torch.as_tensor(output_weights(path, tuple(x.shape)), dtype=x.dtype, device=x.device)
            terms.append((w * x + x**2 / 2).mean())
    return torch.stack([t.to(terms[0].dtype) for t in terms]).sum() if terms else None


def torch_numbers(case: Case, dtype: str, step: float = 0.0) -> dict[str, Any]:
    """Compute torch's side of the comparison in the precision ``dtype``; the module stays as it is.

    Args:
      case: the module, data and options.
      dtype: the precision.
      step: by how much of the vector the weights are moved.

    Returns:
      {"outputs": ..., "draws": ..., "loss": ..., "gradient": ..., "Hessian product": ...}, and for train mode "train"
      (outputs), "train draws" and "state" (the buffers, if the call changes one). Each is a dict of arrays by name, or
      a tuple of draws. The product is None where torch has no second derivative, draws are None where none are drawn,
      and entries that do not exist (the loss without floating outputs) are missing.
    """
    tensors = _copy_tensors(case, dtype, step)
    params = [tensors[name] for name in case.vector]

    def run() -> dict[str, Any]:
        outputs, draws = _run_module(case, dtype, case.samples)
        loss = _compute_loss(case, dtype, outputs)
        numbers = {"outputs": _to_arrays(named_arrays(outputs)), "draws": draws}
        if loss is not None:
            numbers["loss"] = {"": to_array(loss)}
        if loss is not None and params:
            gradient = _gradient(loss, params, create_graph=True)
            numbers["gradient"] = _to_arrays(dict(zip(case.vector, gradient, strict=True)))
            numbers["Hessian product"] = _hessian_product(case, gradient, params)
        return numbers

    with _exact_torch(case, dtype, train=False):
        numbers = _run_with_tensors(case.module, tensors, run)
    return {**numbers, **(_train_numbers(case, dtype) if case.trains else {})}


def central_differences(case: Case) -> dict[str, np.ndarray]:
    """The Hessian product, by parameter name, from central differences of torch's float64 gradients."""

    def gradient(step: float) -> list[torch.Tensor]:
        tensors = _copy_tensors(case, "float64", step)
        params = [tensors[name] for name in case.vector]

        def run() -> list[torch.Tensor]:
            loss = _compute_loss(case, "float64", _run_module(case, "float64", False)[0])
            assert loss is not None
            return _gradient(loss, params)

        return _run_with_tensors(case.module, tensors, run)

    with _exact_torch(case, "float64", train=False):
        pairs = zip(case.vector, gradient(STEP), gradient(-STEP), strict=True)
        return {name: to_array((a - b) / (2 * STEP)) for name, a, b in pairs}


def _train_numbers(case: Case, dtype: str) -> dict[str, Any]:
    """The outputs of a call in train mode, its draws, and the buffers if the call changes one."""
    tensors = _copy_tensors(case, dtype)
    before = {f"state {name}": to_array(x) for name, x in tensors.items()}

    def run() -> dict[str, Any]:
        outputs, draws = _run_module(case, dtype, True)
        state = {f"state {name}": to_array(x) for name, x in case.module.named_buffers()}
        numbers = {"train": _to_arrays(named_arrays(outputs)), "train draws": draws}
        same = all(np.array_equal(x, before.get(name, x)) for name, x in state.items())
        return numbers if same else {**numbers, "state": state}

    with _exact_torch(case, dtype, train=True):  # with gradients, since the module may take some
        return _run_with_tensors(case.module, tensors, run)


@contextlib.contextmanager
def _exact_torch(case: Case, dtype: str, train: bool) -> Iterator[None]:
    """Context in which torch has exact second derivatives (no fused attention, no oneDNN) and the tested precision."""
    default = torch.get_default_dtype()
    types = _type_map(case, dtype)
    with (
        preserve_module(case.module, train=train),
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.mkldnn.flags(enabled=False),
        DenseGradients(),
    ):
        try:
            torch.set_default_dtype(types.get(default, default))
            with CastTypes(types) if types else contextlib.nullcontext():
                yield
        finally:
            torch.set_default_dtype(default)


def _type_map(case: Case, dtype: str) -> dict[torch.dtype, torch.dtype]:
    if dtype == case.types[0]:
        return {}
    types = {getattr(torch, name): getattr(torch, dtype) for name in case.types}
    return types | ({torch.complex64: torch.complex128} if torch.float32 in types else {})


def _run_with_tensors(module: nn.Module, tensors: dict[str, torch.Tensor], run: Callable[[], Any]) -> Any:
    torch.default_generator.manual_seed(0)  # preserve_module restores the user's generator
    return torch.func.functional_call(_Runner(module), {f"module.{n}": x for n, x in tensors.items()}, (run,))


def _copy_tensors(case: Case, dtype: str, step: float = 0.0) -> dict[str, torch.Tensor]:
    """Copies of the module's tensors, moved by ``step`` times the vector."""
    own = (*case.module.named_parameters(), *case.module.named_buffers())
    tensors = {name: _cast(x, case.type_of(_type_name(x), dtype)) for name, x in own}
    for name, v in case.vector.items():
        if step:
            tensors[name] += step * torch.as_tensor(v, dtype=tensors[name].dtype, device=tensors[name].device)
        tensors[name].requires_grad_()
    return tensors


def _type_name(x: torch.Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _cast(x: torch.Tensor, dtype: str) -> torch.Tensor:
    return x.detach().to(getattr(torch, dtype), copy=True)


def _run_module(case: Case, dtype: str, samples: bool) -> tuple[Any, tuple[np.ndarray, ...] | None]:
    """(outputs, draws) of the module with the tensors that it has at present."""
    recorder = Recorder()
    args, kwargs = arguments(case.inputs, _cast_batch(case, dtype))
    with recorder.generators(), recorder if samples else contextlib.nullcontext():
        outputs, _ = split_outputs(_call_module(case.module, args, kwargs))
    return outputs, tuple(recorder.draws) if samples else None


def _call_module(module: nn.Module, args: Any, kwargs: Any) -> Any:
    try:
        return module(*args, **kwargs)
    except Exception as error:
        if passes(error):
            raise
        raise ValueError(f"batch: {why_call_fails(error, module, args, kwargs)}") from error


def _cast_batch(case: Case, dtype: str) -> Any:
    cast = lambda x: _cast(x, case.type_of_data(_type_name(x), dtype)) if isinstance(x, torch.Tensor) else x  # noqa: E731
    return torch_pytree.tree_map(cast, as_tensors(case.batch))


def _compute_loss(case: Case, dtype: str, outputs: Any) -> torch.Tensor | None:
    if case.criterion is None:
        return mean_loss(outputs)
    batch, criterion = _cast_batch(case, dtype), case.criterion
    named = (*criterion.named_parameters(), *criterion.named_buffers())
    tensors = {name: _cast(x, dtype if x.is_floating_point() else _type_name(x)) for name, x in named}
    select = selection(case.outputs, criterion)
    outputs = outputs if select is None else select(outputs)
    labels = (case.labels or default_labels)(batch)
    name = f"criterion: {type(criterion).__name__}"
    try:
        loss = torch.func.functional_call(criterion, tensors, (outputs, labels))
    except Exception as error:
        if passes(error):
            raise
        raise failure(error, criterion, outputs, labels) from error
    if not isinstance(loss, torch.Tensor) or loss.ndim:
        what = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise ValueError(
            f"{name} returned {what}; it must return a scalar tensor, the mean over the batch: use reduction='mean', "
            "or end its forward pass with .mean()"
        )
    return loss


def _gradient(loss: torch.Tensor, params: list[torch.Tensor], create_graph: bool = False) -> list[torch.Tensor]:
    if not loss.requires_grad:
        return [torch.zeros_like(p) for p in params]
    gradient = torch.autograd.grad(loss, params, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(params, gradient, strict=True)]


def _hessian_product(
    case: Case, gradient: list[torch.Tensor], params: list[torch.Tensor]
) -> dict[str, np.ndarray] | None:
    """The Hessian product by a second backward pass; None where torch has none."""
    vector = [torch.as_tensor(v, dtype=g.dtype, device=g.device) for g, v in zip(gradient, case.vector.values())]
    try:
        products = [g * v.conj() for g, v in zip(gradient, vector, strict=True)]
        parts = [(x.real if x.is_complex() else x).sum().double() for x in products]
        return _to_arrays(dict(zip(case.vector, _gradient(torch.stack(parts).sum(), params), strict=True)))
    except (RuntimeError, NotImplementedError):
        return None


def _to_arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: to_array(x) for name, x in tensors.items()}
