"""``Block``, a function that an operator takes, such as a branch of ``torch.cond``; and the choice between two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_torch.program.instructions import Instruction, read_argument, run_instruction, to_logical
from lla_torch.program.noise import Noise
from lla_torch.program.views import plain


@dataclass(frozen=True)
class Block:
    """A function that an operator takes, such as a branch of ``torch.cond``.

    Args:
      instructions: in order of execution; they draw no random numbers.
      outputs: the values that it returns.
      num_inputs: the number of its arguments, which fill the first slots.
      num_slots: number of slots.
    """

    instructions: tuple[Instruction, ...]
    outputs: tuple[Any, ...]
    num_inputs: int
    num_slots: int

    def run(self, own: np.dtype, operands: Sequence[Any]) -> tuple[Any, ...]:
        """The arrays that it returns, for arrays and numbers as arguments."""
        slots: list[Any] = [*map(_as_value, operands), *[None] * (self.num_slots - self.num_inputs)]
        for each in self.instructions:
            args = [read_argument(a, slots, own) for a in each.args]
            kwargs = {name: read_argument(a, slots, own) for name, a in each.kwargs}
            slots[each.out] = run_instruction(each, args, kwargs, Noise(None, None), own)
        return tuple(to_logical(read_argument(o, slots, own)) for o in self.outputs)


def _as_value(x: Any) -> Any:
    return plain(x) if isinstance(x, jax.Array | np.ndarray) else x


def choose(condition: Any, true: Callable[..., Any], false: Callable[..., Any], operands: Sequence[Any]) -> Any:
    """The results of one of two functions: of ``true`` where the condition holds; gradients are those of that one."""
    condition = to_logical(condition)
    operands = [to_logical(x) for x in operands]
    if isinstance(condition, bool):
        return (true if condition else false)(operands)
    return jax.lax.cond(jnp.asarray(condition).reshape(()), true, false, operands)
