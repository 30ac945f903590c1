"""Records torch's random draws in order, so that a converted module can replay them exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as torch_pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lla_jax.models.adapters import explained, passes
from lla_torch.tracing.calls import as_tensors, why_call_fails
from lla_torch.tracing.guards import LOCK
from lla_torch.tracing.outputs import split_outputs
from lla_torch.weights.arguments import check_module
from lla_torch.weights.names import to_array

_FAMILIES = ("uniform", "normal", "exponential", "random", "log_normal", "cauchy", "geometric")
_VALUES = {"rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "normal_functional"}
_VALUES |= {*_FAMILIES, *(f"{name}_" for name in _FAMILIES)}
"""Operators whose result is the draw."""
_MASKS = {"bernoulli", "bernoulli_"}
"""Operators that draw 0 or 1. On the CPU, dropout is one of these and a product, so that its mask is recorded."""


@explained
def record(module: nn.Module, *inputs: Any, **kwargs: Any) -> tuple[Any, tuple[np.ndarray, ...]]:
    """Run a torch module in its present mode, and record every random draw that it makes.

    Args:
      module: the torch module; ``module.train()`` turns its dropout on.
      inputs: the arguments of its forward, one by one; tensors or arrays.
      kwargs: further arguments by name.

    Returns:
      (outputs, draws). Outputs are nested as torch's, with numpy arrays. Draws are arrays in the order in which torch
      made them. For dropout and Bernoulli draws they are boolean masks of the entries kept (for attention, of its
      probabilities; for feature dropout, of shape (N, C, 1, ...)); for ``rand``, ``randn``, ``randint``, ``randperm``,
      ``normal`` and the like they are the values. Pass them as ``draws`` to the converted module to get the same
      outputs.
      Afterwards the module's buffers and training flags and torch's generators are as before; no gradients are kept.

    Raises:
      ValueError: no module; inputs that the module does not take; an operator whose draws cannot be replayed, such as
        ``multinomial``.
    """
    check_module(module)
    inputs, kwargs = as_tensors(inputs, keep=True), as_tensors(kwargs, keep=True)  # torch runs it: no dict is needed
    try:
        try:
            return _recorded(module, inputs, kwargs, torch.no_grad())
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
        return _recorded(module, inputs, kwargs, torch.enable_grad())  # the module differentiates by its inputs
    except Exception as error:
        if passes(error):
            raise
        raise ValueError(why_call_fails(error, module, inputs, kwargs)) from error


def _recorded(module: nn.Module, inputs: Any, kwargs: Any, mode: Any) -> tuple[Any, tuple[np.ndarray, ...]]:
    """(outputs, draws) of a module that runs in a gradient mode."""
    recorder = Recorder()
    with LOCK, _restore_module(module), recorder.generators(), mode, recorder:
        outputs, _ = split_outputs(module(*inputs, **kwargs))
        result = torch_pytree.tree_map_only(torch.Tensor, to_array, outputs)
    return result, tuple(recorder.draws)


class Recorder(TorchDispatchMode):
    """A torch dispatch mode that appends the draw of every random operator, as a numpy array, to ``draws``."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[np.ndarray] = []
        self._states: dict[torch.Generator, torch.Tensor] = {}

    @contextmanager
    def generators(self) -> Iterator[None]:
        """Context that restores, at its end, the generators that were passed to operators while the mode was on."""
        try:
            yield
        finally:
            for generator, state in self._states.items():
                generator.set_state(state)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Generator) and value not in self._states:
                self._states[value] = value.get_state()
        random = torch.Tag.nondeterministic_seeded in func.tags
        draws = random and _draws_numbers(func, args, kwargs)
        name = func.overloadpacket.__name__
        if draws and name not in _VALUES | _MASKS and name != "native_dropout":
            raise ValueError(
                f"module: it draws random numbers by {func}, whose draws cannot be recorded. Write it with torch.rand, "
                "randn or bernoulli; run attention and recurrent layers with dropout on the CPU, where their masks can "
                "be seen; or run the module in eval mode"
            )
        result = func(*args, **kwargs)
        if draws:
            self._note(name, result)
        return result

    def _note(self, name: str, result: Any) -> None:
        if name == "native_dropout":
            self.draws.append(to_array(result[1]).astype(bool))
        else:
            values = to_array(result)
            self.draws.append(values.astype(bool) if name in _MASKS else values)


def _draws_numbers(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether the operator really draws: fused attention, recurrent and activation kernels only do so in training."""
    named = dict(zip((a.name for a in func._schema.arguments), args)) | dict(kwargs)
    values = {a.name: named.get(a.name, a.default_value) for a in func._schema.arguments}
    chance = [values[name] for name in ("dropout_p", "dropout", "p") if name in values]
    training = [values[name] for name in ("train", "training") if name in values]
    name = func.overloadpacket.__name__
    if name == "_fused_sdp_choice":  # it only selects a kernel
        return False
    if name.startswith("_scaled_dot_product") or name.endswith("_rnn") or "attention" in name:
        return bool(chance and chance[0]) and all(training)
    if name.startswith("rrelu") or name == "native_dropout":
        return all(t is None or t for t in training) and (name != "native_dropout" or 0 < values["p"] < 1)
    return True


@contextmanager
def _restore_module(module: nn.Module) -> Iterator[None]:
    """Context that restores buffers, training flags, the gradient mode and the generators at its end."""
    buffers = [
        (owner, name, tensor, None if tensor is None else tensor.detach().clone())
        for owner in module.modules()
        for name, tensor in owner._buffers.items()
    ]
    names = [(owner, tuple(owner._buffers)) for owner in module.modules()]
    flags = [(owner, owner.training) for owner in module.modules()]
    grad = torch.is_grad_enabled()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        torch.set_grad_enabled(grad)
        for owner, known in names:
            for name in [name for name in owner._buffers if name not in known]:
                del owner._buffers[name]
        with torch.no_grad():
            for owner, name, tensor, values in buffers:
                # an expanded tensor cannot be written to, so only changed ones are
                if tensor is not None and values is not None and not torch.equal(tensor, values):
                    tensor.copy_(values)
                owner._buffers[name] = tensor
        for owner, training in flags:
            owner.training = training
