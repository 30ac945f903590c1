"""Random draws: torch's shapes and types, replay, and bounds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lla_torch.program.operators import TABLE, full_name
from lla_torch.program.program import DType, Instruction, Noise, run_instruction
from lla_torch.program.views import plain

from tests.interop.program.calls import POS, UNIT, X
from tests.interop.program.check_calls import torch_op

RANDOM = {
    "rand": ((5, 4),),
    "randn": ((5, 4),),
    "rand_like": (X,),
    "randn_like": (X,),
    "randint": (3, (5,)),
    "randint.low": (1, 3, (5,)),
    "randint_like": (X, 3),
    "randperm": (6,),
    "normal.Tensor_float": (X, 0.5),
    "normal.Tensor_Tensor": (X, POS),
    "normal_functional": (X, 1.0, 2.0),
    "uniform": (X, -1.0, 2.0),
    "exponential": (X, 2.0),
    "log_normal": (X,),
    "bernoulli": (UNIT,),
    "bernoulli.p": (X, 0.3),
    "poisson": (POS,),
    "multinomial": (POS[0], 2),
}


@pytest.mark.parametrize("name", RANDOM)
def test_draws_have_torchs_shape_and_can_be_replayed(name):
    wanted = torch_op(name)(*(torch.tensor(a) if isinstance(a, np.ndarray) else a for a in RANDOM[name]))
    dtypes = (DType(str(wanted.dtype).removeprefix("torch.")),)
    args = [plain(jnp.asarray(a)) if isinstance(a, np.ndarray) else a for a in RANDOM[name]]
    instruction = Instruction(TABLE[full_name(f"aten.{name}")], (), (), 0, dtypes)
    drawn = run_instruction(instruction, args, {}, Noise(jax.random.key(0), None), np.dtype(np.float32)).logical()
    assert drawn.shape == tuple(wanted.shape)
    replayed = run_instruction(instruction, args, {}, Noise(None, [wanted.numpy()]), np.dtype(np.float32)).logical()
    np.testing.assert_allclose(replayed, wanted.numpy(), rtol=1e-6)
    with pytest.raises(ValueError, match="draws random numbers"):
        run_instruction(instruction, args, {}, Noise(None, None), np.dtype(np.float32))


def test_uniform_takes_its_bounds_by_name():
    instruction = Instruction(TABLE["aten.uniform.default"], (), (), 0, ())
    drawn = run_instruction(
        instruction, [plain(jnp.ones(200))], {"from": 2.0, "to": 3.0}, Noise(jax.random.key(0), None), None
    )
    assert float(drawn.array.min()) >= 2
    assert float(drawn.array.max()) <= 3
