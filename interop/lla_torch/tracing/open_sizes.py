"""Functions that torch computes with the length of an axis as a number, written so that the length stays open."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.utils import _pytree as torch_pytree


def open_version(func: Any, args: Any, kwargs: Any) -> Callable[..., Any] | None:
    """The function to trace in place of one that would fix an open size at its present length; None if none is needed.

    It returns NotImplemented for arguments that it does not know.
    """
    if func in ALWAYS:
        return ALWAYS[func]
    return OPEN[func] if func in OPEN and _has_open_size((args, kwargs)) else None


def _has_open_size(arguments: Any) -> bool:
    """Whether a size among nested arguments, or of a tensor among them, is open."""
    leaves = torch_pytree.tree_leaves(arguments)
    sizes = [n for x in leaves for n in (x.shape if isinstance(x, torch.Tensor) else (x,))]
    return any(isinstance(n, torch.SymInt) for n in sizes)


def _take_along_dim(input: torch.Tensor, indices: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    if dim is None:
        return input.flatten().gather(0, indices.flatten())
    dim %= input.ndim
    x_shape, i_shape = list(input.shape), list(indices.shape)
    common = list(
        torch.broadcast_shapes([*x_shape[:dim], 1, *x_shape[dim + 1 :]], [*i_shape[:dim], 1, *i_shape[dim + 1 :]])
    )
    expand = lambda x: x.expand([*common[:dim], x.shape[dim], *common[dim + 1 :]])  # noqa: E731
    return expand(input).gather(dim, expand(indices))


def _kron(input: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    ndim = max(input.ndim, other.ndim)
    a, b = ([1] * (ndim - x.ndim) + list(x.shape) for x in (input, other))
    left = input.reshape([n for size in a for n in (size, 1)])
    right = other.reshape([n for size in b for n in (1, size)])
    return (left * right).reshape([m * n for m, n in zip(a, b, strict=True)])


def _block_diag(*tensors: torch.Tensor) -> torch.Tensor:
    blocks = [x.reshape(1, -1) if x.ndim < 2 else x for x in tensors]
    width: Any = sum(x.shape[1] for x in blocks)
    rows, left = [], 0
    for x in blocks:
        rows.append(functional.pad(x, (left, width - left - x.shape[1])))
        left += x.shape[1]
    return torch.cat(rows)


def _powers(x: torch.Tensor, num: Any) -> torch.Tensor:
    ones = torch.ones_like(x)[..., None]
    return torch.cat([ones, x[..., None].expand(*x.shape, num - 1)], -1).cumprod(-1)


def _vander(x: torch.Tensor, N: Any = None, increasing: bool = False) -> torch.Tensor:
    powers = _powers(x, x.shape[0] if N is None else N)
    return powers if increasing else powers.flip(-1)


def _linalg_vander(x: torch.Tensor, *, N: Any = None) -> torch.Tensor:
    return _powers(x, x.shape[-1] if N is None else N)


def _gradient(input: torch.Tensor, *, spacing: Any = 1, dim: Any = None, edge_order: int = 1) -> Any:
    dims = list(range(input.ndim)) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    steps = [spacing] * len(dims) if isinstance(spacing, int | float) else spacing
    if edge_order != 1 or not all(isinstance(h, int | float) for h in steps):
        return NotImplemented
    return tuple(_differences(input, d, h) for d, h in zip(dims, steps, strict=True))


def _differences(x: torch.Tensor, dim: int, step: float) -> torch.Tensor:
    """Central differences along an axis, and one-sided ones at its ends."""
    n = x.shape[dim]
    cut = lambda start, length: x.narrow(dim, start, length)  # noqa: E731
    ends = [(cut(1, 1) - cut(0, 1)) / step, (cut(n - 1, 1) - cut(n - 2, 1)) / step]
    return torch.cat([ends[0], (cut(2, n - 2) - cut(0, n - 2)) / (2 * step), ends[1]], dim)


def _fill_diagonal(input: torch.Tensor, fill_value: Any, wrap: bool = False) -> Any:
    if input.ndim != 2 or wrap:
        return NotImplemented
    return input.copy_(input.masked_fill(torch.eye(*input.shape, dtype=torch.bool, device=input.device), fill_value))


def _multi_dot(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return functools.reduce(torch.matmul, tensors)


def _linspace(start: Any, end: Any, steps: Any, **named: Any) -> Any:
    if not isinstance(start, int | float) or not isinstance(end, int | float) or named.get("out") is not None:
        return NotImplemented
    named["dtype"] = named.get("dtype") or torch.get_default_dtype()
    if not named["dtype"].is_floating_point:
        return NotImplemented
    places = torch.arange(steps, **named)
    step = (end - start) / torch.sym_max(steps - 1, 1)  # torch counts the second half from the end
    return torch.where(places < steps // 2, start + step * places, end - step * (steps - 1 - places))


def _logspace(start: Any, end: Any, steps: Any, base: float = 10.0, **named: Any) -> Any:
    exponents = _linspace(start, end, steps, **named)
    return NotImplemented if exponents is NotImplemented else torch.pow(base, exponents)


def _cov(input: torch.Tensor, *, correction: int = 1, fweights: Any = None, aweights: Any = None) -> Any:
    if fweights is not None or aweights is not None or input.ndim > 2:
        return NotImplemented
    x = input[None] if input.ndim < 2 else input
    centred = x - x.mean(1, keepdim=True)
    total = centred @ centred.mH
    return (total / torch.sym_max(x.shape[1] - correction, 0)).squeeze()


def _corrcoef(input: torch.Tensor) -> Any:
    c = _cov(input)
    if c is NotImplemented or c.ndim == 0:
        return c if c is NotImplemented else c / c
    deviations = c.diagonal().real.sqrt() if c.is_complex() else c.diagonal().sqrt()
    c = c / deviations[:, None] / deviations
    return c if c.is_complex() else c.clip(-1, 1)


def _combinations(input: torch.Tensor, r: int = 2, with_replacement: bool = False) -> Any:
    n = input.shape[0]
    if not isinstance(n, int) or r < 1:
        return NotImplemented
    places = torch.tensor(_choices(n, r, with_replacement), device=input.device).reshape(-1, r)
    return input[places]


def _of_one_example(loss: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    """A loss of scores (C,) and one class, computed as that of a batch of one, where torch would read the class."""

    def compute(input: torch.Tensor, target: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if input.ndim != 1 or target.ndim != 0:
            return NotImplemented
        return loss(input[None], target[None], *args, **kwargs).reshape(())

    return compute


def _choices(n: int, r: int, repeated: bool) -> list[tuple[int, ...]]:
    choose: Callable[..., Any] = itertools.combinations_with_replacement if repeated else itertools.combinations
    return list(choose(range(n), r))


_METHODS: dict[str, Callable[..., Any]] = {
    "take_along_dim": _take_along_dim,
    "kron": _kron,
    "block_diag": _block_diag,
    "vander": _vander,
    "gradient": _gradient,
    "chain_matmul": lambda *matrices: _multi_dot(matrices),
    "fill_diagonal_": _fill_diagonal,
    "linspace": _linspace,
    "logspace": _logspace,
}

OPEN: dict[Any, Callable[..., Any]] = {
    **{
        getattr(owner, name): function
        for name, function in _METHODS.items()
        for owner in (torch, torch.Tensor)
        if hasattr(owner, name)
    },
    functional.cross_entropy: _of_one_example(functional.cross_entropy),
    functional.nll_loss: _of_one_example(functional.nll_loss),
    torch.linalg.multi_dot: _multi_dot,
    torch.linalg.vander: _linalg_vander,
}
"""Functions that fix an open size, each with one that leaves it open."""

ALWAYS: dict[Any, Callable[..., Any]] = {
    torch.cov: _cov,
    torch.Tensor.cov: _cov,
    torch.corrcoef: _corrcoef,
    torch.Tensor.corrcoef: _corrcoef,
    torch.combinations: _combinations,
}
"""Functions whose own checks read values, each with one that reads none."""
