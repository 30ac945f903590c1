"""Wrong numbers at the door: each kind ends as its right value, or as an error that says what to do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core import examples, rows
from tests.helpers import FIXED, MODELS, ONE, compilations

RNG = np.random.default_rng(0)
X = RNG.standard_normal((21, 5)).astype("f")
W = {"w": RNG.standard_normal((5, 4)).astype("f")}
COLUMN = {"w": RNG.standard_normal((5, 1)).astype("f")}
Y = X @ COLUMN["w"][:, 0]


def linear(p, state, batch, train):
    return (batch[0] if isinstance(batch, tuple | list) else batch) @ p["w"], state


def squares(outputs, batch):
    return (outputs**2).sum(1)


def line(loss, params, data, **options):
    axis = lla.directions.given(jax.tree.map(jnp.ones_like, params))
    grid = lla.grid(extent=0.1, points=3, dims=1)
    return lla.evaluate(loss, params, data, axis, grid, **{"execution": FIXED, **options}).values["loss"]


def hessian(loss, params, data):
    return lla.hessian(loss, params, data, execution=ONE)


def pure(loss, params, data):
    return lla.landscape.losses(loss, params, jax.tree.map(lambda x: x[None], params), np.zeros((1, 1), "f"), data)


@pytest.mark.parametrize("call", [line, hessian, lla.directions.gradient, pure, lla.check_examples])
def test_losses_that_broadcast_are_refused_with_both_shapes(call):
    with pytest.raises(ValueError, match=r"\(\d+, \d+\) for \d+ examples and .*outputs\[:, 0\] or labels\[:, None\]"):
        call(lla.Loss(linear, lambda o, b: (o - b[1]) ** 2), COLUMN, (X, Y))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_losses_that_broadcast_are_seen_in_a_few_examples(rows):
    with pytest.raises(ValueError, match=r"loss: has shape"):
        lla.check_examples(lla.Loss(linear, lambda o, b: (o - b[1]) ** 2), COLUMN, (X[:rows], Y[:rows]))


def test_losses_that_broadcast_have_their_value_with_equal_shapes():
    assert line(lla.Loss(linear, lambda o, b: (o[:, 0] - b[1]) ** 2), COLUMN, (X, Y))[1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
@pytest.mark.parametrize("reverse", [False, True])
def test_losses_that_broadcast_in_a_scalar_are_warned_of(wrap, reverse):
    sign = -1 if reverse else 1
    coupled = lla.Loss(linear, lambda o, b: jnp.abs(sign * (o - b[1])).mean(), per_example=False)
    plain = wrap(lambda p, b: jnp.mean((b[1] - b[0] @ p["w"]) ** 2 if reverse else (b[0] @ p["w"] - b[1]) ** 2))
    for loss in (coupled, plain):
        with pytest.warns(UserWarning, match=r"\(N, 1\) with \(N,\)"):
            lla.check_examples(loss, COLUMN, (X, Y))


PAIRS = {
    "where": lambda o, y: jnp.where(y > 0, jax.nn.softplus(-o), jax.nn.softplus(o)),
    "broadcast": lambda o, y: jnp.subtract(*jnp.broadcast_arrays(o, y)) ** 2,
    "three axes": lambda o, y: (o[:, :, None] - y[:, None]) ** 2,
    "vmap": lambda o, y: jax.vmap(lambda s: (s * o - y) ** 2)(jnp.arange(3.0)),
    "clipped": lambda o, y: jnp.clip(o - y, -1, 1),
}


@pytest.mark.parametrize("name", PAIRS)
def test_losses_that_broadcast_in_a_scalar_are_warned_of_in_every_form(name):
    with pytest.warns(UserWarning, match=r"\(N, 1\) with \(N,\)"):
        lla.check_examples(lambda p, b: PAIRS[name](b[0] @ p["w"], b[1]).mean(), COLUMN, (X, Y))


def test_losses_that_broadcast_in_a_scalar_are_warned_of_for_a_fixed_number_of_rows():
    with pytest.warns(UserWarning, match=r"\(N, 1\) with \(N,\)"):
        lla.check_examples(lambda p, b: ((b[0].reshape(21, 5) @ p["w"] - b[1]) ** 2).mean(), COLUMN, (X, Y))


def test_quantile_levels_as_many_as_rows_are_no_pairs():
    levels = jnp.linspace(0.1, 0.9, 11)
    lla.check_examples(lambda p, b: jnp.abs(b[0] @ p["w"] - levels).mean(), COLUMN, (X, Y))


def test_pairs_that_the_user_puts_in_are_not_warned_of():
    def distances(p, b):  # all pairs of outputs and targets, as in a maximum mean discrepancy
        return jnp.mean(((b[0] @ p["w"])[:, 0][:, None] - b[1][None, :]) ** 2)

    lla.check_examples(distances, COLUMN, (X, Y))
    lla.check_examples(lambda p, b: jnp.mean((b[0] @ p["w"] - b[1][:, None]) ** 2), COLUMN, (X, Y))


def standardised(p, state, batch, train):
    hidden = linear(p, state, batch, train)[0]
    return (hidden - hidden.mean(0)) / (hidden.std(0) + 1e-3), state


def over_time(p, state, batch, train):
    """A recurrence over the leading axis, as torch's layout (T, N, F) would have it."""
    return jax.lax.scan(lambda h, x: (jnp.tanh(x @ p["w"] + h),) * 2, jnp.zeros(4), batch)[1], state


