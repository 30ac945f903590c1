"""Executes kernels: plans, devices, shards, groups of processes, rewriting of jaxprs, progress."""

from lla_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
