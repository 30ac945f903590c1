"""Connects two solutions for ``lla-jax connect``: trains a curve, measures barriers, and draws them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lla_jax import paths
from lla_jax.cli import stores
from lla_jax.cli.checkpoints import check_checkpoints, read_one
from lla_jax.cli.drawing import choose_scale, choose_scale_along
from lla_jax.cli.environment import make_execution
from lla_jax.cli.options import ConnectOptions, Mistake
from lla_jax.cli.planes import compute_plane
from lla_jax.cli.settings import connect_settings, scale
from lla_jax.cli.terminal import bar, print_message, print_note, print_results
from lla_jax.core.arguments import Misuse
from lla_jax.core.types import Execution, Problem, PyTree, is_path
from lla_jax.directions import derived
from lla_jax.output import path_words, plotting, storage
from lla_jax.paths.curves import Curve
from lla_jax.paths.host_trees import has_floats
from lla_jax.paths.losses.barriers import Barrier
from lla_jax.paths.projection.projections import Projection
from lla_jax.paths.training import optimizers

PLANE = "plane.npz"
RESULTS = (
    *("training.npz", "curve.npz", "line.npz", "barrier.npz", "seen.npz", "connect.txt", "connect.json"),
    *("barrier.png", "curve.png", "band.png"),
)


def show(problem: Problem, options: ConnectOptions) -> None:
    """Train the curve and write what ``lla-jax connect`` shows into ``options.out``; what is there is continued."""
    out, chosen = options.out, connect_settings(options)
    b, state_b = _second(problem, options)
    stores.begin(out, chosen, options.overwrite, PLANE, RESULTS)
    curve = _train(problem, b, state_b, options)
    files = [storage.save(curve, out / "curve.npz")]
    barriers = _measure(problem, b, state_b, curve, options)
    files += [storage.save(each, out / name) for name, each in zip(("line.npz", "barrier.npz"), barriers.values())]
    words = path_words.describe_connection(curve, barriers), path_words.plain_connection(curve, barriers)
    files += path_words.write(out / "connect", *words)
    print((out / "connect.txt").read_text(encoding="utf-8"))
    log = choose_scale_along(barriers, log=scale(options))
    pictures = [out / "barrier.png"]
    plotting.barrier(barriers, log=log).savefig(pictures[0])
    if curve.kind == "band":
        pictures.append(out / "band.png")
        plotting.band(curve, log=log).savefig(pictures[-1])
    elif options.plane_points:
        made = _plane(problem, curve, options, chosen)
        files, pictures = files + made[:-1], pictures + made[-1:]
    print_results(files)
    print_results(pictures, "Pictures")


def _second(problem: Problem, options: ConnectOptions) -> tuple[PyTree, PyTree]:
    """(parameters, state or None) of the second solution."""
    if options.checkpoint is not None:
        return read_one(problem, options.checkpoint)
    if not len(problem.checkpoints):
        raise Mistake(
            "--checkpoint: not given, and Problem.checkpoints is empty; name the file of the second solution, or set "
            "checkpoints=[its parameters] in the factory"
        )
    if len(problem.checkpoints) > 1:
        print_note(f"Problem.checkpoints has {len(problem.checkpoints)} entries, of which the first is the other end")
    check_checkpoints(problem)
    if is_path(problem.checkpoints):
        return problem.checkpoints[0], problem.checkpoints.state(0)  # type: ignore[attr-defined]
    state = problem.states[0] if problem.states else None
    if state is None and has_floats(getattr(problem.loss, "state", None)):
        raise Mistake(
            "the loss has a state of floats (BatchNorm), which is that of Problem.params, and Problem.states is empty; "
            "set states=[the state of the second solution] in the factory, or name its file, --checkpoint"
        )
    return problem.checkpoints[0], state


def _train(problem: Problem, b: PyTree, state_b: PyTree, options: ConnectOptions) -> Curve:
    """The trained curve; its training is kept in the folder."""
    more: dict[str, Any] = {} if options.control_points is None else {"points": options.control_points}
    if options.learning_rate is not None:
        more["optimizer"] = optimizers.adam(options.learning_rate)
    kept = options.out / "training.npz"
    try:
        with bar(options.kind, "steps", estimate=True) as progress:
            return paths.connect(
                problem.loss,
                problem.params,
                b,
                problem.data,
                key=jax.random.key(options.seed),
                state_b=state_b,
                kind=options.kind,
                steps=options.steps,
                batch_size=options.batch_size,
                weight_decay=options.weight_decay,
                store=options.out,
                save_every=options.save_every,
                progress=progress,
                execution=Execution(precision=options.precision),
                **more,
            )
    except KeyboardInterrupt:
        if kept.exists():
            print_message(f"the steps so far are kept in {kept}; the same command continues them")
        raise
    except Misuse as error:
        if error.argument == "train":
            raise Mistake(
                "Problem.loss: has no train mode, in which a curve is trained (BatchNorm by batch); in the factory "
                "write lla_torch.problem(..., train=True), or convert(..., train=True)"
            ) from error
        if error.argument != "points":  # --points is that of the evaluation
            raise
        raise Mistake(f"--control-points: {error.text}") from error


def _measure(problem: Problem, b: PyTree, state_b: PyTree, curve: Curve, options: ConnectOptions) -> dict[str, Barrier]:
    """The barriers along the straight line and the curve."""
    found = {}
    for name, each in (("line", None), (options.kind, curve)):
        with bar(f"barrier of the {name}") as progress:
            found[name] = paths.barrier(
                problem.loss,
                problem.params,
                b,
                problem.data,
                state_b=state_b,
                curve=each,
                points=options.points,
                batch_size=options.batch_size,
                batch_stats=options.batch_stats,
                metrics=dict(problem.metrics),
                extra_data=dict(problem.extra_data),
                execution=make_execution(options),
                progress=progress,
            )
    return found


def _plane(problem: Problem, curve: Curve, options: ConnectOptions, chosen: Mapping[str, str]) -> list[Path]:
    """Compute and draw the plane through both ends and the middle of the curve; the paths, of which the last is drawn.

    A curve that is straight spans no plane: a note says so, and no file is written.
    """
    out, (a, b) = options.out, curve.ends
    names = ["A", "B", "P1" if curve.num == 3 else "middle"]
    middle = jax.tree.map(lambda leaf: leaf[curve.num // 2], curve.points) if curve.num == 3 else curve(0.5)
    try:
        axes = derived.between(a, b, middle, orthogonal=True, names=names)
    except Misuse as error:
        print_note(f"no picture of the plane: {error.text}")
        return []
    seen = paths.project(curve, axes, params=a)
    policy = options.batch_stats or "frozen"
    if policy == "frozen" and has_floats(getattr(problem.loss, "state", None)):
        policy = "reestimate"  # those of the ends say nothing of the plane
        if options.batch_stats == "frozen":
            print_note("the plane has re-estimated BatchNorm statistics, as those of the ends are known there alone")
    plane = compute_plane(problem, a, axes, _grid(seen, options.plane_points), policy, options, chosen)
    files = [storage.save(seen, out / "seen.npz"), storage.save(plane, out / PLANE), out / "curve.png"]
    log = choose_scale(plane, cap=options.cap, log=scale(options))
    plotting.curve(plane, seen, log=log, cap=options.cap).savefig(files[-1])
    return files


def _grid(seen: Projection, points: int) -> tuple[np.ndarray, np.ndarray]:
    """A grid around a curve and its control points, of which both ends, at (0, 0) and (1, 0), are points."""
    corners = np.array([at for _, at in seen.recipe["marks"]])
    x, y = paths.grid_around([seen, corners], 0.2, points)
    steps = max(1, int(1 / (x[1] - x[0]) + 1e-9))  # from one end to the other
    return (np.arange(len(x)) - int(np.abs(x).argmin())) / steps, y
