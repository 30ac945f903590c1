"""Weights, checkpoints and optimizer moments of torch as Flax trees, and back."""
