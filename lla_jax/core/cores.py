"""Counts the cores of the CPU that a process may use.

This module imports no jax.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

DEVICE_COUNT = "xla_force_host_platform_device_count"  # the flag of XLA_FLAGS with the number of CPU devices


def count_cores() -> int:
    """The number of cores that this process may use, by its affinity and its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores
