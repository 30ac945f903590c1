"""No curvature of yesterday's function is handed out for today's, and none is computed again without reason."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core import recipes
from lla_jax.core.recipes import Differs
from lla_jax.curvature import operators, probe
from lla_jax.output import kept
from tests.helpers import ANEW, FIXED, KEPT, ONE, Interrupt, compilations, cross_entropy, dataset, params

KEY = jax.random.key(0)
ROWS = 24
X, LABELS = dataset(ROWS)
LABELS = LABELS.astype(np.int32)
DATA = X, LABELS, np.arange(ROWS, dtype=np.int32)
P = params()


def apply(p, state, batch, train):
    hidden = jnp.tanh(state * (batch[0] @ p["Dense_0"]["kernel"]) + p["Dense_0"]["bias"])
    if train:
        hidden = hidden - hidden.mean(0)
    return p["gain"] * (hidden @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]), state


def noisy(p, state, batch, train, key):
    outputs, state = apply(p, state, batch, train)
    return outputs + 0.1 * jax.vmap(lambda k: jax.random.normal(k, outputs.shape[1:]))(key), state


def scaled(factor):
    return lambda outputs, batch: factor * cross_entropy(outputs, batch)


def from_row(first):
    """The criterion, tripled from a row on."""
    return lambda outputs, batch: cross_entropy(outputs, batch) * jnp.where(batch[2] >= first, 3, 1)


def squares(factor):
    return lambda p: factor * jnp.sum(p["Dense_0"]["kernel"] ** 2)


@jax.custom_jvp
def bent(x):
    """x, whose slope is said to be 1.1."""
    return x


bent.defjvp(lambda primals, tangents: (primals[0], 1.1 * tangents[0]))


def network(criterion=cross_entropy, *, penalty=0.1, state=1.0, key=None, apply=apply):
    state = np.asarray(state, np.float32)
    penalty = squares(penalty) if penalty else None
    return lla.Loss(noisy if key is not None else apply, criterion, state=state, penalty=penalty, key=key)


def hessian(loss=None, p=P, data=DATA, make=lla.hessian, **options):
    return make(loss or network(), p, data, **{"execution": ANEW, **options})


def changed(array, at, by):
    array = array.copy()
    array[at] += by
    return array


def stream(x=X, labels=LABELS):
    return lla.stream([(x[i : i + 8], labels[i : i + 8], DATA[2][i : i + 8]) for i in range(0, ROWS, 8)])


def moved(p=P, by=1e-3):
    return p | {"gain": p["gain"] + np.float32(by)}


def matrix(factor=1.0):
    a = factor * np.diag(np.arange(1.0, 9.0)).astype("float32")
    return operators.given(lambda v: jnp.asarray(a @ np.asarray(v)), jnp.zeros(8), traceable=False)


fisher = functools.partial(hessian, network(penalty=0), make=lla.fisher)
coupled = functools.partial(hessian, lla.Loss(apply, lambda o, b: o[:, 0].var(), np.float32(1), per_example=False))

CHANGES = {
    "criterion times ten": lambda: hessian(network(scaled(10.0))),
    "criterion from a late row on": lambda: hessian(network(from_row(20))),
    "the last row alone": lambda: hessian(network(from_row(ROWS - 1))),
    "penalty": lambda: hessian(network(penalty=0.11)),
    "no penalty": lambda: hessian(network(penalty=0)),
    "slope, and not the value": lambda: hessian(network(lambda o, b: cross_entropy(bent(o), b))),
    "data value": lambda: hessian(data=(changed(X, (3, 2), 1e-3), *DATA[1:])),
    "odd column": lambda: hessian(data=(changed(X, (slice(None), 3), 0.1), *DATA[1:])),
    "late label": lambda: hessian(data=(X, changed(LABELS, -1, -1), DATA[2])),
    "fewer rows": lambda: hessian(data=tuple(x[:-1] for x in DATA)),
    "parameter": lambda: hessian(p=moved()),
    "state": lambda: hessian(network(state=1.01)),
    "noise": lambda: hessian(network(key=KEY)),
    "select": lambda: hessian(select="**/kernel"),
    "batch statistics": lambda: hessian(batch_stats="batch"),
    "ggn": lambda: hessian(make=lla.ggn),
    "fisher": lambda: fisher(key=KEY),
    "empirical fisher": lambda: fisher(kind="empirical"),
    "mask": lambda: operators.masked(hessian(), jax.tree.map(lambda x: x > 0, P)),
    "preconditioned": lambda: operators.preconditioned(hessian(), jax.tree.map(np.ones_like, P)),
    "stream": lambda: hessian(data=stream()),
    "given": matrix,
}
"""Changes of the operator ``hessian()``."""

PAIRS = {
    "late label of a stream": (
        lambda: hessian(data=stream()),
        lambda: hessian(data=stream(X, changed(LABELS, -1, -1))),
    ),
    "column of a stream": (
        lambda: hessian(data=stream()),
        lambda: hessian(data=stream(changed(X, (slice(16, None), 1), 0.1))),
    ),
    "criterion over a stream": (
        lambda: hessian(data=stream()),
        lambda: hessian(network(from_row(20)), data=stream()),
    ),
    "key of the noise": (lambda: hessian(network(key=KEY)), lambda: hessian(network(key=jax.random.key(1)))),
    "key of the targets": (lambda: fisher(key=KEY), lambda: fisher(key=jax.random.key(1))),
    "number of targets": (lambda: fisher(key=KEY), lambda: fisher(key=KEY, samples=2)),
    "batch size where it couples": (lambda: coupled(batch_size=8), lambda: coupled(batch_size=12)),
    "matrix of a product": (matrix, lambda: matrix(1.001)),
    "decay": [
        lambda decay=decay: operators.preconditioned(hessian(), jax.tree.map(np.ones_like, P), decay=decay)
        for decay in (1.0, 0.9)
    ],
}
"""Other operators, and a change of each."""

TAKEN = {"seed": "0"}


def never(*arguments, **options):
    raise AssertionError("computed again")


def spectrum(H, **options):
    return lla.spectrum(H, **{"key": KEY, "steps": 6, "probes": 2, **options})


def eigenpairs(H, **options):
    return lla.eigenpairs(H, **{"key": KEY, "k": 2, "tol": 1e-4, **options})


def interrupted(compute, H, after):
    parts = []
    with pytest.raises(KeyboardInterrupt):
        compute(H, progress=Interrupt(after), on_partial=parts.append)
    return parts[-1]


def files(H, folder, compute=True, k=2):
    """What ``lla-jax hessian`` keeps: {name: a function that takes it from the folder, or computes it}."""
    fill = {"eigenpairs": eigenpairs, "spectrum": spectrum}
    calls = {
        name: functools.partial(
            kept.result,
            folder / f"{name}.npz",
            H,
            functools.partial(fill[name], H) if compute else never,
            TAKEN,
            accept=(lambda found: found.num >= k) if name == "eigenpairs" else None,
            like=P,
        )
        for name in fill
    }
    numbers = {"trace": lambda bar: dataclasses.asdict(lla.trace(H, KEY, rtol=0.5)), "layers": lambda bar: [1.0]}
    for name, f in numbers.items():
        calls[name] = functools.partial(kept.numbers, folder / f"{name}.json", H, f if compute else never, TAKEN)
    return calls


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """(the operator, its whole results, its partial results, the folder that keeps them)."""
    H, folder = hessian(), tmp_path_factory.mktemp("kept")
    found = {name: call() for name, call in files(H, folder).items()}
    parts = {"spectrum": interrupted(spectrum, H, 8), "eigenpairs": interrupted(eigenpairs, H, 8)}
    assert all(part.state is not None for part in parts.values())
    return H, found, parts, folder


@pytest.mark.parametrize("change", CHANGES)
def test_no_result_of_another_function_is_continued_or_taken(change, before):
    _, found, parts, folder = before
    H = CHANGES[change]()
    for verb in (spectrum, eigenpairs):
        for old in (parts[verb.__name__], found[verb.__name__]):
            with pytest.raises(Differs, match=r"^resume: the partial result of \w+ (differs in|belongs to another)"):
                verb(H, resume=old)
    for call in files(H, folder, compute=False).values():
        with pytest.raises(Differs, match=r"^operator: that of .* (differs in|belongs to another function)"):
            call()


def test_what_a_recipe_cannot_describe_is_named(before):
    _, found, _, folder = before
    with pytest.raises(Differs) as refused:
        files(CHANGES["criterion times ten"](), folder, compute=False)["spectrum"]()
    assert set(refused.value.changed) == {"functions"}
    assert "the mean loss: " in str(refused.value)
    with pytest.raises(
        Differs, match=r"another function \(the norm of a product: [\d.]+ -> [\d.]+\); both must be the"
    ):
        spectrum(CHANGES["slope, and not the value"](), resume=found["spectrum"])


def check_resume(old, new):
    """The check that every ``resume=`` goes through, of a result without numbers."""
    recipe = {"kind": "spectrum", "operator": probe.describe(old), "complete": True}
    result = lla.Spectrum(np.zeros((1, 1)), np.ones((1, 1)), json.loads(json.dumps(recipe)))
    recipes.check_resume(result, recipe | {"operator": probe.describe(new)}, lla.Spectrum)


@pytest.mark.parametrize("pair", PAIRS)
def test_nor_of_another_kind_of_operator(pair):
    old, again, new = (make() for make in (PAIRS[pair][0], *PAIRS[pair]))
    check_resume(old, again)
    with pytest.raises(Differs, match="resume: "):
        check_resume(old, new)


def test_nor_in_another_precision(before):
    _, found, _, folder = before
    with jax.enable_x64(True):
        H = hessian(p=jax.tree.map(lambda x: x.astype("float64"), P))
        with pytest.raises(Differs, match=r"differs in operator \(.*float32"):
            spectrum(H, resume=found["spectrum"])
        for call in files(H, folder, compute=False).values():
            with pytest.raises(Differs, match="float32"):
                call()


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        *[
            (spectrum, {name: value})
            for name, value in [("steps", 7), ("probes", 3), ("start", "normal"), ("scheme", "lla")]
        ],
        *[
            (eigenpairs, o)
            for o in ({"k": 3}, {"which": "largest"}, {"tol": 1e-3}, {"max_vectors": 20}, {"copies": False})
        ],
    ],
)
def test_nor_by_a_call_with_other_arguments(verb, options, before):
    H, found, parts, _ = before
    for old in (parts[verb.__name__], found[verb.__name__]):
        with pytest.raises(Differs, match=f"differs in {next(iter(options))}"):
            verb(H, **options, resume=old)
        with pytest.raises(Differs, match="differs in key"):
            verb(H, key=jax.random.key(1), resume=old)


# --- changes that do not matter


def edited(result, edit):
    """The result with a recipe that ``edit`` changes."""
    recipe = json.loads(json.dumps(result.recipe))
    edit(recipe["operator"])
    return dataclasses.replace(result, recipe=recipe)


def off_by_rounding(operator):
    operator["probe"]["product"] = [x * (1 + 3e-7) for x in operator["probe"]["product"]]
    operator["probe"]["loss"] *= 1 - 3e-7


SAME = {
    "the loss built anew": lambda: hessian(network()),
    "a new closure of the same code": lambda: hessian(network(lambda o, b: cross_entropy(o, b))),
    "another order of a dict": lambda: hessian(p=dict(reversed(P.items()))),
    "data that lie elsewhere": lambda: hessian(data=tuple(jnp.asarray(x) for x in DATA)),
    "blocks": lambda: hessian(batch_size=7),
    "primal values kept": lambda: hessian(execution=KEPT),
    "primal values computed anew": lambda: hessian(execution=ANEW),
    "two devices": lambda: hessian(execution=lla.Execution(devices=2)),
    "the same parameters again": lambda: hessian(p=moved()).at(P),
}


@pytest.mark.parametrize("way", SAME)
def test_the_same_function_is_taken_and_continued(way, before):
    _, found, parts, folder = before
    H = SAME[way]()
    for name, call in files(H, folder, compute=False).items():
        if name in parts:
            np.testing.assert_array_equal(call().recipe["key"], found[name].recipe["key"])
        else:
            assert call() == found[name]
    assert spectrum(H, resume=found["spectrum"]) is found["spectrum"]
    assert eigenpairs(H, resume=found["eigenpairs"]) is found["eigenpairs"]


def test_continued_results_have_the_same_bits(before, tmp_path):
    _, found, parts, folder = before
    H, seen = hessian(network()), []
    again = spectrum(H, resume=parts["spectrum"], progress=lambda *at: seen.append(at))
    np.testing.assert_array_equal(again.nodes, found["spectrum"].nodes)
    assert len(seen) <= 8  # the rest
    again = eigenpairs(H, resume=lla.load(lla.save(parts["eigenpairs"], tmp_path / "part"), like=P))
    np.testing.assert_array_equal(again.values, found["eigenpairs"].values)
    with jax.default_matmul_precision("bfloat16"):  # products are at full precision
        again = spectrum(hessian(), resume=parts["spectrum"])
    np.testing.assert_array_equal(again.nodes, found["spectrum"].nodes)
    for name in ("spectrum", "eigenpairs"):
        compute = {"spectrum": spectrum, "eigenpairs": eigenpairs}[name]
        for edit in (off_by_rounding, lambda o: o.pop("probe"), lambda o: o.update(plan={}, versions={"jax": "0"})):
            assert compute(H, resume=edited(found[name], edit)).recipe["complete"]
    other = shutil.copytree(folder, tmp_path / "moved")
    for call in files(H, other, compute=False, k=1).values():  # a folder elsewhere, fewer pairs
        call()
    content = json.loads((other / "trace.json").read_text())
    del content["operator"]["probe"], content["seal"]  # of an older version
    (other / "trace.json").write_text(json.dumps(content))
    ten = CHANGES["criterion times ten"]()
    assert files(ten, other, compute=False)["trace"]() == found["trace"]
    content["operator"]["probe"] = {"product": ["?"]}
    (other / "trace.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"damaged recipe .*; compute it anew with overwrite=True"):
        files(ten, other, compute=False)["trace"]()


# --- the probe itself


def test_a_probe_is_one_product_of_a_fixed_vector_and_the_mean_loss():
    H = hessian()
    there = probe.probe(H)
    assert there is H.recipe["probe"]
    a = operators.dense(H)
    signs = np.concatenate([np.ravel(x) for x in jax.tree.leaves(probe._signs(H.space, 1))]).astype(np.float64)
    assert set(signs) == {-1, 1}
    assert abs(signs.mean()) < 0.3
    product = a @ signs / np.sqrt(len(signs))
    np.testing.assert_allclose(
        [there["product"][0], there["product"][2]], [signs @ product, np.linalg.norm(product)], 1e-5
    )
    expected = cross_entropy(apply(P, 1.0, DATA, False)[0], DATA).mean() + squares(0.1)(P)
    np.testing.assert_allclose(there["loss"], expected, 1e-6)
    assert "probe" not in H.at(moved()).recipe
    assert "probe" not in operators.masked(H, jax.tree.map(lambda x: x > 0, P)).recipe


def test_a_probe_compiles_once_and_is_computed_when_a_result_is_made():
    H = hessian()
    H.product(P)
    assert "probe" not in H.recipe
    probe.probe(H)
    with compilations() as seen:
        for other in (hessian(p=moved()), hessian(data=(X[::-1].copy(), *DATA[1:]))):
            assert recipes.has_probe(probe.describe(other))
    assert seen.count == 0


@pytest.mark.parametrize("factor", [1e-30, 1e-18, 1e18, 1e30])
def test_probes_of_any_size(factor):
    assert 0 < probe.probe(matrix(factor))["product"][-1] / factor < 10
    with pytest.raises(Differs):
        check_resume(matrix(factor), matrix(2 * factor))


def test_a_loss_that_changes_from_call_to_call_is_not_compared():
    count = [0]

    def criterion(outputs, batch):
        def draw(x):
            count[0] += 1
            return np.float32(count[0])

        noise = jax.pure_callback(draw, jax.ShapeDtypeStruct((), np.float32), batch[2][0])
        return cross_entropy(outputs, batch) * (1 + noise)

    def make():
        return hessian(lla.Loss(apply, criterion, state=np.float32(1)), allow_nondeterministic=True, execution=ANEW)

    check_resume(make(), make())
    assert probe.describe(make())["probe"] == {"compared": False}
    assert make().at(moved()).recipe["probe"] == {"compared": False}


# --- other verbs


def convexity(loss=None, p=P, data=DATA, **options):
    axes = lla.directions.random(KEY, P, num=1)
    given = {"steps": 3, "execution": ONE, "key": KEY, **options}
    return lla.convexity(loss or network(), p, data, axes, lla.grid(points=3, dims=1), **given)


def test_convexity_is_not_continued_for_another_function():
    parts = []
    with pytest.raises(KeyboardInterrupt):
        convexity(progress=Interrupt(3), on_partial=parts.append)
    whole, (part,) = convexity(), parts
    with pytest.raises(
        Differs, match=r"resume: the partial landscape belongs to another function \(the norm of a prod"
    ):
        convexity(network(lambda o, b: cross_entropy(bent(o), b)), resume=part)
    changes = [
        {"loss": network(scaled(10.0))},
        {"data": (X, changed(LABELS, -1, -1), DATA[2])},
        {"p": moved()},
        {"key": jax.random.key(1)},
        {"steps": 4},
    ]
    for change in changes:
        with pytest.raises(ValueError, match=r"^resume: "):
            convexity(**change, resume=part)
    for same in ({}, {"loss": network()}):
        again = convexity(**same, resume=part)
        np.testing.assert_array_equal(again.values["lambda_max"], whole.values["lambda_max"])


def test_estimates_say_which_function_they_are_of():
    H = hessian()
    for found in (lla.trace(H, KEY, rtol=0.5), lla.frobenius_norm(H, KEY, rtol=0.5)):
        assert found.recipe["operator"]["probe"] == H.recipe["probe"]


def test_a_plane_report_takes_nothing_of_another_function(before):
    H, found, _, _ = before
    axes = lla.directions.random(KEY, P, num=2)
    plane = lla.evaluate(network(), P, DATA, axes, lla.grid(extent=0.1, points=3), execution=FIXED)
    pairs, trace = found["eigenpairs"], lla.Estimate(**found["trace"])
    whole = lla.plane_report(plane, axes, H, pairs=pairs, trace=trace)
    assert lla.plane_report(plane, axes, hessian(network()), pairs=pairs).share_lambda_max == whole.share_lambda_max
    ten = CHANGES["criterion times ten"]()
    for wrong in ({"pairs": pairs}, {"trace": trace}, {}):
        with pytest.raises(ValueError, match=r"^H: its mean loss is [\d.]+, and that of the landscape at its centre"):
            lla.plane_report(plane, axes, ten, **wrong)
    of_ten = lla.eigenpairs(ten, KEY, 1, tol=0.1)
    with pytest.raises(Differs, match=r"^pairs: the operator that it belongs to belongs to another function"):
        lla.plane_report(plane, axes, H, pairs=of_ten)
    with pytest.raises(Differs, match=r"^trace: .* another function"):
        lla.plane_report(plane, axes, H, trace=lla.trace(ten, KEY, rtol=0.5))
    assert lla.plane_report(plane, axes, CHANGES["ggn"]()).matrix == "ggn"


FACTORIES = """
import jax.numpy as jnp
import numpy as np
import lla_jax as lla

