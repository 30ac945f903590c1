"""Certificates: torch and JAX compared on the user's own weights and data."""
