"""Barriers of surfaces that are known, their errors from paired examples, and networks with BatchNorm."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lla_jax as lla
from lla_jax.paths.losses import peaks
from tests.helpers import FIXED, apply, compilations, cross_entropy, dataset, mlp_loss, params, reference_losses

DATA = dataset()
ENDS = [{"x": np.float32(x), "y": np.float32(0)} for x in (-1, 1)]


def measure(f, ends=ENDS, **options):
    return lla.paths.barrier(lambda p: f(p["x"], p["y"]), *ends, None, execution=FIXED, **options)


# --- surfaces


def test_the_ring_has_a_barrier_of_exactly_one():
    found = measure(lambda x, y: (x**2 + y**2 - 1) ** 2)
    assert (found.value, found.t, found.above_mean) == (1, 0.5, 1)
    assert found.stderr is None
    assert np.isnan(found.value_stderr)


@pytest.mark.parametrize("centre", [-0.3, 0.9, 4.0])
@pytest.mark.parametrize("offset", [0, 1e5])
def test_a_convex_quadratic_has_no_barrier_since_the_ends_count(centre, offset):
    found = measure(lambda x, y: (x - centre) ** 2 + 3 * y**2 + offset)
    assert (found.value, found.t) == (0, 0)
    assert found.above_mean == pytest.approx(abs(2 * centre), rel=1e-6, abs=1e-7 * offset)
    assert found.heights["loss"].above_mean_t == (1 if centre < 0 else 0)
    assert len(found.coords) < 35


PEAKS = {
    "smooth": lambda x, y: jnp.exp(-(((x - 0.137) / 0.2) ** 2)),
    "on a slope": lambda x, y: jnp.exp(-(((x - 0.137) / 0.2) ** 2)) + 0.7 * x,
    "a kink": lambda x, y: -abs(x - 0.137),
    "a small one between ends of very different losses": lambda x, y: (
        200 * x + 0.1 * jnp.exp(-(((x - 0.137) / 0.2) ** 2))
    ),
    "near an end": lambda x, y: jnp.exp(-(((x + 0.97) / 0.05) ** 2)) + 0.1 * x**2,
    "two of nearly one height": lambda x, y: (
        jnp.exp(-(((x - 0.137) / 0.1) ** 2)) + 1.002 * jnp.exp(-(((x + 0.511) / 0.1) ** 2))
    ),
}


@pytest.mark.parametrize("f", PEAKS.values(), ids=PEAKS)
def test_peaks_between_the_points_of_the_grid_are_found(f):
    found = measure(f)
    t = np.linspace(0, 1, 200_001)
    x = np.asarray(jax.jit(f)(2 * t - 1, 0), np.float64)
    over = x - ((1 - t) * x[0] + t * x[-1])
    assert found.value == pytest.approx(over.max(), abs=2e-5)
    assert found.t == pytest.approx(t[over.argmax()], abs=1e-3)
    assert found.above_mean == pytest.approx(x.max() - (x[0] + x[-1]) / 2, abs=2e-5)
    np.testing.assert_array_equal(found.coords[[0, -1]], [0, 1])
    assert (np.diff(found.coords) > 0).all()
    assert found.t in found.coords
    assert len(found.coords) < 70


def test_a_linear_loss_has_none_and_a_grid_has_at_least_three_points():
    assert measure(lambda x, y: 1 / 3 + 0.7 * x).value == 0
    with pytest.raises(ValueError, match=r"points: 2 given; it must be an integer of at least 3"):
        measure(lambda x, y: x, points=2)
    assert measure(lambda x, y: (x**2 - 1) ** 2, points=[0.1, 0.4]).value == pytest.approx(1, rel=1e-5)


def test_in_double_precision_much_smaller_heights_are_seen():
    with jax.enable_x64(True):
        ends = [{"x": np.float64(x), "y": np.float64(0)} for x in (-1, 1)]
        assert measure(lambda x, y: 1 - 1e-9 * x**2, ends).value == pytest.approx(1e-9, rel=1e-5)
        assert measure(lambda x, y: 1 / 3 + 0.7 * x, ends).value == 0


def test_both_heights_are_those_of_their_definitions_on_the_points():
    found = measure(PEAKS["on a slope"])
    x, t = found.losses, found.coords
    assert found.value == max(x - ((1 - t) * x[0] + t * x[-1]))
    assert found.above_mean == max(x) - (x[0] + x[-1]) / 2


def test_step_functions_are_halved_a_few_times_only():
    t = np.linspace(0, 1, 25)
    steps = np.round(3 * np.sin(np.pi * t))
    assert 0 < len(peaks.between(t, {"error": steps}, (), 0)) <= 12
    assert not len(peaks.between(t, {"error": steps}, (), peaks.STEP_ROUNDS))


# --- networks


def permuted(p):
    """The network with its hidden units in another order: the same function."""
    order = np.roll(np.arange(6), 2)
    first, second = p["Dense_0"], p["Dense_1"]
    new = {"kernel": first["kernel"][:, order], "bias": first["bias"][order]}
    return {"Dense_0": new, "Dense_1": second | {"kernel": second["kernel"][order]}, "gain": p["gain"]}


@pytest.fixture(scope="module")
def trained():
    """The small network after some steps of gradient descent."""

    @jax.jit
    def step(p):
        return jax.tree.map(
            lambda x, g: x - 0.3 * g, p, jax.grad(lambda p: cross_entropy(apply(p, 0, DATA, 0)[0], DATA).mean())(p)
        )

    p = params()
    for _ in range(60):
        p = step(p)
    return jax.tree.map(np.asarray, p)


def weighed(outputs, batch):
    return cross_entropy(outputs, batch), 1.0 + batch[1]


WEIGHTS = 1.0 + DATA[1]


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["mean", "weighted"])
def test_the_error_of_the_height_is_that_of_each_examples_difference(trained, weights):
    loss = mlp_loss() if weights is None else lla.Loss(apply, weighed)
    found = lla.paths.barrier(loss, trained, permuted(trained), DATA, execution=FIXED)
    curve, t, w = lla.paths.line(trained, permuted(trained)), found.t, np.ones(23) if weights is None else weights
    at, zero, one = (reference_losses(curve(x), DATA) for x in (t, 0, 1))
    d = at - (1 - t) * zero - t * one
    mean = (w * d).sum() / w.sum()
    assert found.value == pytest.approx(mean, rel=1e-5)
    assert found.value > 0.1
    expected = np.sqrt(23 / 22 * np.square(w * (d - mean)).sum()) / w.sum()
    assert found.value_stderr == pytest.approx(expected, rel=1e-4)
    k = list(found.coords).index(t)
    assert found.stderr[k] == pytest.approx(
        np.sqrt(23 / 22 * np.square(w * (at - (w * at).sum() / w.sum())).sum()) / w.sum(), rel=1e-4
    )


@pytest.mark.parametrize("shift", [-0.1, -5.0], ids=["within the error", "certain"])
def test_a_height_of_zero_has_an_error_where_the_examples_do_not_rule_out_a_hill(shift):
    c = np.random.default_rng(0).standard_normal(40).astype("float32")
    c += shift - c.mean()
    loss = lla.Loss(lambda p, state, c, train: (c * (1 - p["x"] ** 2), state), lambda outputs, c: outputs)
    found = lla.paths.barrier(loss, {"x": jnp.float32(-1)}, {"x": jnp.float32(1)}, c)
    error = c.std(ddof=1) / np.sqrt(40) if shift > -1 else 0
    assert (found.value, found.above_mean) == (0, 0)
    assert found.value_stderr == pytest.approx(error, rel=1e-4)
    assert found["loss"].above_mean_stderr == pytest.approx(error, rel=1e-4)


def test_sets_and_metrics_have_barriers_of_their_own_and_a_stream_gives_the_same(trained):
    metrics = {"error": lambda outputs, batch: outputs.argmax(-1) != batch[1]}
    options = {"metrics": metrics, "extra_data": {"test": dataset(9, 3)}, "execution": FIXED}
    ends = trained, permuted(trained)
    seen = []
    found = lla.paths.barrier(mlp_loss(), *ends, DATA, **options, progress=lambda *x: seen.append(x))
    assert set(found.heights) == {"loss", "error", "test_loss", "test_error"}
    assert seen[-1] == (len(found.coords), len(found.coords))
    stream = lla.stream([tuple(x[lo : lo + 9] for x in DATA) for lo in range(0, 23, 9)])
    streamed = lla.paths.barrier(mlp_loss(), *ends, stream, **options)
    for name, height in found.heights.items():
        for field, tolerance in (("value", 1e-5), ("stderr", 1e-4), ("t", 2e-3), ("above_mean", 1e-5)):
            assert getattr(streamed[name], field) == pytest.approx(getattr(height, field), rel=tolerance, abs=1e-6)
        x, t = found.values[name], found.coords
        assert height.value == max(x - ((1 - t) * x[0] + t * x[-1]))
    test = reference_losses(lla.paths.line(*ends)(found["test_loss"].t), dataset(9, 3))
    assert found["test_loss"].value == pytest.approx((test - reference_losses(trained, dataset(9, 3))).mean(), rel=1e-4)
    with pytest.raises(KeyError, match="it has 'loss'"):
        found["train_loss"]


def test_a_second_barrier_compiles_nothing(trained):
    lla.paths.barrier(mlp_loss(), trained, permuted(trained), DATA, execution=FIXED)
    with compilations() as seen:
        lla.paths.barrier(mlp_loss(), permuted(trained), trained, DATA, points=9, execution=FIXED)
    assert seen.count == 0


def test_along_a_curve_around_the_hill_the_barrier_is_lower():
    f = lla.Loss(lambda p, s, b, train: (p["x"] * b[0] + p["y"] * b[1], s), lambda o, b: (o**2 - 1) ** 2)
    ends = [{"x": np.float32(x), "y": np.float32(0)} for x in (-1, 1)]
    data = (np.float32([1, 0]), np.float32([0, 1]))
    found = lla.paths.barrier(f, *ends, data, execution=FIXED)
    assert (found.value, found.value_stderr) == (0.5, pytest.approx(0.5))  # the examples' differences are 1 and 0
    top = {"x": np.float32(0), "y": np.float32(1)}
    around = lla.paths.polygon([ends[0], top, ends[1]])
    assert lla.paths.barrier(f, *ends, data, curve=around, execution=FIXED).value == 0.0625


def test_batch_coupled_losses_have_no_error():
    coupled = lla.Loss(apply, lambda o, b: cross_entropy(o, b).mean() ** 2, per_example=False)
    found = lla.paths.barrier(coupled, params(0), params(1), DATA, execution=FIXED)
    assert found.stderr is None
    assert np.isnan(found.value_stderr)


def test_losses_that_are_not_finite_are_said_and_not_dropped():
    with pytest.warns(UserWarning, match="not finite at 3 of"):
        found = measure(lambda x, y: jnp.where(abs(x) < 0.1, jnp.nan, x**2))
    assert np.isnan(found.value)
    assert np.isnan(found.losses).sum() == 3
    with pytest.raises(ValueError, match="not finite at any point"):
        measure(lambda x, y: x * jnp.nan)


# --- BatchNorm


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(4)(x)))
        return nn.Dense(3)(x)


def criterion(outputs, batch):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1])


@pytest.fixture(scope="module")
def nets():
    """(loss with the state of a, a, b, the state of b): a trained network, and its hidden units in another order."""
    variables = Net().init(jax.random.key(0), DATA[0])
    loss = lla.from_linen(Net(), variables, criterion)

    @jax.jit
    def step(p, state):
        (_, new), slope = jax.value_and_grad(mean, has_aux=True)(p, state)
        return jax.tree.map(lambda x, g: x - 0.5 * g, p, slope), new

    def mean(p, state):
        outputs, new = loss.apply(p, state, DATA, True)
        return criterion(outputs, DATA).mean(), new

    a, state = variables["params"], loss.state
    for _ in range(100):
        a, state = step(a, state)
    order = np.array([2, 3, 1, 0])
    b = jax.tree.map(lambda x: x[..., order], {name: a[name] for name in ("Dense_0", "BatchNorm_0")})
    b["Dense_1"] = a["Dense_1"] | {"kernel": a["Dense_1"]["kernel"][order]}
    return lla.from_linen(Net(), {"params": a, **state}, criterion), a, b, jax.tree.map(lambda x: x[order], state)


def at_point(p):
    """The losses of single examples under the statistics of all of them, in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), p)
    hidden = DATA[0] @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    hidden = np.maximum(hidden * p["BatchNorm_0"]["scale"] + p["BatchNorm_0"]["bias"], 0)
    z = hidden @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]
    return np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), DATA[1]]


