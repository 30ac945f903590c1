"""Keeps landscapes in chunk stores: folders that survive a kill, and into which any number of processes write."""
