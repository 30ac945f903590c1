"""Slips in data and streams, with all verbs that take them."""

from __future__ import annotations

from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse

import lla_jax as lla
from tests.slips.slip import table
from tests.slips.small import PARAMS, X, Y, by_class, check, evaluate, hessian, of, plain

SLIPS, slip = table()


# --- data


@slip("data: the model (apply) failed", "swapped", "(inputs, labels)")
def labels_first() -> None:
    evaluate(of(), (Y, X))


@slip("swapped", "(inputs, labels)")
def labels_first_to_fisher() -> None:
    lla.fisher(of(), PARAMS, (Y, X), jax.random.key(0))


@slip("swapped", "(inputs, labels)")
def labels_first_to_a_function() -> None:
    hessian(plain, (Y, X))


@slip("data: the criterion (by_class) failed", "(inputs, labels)")
def no_labels() -> None:
    check(of(), (X,))


@slip("data: ", "(inputs, labels)")
def inputs_alone() -> None:
    hessian(of(), X)


@slip("data[1].astype(np.int32)", "class numbers must be integers")
def labels_as_floats() -> None:
    hessian(of(), (X, Y.astype(np.float32)))


@slip("data[1].astype(np.int32)", "class numbers must be integers")
def labels_as_truth_values() -> None:
    check(of(), (X, Y.astype(bool)))


@slip("data: ", "pass arrays with leading axis N")
def a_module_as_data() -> None:
    hessian(of(), np)


@slip("one-hot", "data[1].argmax(-1)")
def one_hot_labels_for_class_numbers() -> None:
    lla.ggn(of(), PARAMS, (X, np.eye(2, dtype=np.float32)[Y]))


@slip("np.eye(2, dtype=np.float32)[data[1]]")
def class_numbers_for_one_hot_labels() -> None:
    check(of(lambda o, b: optax.softmax_cross_entropy(o, b[1])))


@slip("(8, 1)", "data[1][..., 0]")
def labels_in_a_column() -> None:
    evaluate(of(), (X, Y[:, None]))


@slip("labels from 1 to 2", "2 classes, 0 to 1", "pass data[1] - 1")
def labels_from_1() -> None:
    hessian(of(), (X, Y + 1))


@slip("labels from -1 to 0", "weight 0")
def labels_from_minus_1() -> None:
    check(of(lambda o, b: -jax.nn.log_softmax(o)[jnp.arange(len(o)), b[1]]), (X, Y - 1))


@slip("labels from 1 to 2", "the loss is 0", "pass data[1] - 1")
def labels_from_1_made_one_hot() -> None:
    check(of(lambda o, b: optax.softmax_cross_entropy(o, jax.nn.one_hot(b[1], 2))), (X, Y + 1))


@slip("data['y']", "pass data['y'] - 1")
def labels_from_1_in_a_dict() -> None:
    criterion = lambda o, b: optax.softmax_cross_entropy_with_integer_labels(o, b["y"])  # noqa: E731
    check(of(criterion, lambda p, s, b, t: (b["x"] @ p["w"], s)), {"x": X, "y": Y + 1})


@slip("data: ", "(data['x'], data['y'])")
def a_dict_for_a_tuple() -> None:
    check(of(), {"x": X, "y": Y})


@slip("(8, 4)", "w': float32 (3, 2)")
def inputs_of_another_width() -> None:
    hessian(of(), (np.ones((8, 4), np.float32), Y))


@slip("np.moveaxis(data[0], 1, -1)", "as in Flax")
def images_with_channels_first() -> None:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.Conv(2, (3, 3))(x).mean((1, 2)))

    module, images = Net(), np.ones((4, 5, 5, 1), np.float32)
    variables = jax.tree.map(
        lambda x: np.ones(x.shape, x.dtype), jax.eval_shape(module.init, jax.random.key(0), images)
    )
    loss = lla.from_linen(module, variables, by_class)
    lla.check_examples(loss, variables["params"], (np.moveaxis(images, -1, 1), Y[:4]))


@slip("lla.stream(batches)")
def a_list_of_batches_of_equal_size() -> None:
    hessian(of(), [(X[:4], Y[:4]), (X[4:], Y[4:])])


@slip("jax.tree.map(lambda *x: np.stack(x), *data)")
def a_list_of_examples() -> None:
    hessian(of(), list(zip(X, Y, strict=True)))


@slip("np.asarray(labels)")
def lists_of_numbers() -> None:
    evaluate(of(), (X.tolist(), Y.tolist()))


@slip("entry of the data is None")
def none_in_place_of_labels() -> None:
    check(of(), (X, None))


@slip("data are None", "(inputs, labels)")
def no_data_for_a_loss_that_reads_some() -> None:
    evaluate(plain, None)


@slip("leaf '' is a str", "arrays with leading axis N")
def the_name_of_a_data_set() -> None:
    hessian(of(), "mnist")


@slip("different length", "'0': 8, '1': 5")
def inputs_and_labels_of_other_lengths() -> None:
    check(of(), (X, Y[:5]))


