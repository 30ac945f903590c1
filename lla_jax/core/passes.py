"""Watches that a stream starts anew each time that it is read: what was read once must not be missing the next time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from lla_jax.core.arguments import Misuse
from lla_jax.core.types import Batch
from lla_jax.core.wholes import Whole

_REMEDY = (
    "it must make its batches anew each time that it is read: pass a factory, such as lla.stream(lambda: "
    "make_batches(data)), that opens its files and makes its iterators itself"
)
_CHANGED = "If the data were changed, wrap them anew: lla.stream(...)"


class Passes:
    """How often a stream was read, and what of it is known: its number of examples, and whether it starts anew."""

    def __init__(self, equal: bool = True) -> None:
        self.equal = equal  # whether all passes must have as many examples
        self.rows: int | None = None  # of a complete pass
        self.most = 0  # of any pass, complete or not
        self.begun = False
        self.renewed = False  # known to start anew, since a second pass began with the same batch
        self.first: bytes | None = None  # digest of the first batch

    def watch(self, batches: Iterator[Batch], again: Callable[[], Iterator[Batch]]) -> Iterator[Batch]:
        """The batches of one pass.

        Args:
          batches: the batches.
          again: begins another pass.

        Raises:
          Misuse: at the end of a pass, if it had another number of examples than an earlier one; or if batches that
            were read before, such as the first one for a plan, were not read again.
        """
        rows, begun_before, self.begun = 0, self.begun, True
        for number, batch in enumerate(batches):
            if number == 0 and not self.renewed:
                self._compare_first(batch)
            rows += 1 if isinstance(batch, Whole) else int(jax.tree.leaves(batch)[0].shape[0])
            self.most = max(self.most, rows)
            yield batch
        if self.equal and (rows != (self.rows or rows) or rows < self.most):
            before = self.most if rows < self.most else self.rows
            changed = f"the stream yielded {before:,} examples and now {rows:,}"
            raise Misuse("data", f"{changed}; {_REMEDY}, as many in each pass. {_CHANGED}")
        if begun_before and not self.renewed:  # it is shuffled, or goes on where an earlier pass ended
            self._check_again(again)
        self.rows = rows

    def _compare_first(self, batch: Batch) -> None:
        digest = hashlib.sha1(usedforsecurity=False)
        for leaf in jax.tree.leaves(batch):
            digest.update(
                np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data if _has_bytes(leaf) else repr(leaf).encode()
            )
        self.renewed = digest.digest() == self.first
        self.first = digest.digest()

    def _check_again(self, again: Callable[[], Iterator[Batch]]) -> None:
        """Check that after a complete pass there is a first batch again."""
        try:
            next(iter(again()))
        except Misuse as error:
            text = f"the stream had nothing left after it was read in full; {_REMEDY}"
            raise Misuse("data", text) from error
        self.renewed = True


def _has_bytes(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.dtype != object
