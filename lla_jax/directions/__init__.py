"""Directions in parameter space, the axes of landscapes: drawn, derived, combined, normalized."""

from lla_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
