"""Claim: one Ctrl-C stops every verb within 5 s, loses nothing that was kept, and what is continued has the same bits.

    python benchmarks/interrupts.py [--quick] [--only NAME,NAME] [--moments 20]

Every verb of the command line gets one SIGINT at random moments of its run, from the start of Python to its end, and
each function of the library that keeps or continues at random moments of its call. The same command then goes on from
what is kept, and gets the next signal; a run that comes to its end is compared, to the bit, with one that nobody
disturbed, and the next begins anew. Told are the seconds from the signal to the end of the process, its exit code (130,
or the signal's own where Python was not there yet), tracebacks, and differences.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from cases import interrupted
from harness import measure

MOMENTS, LIMIT_S = 20, 5.0
SOON_S = 0.3  # a process that ends so soon after the signal had no time to notice it
PROBLEM = f"{interrupted.__file__}:problem"
SLOW = f"{interrupted.__file__}:slow_problem"
VERBS: dict[str, list[str]] = {
    "landscape": ["landscape", "--problem", PROBLEM, "--points", "21", "--out", "out"],
    "slow factory": ["landscape", "--problem", SLOW, "--points", "5", "--out", "out"],
    "hessian": [
        *("hessian", "--problem", PROBLEM, "--out", "out", "--top", "3", "--layers", "--rtol", "0.1"),
        *("--steps", "40", "--probes", "2"),
    ],
    "merge": ["merge", "made"],
    "status": ["status", "made"],
    "plot": ["plot", "made", "--out", "out"],
    "demo": ["demo", "--out", "out", "--points", "11"],
}
CALLS = ("evaluate in memory", "eigenpairs", "spectrum", "convexity", "sweep", "trace", "per_layer")
COMPARED = ("landscape", "eigenpairs", "spectrum")  # not the demo's planes, whose plans it times anew
FEWER = {"demo": 4}  # a fraction of the moments for what takes long


def worker(job: dict[str, str]) -> None:
    """One call of the library: it says when it begins, and writes the numbers of its result."""
    folder = pathlib.Path(job["folder"])
    call = interrupted.prepare(job["case"], folder)
    try:
        (folder / "begun").touch()
        found = interrupted.numbers(call())
    except KeyboardInterrupt:
        os._exit(130)
    (folder / "numbers").write_bytes(b"".join(found))
    os._exit(0)  # the end of a script is not the library's


def begin(case: str, folder: pathlib.Path) -> subprocess.Popen:
    """A process that computes a case in a folder."""
    words = [sys.executable, "-m", "lla_jax.cli", *VERBS.get(case, [])]
    if case in CALLS:
        (folder / "begun").unlink(missing_ok=True)
        words = [sys.executable, __file__, "--worker", json.dumps({"case": case, "folder": str(folder)})]
    return subprocess.Popen(
        words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )


def wait_for_begin(case: str, folder: pathlib.Path, process: subprocess.Popen) -> None:
    """Wait until the call of the library begins; a command begins with its process."""
    while case in CALLS and not (folder / "begun").exists() and process.poll() is None:
        time.sleep(0.01)


def outcome(folder: pathlib.Path) -> dict[str, bytes]:
    """The numbers of a finished run, by file."""
    import lla_jax as lla

    found: dict[str, bytes] = {}
    for path in sorted([*folder.rglob("*.npz"), *folder.rglob("*.json"), *folder.rglob("numbers")]):
        name = str(path.relative_to(folder))
        if path.name == "numbers":
            found[name] = path.read_bytes()
        elif path.suffix == ".json" and path.name in ("trace.json", "layers.json"):
            found[name] = json.dumps(bare(json.loads(path.read_text())["result"]), sort_keys=True).encode()
        elif path.suffix == ".npz" and path.stem in COMPARED:
            found[name] = b"".join(interrupted.numbers(lla.load(path)))
    return found


def bare(found: Any) -> Any:
    """Numbers without their recipes, which say what memory there was."""
    if isinstance(found, dict):
        return {name: bare(value) for name, value in found.items() if name != "recipe"}
    return [bare(each) for each in found] if isinstance(found, list) else found


def fresh(folder: pathlib.Path, seed: pathlib.Path) -> pathlib.Path:
    """The folder as it is before the first run: a copy of ``seed``."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(seed, folder)
    return folder


def interrupt(case: str, folder: pathlib.Path, after: float) -> dict[str, Any]:
    """One run of a case with a signal after some seconds: how long it took to end, its code and what was wrong."""
    process = begin(case, folder)
    wait_for_begin(case, folder, process)
    try:
        text, _ = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        pass
    else:
        return {"after": after, "ended": "before the signal", "code": process.returncode, "text": text}
    start = time.perf_counter()
    process.send_signal(signal.SIGINT)
    try:
        text, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        text, _ = process.communicate()
    taken, code = time.perf_counter() - start, process.returncode
    stopped = code in (130, -signal.SIGINT)
    lost = code == 0 and taken > SOON_S
    row = {"after": after, "seconds": taken, "code": code, "traceback": "Traceback" in text and code != -2}
    if lost or row["traceback"] or not (stopped or code == 0):
        row["text"] = text[-2000:]
    return row | {"lost": lost, "ended": "interrupted" if stopped else "in full" if code == 0 else "otherwise"}


