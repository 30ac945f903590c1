"""The bound by fresh points, against chance itself."""

import numpy as np
import pytest

from lla_jax.landscape import held_out


@pytest.mark.parametrize(("cells", "look"), [(600, 0), (1600, 0), (1600, 1), (10**6, 0)])
def test_the_number_drawn_is_the_least(cells, look):
    chance = held_out.chance_of_look(look)
    for rank in (1, 2):
        number = held_out.choose_number(cells, rank, chance)
        assert held_out.choose_rank(cells, number, chance) == rank
        assert held_out.choose_rank(cells, number - 1, chance) == rank - 1


def test_many_cells_need_as_many_as_if_drawn_with_replacement():
    number = held_out.choose_number(10**8, 1, 0.05)
    assert 0.95**number <= 0.05 < 0.95 ** (number - 1)  # 59


def test_looks_share_the_chance():
    assert sum(held_out.chance_of_look(look) for look in range(50)) <= held_out.WRONG * (1 + 1e-12)


@pytest.mark.parametrize("rank", [1, 3])
def test_the_bound_is_wrong_as_seldom_as_it_says(rank):
    rng, cells, chance, trials = np.random.default_rng(0), 400, 0.05, 4000
    number = held_out.choose_number(cells, rank, chance)
    wrong = 0
    for _ in range(trials):
        errors = rng.permutation(cells).astype(float)
        drawn, rest = errors[:number], errors[number:]
        wrong += np.percentile(rest, held_out.PERCENTILE) > np.sort(drawn)[-rank]
    assert wrong / trials < chance + 3 * np.sqrt(chance / trials)
    assert wrong / trials > chance / 10  # nor are far more drawn than needed


def test_all_of_few_cells_are_drawn():
    assert held_out.choose_number(30, 1, 0.01) == 30
    assert held_out.choose_number(0, 1, 0.01) == 0
