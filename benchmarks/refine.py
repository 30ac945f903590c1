"""Claim: a refined landscape is within 1 % of the picture's range, as it states, from a quarter of the points.

    python benchmarks/refine.py [--quick]

Planes by ``lla.evaluate(..., refine=lla.refine(rtol=0.01))`` against the full grid of the same plane, both compiled:
points, seconds, the stated error, and the true errors of all points that were not evaluated. 40 random planes of an MLP
trained on digits, 5 of LeNet and 2 of ResNet-20 (batch 128) as their checkpoints are, 3 of the demo, all of 41 x 41
points; one of the MLP with 1001 x 1001; and a plane of white noise, where nothing can be gained.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import tempfile
from typing import Any

import numpy as np
from cases import curvature, planes
from harness import measure

RTOL = 0.01
NETWORKS = {"mlp": (40, 41), "lenet": (5, 41), "resnet": (2, 41), "demo": (3, 41), "large": (1, 1001), "noise": (1, 41)}
LABELS = planes.LABELS | {"demo": "demo", "large": "MLP, 1001 x 1001", "noise": "white noise"}
BATCH = {"lenet": 2048, "resnet": 128}
HELD = 0.95  # of the planes have to be within what they state


def problem(name: str, data: pathlib.Path) -> tuple[Any, Any, Any, Any]:
    """(loss, params, data, metrics) of a trained network; of white noise a function whose values are random."""
    from lla_jax import demo

    if name == "noise":
        import jax

        def noise(params: Any, batch: Any) -> Any:
            words = jax.lax.bitcast_convert_type(params["w"], np.uint32)
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), words[0]), words[1])
            return jax.random.normal(key) + 0 * batch.sum()

        return noise, {"w": np.array([0.3, 0.7], np.float32)}, np.zeros((2, 1), np.float32), None
    accuracy = {"accuracy": demo.accuracy}
    if name == "demo":
        found = demo.problem()
        return found.loss, found.params, found.data, accuracy
    if name in ("mlp", "large"):
        return *trained_mlp(), accuracy
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "problem.npz"
        curvature.prepare(name, data, BATCH[name], path)
        return *curvature.jax_problem(path), accuracy


def trained_mlp(epochs: int = 30) -> tuple[Any, Any, Any]:
    """The MLP of the sweeps after Adam on its digits in batches of 64."""
    import jax
    import optax

    loss, params, data, _ = planes.mlp()
    adam = optax.adam(3e-3)

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        def mean(params: Any) -> Any:
            return loss.criterion(loss.apply(params, loss.state, batch, False)[0], batch).mean()

        updates, state = adam.update(jax.grad(mean)(params), state)
        return optax.apply_updates(params, updates), state

    state, rng = adam.init(params), np.random.default_rng(0)
    for _ in range(epochs):
        for rows in rng.permutation(len(data[1]))[: len(data[1]) // 64 * 64].reshape(-1, 64):
            params, state = step(params, state, tuple(x[rows] for x in data))
    return loss, params, data


def measured(job: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: each plane in full and refined."""
    import jax

    import lla_jax as lla

    loss, params, data, metrics = problem(job["network"], pathlib.Path(job["data"]))
    grid = lla.grid(extent=1.0, points=job["side"])
    options = {"metrics": metrics}

    def axes(seed: int) -> Any:
        if job["network"] == "noise":
            return lla.directions.given({"w": np.float32([1, 0])}, {"w": np.float32([0, 1])})
        drawn = lla.directions.random(jax.random.key(seed), params)
        return lla.directions.normalize(drawn, params)

    def full(seed: int) -> Any:
        return lla.evaluate(loss, params, data, axes(seed), grid, **options)

    def refined(seed: int) -> Any:
        return lla.evaluate(loss, params, data, axes(seed), grid, refine=lla.refine(rtol=RTOL), **options)

    if job["side"] < 1000:
        full(0)
    refined(0)  # compiled, and the plan timed
    rows = []
    for seed in range(1, 1 + job["planes"]):
        (full_s, whole), (refined_s, part) = (
            measure.timed(lambda s=seed: full(s)),
            measure.timed(lambda s=seed: refined(s)),
        )
        rows.append({"seed": seed, "full_s": full_s, "refined_s": refined_s} | compared(whole, part))
    return {"planes": rows}


