"""Hessian, Gauss-Newton and Fisher matrices as products with vectors, and what follows from products."""

from lla_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
