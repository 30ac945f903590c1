"""Ctrl-C between steps: real signals, once and twice, nested, from threads, and the handler put back."""

import contextlib
import os
import signal
import threading
import time

import pytest

from lla_jax.core.interrupts import deferred_interrupts


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


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL], ids=["ignored", "the system's"])
def test_without_a_handler_of_python_nothing_is_changed(handler):
    signal.signal(signal.SIGINT, handler)
    try:
        with deferred_interrupts() as check:
            assert signal.getsignal(signal.SIGINT) is handler
            check()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
