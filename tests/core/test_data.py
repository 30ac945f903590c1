"""Data sets and streams: means and standard errors do not depend on how the data are cut or streamed."""

import collections
import pickle

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core import data
from tests.core.cases import DATA, cut, run
from tests.helpers import FIXED, accuracy, apply, compilations, cross_entropy, mlp_loss, params


@pytest.mark.parametrize("sizes", [(3, 4), (4, 3), (1,), (30,), (5, 2, 9)])
def test_streamed_batches_of_any_size_agree_with_the_data_set(axis, in_memory, sizes):
    streamed = run(axis, lla.stream(cut(DATA, sizes)), metrics={"accuracy": accuracy})
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(streamed.values[name], in_memory.values[name], rtol=1e-6)
        np.testing.assert_allclose(streamed.stderr[name], in_memory.stderr[name], rtol=1e-5)


@pytest.mark.parametrize("batch_size", [3, 4, 23, 100])
def test_batch_size_is_no_part_of_a_per_example_result(axis, in_memory, batch_size):
    np.testing.assert_allclose(
        run(axis, DATA, batch_size=batch_size).values["loss"], in_memory.values["loss"], rtol=1e-6
    )


def test_streams_read_factories_dicts_and_lists_and_compile_one_shape(axis, in_memory):
    def batches():
        for x, y in cut(DATA, (4, 4, 2, 4)):
            yield {"x": x, "y": y}

    def apply_to_dict(p, state, batch, train):
        return apply(p, state, (batch["x"], batch["y"]), train)

    def criterion(outputs, batch):
        return cross_entropy(outputs, (batch["x"], batch["y"]))

    loss = lla.Loss(apply_to_dict, criterion)
    lla.check_examples(loss, params(), lla.stream(batches))
    with compilations() as seen:
        streamed = run(axis, lla.stream(batches), loss)
    assert seen.count == 1
    np.testing.assert_allclose(streamed.values["loss"], in_memory.values["loss"], rtol=1e-6)


def test_torch_loaders_with_and_without_a_length_beside_data_in_memory(axis, in_memory):
    torch = pytest.importorskip("torch")
    x, y = (torch.tensor(a) for a in DATA)

    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(zip(x, y, strict=True))

    sized = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    unsized = torch.utils.data.DataLoader(Rows(), batch_size=5)
    for loader in (sized, unsized):
        seen = []
        extra = {"test": lla.stream(unsized), "memory": DATA}
        found = run(axis, lla.stream(loader), extra_data=extra, progress=lambda *at, to=seen: to.append(at))
        for name in ("loss", "test_loss", "memory_loss"):
            np.testing.assert_allclose(found.values[name], in_memory.values["loss"], rtol=1e-6)
        done = [d for d, total in seen if (total is None) is (seen[0][1] is None)]
        assert done == sorted(done)
        assert seen[-1] == (3, 3)


def test_a_stream_is_read_once_whatever_the_number_of_points(axis):
    reads = []

    class Loader:
        def __iter__(self):
            reads.append(None)
            return iter(cut(DATA, (6,)))

    lla.evaluate(mlp_loss(), params(), lla.stream(Loader()), axis, lla.grid(points=33, dims=1), execution=FIXED)
    assert len(reads) == 2  # once to plan with its first batch, once to compute


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (iter([DATA]), "one-shot iterator"),
        (3, "stream: 3 given; it must be a loader or a factory of one, such as"),
    ],
)
def test_bad_streams_are_refused_at_once(source, message):
    with pytest.raises(ValueError, match=message):
        lla.stream(source)


def test_an_iterator_that_starts_anew_is_read_again(axis, in_memory):
    class Loader:
        def __iter__(self):
            self.batches = iter(cut(DATA, (6,)))
            return self

        def __next__(self):
            return next(self.batches)

    loader = Loader()
    found = run(axis, lla.stream(lambda: loader))
    np.testing.assert_allclose(found.values["loss"], in_memory.values["loss"], rtol=1e-5)
    stream = lla.stream([DATA])
    assert lla.stream(stream) is stream


