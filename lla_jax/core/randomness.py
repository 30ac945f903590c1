"""Draws long random vectors piece by piece: the numbers that ``jax.random`` draws at once, in a fifth of the memory.

Drawing n numbers at once holds four arrays of n on a CPU beside the result. Entry i of a draw of jax's default
generator (Threefry, partitionable) depends on the key and i alone, so that a piece can be drawn by itself: by a
generator whose key holds the number of the first entry, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import random as _random

PIECE = 2**17  # entries, whose arrays stay in a CPU's caches
LONG = 2**20  # entries of a vector that is drawn in pieces; a shorter one takes next to nothing

DRAWS: dict[str, Callable[..., jax.Array]] = {"rademacher": jax.random.rademacher, "normal": jax.random.normal}


def _bits(key: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
    """The 32 random bits of every entry, counted from the one whose number is in ``key`` (k1, k2, high, low)."""
    assert width == 32
    size = shape[0]
    low = key[3] + jax.lax.iota(jnp.uint32, size)
    high = key[2] + (low < key[3]).astype(jnp.uint32)
    one, two = jnp.split(_random.threefry_2x32((key[0], key[1]), jnp.concatenate([high, low])), 2)
    return one ^ two


def _refuse(*_: Any) -> Any:
    raise TypeError("a key of pieces is made of another one, and only drawn from")


_PIECES = _random.define_prng_impl(
    key_shape=(4,), seed=_refuse, split=_refuse, random_bits=_bits, fold_in=_refuse, name="lla_jax_pieces", tag="pieces"
)


def draw_flat(key: jax.Array, size: int, distribution: str) -> jax.Array:
    """A flat float32 vector of independent signs ("rademacher") or Gaussians ("normal"). Pure.

    It is ``jax.random.rademacher(key, (size,))``, or ``normal``, to the bit, however long it is.
    """
    draw = DRAWS[distribution]

    def at_once(key: jax.Array) -> jax.Array:
        return draw(key, (size,), dtype=jnp.float32)

    if not LONG <= size < 2**31 or not _draws_by_entry(key):
        return at_once(key)

    def in_pieces(key: jax.Array) -> jax.Array:
        return _draw_in_pieces(jax.random.key_data(key), size, draw)

    # on accelerators a draw is one loop that holds nothing
    return jax.lax.platform_dependent(key, cpu=in_pieces, default=at_once)


def _draw_in_pieces(words: jax.Array, size: int, draw: Callable[..., jax.Array]) -> jax.Array:
    def put(i: Any, flat: jax.Array) -> jax.Array:
        start = jnp.minimum(i.astype(jnp.uint32) * PIECE, size - PIECE)  # the last piece draws some entries again
        data = jnp.concatenate([words, jnp.zeros(1, jnp.uint32), start[None]])
        piece = draw(jax.random.wrap_key_data(data, impl=_PIECES), (PIECE,), dtype=jnp.float32)
        return jax.lax.dynamic_update_slice(flat, piece, (start,))

    return jax.lax.fori_loop(0, -(-size // PIECE), put, jnp.zeros(size, jnp.float32))


def _draws_by_entry(key: jax.Array) -> bool:
    """Whether an entry depends on the key and its number alone."""
    by_entry = jax.random.key_impl(key) == "threefry2x32" and jax.config.jax_threefry_partitionable  # type: ignore
    return bool(by_entry)
