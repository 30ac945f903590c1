"""Properties of saved results: each comes back as it was, and no damage makes another kind of error."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import lla_jax as lla
from lla_jax.core import files as _files
from lla_jax.core.arguments import Misuse
from tests.hostile import HOSTILE, replace_a_value
from tests.slips.slip import error_of, raised_on_purpose

CHEAP = settings(deadline=None, max_examples=25, derandomize=True)
DTYPES = ["float64", "float32", "float16", "bfloat16", ">f4", "int64", "int8", "uint32", "bool", "complex64"]
NAMES = st.text(max_size=6) | st.sampled_from(["", "/", "a/b", "header", "file", "leaf0", "coord0", "../x", "λ", "\0"])
SIZES = st.integers(0, 3)


@st.composite
def arrays(draw, shape, dtypes=DTYPES):
    """An array of any bytes: NaN, infinities and subnormal numbers among them."""
    dtype = np.dtype(jnp.bfloat16 if (name := draw(st.sampled_from(dtypes))) == "bfloat16" else name)
    count = math.prod(shape)
    if dtype.kind == "b":
        return np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool).reshape(shape)
    raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    return np.frombuffer(raw, dtype).reshape(shape)


def named_arrays(shapes, **options):
    return st.dictionaries(NAMES, shapes.flatmap(lambda shape: arrays(tuple(shape), **options)), max_size=3)


RECIPES = st.dictionaries(
    NAMES,
    st.recursive(st.none() | st.integers() | st.floats(allow_nan=False) | NAMES, st.lists, max_leaves=4),
    max_size=3,
)
STATES = st.none() | named_arrays(st.lists(SIZES, max_size=3))


@st.composite
def landscapes(draw):
    shape = tuple(draw(st.lists(SIZES, min_size=1, max_size=3)))
    floats = {"dtypes": ["float64", "float32"]}
    coords = tuple(np.nan_to_num(draw(arrays((n,), **floats))) for n in shape)
    values, stderr = (draw(named_arrays(st.just(shape), **floats)) for _ in range(2))
    return lla.Landscape(coords, values, stderr, draw(RECIPES))


@st.composite
def spectra(draw):
    shape = draw(SIZES), draw(SIZES)
    nodes, weights = (draw(arrays(shape, ["float64"])) for _ in range(2))
    return lla.Spectrum(nodes, weights, draw(RECIPES), draw(STATES))


@st.composite
def directions(draw, num):
    """Directions whose tree has dicts, lists and tuples, with keys of any text."""
    leaf = st.lists(SIZES, max_size=2).flatmap(lambda shape: arrays((num, *shape)))
    trees = st.recursive(
        leaf,
        lambda inner: (
            st.dictionaries(NAMES, inner, max_size=3)
            | st.lists(inner, max_size=2).map(tuple)
            | st.lists(inner, max_size=2)
        ),
        max_leaves=4,
    )
    return lla.Directions(draw(trees), {"kind": "given", **draw(RECIPES)})


@st.composite
def eigenpairs(draw):
    k = draw(SIZES)
    values, residuals = (draw(arrays((k,), ["float64"])) for _ in range(2))
    vectors = draw(st.none() | directions(k))
    return lla.Eigenpairs(values, vectors, residuals, draw(st.integers(0, 99)), draw(RECIPES), draw(STATES))


def bits(tree):
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(np.asarray(x).dtype, np.shape(x), np.asarray(x).tobytes()) for x in leaves]


def parts(result):
    """All that a result holds, to be compared."""
    if isinstance(result, lla.Directions):
        return bits(result.tree), json.dumps(result.recipe)
    fields = {name: value for name, value in vars(result).items() if name not in ("recipe", "vectors", "products")}
    vectors = getattr(result, "vectors", None)
    names = [list(value) for value in fields.values() if isinstance(value, dict)]
    rest = json.dumps(result.recipe), getattr(result, "products", None), vectors and parts(vectors)
    return bits(fields), names, rest


def centre(x):
    """The parameters that directions belong to, without their leading axis."""
    return None if x is None else jax.tree.map(lambda leaf: np.zeros(leaf.shape[1:]), x.tree)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("properties") / "result.npz"


@given(result=landscapes() | spectra())
@CHEAP
def test_any_landscape_or_spectrum_comes_back_as_it_was(result, path):
    assert parts(lla.load(lla.save(result, path))) == parts(result)


def attempt(call, *arguments, **options):
    """(result, None), or (None, the error by which an argument is refused)."""
    try:
        return call(*arguments, **options), None
    except Misuse as error:
        return None, error


@given(result=SIZES.flatmap(directions) | eigenpairs())
@CHEAP
def test_any_directions_or_eigenpairs_come_back_as_they_were(result, path):
    vectors = result if isinstance(result, lla.Directions) else result.vectors
    _, refused = attempt(lla.save, result, path)
    if refused:  # a tree without leaves, or with two leaves of one path
        assert "leaves" in str(refused)
        return
    assert parts(lla.load(path, like=centre(vectors))) == parts(result)
    loaded, refused = attempt(lla.load, path)
    if refused:  # nested dicts cannot have a leaf where another leaf's path goes on
        assert refused.argument == "like"
        return
    nested = loaded if isinstance(loaded, lla.Directions) else loaded.vectors
    before, after = ([] if each is None else sorted(bits(each.tree)[1], key=repr) for each in (vectors, nested))
    assert after == before


@given(result=landscapes() | spectra() | SIZES.flatmap(directions) | eigenpairs(), data=st.data())
@CHEAP
def test_a_damaged_file_is_refused_or_read_as_it_was(result, data, path):
    vectors = result if isinstance(result, lla.Directions) else getattr(result, "vectors", None)
    _, refused = attempt(lla.save, result, path)
    assume(not refused)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[position:]
    else:
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    loaded, refused = attempt(lla.load, path, like=centre(vectors))
    if refused:
        assert refused.argument == "path"
        assert str(path) in str(refused)
    else:
        assert parts(loaded) == parts(result)


PARAMS = {"a": np.ones((2, 3), np.float32), "b": np.zeros(2, np.float32)}


@pytest.fixture(scope="module")
def results():
    """A result of each type, as the library makes it."""
    axes = lla.directions.normalize(lla.directions.random(jax.random.key(0), PARAMS, 3), PARAMS)[[2, 0]]
    vectors = lla.directions.given(PARAMS, names=["first"])
    one, state = np.ones(1), {"basis": np.ones((2, 3))}
    return [
        lla.Landscape((np.linspace(-1, 1, 3),), {"loss": np.ones(3)}, {"loss": np.zeros(3)}, {"kind": "test"}),
        axes,
        lla.directions.select(axes, "a"),
        vectors,
        lla.Eigenpairs(one, vectors, 0.1 * one, 7, {"kind": "eigenpairs"}, state),
        lla.Spectrum(np.ones((2, 3)), np.full((2, 3), 1 / 3), {"kind": "spectrum"}, state),
    ]


@given(data=st.data())
@settings(deadline=None, max_examples=100, derandomize=True)
def test_any_value_in_a_header_may_be_replaced(results, data, path):
    """No value, however odd, makes an error of another kind, or a result that cannot be printed."""
    result = results[data.draw(st.integers(0, len(results) - 1))]
    header, arrays = _files.read_npz(lla.save(result, path))
    replace_a_value(header, data.draw(st.integers(0, 10_000)), HOSTILE[data.draw(st.integers(0, len(HOSTILE) - 1))])
    with open(path, "wb") as file:
        np.savez(file, header=np.array(json.dumps(header)), **arrays)
    error = error_of(lambda: repr(lla.load(path, like=PARAMS)))
    assert error is None or raised_on_purpose(error.__traceback__), error
    assert len(str(error)) < 4000
