"""The JAX functions of ATen operators, by subject; importing this fills the table in ``program.operators``."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