def test_empty_and_uneven_streams(axis):
    with pytest.raises(ValueError, match="yielded no batch"):
        run(axis, lla.stream(list))
    with pytest.raises(ValueError, match="different length"):
        run(axis, lla.stream([(DATA[0][:3], DATA[1][:2])]))
    with pytest.raises(ValueError, match="not an array"):
        lla.data.num_examples((object(),))
    with pytest.raises(ValueError, match="is a scalar, without the leading axis N"):
        lla.data.num_examples((np.float32(1.0),))


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: lla.stream([x])], ids=["in memory", "streamed"])
@pytest.mark.parametrize("ids", [np.array([1, 2**31]), np.array([-(2**31) - 1, 0]), np.array([2**32], np.uint64)])
def test_integers_beyond_32_bits_are_not_cut(wrap, ids):
    with pytest.raises(ValueError, match=r"data: integers from .* given, of which jax keeps 32 bits.*jax_enable_x64"):
        lla.check_examples(lambda p, b: p["w"] * (b % 1000).mean(), {"w": np.ones(())}, wrap(ids))


def test_integers_within_32_bits_are_data():
    for ids in (np.array([2**31 - 1, -(2**31)]), np.array([2**32 - 1], np.uint64), np.array([2**31], np.uint32)):
        lla.check_examples(lambda p, b: p["w"] * (b % 1000).mean(), {"w": np.ones(())}, ids)


def test_tensors_of_torch_become_arrays_and_others_are_refused():
    torch = pytest.importorskip("torch")
    x = torch.tensor([[1.0, 0.5], [0.0, 2.0]])
    for given in (x.bfloat16(), x.clone().requires_grad_(), (x + 0j).conj()):
        for array in (data.as_arrays(given), data.to_numpy(given)):
            np.testing.assert_array_equal(array, x.numpy())
    assert data.as_arrays(x.bfloat16()).dtype == np.float32
    with pytest.raises(ValueError, match="must be a plain tensor"):
        data.as_arrays(x.to_sparse())


def test_objects_and_strings_are_refused():
    for array in (np.array([1.0, 2.0], object), np.array(["a", "b"]), np.array(["2024-01-01"], "datetime64[D]")):
        with pytest.raises(ValueError, match="must hold numbers of one type"):
            data.as_arrays(array)


def test_parameters_in_masked_arrays_without_masked_entries_are_plain_ones():
    rows, p = np.eye(3, dtype="float32"), np.arange(3, dtype="float32")
    axis = lla.directions.random(jax.random.key(0), p, num=1)
    loss = lla.Loss(lambda p, state, batch, train: (batch @ p, state), lambda outputs, batch: outputs)
    landscape = lla.evaluate(loss, np.ma.masked_array(p), rows, axis, [np.zeros(1)])
    np.testing.assert_allclose(landscape.values["loss"], 1.0)


def test_mappings_of_any_class_are_dicts():
    batch = collections.UserDict(ids=np.arange(6).reshape(3, 2), more=collections.UserDict(mask=np.ones(3)))
    for found in (data.as_arrays(batch), data.to_numpy(batch)):
        assert type(found) is dict
        assert type(found["more"]) is dict
        np.testing.assert_array_equal(found["ids"], batch["ids"])


def test_data_of_another_byte_order_and_sources_with_numbered_batches():
    class Numbered:
        def __getitem__(self, number):
            return [np.arange(3, dtype=">f4"), np.arange(3, 5, dtype=">f4")][number]  # an IndexError ends it

    batches = list(lla.stream(Numbered()))
    assert [batch.tolist() for batch in batches] == [[0, 1, 2], [3, 4]]
    assert all(batch.dtype.isnative for batch in batches)
    H = lla.hessian(lambda p, x: p["a"] ** 2 * x.mean(), {"a": np.float32(1)}, np.arange(3, dtype=">f4"))
    assert H.mv({"a": np.float32(1)}) == {"a": 2.0}


def factory():
    yield DATA


def test_a_stream_can_be_pickled_before_and_after_it_is_read():
    streamed = lla.stream(factory)
    list(streamed)
    for each in (lla.stream(factory), streamed):
        assert [len(x) for x, _ in pickle.loads(pickle.dumps(each))] == [len(DATA[0])]


def test_keys_of_jax_are_examples():
    assert data.num_examples((np.ones(4), jax.random.split(jax.random.key(0), 4))) == 4
