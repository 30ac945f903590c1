"""A stream that does not start anew each time that it is read is refused, before a number comes of a part of it."""

import jax
import numpy as np
import pytest

import lla_jax as lla
from tests.helpers import FIXED, dataset, mlp_loss, params

X, Y = dataset(24)
SIZE = 8
AXIS = lla.directions.random(jax.random.key(0), params(), num=1)
GRID = lla.grid(points=1, dims=1)


def batches():
    for start in range(0, len(X), SIZE):
        yield X[start : start + SIZE], Y[start : start + SIZE]


class Held:
    """A loader that goes on where it ended, since it holds its iterator."""

    def __init__(self):
        self.batches = batches()

    def __iter__(self):
        yield from self.batches


class Iterator:
    """An iterator of a class of the user's, returned again by its factory."""

    def __init__(self):
        self.batches = batches()

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.batches)


def of_same_generator():
    made = batches()
    return lla.stream(lambda: made)


def of_generator_over_a_used_one():
    made = batches()
    return lla.stream(lambda: (batch for batch in made))


def of_map_over_a_used_one():
    made = batches()
    return lla.stream(lambda: map(tuple, made))


def of_same_iterator():
    made = Iterator()
    return lla.stream(lambda: made)


def of_queue():
    made = list(batches())
    return lla.stream(lambda: iter(lambda: made.pop() if made else None, None))


def of_torch_data_set():
    torch = pytest.importorskip("torch")

    class Rows(torch.utils.data.IterableDataset):
        rows = iter(zip(X, Y, strict=True))

        def __iter__(self):
            return self.rows

    return lla.stream(torch.utils.data.DataLoader(Rows(), batch_size=SIZE))


USED = [of_same_generator, of_generator_over_a_used_one, of_map_over_a_used_one, of_same_iterator, of_queue]
USED += [of_torch_data_set, lambda: lla.stream(Held())]


def evaluate(data):
    return lla.evaluate(mlp_loss(), params(), data, AXIS, GRID, execution=FIXED).values["loss"]


def product(data):
    return lla.hessian(mlp_loss(), params(), data) @ params()


def gradient_twice(data):
    return [lla.directions.gradient(mlp_loss(), params(), data) for _ in range(2)]


@pytest.mark.parametrize("make", USED)
@pytest.mark.parametrize("use", [evaluate, product, gradient_twice])
def test_a_source_that_goes_on_where_it_ended_is_refused(make, use):
    with pytest.raises(ValueError, match=r"anew|each (time|call)"):
        use(make())


def test_other_numbers_of_examples_are_refused():
    left = [4]

    def shorter():
        left[0] -= 1
        return [(X[: left[0]], Y[: left[0]])] * 2

    data = lla.stream(shorter)
    assert len(list(data)) == 2
    with pytest.raises(ValueError, match="yielded 6 examples and now 4"):
        list(data)
    left[0] = 4

    def one_batch():
        left[0] -= 1
        return [(X[: left[0]], Y[: left[0]])]

    data = lla.stream(one_batch)
    next(iter(data))  # as for a plan
    with pytest.raises(ValueError, match="yielded 3 examples and now 2"):
        list(data)


def test_shuffled_batches_and_loaders_that_start_anew_are_read_as_often_as_needed():
    rng, begun = np.random.default_rng(0), []

    def shuffled():
        begun.append(1)
        order = rng.permutation(len(X))
        for start in range(0, len(X), SIZE):
            yield X[order[start : start + SIZE]], Y[order[start : start + SIZE]]

    for data in (lla.stream(shuffled), lla.stream(batches), lla.stream(list(batches()))):
        for _ in range(2):
            np.testing.assert_allclose(evaluate(data), evaluate((X, Y)), rtol=1e-5)
    data, count = lla.stream(shuffled), len(begun)
    next(iter(data))
    for _ in range(3):
        list(data)
    assert len(begun) - count == 5  # one look at whether it starts anew, once


def test_after_a_longer_pass_was_begun_the_numbers_of_both_are_said():
    held = [(X[:8], Y[:8])]
    data = lla.stream(held)
    for rows in (4, 2):
        list(data)
        held[0] = X[:rows], Y[:rows]
        with pytest.raises(ValueError, match=rf"yielded 8 examples and now {rows}.*wrap them anew: lla.stream"):
            list(data)
        held[0] = X[:8], Y[:8]


def test_random_subsets_are_taken_where_passes_may_differ():
    rng = np.random.default_rng(0)

    def subsets():
        rows = rng.permutation(len(X))[: rng.integers(8, len(X))]
        yield X[rows], Y[rows]

    H = lla.hessian(mlp_loss(), params(), lla.stream(subsets), allow_nondeterministic=True)
    one, two = H @ params(), H.at(params()) @ params()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((one, two)))
