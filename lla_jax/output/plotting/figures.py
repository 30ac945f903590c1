"""The figure that plotting functions return: matplotlib's own, which notebooks show as well."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import figure as _figure

from lla_jax.core.arguments import Misuse, misuse
from lla_jax.core.interrupts import GRACE_S, prompt_interrupts
from lla_jax.core.notebooks import in_notebook

DPI = 300
ON_SCREEN = 144  # pixels per inch in a notebook: one column of 3.5 in has 504, and letters of 7 points can be read
_MOST = 30_000  # pixels along a side; matplotlib refuses 65,536 and more


class Figure(_figure.Figure):
    """A figure that pyplot does not know: nothing is kept open, and no backend is chosen or needed.

    In a notebook it is shown once, as the last value of a cell or by ``display(fig)``. Elsewhere ``savefig`` writes it,
    and ``show`` opens a window where there is a screen.
    """

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """What a notebook shows: the picture, and the size on the screen."""
        file = io.BytesIO()
        super().savefig(file, format="png", dpi=2 * ON_SCREEN)  # sharp on screens of both densities
        width, height = (round(ON_SCREEN * inches) for inches in self.get_size_inches())
        return file.getvalue(), {"width": width, "height": height}

    def savefig(self, fname: Any = None, *args: Any, **kwargs: Any) -> None:
        """Write the figure, as matplotlib does; the suffix of ``fname``, or ``format``, chooses the kind of file.

        Raises:
          ValueError: another type than a path or an open file, a folder that is not there, an unknown suffix, options
            that matplotlib refuses.
        """
        if not hasattr(fname, "write") and not hasattr(fname, "savefig"):  # an open file, or the pages of a PDF
            _check_path(fname, kwargs.get("format"), self.canvas.get_supported_filetypes())
        try:
            with prompt_interrupts(GRACE_S):  # rather than leave half of a file
                super().savefig(fname, *args, **kwargs)
        except (TypeError, ValueError) as error:
            if not (args or kwargs):
                raise
            options = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
            example = 'fig.savefig("picture.png", dpi=200)'
            raise Misuse("savefig", f"matplotlib refuses ({options}): {error}; such as {example}") from error

    def show(self, warn: bool = True) -> None:
        """Show the figure: in a notebook below the cell, elsewhere in a window, by pyplot, until it is closed.

        Args:
          warn: as matplotlib has it; without effect.

        Raises:
          ValueError: there is neither a notebook nor a window.
        """
        if in_notebook():
            from IPython.display import display

            display(self)
            return
        from matplotlib import pyplot
        from matplotlib.backends import backend_registry

        backend = matplotlib.get_backend()
        if backend_registry.resolve_backend(backend)[1] is None:
            raise Misuse(
                "show",
                f"matplotlib's backend {backend!r} opens no window; save the figure, "
                'fig.savefig("picture.png"), or in a notebook make it the last value of a cell',
            )
        if self.canvas.manager is None:
            _manage(self)
        pyplot.show()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, at the resolution of print unless that makes too large a picture."""
    dpi = min(DPI, _MOST / max(width, height))
    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def _check_path(fname: Any, kind: Any, known: Any) -> None:
    """Refuse a path that matplotlib cannot write to, before anything is drawn."""
    text = os.fspath(fname) if isinstance(fname, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise misuse("fname", fname, 'a path, such as "picture.png", or an open binary file')
    path = Path(text)
    suffix = path.suffix[1:].lower() if kind is None else str(kind).lower()
    if suffix and suffix not in known:
        name, value = ("fname", str(fname)) if kind is None else ("format", kind)
        raise misuse(name, value, f"of a kind that matplotlib writes: {', '.join(sorted(known))}; such as picture.png")
    if path.is_dir():
        raise misuse("fname", str(fname), f"a file, and this is a folder; such as {path / 'picture.png'}")
    if not path.parent.is_dir():
        raise misuse("fname", str(fname), f"in a folder that exists; make {str(path.parent)!r}, or take another")


def _manage(fig: Figure) -> None:
    """Hand a figure to pyplot, which gives it a window."""
    from matplotlib import pyplot

    try:
        pyplot.figure(fig)
    except ValueError as error:  # matplotlib before 3.11
        raise Misuse(
            "show", 'a window needs matplotlib 3.11; install it, or save the figure, fig.savefig("picture.png")'
        ) from error
