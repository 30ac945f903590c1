"""Draws the results of a command, and draws saved ones again for ``lla-jax plot``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lla_jax.cli.checks import check_pictures
from lla_jax.cli.environment import make_folder
from lla_jax.cli.options import Mistake, PlotOptions, mistake
from lla_jax.cli.settings import scale
from lla_jax.cli.terminal import print_note, print_results

if TYPE_CHECKING:
    from lla_jax.core.results import Landscape
    from lla_jax.paths.losses.barriers import Barrier

TRAINING = "training.npz"  # as in paths/training/stores.py, which needs jax


def plot(options: PlotOptions) -> None:
    """Draw a saved result again, or all results in a folder."""
    if options.file.is_dir():
        _plot_folder(options)
        return
    from lla_jax import load
    from lla_jax.core.results import Landscape

    try:
        saved = load(options.file)
    except FileNotFoundError as error:
        raise Mistake(f"{options.file} does not exist; pass a result that lla-jax or lla_jax.save wrote") from error
    if isinstance(saved, Landscape):
        _plot_landscape(saved, options)
        return
    picture = _picture_of(saved, options.file)
    if picture is None:
        raise Mistake(f"{options.file} holds {_describe(saved)}, which has no picture; {_remedy(saved)}")
    _plot(picture, saved, options)


def _plot_folder(options: PlotOptions) -> None:
    """Draw every result in a folder; those that have no picture are told."""
    from lla_jax import load
    from lla_jax.core.results import Landscape

    folder = options.file
    results: dict[Path, Any] = {}
    for path in sorted(folder.glob("*.npz")):
        if path.name == TRAINING or (path.name == "line.npz" and path.with_name("barrier.npz").exists()):
            continue  # no result, or drawn with another one
        try:
            results[path] = load(path)
        except (ValueError, OSError) as error:
            print_note(f"{path} is not drawn: {error}")
    pictures = {path: _picture_of(saved, path) for path, saved in results.items()}
    drawn = {p: x for p, x in results.items() if isinstance(x, Landscape) or pictures[p] is not None}
    if not drawn:
        is_store = (folder / "manifest.json").exists()
        remedy = f"lla-jax merge {folder} writes it" if is_store else "pass the --out of lla-jax landscape or hessian"
        raise Mistake(f"{folder} holds no result (.npz) that has a picture; {remedy}")
    for path, saved in drawn.items():
        picture = pictures[path]
        if picture is None:
            _plot_landscape(saved, replace(options, file=path))
        else:  # the options of the pictures are for the landscapes
            _plot(picture, saved, PlotOptions(path, options.out, format=options.format))


def _plot_landscape(saved: Landscape, options: PlotOptions) -> None:
    """Draw a landscape again, into --out or the folder of the file."""
    check_pictures(options, saved.dims)
    _check_value(options, saved, options.file)
    out = make_folder(options.out or options.file.parent)
    paths = draw(
        saved, out, options.file.stem, options.value, cap=options.cap, log=scale(options), suffix=options.format
    )
    if not paths:
        raise Mistake(f"{options.file} has no picture that could be drawn; the messages above say why")
    print_results(paths)


class Picture(NamedTuple):
    """The picture of a saved result.

    Args:
      name: of its file.
      draw: ``draw(options) -> figure``.
      reads: the options that it reads: some of "value", "cap" and "log".
    """

    name: str
    draw: Callable[[PlotOptions], Any]
    reads: tuple[str, ...] = ()


def _picture_of(saved: Any, path: Path) -> Picture | None:
    """The picture of a saved result other than a landscape; None if it has none."""
    from lla_jax.core.results import Eigenpairs, Spectrum
    from lla_jax.core.types import Directions
    from lla_jax.output import pictures, plotting
    from lla_jax.paths.curves import Curve
    from lla_jax.paths.losses.barriers import Barrier
    from lla_jax.paths.projection.projections import Projection

    match saved:
        case Eigenpairs() | Spectrum():
            return Picture(path.stem, lambda _: pictures.figure_of(saved))
        case Directions() if saved.recipe.get("kind") == "pca":
            return Picture(_name(path, "axes", "explained-variance"), lambda _: plotting.explained_variance(saved))
        case Projection():
            name = "curve" if "marks" in saved.recipe else "trajectory"
            draw = plotting.curve if "marks" in saved.recipe else plotting.trajectory
            return Picture(_name(path, "seen", name), partial(_on_plane, draw, saved), ("value", "cap", "log"))
        case Barrier():
            return Picture(path.stem, partial(_barriers, saved), ("value", "log"))
        case Curve(kind="band"):
            return Picture(_name(path, "curve", "band"), partial(_band, saved), ("log",))
    return None


def _name(path: Path, usual: str, name: str) -> str:
    """The name of a picture: that of the command that wrote the result, unless the file has a name of its own."""
    return name if path.stem == usual else f"{path.stem}-{name}"


def _on_plane(draw: Callable[..., Any], seen: Any, options: PlotOptions) -> Any:
    """The picture of a projection on the plane beside it."""
    from lla_jax import load

    file = options.file.with_name("plane.npz")
    if not file.exists():
        raise Mistake(f"{options.file} is drawn on the plane in {file}, which does not exist; put it beside the file")
    plane = load(file)
    _check_value(options, plane, file)
    log = choose_scale(plane, options.value, cap=options.cap, log=scale(options))
    return draw(plane, seen, options.value, cap=options.cap, log=log)


def _barriers(saved: Any, options: PlotOptions) -> Any:
    """The picture of a barrier, compared with that of the straight line if lla-jax connect has put it beside it."""
    from lla_jax import load
    from lla_jax.output import plotting

    line = options.file.with_name("line.npz")
    _check_value(options, saved, options.file)
    barriers = {"": saved}
    if options.file.stem == "barrier" and line.exists():
        barriers = {"line": load(line), saved.recipe["directions"]["curve"]: saved}
    log = choose_scale_along(barriers, options.value, log=scale(options))
    return plotting.barrier(saved if "" in barriers else barriers, options.value, log=log)


def _band(saved: Any, options: PlotOptions) -> Any:
    """The picture of a band, in the scale of the barriers that lla-jax connect has put beside it."""
    from lla_jax import load
    from lla_jax.output import plotting

    files = [options.file.with_name(f"{name}.npz") for name in ("line", "barrier")]
    beside = {file.stem: load(file) for file in files if file.exists()}
    return plotting.band(saved, log=choose_scale_along(beside, log=scale(options)))


def _check_value(options: PlotOptions, saved: Any, file: Path) -> None:
    """Refuse a name that a result does not have."""
    if options.value not in saved.values:
        raise mistake("value", repr(options.value), f"in {file}, which has {', '.join(saved.values)}")


def _plot(picture: Picture, saved: Any, options: PlotOptions) -> None:
    """Draw the picture of a saved result into --out or the folder of the file; options without effect are refused."""
    given = {
        "value": options.value != "loss",
        "cap": options.cap is not None,
        "log": options.log or options.no_log,
    }
    if useless := [name for name, is_given in given.items() if is_given and name not in picture.reads]:
        name = "no-log" if useless[0] == "log" and options.no_log else useless[0]
        kind = type(saved).__name__
        raise Mistake(f"--{name}: given, but it is for landscapes, and {options.file} holds {kind}; leave it out")
    check_pictures(options, 2)
    figure = picture.draw(options)
    path = make_folder(options.out or options.file.parent) / f"{picture.name}.{options.format}"
    figure.savefig(path)
    print_results([path], "Pictures")


def _describe(saved: Any) -> str:
    return f"{type(saved).__name__} of kind {saved.kind}" if hasattr(saved, "kind") else type(saved).__name__


def _remedy(saved: Any) -> str:
    """Which result has a picture in place of one that has none."""
    if hasattr(saved, "lengths"):
        return "its picture is that of seen.npz or barrier.npz in the same folder"
    return "pass a landscape, eigenpairs, a spectrum, a path or a barrier"


def film_of(out: Path, ending: str | None) -> Path:
    """The file of the film of a descent."""
    return out / f"descent.{ending}"


def choose_scale(result: Landscape, value: str = "loss", *, cap: float | None = None, log: bool | None = None) -> bool:
    """Whether pictures of a landscape are logarithmic, by the options or by its values; a note says so."""
    from lla_jax.output import pictures

    logarithmic, span = pictures.choose_scale(result, value, cap=cap, log=log)
    if log and not logarithmic:
        print_note(f"--log: given, but a logarithm needs values above 0 ({span}); the pictures are linear")
    elif log is None and logarithmic:
        print_note(f"the pictures are logarithmic ({span}); --no-log draws them linearly")
    return logarithmic


def choose_scale_along(barriers: Mapping[str, Barrier], value: str = "loss", *, log: bool | None) -> bool:
    """Whether values along curves, of all data sets, are drawn logarithmically: by the options or by their span."""
    import numpy as np

    from lla_jax.core.scales import spans_decades
    from lla_jax.paths.losses.barriers import Barrier

    known = [each.values for each in barriers.values() if isinstance(each, Barrier)]  # another one is refused later
    drawn = [z for values in known for name, z in values.items() if name == value or name.endswith(f"_{value}")]
    values = np.concatenate([np.zeros(0), *drawn])
    values = values[np.isfinite(values)]
    if log and values.min(initial=1.0) <= 0:
        print_note("--log: given, but a logarithm needs losses above 0; the pictures are linear")
        return False
    return spans_decades(values) if log is None else log


def draw(
    result: Landscape,
    out: Path,
    stem: str = "landscape",
    value: str = "loss",
    *,
    cap: float | None = None,
    log: bool | None = None,
    suffix: str = "png",
) -> list[Path]:
    """Save the pictures of a landscape, and return their paths; messages name options of the command line.

    Args, Returns: as for ``pictures.draw_landscape``; ``out`` is its ``folder``.
    """
    from lla_jax.output import pictures

    logarithmic = choose_scale(result, value, cap=cap, log=log)
    return pictures.draw_landscape(result, out, stem, value, cap=cap, log=logarithmic, suffix=suffix, report=print_note)


def print_numbers(result: Landscape) -> None:
    """Print the size of a landscape and the range of each of its values."""
    import numpy as np

    refined = result.describe_refinement()
    print(f"{' x '.join(map(str, result.shape))} points" + (f"; {refined}" if refined else ""))
    for name, values in result.values.items():
        finite = values[np.isfinite(values)]
        print(f"  {name}: {finite.min():.6g} to {finite.max():.6g}" if finite.size else f"  {name}: nowhere finite")
