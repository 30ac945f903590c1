"""Calls that do not fit a signature, and unknown attributes: what the errors say, and what stays as it was."""

import contextlib
import copy
import dataclasses
import gc
import inspect
import pickle
import weakref
from typing import NamedTuple

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax import _names
from lla_jax.core.arguments import Misuse, warn_caller
from lla_jax.core.identities import identity
from lla_jax.core.signatures import MisusedCall, describe_arguments, explained


@explained
def draw(size: int, key: object, /, *, points: int = 3, **rest: int) -> int:
    """Draw.

    Args:
      size: how many, such as
        4. More words.
      key: of jax.

    Returns:
      The size.
    """
    return size + points


@explained
def total(size: int, key: object, *, points: int = 3) -> int:
    """As ``draw``."""
    if points < 0:
        raise TypeError("mine")
    return size + points


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: total(1), ("key: missing in the call total(size, key, points)", "key=jax.random.key(0)")),
        (lambda: total(), ("size: missing", "key is missing too")),
        (lambda: draw(), ("(size: how many, such as 4)",)),
        (lambda: total(1, 2, 3), ("3 given as argument 3 of total()", "2 by position (size, key)", "points=...")),
        (lambda: total(1, 2, 3, points=4), ("leave the rest out",)),
        (lambda: total(1, 2, n_points=4), ("n_points: total() has no such argument; did you mean points?",)),
        (lambda: total(1, 2, extent=1.0), ("extent: total() has no such argument; it is one of grid()",)),
        (lambda: total(1, 2, key=3), ("2 and 3 given to total(), by position and by name",)),
    ],
)
def test_what_is_wrong_with_a_call(call, words):
    assert lla.grid
    with pytest.raises(MisusedCall) as raised:
        call()
    assert all(word in str(raised.value) for word in words), raised.value
    assert isinstance(raised.value, Misuse)
    assert isinstance(raised.value, TypeError)
    assert raised.value.__cause__ is raised.value.__context__ is None


def test_a_call_that_fits_and_a_type_error_from_inside_stay_what_they_are():
    assert total(1, 2) == total(1, key=2, points=3) == draw(1, 2, other=4) == 4
    with pytest.raises(TypeError, match="mine") as raised:
        total(1, 2, points=-1)
    assert not isinstance(raised.value, Misuse)


@pytest.mark.parametrize("options", [{"rto": 1}, {}])
def test_an_error_does_not_keep_the_arguments_alive(options):
    @explained
    def takes_arrays(x: np.ndarray, *, rtol: float = 0.1) -> None:
        raise TypeError("from inside")

    def fail():
        x = np.ones(3)
        with contextlib.suppress(TypeError):
            takes_arrays(x, **options)
        return weakref.ref(x)

    gc.disable()
    try:
        assert fail()() is None
    finally:
        gc.enable()


def test_the_likest_name_is_looked_for_only_where_the_error_is_read(monkeypatch):
    asked = []
    monkeypatch.setattr(_names, "_likeness", lambda one, other: asked.append(one) or 0.0)
    assert not hasattr(lla, "nothing")
    assert not hasattr(lla.operators, "nothing")
    assert not hasattr(lla.Estimate(1.0, 0.1, 3), "nothing")
    assert not asked


@pytest.mark.parametrize("name", ["_", "__"])
def test_names_without_letters(name):
    assert not hasattr(lla, name)
    assert not hasattr(lla.operators, name)


def test_name_signature_docstring_and_pickle_stay():
    assert list(inspect.signature(total).parameters) == ["size", "key", "points"]
    assert total.__doc__ == "As ``draw``."
    assert pickle.loads(pickle.dumps(lla.trace)) is lla.trace is lla.spectral.trace
    assert inspect.signature(lla.hessian).parameters["select"].default is None


@explained
def double(x: float) -> float:
    """Twice x."""
    return 2 * x


def test_functions_compare_by_value_as_without_the_decorator():
    assert identity(double) == identity(double.__explained__)


