"""Standard errors of few and of skewed draws: twice the error holds the truth in 95 of 100 cases."""

import numpy as np
import pytest

from lla_jax.core.standard_errors import standard_error, widening


def test_of_many_even_draws_it_is_the_plain_one():
    draws = np.random.default_rng(0).standard_normal(100_000)
    assert standard_error(draws) == pytest.approx(draws.std(ddof=1) / np.sqrt(100_000), rel=1e-3)
    assert widening(1e9) == pytest.approx(1, abs=1e-6)


def test_of_few_it_is_students():
    # t of 3 degrees of freedom has 95.45 % within 3.307, of 15 within 2.181
    assert widening(3) == pytest.approx(3.307 / 2, abs=1e-3)
    assert widening(15) == pytest.approx(2.181 / 2, abs=1e-3)
    assert np.isnan(widening(0))


def test_where_there_is_no_scatter():
    assert np.isnan(standard_error(np.ones(1)))
    assert np.isnan(standard_error(np.ones((1, 3)))).all()
    np.testing.assert_array_equal(standard_error(np.ones((5, 3))), np.zeros(3))


@pytest.mark.parametrize(("draws", "plain_holds"), [(2, 0.75), (4, 0.88), (16, 0.945)])
@pytest.mark.parametrize("law", ["normal", "sum of squares"])
def test_twice_the_error_holds_the_mean(law, draws, plain_holds):
    rng = np.random.default_rng(1)
    each = rng.standard_normal((draws, 4000)) if law == "normal" else rng.chisquare(3, (draws, 4000)) - 3
    away, plain = np.abs(each.mean(0)), each.std(0, ddof=1) / np.sqrt(draws)
    assert (away <= 2 * standard_error(each)).mean() >= 0.93
    assert (away <= 3 * standard_error(each)).mean() >= 0.95
    assert (away <= 2 * plain).mean() < plain_holds  # what it is for
