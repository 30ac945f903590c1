"""What every benchmark shares: the environment, repeated timings, a JSON file, and how jax is started."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

RESULTS = pathlib.Path(__file__).parent / "results"
THREADS = os.cpu_count() or 1


def start_jax(threads: int) -> None:
    """One CPU device per thread; must run before jax is imported, which is why a script and not the library does it."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={threads} " + os.environ.get("XLA_FLAGS", "")


def environment(threads: int) -> dict[str, Any]:
    """Machine, versions and threads, as they belong to every number."""
    names = ("jax", "jaxlib", "flax", "torch", "numpy", "lla-jax")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    described = pathlib.Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.machine())
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "versions": versions,
    }


def seconds(call: Callable[[], Any]) -> float:
    """Wall seconds of one call, which must block until its result is there."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def alternate(calls: dict[str, Callable[[], Any]], units: dict[str, int], repeats: int) -> dict[str, dict[str, float]]:
    """Minimum and median milliseconds per unit of several rivals, taken in turns so that drift hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # warm-up
    for _ in range(repeats):
        for name, call in calls.items():
            taken[name].append(1e3 * seconds(call) / units[name])
    return {
        name: {"min_ms": min(t), "median_ms": statistics.median(t), "units": units[name], "repeats": repeats}
        for name, t in taken.items()
    }


def write(name: str, result: dict[str, Any]) -> pathlib.Path:
    """results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
