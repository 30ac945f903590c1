"""What jax reads at its start is set, but never over the user; a folder that cannot be written is found at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from lla_jax.cli import environment
from tests.cli.cases import run


def test_environment_is_set_once_and_never_over_the_users(tmp_path, monkeypatch):
    monkeypatch.undo()
    code = (
        "import json, os; from lla_jax.cli.environment import prepare_jax; prepare_jax(1); "
        "print(json.dumps(dict(os.environ)))"
    )

    def prepared(**extra):
        base = {k: v for k, v in os.environ.items() if not k.startswith(("JAX", "XLA", "XDG"))}
        return json.loads(subprocess.check_output([sys.executable, "-c", code], env={**base, **extra}))

    ours = prepared(HOME=str(tmp_path), XLA_FLAGS="--xla_dump_to=x")
    assert ours["XLA_FLAGS"] == "--xla_dump_to=x --xla_force_host_platform_device_count=1"
    assert ours["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / ".cache" / "lla_jax")
    assert ours["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0"
    assert prepared(XDG_CACHE_HOME="/c")["JAX_COMPILATION_CACHE_DIR"] == "/c/lla_jax"
    theirs = {"XLA_FLAGS": "--xla_force_host_platform_device_count=7", "JAX_COMPILATION_CACHE_DIR": "/d"}
    assert theirs.items() <= prepared(**theirs).items()
    assert 1 <= environment.count_cores() <= os.cpu_count()


@pytest.mark.parametrize("verb", ["demo", "landscape"])
def test_unwritable_folder_is_found_before_computing(verb, tiny, capsys, monkeypatch):
    (tiny / "file").write_text("")
    problem = ["--problem", "tiny_problem:make"] if verb == "landscape" else []
    for out in ("file", "file/run"):
        assert run(verb, *problem, "--out", out) == 2
        assert f"--out: {out} given; it must be a folder that can be written to" in capsys.readouterr().err
    assert "tiny_problem" not in sys.modules
