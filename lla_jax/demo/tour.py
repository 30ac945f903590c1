"""Runs the demo: trains the embedded problem, computes its landscapes, and saves results, pictures and a summary."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import jax
import numpy as np

from lla_jax import demo
from lla_jax.core.results import Landscape
from lla_jax.core.text import pm, table
from lla_jax.demo import curvature, descent
from lla_jax.directions import draws, normalization
from lla_jax.landscape.evaluation import evaluate
from lla_jax.landscape.grids import grid
from lla_jax.landscape.modes import all_modes
from lla_jax.output import plotting
from lla_jax.output.storage import save
from lla_jax.paths.files.loading import load
from lla_jax.paths.files.recording import record

TRAINING = "training"  # the folder of its recording
Bar = Callable[..., AbstractContextManager[Callable[[float, float | None], None]]]


def run(out: Path, *, seed: int = 0, points: int = 41, epochs: int = 24, bar: Bar) -> list[Path]:
    """Train the network, compute a line, a plane, its curvature, all modes, and the path of its training; save all.

    The training is recorded in the folder ``training`` of ``out``.

    Args:
      out: an existing folder.
      seed: for the training and the random directions.
      points: per axis of line and plane, at least 3; the planes of the comparison and of the path have half as many.
      epochs: passes over the training data.
      bar: ``bar(label, unit)`` is a context manager that gives a callback ``progress(done, total)``.

    Returns:
      The files written: pictures, the film, ``summary.txt``, results.
    """
    training = out / TRAINING
    with bar("training", "steps") as progress:
        trained = demo.train(seed, epochs=epochs, track=record(training, descent.EVERY), progress=progress)
    problem = demo.make_problem(trained)
    loss, params, metrics = problem.loss, problem.params, dict(problem.metrics)
    key = jax.random.key(seed)
    axes = normalization.normalize(draws.random(key, params, 2), params, by="filter", filter_axis=loss)

    with bar("line") as progress:
        line = evaluate(
            loss,
            params,
            problem.data,
            axes[0],
            grid(points=points, dims=1),
            metrics=metrics,
            extra_data=dict(problem.extra_data),
            progress=progress,
        )
    with bar("plane") as progress:
        plane = evaluate(loss, params, problem.data, axes, grid(points=points), metrics=metrics, progress=progress)
    second = curvature.run(trained, problem, jax.random.fold_in(key, 1), points=points, bar=bar)
    with bar("all modes") as progress:
        modes = all_modes(
            loss,
            params,
            problem.data,
            key,
            grid=grid(points=points // 4 * 2 + 1),
            opt_state=problem.opt_state,
            pairs=second.pairs,
            progress=progress,
        )
    third = descent.run(load(training), problem, out, points=max(3, points // 4 * 2 + 1), bar=bar)
    by_mode = {f"mode-{_slug(name)}": mode for name, mode in modes.items()}
    results = {"line": line, "plane": plane} | second.results | third.results | by_mode
    saved = {out / f"{name}.npz": result for name, result in results.items()}
    for path, result in saved.items():
        save(result, path)
    summary = out / "summary.txt"
    summary.write_text(f"{summarize(line, plane, modes)}\n{third.text}\n{second.text}\n", encoding="utf-8")
    # logarithmic, since the loss spans four orders of magnitude
    figures = {
        "line": plotting.train_test(line, log=True, title="Digits CNN"),
        "surface": plotting.surface(plane, log=True, title="Digits CNN: training loss"),
        "contour": plotting.contour(plane, log=True, title="Digits CNN: training loss"),
        "accuracy": plotting.contour(plane, "accuracy", title="Digits CNN: training accuracy"),
        "modes": plotting.panels(modes, kind="contour", log=True, title="Digits CNN, training"),
    }
    pictures = {out / f"{name}.png": figure for name, figure in (figures | second.figures | third.figures).items()}
    for path, figure in pictures.items():
        figure.savefig(path)
    return [*pictures, third.film, summary, *saved]


def summarize(line: Landscape, plane: Landscape, modes: Mapping[str, Landscape]) -> str:
    """The first part of ``summary.txt``: the losses and accuracies of the landscapes.

    Args:
      line: one axis, with train and test loss and accuracy.
      plane: two axes.
      modes: the comparison of all modes.

    Returns:
      Some lines of text.
    """
    middle = int(np.abs(line.coords[0]).argmin())  # on the network itself for odd numbers of points
    values = plane.values["loss"]
    low = np.unravel_index(np.nanargmin(values), values.shape)
    place = ", ".join(f"{c[i]:.3g}" for c, i in zip(plane.coords, low))

    def at_centre(name: str) -> str:
        errors = line.stderr.get(name)
        return pm(line.values[name][middle], math.nan if errors is None else errors[middle])

    return "\n".join(
        [
            "A network with two convolutions and BatchNorm, trained on 1,437 handwritten digits, tested on 360 others.",
            "At the trained weights (+- standard error over the examples):",
            f"  training loss {at_centre('loss')}, accuracy {at_centre('accuracy')}",
            f"  test loss     {at_centre('test_loss')}, accuracy {at_centre('test_accuracy')}",
            f"On the plane of two filter-normalized random directions ({' x '.join(map(str, plane.shape))} points):",
            f"  training loss {_span(plane)}; least at (a, b) = ({place})",
            "Training loss on the planes of all modes:",
            table([(name, _span(mode)) for name, mode in modes.items()], left=(0, 1), indent=2),
            "A coordinate of 1 moves every filter by as much as its own norm (filter normalization).",
        ]
    )


def _span(result: Landscape) -> str:
    values = result.values["loss"]
    finite = values[np.isfinite(values)]
    span = f"{finite.min():.4g} to {finite.max():.4g}" if finite.size else "nowhere finite"
    missing = values.size - finite.size
    return f"{span} ({missing} of {values.size} points not finite)" if missing else span


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
