"""The lowerings of ATen operators, by subject; importing this fills the table in ``lla_torch.program.operators``."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
