"""Claim: many planes in one ``sweep`` run at the speed of a single one.

    python benchmarks/many_planes.py [--quick]

16 checkpoints x 4 planes in one ``lla.sweep`` against single planes of the same size by ``lla.evaluate``, before and
after it, everything compiled: points per second. An MLP with planes of 41 x 41 points, also into a chunk store, and
LeNet at batch 2048 with 7 x 7 (small planes, where the work done once for each counts most).
"""

from __future__ import annotations

import json
import statistics
import tempfile
from typing import Any

from cases import planes
from harness import measure

CHECKPOINTS, PLANES, RATIO = 16, 4, 0.9
SIDES = {"mlp": 41, "lenet": 7}
SINGLES = 4


def measured(job: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: points per second of single planes and of a sweep."""
    import jax

    import lla_jax as lla

    loss, params, data, _ = planes.mlp() if job["network"] == "mlp" else planes.lenet(job["batch"])
    checkpoints = [jax.tree.map(lambda p, i=i: p * (1 + 0.01 * i), params) for i in range(job["checkpoints"])]
    grid, points = lla.grid(extent=0.5, points=job["side"]), job["side"] ** 2
    compiling = measure.compiling()

    def drawn(key: Any, params: Any) -> Any:
        return lla.directions.normalize(lla.directions.random(key, params), params)

    def single(seed: int) -> None:
        lla.evaluate(loss, params, data, drawn(jax.random.key(seed), params), grid)

    def sweep(store: str | None = None) -> Any:
        return lla.sweep(
            loss, checkpoints, data, axes={"random": drawn}, grid=grid, seeds=range(job["planes"]), store=store
        )

    cold = measure.seconds(lambda: single(0))
    before = [measure.seconds(lambda i=i: single(i)) for i in range(SINGLES)]
    compiled = len(compiling)
    taken, table = measure.timed(sweep)
    compiled = len(compiling) - compiled
    after = [measure.seconds(lambda i=i: single(i)) for i in range(SINGLES)]
    rates = {"single": points / statistics.median([*before, *after]), "sweep": points * len(table) / taken}
    if job["store"]:
        with tempfile.TemporaryDirectory() as folder:
            rates["sweep into a store"] = points * len(table) / measure.seconds(lambda: sweep(folder))
    return {
        "points": points,
        "landscapes": len(table),
        "points_per_second": rates,
        "first_single_s": cold,
        "single_s": [*before, *after],
        "sweep_s": taken,
        "programs_compiled_by_the_sweep": compiled,
    }


def main() -> None:
    options = measure.parser(__doc__, minutes=4).parse_args()
    if options.worker:
        job = json.loads(options.worker)
        measure.start_jax(job["threads"])
        measure.tell(measured(job))
        return
    path, left = measure.place(options, "many_planes"), measure.clock(options.minutes)
    result = measure.begun(__doc__, options.threads) | {"networks": {}, "targets": []}
    for network, side in SIDES.items():
        if left() < 0:
            print(f"  {network}: the time is over, skipped")
            continue
        job = {
            "network": network,
            "threads": options.threads,
            "store": network == "mlp",
            "batch": 128 if options.quick else 2048,
            "side": 4 if options.quick else side,
            "checkpoints": 2 if options.quick else CHECKPOINTS,
            "planes": 2 if options.quick else PLANES,
        }
        row = measure.child(__file__, job)
        result["networks"][network] = row
        print(f"  {network}: {row}", flush=True)
        if "points_per_second" in row:
            ratio = row["points_per_second"]["sweep"] / row["points_per_second"]["single"]
            target = f"{planes.LABELS[network]}, points per second, sweep / single plane"
            result["targets"].append(measure.against(target, ratio, RATIO))
        measure.keep(path, result)
    print(f"written: {measure.keep(path, result)}")


if __name__ == "__main__":
    main()
