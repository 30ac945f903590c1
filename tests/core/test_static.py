"""Functions are equal if and only if they surely compute the same."""

import copy
import dataclasses
import functools
import math
import os
import random
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lla_jax as lla
from lla_jax.core import static as _static
from lla_jax.core.identities import Look
from lla_jax.core.libraries import is_installed
from lla_jax.core.static import ByValue, Static, renew, static
from tests.helpers import FIXED, apply, dataset, params

SCALE = 2.0


def same(f, g):
    assert (Static(f) == Static(g)) is (hash(Static(f)) == hash(Static(g)))
    return Static(f) == Static(g)


def test_one_lambda_written_in_a_loop_is_one_function():
    for make in (
        lambda: lambda x: x + 1,
        lambda: lambda x, b: optax.softmax_cross_entropy_with_integer_labels(x, b[1]),
        lambda: lambda x: jnp.sum(jax.nn.relu(x)) * SCALE,
        lambda: functools.partial(math.pow, 2.0),
        lambda: lambda x: [y for y in x if y],
        lambda: lambda x: (lambda y: y * SCALE)(x),
        lambda: lambda x: helper(x),
    ):
        assert same(make(), make())


def helper(x):
    return SCALE * x


def captured(value):
    return lambda x: (value, x)


def defaulted(value):
    return lambda x, y=value: (y, x)


@pytest.mark.parametrize("make", [captured, defaulted, lambda v: functools.partial(helper, v)])
def test_values_count_with_their_types_and_signs(make):
    values = [1, 1.0, True, 0.0, -0.0, "1", b"1", None, (1, 2), (1.0, 2.0), (True, 2), np.float32(1), 1 + 0j]
    for i, a in enumerate(values):
        for j, b in enumerate(values):
            assert same(make(a), make(b)) is (i == j)
    nan = float("nan")
    assert same(make(nan), make(nan))


class Mutable:
    scale = 1.0


def change_list(x):
    x[0] = 2


def change_dict(x):
    x["b"] = 1


def change_attribute(x):
    x.scale = 3.0


def change_array(x):
    x[1] = 5


