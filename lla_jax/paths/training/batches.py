"""Gives the endless mini-batches of a training; batch s follows from the data, the key and s alone.

So a training that was interrupted goes on with the batches that it would have had, without a state to keep:

    data in memory   epoch e is cut from a random order of all examples, drawn from fold_in(key, e). What is left at the
                     end of an epoch below a full batch is dropped: each batch is then a uniform draw of as many
                     examples, whose mean has no bias, and one shape compiles
    a stream         is read again and again, as it comes, and going on at step s means to skip s batches. A loader that
                     shuffles by itself gives other batches when it is read again
    all data         without ``batch_size``, and of ``lla.whole``, every batch is the whole set
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core.data import Stream, as_arrays, check_batch_size, check_uncut, num_examples, pad_rows, to_numpy
from lla_jax.core.losses import Block
from lla_jax.core.types import Batch
from lla_jax.core.wholes import Whole, with_axis


class Draw(NamedTuple):
    """A batch as a compiled step takes it; ``block_of`` makes a block of it there.

    Args:
      data: the whole data set on the device, or one batch of a stream.
      rows: (B,), the rows of ``data`` that are the batch; None for all of them.
      count: number of rows of ``data`` that are examples; the rows after them are padding.
      offset: index of the first row of ``data`` in one pass over all data.
    """

    data: Batch
    rows: Any
    count: Any
    offset: Any


def block_of(draw: Draw) -> Block:
    """The examples of a batch, with the mask of those that count and their indices; to be traced."""
    data, rows, count, offset = draw
    if rows is not None:
        return Block(jax.tree.map(lambda x: x[rows], data), jnp.ones(len(rows), bool), rows)
    index = jnp.arange(num_examples(data), dtype=jnp.int32)
    return Block(with_axis(data) if isinstance(data, Whole) else data, index < count, offset + index)


class Batches:
    """The batches of a training, numbered from 0 without end.

    Args:
      data: one data set, a ``whole``, a stream, or None for no data.
      key: a ``jax.random`` key, for the order of the examples.
      batch_size: examples per batch of a data set; None, or the length of the data set or more, takes all of them.
      pads: whether batches of a stream are padded to the rows of the largest one, so that one shape compiles: for
        losses per example without batch statistics.
    """

    def __init__(self, data: Batch | Stream, key: Any, batch_size: int | None = None, *, pads: bool = False):
        batch_size = None if batch_size is None else check_batch_size(batch_size)
        data = data if isinstance(data, Stream) else as_arrays(data)
        check_uncut(data, batch_size)
        self.key, self.pads, self.size = key, pads, None
        self.data = data if isinstance(data, Stream) else jax.tree.map(jnp.asarray, data)
        if not isinstance(data, Stream):
            self.num = num_examples(data)
            self.size = None if batch_size is None or batch_size >= self.num else batch_size
        self._order: tuple[int, Any] = (-1, None)  # of the last epoch that was asked for

    @property
    def is_stream(self) -> bool:
        """Whether the batches are those of a stream."""
        return isinstance(self.data, Stream)

    def rows(self, step: int) -> Any:
        """(B,) int32, the rows of the data set that are batch ``step``; None for all of them, and for streams."""
        if self.size is None:
            return None
        epoch, number = divmod(step, self.num // self.size)
        if self._order[0] != epoch:
            self._order = epoch, np.asarray(_shuffle(self.key, epoch, self.num), np.int32)
        return np.asarray(self._order[1][number * self.size : (number + 1) * self.size])

    def several_rows(self, start: int, count: int) -> Any:
        """(count, B), the same for ``count`` steps from ``start`` on."""
        return None if self.size is None else np.stack([self.rows(start + i) for i in range(count)])

    def from_step(self, start: int = 0) -> Iterator[Draw]:
        """The batches from step ``start`` on, without end."""
        if self.is_stream:
            yield from _read_endlessly(self.data, start, self.pads)
        for step in itertools.count(start):
            yield self.of_step(step)

    def of_step(self, step: int) -> Draw:
        """Batch ``step`` of data in memory."""
        return Draw(self.data, self.rows(step), np.int32(self.num), np.int32(0))


@functools.partial(jax.jit, static_argnums=2)
def _shuffle(key: Any, epoch: Any, num: int) -> Any:
    """The order of ``num`` rows in an epoch."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), num)


def _read_endlessly(stream: Stream, start: int, pads: bool) -> Iterator[Draw]:
    """The batches of a stream, read again and again, after ``start`` of them, of which whole passes are not read twice.

    A padded batch has the rows of the largest one since the beginning of the stream, also of those that are skipped.
    """
    left, most = start, 0
    while True:
        count, offset = 0, 0
        for batch in stream:
            rows = num_examples(batch)
            most, count = max(most, rows), count + 1
            if left < count:
                padded = pad_rows(to_numpy(batch), most) if pads and not isinstance(batch, Whole) else batch
                yield Draw(padded, None, np.int32(rows), np.int32(offset))
            offset += rows
        left = left % count if left >= count else 0
