"""Converted graphs and the JAX functions of their operators; imports no torch."""