def compared(whole: Any, part: Any) -> dict[str, Any]:
    """What a refined plane states, and the true errors of its interpolated points, in multiples of the range."""
    about = part.recipe["refinement"]
    mask = np.ones(part.shape, bool) if part.evaluated is None else part.evaluated
    row = {key: about[key] for key in ("points", "of", "scale", "errors", "held_out", "looks", "met", "reason")}
    row["points"] = int(mask.sum())
    row["true_errors"] = {}
    for name, truth in whole.values.items():
        picture = np.log if about["scales"][name] == "log" else np.asarray
        rest = ~mask & np.isfinite(truth)
        error = abs(picture(part.values[name][rest]) - picture(truth[rest]))
        error = error / (np.ptp(picture(truth[np.isfinite(truth)])) or 1.0)
        at = np.percentile(error, [95, 100]) if error.size else np.zeros(2)
        row["true_errors"][name] = {"percentile_95": at[0], "largest": at[1]}
    return row


def summed_up(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The worst and the mean of the planes of a network."""
    names = rows[0]["true_errors"]
    held = {
        name: statistics.mean(
            row["errors"][name] is None or row["true_errors"][name]["percentile_95"] <= row["errors"][name] + 1e-6
            for row in rows
        )
        for name in names
    }
    return {
        "share_of_points": {
            "mean": statistics.mean(r["points"] / r["of"] for r in rows),
            "largest": max(r["points"] / r["of"] for r in rows),
        },
        "share_of_seconds": statistics.median(r["refined_s"] / r["full_s"] for r in rows),
        "percentile_95": max(r["true_errors"]["loss"]["percentile_95"] for r in rows),
        "largest_error": max(r["true_errors"]["loss"]["largest"] for r in rows),
        "planes_within_their_statement": held,
    }


def judged(name: str, total: dict[str, Any]) -> list[dict[str, Any]]:
    """The targets of one network."""
    label, points = LABELS[name], total["share_of_points"]["largest"]
    if name == "noise":
        seconds = measure.against(f"{label}: seconds, refined / full", total["share_of_seconds"], 1.1, least=False)
        return [measure.against(f"{label}: points, refined / full", points, 1.1, least=False), seconds]
    most = 0.02 if name == "large" else 0.25
    found = [
        measure.against(f"{label}: largest share of the points", points, most, least=False),
        measure.against(f"{label}: largest 95th percentile of the error", total["percentile_95"], RTOL, least=False),
    ]
    if name == "mlp":
        held = total["planes_within_their_statement"]["loss"]
        found.append(measure.against(f"{label}: planes whose error is within the stated bound", held, HELD))
    return found


def main() -> None:
    options = measure.parser(__doc__, minutes=20).parse_args()
    if options.worker:
        job = json.loads(options.worker)
        measure.start_jax(job["threads"])
        measure.tell(measured(job))
        return
    path, left = measure.place(options, "refine"), measure.clock(options.minutes)
    result = measure.begun(__doc__, options.threads) | {"rtol": RTOL, "networks": {}, "targets": []}
    for name, (count, side) in NETWORKS.items():
        if options.quick and name not in ("mlp", "noise"):
            continue
        if left() < 0:
            print(f"  {name}: the time is over, skipped")
            continue
        job = {"network": name, "threads": options.threads, "data": options.data, "side": side}
        job["planes"] = min(count, 2) if options.quick else count
        row = measure.child(__file__, job, limit=1200.0)
        if "planes" in row:
            row |= {"total": summed_up(row["planes"])}
            print(f"  {name}: {row['total']}", flush=True)
            result["targets"] += judged(name, row["total"])
        else:
            print(f"  {name}: {row}", flush=True)
        result["networks"][name] = row
        measure.keep(path, result)
    print(f"written: {measure.keep(path, result)}")


if __name__ == "__main__":
    main()
