"""The table of layers agrees with the blocks of the dense Hessian, from one set of products and one program."""

import functools
import math
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.curvature import operators
from lla_jax.measures import layers
from tests.helpers import ONE, compilations, cross_entropy, dataset, mlp_loss, params, symmetric_matrix

KEY = jax.random.key(0)
MODULES = ["Dense_0", "Dense_1", "gain"]


def cnn(dtype):
    """(loss, parameters, data): a convolution, a bias, a linear layer; 6 x 6 images of 3 classes."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return (0.5 * rng.standard_normal(shape)).astype(dtype)

    def apply(p, state, batch, train):
        x = jax.lax.conv_general_dilated(
            batch[0], p["conv"]["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        hidden = jnp.tanh(x + p["conv"]["bias"]).reshape(len(x), -1)
        return hidden @ p["head"]["kernel"], state

    p = {"conv": {"bias": draw(2), "kernel": draw(3, 3, 1, 2)}, "head": {"kernel": draw(18, 3)}}
    data = rng.standard_normal((11, 6, 6, 1)).astype(dtype), rng.integers(0, 3, 11)
    return lla.Loss(apply, cross_entropy), p, data


def blocks_of(loss, p, data, names=None):
    """{module: diagonal block} of the dense Hessian."""
    whole = operators.dense(lla.hessian(loss, p, data, execution=ONE))
    sizes = [x.size for x in jax.tree.leaves(p)]
    names = names or [str(path[0].key) for path, _ in jax.tree.leaves_with_path(p)]
    at = np.repeat(names, sizes)
    return {name: whole[np.ix_(at == name, at == name)] for name in dict.fromkeys(names)}


def check(rows, blocks, rtol):
    assert [row.module for row in rows] == list(blocks)
    for row, block in zip(rows, blocks.values(), strict=True):
        eigenvalues = np.linalg.eigvalsh(block)
        slack = rtol * np.abs(eigenvalues).max()
        assert row.size == len(block)
        assert abs(row.trace.mean - np.trace(block)) <= 4 * row.trace.sem + slack
        for found, end in ((row.lambda_min, eigenvalues[0]), (row.lambda_max, eigenvalues[-1])):
            assert np.abs(eigenvalues - found).min() <= row.residual + slack
            assert abs(found - end) <= row.residual + slack
    total = rows[0].trace.recipe["total"]
    assert sum(row.trace.mean for row in rows) == pytest.approx(total["mean"], rel=1e-9)
    sure = abs(total["mean"]) > 2 * total["sem"]
    for row in rows:
        assert row.share == pytest.approx(row.trace.mean / total["mean"] if sure else math.nan, nan_ok=True)


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 2e-6), ("float64", 1e-10)])
def test_an_mlp_against_its_dense_blocks(dtype, rtol):
    with jax.enable_x64(dtype == "float64"):
        p, data = params(dtype=dtype), dataset(dtype=dtype)
        rows = lla.per_layer(mlp_loss(), p, data, KEY, steps=36, rtol=0.1, execution=ONE)
        blocks = blocks_of(mlp_loss(), p, data)
    assert list(blocks) == MODULES
    check(rows, blocks, rtol)
    for row in rows:  # as many steps as there are parameters
        assert row.residual <= 1e-3 * max(abs(row.lambda_max), abs(row.lambda_min)) + rtol
    assert max(row.trace.sem for row in rows) <= 0.1 * sum(abs(row.trace.mean) for row in rows)
    assert sum(row.share for row in rows) == pytest.approx(1)


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 2e-6), ("float64", 1e-10)])
def test_a_cnn_against_its_dense_blocks(dtype, rtol):
    with jax.enable_x64(dtype == "float64"):
        loss, p, data = cnn(dtype)
        rows = lla.per_layer(loss, p, data, KEY, steps=20, rtol=0.2, execution=ONE)
        blocks = blocks_of(loss, p, data)
    assert list(blocks) == ["conv", "head"]
    check(rows, blocks, rtol)


def test_few_steps_bound_the_ends_from_inside():
    p, data = params(), dataset()
    rows = lla.per_layer(mlp_loss(), p, data, KEY, steps=4, rtol=0.5, execution=ONE)
    for row, block in zip(rows, blocks_of(mlp_loss(), p, data).values(), strict=True):
        eigenvalues = np.linalg.eigvalsh(block)
        slack = 1e-5 * np.abs(eigenvalues).max()
        assert eigenvalues[0] - slack <= row.lambda_min <= row.lambda_max <= eigenvalues[-1] + slack
        assert np.abs(eigenvalues - row.lambda_max).min() <= row.residual + slack
        assert row.products <= 6


def matrix_loss(a):
    """w'Aw / 2 over the leaves a (2,), b (3,)."""

    def loss(p, batch):
        w = jnp.concatenate([p["a"], p["b"]])
        return 0.5 * w @ (jnp.asarray(a) @ w)

    return loss, {"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)}, np.zeros((1, 1), np.float32)


def test_the_error_is_that_of_the_formula():
    """Variance of a block's probe: 2 sum of H_ij^2 over i != j inside + sum over i inside, j outside."""
    a = np.random.default_rng(0).standard_normal((5, 5))
    a = a + a.T
    with pytest.warns(UserWarning, match="trace: after 2000 products"):
        rows = lla.per_layer(*matrix_loss(a), KEY, rtol=1e-6, max_products=2000, execution=ONE)
    squares = a**2 * (1 - np.eye(5))
    for row, inside in zip(rows, ([0, 1], [2, 3, 4]), strict=True):
        outside = [i for i in range(5) if i not in inside]
        variance = 2 * squares[np.ix_(inside, inside)].sum() + squares[np.ix_(inside, outside)].sum()
        assert row.trace.num == 2000
        assert row.trace.sem == pytest.approx(math.sqrt(variance / 2000), rel=0.1)
        assert not row.trace.recipe["converged"]


def test_a_diagonal_hessian_is_exact_and_so_are_shares_with_a_negative_block():
    rows = lla.per_layer(*matrix_loss(np.diag([1.0, 2, -1, 3, -0.5])), KEY, execution=ONE)
    assert [(row.trace.mean, row.trace.sem) for row in rows] == [(3, 0), (1.5, 0)]
    assert [row.share for row in rows] == pytest.approx([2 / 3, 1 / 3])
    assert rows[1].lambda_min == pytest.approx(-1)
    assert rows[1].lambda_max == pytest.approx(3)


@pytest.mark.parametrize("diagonal", [[1.0, 1, -2, 0, 0], [0.0] * 5])
def test_a_total_of_zero_has_no_shares(diagonal):
    rows = lla.per_layer(*matrix_loss(np.diag(diagonal)), KEY, execution=ONE)
    assert [row.trace.mean for row in rows] == [sum(diagonal[:2]), sum(diagonal[2:])]
    assert all(math.isnan(row.share) for row in rows)
    assert rows[1].lambda_min == pytest.approx(min(diagonal[2:]))
    assert layers.table(rows).splitlines()[-1] == "no shares: the sum of all traces, 0 +- 0, may be zero"


def test_a_warning_says_why_there_are_no_shares():
    batches = [(x, y) for x, y in zip(*(np.array_split(part, 3) for part in dataset()))]
    warned = r"raise max_products or rtol; shares are NaN, as the sum of all traces, .* \+- .*, may be zero"
    with pytest.warns(UserWarning, match=warned):
        rows = lla.per_layer(mlp_loss(), params(), lla.stream(batches), KEY, steps=2, max_products=2, execution=ONE)
    assert all(math.isnan(row.share) for row in rows)


def test_all_blocks_share_one_program():
    def compiled(groups):
        jax.clear_caches()
        with compilations() as seen:
            lla.per_layer(mlp_loss(), params(), dataset(), KEY, steps=4, rtol=1, groups=groups, execution=ONE)
        return seen.count

    assert compiled(lambda path: "all") == compiled(lambda path: path) > 0
    with compilations() as seen:  # nor do other weights and data compile
        lla.per_layer(
            mlp_loss(), params(seed=4), dataset(seed=5), KEY, steps=4, rtol=1, groups=lambda path: path, execution=ONE
        )
    assert seen.count == 0


def test_groups_are_blocks_of_ones_own():
    p, data = params(), dataset()
    names = {"Dense_0/bias": "biases", "Dense_0/kernel": "first", "Dense_1/bias": "biases", "Dense_1/kernel": "last"}
    rows = lla.per_layer(mlp_loss(), p, data, KEY, steps=36, rtol=0.1, groups=names.get, execution=ONE)
    blocks = blocks_of(mlp_loss(), p, data, [*names.values(), "left out"])
    del blocks["left out"]
    check(rows, blocks, 2e-6)
    assert [row.module for row in rows] == ["biases", "first", "last"]


def test_names_of_leaves_at_the_root_and_of_a_single_leaf():
    def loss(p, batch):
        return sum((x**2).sum() for x in jax.tree.leaves(p)) / 2

    def modules(p):
        return [(row.module, row.size) for row in lla.per_layer(loss, p, np.zeros((1, 1)), KEY, execution=ONE)]

    one = np.ones(3, np.float32)
    assert modules(one) == [("params", 3)]
    deep = {"encoder": {"block_1": {"attn": {"b": one, "w": one}}, "scale": one}}
    assert modules(deep) == [("encoder/block_1/attn", 6), ("encoder", 3)]


@pytest.mark.parametrize("how", ["stream", "devices"])
def test_neither_streams_nor_devices_change_the_probes(how):
    p, (x, y) = params(), dataset()
    options = {"steps": 4, "rtol": 1.0}
    expected = lla.per_layer(mlp_loss(), p, (x, y), KEY, execution=ONE, **options)
    if how == "stream":
        batches = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 23, 8)]
        found = lla.per_layer(mlp_loss(), p, lla.stream(batches), KEY, execution=ONE, **options)
    else:
        found = lla.per_layer(mlp_loss(), p, (x, y), KEY, batch_size=3, execution=lla.Execution(devices=4), **options)
    for row, other in zip(found, expected, strict=True):
        assert row.trace.mean == pytest.approx(other.trace.mean, rel=1e-4)
        assert row.lambda_max == pytest.approx(other.lambda_max, rel=1e-4)


