"""Errors of the user's functions: what is said of them, and which pass on; what is found by trying works."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core import called, tries
from lla_jax.core.arguments import Misuse
from tests.helpers import apply, cross_entropy, dataset, mlp_loss, params

DATA = dataset(12)
X, Y = DATA


def check(loss, data=DATA, **options):
    lla.check_examples(loss, params(), data, **options)


def test_the_error_of_the_function_is_the_cause_and_shapes_are_shown():
    def broken(p, batch):
        return p["nope"].sum()

    with pytest.raises(ValueError, match=r"loss: the function \(broken\) failed with KeyError: 'nope'") as caught:
        check(broken)
    assert isinstance(caught.value.__cause__, KeyError)
    assert "batch (float32 (12, 5), int32 (12,))" in str(caught.value)
    assert "'gain': float32 ()" in str(caught.value)


def test_small_functions_are_explained_too():
    wanted = r"groups: the function failed with KeyError: 'c'. It is called as f\(path, leaf\) with path 'a/b'; leaf 1"
    with pytest.raises(Misuse, match=wanted) as caught:
        called.ask("groups", lambda path, leaf: {}["c"], "f(path, leaf)", {"path": "a/b", "leaf": 1})
    assert isinstance(caught.value.__cause__, KeyError)


def test_errors_of_ours_pass():
    own = Misuse("seed", "is odd")
    with pytest.raises(Misuse) as caught, called.explain(None, "the function", "f(key)", {}):
        raise own
    assert caught.value is own


@pytest.mark.parametrize(
    "error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"), KeyboardInterrupt()]
)
def test_what_is_no_mistake_of_the_function_passes_on(error):
    def raises(p, batch):
        raise error

    with pytest.raises(type(error)):
        lla.landscape.losses(raises, {"w": np.ones(2)}, {"w": np.ones((1, 2))}, np.zeros((1, 1)), X)


def criterion(outputs, batch):
    return jnp.square(outputs).sum(-1)


def in_inputs(raises):
    model = eqx.nn.Linear(5, 2, key=jax.random.key(0))
    lla.from_equinox(model, criterion, inputs=raises).apply(eqx.filter(model, eqx.is_inexact_array), None, DATA, False)


def in_an_equinox_model(raises):
    model = eqx.nn.Lambda(raises)
    model = eqx.nn.Sequential([eqx.nn.Linear(5, 2, key=jax.random.key(0)), model])
    lla.from_equinox(model, criterion).apply(eqx.filter(model, eqx.is_inexact_array), None, DATA, False)


def in_a_criterion(raises):
    check(lla.Loss(apply, raises))


def in_a_rule(raises):
    axes = lla.directions.random(jax.random.key(0), params())
    lla.evaluate(mlp_loss(), params(), DATA, directions=axes, grid=lla.grid(points=3), rule=raises)


@pytest.mark.parametrize("error", [MemoryError("none left"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")])
@pytest.mark.parametrize("place", [in_inputs, in_an_equinox_model, in_a_criterion, in_a_rule])
def test_a_lack_of_memory_passes_on_wherever_it_shows(place, error):
    def raises(*args, **options):
        raise error

    with pytest.raises(type(error)) as caught:
        place(raises)
    assert caught.value is error


def test_nothing_is_tried_of_a_model_that_takes_only_its_own_number_of_rows(monkeypatch):
    tried = []
    monkeypatch.setattr(tries, "of_model", lambda f, given: tried.append(f))

    def fixed(p, state, batch, train):
        if batch[0].shape[0] != 6:
            raise TypeError("6 rows")
        return apply(p, state, batch, train)

    lla.check_examples(lla.Loss(fixed, cross_entropy), params(), DATA, batch_size=6)
    assert not tried
    with pytest.raises(ValueError, match="6 rows"):
        check(lla.Loss(fixed, cross_entropy), DATA)
    assert len(tried) == 1


ADVISED = {
    "swapped data": (mlp_loss(), (Y, X), "(inputs, labels)", (mlp_loss(), DATA)),
    "labels as floats": (mlp_loss(), (X, Y.astype("f")), "astype(np.int32)", (mlp_loss(), (X, Y.astype(np.int32)))),
    "labels in a column": (mlp_loss(), (X, Y[:, None]), "data[1][..., 0]", (mlp_loss(), (X, Y[:, None][..., 0]))),
    "one-hot": (mlp_loss(), (X, np.eye(3)[Y]), "argmax(-1)", (mlp_loss(), (X, np.eye(3)[Y].argmax(-1)))),
    "a dict": (mlp_loss(), {"a": X, "b": Y}, "(data['a'], data['b'])", (mlp_loss(), DATA)),
    "batches": (mlp_loss(), [DATA, DATA], "lla.stream(batches)", (mlp_loss(), lla.stream([DATA, DATA]))),
    "criterion of labels": (
        lla.Loss(apply, lambda o, y: cross_entropy(o, (None, y))),
        DATA,
        "f(outputs, batch[1])",
        (lla.Loss(apply, lambda o, b: cross_entropy(o, (None, b[1]))), DATA),
    ),
}


@pytest.mark.parametrize("name", ADVISED)
def test_what_is_advised_works(name):
    loss, data, advice, remedy = ADVISED[name]
    with pytest.raises(called.CallFailed) as caught:
        check(loss, data)
    assert advice in str(caught.value)
    check(*remedy)


def test_a_row_of_the_inputs_is_no_advice():
    wrong = lambda p, b: jnp.mean(b[0] @ p["Dense_0"]["bias"])  # noqa: E731  (12, 5) @ (6,)
    with pytest.raises(ValueError, match="compare these shapes"):
        lla.check_examples(wrong, params(), (np.ones((12, 5, 5), "f"), Y))


def test_shapes_are_shown_briefly():
    assert called.show_shapes({"a": np.ones((2, 3), "f"), "b": [np.ones(1, "f"), None, 3]}) == (
        "{'a': float32 (2, 3), 'b': [float32 (1,), None, 3]}"
    )
    assert called.show_shapes(tuple(np.ones(1, "f") for _ in range(20))).count("float32") == called.MOST_SHOWN


def test_data_of_which_no_try_can_be_made_leave_the_error_of_the_user():
    keys = jax.random.split(jax.random.key(0), len(Y))
    for more in (Y > 0, keys):
        with pytest.raises(ValueError, match=r"the criterion failed with TypeError: tuple indices"):
            check(lla.Loss(apply, lambda outputs, batch: batch["nope"]), (X, Y, more))

    def impossible():
        raise ValueError("no such array")
        yield

    assert tries._first(impossible(), bool) is None
