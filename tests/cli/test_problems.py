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
