"""Claim: planes of small and middle networks come sooner here than from a lean torch loop, LLA and loss-landscapes.

    python benchmarks/sweep.py [--lla PATH] [--only mlp,lenet,whole] [--quick]

Five networks: an MLP of 2,410 parameters on 1,797 digits (steady state over 100,000 points), LeNet at batch 2048 on
Fashion-MNIST (Debian's dataset-fashion-mnist; random images without it), the trained ResNet-20 of --data at batch 512,
a small ViT and a small GPT. Beside us a lean torch loop, on the whole batch and at its best microbatch, and two
libraries' own loops: LLA's (path of its checkout) and loss-landscapes' (installed), slow ones on about 50 points. Same
number of threads on both sides, in turns. Then the whole job on LeNet, 41 x 41 points, in a process of its own: seconds
from the call until the result, with compiling and choosing a plan, without a compilation cache and with an empty one;
the rivals' whole job is their milliseconds a point times 1681 and the seconds to set them up.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from cases import planes
from harness import measure

STEP = 0.5
WHOLE = 41
# a call: points per side of ours, of torch's loop, per side of the libraries'; how often; torch's microbatches
SIZES: dict[str, dict[str, Any]] = {
    "mlp": {"ours": 317, "torch": 10_000, "library": 30, "repeats": 5, "blocks": [512, 256]},
    "lenet": {"ours": 17, "torch": 50, "library": 7, "repeats": 3, "blocks": [1024, 512, 256, 128, 64, 32, 16]},
    "resnet": {"ours": 5, "torch": 16, "library": 4, "repeats": 3, "blocks": [256, 128, 64, 32]},
    "vit": {"ours": 11, "torch": 50, "library": 7, "repeats": 3, "blocks": [64, 32, 16, 8]},
    "gpt": {"ours": 11, "torch": 50, "library": 7, "repeats": 3, "blocks": [64, 32, 16, 8]},
}
QUICK = {"ours": 4, "torch": 3, "library": 2, "repeats": 1}
QUICK_BATCH = {"lenet": 128, "resnet": 32, "vit": 16, "gpt": 16}
TARGETS = {("mlp", "torch"): 5.0, ("resnet", "LLA"): 1.3}


def arguments() -> argparse.Namespace:
    parser = measure.parser(__doc__, minutes=10)
    parser.add_argument("--lla", type=pathlib.Path, help="checkout of LLA, to time its own loop beside")
    parser.add_argument("--only", default=",".join((*planes.NAMES, "whole")), help="parts, by commas")
    options = parser.parse_args()
    options.only = options.only.split(",")
    if not set(options.only) <= {*planes.NAMES, "whole"}:
        parser.error(f"--only: {options.only} given; it must be some of {','.join(planes.NAMES)},whole")
    return options


# --- rivals


class LeanTorch:
    """The least a torch sweep can do: weights written in place, forward in inference mode, one number out."""

    def __init__(self, case: planes.Case, axes: Any, microbatch: int):
        import copy

        import jax
        import torch

        self.net, self.x, self.y, self.microbatch = copy.deepcopy(case.net), case.x, case.y, microbatch
        self.start = [p.detach().clone() for p in case.net.parameters()]
        each = (jax.tree.map(lambda d, i=i: d[i], axes.tree) for i in range(2))
        self.axes = [[torch.tensor(np.array(part)) for part in case.to_torch(tree)] for tree in each]

    def loss(self, a: float, b: float) -> float:
        import torch

        with torch.inference_mode():
            for p, start, d, e in zip(self.net.parameters(), self.start, *self.axes, strict=True):
                torch.add(start, d, alpha=a, out=p.data).add_(e, alpha=b)
            total = 0.0
            for x, y in zip(self.x.split(self.microbatch), self.y.split(self.microbatch), strict=True):
                total += torch.nn.functional.cross_entropy(self.net(x), y, reduction="sum").item()
        return total / self.y.numel()

    def sweep(self, points: int) -> None:
        for i in range(points):
            self.loss(STEP * (i / points - 0.5), 0.1)


def lla_loop(path: pathlib.Path, case: planes.Case) -> Callable[[int], Any]:
    """LLA's plane of random directions, steps x steps points, as LLA ships it (one batch)."""
    import torch

    sys.path.insert(0, str(path / "src"))
    from src_lla import loss_landscapes, metrics

    metric = metrics.Loss(torch.nn.CrossEntropyLoss(), case.x, case.y, "cpu")
    return lambda steps: loss_landscapes.random_plane(case.net, metric, distance=1, steps=steps, normalization="filter")


