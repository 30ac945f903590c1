"""Computes landscapes, one or many: the loss and metrics on grids of points around a network."""

from lla_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