def test_progress_counts_products():
    seen = []
    rows = lla.per_layer(
        mlp_loss(), params(), dataset(), KEY, steps=4, rtol=1, execution=ONE, progress=lambda *at: seen.append(at)
    )
    probes = rows[0].trace.num
    assert seen[:2] == [(8, None), (16, None)]
    assert probes == 16
    assert [done for done, _ in seen[2:]] == list(probes + np.cumsum([row.products for row in rows]))
    assert seen[-1][1] >= seen[-1][0]


@pytest.mark.parametrize(("scale", "each"), [(1.0, 8), (1e-25, 3)])
def test_interrupted_and_continued(scale, each, tmp_path, monkeypatch):
    """At every product that is told, from the first draws to the last layer."""
    monkeypatch.setattr(layers.random_probes.room, "probes_at_once", lambda *_: each)
    weights = {name: np.zeros(5, np.float32) for name in ("a", "b", "c")}
    matrix = scale * symmetric_matrix(np.arange(1.0, 16))

    def loss(p, batch):
        w = jnp.concatenate(list(p.values()))
        return 0.5 * w @ (batch[0] @ w)

    given = {"steps": 3, "rtol": 0.3, "max_products": 18, "execution": ONE}
    call = functools.partial(lla.per_layer, loss, weights, matrix[None].astype("float32"), KEY, **given)

    def numbers(rows):
        return [(*row[:2], row.trace.mean, row.trace.sem, row.trace.num, *row[3:]) for row in rows]

    told = []
    whole = numbers(call(progress=lambda *at: told.append(at)))
    assert len(told) >= 5
    for stop in range(len(told)):
        parts, left = [], [None] * stop

        def interrupt(done, total, left=left):
            if not left:
                raise KeyboardInterrupt
            left.pop()

        with pytest.raises(KeyboardInterrupt):
            call(on_partial=parts.append, progress=interrupt)
        assert parts[-1].num <= told[stop][0]
        resume = lla.load(lla.save(parts[-1], tmp_path / "partial.npz"))
        assert numbers(call(resume=resume)) == whole
    with pytest.raises(KeyboardInterrupt):
        call(resume=resume, progress=interrupt, on_partial=parts.append)
    assert len(parts[-1].state["ends"]) == 3  # nothing is lost
    assert numbers(call(save_every=1e-9, on_partial=parts.append)) == whole
    assert parts[-1].recipe["stopped"] == "running"