def loss_landscapes_loop(case: planes.Case) -> Callable[[int], Any]:
    """The same plane of the package loss-landscapes; by layer, because by filter it divides by a bias that is zero."""
    import loss_landscapes
    import torch
    from loss_landscapes.metrics import Loss

    metric = Loss(torch.nn.CrossEntropyLoss(), case.x, case.y)
    return lambda steps: loss_landscapes.random_plane(
        case.net, metric, distance=1, steps=steps, normalization="layer", deepcopy_model=True
    )


def libraries(lla: str, case: planes.Case) -> dict[str, Callable[[int], Any]]:
    """The loops of the libraries that are here."""
    found: dict[str, Callable[[int], Any]] = {}
    if lla:
        found["LLA"] = lla_loop(pathlib.Path(lla), case)
    if importlib.util.find_spec("loss_landscapes"):
        found["loss-landscapes"] = loss_landscapes_loop(case)
    return found


# --- steady state


def compare(name: str, case: planes.Case, lla: str, quick: bool) -> dict[str, Any]:
    """Milliseconds per point of each rival and how far our values are from torch's."""
    import lla_jax as ours_lla

    size = SIZES[name] | (QUICK if quick else {})
    loss, params, data = case.problem
    axes = planes.axes_of(params)
    rows = len(case.y)

    def ours(side: int = size["ours"]) -> Any:
        return ours_lla.evaluate(loss, params, data, axes, ours_lla.grid(extent=STEP, points=side))

    first_s, plane = measure.timed(ours)
    whole = LeanTorch(case, axes, rows)
    few = max(2, size["torch"] // 10)
    times = {block: best_of(LeanTorch(case, axes, block), few) for block in (rows, *size["blocks"]) if block <= rows}
    best = min(times, key=lambda block: times[block])
    calls: dict[str, Callable[[], Any]] = {"lla_jax": ours, f"torch, batch {rows}": lambda: whole.sweep(size["torch"])}
    units = {"lla_jax": size["ours"] ** 2, f"torch, batch {rows}": size["torch"]}
    setup, failures = {}, {}
    if best != rows:
        lean = LeanTorch(case, axes, best)
        calls[f"torch, microbatch {best}"] = lambda: lean.sweep(size["torch"])
        units[f"torch, microbatch {best}"] = size["torch"]
    for rival, loop in libraries(lla, case).items():
        setup[rival], failed = measure.timed(lambda loop=loop: error_of(lambda: loop(1)))  # directions, and one point
        if failed:
            failures[rival] = failed
            continue
        calls[rival], units[rival] = lambda loop=loop: loop(size["library"]), size["library"] ** 2
    found = measure.alternate(calls, units, size["repeats"], warm=True)  # each one has run above
    base = found["lla_jax"]["min_ms"]
    for rival, row in found.items():
        row["times_lla_jax"] = row["min_ms"] / base
        if rival in setup:
            row["setup_s"] = max(0.0, setup[rival] - row["min_ms"] / 1e3)
    coords = plane.coords
    sample = [(i, j) for i in range(0, len(coords[0]), 5) for j in range(0, len(coords[1]), 7)][:60]
    errors = [abs(plane.values["loss"][i, j] / whole.loss(coords[0][i], coords[1][j]) - 1) for i, j in sample]
    return {
        "parameters": sum(p.numel() for p in case.net.parameters()),
        "examples": rows,
        "data": case.about,
        "rivals": found,
        "failures": failures,
        "best_microbatch_of_torch": best,
        "largest_relative_difference_from_torch": max(errors),
        "points_compared": len(errors),
        "first_call_s": first_s,
        "compile_and_plan_s": first_s - size["ours"] ** 2 * base / 1e3,
        "plan": plane.recipe["plan"],
    }


def best_of(rival: LeanTorch, points: int) -> float:
    rival.sweep(1)
    return min(measure.seconds(lambda: rival.sweep(points)) for _ in range(2))


def error_of(call: Callable[[], Any]) -> str:
    """The error of a rival that fails, in words; "" if it does not."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


# --- the whole job


def whole(job: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: seconds from the call of ``evaluate`` until the result, and seconds of compiling."""
    import jax

    import lla_jax as lla

    compiling = measure.compiling()
    loss, params, data, about = planes.lenet(job["batch"])
    axes = jax.block_until_ready(planes.axes_of(params))
    before = len(compiling)
    grid = lla.grid(extent=STEP, points=job["side"])
    taken, plane = measure.timed(lambda: lla.evaluate(loss, params, data, axes, grid))
    return {
        "seconds": taken,
        "points": job["side"] ** 2,
        "compile_s": sum(compiling[before:]),
        "programs": len(compiling) - before,
        "plan": plane.recipe["plan"],
        "data": about,
    }


def whole_jobs(options: argparse.Namespace, steady: dict[str, Any]) -> dict[str, Any]:
    """Seconds of our job without a cache and with an empty one, and of the rivals' by their times a point."""
    job = {"threads": options.threads, "batch": 256 if options.quick else 2048, "side": 5 if options.quick else WHOLE}
    points = job["side"] ** 2
    ours = {}
    for cache in ("none", "empty"):
        with tempfile.TemporaryDirectory() as folder:
            more = {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
            none = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
            ours[cache] = measure.child(__file__, {"part": "whole"} | job, more=more if cache == "empty" else none)
        print(f"  whole job, cache: {cache}: {ours[cache]}", flush=True)
    theirs = {
        rival: {"seconds": points * row["min_ms"] / 1e3 + row.get("setup_s", 0.0)}
        for rival, row in steady["rivals"].items()
        if rival != "lla_jax"
    }
    slowest = max(row.get("seconds", 0.0) for row in ours.values())
    found: dict[str, Any] = {
        "points": points,
        "cache": ours,
        "rivals": theirs,
        "how": "rivals: their milliseconds a point times the points, plus the seconds to set them up",
    }
    if slowest:
        torch_s = min(row["seconds"] for rival, row in theirs.items() if rival.startswith("torch"))
        found["targets"] = [measure.against("whole job, torch at its best / lla_jax", torch_s / slowest, 1.15)]
        if "LLA" in theirs:
            times = theirs["LLA"]["seconds"] / slowest
            found["targets"].append(measure.against("whole job, LLA / lla_jax", times, 2.5))
    return found


# --- all of it


def worker(job: dict[str, Any]) -> None:
    if job["part"] == "whole":
        measure.start_jax(job["threads"])
        measure.tell(whole(job))
        return
    os.environ["OMP_NUM_THREADS"] = str(job["threads"])
    measure.start_jax(job["threads"])
    import torch

    torch.set_num_threads(job["threads"])
    name = job["part"]
    case = planes.case(name, pathlib.Path(job["data"]), QUICK_BATCH.get(name) if job["quick"] else None)
    measure.tell(compare(name, case, job["lla"], job["quick"]))


def main() -> None:
    options = arguments()
    if options.worker:
        import json

        worker(json.loads(options.worker))
        return
    left, path = measure.clock(options.minutes), measure.place(options, "sweep")
    result = measure.resumed(path, measure.begun(__doc__, options.threads) | {"networks": {}})
    job = {"threads": options.threads, "data": options.data, "lla": options.lla or "", "quick": options.quick}
    if not options.lla:
        print("  LLA: no --lla PATH given, skipped")
    if not importlib.util.find_spec("loss_landscapes"):
        print("  loss-landscapes: not installed, skipped")
    for name in [name for name in options.only if name != "whole"]:
        if left() < 0:
            print(f"  {name}: the time is over, skipped")
            continue
        found = measure.child(__file__, job | {"part": name})
        result["networks"][name] = found
        if "error" in found:
            print(f"  {name}: {found['error']}")
            continue
        for rival, why in found["failures"].items():
            print(f"  {name}: {rival} fails: {why}")
        for rival, row in found["rivals"].items():
            times = f"{row['min_ms']:9.4f} ms a point (median {row['median_ms']:.4f})"
            print(f"  {name}: {rival:24s} {times}, {row['times_lla_jax']:5.2f} x", flush=True)
        targets = [
            measure.against(f"{planes.LABELS[name]}, {rival} / lla_jax", row["times_lla_jax"], TARGETS[name, rival])
            for rival, row in fastest(found["rivals"]).items()
            if (name, rival) in TARGETS
        ]
        result["networks"][name]["targets"] = targets
        measure.keep(path, result)
    if "whole" in options.only and "rivals" in result["networks"].get("lenet", {}) and left() > 0:
        result["whole"] = whole_jobs(options, result["networks"]["lenet"])
    print(f"written: {measure.keep(path, result)}")


def fastest(rivals: dict[str, Any]) -> dict[str, Any]:
    """torch at its better batch, under one name, and the others."""
    lean = [row for rival, row in rivals.items() if rival.startswith("torch")]
    best = min(lean, key=lambda row: row["min_ms"])
    return {"torch": best} | {rival: row for rival, row in rivals.items() if not rival.startswith("torch")}


if __name__ == "__main__":
    main()
