"""The version, read by the build and by the recipes of saved results."""

__version__ = "0.1.0"