def test_statistics_are_reestimated_at_every_point_and_the_ends_own_are_reported(nets):
    loss, a, b, state_b = nets
    found = lla.paths.barrier(loss, a, b, DATA, state_b=state_b, execution=FIXED)
    curve = lla.paths.line(a, b)
    for t, value in zip(found.coords[::6], found.losses[::6], strict=True):
        assert value == pytest.approx(at_point(curve(t)).mean(), rel=1e-5)
    at, zero, one = (at_point(curve(t)) for t in (found.t, 0, 1))
    d = at - (1 - found.t) * zero - found.t * one
    assert found.value == pytest.approx(d.mean(), rel=1e-4)
    assert found.value > 0.05
    assert found.value_stderr == pytest.approx(d.std(ddof=1) / 23**0.5, rel=1e-3)
    assert found.recipe["batch_stats"] == "reestimate"
    for k, (p, state) in enumerate(((a, loss.state), (b, state_b))):  # the statistics lag behind the weights
        own = float(criterion(loss.apply(p, state, DATA, False)[0], DATA).mean())
        assert found.ends["loss"][k] == pytest.approx(own, rel=1e-5)
        assert own != pytest.approx(found.losses[-k], rel=1e-4)


def test_statistics_of_each_batch_couple_its_examples_alone(nets):
    loss, a, b, state_b = nets
    options = {"batch_stats": "batch", "batch_size": 12, "execution": FIXED}
    found = lla.paths.barrier(loss, a, b, DATA, state_b=state_b, points=5, **options)
    curve = lla.paths.line(a, b)

    @jax.jit
    def of_batch(p, batch):
        return criterion(loss.apply(p, loss.state, batch, True)[0], batch)

    def losses(t):
        parts = [of_batch(curve(t), tuple(x[rows] for x in DATA)) for rows in (slice(0, 12), slice(12, 23))]
        return np.concatenate(parts).astype(np.float64)

    d = losses(found.t) - (1 - found.t) * losses(0) - found.t * losses(1)
    assert found.value == pytest.approx(d.mean(), rel=1e-4)
    assert found.value_stderr == pytest.approx(d.std(ddof=1) / 23**0.5, rel=1e-3)


