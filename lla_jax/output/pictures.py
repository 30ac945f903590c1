"""The pictures that suit a result, drawn into files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lla_jax.core.types import Eigenpairs, Landscape, Spectrum
from lla_jax.output import plotting
from lla_jax.output.words import CurvatureResults

DECADES = 1000.0  # largest over smallest value from which a linear picture shows nothing

logger = logging.getLogger("lla_jax")


def draw_landscape(
    result: Landscape,
    folder: Path,
    stem: str = "landscape",
    value: str = "loss",
    *,
    cap: float | None = None,
    log: bool | None = None,
    suffix: str = "png",
    say: Callable[[str], None] = logger.info,
) -> list[Path]:
    """Save the pictures that suit a landscape's number of axes; one that cannot be drawn is announced and left out.

    Args:
      result: the landscape.
      folder: for the files, ``{stem}-{picture}.{suffix}``, with the name of a value other than the loss in between.
      stem: first part of the file names.
      value: name of the value to draw.
      cap: values above are drawn as this (planes and volumes).
      log: logarithmic scale, where values allow it; None decides by their span.
      suffix: kind of picture file.
      say: takes messages; by default they are logged.

    Returns:
      The paths: line and, where there are test data, train and test together; surface and contour (a heat map where an
      axis has one point); slices of a volume.
    """
    asked, (log, span) = log, choose_scale(result, value, cap=cap, log=log)
    if asked and not log:
        say(f"log=True needs values above 0 ({span}); the pictures are linear")
    elif asked is None and log:
        say(f"the pictures are logarithmic ({span}); log=False draws them linearly")
    pictures: dict[str, Callable[[], Any]]
    if result.dims == 1:
        pictures = {"line": lambda: plotting.line(result, value, log=log)}
        if _has_twin(result, value):
            pictures["train-test"] = lambda: plotting.train_test(result, log=log)
    elif result.dims == 2 and min(result.shape) == 1:
        pictures = {"heatmap": lambda: plotting.heatmap(result, value, cap=cap, log=log)}
    elif result.dims == 2:
        pictures = {
            "surface": lambda: plotting.surface(result, value, cap=cap, log=log),
            "contour": lambda: plotting.contour(result, value, cap=cap, log=log),
        }
    else:
        pictures = {"slices": lambda: plotting.volume(result, value, cap=cap, log=log)}
    tag = "" if value == "loss" else f"-{value}"
    paths = []
    for name, picture in pictures.items():
        path = folder / f"{stem}{tag}-{name}.{suffix}"
        try:
            picture().savefig(path)
        except ValueError as error:
            say(f"no picture {path.name}: {error}")
        else:
            paths.append(path)
    return paths


def choose_scale(
    result: Landscape, value: str = "loss", *, cap: float | None = None, log: bool | None = None
) -> tuple[bool, str]:
    """Whether to draw logarithmically: as asked if values are positive, else by their span.

    Args:
      result, value, cap, log: as for ``draw_landscape``.

    Returns:
      ``(logarithmic, the span in words)``, such as ``(True, "loss: 0.0012 to 35.1")``.
    """
    names = [value, "test_loss"] if result.dims == 1 and _has_twin(result, value) else [value]
    values = np.concatenate([result.values[name].ravel() for name in names])
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
    wide = cap is None and low > 0 and high > DECADES * low
    return bool(wide if log is None else log and low > 0), f"{' and '.join(names)}: {low:.4g} to {high:.4g}"


def _has_twin(result: Landscape, value: str) -> bool:
    """Whether train and test are there, to be drawn together."""
    return value == "loss" and {"test_loss", "accuracy", "test_accuracy"} <= result.values.keys()


def draw_curvature(found: CurvatureResults, folder: Path, suffix: str = "png") -> list[Path]:
    """Save pictures of the density, the eigenvalues and, where there are any, the layers.

    Args:
      found: the results.
      folder: for the files, ``spectrum``, ``eigenvalues`` and ``layers``.
      suffix: kind of picture file.

    Returns:
      The paths.
    """
    figures = {
        "spectrum": plotting.spectral_density(found.spectrum, pairs=found.pairs),
        "eigenvalues": plotting.scree(found.pairs),
    }
    if found.layers:
        figures["layers"] = plotting.layers(found.layers)
    paths = [folder / f"{name}.{suffix}" for name in figures]
    for path, figure in zip(paths, figures.values()):
        figure.savefig(path)
    return paths


def figure_of(result: Eigenpairs | Spectrum) -> Any:
    """The figure that shows eigenpairs or a spectrum alone."""
    return plotting.scree(result) if isinstance(result, Eigenpairs) else plotting.spectral_density(result)