def with_batch_norm(p, state, batch, train):
    """Batch statistics, whatever ``train`` says."""
    hidden = linear(p, state, batch, train)[0]
    return (hidden - hidden.mean(0)) * jax.lax.rsqrt(hidden.var(0) + 1e-5), state


COUPLED = {
    "standardised": lla.Loss(standardised, squares),
    "time first": lla.Loss(over_time, squares),
    "batch norm": lla.Loss(with_batch_norm, lambda o, b: jnp.abs(o).sum(1)),
    "contrastive": lla.Loss(linear, lambda o, b: -jnp.diagonal(jax.nn.log_softmax(o @ o.T))),
    "divided by the batch": lla.Loss(linear, lambda o, b: squares(o, b) / len(o)),
    "mean over labels": lla.Loss(linear, lambda o, b: ((o[:, :1] - b[:, 0]) ** 2).mean(1)),
    "by position": lla.Loss(linear, lambda o, b: squares(o, b) * jnp.arange(len(o))),
    "normalised weights": lla.Loss(linear, lambda o, b: (squares(o, b), jax.nn.softmax(b[:, 0]))),
}


@pytest.mark.parametrize("name", COUPLED)
def test_examples_that_see_each_other_are_refused(name):
    with pytest.raises(ValueError, match=r"loss: .* must not depend on the other.*\(T, N, F\).*per_example=False"):
        lla.check_examples(COUPLED[name], W, X)


@pytest.mark.parametrize("call", [line, hessian, lla.directions.gradient])
@pytest.mark.parametrize("data", [X, lla.stream([X[:8], X[8:]])], ids=["in memory", "streamed"])
def test_examples_that_see_each_other_are_refused_by_every_function(call, data):
    with pytest.raises(ValueError, match="must not depend on the other examples"):
        call(lla.Loss(linear, COUPLED["contrastive"].criterion), W, data)


def test_examples_that_see_each_other_are_found_behind_parameters_of_zero():
    zero = jax.tree.map(np.zeros_like, W)
    with pytest.raises(ValueError, match="must not depend"):
        lla.check_examples(lla.Loss(standardised, lambda o, b: squares(o, b) + b[:, 0]), zero, X)


def test_examples_that_see_each_other_are_found_in_a_model_of_a_fixed_batch():
    def fixed(p, state, batch, train):
        return batch[0].reshape(4, 5) @ p["w"], state

    with pytest.raises(ValueError, match="must not depend"):  # labels of a class each: (4, 4) less (4,)
        lla.check_examples(lla.Loss(fixed, lambda o, b: (o - b[1]) ** 2), W, (X[:4], Y[:4]))
    lla.check_examples(lla.Loss(fixed, squares), W, (X[:4], Y[:4]))


