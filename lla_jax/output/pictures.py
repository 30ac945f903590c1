"""Chooses the pictures that suit a result, and draws them into files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lla_jax.core.results import Eigenpairs, Landscape, Spectrum
from lla_jax.core.scales import spans_decades
from lla_jax.output import plotting
from lla_jax.output.words import CurvatureResults

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
    report: Callable[[str], None] = logger.info,
) -> list[Path]:
    """Save the pictures that suit a landscape's number of axes; one that cannot be drawn is reported and left out.

    Args:
      result: the landscape.
      folder: for the files, ``{stem}-{picture}.{suffix}``, or ``{stem}-{value}-{picture}.{suffix}`` for values other
        than the loss.
      stem: first part of the file names.
      value: name of the value to draw.
      cap: larger values are drawn as this one (planes and volumes).
      log: logarithmic scale, where all values are above 0; None decides as ``choose_scale``.
      suffix: of the picture files, such as "png" or "pdf".
      report: is called with each message; by default messages are logged.

    Returns:
      The paths: of one axis a line and, where there are test data, train and test together; of two axes a surface and
      contours, or a heat map where an axis has one point; of three axes slices.
    """
    wanted, (log, span) = log, choose_scale(result, value, cap=cap, log=log)
    if wanted and not log:
        report(f"log: True given, but a logarithm needs values above 0 ({span}); the pictures are linear")
    elif wanted is None and log:
        report(f"the pictures are logarithmic ({span}); log=False draws them linearly")
    pictures: dict[str, Callable[[], Any]]
    if result.dims == 1:
        pictures = {"line": lambda: plotting.line(result, value, log=log)}
        if _has_test_data(result, value):
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
            report(f"no picture {path.name}: {error}")
        else:
            paths.append(path)
    return paths


def choose_scale(
    result: Landscape, value: str = "loss", *, cap: float | None = None, log: bool | None = None
) -> tuple[bool, str]:
    """Choose a logarithmic or a linear scale.

    ``log`` is followed, except that values at or below 0 make it linear. With None the scale is logarithmic where all
    values are above 0 and span a factor over 1000, and there is no cap.

    Args:
      result, value, cap, log: as for ``draw_landscape``.

    Returns:
      ``(whether it is logarithmic, the span in words)``, such as ``(True, "loss: 0.0012 to 35.1")``.
    """
    names = [value, "test_loss"] if result.dims == 1 and _has_test_data(result, value) else [value]
    values = np.concatenate([result.values[name].ravel() for name in names])
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
    wide = cap is None and spans_decades(values)
    return bool(wide if log is None else log and low > 0), f"{' and '.join(names)}: {low:.4g} to {high:.4g}"


def _has_test_data(result: Landscape, value: str) -> bool:
    """Whether the loss is to be drawn and the landscape has loss and accuracy of training and test data."""
    return value == "loss" and {"test_loss", "accuracy", "test_accuracy"} <= result.values.keys()


def draw_curvature(results: CurvatureResults, folder: Path, suffix: str = "png") -> list[Path]:
    """Save pictures of the density, the eigenvalues and, where there are any, the layers.

    Args:
      results: of one operator.
      folder: for the files, ``spectrum``, ``eigenvalues`` and ``layers``.
      suffix: of the picture files, such as "png" or "pdf".

    Returns:
      The paths.
    """
    figures = {
        "spectrum": plotting.spectral_density(results.spectrum, pairs=results.pairs),
        "eigenvalues": plotting.scree(results.pairs),
    }
    if results.layers:
        figures["layers"] = plotting.layers(results.layers)
    paths = [folder / f"{name}.{suffix}" for name in figures]
    for path, figure in zip(paths, figures.values()):
        figure.savefig(path)
    return paths


def figure_of(result: Eigenpairs | Spectrum) -> Any:
    """The matplotlib figure of eigenpairs (``scree``) or of a spectrum (``spectral_density``)."""
    return plotting.scree(result) if isinstance(result, Eigenpairs) else plotting.spectral_density(result)
