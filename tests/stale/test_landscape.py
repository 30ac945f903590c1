"""Landscapes never give out values of another function, and never compute again what the same function gave.

Each change of a table is tried with everything that continues a landscape: it is refused, and the message names what
changed. Each change of a second table matters to no value: the landscape is continued, and no finished point is
computed again.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core import files, operands, recipes
from lla_jax.landscape import memory
from lla_jax.landscape.store import manifest as _manifest
from tests.helpers import FIXED, Interrupt, accuracy, cross_entropy, params, points_computed

ROWS, LATE = 24, 20
GRID = lla.grid(extent=0.5, points=3)
DONE = 4  # points of a partial landscape, of 9


@pytest.fixture(autouse=True)
def large_arrays(monkeypatch):
    """Arrays of more than 480 bytes count as large: of the inputs here every second number is a sample."""
    monkeypatch.setattr(recipes, "LARGE", 480)


# --- a small landscape, and what it is made of


def draw_data(seed: int, rows: int = ROWS) -> tuple[np.ndarray, ...]:
    """(inputs (rows, 10), of which the network takes 5; labels; numbers of the rows)."""
    rng, numbers = np.random.default_rng(seed), np.arange(rows, dtype="int32")
    return rng.standard_normal((rows, 10)).astype(np.float32), rng.integers(0, 3, rows, "int32"), numbers


def apply(p, state, batch, train, keys):
    x = batch[0][:, :5] + batch[0][:, 5:]
    centre = x.mean(0) if train else state["mean"]
    hidden = jax.nn.relu((x - centre) @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
    return p["gain"] * (hidden @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]), {"mean": centre}


def ten_times(outputs, batch):
    return 10 * cross_entropy(outputs, batch)


def late_rows(outputs, batch):
    return jnp.where(batch[2] >= LATE, 10, 1) * cross_entropy(outputs, batch)


def wrong(outputs, batch):
    return outputs.argmax(-1) != batch[1]


def right_or_late(outputs, batch):
    return accuracy(outputs, batch) & (batch[2] < LATE)


def norm(p, key):
    return sum(jnp.square(x).sum() for x in jax.tree.leaves(p))


def double_norm(p, key):
    return 2 * norm(p, key)


def noise(p, key):
    return jax.random.key_data(key)[-1].astype("float32")


def plain(p, directions, coord):
    return lla.landscape.add(p, directions, coord)


def positive(p, directions, coord):
    """The rule of the same name, except at points whose coordinates are all positive."""
    moved = lla.landscape.add(p, directions, coord)
    return jax.tree.map(lambda x: jnp.where((coord > 0).all(), 1.1 * x, x), moved)


def inside(p, directions, coord):
    """Another rule of the same name at all points that lie within the grid."""
    moved = lla.landscape.add(p, directions, coord)
    return jax.tree.map(lambda x: jnp.where((jnp.abs(coord) < 0.4).all(), 1.1 * x, x), moved)


positive.__qualname__ = inside.__qualname__ = plain.__qualname__


def decay(p):
    return 0.1 * p["gain"] ** 2


def more_decay(p):
    return 0.2 * p["gain"] ** 2


STATE = {"mean": np.zeros(5, np.float32)}


def a_loss(criterion=cross_entropy, **options):
    return lla.Loss(apply, criterion, **{"state": STATE, "penalty": decay, "key": jax.random.key(0), **options})


def axes(seed: int = 0, **options) -> lla.Directions:
    return lla.directions.random(jax.random.key(seed), params(), num=2, **options)


Call = dict[str, Any]


def call(**changed) -> Call:
    """The arguments of the landscape, some of them changed."""
    call = {
        "loss": a_loss(),
        "params": params(),
        "data": draw_data(0),
        "axes": axes(),
        "grid": GRID,
        "rule": plain,
        "metrics": {"right": accuracy},
        "point_metrics": {"norm": norm, "noise": noise},
        "extra_data": {"test": draw_data(1)},
        "key": jax.random.key(5),
        "execution": FIXED,
    }
    return call | changed


def evaluate(call: Call, **more) -> lla.Landscape:
    first = [call[name] for name in ("loss", "params", "data", "axes", "grid")]
    rest = {name: x for name, x in call.items() if name not in ("loss", "params", "data", "axes", "grid")}
    return lla.evaluate(*first, **rest, **more)


def sweep(call: Call, folder: Any) -> lla.Landscape:
    rest = {name: x for name, x in call.items() if name not in ("loss", "params", "data")}
    (plane,) = lla.sweep(call["loss"], [call["params"]], call["data"], **rest, store=folder).landscapes.values()
    return plane


def edited(arrays: tuple[np.ndarray, ...], which: int, at: Any, to: Any) -> tuple[np.ndarray, ...]:
    copies = [x.copy() for x in arrays]
    copies[which][at] = to
    return tuple(copies)


# --- what changes


class Change(NamedTuple):
    """A change of a call, and how the refusal names it.

    Args:
      arguments: makes the arguments that change.
      says: a part of the message, a regular expression.
      context: a context in which the changed call is made.
    """

    arguments: Callable[[], Call]
    says: str
    context: Callable[[], Any] = contextlib.nullcontext


def moved_params() -> Any:
    p = params()
    p["Dense_1"]["bias"][1] += 0.01
    return p


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """CPU devices count as GPUs, whose matrix products round at jax's default."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operands, "format_of", lambda device, precision: operands.format_on("gpu", precision))
        gpu = SimpleNamespace(platform="gpu")
        describe = operands.describe
        patch.setattr(operands, "describe", lambda precision, device: describe(precision, gpu))
        yield


