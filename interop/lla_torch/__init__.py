"""Converts torch modules, with their weights, losses and optimizers, to pure JAX functions and Flax trees."""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "lla_torch needs PyTorch, which is not installed. Install it by its own instructions for your machine, or "
        "with: pip install 'lla-jax[torch]'. Everything in lla_jax works without it."
    ) from error

import sys

from lla_jax.models.adapters import explained
from lla_torch.certification.certificate import Certificate, certify
from lla_torch.net import Net, convert, convert_loss
from lla_torch.paths.loading import load_path
from lla_torch.paths.recording import record_training
from lla_torch.problems import problem, stream
from lla_torch.program.operators import lowering
from lla_torch.tracing.guards import ConversionError
from lla_torch.tracing.recording import record
from lla_torch.weights.checkpoint import load_checkpoint, to_state_dict
from lla_torch.weights.moments import adam_moments, optax_state
from lla_torch.weights.names import trainable

__all__ = [
    "Certificate",
    "ConversionError",
    "Net",
    "adam_moments",
    "certify",
    "convert",
    "convert_loss",
    "load_checkpoint",
    "load_path",
    "lowering",
    "optax_state",
    "problem",
    "record",
    "record_training",
    "stream",
    "to_state_dict",
    "trainable",
]

explained(sys.modules[__name__])
