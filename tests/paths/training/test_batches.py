import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.paths.training.batches import Batches, block_of

KEY = jax.random.key(3)


def rows_from(batches, start, count):
    draws = batches.from_step(start)
    return [next(draws).rows.tolist() for _ in range(count)]


def test_each_epoch_is_a_new_order_without_the_rest_and_follows_from_key_and_step_alone():
    data = np.arange(10.0), np.arange(10)
    rows = rows_from(Batches(data, KEY, 4), 0, 6)
    epochs = [rows[i] + rows[i + 1] for i in (0, 2, 4)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)  # none twice, two left out
    assert epochs[0] != epochs[1] != epochs[2]
    assert rows_from(Batches(data, KEY, 4), 3, 3) == rows[3:]
    assert Batches(data, KEY, 4).several_rows(1, 3).tolist() == rows[1:4]
    assert rows_from(Batches(data, jax.random.key(4), 4), 0, 6) != rows


def test_a_block_has_the_chosen_rows_and_their_numbers():
    x, y = np.arange(10.0), np.arange(10) * 2
    draw = next(Batches((x, y), KEY, 4).from_step(5))
    block = block_of(draw)
    np.testing.assert_array_equal(block.batch[0], x[draw.rows])
    np.testing.assert_array_equal(block.batch[1], y[draw.rows])
    np.testing.assert_array_equal(block.index, draw.rows)
    assert block.mask.all()


@pytest.mark.parametrize("size", [None, 10, 99])
def test_without_a_batch_size_every_batch_is_the_whole_set(size):
    data = np.arange(10.0), np.arange(10)
    draw = next(Batches(data, KEY, size).from_step(7))
    assert draw.rows is None
    np.testing.assert_array_equal(block_of(draw).batch[0], data[0])


def test_a_whole_and_no_data_are_one_row():
    for data in (lla.whole({"x": np.ones((3, 2)), "edges": np.zeros((5, 2), int)}), None):
        block = block_of(next(Batches(data, KEY).from_step(2)))
        assert block.mask.shape == (1,)
    with pytest.raises(ValueError, match=r"batch_size: 2 given, but lla.whole"):
        Batches(lla.whole(np.ones(3)), KEY, 2)


def chunks(sizes):
    rows = np.split(np.arange(sum(sizes), dtype=np.float32), np.cumsum(sizes)[:-1])
    return [(each, each.astype(np.int32)) for each in rows]


def test_a_stream_is_read_again_and_again_and_resumed_by_skipping():
    sizes = (3, 2, 4)
    data, reads = chunks(sizes), []

    def read():
        reads.append(1)
        return iter(data)

    draws = Batches(lla.stream(read), KEY).from_step(0)
    seen = [next(draws) for _ in range(7)]
    for number, draw in enumerate(seen):
        np.testing.assert_array_equal(draw.data[0], data[number % 3][0])
        np.testing.assert_array_equal(block_of(draw).index, data[number % 3][1])
    before = len(reads)
    late = next(Batches(lla.stream(read), KEY).from_step(3_000_001))
    np.testing.assert_array_equal(late.data[0], data[1][0])
    assert len(reads) <= before + 3  # passes are not read a million times


def test_batches_of_a_stream_are_padded_to_the_largest_and_the_padding_is_masked():
    draws = Batches(lla.stream(chunks((3, 2, 4))), KEY, pads=True).from_step(0)
    seen = [next(draws) for _ in range(6)]
    assert [len(draw.data[0]) for draw in seen] == [3, 3, 4, 4, 4, 4]
    assert [int(block_of(draw).mask.sum()) for draw in seen] == [3, 2, 4, 3, 2, 4]
    late = next(Batches(lla.stream(chunks((3, 2, 4))), KEY, pads=True).from_step(4))
    np.testing.assert_array_equal(late.data[0], seen[4].data[0])  # the same shape after a resumption
