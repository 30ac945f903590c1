"""Computes the loss and metrics on grids of points around a network: landscapes, one or many."""

from lla_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
