"""Where a band gets new pivots."""

import numpy as np

from lla_jax.paths.bands.insertion import Places, largest_gaps, places_between, with_new

PLACES = places_between(4, 3)


def sampled(**at):
    """Losses at the places between pivots of loss 0, but for some, by number."""
    losses = np.zeros(9)
    for number, value in at.items():
        losses[int(number[1:])] = value
    return losses


def test_places_lie_between_the_pivots():
    assert PLACES.low.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert PLACES.weight[:4].tolist() == [0.25, 0.5, 0.75, 0.25]


def test_new_pivots_come_at_the_highest_gap_of_a_segment_and_the_highest_segments_first():
    losses = sampled(_0=1.0, _1=2.0, _4=3.0, _8=2.5)
    found = largest_gaps(np.zeros(4), losses, PLACES, 2)
    assert found.low.tolist() == [1, 2]
    assert found.weight.tolist() == [0.5, 0.75]
    assert largest_gaps(np.zeros(4), losses, PLACES, 5).low.tolist() == [0, 1, 2]


def test_a_straight_line_between_losses_a_small_gap_and_one_below_the_ends_need_no_pivot():
    losses = np.array([0.0, 4.0, 8.0, 0.0])
    line = np.interp(PLACES.low + PLACES.weight, range(4), losses)
    assert not len(largest_gaps(losses, line, PLACES, 2).low)
    assert not len(largest_gaps(losses, line + sampled(_4=0.7), PLACES, 2).low)  # a tenth of 8 is 0.8
    assert largest_gaps(losses, line + sampled(_4=0.9), PLACES, 2).low.tolist() == [1]
    valley = np.array([0.0, -4.0, -4.0, 0.0])
    assert not len(largest_gaps(valley, np.where(PLACES.low == 1, -0.5, -4.0), PLACES, 2).low)


def test_an_infinite_loss_needs_a_pivot_most():
    assert largest_gaps(np.zeros(4), sampled(_1=3.0, _4=np.inf), PLACES, 1).low.tolist() == [1]


def test_new_pivots_take_their_place_among_the_knots():
    knots, places = with_new(np.array([0.0, 0.5, 0.75, 1.0]), Places(np.array([0, 2]), np.array([0.5, 0.25])))
    assert knots.tolist() == [0, 0.25, 0.5, 0.75, 0.8125, 1]
    assert places.low.tolist() == [0, 0, 1, 2, 2, 2]
    assert places.weight.tolist() == [0, 0.5, 0, 0, 0.25, 1]
