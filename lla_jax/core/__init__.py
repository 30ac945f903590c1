"""The foundation of all rooms: types, trees, data, losses, recipes, argument checks, files, interrupts."""

from lla_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