def test_examples_that_see_each_other_in_the_criterion_are_found_with_batch_statistics():
    for criterion in (lambda o, b: squares(o, b) / len(o), COUPLED["contrastive"].criterion):
        with pytest.raises(ValueError, match="must not depend"):
            line(lla.Loss(centred_in_train, criterion, np.zeros(4, "f")), W, X, batch_stats="batch")


def test_examples_that_see_each_other_are_found_in_later_batches_of_a_stream():
    contrastive = lla.Loss(linear, COUPLED["contrastive"].criterion)
    for call in (line, hessian, lla.directions.gradient):
        with pytest.raises(ValueError, match="must not depend"):
            # an operator reads the second batch at its first product
            (lambda H: H.product(H.random(jax.random.key(0))))(call(contrastive, W, lla.stream([X[:1], X[1:]])))
    apart = lla.Loss(linear, lambda o, b: (o - b[1]) ** 2)
    with pytest.raises(ValueError, match="has shape"):
        line(apart, COLUMN, (X, Y[:, None]), extra_data={"t": lla.stream([(X, Y)])})


def test_examples_that_see_each_other_are_found_where_losses_sleep():
    def gated(p, state, batch, train):
        hidden = batch @ p["w"]
        return hidden + p["gate"][1] * hidden.mean(0), state

    with pytest.raises(ValueError, match="must not depend"):
        lla.check_examples(lla.Loss(gated, squares), W | {"gate": np.array([1, 0], "f")}, X)
    hidden = X[:16] @ W["w"]
    most = float(np.abs(hidden - hidden.mean(0)).sum(1).max()) + 1e-3
    asleep = lla.Loss(linear, lambda o, b: jax.nn.relu(jnp.abs(o - o.mean(0)).sum(1) - most))
    with pytest.raises(ValueError, match="must not depend"):
        lla.check_examples(asleep, W, X[:16])


def test_examples_that_see_each_other_are_found_in_three_rows_where_two_show_nothing():
    def criterion(o, b):  # the losses of one row, and of two opposite ones, are 0
        centred = 9 * (o - o.mean(0))
        return -jnp.diagonal(jax.nn.log_softmax(centred @ centred.T))

    with pytest.raises(ValueError, match="must not depend"):
        lla.check_examples(lla.Loss(linear, criterion), W, X[:3])


def test_examples_that_see_each_other_are_found_in_a_model_of_multiples():
    def ghost(p, state, batch, train):  # statistics of groups of 32
        hidden = (batch @ p["w"]).reshape(-1, 32, 4)
        return (hidden - hidden.mean(1, keepdims=True)).reshape(-1, 4), state

    many = np.resize(X, (5120, 5)) * np.linspace(1, 2, 5120, dtype="f")[:, None]
    for batch_size in (None, 64):
        with pytest.raises(ValueError, match="must not depend"):
            lla.check_examples(lla.Loss(ghost, squares), W, many, batch_size=batch_size)


def test_metrics_that_see_other_examples_are_refused_by_name():
    with pytest.raises(ValueError, match=r"centred: .* must not depend"):
        line(lla.Loss(linear, squares), W, X, metrics={"centred": lambda o, b: o[:, 0] - o[:, 0].mean()})


def noisy(p, state, batch, train, keys):
    return linear(p, state, batch, train)[0] + jax.vmap(lambda k: jax.random.normal(k, (4,)))(keys), state


def centred_in_train(p, state, batch, train):
    hidden = linear(p, state, batch, train)[0]
    return hidden - (hidden.mean(0) if train else state), state


def deep(p, state, batch, train):
    hidden = batch
    for _ in range(30):  # rounding grows with depth
        hidden = jnp.sin(3 * hidden @ p["w"] @ p["w"].T)
    return hidden, state