@pytest.mark.parametrize(
    ("value", "change"),
    [
        ([1], change_list),
        ([[1]], lambda x: change_list(x[0])),
        ({"a": 1}, change_dict),
        ({1}, lambda x: x.add(2)),
        (Mutable(), change_attribute),
        (np.ones(2), change_array),
        (np.array([1, None], object), change_array),
        (types.SimpleNamespace(a=1), change_attribute),
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_was_changed_in_place_makes_another_function(value, change):
    f, same_content = captured(value), captured(copy.deepcopy(value))
    first, partial = Static(f), Static(functools.partial(helper, value))
    assert first == Static(captured(value)) == Static(f)
    assert first == Static(same_content)
    change(value)
    assert first != Static(f)
    assert first != Static(captured(value))
    assert partial != Static(functools.partial(helper, value))
    assert first == Static(same_content)  # which did not change


@pytest.mark.parametrize(
    "value", [iter([1, 2]), np.random.default_rng(0), random.Random(0), (x for x in "ab"), time.time, os.getpid]
)
def test_what_cannot_be_looked_into_makes_only_the_wrapper_itself_equal(value):
    f = captured(value)
    first = Static(f)
    assert first == first
    assert first != Static(f)


def in_a_module(source, **names):
    """A function f, defined as by another module or a notebook cell."""
    scope = {"__name__": "elsewhere", **names}
    exec(source, scope)
    return scope["f"], scope


def test_globals_are_part_of_a_function():
    source = "def f(x): return K * x"
    one, scope = in_a_module(source, K=2.0)
    first = Static(one)
    scope["K"] = 3.0
    exec(source, scope)
    assert first != Static(scope["f"])
    scope["K"] = 2.0
    exec(source, scope)
    assert first == Static(scope["f"])
    nested = "def f(x): return (lambda: K[0] * x)()"
    one, scope = in_a_module(nested, K=[2.0])
    first = Static(one)
    exec(nested, scope)
    assert first == Static(scope["f"])
    scope["K"][0] = 3.0
    assert first != Static(scope["f"])
    other, _ = in_a_module(source, K=2.0)
    assert not same(in_a_module(source, K=2.0)[0], other)  # of two modules


def test_functions_that_are_reached_count_too():
    source = "def g(x): return K * x\ndef f(x): return g(x)"
    one, scope = in_a_module(source, K=1.0)
    first = Static(one)
    exec(source, scope)
    assert first == Static(scope["f"])
    scope["K"] = 5.0
    exec(source, scope)
    assert first != Static(scope["f"])


def test_recursion_ends_and_empty_cells_are_not_trusted():
    def make():
        def f(x):
            return f(x - 1) if x else x

        return f

    assert same(make(), make())
    one, _ = in_a_module("def g(n): return f(n)\ndef f(n): return n and g(n - 1)")
    assert same(one, one)


def test_modules_of_the_users_may_change():
    mine = types.ModuleType("mine")
    mine.__file__ = "/home/me/mine.py"
    mine.K = {"a": 1.0}
    source = "def f(x): return mine.K['a'] * x"
    one, scope = in_a_module(source, mine=mine)
    first = Static(one)
    exec(source, scope)
    assert first == Static(scope["f"])
    mine.K["a"] = 2.0
    assert first != Static(scope["f"])


def test_only_functions_and_partials_are_wrapped():
    assert isinstance(static(helper), Static)
    assert static(math.sin) is math.sin
    assert static(None) is None
    assert static(helper)(3.0) == 6.0


def test_no_landscape_comes_from_a_stale_program():
    line = lla.directions.random(jax.random.key(0), params(), num=1)
    found = {}
    for temperature in (1.0, 2.0):
        source = "def f(o, b): return -jnp.take_along_axis(jax.nn.log_softmax(o / T), b[1][:, None], 1)[:, 0]"
        criterion, _ = in_a_module(source, T=temperature, jax=jax, jnp=jnp)
        grid = lla.grid(points=3, dims=1)
        plane = lla.evaluate(lla.Loss(apply, criterion), params(), dataset(), line, grid, execution=FIXED)
        logits = apply(params(), None, dataset(), False)[0]
        found[temperature] = plane.values["loss"][1], np.mean(criterion(logits, dataset()))
    for value, expected in found.values():
        assert value == pytest.approx(float(expected), rel=1e-5)


def test_an_object_made_anew_is_another_even_at_the_same_address():
    for make in (
        lambda i: type("Settings", (), {"k": i}),
        lambda i: jax.jit(lambda x: i * x),
        lambda i: np.vectorize(lambda x: i * x),
    ):
        made = []
        for i in range(20):
            value = make(float(i))
            made.append(Static(lambda x, value=value: value(x)))
            del value
        assert len(set(made)) == len(made)


class Settings:
    k = 1.0

    def criterion(self, x):
        return self.k * x


def test_libraries_are_found_wherever_they_are_installed(monkeypatch):
    places = ["/usr/lib/python3/dist-packages", "/home/me/.local/lib/python3.12/site-packages", r"C:\py\site-packages"]
    for place in [*places, "/home/me/packages"]:
        mine = types.ModuleType("mine")
        mine.__file__ = f"{place}/mine/__init__.py" if "/" in place else rf"{place}\mine\__init__.py"
        monkeypatch.setitem(sys.modules, "mine", mine)
        assert is_installed("mine") == (place in places)


def with_attribute(x):
    return with_attribute.k * x


def test_state_that_hides_in_methods_and_classes_is_found(monkeypatch):
    settings, table = Settings(), {"k": 1.0}
    method, getter, cached = settings.criterion, table.get, functools.lru_cache(lambda x: table["k"] * x)
    makes = (
        lambda: lambda x: Settings.k * x,
        lambda: lambda x: method(x),
        lambda: method,
        lambda: lambda x: getter("k") * x,
        lambda: lambda x: cached(x),
    )
    before = [Static(make()) for make in makes]
    assert before == [Static(make()) for make in makes]
    monkeypatch.setattr(Settings, "k", 2.0)
    table["k"] = 2.0
    for one, make in zip(before, makes, strict=True):
        assert one != Static(make())
    seen = []
    for with_attribute.k in (1.0, 2.0):
        seen.append(Static(lambda x: with_attribute(x)))
    assert seen[0] != seen[1]


def test_a_replaced_library_function_is_noticed(monkeypatch):
    def make():
        return Static(lambda x: optax.losses.l2_loss(x))

    before = make()
    assert before == make()
    monkeypatch.setattr(optax.losses, "l2_loss", helper)
    assert before != make()


def test_jitted_functions_and_library_ones_imported_by_name_compare_as_objects():
    relu, jitted = jax.nn.relu, jax.jit(helper)
    for make in (lambda: lambda x: relu(x), lambda: lambda x: jitted(x), lambda: lambda x: np.add(x, x)):
        assert same(make(), make())


@dataclasses.dataclass(frozen=True, eq=False)
class Made(ByValue):
    f: Static


def test_a_model_and_its_functions_are_looked_at_once_and_renewed_together(monkeypatch):
    table, looks = [1.0], []
    made = Made(Static(lambda x: x * table[0]))
    monkeypatch.setattr(_static, "Look", lambda value: looks.append(1) or Look(value))
    assert renew(made) is made
    assert len(looks) == 1
    table[0] = 2.0
    again = renew(made)
    assert again != made
    assert again.f != made.f
    assert renew(again) is again


def test_a_loss_can_be_copied_and_sent():
    import pickle

    loss = lla.Loss(apply, helper)
    for other in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        assert jax.tree.structure(other) == jax.tree.structure(loss)
