"""The command line: help without jax, verbs on a tiny problem, mistakes as one message, interrupts lose nothing."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import types

import numpy as np
import pytest

import lla_jax as lla
from lla_jax.cli import main as cli
from lla_jax.cli import terminal as _terminal
from lla_jax.core import text as _text
from lla_jax.landscape.store import writing as stored

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

def deep():
    import json
    json.loads("{")

def leaves():
    raise SystemExit("usage: train.py")

def needs(data, *, size, seed=0):
    return make()

def shifted(by=-100.0):
    problem = make()
    return lla.Problem(lambda p, b: squares(p, b) + by, problem.params, problem.data)

def with_state():
    problem = make()
    loss = lla.Loss(lambda p, s, b, train: (b[0] @ p["layer"]["kernel"], s), lambda o, b: (o - b[1]) ** 2, np.ones(2))
    return lla.Problem(loss, problem.params, problem.data, checkpoints=problem.checkpoints)

def steep():
    return shifted(1e-4)

def wrong_shapes():
    return lla.Problem(lambda p, b: (b[0].T @ p["layer"]["kernel"]).sum(), make().params, make().data)

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
    for name in ("tiny_problem", "problem_tiny_problem"):
        sys.modules.pop(name, None)


def run(*arguments):
    return cli.main([str(a) for a in arguments])


def tiny_run(*arguments, factory="make"):
    return run("landscape", "--problem", f"tiny_problem:{factory}", *arguments)


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


def test_environment_is_set_once_and_never_over_the_users(tmp_path, monkeypatch):
    monkeypatch.undo()
    code = (
        "import json, os; from lla_jax.cli import terminal as t; t.prepare_jax(1); print(json.dumps(dict(os.environ)))"
    )

    def environment(**extra):
        base = {k: v for k, v in os.environ.items() if not k.startswith(("JAX", "XLA", "XDG"))}
        return json.loads(subprocess.check_output([sys.executable, "-c", code], env={**base, **extra}))

    ours = environment(HOME=str(tmp_path), XLA_FLAGS="--xla_dump_to=x")
    assert ours["XLA_FLAGS"] == "--xla_dump_to=x --xla_force_host_platform_device_count=1"
    assert ours["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / ".cache" / "lla_jax")
    assert ours["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0"
    assert environment(XDG_CACHE_HOME="/c")["JAX_COMPILATION_CACHE_DIR"] == "/c/lla_jax"
    theirs = {"XLA_FLAGS": "--xla_force_host_platform_device_count=7", "JAX_COMPILATION_CACHE_DIR": "/d"}
    assert theirs.items() <= environment(**theirs).items()
    assert 1 <= _terminal.cores() <= os.cpu_count()


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
    ranges = cli.ranges(cli.LandscapeOptions("", axes="adam", rule="adam", extent=2.0))
    assert ranges == [(-2.0, 2.0), (0.1, 2.0)]  # b as in runs.all_modes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--problem", "tiny_problem"], "must be MODULE:FUNCTION"),
        (["--problem", "no_such_module:make"], "no module 'no_such_module'"),
        (["--problem", "tiny_problem.part:make"], "no module 'tiny_problem.part'"),
        (["--problem", "absent.py:make"], "there is no file absent.py"),
        (["--problem", "needs_missing.py:make"], r"importing it failed: ModuleNotFoundError.*needs_missing.py:1\)"),
        (["--problem", "tiny_problem:needs"], "must take no arguments, but needs needs data, size; give them defaults"),
        (["--problem", "tiny_problem:deep"], r"JSONDecodeError: .*tiny_problem.py:\d+\)\n\(--debug shows"),
        (["--problem", "tiny_problem:leaves"], "the factory failed: SystemExit: usage: train.py"),
        (["--problem", "tiny_problem:nothing"], "has no function 'nothing'"),
        (["--problem", "tiny_problem:number"], "returned int; it must return lla_jax.Problem"),
        (["--problem", "tiny_problem:broken"], r"the factory failed: KeyError: 'missing' \(.*tiny_problem.py:\d+\)"),
        (["--problem", "needs_missing:make"], r"importing it failed: ModuleNotFoundError.*needs_missing.py:1\)"),
        (["--problem", "tiny_problem:diverged"], "params"),
        (["--problem", "tiny_problem:make", "--select", "nothing/*"], "layer/kernel"),
        (["--problem", "tiny_problem:make", "--axes", "adam"], "needs Problem.opt_state"),
        (["--problem", "tiny_problem:make", "--axes", "checkpoints"], "needs 2 entries in Problem.checkpoints"),
        (["--problem", "tiny_problem:make", "--axes", "checkpoints", "--normalize", "filter"], "leave --normalize out"),
        (["--problem", "tiny_problem:make", "--axes", "adam", "--rule", "adam", "--normalize", "layer"], "as they"),
        (["--problem", "tiny_problem:make", "--rule", "adam"], "needs --axes adam --dims 2"),
        (["--problem", "tiny_problem:make", "--points", "1", "2", "3"], "--points has 3 numbers"),
        (["--problem", "tiny_problem:make", "--points", "0"], "--points 0 must be at least 1"),
        (["--problem", "tiny_problem:make", "--range", "0", "1"], "--range has 1 pairs"),
        (["--problem", "tiny_problem:make", "--range", "0", "1", "0", "1", "--extent", "2"], "give one of them"),
        (["--problem", "tiny_problem:make", "--extent", "-1"], "must be a positive number"),
        (["--problem", "tiny_problem:make", "--batch-stats", "reestimate"], "--batch-stats: 'reestimate' given;"),
        (["--problem", "tiny_problem:make", "--devices", "99"], r"--devices 99 must be 1 to \d+, the number of CPU"),
        (["--problem", "tiny_problem:make", "--devices", "0"], "--devices 0 must be 1 to"),
    ],
)  # fmt: skip
def test_mistakes_are_one_message_and_exit_code_2(arguments, says, capsys):
    assert run("landscape", *arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "lla-jax: error: " in said
    assert re.search(says, said, re.DOTALL), said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--cap", "nan"], "--cap nan must be a finite number"),
        (["--cap", "0", "--log"], "--cap 0 must be a finite number above 0, with --log"),
        (["--cap", "3", "--dims", "1"], "--cap 3 does nothing: it caps planes"),
        (["--log", "--no-log"], "--log and --no-log contradict"),
        (["--normalize", "none", "--order", "2"], "--order 2 does nothing: --normalize none takes no norm"),
        (["--normalize", "weight", "--order", "1"], "--order 1 does nothing"),
        (["--axes", "checkpoints", "--dims", "1", "--order", "1"], "--order 1 does nothing"),
        (["--normalize", "none", "--one-dim", "zero"], "--one-dim zero does nothing with --normalize none"),
        (["--normalize", "model", "--one-dim", "entry"], "--one-dim entry does nothing with --normalize model"),
        (["--axes", "checkpoints", "--dims", "1", "--seed", "3"], "--seed 3 does nothing"),
        (["--range", "0", "0", "0", "1"], "--range 0 0 must be two finite numbers, the lower one first"),
        (["--axes", "adam", "--rule", "adam", "--range", "0", "1", "0", "1"], "b, must be above 0"),
        (["--batch-size", "0"], "--batch-size 0 must be at least 1"),
    ],
)  # fmt: skip
def test_options_without_sense_are_refused_before_anything_is_built(arguments, says, capsys):
    assert tiny_run("--out", "r", *arguments) == 2
    assert says in capsys.readouterr().err
    assert "tiny_problem" not in sys.modules


def test_problem_may_be_a_file_with_modules_beside_it(tiny):
    (tiny / "sub").mkdir()
    (tiny / "sub" / "my-net.py").write_text("import beside\nmake = beside.make\n")
    (tiny / "sub" / "beside.py").write_text("import tiny_problem\nmake = tiny_problem.make\n")
    (tiny / "sub" / "tiny_problem.py").write_text(TINY)
    for path in ("sub/my-net.py", "./sub/my-net.py", str(tiny / "sub" / "my-net.py"), "tiny_problem.py"):
        assert run("landscape", "--problem", f"{path}:make", "--dims", 1, "--points", 3, "--out", "r") == 0
    for name in ("my-net", "beside"):
        del sys.modules[name]
    assert tiny_run("--dims", 1, "--points", 3, "--out", "r") == 0  # the same network by another name


def test_errors_of_the_users_loss_are_one_message(capsys):
    assert tiny_run("--points", 3, factory="wrong_shapes") == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert re.search(r"^lla-jax: error: TypeError: .*tiny_problem.py:\d+\)\n\(--debug", said, re.DOTALL | re.MULTILINE)
    with pytest.raises(TypeError):
        tiny_run("--points", 3, "--debug", factory="wrong_shapes")


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
    assert "--log needs values above 0 (loss: -9" in note
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


def test_checkpoints_of_a_model_with_state_ask_for_reestimation(capsys):
    command = ("landscape", "--problem", "tiny_problem:with_state", "--axes", "checkpoints", "--dims", 1, "--points", 3)
    assert run(*command) == 0
    assert "note: the model has state" in capsys.readouterr().err


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
    arguments = ("--points", 61, "--out", "r")
    with monkeypatch.context() as patch:
        patch.setattr(cli, "bar", stopping(after=500))
        patch.setattr(stored, "CHUNK_S", 1e-3)
        assert tiny_run(*arguments) == 130
    said = capsys.readouterr().err
    assert "lla-jax: plan: 61 x 61 points" in said
    assert "expected time" in said
    assert "of 3,721 points are kept in r; the same command continues it" in said
    assert not (tiny / "r/landscape.npz").exists()
    assert not list((tiny / "r").rglob("*.tmp"))
    assert run("status", "r") == 0
    done = int(capsys.readouterr().out.split(" of ")[0].split()[-1].replace(",", ""))
    assert 500 <= done < 3721

    # another command does not mix its points into these
    assert tiny_run(*arguments, "--seed", 1) == 2
    assert "r was made with other options: seed 0 -> 1\nchoose" in capsys.readouterr().err
    assert tiny_run(*arguments, factory="another") == 2
    assert "was made with other data, parameters\nchoose another --out, or --overwrite it" in capsys.readouterr().err

    assert run("merge", "r") == 2
    assert re.search(r"error: r is not complete, it lacks .* with --partial\n", capsys.readouterr().err)
    assert run("merge", "r", "--partial") == 0
    partial = lla.load("r/landscape.partial.npz")
    assert np.isfinite(partial.values["loss"]).sum() == done
    assert not partial.recipe["complete"]
    assert (tiny / "r/landscape.partial-surface.png").exists()
    assert tiny_run(*arguments) == 0
    assert not list((tiny / "r").glob("*partial*"))
    assert tiny_run("--points", 61, "--out", "whole") == 0
    resumed, whole = (lla.load(f"{folder}/landscape.npz").values["loss"] for folder in ("r", "whole"))
    np.testing.assert_array_equal(resumed, whole)


def test_finished_result_is_kept_unless_overwritten(tiny, capsys, monkeypatch):
    assert tiny_run("--points", 3, "--out", "r") == 0
    before = lla.load("r/landscape.npz")
    with monkeypatch.context() as patch:
        patch.setattr(cli, "bar", stopping(after=0))  # would interrupt any computation
        assert tiny_run("--points", 3, "--out", "r", "--log") == 0
    (tiny / "tiny_problem.py").unlink()  # what differs is found before anything is built
    del sys.modules["tiny_problem"]
    capsys.readouterr()
    other = ("--points", 5, 5, "--normalize", "layer", "--select", "**/kernel", "--batch-size", 8)
    assert tiny_run("--out", "r", *other) == 2
    assert capsys.readouterr().err == (
        "lla-jax: error: r was made with other options: normalize filter -> layer, select all -> **/kernel, "
        "batch-size all -> 8\n"
        "choose another --out, or --overwrite it\n(--debug shows where it comes from)\n"
    )
    (tiny / "tiny_problem.py").write_text(TINY.replace("- y) ** 2", "- y) ** 4"))
    assert tiny_run("--points", 3, "--out", "r") == 2
    assert "was made with other functions (loss or metrics)" in capsys.readouterr().err
    np.testing.assert_array_equal(lla.load("r/landscape.npz").values["loss"], before.values["loss"])
    assert tiny_run("--points", 5, "--out", "r", "--overwrite") == 0
    assert lla.load("r/landscape.npz").shape == (5, 5)
    (tiny / "r/manifest.json").write_text('{"name": "an app of mine"}')
    assert tiny_run("--points", 5, "--out", "r", "--overwrite") == 2
    assert "error: r/manifest.json is of another program" in capsys.readouterr().err
    assert tiny_run("--points", 5, "--out", "r") == 2
    assert "error: r/manifest.json is of format None" in capsys.readouterr().err
    (tiny / "r/manifest.json").unlink()
    assert tiny_run("--points", 5, "--out", "r") == 2
    assert "r/landscape.npz is there without the chunks it was made of" in capsys.readouterr().err


def test_shards_meet_in_a_folder_and_a_denser_grid_reuses_their_points(tiny, capsys):
    assert tiny_run("--points", 9, "--out", "whole") == 0
    capsys.readouterr()
    for i in (2, 1):
        assert tiny_run("--points", 9, "--out", "r", "--shard", f"{i}/3") == 0
        said = capsys.readouterr().out
        assert f"Shard {i}/3 is finished" in said
        assert "lla-jax merge r" in said
        assert not (tiny / "r/landscape.npz").exists()
    assert run("status", "r") == 0
    assert "writer " in capsys.readouterr().out
    assert tiny_run("--points", 9, "--out", "r", "--shard", "3/3") == 0
    assert run("merge", "r") == 0
    merged, whole = (lla.load(f"{folder}/landscape.npz") for folder in ("r", "whole"))
    np.testing.assert_allclose(merged.values["loss"], whole.values["loss"], rtol=1e-6)
    capsys.readouterr()
    assert tiny_run("--points", 17, "--out", "r") == 0
    assert "r has or leaves to other processes 81 of 289 points" in capsys.readouterr().err
    np.testing.assert_array_equal(lla.load("r/landscape.npz").values["loss"][::2, ::2], merged.values["loss"])


def test_the_array_job_of_the_documentation_runs(tiny):
    text = (pathlib.Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
    (script,) = (block for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if "#SBATCH --array" in block)
    (tiny / "job.sh").write_text(script.replace("my_module:my_function", "tiny_problem:make"))
    scripts = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    jobs = []
    for task in ("1", "2"):  # at once, as SLURM does
        task = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": "2", "PATH": scripts}
        jobs.append(subprocess.Popen(["bash", "-eu", "job.sh"], env=os.environ | task, cwd=tiny))
    assert [job.wait(timeout=300) for job in jobs] == [0, 0]
    assert run("merge", "runs/exp1") == 0
    plane = lla.load("runs/exp1/landscape.npz")
    assert plane.shape == (101, 101)
    assert plane.recipe["complete"]


@pytest.mark.parametrize("wrong", ["3", "0/3", "4/3", "a/b"])
def test_a_shard_that_is_none_is_refused(wrong, tiny, capsys):
    assert tiny_run("--shard", wrong) == 2
    assert f"--shard {wrong} must be I/N" in capsys.readouterr().err


def test_status_and_merge_of_no_store_say_so(tiny, capsys):
    for verb in ("status", "merge"):
        assert run(verb, ".") == 2
        assert "error: . holds no store" in capsys.readouterr().err
    assert tiny_run("--shard", "1/2", "--overwrite") == 2
    assert "--overwrite would remove what the other shards did" in capsys.readouterr().err


def test_plot_draws_again(tiny, capsys):
    assert tiny_run("--points", 5, "--out", "r") == 0
    assert run("plot", "r/landscape.npz", "--cap", 2, "--log", "--format", "svg", "--out", "pictures") == 0
    assert sorted(p.name for p in (tiny / "pictures").iterdir()) == ["landscape-contour.svg", "landscape-surface.svg"]
    capsys.readouterr()
    assert run("plot", "r/landscape.npz", "--value", "loss") == 0
    assert "r/landscape-contour.png" in capsys.readouterr().out
    assert run("plot", "r/landscape.npz", "--value", "accuracy") == 2
    assert "--value 'accuracy' is not in r/landscape.npz; it has loss" in capsys.readouterr().err
    assert run("plot", "r/landscape.npz", "--cap", "inf") == 2
    assert "--cap inf" in capsys.readouterr().err
    (tiny / "foreign.npz").write_text("not a zip")
    for file, what in {"foreign.npz": "is not a readable lla_jax result", "absent.npz": "does not exist"}.items():
        assert run("plot", file) == 2
        assert f"error: {file} {what}" in capsys.readouterr().err


def test_progress_announces_a_long_run(capsys, monkeypatch):
    clock = iter(np.arange(0.0, 1000.0, 2.0))
    monkeypatch.setattr(_terminal, "time", types.SimpleNamespace(monotonic=lambda: float(next(clock))))
    with _terminal.bar("landscape", estimate=True) as progress:
        for done in range(0, 101, 10):
            progress(done, 100)
    said = capsys.readouterr().err
    assert said.count("expected time: about 18 s for the other 90 points") == 1
    assert [_text.duration(s) for s in (40, 100, 7200)] == ["40 s", "2 min", "2.0 h"]