def test_a_signal_in_the_last_step_hands_all_layers_over():
    parts, told = [], []
    given = {"steps": 3, "rtol": 1.0, "execution": ONE}
    call = functools.partial(lla.per_layer, mlp_loss(), params(), dataset(), KEY, **given)
    whole = call(progress=lambda *at: told.append(at))

    def signal_at_the_end(*at):
        if at == told[-1]:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        call(progress=signal_at_the_end, on_partial=parts.append)
    assert [part.recipe["stopped"] for part in parts] == ["interrupted"]
    assert len(parts[0].state["ends"]) == len(whole)


def test_another_table_is_not_continued():
    parts = []
    given = {"steps": 3, "rtol": 1.0, "execution": ONE}
    call = functools.partial(lla.per_layer, mlp_loss(), params(), dataset(), KEY, **given)
    whole = call(save_every=1e-9, on_partial=parts.append)
    for changed in (
        functools.partial(call, steps=4),
        functools.partial(call, rtol=0.5),
        functools.partial(call, groups=lambda path: "all"),
        functools.partial(lla.per_layer, mlp_loss(), params(), dataset(), jax.random.key(1), **given),
        functools.partial(lla.per_layer, mlp_loss(), params(), dataset(seed=5), KEY, **given),
    ):
        with pytest.raises(ValueError, match=r"resume: the partial result of per_layer differs in"):
            changed(resume=parts[-1])
    with pytest.raises(ValueError, match=r"resume: .* given; it must be what per_layer gave to on_partial"):
        call(resume=whole[0].trace)
    broken = {**parts[-1].state, "ends": np.zeros((9, 4))}
    recipe = {name: value for name, value in parts[-1].recipe.items() if name != "seal"}
    with pytest.raises(ValueError, match=r"resume: its state is damaged"):
        call(resume=lla.Estimate(1.0, 1.0, 8, recipe, broken))


