"""What a function reaches is looked at anew for a new loss, metric, rule or product: nothing stale is served."""

import collections
import dataclasses
import functools
import os
import pathlib
import sys
import types
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core.identities import Look, identity
from tests.helpers import FIXED, compilations

PARAMS = {"w": jnp.array([1.0, 2.0])}
DATA = (np.ones((4, 2), np.float32),)
ROOM = types.ModuleType("room_of_numbers")  # a module of the user's, which functions import


def apply(params, state, batch, train):
    return (batch[0] @ params["w"]) ** 2, state


class Scaled:
    """A callable object, and one with a method."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def __call__(self, x, _):
        return x * self.scale

    def method(self, x, _):
        return x * self.scale


class Alike(Scaled):
    """Two are equal, whatever they hold."""

    def __eq__(self, other):
        return isinstance(other, Alike)

    def __hash__(self):
        return 1


class Slots:
    __slots__ = ("scale",)

    def __call__(self, x, _):
        return x * self.scale


@dataclasses.dataclass(frozen=True)
class Frozen:
    scales: list

    @property
    def scale(self):
        return self.scales[0]

    def __call__(self, x, _):
        return x * self.scale


# Each yields a function that scales by 1, and then one that scales by 10, from the same objects.


def of_environment():
    os.environ["SCALE_OF_A_LOSS"] = "1"
    yield lambda x, _: x * float(os.environ["SCALE_OF_A_LOSS"])
    os.environ["SCALE_OF_A_LOSS"] = "10"
    yield lambda x, _: x * float(os.environ["SCALE_OF_A_LOSS"])


def of_getenv():
    def f(x, _):
        return x * float(os.getenv("SCALE_OF_A_LOSS"))

    for os.environ["SCALE_OF_A_LOSS"] in ("1", "10"):
        yield f


def of_object(scaled):
    for scaled.scale in (1.0, 10.0):
        yield scaled


def of_method():
    scaled = Scaled()
    for scaled.scale in (1.0, 10.0):
        yield scaled.method


def of_frozen_dataclass():
    frozen = Frozen([1.0])
    yield frozen
    frozen.scales[0] = 10.0
    yield frozen


def of_class():
    class Own:
        scale = 1.0

        def __call__(self, x, _):
            return x * self.scale

        @classmethod
        def of_class(cls, x, _):
            return x * cls.scale

    own = Own()
    for Own.scale in (1.0, 10.0):
        yield functools.partial(lambda f, g, x, _: (f(x, _) + g(x, _)) / 2, own, Own.of_class)


def of_patched_method():
    class Own:
        def __call__(self, x, _):
            return x * 1.0

    own = Own()
    yield own
    Own.__call__ = lambda self, x, _: x * 10.0
    yield own


def of_content(content, change, read):
    def f(x, _):
        return x * read(content)

    yield f
    change(content)
    yield f


def of_table():
    return of_content({"a": {"b": 1.0}}, lambda c: c["a"].update(b=10.0), lambda c: c["a"]["b"])


def of_array():
    return of_content(np.ones(1, np.float32), lambda c: c.fill(10), lambda c: c)


def of_attribute_array():
    return of_content(types.SimpleNamespace(a=np.ones(1, np.float32)), lambda c: c.a.fill(10), lambda c: c.a)


def of_queue():
    return of_content(collections.deque([1.0]), lambda c: c.appendleft(10.0), lambda c: c[0])


def of_default():
    def f(x, _, scales=[1.0], *, unit={"k": 1.0}):  # noqa: B006
        return x * scales[0] * unit["k"]

    yield f
    f.__defaults__[0][0], f.__kwdefaults__["unit"]["k"] = 2.0, 5.0
    yield f


def of_own_attribute():
    def f(x, _):
        return x * f.scale

    for f.scale in (1.0, 10.0):
        yield f


def of_partial():
    table = {"k": 1.0}
    yield functools.partial(lambda t, x, _: x * t["k"], table)
    table["k"] = 10.0
    yield functools.partial(lambda t, x, _: x * t["k"], table)


def of_wrapped():
    table = [1.0]

    def wrap(g):
        @functools.wraps(g)
        def call(*args):
            return g(*args)

        return call

    f = wrap(jax.vmap(wrap(lambda x, _: x * table[0]), (0, None)))
    for table[0] in (1.0, 10.0):
        yield f


def of_cached():
    table = [1.0]
    read = functools.lru_cache(lambda: table[0])
    for table[0] in (1.0, 10.0):
        read.cache_clear()
        yield lambda x, _: x * read()


def of_custom_derivative():
    table = [1.0]
    f = jax.custom_jvp(lambda x: x * table[0])
    f.defjvp(lambda x, t: (x[0] * table[0], t[0] * table[0]))
    for table[0] in (1.0, 10.0):
        yield lambda x, _: f(x)


def of_import():
    def f(x, _):
        import room_of_numbers
        from room_of_numbers import TABLE

        return x * room_of_numbers.SCALE * TABLE["k"] * getattr(room_of_numbers, "UN" + "IT")

    sys.modules["room_of_numbers"] = ROOM
    ROOM.SCALE, ROOM.TABLE, ROOM.UNIT = 1.0, {"k": 1.0}, 1.0
    yield f
    ROOM.SCALE, ROOM.TABLE["k"], ROOM.UNIT = 5.0, 4.0, 0.5
    yield f
    del sys.modules["room_of_numbers"]


def of_arguments():
    sys.argv.append("1")
    yield lambda x, _: x * float(sys.argv[-1])
    sys.argv[-1] = "10"
    yield lambda x, _: x * float(sys.argv[-1])
    sys.argv.pop()


def of_file(tmp_path):
    path = pathlib.Path(tmp_path) / "scale.txt"

    def f(x, _):
        with open(path) as file:
            return x * float(file.read()) * float(path.read_text()) ** 0

    for text in ("1", "10"):
        path.write_text(text)
        yield f


def of_loaded(tmp_path):
    path = pathlib.Path(tmp_path) / "scale.npy"
    for scale in (1.0, 10.0):
        np.save(path, scale)
        yield lambda x, _: x * np.load(path)


def of_metaclass():
    class Kind(type):
        table: typing.ClassVar = {}
        scale = property(lambda cls: Kind.table["scale"])

    class Net(metaclass=Kind):
        pass

    for Kind.table["scale"] in (1.0, 10.0):
        yield lambda x, _: x * Net.scale


def of_global():
    for globals()["SCALE"] in (1.0, 10.0):
        yield lambda x, _: x * SCALE  # noqa: F821


WAYS = {
    "environment": of_environment,
    "getenv": of_getenv,
    "object": lambda: of_object(Scaled()),
    "object with its own equality": lambda: of_object(Alike()),
    "object with slots": lambda: of_object(Slots()),
    **{f.__name__[3:].replace("_", " "): f for f in (of_method, of_frozen_dataclass, of_class, of_patched_method)},
    **{f.__name__[3:].replace("_", " "): f for f in (of_table, of_array, of_attribute_array, of_queue, of_default)},
    **{f.__name__[3:].replace("_", " "): f for f in (of_own_attribute, of_partial, of_wrapped, of_cached)},
    **{f.__name__[3:].replace("_", " "): f for f in (of_custom_derivative, of_import, of_arguments, of_global)},
    "metaclass": of_metaclass,
    "file": of_file,
    "loaded file": of_loaded,
}

criterion_of = jax.jit(lambda loss, x: loss.criterion(x, None).sum())
curvature_of = jax.jit(jax.hessian(lambda x, loss: loss.criterion(x**2, None).sum()))


@pytest.mark.parametrize("way", WAYS)
def test_a_new_loss_reads_what_its_functions_reach_now(way, tmp_path):
    x = jnp.array([1.0, 2.0])
    functions = WAYS[way](tmp_path) if "file" in way else WAYS[way]()
    for scale, f in zip((1.0, 10.0), functions, strict=True):
        loss = lla.Loss(apply, f)
        assert criterion_of(loss, x) == pytest.approx(3 * scale)
        np.testing.assert_allclose(curvature_of(x, loss), 2 * scale * np.eye(2), rtol=1e-6)


def test_landscapes_matrices_and_products_read_what_is_there_now():
    scaled, rate, table = Scaled(), Scaled(), {"k": 1.0}
    line = lla.directions.given(PARAMS)

    def rule(params, directions, coord):
        return jax.tree.map(lambda p, d: p + rate.scale * coord[0] * d[0], params, directions)

    def value(held=None):
        loss = held or lla.Loss(apply, scaled.method, penalty=lambda p: table["k"] * p["w"].sum())
        options = {"metrics": {"m": scaled}, "point_metrics": {"p": lambda p, key: table["k"] * p["w"][0]}}
        grid = lla.grid(ranges=[(0.0, 1.0)], points=2)
        plane = lla.evaluate(loss, PARAMS, DATA, line, grid, rule=rule, execution=FIXED, **options)
        product = lla.hessian(loss, PARAMS, DATA) @ PARAMS
        own = lla.operators.given(lambda v: jax.tree.map(lambda x: table["k"] * x, v), PARAMS) @ PARAMS
        numbers = [*(plane.values[name][-1] for name in ("loss", "m", "p")), product["w"].sum(), own["w"].sum()]
        return np.array(numbers), loss

    def expected(scale, k, step):
        w = (1 + step) * 3
        return [scale * w**2 + k * w, scale * w**2, k * (1 + step), scale * 2 * 3 * 2, k * 3]

    numbers, loss = value()
    np.testing.assert_allclose(numbers, expected(1, 1, 1), rtol=1e-5)
    scaled.scale, rate.scale, table["k"] = 10.0, 2.0, 5.0
    np.testing.assert_allclose(value()[0], expected(10, 5, 2), rtol=1e-5)
    np.testing.assert_allclose(value(loss)[0], expected(10, 5, 2), rtol=1e-5)  # of the same loss, too
    with compilations() as count:
        value()
    assert count.count == 0


def test_a_counter_that_a_function_writes_compiles_nothing_anew():
    traces, model = [], types.SimpleNamespace(scale=1.0, calls=0)
    number = 0

    def f(x, _):
        nonlocal number
        number += 1
        traces.append(number)
        model.calls += 1
        return x * model.scale

    x = jnp.ones(2)
    for _ in range(3):
        assert criterion_of(lla.Loss(apply, f), x) == 2
    assert len(traces) == 1
    model.scale = 10.0  # beside the counter
    assert criterion_of(lla.Loss(apply, f), x) == 20


def test_what_a_function_fills_in_itself_can_be_set_by_others():
    class Lazy:
        scale = None

        def __call__(self, x, _):
            if self.scale is None:
                self.scale = 2.0
            return x * self.scale

    lazy, x = Lazy(), jnp.ones(2)
    with compilations() as count:
        assert criterion_of(lla.Loss(apply, lazy), x) == 4
        once = count.count
        assert criterion_of(lla.Loss(apply, lazy), x) == 4
    assert count.count == once
    lazy.scale = 20.0
    assert criterion_of(lla.Loss(apply, lazy), x) == 40


def test_a_function_that_is_traced_late_belongs_to_what_it_read_then():
    table, x = [1.0], jnp.ones(2)

    def f(x, _):
        return x * table[0]

    early, first = lla.Loss(apply, f), lla.Loss(apply, f)
    table[0] = 10.0
    assert criterion_of(early, x) == 20  # traced now
    table[0] = 1.0
    assert criterion_of(lla.Loss(apply, f), x) == 2
    assert criterion_of(first, x) == 2


def test_equal_content_of_other_objects_compiles_nothing_anew():
    one, two = jnp.ones(2), 2 * jnp.ones(2)
    criterion_of(lla.Loss(apply, Scaled(3.0)), one)
    with compilations() as count:
        assert criterion_of(lla.Loss(apply, Scaled(3.0)), one) == 6
        assert criterion_of(lla.Loss(apply, Scaled(3.0)), two) == 12
    assert count.count == 0


def test_an_object_that_contains_itself_and_one_that_reaches_too_much():
    ring: dict = {}
    ring["self"] = ring
    assert identity(ring) == identity(ring)
    with pytest.raises(TypeError, match="too much"):
        Look([[i, i] for i in range(20_000)])


def test_a_container_that_cannot_be_read_has_no_identity():
    class Broken(dict):
        def values(self):
            raise RuntimeError

    with pytest.raises(TypeError, match="cannot be read"):
        identity(Broken(a=1))
