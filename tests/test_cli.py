"""The command line: help without jax, verbs on a tiny problem, mistakes as one message, interrupts lose nothing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import types

import numpy as np
import pytest

import lla_jax as lla
from lla_jax import _terminal, cli

TINY = """
import numpy as np
import lla_jax as lla

CALLS = []

def squares(params, batch):
    x, y = batch
    return ((x @ params["layer"]["kernel"] + params["layer"]["bias"] - y) ** 2).mean()

def make(scale=1.0):
    CALLS.append(1)
    x = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    kernel = scale * np.array([1.0, -2.0, 0.5], np.float32)
    params = {"layer": {"kernel": kernel, "bias": np.full(1, 0.25, np.float32)}}
    other = {"layer": {"kernel": kernel + 1, "bias": np.zeros(1, np.float32)}}
    return lla.Problem(squares, params, (x, x @ kernel), checkpoints=[other])

def another():
    return make(2.0)

def number():
    return 3

def broken():
    return {}["missing"]

def diverged():
    problem = make()
    problem.params["layer"]["kernel"] = np.full(3, np.nan, np.float32)
    return problem
"""


@pytest.fixture(autouse=True)
def tiny(tmp_path, monkeypatch):
    """A module in the working folder, as a user would have it; gives the module's calls and the folder."""
    (tmp_path / "tiny_problem.py").write_text(TINY)
    (tmp_path / "needs_missing.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(cli, "prepare_jax", lambda devices: None)
    yield tmp_path
    sys.modules.pop("tiny_problem", None)


def run(*arguments):
    return cli.main([str(a) for a in arguments])


def tiny_run(*arguments, factory="make"):
    return run("landscape", "--problem", f"tiny_problem:{factory}", *arguments)


def test_help_is_immediate_and_imports_neither_jax_nor_matplotlib():
    code = (
        "import sys\nfrom lla_jax import cli\n"
        "try:\n    cli.main(sys.argv[1:])\nexcept SystemExit as e:\n    assert not e.code\n"
        "assert not {'jax', 'numpy', 'matplotlib', 'flax'} & sys.modules.keys(), sys.modules.keys()"
    )
    for arguments in ([], ["--help"], ["landscape", "--help"], ["demo", "--help"], ["plot", "--help"], ["--version"]):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=os.getcwd())
        assert done.returncode == 0, done.stderr
        assert "lla-jax" in done.stdout
        assert time.perf_counter() - start < 3  # 0.25 s on an idle machine


