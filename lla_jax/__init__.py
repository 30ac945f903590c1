"""Loss landscapes of neural networks in JAX: where did training end up, and will it generalize?

Names are loaded when they are first used (PEP 562), so that ``import lla_jax`` is instant and imports no jax.
"""

from __future__ import annotations

import importlib
from typing import Any

from lla_jax._version import __version__

_MODULES = ("data", "directions", "execution", "landscape", "models", "plotting", "runs", "storage")
_NAMES = {
    "Directions": "_types",
    "Execution": "_types",
    "Landscape": "_types",
    "Loss": "_types",
    "Problem": "_types",
    "all_modes": "runs",
    "evaluate": "landscape",
    "from_equinox": "models",
    "from_linen": "models",
    "from_nnx": "models",
    "grid": "landscape",
    "load": "storage",
    "save": "storage",
    "stream": "data",
}
__all__ = ["__version__", *_MODULES, *_NAMES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"lla_jax.{name}")
    if name in _NAMES:
        value = getattr(importlib.import_module(f"lla_jax.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'lla_jax' has no attribute {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