@slip("empty", "at least one example")
def no_example() -> None:
    hessian(of(), (X[:0], Y[:0]))


@slip("holds NaN or infinity, as in its row 3", "np.nan_to_num")
def a_row_of_nan() -> None:
    hessian(of(lambda o, b: 2 * by_class(o, b)), (np.where(np.arange(8)[:, None] == 3, np.nan, X), Y))


@slip("was deleted", "donate_argnums")
def a_donated_array() -> None:
    x = jnp.asarray(X)
    x.delete()
    evaluate(of(), (x, Y))


@slip("must hold numbers of one type", "np.unique")
def labels_as_strings() -> None:
    hessian(of(), (X, np.array(["cat", "dog"])[Y]))


@slip("extra_data: ", "{'test': (x, y)}")
def a_data_set_in_place_of_named_ones() -> None:
    evaluate(of(), extra_data=(X, Y))


@slip("swapped", "(inputs, labels)")
def labels_first_in_extra_data() -> None:
    evaluate(of(), extra_data={"test": (Y, X)})


@slip("batch_size: '4' given", "integer")
def a_batch_size_in_words() -> None:
    check(of(), batch_size="4")


@slip("an iterator is read once", "lla.stream(lambda: make_batches())")
def a_generator_as_data() -> None:
    check(of(), ((X, Y) for _ in range(2)))


@slip("leave names and texts out of the data", "np.unique")
def names_of_files_in_the_batches() -> None:
    check(of(), lla.stream([(X, Y, ["a.png"] * 8)]))


# --- streams


def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield X[:4], Y[:4]
    yield X[4:], Y[4:]


@slip("stream: the factory returned the same generator", "make a new one in each call")
def a_factory_of_one_generator() -> None:
    once = batches()
    evaluate(of(), lla.stream(lambda: once))


@slip("same list_iterator", "make a new one in each call")
def a_factory_of_one_iterator() -> None:
    once = iter([(X, Y)])
    hessian(of(), lla.stream(lambda: once)).mv(PARAMS)


@slip("one-shot iterator generator", "lla.stream(lambda: make_batches())")
def a_generator() -> None:
    lla.stream(batches())


@slip("stream: ndarray of shape (8, 3) given", "without stream")
def an_array_as_stream() -> None:
    lla.stream(X)


@slip("pass this tuple as the data")
def a_data_set_as_stream() -> None:
    lla.stream((X, Y))


@slip("without stream")
def a_dict_as_stream() -> None:
    lla.stream({"x": X, "y": Y})


@slip("stream: 'train.npz' given", "a factory")
def a_file_as_stream() -> None:
    lla.stream("train.npz")


@slip("pass this tuple as the data")
def a_factory_of_a_data_set() -> None:
    check(of(), lla.stream(lambda: (X, Y)))


@slip("stream: None given", "make_batches()")
def a_factory_without_return() -> None:
    check(of(), lla.stream(lambda: None))


@slip("stream: the factory failed with TypeError", "called without arguments")
def a_factory_with_an_argument() -> None:
    check(of(), lla.stream(lambda epoch: batches()))


@slip("batch 0 of the stream is None")
def a_stream_of_none() -> None:
    check(of(), lla.stream([None]))


@slip("yielded no batch")
def an_empty_stream() -> None:
    hessian(of(), lla.stream([]))


@slip("is a scalar", "(batch 0 of the stream)")
def a_stream_of_examples() -> None:
    check(of(), lla.stream(list(zip(X, Y, strict=True))))


@slip("batch 1 of the stream is (float32 (4, 3),)", "one structure")
def a_later_batch_without_labels() -> None:
    evaluate(of(), lla.stream([(X[:4], Y[:4]), (X[4:],)]))


@slip("batch 1 of the stream is (float32 (4, 2)", "batch 0 (float32 (4, 3)")
def a_later_batch_of_another_width() -> None:
    lla.directions.gradient(of(), PARAMS, lla.stream([(X[:4], Y[:4]), (X[4:, :2], Y[4:])]))


@slip("batch 1 of the stream", "data[1].astype(np.int32)")
def a_later_batch_of_another_type() -> None:
    evaluate(of(), lla.stream([(X[:4], Y[:4]), (X[4:], Y[4:].astype(np.float32))]))


@slip("the stream failed at its batch 1 with OSError: disk gone")
def a_stream_that_fails_in_the_middle() -> None:
    def failing():
        yield X, Y
        raise OSError("disk gone")

    evaluate(of(), lla.stream(failing))


@slip("mark its batches")
def a_whole_stream() -> None:
    lla.whole(lla.stream([(X, Y)]))


@slip("neither an array nor a number")
def a_whole_function() -> None:
    lla.whole(lambda: (X, Y))


@slip("data", ".toarray()")
def a_sparse_matrix_among_the_data() -> None:
    evaluate(of(), (scipy.sparse.csr_matrix(X), Y))


@slip("params['w']", ".toarray()")
def a_sparse_matrix_among_the_parameters() -> None:
    lla.hessian(of(), {"w": scipy.sparse.csr_matrix(np.ones((3, 2)))}, (X, Y))
