"""Losses from networks as their libraries have them."""

from lla_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