APART = {
    "noise by example": (lla.Loss(noisy, squares, key=jax.random.key(0)), W, {}),
    "batch statistics": (lla.Loss(centred_in_train, squares, np.zeros(4, "f")), W, {"batch_stats": "batch"}),
    "frozen statistics": (lla.Loss(centred_in_train, squares, np.zeros(4, "f")), W, {}),
    "chaotic": (lla.Loss(deep, squares), W, {}),
    "half precision": (lla.Loss(linear, squares), jax.tree.map(lambda x: x.astype(jnp.bfloat16), W), {}),
    "masked NaN": (
        lla.Loss(linear, lambda o, b: (jnp.log(b[:, 0]) + o[:, 0], jnp.where(b[:, 0] > 0, 1.0, 0.0))),
        W,
        {},
    ),
    "a metric of 0 and 1": (lla.Loss(linear, squares), W, {"metrics": {"a": lambda o, b: o.argmax(1) == 0}}),
}


@pytest.mark.parametrize("name", APART)
def test_no_false_alarm_over_examples_that_do_not_see_each_other(name):
    loss, params, options = APART[name]
    assert np.isfinite(line(loss, params, X, **options)).all()


@pytest.mark.parametrize("name", MODELS)
def test_no_false_alarm_over_the_models_of_the_tests(name):
    lla.check_examples(*MODELS[name])


def test_noise_without_a_key_is_not_taken_for_examples_that_see_each_other():
    def noise(x):
        return x + np.random.default_rng().standard_normal(x.shape).astype("f")

    def stochastic(p, state, batch, train):
        shape = jax.ShapeDtypeStruct((len(batch), 4), jnp.float32)
        return jax.pure_callback(noise, shape, linear(p, state, batch, train)[0]), state

    lla.check_examples(lla.Loss(stochastic, squares), W, X)


def test_a_second_value_of_a_plain_function_is_refused():
    with pytest.raises(ValueError, match=r"returned a tuple; it must return one scalar.*f\(params, batch\)\[0\]"):
        line(lambda p, b: (jnp.mean((b @ p["w"]) ** 2), jnp.mean(b)), W, X)


@pytest.mark.parametrize(
    "loss",
    [
        lla.Loss(linear, lambda o, b: (squares(o, b), o.argmax(1) == 0)),
        lla.Loss(linear, jax.jit(lambda o, b: (squares(o, b), jnp.abs(o).sum(1)))),
        lla.Loss(linear, lambda o, b: (squares(o, b).mean(), o.mean()), per_example=False),
    ],
    ids=["accuracy", "jitted", "coupled"],
)
def test_a_second_value_that_depends_on_the_parameters_is_no_weight(loss):
    with pytest.raises(ValueError, match=r"second entry is the weights.*metrics="):
        line(loss, W, X)


def test_a_second_value_of_constants_is_the_weight():
    weights = 1 + np.arange(21) % 3
    found = line(lla.Loss(linear, lambda o, b: (squares(o, b), b[1])), W, (X, weights.astype("f")))[1]
    assert found == pytest.approx(np.average(((X @ W["w"]) ** 2).sum(1), weights=weights), rel=1e-5)


@pytest.mark.parametrize("loss", [lla.Loss(linear, squares), lambda p, b: jnp.mean((b[0] @ p["w"]) ** 2)])
def test_a_list_of_batches_is_no_data_set(loss):
    with pytest.raises(ValueError, match=r"does not read entry 1.*lla.stream\(batches\)"):
        line(loss, W, [X[:7], X[7:14], X[14:]])
    with pytest.raises(ValueError, match=r"leaves of different length.*lla.stream\(batches\)"):
        line(loss, W, [X[:8], X[8:14], X[14:]])


def test_a_list_of_inputs_and_labels_is_a_data_set():
    lla.check_examples(lla.Loss(linear, squares), COLUMN, [X, Y])


def test_a_mask_that_the_model_does_not_read_makes_no_list_of_batches():
    ids = np.arange(12).reshape(6, 2)
    loss = lla.Loss(lambda p, s, b, train: (p["w"][b[0], 0], s), lambda o, b: ((o - b[2]) ** 2).sum(1))
    lla.check_examples(loss, {"w": RNG.standard_normal((12, 1)).astype("f")}, (ids, np.ones_like(ids), ids))


def test_a_tuple_of_batches_is_no_data_set():
    with pytest.raises(ValueError, match=r"a tuple of 3 entries.*lla.stream\(batches\)"):
        lla.check_examples(lla.Loss(linear, squares), W, (X[:7], X[7:14], X[14:]))


