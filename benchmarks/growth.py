"""Claim: cost grows in proportion to points, parameters and examples, and no faster.

    python benchmarks/growth.py [--quick]

Milliseconds of a plane and of a Hessian product of an MLP (64 - width - 10) against points (10x, 100x), parameters
(by the width) and examples, with the slopes of log cost on log size; and of LeNet against 1, 2 and 4 CPU devices, each
number in a process of its own because jax reads it when it starts. Draws results/growth.png from the JSON.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from cases import planes
from harness import measure

POINTS, WIDTHS, BATCHES, DEVICES = (1_024, 10_000, 99_856), (32, 128, 512, 2048), (1797, 7188, 28752), (1, 2, 4)
SIDE, REPEATS = 16, 3
LABELS = {"points": "points of the grid", "parameters": "parameters", "examples": "examples", "devices": "CPU devices"}
COSTS = {"plane_ms": ("plane", "#0072b2", "o"), "product_ms": ("Hessian product", "#d55e00", "s")}
"""A label, a colour and a marker for each cost."""


def plane_ms(problem: tuple, side: int, repeats: int) -> float:
    """Milliseconds of a plane, compiled before."""
    import lla_jax as lla

    axes = planes.axes_of(problem[1])
    found = measure.alternate(
        {"plane": lambda: lla.evaluate(*problem, axes, lla.grid(extent=0.5, points=side))}, {"plane": 1}, repeats
    )
    return found["plane"]["min_ms"]


def product_ms(problem: tuple, repeats: int) -> float:
    """Milliseconds of a Hessian product, primal values kept."""
    import jax

    import lla_jax as lla

    H = lla.hessian(*problem)
    v = H.random(jax.random.key(0))
    found = measure.alternate({"product": lambda: jax.block_until_ready(H.product(v))}, {"product": 1}, repeats)
    return found["product"]["min_ms"]


def rows(sizes: Iterable[int], make: Callable[[int], tuple], repeats: int) -> list[dict[str, float]]:
    """Cost for each size of a problem."""
    found = []
    for size in sizes:
        problem = make(size)
        found.append(
            {"size": size, "plane_ms": plane_ms(problem, SIDE, repeats), "product_ms": product_ms(problem, repeats)}
        )
    return found


def grown(quick: bool) -> dict[str, Any]:
    """All curves of the MLP."""
    import jax

    repeats = 2 if quick else REPEATS
    points = POINTS[:2] if quick else POINTS
    widths, batches = (WIDTHS[:2], BATCHES[:2]) if quick else (WIDTHS, BATCHES)
    problem = planes.mlp()[:3]
    curves: dict[str, Any] = {
        "points": [{"size": n, "plane_ms": plane_ms(problem, round(n**0.5), min(3, repeats))} for n in points],
        "examples": rows(batches, lambda n: planes.mlp(batch=n)[:3], repeats),
        "parameters": rows(widths, lambda n: planes.mlp(width=n)[:3], repeats),
    }
    for row in curves["parameters"]:
        params = planes.mlp(width=row["size"])[1]
        row["size"] = sum(x.size for x in jax.tree.leaves(params))
    return curves


def on_devices(quick: bool) -> dict[str, float]:
    """LeNet on the devices of this process."""
    import jax

    problem = planes.lenet(128 if quick else 2048)[:3]
    repeats = 1 if quick else 3
    return {
        "size": jax.device_count(),
        "plane_ms": plane_ms(problem, 4 if quick else SIDE, repeats),
        "product_ms": product_ms(problem, repeats),
    }


def slopes(curve: list[dict[str, float]]) -> dict[str, float]:
    """Exponents over the range of sizes, and over its last two, where costs that do not grow count least."""
    found = {}
    for cost in COSTS:
        if cost in curve[0]:
            x, y = [row["size"] for row in curve], [row[cost] for row in curve]
            found[cost] = {"all": measure.slope(x, y), "last": measure.slope(x[-2:], y[-2:])}
    return found


def draw(result: dict[str, Any], path: pathlib.Path) -> None:
    """One panel for each size that was varied."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    curves = result["curves"]
    figure, panels = plt.subplots(1, len(curves), figsize=(3.1 * len(curves), 3), layout="constrained", squeeze=False)
    for panel, (name, curve) in zip(panels[0], curves.items(), strict=True):
        x = [row["size"] for row in curve["rows"]]
        for cost, (label, colour, mark) in COSTS.items():
            if cost in curve["rows"][0]:
                y = [row[cost] for row in curve["rows"]]
                slope = f", slope {curve['slopes'][cost]['all']:.2f}" if name != "devices" else ""
                panel.loglog(x, y, marker=mark, color=colour, label=label + slope)
        panel.set(xlabel=LABELS[name], title="LeNet, batch 2048" if name == "devices" else "MLP")
        panel.set_xticks(x, [f"{value:,}" for value in x])
        panel.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        panel.tick_params(axis="both", labelsize=7)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    panels[0][0].set_ylabel("milliseconds")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def worker(job: dict[str, Any]) -> None:
    measure.start_jax(job["devices"])
    measure.tell({"curves": grown(job["quick"])} if job["part"] == "mlp" else on_devices(job["quick"]))


def main() -> None:
    options = measure.parser(__doc__, minutes=4).parse_args()
    if options.worker:
        worker(json.loads(options.worker))
        return
    path, left = measure.place(options, "growth"), measure.clock(options.minutes)
    result = measure.begun(__doc__, options.threads) | {"curves": {}}

    def keep(name: str, curve: list[dict[str, float]]) -> None:
        result["curves"][name] = {"rows": curve, "slopes": slopes(curve) if name != "devices" else {}}
        print(f"  {name}: {result['curves'][name]}", flush=True)
        measure.keep(path, result)

    found = measure.child(__file__, {"part": "mlp", "devices": options.threads, "quick": options.quick})
    if "error" in found:
        raise SystemExit(f"  MLP: {found['error']}")
    for name, curve in found["curves"].items():
        keep(name, curve)
    measured = []
    for devices in DEVICES:
        if left() > 0:
            row = measure.child(__file__, {"part": "devices", "devices": devices, "quick": options.quick})
            print(f"  {devices} devices: {row}", flush=True)
            measured += [row] if "error" not in row else []
    if len(measured) > 1:
        keep("devices", measured)
    draw(result, path.with_suffix(".png"))
    print(f"written: {measure.keep(path, result)} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