def disturb(
    case: str, base: pathlib.Path, moments: int, draw: random.Random, left: Callable[[], float]
) -> dict[str, Any]:
    """Interrupt a case at several moments, and compare what comes in the end with an undisturbed run."""
    seed = base / "seed"
    seed.mkdir()
    if case in ("merge", "status", "plot"):
        begin("landscape", seed).communicate()
        (seed / "out").rename(seed / "made")
        if case == "merge":
            (seed / "made" / "landscape.npz").unlink()
    reference = fresh(base / "reference", seed)
    fresh(base / "warm", seed)
    begin(case, base / "warm").communicate()  # compiles into the cache
    process = begin(case, reference)
    wait_for_begin(case, reference, process)
    whole, (text, _) = measure.timed(process.communicate)
    if process.returncode:
        return {"error": text[-2000:]}
    wanted = outcome(reference)
    if case in ("landscape", "slow factory"):  # the plan is chosen by timing
        (seed / "out").mkdir()
        shutil.copy(reference / "out" / "manifest.json", seed / "out")
    folder, rows, different = fresh(base / "run", seed), [], []
    while len(rows) < moments and left() > 0:
        row = interrupt(case, folder, draw.uniform(0.0, whole))
        rows.append(row)
        if row["ended"] in ("before the signal", "in full"):
            different += [name for name, found in outcome(folder).items() if wanted.get(name) != found]
            different += [f"{name} is missing" for name in wanted.keys() - outcome(folder).keys()]
            fresh(folder, seed)
    process = begin(case, folder)
    text, _ = process.communicate()
    if process.returncode:
        different.append(f"the last run ends with {process.returncode}: {text[-500:]}")
    different += [name for name, found in wanted.items() if outcome(folder).get(name) != found]
    signals = [row for row in rows if "seconds" in row]
    return {
        "undisturbed_s": whole,
        "signals": len(signals),
        "interrupted": sum(row["ended"] == "interrupted" for row in signals),
        "slowest_s": max((row["seconds"] for row in signals), default=0.0),
        "lost": sum(row["lost"] for row in signals),
        "otherwise": sum(row["ended"] == "otherwise" for row in signals),
        "tracebacks": sum(row["traceback"] for row in signals),
        "compared": sorted(wanted),
        "different": different,
        "faults": [row for row in rows if "text" in row and row["ended"] != "before the signal"],
        "rows": [{k: v for k, v in row.items() if k != "text"} for row in rows],
    }


def main() -> None:
    parser = measure.parser(__doc__, minutes=40)
    parser.add_argument("--moments", type=int, default=MOMENTS)
    parser.add_argument("--only", help="names of cases, with commas")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.worker:
        worker(json.loads(options.worker))
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts with & ignore it
    path, left = measure.place(options, "interrupts"), measure.clock(options.minutes)
    moments = 2 if options.quick else options.moments
    names = [*VERBS, *CALLS] if not options.quick else ["landscape", "hessian", "plot", "eigenpairs", "convexity"]
    chosen = options.only.split(",") if options.only else names
    result = measure.resumed(path, measure.begun(__doc__, options.threads) | {"cases": {}})
    with tempfile.TemporaryDirectory() as name:
        for case in [c for c in names if c in chosen]:
            base = pathlib.Path(name) / case
            base.mkdir()
            draw = random.Random(f"{case} {options.seed}")
            found = disturb(case, base, -(-moments // FEWER.get(case, 1)), draw, left)
            result["cases"][case] = found
            print(f"  {case}: { {k: v for k, v in found.items() if k not in ('rows', 'compared')} }", flush=True)
            measure.keep(path, result)
    cases = [found for found in result["cases"].values() if "error" not in found]
    result["targets"] = [
        measure.against("signals", sum(c["signals"] for c in cases), 0.5 * moments * len(result["cases"])),
        measure.against("seconds to the end, at most", max(c["slowest_s"] for c in cases), LIMIT_S, least=False),
        measure.against("signals lost", sum(c["lost"] for c in cases), 0, least=False),
        measure.against("other exit codes than 130", sum(c["otherwise"] for c in cases), 0, least=False),
        measure.against("tracebacks", sum(c["tracebacks"] for c in cases), 0, least=False),
        measure.against("results that differ", sum(len(c["different"]) for c in cases), 0, least=False),
        measure.against("cases that fail", len(result["cases"]) - len(cases), 0, least=False),
    ]
    print(f"written: {measure.keep(path, result)}")


if __name__ == "__main__":
    main()
