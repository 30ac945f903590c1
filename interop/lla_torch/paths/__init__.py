"""Paths of torch networks through parameter space: recorded during training, and read from checkpoints."""
