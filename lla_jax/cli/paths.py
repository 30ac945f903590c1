"""Shows where a training went for ``lla-jax path``: reads its checkpoints, and draws them on their own plane."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from lla_jax import paths
from lla_jax.cli import stores
from lla_jax.cli.checkpoints import read_path
from lla_jax.cli.drawing import choose_scale, film_of, print_numbers
from lla_jax.cli.environment import make_execution
from lla_jax.cli.errors import REMEDY
from lla_jax.cli.options import Mistake, PathOptions
from lla_jax.cli.planes import compute_plane
from lla_jax.cli.settings import path_settings, plane_points, scale
from lla_jax.cli.terminal import bar, print_message, print_results
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse
from lla_jax.core.recipes import Differs
from lla_jax.core.types import Directions, Loss, Problem
from lla_jax.output import kept, path_words, plotting, storage
from lla_jax.output.plotting import film_files
from lla_jax.paths.host_trees import has_floats
from lla_jax.paths.projection.projections import Projection
from lla_jax.paths.trajectories import Trajectory

SEEN, PARTIAL, PLANE = "seen.npz", "seen.partial.npz", "plane.npz"
RESULTS = (
    *(SEEN, PARTIAL, "axes.npz", "path.txt", "path.json", "trajectory.png", "explained-variance.png"),
    *("descent.gif", "descent.mp4", "descent.html"),
)


def show(problem: Problem, options: PathOptions) -> None:
    """Compute and draw what ``lla-jax path`` shows, into ``options.out``; what is there already is continued."""
    out, chosen = options.out, path_settings(options)
    if options.film is not None:
        _check_film(options)
    path = read_path(problem, options)
    loss = _loss_of_last(problem, path, options)
    axes = _components(path)
    stores.begin(out, chosen, options.overwrite, PLANE, RESULTS)
    seen = _project(problem, loss, path, axes, options)
    files = [storage.save(axes, out / "axes.npz"), storage.save(seen, out / SEEN)]
    words = path_words.describe_path(axes, seen), path_words.plain_path(axes, seen)
    files += path_words.write(out / "path", *words)
    print((out / "path.txt").read_text(encoding="utf-8"))
    grid = paths.grid_around(seen, options.margin, plane_points(options))
    plane = compute_plane(replace(problem, loss=loss), path[-1], axes, grid, options.batch_stats, options, chosen)
    files.append(storage.save(plane, out / PLANE))
    print_numbers(plane)
    print_results(files)
    print_results(_draw(axes, seen, plane, options), "Pictures")


def _check_film(options: PathOptions) -> None:
    """Refuse a film that could not be written, before anything is computed."""
    try:
        film_files.check_target(film_of(options.out, options.film))
    except Misuse as error:
        raise Mistake(f"--film: {options.film} given; {error.text.partition(', but ')[2] or error.text}") from error


def _loss_of_last(problem: Problem, path: Trajectory, options: PathOptions) -> Any:
    """The loss with the state of the last checkpoint, around which the plane lies."""
    loss = problem.loss
    if not isinstance(loss, Loss) or not jax.tree.leaves(loss.state):
        return loss
    if path.has_states:
        return replace(loss, state=_tree.align(path.state(-1), loss.state, "the state of the last checkpoint", "loss"))
    if options.batch_stats == "frozen" and has_floats(loss.state):
        what = "the files hold no states" if options.checkpoints else "Problem.states is empty"
        raise Mistake(
            f"--batch-stats: frozen given, and {what}, while the loss has a state of floats (BatchNorm), of which each "
            "checkpoint has its own; "
            + ("" if options.checkpoints else "set Problem.states, one for each of the checkpoints, or ")
            + "use --batch-stats reestimate or batch"
        )
    return loss


# --- what is computed


def _components(path: Trajectory) -> Directions:
    """The two largest principal components of the path, around its last checkpoint."""
    try:
        with bar("components", "checkpoints") as progress:
            return paths.pca(path, progress=progress)[0]
    except Misuse as error:
        if "num=2 given" not in error.text:
            raise
        reason = error.text.partition(", and num=2")[0]
        raise Mistake(f"--checkpoints: {reason}; a plane needs checkpoints that do not: name more of them") from error


def _project(problem: Problem, loss: Any, path: Trajectory, axes: Directions, options: PathOptions) -> Projection:
    """The projection, of which what the folder has already is not computed again."""
    file, partial = options.out / SEEN, options.out / PARTIAL

    def keep(seen: Projection) -> None:
        if kept.is_writer():
            storage.save(seen, partial)
            print_message(f"the losses so far are kept in {partial}; the same command continues it")

    def compute(resume: Projection | None) -> Projection:
        with bar("checkpoints") as progress:
            return paths.project(
                path,
                axes,
                params=path[-1],
                loss=loss,
                data=problem.data,
                batch_size=options.batch_size,
                batch_stats=options.batch_stats,
                metrics=dict(problem.metrics),
                extra_data=dict(problem.extra_data),
                curvature=options.curvature,
                curvature_every=options.every or 1,
                key=jax.random.key(options.seed) if options.curvature else None,
                execution=make_execution(options),
                progress=progress,
                on_partial=keep,
                resume=resume,
            )

    found = next((each for each in (partial, file) if each.exists()), None)
    if found is None:
        return compute(None)
    before = storage.load(found)
    if not isinstance(before, Projection):
        raise Mistake(f"{found} holds {type(before).__name__}, and not the path of a training; {REMEDY}")
    try:
        seen = compute(before)
    except Differs as error:
        if set(error.changed) != {"curvature"}:
            raise Mistake(f"{found} was made with other {', '.join(error.changed)}; {REMEDY}") from error
        seen = compute(None)  # its losses are few beside those of the plane
    except Misuse as error:
        if error.argument != "resume":
            raise
        raise Mistake(f"{found} {error.text}; {REMEDY}") from error
    partial.unlink(missing_ok=True)
    return seen


def _draw(axes: Directions, seen: Projection, plane: Any, options: PathOptions) -> list[Path]:
    """Draw the path, its shares and its film."""
    out = options.out
    look: dict[str, Any] = {"log": choose_scale(plane, cap=options.cap, log=scale(options)), "cap": options.cap}
    files = [out / "trajectory.png", out / "explained-variance.png"]
    plotting.trajectory(plane, seen, **look).savefig(files[0])
    plotting.explained_variance(axes).savefig(files[1])
    if options.film is not None:
        film = film_of(out, options.film)
        with bar("film", "frames") as progress:
            files.append(plotting.film(plane, seen, film, frames=options.frames or 60, progress=progress, **look))
    return files
