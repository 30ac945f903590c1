"""Directions in parameter space, the axes of landscapes: drawn, derived, combined, normalized.

Every function returns ``Directions``: the parameters' tree with a leading axis k on every leaf, and a JSON-able recipe.
"""

from lla_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
