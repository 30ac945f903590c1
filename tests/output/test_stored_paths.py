"""Projections, barriers, curves and spanning trees come back to the bit; what contradicts itself is refused."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core import files as _files
from lla_jax.core.arguments import Misuse
from lla_jax.paths.bands.saddles import Saddle
from lla_jax.paths.curves import Curve
from lla_jax.paths.losses.barriers import Barrier, Height
from lla_jax.paths.projection.projections import Projection
from lla_jax.paths.spanning import SpanningTree
from tests.hostile import HOSTILE, replace_a_value
from tests.slips.slip import error_of, raised_on_purpose

RNG = np.random.default_rng(0)
PARAMS = {"dense": {"w": np.ones((2, 3), np.float32)}, "layers": [jnp.zeros(2, jnp.bfloat16), np.ones(1)]}
NAN, INF = float("nan"), float("inf")


def stacked(num):
    def fill(x):
        return (np.arange(num * x.size).reshape(num, *x.shape) / 7).astype(x.dtype)

    return jax.tree.map(fill, PARAMS)


def a_projection():
    values = {"loss": np.array([1.0, NAN, 3.0]), "projected_loss": np.array([1.0, INF, 0.1])}
    curvature = {"trace": np.array([NAN, 1.0, 2.0])}
    names = "step 0", "ünïcode / name", ""
    coords, steps = RNG.normal(size=(3, 2)), np.array([0, 10, 2**40])
    errors = {"loss": np.zeros(3)}
    recorded = np.full(3, NAN)
    return Projection(
        coords, np.zeros(3), steps, names, recorded, values, errors, curvature, {}, {"kind": "projection"}
    )


def a_barrier():
    values = {"loss": np.array([0.0, 1.0, 0.5]), "test_loss": np.array([0.0, NAN, 0.5])}
    heights = {"loss": Height(0.75, 0.1, 0.5, 0.75, 0.1, 0.5), "test_loss": Height(NAN, NAN, 0.5, NAN, NAN, 0.5)}
    ends = {"loss": np.array([0.0, 0.5]), "loss_stderr": np.array([0.1, 0.1])}
    return Barrier(np.array([0.0, 0.5, 1.0]), values, {"loss": np.ones(3) / 3}, heights, ends, {"kind": "barrier"})


def a_curve(kind="band", num=4):
    points, is_band = stacked(num), kind == "band"
    states = {"bn": {"mean": np.ones((2, 3), np.float32), "count": np.array([3, 4])}}
    one = jax.tree.map(lambda x: x[1], points)
    saddle = Saddle(0.25, one, 0.1 + 0.2, 1e-300, NAN, False, 2, np.array([-1.0, 0.5])) if is_band else None
    history = {"loss": np.array([1.0, NAN]), "pivot_loss": np.array([], np.float32)}
    knots = [0.0, 0.1 + 0.2, 0.7, 1.0] if is_band else None
    return Curve(kind, points, knots, states, history, {"kind": kind, "steps": 7}, saddle)


def a_tree():
    curves = a_curve(), a_curve("bezier", 3)
    arrays = np.array([0.5, 0.25]), np.array([1.0, 2.0]), np.array([NAN, 0.1])
    barriers = np.arange(9.0).reshape(3, 3)
    return SpanningTree(("a", "b", "c"), ((0, 2), (1, 2)), curves, *arrays, np.ones(3), np.zeros(3), barriers, {})


RESULTS = [a_projection(), a_barrier(), a_curve(), a_curve("bezier", 3), a_curve("line", 2), a_tree()]
NAMES = [type(each).__name__ + getattr(each, "kind", "") for each in RESULTS]


def parts(x):
    """All that a result holds: bytes and types of arrays, reprs of the rest, in order."""
    if dataclasses.is_dataclass(x):
        return {field.name: parts(getattr(x, field.name)) for field in dataclasses.fields(x)}
    if isinstance(x, dict):
        return [(key, parts(value)) for key, value in sorted(x.items())]
    if isinstance(x, list | tuple):
        return [parts(each) for each in x]
    array = np.asarray(x) if hasattr(x, "dtype") else None
    return repr(x) if array is None else (array.dtype.name, array.shape, array.tobytes())


@pytest.mark.parametrize("result", RESULTS, ids=NAMES)
def test_a_result_comes_back_to_the_bit(result, tmp_path):
    path = lla.save(result, tmp_path / "x")
    again = lla.load(path, like=PARAMS)
    assert type(again) is type(result)
    assert parts(again) == parts(result)
    assert repr(lla.load(path)) == repr(result)  # without the parameters, as nested dicts


def test_a_curve_without_like_has_nested_dicts_named_by_paths(tmp_path):
    curve = a_curve()
    again = lla.load(lla.save(curve, tmp_path / "x"))
    np.testing.assert_array_equal(again.points["dense"]["w"], curve.points["dense"]["w"])
    np.testing.assert_array_equal(again.saddle.params["dense"]["w"], curve.saddle.params["dense"]["w"])
    np.testing.assert_array_equal(again(0.3)["dense"]["w"], curve(0.3)["dense"]["w"])
    with pytest.raises(Misuse, match=r"^like|^curve"):
        lla.load(tmp_path / "x", like={"other": np.ones(3)})


def changed(result, **fields):
    """A result with other fields, past the checks of its class."""
    copy = object.__new__(type(result))
    for name, value in {**vars(result), **fields}.items():
        object.__setattr__(copy, name, value)
    return copy


@pytest.mark.parametrize(
    "broken",
    [
        changed(a_projection(), distance=np.ones(2)),
        changed(a_projection(), coords=np.full((3, 2), NAN)),
        changed(a_projection(), steps=np.ones(3)),
        changed(a_projection(), names=("a", "b")),
        changed(a_projection(), values={"loss": np.ones(4)}),
        changed(a_projection(), recorded=np.ones(3) * 1j),
        changed(a_projection(), recipe=[]),
        changed(a_barrier(), coords=np.ones((3, 1))),
        changed(a_barrier(), errors={"accuracy": np.ones(3)}),
        changed(a_barrier(), heights={}),
        changed(a_barrier(), ends={"loss": np.ones(3)}),
        changed(a_curve(), saddle={"t": 0.5}),
        changed(a_curve(), saddle=dataclasses.replace(a_curve().saddle, t=2.0)),
        changed(a_curve(), saddle=dataclasses.replace(a_curve().saddle, negative=-1)),
        changed(a_curve(), saddle=dataclasses.replace(a_curve().saddle, params=stacked(2))),
        changed(a_curve(), history={"loss": np.array([1j])}),
        changed(a_tree(), edges=((0, 2), (2, 1))),
        changed(a_tree(), edges=((0, 2), (1, 7))),
        changed(a_tree(), curves=a_tree().curves[:1]),
        changed(a_tree(), barriers=np.ones((2, 2))),
    ],
)
def test_what_contradicts_itself_is_not_saved(broken, tmp_path):
    with pytest.raises(Misuse, match=r"^x: a \w+ that has .*mend it"):
        lla.save(broken, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_any_value_in_a_header_may_be_replaced(tmp_path):
    """No value, however odd, makes an error of another kind, or a result that cannot be printed."""
    rng, refused = np.random.default_rng(1), 0
    for result in RESULTS[:3] + RESULTS[-1:]:
        path = lla.save(result, tmp_path / "x.npz")
        header, arrays = _files.read_npz(path)
        for _ in range(60):
            other = json.loads(_files.to_json(header))
            replace_a_value(other, int(rng.integers(10_000)), HOSTILE[rng.integers(len(HOSTILE))])
            with open(path, "wb") as file:
                np.savez(file, header=np.array(json.dumps(other)), **arrays)
            error = error_of(lambda path=path: repr(lla.load(path, like=PARAMS)))
            assert error is None or raised_on_purpose(error.__traceback__), error
            assert len(str(error)) < 4000
            refused += error is not None
    assert refused > 100


def test_damaged_arrays_are_refused_or_read_as_they_were(tmp_path):
    rng, result = np.random.default_rng(2), a_tree()
    path = lla.save(result, tmp_path / "x.npz")
    whole = path.read_bytes()
    for trial in range(60):
        broken = bytearray(whole)
        if trial % 3:
            broken[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        else:
            del broken[rng.integers(len(whole)) :]
        path.write_bytes(broken)
        error = error_of(lambda: lla.load(path, like=PARAMS))
        if error is None:
            assert parts(lla.load(path, like=PARAMS)) == parts(result)
        else:
            assert isinstance(error, Misuse)
            assert str(error).startswith("path: ")
