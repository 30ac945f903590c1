"""Ctrl-C between steps: real signals, once and twice, nested, from threads, and the handler put back."""

import contextlib
import gc
import importlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core import interrupts
from lla_jax.core.interrupts import check_interrupt, deferred_interrupts, prompt_interrupts, wait
from tests.helpers import FIXED, ONE, dataset, mlp_loss, params


def press():
    """Ctrl-C, and time for Python to see it."""
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)


@pytest.fixture(autouse=True)
def default_handler():
    """Every test begins and ends with Python's own handler."""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_waits_for_the_end_of_its_step():
    begun, ended = [], []

    def loop():
        with deferred_interrupts() as check:
            while True:
                check()
                begun.append(1)
                if len(begun) == 3:
                    press()
                ended.append(1)

    with pytest.raises(KeyboardInterrupt):
        loop()
    assert len(begun) == len(ended) == 3


def test_nothing_happens_without_an_interrupt():
    with deferred_interrupts() as check:
        check()
        check()


def test_an_interrupt_after_the_last_check_acts_on_leaving():
    ended = []

    def work():
        with deferred_interrupts() as check:
            check()
            press()
            ended.append(1)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert ended


def test_an_error_in_the_block_is_the_context_of_an_interrupt():
    def work(interrupted):
        with deferred_interrupts():
            if interrupted:
                press()
            raise RuntimeError("lost connection")

    with pytest.raises(KeyboardInterrupt) as caught:
        work(True)
    assert isinstance(caught.value.__context__, RuntimeError)
    with pytest.raises(RuntimeError, match="lost connection"):
        work(False)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_second_interrupt_acts_at_once(depth):
    reached = []

    def work():
        with contextlib.ExitStack() as stack:
            for _ in range(depth):
                stack.enter_context(deferred_interrupts())
            press()
            reached.append("after one")
            press()
            reached.append("after two")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["after one"]


def test_an_interrupt_that_was_handled_is_forgotten():
    with deferred_interrupts() as check:
        press()
        with pytest.raises(KeyboardInterrupt):
            check()
        check()


def test_blocks_inside_one_another_share_the_flag():
    reached = []

    def work():
        with deferred_interrupts():
            with deferred_interrupts():
                press()
            reached.append("the inner block is left")
            with deferred_interrupts() as check:
                check()
            reached.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["the inner block is left"]


def test_an_interrupt_sent_by_a_thread_reaches_the_loop():
    sender = threading.Timer(0.05, press)

    def loop():
        with deferred_interrupts() as check:
            while sender.is_alive() or time.monotonic() < end:
                check()
                time.sleep(0.001)

    end = time.monotonic() + 20
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        loop()
    sender.join()


def test_a_block_in_another_thread_leaves_the_handler_alone():
    seen = []

    def work():
        with deferred_interrupts() as check:
            seen.append(signal.getsignal(signal.SIGINT))
            check()

    with deferred_interrupts():
        outer = signal.getsignal(signal.SIGINT)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == [outer]


def test_a_handler_of_the_user_is_called_between_steps():
    called = []
    signal.signal(signal.SIGINT, lambda number, frame: called.append(number))
    try:
        with deferred_interrupts() as check:
            press()
            assert not called
            check()
            assert called == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


FORK = """
import os, signal, sys
from lla_jax.core.interrupts import deferred_interrupts
with deferred_interrupts():
    if not (child := os.fork()):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(1)
        except KeyboardInterrupt:
            os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_has_no_step_to_wait_for():
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(lla.__file__).parents[1])}
    assert not subprocess.run([sys.executable, "-c", FORK], env=environment, check=False).returncode


def test_a_handler_is_put_back_where_its_installation_was_interrupted(monkeypatch):
    install = signal.signal

    def interrupted(number, handler):
        before = install(number, handler)
        if handler is not signal.default_int_handler:
            press()
        return before

    monkeypatch.setattr(signal, "signal", interrupted)
    with pytest.raises(KeyboardInterrupt), prompt_interrupts():
        raise AssertionError("was not interrupted")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL], ids=["ignored", "the system's"])
def test_without_a_handler_of_python_nothing_is_changed(handler):
    signal.signal(signal.SIGINT, handler)
    try:
        with deferred_interrupts() as check:
            assert signal.getsignal(signal.SIGINT) is handler
            check()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def swallowed_by_gc():
    """Ctrl-C while a callback of the garbage collector runs, which loses what it raises."""

    def callback(phase, info):
        if phase == "start":
            press()

    gc.callbacks.append(callback)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(callback)


def swallowed_by_del():
    class Object:
        def __del__(self):
            press()

    Object()


def swallowed_by_except():
    with contextlib.suppress(BaseException):
        press()


LOST = [swallowed_by_gc, swallowed_by_del, swallowed_by_except]


def test_outside_of_steps_an_interrupt_acts_at_once():
    reached = []

    def work():
        with deferred_interrupts():
            press()
            reached.append("waits")
            with prompt_interrupts():
                reached.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["waits"]


@pytest.mark.parametrize("swallow", LOST)
def test_a_swallowed_interrupt_is_raised_at_the_end_of_the_block(swallow):
    with pytest.raises(KeyboardInterrupt), prompt_interrupts():
        swallow()
    with prompt_interrupts():  # and only once
        check_interrupt()


@pytest.mark.parametrize("swallow", LOST[:2])
def test_what_the_runtime_swallows_is_raised_again_soon(swallow, capsys):
    def work():
        with prompt_interrupts():
            swallow()
            time.sleep(20)
            raise AssertionError("was not interrupted")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not capsys.readouterr().err  # no "Exception ignored in"


def test_an_interrupt_that_is_swallowed_while_a_name_is_loaded_is_raised_again(tmp_path, monkeypatch):
    package = tmp_path / "lazily_loaded"
    package.mkdir()
    attach = "from lla_jax import _lazy\n\n__getattr__, __dir__, __all__ = _lazy.attach(__name__)\n"
    (package / "__init__.py").write_text(attach)
    (package / "__init__.pyi").write_text("from lazily_loaded.slow import f as f\n")
    (package / "slow.py").write_text(
        "import time\nfrom tests.core.test_interrupts import swallowed_by_del\n"
        "swallowed_by_del()\ntime.sleep(5)\nf = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    loaded, start = importlib.import_module("lazily_loaded"), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        _ = loaded.f
    assert time.monotonic() - start < 4


def test_the_start_of_a_compiled_library_is_not_interrupted(monkeypatch):
    """jax's crashes with SIGSEGV where an exception comes out of Python code on the way."""
    started = []

    def create_module():
        press()
        press()
        started.append(1)

    monkeypatch.setattr(interrupts, "STARTS_A_LIBRARY", create_module.__code__)

    def work():
        with prompt_interrupts():
            create_module()
            time.sleep(5)
            started.append(2)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert started == [1]