@pytest.mark.parametrize("package", ["lla_jax", "lla_torch"])
def test_a_warning_names_the_line_of_the_user(package):
    inside = {"__name__": f"{package}.room.concept", "explained": explained, "warn_caller": warn_caller}
    exec("@explained\ndef warn():\n    warn_caller('careful')", inside)
    with pytest.warns(UserWarning, match="careful") as seen:
        inside["warn"]()
    assert seen[0].filename == __file__


def test_entries_of_docstrings():
    found = describe_arguments(lla.trace.__doc__)
    assert found["key"] == "draws the vectors"
    assert set(found) == set(inspect.signature(lla.trace).parameters)
    assert describe_arguments(None) == describe_arguments("Nothing.") == {}
    assert describe_arguments(lla.Estimate.__doc__)["sem"] == "its standard error, of the same kind"


# --- classes


@explained
class Pair(NamedTuple):
    """Two.

    Args:
      one: the first.
      two: the second.
    """

    one: int
    two: int

    def plus(self, more: int) -> int:
        """The sum of one and more."""
        return self.one + more


def test_constructors_and_methods():
    assert Pair(1, two=2).plus(3) == 4
    assert pickle.loads(pickle.dumps(Pair(1, 2))) == copy.deepcopy(Pair(1, 2)) == (1, 2)
    with pytest.raises(MisusedCall, match=r"two: missing in the call Pair\(one, two\) \(two: the second\)"):
        Pair(1)
    with pytest.raises(MisusedCall, match=r"more: missing in the call Pair.plus\(more\)"):
        Pair(1, 2).plus()
    with pytest.raises(MisusedCall, match=r"mean: missing in the call Estimate\(mean, sem, num, recipe, state\)"):
        lla.Estimate()
    with pytest.raises(MisusedCall, match=r"chunks: Execution\(\) has no such argument; did you mean chunk\?"):
        lla.Execution(chunks=3)


def test_unknown_attributes_are_named_and_jax_copy_and_pickle_go_on_working():
    spectrum = lla.Spectrum(np.ones((1, 2)), np.full((1, 2), 0.5), {"steps": 2})
    with pytest.raises(AttributeError, match=r"Spectrum has no attribute 'node'; did you mean nodes\? It has: nodes"):
        _ = spectrum.node
    with pytest.raises(AttributeError, match=r"did you mean recipe\['steps'\]"):
        _ = spectrum.steps
    assert not hasattr(spectrum, "shape")
    with pytest.raises(AttributeError) as caught:
        _ = spectrum.node
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    again = copy.deepcopy(pickle.loads(pickle.dumps(spectrum)))
    assert (again.nodes == spectrum.nodes).all()
    axes = lla.Directions({"w": np.ones((2, 3))}, {"kind": "given"})
    assert jax.tree.map(lambda x: 2 * x, axes).num == copy.copy(axes).num == 2
    with pytest.raises(ValueError, match="no leading axis"):  # the property's own error
        _ = lla.Directions({"w": 1.0}, {}).num


def test_frozen_results_say_how_to_change_a_copy():
    with pytest.raises(dataclasses.FrozenInstanceError, match=r"dataclasses.replace\(x, chunk=...\)"):
        lla.Execution().chunk = 3
    assert dataclasses.replace(lla.Execution(), chunk=3).chunk == 3


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Hessian", "hessian"),
        ("hessian_eigs", "hessian"),
        ("eigs", "eigenpairs"),
        ("eigenvalues", "eigenpairs"),
        ("loss_landscape", "landscape"),
        ("plot", "plotting"),
        ("estimate", "Estimate"),
    ],
)
def test_unknown_names_of_the_package(name, meant):
    with pytest.raises(AttributeError, match=rf"has no attribute '{name}'; did you mean {meant}\? It has: Directions"):
        getattr(lla, name)


def test_modules_that_are_public_names():
    with pytest.raises(AttributeError, match=r"did you mean preconditioned\?"):
        _ = lla.operators.precondition
    for module in (lla.plotting, lla.lanczos, lla.layers):
        with pytest.raises(TypeError, match="is a module, not a function; call one of its own: "):
            module(3)
