"""Prepares the process and its folders for a command: what jax reads when it starts, cores, a folder to write to.

This module imports no jax.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lla_jax.cli.options import ConnectOptions, HessianOptions, LandscapeOptions, PathOptions, mistake
from lla_jax.core.cores import DEVICE_COUNT, count_cores

if TYPE_CHECKING:
    from lla_jax.core.types import Execution


def prepare_jax(devices: int | None) -> None:
    """Set the variables that jax and matplotlib read when they start, unless the user has set them.

    They are those of the compilation cache, of the CPU devices and of figures, which are drawn without a window.
    ``devices`` is the number of CPU devices, by default one per core, and never more.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lla_jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("MPLBACKEND", "Agg")  # a factory that shows a figure must not wait for a window
    flags = os.environ.get("XLA_FLAGS", "")
    if DEVICE_COUNT not in flags:
        cores = count_cores()
        count = f"--{DEVICE_COUNT}={max(1, min(devices or cores, cores))}"
        os.environ["XLA_FLAGS"] = f"{flags} {count}".strip()


def stay_on_cpu() -> None:
    """Let jax take CPUs, unless the user has said otherwise: for what needs no other device, and jax would look for."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def make_execution(options: LandscapeOptions | HessianOptions | PathOptions | ConnectOptions) -> Execution:
    """How the library executes a command: --devices and --precision."""
    from lla_jax.core.types import Execution

    return Execution(devices="all" if options.devices is None else options.devices, precision=options.precision)


def make_folder(folder: Path) -> Path:
    """Make the folder of --out, try to write into it, and return it: a failure is found before anything is computed."""
    from lla_jax.core import files as _files

    try:
        _files.try_to_write(folder)
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror or error
        raise mistake("out", folder, f"a folder that can be written to ({reason}); pass another one") from error
    return folder


def check_devices(devices: int | None) -> None:
    """Refuse a number of devices that jax does not have."""
    if devices is None:  # jax is not asked: a problem may join a group of processes before jax starts
        return
    import jax

    local = jax.local_devices()
    if not 1 <= devices <= len(local):
        kind = "CPU cores, one device each" if local[0].platform == "cpu" else f"{local[0].platform.upper()} devices"
        raise mistake("devices", devices, f"from 1 to {len(local)}, the number of {kind}; or leave it out")