@pytest.mark.parametrize("second", [lambda o: {"accuracy": o[:, 0]}, lambda o: (o, o)])
def test_a_second_value_that_is_no_array_is_refused(second):
    for separate in (True, False):
        reduce = (lambda x: x) if separate else jnp.mean
        loss = lla.Loss(linear, lambda o, b, f=reduce: (f(squares(o, b)), second(o)), per_example=separate)
        with pytest.raises(ValueError, match=r"returned a tuple of .*\(values, weights\)"):
            line(loss, W, X)


def test_masked_parameters_do_not_lose_their_mask():
    with pytest.raises(ValueError, match=r"params\['w'\] is a masked array"):
        line(lla.Loss(linear, squares), {"w": np.ma.masked_array(W["w"], W["w"] > 0)}, X)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: lla.stream([x])], ids=["in memory", "streamed"])
def test_masked_arrays_do_not_lose_their_mask(wrap):
    masked = np.ma.masked_array(X, X > 1)
    with pytest.raises(ValueError, match=r"masked array of shape \(21, 5\).*\(losses, weights\)"):
        line(lla.Loss(linear, squares), W, wrap(masked))
    lla.check_examples(lla.Loss(linear, squares), W, wrap(np.ma.masked_array(X)))


def test_the_check_is_made_once_per_model_and_compiles_two_programs(monkeypatch):
    calls = []
    call = rows.Run.__call__
    monkeypatch.setattr(rows.Run, "__call__", lambda self, *args: calls.append(len(args[1])) or call(self, *args))
    scale = RNG.random()  # a model that no other test has
    loss = lla.Loss(linear, functools.partial(lambda s, o, b: s * squares(o, b), scale))
    with compilations() as seen:
        lla.check_examples(loss, W, X)
    assert seen.count == 2
    assert sum(calls) == 3 * examples.ROWS  # a block, its halves, and the block in another order
    with compilations() as seen:
        lla.check_examples(loss, jax.tree.map(lambda x: 2 * x, W), X[:18])
    assert seen.count == 0
    assert sum(calls) == 3 * examples.ROWS


def test_losses_may_print_and_call_back():
    def printed(outputs, batch):
        losses = squares(outputs, batch)
        jax.debug.callback(lambda x: None, losses)
        return losses, jnp.ones(len(losses))

    plain = jax.jit(lambda p, b: printed(linear(p, None, b, False)[0], b)[0].mean())
    for loss in (lla.Loss(linear, printed), plain):
        lla.check_examples(loss, W, X)
    with pytest.raises(ValueError, match="does not depend on params"):
        lla.check_examples(lambda p, b: [jax.debug.callback(lambda x: None, p), jnp.zeros(())][1], W, X)


def test_data_may_be_random_keys():
    def noisy(p, state, batch, train):
        noise = jax.vmap(lambda key: jax.random.normal(key, (5,)))(batch["keys"])
        return (batch["x"] + noise) @ p["w"], state

    data = {"x": X, "keys": jax.random.split(jax.random.key(0), len(X))}
    lla.check_examples(lla.Loss(noisy, squares), W, data)


def test_a_stream_may_begin_with_a_batch_that_does_not_count():
    weighted = lambda o, b: (squares(o, b), b[1])  # noqa: E731
    summed = lambda o, b: ((squares(o, b) * b[1]).sum() / jnp.maximum(b[1].sum(), 1), b[1].sum())  # noqa: E731
    batches = [(X[:4], np.zeros(4)), (X[4:8], np.ones(4))]
    want = squares(X[4:8] @ W["w"], None).mean()
    for loss in (lla.Loss(linear, weighted), lla.Loss(linear, summed, per_example=False)):
        assert line(loss, W, lla.stream(batches))[1] == pytest.approx(want, rel=1e-5)
        lla.hessian(loss, W, lla.stream(batches))
    with pytest.raises(ValueError, match="all of its weights are 0"):
        lla.check_examples(lla.Loss(linear, lambda o, b: (squares(o, b), b[1])), W, lla.stream(batches[:1] * 2))
