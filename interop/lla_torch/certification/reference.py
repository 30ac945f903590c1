"""torch's side of a certificate: a module's own numbers in the tested precision, the module left as it is."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as torch_pytree

from lla_torch.conversion.function import arguments
from lla_torch.conversion.module import as_tensors
from lla_torch.tracing.guards import untouched
from lla_torch.tracing.recording import Recorder
from lla_torch.weights.names import to_array

STEP = 1e-5  # of the central differences
_CASTS: dict[torch.dtype, Any] = {
    torch.float16: torch.Tensor.half,
    torch.bfloat16: torch.Tensor.bfloat16,
    torch.float32: torch.Tensor.float,
    torch.float64: torch.Tensor.double,
    torch.complex64: torch.Tensor.cfloat,  # type: ignore[attr-defined]
    torch.complex128: torch.Tensor.cdouble,  # type: ignore[attr-defined]
}


class Task(NamedTuple):
    """What is compared.

    Args:
      module: the torch module.
      batch: (inputs, labels), or the inputs.
      criterion: a torch loss module; None: ``mean_loss``.
      inputs: function of the batch that gives the inputs, or None.
      vector: entries, by parameter name, of what the Hessian is applied to.
      types: names of the floating types of the module's parameters, its own (that of most) first.
      samples: whether the module draws random numbers in eval mode.
      trains: whether train mode is compared.
    """

    module: nn.Module
    batch: Any
    criterion: nn.Module | None
    inputs: Callable[[Any], Any] | None
    vector: dict[str, np.ndarray]
    types: tuple[str, ...]
    samples: bool
    trains: bool

    def type_of(self, name: str, dtype: str) -> str:
        """The type of an array in a run in ``dtype``, for one that is ``name`` in the module: in its own precision a
        module is taken as it is."""
        if dtype == self.types[0]:
            return name
        kind = jax.numpy.dtype(name)
        if jax.numpy.issubdtype(kind, jax.numpy.complexfloating):
            return "complex128"
        return "float64" if jax.numpy.issubdtype(kind, jax.numpy.floating) else name

    def type_of_data(self, name: str, dtype: str) -> str:
        """The same for the batch, whose floats are made the module's own if it has only one type."""
        if dtype == self.types[0] and len(self.types) == 1 and jax.numpy.issubdtype(name, jax.numpy.floating):
            return dtype
        return self.type_of(name, dtype)


class Follow(TorchFunctionMode):
    """Types that a module writes out (``.float()``, ``zeros(dtype=torch.float32)``) mean the tested ones, as they do in
    the converted program; a mode has to be a class."""

    def __init__(self, types: Mapping[torch.dtype, torch.dtype]):
        super().__init__()
        self.types = types
        self.casts = {_CASTS[a]: _CASTS[b] for a, b in types.items()}

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        follow = lambda x: self.types.get(x, x) if isinstance(x, torch.dtype) else x  # noqa: E731
        named = {name: follow(x) for name, x in (kwargs or {}).items()}
        return self.casts.get(func, func)(*map(follow, args), **named)


class _Within(nn.Module):
    """Runs a function while the module has other tensors, also while gradients are taken: checkpoints run it again."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, run: Callable[[], Any]) -> Any:
        return run()


def named_arrays(outputs: Any, path: str = "") -> dict[str, Any]:
    """The tensors or arrays of nested outputs by path, in torch's order; other values are left out."""
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
    """The weights w of ``mean_loss`` for one array of outputs."""
    return np.random.default_rng(zlib.crc32(path.encode())).standard_normal(shape[1:])


def mean_loss(outputs: Any) -> torch.Tensor | None:
    """Sum over the arrays of outputs of mean(w o + o^2 / 2), where the weights w are the same for every example: the
    square alone is constant for normalized outputs. None without floating outputs."""
    terms = []
    for path, x in named_arrays(outputs).items():
        x = torch.view_as_real(x) if x.is_complex() else x
        if x.is_floating_point() and x.numel():
            w = torch.as_tensor(output_weights(path, tuple(x.shape)), dtype=x.dtype, device=x.device)
            terms.append((w * x + x**2 / 2).mean())
    return torch.stack([t.to(terms[0].dtype) for t in terms]).sum() if terms else None


def torch_numbers(task: Task, dtype: str) -> dict[str, Any]:
    """torch's outputs, loss, gradient, Hessian product, train mode and draws, where there are such."""
    held = _held(task, dtype)
    wanted = [held[name] for name in task.vector]

    def run() -> dict[str, Any]:
        outputs, draws = _outputs(task, dtype, task.samples)
        loss = _loss(task, dtype, outputs)
        found = {"outputs": _arrays(named_arrays(outputs)), "draws": draws}
        if loss is not None:
            found["loss"] = {"": to_array(loss)}
        if loss is not None and wanted:
            gradient = _gradient(loss, wanted, create_graph=True)
            found["gradient"] = _arrays(dict(zip(task.vector, gradient, strict=True)))
            found["Hessian product"] = _product(task, gradient, wanted)
        return found

    with _as_tested(task, dtype, train=False):
        found = _run(task.module, held, run)
    return {**found, **(_train_numbers(task, dtype) if task.trains else {})}


