"""``Noise``: where the random numbers of one run of a program come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


class Noise:
    """The source of random numbers for one run: a key, or recorded draws in the order of the instructions."""

    def __init__(self, key: Any, draws: Sequence[Any] | None):
        if key is not None and draws is not None:
            raise ValueError("key: given together with draws; pass a key for new random numbers, or draws to replay")
        self.key, self.draws, self.used = key, draws, 0

    def draw(self, sampler: Callable[[Any], Any], *, optional: bool = False) -> Any:
        """Draw ``sampler(key)`` with a key of its own, or the next recorded draw.

        Without a key and draws it is None if ``optional``, else an error.

        Raises:
          ValueError: no source of random numbers; too few draws, or one of another shape than the sampler's.
        """
        number, self.used = self.used, self.used + 1
        if self.draws is not None:
            if number >= len(self.draws):
                raise ValueError(
                    f"draws: {len(self.draws)} given, but the module draws more; use lla_torch.record to record them "
                    "again"
                )
            expected, recorded = jax.eval_shape(sampler, jax.random.key(0)), jnp.asarray(self.draws[number])
            if recorded.shape != expected.shape:
                raise ValueError(
                    f"draws[{number}]: shape {recorded.shape} given; it must be {expected.shape}, as the module draws "
                    "here; use lla_torch.record with inputs of the same shape"
                )
            return recorded.astype(expected.dtype)
        if self.key is not None:
            return sampler(jax.random.fold_in(self.key, number))
        if optional:
            return None
        raise ValueError(
            "key: None given, but the module draws random numbers; pass key=jax.random.key(0), or "
            "draws=lla_torch.record(module, *inputs)[1] to replay torch's"
        )

    def at(self, number: int) -> Noise:
        """The same source, whose next draw is the one of this number, as when a part of a program runs again."""
        again = Noise(self.key, self.draws)
        again.used = number
        return again

    def finish(self) -> None:
        """Raise a ValueError if not all recorded draws were used."""
        if self.draws is not None and self.used != len(self.draws):
            raise ValueError(
                f"draws: {len(self.draws)} given, but the module draws {self.used}; use lla_torch.record to record "
                "them again"
            )
