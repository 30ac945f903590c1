"""Nudged elastic bands, and the saddles that they lead to."""
