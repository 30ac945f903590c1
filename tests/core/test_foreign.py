"""Objects of other libraries are recognized by their types, and trees of parameters pass without a word."""

from __future__ import annotations

import equinox as eqx
import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from flax import nnx

import lla_jax as lla
from lla_jax.core import tree as _tree
from lla_jax.core.foreign import advise_params, library_of

LINEAR = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
EQUINOX = eqx.nn.Linear(2, 2, key=jax.random.key(0))

LIBRARIES = {
    "linen": (nn.Dense(2), "flax.linen"),
    "a linen class": (nn.Dense, "flax.linen"),
    "nnx": (LINEAR, "flax.nnx"),
    "equinox": (EQUINOX, "equinox"),
    "optax": (optax.sgd(0.1, momentum=0.9).init({"w": np.ones(2)})[0], "optax"),
    "ours": (lla.Execution(), "lla_jax"),
    "a dict": ({"w": np.ones(2)}, ""),
    "an array": (np.ones(2), ""),
    "a function": (np.mean, ""),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_library_of_an_object(name):
    value, expected = LIBRARIES[name]
    assert library_of(value) == expected


@pytest.mark.parametrize(
    "params",
    [
        {"w": np.ones(2)},
        [np.ones(2), {"b": 1.0}],
        nnx.state(LINEAR, nnx.Param),
        nnx.to_pure_dict(nnx.state(LINEAR, nnx.Param)),
        LINEAR,
        EQUINOX,
        eqx.filter(EQUINOX, eqx.is_inexact_array),
        jax.numpy.ones(3),
    ],
    ids=lambda params: type(params).__name__,
)
def test_trees_of_parameters_pass(params):
    _tree.check_real(params)


def test_nothing_is_advised_for_parameters():
    assert advise_params({"w": np.ones(2)}) == ""
    assert advise_params(nnx.state(LINEAR, nnx.Param)) == ""