def test_environment_is_set_once_and_never_over_the_users(tmp_path, monkeypatch):
    monkeypatch.undo()
    code = "import json, os; from lla_jax import _terminal as t; t.prepare_jax(3); print(json.dumps(dict(os.environ)))"

    def environment(**extra):
        base = {k: v for k, v in os.environ.items() if not k.startswith(("JAX", "XLA", "XDG"))}
        return json.loads(subprocess.check_output([sys.executable, "-c", code], env={**base, **extra}))

    ours = environment(HOME=str(tmp_path), XLA_FLAGS="--xla_dump_to=x")
    assert ours["XLA_FLAGS"] == "--xla_dump_to=x --xla_force_host_platform_device_count=3"
    assert ours["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / ".cache" / "lla_jax")
    assert ours["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0"
    assert environment(XDG_CACHE_HOME="/c")["JAX_COMPILATION_CACHE_DIR"] == "/c/lla_jax"
    theirs = {"XLA_FLAGS": "--xla_force_host_platform_device_count=7", "JAX_COMPILATION_CACHE_DIR": "/d"}
    assert theirs.items() <= environment(**theirs).items()
    assert 1 <= _terminal._cores() <= os.cpu_count()


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
    problem = lla.Problem(None, {"w": w}, None, opt_state=state)
    moments = cli.make_axes(problem, cli.LandscapeOptions("", axes="adam", rule="adam"))
    np.testing.assert_array_equal(moments.tree["w"], [m, v])
    volume = cli.make_axes(problem, cli.LandscapeOptions("", axes="adam", dims=3))
    np.testing.assert_allclose(np.linalg.norm(volume.tree["w"], axis=1), [2, 2, 2], rtol=1e-6)
    ranges = cli._ranges(cli.LandscapeOptions("", axes="adam", rule="adam", extent=2.0))
    assert ranges == [(-2.0, 2.0), (0.2, 2.0)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--problem", "tiny_problem"], "must be MODULE:FUNCTION"),
        (["--problem", "no_such_module:make"], "no module 'no_such_module'"),
        (["--problem", "tiny_problem.part:make"], "no module 'tiny_problem.part'"),
        (["--problem", "tiny_problem:nothing"], "has no function 'nothing'"),
        (["--problem", "tiny_problem:number"], "returned int; it must return lla_jax.Problem"),
        (["--problem", "tiny_problem:broken"], r"the factory failed: KeyError: 'missing' \(.*tiny_problem.py:\d+\)"),
        (["--problem", "needs_missing:make"], r"importing it failed: ModuleNotFoundError.*needs_missing.py:1"),
        (["--problem", "tiny_problem:diverged"], "params"),
        (["--problem", "tiny_problem:make", "--select", "nothing/*"], "layer/kernel"),
        (["--problem", "tiny_problem:make", "--axes", "adam"], "needs Problem.opt_state"),
        (["--problem", "tiny_problem:make", "--axes", "checkpoints"], "needs 2 entries in Problem.checkpoints"),
        (["--problem", "tiny_problem:make", "--axes", "checkpoints", "--normalize", "filter"], "leave --normalize out"),
        (["--problem", "tiny_problem:make", "--axes", "adam", "--rule", "adam", "--normalize", "layer"], "as they"),
        (["--problem", "tiny_problem:make", "--rule", "adam"], "needs --axes adam --dims 2"),
        (["--problem", "tiny_problem:make", "--points", "1", "2", "3"], "--points has 3 numbers"),
        (["--problem", "tiny_problem:make", "--points", "0"], "0 points"),
        (["--problem", "tiny_problem:make", "--range", "0", "1"], "--range has 1 pairs"),
        (["--problem", "tiny_problem:make", "--range", "0", "1", "0", "1", "--extent", "2"], "give one of them"),
        (["--problem", "tiny_problem:make", "--extent", "-1"], "must be a positive number"),
        (["--problem", "tiny_problem:make", "--batch-stats", "reestimate"], "batch_stats"),
        (["--problem", "tiny_problem:make", "--devices", "99"], "devices"),
    ],
)  # fmt: skip
def test_mistakes_are_one_message_and_exit_code_2(arguments, says, capsys):
    assert run("landscape", *arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "lla-jax: error: " in said
    assert re.search(says, said, re.DOTALL), said


def test_debug_shows_the_traceback_and_unknown_options_are_refused():
    with pytest.raises(cli.Mistake):
        tiny_run("--debug", factory="nothing")
    with pytest.raises(SystemExit) as refused:
        tiny_run("--rule", "multiply")
    assert refused.value.code == 2


@pytest.mark.parametrize("verb", ["demo", "landscape"])
def test_unwritable_folder_is_found_before_computing(verb, tiny, capsys, monkeypatch):
    (tiny / "file").write_text("")
    problem = ["--problem", "tiny_problem:make"] if verb == "landscape" else []
    for out in ("file", "file/run"):
        assert run(verb, *problem, "--out", out) == 2
        assert f"--out {out} is not a folder that can be written to" in capsys.readouterr().err
    assert "tiny_problem" not in sys.modules


def stopping(after):
    """A progress bar during which the user presses Ctrl-C."""

    @contextlib.contextmanager
    def bar(label, unit="points", estimate=False):
        def progress(done, total):
            if done >= after:
                raise KeyboardInterrupt

        yield progress

    return bar


def test_interrupted_run_goes_on_with_the_same_command(tiny, capsys, monkeypatch):
    arguments = ("--points", 41, "--out", "r")
    with monkeypatch.context() as patch:
        patch.setattr(cli, "bar", stopping(after=500))
        assert tiny_run(*arguments) == 130
    said = capsys.readouterr().err
    assert "the same command continues it" in said
    assert not (tiny / "r/landscape.npz").exists()
    partial = lla.load("r/landscape.partial.npz")
    done = np.isfinite(partial.values["loss"]).sum()
    assert 500 <= done < 1681
    assert not partial.recipe["complete"]

    # another command does not mix its points into these
    assert tiny_run(*arguments, "--seed", 1) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert tiny_run(*arguments, factory="another") == 2

    assert tiny_run(*arguments) == 0
    assert not (tiny / "r/landscape.partial.npz").exists()
    assert tiny_run("--points", 41, "--out", "whole") == 0
    resumed, whole = (lla.load(f"{folder}/landscape.npz").values["loss"] for folder in ("r", "whole"))
    np.testing.assert_array_equal(resumed, whole)


def test_finished_result_is_kept_unless_overwritten(tiny, capsys, monkeypatch):
    assert tiny_run("--points", 3, "--out", "r") == 0
    before = lla.load("r/landscape.npz")
    with monkeypatch.context() as patch:
        patch.setattr(cli, "bar", stopping(after=0))  # would interrupt any computation
        assert tiny_run("--points", 3, "--out", "r", "--log") == 0
    assert tiny_run("--points", 5, "--out", "r") == 2
    np.testing.assert_array_equal(lla.load("r/landscape.npz").values["loss"], before.values["loss"])
    assert tiny_run("--points", 5, "--out", "r", "--overwrite") == 0
    assert lla.load("r/landscape.npz").shape == (5, 5)


def test_plot_draws_again(tiny, capsys):
    assert tiny_run("--points", 5, "--out", "r") == 0
    assert run("plot", "r/landscape.npz", "--cap", 2, "--log", "--format", "svg", "--out", "pictures") == 0
    assert sorted(p.name for p in (tiny / "pictures").iterdir()) == ["landscape-contour.svg", "landscape-surface.svg"]
    capsys.readouterr()
    assert run("plot", "r/landscape.npz", "--value", "loss") == 0
    assert "r/landscape-contour.png" in capsys.readouterr().out
    assert run("plot", "r/landscape.npz", "--value", "accuracy") == 2
    assert "'accuracy'" in capsys.readouterr().err
    (tiny / "foreign.npz").write_text("not a zip")
    for file in ("foreign.npz", "absent.npz"):
        assert run("plot", file) == 2
        assert file in capsys.readouterr().err


def test_progress_announces_a_long_run(capsys, monkeypatch):
    clock = iter(np.arange(0.0, 1000.0, 2.0))
    monkeypatch.setattr(_terminal, "time", types.SimpleNamespace(monotonic=lambda: float(next(clock))))
    with _terminal.bar("landscape", estimate=True) as progress:
        for done in range(0, 101, 10):
            progress(done, 100)
    said = capsys.readouterr().err
    assert said.count("expected time: about 18 s for the other 90 points") == 1
    assert [_terminal.duration(s) for s in (40, 100, 7200)] == ["40 s", "2 min", "2.0 h"]
