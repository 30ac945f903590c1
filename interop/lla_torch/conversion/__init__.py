"""Converts exported graphs to pure functions, and modules to the parts of a ``Net``."""
