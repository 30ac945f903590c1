"""Takes a criterion as it is given: torch's functions as the loss modules that they are; others are refused by name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lla_jax.models.adapters import misuse
from lla_torch.weights.arguments import is_net

MODULES: dict[Any, type[nn.Module]] = {
    F.binary_cross_entropy: nn.BCELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.cross_entropy: nn.CrossEntropyLoss,
    F.hinge_embedding_loss: nn.HingeEmbeddingLoss,
    F.huber_loss: nn.HuberLoss,
    F.kl_div: nn.KLDivLoss,
    F.l1_loss: nn.L1Loss,
    F.mse_loss: nn.MSELoss,
    F.multi_margin_loss: nn.MultiMarginLoss,
    F.multilabel_margin_loss: nn.MultiLabelMarginLoss,
    F.multilabel_soft_margin_loss: nn.MultiLabelSoftMarginLoss,
    F.nll_loss: nn.NLLLoss,
    F.poisson_nll_loss: nn.PoissonNLLLoss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.soft_margin_loss: nn.SoftMarginLoss,
}
"""torch's losses of (outputs, labels) as functions, and the module that computes the same."""

STEP = (
    "or write it as a step, loss, params = lla_torch.convert_loss(lambda module, batch: ..., module, batch), which "
    "torch computes"
)


def as_criterion(criterion: Any) -> nn.Module | Callable[..., Any]:
    """The criterion: a loss module as it is, torch's own function as its module, any other function as it is.

    ``functools.partial(F.cross_entropy, label_smoothing=0.1)`` becomes ``nn.CrossEntropyLoss(label_smoothing=0.1)``.

    Raises:
      ValueError: the class of a loss module, a value of a loss, a network, a name, another function of torch, or
        anything else that is not called with (outputs, labels).
    """
    options: dict[str, Any] = {}
    function = criterion
    if isinstance(criterion, functools.partial) and not criterion.args:
        function, options = criterion.func, criterion.keywords
    kind = MODULES.get(function) if callable(function) and _is_function(function) else None
    if kind is not None:
        try:
            return kind(**options)
        except TypeError as error:
            rule = f"given as a module, nn.{kind.__name__}(...), with its weights as tensors ({error})"
            raise misuse("criterion", criterion, rule) from error
    if isinstance(criterion, torch.jit.ScriptModule):
        raise misuse("criterion", criterion, "the loss module itself, not its TorchScript")
    if isinstance(criterion, nn.Module):
        return getattr(criterion, "_orig_mod", criterion)  # torch.compile's wrapper has it
    if _is_function(function) and (getattr(function, "__module__", "") or "").split(".")[0] == "torch":
        raise misuse(
            "criterion", criterion, f"a torch loss module, such as nn.CrossEntropyLoss(), a JAX function, {STEP}"
        )
    if is_net(criterion) or isinstance(criterion, type) or not callable(criterion):
        raise misuse(
            "criterion",
            criterion,
            f"a torch loss module, such as nn.CrossEntropyLoss(), or a JAX function (outputs, labels) -> losses (B,)"
            f"{_slip(criterion)}",
        )
    return criterion


def _is_function(value: Any) -> bool:
    return type(value).__name__ in ("function", "builtin_function_or_method")


def _slip(value: Any) -> str:
    """What was probably meant by a criterion of another type."""
    if isinstance(value, type):
        return f"; this is a class: make an object of it, {value.__name__}()"
    if isinstance(value, torch.Tensor) or hasattr(value, "shape"):
        return "; this is the value of a loss: pass what computes it"
    return "; this is a network, not its loss" if is_net(value) else ""