LOSS = r"'loss' at the (first )?point.*same loss"
CHANGES = {
    "criterion": Change(lambda: {"loss": a_loss(ten_times)}, LOSS),
    "criterion of late rows": Change(lambda: {"loss": a_loss(late_rows)}, r"'loss' at the point \(-0.5, -0.5\)"),
    "penalty": Change(lambda: {"loss": a_loss(penalty=more_decay)}, "the penalty"),
    "no penalty": Change(lambda: {"loss": a_loss(penalty=None)}, LOSS),
    "data": Change(lambda: {"data": draw_data(3)}, r"data \(fingerprint"),
    "a row fewer": Change(lambda: {"data": draw_data(0, ROWS - 1)}, r"data \(examples: 24 -> 23"),
    "an odd column": Change(lambda: {"data": edited(draw_data(0), 0, np.s_[:, 1], 0)}, r"data \(fingerprint"),
    "a late label": Change(lambda: {"data": edited(draw_data(0), 1, -1, 1)}, r"data \(fingerprint"),
    "a parameter": Change(lambda: {"params": moved_params()}, r"params \(fingerprint"),
    "dtype": Change(lambda: {"params": jax.tree.map(jnp.bfloat16, params())}, r"params \(fingerprint"),
    "state": Change(lambda: {"loss": a_loss(state={"mean": np.ones(5, np.float32)})}, "state"),
    "key of the loss": Change(lambda: {"loss": a_loss(key=jax.random.key(1))}, "noise"),
    "rule by name": Change(lambda: {"rule": "add"}, r"rule \(.*plain.* -> .*add"),
    "rule at positive coordinates": Change(lambda: {"rule": positive}, r"'\w+' at the point \(0.5, 0.5\).*rule"),
    "metric": Change(lambda: {"metrics": {"right": wrong}}, "'right' at the first point"),
    "metric of late rows": Change(lambda: {"metrics": {"right": right_or_late}}, "'right' at the point"),
    "name of a metric": Change(lambda: {"metrics": {"accuracy": accuracy}}, r"metrics \(.*right.* -> .*accuracy"),
    "point metric": Change(lambda: {"point_metrics": {"norm": double_norm, "noise": noise}}, "'norm' at the first"),
    "extra data": Change(lambda: {"extra_data": {"test": draw_data(4)}}, r"extra_data \(test: fingerprint"),
    "late row of extra data": Change(
        lambda: {"extra_data": {"test": edited(draw_data(1), 0, (-1, 3), 9)}}, r"extra_data \(test: fingerprint"
    ),
    "seed of directions": Change(lambda: {"axes": axes(1)}, r"directions \(key"),
    "normalization": Change(
        lambda: {"axes": lla.directions.normalize(axes(), params(), by="layer")}, r"directions \(.*normalize"
    ),
    "leaves that move": Change(lambda: {"axes": axes(select="**/kernel")}, r"directions \(.*select"),
    "batch statistics": Change(lambda: {"batch_stats": "batch"}, "batch_stats"),
    "batch size": Change(lambda: {"batch_size": 7}, "batch_size"),
    "key of point metrics": Change(lambda: {"key": jax.random.key(6)}, r"key \("),
    "matmul precision": Change(
        lambda: plan(precision="default"), r'precision \(operands: "float32" -> "tensorfloat32"\)', as_on_a_gpu
    ),
    "64 bits": Change(dict, r"precision \(.*x64", lambda: jax.enable_x64(True)),
}


def finish(folder: Any) -> None:
    evaluate(call(), store=folder)


