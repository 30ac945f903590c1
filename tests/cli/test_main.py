"""The verbs on a tiny problem, and help without jax."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import pytest

import lla_jax as lla
from lla_jax.cli import main as cli
from tests.cli.cases import run, tiny_run


def test_help_is_immediate_and_imports_neither_jax_nor_matplotlib():
    code = (
        "import sys\nfrom lla_jax.cli import main as cli\n"
        "try:\n    cli.main(sys.argv[1:])\nexcept SystemExit as e:\n    assert not e.code\n"
        "assert not {'jax', 'numpy', 'matplotlib', 'flax'} & sys.modules.keys(), sys.modules.keys()"
    )
    for arguments in ([], ["--help"], ["landscape", "--help"], ["demo", "--help"], ["plot", "--help"], ["--version"]):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=os.getcwd())
        assert done.returncode == 0, done.stderr
        assert "lla-jax" in done.stdout
        assert time.perf_counter() - start < 3  # 0.25 s on an idle machine


def test_landscape_saves_values_and_pictures(tiny, capsys):
    assert tiny_run("--points", 5, 3, "--range", -1, 1, 0, 2, "--out", "a/b", "--normalize", "layer", "--seed", 4) == 0
    plane = lla.load("a/b/landscape.npz")
    assert plane.shape == (5, 3)
    assert plane.recipe["complete"]
    np.testing.assert_allclose(plane.coords[1], [0, 1, 2])
    problem = sys.modules["tiny_problem"].make()
    axes = cli.make_axes(problem, cli.LandscapeOptions("", normalize="layer", seed=4))
    moved = lla.landscape.add(problem.params, axes.tree, np.array([0.5, 2.0], np.float32))
    np.testing.assert_allclose(plane.values["loss"][3, 2], problem.loss(moved, problem.data), rtol=1e-5)
    said = capsys.readouterr().out
    for name in ("landscape.npz", "landscape-surface.png", "landscape-contour.png"):
        assert (tiny / "a/b" / name).stat().st_size > 1000
        assert f"a/b/{name}" in said
    assert "loss: " in said
    assert not (tiny / "a/b/landscape.partial.npz").exists()


def test_precision_is_in_the_recipe_and_another_one_continues_on_a_cpu(tiny, capsys):
    same = ("--dims", 1, "--points", 5, "--out", "run")
    assert tiny_run(*same, "--precision", "high") == 0
    assert lla.load("run/landscape.npz").recipe["precision"]["matmul"] == "high"
    assert tiny_run(*same) == 0
    with pytest.raises(SystemExit):
        tiny_run(*same, "--precision", "float32")
    said = capsys.readouterr().err
    assert all(name in said for name in ("--precision", "highest", "high", "default"))


@pytest.mark.parametrize(
    ("arguments", "shape", "ends"),
    [
        (["--dims", 1, "--points", 9], (9,), (-1, 1)),
        (["--dims", 1, "--axes", "gradient", "--extent", 0.5, "--points", 9], (9,), (-0.5, 0.5)),
        (["--axes", "gradient", "--points", 3, "--log"], (3, 3), (-1, 1)),
        (["--dims", 1, "--axes", "checkpoints", "--points", 5], (5,), (-0.5, 1.5)),
        (
            ["--dims", 3, "--points", 3, "--select", "**/kernel", "--normalize", "model", "--order", 1],
            (3, 3, 3),
            (-1, 1),
        ),
    ],
)
def test_axes_dims_and_ranges(arguments, shape, ends):
    assert tiny_run("--out", "r", *arguments) == 0
    result = lla.load("r/landscape.npz")
    assert result.shape == shape
    assert (result.coords[0][0], result.coords[0][-1]) == ends
    if "checkpoints" in arguments:
        problem = sys.modules["tiny_problem"].make()
        at = [problem.loss(p, problem.data) for p in (problem.params, problem.checkpoints[0])]
        np.testing.assert_allclose(result.values["loss"][[1, 3]], at, rtol=1e-5)


def test_adam_axes_need_their_state_and_the_adam_rule_its_moments():
    import optax

    w, m, v = np.ones(4, np.float32), np.arange(4, dtype=np.float32), np.full(4, 0.5, np.float32)
    state = (optax.ScaleByAdamState(np.array(3), {"w": m}, {"w": v}),)
    problem = lla.Problem(lambda p, batch: 0.0, {"w": w}, None, opt_state=state)
    moments = cli.make_axes(problem, cli.LandscapeOptions("", axes="adam", rule="adam"))
    np.testing.assert_array_equal(moments.tree["w"], [m, v])
    volume = cli.make_axes(problem, cli.LandscapeOptions("", axes="adam", dims=3))
    np.testing.assert_allclose(np.linalg.norm(volume.tree["w"], axis=1), [2, 2, 2], rtol=1e-6)
    ranges = cli.ranges(cli.LandscapeOptions("", axes="adam", rule="adam", extent=2.0))
    assert ranges == [(-2.0, 2.0), (0.1, 2.0)]  # b as in runs.all_modes


def test_scale_of_the_pictures(tiny, capsys, monkeypatch):
    from lla_jax.output import plotting

    drawn = []
    contour, line = plotting.contour, plotting.line
    monkeypatch.setattr(plotting, "contour", lambda *a, **k: drawn.append(k["log"]) or contour(*a, **k))
    monkeypatch.setattr(plotting, "line", lambda *a, **k: drawn.append(k["log"]) or line(*a, **k))

    def said(*arguments, factory="steep", shape=(5, 5)):
        assert tiny_run("--points", 5, "--overwrite", "--out", "r", *arguments, factory=factory) == 0
        assert lla.load("r/landscape.npz").shape == shape
        assert len(list((tiny / "r").glob("*.png"))) == len(shape)
        return drawn.pop(), capsys.readouterr().err

    steep = ("--extent", 50)
    log, note = said(*steep)
    assert log
    assert re.search(r"the pictures are logarithmic \(loss: .* to .*\); --no-log draws them linearly", note)
    for options in (("--no-log",), ("--cap", 5.0)):
        log, note = said(*steep, *options)
        assert not log
        assert "note" not in note
    log, note = said(*steep, "--log")
    assert log
    assert "note" not in note
    # values that are not positive have no logarithm; the run is done all the same
    log, note = said("--log", "--cap", 5.0, factory="shifted")
    assert not log
    assert "--log: given, but a logarithm needs values above 0 (loss: -9" in note
    (tiny / "r/landscape-surface.png").unlink()
    (tiny / "r/landscape-contour.png").unlink()
    assert not said("--log", "--dims", 1, factory="shifted", shape=(5,))[0]


def test_a_plane_of_one_row_is_a_heat_map_and_a_failed_picture_loses_nothing(tiny, capsys, monkeypatch):
    assert tiny_run("--points", 5, 1, "--out", "r") == 0
    assert (tiny / "r/landscape-heatmap.png").exists()
    from lla_jax.output import plotting

    def broken(*arguments, **options):
        raise ValueError("no ink")

    monkeypatch.setattr(plotting, "heatmap", broken)
    assert tiny_run("--points", 5, 1, "--out", "r") == 0
    assert "no picture landscape-heatmap.png: no ink" in capsys.readouterr().err
    assert run("plot", "r/landscape.npz") == 2


def test_module_can_be_run():
    done = subprocess.run([sys.executable, "-m", "lla_jax", "--version"], capture_output=True, text=True)
    assert done.stdout == f"lla-jax {lla.__version__}\n"


@pytest.mark.parametrize("words", [["--help"], ["nonsense"], ["status", "."]])
def test_a_reader_who_leaves_ends_the_program_quietly(words, tmp_path):
    done = subprocess.run(
        [*("bash", "-c", '"$@" 2>&1 | true; echo ${PIPESTATUS[0]}', "-"), sys.executable, "-m", "lla_jax", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(lla.__file__).parents[1])},
    )
    assert done.stdout.strip() in ("141", "0", "2")
    assert done.stderr == ""


def test_help_is_printed_in_any_encoding():
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-m", "lla_jax", "help"], capture_output=True, text=True, env=env)
    assert done.returncode == 0
    assert "landscape" in done.stdout


def test_a_platform_that_is_not_there_is_named(monkeypatch, capsys):
    import jax

    monkeypatch.setenv("JAX_PLATFORMS", "gpu")
    monkeypatch.setattr(
        jax, "devices", lambda: (_ for _ in ()).throw(RuntimeError("no backend 'gpu' (set JAX_PLATFORMS"))
    )
    assert tiny_run("--points", 3, factory="wrong_shapes") == 2
    assert "JAX_PLATFORMS: 'gpu' given, and jax cannot start with it (no backend 'gpu')" in capsys.readouterr().err


def test_checkpoints_of_a_model_with_state_ask_for_reestimation(capsys):
    command = ("landscape", "--problem", "tiny_problem:with_state", "--axes", "checkpoints", "--dims", 1, "--points", 3)
    assert run(*command) == 0
    assert "note: the model has state" in capsys.readouterr().err


def test_plot_draws_again(tiny, capsys):
    assert tiny_run("--points", 5, "--out", "r") == 0
    assert run("plot", "r/landscape.npz", "--cap", 2, "--log", "--format", "svg", "--out", "pictures") == 0
    assert sorted(p.name for p in (tiny / "pictures").iterdir()) == ["landscape-contour.svg", "landscape-surface.svg"]
    capsys.readouterr()
    assert run("plot", "r/landscape.npz", "--value", "loss") == 0
    assert "r/landscape-contour.png" in capsys.readouterr().out
    assert run("plot", "r/landscape.npz", "--value", "accuracy") == 2
    assert "--value: 'accuracy' given; it must be in r/landscape.npz, which has loss" in capsys.readouterr().err
    assert run("plot", "r/landscape.npz", "--cap", "inf") == 2
    assert "--cap: inf given" in capsys.readouterr().err
    (tiny / "r/mine.npz").write_text("not a zip")
    for path in (tiny / "r").glob("*.png"):
        path.unlink()
    assert run("plot", "r") == 0  # all that is in the folder
    assert "r/mine.npz is not drawn" in capsys.readouterr().err
    assert len(list((tiny / "r").glob("*.png"))) == 2
    (tiny / "foreign.npz").write_text("not a zip")
    for file, what in {"foreign.npz": "is not a readable lla_jax result", "absent.npz": "does not exist"}.items():
        assert run("plot", file) == 2
        assert f"error: {file} {what}" in capsys.readouterr().err
