"""Contexts for tracing: the module stays as it is, every dropout stays one operator, untraceable calls are refused."""

from __future__ import annotations

import contextlib
import copy
import os
import re
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode

import lla_jax
from lla_torch.tracing.derivatives import Refused, autograd_grad, derivatives_in_graph
from lla_torch.tracing.functions import has_own_derivative, kinds_of, run_forward
from lla_torch.tracing.open_sizes import open_version
from lla_torch.tracing.replacements import REPLACEMENTS

LOCK = threading.RLock()
"""Held while a module or torch's global state is changed and until it is restored."""


class ConversionError(ValueError):
    """The error for a module, or a part of it, that cannot be converted; the message says where and what to do."""


def is_library(file: str) -> bool:
    """Whether a source file is not the user's: it is torch's, one of ours, contextlib, or no file, as "<string>"."""
    folders = (os.path.dirname(torch.__file__), os.path.dirname(lla_jax.__file__), str(Path(__file__).parents[1]))
    return file.startswith((*(folder + os.sep for folder in folders), "<")) or file == contextlib.__file__


DATA = "x.detach()"
GRAD = "torch.autograd.grad(..., create_graph=True)"
REFUSED: dict[Any, tuple[str, str, bool]] = {
    torch.Tensor.data.__get__: (".data is read", DATA, True),  # type: ignore[attr-defined]
    torch.Tensor.data.__set__: (".data is written", DATA, True),  # type: ignore[attr-defined]
    torch.Tensor.register_hook: ("a hook on a gradient is registered", "x + (f(x) - x).detach()", True),
    torch.Tensor.backward: ("backward is called", GRAD, False),
    torch.autograd.backward: ("backward is called", GRAD, False),
}
"""Functions that leave no trace in a graph: (words for the message, the remedy, whether torch itself may call them)."""


class UntraceableCalls(TorchFunctionMode):
    """A torch mode that refuses calls that the graph would silently lose, keeps every dropout one operator, and
    traces versions of functions that decide by values or fix an open size.
    """

    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in REFUSED:
            action, instead, allowed_in_torch = REFUSED[func]
            if not allowed_in_torch or _is_user_call():
                raise Refused(f"{action}, which leaves no trace in the graph. Use {instead} instead")
        name = getattr(func, "__name__", "")
        if name == "_pack_padded_sequence":
            raise Refused(
                "pack_padded_sequence depends on the lengths' values. Give the recurrent layer the padded sequence, "
                "and pick the last steps by torch.gather"
            )
        if func is torch.autograd.grad:
            return autograd_grad(*args, **kwargs)
        traced = DROPOUTS.get(func) or REPLACEMENTS.get(func) or open_version(func, args, kwargs)
        result = NotImplemented if traced is None else traced(*args, **kwargs)
        return func(*args, **kwargs) if result is NotImplemented else result


def _is_user_call() -> bool:
    """Whether the user's own code makes the call: the innermost frame, function modes aside, is outside of torch."""
    modes = ("__torch_function__", "handle_torch_function", "register_hook")
    here = os.path.dirname(__file__)
    stack = reversed(traceback.extract_stack()[:-2])
    frames = [f for f in stack if f.name not in modes and os.path.dirname(f.filename) != here]
    return not is_library(frames[0].filename)


def _feature_dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    return _write_in_place(input, input * torch.dropout(_per_channel(input), p, training), inplace)


