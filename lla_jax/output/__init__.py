"""Puts results into files, words and pictures."""