def test_a_state_of_another_network_is_said(nets):
    loss, a, b, state_b = nets
    wrong = jax.tree.map(lambda x: 1e-3 * x, state_b)
    many = tuple(np.tile(x, (30, *[1] * (x.ndim - 1))) for x in DATA)
    with pytest.warns(UserWarning, match="state_b: the loss at b"):
        lla.paths.barrier(loss, a, b, many, state_b=wrong, execution=FIXED)


NAN = params(1) | {"gain": np.float32(np.nan)}
REFUSED = {
    "equal": (lambda: lla.paths.barrier(mlp_loss(), params(), params(), DATA), "b: equals a in every parameter"),
    "NaN": (lambda: lla.paths.barrier(mlp_loss(), params(), NAN, DATA), r"b\['gain'\] has 1 NaN"),
    "another network": (lambda: lla.paths.barrier(mlp_loss(), params(), {"w": np.ones(2)}, DATA), "b: has another"),
    "a state where there is none": (
        lambda: lla.paths.barrier(mlp_loss(), params(), params(1), DATA, state_b={"m": np.ones(2)}),
        "state_b: given, and the loss has no state",
    ),
    "another curve": (
        lambda: lla.paths.barrier(mlp_loss(), params(), params(1), DATA, curve=lla.paths.line(params(), params(2))),
        "curve: its end b has other parameters",
    ),
    "no curve": (lambda: lla.paths.barrier(mlp_loss(), params(), params(1), DATA, curve=[1]), "curve: .*None for"),
    "an accuracy": (
        lambda: lla.paths.barrier(mlp_loss(), params(), params(1), DATA, metrics=[1]),
        "metrics: .*a dict",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    make, text = REFUSED[case]
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize("policy", [None, "reestimate", "frozen"])
def test_the_second_state_is_asked_for(nets, policy):
    loss, a, b, _ = nets
    with pytest.raises(ValueError, match=r"state_b: none given.*BatchNorm.*state_b="):
        lla.paths.barrier(loss, a, b, DATA, batch_stats=policy)


def test_as_a_number_it_says_which():
    with pytest.raises(TypeError, match=r"its height is barrier\.value"):
        float(measure(lambda x, y: x**2))
