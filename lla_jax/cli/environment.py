"""Prepares the process and its folders for a command: what jax reads when it starts, cores, a folder to write to.

This module imports no jax.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from lla_jax.cli.options import mistake


def count_cores() -> int:
    """The number of cores that this process may use, by its affinity and its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


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
    if "xla_force_host_platform_device_count" not in flags:
        cores = count_cores()
        count = f"--xla_force_host_platform_device_count={max(1, min(devices or cores, cores))}"
        os.environ["XLA_FLAGS"] = f"{flags} {count}".strip()


def stay_on_cpu() -> None:
    """Let jax take CPUs, unless the user has said otherwise: for what needs no other device, and jax would look for."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def make_folder(folder: Path) -> Path:
    """Make the folder of --out, try to write into it, and return it: a failure is found before anything is computed."""
    from lla_jax.core import files as _files

    try:
        _files.try_to_write(folder)
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror or error
        raise mistake("out", folder, f"a folder that can be written to ({reason}); pass another one") from error
    return folder
