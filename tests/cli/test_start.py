"""Ctrl-C ends the command line with one line and code 130: in imports, the user's code, pictures, and at its end."""

import os
import pathlib
import subprocess
import sys

import pytest

import lla_jax as lla
from tests.cli.cases import run, tiny_run

ROOT = pathlib.Path(lla.__file__).parents[1]
FACTORIES = """
import gc, os, signal, time
from tiny_problem import make

def press():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)

def at_once():
    press()
    time.sleep(20)

def in_the_garbage_collector():
    callback = lambda phase, info: press()
    gc.callbacks.append(callback)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(callback)
    time.sleep(20)

class Object:
    def __del__(self):
        press()

def in_del():
    Object()
    time.sleep(20)

def caught():
    try:
        press()
    except KeyboardInterrupt:
        print("exiting from training early")
    return make()

def another_error():
    try:
        press()
    except BaseException as error:
        raise ImportError("numpy failed to import") from error
"""


@pytest.fixture(autouse=True)
def factories(tiny):
    (tiny / "pressing.py").write_text(FACTORIES)
    (tiny / "stops_import.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n" + 9 * "len('')\n")
    yield
    for name in ("pressing", "stops_import"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "factory", ["at_once", "in_the_garbage_collector", "in_del", "caught", "another_error", "stops_import:make"]
)
def test_an_interrupt_of_the_users_code_is_never_lost(factory, tiny, capsys):
    spec = factory if ":" in factory else f"pressing:{factory}"
    assert run("landscape", "--problem", spec, "--points", 3, "--out", "r") == 130
    said = capsys.readouterr().err
    assert "lla-jax: interrupted" in said
    assert "Traceback" not in said
    assert not (tiny / "r/landscape.npz").exists()


def test_an_interrupt_while_pictures_are_drawn_leaves_the_result(tiny, capsys, monkeypatch):
    from lla_jax.output.plotting import figures

    class Interrupted(figures.Figure):
        def savefig(self, *args, **options):
            sys.modules["pressing"].press()

    monkeypatch.syspath_prepend(tiny)
    import pressing  # noqa: F401

    monkeypatch.setattr(figures.Figure, "savefig", Interrupted.savefig)
    assert tiny_run("--points", 3, "--out", "r") == 130
    assert (tiny / "r/landscape.npz").exists()
    assert "Traceback" not in capsys.readouterr().err


def start(code, *words, path=ROOT):
    environment = os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    code = f"{code}\nimport sys\nfrom lla_jax.cli.start import main\nsys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment, check=False
    )


def test_an_interrupt_during_the_first_imports_is_one_line(tiny):
    (tiny / "stub").mkdir()
    (tiny / "stub/tyro.py").write_text((tiny / "stops_import.py").read_text())
    done = start("", "status", "nowhere", path=tiny / "stub")
    assert (done.returncode, done.stderr.strip()) == (130, "lla-jax: interrupted")


def test_an_interrupt_at_the_end_of_the_process_ends_it_as_any_other():
    done = start("import atexit, os\natexit.register(lambda: os.kill(os.getpid(), 2))", "--version")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (130, f"lla-jax {lla.__version__}", "")
