"""Lets ``torch.cond`` be traced, and marks stop-gradients inside of its branches."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import overrides
from torch._ops import HigherOrderOperator

from lla_torch.tracing.guards import ConversionError


@contextlib.contextmanager
def traceable_branches() -> Iterator[None]:
    """Context in which ``torch.cond`` runs without torch's function modes, which it cannot trace."""
    cond, here = torch.cond, threading.get_ident()

    def without_modes(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != here:
            return cond(*args, **kwargs)
        modes = [overrides._pop_mode() for _ in range(overrides._len_torch_function_stack())]
        torch.cond = cond
        try:
            return cond(*args, **kwargs)
        finally:
            torch.cond = without_modes
            for mode in reversed(modes):
                overrides._push_mode(mode)

    torch.cond = without_modes
    try:
        yield
    finally:
        torch.cond = cond


def mark_branches(graph_module: torch.fx.GraphModule, mark: Callable[[torch.fx.GraphModule], None]) -> None:
    """Apply ``mark`` to the graphs that the operators of a graph take, such as the branches of ``torch.cond``.

    Raises:
      ConversionError: a branch that turns gradients off, which its graph would lose.
    """
    for node in graph_module.graph.nodes:
        if isinstance(node.target, HigherOrderOperator) and node.target is torch.ops.higher_order.cond:
            for each in (node.args[1], node.args[2]):
                branch = getattr(graph_module, each.target)
                if any("set_grad_enabled" in str(n.target) for n in branch.graph.nodes):
                    raise ConversionError(
                        "module: a branch of torch.cond turns gradients off (no_grad), which leaves no trace in the "
                        "graph; use x.detach() there"
                    )
                mark(branch)
