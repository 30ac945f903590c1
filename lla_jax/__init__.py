"""Loss landscapes of neural networks in JAX: where did training end up, and will it generalize?

Names are loaded when they are first used (PEP 562), so that ``import lla_jax`` is instant and imports no jax.
"""

from __future__ import annotations

import importlib
from typing import Any

from lla_jax._version import __version__

_MODULES = (
    "data", "directions", "execution", "hosts", "landscape", "lanczos", "layers", "measures", "models", "operators",
    "planes", "plotting", "runs", "spectral", "stochastic", "storage",
)  # fmt: skip
_NAMES = {
    "Directions": "_types",
    "Eigenpairs": "_types",
    "Estimate": "_types",
    "Execution": "_types",
    "HostOperator": "linear_operator",
    "Landscape": "_types",
    "LinearOperator": "linear_operator",
    "Loss": "_types",
    "Problem": "_types",
    "Spectrum": "_types",
    "all_modes": "modes",
    "convexity": "planes",
    "density": "spectral",
    "diagonal": "stochastic",
    "eigenpairs": "spectral",
    "escape_directions": "measures",
    "evaluate": "landscape",
    "fisher": "operators",
    "frobenius_norm": "stochastic",
    "from_equinox": "models",
    "from_linen": "models",
    "from_nnx": "models",
    "ggn": "operators",
    "grid": "landscape",
    "hessian": "operators",
    "k_hn": "measures",
    "load": "storage",
    "per_layer": "layers",
    "plane_report": "planes",
    "r_e": "measures",
    "saddle_index": "measures",
    "save": "storage",
    "spectrum": "spectral",
    "spectrum_type": "measures",
    "stream": "data",
    "sweep": "runs",
    "trace": "stochastic",
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
