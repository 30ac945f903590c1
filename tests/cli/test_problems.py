"""The factory of a problem is found in modules and files."""

from __future__ import annotations

import sys

from tests.cli.cases import TINY, run, tiny_run


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


PLAIN = """
import argparse, os, sys
import tiny_problem

print("importing")
problem = tiny_problem.make()

def make():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=3)
    assert parser.parse_args().size == 3
    print("epoch 1")
    return tiny_problem.make()

def moves():
    os.chdir("elsewhere")
    return tiny_problem.make()
"""
LINE = ("--dims", 1, "--points", 3)


def test_a_script_sees_no_options_of_ours_and_prints_beside_the_results(tiny, capsys):
    (tiny / "plain.py").write_text(PLAIN)
    argv = list(sys.argv)
    assert run("landscape", "--problem", "plain.py:make()", *LINE, "--out", "r") == 0
    said = capsys.readouterr()
    assert "epoch 1" in said.err
    assert "building the problem: plain.py:make()() (your own code, which may train" not in said.err
    assert said.out.startswith("3 points\n")
    assert sys.argv == argv
    assert run("landscape", "--problem", "plain:problem", *LINE, "--out", "r") == 0  # the problem itself
    assert "building the problem" not in capsys.readouterr().err


def test_results_stay_in_their_folder_if_the_factory_goes_to_another(tiny):
    (tiny / "plain.py").write_text(PLAIN)
    (tiny / "elsewhere").mkdir()
    assert run("landscape", "--problem", "plain.py:moves", *LINE, "--out", "r") == 0
    assert (tiny / "r" / "landscape.npz").exists()
    assert not list((tiny / "elsewhere").iterdir())


def test_ctrl_c_in_a_factory_is_told_apart(tiny, capsys):
    (tiny / "plain.py").write_text("def make():\n    raise KeyboardInterrupt\n")
    assert run("landscape", "--problem", "plain.py:make", "--out", "r") == 130
    assert "make() was still building the problem; nothing is computed yet" in capsys.readouterr().err
