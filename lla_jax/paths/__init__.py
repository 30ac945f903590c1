"""Paths through parameter space: recorded while a network was trained, and curves that connect two solutions."""

from lla_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
