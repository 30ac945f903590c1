"""Commands over a store: interruptions lose nothing, results are not computed twice, shards are merged."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import lla_jax as lla
from lla_jax.cli import main as cli
from lla_jax.landscape.store import writing as stored
from tests.cli.cases import TINY, run, stopping, tiny_run


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
    shutil.rmtree(tiny / "r/grid-000")
    assert tiny_run("--points", 5, "--out", "r") == 2
    assert "r/landscape.npz exists without the chunks it was made of" in capsys.readouterr().err


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


def test_a_refinement_is_continued_and_its_points_are_used_by_the_whole_grid(tiny, capsys, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(cli, "bar", stopping(60))
        assert tiny_run("--points", 21, "--out", "r", "--refine", 0.1) == 130
    assert "of at most 441 points are kept in r" in capsys.readouterr().err
    assert run("status", "r") == 0
    assert "of at most 441 points" in capsys.readouterr().out
    assert tiny_run("--points", 21, "--out", "r", "--refine", 0.1) == 0
    said, plane = capsys.readouterr().out, lla.load("r/landscape.npz")
    assert f"21 x 21 points; {plane.evaluated.sum()} of 441 points evaluated, the rest within" in said
    assert run("merge", "r", "--out", "merged") == 0
    np.testing.assert_array_equal(lla.load("merged/landscape.npz")["loss"], plane["loss"])
    assert tiny_run("--points", 21, "--out", "r") == 0
    whole = lla.load("r/landscape.npz")
    assert whole.evaluated is None
    np.testing.assert_array_equal(whole["loss"][plane.evaluated], plane["loss"][plane.evaluated])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--refine", "2"], "--refine: 2.0 given; it must be above 0 and below 1"),
        (["--refine", "0.1", "--shard", "1/2"], "--refine: given with --shard"),
    ],
)
def test_a_wrong_refinement_is_refused(words, message, tiny, capsys):
    assert tiny_run(*words) == 2
    assert message in capsys.readouterr().err


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


def test_status_and_merge_of_no_store_say_so(tiny, capsys):
    for verb in ("status", "merge"):
        assert run(verb, ".") == 2
        assert "error: . holds no store" in capsys.readouterr().err
    assert tiny_run("--shard", "1/2", "--overwrite") == 2
    assert "--overwrite: given with --shard; it would remove what the other shards computed" in capsys.readouterr().err


def test_without_out_another_landscape_gets_a_folder_of_its_own(tiny, capsys):
    line, gradient = ("--dims", 1, "--points", 3), ("--dims", 1, "--points", 3, "--normalize", "layer")
    assert tiny_run(*line) == 0
    assert tiny_run(*gradient) == 0
    assert "run was made with other options; this landscape is kept in run-2" in capsys.readouterr().err
    assert tiny_run(*line) == 0  # each command finds its own again
    assert tiny_run(*gradient, factory="make()") == 0
    assert tiny_run("--dims", 1, "--points", 5) == 0  # a denser grid continues
    assert sorted(path.name for path in tiny.glob("run*")) == ["run", "run-2"]
    assert lla.load("run/landscape.npz").shape == (5,)
    assert lla.load("run-2/landscape.npz").recipe["directions"]["normalize"][0]["by"] == "layer"
    assert tiny_run(*gradient, "--overwrite") == 0  # its own, not the other one's
    assert sorted(path.name for path in tiny.glob("run*")) == ["run", "run-2"]
    assert lla.load("run/landscape.npz").shape == (5,)


def test_overwriting_that_is_killed_leaves_what_the_next_command_understands(tiny, capsys, monkeypatch):
    assert tiny_run("--points", 3, "--out", "r") == 0
    shutil.copytree("r", "whole")
    kept, real, left = {"landscape.npz", "00000.npz", "manifest.json", "command.json"}, os.unlink, []

    def unlink(path, **options):
        if pathlib.Path(path).name in kept:
            if not left:
                raise KeyboardInterrupt
            left.pop()
        real(path, **options)

    (tiny / "tiny_problem.py").write_text(TINY.replace("- y) ** 2", "- y) ** 4"))
    sys.modules.pop("tiny_problem", None)
    codes = []
    for done in range(len(kept)):  # files that are removed before the kill
        shutil.rmtree("r")
        shutil.copytree("whole", "r")
        left[:] = [None] * done
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", unlink)
            assert tiny_run("--points", 3, "--out", "r", "--overwrite") == 130
        capsys.readouterr()
        codes.append(tiny_run("--points", 3, "--out", "r"))
        assert codes[-1] == 0 or "r was made with other functions (loss or metrics)" in capsys.readouterr().err
    assert codes == [2, 2, 2, 0]
    found = lla.load("r/landscape.npz").values["loss"]
    assert tiny_run("--points", 3, "--out", "new") == 0
    np.testing.assert_array_equal(found, lla.load("new/landscape.npz").values["loss"])


def test_damaged_settings_are_written_anew_and_a_store_is_merged_into_another_folder(tiny, capsys):
    assert tiny_run("--points", 3, "--out", "r") == 0
    settings = tiny / "r/command.json"
    sound = settings.read_text()
    settings.write_text(sound.replace('"seed": "0"', '"seed": "1"'))
    assert tiny_run("--points", 3, "--out", "r") == 0
    assert settings.read_text() == sound
    before = sorted(path.name for path in (tiny / "r").iterdir())
    assert run("merge", "r", "--out", "elsewhere") == 0
    assert sorted(path.name for path in (tiny / "r").iterdir()) == before
    found, right = (lla.load(f"{folder}/landscape.npz").values["loss"] for folder in ("elsewhere", "r"))
    np.testing.assert_array_equal(found, right)
    for out in ("", " "):
        for words in (["merge", "r", "--out", out], ["status", out]):
            with pytest.raises(SystemExit):
                run(*words)
            assert "it must be a path" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            tiny_run("--points", 3, "--out", out)
