"""Claim: a run that is killed again and again ends with the same bits, and a kill costs one chunk at most.

    python benchmarks/kill.py [--quick]

Three writers fill one chunk store with a plane of an MLP; 200 times one of them, drawn at random, gets a SIGKILL, at
random times over the whole run, and is started again. (Writers are forked from a process that has imported jax, and
find their programs in a cache, so that most kills fall into the computation and not into the start.) Each writer logs
the chunks it begins and has written: those begun and not written by a killed process are what the kill cost; a chunk
that is begun by anyone after it was written would be work lost too. The result is compared, to the bit, with that of
one writer that nobody disturbed, which obeys the same plan: it starts from a copy of the first store's manifest.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pathlib
import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

from cases import planes
from harness import measure

KILLS, WRITERS, SIDE = 200, 3, 700
CHUNK_S = 0.1  # seconds a chunk takes: short ones, so that many kills fall into the writing
BUSY = 0.8  # the fraction of kills that take a writer which has begun a chunk, where there is one


def writer(job: dict[str, Any]) -> None:
    """One writer: fills the store, and logs begun and written chunks with their times, and an error if there is one."""
    try:
        write(job)
    except Exception:
        pathlib.Path(job["log"]).with_suffix(".error").write_text(traceback.format_exc())
        raise


def write(job: dict[str, Any]) -> None:
    import lla_jax as lla
    from lla_jax.landscape.store import writing as stored

    stored.CHUNK_S = CHUNK_S
    log = open(job["log"], "a", buffering=1)  # noqa: SIM115 (until the process ends, however it does)
    handler = logging.Handler(logging.DEBUG)

    def emit(record: logging.LogRecord) -> None:
        words = record.getMessage().split()
        if words[0] == "store:" and words[-1] in ("begun", "written"):
            log.write(f"{time.time()} {words[-1]} {pathlib.Path(words[1]).name}\n")

    handler.emit = emit  # type: ignore[method-assign]
    logger = logging.getLogger("lla_jax")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    loss, params, data, _ = planes.mlp()
    grid = lla.grid(extent=0.5, points=job["side"])
    lla.evaluate(loss, params, data, planes.axes_of(params), grid, store=job["store"])


def start(store: pathlib.Path, log: pathlib.Path, side: int) -> BaseProcess:
    job = {"store": str(store), "log": str(log), "side": side}
    process = multiprocessing.get_context("forkserver").Process(target=writer, args=(job,))
    process.start()
    return process


def prepare(cache: pathlib.Path) -> None:
    """Let writers start fast: their modules are imported once, and their programs compiled once."""
    measure.start_jax(1)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    modules = ["lla_jax.landscape.evaluation", "lla_jax.directions.draws", "cases.planes"]
    multiprocessing.get_context("forkserver").set_forkserver_preload(modules)


def disturbed(
    folder: pathlib.Path, kills: int, side: int, draw: random.Random, left: Callable[[], float]
) -> dict[str, Any]:
    """Kill writers and start them again until the store is complete; the cost of each kill."""
    store, began = folder / "store", time.perf_counter()
    number = 0

    def begin() -> tuple[BaseProcess, pathlib.Path]:
        nonlocal number
        number += 1
        log = folder / f"{number:03d}.log"
        log.touch()
        return start(store, log, side), log

    running = [begin() for _ in range(WRITERS)]
    killed: list[pathlib.Path] = []
    fractions = sorted(draw.uniform(0.0, 0.9) for _ in range(kills))  # of the chunks written when the next kill comes
    fractions[0] = 0.0
    errors: list[str] = []
    total = None
    while running:
        if left() < 0:
            for process, _ in running:
                process.kill()
            return {"error": f"the time is over after {len(killed)} kills"}
        total = total or chunks_of(store)
        there = len(list(store.glob("grid-000/*.npz")))
        if len(killed) < kills and there >= fractions[len(killed)] * (total or 1):
            time.sleep(draw.uniform(0.0, 0.2))
            busy = [i for i, (_, log) in enumerate(running) if log.stat().st_size] if draw.random() < BUSY else []
            i = draw.choice(busy or range(len(running)))  # without a preference most would be hit while they start
            process, log = running[i]
            if process.is_alive():
                process.kill()
                process.join()
                killed.append(log)
                running[i] = begin()
        for i, (process, log) in reversed(list(enumerate(running))):
            if not process.is_alive():
                if process.exitcode:
                    error = log.with_suffix(".error")
                    errors.append(error.read_text().strip().splitlines()[-1] if error.exists() else "?")
                del running[i]
        time.sleep(0.02)
    lost = [len(unfinished(log)) for log in killed]
    return {
        "kills": len(killed),
        "chunks": total,
        "seconds": time.perf_counter() - began,
        "starts": number,
        "killed_before_the_first_chunk": sum(not log.read_text() for log in killed),
        "lost_by_kill": lost,
        "most_lost_by_a_kill": max(lost, default=0),
        "errors": errors,
        "begun_after_written": repeated(sorted(folder.glob("*.log"))),
    }


def chunks_of(store: pathlib.Path) -> int | None:
    """Chunks in all, as the manifest says, once it is there."""
    try:
        manifest = json.loads((store / "manifest.json").read_text())
    except (OSError, ValueError):
        return None
    points = 1
    for axis in manifest["coords"]:
        points *= len(axis)
    return -(-points // manifest["points"])


def events(log: pathlib.Path) -> list[tuple[float, str, str]]:
    """(time, "begun" or "written", chunk) of every complete line."""
    words = [line.split() for line in log.read_text().splitlines()]
    return [(float(w[0]), w[1], w[2]) for w in words if len(w) == 3]


def unfinished(log: pathlib.Path) -> set[str]:
    """The chunks that a writer began and did not write."""
    begun, written = ({chunk for _, event, chunk in events(log) if event == kind} for kind in ("begun", "written"))
    return begun - written


def repeated(logs: list[pathlib.Path]) -> int:
    """Number of chunks that were begun more than 0.05 s after a writer had written them."""
    every = [event for log in logs for event in events(log)]
    written: dict[str, float] = {}
    for at, kind, chunk in every:
        if kind == "written":
            written[chunk] = min(at, written.get(chunk, at))
    return sum(kind == "begun" and at > written.get(chunk, float("inf")) + 0.05 for at, kind, chunk in every)


def same_bits(one: pathlib.Path, two: pathlib.Path) -> dict[str, bool]:
    """Whether the landscapes of two stores are equal to the bit, value by value."""
    import lla_jax as lla

    a, b = (lla.runs.merge(folder) for folder in (one, two))
    return {
        f"{kind} {name}": getattr(a, kind)[name].tobytes() == getattr(b, kind)[name].tobytes()
        for kind in ("values", "stderr")
        for name in getattr(a, kind)
    }


def main() -> None:
    parser = measure.parser(__doc__, minutes=8)
    parser.add_argument("--seed", type=int, help="of the kills; another one each time by default")
    options = parser.parse_args()
    path = measure.place(options, "kill")
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4), "big")
    kills, side = (6, 150) if options.quick else (KILLS, SIDE)
    result = measure.begun(__doc__, options.threads) | {"writers": WRITERS, "points": side**2, "seed": seed}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        prepare(folder / "cache")
        result |= disturbed(folder, kills, side, random.Random(seed), measure.clock(options.minutes))
        print(f"  {result}", flush=True)
        measure.keep(path, result)
        if "error" in result or result["errors"]:
            raise SystemExit(f"  not finished: {result.get('error') or result['errors']}")
        alone = folder / "alone"
        alone.mkdir()
        shutil.copy(folder / "store" / "manifest.json", alone)
        process = start(alone, folder / "alone.txt", side)
        taken = measure.seconds(process.join)
        result |= {"undisturbed_s": taken, "equal_to_the_bit": same_bits(folder / "store", alone)}
    result["targets"] = [
        measure.against("kills", result["kills"], kills),
        measure.against("chunks lost by a kill, at most", result["most_lost_by_a_kill"], 1, least=False),
        measure.against("chunks begun after they were written", result["begun_after_written"], 0, least=False),
        measure.against("equal to the bit (1: yes)", float(all(result["equal_to_the_bit"].values())), 1),
    ]
    print(f"written: {measure.keep(path, result)}")


if __name__ == "__main__":
    main()
