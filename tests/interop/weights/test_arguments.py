"""Modules, networks, types and keys are told from what is none."""

from __future__ import annotations

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lla_torch.weights.arguments import check_key, check_module, check_net, floating_type
from torch import nn

from tests.interop.weights.cases import net_of, trained


def test_what_is_a_module_or_a_network_passes():
    check_module(nn.DataParallel(nn.Linear(2, 2)))
    check_net(net_of(trained(0)))


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, jax.numpy.bfloat16, np.dtype("bfloat16")])
def test_types_of_all_libraries_are_one(dtype):
    assert floating_type(dtype) == jax.numpy.bfloat16


def test_keys_of_both_kinds_pass():
    for key in (None, jax.random.key(0), jax.random.PRNGKey(0)):
        check_key(key)
    with pytest.raises(ValueError, match=r"one jax\.random key"):
        check_key(jax.random.split(jax.random.key(0)))
