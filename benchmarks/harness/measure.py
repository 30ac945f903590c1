"""What every benchmark shares: options, the environment, repeated timings, processes of their own, and a JSON file."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

RESULTS = pathlib.Path(__file__).parents[1] / "results"
THREADS = os.cpu_count() or 1
TOLD = "TOLD "


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


def alternate(
    calls: dict[str, Callable[[], Any]], units: dict[str, int], repeats: int, warm: bool = False
) -> dict[str, dict[str, float]]:
    """Minimum and median milliseconds per unit of several rivals, taken in turns so that drift hits all alike.

    A first call of each is not counted, unless they are ``warm``.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in () if warm else calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            taken[name].append(1e3 * seconds(call) / units[name])
    return {
        name: {"min_ms": min(t), "median_ms": statistics.median(t), "units": units[name], "repeats": repeats}
        for name, t in taken.items()
    }


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Wall seconds of one call, and what it returned."""
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def compiling() -> list[float]:
    """Seconds of every compilation by the backend from now on, as a list that grows."""
    import jax

    taken: list[float] = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            taken.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return taken


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent of growth: least squares of log y on log x."""
    u, v = ([math.log(value) for value in values] for values in (x, y))
    centre = statistics.mean(u)
    return sum((a - centre) * b for a, b in zip(u, v, strict=True)) / sum((a - centre) ** 2 for a in u)


# -- memory of this process --------------------------------------------------------------------------------------------


def status_mib(field: str) -> float:
    """A memory field of this process in MiB."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith(field)).split()[1]) / 1024


def growth_mib(call: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds, peak memory and its growth during a call, and what the call returned."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is in use now
    before = status_mib("VmRSS")
    taken, found = timed(call)
    after = status_mib("VmHWM")
    return {"seconds": taken, "peak_mib": after, "growth_mib": after - before}, found


# -- options, processes, results ---------------------------------------------------------------------------------------


def parser(claim: str | None, minutes: float) -> argparse.ArgumentParser:
    """The options that every script has."""
    made = argparse.ArgumentParser(description=claim, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=pathlib.Path, default=RESULTS.parents[2] / "shared/data", help="the checkpoints")
    made.add_argument("--threads", type=int, default=THREADS)
    made.add_argument("--minutes", type=float, default=minutes, help="time after which nothing more is begun")
    made.add_argument("--quick", action="store_true", help="small sizes, to see that it runs; a temporary result")
    made.add_argument("--out", type=pathlib.Path, help="another file than results/NAME.json")
    made.add_argument("--worker", help=argparse.SUPPRESS)  # in a process of its own: the job, as JSON
    return made


def clock(minutes: float) -> Callable[[], float]:
    """Seconds that are left, as a function."""
    end = time.perf_counter() + 60 * minutes
    return lambda: end - time.perf_counter()


def begun(claim: str | None, threads: int) -> dict[str, Any]:
    """A result without numbers yet."""
    return {"claim": (claim or "").splitlines()[0], "environment": environment(threads)}


def child(
    script: str, job: Mapping[str, Any], limit: float = 600.0, more: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What a script's worker tells with ``tell``, from a process of its own; {"error": ...} where it failed.

    ``more`` is environment, such as XLA_FLAGS: jax reads it when it starts.
    """
    command = [sys.executable, script, "--worker", json.dumps(dict(job), default=str)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | dict(more or {}), timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {limit:.0f} s"}
    told = [line for line in done.stdout.splitlines() if line.startswith(TOLD)]
    if done.returncode or not told:
        return {"error": (done.stderr.strip().splitlines() or ["ended early"])[-1][:300]}
    return json.loads(told[-1].removeprefix(TOLD))


def tell(row: Mapping[str, Any]) -> None:
    """A worker's result, to the process that began it."""
    print(TOLD + json.dumps(row, default=float), flush=True)


def place(options: argparse.Namespace, name: str) -> pathlib.Path:
    """Where the result goes: results/NAME.json, or a temporary file for quick runs, whose numbers mean nothing."""
    if options.out:
        return options.out
    return pathlib.Path(tempfile.gettempdir()) / f"{name}-quick.json" if options.quick else RESULTS / f"{name}.json"


def keep(path: pathlib.Path, result: Mapping[str, Any]) -> pathlib.Path:
    """Write the result so far: an interrupted benchmark keeps what it has."""
    path.parent.mkdir(exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(result, indent=1, default=float) + "\n")
    new.replace(path)
    return path


def resumed(path: pathlib.Path, blank: dict[str, Any]) -> dict[str, Any]:
    """The result so far, if it was measured in the same environment; otherwise ``blank``."""
    if not path.exists():
        return blank
    result, now = json.loads(path.read_text()), blank["environment"]
    then = result["environment"]
    if {**then, "date": 0, "versions": 0} != {**now, "date": 0, "versions": 0} or any(
        now["versions"].get(name, version) != version for name, version in then["versions"].items()
    ):
        print(f"{path}: was measured in another environment, begun anew")
        return blank
    versions = then["versions"] | now["versions"]
    return blank | result | {"claim": blank["claim"], "environment": now | {"versions": versions}}


def against(text: str, value: float, target: float, least: bool = True) -> dict[str, Any]:
    """A target beside what was measured, printed; ``least``: the value has to be at least the target."""
    met = value >= target if least else value <= target
    word = "at least" if least else "at most"
    print(f"  {text}: {value:.3g} ({word} {target:g}{'' if met else ': MISSED'})", flush=True)
    return {"what": text, "value": value, "target": target, "rule": word, "met": bool(met)}
