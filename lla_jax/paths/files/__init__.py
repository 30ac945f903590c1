"""Paths on disk: recordings and checkpoints."""
