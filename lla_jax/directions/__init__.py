"""Makes directions in parameter space, the axes of landscapes: random, derived, combined and normalized ones.

Every function returns ``Directions``: the parameters' tree with a leading axis k on every leaf, and a recipe for JSON.
"""

from lla_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
