"""Labels outside of the classes are refused where they count, and left alone where the loss ignores them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lla_jax as lla
from tests.helpers import apply, dataset, params

X, Y = dataset(12)
IGNORED = np.where(Y == 0, -100, Y)


def by_class(outputs, labels):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels)


LEFT_ALONE = {
    "weights": lambda o, b: (by_class(o, jnp.maximum(b[1], 0)), (b[1] >= 0).astype("f")),
    "NaN of weight 0": lambda o, b: (by_class(o, b[1]), (b[1] >= 0).astype("f")),
    "where": lambda o, b: jnp.where(b[1] >= 0, by_class(o, b[1]), 0),
    "not read": lambda o, b: (o**2).sum(1),
    "counts": lambda o, b: ((o - b[1][:, None]) ** 2).sum(1),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_labels_that_the_loss_ignores_or_computes_with_are_fine(name):
    lla.check_examples(lla.Loss(apply, LEFT_ALONE[name]), params(), (X, IGNORED))


OUTSIDE = {  # of the three classes 0, 1, 2
    "one against the rest": (lambda o, b: by_class(o, (b[1] > 0).astype(int)), Y * 3),
    "another one": (lambda o, b: by_class(o, jnp.where(b[1] == 3, 1, 0)), Y + 4),
    "ordered levels": (
        lambda o, b: optax.sigmoid_binary_cross_entropy(o, jnp.arange(3.0) < b[1][:, None]),
        np.arange(12) % 4,
    ),
    "void is C": (lambda o, b: jnp.where(b[1] == 3, 0, by_class(o, jnp.where(b[1] == 3, 0, b[1]))), Y + 1),
    "events": (lambda o, b: jnp.where(b[1] == 1, (o**2).sum(1), 0), Y + 1),
    "taken as 0": (lambda o, b: by_class(o, b[1] % 3), Y + 3),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_labels_that_the_loss_compares_itself_are_no_classes(name):
    criterion, labels = OUTSIDE[name]
    lla.check_examples(lla.Loss(apply, criterion), params(), (X, labels))


REFUSED = {
    "NaN": (lambda o, b: by_class(o, b[1]), IGNORED, "for labels outside the loss is not finite"),
    "the last class": (
        lambda o, b: -jax.nn.log_softmax(o)[jnp.arange(len(o)), b[1]],
        Y - 1,
        "the loss is that of class 2",
    ),
    "clipped": (lambda o, b: by_class(o, jnp.clip(b[1], 0, 2)), Y + 1, "the loss is that of class 2"),
    "zero": (
        lambda o, b: optax.softmax_cross_entropy(o, jax.nn.one_hot(b[1], 3)),
        Y + 1,
        r"the loss is 0.*data\[1\] - 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_labels_outside_of_the_classes_are_refused(name):
    criterion, labels, message = REFUSED[name]
    loss = lla.Loss(apply, criterion)
    lla.check_examples(loss, params(), (X, Y))  # what was found of the model does not hide the labels
    with pytest.raises(ValueError, match=message):
        lla.check_examples(loss, params(), (X, labels))


def test_labels_of_tokens_with_their_classes_last_or_second():
    tokens = np.stack([Y, Y], 1)
    for axis in (2, 1):
        model = lambda p, s, b, t, axis=axis: (jnp.stack([apply(p, s, b, t)[0]] * 2, 3 - axis), s)  # noqa: E731
        losses = lambda o, b, axis=axis: by_class(jnp.moveaxis(o, axis, -1), b[1])  # noqa: E731
        loss = lla.Loss(model, losses)
        lla.check_examples(loss, params(), (X, tokens))
        with pytest.raises(ValueError, match="holds labels from 1 to 3, and the outputs have 3 classes"):
            lla.check_examples(loss, params(), (X, tokens + 1))