x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
params = {"w": np.ones(4, "float32"), "b": np.zeros(1, "float32")}
FACTOR = 1.0

def loss(p, batch):
    return FACTOR * (jnp.tanh(batch[0] @ p["w"] + p["b"] - batch[1]) ** 2).mean()

def make():
    return lla.Problem(loss, params, (x, x.sum(1) + 0.3))

def late():
    def other(p, batch):
        return loss(p, batch) + 0.1 * ((batch[0][-1] @ p["w"]) ** 2)
    return lla.Problem(other, params, make().data)
"""


def test_a_folder_of_the_command_line_is_not_taken_for_another_loss(command, tmp_path):
    def run(factory, *words, text=FACTORIES):
        return command(text, *words, "--problem", f"stale_problem:{factory}")

    hessian = ("hessian", "--top", 2, "--steps", 3, "--probes", 1, "--rtol", 0.5, "--layers", "--out", "h")
    axes = ("landscape", "--axes", "hessian", "--dims", 2, "--points", 3, "--out", "h")
    assert run("make", *hessian)[0] == 0
    code, said = run("make", *hessian)
    assert code == 0
    assert said.count("taken from") == 4
    ten = FACTORIES.replace("FACTOR = 1.0", "FACTOR = 10.0")
    for factory, words in (("make", hessian), ("late", hessian), ("late", axes)):
        code, said = run(factory, *words, text=ten)
        assert code == 2
        assert "eigenpairs.npz was made with other functions" in said
        assert "--overwrite" in said
    for name in ("eigenpairs.npz", "spectrum.npz", "trace.json"):
        (tmp_path / "h" / name).rename(tmp_path / name)
        code, said = run("make", *hessian, text=ten)
    assert code == 2
    assert "layers.json was made with other functions" in said
    rows = json.loads((tmp_path / "h" / "layers.json").read_text())["result"]
    assert rows[0]["trace"]["recipe"]["operator"]["probe"]["loss"] > 0
