"""Makes losses from the networks of Flax linen, Flax nnx and Equinox."""

from lla_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
