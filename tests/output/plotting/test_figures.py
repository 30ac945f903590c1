"""Figures: shown once in notebooks, by no state of pyplot; their files; their windows."""

from __future__ import annotations

import io
import os
import struct
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.backends import backend_registry
from matplotlib.backends.backend_pdf import PdfPages

from lla_jax.core.results import Eigenpairs, Spectrum
from lla_jax.output import plotting
from lla_jax.output.plotting.figures import new_figure
from tests.output.plotting.cases import line, make


def size(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG in pixels."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])  # type: ignore[return-value]


SPECTRUM = Spectrum(np.array([[-1.0, 0.0, 5.0]]), np.array([[0.2, 0.7, 0.1]]), {})
FIGURES = {
    "surface": lambda: plotting.surface(make()),
    "panels": lambda: plotting.panels({"one": make(), "two": make()}, kind="heatmap"),
    "line": lambda: plotting.line(line()),
    "density": lambda: plotting.spectral_density(SPECTRUM),
    "scree": lambda: plotting.scree(Eigenpairs(np.ones(2), None, np.zeros(2), 3, {})),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_a_picture_for_notebooks(name):
    fig = FIGURES[name]()
    picture, shown = fig._repr_png_()
    np.testing.assert_allclose(size(picture), (2 * shown["width"], 2 * shown["height"]), atol=1)
    assert shown["width"] == (504 if name != "panels" else 1008)
    assert not pyplot.get_fignums()


def test_a_notebook_shows_a_figure_once_with_and_without_the_inline_backend():
    formatters = pytest.importorskip("IPython.core.formatters")
    from IPython.core.pylabtools import select_figure_formats

    shell = SimpleNamespace(display_formatter=formatters.DisplayFormatter())
    fig = plotting.line(line())
    for inline in (False, True):
        if inline:
            select_figure_formats(shell, {"png"})
        bundle, _ = shell.display_formatter.format(fig)
        assert set(bundle) == {"text/plain", "image/png"}
        assert len(bundle["image/png"]) > 10_000


def test_a_notebook_runs_and_shows_figures_and_results():
    client = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    cells = [
        "from tests.output.plotting.cases import line\nfrom lla_jax import plotting\nlandscape = line()\nlandscape",
        "fig = plotting.line(landscape)\nfig",
        "fig.show()",
        "plotting.line(landscape);",
        "%matplotlib inline\nfig",
        "from lla_jax.execution.progress import bar\n"
        "with bar('plane') as progress:\n    [progress(k + 1, 10**5) for k in range(10**5)]",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    env = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    client.NotebookClient(book, timeout=100, kernel_name="python3").execute(env=env)
    outputs = [cell.outputs for cell in book.cells]
    assert "Landscape(21" in outputs[0][0].data["text/plain"]
    for shown in (outputs[1], outputs[2], outputs[4]):
        (picture,) = shown  # once
        assert "image/png" in picture.data
    assert not outputs[3]
    assert {output.name for output in outputs[5]} == {"stderr"}
    shown = "".join(output.text for output in outputs[5])
    assert "100000/100000 points" in shown
    assert len(shown) < 3000  # a bar that is drawn about once a second


def test_files_of_all_kinds_are_written(tmp_path):
    fig = plotting.line(line())
    for name in ("plane.png", "plane.PDF", "plane.svg", "run0.5/plane.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        fig.savefig(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    fig.savefig(str(tmp_path / "plain"))  # without a suffix it is a PNG
    assert (tmp_path / "plain.png").exists()
    fig.savefig(tmp_path / "data.bin", format="png")
    assert size((tmp_path / "data.bin").read_bytes()) == (1050, 810)
    file = io.BytesIO()
    fig.savefig(file, dpi=100)
    assert size(file.getvalue()) == (350, 270)
    with PdfPages(tmp_path / "pages.pdf") as pages:
        pages.savefig(fig)
        fig.savefig(pages, format="pdf")
    assert (tmp_path / "pages.pdf").stat().st_size > 1000
    closed = io.BytesIO()
    closed.close()
    with pytest.raises(ValueError, match="closed file"):  # the file's own error
        fig.savefig(closed)


def test_show_opens_a_window_where_there_is_one(monkeypatch):
    if matplotlib.__version_info__ < (3, 11):
        pytest.skip("pyplot takes figures of others since matplotlib 3.11")
    monkeypatch.setattr(backend_registry, "resolve_backend", lambda backend: (backend, "qt"))
    shown: list[Any] = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.extend(pyplot.get_fignums()))
    fig = plotting.line(line())
    try:
        for _ in range(2):  # a second call opens no second window
            fig.show()
            assert len(pyplot.get_fignums()) == 1
        assert pyplot.gcf() is fig
        assert len(shown) == 2
    finally:
        pyplot.close("all")


def test_a_very_high_figure_can_be_written():
    fig = new_figure(3.5, 205)  # the layers of a network with 1,200 modules
    assert fig.dpi * fig.get_figheight() <= 30_001
    assert new_figure(3.5, 2.7).dpi == 300
