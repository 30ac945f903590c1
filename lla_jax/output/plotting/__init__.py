"""Figures of landscapes and of curvature."""

from lla_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
