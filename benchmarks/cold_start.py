"""Claim: the command line answers at once, and its second run compiles next to nothing.

    python benchmarks/cold_start.py [--quick]

Seconds of ``lla-jax --help``; seconds of ``lla-jax demo`` with an empty compilation cache and again with what the first
left in it, and the seconds that the backend compiled in each, or took from the cache: all the ``backend_compile``
events of jax.monitoring, each run in a process of its own.
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from harness import measure

HELP_S, SHARE = 0.5, 0.2


def helped(times: int) -> dict[str, Any]:
    """Seconds of ``lla-jax --help``, interpreter and all."""
    command = [sys.executable, "-m", "lla_jax", "--help"]
    call = lambda: subprocess.run(command, check=True, capture_output=True)  # noqa: E731
    call()  # the files are in the system's cache, as for a user's second command
    taken = [measure.seconds(call) for _ in range(times)]
    return {"min_s": min(taken), "median_s": statistics.median(taken), "repeats": times}


def demo(folder: str, points: int | None) -> dict[str, Any]:
    """In a process of its own: ``lla-jax demo`` with jax's events listened to."""
    from lla_jax.cli import environment
    from lla_jax.cli import main as cli

    environment.prepare_jax(None)  # what the command line does before it imports jax
    import jax

    compiling, found = measure.compiling(), []
    jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
    arguments = ["demo", "--out", folder, *([] if points is None else ["--points", str(points)])]
    with open(os.devnull, "w") as quiet:
        sys.stdout, before = quiet, sys.stdout
        taken, code = measure.timed(lambda: cli.main(arguments))
        sys.stdout = before
    hits = sum(event.endswith("compilation_cache/cache_hits") for event in found)
    return {
        "exit": code,
        "seconds_in_process": taken,
        "compile_s": sum(compiling),
        "programs": len(compiling),
        "from_the_cache": hits,
    }


def main() -> None:
    options = measure.parser(__doc__, minutes=5).parse_args()
    if options.worker:
        job = json.loads(options.worker)
        measure.tell(demo(job["out"], job["points"]))
        return
    path, left = measure.place(options, "cold_start"), measure.clock(options.minutes)
    result = measure.begun(__doc__, options.threads) | {"help": helped(2 if options.quick else 5), "demo": {}}
    result["targets"] = [measure.against("seconds of lla-jax --help", result["help"]["median_s"], HELP_S, least=False)]
    measure.keep(path, result)
    with tempfile.TemporaryDirectory() as folder:
        for run in ("empty cache", "again"):
            if left() < 0:
                print(f"  demo, {run}: the time is over, skipped")
                break
            job = {"out": pathlib.Path(folder) / run.replace(" ", "-"), "points": 5 if options.quick else None}
            taken, row = measure.timed(
                lambda job=job: measure.child(__file__, job, more={"XDG_CACHE_HOME": f"{folder}/cache"})
            )
            result["demo"][run] = row | {"seconds": taken}
            print(f"  demo, {run}: {result['demo'][run]}", flush=True)
            measure.keep(path, result)
    compiled = [row.get("compile_s", 0.0) for row in result["demo"].values()]
    if len(compiled) == 2 and all(compiled):
        share = compiled[1] / compiled[0]
        result["targets"].append(measure.against("compile seconds, second demo / first", share, SHARE, least=False))
    print(f"written: {measure.keep(path, result)}")


if __name__ == "__main__":
    main()
