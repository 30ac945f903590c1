"""Converts torch's loss modules, and steps written in torch, to losses of lla_jax."""
