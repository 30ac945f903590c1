"""Claim: eigenpairs, densities and traces of the Hessian come sooner here than from its peers, at equal accuracy.

    python benchmarks/hessian.py --lla PATH [--pyhessian PATH] [--eigenthings PATH] [--only lenet] [--parts top2]

Two trained networks from ``--data``: LeNet at batch 2048 and, in eval mode, ResNet-20 at batch 512. Rivals are LLA
(checkout at --lla), PyHessian (installed, or at --pyhessian), hessian-eigenthings (likewise, --eigenthings), curvlinops
with scipy's Lanczos and matfree (installed). Ours runs with and without a search for copies, which no peer has.
Each rival does each part in a process of its own, on the same threads: top 2 and top 10 eigenpairs by magnitude until
every residual |Hv - lambda v| / |lambda|, computed for all alike by torch's double backward, is at most 1e-3 (first as
the rival is shipped, then with its tolerance tightened); a density of 100 steps; the trace to 2 % standard error; one
product and one gradient. Seconds are of a whole job, with the making of its graph or operator, after a warm-up. A run
is cut at the cap and reported as longer. Every row is written as soon as it is measured; parts can be run apart, and
what the time did not suffice for is measured by the same command with --missing.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import product_profile
from cases import curvature
from harness import measure
from rivals import in_jax, in_torch

PARTS = ("product", "top2", "top10", "density", "trace", "where")
NO_COPIES = "lla_jax-no-copies"  # eigenpairs without a search for further copies, as all peers seek them
RIVALS = ("lla_jax", NO_COPIES, "LLA", "PyHessian", "hessian-eigenthings", "curvlinops", "matfree")
PACKAGES = {
    "PyHessian": "pyhessian",
    "hessian-eigenthings": "hessian_eigenthings",
    "curvlinops": "curvlinops",
    "matfree": "matfree",
}
VERSIONS = ("optax", "scipy", "pyhessian", "hessian-eigenthings", "curvlinops-for-pytorch", "matfree")
REPEATS, ENOUGH_S = 3, 10.0  # a job is repeated three times, or until it has taken this long in all
MOST_TRIES = 6
LONG_S = 40.0  # a first run of this length is not repeated, so that its seconds have the compiling in them
LATER = ("PyHessian", "matfree")  # on the second network: what the others show, once more
SLACK = 90.0  # seconds to start a process, compile and warm up, on top of the cap


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lla", type=pathlib.Path, help="checkout of LLA")
    parser.add_argument("--pyhessian", type=pathlib.Path, help="checkout of PyHessian, if it is not installed")
    parser.add_argument("--data", type=pathlib.Path, default=measure.RESULTS.parents[2] / "shared/data")
    parser.add_argument("--eigenthings", type=pathlib.Path, help="checkout of hessian-eigenthings, likewise")
    parser.add_argument("--only", default=",".join(curvature.NAMES), help="networks, by commas")
    parser.add_argument("--parts", default=",".join(PARTS), help="parts, by commas")
    parser.add_argument("--rivals", default=",".join(RIVALS), help="rivals, by commas")
    parser.add_argument("--cap", type=float, default=100.0, help="seconds after which a run of a rival is cut")
    parser.add_argument("--minutes", type=float, default=25.0, help="time after which no further process is begun")
    parser.add_argument("--missing", action="store_true", help="only what the result does not have yet")
    parser.add_argument("--threads", type=int, default=measure.THREADS)
    parser.add_argument("--quick", action="store_true", help="small batches and few steps, to see that it runs")
    parser.add_argument("--out", type=pathlib.Path, help="results/hessian.json, or with --quick a temporary file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # in a process of its own: the job, as JSON
    options = parser.parse_args()
    for name, allowed in (("only", curvature.NAMES), ("parts", PARTS), ("rivals", RIVALS)):
        chosen = getattr(options, name).split(",")
        if not set(chosen) <= set(allowed):
            parser.error(f"--{name}: {chosen} given; it must be some of {','.join(allowed)}")
        setattr(options, name, chosen)
    return options


# -- in a process of its own: one rival, one part ----------------------------------------------------------------------


def tell(**event: Any) -> None:
    print("EVENT " + json.dumps(event, default=float), flush=True)


def make(job: dict[str, Any]) -> in_jax.Rival:
    path = pathlib.Path(job["path"])
    if job["rival"] in ("lla_jax", NO_COPIES):
        return in_jax.Ours(path, copies=job["rival"] != NO_COPIES)
    if job["rival"] == "matfree":
        return in_jax.Matfree(path)
    if job["rival"] == "LLA":
        return in_torch.LLA(path, pathlib.Path(job["lla"]))
    if job["rival"] == "PyHessian":
        return in_torch.PyHessian(path, pathlib.Path(job["pyhessian"]) if job["pyhessian"] else None)
    if job["rival"] == "hessian-eigenthings":
        return in_torch.Eigenthings(path, pathlib.Path(job["eigenthings"]) if job["eigenthings"] else None)
    return in_torch.Curvlinops(path)


def worker(job: dict[str, Any]) -> None:
    path, part = pathlib.Path(job["path"]), job["part"]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job["threads"]])
    measure.start_jax(job["devices"])
    if job["rival"] not in ("lla_jax", NO_COPIES, "matfree"):
        import torch

        torch.set_num_threads(job["threads"])
    if part == "check":
        about = curvature.prepare(job["network"], pathlib.Path(job["data"]), job["batch"], path)
        tell(row=curvature.check(path) | {"data": about})
    elif part == "where":
        tell(start="where")
        tell(row=product_profile.where(path, 2 if job["quick"] else 5))
    else:
        rival = make(job)
        (one_product if part == "product" else jobs)(rival, job)
    tell(done=True)


def one_product(rival: in_jax.Rival, job: dict[str, Any]) -> None:
    tell(start="one product")
    state = rival.build()
    calls = {"product": rival.product(state), "gradient": rival.gradient()}
    found = measure.alternate(calls, dict.fromkeys(calls, 1), 2 if job["quick"] else 7)
    tell(row={"setting": "one product"} | found | rival.more)


def jobs(rival: in_jax.Rival, job: dict[str, Any]) -> None:
    """A row for each setting of a part."""
    part, memory = job["part"], {"loaded_mib": measure.status_mib("VmRSS")}
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is in use now
    rival.warm_up()

    def one(setting: str, call: Callable[[Any], in_jax.Found]) -> tuple[dict[str, Any], in_jax.Found | None]:
        tell(start=setting)
        row, found = timed(rival, call, job["cap"], 1 if job["quick"] else REPEATS)
        memory.setdefault("peak_mib", measure.status_mib("VmHWM"))  # later, the judge's graph would be counted too
        return {"setting": setting} | row | rival.more | memory, found

    if part.startswith("top"):
        eigenpairs(rival, int(part.removeprefix("top")), one, pathlib.Path(job["path"]))
    elif part == "density":
        steps = 20 if job["quick"] else in_jax.STEPS
        for setting, options in rival.density_settings():
            row, found = one(setting, lambda state, o=options: rival.density(state, steps, **o))
            if found is not None:
                nodes = np.asarray(found.values, np.float64)
                near = nodes > nodes.max() - in_jax.TOL * abs(nodes.max())
                row |= {"least": nodes.min(), "largest": nodes.max(), "copies_of_the_largest": int(near.sum())}
            tell(row=row)
    else:
        for setting, options in rival.trace_settings():
            row, found = one(setting, lambda state, o=options: rival.trace(state, **o))
            tell(row=row if found is None else row | {"mean": found.values, "sem": found.sem})


def eigenpairs(rival: in_jax.Rival, k: int, one: Callable, path: pathlib.Path) -> None:
    """As shipped, then tightened until every residual is good or the cap cuts it."""
    product, options, tries, compile_s = None, rival.first(k), 0, 0.0
    while options:
        setting = ", ".join(f"{name} {value:.3g}" for name, value in options.items() if value != in_jax.ALWAYS)
        row, found = one(setting, lambda state, o=options: rival.top(state, k, **o))
        if tries == 0:
            compile_s = row.get("compile_s", 0.0)
        elif row.pop("first_s", None) and compile_s:
            row["compile_s"] = compile_s  # what the first try compiled serves this one too
        tries += 1
        if found is None:
            options = {}
        else:
            product = product or curvature.judge(path)
            row["values"], row["residuals"] = curvature.judged(product, found.vectors)
            row["reported"], row["residual"] = found.values, max(row["residuals"])
            met = row["residual"] <= in_jax.TOL
            options = {} if met or tries == MOST_TRIES else rival.tightened(options, row["residual"])
        tell(row=row)


def timed(
    rival: in_jax.Rival, call: Callable[[Any], in_jax.Found], cap: float, repeats: int
) -> tuple[dict[str, Any], in_jax.Found | None]:
    """Seconds of whole jobs, and what the last one found; nothing where the cap cut it or it failed."""
    taken: list[float] = []
    row: dict[str, Any] = {}
    while len(taken) < repeats and sum(taken) < ENOUGH_S:
        rival.seed()
        rival.products, rival.compile_s, start = 0, 0.0, time.perf_counter()
        rival.cap, rival.deadline = cap, start + cap
        try:
            state = rival.build()
            found = call(state)
        except in_jax.TimeUp:
            return {"over_s": cap, "products": rival.products}, None
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}, None
        finally:
            rival.deadline = math.inf
        elapsed = time.perf_counter() - start + found.left_s
        rival.free(state)
        del state
        gc.collect()
        if "first_s" not in row and rival.compiles:
            row["first_s"] = elapsed
            if not rival.compile_s and elapsed < LONG_S:  # compiling is not known apart from the rest
                continue
        taken.append(elapsed - rival.compile_s)
    if row.get("first_s") in taken:
        row["compiling_included"] = True
    elif row.get("first_s", 0.0) > min(taken):
        row["compile_s"] = row["first_s"] - min(taken)
    best = min([*taken, row.get("first_s", math.inf)])  # a machine that slows down may make the first run the fastest
    times = {"seconds": best, "median_s": statistics.median(taken), "repeats": len(taken)}
    row |= {"extrapolated_s": found.left_s} if found.left_s else {}
    return times | row | {"products": found.products}, found


# -- the processes, one after another ----------------------------------------------------------------------------------


def run(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows as the worker tells them; it is killed where one takes longer than the cap and some slack."""
    command = [sys.executable, __file__, "--worker", json.dumps(job)]
    environment = os.environ | {"OMP_NUM_THREADS": str(job["threads"]), "MPLBACKEND": "Agg"}
    limit, setting, done, late = job["cap"] + SLACK, "start", False, threading.Event()
    with (
        tempfile.TemporaryFile("w+", errors="replace") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process,
    ):

        def kill() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(limit, kill)
        timer.start()
        try:
            for line in process.stdout or ():
                if line.startswith("EVENT "):
                    timer.cancel()
                    event = json.loads(line.removeprefix("EVENT "))
                    setting, done = event.get("start", setting), "done" in event
                    if "row" in event:
                        yield event["row"]
                    timer = threading.Timer(REPEATS * job["cap"] + SLACK if "start" in event else limit, kill)
                    timer.start()
        finally:
            timer.cancel()
            process.kill()
        if not done and late.is_set():
            yield {"setting": setting, "over_s": job["cap"]}
        elif not done:
            log.seek(0)
            yield {"setting": setting, "error": (log.read().strip().splitlines() or ["ended early"])[-1]}


