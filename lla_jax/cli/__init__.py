"""The command line ``lla-jax``."""