def begin(folder: Any) -> None:
    """A store of which the first writer has computed no chunk yet."""
    with pytest.raises(KeyboardInterrupt):
        evaluate(call(), store=folder, shard=(1, 2), progress=Interrupt(0))
    assert not list(folder.rglob("*.npz"))


VERBS: dict[str, tuple[Callable[[Any], Any], Callable[[Call, Any], lla.Landscape]]] = {
    "store": (finish, lambda call, folder: evaluate(call, store=folder)),
    "shard": (begin, lambda call, folder: evaluate(call, store=folder, shard=(2, 2))),
    "sweep": (lambda folder: sweep(call(), folder), sweep),
}
"""Name -> (what makes a folder, what continues it)."""


@functools.cache
def partial() -> lla.Landscape:
    kept: list[lla.Landscape] = []
    with pytest.raises(KeyboardInterrupt):
        evaluate(call(), progress=Interrupt(DONE), on_partial=kept.append)
    return kept[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folders that each verb made, which tests copy."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "LARGE", 480)
        for verb, (make, _) in VERBS.items():
            make(root / verb)
    return root


@pytest.mark.parametrize("name", CHANGES)
def test_another_function_is_refused_by_all_that_continues_a_landscape(name, made, tmp_path):
    change = CHANGES[name]
    changed = call(**change.arguments())
    with change.context():
        for verb, (_, again) in VERBS.items():
            folder = shutil.copytree(made / verb, tmp_path / verb)
            with pytest.raises(ValueError, match=f"^store: .*{change.says}"):
                again(changed, folder)
        if name == "rule at positive coordinates":  # at finished points it is the same rule
            found, whole = evaluate(changed, resume=partial()), evaluate(changed)
            np.testing.assert_allclose(found["loss"], whole["loss"], rtol=1e-6)
            return
        with pytest.raises(ValueError, match=f"^resume: .*{change.says}"):
            evaluate(changed, resume=partial())


def test_a_rule_that_differs_within_the_grid_is_noticed_at_finished_points():
    whole = evaluate(call() | plan(chunk=9))
    with pytest.raises(ValueError, match=r"^resume: '\w+' at the point \(0, 0\)"):
        evaluate(call(rule=inside), resume=whole)


def edit_store(folder: Any, edit: Callable[[Any], object], version: int = 2) -> None:
    """Change the recipe of a store everywhere, as if it had been written with this recipe from the start."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | {"version": version}
    edit(manifest["recipe"])
    manifest["hash"] = _manifest._hash(manifest)
    path.write_text(json.dumps(manifest))
    for chunk in folder.glob("grid-*/*.npz"):
        header, arrays = files.read_npz(chunk)
        header |= {"hash": manifest["hash"], "manifest": {k: v for k, v in manifest.items() if k != "coords"}}
        if version == 1:
            del header["manifest"], header["grids"]
        files.write_npz(chunk, header, arrays)


def test_a_store_of_before_is_compared_at_its_finished_points_and_continues(made, tmp_path, monkeypatch):
    def of_before(verb):
        folder = shutil.copytree(made / verb, tmp_path / verb)
        edit_store(folder, lambda recipe: recipe.pop("corners"), version=1)
        return folder

    finished, begun = of_before("store"), of_before("shard")
    for name in ("criterion of late rows", "rule at positive coordinates"):
        with pytest.raises(ValueError, match=r"store: .* at the point"):
            evaluate(call(**CHANGES[name].arguments()), store=finished)
    counted = points_computed(monkeypatch)
    evaluate(call(), store=finished)
    assert not counted
    evaluate(call(), store=begun)
    assert sum(counted) == 9


@pytest.mark.parametrize("name", ["criterion", "criterion of late rows", "rule at positive coordinates"])
def test_the_first_batch_of_a_stream_is_compared_at_corners(name, tmp_path):
    def streamed(**changed):
        data = draw_data(0)
        return call(**({"extra_data": None} | changed | {"data": lla.stream([data, tuple(x[:9] for x in data)])}))

    kept = []
    with pytest.raises(KeyboardInterrupt):  # after all points of its only group
        evaluate(streamed(), progress=Interrupt(9, times=2), on_partial=kept.append)
    evaluate(streamed(), store=tmp_path)
    changed = streamed(**CHANGES[name].arguments())
    for option in ({"store": tmp_path}, {"resume": kept[0]}):
        with pytest.raises(ValueError, match=CHANGES[name].says):
            evaluate(changed, **option)
        assert evaluate(streamed(), **option).recipe["complete"]


PROBLEM = """
import jax, numpy as np
import lla_jax as lla

def loss(params, batch):
    x, late = batch
    return ((x @ params) ** 2 * {factor}).mean()

def make():
    x = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
    return lla.Problem(loss, np.array([1.0, -2.0, 0.5], np.float32), (x, np.arange(24) > 20))
"""


def test_the_command_line_refuses_its_folder_and_continues_it(command):
    def landscape(factor):
        words = ("--problem", "stale_problem.py:make", "--points", 5, "--out", "run")
        return command(PROBLEM.format(factor=factor), "landscape", *words)

    assert landscape("1.0")[0] == 0
    for factor in ("10.0", "(1 + 9 * late)"):
        code, said = landscape(factor)
        assert code == 2
        assert "with other functions" in said
    assert landscape("(0.5 + 0.5)")[0] == 0


# --- what does not matter


def rounded(recipe: Any) -> None:
    """Numbers as another machine gives them."""
    recipe["probe"] = {name: x * (1 + 1e-7) for name, x in recipe["probe"].items()}
    corners = recipe["corners"]["values"]
    recipe["corners"]["values"] = {name: [x * (1 - 1e-7) for x in xs] for name, xs in corners.items()}


def other_versions(recipe: Any) -> None:
    recipe["versions"] = dict.fromkeys(recipe["versions"], "0.0.1")


def closure():
    factor = 1

    def criterion(outputs, batch):
        return factor * cross_entropy(outputs, batch)

    return criterion


def reversed_dict(tree: Any) -> Any:
    return {k: reversed_dict(tree[k]) for k in reversed(tree)} if isinstance(tree, dict) else tree


def plan(**fields) -> Call:
    fixed = {"chunk": 4, "microbatch": 8, "loop": "map", "share": False, "devices": 1}
    return {"execution": lla.Execution(**{**fixed, **fields})}


HARMLESS: dict[str, Callable[[], Call]] = {
    "plan": lambda: plan(loop="vmap", chunk=3, microbatch=24),
    "chunk": lambda: plan(chunk=9),
    "microbatch": lambda: plan(microbatch=5),
    "device count": lambda: plan(devices=2),
    "precision on a CPU": lambda: plan(precision="default"),
    "a new closure of the same code": lambda: {"loss": a_loss(closure())},
    "a loss built anew": lambda: {"loss": a_loss(lambda outputs, batch: cross_entropy(outputs, batch))},
    "another order of dicts": lambda: {
        "params": reversed_dict(params()),
        "point_metrics": {"noise": noise, "norm": norm},
    },
    "arrays of jax": lambda: {"params": jax.tree.map(jnp.asarray, params()), "data": jax.device_put(draw_data(0))},
    "progress": lambda: {"progress": lambda done, total: None},
}


def left_to_jax(recipe: Any) -> None:
    """The precision as recipes of before have it."""
    recipe["precision"]["matmul"] = "default"


EDITS = {
    "numbers of another machine": rounded,
    "other versions": other_versions,
    "another folder": lambda recipe: None,
    "precision of before": left_to_jax,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_a_change_that_matters_to_no_value_computes_no_finished_point_again(name, made, tmp_path, monkeypatch):
    changed = call(**HARMLESS[name]())
    stored = points_computed(monkeypatch)
    folder = shutil.copytree(made / "store", tmp_path / "store")
    before = evaluate(call())
    np.testing.assert_array_equal(evaluate(changed, store=folder)["loss"], before["loss"])
    assert not stored
    evaluate(changed, store=shutil.copytree(made / "shard", tmp_path / "shard"), shard=(2, 2))
    sweep(changed, shutil.copytree(made / "sweep", tmp_path / "sweep"))
    assert sum(stored) <= 4 + 1  # the chunks of a second shard
    kept, counted = partial(), points_computed(monkeypatch, memory)
    np.testing.assert_array_equal(evaluate(changed, resume=kept)["loss"], before["loss"])
    assert sum(counted) == 9 - DONE


@pytest.mark.parametrize("name", EDITS)
def test_a_store_of_another_machine_version_or_path_computes_no_point(name, made, tmp_path, monkeypatch):
    folder = shutil.copytree(made / "store", tmp_path / "moved" / "store")
    edit_store(folder, EDITS[name])
    stored = points_computed(monkeypatch)
    evaluate(call(), store=folder)
    assert not stored


@pytest.mark.parametrize(
    ("grid", "new"), [(lla.grid(extent=1.0, points=5), 25 - 9), (lla.grid(extent=0.5, points=5), 25 - 9)]
)
def test_a_wider_or_a_denser_grid_computes_its_new_points_alone(grid, new, made, tmp_path, monkeypatch):
    folder = shutil.copytree(made / "store", tmp_path / "store")
    stored = points_computed(monkeypatch)
    evaluate(call(grid=grid), store=folder)
    assert sum(stored) == new
