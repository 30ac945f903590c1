"""Claim: what LLA is used for, all together, takes less than half of its time here, with smaller errors.

    python benchmarks/bundle.py --lla PATH [--quick]

The trained LeNet of --data at batch 2048: a plane of 41 x 41 points (LLA's own examples take 40 x 40), the top 2
eigenpairs, a density of 100 steps, and the criteria r_e and K_Hn; here also the trace to 2 % standard error (LLA's
fails under numpy 2: its sum and the ratio are without it). Each side in a process of its own, once, from nothing:
compiling and choosing a plan are counted. The eigenpairs' residuals |Hv - lambda v| / |lambda| of both sides are
computed by torch's double backward.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np
from cases import curvature, planes
from harness import measure

SIDE, STEPS, TOP = 41, 100, 2
COMMON = ("plane", "eigenpairs", "density", "criteria")


def ours(path: pathlib.Path, side: int, steps: int) -> dict[str, Any]:
    """Seconds of each part here, and what it found."""
    import jax

    import lla_jax as lla

    compiling = measure.compiling()
    problem, keys, key = curvature.jax_problem(path), curvature.trainable(path), jax.random.key(0)
    seconds: dict[str, float] = {}
    seconds["plane"], _ = measure.timed(
        lambda: lla.evaluate(*problem, planes.axes_of(problem[1]), lla.grid(extent=0.5, points=side))
    )
    held: list[Any] = []

    def eigenpairs() -> Any:
        held.append(lla.hessian(*problem))
        return lla.eigenpairs(held[0], key, k=TOP)

    seconds["eigenpairs"], pairs = measure.timed(eigenpairs)
    (H,) = held
    seconds["density"], spec = measure.timed(lambda: lla.spectrum(H, key, steps=steps, probes=1))
    compile_s = sum(compiling)
    seconds["criteria"], criteria = measure.timed(lambda: (lla.r_e(spec).mean, lla.k_hn(spec).mean))
    seconds["trace"], trace = measure.timed(lambda: lla.trace(H, key))
    trees = [jax.tree.map(lambda x, i=i: x[i], pairs.vectors.tree) for i in range(TOP)]
    return {
        "seconds": seconds,
        "compile_s": compile_s,
        "values": pairs.values.tolist(),
        "vectors": [curvature.to_torch(tree, keys) for tree in trees],
        "nodes": spec.nodes[0],
        "criteria": criteria,
        "trace": {"mean": trace.mean, "sem": trace.sem, "products": trace.recipe["products"]},
        "products": {"eigenpairs": pairs.products, "density": steps},
    }


def theirs(path: pathlib.Path, lla: pathlib.Path, side: int, steps: int) -> dict[str, Any]:
    """The same with LLA, its functions called as its own ``viz_esd`` does, without the pictures."""
    import torch

    sys.path.insert(0, str(lla / "src"))
    from src_lla import hessian_calc, hessian_criteria, loss_landscapes, metrics

    torch.manual_seed(0)
    net, x, y = curvature.torch_problem(path)
    metric = metrics.Loss(torch.nn.CrossEntropyLoss(), x, y, "cpu")
    seconds: dict[str, float] = {}
    seconds["plane"], _ = measure.timed(
        lambda: loss_landscapes.random_plane(net, metric, distance=1, steps=side, normalization="filter")
    )
    held: list[Any] = []

    def density() -> Any:
        held.append(hessian_calc(net, metric))
        return held[0].esd_calc(n_iter=steps, n_v=1)

    seconds["density"], (nodes, weights) = measure.timed(density)
    seconds["criteria"], criteria = measure.timed(lambda: hessian_criteria(nodes, weights, 0.5))
    seconds["eigenpairs"], (values, vectors) = measure.timed(lambda: held[0].eigs_calc(top_n=TOP))
    try:
        trace: dict[str, Any] = {"mean": held[0].tr_calc()}
    except Exception as error:
        trace = {"error": f"{type(error).__name__}: {error}"}
    return {
        "seconds": seconds,
        "values": values,
        "vectors": [[part.numpy() for part in v] for v in vectors],
        "nodes": np.sort(nodes[0]),
        "criteria": [float(value) for value in criteria],
        "trace": trace,
    }


def worker(job: dict[str, Any]) -> None:
    os.environ["OMP_NUM_THREADS"] = str(job["threads"])
    measure.start_jax(job["threads"])
    path = pathlib.Path(job["path"])
    if job["side_of"] == "lla_jax":
        found = ours(path, job["side"], job["steps"])
    else:
        import torch

        torch.set_num_threads(job["threads"])
        found = theirs(path, pathlib.Path(job["lla"]), job["side"], job["steps"])
    nodes = np.asarray(found.pop("nodes"), np.float64)
    found["judged"], found["residuals"] = curvature.judged(curvature.judge(path), found.pop("vectors"))
    found["density"] = {
        "least": nodes.min(),
        "largest": nodes.max(),
        "copies_of_the_largest": int((nodes > nodes.max() - 1e-3 * abs(nodes.max())).sum()),
    }
    found["total_s"] = sum(found["seconds"][part] for part in COMMON)
    measure.tell(found)


def main() -> None:
    parser = measure.parser(__doc__, minutes=7)
    parser.add_argument("--lla", type=pathlib.Path, help="checkout of LLA; without it only our side is measured")
    options = parser.parse_args()
    if options.worker:
        worker(json.loads(options.worker))
        return
    path, left = measure.place(options, "bundle"), measure.clock(options.minutes)
    side, steps, batch = (5, 10, 256) if options.quick else (SIDE, STEPS, curvature.BATCH["lenet"])
    result = measure.begun(__doc__, options.threads) | {"points": side**2, "steps": steps, "sides": {}}
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "lenet.npz"
        curvature.prepare("lenet", options.data, batch, file)
        job = {"path": file, "side": side, "steps": steps, "threads": options.threads, "lla": options.lla}
        for name in ("lla_jax", "LLA"):
            if name == "LLA" and not options.lla:
                print("  LLA: no --lla PATH given, skipped")
            elif left() > 0:
                result["sides"][name] = measure.child(__file__, job | {"side_of": name})
                print(f"  {name}: {result['sides'][name]}", flush=True)
                measure.keep(path, result)
    mine, other = (result["sides"].get(name, {}) for name in ("lla_jax", "LLA"))
    if "total_s" in mine and "total_s" in other:
        smaller = max(other["residuals"]) / max(mine["residuals"])
        result["targets"] = [
            measure.against("bundle, LLA / lla_jax, both from nothing", other["total_s"] / mine["total_s"], 2.0),
            measure.against("largest residual, LLA / lla_jax", smaller, 1.0),
        ]
        result["after_compiling"] = other["total_s"] / (mine["total_s"] - mine["compile_s"])
    print(f"written: {measure.keep(path, result)}")


if __name__ == "__main__":
    main()
