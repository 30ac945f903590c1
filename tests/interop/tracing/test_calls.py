"""The arguments of calls, and what is said of those that a module does not take."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lla_torch.tracing.calls import Call, as_arrays, as_tensors, why_call_fails
from torch import nn


def test_arrays_and_tensors_become_each_other():
    nested = {"a": (np.ones(2), [jnp.ones(3)]), "b": 3}
    tensors = as_tensors(nested)
    assert len(Call((tensors,), {}).tensors) == 2
    back = as_arrays(tensors)
    np.testing.assert_array_equal(back["a"][0], nested["a"][0])
    assert back["b"] == 3


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((torch.ones(4, 3), torch.ones(4)), r"float32 \(4, 3\), float32 \(4,\)\); .*inputs alone, batch\[0\]"),
        (((torch.ones(4, 3),),), "one by one"),
        ((torch.ones(4, 3), {"mask": None}), "example_kwargs"),
        ((), "no inputs; .*missing a required argument"),
        ((torch.ones(4, 2),), r"float32 \(4, 2\).*torch says: mat1"),
    ],
)
def test_what_is_said_of_a_call(args, says):
    module = nn.Linear(3, 2)
    with pytest.raises((TypeError, RuntimeError)) as caught:
        module(*args)
    with pytest.raises(ValueError, match=says):
        raise ValueError(why_call_fails(caught.value, module, args, {}))