def _batched_dropout(batched: int) -> Callable[..., torch.Tensor]:
    """Feature dropout of inputs that have ``batched`` axes, or one less where there is no batch axis."""

    def dropout(input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        single = input.ndim < batched
        result = _feature_dropout(input[None] if single else input, *args, **kwargs)
        return result[0] if single else result

    return dropout


def _alpha_dropout(input: torch.Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> torch.Tensor:
    return _write_in_place(input, _drop_selu(input, torch.ones_like(input), p, training), inplace)


def _feature_alpha_dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> torch.Tensor:
    return _write_in_place(input, _drop_selu(input, _per_channel(input), p, training), inplace)


def _per_channel(x: torch.Tensor) -> torch.Tensor:
    return x.new_ones((*x.shape[:2], *[1] * (x.ndim - 2)))


def _write_in_place(x: torch.Tensor, result: torch.Tensor, inplace: bool) -> torch.Tensor:
    return x.copy_(result) if inplace else result


def _drop_selu(x: torch.Tensor, ones: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    """Dropout that keeps mean and variance of SELU's outputs.

    Kept entries of ``torch.dropout(ones)`` are 1 / (1 - p). Where they are 1 instead, dropout is off, and x is kept.
    """
    if not train or p == 0:
        return x
    alpha = 1.7580993408473766
    scale = ((alpha**2 * p + 1) * (1 - p)) ** -0.5 if p < 1 else 0.0
    kept = torch.dropout(ones, p, train)
    dropped = torch.full_like(x, -alpha * scale * (1 - p))
    return torch.where(kept == 0, dropped, torch.where(kept == 1, x, x * scale + alpha * scale * p))


DROPOUTS: dict[Any, Callable[..., torch.Tensor]] = {
    functional.dropout1d: _batched_dropout(3),
    functional.dropout2d: _feature_dropout,
    functional.dropout3d: _batched_dropout(5),
    functional.alpha_dropout: _alpha_dropout,
    functional.feature_alpha_dropout: _feature_alpha_dropout,
}
"""Kinds of dropout that torch would trace as plain random numbers, each with a version by ``torch.dropout``, which
stays one operator of the graph, so that all dropout can be switched off."""


@contextlib.contextmanager
def tracing_mode() -> Iterator[None]:
    """Context in which torch checks no values (a graph cannot decide by them) and refuses calls that lose gradients."""
    apply, detect = torch.autograd.Function.__dict__["apply"], transformer._detect_is_causal_mask
    validate = torch.distributions.Distribution._validate_args

    here = threading.get_ident()
    checked: dict[Any, bool] = {}

    def is_derivative(cls: type, args: tuple[Any, ...]) -> bool:
        """The answer of ``has_own_derivative``, found once for all calls with arguments of the same kinds."""
        if not all(isinstance(x, torch.Tensor | bool | int | float | str | None) for x in args):
            return has_own_derivative(cls, apply.__get__(None, cls), args)
        key = (cls, kinds_of(args))
        if key not in checked:
            checked[key] = has_own_derivative(cls, apply.__get__(None, cls), args)
        return checked[key]

    def refuse(cls: type, *args: Any, **kwargs: Any) -> Any:
        if cls.__module__.split(".")[0] == "torch" or threading.get_ident() != here:
            return apply.__get__(None, cls)(*args, **kwargs)
        if not kwargs and is_derivative(cls, args):
            return run_forward(cls, args)
        raise Refused(
            f"{cls.__name__}.apply is called, an autograd.Function whose backward is not, at random inputs, the "
            "derivative of its forward, and leaves no trace in the graph. Use operators instead: for a "
            "straight-through f(x) x + (f(x) - x).detach(), for a reversed gradient 2 * x.detach() - x"
        )

    torch.autograd.Function.apply = classmethod(refuse)  # type: ignore[method-assign,assignment]
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    torch.distributions.Distribution.set_default_validate_args(False)
    try:  # opt_einsum would turn symbolic sizes into numbers
        with torch.backends.opt_einsum.flags(enabled=False), derivatives_in_graph(), UntraceableCalls():
            yield
    finally:
        torch.autograd.Function.apply = apply  # type: ignore[method-assign]
        transformer._detect_is_causal_mask = detect
        torch.distributions.Distribution.set_default_validate_args(validate)


@contextlib.contextmanager
def preserve_module(module: nn.Module, train: bool | None = None) -> Iterator[None]:
    """Context with the module in train or eval mode (None: as it is); afterwards it and torch's state are as before.

    Restored are the attributes, lists, dicts and sets of all modules (modes, caches, hooks, which tensors they hold)
    and torch's CPU generator and gradient mode. Entries of tensors that are written in place are not. Warnings are
    hidden.

    Raises:
      ConversionError: the module's own ``train`` or ``eval`` changes its weights.
    """
    with LOCK, torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = [(m, dict(vars(m)), _contents(m)) for m in module.modules()]
        try:
            if train is not None:
                _set_mode(module, train)
            yield
        finally:
            for m, attributes, contents in before:  # modes, caches and weights that a forward pass or its hooks set
                vars(m).clear()
                vars(m).update(attributes)
                for container, content in contents:
                    container.clear()
                    container.extend(content) if isinstance(container, list) else container.update(content)


def _contents(module: nn.Module) -> list[tuple[Any, Any]]:
    """A module's lists, dicts and sets (its buffers among them), each with a copy of its contents."""
    return [(x, copy.copy(x)) for x in vars(module).values() if isinstance(x, list | dict | set)]


def _set_mode(module: nn.Module, train: bool) -> None:
    """Call ``module.train()`` or ``module.eval()``; refuse a module's own version of them that changes weights."""
    own = [m for m in module.modules() if type(m).train is not nn.Module.train or type(m).eval is not nn.Module.eval]
    before = [(x, x.detach().clone()) for x in (*module.parameters(), *module.buffers())] if own else []
    module.train() if train else module.eval()
    changed = [x for x, values in before if not torch.equal(x, values)]
    if changed:
        with torch.no_grad():
            for x, values in before:
                x.copy_(values)
        raise ConversionError(
            f"module {type(own[0]).__name__}: {'train' if train else 'eval'}() changes its weights, as merged adapters "
            "do; put the module into this mode yourself, then convert it"
        )


# --- losses of outputs and labels whose shapes differ


_SIZES = re.compile(r"Using a target size \(torch\.Size\(\[(.*?)\]\)\).*input size \(torch\.Size\(\[(.*?)\]\)\)")


@contextlib.contextmanager
def refuse_losses_of_pairs() -> Iterator[None]:
    """Context in which torch's warning of outputs and labels of different shapes is an error where both are repeated.

    (B, 1) and (B,) broadcast to (B, B): the loss of each output with the label of every example. Other broadcasting,
    as to a label for all examples, stays. Warnings are hidden.

    Raises:
      ConversionError: a loss repeats outputs and labels.
    """
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", message="Using a target size")
        yield
    for each in seen:
        found = _SIZES.search(str(each.message))
        target, outputs = (
            ([n.strip() for n in x.split(",") if n.strip()] for x in found.groups()) if found else ([], [])
        )
        length = max(len(target), len(outputs))
        padded = [["1"] * (length - len(x)) + x for x in (target, outputs)]
        result = [b if a == "1" else a for a, b in zip(*padded, strict=True)]
        if result not in (target, outputs):
            raise ConversionError(
                f"loss: outputs of shape {_shape_text(outputs)} and labels of shape {_shape_text(target)} given, which "
                f"broadcast to {_shape_text(result)}, the loss of each output with every label; they must have one "
                "shape: give the labels an axis, labels[:, None], or take it from the outputs, outputs.squeeze(1)"
            )


def _shape_text(sizes: list[str]) -> str:
    """A shape in a message, with B for a length that is open."""
    return f"({', '.join(n if n.isdigit() else 'B' for n in sizes)}{',' * (len(sizes) == 1)})"