def test_an_error_that_an_interrupt_turned_into_is_an_interrupt():
    def work():
        with prompt_interrupts():
            swallowed_by_except()
            raise ImportError("numpy failed to import")

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert isinstance(caught.value.__context__, ImportError)


def test_other_unraisable_errors_are_left_to_the_hook_before(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(unraisable.exc_type))

    class Object:
        def __del__(self):
            raise OSError

    with prompt_interrupts():
        Object()
    assert seen == [OSError]
    Object()
    assert seen == [OSError, OSError]


def test_code_with_grace_is_interrupted_at_its_end_or_after_the_grace():
    reached = []

    def work(seconds):
        with deferred_interrupts():
            with prompt_interrupts(grace=0.2):
                press()
                reached.append("goes on")
                time.sleep(seconds)
                reached.append("is long" if seconds else "ends")
            reached.append("the step ends")
            check_interrupt()
            reached.append("never")

    for seconds in (0, 20):
        with pytest.raises(KeyboardInterrupt):
            work(seconds)
    assert reached == ["goes on", "ends", "the step ends", "goes on"]


def test_a_wait_for_arrays_is_interrupted_while_they_are_computed():
    turn = np.eye(400, dtype=np.float32)[::-1]
    loop = jax.jit(lambda x, n: jax.lax.fori_loop(0, n, lambda i, x: turn @ x, x))
    wait(loop(turn, 2))
    result = loop(turn, 1000)
    sender = threading.Timer(0.1, press)
    sender.start()
    with pytest.raises(KeyboardInterrupt), deferred_interrupts():
        wait({"a": result})
    assert not result.is_ready()
    with deferred_interrupts():
        assert wait([result, None])[0].is_ready()
    sender.join()


def given():
    return lla.operators.given(lambda v, A: A @ v, np.zeros(30, np.float32), np.diag(np.arange(1.0, 31, dtype="f")))


def landscape(f, *args, execution=FIXED, **options):
    return f(*args, DATA, grid=lla.grid(points=3), execution=execution, **options)


DATA = dataset()
KEY = jax.random.key(0)
VERBS = {
    "eigenpairs": lambda **o: lla.eigenpairs(given(), KEY, 2, **o),
    "spectrum": lambda **o: lla.spectrum(given(), KEY, steps=10, probes=1, **o),
    "trace": lambda **o: lla.trace(given(), KEY, rtol=0, **o),
    "diagonal": lambda **o: lla.diagonal(given(), KEY, rtol=0, **o),
    "frobenius_norm": lambda **o: lla.frobenius_norm(given(), KEY, rtol=0, **o),
    "per_layer": lambda **o: lla.per_layer(mlp_loss(), params(), DATA, KEY, steps=2, execution=ONE, **o),
    "convexity": lambda **o: landscape(
        lla.convexity, mlp_loss(), params(), axes=axes(), key=KEY, steps=2, execution=ONE, **o
    ),
    "evaluate": lambda **o: landscape(lla.evaluate, mlp_loss(), params(), directions=axes(), **o),
    "sweep": lambda **o: landscape(lla.sweep, mlp_loss(), [params()], **o),
    "all_modes": lambda **o: landscape(lla.all_modes, mlp_loss(), params(), key=KEY, **o),
}


def axes():
    return lla.directions.random(KEY, params(), 2)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_stops_though_the_garbage_collector_swallows_the_interrupt(verb):
    calls = []

    def progress(done, total):
        calls.append(done)
        if len(calls) == 1:
            swallowed_by_gc()

    with pytest.raises(KeyboardInterrupt):
        VERBS[verb](progress=progress)
    assert len(calls) == 1
