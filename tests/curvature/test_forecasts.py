"""The bar's estimates of products: near what is needed where errors fall steadily, never above the limit."""

import math

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.curvature import forecasts
from tests.curvature.cases import KEY


def test_pairs_take_twice_the_products_of_their_convergence():
    errors = [(p, 10 ** (3 - p / 20)) for p in range(8, 49, 8)]  # within the tolerance after 60 products
    for some in range(2, len(errors) + 1):
        assert forecasts.products_of_pairs(errors[:some], 3, 500) == pytest.approx(120)
    assert forecasts.products_of_pairs([*errors, (62, 0.7)], 3, 500) == 124
    assert forecasts.products_of_pairs(errors, 3, 90) == 90


def test_without_a_rate_a_guess_is_made_of_the_number_of_pairs():
    first, more = (forecasts.products_of_pairs([], k, 500) for k in (1, 10))
    assert 20 < first < more < 500
    assert forecasts.products_of_pairs([(8, 100.0), (16, 200.0)], 1, 500) >= first
    assert forecasts.products_of_pairs([(8, math.inf), (16, 0.0)], 1, 500) == 32


def test_draws_grow_with_the_square_of_the_error():
    assert forecasts.products_of_draws(16, 2.0, forecasts.INDEPENDENT, 1000) == 64
    assert forecasts.products_of_draws(16, 2.0, forecasts.SKETCHED, 1000) == 32
    assert forecasts.products_of_draws(16, 0.5, forecasts.INDEPENDENT, 1000) == 16
    assert forecasts.products_of_draws(16, math.nan, forecasts.INDEPENDENT, 1000) == 1000
    assert forecasts.products_of_draws(16, 20.0, forecasts.INDEPENDENT, 1000) == 1000


def test_a_bar_is_told_before_the_first_product_and_other_callbacks_are_not(capsys):
    expected, seen = [], []

    def progress(done, total):
        seen.append((done, total, len(expected)))

    H = lla.operators.given(lambda v, A: A @ v, np.zeros(30, np.float32), np.diag(np.arange(1.0, 31, dtype="f")))
    plain = lla.eigenpairs(H, KEY, 2, progress=lambda *at: seen.append(at)).products
    assert seen[-1] == (plain, None)
    seen.clear()
    progress.expect = expected.append
    lla.eigenpairs(H, KEY, 2, progress=progress)
    assert seen[0][1:] == (None, 2)
    lla.trace(H, jax.random.key(1), method="hutchinson", rtol=0.1, progress=True)
    assert "of about" in capsys.readouterr().err
