"""Paths seen along axes: principal components, coordinates, distances and what is computed at the checkpoints."""
