"""What spectra, planes and layers say about a minimum."""

from lla_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
