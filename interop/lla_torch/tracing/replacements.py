"""Functions of torch that torch.export cannot trace as they are, each with a version that a graph can hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import _reduction, functional


@torch.library.custom_op("lla_torch::ctc_loss", mutates_args=())
def _ctc_losses(
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    blank: int,
    zero_infinity: bool,
) -> torch.Tensor:
    return torch.ctc_loss(log_probs, targets, input_lengths, target_lengths, blank, 0, zero_infinity)


@_ctc_losses.register_fake
def _(log_probs: torch.Tensor, *rest: Any) -> torch.Tensor:
    return log_probs.new_empty(log_probs.shape[1])


def _ctc_loss(
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: torch.Tensor | Sequence[int] | int,
    target_lengths: torch.Tensor | Sequence[int] | int,
    blank: int = 0,
    reduction: str | int = "mean",
    zero_infinity: bool = False,
) -> torch.Tensor:
    """torch's CTC loss as one operator of the losses and a reduction; ``log_probs`` may have no batch axis."""
    single = log_probs.ndim == 2
    steps, sizes = (torch.as_tensor(x).reshape(-1) for x in (input_lengths, target_lengths))
    scores = log_probs[:, None] if single else log_probs
    losses = _ctc_losses(scores, targets, steps, sizes, blank, zero_infinity)
    if reduction in ("mean", 1):
        return (losses / sizes.clamp_min(1)).mean()
    if reduction in ("sum", 2):
        return losses.sum()
    return losses[0] if single else losses


def _gaussian_nll_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    var: torch.Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> torch.Tensor:
    """torch's Gaussian likelihood loss; where a variance is negative, which torch refuses, the loss is NaN.

    Below eps the loss is that of eps, and its derivative by the variance that at eps.
    """
    if not isinstance(var, torch.Tensor):
        if var < 0:
            raise ValueError("var has negative entry/entries")
        var = torch.full_like(input, var)
    if var.shape != input.shape:
        if input.shape[:-1] == var.shape:
            var = var[..., None]
        elif input.ndim != var.ndim or sum(m for n, m in zip(input.shape, var.shape, strict=True) if n != m) != 1:
            raise ValueError("var is of incorrect size")
    var = torch.where(var < 0, torch.nan, var)
    bounded = torch.where(var < eps, var + (eps - var).detach(), var)
    losses = 0.5 * (torch.log(bounded) + (input - target) ** 2 / bounded)
    if full:
        losses = losses + 0.5 * math.log(2 * math.pi)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(reduction + " is not valid")
    return losses.mean() if reduction == "mean" else losses.sum() if reduction == "sum" else losses


def _hinge_embedding_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    margin: float = 1.0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """torch's hinge loss of distances, whose operator torch.export takes in no form that is not reduced."""
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    _reduction.get_enum(reduction)  # refuses what is no reduction
    far = torch.where(target != 1, (margin - input).clamp_min(0), 0)
    losses = far + torch.where(target != -1, input, 0)
    return losses.mean() if reduction == "mean" else losses.sum() if reduction == "sum" else losses


def _bincount(input: torch.Tensor, weights: torch.Tensor | None = None, minlength: int = 0) -> torch.Tensor:
    """torch's counts of the numbers 0 to minlength - 1.

    Where a number lies beyond, torch's result would be longer; here all counts are -1, or NaN if there are weights.
    """
    if minlength == 0:
        return torch.bincount(input, weights)
    whole = input.long()
    inside = ((whole >= 0) & (whole < minlength)).all()
    ones = torch.ones_like(whole) if weights is None else weights
    dtype = torch.int64 if weights is None else weights.dtype if weights.dtype == torch.float32 else torch.float64
    counts = torch.zeros(minlength, dtype=dtype, device=input.device)
    counts = counts.index_add(0, whole.clamp(0, minlength - 1), ones.to(dtype))
    return torch.where(inside, counts, -1 if weights is None else torch.nan)


def _operator(name: str, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A custom operator for one of torch's that does not trace with a batch of any length; the result is like x."""
    own: Any = torch.library.custom_op(f"lla_torch::{name}", function, mutates_args=())
    own.register_fake(lambda x, *rest, **named: torch.empty_like(x))
    return own


def _quantize_number(x: torch.Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int) -> torch.Tensor:
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, quant_min, quant_max)


def _quantize_tensor(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, quant_min: int, quant_max: int
) -> torch.Tensor:
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, quant_min, quant_max)


def _quantize_channels(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, axis: int, quant_min: int, quant_max: int
) -> torch.Tensor:
    return torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, quant_min, quant_max)


def _quantize_learned(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    quant_min: int,
    quant_max: int,
    grad_factor: float = 1.0,
) -> torch.Tensor:
    function: Any = torch._fake_quantize_learnable_per_tensor_affine
    return function(x, scale, zero_point, quant_min, quant_max, grad_factor)


def _quantize_learned_channels(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    axis: int,
    quant_min: int,
    quant_max: int,
    grad_factor: float = 1.0,
) -> torch.Tensor:
    function: Any = torch._fake_quantize_learnable_per_channel_affine
    return function(x, scale, zero_point, axis, quant_min, quant_max, grad_factor)


_NUMBER = _operator("fake_quantize_number", _quantize_number)
_TENSOR = _operator("fake_quantize", _quantize_tensor)


def _fake_quantize(input: torch.Tensor, scale: Any, zero_point: Any, quant_min: int, quant_max: int) -> torch.Tensor:
    own = _TENSOR if isinstance(scale, torch.Tensor) else _NUMBER
    return own(input, scale, zero_point, quant_min, quant_max)


REPLACEMENTS: dict[Any, Callable[..., torch.Tensor]] = {
    functional.ctc_loss: _ctc_loss,
    torch.ctc_loss: _ctc_loss,
    functional.gaussian_nll_loss: _gaussian_nll_loss,
    functional.hinge_embedding_loss: _hinge_embedding_loss,
    torch.fake_quantize_per_tensor_affine: _fake_quantize,
    torch.fake_quantize_per_channel_affine: _operator("fake_quantize_channels", _quantize_channels),
    torch._fake_quantize_learnable_per_tensor_affine: _operator("fake_quantize_learned", _quantize_learned),
    torch._fake_quantize_learnable_per_channel_affine: _operator(
        "fake_quantize_learned_channels", _quantize_learned_channels
    ),
    torch.bincount: _bincount,
    torch.Tensor.bincount: _bincount,
}
"""Functions of torch, each with the version that is traced in its place."""
