"""Runs the command line ``lla-jax``."""