def available(options: argparse.Namespace) -> list[str]:
    """Rivals that are here; the others are skipped with a word."""
    found = []
    for name in options.rivals:
        package = PACKAGES.get(name)
        if name == "LLA" and not options.lla:
            print("LLA: no --lla PATH given, skipped")
        elif package and not importlib.util.find_spec(package) and not checkouts(options).get(package):
            print(f"{name}: not installed, skipped")
        else:
            found.append(name)
    return found


def checkouts(options: argparse.Namespace) -> dict[str, pathlib.Path | None]:
    """Where packages lie that need not be installed."""
    return {"pyhessian": options.pyhessian, "hessian_eigenthings": options.eigenthings}


def environment(options: argparse.Namespace) -> dict[str, Any]:
    """As in every benchmark, with the peers' versions."""
    found = measure.environment(options.threads)
    for name in VERSIONS:
        try:
            found["versions"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for name, path in {"LLA": options.lla, **checkouts(options)}.items():
        if path:
            command = ["git", "-C", str(path), "rev-parse", "--short", "HEAD"]
            commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
            found["versions"][name] = commit or "unknown commit"
    return found


def told(row: dict[str, Any]) -> str:
    """A row in a line for the terminal."""
    if "error" in row:
        return f"{row['setting']}: {row['error'][:160]}"
    if "over_s" in row:
        return f"{row['setting']}: > {row['over_s']:.0f} s"
    if "ms" in row:
        return ", ".join(f"{name} {ms:.1f} ms" for name, ms in row["ms"].items())
    if "product" in row:
        times = [f"{name} {row[name]['min_ms']:.1f} ms" for name in ("product", "gradient")]
        return f"{row['setting']}: {', '.join(times)}"
    said = [f"{row['setting']}: {row['seconds']:.2f} s, {row['products']} products"]
    for name in ("peak_mib", "first_s", "extrapolated_s", "residual", "copies_of_the_largest", "mean", "sem"):
        if name in row:
            said.append(f"{name} {row[name]:.3g}")
    return ", ".join(said)


def ordered(options: argparse.Namespace, chosen: list[str]) -> list[tuple[str, str, str]]:
    """(network, part, rival) of all processes, what matters most first."""
    every = [
        (network, part, rival)
        for network in options.only
        for part in options.parts
        for rival in (chosen if part != "where" else ["lla_jax"])
        if rival != NO_COPIES or part.startswith("top")
    ]
    return sorted(every, key=lambda job: (job[0] != "lenet", job[0] != "lenet" and job[2] in LATER))


def measured(options: argparse.Namespace, result: dict[str, Any], path: pathlib.Path, folder: pathlib.Path) -> None:
    """Run all jobs asked for; every row goes to the file at once."""
    common = {
        "threads": options.threads,
        "cap": options.cap,
        "quick": options.quick,
        "data": str(options.data),
        "lla": str(options.lla or ""),
        "pyhessian": str(options.pyhessian or ""),
        "eigenthings": str(options.eigenthings or ""),
        "devices": 1,
    }
    end, left = time.perf_counter() + 60 * options.minutes, []
    for network, part, rival in ordered(options, available(options)):
        here = result["networks"].setdefault(network, {})
        if options.missing and rival in here.get(part, {}):
            continue
        if time.perf_counter() > end:
            left.append(f"{network} {part} {rival}")
            continue
        file = folder / f"{network}.npz"
        batch = curvature.BATCH[network] // (8 if options.quick else 1)
        job = common | {"network": network, "batch": batch, "path": str(file)}
        if not file.exists():
            (facts,) = run(job | {"part": "check", "rival": ""})
            if "error" in facts:
                raise SystemExit(f"{network}: {facts['error']}")
            here["facts"] = facts
            print(f"{network}: {facts}")
        rows: list[dict[str, Any]] = []
        for devices in devices_for(here, part, rival, options.threads):
            for row in run(job | {"part": part, "rival": rival, "devices": devices}):
                rows.append(row)
                here.setdefault(part, {})[rival] = rows
                measure.keep(path, result)
                print(f"  {network} {part:8s} {rival:10s} {told(row)}", flush=True)
    if left:
        print(f"the time is over; with --missing the same command measures the rest: {', '.join(left)}")


def devices_for(here: dict[str, Any], part: str, rival: str, threads: int) -> list[int]:
    """Our products are timed on one device and on one for each thread; what follows runs on the better."""
    if rival not in ("lla_jax", NO_COPIES):
        return [1]
    if part == "product":
        return sorted({threads, 1}, reverse=True)
    rows = [row for row in here.get("product", {}).get("lla_jax", []) if "product" in row]
    return [min(rows, key=lambda row: row["product"]["min_ms"])["devices"]] if rows else [threads]


def main() -> None:
    options = arguments()
    if options.worker:
        worker(json.loads(options.worker))
        return
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = measure.place(options, "hessian")
        blank = {"claim": __doc__.splitlines()[0], "environment": environment(options), "networks": {}}
        measured(options, measure.resumed(path, blank), path, pathlib.Path(folder))
    print(f"written: {path}, after {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
