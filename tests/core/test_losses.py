"""Losses, their sums, weights and gradients: definitions in float64, and results that no cut of the data changes."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core import gradients, losses
from lla_jax.core.data import num_examples
from tests.core.cases import DATA, LINE, N, cut, run
from tests.helpers import FIXED, MODELS, accuracy, apply, cross_entropy, mlp_loss, params, reference_losses


def test_standard_error_is_that_of_the_mean(in_memory, axis):
    exact = reference_losses(params(), DATA)
    assert in_memory.stderr["loss"][1] == pytest.approx(exact.std(ddof=1) / np.sqrt(N), rel=1e-5)


def test_standard_error_keeps_its_digits_when_the_mean_is_large(axis):
    loss = lla.Loss(lambda p, s, b, t: (p["gain"], s), lambda o, b: 1e4 + b[0][:, 0] + 0 * o)
    noise = np.asarray(DATA[0][:, 0], np.float64)
    values = np.float64(np.float32(1e4) + DATA[0][:, 0])
    found = run(axis, DATA, loss).stderr["loss"][1]
    assert found == pytest.approx(values.std(ddof=1) / np.sqrt(N), rel=1e-4)
    assert found == pytest.approx(noise.std(ddof=1) / np.sqrt(N), rel=1e-2)


def sums_about(shift, s, w):
    """The definition, in float64."""
    e = s - shift * w
    return lla.data.Sums((w != 0).sum(), w.sum(), shift, e.sum(), (w * w).sum(), (w * e).sum(), (e * e).sum())


def test_sums_of_known_numbers():
    found = sums_about(0.0, np.array([1.0, 2.0, 6.0]), np.ones(3))
    assert (found.mean, found.standard_error) == (3.0, pytest.approx(np.sqrt(7 / 3), rel=1e-15))
    weighted = sums_about(0.0, np.array([1.0, 6.0]), np.array([1.0, 3.0]))  # losses 1 and 2, the second thrice as heavy
    assert weighted.mean == 7 / 4
    squares = (1 - 7 / 4) ** 2 + (6 - 3 * 7 / 4) ** 2
    assert weighted.standard_error == pytest.approx(np.sqrt(squares * 2 / 1) / 4, rel=1e-15)
    assert np.isnan(sums_about(0.0, np.ones(1), np.ones(1)).standard_error)
    for weight in np.random.default_rng(0).uniform(0.1, 3, 100):  # not infinite, whatever rounding leaves
        assert np.isnan(sums_about(0.1, np.full(1, 2.7), np.full(1, weight)).standard_error)
    assert np.isnan(sums_about(0.0, np.zeros(2), np.zeros(2)).mean)


@pytest.mark.parametrize("shift", [-7.0, 0.1, 3.0, 1e3])
def test_means_and_standard_errors_do_not_depend_on_the_shift(shift):
    rng = np.random.default_rng(0)
    w = rng.integers(0, 4, 50).astype(float)
    s = w * (3 + rng.standard_normal(50))
    expected, found = sums_about(0.0, s, w), sums_about(shift, s, w)
    for one in (found, found.about_zero()):
        assert one.mean == pytest.approx(expected.mean, rel=1e-12)
        assert one.standard_error == pytest.approx(expected.standard_error, rel=1e-8)
    np.testing.assert_allclose(found.about_zero(), expected, rtol=1e-8)


def test_blocks_add_up_to_the_sums_of_all_their_examples():
    rng = np.random.default_rng(1)
    values = (1e4 + rng.standard_normal((2, 30))).astype(np.float32)  # of two points
    mask = np.arange(30) < 27
    blocks = [
        [losses.pack(losses.example_sums("loss", jnp.asarray(x[i : i + 10]), mask[i : i + 10])) for i in (0, 10, 20)]
        for x in values
    ]
    found = losses.unpack(losses.total(np.array(blocks)))
    assert found.mean.shape == (2,)
    kept = values[:, :27].astype(np.float64)
    np.testing.assert_array_equal(found.n, 27)
    np.testing.assert_array_equal(found.m, 0)
    np.testing.assert_allclose(found.mean, kept.mean(1), rtol=1e-9)
    np.testing.assert_allclose(found.standard_error, kept.std(1, ddof=1) / np.sqrt(27), rtol=1e-4)


def test_sums_of_a_batch_coupled_loss_have_a_mean():
    parts = [losses.batch_sums(jnp.float32(value), np.ones(rows, bool)) for value, rows in ((2.0, 3), (6.0, 1))]
    found = losses.unpack(losses.total(np.array([losses.pack(part) for part in parts])))
    assert found.mean == 3.0


def tokens(n=11, length=6):
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, length + 1, n)
    return {
        "x": rng.standard_normal((n, length)).astype(np.float32),
        "mask": (np.arange(length) < lengths[:, None]).astype(np.float32),
    }


def masked(outputs, batch):
    per_token = (outputs[:, None] * batch["x"] - 1) ** 2
    hostile = jnp.where(batch["mask"] > 0, per_token, jnp.nan)  # what is masked out may be anything
    return hostile, batch["mask"]


def outputs_gain(p, state, batch, train):
    return jnp.full(len(batch["x"]), p["gain"]), state


def test_masked_tokens_are_weighted_over_the_whole_data_set(axis):
    data = tokens()
    loss = lla.Loss(outputs_gain, masked)
    per_token = (np.float64(1.5) * data["x"] - 1) ** 2
    w, s = data["mask"].sum(1), (data["mask"] * per_token).sum(1)
    mean = s.sum() / w.sum()
    n = len(w)
    error = np.sqrt(((s - mean * w) ** 2).sum() * n / (n - 1)) / w.sum()
    for source in (data, lla.stream(cut_dict(data, (3, 4))), lla.stream(cut_dict(data, (2,)))):
        found = run(axis, source, loss)
        assert found.values["loss"][1] == pytest.approx(mean, rel=1e-6)
        assert found.stderr["loss"][1] == pytest.approx(error, rel=1e-5)


def cut_dict(data, sizes):
    start, batches = 0, []
    for size in itertools.cycle(sizes):
        if start >= len(data["x"]):
            return batches
        batches.append({k: v[start : start + size] for k, v in data.items()})
        start += size


def test_losses_per_token_without_weights_count_every_token(axis):
    data = tokens()
    loss = lla.Loss(outputs_gain, lambda outputs, batch: (outputs[:, None] * batch["x"] - 1) ** 2)
    expected = ((np.float64(1.5) * data["x"] - 1) ** 2).mean()
    assert run(axis, data, loss).values["loss"][1] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("weights", [lambda b: b["mask"], lambda b: b["mask"].T[:, :1], lambda b: b["mask"][:, :1].T])
def test_weights_of_another_shape_are_refused(axis, weights):
    loss = lla.Loss(outputs_gain, lambda o, b: (b["x"][:, 0] + 0 * o, weights(b)))
    with pytest.raises(ValueError, match="their weights"):
        run(axis, tokens(), loss)


def test_a_batch_of_weight_zero_counts_nothing_whatever_its_loss(axis):
    def criterion(outputs, batch):
        weight = batch["mask"].sum()
        return jnp.where(weight > 0, (batch["x"] * batch["mask"]).sum() * outputs[0] / weight, jnp.nan), weight

    data = tokens(n=8) | {}
    data["mask"][4:] = 0
    loss = lla.Loss(outputs_gain, criterion, per_example=False)
    expected = 1.5 * (data["x"] * data["mask"]).sum() / data["mask"].sum()
    assert run(axis, data, loss, batch_size=4).values["loss"][1] == pytest.approx(expected, rel=1e-5)


def spread(outputs, batch):
    """A batch-coupled loss: the variance of the first logit within the batch."""
    return outputs[:, 0].var()


@pytest.mark.parametrize("batch_size", [None, 5, 4])
def test_batch_coupled_losses_are_never_cut_or_padded(axis, batch_size):
    loss = mlp_loss(per_example=False)
    loss = lla.Loss(apply, spread, per_example=False)
    logits = np.asarray(apply(params(), None, DATA, False)[0][:, 0], np.float64)
    cuts = range(0, N, batch_size or N)
    parts = [logits[s : s + (batch_size or N)] for s in cuts]
    expected = sum(len(p) * p.var() for p in parts) / N
    found = run(axis, DATA, loss, batch_size=batch_size)
    assert found.values["loss"][1] == pytest.approx(expected, rel=1e-5)
    assert "loss" not in found.stderr
    streamed = run(axis, lla.stream(cut(DATA, (batch_size or N,))), loss)
    np.testing.assert_allclose(streamed.values["loss"], found.values["loss"], rtol=1e-6)


def test_a_plain_function_is_a_batch_coupled_loss(axis, in_memory):
    def plain(p, batch):
        return cross_entropy(apply(p, None, batch, False)[0], batch).mean()

    for source in (DATA, lla.stream(cut(DATA, (5, 6)))):
        np.testing.assert_allclose(run(axis, source, plain).values["loss"], in_memory.values["loss"], rtol=1e-6)
    np.testing.assert_allclose(run(axis, DATA, plain, batch_size=7).values["loss"], in_memory.values["loss"], rtol=1e-6)
    with pytest.raises(ValueError, match="plain function"):
        run(axis, DATA, plain, batch_stats="batch")
    with pytest.raises(ValueError, match="plain function hides"):
        run(axis, DATA, plain, metrics={"accuracy": accuracy})


def test_noise_is_common_to_all_points_and_independent_of_the_batching(axis):
    def noisy(p, state, batch, train, keys):
        mask = jax.vmap(lambda k: jax.random.bernoulli(k, 0.5, (5,)))(keys)
        return apply(p, state, (2 * mask * batch[0], batch[1]), train)

    loss = lla.Loss(noisy, cross_entropy, key=jax.random.key(4))
    one = run(axis, DATA, loss)
    for source in (lla.stream(cut(DATA, (3, 4))), lla.stream(cut(DATA, (9,)))):
        np.testing.assert_allclose(run(axis, source, loss).values["loss"], one.values["loss"], rtol=1e-6)
    still = lla.directions.given(jax.tree.map(lambda x: 1e-30 * np.ones_like(x), params()))
    same = lla.evaluate(loss, params(), DATA, still, LINE, execution=FIXED).values["loss"]
    np.testing.assert_allclose(same, same[1], rtol=1e-6)
    other = lla.Loss(noisy, cross_entropy, key=jax.random.key(5))
    assert run(axis, DATA, other).values["loss"][1] != pytest.approx(one.values["loss"][1], rel=1e-3)


def test_mean_gradient_of_weighted_batches_and_penalty():
    def total(p):
        return cross_entropy(apply(p, None, DATA, False)[0], DATA).mean() + (p["gain"] ** 2)

    expected = jax.grad(total)(params())
    loss = mlp_loss(penalty=lambda p: p["gain"] ** 2)
    for source, size in ((DATA, None), (DATA, 4), (lla.stream(cut(DATA, (3, 4))), None)):
        found = lla.data.mean_gradient(loss, params(), source, batch_size=size)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, expected)
    axis = lla.directions.gradient(loss, params(), DATA, batch_size=6)
    np.testing.assert_allclose(axis.tree["gain"][0], expected["gain"], rtol=1e-5)


def squared_error(params, batch):
    return ((batch[0] @ params - batch[1]) ** 2).mean()


def test_plain_function():
    loss, weights = losses.as_loss(squared_error), jnp.ones(5)
    outputs, state = loss.apply(weights, loss.state, DATA, False)
    assert loss.criterion(outputs, DATA) == squared_error(weights, DATA)
    assert state is None
    assert not loss.per_example
    assert losses.as_loss(loss) is loss
    assert jax.tree.structure(losses.as_loss(squared_error)) == jax.tree.structure(loss)
    assert jax.tree.structure(losses.as_loss(lambda p, b: 0.0)) != jax.tree.structure(loss)


def test_plain_function_must_be_callable():
    with pytest.raises(ValueError, match=r"loss: \{\} given; it must be an lla.Loss"):
        losses.as_loss({})


@pytest.mark.parametrize("name", MODELS)
def test_sums_and_gradients_of_all_models(name):
    """The value and gradient over all examples are those of one batch, whatever the blocks they are added up from."""
    loss, params, data = MODELS[name]

    def compute(p, batch):
        rows = num_examples(batch)
        block = losses.block_at(batch, 0, rows, rows, 0)
        return losses.outputs_of(loss, p, loss.state, block, False)[0], block

    def mean(p):
        total, weight = losses.loss_total(loss, *compute(p, data))
        return total / weight if loss.penalty is None else total / weight + loss.penalty(p)

    n = num_examples(data)
    value, gradient = jax.jit(jax.value_and_grad(mean))(params)
    sums = jax.jit(lambda p, batch: losses.loss_sums(loss, *compute(p, batch)))
    sizes = (4, n - 4) if loss.per_example else (n,)
    blocks = [losses.pack(sums(params, batch)) for batch in cut(data, sizes)]
    penalty = 0 if loss.penalty is None else loss.penalty(params)
    np.testing.assert_allclose(losses.unpack(losses.total(np.stack(blocks))).mean + penalty, value, rtol=1e-6)
    found = gradients.mean_gradient(loss, params, data, batch_size=4 if loss.per_example else None)
    chex.assert_trees_all_close(found, gradient, rtol=1e-5, atol=1e-6)


def test_the_leading_axis_of_a_block_is_asserted_while_tracing():
    with pytest.raises(AssertionError, match="assert_equal_shape_prefix"):
        losses.block_at((np.zeros((3, 2)), np.zeros(4)), 0, 2, 3, 0)


@pytest.mark.parametrize(
    ("result", "text"),
    [(lambda x: {"total": x}, "returned a dict"), (lambda x: None, "NoneType"), (lambda x: (None, x), "NoneType")],
)
def test_results_that_are_no_numbers_are_refused(result, text):
    rows = np.ones((4, 3), "float32")
    each = lla.Loss(lambda p, state, batch, train: (batch @ p, state), lambda outputs, batch: result(outputs))
    for loss in (each, lambda p, batch: result((batch @ p).mean())):
        with pytest.raises(ValueError, match="loss: ") as error:
            lla.check_examples(loss, np.ones(3, "float32"), rows)
        assert text in str(error.value) or "plain function returned a tuple" in str(error.value)


@pytest.mark.parametrize(
    "penalty", [lambda p: p**2, lambda p: (p**2).sum()[None], lambda p: None, lambda p: {"l2": 0.0}]
)
def test_penalties_that_are_no_scalars_are_refused(penalty):
    loss = lla.Loss(lambda p, state, batch, train: (batch @ p, state), lambda o, batch: o**2, penalty=penalty)
    rows, p = np.ones((4, 3), "float32"), np.ones(3, "float32")
    with pytest.raises(ValueError, match=r"penalty: returned .* must return a scalar"):
        lla.evaluate(loss, p, rows, lla.directions.random(jax.random.key(0), p, num=1), [np.zeros(1)])
    with pytest.raises(ValueError, match=r"penalty: returned .* must return a scalar"):
        lla.hessian(loss, p, rows).product(p)
    with pytest.raises(ValueError, match=r"penalty: returned .* must return a scalar"):
        gradients.mean_gradient(loss, p, rows)


@pytest.mark.parametrize("batch_size", ["16", -3, 2.5])
@pytest.mark.parametrize("separate", [True, False])
def test_a_wrong_batch_size_of_a_gradient_is_named(batch_size, separate):
    loss = mlp_loss() if separate else lla.Loss(apply, lambda o, b: o.mean(), per_example=False)
    with pytest.raises(ValueError, match="batch_size: "):
        lla.directions.gradient(loss, params(), DATA, batch_size=batch_size)


def test_losses_and_weights_of_a_coupled_loss_are_refused_as_no_scalar():
    loss = lla.Loss(apply, lambda o, b: (cross_entropy(o, b), jnp.ones(len(o))), per_example=False)
    with pytest.raises(ValueError, match="must return a scalar per batch"):
        lla.hessian(loss, params(), DATA)


def test_an_object_with_a_method_loss_may_be_a_loss():
    class Trainer:
        def loss(self):
            raise AssertionError

        def __call__(self, params, batch):
            return params["a"] ** 2

    assert not losses.as_loss(Trainer()).per_example