def central_differences(task: Task) -> dict[str, np.ndarray]:
    """The Hessian product by differences of torch's gradients, in float64."""

    def gradient(step: float) -> list[torch.Tensor]:
        held = _held(task, "float64", step)
        wanted = [held[name] for name in task.vector]

        def run() -> list[torch.Tensor]:
            loss = _loss(task, "float64", _outputs(task, "float64", False)[0])
            assert loss is not None
            return _gradient(loss, wanted)

        return _run(task.module, held, run)

    with _as_tested(task, "float64", train=False):
        pairs = zip(task.vector, gradient(STEP), gradient(-STEP), strict=True)
        return {name: to_array((a - b) / (2 * STEP)) for name, a, b in pairs}


def _train_numbers(task: Task, dtype: str) -> dict[str, Any]:
    """Outputs of one call as ``module.train()`` has it, its draws, and the buffers if it changes one."""
    held = _held(task, dtype)
    before = {f"state {name}": to_array(x) for name, x in held.items()}

    def run() -> dict[str, Any]:
        outputs, draws = _outputs(task, dtype, True)
        state = {f"state {name}": to_array(x) for name, x in task.module.named_buffers()}
        numbers = {"train": _arrays(named_arrays(outputs)), "train draws": draws}
        same = all(np.array_equal(x, before.get(name, x)) for name, x in state.items())
        return numbers if same else {**numbers, "state": state}

    with _as_tested(task, dtype, train=True), torch.no_grad():
        return _run(task.module, held, run)


@contextlib.contextmanager
def _as_tested(task: Task, dtype: str, train: bool) -> Iterator[None]:
    """torch with exact second derivatives (no fused attention, no oneDNN), in the tested precision."""
    default = torch.get_default_dtype()
    types = _types(task, dtype)
    with (
        untouched(task.module, train=train),
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.mkldnn.flags(enabled=False),
    ):
        try:
            torch.set_default_dtype(types.get(default, default))
            with Follow(types) if types else contextlib.nullcontext():
                yield
        finally:
            torch.set_default_dtype(default)


def _types(task: Task, dtype: str) -> dict[torch.dtype, torch.dtype]:
    if dtype == task.types[0]:
        return {}
    found = {getattr(torch, name): getattr(torch, dtype) for name in task.types}
    return found | ({torch.complex64: torch.complex128} if torch.float32 in found else {})


def _run(module: nn.Module, held: dict[str, torch.Tensor], run: Callable[[], Any]) -> Any:
    torch.default_generator.manual_seed(0)  # within untouched: the user's generator is put back
    return torch.func.functional_call(_Within(module), {f"module.{n}": x for n, x in held.items()}, (run,))


def _held(task: Task, dtype: str, step: float = 0.0) -> dict[str, torch.Tensor]:
    """Copies of the module's tensors, moved by ``step`` times the vector."""
    module = task.module
    held = {
        n: _cast(x, task.type_of(_name(x), dtype)) for n, x in (*module.named_parameters(), *module.named_buffers())
    }
    for name, v in task.vector.items():
        if step:
            held[name] += step * torch.as_tensor(v, dtype=held[name].dtype, device=held[name].device)
        held[name].requires_grad_()
    return held


def _name(x: torch.Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _cast(x: torch.Tensor, dtype: str) -> torch.Tensor:
    return x.detach().to(getattr(torch, dtype), copy=True)


def _outputs(task: Task, dtype: str, samples: bool) -> tuple[Any, tuple[np.ndarray, ...] | None]:
    """(outputs, draws): of the module with the tensors that it has at present."""
    recorder = Recorder()
    args, kwargs = arguments(task.inputs, _batch(task, dtype))
    with recorder.generators(), recorder if samples else contextlib.nullcontext():
        outputs = task.module(*args, **kwargs)
    return outputs, tuple(recorder.draws) if samples else None


def _batch(task: Task, dtype: str) -> Any:
    cast = lambda x: _cast(x, task.type_of_data(_name(x), dtype)) if isinstance(x, torch.Tensor) else x  # noqa: E731
    return torch_pytree.tree_map(cast, as_tensors(task.batch))


def _loss(task: Task, dtype: str, outputs: Any) -> torch.Tensor | None:
    if task.criterion is None:
        return mean_loss(outputs)
    batch, criterion = _batch(task, dtype), task.criterion
    named = (*criterion.named_parameters(), *criterion.named_buffers())
    held = {name: _cast(x, dtype if x.is_floating_point() else _name(x)) for name, x in named}
    labels = batch[1] if len(batch) == 2 else tuple(batch[1:])
    return torch.func.functional_call(criterion, held, (outputs, labels))


def _gradient(loss: torch.Tensor, wanted: list[torch.Tensor], create_graph: bool = False) -> list[torch.Tensor]:
    if not loss.requires_grad:
        return [torch.zeros_like(p) for p in wanted]
    found = torch.autograd.grad(loss, wanted, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found, strict=True)]


def _product(task: Task, gradient: list[torch.Tensor], wanted: list[torch.Tensor]) -> dict[str, np.ndarray] | None:
    """The Hessian product by a second backward pass; None where torch has none."""
    vector = [torch.as_tensor(v, dtype=g.dtype, device=g.device) for g, v in zip(gradient, task.vector.values())]
    try:
        parts = [(g * v).sum().double() for g, v in zip(gradient, vector, strict=True)]
        return _arrays(dict(zip(task.vector, _gradient(torch.stack(parts).sum(), wanted), strict=True)))
    except (RuntimeError, NotImplementedError):
        return None


def _arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: to_array(x) for name, x in tensors.items()}
