"""Records the training of a torch module from the steps of its optimizer."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import lla_jax
from lla_jax.models.adapters import Misuse, check_integer, explained, misuse
from lla_torch.weights.checkpoint import unreadable
from lla_torch.weights.names import to_array

Tensors = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]
"""Parameters and buffers by their torch names."""


@explained
class Recording:
    """A training that is being recorded, see ``record_training``; a context manager that closes itself.

    Args:
      track: the recorder of the folder.
      tensors: gives the tensors to record by their torch names; None once the module is gone.
      start: steps that were done before.
    """

    def __init__(self, track: Any, tensors: Callable[[], Tensors | None], start: int):
        self._track, self._tensors = track, tensors
        self._step = self._last = start
        self._round: set[int] = set()  # optimizers that took this step already
        self._loss: torch.Tensor | float | None = None
        self._hook: Any = None

    def __repr__(self) -> str:
        return f"Recording({self._track!r}, {self._step} steps{'' if self._hook is not None else ', closed'})"

    @property
    def step(self) -> int:
        """The number of optimizer steps that were taken."""
        return self._step

    def note(self, loss: Any) -> None:
        """Note the loss that leads to the next step, to be recorded with it; called before ``optimizer.step()``.

        It is a loss of the parameters before the step, and it is waited for only if the step is recorded.

        Args:
          loss: a number, or a tensor of one.
        """
        self._loss = loss.detach() if isinstance(loss, torch.Tensor) else loss

    def close(self) -> None:
        """End the recording; the last step is recorded too, if it was not."""
        if self._hook is not None:
            self._stop()
            if self._last != self._step:
                self._record(keep=True)

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._stop()  # perhaps in the middle of a step

    def _begin(self, hook: Any) -> None:
        self._hook = hook

    def _stop(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _after(self, optimizer: Any) -> None:
        """Count the step of an optimizer; of several, a step of the training is one step of each."""
        if id(optimizer) in self._round or not self._round:
            self._round = set()
            self._step += 1
        self._round.add(id(optimizer))
        if len(self._round) == 1:
            self._record()

    def _record(self, keep: bool | None = None) -> None:
        loss, self._loss = self._loss, None
        if not self._track.is_due(self._step, keep):  # most steps end here
            return
        if (tensors := self._tensors()) is None:
            self._stop()
            return
        params, state = ({name: _to_host(name, x) for name, x in each.items()} for each in tensors)
        for name in [name for name, x in tensors[0].items() if not x.is_floating_point()]:
            state[name] = params.pop(name)  # complex weights, and those that are not trained
        number = loss.item() if isinstance(loss, torch.Tensor) and loss.numel() == 1 else loss
        self._track(params, self._step, loss=number, state=state or None, keep=True)
        self._last = self._step


def _to_host(name: str, tensor: torch.Tensor) -> Any:
    if problem := unreadable(tensor):
        raise Misuse("optimizer_or_module", f"{name} {problem}")
    return to_array(tensor, copy=False)


@explained
def record_training(
    optimizer_or_module: Any,
    folder: str | os.PathLike[str],
    every: int = 10,
    *,
    module: nn.Module | None = None,
    start: int = 0,
    differences: Literal["bfloat16"] | None = None,
    full_every: int = 10,
) -> Recording:
    """Record the training of a torch module: its weights and buffers as they are now, and after every few steps.

        recording = lla_torch.record_training(module, "runs/traj")
        ...                                       # the training loop as it is
        recording.close()
        path = lla_torch.load_path("runs/traj", net)

    Steps are those of the optimizer, so that gradients of several batches that are accumulated count once, and a step
    that is skipped for infinite gradients not at all. Of several optimizers of one module, a step is one of each, and
    the weights are those when the first of them has stepped. The training is not changed: nothing is computed, no
    random number is drawn, and a device is waited for only where a step is recorded. In a group of processes of
    torch.distributed the first one records.

    Args:
      optimizer_or_module: the module, with whatever optimizers train it; or the optimizer, whose module must be given
        too unless it was made with names, ``SGD(module.named_parameters(), ...)``. Without a module there are no
        buffers, such as the statistics of BatchNorm.
      folder: the folder, one for each run.
      every: a step is recorded if its number is a multiple of this; and so are the first and the last.
      module: the module that the optimizer trains.
      start: the steps that were done before, where a training is continued. Later ones in the folder are those of an
        abandoned run, and are moved to a folder inside.
      differences: as for ``lla_jax.paths.record``.
      full_every: as for ``lla_jax.paths.record``.

    Returns:
      The recording: ``note(loss)`` before a step keeps its loss, ``close()`` ends it, and so does the end of a ``with``
      block.

    Raises:
      ValueError: neither a module nor an optimizer; an optimizer without names and module, or that does not train the
        module; lazy modules; tensors without values, or parts of distributed ones; the errors of
        ``lla_jax.paths.record``.
    """
    start = check_integer("start", start, least=0, remedy="the number of steps that were done before")
    tensors = _source(optimizer_or_module, module)
    track: Any = lla_jax.paths.record(folder, every, differences=differences, full_every=full_every)
    if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
        track = _Nothing()
    recording = Recording(track, tensors, start)
    recording._record(keep=True)
    recording._begin(_hook(optimizer_or_module, recording))
    return recording


class _Nothing:
    """The recorder of processes that do not record."""

    def __call__(self, *args: Any, **options: Any) -> bool:
        return False

    def is_due(self, step: int, keep: bool | None) -> bool:
        return False


def _source(given: Any, module: Any) -> Callable[[], Tensors | None]:
    """What gives the tensors to record, by name."""
    if isinstance(given, nn.Module):
        if module is not None and module is not given:
            raise Misuse("module", "given beside a module; it goes with an optimizer: pass the module alone")
        _check_not_lazy(given)
        reference = weakref.ref(given)  # a recording that nobody closed does not keep its module alive
        return lambda: None if (alive := reference()) is None else tensors_of(alive)
    if not isinstance(given, torch.optim.Optimizer):
        raise misuse("optimizer_or_module", given, "a torch module, or the optimizer that trains it")
    if module is None:
        if not all("param_names" in group for group in given.param_groups):
            name = type(given).__name__
            text = f"{name} given, whose parameters have no names; pass the module, record_training(module, folder)"
            raise Misuse("optimizer_or_module", text)
        return lambda: (dict(_named(given)), {})
    if not isinstance(module, nn.Module):
        raise misuse("module", module, "the torch module that the optimizer trains")
    _check_not_lazy(module)
    if not trains(given, references(module)):
        raise Misuse("module", "has none of the optimizer's parameters; pass the module that it trains")
    return lambda: tensors_of(module)


def _check_not_lazy(module: nn.Module) -> None:
    lazy = [name for name, x in module.named_parameters() if nn.parameter.is_lazy(x)]
    if lazy:
        text = (
            f"{lazy[0]} has no shape yet; run the module once, and make the optimizer, before its training is recorded"
        )
        raise Misuse("optimizer_or_module", text)


def tensors_of(module: nn.Module) -> Tensors:
    """The parameters of a module and the buffers in its ``state_dict``, by name; of tied ones the first name."""
    buffers: dict[str, torch.Tensor] = {}
    for prefix, owner in module.named_modules():
        for name, tensor in owner._buffers.items():
            if tensor is not None and name not in owner._non_persistent_buffers_set:
                buffers[f"{prefix}.{name}".removeprefix(".")] = tensor
    return dict(module.named_parameters()), buffers


def _named(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)


def trains(optimizer: torch.optim.Optimizer, parameters: Mapping[int, Callable[[], Any]]) -> bool:
    """Whether an optimizer has one of some parameters.

    Args:
      optimizer: the optimizer.
      parameters: weak references to the parameters by their ids, see ``references``.
    """
    tensors = (p for group in optimizer.param_groups for p in group["params"])
    return any((own := parameters.get(id(p))) is not None and own() is p for p in tensors)


def references(module: nn.Module) -> dict[int, Callable[[], Any]]:
    """Weak references to the parameters of a module by their ids."""
    return {id(p): weakref.ref(p) for p in module.parameters()}


def _hook(given: Any, recording: Recording) -> Any:
    if isinstance(given, torch.optim.Optimizer):
        return given.register_step_post_hook(lambda optimizer, args, options: recording._after(optimizer))
    reference, parameters = weakref.ref(given), references(given)

    def after(optimizer: Any, args: Any, options: Any) -> None:
        nonlocal parameters
        if not trains(optimizer, parameters):
            if (alive := reference()) is None:
                recording._stop()
                return
            parameters = references(alive)  # of a module that got other parameters, such as a new head
            if not trains(optimizer, parameters):
                return
        recording._after(optimizer)

    return register_optimizer_step_post_hook(after)
