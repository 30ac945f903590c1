"""Are two solutions connected? Two digits CNNs of different seeds: the straight line, and curves trained between them.

    python examples/two_solutions.py

Both networks learned the same images. On the straight line between them the loss rises far above both ends; a Bezier
curve and a chain of straight pieces are trained to stay low. BatchNorm statistics are re-estimated at every point.
Results, pictures and a summary.txt are written to --out. It takes a minute or two on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before jax starts: every core is a device, over which points are split, and a second run compiles nothing anew.
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={os.cpu_count()}")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "lla_jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import numpy as np
from tqdm import tqdm

import lla_jax as lla
from lla_jax import demo
from lla_jax.core.text import pm

SETS = {"train": "", "test": "test_"}
KINDS = {"bezier": 3, "polygon": 3}  # control points, the ends included: one of them is free


def error(outputs: Any, batch: Any) -> Any:
    """For each example 0 if its largest score is at the label, else 1."""
    return 1 - demo.accuracy(outputs, batch)


@contextlib.contextmanager
def bar(label: str) -> Iterator[Callable[[float, float | None], None]]:
    """A progress bar: lla_jax calls ``progress(done, total)`` from time to time."""
    with tqdm(desc=label, dynamic_ncols=True) as shown:

        def progress(done: float, total: float | None) -> None:
            shown.total = total
            shown.update(round(done) - shown.n)

        yield progress


def picture_of_plane(curve: lla.paths.Curve, loss: lla.Loss, data: Any, points: int) -> Any:
    """The curve on the plane through both ends and its middle control point (Garipov et al. 2018, figure 1)."""
    a, b, middle = (jax.tree.map(lambda x, k=k: x[k], curve.points) for k in (0, -1, 1))
    axes = lla.directions.between(a, b, middle, names=["A", "B", "P1"])
    seen = lla.paths.project(curve, axes, params=a)
    corners = np.array([place for _, place in seen.recipe["marks"]])
    grid = lla.paths.grid_around([seen, corners], points=points)
    with bar("plane") as progress:
        plane = lla.evaluate(loss, a, data, axes, grid, batch_stats="reestimate", progress=progress)
    return lla.plotting.curve(plane, seen, log=True, title="Digits CNNs: training loss")


def heights(barrier: lla.paths.Barrier) -> list[str]:
    """What a curve reaches, with standard errors over the examples: one line for training, one for test data."""
    lines = []
    for which, prefix in SETS.items():
        losses, errors, rise = (
            barrier.values[f"{prefix}loss"],
            barrier.errors[f"{prefix}loss"],
            barrier[f"{prefix}loss"],
        )
        top, end = int(losses.argmax()), 0 if losses[0] > losses[-1] else -1
        lines.append(
            f"  {which:<5} loss at most {pm(losses[top], errors[top])} at t = {barrier.coords[top]:.3g}, "
            f"{losses[top] / losses[end]:.3f} times that of the higher end, {pm(losses[end], errors[end])}; "
            f"barrier {pm(rise.value, rise.stderr)}; error at most {barrier.values[f'{prefix}error'].max():.2%}"
        )
    return lines


def main(argv: list[str] | None = None) -> Path:
    """Runs the example; returns the folder with its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("two-solutions"))
    parser.add_argument("--epochs", type=int, default=24, help="of the training of each network")
    parser.add_argument("--steps", type=int, default=1000, help="of the training of each curve")
    parser.add_argument("--points", type=int, default=31, help="along the curves, and along each axis of the plane")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)

    networks = []
    for seed in (0, 1):
        with bar(f"network {seed}") as progress:
            networks.append(demo.train(seed, epochs=args.epochs, split=0, progress=progress))
    problems = [demo.make_problem(network) for network in networks]
    a, b = (problem.params for problem in problems)
    loss, data, state_b = problems[0].loss, problems[0].data, problems[1].loss.state
    asked = {"metrics": {"error": error}, "extra_data": problems[0].extra_data, "points": args.points}

    curves, barriers = {}, {}
    for kind, points in KINDS.items():
        with bar(kind) as progress:
            curves[kind] = lla.paths.connect(
                loss, a, b, data, state_b=state_b, kind=kind, points=points, key=jax.random.key(0),
                steps=args.steps, batch_size=128, progress=progress,
            )  # fmt: skip
    for name in ("line", *curves):
        with bar(f"along the {name}") as progress:
            barriers[name] = lla.paths.barrier(
                loss, a, b, data, state_b=state_b, curve=curves.get(name), progress=progress, **asked
            )

    text = "\n".join(line for name, found in barriers.items() for line in (name, *heights(found)))
    (args.out / "summary.txt").write_text(f"{text}\n", encoding="utf-8")
    for name, found in {**{f"barrier-{name}": x for name, x in barriers.items()}, **curves}.items():
        lla.save(found, args.out / f"{name}.npz")
    figures = {
        "barrier": lla.plotting.barrier(barriers, log=True, title="Between two digits CNNs"),
        "test": lla.plotting.barrier(barriers, "test_loss", log=True, title="Between two digits CNNs"),
        "error": lla.plotting.barrier(barriers, "error", title="Between two digits CNNs"),
        "plane": picture_of_plane(curves["bezier"], loss, data, args.points),
    }
    for name, figure in figures.items():
        figure.savefig(args.out / f"{name}.png")
    print(f"{text}\nin {args.out}")
    return args.out


if __name__ == "__main__":
    main()
