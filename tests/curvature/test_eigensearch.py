"""The search: all copies of wanted values are found, nothing is missed, and an interrupt loses no step."""

import os
import signal
import threading
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.curvature import eigensearch, operators
from lla_jax.curvature import lanczos as _lanczos
from tests.curvature.cases import COPIES, PROBE, Counted, check_pairs, counted, interrupted
from tests.helpers import (
    breaking_operator,
    symmetric_matrix,
    vector_operator,
)

KEY = jax.random.key(1)
N = len(COPIES)


@pytest.mark.parametrize("traceable", [True, False], ids=["device", "host"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_copies_of_a_repeated_value_are_found_within_300_products(dtype, traceable):
    with jax.enable_x64(dtype == "float64"):
        a = symmetric_matrix(COPIES, dtype)
        pairs = lla.eigenpairs(vector_operator(a, traceable), KEY, 8, tol=1e-4)
        check_pairs(pairs, a, [10, 10, 10, 7.03, 7.02, 7.01, 7.0, -4], 1e-4)
    assert pairs.products <= 60
    assert pairs.recipe["verified"]


def test_few_products_suffice_for_separated_values():
    H, _ = counted(symmetric_matrix(np.concatenate([[30.0, 20.0], np.linspace(-0.5, 2, N - 2)])))
    assert lla.eigenpairs(H, KEY, 2).products <= 18


def test_without_copies_the_search_ends_when_the_pairs_have_converged():
    a = symmetric_matrix(COPIES)
    for traceable in (True, False):
        H = vector_operator(a, traceable)
        pairs = lla.eigenpairs(H, KEY, 3, tol=1e-4, copies=False)
        check_pairs(pairs, a, [10, 7.03, 7.02], 5e-3)  # each value once; within the cluster any vector does
        assert pairs.recipe["verified"] is False
        assert pairs.recipe["copies"] is False
        assert pairs.recipe["sequences"] == 1
        assert pairs.products < lla.eigenpairs(H, KEY, 3, tol=1e-4).products - 5
    five = lla.eigenpairs(vector_operator(3 * np.eye(20, dtype=np.float32)), KEY, 5, copies=False)
    assert np.allclose(five.values, 3)  # where there are no others, copies are found all the same
    assert lla.eigenpairs(vector_operator(a[:6, :6]), KEY, 6, copies=False).recipe["verified"]  # all there are


@pytest.mark.parametrize("traceable", [True, False], ids=["device", "host"])
def test_a_value_among_many_equal_ones_is_not_overlooked_without_copies(traceable):
    """A random vector is within tol of an eigenvector of the many."""
    a = symmetric_matrix(np.concatenate([[1.0], np.full(N - 1, 0.5)]))
    pairs = lla.eigenpairs(vector_operator(a, traceable), KEY, 1, tol=0.1, copies=False)
    assert abs(pairs.values[0] - 1) < 1e-4


@pytest.mark.parametrize("traceable", [True, False], ids=["device", "host"])
def test_restarts_within_few_vectors(traceable):
    a = symmetric_matrix(COPIES)
    pairs = lla.eigenpairs(vector_operator(a, traceable), KEY, 5, tol=1e-3, max_vectors=12)
    check_pairs(pairs, a, [10, 10, 10, 7.03, 7.02], 2.2e-3)  # within the cluster any vector does
    assert pairs.recipe["restarts"] > 0


def test_what_cannot_be_ruled_out_is_not_said_to_be():
    """Values so close that a second sequence would take longer than the first to tell them apart."""
    H = vector_operator(symmetric_matrix(np.linspace(0, 1, N)), False)
    whole = lla.eigenpairs(H, KEY, 1, tol=1e-4)
    assert whole.recipe["converged"]
    assert whole.recipe["verified"] is False
    assert abs(whole.values[0] - 1) < 1e-5
    assert whole.products > 100  # many enough that not every step asks for Ritz pairs
    part = interrupted(lambda **more: lla.eigenpairs(H, KEY, 1, tol=1e-4, **more), 95)
    again = lla.eigenpairs(H, KEY, 1, tol=1e-4, resume=part)
    assert np.array_equal(again.vectors.tree, whole.vectors.tree)
    assert again.recipe == whole.recipe


def test_an_interrupt_during_a_restart_loses_nothing(monkeypatch):
    H, parts = vector_operator(symmetric_matrix(COPIES)), []
    mix_rows = eigensearch._mix_rows

    def interrupting(*args, **options):
        found = jax.block_until_ready(mix_rows(*args, **options))  # the old basis is gone
        signal.raise_signal(signal.SIGINT)
        return found

    call = partial(lla.eigenpairs, H, KEY, 5, tol=1e-3, max_vectors=12)
    whole = call()
    monkeypatch.setattr(eigensearch, "_mix_rows", interrupting)
    with pytest.raises(KeyboardInterrupt):
        call(on_partial=parts.append)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.undo()
    assert parts[0].state is not None
    again = call(resume=parts[0])
    assert np.array_equal(again.vectors.tree, whole.vectors.tree)
    assert again.recipe == whole.recipe


@pytest.mark.parametrize("traceable", [True, False], ids=["device", "host"])
def test_a_single_interrupt_at_any_moment_ends_the_search_and_keeps_its_pairs(traceable):
    H, moments = vector_operator(symmetric_matrix(np.linspace(0, 1, N)), traceable), np.random.default_rng(0)
    call = partial(lla.eigenpairs, H, KEY, 5, tol=1e-4, max_vectors=30, max_products=300)
    whole, in_time = call(), 0

    def search_and_wait(sender, at, parts):
        begin = lambda done, total: sender.start() if done >= at and sender.ident is None else None  # noqa: E731
        call(on_partial=parts.append, progress=begin)
        parts.append(None)  # the signal comes too late on a busy machine
        time.sleep(20)

    for at in moments.integers(5, 100, 8):
        parts = []
        sender = threading.Timer(moments.uniform(0, 3e-3), os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            search_and_wait(sender, at, parts)
        sender.join()
        (part,) = parts
        if part is not None:
            again, in_time = call(resume=part), in_time + 1
            assert np.array_equal(again.vectors.tree, whole.vectors.tree)
            assert again.recipe == whole.recipe
    assert in_time >= 4


def test_products_that_are_not_finite_end_the_search_with_what_there_is():
    for at, kept in ((2 + 12, 3), (2 + 3, 2)):
        H, product = breaking_operator(PROBE + at)
        with pytest.warns(UserWarning, match=f"it ends there, because product {at} is not finite"):
            pairs = lla.eigenpairs(H, KEY, 3, tol=1e-6)
        assert pairs.num == kept
        assert pairs.recipe["stopped"] == f"product {at} is not finite"
        assert pairs.recipe["converged"] is False
        assert np.isinf(pairs.residuals).all()  # nothing could be multiplied any more
        assert product.count == PROBE + pairs.products
    H, _ = breaking_operator(PROBE + 3)
    with pytest.raises(ValueError, match="product 3 is not finite, and there is nothing to keep"):
        lla.eigenpairs(H, KEY, 3)


def test_an_error_in_the_product_leaves_what_there_was():
    H, product = counted(symmetric_matrix(COPIES))

    class Fails(Counted):
        def __call__(self, v):
            if self.count == PROBE + 12:
                raise RuntimeError("lost connection")
            return super().__call__(v)

    fails, parts = Fails(product.a), []
    failing = operators.given(fails, jnp.zeros(len(fails.a), fails.a.dtype), traceable=False)
    with pytest.raises(ValueError, match="lost connection"):
        lla.eigenpairs(failing, KEY, 3, on_partial=parts.append)
    again = lla.eigenpairs(H, KEY, 3, resume=parts[0])
    whole = lla.eigenpairs(H, KEY, 3)
    assert np.array_equal(again.values, whole.values)
    assert again.products == whole.products
    parts.clear()
    fails.count = 10
    with pytest.raises(ValueError, match="lost connection"):
        lla.eigenpairs(failing, KEY, 3, on_partial=parts.append)
    assert not parts  # nothing was known yet


@pytest.mark.parametrize("traceable", [True, False], ids=["device", "host"])
def test_resumed_eigenpairs_are_the_same_to_the_bit(traceable, tmp_path):
    a = symmetric_matrix(COPIES)
    H = vector_operator(a, traceable)
    for options in ({"tol": 1e-4}, {"tol": 1e-3, "max_vectors": 12}):

        def call(H=H, **more):
            return lla.eigenpairs(H, KEY, 5, **{**options, **more})  # noqa: B023

        whole = call()
        for at in (4, 15, whole.products - 8, whole.products - 2):
            part = interrupted(call, at)
            assert part.num == min(5, len(part.values)) > 0
            lla.save(part, tmp_path / "part")
            again = call(resume=lla.load(tmp_path / "part.npz", like=jnp.zeros(N)))
            assert np.array_equal(again.values, whole.values)
            assert np.array_equal(again.residuals, whole.residuals)
            assert np.array_equal(again.vectors.tree, whole.vectors.tree)
            assert again.recipe == whole.recipe
        assert call(resume=whole) is whole
    with pytest.raises(ValueError, match=r"the partial result of eigenpairs differs in k \("):
        lla.eigenpairs(H, KEY, 4, tol=1e-3, max_vectors=12, resume=part)
    with pytest.raises(ValueError, match=r"the partial result of eigenpairs differs in key \("):
        lla.eigenpairs(H, jax.random.key(2), 5, tol=1e-3, max_vectors=12, resume=part)


def test_an_interrupt_while_a_step_is_stored_hands_over_nothing_that_is_half_done(monkeypatch):
    """As a second Ctrl-C may do; an interrupt during the product before it leaves a complete state."""
    H, parts, store = vector_operator(symmetric_matrix(COPIES)), [], _lanczos.store

    def interrupting(basis, steps, into, **options):
        if into > 20:
            raise KeyboardInterrupt
        return store(basis, steps, into, **options)

    monkeypatch.setattr(_lanczos, "store", interrupting)
    with pytest.raises(KeyboardInterrupt):
        lla.eigenpairs(H, KEY, 3, on_partial=parts.append)
    assert not parts