def test_the_table_is_aligned_and_says_what_it_cost():
    rows = lla.per_layer(mlp_loss(), params(), dataset(), KEY, steps=4, rtol=0.2, execution=ONE)
    lines = layers.table(rows).splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["module", *MODULES, "total"]
    ends = lines[0].index("trace") + len("trace")
    for line, row in zip(lines[1:-2], rows, strict=True):
        cell = f"{row.trace.mean:.4g} +- {row.trace.sem:.2g}"
        assert line[:ends].rstrip().endswith(cell)
    assert f"{rows[0].trace.num} products for the traces" in lines[-1]
    assert f"{sum(row.products for row in rows)} for the eigenvalues" in lines[-1]
    with pytest.raises(ValueError, match=r"rows: \(\) given; it must be the rows that lla.per_layer"):
        layers.table(())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: 0 given"),
        ({"rtol": 0}, "rtol: 0 given"),
        ({"rtol": math.inf}, "rtol: inf given"),
        ({"max_products": 1}, "max_products: 1 given"),
        ({"groups": "Dense_0"}, "groups: 'Dense_0' given"),
        ({"groups": lambda path: 3}, "groups: gave 3 for 'Dense_0/bias'"),
        ({"groups": lambda path: ""}, "groups: gave '' for"),
        ({"groups": lambda path: None}, "groups: leaves everything out"),
        ({"data": (np.zeros((0, 5)), np.zeros(0, int))}, "data: empty"),
        ({"params": {"w": np.arange(3)}}, "floating"),
        ({"batch_stats": "reestimate"}, "batch_stats: 'reestimate' given"),
    ],
)
def test_bad_input_is_refused(options, message):
    given = {"params": params(), "data": dataset()} | options
    with pytest.raises(ValueError, match=message):
        lla.per_layer(mlp_loss(), key=KEY, execution=ONE, **given)


def test_the_old_keyword_works_and_says_the_new_spelling():
    options = {"steps": 3, "rtol": 1e-9, "max_products": 4}

    def shown(**how):
        with pytest.warns() as seen:
            rows = lla.per_layer(mlp_loss(), params(), dataset(), KEY, **options, **how)
        return rows, [(w.category, str(w.message), w.filename) for w in seen]

    (old, warned), (new, others) = shown(devices=2), shown(execution=lla.Execution(devices=2))
    assert warned[0] == (DeprecationWarning, "devices: use execution=lla.Execution(devices=2)", __file__)
    assert warned[1:] == others
    assert [(category, file) for category, _, file in others] == [(UserWarning, __file__)]  # of the traces
    assert old[0].trace.recipe["operator"]["plan"]["devices"] == 2
    assert [row.trace.mean for row in old] == [row.trace.mean for row in new]


def test_products_that_are_not_finite_are_refused():
    def loss(p, batch):
        return jnp.sqrt(p["w"]).sum()  # at 0

    with pytest.raises(ValueError, match="Hessian product is not finite"):
        lla.per_layer(loss, {"w": np.zeros(3, np.float32)}, np.zeros((1, 1)), KEY, execution=ONE)


def test_error_bars_of_the_layers_and_of_their_total_cover_where_draws_stop_on_their_own_error():
    """The kind "error bars that do not cover"; the plain standard errors were 1.4 times too small, at worst 4 times."""
    values = np.arange(1.0, 101) ** -1.2
    A = symmetric_matrix(values)
    blocks = {"a": A[:20, :20], "b": A[20:, 20:]}
    zeros = {"a": np.zeros(20, np.float32), "b": np.zeros(80, np.float32)}

    def loss(p, batch):
        w = jnp.concatenate([p["a"], p["b"]])
        return 0.5 * w @ (batch[0] @ w)

    truth, away = {name: np.trace(block) for name, block in blocks.items()} | {"total": np.trace(A)}, []
    for seed in range(100):
        rows = lla.per_layer(loss, zeros, A[None], jax.random.key(seed), steps=1, rtol=0.06, execution=ONE)
        total = rows[0].trace.recipe["total"]
        found = {row.module: (row.trace.mean, row.trace.sem) for row in rows} | {"total": (total["mean"], total["sem"])}
        away.append([abs(found[name][0] - truth[name]) / found[name][1] for name in truth])
    assert (np.array(away) <= 2).mean(0).min() >= 0.9
    assert (np.array(away) <= 3).mean(0).min() >= 0.96
    assert np.sqrt(np.mean(np.square(away), 0)).max() < 1.2
